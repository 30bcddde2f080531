/** The client: from images to results, under one deadline. */

import type { Bundle } from "./bundle.js";
import { ServerChannel, type Share } from "./channel.js";
import {
  type CheckedRetries,
  checkRetries,
  checkServers,
  checkWait,
  noTls,
  type Retries,
  type Server,
  type TlsOptions,
  type Wait,
} from "./config.js";
import { DEFAULT_TIMEOUT_MS, MAX_CALLS_AT_ONCE } from "./constants.js";
import { ConfigError, DeadlineExceededError, NotEnoughAnswersError, type ServerError } from "./errors.js";
import { FetchConnection } from "./fetch.js";
import { isCoded, PARTITION_BYTES } from "./format.js";
import { checkFlag, checkLeakageLimit, checkNames, checkSignal, checkTimeout, typeName } from "./given.js";
import type { UserKey } from "./keys.js";
import {
  type Answered,
  type Begun,
  isSent,
  type Kind,
  type Outcome,
  type Part,
  type Ran,
  type Round,
  type Sent,
} from "./kinds.js";
import { loaded } from "./loaded.js";
import { loadBatch, loadPixels, type Pixels } from "./pixels.js";
import type { Queries } from "./queries.js";
import { argmax, type Health, makeResult, type Result, type Timings } from "./result.js";
import { travel } from "./trip.js";
import type { Connect } from "./wire.js";

export interface ClientOptions {
  /** Milliseconds that a call may take, from its start to its result. Default 5000. */
  readonly timeout?: number;
  /** How many servers must answer, in every round; by default all, or in a coded release as many as decode. */
  readonly minAnswers?: number;
  /** "all" waits, within the timeout, for every server; "quorum" ends a call once `minAnswers` have answered. */
  readonly wait?: Wait;
  readonly retries?: Retries;
  /** The user's, for a keyed release; the same one for all images of a user. The client does not keep it. */
  readonly key?: UserKey | Uint8Array | string;
  /** Of a coded release, how many servers together must learn nothing; the largest minority by default. */
  readonly colluding?: number;
  /** A budget of images for each key, and a record of repeats; several clients may share one. */
  readonly queries?: Queries;
  /** Refuse a release of which a minority of the servers can reconstruct more than so many dB above the class mean. */
  readonly maxLeakageDb?: number;
  /** Accept servers that share a host, for development: it then sees several shares. */
  readonly allowSharedHosts?: boolean;
}

