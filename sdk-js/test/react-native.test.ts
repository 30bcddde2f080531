/** The core and the example app's `classify.ts` over the real JavaScript half of onnxruntime-react-native. */

import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as native from "onnxruntime-node";
import { expect, test, vi } from "vitest";
import { Bundle, type Source } from "../src/index.js";
import { fromFolder } from "../src/node.js";
import { bytesOf, given, type Packed } from "./vectors.js";

const RELEASE = "fashion-resnet20";

/** As tests/js says it. */
interface Served {
  readonly release: string;
  readonly endpoints: readonly string[];
  readonly images: readonly Packed[];
  readonly labels: readonly string[];
}

/** Types as ONNX numbers them, which the native half gives. */
const TYPES: Record<string, number> = { float32: 1, uint8: 2, int8: 3, int32: 6, bool: 9 };

/** Native code of a phone, played by ONNX Runtime for Node. */
function nativeHalf(): object {
  // biome-ignore lint/suspicious/noExplicitAny: the other version of the same class
  let Tensor: new (...given: any[]) => unknown;
  return {
    version: "1.24.3",
    listSupportedBackends: () => [{ name: "cpu" }],
    initOrtOnce: (_level: number, given: typeof Tensor) => {
      Tensor = given;
    },
    createInferenceSession() {
      let session: native.InferenceSession;
      const described = (all: readonly native.InferenceSession.ValueMetadata[]) =>
        all.map((each) => {
          const shape = each.isTensor ? each.shape : [];
          return {
            name: each.name,
            isTensor: each.isTensor,
            type: each.isTensor ? TYPES[each.type] : 0,
            shape: shape.map((axis) => (typeof axis === "number" ? axis : -1)),
            symbolicDimensions: shape.map((axis) => (typeof axis === "number" ? "" : axis)),
          };
        });
      return {
        async loadModel(buffer: ArrayBuffer, offset: number, length: number) {
          session = await native.InferenceSession.create(new Uint8Array(buffer, offset, length));
        },
        get inputMetadata() {
          return described(session.inputMetadata);
        },
        get outputMetadata() {
          return described(session.outputMetadata);
        },
        async run(feeds: Record<string, native.Tensor>, fetches: object) {
          const own = Object.entries(feeds).map(([name, { type, data, dims }]) => [
            name,
            new native.Tensor(type, data as never, dims),
          ]);
          const found = await session.run(Object.fromEntries(own), Object.keys(fetches));
          return Object.fromEntries(
            Object.entries(found).map(([name, { type, data, dims }]) => [name, new Tensor(type, data, dims)]),
          );
        },
        dispose() {},
      };
    },
  };
}

vi.mock("react-native", () => ({
  NativeModules: {
    Onnxruntime: {
      install() {
        Object.assign(globalThis, { OrtApi: nativeHalf() });
      },
    },
  },
}));

const RELEASES = fileURLToPath(new URL("../../model_repository", import.meta.url));

test("the golden examples of every release are exact", async () => {
  const ort = await import("onnxruntime-react-native");
  for (const name of readdirSync(RELEASES)) {
    const bundle = await Bundle.open(fromFolder(`${RELEASES}/${name}/client`), { runtime: ort, allowUnsigned: true });
    await bundle.selftest();
  }
});

test("the example app refuses a bundle that is not signed, and gets Python's labels with one that is", async () => {
  const { classify, openClient } = await import("../examples/react-native/classify.js");
  const served = JSON.parse(given("PRIVDFS_JS_SERVERS")) as Served[];
  const { endpoints, images, labels } = served.find(({ release }) => release === RELEASE) as Served;
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const trust = publicKey.export({ type: "spki", format: "pem" }).toString();
  const id = createHash("sha256")
    .update(publicKey.export({ type: "spki", format: "der" }).subarray(-32))
    .digest("hex");
  const unsigned = fromFolder(`${RELEASES}/${RELEASE}/client`);
  await expect(openClient({ source: unsigned, trust, servers: endpoints })).rejects.toThrow("not signed");

  const signed: Source = async (name, limit) => {
    if (name !== "manifest.sig") return unsigned(name, limit);
    const manifest = (await unsigned("manifest.json", 1 << 24)) as Uint8Array;
    const signature = sign(null, Buffer.concat([Buffer.from("privdfs manifest, signature 1\n"), manifest]), privateKey);
    return new TextEncoder().encode(`ed25519 ${id.slice(0, 16)} ${signature.toString("hex")}\n`);
  };
  const client = await openClient({ source: signed, trust, servers: endpoints });
  for (const [i, image] of images.entries()) {
    const [height = 0, width = 0] = image.shape;
    expect((await classify(client, { data: bytesOf(image), width, height })).label).toBe(labels[i]);
  }
  client.close();
});
