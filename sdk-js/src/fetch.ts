/**
 * A connection by `fetch`, for browsers and React Native.
 *
 * `fetch` does not show which socket a request takes, so nothing can be pinned to one. What holds instead: the check is
 * made before the first share, again after any error, and again after `IDLE_FETCH_MS` without a call, within which
 * browsers keep a connection. Which host answers, TLS vouches for.
 */

import { concat } from "./bytes.js";
import { IDLE_FETCH_MS, MAX_ANSWER_BYTES, MAX_CALLS_PER_CONNECTION } from "./constants.js";
import { type Connection, jsonLengthOf, type Request, type Response, Trouble, UNTRUSTED } from "./wire.js";

/** By two clocks: a browser may stop the first while the device sleeps, and every connection is lost. */
const now = (): readonly number[] => [performance.now(), Date.now()];

export class FetchConnection implements Connection {
  readonly #address: string;
  readonly #ending = new AbortController();
  #calls = 0;
  #used = now();

  constructor(endpoint: string) {
    this.#address = endpoint.replace(/\/$/, "");
  }

  get open(): boolean {
    const fresh = now().every((clock, i) => clock - (this.#used[i] as number) <= IDLE_FETCH_MS);
    return !this.#ending.signal.aborted && fresh && this.#calls < MAX_CALLS_PER_CONNECTION;
  }

  get stage(): string {
    return "did not answer";
  }

  /** Ends a request that runs, too. */
  close(): void {
    this.#ending.abort();
  }

  async send(request: Request, signal: AbortSignal): Promise<Response> {
    const close = (): void => this.close();
    signal.addEventListener("abort", close, { once: true });
    this.#calls++;
    try {
      return await this.#send(request);
    } catch (error) {
      this.close();
      if (error instanceof Trouble) throw error;
      throw new Trouble(
        "cannot be reached",
        "check the network, the address, its certificate, that it does not redirect, and that it allows this page's " +
          "origin (CORS)",
      );
    } finally {
      signal.removeEventListener("abort", close);
      this.#used = now();
    }
  }

  async #send({ method, path, headers, body }: Request): Promise<Response> {
    const response = await fetch(this.#address + path, {
      method,
      // A browser has its own mind about compression, and its gateway does not compress; elsewhere Triton would.
      headers: { "Accept-Encoding": "identity", ...Object.fromEntries(headers) },
      body,
      signal: this.#ending.signal,
      redirect: "error",
      credentials: "omit",
      referrerPolicy: "no-referrer",
      // The check must ask the server. A POST is never answered by a cache, and asking for that costs a preflight.
      ...(method === "GET" ? { cache: "no-store" as const } : {}),
    });
    const { status } = response;
    // React Native follows redirects all the same, and says so.
    if (response.redirected)
      throw new Trouble(
        "answers with a redirect, which is never followed",
        "give the address that it leads to, if that is right",
        false,
      );
    const told = response.headers.get("content-length");
    if (status !== 200 && !(status === 503 && told !== null)) {
      await response.body?.cancel().catch(() => {}); // what it says of an error is not looked at
      return { code: status, body: new Uint8Array(), jsonLength: 0 };
    }
    const tooMuch = new Trouble("sends more than an answer can be", UNTRUSTED);
    if (Number(told ?? 0) > MAX_ANSWER_BYTES) throw tooMuch;
    const found = await bodyOf(response, MAX_ANSWER_BYTES);
    if (found.length > MAX_ANSWER_BYTES) throw tooMuch;
    if (told !== null && told !== String(found.length))
      throw new Trouble(
        "answers compressed, or with another length than it says",
        "switch compression off in the proxy before the server",
        false,
      );
    const header = response.headers.get("inference-header-content-length");
    return { code: status, body: found, jsonLength: jsonLengthOf(header, found.length) };
  }
}

/** What an answer holds; of one that is longer, `limit` + 1 bytes, and no more is taken in. */
export async function bodyOf(response: globalThis.Response, limit: number): Promise<Uint8Array> {
  const reader = response.body?.getReader?.();
  // React Native has no streams.
  if (!reader) return new Uint8Array(await response.arrayBuffer()).subarray(0, limit + 1);
  const pieces: Uint8Array[] = [];
  let size = 0;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    pieces.push(piece.value);
    size += piece.value.length;
    if (size > limit) {
      reader.cancel().catch(() => {}); // not waited for: the other end may never answer
      break;
    }
  }
  return concat(...pieces).subarray(0, limit + 1);
}
