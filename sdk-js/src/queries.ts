/**
 * How much a device asks: a budget of images for each key, and the results of the last images, for repeats.
 *
 * - An image that was answered before is answered from the record, under whatever key it comes: nothing is sent.
 * - An image that was sent under one key, and is in the record, is never sent under another one.
 * - Every other image costs one of the budget of its key's partition, whether it is answered or not.
 *
 * With `canaryRate`, images whose answers are known travel among the others, and a wrong answer to one is an error
 * (`canaries.ts`).
 *
 * Kept are keyed digests of images, under a secret that no other object shares, and results: no image, no share, no key.
 */

import type { Bundle } from "./bundle.js";
import { concat, randomBytes, toHex, utf8 } from "./bytes.js";
import type { Canaries } from "./canaries.js";
import { DEFAULT_REPEATS, MAX_REPEATS } from "./constants.js";
import { hmacSha256 } from "./crypto.js";
import { ConfigError, QueryBudgetError } from "./errors.js";
import { isCoded, type Manifest } from "./format.js";
import { checkNames, checkWhole, shown, typeName } from "./given.js";
import type { Part } from "./kinds.js";
import { loaded } from "./loaded.js";
import { makeResult, type Result } from "./result.js";

export interface QueriesOptions {
  /** Images that each key's partition may ask for; no limit without it. */
  readonly budget?: number;
  /** How many images are remembered, the oldest forgotten first; 0: none. */
  readonly repeats?: number;
  /** What was asked before, as the property `spent` gave it; JSON may lie between. */
  readonly spent?: Readonly<Record<string, number>>;
  /**
   * The fraction of exchanges with servers, 0 to 1, that carry images with known answers, for coded releases: 0.05
   * costs 5 % more traffic, and exposes a server that always lies within 20 calls or so, even where no answer is to
   * spare. They count towards no budget. Default 0.
   */
  readonly canaryRate?: number;
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
  /** The fraction of exchanges with servers that carry images with known answers. */
  readonly canaryRate: number;
  readonly #canaries = new WeakMap<Bundle, Promise<Canaries>>();
  readonly #budget: number | null;
  readonly #repeats: number;
  readonly #spent = new Map<string, number>();
  readonly #secret = randomBytes(32);
  readonly #seen = new Map<string, Seen>();

  constructor(options: QueriesOptions = {}) {
    checkNames(options, ["budget", "repeats", "spent", "canaryRate"], "Queries");
    const { budget, repeats = DEFAULT_REPEATS, spent = {}, canaryRate = 0 } = options;
    this.#budget = budget === undefined ? null : checkWhole(budget, "budget", 1, Number.MAX_SAFE_INTEGER);
    this.#repeats = checkWhole(repeats, "repeats", 0, MAX_REPEATS);
    if (typeof canaryRate !== "number" || !(canaryRate >= 0 && canaryRate <= 1))
      throw new ConfigError(
        `canaryRate=${shown(canaryRate)} is not a number from 0 to 1: 0.05 sends a canary with every twentieth exchange`,
      );
    this.canaryRate = canaryRate;
    if (typeof spent !== "object" || spent === null || Array.isArray(spent))
      throw new ConfigError(
        `\`spent\` has the type ${typeName(spent)}: pass what the property \`spent\` gave, or nothing`,
      );
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

  /** Refuse what these queries cannot do for a release. */
  checkRelease(manifest: Manifest): void {
    if (this.canaryRate && !isCoded(manifest))
      throw new ConfigError(
        `${manifest.release} has masked shares, and a server would know the share of a golden example: drop ` +
          "`canaryRate`, which is for coded releases",
      );
  }

  /** Find the canaries of a release ahead of its first call. */
  async prepare(bundle: Bundle): Promise<void> {
    if (this.canaryRate) await this.#canariesOf(bundle);
  }

  /** The results of a part of a call, uint8 [batch, …]: from the record where it has them, and from the servers. */
  async results(part: Part, pixels: Uint8Array, batch: number): Promise<Result[]> {
    const partition = await part.kind.partition();
    const asked = await this.ask(part.bundle.release, partition, pixels, batch, part.minAnswers);
    const count = asked.fresh.length;
    const results = count ? await this.#send(part, pick(pixels, batch, asked.fresh), count) : [];
    const found = this.answer(asked, partition, results);
    return asked.digests.map((digest, position) => {
      const result = found.get(digest) as Result;
      return asked.fresh.includes(position) ? result : repeated(part, result);
    });
  }

  /** Send a part, and a canary before or after it where one is due; all shares are made before any are sent. */
  async #send(part: Part, pixels: Uint8Array, count: number): Promise<Result[]> {
    const begun = await part.begin(pixels, count);
    if (!this.canaryRate) return part.results(await part.run(begun, 0));
    const known = await this.#canariesOf(part.bundle);
    const { checkCanary, happens } = await loaded(import("./canaries.js"));
    if (!happens(this.canaryRate)) return part.results(await part.run(begun, 0));
    const canary = known.draw(count);
    const beside = await part.begin(canary.pixels, count);
    const check = async (more: number): Promise<void> => {
      const ran = await part.run(beside, more);
      checkCanary(canary, ran);
      for (const server of ran.found.corrected) part.lied.add(server);
    };
    if (canary.first) await check(1);
    const results = part.results(await part.run(begun, canary.first ? 0 : 1));
    if (!canary.first) await check(0);
    return results;
  }

  async #canariesOf(bundle: Bundle): Promise<Canaries> {
    let found = this.#canaries.get(bundle);
    if (!found) {
      found = loaded(import("./canaries.js")).then(({ Canaries }) => Canaries.of(bundle));
      this.#canaries.set(bundle, found);
      found.catch(() => this.#canaries.delete(bundle)); // a download that failed is tried again
    }
    return found;
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

/** A result of the record, for which nothing was sent. */
function repeated({ kind, decodeMs, started }: Part, result: Result): Result {
  const each = <T>(value: T): T[] => Array.from({ length: kind.servers }, () => value);
  const totalMs = performance.now() - started;
  const timings = { decodeMs, encodeMs: 0, serversMs: each(null), fusionMs: 0, totalMs, rounds: [] };
  return makeResult({ ...result, timings, bytesUp: each(0), bytesDown: each(0), repeated: true });
}

/** Some images of a batch, uint8 [batch, …]. */
function pick(pixels: Uint8Array, batch: number, positions: readonly number[]): Uint8Array {
  const size = pixels.length / batch;
  return concat(...positions.map((position) => pixels.subarray(position * size, (position + 1) * size)));
}
