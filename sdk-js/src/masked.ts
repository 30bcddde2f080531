/** Masked shares in a call: one round, whose answers are fused, whoever gave them. */

import { AnswerError, ConfigError } from "./errors.js";
import { ENCODER_NAME, FUSION_NAME, type MaskedManifest, type Model } from "./format.js";
import { checkWhole } from "./given.js";
import { checkKey, type UserKey } from "./keys.js";
import type { Answered, Graphs, Kind, KindOptions, Outcome, Sent } from "./kinds.js";
import { refuseLeakage } from "./leakage.js";
import { accuracyOf, encoderSignature, fusionSignature, modelsOf } from "./masked-format.js";
import { checkProbabilities, Graph, type Runtime, tensor } from "./runtime.js";
import { Suspects } from "./suspects.js";

export { checkManifest, fields } from "./masked-format.js";

/** Open the graphs of a release whose files have been verified. */
export const openGraphs = (
  runtime: Runtime,
  manifest: MaskedManifest,
  files: ReadonlyMap<string, Uint8Array>,
): Promise<MaskedGraphs> => MaskedGraphs.open(runtime, manifest, files);

/** The device's graphs of a masked release. */
export class MaskedGraphs implements Graphs {
  private constructor(
    readonly manifest: MaskedManifest,
    readonly encoder: Graph,
    readonly fusion: Graph,
  ) {}

  static async open(
    runtime: Runtime,
    manifest: MaskedManifest,
    files: ReadonlyMap<string, Uint8Array>,
  ): Promise<MaskedGraphs> {
    const encoder = files.get(ENCODER_NAME) as Uint8Array;
    const fusion = files.get(FUSION_NAME) as Uint8Array;
    return new MaskedGraphs(
      manifest,
      await Graph.open(runtime, ENCODER_NAME, encoder, encoderSignature(manifest)),
      await Graph.open(runtime, FUSION_NAME, fusion, fusionSignature(manifest)),
    );
  }

  kind(_servers: number, { key, colluding, maxLeakageDb }: KindOptions): Kind {
    refuseLeakage(this.manifest, maxLeakageDb);
    return new Masked(this, checkKey(key, this.manifest.keys), colluding);
  }

  /** One share for each server, int8 [batch, K_i]. */
  async encode(pixels: Uint8Array, batch: number, partition: number | null): Promise<Int8Array[]> {
    const { height, width, channels } = this.manifest.image;
    const image = tensor(pixels, batch, height, width, channels);
    const keyed = partition === null ? {} : { partition: tensor(new Int32Array(batch).fill(partition), batch, 1) };
    const shares = await this.encoder.run({ image, ...keyed }, { batch });
    return shares.map((share) => (share.data as Int8Array).slice()); // not views into the runtime's memory
  }

  /** Logits float32 [batch, N, classes] and who answered, uint8 [batch, N], to float32 [batch, classes]. */
  async fuse(logits: Float32Array, answered: Uint8Array, batch: number): Promise<Float32Array> {
    const servers = this.manifest.servers.length;
    const classes = this.manifest.classes.length;
    const feeds = { logits: tensor(logits, batch, servers, classes), answered: tensor(answered, batch, servers) };
    const [output] = await this.fusion.run(feeds, { batch });
    return checkProbabilities(output?.data as Float32Array);
  }
}

/** What all calls for a masked release share. It keeps the partition that the user's key picks, not the key. */
export class Masked implements Kind {
  readonly rounds = 1;
  readonly #partition: Promise<number> | null;
  readonly #graphs: MaskedGraphs;
  readonly #manifest: MaskedManifest;
  readonly #suspects: Suspects;

  constructor(graphs: MaskedGraphs, key: UserKey | null, colluding: unknown) {
    if (colluding !== undefined)
      throw new ConfigError(
        "`colluding` belongs to coded releases, and this one is masked: what its servers learn together was measured, " +
          "and its manifest says how much; drop the option",
      );
    this.#graphs = graphs;
    this.#manifest = graphs.manifest;
    this.#suspects = new Suspects(graphs.manifest);
    const { keys } = graphs.manifest;
    this.#partition = key && keys ? key.partition(keys) : null;
  }

  get servers(): number {
    return this.#manifest.servers.length;
  }

  models(server: number): Model[] {
    return modelsOf(this.#manifest, server);
  }

  checkMinAnswers(minAnswers: number | undefined): number {
    if (minAnswers === undefined) return this.servers;
    return checkWhole(minAnswers, "minAnswers", 1, this.servers, ", the number of servers");
  }

  mayLower(minAnswers: number): boolean {
    return minAnswers > 1;
  }

  async partition(): Promise<number | null> {
    return this.#partition;
  }

  async begin(pixels: Uint8Array, batch: number): Promise<Sent> {
    const partition = await this.#partition;
    return { shares: await this.#graphs.encode(pixels, batch, partition), batch, partition, round: 0, state: null };
  }

  async take(sent: Sent, outcomes: readonly Outcome[]): Promise<Answered> {
    const { batch } = sent;
    const classes = this.#manifest.classes.length;
    const logits = new Float32Array(batch * this.servers * classes);
    const answered = new Uint8Array(batch * this.servers);
    for (const { server, answer } of outcomes)
      for (let image = 0; answer && image < batch; image++) {
        const row = image * this.servers + server;
        logits.set(answer.subarray(image * classes, (image + 1) * classes), row * classes);
        answered[row] = 1;
      }
    const present = outcomes.filter((outcome) => outcome.answer).map((outcome) => outcome.server);
    const garbled = outcomes.filter((each) => each.error instanceof AnswerError).map((each) => each.server);
    return {
      suspects: this.#suspects.note(logits, batch, present, garbled),
      probabilities: await this.#graphs.fuse(logits, answered, batch),
      corrected: [],
      expectedAccuracy: accuracyOf(this.#manifest, present),
    };
  }

  forget(): void {}

  /** This one, for whose late answers all the time may go, and one for each part that needs its part of it. */
  exchangesLeft(_index: number, following: number): number {
    return 1 + following;
  }

  async rehearse(pixels: Uint8Array): Promise<void> {
    await this.begin(pixels, 1);
    const classes = this.#manifest.classes.length;
    await this.#graphs.fuse(new Float32Array(this.servers * classes), new Uint8Array(this.servers).fill(1), 1);
  }
}
