/**
 * A connection on a socket of our own, for Node. HTTP libraries connect again by themselves, so that a share could reach a
 * server that was started in the place of a checked one. This socket is opened once and never again, so what was found
 * out about the other end holds for every byte that is sent on it.
 */

import { connect, isIP, type Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from "node:tls";
import { splitEndpoint, type TlsOptions } from "./config.js";
import { IDLE_SOCKET_MS, KEEPALIVE_IDLE_MS, MAX_CALLS_PER_CONNECTION } from "./constants.js";
import { ConfigError } from "./errors.js";
import { AnswerReader, requestBytes } from "./http1.js";
import { type Connection, NOT_HTTP, type Request, type Response, Trouble, UNTRUSTED } from "./wire.js";

const GONE = new Trouble(
  "closed the connection before it answered",
  `see its log, and that of a proxy before it; ${NOT_HTTP}`,
);

export class SocketConnection implements Connection {
  readonly #endpoint: string;
  readonly #tls: TlsOptions | undefined;
  #socket: Socket | TLSSocket | null = null;
  #connected = false;
  #closed = false;
  #first: Buffer | null = null;
  #calls = 0;
  #usedAt = performance.now();
  #reader: AnswerReader | null = null;
  #settle: ((end: Response | Trouble) => void) | null = null;

  constructor(endpoint: string, tls: TlsOptions | undefined) {
    this.#endpoint = endpoint;
    this.#tls = tls;
  }

  get open(): boolean {
    const fresh = performance.now() - this.#usedAt <= IDLE_SOCKET_MS;
    return !this.#closed && fresh && this.#calls < MAX_CALLS_PER_CONNECTION;
  }

  get stage(): string {
    return this.#connected ? "did not answer" : "could not be connected to";
  }

  close(): void {
    this.#end(GONE);
  }

  async send(request: Request, signal: AbortSignal): Promise<Response> {
    if (this.#closed) throw GONE;
    if (this.#settle) throw new Error("a connection was used by two calls at once");
    this.#calls++;
    const aborted = (): void => this.#end(GONE);
    signal.addEventListener("abort", aborted, { once: true });
    try {
      const ended = await new Promise<Response | Trouble>((resolve) => {
        this.#settle = resolve;
        this.#reader = new AnswerReader();
        this.#socket ??= this.#dial();
        this.#socket.ref();
        const bytes = requestBytes(this.#endpoint.replace(/^.*:\/\/|\/$/g, ""), request);
        if (this.#connected) this.#socket.write(bytes);
        else this.#first = bytes; // not a byte, such as a token, before the certificate was checked
      });
      if (ended instanceof Trouble) throw ended;
      return ended;
    } finally {
      signal.removeEventListener("abort", aborted);
      this.#usedAt = performance.now();
      this.#socket?.unref(); // an idle connection does not keep the process alive
    }
  }

  #dial(): Socket | TLSSocket {
    const { secure, host, port } = splitEndpoint(this.#endpoint);
    const common = { host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_IDLE_MS };
    // A certificate that is pinned need not be an authority's.
    const trust = this.#tls?.ca === undefined ? {} : { allowPartialTrustChain: true };
    const name = isIP(host) ? {} : { servername: host };
    const socket = secure ? this.#dialTls({ ...common, ...this.#tls, ...trust, ...name }) : connect(common);
    socket.once(secure ? "secureConnect" : "connect", () => {
      this.#connected = true;
      if (this.#first) socket.write(this.#first);
      this.#first = null;
    });
    socket.on("data", (data: Buffer) => this.#take(data));
    socket.on("error", (error: NodeJS.ErrnoException) => this.#end(this.#troubleOf(error, secure)));
    socket.on("close", () => this.#end(GONE));
    socket.on("end", () => this.#end(GONE));
    return socket;
  }

  #dialTls(options: ConnectionOptions): TLSSocket {
    try {
      // Said here, it holds whatever NODE_TLS_REJECT_UNAUTHORIZED says.
      return connectTls({ ...options, rejectUnauthorized: true, ALPNProtocols: ["http/1.1"] });
    } catch {
      // What it throws may quote a key.
      throw new ConfigError("`tls` cannot be used: check that `key` belongs to `cert`, and that both are whole");
    }
  }

  #take(data: Buffer): void {
    if (!this.#reader || !this.#settle) {
      this.close(); // whatever comes unasked is no answer
      return;
    }
    try {
      const found = this.#reader.take(data);
      if (!found) return;
      if (found.last) this.#closed = true;
      this.#finish(found.response);
      if (found.last) this.#socket?.destroy();
    } catch (error) {
      this.#end(error instanceof Trouble ? error : new Trouble("sends what cannot be read", UNTRUSTED));
    }
  }

  #finish(end: Response | Trouble): void {
    const settle = this.#settle;
    this.#settle = null;
    this.#reader = null;
    settle?.(end);
  }

  #end(trouble: Trouble): void {
    this.#closed = true;
    this.#socket?.destroy();
    this.#finish(trouble);
  }

  /** What happened, by the name of the error: its text may hold what the other side wrote. */
  #troubleOf(error: NodeJS.ErrnoException, secure: boolean): Trouble {
    if (this.#connected) return GONE;
    const code = /^[A-Z0-9_]{1,60}$/.test(error.code ?? "") ? ` (${error.code})` : "";
    if (/^(ENOTFOUND|EAI_)/.test(error.code ?? ""))
      return new Trouble(`cannot be found${code}`, "check the name and the network");
    if (secure && (error.code === "EPROTO" || !/^E[A-Z]+$/.test(error.code ?? "")))
      return new Trouble(
        `failed the TLS handshake${code}`,
        `check its certificate, its name and dates, and \`tls\`; ${NOT_HTTP}`,
        false,
      );
    return new Trouble(`cannot be reached${code}`, "check that it runs, and the network");
  }
}
