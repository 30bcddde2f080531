/**
 * One server as the client sees it: its replicas, the messages that only it may be sent, and how answers are judged.
 *
 * - A request to server i holds the share of server i only, and in a keyed release the index of the partition. Its
 *   length depends on the batch, the release, the round and the timeout, never on the content.
 * - No share is sent on a connection before the endpoint has said, on it, that it serves this server of this release.
 * - Errors carry the name of a status, never a server's text, which could hold anything, shares included.
 */

import type { CheckedServer } from "./config.js";
import { BREAKER_FAILURES, BREAKER_LAST_MS, MAX_ABS_LOGIT } from "./constants.js";
import {
  AnswerError,
  ServerBusyError,
  type ServerError,
  ServerMismatchError,
  ServerTimeoutError,
  ServerUnavailableError,
} from "./errors.js";
import { type Manifest, type Model, RELEASE_PARAMETER, SERVER_PARAMETER, type TensorSpec } from "./format.js";
import type { Answer } from "./kinds.js";
import { type Link, Replicas } from "./routing.js";
import {
  type Connect,
  configRequest,
  inferRequest,
  type Request,
  type Response,
  readConfig,
  readTensors,
  statusOfAnswer,
  Trouble,
  typeText,
  type WireTensor,
} from "./wire.js";

/** A batch of shares bound to the one server that may see them. `round` is counted from 0. */
export interface Share {
  readonly server: number;
  readonly values: Int8Array;
  readonly batch: number;
  readonly partition: number | null;
  readonly round: number;
}

/** Why an attempt failed, and whether trying the same replica again may help. */
export class Failure {
  constructor(
    readonly error: ServerError,
    readonly again: boolean,
  ) {}
}

const PASSING: ReadonlySet<string> = new Set(["UNAVAILABLE", "INTERNAL"]);
const DATATYPES: Readonly<Record<string, string>> = { int8: "INT8", int32: "INT32", float32: "FP32" };
const ADVICE = "the server is faulty or dishonest; tell its operator";

export class ServerChannel {
  readonly replicas: Replicas;
  /** Of endpoints that serve something else. */
  readonly #mismatches = new Map<string, ServerMismatchError>();

  constructor(
    readonly server: number,
    private readonly manifest: Manifest,
    private readonly models: readonly Model[],
    private readonly config: CheckedServer,
    connect: Connect,
  ) {
    this.replicas = new Replicas(server, config.endpoints, (endpoint) => connect(endpoint, config.tls));
  }

