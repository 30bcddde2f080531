/**
 * Coded shares in a call: rounds of shares over primes, answers decoded exactly, liars found and left out.
 *
 * - Every sharing has fresh randomness from the system's generator, for every call, round, value and prime. It is wiped
 *   when the shares are made; what was shared is wiped when the call ends.
 * - All servers get a share in every round, those too that were silent or lied before. Where answers contradict each
 *   other and it cannot be told who lies, the call ends with an error, and no later round is sent.
 * - No result is decoded from the answer of a server that was caught in this round or in an earlier one.
 */

import { randomBytes } from "./bytes.js";
import {
  codedEncoderSignature,
  codedFusionSignature,
  largestDegree,
  modelsOf,
  relayName,
  relaySignature,
  roundOf,
} from "./coded-format.js";
import { decode, draw, findLiars, MAX_SERVERS, neededAnswers, powers, type Source, weights } from "./coding.js";
import { ConfigError, ContradictingAnswersError } from "./errors.js";
import {
  type CodedManifest,
  ENCODER_NAME,
  FUSION_NAME,
  largestCoalition,
  type Model,
  type RoundSpec,
} from "./format.js";
import { checkWhole, shown } from "./given.js";
import { type Answered, type Graphs, isSent, type Kind, type KindOptions, type Outcome, type Sent } from "./kinds.js";
import { checkProbabilities, Graph, type Runtime, type Tensor, tensor } from "./runtime.js";

export { checkManifest, fields } from "./coded-format.js";

/** Shares int8 [batch, N, primes, values], and what they share, int8 [batch, elements]. */
interface Sharing {
  readonly shares: Int8Array;
  readonly values: Int8Array;
}

/** Open the graphs of a release whose files have been verified. */
export const openGraphs = (
  runtime: Runtime,
  manifest: CodedManifest,
  files: ReadonlyMap<string, Uint8Array>,
): Promise<CodedGraphs> => CodedGraphs.open(runtime, manifest, files);

/** The device's graphs of a coded release: the encoder, a relay between every two rounds, the fusion. */
export class CodedGraphs implements Graphs {
  private constructor(
    readonly manifest: CodedManifest,
    private readonly encoder: Graph,
    private readonly relays: readonly Graph[],
    private readonly fusion: Graph,
  ) {}

  /** Random bytes: the system's, but in tests. */
  source: Source = randomBytes;

  static async open(
    runtime: Runtime,
    manifest: CodedManifest,
    files: ReadonlyMap<string, Uint8Array>,
  ): Promise<CodedGraphs> {
    const open = (name: string, signature: Parameters<typeof Graph.open>[3]): Promise<Graph> =>
      Graph.open(runtime, name, files.get(name) as Uint8Array, signature);
    const relays: Graph[] = [];
    for (let number = 1; number < manifest.rounds.length; number++)
      relays.push(await open(relayName(number), relaySignature(manifest, number)));
    const encoder = await open(ENCODER_NAME, codedEncoderSignature(manifest));
    return new CodedGraphs(manifest, encoder, relays, await open(FUSION_NAME, codedFusionSignature(manifest)));
  }

  kind(servers: number, { key, colluding }: KindOptions): Kind {
    if (key !== undefined)
      throw new ConfigError("a key was given for a coded release, which has none: leave `key` out");
    return new Coded(this, servers, colluding);
  }

  /** Images to the shares of the first round, for so many servers of which so many may collude. */
  encode(pixels: Uint8Array, batch: number, servers: number, colluding: number): Promise<Sharing> {
    const { height, width, channels } = this.manifest.image;
    const image = tensor(pixels, batch, height, width, channels);
    return this.#share(this.encoder, 0, { image }, batch, servers, colluding);
  }

  /**
   * Answers of a round, counted from 0, to the shares of the next.
   *
   * @param answers int8 [batch, answered, primes, outputs], from `places`.
   * @param added int8 [batch, outputs], values that were shared earlier; null where the round adds none.
   */
  relay(
    index: number,
    answers: Int8Array,
    places: readonly number[],
    added: Int8Array | null,
    servers: number,
    colluding: number,
  ): Promise<Sharing> {
    const round = roundOf(this.manifest, index);
    const { feeds, batch } = this.#decoding(round, answers, places);
    const more = added ? { added: tensor(added, batch, round.outputs) } : {};
    const graph = this.relays[index] as Graph;
    return this.#share(graph, index + 1, { ...feeds, ...more }, batch, servers, colluding, places.length);
  }

