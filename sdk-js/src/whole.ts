/** Whether an image file goes on to its end, for browsers whose decoders show what is there of one that was cut off. */

const IEND = 0x49454e44;

/**
 * Look where the pixels of the first frame end. Not every format has a length: then the file is followed through its
 * parts.
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

/** Extensions, then the first frame, in blocks of up to 255 bytes; an empty one ends each. */
function gif(view: DataView): boolean {
  const colours = (at: number) => (view.getUint8(at) & 0x80 ? 3 << ((view.getUint8(at) & 7) + 1) : 0);
  let at = 13 + colours(10);
  for (;;) {
    const frame = view.getUint8(at) === 0x2c;
    at += frame ? 11 + colours(at + 9) : 2;
    while (view.getUint8(at)) at += 1 + view.getUint8(at);
    if (frame) return true;
    at += 1;
  }
}

/** Rows of whole words, from where the file says; of compressed ones, and in files as OS/2 wrote them, nothing is known. */
function bmp(view: DataView): boolean {
  if (view.getUint32(14, true) < 40 || ![0, 3].includes(view.getUint32(30, true))) return true;
  const [width, height] = [view.getInt32(18, true), Math.abs(view.getInt32(22, true))];
  const row = ((width * view.getUint16(28, true) + 31) >> 5) * 4;
  return view.getUint32(10, true) + row * height <= view.byteLength;
}
