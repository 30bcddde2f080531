/** Wrong arguments are refused before anything is sent, with an error that says what to do and quotes no secret. */

import * as ort from "onnxruntime-node";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { textOf, utf8 } from "../src/bytes.js";
import { shown } from "../src/given.js";
import { Client as FetchClient } from "../src/index.js";
import { refuseLeakage } from "../src/leakage.js";
import {
  Bundle,
  BundleStore,
  Client,
  ConfigError,
  fromFiles,
  fromFolder,
  fromUrl,
  ImageError,
  LeakageError,
  type MaskedManifest,
  Queries,
  RandomnessError,
  UserKey,
} from "../src/node.js";
import { loadBatch, loadPixels } from "../src/pixels.js";
import { makeResult } from "../src/result.js";
import { readSafetensors } from "../src/safetensors.js";
import { Problem } from "../src/schema.js";
import { readTrust } from "../src/signature.js";
import { releaseFolder } from "./small.js";
import { folderOf } from "./vectors.js";

let masked: Bundle;
let keyed: Bundle;
let coded: Bundle;
beforeAll(async () => {
  const open = (release: string): Promise<Bundle> =>
    Bundle.open(fromFolder(releaseFolder(release)), { runtime: ort, allowUnsigned: true });
  [masked, keyed, coded] = await Promise.all([open("masked"), open("keyed"), open("coded")]);
});

const THREE = ["https://a.example", "https://b.example", "https://c.example"];
// biome-ignore lint/suspicious/noExplicitAny: wrong on purpose
type Wrong = any;
const UNSIGNED = { runtime: ort, allowUnsigned: true };

