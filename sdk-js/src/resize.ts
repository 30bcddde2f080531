/** Pillow's bilinear resize with antialiasing, in its fixed-point arithmetic: every byte is Pillow's. */

const BITS = 22;

/** Resize rows of interleaved bytes, horizontally first; the aspect ratio is not kept. */
export function resize(
  data: Uint8Array,
  width: number,
  height: number,
  channels: number,
  newWidth: number,
  newHeight: number,
): Uint8Array {
  const wide = width === newWidth ? data : horizontal(data, width, height, channels, newWidth);
  return height === newHeight ? wide : vertical(wide, height, newWidth * channels, newHeight);
}

interface Weights {
  readonly start: number;
  readonly factors: Int32Array;
}

/** For every new place, where in the old ones it begins to look, and what each counts for in 2^-22. */
function weightsOf(from: number, to: number): Weights[] {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(from, Math.trunc(centre + support + 0.5)) - start;
    const shape = Array.from({ length: count }, (_, i) => {
      const distance = Math.abs((i + start - centre + 0.5) * (1 / support));
      return distance < 1 ? 1 - distance : 0;
    });
    const sum = shape.reduce((all, each) => all + each, 0);
    return { start, factors: Int32Array.from(shape, (each) => Math.trunc(0.5 + (each / sum) * (1 << BITS))) };
  });
}

function horizontal(data: Uint8Array, width: number, height: number, channels: number, newWidth: number): Uint8Array {
  const made = new Uint8Array(height * newWidth * channels);
  const weights = weightsOf(width, newWidth);
  let at = 0;
  for (let y = 0; y < height; y++)
    for (const { start, factors } of weights)
      for (let channel = 0; channel < channels; channel++) {
        let sum = 1 << (BITS - 1);
        let from = (y * width + start) * channels + channel;
        for (let i = 0; i < factors.length; i++, from += channels)
          sum += (data[from] as number) * (factors[i] as number);
        made[at++] = clip(sum);
      }
  return made;
}

function vertical(data: Uint8Array, height: number, row: number, newHeight: number): Uint8Array {
  const made = new Uint8Array(newHeight * row);
  let at = 0;
  for (const { start, factors } of weightsOf(height, newHeight))
    for (let x = 0; x < row; x++) {
      let sum = 1 << (BITS - 1);
      let from = start * row + x;
      for (let i = 0; i < factors.length; i++, from += row) sum += (data[from] as number) * (factors[i] as number);
      made[at++] = clip(sum);
    }
  return made;
}

const clip = (sum: number): number => Math.min(255, Math.max(0, sum >> BITS));
