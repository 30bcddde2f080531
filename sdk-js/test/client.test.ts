/** What a client does when servers fail, hang, lie or are replaced; over sockets of its own and over fetch. */

import * as ort from "onnxruntime-node";
import { beforeAll, describe, expect, test, vi } from "vitest";
import type { CodedGraphs } from "../src/coded.js";
import type { KeySpec, MaskedManifest } from "../src/format.js";
import { Client as FetchClient } from "../src/index.js";
import {
  Bundle,
  Client,
  type ClientOptions,
  ConfigError,
  ContradictingAnswersError,
  DeadlineExceededError,
  fromFolder,
  NotEnoughAnswersError,
  type Pixels,
  Queries,
  QueryBudgetError,
  RandomnessError,
  ServerBusyError,
  ServerMismatchError,
  ServerTimeoutError,
  ServerUnavailableError,
  UserKey,
} from "../src/node.js";
import { type Answerer, framed, type ReplayServer } from "./replay.js";
import { computing, isCheck, modelOf, releaseFolder, tensorAnswer, withServers } from "./small.js";

const bundles: Record<string, Bundle> = {};
beforeAll(async () => {
  for (const release of ["masked", "keyed", "coded", "coded-rounds"])
    bundles[release] = await Bundle.open(fromFolder(releaseFolder(release)), { runtime: ort, allowUnsigned: true });
});

const bundleOf = (release: string): Bundle => bundles[release] as Bundle;

function image(release: string, shade = 100): Pixels {
  const { height, width, channels } = bundleOf(release).image;
  return { data: new Uint8Array(height * width * channels).fill(shade), width, height };
}

const truly = (release: string, count = 3): Answerer[] =>
  Array.from({ length: count }, (_, server) => computing(release, server));

const busy = framed(Buffer.from("{}"), undefined, "503 Service Unavailable");
const posts = (server: ReplayServer | undefined): number =>
  server?.received.filter((asked) => !isCheck(asked)).length ?? 0;
const checks = (server: ReplayServer | undefined): number => server?.received.filter(isCheck).length ?? 0;

async function caught(promise: Promise<unknown>): Promise<Error> {
  return promise.then(
    () => expect.fail("it did not fail"),
    (error: unknown) => error as Error,
  );
}

/** The servers that a share reached, and whether anything of another server came with it. */
function expectOwnShares(servers: readonly ReplayServer[]): void {
  servers.forEach((server, i) => {
    for (const asked of server.received.filter((each) => !isCheck(each))) {
      const json = asked.body.toString("latin1");
      expect(json).toContain(`"shape":[1,${5 + i}]`); // share lengths of the masked release: 5, 6, 7
    }
  });
}