/** What is wrong, and a part of the error that says so. */
const WRONG: [string, string, (Made: typeof Client) => unknown][] = [
  ["no bundle", "awaited", (Made) => new Made(null as Wrong, THREE)],
  ["a bundle that was not awaited", "type Promise", (Made) => new Made(Promise.resolve(masked) as Wrong, THREE)],
  ["no list of servers", "not a list", (Made) => new Made(masked, "https://a.example" as Wrong)],
  ["no servers", "no servers were given", (Made) => new Made(masked, [])],
  ["no servers of a coded release", "no servers were given", (Made) => new Made(coded, [])],
  ["too few servers", "3 servers, 2 were given", (Made) => new Made(masked, THREE.slice(1))],
  ["a number as a server", "type number", (Made) => new Made(masked, [1, 2, 3] as Wrong)],
  ["no address", "no address", (Made) => new Made(masked, [{ url: [] }, ...THREE.slice(1)])],
  ["a path", "without a path", (Made) => new Made(masked, ["https://a.example/x", ...THREE.slice(1)])],
  ["gRPC", "not of the form", (Made) => new Made(masked, ["a.example:8001", ...THREE.slice(1)])],
  ["port 0", "not of the form", (Made) => new Made(masked, ["https://a.example:0", ...THREE.slice(1)])],
  ["plaintext", "no TLS", (Made) => new Made(masked, ["http://a.example", ...THREE.slice(1)])],
  ["one host twice", "both at a.example", (Made) => new Made(masked, [...THREE.slice(0, 2), "https://a.example:444"])],
  ["one address twice", "named twice", (Made) => new Made(masked, [...THREE.slice(0, 2), "https://A.example:443/"])],
  [
    "loopback twice",
    "named twice",
    (Made) => new Made(masked, ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:2"]),
  ],
  [
    "insecure with TLS",
    "drop it",
    (Made) => new Made(masked, [{ url: "https://x.example", insecure: true }, ...THREE.slice(1)]),
  ],
  [
    "insecure as text",
    "true or false",
    (Made) => new Made(masked, [{ url: "http://x.example", insecure: "no" as Wrong }, ...THREE.slice(1)]),
  ],
  [
    "TLS over plaintext",
    "no TLS to be set up",
    (Made) => new Made(masked, [{ url: "http://127.0.0.1:1", tls: {} }, ...THREE.slice(1)]),
  ],
  [
    "a misspelt option of a server",
    "has no option",
    (Made) => new Made(masked, [{ url: "https://x.example", tokn: "x" } as Wrong, ...THREE.slice(1)]),
  ],
  [
    "a token in plaintext",
    "in plaintext",
    (Made) => new Made(masked, [{ url: "http://x.example", insecure: true, token: "x" }, ...THREE.slice(1)]),
  ],
  [
    "an empty token",
    "the token is empty",
    (Made) => new Made(masked, [{ url: "https://x.example", token: "" }, ...THREE.slice(1)]),
  ],
  [
    "a token with a line break",
    "not printable",
    (Made) => new Made(masked, [{ url: "https://x.example", token: "a\nb: c" }, ...THREE.slice(1)]),
  ],
  [
    "a token of another type",
    "type number",
    (Made) =>
      new Made(masked, [{ url: "https://x.example", token: { value: 1 as Wrong, header: "x" } }, ...THREE.slice(1)]),
  ],
  [
    "a token in HTTP's header",
    "cannot carry",
    (Made) =>
      new Made(masked, [{ url: "https://x.example", token: { value: "x", header: "host" } }, ...THREE.slice(1)]),
  ],
  ["a misspelt option", "has no option", (Made) => new Made(masked, THREE, { minAnswer: 2 } as Wrong)],
  ["no time", "above 0", (Made) => new Made(masked, THREE, { timeout: 0 })],
  ["seconds for two hours", "above 0", (Made) => new Made(masked, THREE, { timeout: 7_200_000 })],
  ["time as text", "milliseconds", (Made) => new Made(masked, THREE, { timeout: "1" as Wrong })],
  ["four of three answers", "from 1 to 3", (Made) => new Made(masked, THREE, { minAnswers: 4 })],
  ["no wait", "neither", (Made) => new Made(masked, THREE, { wait: "some" as Wrong })],
  ["eleven attempts", "from 1 to 10", (Made) => new Made(masked, THREE, { retries: { attempts: 11 } })],
  ["retries as a number", "type number", (Made) => new Made(masked, THREE, { retries: 3 as Wrong })],
  ["two hedges a call", "from 0 to 1", (Made) => new Made(masked, THREE, { retries: { hedgeBudget: 2 } })],
  ["a hedge after no time", "hedgeAfter", (Made) => new Made(masked, THREE, { retries: { hedgeAfter: 0 } })],
  ["queries as a budget", "type Object", (Made) => new Made(masked, THREE, { queries: { budget: 3 } as Wrong })],
  ["colluding of a masked release", "coded releases", (Made) => new Made(masked, THREE, { colluding: 1 })],
  ["a key without keys", "has no keys", (Made) => new Made(masked, THREE, { key: new Uint8Array(16) })],
  ["keys without a key", "needs the user's key", (Made) => new Made(keyed, THREE)],
  ["a key of 15 bytes", "15 bytes", (Made) => new Made(keyed, THREE, { key: new Uint8Array(15) })],
  ["a key that is no text", "32 hexadecimal", (Made) => new Made(keyed, THREE, { key: "secret" })],
  ["a key as a list", "bytes or text", (Made) => new Made(keyed, THREE, { key: [1] as Wrong })],
  ["a key of a coded release", "which has none", (Made) => new Made(coded, THREE, { key: new Uint8Array(16) })],
  ["nobody who colludes", "at least 1", (Made) => new Made(coded, THREE, { colluding: 0 })],
  ["too many who collude", "pass colluding: 1", (Made) => new Made(coded, THREE, { colluding: 2 })],
  ["no servers", "no servers were given", (Made) => new Made(coded, [])],
  ["too few to decode", "give 3 servers", (Made) => new Made(coded, THREE.slice(1))],
  [
    "too many servers",
    "more than the 16",
    (Made) =>
      new Made(
        coded,
        Array.from({ length: 17 }, (_, i) => `https://s${i}.example`),
      ),
  ],
  ["fewer answers than decode", "from 3 to 3", (Made) => new Made(coded, THREE, { minAnswers: 2 })],
  ["leakage as text", "dB above", (Made) => new Made(masked, THREE, { maxLeakageDb: "1" as Wrong })],
];

describe.each([
  ["sockets", Client],
  ["fetch", FetchClient],
])("%s", (_, Made) => {
  test.each(WRONG)("%s", (_name, part, make) => {
    expect(() => make(Made)).toThrow(ConfigError);
    expect(() => make(Made)).toThrow(part);
  });

  test("an unknown option of a call", async () => {
    const client = new Made(masked, THREE);
    const image = { data: new Uint8Array(64 * 64), width: 64, height: 64 };
    await expect(client.predict(image, { timout: 3 } as Wrong)).rejects.toThrow("has no option");
    await expect(client.predict(image, { timeout: -3 })).rejects.toThrow(ConfigError);
    client.close();
    client.close();
  });
});

test("a PEM file that is named, or given as bytes, in the place of its text", () => {
  const withTls = (tls: Wrong) => () => new Client(masked, [{ url: "https://a.example", tls }, ...THREE.slice(1)]);
  expect(withTls({ ca: "ca.pem" })).toThrow(
    "`tls.ca` is not the text of a PEM file: pass what is in the file, not its name, or leave it out",
  );
  expect(withTls({ key: new Uint8Array(1) })).toThrow("`tls.key` is not the text of a PEM file");
});

test("hosts of different parties, and shared ones where that is allowed", () => {
  new Client(masked, THREE).close();
  new Client(masked, ["https://[2001:db8::1]", "https://[2001:DB8::2]", "https://c.example"]).close();
  expect(
    () => new Client(masked, ["https://[2001:db8::1]:1", "https://[2001:db8:0::1]:2", "https://c.example"]),
  ).toThrow("both at");
  new Client(masked, ["https://a.example:1", "https://a.example:2", "https://a.example:3"], {
    allowSharedHosts: true,
  }).close();
  new Client(masked, ["https://a.example", { url: "http://b.example", insecure: true }, "https://c.example"]).close();
  expect(() => new FetchClient(masked, [{ url: "https://a.example", tls: {} }, ...THREE.slice(1)])).toThrow(
    "do not let an app",
  );
});

test("a generator that fails, is missing or does nothing shares no image", async () => {
  const client = new Client(coded, THREE);
  const { height, width, channels } = coded.image;
  const image = { data: new Uint8Array(height * width * channels), height, width };
  const failing = (): never => {
    throw new Error("hunter2");
  };
  for (const generator of [
    undefined,
    {},
    { getRandomValues: failing },
    { getRandomValues: <T>(bytes: T): T => bytes },
  ]) {
    vi.stubGlobal("crypto", generator);
    const error: unknown = await client.encode(image).catch((caught: unknown) => caught);
    vi.unstubAllGlobals();
    expect(error).toBeInstanceOf(RandomnessError);
    expect((error as Error).message).not.toContain("hunter2");
  }
  client.close();
});

test("options that are none", async () => {
  const source = fromFolder(releaseFolder("masked"));
  for (const none of [undefined, null, "trust"])
    await expect(Bundle.open(source, none as Wrong)).rejects.toThrow(ConfigError);
  expect(() => new Client(masked, THREE, null as Wrong)).toThrow(ConfigError);
  expect(() => new Queries(null as Wrong)).toThrow(ConfigError);
});

test("one host in several spellings", () => {
  for (const other of ["16909060", "0x1020304", "[::ffff:1.2.3.4]", "[::ffff:102:304]", "1.2.772"])
    expect(() => new Client(masked, ["https://1.2.3.4:1", `https://${other}:2`, "https://c.example"])).toThrow(
      "both at 1.2.3.4",
    );
});

test.each([
  ["an empty authority, for which Node would take the system's", { ca: "" }, "`tls.ca`"],
  ["no authority", { ca: undefined }, "`tls.ca`"],
  ["the name of a file", { ca: "ca.pem" }, "`tls.ca`"],
  ["bytes", { ca: utf8("-----BEGIN CERTIFICATE-----") }, "`tls.ca`"],
  ["a key in the place of a certificate", { ca: "-----BEGIN PRIVATE KEY-----" }, "`tls.ca`"],
  ["a certificate without its key", { cert: "-----BEGIN CERTIFICATE-----" }, "needs both"],
  ["null", null, "type null"],
  ["text", "hunter2", "type string"],
])("TLS set up with %s", (_, tls, part) => {
  const make = (): Client => new Client(masked, [{ url: "https://a.example", tls: tls as Wrong }, ...THREE.slice(1)]);
  expect(make).toThrow(ConfigError);
  expect(make).toThrow(part);
  expect(make).not.toThrow("hunter2");
});

test("a key that fits no certificate fails the call, and is not shown", async () => {
  const tls = {
    cert: "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----",
    key: "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
  };
  const servers = [1, 2, 3].map((port) => ({ url: `https://127.0.0.1:${port}`, tls }));
  const client = new Client(masked, servers);
  const error: unknown = await client.health().catch((caught: unknown) => caught);
  client.close();
  expect(error).toBeInstanceOf(ConfigError);
  expect((error as Error).message).toContain("`key` belongs to `cert`");
});

test.each([
  "https://hunter2@a.example",
  "https://user:hunter2@a.example",
  "https://user:hun/ter2@a.example",
  "hunter2@a.example",
  "https://a.example/?token=hunter2",
  "https://a.example/#hunter2",
])("an address that holds a secret is not shown: %s", (url) => {
  const make = (): Client => new Client(masked, [url, ...THREE.slice(1)]);
  expect(make).toThrow("may be a secret");
  expect(make).not.toThrow(/hunter2|ter2@/);
});

test("a health check that was aborted before it began asks nobody", async () => {
  const asked = vi.fn(async () => new Response());
  vi.stubGlobal("fetch", asked);
  const client = new FetchClient(masked, THREE);
  const ended = new AbortController();
  const checked = client.warmup({ signal: ended.signal });
  ended.abort(new Error("enough"));
  await expect(checked).rejects.toThrow("enough");
  expect(asked).not.toHaveBeenCalled();
  client.close();
  vi.unstubAllGlobals();
});

test("a function that gives no token fails the call, and what it threw is not shown", async () => {
  const failing = (): string => {
    throw new Error("hunter2");
  };
  for (const [token, part] of [
    [failing, "function that gives the token failed"],
    [(): string => "two\nlines", "not printable"],
  ] as const) {
    const client = new Client(masked, [
      { url: "http://127.0.0.1:1", token },
      "http://127.0.0.1:2",
      "http://127.0.0.1:3",
    ]);
    const { height, width, channels } = masked.image;
    const error: unknown = await client
      .predict({ data: new Uint8Array(height * width * channels), height, width })
      .catch((caught: unknown) => caught);
    client.close();
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as Error).message).toContain(part);
    expect((error as Error).message).not.toContain("hunter2");
  }
});

