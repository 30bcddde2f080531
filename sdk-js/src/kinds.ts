/** What the two kinds of release have in common in a call: shares go out, outcomes come back, round after round. */

import type { Bundle } from "./bundle.js";
import type { ServerError } from "./errors.js";
import type { Manifest, Model } from "./format.js";
import type { UserKey } from "./keys.js";
import type { Result } from "./result.js";
import type { Runtime } from "./runtime.js";
import type { Check } from "./schema.js";

/** An answer: logits float32 [batch, classes], or of a coded release residues int8 [batch, primes, outputs]. */
export type Answer = Float32Array | Int8Array;

/** What became of one share: an answer, or an error. */
export interface Outcome {
  readonly server: number;
  /** From the first time that the share was sent to the answer, in milliseconds. */
  readonly ms: number;
  readonly answer: Answer | null;
  readonly error: ServerError | null;
  /** The server passed the check but was sent nothing, because others did not pass. */
  readonly ready: boolean;
  /** How often the share was sent, retries and hedges included. */
  readonly sends: number;
}

/** The shares of one round, one for each server: int8 [batch, …]. `round` is counted from 0. */
export interface Sent {
  readonly shares: readonly Int8Array[];
  readonly batch: number;
  /** Of a keyed release. */
  readonly partition: number | null;
  readonly round: number;
  /** What the device keeps for the rounds that follow; only its kind looks into it. */
  readonly state: unknown;
}

/** What came of all rounds. */
export interface Answered {
  /** float32 [batch, classes]. */
  readonly probabilities: Float32Array;
  readonly suspects: readonly number[];
  readonly corrected: readonly number[];
  readonly expectedAccuracy: number | null;
}

export const isSent = (step: Sent | Answered): step is Sent => "shares" in step;

/** How a release's images become shares, and answers a result. */
export interface Kind {
  readonly servers: number;
  readonly rounds: number;
  /** What a server serves, in the order of the rounds. */
  models(server: number): readonly Model[];
  /** Of a keyed release. */
  partition(): Promise<number | null>;
  checkMinAnswers(minAnswers: number | undefined): number;
  /** Whether fewer answers would do, at the price of a less certain result. */
  mayLower(minAnswers: number): boolean;
  /** The shares of the first round of a batch, uint8 [batch, height, width, channels]. */
  begin(pixels: Uint8Array, batch: number): Promise<Sent>;
  /** The shares of the next round, or what came of the last one; enough servers have answered. */
  take(sent: Sent, outcomes: readonly Outcome[]): Promise<Sent | Answered>;
  /** Wipe what the device kept for later rounds. */
  forget(sent: Sent): void;
  /** Among how many exchanges the time that is left is divided. */
  exchangesLeft(index: number, following: number): number;
  /** Run every graph once: ONNX Runtime allocates at the first run. */
  rehearse(pixels: Uint8Array): Promise<void>;
}

/** A round that is over. */
export interface Round {
  readonly encodeMs: number;
  readonly outcomes: readonly Outcome[];
  /** Bytes of one share, for one image. */
  readonly bytesUp: readonly number[];
}

/** Shares that are ready to be sent, and how long it took to make them. */
export interface Begun {
  readonly sent: Sent;
  readonly tookMs: number;
}

/** All rounds, which are over. */
export interface Ran {
  readonly found: Answered;
  readonly rounds: readonly Round[];
  readonly batch: number;
  readonly fusionMs: number;
}

/** Images of a call that travel together, and the steps from them to their results. */
export interface Part {
  readonly bundle: Bundle;
  readonly kind: Kind;
  readonly minAnswers: number;
  readonly decodeMs: number;
  /** When the call began. */
  readonly started: number;
  /** Servers whose wrong answers to canaries of the call were corrected. */
  readonly lied: Set<number>;
  begin(pixels: Uint8Array, batch: number): Promise<Begun>;
  /** `more`: how many exchanges come after it in this part. */
  run(begun: Begun, more: number): Promise<Ran>;
  results(ran: Ran): Result[];
}

/** The options of a client that only its kind of release understands. */
export interface KindOptions {
  readonly key?: UserKey | Uint8Array | string;
  readonly colluding?: number;
  readonly maxLeakageDb?: number;
}

/** How close this device comes to the golden examples. */
export interface SelfTest {
  /** Number of golden examples. */
  readonly images: number;
  /** Fraction of the values made on the device that differ from the recorded ones. */
  readonly differingValues: number;
  /** Largest difference of a probability from the recorded one. */
  readonly probabilityError: number;
}

/** The device's graphs of a release, open. */
export interface Graphs {
  readonly manifest: Manifest;
  /** How calls of a client with these options are made. */
  kind(servers: number, options: KindOptions): Kind;
}

/** What a kind of release is read and run with: the modules `masked.ts` and `coded.ts`. */
export interface ReleaseKind {
  /** Checks the fields of its manifest. */
  readonly fields: Check;
  /** Refuse a manifest that contradicts itself. */
  checkManifest(manifest: Manifest): void;
  openGraphs(runtime: Runtime, manifest: Manifest, files: ReadonlyMap<string, Uint8Array>): Promise<Graphs>;
}
