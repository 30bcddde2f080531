/** Node's sockets: TLS, what is pinned, and connections that break at any point. */

import { mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createPlain } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { afterEach, describe, expect, test, vi } from "vitest";
import { FetchConnection } from "../src/fetch.js";
import { Bundle, fromFolder, fromUrl, type TlsOptions } from "../src/node.js";
import { SocketConnection } from "../src/socket.js";
import { type Connection, configRequest, type Trouble } from "../src/wire.js";
import { type Answerer, framed, ReplayServer } from "./replay.js";
import { releaseFolder } from "./small.js";
import { given } from "./vectors.js";

const pem = (name: string): string => readFileSync(join(given("PRIVDFS_JS_CERTIFICATES"), `${name}.pem`), "utf8");
const hello = framed(Buffer.from("{}"));
const ask = (connection: Connection, signal = new AbortController().signal): Promise<string> =>
  connection.send(configRequest("branch", [["authorization", "Bearer x"]]), signal).then(
    (response) => `${response.code} ${Buffer.from(response.body)}`,
    (error: unknown) => (error as Trouble).what,
  );

const running: ReplayServer[] = [];
async function serve(answer: Answerer, tls: object | null = null): Promise<ReplayServer> {
  const server = await new ReplayServer(answer, tls).start();
  running.push(server);
  return server;
}
afterEach(async () => {
  vi.restoreAllMocks();
  await Promise.all(running.splice(0).map((server) => server.stop()));
});