test("bundles: what is opened, how, and by whose leave", async () => {
  const source = fromFolder(releaseFolder("masked"));
  const cases: [Wrong, Wrong, string][] = [
    [source, { runtime: {}, allowUnsigned: true }, "not an ONNX runtime"],
    [source, { runtime: ort }, "could be anyone's"],
    [source, { runtime: ort, trust: new Uint8Array(32), allowUnsigned: true }, "contradict"],
    [source, { runtime: ort, allowUnsigned: 1 }, "true or false"],
    [source, { runtime: ort, allow: true }, "has no option"],
    ["/bundle", { runtime: ort, allowUnsigned: true }, "pass fromUrl"],
    [fromFiles({}), { runtime: ort, allowUnsigned: true }, "there is no manifest.json"],
    [fromFiles({ "manifest.json": new Uint8Array(5_000_000) }), { runtime: ort, allowUnsigned: true }, "too large"],
    [fromFolder(`${releaseFolder("masked")}/..`), { runtime: ort, allowUnsigned: true }, "give its client folder"],
    [fromFolder("/nowhere"), { runtime: ort, allowUnsigned: true }, "there is no manifest.json"],
  ];
  for (const [from, options, part] of cases) await expect(Bundle.open(from, options)).rejects.toThrow(part);
  expect(() => fromFolder("")).toThrow(ConfigError);
  expect(() => fromUrl("/bundle?x")).toThrow(ConfigError);
  const bundle = await Bundle.open(source, { runtime: ort, allowUnsigned: true });
  expect([bundle.release, bundle.classes.length, bundle.image.channels]).toEqual(["vectors-masked-1", 4, 3]);
});

