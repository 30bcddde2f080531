/**
 * The wire: KServe v2 with JSON, and tensors as bytes behind it; and what a connection is.
 *
 * The length of a request depends on the model and the shapes alone: the one number that varies is padded. Neither
 * headers nor texts of a server get into errors: it can write there what it likes, shares included.
 */

import { concat, textOf, utf8 } from "./bytes.js";
import type { TlsOptions } from "./config.js";
import { Problem, parse, record, wholeNumbersOnly } from "./schema.js";

export type Headers = readonly (readonly [string, string])[];

export interface Request {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly headers: Headers;
  readonly body: Uint8Array<ArrayBuffer> | null;
}

/** An HTTP answer; `jsonLength` is how much of the body is JSON. An error may come without its body. */
export interface Response {
  readonly code: number;
  readonly body: Uint8Array;
  readonly jsonLength: number;
}

/** Why there is no answer, in our own words: never what the other side wrote. */
export class Trouble extends Error {
  constructor(
    /** What happened, to follow the address in a sentence. */
    readonly what: string,
    readonly advice: string,
    /** Whether the same address may do better the next time. */
    readonly again = true,
  ) {
    super(what);
  }
}

export const UNTRUSTED = "it is faulty or not to be trusted; tell its operator";
export const NOT_HTTP = "check that this is the server's HTTP port, and that both sides use TLS or neither";

/**
 * A connection to one address of a server. What the release check found out about the other end holds as long as it is
 * `open`: a connection is never made again, and one that cannot know whether it was must close itself.
 */
export interface Connection {
  /** Make it with the first request. Throws `Trouble`, after which it is not open any more; so it is when aborted. */
  send(request: Request, signal: AbortSignal): Promise<Response>;
  /** Whether another request may run on it, as far as is known. */
  readonly open: boolean;
  /** How far a request got, to follow the address in a sentence. */
  readonly stage: string;
  close(): void;
}

/** Makes a connection, which connects with its first request. */
export type Connect = (endpoint: string, tls: TlsOptions | undefined) => Connection;

/** The names that gRPC has for what HTTP's statuses say. Others of 4xx are INVALID_ARGUMENT, others of 5xx INTERNAL. */
const STATUSES: Readonly<Record<number, string>> = {
  200: "OK",
  401: "UNAUTHENTICATED",
  403: "PERMISSION_DENIED",
  404: "NOT_FOUND",
  408: "UNAVAILABLE",
  429: "RESOURCE_EXHAUSTED",
  499: "CANCELLED",
  501: "UNIMPLEMENTED",
  502: "UNAVAILABLE",
  503: "UNAVAILABLE",
  504: "DEADLINE_EXCEEDED",
};

/** How Triton says, with the status 503, that its queue is full. */
const QUEUE_FULL = utf8("Exceeds maximum queue size");

/** The status that an answer stands for; of an error's text, only whether it says that the queue is full is looked at. */
export function statusOfAnswer({ code, body }: Response): string {
  const status = statusOf(code);
  return status === "UNAVAILABLE" && contains(body, QUEUE_FULL) ? "RESOURCE_EXHAUSTED" : status;
}

function contains(bytes: Uint8Array, part: Uint8Array): boolean {
  for (let at = 0; at + part.length <= bytes.length; at++)
    if (part.every((byte, i) => byte === bytes[at + i])) return true;
  return false;
}

/** What a status code says; throws `Trouble` for one that no inference server gives. */
export function statusOf(code: number): string {
  if (code >= 300 && code < 400)
    throw new Trouble(
      "answers with a redirect, which is never followed",
      "give the address that it leads to, if that is right",
      false,
    );
  if (code !== 200 && code < 400) throw new Trouble(`answers with the status ${code} instead of 200`, NOT_HTTP, false);
  return STATUSES[code] ?? (code < 500 ? "INVALID_ARGUMENT" : "INTERNAL");
}

/** How many bytes of JSON an answer of so many bytes has, by the header that says so. */
export function jsonLengthOf(header: string | null, length: number): number {
  if (header === null) return length;
  const found = /^[0-9]{1,9}$/.test(header) ? Number(header) : Number.NaN;
  if (!(found <= length)) throw new Trouble("answers with lengths that contradict each other", UNTRUSTED);
  return found;
}

export interface WireTensor {
  readonly name: string;
  readonly datatype: string;
  readonly shape: readonly number[];
  /** Little-endian bytes; null where they did not come as bytes. */
  readonly raw: Uint8Array | null;
}

export interface ModelConfig {
  readonly parameters: ReadonlyMap<string, string>;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly maxBatch: number;
}