/** For one call. */
export interface CallOptions {
  readonly timeout?: number;
  /** Ends the call, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

const OPTIONS = [
  "timeout",
  "minAnswers",
  "wait",
  "retries",
  "key",
  "colluding",
  "queries",
  "maxLeakageDb",
  "allowSharedHosts",
] as const;

/** How a platform connects: whether an app can set up TLS there, and what makes a connection. */
export interface Platform {
  readonly checkTls: (tls: TlsOptions) => TlsOptions;
  readonly connect: Connect;
}

const FETCH: Platform = { checkTls: noTls, connect: (endpoint) => new FetchConnection(endpoint) };

const CLOSED = "the client is closed: make a new one, and close it after the last call";
const nothing = (): void => {};

/** One call on its way. */
interface Call {
  readonly started: number;
  readonly end: number;
  readonly timeout: number;
  readonly signal: AbortSignal | undefined;
  readonly decodeMs: number;
  readonly kept: Sent[];
  /** Servers whose wrong answers to canaries were corrected. */
  readonly lied: Set<number>;
}

/** Classifies images with the help of servers none of which sees the image. Close it after the last call. */
export class Client {
  readonly #kind: Kind;
  readonly #channels: readonly ServerChannel[];
  readonly #timeout: number;
  readonly #minAnswers: number;
  readonly #wait: Wait;
  readonly #retries: CheckedRetries;
  readonly #queries: Queries | undefined;
  #closed = false;
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  /**
   * @param bundle as `Bundle.open` gives it.
   * @param servers one for every server of the release, in its order: an address, or a `Server`.
   * @throws ConfigError an argument makes no sense; nothing is sent.
   * @throws LeakageError the release leaks more than `maxLeakageDb`.
   */
  constructor(
    readonly bundle: Bundle,
    servers: readonly (Server | string)[],
    options: ClientOptions = {},
    /** @internal */
    platform: Platform = FETCH,
  ) {
    checkNames(options, OPTIONS, "a client");
    if (typeof bundle?.graphs?.kind !== "function")
      throw new ConfigError(`the bundle has the type ${typeName(bundle)}: pass what Bundle.open(…) gives, awaited`);
    const { graphs, manifest } = bundle;
    checkLeakageLimit(options.maxLeakageDb);
    const checked = checkServers(servers, isCoded(manifest) ? null : manifest.servers.length, {
      allowSharedHosts: checkFlag(options.allowSharedHosts, "allowSharedHosts"),
      checkTls: platform.checkTls,
    });
    this.#kind = graphs.kind(checked.length, options);
    this.#timeout = checkTimeout(options.timeout ?? DEFAULT_TIMEOUT_MS);
    this.#minAnswers = this.#kind.checkMinAnswers(options.minAnswers);
    this.#wait = checkWait(options.wait ?? "all");
    this.#retries = checkRetries(options.retries);
    this.#queries = options.queries;
    if (this.#queries !== undefined && typeof this.#queries?.ask !== "function")
      throw new ConfigError(`queries has the type ${typeName(options.queries)}: pass new Queries({ budget: … })`);
    this.#queries?.checkRelease(manifest);
    this.#channels = checked.map(
      (server, i) => new ServerChannel(i, manifest, this.#kind.models(i), server, platform.connect),
    );
  }

  /**
   * Classify one image.
   *
   * @throws ImageError the image cannot be used; nothing was sent.
   * @throws ConfigError an option makes no sense, or the client is closed.
   * @throws QueryBudgetError `queries` refuses to send the image.
   * @throws CanaryError an image with a known answer, which `queries` sent, came back with another one.
   * @throws DeadlineExceededError the time ran out before anything was sent.
   * @throws NotEnoughAnswersError fewer than `minAnswers` servers gave a usable answer in time.
   * @throws ContradictingAnswersError of a coded release, a server lies, and it cannot be told which.
   * @throws RandomnessError of a coded release, the system's random generator failed.
   */
  predict(image: Pixels, options: CallOptions = {}): Promise<Result> {
    return this.#call(
      options,
      async (call, pixels) => {
        const results = await this.#part(call, pixels, 1, 0);
        return withSuspects(results, call.lied)[0] as Result;
      },
      () => loadPixels(image, this.bundle.image),
    );
  }