test("keys to trust: no secret is quoted, and no private one is taken", async () => {
  const cases: [Wrong, string][] = [
    [[], "no trusted key"],
    [3, "type number"],
    ["-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----", "private key"],
    ["release-key.pub.pem", "not its name"],
    [new Uint8Array(31), "not an Ed25519"],
    ["-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "not an Ed25519"],
  ];
  for (const [key, part] of cases) await expect(readTrust(key)).rejects.toThrow(part);
  const secret = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----";
  await expect(readTrust(secret)).rejects.not.toThrow("MC4CAQ");
});

test("a text may have several keys to trust, and nothing else", async () => {
  const pem = (byte: number) => {
    const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), Buffer.alloc(32, byte)]);
    return `-----BEGIN PUBLIC KEY-----\n${der.toString("base64")}\n-----END PUBLIC KEY-----\n`;
  };
  expect([...(await readTrust(pem(1) + pem(2))).values()].map((key) => key[0])).toEqual([1, 2]);
  expect([...(await readTrust([pem(1), pem(2) + pem(3)])).values()].map((key) => key[0])).toEqual([1, 2, 3]);
  const certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
  for (const text of [pem(1) + certificate, certificate + pem(1)])
    await expect(readTrust(text)).rejects.toThrow("not an Ed25519");
});

