/**
 * From an image's pixels to uint8 of the bundle's size: transparency composited on white, grey or RGB as the bundle says,
 * resized horizontally first. Each step is Pillow's, byte for byte, so that the same image gives the same shares on
 * every device.
 */

import { MAX_PIXELS, MIN_SIDE } from "./constants.js";
import { ImageError } from "./errors.js";
import type { ImageSpec } from "./format.js";
import { typeName } from "./given.js";
import { resize } from "./resize.js";

/**
 * Decoded pixels, upright, row by row: grey, RGB or RGBA (not premultiplied), 8 bits a channel. An `ImageData` is one,
 * and so is what sharp's `raw()` gives with its size.
 */
export interface Pixels {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

/** uint8 [height, width, channels] of the bundle's size; an image that has it already is only copied. */
export function loadPixels(image: Pixels, spec: ImageSpec): Uint8Array {
  const { data, width, height } = check(image);
  const channels = data.length / (width * height);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.length);
  if (width === spec.width && height === spec.height && channels === spec.channels) return bytes.slice();
  const flat = channels === 4 ? onWhite(bytes) : bytes;
  const coloured = convert(flat, channels === 1 ? 1 : 3, spec.channels);
  const made = resize(coloured, width, height, spec.channels, spec.width, spec.height);
  return made === bytes ? made.slice() : made;
}

/** Several images as one batch; the message of an error names the position. */
export function loadBatch(images: Iterable<Pixels>, spec: ImageSpec): { pixels: Uint8Array; batch: number } {
  if (typeof images !== "object" || images === null || !(Symbol.iterator in images) || ArrayBuffer.isView(images))
    throw new ImageError(`a ${typeName(images)} is not a list of images: pass a list, each item as predict() takes it`);
  const loaded = [...images].map((image, position) => {
    try {
      return loadPixels(image, spec);
    } catch (error) {
      if (error instanceof ImageError) throw new ImageError(`image ${position} of the batch: ${error.message}`);
      throw error;
    }
  });
  if (!loaded.length) throw new ImageError("the batch is empty: pass at least one image");
  const size = spec.height * spec.width * spec.channels;
  const pixels = new Uint8Array(loaded.length * size);
  loaded.forEach((each, i) => {
    pixels.set(each, i * size);
  });
  return { pixels, batch: loaded.length };
}

function check(image: unknown): Pixels {
  const { data, width, height } = (image ?? {}) as Partial<Pixels>;
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray))
    throw new ImageError(
      "the image has no pixels of 8 bits: pass { data: Uint8Array, width, height }, an ImageData, or in a browser what " +
        "decodeImage(file) gives",
    );
  checkSize(width, height);
  const channels = data.length / ((width as number) * (height as number));
  if (channels !== 1 && channels !== 3 && channels !== 4)
    throw new ImageError(
      `${data.length} bytes are not ${width} x ${height} pixels of 1, 3 or 4 channels: pass the size of these pixels`,
    );
  return { data, width: width as number, height: height as number };
}

/** Refuse an image by its size, before a pixel is decoded. */
export function checkSize(width: unknown, height: unknown): void {
  if (!Number.isSafeInteger(width) || !Number.isSafeInteger(height))
    throw new ImageError("the image's width and height are not whole numbers: pass its size in pixels");
  const [wide, high] = [width as number, height as number];
  if (Math.min(wide, high) < MIN_SIDE)
    throw new ImageError(
      `the image is ${wide} x ${high} pixels, smaller than ${MIN_SIDE} on a side: pass a larger one`,
    );
  if (wide * high > MAX_PIXELS)
    throw new ImageError(
      `the image is ${wide} x ${high}, more than ${MAX_PIXELS} pixels: crop it or scale it down first`,
    );
}

/** RGBA over white to RGB, as Pillow's `alpha_composite` rounds it. */
function onWhite(rgba: Uint8Array): Uint8Array {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const alpha = rgba[from + 3] as number;
    // White is opaque, so the result is too: 255 * 255 = alpha * 255 + 255 * (255 - alpha).
    const own = alpha * 128; // 7 more bits, as 255 * 255 * 128 * alpha / (255 * 255)
    const white = 255 * (255 * 128 - own);
    for (let channel = 0; channel < 3; channel++) {
      const sum = (rgba[from + channel] as number) * own + white + (0x80 << 7);
      rgb[to++] = alpha === 0 ? 255 : (((sum >> 8) + sum) >> 8) >> 7;
    }
  }
  return rgb;
}

/** Grey to RGB or RGB to grey (ITU-R 601, as Pillow rounds it), where it is needed. */
function convert(data: Uint8Array, from: 1 | 3, to: 1 | 3): Uint8Array {
  if (from === to) return data;
  const count = data.length / from;
  const made = new Uint8Array(count * to);
  for (let i = 0; i < count; i++)
    if (to === 3) made.fill(data[i] as number, 3 * i, 3 * i + 3);
    else {
      const [red, green, blue] = [data[3 * i] as number, data[3 * i + 1] as number, data[3 * i + 2] as number];
      made[i] = (red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16;
    }
  return made;
}
