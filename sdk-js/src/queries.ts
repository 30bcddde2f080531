/**
 * How much a device asks: a budget of images for each key, and the results of the last images, for repeats.
 *
 * - An image that was answered before is answered from the record, under whatever key it comes: nothing is sent.
 * - An image that was sent under one key, and is in the record, is never sent under another one.
 * - Every other image costs one of the budget of its key's partition, whether it is answered or not.
 *
 * Kept are keyed digests of images, under a secret that no other object shares, and results: no image, no share, no key.
 */

import { concat, randomBytes, toHex, utf8 } from "./bytes.js";
import { DEFAULT_REPEATS, MAX_REPEATS } from "./constants.js";
import { hmacSha256 } from "./crypto.js";
import { ConfigError, QueryBudgetError } from "./errors.js";
import { checkNames, checkWhole, shown } from "./given.js";
import type { Result } from "./result.js";

export interface QueriesOptions {
  /** Images that each key's partition may ask for; no limit without it. */
  readonly budget?: number;
  /** How many images are remembered, the oldest forgotten first; 0: none. */
  readonly repeats?: number;
  /** What was asked before, as the property `spent` gave it; JSON may lie between. */
  readonly spent?: Readonly<Record<string, number>>;
}

/** What is to be done about a batch: known results by digest, and the positions of the images to send. */
export interface Asked {
  readonly digests: readonly string[];
  readonly known: ReadonlyMap<string, Result>;
  readonly fresh: readonly number[];
}

interface Seen {
  readonly partition: number | null;
  readonly result: Result | null;
}

/** What a device has asked, for one client or several; pass it as `queries`. Counts end with the object: see `spent`. */
export class Queries {
  readonly #budget: number | null;
  readonly #repeats: number;
  readonly #spent = new Map<string, number>();
  readonly #secret = randomBytes(32);
  readonly #seen = new Map<string, Seen>();

  constructor(options: QueriesOptions = {}) {
    checkNames(options, ["budget", "repeats", "spent"], "Queries");
    const { budget, repeats = DEFAULT_REPEATS, spent = {} } = options;
    this.#budget = budget === undefined ? null : checkWhole(budget, "budget", 1, Number.MAX_SAFE_INTEGER);
    this.#repeats = checkWhole(repeats, "repeats", 0, MAX_REPEATS);
    for (const [partition, count] of Object.entries(spent)) {
      if (!/^(?:null|0|[1-9][0-9]{0,9})$/.test(partition) || !Number.isSafeInteger(count) || count < 0)
        throw new ConfigError(
          `\`spent\` is not what the property \`spent\` gave (a count for every partition, not ${shown(count)})`,
        );
      this.#spent.set(partition, count);
    }
  }

  /** Images asked for, by the partition of their key ("null" in a release without keys). */
  get spent(): Record<string, number> {
    return Object.fromEntries(this.#spent);
  }

  /**
   * Sort a batch, uint8 [batch, …], into known images and those to send, and charge the latter to the budget.
   *
   * @throws QueryBudgetError the budget is too small, or an image was sent under another key; nothing is sent.
   */
  async ask(
    release: string,
    partition: number | null,
    pixels: Uint8Array,
    batch: number,
    minAnswers: number,
  ): Promise<Asked> {
    const size = pixels.length / batch;
    const digests = await Promise.all(
      Array.from({ length: batch }, async (_, i) => {
        const image = pixels.subarray(i * size, (i + 1) * size);
        return toHex(await hmacSha256(this.#secret, concat(utf8(`${release}\0`), image)));
      }),
    );
    // From here on nothing is waited for, so that calls at the same time see each other's counts.
    const known = new Map<string, Result>();
    const fresh = new Map<string, number>();
    digests.forEach((digest, position) => {
      const seen = this.#seen.get(digest);
      const enough = (seen?.result?.answered.filter(Boolean).length ?? 0) >= minAnswers;
      if (seen?.result && enough) known.set(digest, seen.result);
      else if (seen && seen.partition !== partition)
        throw new QueryBudgetError(
          "an image of this call was sent under another user's key before, and would now be sent under a second one: " +
            "ask again under the first",
        );
      else if (!fresh.has(digest)) fresh.set(digest, position);
    });
    this.#charge(partition, [...fresh.keys()].filter((digest) => !this.#seen.has(digest)).length);
    for (const digest of fresh.keys()) this.#keep(digest, partition, this.#seen.get(digest)?.result ?? null);
    for (const digest of known.keys()) {
      const seen = this.#seen.get(digest);
      if (seen) this.#keep(digest, seen.partition, seen.result);
    }
    return { digests, known, fresh: [...fresh.values()] };
  }

  /** Keep the results of the images that were sent; all results of the batch, by digest. */
  answer(asked: Asked, partition: number | null, results: readonly Result[]): Map<string, Result> {
    const found = new Map(asked.known);
    asked.fresh.forEach((position, i) => {
      const digest = asked.digests[position] as string;
      const result = results[i] as Result;
      found.set(digest, result);
      this.#keep(digest, partition, result);
    });
    return found;
  }

  #charge(partition: number | null, count: number): void {
    if (!count) return;
    const spent = this.#spent.get(String(partition)) ?? 0;
    if (this.#budget !== null && spent + count > this.#budget)
      throw new QueryBudgetError(
        `this key has asked for ${spent} of ${this.#budget} images and ${count} more were asked for: nothing was sent; ` +
          "wait for a new budget, or allow a larger one",
        spent,
        this.#budget,
      );
    this.#spent.set(String(partition), spent + count);
  }

  #keep(digest: string, partition: number | null, result: Result | null): void {
    this.#seen.delete(digest);
    this.#seen.set(digest, { partition, result });
    for (const oldest of this.#seen.keys()) {
      if (this.#seen.size <= this.#repeats) break;
      this.#seen.delete(oldest);
    }
  }
}