  /** Answers of the last round to probabilities, float32 [batch, classes]. */
  async fuse(answers: Int8Array, places: readonly number[]): Promise<Float32Array> {
    const round = roundOf(this.manifest, this.manifest.rounds.length - 1);
    const { feeds, batch } = this.#decoding(round, answers, places);
    const [output] = await this.fusion.run(feeds, { batch, answered: places.length });
    return checkProbabilities(output?.data as Float32Array);
  }

  /** What shares or answers of one image stand for, by the arithmetic of a round. */
  decode(index: number, shares: readonly Int8Array[], places: readonly number[]): number[] {
    const { moduli } = roundOf(this.manifest, index);
    return decode(shares, places, moduli, (shares[0]?.length ?? 0) / moduli.length).map(Number);
  }

  #decoding(
    round: RoundSpec,
    answers: Int8Array,
    places: readonly number[],
  ): { feeds: Record<string, Tensor>; batch: number } {
    const primes = round.moduli.length;
    const batch = answers.length / (places.length * primes * round.outputs);
    const feeds = {
      answers: tensor(answers, batch, places.length, primes, round.outputs),
      weights: tensor(weights(round.moduli, places), primes, places.length),
    };
    return { feeds, batch };
  }

  async #share(
    graph: Graph,
    index: number,
    feeds: Record<string, Tensor>,
    batch: number,
    servers: number,
    colluding: number,
    answered = 0,
  ): Promise<Sharing> {
    const { moduli, values: count } = roundOf(this.manifest, index);
    const drawn = draw(batch, colluding, count, moduli, this.source);
    try {
      const randomness = tensor(drawn, batch, colluding, moduli.length, count);
      const factors = tensor(powers(moduli, servers, colluding), moduli.length, servers, colluding);
      const sizes = { batch, servers, colluding, answered };
      const [shares, values] = await graph.run({ ...feeds, randomness, powers: factors }, sizes);
      return { shares: shares?.data as Int8Array, values: values?.data as Int8Array };
    } finally {
      drawn.fill(0);
    }
  }
}

/** What the device keeps between rounds: what it shared in every round so far, and who was caught. */
interface Carried {
  readonly values: readonly Int8Array[];
  readonly liars: ReadonlySet<number>;
}

/** What all calls of a client for a coded release share. */
export class Coded implements Kind {
  readonly #graphs: CodedGraphs;
  readonly #manifest: CodedManifest;
  readonly #colluding: number;

