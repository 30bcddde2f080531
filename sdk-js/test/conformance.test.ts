/** This SDK gives what `tests/vectors` says, as the one in Python does; the README there explains the files. */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import * as native from "onnxruntime-node";
import * as wasm from "onnxruntime-web/wasm";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { CodedGraphs } from "../src/coded.js";
import { codedEncoderSignature, codedFusionSignature, relaySignature } from "../src/coded-format.js";
import { decode, draw, findLiars, neededAnswers, powers, weights } from "../src/coding.js";
import { isCoded, type Manifest, type MaskedManifest, type Signature } from "../src/format.js";
import { Client as FetchClient } from "../src/index.js";
import { encoderSignature, fusionSignature } from "../src/masked-format.js";
import {
  Bundle,
  Client,
  type ClientOptions,
  fromFiles,
  fromFolder,
  NotEnoughAnswersError,
  PrivdfsError,
  type Result,
  type Runtime,
  UserKey,
} from "../src/node.js";
import { loadPixels } from "../src/pixels.js";
import { Graph, type Tensor, type TypedArray } from "../src/runtime.js";
import { Suspects } from "../src/suspects.js";
import type { Answerer, ReplayServer } from "./replay.js";
import {
  computing,
  configs,
  fromBase64,
  isCheck,
  load,
  modelOf,
  releaseFolder,
  type Vector,
  withServers,
} from "./small.js";
import { int8Of, type Packed, row, sourceOf } from "./vectors.js";

// On a busy machine the answers to a call that has failed already may take longer than it waits for them.
vi.mock("../src/constants.js", async (original) => ({ ...(await original<object>()), FAIL_GRACE_MS: 10_000 }));

wasm.env.wasm.numThreads = 1;
const RUNTIMES: [string, Runtime][] = [
  ["native", native],
  ["wasm", wasm],
];
const CLOSE = 1e-5;

/** A test for each vector of a file. */
function each(name: string, body: (vector: Vector) => void | Promise<void>): void {
  describe(name, () => {
    for (const vector of load(name)) test(vector.name, () => body(vector));
  });
}

const nameOf = (error: unknown): string => {
  expect(error).toBeInstanceOf(PrivdfsError);
  return (error as PrivdfsError).name;
};

const ARRAYS: Record<string, new (buffer: ArrayBuffer) => TypedArray> = {
  uint8: Uint8Array,
  bool: Uint8Array,
  int8: Int8Array,
  int32: Int32Array,
  float32: Float32Array,
};

function tensorOf(packed: Packed): Tensor {
  const make = ARRAYS[packed.dtype] as new (buffer: ArrayBuffer) => TypedArray;
  return { data: new make(fromBase64(packed.data).buffer), dims: packed.shape };
}

function expectClose(found: ArrayLike<number>, wanted: ArrayLike<number>): void {
  expect(found.length).toBe(wanted.length);
  for (let i = 0; i < wanted.length; i++) {
    const difference = Math.abs((found[i] as number) - (wanted[i] as number));
    if (!(difference <= CLOSE)) expect.fail(`value ${i} differs by ${difference}`);
  }
}

// ------------------------------------------------------------------------------------------------------ the device

each("resize", ({ width, height, channels, pixels }) => {
  const data = new Uint8Array(width * height * channels);
  let at = 0;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < channels; c++)
        data[at++] = (x * 7 + y * 13 + c * 29 + x * y * (c + 1) + ((x * x + 3 * y) % 11) * 17) % 256;
  const [high, wide, deep] = pixels.shape;
  const made = loadPixels({ data, width, height }, { height: high, width: wide, channels: deep });
  expect(made).toEqual(fromBase64(pixels.data));
});

each("suspects", ({ accuracies, answers, suspects }) => {
  const record = new Suspects({ accuracy: { branches: accuracies } } as MaskedManifest);
  const changes: Vector[] = [];
  let before: readonly number[] = [];
  answers.forEach((row: (number | null | "invalid")[], i: number) => {
    const logits = new Float32Array(row.length * 10);
    row.forEach((vote, server) => {
      if (typeof vote === "number") logits[server * 10 + vote] = 1;
    });
    const who = (is: (vote: unknown) => boolean): number[] => row.flatMap((vote, server) => (is(vote) ? [server] : []));
    const invalid = who((vote) => vote === "invalid");
    const found = record.note(
      logits,
      1,
      who((vote) => typeof vote === "number"),
      invalid,
    );
    if (found.join() !== before.join()) changes.push([i + 1, found]);
    before = found;
  });
  expect(changes).toEqual(suspects);
});

