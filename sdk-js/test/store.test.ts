/** Bundles on the device: what is in use changes in one step, or not at all. */

import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { beforeEach, expect, test } from "vitest";
import {
  BundleError,
  BundleSignatureError,
  BundleStore,
  BundleStoreError,
  fromFiles,
  fromFolder,
  type Source,
  shelfIn,
} from "../src/node.js";
import { load, releaseFolder } from "./small.js";

const [signed] = load("signatures").filter((vector) => vector.error === undefined);
const trust = signed.trusted.map((key: string) => Uint8Array.from(Buffer.from(key, "hex")));
const source = (release: string): Source => fromFolder(releaseFolder(release));

let folder: string;
let store: BundleStore;
beforeEach(() => {
  folder = join(mkdtempSync(join(tmpdir(), "privdfs-")), "store");
  store = new BundleStore(shelfIn(folder), { runtime: ort, trust });
});

const bundles = (): string[] => readdirSync(folder).filter((name) => name.startsWith("bundle-"));

test("install, open, install another, roll back", async () => {
  await expect(store.open()).rejects.toThrow("holds no bundle yet");
  expect((await store.install(source("masked"))).release).toBe("vectors-masked-1");
  await expect(store.rollback()).rejects.toThrow("no earlier bundle");
  await store.install(source("coded"));
  expect((await store.open()).release).toContain("coded");
  expect(bundles()).toHaveLength(2);
  await store.install(source("coded")); // it is in use already
  expect(bundles()).toHaveLength(2);
  await store.install(source("keyed"));
  expect(bundles()).toHaveLength(2);
  expect((await store.rollback()).release).toContain("coded");
  expect((await store.open()).release).toContain("coded");
  expect(bundles()).toHaveLength(1);
});

test("what fails leaves the bundle in use as it was, and nothing behind", async () => {
  await store.install(source("masked"));
  const files = new Map(
    readdirSync(releaseFolder("coded")).map((name) => [
      name,
      Uint8Array.from(readFileSync(`${releaseFolder("coded")}/${name}`)),
    ]),
  );
  const changed = (name: string, data: Uint8Array<ArrayBuffer> | null): Source => {
    const all = new Map(files);
    if (data) all.set(name, data);
    else all.delete(name);
    return fromFiles(all);
  };
  const cases: [Source, new (...given: never[]) => Error][] = [
    [fromFiles({}), BundleError],
    [changed("manifest.sig", null), BundleSignatureError],
    [changed("encoder.onnx", new Uint8Array(9)), BundleError],
    [changed("fusion.onnx", null), BundleError],
    [async () => Promise.reject(new BundleStoreError("the network")), BundleStoreError],
  ];
  for (const [from, kind] of cases) await expect(store.install(from)).rejects.toBeInstanceOf(kind);
  expect((await store.open()).release).toBe("vectors-masked-1");
  expect(bundles()).toHaveLength(1);
});

test("a damaged bundle or state is found, and installing repairs it", async () => {
  await store.install(source("masked"));
  const [inUse = ""] = bundles();
  writeFileSync(join(folder, inUse, "encoder.onnx"), "damage");
  await expect(store.open()).rejects.toThrow("is not the file");
  await store.install(source("masked"));
  expect((await store.open()).release).toBe("vectors-masked-1");
  await expect(store.rollback()).rejects.toThrow("no earlier bundle"); // a damaged one is nothing to roll back to
  for (const damage of ["{", '{"current":"../elsewhere"}', "[]"]) {
    writeFileSync(join(folder, "state.json"), damage);
    await expect(store.open()).rejects.toThrow("state.json of the store is damaged");
    await store.install(source("masked"));
    expect((await store.open()).release).toBe("vectors-masked-1");
  }
});

test("a place that cannot be written", async () => {
  writeFileSync(join(folder, "..", "file"), "");
  const nowhere = new BundleStore(shelfIn(join(folder, "..", "file", "store")), { runtime: ort, trust });
  await expect(nowhere.install(source("masked"))).rejects.toBeInstanceOf(BundleStoreError);
});