  /** For N servers, of which `colluding` (T) together must learn nothing; the largest minority by default. */
  constructor(
    graphs: CodedGraphs,
    readonly servers: number,
    colluding: number | undefined,
  ) {
    this.#graphs = graphs;
    this.#manifest = graphs.manifest;
    if (servers > MAX_SERVERS)
      throw new ConfigError(`${servers} servers are more than the ${MAX_SERVERS} that a client can decode from`);
    this.#colluding = colluding === undefined ? largestCoalition(servers) : colluding;
    if (!Number.isSafeInteger(this.#colluding) || this.#colluding < 1)
      throw new ConfigError(
        `colluding=${shown(colluding)} is not a whole number of at least 1: pass how many servers together must learn ` +
          "nothing",
      );
    if (servers < this.#needed) {
      const degree = largestDegree(this.#manifest);
      const most = Math.floor((servers - 1) / degree);
      throw new ConfigError(
        `${servers} servers cannot keep ${this.#colluding} of them ignorant: the rounds of ${this.#manifest.release} ` +
          `have degree ${degree}, so ${this.#needed} answers decode them; give ${this.#needed} servers` +
          (most > 0 ? `, or pass colluding: ${most}` : ""),
      );
    }
  }

  get rounds(): number {
    return this.#manifest.rounds.length;
  }

  get #needed(): number {
    return neededAnswers(largestDegree(this.#manifest), this.#colluding);
  }

  models(): Model[] {
    return modelsOf(this.#manifest);
  }

  checkMinAnswers(minAnswers: number | undefined): number {
    if (minAnswers === undefined) return this.#needed;
    return checkWhole(minAnswers, "minAnswers", this.#needed, this.servers, ": the first decode, the last is all");
  }

  async partition(): Promise<null> {
    return null;
  }

  mayLower(minAnswers: number): boolean {
    return minAnswers > this.#needed;
  }

  async begin(pixels: Uint8Array, batch: number): Promise<Sent> {
    const sharing = await this.#graphs.encode(pixels, batch, this.servers, this.#colluding);
    return this.#sent(sharing, batch, 0, { values: [], liars: new Set() });
  }

  async take(sent: Sent, outcomes: readonly Outcome[]): Promise<Sent | Answered> {
    const { batch, round: index } = sent;
    const carried = sent.state as Carried;
    const round = roundOf(this.#manifest, index);
    const heard = outcomes.filter((outcome) => outcome.answer);
    const places = heard.map((outcome) => outcome.server + 1);
    const answers = heard.map((outcome) => outcome.answer as Int8Array);
    const needed = neededAnswers(round.degree, this.#colluding);
    const found = findLiars(answers, places, round.moduli, round.outputs, needed);
    const liars = new Set([...carried.liars, ...(found ?? []).map((position) => (places[position] as number) - 1)]);
    // Whoever lied in an earlier round is not believed either: here too few may have answered to see its lies.
    const chosen = heard.filter((outcome) => !liars.has(outcome.server)).slice(0, needed);
    if (found === null || chosen.length < needed) throw cannotDecide(places, index + 1, needed, carried.liars);
    const stacked = stack(
      chosen.map((outcome) => outcome.answer as Int8Array),
      batch,
    );
    const believed = chosen.map((outcome) => outcome.server + 1);
    if (index + 1 === this.rounds) {
      const caught = [...liars].sort((a, b) => a - b);
      return {
        probabilities: await this.#graphs.fuse(stacked, believed),
        suspects: caught,
        corrected: caught,
        expectedAccuracy: this.#manifest.accuracy.fused,
      };
    }
    const added = round.added ? (carried.values[round.added - 1] as Int8Array) : null;
    const sharing = await this.#graphs.relay(index, stacked, believed, added, this.servers, this.#colluding);
    return this.#sent(sharing, batch, index + 1, { ...carried, liars });
  }

  forget(sent: Sent): void {
    for (const values of (sent.state as Carried).values) values.fill(0);
  }

  /** All: a late answer changes nothing in the result, so it may not cost what comes after it. */
  exchangesLeft(index: number, following: number): number {
    return this.rounds - index + this.rounds * following;
  }

  async rehearse(pixels: Uint8Array): Promise<void> {
    let step: Sent | Answered = await this.begin(pixels, 1);
    while (isSent(step)) {
      const { moduli, outputs } = roundOf(this.#manifest, step.round);
      const answer = new Int8Array(moduli.length * outputs);
      const outcomes = step.shares.map((_, server) => {
        return { server, ms: 0, answer, error: null, ready: false, sends: 0 };
      });
      step = await this.take(step, outcomes);
    }
  }

  /** The shares by server, cut out of what the graph gave, which is wiped. */
  #sent({ shares, values }: Sharing, batch: number, round: number, carried: Carried): Sent {
    const size = shares.length / (batch * this.servers);
    const own = Array.from({ length: this.servers }, (_, server) => {
      const share = new Int8Array(batch * size);
      for (let image = 0; image < batch; image++) {
        const start = (image * this.servers + server) * size;
        share.set(shares.subarray(start, start + size), image * size);
      }
      return share;
    });
    shares.fill(0);
    const kept = values.slice();
    values.fill(0);
    return { shares: own, batch, partition: null, round, state: { ...carried, values: [...carried.values, kept] } };
  }
}

/** Answers [batch, …] of several servers as one [batch, answered, …]. */
export function stack(answers: readonly Int8Array[], batch: number): Int8Array {
  const size = (answers[0]?.length ?? 0) / batch;
  const whole = new Int8Array(batch * answers.length * size);
  answers.forEach((answer, k) => {
    for (let image = 0; image < batch; image++)
      whole.set(answer.subarray(image * size, (image + 1) * size), (image * answers.length + k) * size);
  });
  return whole;
}

function cannotDecide(
  places: readonly number[],
  number: number,
  needed: number,
  caught: ReadonlySet<number>,
): ContradictingAnswersError {
  const servers = places.map((place) => place - 1);
  const before = caught.size
    ? `, or come from servers that gave wrong ones in earlier rounds (${[...caught].sort((a, b) => a - b).join(", ")})`
    : "";
  return new ContradictingAnswersError(
    `the answers of servers ${servers.join(", ")} contradict each other${before} in round ${number}: at least one of ` +
      `them lies or is faulty, and too few answers are left to decode from: it takes ${needed}, and two more for each ` +
      "lie; more servers, or a smaller `colluding`, would correct it",
    servers,
    number,
  );
}