each("partitions", async ({ key, family, partitions, partition }) => {
  expect(await new UserKey(key).partition({ family, partitions })).toBe(partition);
});

each("randomness", ({ batch, colluding, values, moduli, bytes, residues }) => {
  const all = fromBase64(bytes);
  let at = 0;
  const found = draw(batch, colluding, values, moduli, (count) => {
    at += count;
    expect(at).toBeLessThanOrEqual(all.length);
    return all.slice(at - count, at);
  });
  expect(found).toEqual(int8Of(residues));
});

each("powers", (vector) => {
  expect(powers(vector.moduli, vector.servers, vector.colluding)).toEqual(int8Of(vector.powers));
});

each("decoding", (vector) => {
  const { moduli, places, needed, degree, colluding } = vector;
  const [batch, count, primes, outputs] = vector.answers.shape;
  expect(neededAnswers(degree, colluding)).toBe(needed);
  const all = int8Of(vector.answers);
  const size = primes * outputs;
  const answers = places.map((_: number, k: number) => {
    const own = new Int8Array(batch * size);
    for (let image = 0; image < batch; image++) {
      const start = (image * count + k) * size;
      own.set(all.subarray(start, start + size), image * size);
    }
    return own;
  });
  const liars = findLiars(answers, places, moduli, outputs, needed);
  expect(liars).toEqual(vector.liars);
  if (!liars) return;
  const chosen = places
    .map((_: number, k: number) => k)
    .filter((k: number) => !liars.includes(k))
    .slice(0, needed);
  expect(chosen).toEqual(vector.chosen);
  const own = chosen.map((k: number) => places[k]);
  expect(weights(moduli, own)).toEqual(int8Of(vector.weights));
  const decoded = decode(
    chosen.map((k: number) => answers[k]),
    own,
    moduli,
    outputs,
  );
  expect(decoded.map(String)).toEqual(vector.results.flat());
});

for (const [runtimeName, runtime] of RUNTIMES)
  describe(runtimeName, () => {
    each("graphs", async ({ release, graph: name, inputs, outputs }) => {
      const { manifest } = await Bundle.open(fromFolder(releaseFolder(release)), { runtime, allowUnsigned: true });
      const data = readFileSync(`${releaseFolder(release)}/${name}`);
      const graph = await Graph.open(runtime, name, data, signatureOf(manifest, name));
      const feeds = Object.fromEntries(
        Object.entries(inputs).map(([key, packed]) => [key, tensorOf(packed as Packed)]),
      );
      const [first] = Object.values(feeds) as [Tensor];
      const sizes = {
        batch: first.dims[0] as number,
        servers: feeds.powers?.dims[1] ?? 0,
        colluding: feeds.powers?.dims[2] ?? 0,
        answered: feeds.weights?.dims[1] ?? 0,
      };
      const found = await graph.run(feeds, sizes);
      Object.values(outputs as Record<string, Packed>).forEach((packed, i) => {
        const wanted = tensorOf(packed);
        expect(found[i]?.dims).toEqual(wanted.dims);
        if (packed.dtype === "float32") expectClose(found[i]?.data as Float32Array, wanted.data);
        else expect(found[i]?.data).toEqual(wanted.data);
      });
    });
  });

function signatureOf(manifest: Manifest, name: string): Signature {
  if (!isCoded(manifest)) return name === "encoder.onnx" ? encoderSignature(manifest) : fusionSignature(manifest);
  if (name.startsWith("relay")) return relaySignature(manifest, Number(name.slice("relay-".length, -".onnx".length)));
  return name === "encoder.onnx" ? codedEncoderSignature(manifest) : codedFusionSignature(manifest);
}

// ------------------------------------------------------------------------------------------------------ the bundle

function filesOf(release: string): Map<string, Uint8Array> {
  const folder = releaseFolder(release);
  return new Map(readdirSync(folder).map((name) => [name, Uint8Array.from(readFileSync(`${folder}/${name}`))]));
}

