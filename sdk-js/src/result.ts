/** What a prediction gives back. Times in milliseconds. */

import type { ServerError } from "./errors.js";
import { checkWhole } from "./given.js";

export interface RoundTimings {
  /** Making its shares on the device: the encoder, or decoding the round before and sharing again. */
  readonly encodeMs: number;
  /** From sending to the answer, by server; null for a server that gave no usable answer. */
  readonly serversMs: readonly (number | null)[];
}

/** Where the time of a call went; for a batch, of the part that the image travelled in. */
export interface Timings {
  /** Converting and resizing; of the whole batch. */
  readonly decodeMs: number;
  readonly encodeMs: number;
  /** Over all rounds; null for a server that gave no usable answer in one of them. */
  readonly serversMs: readonly (number | null)[];
  /** From the last answers to the result. */
  readonly fusionMs: number;
  /** From the call to the result, a first call's connection and release check included. */
  readonly totalMs: number;
  readonly rounds: readonly RoundTimings[];
}

/** How one replica of a server does; `error` is null when it serves this server of this release. */
export interface Health {
  readonly server: number;
  readonly endpoint: string;
  readonly ms: number;
  readonly error: ServerError | null;
  readonly ok: boolean;
}

export interface ResultFields {
  /** Name of the most probable class, its index and its calibrated probability. */
  readonly label: string;
  readonly index: number;
  readonly probability: number;
  /** float32, one for each of `classes`. */
  readonly probabilities: Float32Array;
  readonly classes: readonly string[];
  /** Which servers gave a usable answer, in every round. */
  readonly answered: readonly boolean[];
  readonly timings: Timings;
  /** Bytes of tensors sent to each server for this image, retries and hedges included. */
  readonly bytesUp: readonly number[];
  /** Bytes of the answers that each server gave. */
  readonly bytesDown: readonly number[];
  /** Servers that are faulty or lie, and their operators should hear of it. */
  readonly suspects: readonly number[];
  /** Of a coded release, servers whose wrong answers were found and left out; the result is exact all the same. */
  readonly corrected: readonly number[];
  /** Of an answer of exactly these servers, as the manifest states it; null where it does not. */
  readonly expectedAccuracy: number | null;
  /** Whether `Queries` knew the image, and nothing was sent. */
  readonly repeated: boolean;
}

/** The fused answer for one image. */
export interface Result extends ResultFields {
  /** The `count` most probable classes with their probabilities, best first. */
  top(count: number): [label: string, probability: number][];
}

export function makeResult(fields: ResultFields): Result {
  const { classes, probabilities } = fields;
  return {
    ...fields,
    top(count) {
      checkWhole(count, "top", 1, Number.MAX_SAFE_INTEGER);
      return Array.from(probabilities, (probability, i): [string, number] => [classes[i] as string, probability])
        .sort((a, b) => b[1] - a[1])
        .slice(0, count);
    },
  };
}

/** Index of the largest value, the first of several. */
export function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}
