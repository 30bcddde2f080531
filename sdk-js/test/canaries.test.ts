/** Canaries: what lies about them, what servers see of them, and when they go. Over sockets of its own and over fetch. */

import * as ort from "onnxruntime-node";
import { afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { Canaries, checkCanary, happens } from "../src/canaries.js";
import type { CodedGraphs } from "../src/coded.js";
import { Client as FetchClient } from "../src/index.js";
import type { Ran } from "../src/kinds.js";
import {
  Bundle,
  CanaryError,
  Client,
  type ClientOptions,
  ConfigError,
  fromFolder,
  type Pixels,
  Queries,
  RandomnessError,
} from "../src/node.js";
import { type Answerer, type Asked, framed, type ReplayServer } from "./replay.js";
import { computing, isCheck, modelOf, releaseFolder, withServers } from "./small.js";

const ROUNDS = 2;
let bundle: Bundle;

const opened = (release: string): Promise<Bundle> =>
  Bundle.open(fromFolder(releaseFolder(release)), { runtime: ort, allowUnsigned: true });

beforeAll(async () => {
  bundle = await opened("coded-rounds");
});
afterEach(() => {
  vi.restoreAllMocks();
});

function image(shade: number): Pixels {
  const { height, width, channels } = bundle.image;
  return { data: new Uint8Array(height * width * channels).fill(shade), width, height };
}

/** Let every canary go before its part, or every one after it. */
function ordered(first: boolean): void {
  const draw = Canaries.prototype.draw;
  vi.spyOn(Canaries.prototype, "draw").mockImplementation(function (this: Canaries, count) {
    return { ...draw.call(this, count), first };
  });
}

const truly = (count = 3): Answerer[] => Array.from({ length: count }, (_, i) => computing("coded-rounds", i));

/** A server that turns round what it found, where `lies` says so. */
function lying(server: number, lies: (asked: Asked) => boolean): Answerer {
  const honest = computing("coded-rounds", server);
  return async (asked) => {
    const answer = Buffer.from((await honest(asked)) as Uint8Array);
    if (isCheck(asked) || !lies(asked)) return answer;
    const body = answer.subarray(answer.indexOf("\r\n\r\n") + 4);
    const length = Number(/Inference-Header-Content-Length: (\d+)/.exec(answer.toString("latin1"))?.[1]);
    const outputs = JSON.parse(body.toString("utf8", 0, length)).outputs[0].shape[2] as number;
    const residues = body.subarray(length);
    for (let at = 0; at < residues.length; at += outputs) residues.subarray(at, at + outputs).reverse();
    return framed(body, length);
  };
}

const shares = (server: ReplayServer | undefined): Asked[] => server?.received.filter((asked) => !isCheck(asked)) ?? [];

for (const [wire, Made] of [
  ["sockets", Client],
  ["fetch", FetchClient],
] as const)
  describe(wire, () => {
    async function withClient(
      servers: readonly ReplayServer[],
      options: ClientOptions,
      body: (client: Client) => Promise<void>,
    ): Promise<void> {
      const endpoints = servers.map((server) => server.endpoint);
      const client = new Made(bundle, endpoints, { timeout: 10_000, ...options });
      try {
        await body(client);
      } finally {
        client.close();
      }
    }

    for (const first of [true, false])
      for (const count of [1, 3])
        test(`honest servers see two exchanges of one form (${count}, ${first ? "before" : "after"})`, () =>
          withServers(truly(), async (servers) => {
            ordered(first);
            const images = [1, 2, 3].slice(0, count).map((shade) => image(80 * shade));
            const labels: string[] = [];
            await withClient(servers, {}, async (client) => {
              for (const result of await client.predictBatch(images)) labels.push(result.label);
            });
            const before = servers.map((server) => shares(server).length);
            const queries = new Queries({ budget: count, canaryRate: 1 });
            await withClient(servers, { queries }, async (client) => {
              const results = await client.predictBatch(images);
              expect(results.map((result) => result.label)).toEqual(labels);
              expect(results.every((result) => result.suspects.length === 0)).toBe(true);
            });
            expect(queries.spent).toEqual({ null: count });
            servers.forEach((server, i) => {
              const asked = shares(server).slice(before[i]);
              expect(asked.map(modelOf)).toEqual(["branch-1", "branch-2", "branch-1", "branch-2"]);
              const forms = asked.map(({ body, headers }) => [body.length, headers]);
              expect(forms.slice(0, ROUNDS)).toEqual(forms.slice(ROUNDS));
            });
          }));

    // In the second round of this release one answer is to spare, and a lie is seen without canaries.
    for (const first of [true, false])
      test(`a liar is caught where no answer is to spare (${first ? "before" : "after"})`, () =>
        withServers(
          [...truly(1), lying(1, (asked) => modelOf(asked) === "branch-1"), computing("coded-rounds", 2)],
          async (servers) => {
            ordered(first);
            await withClient(servers, {}, async (client) => {
              expect((await client.predict(image(7))).corrected).toEqual([]); // it passes unseen
            });
            const queries = new Queries({ canaryRate: 1 });
            await withClient(servers, { queries }, async (client) => {
              const caught = await client.predict(image(7)).catch((error: unknown) => error);
              expect(caught).toBeInstanceOf(CanaryError);
              expect((caught as CanaryError).name).toBe("CanaryError");
              expect((caught as CanaryError).answered).toEqual([0, 1, 2]);
              // What came with the alarm is not to be trusted, so it is not in the record.
              const sent = shares(servers[0]).length;
              await client.predict(image(7)).catch(() => {});
              expect(shares(servers[0]).length).toBeGreaterThan(sent);
            });
          },
        ));

    for (const first of [true, false])
      test(`who lies to a canary alone is named where the lie is corrected (${first ? "before" : "after"})`, () => {
        let answers = 0;
        const toCanaries = lying(1, () => answers++ < ROUNDS === first);
        return withServers([...truly(1), toCanaries, ...truly(5).slice(2)], async (servers) => {
          ordered(first);
          const queries = new Queries({ canaryRate: 1 });
          await withClient(servers, { colluding: 1, queries }, async (client) => {
            const result = await client.predict(image(9));
            expect([result.suspects, result.corrected]).toEqual([[1], []]);
            expect(answers).toBe(2 * ROUNDS);
          });
        });
      });

    test("repeats send no canary", () =>
      withServers(truly(), (servers) =>
        withClient(servers, { queries: new Queries({ canaryRate: 1 }) }, async (client) => {
          await client.predict(image(3));
          expect((await client.predict(image(3))).repeated).toBe(true);
          expect(servers.map((server) => shares(server).length)).toEqual([4, 4, 4]);
        }),
      ));

    test("when the generator fails nothing is sent", () =>
      withServers(truly(), (servers) =>
        withClient(servers, { queries: new Queries({ canaryRate: 0.5 }) }, async (client) => {
          await client.warmup();
          const system = crypto.getRandomValues.bind(crypto);
          let calls = 0;
          vi.spyOn(crypto, "getRandomValues").mockImplementation((array) => {
            // The sharing of the image still works; the coin of the canary does not.
            if ((array as Uint8Array).byteLength === 16 && ++calls) throw new Error("no entropy");
            return system(array);
          });
          await expect(client.predict(image(3))).rejects.toBeInstanceOf(RandomnessError);
          expect(calls).toBe(1);
          expect(servers.map((server) => shares(server).length)).toEqual([0, 0, 0]);
        }),
      ));
  });

test("the golden examples are the canaries, drawn at random, before or after", async () => {
  const known = await Canaries.of(bundle);
  expect(known.count).toBe((await bundle.selftest()).images);
  const drawn = Array.from({ length: 60 }, () => known.draw(1));
  expect(new Set(drawn.map(({ first }) => first)).size).toBe(2);
  expect(new Set(drawn.map(({ pixels }) => pixels.join())).size).toBe(known.count);
  const three = known.draw(3);
  expect([three.pixels.length, three.expected.length]).toEqual([3 * image(0).data.length, 3 * bundle.classes.length]);
});

test("one probability of one image is enough, and NaN is no answer", async () => {
  const canary = (await Canaries.of(bundle)).draw(2);
  const ran = (change: number): Ran => {
    const probabilities = canary.expected.slice();
    probabilities[probabilities.length - 1] = (probabilities.at(-1) as number) + change;
    return { found: { probabilities }, rounds: [] } as unknown as Ran;
  };
  checkCanary(canary, ran(0));
  for (const change of [1e-4, -1e-4, Number.NaN])
    expect(() => checkCanary(canary, ran(change))).toThrow("Trust no answer of these servers");
});

test("images that round otherwise here are no canaries", async () => {
  const own = await opened("coded-rounds");
  const graphs = own.graphs as CodedGraphs;
  const all = (await Canaries.of(own)).count;
  const encode = graphs.encode.bind(graphs);
  let moved = 1;
  vi.spyOn(graphs, "encode").mockImplementation(async (...given) => {
    const { shares, values } = await encode(...given);
    const changed = values.slice();
    for (let i = 0; i < moved; i++) (changed[(i * changed.length) / all] as number) ^= 1;
    return { shares, values: changed };
  });
  expect((await Canaries.of(own)).count).toBe(all - 1);
  moved = all;
  const client = new Client(own, ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"], {
    queries: new Queries({ canaryRate: 0.01 }),
  });
  await expect(client.predict(image(1))).rejects.toThrow("none can be a canary");
  client.close();
});

test("canaries go at the rate that was set", () => {
  expect(happens(0)).toBe(false);
  for (const rate of [1, 0.25, 0.05]) {
    const count = Array.from({ length: 4000 }, () => happens(rate)).filter(Boolean).length;
    // Six standard deviations: once in 500 million runs.
    expect(Math.abs(count - 4000 * rate)).toBeLessThanOrEqual(6 * Math.sqrt(4000 * rate * (1 - rate)));
  }
});

test("rates that are none, and releases that have no canaries", async () => {
  for (const canaryRate of [-0.1, 1.1, Number.NaN, "0.1", null, true])
    expect(() => new Queries({ canaryRate: canaryRate as number })).toThrow(ConfigError);
  expect(new Queries().canaryRate).toBe(0);
  const masked = await opened("masked");
  const three = ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"];
  expect(() => new Client(masked, three, { queries: new Queries({ canaryRate: 0.1 }) })).toThrow("masked shares");
  new Client(masked, three, { queries: new Queries() }).close();
});
