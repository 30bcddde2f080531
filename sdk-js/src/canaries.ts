/**
 * Canaries: images with known answers, sent among a user's, which expose a server that lies.
 *
 * Where as few servers answer as decode, nothing in the answers shows a lie. But coded shares of a known image look to
 * up to T servers like those of any other, so a server that lies now and then lies about canaries too. The known images
 * are the golden examples of the bundle whose values come out on this device as they were recorded, so that rounding
 * raises no alarm.
 *
 * A canary goes with a part of a call: an exchange of its own, of as many images, in all rounds, directly before that
 * part or directly after it, as a coin of the system's generator decides. A server sees two exchanges of one form in a
 * row, and cannot tell which is the canary. A wrong answer ends the call, and so does a canary that too few servers
 * answer: a server that could be silent to canaries alone would not be found.
 */

import type { Bundle } from "./bundle.js";
import { randomBytes } from "./bytes.js";
import type { CodedGraphs } from "./coded.js";
import { CANARY_TOLERANCE } from "./constants.js";
import { CanaryError, ConfigError } from "./errors.js";
import { readGolden } from "./golden.js";
import type { Ran } from "./kinds.js";

/** What travels beside one part of a call. */
export interface Canary {
  /** uint8 [batch, height, width, channels]. */
  readonly pixels: Uint8Array;
  /** float32 [batch, classes]. */
  readonly expected: Float32Array;
  /** Whether it goes before the part; otherwise after it. */
  readonly first: boolean;
}

/** The golden examples that this device can use: images and the probabilities that they are known to give. */
export class Canaries {
  constructor(
    private readonly images: readonly Uint8Array[],
    private readonly probabilities: readonly Float32Array[],
  ) {}

  /** Those of a coded release's golden examples whose values come out here exactly as they were recorded. */
  static async of(bundle: Bundle): Promise<Canaries> {
    const golden = readGolden(bundle.manifest, bundle.golden);
    const { count } = golden;
    const pixels = new Uint8Array(golden.bytes("images"));
    const { shares, values } = await (bundle.graphs as CodedGraphs).encode(pixels, count, 2, 1);
    shares.fill(0);
    const recorded = cut(new Int8Array(golden.bytes("values_1")), count);
    const found = cut(values.slice(), count);
    const right = found.flatMap((own, i) => (own.every((value, k) => value === recorded[i]?.[k]) ? [i] : []));
    if (!right.length)
      throw new ConfigError(
        "no golden example comes out on this device exactly as it was recorded, so none can be a canary: try another " +
          "version of the ONNX runtime, or drop `canaryRate`",
      );
    const images = cut(pixels, count);
    const probabilities = cut(new Float32Array(golden.bytes("probabilities")), count);
    const chosen = <T>(all: readonly T[]): T[] => right.map((i) => all[i] as T);
    return new Canaries(chosen(images), chosen(probabilities));
  }

  get count(): number {
    return this.images.length;
  }

  /** As many random images as a part has; they go before or after it, at random. */
  draw(count: number): Canary {
    const chosen = Array.from({ length: count }, () => below(this.count));
    return {
      pixels: joined(
        Uint8Array,
        chosen.map((i) => this.images[i] as Uint8Array),
      ),
      expected: joined(
        Float32Array,
        chosen.map((i) => this.probabilities[i] as Float32Array),
      ),
      first: below(2) === 0,
    };
  }
}

/** Compare what a canary's answers decoded to with what is known. */
export function checkCanary({ expected }: Canary, { found, rounds }: Ran): void {
  // Written so that NaN fails.
  if (found.probabilities.every((value, i) => Math.abs(value - (expected[i] as number)) <= CANARY_TOLERANCE)) return;
  const last = rounds[rounds.length - 1]?.outcomes ?? [];
  const answered = last.filter((outcome) => outcome.answer).map((outcome) => outcome.server);
  throw new CanaryError(
    "an image whose answer is known came back with another one: at least one of the servers " +
      `${answered.join(", ")} lies or is faulty, and it cannot be told which. Trust no answer of these servers until ` +
      "their operators have found out; with more servers, or a smaller `colluding`, a call finds liars by itself",
    answered,
  );
}

/** Whether something that happens at this rate, 0 to 1, happens now. */
export const happens = (rate: number): boolean => uint32() + uint32() / 2 ** 32 < rate * 2 ** 32;

/** A whole number from 0, below `count`, each as likely. */
function below(count: number): number {
  const fair = 2 ** 32 - (2 ** 32 % count); // what is above would favour small ones
  for (;;) {
    const drawn = uint32();
    if (drawn < fair) return drawn % count;
  }
}

/** More bytes than are used: `randomBytes` tells a generator that does nothing by 16 zeros. */
const uint32 = (): number => new DataView(randomBytes(16).buffer).getUint32(0);

/** The rows of a tensor. */
const cut = <T extends Uint8Array | Int8Array | Float32Array>(all: T, count: number): T[] =>
  Array.from({ length: count }, (_, i) => all.slice((i * all.length) / count, ((i + 1) * all.length) / count) as T);

function joined<T extends Uint8Array | Float32Array>(Made: new (length: number) => T, rows: readonly T[]): T {
  const whole = new Made(rows.reduce((sum, row) => sum + row.length, 0));
  let at = 0;
  for (const row of rows) {
    whole.set(row, at);
    at += row.length;
  }
  return whole;
}
