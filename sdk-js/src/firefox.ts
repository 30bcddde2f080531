/** What decoding takes in Firefox: it shows what is there of a file that was cut off, and may alter what a canvas gives. */

import type { Pixels } from "./pixels.js";

const IEND = 0x49454e44;

/**
 * Pixels as they are, past any canvas; null in versions that cannot copy them. (Chromium's copies lie as the file has
 * them, not upright.)
 */
export async function copied(bitmap: ImageBitmap): Promise<Pixels | null> {
  if (typeof VideoFrame === "undefined") return null;
  const { width, height } = bitmap;
  const frame = new VideoFrame(bitmap, { timestamp: 0 });
  try {
    const data = new Uint8Array(4 * width * height);
    await frame.copyTo(data, { format: "RGBA" });
    return { data, width, height };
  } catch {
    return null;
  } finally {
    frame.close();
  }
}

/**
 * Whether a file goes on to where the pixels of its first frame end. Where a format does not say where that is, the file is
 * followed through its parts.
 *
 * @param file JPEG, PNG, GIF, WebP or BMP; of anything else nothing is known, and it counts as whole.
 */
export function isWhole(file: Uint8Array): boolean {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  try {
    switch (String.fromCharCode(...file.subarray(0, 2))) {
      case "\xff\xd8":
        return jpeg(view);
      case "\x89P":
        return png(view);
      case "GI":
        return gif(view);
      case "RI":
        return view.getUint32(4, true) + 8 <= file.length;
      case "BM":
        return bmp(view);
      case "\0\0": // an icon or a cursor, which no other client reads
        return ![0x100, 0x200].includes(view.getUint32(0));
      default:
        return true;
    }
  } catch (error) {
    if (error instanceof RangeError) return false; // it was followed beyond its end
    throw error;
  }
}

/** Markers and what they say of themselves, and compressed data, in which 0xff is followed by 0, up to the last marker. */
function jpeg(view: DataView): boolean {
  for (let at = 2; ; ) {
    const marker = view.getUint16(at);
    if (marker === 0xffd9) return true;
    if (marker < 0xff00 || marker === 0xffff) at += 1;
    else if (marker === 0xff00 || marker === 0xff01 || (marker >= 0xffd0 && marker <= 0xffd7)) at += 2;
    else at += 2 + view.getUint16(at + 2);
  }
}

/** Chunks up to the last one, whose own end does not matter. */
function png(view: DataView): boolean {
  for (let at = 8; view.getUint32(at + 4) !== IEND; ) at += 12 + view.getUint32(at);
  return true;
}

/** Extensions, then the first frame, in blocks of up to 255 bytes; an empty one ends each, and more of the file follows. */
function gif(view: DataView): boolean {
  const colours = (at: number) => (view.getUint8(at) & 0x80 ? 3 << ((view.getUint8(at) & 7) + 1) : 0);
  let at = 13 + colours(10);
  for (;;) {
    const frame = view.getUint8(at) === 0x2c;
    at += frame ? 11 + colours(at + 9) : 2;
    while (view.getUint8(at)) at += 1 + view.getUint8(at);
    at += 1;
    if (frame) return at === view.byteLength || [0x21, 0x2c, 0x3b].includes(view.getUint8(at));
  }
}

/** Rows of whole words, from where the file says, or as many bytes as it says that they have when they are compressed. */
function bmp(view: DataView): boolean {
  const start = view.getUint32(10, true);
  const header = view.getUint32(14, true);
  if (header < 16)
    return (
      start + rows(view.getUint16(18, true), view.getUint16(24, true)) * view.getUint16(20, true) <= view.byteLength
    );
  const compressed = header >= 40 && ![0, 3, 6].includes(view.getUint32(30, true));
  if (compressed) return start + view.getUint32(34, true) <= view.byteLength;
  const height = Math.abs(view.getInt32(22, true));
  return start + rows(view.getInt32(18, true), view.getUint16(28, true)) * height <= view.byteLength;
}

/** Bytes of a row of pixels. */
const rows = (width: number, bits: number): number => ((width * bits + 31) >> 5) * 4;