test("images that cannot be used", () => {
  const spec = { height: 9, width: 8, channels: 3 } as const;
  const cases: [Wrong, string][] = [
    [null, "no pixels"],
    ["photo.jpg", "no pixels"],
    [{ data: new Float32Array(64), width: 8, height: 8 }, "no pixels"],
    [{ data: new Uint8Array(49), width: 7, height: 7 }, "smaller than 8"],
    [{ data: new Uint8Array(64), width: 8.5, height: 8 }, "whole numbers"],
    [{ data: new Uint8Array(64), width: 100_000, height: 100_000 }, "more than 64000000"],
    [{ data: new Uint8Array(130), width: 8, height: 8 }, "130 bytes"],
    [{ data: new Uint8Array(128), width: 8, height: 8 }, "1, 3 or 4"],
  ];
  for (const [image, part] of cases) {
    expect(() => loadPixels(image, spec)).toThrow(ImageError);
    expect(() => loadPixels(image, spec)).toThrow(part);
  }
  const good = { data: new Uint8ClampedArray(64), width: 8, height: 8 };
  expect(() => loadBatch([good, cases[3]?.[0]], spec)).toThrow("image 1 of the batch");
  expect(() => loadBatch([], spec)).toThrow("empty");
  expect(() => loadBatch(good as Wrong, spec)).toThrow("not a list");
  const same = { data: new Uint8Array(9 * 8 * 3).fill(7), width: 8, height: 9 };
  const made = loadPixels(same, spec);
  made.fill(0);
  expect(same.data[0]).toBe(7); // what the caller passed is the caller's
});

test("queries: options, and counts that come back from JSON", () => {
  for (const options of [{ budget: 0 }, { repeats: -1 }, { spent: { x: 1 } }, { spent: { "1": -1 } }, { rate: 1 }])
    expect(() => new Queries(options as Wrong)).toThrow(ConfigError);
  const queries = new Queries({ spent: { null: 3, "7": 2 } });
  expect(new Queries({ spent: JSON.parse(JSON.stringify(queries.spent)) }).spent).toEqual({ null: 3, "7": 2 });
});

test("queries: the oldest image is forgotten first", async () => {
  const queries = new Queries({ repeats: 1 });
  const ask = async (shade: number): Promise<number> =>
    (await queries.ask("r", null, new Uint8Array(4).fill(shade), 1, 1)).fresh.length;
  expect([await ask(1), await ask(2), await ask(1)]).toEqual([1, 1, 1]);
  expect(queries.spent).toEqual({ null: 3 });
});

test("leakage: what the manifest states is compared with what is allowed", async () => {
  const bundle = await Bundle.open(fromFolder(folderOf("fashion-resnet20")), { runtime: ort, allowUnsigned: true });
  const manifest = bundle.manifest as MaskedManifest;
  refuseLeakage(manifest, undefined);
  refuseLeakage(manifest, 3);
  expect(() => refuseLeakage(manifest, 0.01)).toThrow(LeakageError);
  expect(() => refuseLeakage({ ...manifest, leakage: [] }, 3)).toThrow("was not measured");
  expect(() => new Client(bundle, THREE, { maxLeakageDb: 0.01 })).toThrow(LeakageError);
  new Client(coded, THREE, { maxLeakageDb: 0 }).close(); // it is proven
  for (const own of [bundle, coded])
    expect(() => new Client(own, THREE, { maxLeakageDb: Number.NaN })).toThrow(ConfigError);
});

test("what may be a secret is not quoted", () => {
  for (const secret of [
    "deadbeefdeadbeefdeadbeef",
    "user:pass@host",
    "Ab3Ab3Ab3Ab3Ab3Ab3Ab3",
    "-----BEGIN X",
    "a\nb",
    "x".repeat(201),
  ])
    expect(shown(secret)).toBe("(not shown, it may be a secret)");
  expect(["quorum", 3, null, undefined, true].map(shown)).toEqual(['"quorum"', "3", "null", "undefined", "true"]);
  expect(shown(new Uint8Array(3))).toBe("a value of type Uint8Array");
  expect(String(new UserKey(new Uint8Array(16)))).not.toContain("0");
  expect(JSON.stringify(new UserKey("0f".repeat(16)))).toBe("{}");
});

