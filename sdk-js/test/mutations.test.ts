/** Bundles and answers that were changed in any place: a typed error, or what is right; never anything else. */

import { readdirSync, readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { Failure, ServerChannel } from "../src/channel.js";
import * as coded from "../src/coded-format.js";
import { checkServers, noTls } from "../src/config.js";
import { isCoded, type Manifest } from "../src/format.js";
import { AnswerReader } from "../src/http1.js";
import { readManifest } from "../src/manifest.js";
import * as masked from "../src/masked-format.js";
import { Bundle, BundleError, type BundleOptions, fromFiles, ServerError } from "../src/node.js";
import type { Link } from "../src/routing.js";
import { type Response, Trouble } from "../src/wire.js";
import { framed } from "./replay.js";
import { load, releaseFolder, tensorAnswer } from "./small.js";

/** PRIVDFS_THOROUGH=1 looks at every byte, and at more answers. */
const THOROUGH = process.env.PRIVDFS_THOROUGH === "1";
const STRIDE = THOROUGH ? 1 : 11;
const ANSWERS = THOROUGH ? 200_000 : 10_000;

const RELEASES = ["masked", "keyed", "coded", "coded-rounds"];

function filesOf(release: string): Map<string, Uint8Array> {
  const folder = releaseFolder(release);
  return new Map(readdirSync(folder).map((name) => [name, Uint8Array.from(readFileSync(`${folder}/${name}`))]));
}

/** Numbers that look random, the same in every run. */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe.each(RELEASES)("the bundle %s", (release) => {
  const [signed] = load("signatures").filter((vector) => vector.error === undefined);
  const trust = signed.trusted.map((key: string) => Uint8Array.from(Buffer.from(key, "hex")));
  // No byte of a changed bundle may reach the runtime.
  const runtime = {
    Tensor: ort.Tensor,
    InferenceSession: { create: () => expect.fail("the runtime saw a changed bundle") },
  };

  test("every changed byte of a signed bundle is found before the runtime sees it", async () => {
    const options = { runtime, trust } as unknown as BundleOptions;
    const opened = await Bundle.open(fromFiles(filesOf(release)), { runtime: ort, trust });
    expect(opened.release).toContain("vectors-");
    for (const [name, data] of filesOf(release))
      for (let at = data.length % STRIDE; at < data.length; at += STRIDE) {
        const files = filesOf(release);
        const changed = data.slice();
        changed[at] = (changed[at] as number) ^ (1 << (at % 8));
        files.set(name, changed);
        const error: unknown = await Bundle.open(fromFiles(files), options).catch((caught: unknown) => caught);
        expect(error, `${name}, byte ${at}`).toBeInstanceOf(BundleError);
      }
  });

  test("every changed byte of a manifest gives a manifest or a typed error", async () => {
    const data = filesOf(release).get("manifest.json") as Uint8Array;
    let read = 0;
    for (let at = 0; at < data.length; at++)
      for (const value of [(data[at] as number) ^ 1, 0x22, 0x7b, 0xff]) {
        const changed = data.slice();
        changed[at] = value;
        try {
          await readManifest(changed);
          read++;
        } catch (error) {
          if (!(error instanceof BundleError)) throw error;
        }
      }
    expect(read).toBeGreaterThan(0); // free texts may change
  });
});

describe.each(RELEASES)("answers of %s", async (release) => {
  const manifest = await readManifest(filesOf(release).get("manifest.json") as Uint8Array);
  const [server] = checkServers(["http://127.0.0.1:1"], null, { allowSharedHosts: false, checkTls: noTls });
  const models = isCoded(manifest) ? coded.modelsOf(manifest) : masked.modelsOf(manifest, 0);
  const channel = new ServerChannel(0, manifest, models, server as never, () => expect.fail("nothing is to be sent"));
  const random = generator(release.length);

  test(`${ANSWERS} of them, changed at random, are taken or refused with a typed error`, () => {
    const right = rightAnswer(manifest);
    const counts = { taken: 0, refused: 0, unfinished: 0, unreadable: 0 };
    for (let i = 0; i < ANSWERS; i++) {
      const response = read(changed(right, random), random);
      if (response === null) counts.unfinished++;
      else if (response instanceof Trouble) counts.unreadable++;
      else {
        const link = { distrust: () => {}, endpoint: "http://127.0.0.1:1" } as unknown as Link;
        const share = { server: 0, values: new Int8Array(), batch: 1, partition: null, round: 0 };
        const found = channel.readAnswer(link, share, response);
        if (found instanceof Failure) {
          expect(found.error).toBeInstanceOf(ServerError);
          counts.refused++;
        } else {
          expect(found).toHaveLength(sizeOf(manifest));
          expect(found.every((value) => Math.abs(value) <= 1e6)).toBe(true);
          counts.taken++;
        }
      }
    }
    for (const [how, count] of Object.entries(counts)) expect(count, how).toBeGreaterThan(ANSWERS / 100);
  });
});

const sizeOf = (manifest: Manifest): number => {
  if (!isCoded(manifest)) return manifest.classes.length;
  const [round] = manifest.rounds;
  return round ? round.moduli.length * round.outputs : 0;
};

function rightAnswer(manifest: Manifest): Buffer {
  const [round] = isCoded(manifest) ? manifest.rounds : [];
  return round
    ? tensorAnswer("branch-1", "residues", [1, round.moduli.length, round.outputs], new Int8Array(sizeOf(manifest)))
    : tensorAnswer("branch", "logits", [1, sizeOf(manifest)], new Float32Array(sizeOf(manifest)).fill(0.5));
}

/** The answer with a byte flipped, cut out, doubled or put in, in one to three places; or the tensors alone changed. */
function changed(right: Buffer, random: (below: number) => number): Buffer {
  let bytes = Buffer.from(right);
  for (let times = random(3); times >= 0; times--) {
    const at = random(bytes.length);
    const count = 1 + random(9);
    const [before, after] = [bytes.subarray(0, at), bytes.subarray(at)];
    switch (random(5)) {
      case 0:
        bytes[at] = (bytes[at] as number) ^ (1 << random(8));
        break;
      case 1:
        bytes = Buffer.concat([before, after.subarray(count)]);
        break;
      case 2:
        bytes = Buffer.concat([before, after.subarray(0, count), after]);
        break;
      case 3:
        bytes = Buffer.concat([before, Buffer.from([random(256)]), after]);
        break;
      default:
        bytes[bytes.length - 1 - random(4)] = random(256);
    }
  }
  return bytes;
}

/** What reading makes of bytes that come in portions. */
function read(bytes: Buffer, random: (below: number) => number): Response | Trouble | null {
  const reader = new AnswerReader();
  try {
    for (let at = 0; at < bytes.length; ) {
      const end = Math.min(bytes.length, at + 1 + random(400));
      const found = reader.take(bytes.subarray(at, end));
      if (found) return found.response;
      at = end;
    }
    return null;
  } catch (error) {
    if (error instanceof Trouble) return error;
    throw error;
  }
}

test("an error that is framed rightly is no answer", () => {
  const reader = new AnswerReader();
  expect(reader.take(framed(Buffer.from("{}"), undefined, "500 No"))?.response.code).toBe(500);
});
