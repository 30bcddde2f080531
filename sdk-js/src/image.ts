/** From an image file to pixels, in a browser. */

import { same } from "./bytes.js";
import { MAX_ENCODED_BYTES } from "./constants.js";
import { ImageError } from "./errors.js";
import { loaded } from "./loaded.js";
import { checkSize, type Pixels } from "./pixels.js";

export { loadPixels } from "./pixels.js";

const DAMAGED = "this is no image that this browser reads, or it is damaged: choose another file";
/** A picture of two pixels, cut off after the first. */
const CUT = "GIF89a\x01\0\x02\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x02\0\0\x02\x02\x04";
/** Beyond it some browsers draw nothing, and do not say so. */
const MAX_SIDE = 32_767;
let showsParts: Promise<boolean> | undefined;

/**
 * Decode an image file to upright pixels at its full size, without colour conversion. The SDK then makes them smaller
 * itself: a canvas would do it otherwise than the other devices.
 *
 * @param file what a file input, a drop or `fetch` gives.
 * @throws ImageError it is no image that this browser reads, or too small or too large; or the browser alters the pixels
 *   that pages read.
 */
export async function decodeImage(file: Blob): Promise<Pixels> {
  if (!(file instanceof Blob)) throw new ImageError("this is no file: pass a File or a Blob");
  if (file.size > MAX_ENCODED_BYTES)
    throw new ImageError(`the image file has ${file.size} bytes, more than ${MAX_ENCODED_BYTES}: scale it down first`);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new ImageError(DAMAGED);
  }
  try {
    checkSize(bitmap.width, bitmap.height);
    if (await isFirefox()) {
      const { copied, isWhole } = await loaded(import("./firefox.js"));
      if (!isWhole(new Uint8Array(await file.arrayBuffer()))) throw new ImageError(DAMAGED);
      const pixels = await copied(bitmap);
      if (pixels) return pixels;
    }
    return drawn(bitmap);
  } finally {
    bitmap.close();
  }
}

/** Whether the browser shows what is there of a file that was cut off, as only Firefox does. */
async function isFirefox(): Promise<boolean> {
  showsParts ??= createImageBitmap(new Blob([Uint8Array.from(CUT, (character) => character.charCodeAt(0))])).then(
    () => true,
    () => false,
  );
  return showsParts;
}

/** Its pixels by way of a canvas. */
function drawn(bitmap: ImageBitmap): ImageData {
  const { width, height } = bitmap;
  let found: ImageData;
  let honest: boolean;
  try {
    if (Math.max(width, height) > MAX_SIDE) throw new RangeError();
    found = readBack(width, height, (context) => context.drawImage(bitmap, 0, 0));
    const known = new ImageData(16, 16);
    known.data.set(known.data.map((_, i) => (i % 4 === 3 ? 255 : 37 * i)));
    honest = same(readBack(16, 16, (context) => context.putImageData(known, 0, 0)).data, known.data);
  } catch {
    throw new ImageError(`this browser cannot draw ${width} x ${height} pixels: choose a smaller image`);
  }
  if (honest) return found;
  throw new ImageError(
    "this browser alters the pixels that pages read, so that they cannot recognise it: allow this page to read them " +
      "(in Firefox, extract canvas data), or use another browser",
  );
}

function readBack(
  width: number,
  height: number,
  draw: (context: OffscreenCanvasRenderingContext2D) => void,
): ImageData {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new TypeError();
  draw(context);
  return context.getImageData(0, 0, width, height);
}