test("results: the most probable classes", () => {
  const classes = ["a", "b", "c"];
  const result = makeResult({ classes, probabilities: Float32Array.of(0.25, 0.5, 0.25) } as Wrong);
  expect(result.top(9)).toEqual([
    ["b", 0.5],
    ["a", 0.25],
    ["c", 0.25],
  ]);
  expect(result.top(1)).toHaveLength(1);
  expect(() => result.top(0)).toThrow(ConfigError);
});

test("text is strict UTF-8", () => {
  expect(textOf(utf8("Grüße"))).toBe("Grüße");
  expect(textOf(Uint8Array.of(0xff))).toBeNull();
  expect(textOf(Uint8Array.of(0xef, 0xbb, 0xbf, 0x31))).toBeNull();
});

test("safetensors: anything but a sound file without gaps is refused", () => {
  const file = (header: Wrong, body: number): Uint8Array => {
    const json = utf8(typeof header === "string" ? header : JSON.stringify(header));
    const bytes = new Uint8Array(8 + json.length + body);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
    bytes.set(json, 8);
    return bytes;
  };
  const entry = (start: number, end: number, shape = [end - start], dtype = "U8"): Wrong => ({
    dtype,
    shape,
    data_offsets: [start, end],
  });
  expect([
    ...readSafetensors(file({ __metadata__: {}, a: entry(0, 2), b: entry(2, 6, [1], "F32") }, 6)).keys(),
  ]).toEqual(["a", "b"]);
  const wrong = [
    new Uint8Array(7),
    file({ a: entry(0, 2) }, 3),
    file({ a: entry(0, 2) }, 1),
    file({ a: entry(0, 2), b: entry(1, 3) }, 3),
    file({ a: entry(1, 3) }, 3),
    file({ a: entry(0, 2, [3]) }, 2),
    file({ a: entry(0, 2, [-2]) }, 2),
    file({ a: entry(0, 2, [2], "F16") }, 2),
    file({ a: 3 }, 0),
    file({ a: { ...entry(0, 2), data_offsets: [0, 2, 2] } }, 2),
    file("[1]", 0),
    file("{", 0),
    Uint8Array.of(255, 255, 255, 255, 255, 255, 255, 255, 1),
  ];
  for (const bytes of wrong) expect(() => readSafetensors(bytes)).toThrow(Problem);
});

test("an image is read before the call returns: its place may hold the next one", async () => {
  const client = new Client(masked, THREE);
  const { height, width, channels } = masked.image;
  const image = { data: new Uint8Array(height * width * channels).fill(7), width, height };
  const expected = await client.encode(image);
  const made = client.encode(image);
  image.data.fill(200);
  expect(await made).toEqual(expected);
  expect(await client.encode(image)).not.toEqual(expected);
});

test.each<[string, string, () => unknown]>([
  [
    "a controller as a signal",
    "signal",
    () => new Client(masked, THREE).health({ signal: new AbortController() as Wrong }),
  ],
  [
    "a folder as a place",
    "type string",
    () => new BundleStore("folder" as Wrong, { runtime: ort, allowUnsigned: true }),
  ],
  ["no options of a store", "type null", () => new BundleStore({ read: () => {} } as Wrong, null as Wrong)],
  ["text as a manifest", "came as string", () => Bundle.open(fromFiles({ "manifest.json": "{}" } as Wrong), UNSIGNED)],
  [
    "a source that gives a buffer",
    "ArrayBuffer",
    () => Bundle.open((async () => new ArrayBuffer(9)) as Wrong, UNSIGNED),
  ],
  ["nothing spent", "type null", () => new Queries({ spent: null as Wrong })],
  ["a number spent", "type number", () => new Queries({ spent: 7 as Wrong })],
])("%s is refused", async (_, said, work) => {
  const error = await Promise.resolve()
    .then(work)
    .catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(ConfigError);
  expect((error as Error).message).toContain(said);
});

test("no files at all are no bundle", async () => {
  await expect(Bundle.open(fromFiles(null as Wrong), UNSIGNED)).rejects.toThrow("there is no manifest.json");
});
