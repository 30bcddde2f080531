/** From an image file to pixels, in a browser. */

import { MAX_ENCODED_BYTES } from "./constants.js";
import { ImageError } from "./errors.js";
import { loaded } from "./loaded.js";
import { checkSize, type Pixels } from "./pixels.js";

export { loadPixels } from "./pixels.js";

const DAMAGED = "this is no image that this browser reads, or it is damaged: choose another file";
/** A picture of two pixels, cut off after the first. */
const CUT = "GIF89a\x01\0\x02\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x02\0\0\x02\x02\x04";
let showsParts: Promise<boolean> | undefined;

/**
 * Decode an image file to upright pixels at its full size, without colour conversion. The SDK then makes them smaller
 * itself: a canvas would do it otherwise than the other devices.
 *
 * @param file what a file input, a drop or `fetch` gives.
 * @throws ImageError it is no image that this browser reads, or too small or too large.
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
    if (!(await isWhole(file))) throw new ImageError(DAMAGED);
    const { width, height } = bitmap;
    checkSize(width, height);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    if (!context) throw new ImageError(`this browser cannot draw ${width} x ${height} pixels: choose a smaller image`);
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, width, height);
  } finally {
    bitmap.close();
  }
}

/** Whether a file was not cut off. Decoders refuse one that was, but not that of Firefox. */
async function isWhole(file: Blob): Promise<boolean> {
  showsParts ??= createImageBitmap(new Blob([Uint8Array.from(CUT, (character) => character.charCodeAt(0))])).then(
    () => true,
    () => false,
  );
  return !(await showsParts) || (await loaded(import("./whole.js"))).isWhole(new Uint8Array(await file.arrayBuffer()));
}