each("signatures", async ({ release, signature, trusted, trusted_pem: pem, error }) => {
  const files = filesOf(release);
  if (signature === null) files.delete("manifest.sig");
  else files.set("manifest.sig", fromBase64(signature));
  const trust = pem === undefined ? trusted.map((key: string) => Uint8Array.from(Buffer.from(key, "hex"))) : [pem];
  const opened = Bundle.open(fromFiles(files), { runtime: native, trust });
  expect(await opened.then(() => undefined, nameOf)).toBe(error);
});

each("bundles", async ({ release, edits, selftest, error }) => {
  const files = filesOf(release);
  for (const edit of edits) change(files, edit);
  const tried = async (): Promise<void> => {
    const bundle = await Bundle.open(fromFiles(files), { runtime: native, allowUnsigned: true });
    if (selftest) await bundle.selftest();
  };
  expect(await tried().then(() => undefined, nameOf)).toBe(error);
});

function change(files: Map<string, Uint8Array>, edit: Vector): void {
  const before = files.get(edit.file) ?? new Uint8Array();
  if (edit.delete) {
    files.delete(edit.file);
    return;
  }
  let data = before.slice();
  if ("write" in edit) data = fromBase64(edit.write);
  else if ("copy" in edit) data = (files.get(edit.copy) as Uint8Array).slice();
  else if ("flip" in edit) data[edit.flip] = (data[edit.flip] as number) ^ 1;
  else if ("cut" in edit) data = data.slice(0, edit.cut);
  else {
    const [old, now] = edit.replace;
    const text = Buffer.from(data).toString("utf8");
    expect(text.split(old)).toHaveLength(2);
    data = Uint8Array.from(Buffer.from(text.replace(old, () => now)));
  }
  files.set(edit.file, data);
  if (!edit.relist) return;
  const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
  const manifest = Buffer.from(files.get("manifest.json") as Uint8Array).toString("utf8");
  files.set("manifest.json", Uint8Array.from(Buffer.from(manifest.replace(digest(before), digest(data)))));
}

// ----------------------------------------------------------------------------------------------------- the servers

const bundles = new Map<string, Bundle>();
beforeAll(async () => {
  for (const release of ["masked", "keyed", "coded", "coded-rounds"])
    bundles.set(
      release,
      await Bundle.open(fromFolder(releaseFolder(release)), { runtime: native, allowUnsigned: true }),
    );
});
afterAll(() => bundles.clear());

interface Ended {
  readonly results: readonly Result[];
  readonly error: unknown;
  readonly servers: readonly ReplayServer[];
}

/** Classify images with a client of its own; every share is sent so often at most. */
function run(
  Made: typeof Client | typeof FetchClient,
  release: string,
  answerers: readonly Answerer[],
  images: readonly Uint8Array[],
  options: ClientOptions,
  attempts: number,
  token?: { value: string; header: string },
): Promise<Ended> {
  const bundle = bundles.get(release) as Bundle;
  const { width, height } = bundle.image;
  return withServers(answerers, async (servers) => {
    const listed = servers.map((server) => ({ url: server.endpoint, ...(token ? { token } : {}) }));
    const client = new Made(bundle, listed, { ...options, retries: { attempts } });
    try {
      const results = await client.predictBatch(images.map((data) => ({ data, width, height })));
      return { results, error: null, servers };
    } catch (error) {
      return { results: [], error, servers };
    } finally {
      client.close();
    }
  });
}

function describeEnd({ results, error }: Ended): Vector {
  const [first] = results;
  if (first)
    return {
      probabilities: results.map((result) => [...result.probabilities]),
      labels: results.map((result) => result.label),
      answered: first.answered,
      suspects: first.suspects,
      corrected: first.corrected,
      bytes_up: first.bytesUp,
      bytes_down: first.bytesDown,
      expected_accuracy: first.expectedAccuracy,
    };
  const told: Vector = { error: nameOf(error), ...(error as object) };
  if (error instanceof NotEnoughAnswersError)
    told.causes = Object.fromEntries([...error.causes].map(([server, cause]) => [server, cause.name]));
  delete told.name;
  return told;
}

function blank(release: string): Uint8Array {
  const { height, width, channels } = (bundles.get(release) as Bundle).image;
  return new Uint8Array(height * width * channels).fill(100);
}

