/**
 * Reading an HTTP/1.1 answer, strictly: a status line, headers, and a body whose one Content-Length says how long it is.
 *
 * All the rest of HTTP/1.1, where two readers can disagree about where an answer ends, or that leads elsewhere, is
 * refused and ends the connection: chunks, two lengths, interim answers, redirects, compression, HTTP/1.0, folded
 * headers, bytes behind the end. The rules are those of the Python SDK.
 */

import { MAX_ANSWER_BYTES, MAX_HEAD_BYTES, MAX_HEADERS } from "./constants.js";
import { jsonLengthOf, NOT_HTTP, type Request, type Response, statusOf, Trouble, UNTRUSTED } from "./wire.js";

const GREETING = "HTTP/1.1 ";
const STATUS_LINE = /^HTTP\/1\.1 ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const HEADER = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*?)[\t ]*$/;
const LENGTH = /^[0-9]{1,9}$/;
/** Headers that say where an answer ends, or how it is to be read; each may come once. */
const FRAMING = new Set([
  "content-length",
  "inference-header-content-length",
  "transfer-encoding",
  "content-encoding",
  "connection",
]);

/** The bytes of a request. */
export function requestBytes(authority: string, { method, path, headers, body }: Request): Buffer {
  const length = body ? [["Content-Length", String(body.length)]] : [];
  const more = [...headers, ...length].map(([name, value]) => `${name}: ${value}\r\n`).join("");
  const start = `${method} ${path} HTTP/1.1\r\nHost: ${authority}\r\nUser-Agent: privdfs\r\nAccept-Encoding: identity\r\n`;
  const head = Buffer.from(`${start}${more}\r\n`, "latin1");
  return body ? Buffer.concat([head, body]) : head;
}

interface Head {
  readonly code: number;
  /** Of the body. */
  readonly length: number;
  readonly json: string | null;
  /** Whether the server closes the connection behind it. */
  readonly last: boolean;
}

/** Takes the bytes of one answer as they come. */
export class AnswerReader {
  #held: Buffer = Buffer.alloc(0);
  #head: Head | null = null;

  /** The answer, once it is whole, and whether the connection ends with it; throws `Trouble`. */
  take(data: Buffer): { readonly response: Response; readonly last: boolean } | null {
    this.#held = this.#held.length ? Buffer.concat([this.#held, data]) : data;
    if (!this.#head) {
      const end = this.#held.indexOf("\r\n\r\n");
      if (end < 0) {
        if (this.#held.length > MAX_HEAD_BYTES) throw new Trouble("sends more headers than an answer has", UNTRUSTED);
        const begun = this.#held.toString("latin1", 0, GREETING.length);
        if (!GREETING.startsWith(begun)) throw new Trouble("does not speak HTTP/1.1", NOT_HTTP);
        return null;
      }
      this.#head = readHead(this.#held.toString("latin1", 0, end));
      this.#held = this.#held.subarray(end + 4);
    }
    const { code, length, json, last } = this.#head;
    // What it says of an error is not looked at.
    if (code !== 200 && last) return { response: { code, body: new Uint8Array(), jsonLength: 0 }, last };
    if (this.#held.length < length) return null;
    if (this.#held.length > length) throw new Trouble("sends more than its answer", UNTRUSTED);
    const jsonLength = code === 200 ? jsonLengthOf(json, length) : 0;
    return { response: { code, body: new Uint8Array(this.#held), jsonLength }, last };
  }
}

function readHead(text: string): Head {
  const [first = "", ...lines] = text.split("\r\n");
  const status = STATUS_LINE.exec(first);
  if (!status || text.length > MAX_HEAD_BYTES || lines.length > MAX_HEADERS)
    throw new Trouble("does not speak HTTP/1.1", NOT_HTTP);
  const framing = new Map<string, string>();
  for (const line of lines) {
    const header = HEADER.exec(line);
    if (!header) throw new Trouble("breaks the rules of HTTP/1.1", NOT_HTTP);
    const name = (header[1] as string).toLowerCase();
    if (!FRAMING.has(name)) continue;
    if (framing.has(name)) throw new Trouble(`sends the header ${name} twice`, UNTRUSTED);
    framing.set(name, header[2] as string);
  }
  const code = Number(status[1]);
  statusOf(code); // refuses redirects and interim answers
  const plain = !framing.has("transfer-encoding") && (framing.get("content-encoding") ?? "identity") === "identity";
  const digits = framing.get("content-length") ?? "";
  const length = LENGTH.test(digits) ? Number(digits) : null;
  // An error's text is not needed, so an error may be framed in any way.
  if (code !== 200 && !(plain && length !== null && length <= MAX_ANSWER_BYTES))
    return { code, length: 0, json: null, last: true };
  if (!plain)
    throw new Trouble("answers in chunks or compressed", "switch that off in the proxy before the server", false);
  if (length === null)
    throw new Trouble("does not say how long its answer is", "let the server answer with Content-Length", false);
  if (length > MAX_ANSWER_BYTES) throw new Trouble("sends more than an answer can be", UNTRUSTED);
  const json = framing.get("inference-header-content-length") ?? null;
  if (json !== null) jsonLengthOf(json, length);
  return { code, length, json, last: /close/i.test(framing.get("connection") ?? "") };
}