  /** Ask an endpoint what it serves: the first of the models that have not been judged on this connection. */
  askConfig(link: Link): Request {
    if (link.checked) link.distrust(); // it is asked once more, from the start
    return configRequest(this.#model(link.passed).name, this.config.headers());
  }

  /** Ask an endpoint for the answer to this server's share; `timeout` of the whole call, in milliseconds. */
  askBranch(link: Link, share: Share, timeout: number): Request {
    const model = this.#model(share.round);
    const [first, second] = model.inputs;
    const shape = [share.batch, ...sizesOf(first)];
    if (share.server !== this.server || link.server !== this.server || share.values.length !== sizeOf(shape))
      throw new Error(`a share of server ${share.server} was about to be sent to server ${link.server}`);
    if (!link.checked) throw new Error("a share was about to be sent on a connection that has not passed the check");
    if ((second === undefined) !== (share.partition === null))
      throw new Error("a share of a keyed release was about to be sent without its partition, or another with");
    const { buffer, byteOffset, length } = share.values;
    const inputs: WireTensor[] = [
      { name: "share", datatype: "INT8", shape, raw: new Uint8Array(buffer, byteOffset, length) },
    ];
    if (second && share.partition !== null) {
      const raw = new Uint8Array(4 * share.batch);
      const view = new DataView(raw.buffer);
      for (let image = 0; image < share.batch; image++) view.setInt32(4 * image, share.partition, true);
      inputs.push({ name: second.name, datatype: "INT32", shape: [share.batch, 1], raw });
    }
    return inferRequest(model.name, inputs, model.output.name, Math.round(timeout * 1000), this.config.headers());
  }

  /**
   * Judge an endpoint by the configuration of a model it serves; null: it fits. Once all models do, the link is
   * `checked`, and shares may be sent on it; until then there is more to ask.
   */
  readConfig(link: Link, reply: Response | Trouble): Failure | null {
    const model = this.#model(link.passed);
    const response = this.#read(link, reply, model.name);
    let failure: Failure | null = null;
    if (response instanceof Failure) failure = response;
    else {
      const error = this.#judge(link.endpoint, model, response);
      failure = error && new Failure(error, false);
    }
    link.passed = failure ? 0 : link.passed + 1;
    link.checked = link.passed === this.models.length;
    if (failure?.error instanceof ServerMismatchError) this.#mismatches.set(link.endpoint, failure.error);
    else if (!failure) this.#mismatches.delete(link.endpoint);
    return failure;
  }

  /** Judge the answer to a share. A server that failed, and was not just busy, is checked before its next share. */
  readAnswer(link: Link, share: Share, reply: Response | Trouble): Answer | Failure {
    const model = this.#model(share.round);
    const response = this.#read(link, reply, model.name);
    const read = response instanceof Failure ? response : this.#readTensor(model, share.batch, readTensors(response));
    if (read instanceof Failure && !(read.error instanceof ServerBusyError)) link.distrust();
    return read;
  }

  /** The error of an endpoint that had not answered at the deadline; its connections are closed. */
  tooLate(link: Link): ServerError {
    const { stage } = link.connection;
    link.connection.close();
    this.replicas.dropIdle(link.endpoint);
    return new ServerTimeoutError(
      `${link.endpoint} ${stage} in time: raise \`timeout\`, or check the network and the server's load; the next call ` +
        "makes a new connection",
      this.server,
    );
  }

  /** The error to report: while the parties roll a release, old replicas end, and new ones say what to do. */
  clearest(error: ServerError): ServerError {
    const vague = error instanceof ServerUnavailableError && !(error instanceof ServerBusyError);
    const [mismatch] = vague ? this.#mismatches.values() : [];
    return mismatch ?? error;
  }

  /** The failure of a connection that waited for the other servers' checks, and did not last. */
  goneSinceCheck(link: Link): Failure {
    const what = `${link.endpoint} passed the check, but the connection did not last until the others had`;
    return new Failure(new ServerUnavailableError(`${what}: check the other servers`, this.server), true);
  }

  /** The error of a server whose replicas are all paused. */
  allPaused(): ServerError {
    return new ServerUnavailableError(
      `${this.config.endpoints.join(", ")} failed ${BREAKER_FAILURES} times in a row and is not tried for up to ` +
        `${BREAKER_LAST_MS / 1000} s: check the server's log`,
      this.server,
    );
  }

  #model(index: number): Model {
    return this.models[index] as Model;
  }

  /** A response with the status OK, or why there is none. */
  #read(link: Link, reply: Response | Trouble, model: string): Response | Failure {
    try {
      if (reply instanceof Trouble) throw reply;
      const status = statusOfAnswer(reply);
      return status === "OK" ? reply : new Failure(this.#refused(link.endpoint, status, model), PASSING.has(status));
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      const { what, advice, again } = error;
      return new Failure(new ServerUnavailableError(`${link.endpoint} ${what}: ${advice}`, this.server), again);
    }
  }