export const configRequest = (model: string, headers: Headers): Request => ({
  method: "GET",
  path: `/v2/models/${model}/config`,
  headers,
  body: null,
});

/** Ask a model for one output, by raw bytes; `timeout` in microseconds, how long it may wait there. */
export function inferRequest(
  model: string,
  inputs: readonly WireTensor[],
  output: string,
  timeout: number,
  headers: Headers,
): Request {
  const raws = inputs.map((input) => input.raw ?? new Uint8Array());
  const tensors = JSON.stringify({
    inputs: inputs.map(({ name, datatype, shape }, i) => {
      return { name, datatype, shape, parameters: { binary_data_size: raws[i]?.length } };
    }),
    outputs: [{ name: output, parameters: { binary_data: true } }], // as JSON its length would tell of the content
  });
  // JSON has no leading zeros, so blanks pad the time: ten digits are an hour and more in microseconds.
  const json = utf8(`{"parameters":{"timeout":${String(timeout).padStart(10)}},${tensors.slice(1)}`);
  return {
    method: "POST",
    path: `/v2/models/${model}/infer`,
    headers: [...headers, ["Inference-Header-Content-Length", String(json.length)]],
    body: concat(json, ...raws),
  };
}

/** What the JSON of a model's configuration says; null when it is not one. */
export function readConfig(body: Uint8Array): ModelConfig | null {
  return attempt(() => {
    const [value, lexical] = documentOf(body);
    const { max_batch_size: maxBatch = 0, input = [], output = [], parameters = {} } = value;
    whole(lexical.max_batch_size ?? 0);
    if (!record(parameters)) throw new Problem("parameters");
    const texts = Object.entries(parameters).map(([name, each]): [string, string] => {
      const { string_value: text = "" } = object(each);
      return [name, string(text)];
    });
    return {
      parameters: new Map(texts),
      inputs: typesOf(input, lexical.input ?? []),
      outputs: typesOf(output, lexical.output ?? []),
      maxBatch: whole(maxBatch),
    };
  });
}

/** How a tensor of a model's configuration is compared: its name, its type as KServe spells it, and its shape. */
export const typeText = (name: string, datatype: string, dims: readonly number[]): string =>
  `${name} ${datatype}[${dims.join()}]`;

/** The tensors of an answer; null when it is not one. */
export function readTensors({ body, jsonLength }: Response): WireTensor[] | null {
  return attempt(() => {
    const [value, lexical] = documentOf(body.subarray(0, jsonLength));
    const outputs = list(value.outputs ?? []);
    const exact = list(lexical.outputs ?? []);
    let position = jsonLength;
    const tensors = outputs.map((each, i) => {
      const { name, datatype, shape, parameters = {} } = object(each);
      const wholes = object(exact[i]);
      const size = object(parameters).binary_data_size ?? null;
      if (size !== null) whole(object(wholes.parameters).binary_data_size);
      let raw: Uint8Array | null = null;
      if (size !== null) {
        const end = position + whole(size);
        if (end < position || end > body.length) throw new Problem("size");
        raw = body.slice(position, end);
        position = end;
      }
      list(wholes.shape).forEach(whole);
      return { name: string(name), datatype: string(datatype), shape: list(shape).map(whole), raw };
    });
    if (position !== body.length) throw new Problem("length");
    return tensors;
  });
}

function typesOf(tensors: unknown, lexical: unknown): string[] {
  const exact = list(lexical);
  return list(tensors).map((each, i) => {
    const { name, data_type: type, dims } = object(each);
    list(object(exact[i]).dims).forEach(whole);
    return typeText(string(name), string(type).replace(/^TYPE_/, ""), list(dims).map(whole));
  });
}

function attempt<T>(read: () => T): T | null {
  try {
    return read();
  } catch {
    return null; // whatever is wrong, it is not an answer
  }
}

function documentOf(bytes: Uint8Array): [Record<string, unknown>, Record<string, unknown>] {
  const text = textOf(bytes);
  if (text === null) throw new Problem("text");
  return [object(parse(text)), object(parse(wholeNumbersOnly(text)))];
}

function object(value: unknown): Record<string, unknown> {
  if (!record(value)) throw new Problem("object");
  return value;
}

function list(value: unknown): unknown[] {
  if (!Array.isArray(value)) throw new Problem("list");
  return value;
}

function string(value: unknown): string {
  if (typeof value !== "string") throw new Problem("text");
  return value;
}

function whole(value: unknown): number {
  if (!Number.isSafeInteger(value)) throw new Problem("number");
  return value as number;
}
