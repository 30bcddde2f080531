/** A server that records what a client sends, byte for byte, and answers with bytes that a test gives it. */

import { createServer, type Server, type Socket } from "node:net";
import { createServer as createTlsServer, type TlsOptions } from "node:tls";

/** A request as it came, and on which of the server's connections, counted from 1. */
export interface Asked {
  readonly connection: number;
  readonly line: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly body: Buffer;
}

/** From a request to the bytes of an answer; null closes the connection, "silence" lets it wait. */
export type Answerer = (asked: Asked) => Uint8Array | null | "silence" | Promise<Uint8Array | null | "silence">;

export class ReplayServer {
  readonly received: Asked[] = [];
  /** Connections that were made. */
  connections = 0;
  /** What the answerer threw: a fault of the test. */
  readonly faults: unknown[] = [];
  readonly #server: Server;
  readonly #open = new Set<Socket>();
  #authority = "";

  constructor(
    public answer: Answerer,
    private readonly tls: TlsOptions | null = null,
  ) {
    const serve = (socket: Socket): void => this.#serve(socket);
    this.#server = tls ? createTlsServer(tls, serve) : createServer(serve);
  }

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.#authority = `127.0.0.1:${(this.#server.address() as { port: number }).port}`;
    return this;
  }

  get endpoint(): string {
    return this.tls ? `https://${this.#authority.replace("127.0.0.1", "localhost")}` : `http://${this.#authority}`;
  }

  /** Send bytes on every connection that is open, asked for or not. */
  push(bytes: Uint8Array): void {
    for (const socket of this.#open) socket.write(bytes);
  }

  /** Close the connections that are open; the server goes on. */
  hangUp(): void {
    for (const socket of this.#open) socket.destroy();
  }

  async stop(): Promise<void> {
    this.hangUp();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(socket: Socket): void {
    const connection = ++this.connections;
    this.#open.add(socket);
    socket.on("close", () => this.#open.delete(socket));
    socket.on("error", () => {});
    let held = Buffer.alloc(0);
    let last = Promise.resolve();
    socket.on("data", (data: Buffer) => {
      held = Buffer.concat([held, data]);
      for (let end = held.indexOf("\r\n\r\n"); end >= 0; end = held.indexOf("\r\n\r\n")) {
        const [line = "", ...rest] = held
          .toString("latin1", 0, end)
          .replaceAll(this.#authority, "{authority}")
          .split("\r\n");
        const headers = rest.map((header) => header.split(/: (.*)/s, 2) as [string, string]);
        const length = Number(headers.find(([name]) => name.toLowerCase() === "content-length")?.[1] ?? 0);
        if (held.length < end + 4 + length) return;
        const asked = { connection, line, headers, body: held.subarray(end + 4, end + 4 + length) };
        held = held.subarray(end + 4 + length);
        this.received.push(asked);
        last = last.then(() => this.#reply(socket, asked));
      }
    });
  }

  async #reply(socket: Socket, asked: Asked): Promise<void> {
    try {
      const answer = await this.answer(asked);
      if (answer === null) socket.destroy();
      else if (answer !== "silence") socket.write(answer);
    } catch (fault) {
      this.faults.push(fault);
      socket.destroy();
    }
  }
}

/** An HTTP answer; `jsonLength` says how much of the body is JSON. */
export function framed(body: Uint8Array, jsonLength?: number, status = "200 OK"): Buffer {
  const inner = jsonLength === undefined ? "" : `Inference-Header-Content-Length: ${jsonLength}\r\n`;
  return Buffer.concat([Buffer.from(`HTTP/1.1 ${status}\r\n${inner}Content-Length: ${body.length}\r\n\r\n`), body]);
}