  /** Classify several images, in order: in parts of at most the release's `max_batch`, all under one deadline. */
  predictBatch(images: Iterable<Pixels>, options: CallOptions = {}): Promise<Result[]> {
    const load = () => loadBatch(images, this.bundle.image);
    return this.#call(
      options,
      async (call, { pixels, batch }) => {
        const size = pixels.length / batch;
        const step = this.bundle.manifest.max_batch;
        const results: Result[] = [];
        for (let start = 0; start < batch; start += step) {
          const count = Math.min(step, batch - start);
          const part = pixels.subarray(start * size, (start + count) * size);
          const following = Math.ceil((batch - start - count) / step);
          results.push(...(await this.#part(call, part, count, following)));
        }
        return withSuspects(results, call.lied);
      },
      load,
    );
  }

  /**
   * Make the shares of one image without sending them: exactly the bytes that would go to each server. A coded release
   * shares the image anew each time, and this is the first round's sharing.
   */
  encode(image: Pixels): Promise<Int8Array[]> {
    return this.#call(
      {},
      async (call, pixels) => [...(await this.#keep(call, this.#kind.begin(pixels, 1))).shares],
      () => loadPixels(image, this.bundle.image),
    );
  }

  /** Ask every replica of every server whether it serves this release; no image is involved. */
  health(options: CallOptions = {}): Promise<Health[]> {
    return this.#call(options, (call) => this.#health(call), nothing);
  }

  /** Run the graphs once and connect to every replica, so that the first image is as fast as the next. */
  warmup(options: CallOptions = {}): Promise<Health[]> {
    return this.#call(
      options,
      async (call) => {
        const { height, width, channels } = this.bundle.image;
        await this.#kind.rehearse(new Uint8Array(height * width * channels));
        await this.#queries?.prepare(this.bundle);
        return this.#health(call);
      },
      nothing,
    );
  }

  /** Close the connections; calls that run end at once, and calls after this are refused. */
  close(): void {
    this.#closed = true;
    for (const channel of this.#channels) channel.replicas.close();
  }

  async #health({ end, signal }: Call): Promise<Health[]> {
    return (await loaded(import("./health.js"))).checkHealth(this.#channels, end, signal);
  }

  /**
   * Run a call within its deadline, at most `MAX_CALLS_AT_ONCE` at a time; what was kept is wiped at its end. What `load`
   * reads is read before this returns: the caller may then use the place for the next image.
   */
  async #call<T, A>(options: CallOptions, body: (call: Call, loaded: A) => Promise<T>, load: () => A): Promise<T> {
    if (this.#closed) throw new ConfigError(CLOSED);
    checkNames(options, ["timeout", "signal"], "a call");
    const { signal } = options;
    const timeout = options.timeout === undefined ? this.#timeout : checkTimeout(options.timeout);
    const started = performance.now();
    checkSignal(signal);
    signal?.throwIfAborted();
    const found = load();
    const decodeMs = performance.now() - started;
    const call: Call = { started, end: started + timeout, timeout, signal, decodeMs, kept: [], lied: new Set() };
    await this.#turn(call);
    try {
      return await body(call, found);
    } finally {
      for (const sent of call.kept) this.#kind.forget(sent);
      this.#running--;
      this.#waiting.shift()?.();
    }
  }

  async #turn(call: Call): Promise<void> {
    const { signal, timeout } = call;
    if (this.#running >= MAX_CALLS_AT_ONCE)
      await new Promise<void>((resolve, reject) => {
        const leave = (reason: unknown): void => {
          this.#waiting.splice(this.#waiting.indexOf(go), 1);
          end();
          reject(reason);
        };
        const aborted = (): void => leave(signal?.reason);
        const timer = setTimeout(
          () =>
            leave(
              new DeadlineExceededError(
                `${MAX_CALLS_AT_ONCE} other calls of this client were on their way for all of the ${timeout} ms that ` +
                  "this one had: raise `timeout`, or make fewer calls at a time",
              ),
            ),
          timeout,
        );
        const end = (): void => {
          clearTimeout(timer);
          signal?.removeEventListener("abort", aborted);
        };
        const go = (): void => {
          end();
          resolve();
        };
        signal?.addEventListener("abort", aborted, { once: true });
        this.#waiting.push(go);
      });
    this.#running++;
  }

  /** Have it wiped at the end of the call. */
  async #keep(call: Call, made: Promise<Sent>): Promise<Sent> {
    const sent = await made;
    call.kept.push(sent);
    return sent;
  }

  /** Images that travel together, uint8 [batch, …]; `following` parts come after them. */
  async #part(call: Call, pixels: Uint8Array, batch: number, following: number): Promise<Result[]> {
    const { decodeMs } = call;
    const part: Part = {
      bundle: this.bundle,
      kind: this.#kind,
      minAnswers: this.#minAnswers,
      decodeMs,
      started: call.started,
      lied: call.lied,
      begin: (images, count) => this.#begin(call, images, count),
      run: (begun, more) => this.#run(call, begun, following + more),
      results: (ran) => this.#results(call, ran),
    };
    if (this.#queries) return this.#queries.results(part, pixels, batch);
    return part.results(await part.run(await part.begin(pixels, batch), 0));
  }

  /** The first shares of some images; nothing is sent. */
  async #begin(call: Call, pixels: Uint8Array, batch: number): Promise<Begun> {
    const since = performance.now();
    const sent = await this.#keep(call, this.#kind.begin(pixels, batch));
    call.signal?.throwIfAborted();
    if (performance.now() >= call.end)
      throw new DeadlineExceededError(
        `this call used up its ${call.timeout} ms before its images were ready to send: raise \`timeout\`, or pass ` +
          "smaller images or fewer at a time",
      );
    return { sent, tookMs: performance.now() - since };
  }