for (const [wire, Made] of [
  ["sockets", Client],
  ["fetch", FetchClient],
] as const)
  describe(wire, () => {
    /** Run a body with a client, and close it. */
    async function withClient<T>(
      release: string,
      servers: readonly (ReplayServer | readonly ReplayServer[])[],
      options: ClientOptions,
      body: (client: Client) => Promise<T>,
    ): Promise<T> {
      const listed = servers.map((own) => {
        return { url: Array.isArray(own) ? own.map((each) => each.endpoint) : (own as ReplayServer).endpoint };
      });
      const client = new Made(bundleOf(release), listed, { timeout: 10_000, ...options });
      try {
        return await body(client);
      } finally {
        client.close();
      }
    }

    test("a connection that stays is checked once", () =>
      withServers(truly("masked"), (servers) =>
        withClient("masked", servers, {}, async (client) => {
          for (let i = 0; i < 3; i++) await client.predict(image("masked", i));
          expect(servers.map(checks)).toEqual([1, 1, 1]);
          expect(servers.map(posts)).toEqual([3, 3, 3]);
          expectOwnShares(servers);
        }),
      ));

    test("a server that was replaced by another is found out before it gets a share", () =>
      withServers(truly("masked"), (servers) =>
        withClient("masked", servers, { minAnswers: 2, retries: { attempts: 2 } }, async (client) => {
          await client.predict(image("masked"));
          const [, second] = servers;
          const before = posts(second);
          (second as ReplayServer).answer = computing("masked", 2);
          (second as ReplayServer).hangUp();
          // A browser's fetch cannot see that; its next request fails, or it is asked again after a while.
          if (wire === "fetch") vi.spyOn(performance, "now").mockImplementation(() => Date.now() - 1_600_000_000_000);
          const result = await client.predict(image("masked"));
          vi.restoreAllMocks();
          expect(result.answered).toEqual([true, false, true]);
          expect(result.bytesUp[1]).toBe(0);
          expect(posts(second)).toBe(before);
        }),
      ));

    test("a share is sent again after an error that passes, and counted", () => {
      let failures = 1;
      const flaky: Answerer = (asked) => (isCheck(asked) || failures-- <= 0 ? computing("masked", 0)(asked) : busy);
      return withServers([flaky, ...truly("masked").slice(1)], (servers) =>
        withClient("masked", servers, {}, async (client) => {
          const result = await client.predict(image("masked"));
          expect(result.bytesUp).toEqual([10, 6, 7]);
          expect(checks(servers[0])).toBe(2);
          expectOwnShares(servers);
        }),
      );
    });

    test("replicas stand in for each other, and for nobody else", () =>
      withServers([() => busy, ...truly("masked")], (all) => {
        const [broken, first, ...others] = all as [ReplayServer, ReplayServer, ...ReplayServer[]];
        return withClient("masked", [[broken, first], ...others], {}, async (client) => {
          const result = await client.predict(image("masked"));
          expect(result.answered).toEqual([true, true, true]);
          expect(posts(broken)).toBe(0);
          expectOwnShares([first, ...others]);
          const health = await client.health();
          expect(health.map((each) => [each.server, each.ok])).toEqual([
            [0, false],
            [0, true],
            [1, true],
            [2, true],
          ]);
        });
      }));

    test("a hedge goes to another replica of the same server", () => {
      const slow: Answerer = (asked) => (isCheck(asked) ? computing("masked", 0)(asked) : "silence");
      return withServers([slow, ...truly("masked")], (all) => {
        const [silent, first, ...others] = all as [ReplayServer, ReplayServer, ...ReplayServer[]];
        const options: ClientOptions = { retries: { attempts: 2, hedgeAfter: 30, hedgeBudget: 1 } };
        return withClient("masked", [[silent, first], ...others], options, async (client) => {
          const result = await client.predict(image("masked"));
          expect(result.answered).toEqual([true, true, true]);
          expect([posts(silent), posts(first)]).toEqual([1, 1]);
          expect(result.bytesUp[0]).toBe(10);
          expectOwnShares([first, ...others]);
        });
      });
    });

    test("a quorum does not wait for who is silent", () => {
      const silent: Answerer = (asked) => (isCheck(asked) ? computing("masked", 1)(asked) : "silence");
      const [first, , third] = truly("masked") as [Answerer, Answerer, Answerer];
      return withServers([first, silent, third], (servers) =>
        withClient("masked", servers, { minAnswers: 2, wait: "quorum", timeout: 60_000 }, async (client) => {
          const result = await client.predict(image("masked"));
          expect(result.answered).toEqual([true, false, true]);
          expect(result.expectedAccuracy).toBe(0.41);
          expect(result.timings.serversMs[1]).toBeNull();
        }),
      );
    });

    test("all are waited for until the deadline, and who was silent is named", () => {
      const silent: Answerer = (asked) => (isCheck(asked) ? computing("masked", 1)(asked) : "silence");
      const [first, , third] = truly("masked") as [Answerer, Answerer, Answerer];
      return withServers([first, silent, third], async (servers) => {
        await withClient("masked", servers, { minAnswers: 2, timeout: 700 }, async (client) => {
          expect((await client.predict(image("masked"))).answered).toEqual([true, false, true]);
        });
        await withClient("masked", servers, { timeout: 500 }, async (client) => {
          const error = (await caught(client.predict(image("masked")))) as NotEnoughAnswersError;
          expect(error).toBeInstanceOf(NotEnoughAnswersError);
          expect(error.causes.get(1)).toBeInstanceOf(ServerTimeoutError);
          expect([error.answered, error.needed]).toEqual([[0, 2], 3]);
        });
      });
    });

    test("no share is sent before enough servers have passed the check", () => {
      const other: Answerer = (asked) => computing("masked", 2)(asked);
      const [first, , third] = truly("masked") as [Answerer, Answerer, Answerer];
      return withServers([first, other, third], (servers) =>
        withClient("masked", servers, {}, async (client) => {
          const error = (await caught(client.predict(image("masked")))) as NotEnoughAnswersError;
          expect(error.message).toContain("2 of 3 servers passed the release check, 3 must, so no share was sent");
          expect(error.causes.get(1)).toBeInstanceOf(ServerMismatchError);
          expect(servers.map(posts)).toEqual([0, 0, 0]);
        }),
      );
    });

    test("servers that are not there are named", () =>
      withServers(truly("masked"), async (servers) => {
        const gone = servers.map((server) => server.endpoint);
        await Promise.all(servers.map((server) => server.stop()));
        const client = new Made(bundleOf("masked"), gone, { timeout: 2000 });
        const error = (await caught(client.predict(image("masked")))) as NotEnoughAnswersError;
        const states = await client.health({ timeout: 1000 });
        client.close();
        expect([...error.causes.values()].every((cause) => cause instanceof ServerUnavailableError)).toBe(true);
        expect(error.message).toContain("cannot be reached");
        expect(states.map((each) => each.ok)).toEqual([false, false, false]);
        await Promise.all(servers.map((server) => server.start()));
      }));

    test("a server that fails five times in a row is left alone for a while", () =>
      withServers([() => busy, ...truly("masked").slice(1)], (servers) =>
        withClient("masked", servers, { minAnswers: 2, retries: { attempts: 1 } }, async (client) => {
          for (let i = 0; i < 8; i++) await client.predict(image("masked"));
          expect(checks(servers[0])).toBe(5);
          (servers[0] as ReplayServer).answer = computing("masked", 0);
          expect((await client.health()).map((each) => each.ok)).toEqual([true, true, true]);
          expect((await client.predict(image("masked"))).answered).toEqual([true, true, true]);
        }),
      ));

    test("an aborted call ends with the reason, and sends nothing more", () => {
      const silent: Answerer = (asked) => (isCheck(asked) ? "silence" : computing("masked", 1)(asked));
      const [first, , third] = truly("masked") as [Answerer, Answerer, Answerer];
      return withServers([first, silent, third], (servers) =>
        withClient("masked", servers, { timeout: 60_000 }, async (client) => {
          const controller = new AbortController();
          const call = client.predict(image("masked"), { signal: controller.signal });
          const health = client.health({ signal: controller.signal });
          setTimeout(() => controller.abort(new Error("enough")), 100);
          expect((await caught(call)).message).toBe("enough");
          expect((await caught(health)).message).toBe("enough");
          expect((await caught(client.predict(image("masked"), { signal: controller.signal }))).message).toBe("enough");
          expect(servers.map(posts)).toEqual([0, 0, 0]);
        }),
      );
    });

    test("a closed client refuses calls, and ends those that run", () => {
      const silent: Answerer = (asked) => (isCheck(asked) ? computing("masked", 1)(asked) : "silence");
      const [first, , third] = truly("masked") as [Answerer, Answerer, Answerer];
      return withServers([first, silent, third], (servers) =>
        withClient("masked", servers, { timeout: 3000, retries: { attempts: 1 } }, async (client) => {
          const call = caught(client.predict(image("masked")));
          setTimeout(() => client.close(), 200);
          expect(await call).toBeInstanceOf(ConfigError); // it is not the servers' fault
          expect(await caught(client.predict(image("masked")))).toBeInstanceOf(ConfigError);
        }),
      );
    });

    test("a token goes with every request, and a function gives it anew", () =>
      withServers(truly("masked"), async (servers) => {
        let turn = 0;
        const token = (): string => `secret-${turn++}`;
        const listed = servers.map((server, i) => ({ url: server.endpoint, ...(i ? {} : { token }) }));
        const client = new Made(bundleOf("masked"), listed);
        await client.predict(image("masked"));
        client.close();
        const sent = servers.map((server) =>
          server.received.map((asked) => asked.headers.find(([name]) => name.toLowerCase() === "authorization")?.[1]),
        );
        expect(sent).toEqual([
          ["Bearer secret-0", "Bearer secret-1"],
          [undefined, undefined],
          [undefined, undefined],
        ]);
      }));

    test("a coded release: a silent server in one round gets its share of the next", () => {
      let muted = true;
      const silent: Answerer = (asked) => {
        const first = !isCheck(asked) && modelOf(asked) === "branch-1";
        if (!first || !muted) return computing("coded-rounds", 1)(asked);
        muted = false;
        return "silence";
      };
      const answerers = truly("coded-rounds", 5);
      answerers[1] = silent;
      return withServers(answerers, (servers) =>
        withClient("coded-rounds", servers, { colluding: 1, timeout: 1500 }, async (client) => {
          const result = await client.predict(image("coded-rounds"));
          expect(result.answered).toEqual([true, false, true, true, true]);
          expect(result.timings.rounds.map((round) => round.serversMs[1] === null)).toEqual([true, false]);
          expect(servers.map(posts)).toEqual([2, 2, 2, 2, 2]);
        }),
      );
    });

    test("a coded release: every call and round has fresh randomness, and shares differ", () =>
      withServers(truly("coded-rounds"), (servers) =>
        withClient("coded-rounds", servers, {}, async (client) => {
          const [one, two] = [await client.encode(image("coded-rounds")), await client.encode(image("coded-rounds"))];
          for (const [server, share] of one.entries()) expect(share).not.toEqual(two[server]);
          const labels = new Set<string>();
          for (let i = 0; i < 3; i++) labels.add((await client.predict(image("coded-rounds"))).label);
          expect(labels.size).toBe(1);
          const bodies = servers.flatMap((server) => server.received.filter((asked) => !isCheck(asked)));
          expect(new Set(bodies.map((asked) => asked.body.toString("latin1"))).size).toBe(18);
        }),
      ));
  });