  #refused(where: string, status: string, model: string): ServerError {
    const token = this.config.hasToken
      ? "check the token and its header"
      : "give the token that it may need, { url: …, token: … }";
    if (status === "DEADLINE_EXCEEDED")
      return new ServerTimeoutError(
        `${where} gave up at the deadline: raise \`timeout\`, or check the server's load`,
        this.server,
      );
    if (status === "UNAVAILABLE") {
      const wait = "wait until it has started and see its log";
      return new ServerUnavailableError(
        `${where} runs but does not serve this call now (UNAVAILABLE): ` +
          (this.config.hasToken ? `${token}, or ${wait}` : `${wait}, or ${token}`),
        this.server,
      );
    }
    if (status === "RESOURCE_EXHAUSTED")
      return new ServerBusyError(
        `${where} has a full queue: try again later, with growing waits; its operator needs more replicas`,
        this.server,
      );
    if (status === "NOT_FOUND")
      return new ServerMismatchError(
        `${where} serves no model ${model}: install the new bundle if the parties have moved on, or give the address of ` +
          `server ${this.server} of release ${this.manifest.release}`,
        this.server,
      );
    if (status === "UNAUTHENTICATED" || status === "PERMISSION_DENIED")
      return new ServerUnavailableError(`${where} refuses this device (${status}): ${token}`, this.server);
    return new ServerUnavailableError(`${where} refused the request (${status}): check the server's log`, this.server);
  }

  /** Whether an endpoint serves this server of the release: release and server first, then shapes. */
  #judge(where: string, model: Model, response: Response): ServerError | null {
    const config = readConfig(response.body);
    const { release } = this.manifest;
    if (!config)
      return new AnswerError(`${where} gave an unreadable answer to the release check: ${ADVICE}`, this.server);
    const wanted = `server ${this.server} of release ${release}`;
    const named = config.parameters.get(RELEASE_PARAMETER) ?? "";
    if (named !== release)
      return new ServerMismatchError(
        `${where} serves release ${quoted(named)}, not ${release}: install the new bundle if the parties have moved ` +
          `on, or start ${wanted} there`,
        this.server,
      );
    const server = config.parameters.get(SERVER_PARAMETER) ?? "";
    if (server !== String(this.server))
      return new ServerMismatchError(
        `${where} is server ${quoted(server)} of the release, not ${this.server}: put the servers in order`,
        this.server,
      );
    const inputs = model.inputs.map(textOfSpec).join();
    const fits = config.inputs.join() === inputs && config.outputs.join() === textOfSpec(model.output);
    if (!fits || config.maxBatch < this.manifest.max_batch)
      return new ServerMismatchError(
        `${where} calls itself ${wanted}, but its tensors differ: its folder was changed; start it from the release as ` +
          "exported",
        this.server,
      );
    return null;
  }

  /** The answer in a response: logits float32 [batch, classes], or residues int8 [batch, primes, outputs]. */
  #readTensor(model: Model, batch: number, tensors: readonly WireTensor[] | null): Answer | Failure {
    const wrong = (what: string): Failure => new Failure(new AnswerError(`${what}: ${ADVICE}`, this.server), false);
    if (!tensors) return wrong("gave an unreadable answer");
    const [tensor] = tensors;
    const raw = tensor?.raw;
    if (!tensor || !raw || tensors.length !== 1)
      return wrong(`answered with ${tensors.length} tensors instead of one of raw bytes`);
    const { name, type } = model.output;
    if (tensor.name !== name || tensor.datatype !== DATATYPES[type])
      return wrong(`answered with another tensor than "${name}" of type ${DATATYPES[type]}`);
    const shape = [batch, ...sizesOf(model.output)];
    const count = sizeOf(shape);
    if (tensor.shape.join() !== shape.join() || raw.length !== count * (type === "float32" ? 4 : 1))
      return wrong(`answered with shape [${tensor.shape.slice(0, 8)}] in ${raw.length} bytes instead of [${shape}]`);
    if (model.moduli.length) {
      const values = new Int8Array(raw.buffer, raw.byteOffset, count);
      const outputs = count / (batch * model.moduli.length);
      const largest = model.moduli.map((prime) => (prime - 1) / 2);
      const fits = values.every(
        (value, i) => Math.abs(value) <= (largest[Math.floor(i / outputs) % largest.length] as number),
      );
      return fits ? values : wrong("answered with numbers that are no residues of the round's primes");
    }
    const view = new DataView(raw.buffer, raw.byteOffset);
    const logits = Float32Array.from({ length: count }, (_, i) => view.getFloat32(4 * i, true));
    if (!logits.every((value) => Math.abs(value) <= MAX_ABS_LOGIT))
      // NaN compares false
      return wrong("answered with NaN, infinite or absurdly large logits");
    return logits;
  }
}

const sizesOf = (spec: TensorSpec | undefined): number[] => [...(spec?.shape ?? [])].map(Number);
const sizeOf = (shape: readonly number[]): number => shape.reduce((all, axis) => all * axis, 1);
const textOfSpec = (spec: TensorSpec): string => typeText(spec.name, DATATYPES[spec.type] as string, sizesOf(spec));

/** A server's own name, made safe for a log line. */
function quoted(text: string): string {
  return text ? JSON.stringify(text.slice(0, 80).replace(/[^\x20-\x7e]/g, "?")) : "no name";
}
