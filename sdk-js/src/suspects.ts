/**
 * Finds servers that keep disagreeing with the others, as the Python SDK does.
 *
 * The most probable classes of every two servers are compared, image by image, over the last `SUSPECT_WINDOW` images. A
 * server's score is how often it disagrees with those servers that it agrees with best, half of the others. It is
 * suspected once its score is higher, by `SUSPECT_SIGMAS` standard deviations, than both what the branches' errors in
 * the manifest explain, and the median score. An invalid answer disagrees with every server. What is kept is the index
 * of a class for each image and server, and no logits.
 */

import { SUSPECT_AFTER, SUSPECT_PRIOR, SUSPECT_SIGMAS, SUSPECT_WINDOW } from "./constants.js";
import type { MaskedManifest } from "./format.js";
import { argmax } from "./result.js";

const MISSING = -1;

export class Suspects {
  readonly #expected: readonly (readonly number[])[];
  /** Images that both of two servers answered, and of these, those to which they gave different classes. */
  readonly #together: number[][];
  readonly #differed: number[][];
  readonly #window: number[][] = [];

  constructor(manifest: MaskedManifest) {
    const errors = manifest.accuracy.branches.map((accuracy) => 1 - accuracy);
    // Between 2 % and 90 %, so that a release measured on a few images neither accuses nor excuses every server.
    this.#expected = errors.map((one) => errors.map((other) => Math.min(Math.max(one + other, 0.02), 0.9)));
    this.#together = errors.map(() => errors.map(() => 0));
    this.#differed = errors.map(() => errors.map(() => 0));
  }

  /** Take the answers to a chunk, logits float32 [batch, N, classes], into the record; the suspected servers. */
  note(logits: Float32Array, batch: number, answered: readonly number[], garbled: readonly number[]): number[] {
    const servers = this.#expected.length;
    const classes = logits.length / (batch * servers);
    for (let image = 0; image < batch; image++) {
      const row = Array.from({ length: servers }, (_, server) => {
        if (garbled.includes(server)) return -2 - server; // a class of its own
        const start = (image * servers + server) * classes;
        return answered.includes(server) ? argmax(logits.subarray(start, start + classes)) : MISSING;
      });
      this.#count(row, 1);
      this.#window.push(row);
      if (this.#window.length > SUSPECT_WINDOW) this.#count(this.#window.shift() as number[], -1);
    }
    return this.#judge();
  }

  #count(row: readonly number[], sign: number): void {
    row.forEach((vote, server) => {
      const together = this.#together[server] as number[];
      const differed = this.#differed[server] as number[];
      row.forEach((theirs, other) => {
        if (other === server || vote === MISSING || theirs === MISSING) return;
        together[other] = (together[other] as number) + sign;
        if (theirs !== vote) differed[other] = (differed[other] as number) + sign;
      });
    });
  }

  #judge(): number[] {
    const count = this.#expected.length;
    if (count < 3) return [];
    const place = Math.ceil((count - 1) / 2) - 1;
    const scored = this.#expected.map((errors, server) => {
      const others = errors.map((_, other) => other).filter((other) => other !== server);
      // Drawn towards what the manifest says while there is little to go by.
      const rates = others.map((other) => {
        const seen = this.#together[server]?.[other] as number;
        const differed = this.#differed[server]?.[other] as number;
        return [(differed + SUSPECT_PRIOR * (errors[other] as number)) / (seen + SUSPECT_PRIOR), seen] as const;
      });
      const [score, seen] = rates.sort((a, b) => a[0] - b[0] || a[1] - b[1])[place] as readonly [number, number];
      const expected = others.map((other) => errors[other] as number).sort((a, b) => a - b)[place] as number;
      return { server, score, seen, expected };
    });
    const usual = median(scored.map((each) => each.score));
    const usuallySeen = median(scored.map((each) => each.seen));
    return scored
      .filter(({ score, seen, expected }) => {
        const bound = Math.min(Math.max(expected, usual), 0.9);
        const spread = Math.sqrt(
          bound * (1 - bound) * (1 / (seen + SUSPECT_PRIOR) + 1 / (usuallySeen + SUSPECT_PRIOR)),
        );
        return seen >= SUSPECT_AFTER && score > bound + SUSPECT_SIGMAS * spread;
      })
      .map((each) => each.server);
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] as number;
  return sorted.length % 2 ? upper : ((sorted[middle - 1] as number) + upper) / 2;
}