test("a coded release: when the generator fails nothing is sent", () =>
  withServers(truly("coded"), async (servers) => {
    const client = new Client(
      bundleOf("coded"),
      servers.map((server) => server.endpoint),
    );
    const spy = vi.spyOn(crypto, "getRandomValues").mockImplementation(() => {
      throw new Error("no entropy");
    });
    expect(await caught(client.predict(image("coded")))).toBeInstanceOf(RandomnessError);
    spy.mockRestore();
    client.close();
    expect(servers.map((server) => server.received.length)).toEqual([0, 0, 0]);
  }));

test("a coded release: what was shared is wiped when the call ends, also with an error", () => {
  const lying: Answerer = (asked) =>
    isCheck(asked) ? computing("coded", 0)(asked) : tensorAnswer("branch-1", "residues", [1, 3, 4], new Int8Array(12));
  return withServers([lying, ...truly("coded", 4).slice(1)], async (servers) => {
    const graphs = bundleOf("coded").graphs as CodedGraphs;
    const spy = vi.spyOn(graphs, "encode");
    const client = new Client(
      bundleOf("coded"),
      servers.map((server) => server.endpoint),
      { colluding: 1 },
    );
    expect(await caught(client.predict(image("coded", 77)))).toBeInstanceOf(ContradictingAnswersError);
    client.close();
    const { shares, values } = await (spy.mock.results.map((each) => each.value)[0] as ReturnType<
      typeof graphs.encode
    >);
    spy.mockRestore();
    expect(shares.every((value) => value === 0)).toBe(true);
    expect(values.every((value) => value === 0)).toBe(true);
  });
});

