/** What the Python SDK wrote down for this run (tests/js), named by the environment. */

import { readFileSync } from "node:fs";

export interface Packed {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: string;
}

export const bytesOf = (packed: Packed): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(packed.data, "base64"));
export const int8Of = (packed: Packed): Int8Array => new Int8Array(bytesOf(packed).buffer);
export const float32Of = (packed: Packed): Float32Array => new Float32Array(bytesOf(packed).buffer);

/** One image of a batch. */
export const row = <T extends Uint8Array | Int8Array | Float32Array>(all: T, index: number, count: number): T =>
  all.subarray((index * all.length) / count, ((index + 1) * all.length) / count) as T;

export interface PixelCase {
  readonly image: Packed;
  readonly spec: { readonly height: number; readonly width: number; readonly channels: 1 | 3 };
  readonly expected: Packed;
}

export interface MaskedCase {
  readonly release: string;
  readonly key: string | null;
  readonly partition: number | null;
  readonly images: Packed;
  readonly shares: readonly Packed[];
  readonly logits: Packed;
  readonly answered: Packed;
  readonly probabilities: Packed;
}

export interface CodedCase {
  readonly release: string;
  readonly servers: number;
  readonly colluding: number;
  readonly images: Packed;
  /** Residues of every sharing, int8 [batch, T, primes, values]. */
  readonly drawn: readonly Packed[];
  readonly rounds: readonly { readonly shares: readonly Packed[]; readonly answers: readonly Packed[] }[];
  readonly probabilities: Packed;
}

interface Vectors {
  readonly pixels: readonly PixelCase[];
  readonly masked: readonly MaskedCase[];
  readonly coded: readonly CodedCase[];
}

/**
 * A source of random bytes from which drawing makes these residues: for each sharing and prime a portion that fits, and
 * behind it bytes that are thrown away. `left` says how many portions have not been asked for.
 */
export function sourceOf(moduli: readonly (readonly number[])[], sharings: readonly Packed[]): SourceOfResidues {
  const portions = sharings.flatMap((packed, i) => {
    const residues = int8Of(packed);
    const [batch = 0, colluding = 0, primes = 0, values = 0] = packed.shape;
    return (moduli[i] as readonly number[]).map((prime, column) =>
      Array.from({ length: batch * colluding * values }, (_, at) => {
        const place = Math.floor(at / values) * primes + column;
        return (residues[place * values + (at % values)] as number) + (prime - 1) / 2;
      }),
    );
  });
  const source = (count: number): Uint8Array => {
    const bytes = new Uint8Array(count).fill(255);
    bytes.set(portions.shift() as number[]);
    return bytes;
  };
  return { source, left: () => portions.length };
}

interface SourceOfResidues {
  readonly source: (count: number) => Uint8Array;
  readonly left: () => number;
}

/** A variable that tests/js sets. */
export function given(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run these tests by pytest tests/js, which makes what they need`);
  return value;
}

export const readVectors = (): Vectors => JSON.parse(readFileSync(given("PRIVDFS_JS_VECTORS"), "utf8")) as Vectors;

/** The client folder of a release of this repository. */
export const folderOf = (release: string): string =>
  new URL(`../../model_repository/${release}/client`, import.meta.url).pathname;
