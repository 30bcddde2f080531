/** Reading safetensors: a length, JSON that says where each tensor lies, and the tensors' bytes. */

import { textOf } from "./bytes.js";
import { Problem, parse, record } from "./schema.js";

export interface Stored {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

const SIZES: Readonly<Record<string, number>> = { U8: 1, I8: 1, BOOL: 1, I32: 4, F32: 4 };

/** The tensors by name; throws `Problem` for anything but a sound file without gaps. */
export function readSafetensors(data: Uint8Array): Map<string, Stored> {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const length = data.length < 8 ? Number.NaN : Number(view.getBigUint64(0, true));
  if (!(length <= data.length - 8)) throw new Problem("it is cut short");
  const text = textOf(data.subarray(8, 8 + length));
  const header = text?.startsWith("{") ? parse(text) : null;
  if (!record(header)) throw new Problem("its header is not an object");
  const body = data.subarray(8 + length);
  const found = new Map<string, Stored>();
  const places: [number, number][] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = record(entry) ? entry : {};
    const size = typeof dtype === "string" ? SIZES[dtype] : undefined;
    if (!size || !isSizes(shape) || !isSizes(offsets)) throw new Problem("a tensor is not described");
    const [start = 0, end = -1] = offsets;
    if (end - start !== shape.reduce((all, axis) => all * axis, size) || end > body.length || offsets.length !== 2)
      throw new Problem("a tensor has another size than its place");
    places.push([start, end]);
    found.set(name, { dtype: dtype as string, shape, bytes: body.slice(start, end) });
  }
  let at = 0;
  for (const [start, end] of places.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (start !== at) throw new Problem("its tensors leave gaps or overlap");
    at = end;
  }
  if (at !== body.length) throw new Problem("it has bytes that belong to no tensor");
  return found;
}

const isSizes = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((axis) => Number.isSafeInteger(axis) && axis >= 0);