test("queries: repeats are answered without sending, and a budget is kept", () =>
  withServers(truly("keyed"), async (servers) => {
    const queries = new Queries({ budget: 2, spent: {} });
    const endpoints = servers.map((server) => server.endpoint);
    const client = new Client(bundleOf("keyed"), endpoints, { key: "00".repeat(16), queries });
    const first = await client.predict(image("keyed", 1));
    const again = await client.predict(image("keyed", 1));
    expect([first.repeated, again.repeated]).toEqual([false, true]);
    expect([again.label, again.bytesUp]).toEqual([first.label, [0, 0, 0]]);
    const both = await client.predictBatch([image("keyed", 1), image("keyed", 2), image("keyed", 2)]);
    expect(both.map((result) => result.repeated)).toEqual([true, false, true]);
    const error = (await caught(client.predict(image("keyed", 3)))) as QueryBudgetError;
    expect(error).toBeInstanceOf(QueryBudgetError);
    expect([error.spent, error.budget]).toEqual([2, 2]);
    expect(Object.values(queries.spent)).toEqual([2]);
    client.close();
    const failing = new Queries();
    const others = servers.map((_, i) => `http://127.0.0.1:${i + 1}`);
    const broken = new Client(bundleOf("keyed"), others, { key: "00".repeat(16), queries: failing, timeout: 500 });
    await caught(broken.predict(image("keyed", 5)));
    broken.close();
    const { keys } = bundleOf("keyed").manifest as MaskedManifest;
    const partition = (key: string): Promise<number> => new UserKey(key).partition(keys as KeySpec);
    const own = await partition("00".repeat(16));
    let other = "01".repeat(16);
    for (let byte = 2; (await partition(other)) === own; byte++) other = `0${byte}`.repeat(16);
    const under = new Client(bundleOf("keyed"), endpoints, { key: other, queries: failing });
    expect((await caught(under.predict(image("keyed", 5)))).message).toContain("another user's key");
    under.close();
  }));