/** What a client makes of bytes that server 0 gives: the error that it names, and what it asked. */
async function outcome(
  Made: typeof Client | typeof FetchClient,
  { release, parts }: Vector,
  check: boolean,
): Promise<{ error: string | undefined; asked: string[] }> {
  const given = Buffer.concat(parts.flatMap((part: Vector) => Array(part.times).fill(fromBase64(part.data))));
  const true0 = computing(release, 0);
  const first = release.startsWith("coded") ? "branch-1" : "branch";
  const lying: Answerer = (asked) =>
    isCheck(asked) === check && (!check || modelOf(asked) === first) ? given : true0(asked);
  const options = { timeout: 20_000, ...(release === "keyed" ? { key: new Uint8Array(16) } : {}) };
  const answerers = [lying, computing(release, 1), computing(release, 2)];
  const ended = await run(Made, release, answerers, [blank(release)], options, check ? 1 : 2);
  const asked = (ended.servers[0] as ReplayServer).received.map((each) => `${each.connection} ${each.line}`);
  return { error: ended.error === null ? undefined : describeEnd(ended).causes?.[0], asked };
}

each("answers", async (vector) => {
  const found = await outcome(Client, vector, false);
  expect(found).toEqual({ error: vector.error, asked: vector.asked });
  // Node's `fetch` reads HTTP for us, more leniently; all the rest is the same.
  if (vector.section === "6.4") return;
  expect((await outcome(FetchClient, vector, false)).error).toBe(vector.error);
});

each("checks", async (vector) => {
  for (const Made of [Client, ...(vector.section === "6.4" ? [] : [FetchClient])]) {
    const found = await outcome(Made, vector, true);
    expect(found.error).toBe(vector.error);
    // A share follows a check that was passed, and no other.
    expect(found.asked.some((line) => line.includes(" POST "))).toBe(vector.error === undefined);
  }
});

each("calls", async (vector) => {
  const { release, servers, images, randomness = [], result } = vector;
  for (const Made of [Client, FetchClient]) {
    const bundle = bundles.get(release) as Bundle;
    const { manifest } = bundle;
    const moduli = isCoded(manifest) ? manifest.rounds.map((round) => round.moduli) : [];
    // A later part of the call begins with the first round again.
    const { source, left } = sourceOf(
      randomness.map((_: Packed, i: number) => moduli[i % moduli.length]),
      randomness,
    );
    (bundle.graphs as CodedGraphs).source = source;
    const answerers = servers.map((own: Vector[]): Answerer => {
      const answers = own.map((each) => each.answer);
      return () => {
        expect(answers).not.toHaveLength(0);
        const answer = answers.shift();
        return answer === null ? null : (configs.get(answer) ?? fromBase64(answer));
      };
    });
    const { token, token_header: header = "authorization", key, ...given } = vector.options;
    const options = {
      timeout: (given.timeout ?? 5) * 1000,
      ...(given.min_answers ? { minAnswers: given.min_answers } : {}),
      ...(given.colluding ? { colluding: given.colluding } : {}),
      ...(key ? { key } : {}),
    };
    const count = images.shape[0];
    const all = fromBase64(images.data);
    const each = Array.from({ length: count }, (_, i) => row(all, i, count));
    const ended = await run(Made, release, answerers, each, options, 1, token && { value: token, header });
    const { probabilities, ...rest } = describeEnd(ended);
    const { probabilities: wanted, ...others } = result;
    expect(rest).toEqual(others);
    if (wanted) expectClose(probabilities.flat(), wanted.flat());
    expect(left()).toBe(0);
    ended.servers.forEach((server, i) => {
      const heard = server.received.map((asked) => requestOf(asked, Made === Client));
      expect(heard).toEqual(servers[i].map((own: Vector) => requestOf(own.request, Made === Client)));
    });
  }
});

/** What must be the same of a request: all of it on a socket of our own, less where the platform writes the head. */
function requestOf({ line, headers, body }: Vector, whole: boolean): Vector {
  const own = /^(?:authorization|x-api-key|inference-header-content-length)$/;
  const text = typeof body === "string" ? body : Buffer.from(body ?? []).toString("base64");
  const told = whole
    ? headers
    : headers
        .map(([name, value]: [string, string]) => [name.toLowerCase(), value])
        .filter(([name]: [string]) => own.test(name))
        .sort();
  return { line, headers: told, body: text };
}