describe("TLS", () => {
  const server = (): Promise<ReplayServer> => serve(() => hello, { cert: pem("server"), key: pem("server-key") });
  const cases: [string, () => TlsOptions | undefined, string][] = [
    ["an authority of one's own", () => ({ ca: pem("ca") }), "200 {}"],
    ["the server's own certificate, pinned", () => ({ ca: pem("server") }), "200 {}"],
    ["another pinned certificate", () => ({ ca: pem("client") }), "failed the TLS handshake"],
    ["the system's authorities", () => undefined, "failed the TLS handshake"],
  ];
  test.each(cases)("%s", async (_, tls, expected) => {
    const made = await server();
    const connection = new SocketConnection(made.endpoint, tls());
    expect(await ask(connection)).toContain(expected);
    connection.close();
    // Not a byte, such as a token, before the certificate was checked.
    expect(made.received).toHaveLength(expected.startsWith("200") ? 1 : 0);
  });

  test("another name than the certificate's", async () => {
    const made = await server();
    const connection = new SocketConnection(made.endpoint.replace("localhost", "127.0.0.1"), { ca: pem("ca") });
    expect(await ask(connection)).toContain("failed the TLS handshake (ERR_TLS_CERT_ALTNAME_INVALID)");
    expect(made.received).toHaveLength(0);
  });

  test("nothing in the environment switches the check of certificates off", async () => {
    vi.stubEnv("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    const made = await server();
    expect(await ask(new SocketConnection(made.endpoint, undefined))).toContain("failed the TLS handshake");
    expect(made.received).toHaveLength(0);
    vi.unstubAllEnvs();
  });

  test("a client's certificate", async () => {
    const options = { cert: pem("server"), key: pem("server-key"), ca: pem("ca"), requestCert: true };
    const made = await serve(() => hello, { ...options, rejectUnauthorized: true });
    const own = { ca: pem("ca"), cert: pem("client"), key: pem("client-key") };
    const connection = new SocketConnection(made.endpoint, own);
    expect(await ask(connection)).toBe("200 {}");
    connection.close();
    expect(await ask(new SocketConnection(made.endpoint, { ca: pem("ca") }))).not.toContain("200");
  });

  test("plaintext where TLS is expected, and the other way round", async () => {
    const plain = await serve(() => hello);
    const asked = ask(new SocketConnection(plain.endpoint.replace("http:", "https:"), undefined));
    await vi.waitFor(() => expect(plain.connections).toBe(1));
    plain.push(hello);
    expect(await asked).toContain("failed the TLS handshake");
    const secure = await server();
    const turned = secure.endpoint.replace("https:", "http:");
    expect(await ask(new SocketConnection(turned, undefined))).toMatch(/closed|does not speak/);
  });

  test("a plain server that hangs up on the handshake", async () => {
    const plain = createPlain((socket) => socket.once("data", () => socket.destroy()));
    await new Promise<void>((resolve) => plain.listen(0, "127.0.0.1", resolve));
    const { port } = plain.address() as AddressInfo;
    const sent = new SocketConnection(`https://127.0.0.1:${port}`, undefined);
    const request = configRequest("branch", []);
    await expect(sent.send(request, new AbortController().signal)).rejects.toMatchObject({
      advice: expect.stringContaining("use TLS or neither"),
    });
    plain.close();
  });
});

describe.each([
  ["sockets", (endpoint: string): Connection => new SocketConnection(endpoint, undefined)],
  ["fetch", (endpoint: string): Connection => new FetchConnection(endpoint)],
])("a connection of %s", (wire, make) => {
  test("stays for further requests, and rests no longer than it may", async () => {
    const server = await serve(() => hello);
    const connection = make(server.endpoint);
    expect([await ask(connection), await ask(connection)]).toEqual(["200 {}", "200 {}"]);
    expect(connection.open).toBe(true);
    const now = performance.now();
    vi.spyOn(performance, "now").mockImplementation(() => now + 61_000);
    expect(connection.open).toBe(false);
    connection.close();
  });

  test("is over when it was closed, aborted or refused", async () => {
    const server = await serve(() => "silence");
    const closed = make(server.endpoint);
    setTimeout(() => closed.close(), 50);
    expect(await ask(closed)).toMatch(/closed the connection|cannot be reached/);
    const aborted = make(server.endpoint);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 50);
    expect(await ask(aborted, controller.signal)).toMatch(/closed the connection|cannot be reached/);
    const nowhere = make("http://127.0.0.1:1");
    expect(await ask(nowhere)).toContain("cannot be reached");
    expect([closed.open, aborted.open, nowhere.open]).toEqual([false, false, false]);
    expect(await ask(closed)).toMatch(/closed the connection|cannot be reached/);
    expect(closed.stage).toContain("answer");
  });

  test("gives up an answer that is too long", async () => {
    const server = await serve(() => framed(new Uint8Array(4 * 1024 * 1024 + 1)));
    const connection = make(server.endpoint);
    expect(await ask(connection)).toContain("sends more than an answer can be");
    expect(connection.open).toBe(false);
  });

  test("takes an answer that comes byte by byte", async () => {
    const server = await serve(() => "silence");
    const connection = make(server.endpoint);
    const asked = ask(connection);
    await vi.waitFor(() => expect(server.received).toHaveLength(1));
    for (const byte of hello) {
      server.push(Uint8Array.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await asked).toBe("200 {}");
    connection.close();
  });

  test("does not follow a redirect", async () => {
    const other = await serve(() => hello);
    const location = `307 Temporary Redirect\r\nLocation: ${other.endpoint}/v2/models/branch/config`;
    const server = await serve(() => framed(new Uint8Array(), undefined, location));
    const connection = make(server.endpoint);
    expect(await ask(connection)).toContain(wire === "sockets" ? "redirect" : "cannot be reached");
    expect([other.received.length, connection.open]).toEqual([0, false]);
  });
});

test("bytes that come unasked end a socket", async () => {
  const server = await serve(() => hello);
  const connection = new SocketConnection(server.endpoint, undefined);
  await ask(connection);
  server.push(hello);
  await vi.waitFor(() => expect(connection.open).toBe(false));
});

test("a socket carries one request at a time", async () => {
  const server = await serve(() => "silence");
  const connection = new SocketConnection(server.endpoint, undefined);
  const first = ask(connection);
  await expect(connection.send(configRequest("branch", []), new AbortController().signal)).rejects.toThrow("at once");
  connection.close();
  await first;
});

test("a name that is not known", async () => {
  expect(await ask(new SocketConnection("http://nobody.invalid:1", undefined))).toMatch(/cannot be (found|reached)/);
});

test("fetch where answers have no streams, as in React Native", async () => {
  const headers = { get: (name: string): string | null => (name === "content-length" ? null : "2") };
  const answer = (size: number): object => {
    return {
      status: 200,
      type: "basic",
      redirected: false,
      headers,
      body: null,
      arrayBuffer: async () => new ArrayBuffer(size),
    };
  };
  vi.stubGlobal("fetch", async () => answer(2));
  expect(await ask(new FetchConnection("http://127.0.0.1:1"))).toBe("200 \0\0");
  vi.stubGlobal("fetch", async () => answer(4 * 1024 * 1024 + 1));
  expect(await ask(new FetchConnection("http://127.0.0.1:1"))).toContain("more than an answer can be");
  vi.stubGlobal("fetch", async () => ({ ...answer(2), redirected: true }));
  expect(await ask(new FetchConnection("http://127.0.0.1:1"))).toContain("redirect");
  vi.unstubAllGlobals();
});

test("a server is asked again by fetch after the device has slept, while one of its clocks stood", async () => {
  const server = await serve(() => hello);
  const connection = new FetchConnection(server.endpoint);
  expect(await ask(connection)).toContain("200");
  expect(connection.open).toBe(true);
  const woken = Date.now() + 3_600_000;
  vi.spyOn(Date, "now").mockReturnValue(woken);
  expect(connection.open).toBe(false);
});

test("a bundle from a web server", async () => {
  const folder = releaseFolder("masked");
  const options = { runtime: ort, trust: undefined as never, allowUnsigned: true };
  let status = 200;
  const server = createServer((request, response) => {
    try {
      const data = readFileSync(folder + request.url?.replace("/bundle", ""));
      response.writeHead(status).end(data);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = `http://127.0.0.1:${(server.address() as { port: number }).port}/bundle`;
  const { trust: _, ...unsigned } = options;
  expect((await Bundle.open(fromUrl(address), unsigned)).release).toBe("vectors-masked-1");
  await expect(Bundle.open(fromUrl(`${address}/no`), unsigned)).rejects.toThrow("there is no manifest.json");
  status = 500;
  await expect(Bundle.open(fromUrl(address), unsigned)).rejects.toThrow("refused with HTTP 500");
  server.close();
  server.closeAllConnections();
  await expect(Bundle.open(fromUrl(address), unsigned)).rejects.toThrow("cannot be downloaded");
});

test("a web server that sends without end is not listened to for ever", async () => {
  let sent = 0;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      sent += 1024 * 1024;
      if (sent > 64 * 1024 * 1024) controller.close();
      else controller.enqueue(new Uint8Array(1024 * 1024));
    },
  });
  vi.stubGlobal("fetch", async () => new Response(body));
  const opened = Bundle.open(fromUrl("https://a.example/bundle"), { runtime: ort, allowUnsigned: true });
  await expect(opened).rejects.toThrow("too large to be a manifest");
  expect(sent).toBeLessThan(8 * 1024 * 1024);
  vi.unstubAllGlobals();
});

test("a bundle in a folder: links, folders in the place of files, and what cannot be read", async () => {
  const folder = mkdtempSync(join(tmpdir(), "privdfs-"));
  writeFileSync(join(folder, "real"), "x");
  symlinkSync(join(folder, "real"), join(folder, "link"));
  mkdirSync(join(folder, "inner"));
  const source = fromFolder(folder);
  expect(await source("real", 9)).toEqual(Uint8Array.of(120));
  expect(await source("inner", 9)).toBeNull();
  expect(await source("real/x", 9)).toBeNull();
  await expect(source("link", 9)).rejects.toThrow("symbolic link");
  await expect(source("x".repeat(300), 9)).rejects.toThrow("cannot be read (ENAMETOOLONG)");
  writeFileSync(join(folder, "large"), new Uint8Array(20));
  expect(await source("large", 9)).toHaveLength(10);
});