test("more calls than may run at once take turns, within their time", async () => {
  let release: () => void = () => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const waiting: Answerer = async (asked) => {
    await gate;
    return computing("masked", 0)(asked);
  };
  await withServers([waiting, ...truly("masked").slice(1)], async (servers) => {
    const client = new Client(
      bundleOf("masked"),
      servers.map((server) => server.endpoint),
      { timeout: 30_000 },
    );
    const calls = Array.from({ length: 66 }, () => client.predict(image("masked")));
    const late = caught(client.predict(image("masked"), { timeout: 200 }));
    const controller = new AbortController();
    const aborted = caught(client.predict(image("masked"), { signal: controller.signal }));
    controller.abort(new Error("enough"));
    expect((await aborted).message).toBe("enough");
    expect(await late).toBeInstanceOf(DeadlineExceededError);
    release();
    expect(await Promise.all(calls)).toHaveLength(66);
    client.close();
  });
});

test("time that is over before anything was sent is an error of its own", () =>
  withServers(truly("masked"), async (servers) => {
    const client = new Client(
      bundleOf("masked"),
      servers.map((server) => server.endpoint),
    );
    const error = await caught(client.predict(image("masked"), { timeout: 0.001 }));
    client.close();
    expect(error).toBeInstanceOf(DeadlineExceededError);
    expect(servers.map((server) => server.received.length)).toEqual([0, 0, 0]);
  }));

describe("a release that is rolled out, and queues that are full", () => {
  const full = framed(Buffer.from('{"error":"Exceeds maximum queue size"}'), undefined, "503 Service Unavailable");
  const limited = framed(Buffer.from("{}"), undefined, "429 Too Many Requests");

  test.each([
    ["Triton's words", full],
    ["a proxy's status", limited],
  ])("a full queue is an error at once, and no reason for distrust: %s", (_, answer) => {
    let busyNow = true;
    const queue: Answerer = (asked) => (isCheck(asked) || !busyNow ? computing("masked", 0)(asked) : answer);
    return withServers([queue, ...truly("masked").slice(1)], async (servers) => {
      for (const Made of [Client, FetchClient]) {
        busyNow = true;
        const client = new Made(
          bundleOf("masked"),
          servers.map((server) => server.endpoint),
        );
        const before = [checks(servers[0]), posts(servers[0])];
        const error = (await caught(client.predict(image("masked")))) as NotEnoughAnswersError;
        expect(error.causes.get(0)).toBeInstanceOf(ServerBusyError);
        busyNow = false;
        expect((await client.predict(image("masked"))).answered).toEqual([true, true, true]);
        client.close();
        expect([checks(servers[0]), posts(servers[0])].map((count, i) => count - (before[i] as number))).toEqual([
          1, 2,
        ]);
      }
    });
  });

  test("replicas of the next release do not use up attempts, and are named when the old ones end", () =>
    withServers([computing("masked", 1), computing("masked", 1), computing("masked", 2), ...truly("masked")], (all) => {
      const [other, another, third, first, ...others] = all as [
        ReplayServer,
        ReplayServer,
        ReplayServer,
        ...ReplayServer[],
      ];
      const urls = [other, another, third, first as ReplayServer].map((server) => server.endpoint);
      const listed = [{ url: urls }, ...others.map((server) => server.endpoint)];
      const client = new Client(bundleOf("masked"), listed, { timeout: 5000 });
      return (async (): Promise<void> => {
        expect((await client.predict(image("masked"))).answered).toEqual([true, true, true]);
        await (first as ReplayServer).stop();
        const error = (await caught(client.predict(image("masked")))) as NotEnoughAnswersError;
        expect(error.causes.get(0)).toBeInstanceOf(ServerMismatchError);
        client.close();
        await (first as ReplayServer).start();
      })();
    }));

  test("a share that was sent counts as an attempt, also where the model is gone meanwhile", () => {
    const unloaded: Answerer = (asked) =>
      isCheck(asked) ? computing("masked", 0)(asked) : framed(new Uint8Array(), 0, "404 Not Found");
    const [, ...others] = truly("masked") as [Answerer, ...Answerer[]];
    return withServers([unloaded, unloaded, unloaded, ...others], (all) => {
      const replicas = all.slice(0, 3);
      const listed = [{ url: replicas.map((server) => server.endpoint) }, ...all.slice(3).map((each) => each.endpoint)];
      const client = new Client(bundleOf("masked"), listed, { timeout: 5000, retries: { attempts: 2 } });
      return (async (): Promise<void> => {
        const error = (await caught(client.predict(image("masked")))) as NotEnoughAnswersError;
        expect(error.causes.get(0)).toBeInstanceOf(ServerMismatchError);
        expect(replicas.reduce((sum, server) => sum + posts(server), 0)).toBe(2);
        client.close();
      })();
    });
  });
});
