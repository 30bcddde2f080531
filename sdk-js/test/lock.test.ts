/** Processes that install into one folder: one at a time, and a lock whose holder has died is taken over. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { build } from "vite";
import { afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { hold } from "../src/lock.js";
import { type Bundle, BundleStore, BundleStoreError, fromFolder, type Source, shelfIn } from "../src/node.js";
import { releaseFolder } from "./small.js";

const SDK = new URL("..", import.meta.url).pathname;
const RELEASES = ["masked", "coded", "keyed"];
const OPTIONS = { runtime: ort, allowUnsigned: true };

let built: string;
let folder: string;
const children: ChildProcess[] = [];

beforeAll(async () => {
  built = mkdtempSync(join(tmpdir(), "privdfs-built-"));
  await build({
    root: SDK,
    configFile: false,
    logLevel: "error",
    ssr: { noExternal: true },
    build: { ssr: join(SDK, "src/node.ts"), outDir: built, emptyOutDir: true, minify: false },
  });
});
beforeEach(() => {
  folder = join(mkdtempSync(join(tmpdir(), "privdfs-")), "store");
});
afterEach(() => {
  vi.restoreAllMocks();
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

/** A process that runs some lines with `store` and `sourceOf`; its last line of output. */
function run(lines: string): { child: ChildProcess; said: Promise<string> } {
  const program = join(built, `${children.length}.mjs`);
  writeFileSync(
    program,
    `import { createRequire } from "node:module";
     import { BundleStore, fromFolder, shelfIn } from ${JSON.stringify(join(built, "node.js"))};
     const runtime = createRequire(${JSON.stringify(join(SDK, "package.json"))})("onnxruntime-node");
     const store = new BundleStore(shelfIn(${JSON.stringify(folder)}), { runtime, allowUnsigned: true });
     const sourceOf = (name) => fromFolder(${JSON.stringify(releaseFolder("X"))}.replace("X", name));
     ${lines}`,
  );
  const child = spawn(process.execPath, [program], { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  let text = "";
  child.stdout?.on("data", (data: Buffer) => {
    text += data;
  });
  return { child, said: once(child, "close").then(() => text.trim().split("\n").at(-1) as string) };
}

const source = (release: string): Source => fromFolder(releaseFolder(release));
const names = (): string[] => readdirSync(folder).sort();
const intact = async (): Promise<Bundle> => {
  const bundle = await new BundleStore(shelfIn(folder), OPTIONS).open();
  await bundle.selftest();
  return bundle;
};

test("processes that install at once leave whole bundles, and none disturbs another", async () => {
  const installing = RELEASES.map((release) =>
    run(`for (let i = 0; i < 2; i++) {
           const { release } = await store.install(sourceOf("${release}"));
           if (!(await store.open()).release) process.exit(1);
           console.log(release);
         }`),
  );
  const said = await Promise.all(installing.map((each) => each.said));
  expect(said).toEqual(await Promise.all(RELEASES.map(async (name) => (await opened(name)).release)));
  expect(said).toContain((await intact()).release);
  const state = JSON.parse(readFileSync(join(folder, "state.json"), "utf8"));
  expect(names()).toEqual([state.current, state.previous, "state.json"].sort());
});

const opened = async (release: string): Promise<Bundle> => {
  const { Bundle } = await import("../src/node.js");
  return Bundle.open(source(release), OPTIONS);
};

test("calls of one process take turns too, of the same bundle or others", async () => {
  const stores = [1, 2].map(() => new BundleStore(shelfIn(folder), OPTIONS));
  const both = stores.flatMap((store) => [store.install(source("masked")), store.install(source("coded"))]);
  for (const bundle of await Promise.all(both)) expect(bundle.release).toMatch(/^vectors-/);
  await intact();
  expect(names()).toHaveLength(3);
  await Promise.all([stores[0]?.rollback(), stores[1]?.install(source("keyed"))]);
  await intact();
});

test("a reader whose bundle is removed under it opens the one that is in use now", async () => {
  const store = new BundleStore(shelfIn(folder), OPTIONS);
  await store.install(source("masked"));
  const shelf = shelfIn(folder);
  const slow = new BundleStore(
    {
      ...shelf,
      async read(name, limit) {
        if (name.endsWith("fusion.onnx") && !moved) {
          moved = true;
          for (const release of ["coded", "keyed"]) await store.install(source(release));
        }
        return shelf.read(name, limit);
      },
    },
    OPTIONS,
  );
  let moved = false;
  expect((await slow.open()).release).toBe((await opened("keyed")).release);
  expect(moved).toBe(true);
});

test("a lock whose holder was killed is taken over, what it left is removed", async () => {
  const { child } = run(`
    const source = sourceOf("masked");
    await store.install(async (name, limit) => (name === "fusion.onnx" ? new Promise(() => setInterval(() => {}, 1000)) : source(name, limit)));
  `);
  // Not just two names: for a moment the lock has a second one.
  await vi.waitFor(() => expect(names()).toContainEqual(expect.stringMatching(/^bundle-/)), {
    timeout: 20_000,
    interval: 20,
  });
  child.kill("SIGKILL");
  await once(child, "close");
  expect(names()).toContain("installing");
  const stores = [1, 2, 3].map(() => new BundleStore(shelfIn(folder), OPTIONS));
  await Promise.all(stores.map((store) => store.install(source("coded"))));
  await intact();
  expect(names()).toHaveLength(2);
});

test("whose lock it is: another machine's, a process of another time, nobody's", async () => {
  mkdirSync(folder);
  const file = join(folder, "installing");
  const start = readFileSync("/proc/self/stat", "utf8").split(") ")[1]?.split(" ")[19];
  const { pid } = process;
  const host = hostname();
  const now = vi.spyOn(performance, "now");
  const taken = async (content: string): Promise<boolean> => {
    writeFileSync(file, content);
    let calls = 0;
    now.mockImplementation(() => 100_000 * calls++); // the third look comes too late
    try {
      await (await hold(folder))();
      return true;
    } catch (error) {
      expect(error).toBeInstanceOf(BundleStoreError);
      expect(String(error)).toContain("remove the files installing*");
      return false;
    }
  };
  expect(await taken(JSON.stringify({ host, pid, start }))).toBe(false); // ours, of another thread perhaps
  expect(await taken(JSON.stringify({ host, pid, start: "1" }))).toBe(true); // of a process before a restart
  expect(await taken(JSON.stringify({ host, pid: 2 ** 22 + 1, start: "1" }))).toBe(true);
  expect(await taken(JSON.stringify({ host, pid: 2 ** 22 + 1, start: null }))).toBe(true);
  expect(await taken(JSON.stringify({ host: `${host}-2`, pid: 2 ** 22 + 1, start: "1" }))).toBe(false);
  expect(await taken("")).toBe(false); // nobody makes an empty one
  expect(await taken("not ours")).toBe(false);
  expect(readdirSync(folder)).toEqual(["installing"]);
  expect(existsSync(join(folder, "installing-removing"))).toBe(false);
});
