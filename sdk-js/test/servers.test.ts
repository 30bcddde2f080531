/** Real tritonservers, started by tests/js: what the Python SDK got from them, this one gets too. */

import * as ort from "onnxruntime-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Client as FetchClient } from "../src/index.js";
import {
  Bundle,
  Client,
  type ClientOptions,
  fromFolder,
  NotEnoughAnswersError,
  type Result,
  ServerMismatchError,
} from "../src/node.js";
import { bytesOf, folderOf, given, type Packed } from "./vectors.js";

interface Served {
  readonly release: string;
  readonly endpoints: readonly string[];
  readonly key: string | null;
  readonly width: number;
  readonly height: number;
  readonly images: readonly Packed[];
  readonly labels: readonly string[];
  readonly probabilities: readonly number[];
}

const served = JSON.parse(given("PRIVDFS_JS_SERVERS")) as Served[];

for (const own of served)
  for (const [wire, Made] of [
    ["sockets", Client],
    ["fetch", FetchClient],
  ] as const)
    describe(`${own.release} over ${wire}`, () => {
      let bundle: Bundle;
      let client: Client;
      const options: ClientOptions = { timeout: 20_000, ...(own.key ? { key: own.key } : {}) };
      const images = own.images.map((packed) => {
        return { data: bytesOf(packed), height: packed.shape[0] as number, width: packed.shape[1] as number };
      });

      const expectAll = (results: readonly Result[]): void => {
        expect(results.map((result) => result.label)).toEqual(own.labels);
        results.forEach((result, i) => {
          expect(result.probability).toBeCloseTo(own.probabilities[i] as number, 4);
          expect(result.answered).toEqual(own.endpoints.map(() => true));
        });
      };

      beforeAll(async () => {
        bundle = await Bundle.open(fromFolder(folderOf(own.release)), { runtime: ort, allowUnsigned: true });
        client = new Made(bundle, own.endpoints, options);
      });
      afterAll(() => client.close());

      test("every server says that it is well", async () => {
        const found = await client.health();
        expect(found.map((each) => [each.server, each.ok])).toEqual(own.endpoints.map((_, i) => [i, true]));
      });

      test("one image at a time", async () => {
        const results: Result[] = [];
        for (const image of images) results.push(await client.predict(image));
        expectAll(results);
        expect(results[0]?.top(3)[0]).toEqual([results[0]?.label, results[0]?.probability]);
      });

      test("all at once, and as a batch", async () => {
        expectAll(await Promise.all(images.map((image) => client.predict(image))));
        expectAll(await client.predictBatch(images));
      });

      test("servers in the wrong order are told apart before a share is sent", async () => {
        const [first = "", second = "", ...others] = own.endpoints;
        const swapped = new Made(bundle, [second, first, ...others], options);
        const error: unknown = await swapped.predict(images[0] as never).catch((caught: unknown) => caught);
        swapped.close();
        expect(error).toBeInstanceOf(NotEnoughAnswersError);
        const { causes, message } = error as NotEnoughAnswersError;
        expect([causes.get(0), causes.get(1)].map((cause) => cause instanceof ServerMismatchError)).toEqual([
          true,
          true,
        ]);
        expect(message).toContain("no share was sent");
      });
    });