  /** Send them, and what follows from the answers, round after round. */
  async #run(call: Call, { sent, tookMs }: Begun, following: number): Promise<Ran> {
    let step: Sent | Answered = sent;
    let encodeMs = tookMs;
    const { batch } = sent;
    const rounds: Round[] = [];
    while (isSent(step)) {
      const outcomes = await this.#send(call, step, following);
      const keyed = step.partition === null ? 0 : PARTITION_BYTES;
      for (const share of step.shares) share.fill(0); // they are sent, and needed no more
      rounds.push({ encodeMs, outcomes, bytesUp: step.shares.map((share) => share.length / batch + keyed) });
      if (outcomes.filter((outcome) => outcome.answer).length < this.#minAnswers)
        throw this.#closed ? new ConfigError(CLOSED) : this.#tooFew(rounds);
      const since = performance.now();
      step = await this.#kind.take(step, outcomes);
      if (isSent(step)) call.kept.push(step);
      call.signal?.throwIfAborted();
      encodeMs = performance.now() - since;
    }
    return { found: step, rounds, batch, fusionMs: encodeMs };
  }

  #send(call: Call, sent: Sent, following: number): Promise<Outcome[]> {
    const { batch, partition, round } = sent;
    const shares = sent.shares.map((values, server): Share => ({ server, values, batch, partition, round }));
    return travel(this.#channels, shares, {
      ...call,
      minAnswers: this.#minAnswers,
      wait: this.#wait,
      retries: this.#retries,
      exchangesLeft: this.#kind.exchangesLeft(round, following),
    });
  }

  #results(call: Call, { found, rounds, batch, fusionMs }: Ran): Result[] {
    const { classes } = this.bundle;
    const answerMs = ({ answer, ms }: Outcome): number | null => (answer ? ms : null);
    const servers = this.#channels.map((_, server) => rounds.map((round) => round.outcomes[server] as Outcome));
    const answered = servers.map((own) => own.every((outcome) => outcome.answer));
    const timings: Timings = {
      decodeMs: call.decodeMs,
      encodeMs: sum(rounds.map((round) => round.encodeMs)),
      serversMs: servers.map((own, i) => (answered[i] ? sum(own.map((outcome) => outcome.ms)) : null)),
      fusionMs,
      totalMs: performance.now() - call.started,
      rounds: rounds.map(({ encodeMs, outcomes }) => ({ encodeMs, serversMs: outcomes.map(answerMs) })),
    };
    const bytesUp = servers.map((own, server) => {
      return sum(own.map((outcome, i) => outcome.sends * (rounds[i]?.bytesUp[server] as number)));
    });
    const bytesDown = servers.map((own) => sum(own.map((outcome) => (outcome.answer?.byteLength ?? 0) / batch)));
    return Array.from({ length: batch }, (_, image) => {
      const probabilities = found.probabilities.slice(image * classes.length, (image + 1) * classes.length);
      const index = argmax(probabilities);
      const { suspects, corrected, expectedAccuracy } = found;
      return makeResult({
        label: classes[index] as string,
        index,
        probability: probabilities[index] as number,
        probabilities,
        classes,
        answered,
        timings,
        bytesUp,
        bytesDown,
        suspects,
        corrected,
        expectedAccuracy,
        repeated: false,
      });
    });
  }

  #tooFew(rounds: readonly Round[]): NotEnoughAnswersError {
    const outcomes = rounds[rounds.length - 1]?.outcomes ?? [];
    const causes = new Map<number, ServerError>();
    for (const { server, error } of outcomes) if (error) causes.set(server, error);
    const answered = outcomes.filter((outcome) => outcome.answer).map((outcome) => outcome.server);
    const ready = outcomes.filter((outcome) => outcome.ready).length;
    const listed = [...causes].map(([server, error]) => `server ${server}: ${error.message}`).join("; ");
    const count = this.#channels.length;
    const needed = this.#minAnswers;
    const round = rounds.length > 1 ? ` in round ${rounds.length}` : "";
    const found =
      ready && rounds.length === 1
        ? `${ready} of ${count} servers passed the release check, ${needed} must, so no share was sent`
        : `${answered.length} of ${count} servers gave a usable answer, ${needed} are needed${round}`;
    const hint = this.#kind.mayLower(needed) ? ", or lower `minAnswers` if a less certain answer will do" : "";
    return new NotEnoughAnswersError(`${found} (${listed}): fix these servers${hint}`, causes, answered, needed);
  }
}

/** Results that also name the servers whose wrong answers to canaries of this call were corrected. */
const withSuspects = (results: Result[], lied: ReadonlySet<number>): Result[] =>
  lied.size
    ? results.map((each) => ({ ...each, suspects: [...new Set([...each.suspects, ...lied])].sort((a, b) => a - b) }))
    : results;

const sum = (values: readonly number[]): number => values.reduce((all, each) => all + each, 0);
