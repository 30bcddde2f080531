/** The examples for pages, as their users have them: one built by vite from the package, one with plain script tags. */

import { cpSync, createReadStream, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import type { Browser } from "playwright-core";
import { build } from "vite";
import { afterAll, beforeAll, expect, test } from "vitest";
import { launch } from "./chromium.js";
import { given } from "./given.js";

const SDK = join(dirname(fileURLToPath(import.meta.url)), "..");
/** What the vite example's page may download for a masked release, gzipped, without the ONNX runtime and the bundle. */
const LIMIT = 22_800;
const TYPES: Record<string, string> = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

let browser: Browser;
let folder: string;

beforeAll(async () => {
  browser = await launch();
  folder = mkdtempSync(join(tmpdir(), "privdfs-examples-"));
});

afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true, force: true });
});

/** Lay out an app with its packages: ours is what `npm pack` would put into it. */
function install(): string {
  const app = join(folder, "vite");
  const modules = join(app, "node_modules");
  cpSync(join(SDK, "examples/vite"), app, { recursive: true });
  mkdirSync(join(modules, "privdfs"), { recursive: true });
  for (const name of ["package.json", "dist"])
    cpSync(join(SDK, name), join(modules, "privdfs", name), { recursive: true });
  for (const name of ["@noble", "onnxruntime-web", "onnxruntime-common", "vite"])
    symlinkSync(join(SDK, "node_modules", name), join(modules, name));
  return app;
}

/** Choose a test picture in a page whose files are these, by the beginning of their path; what it says and downloads. */
async function classified(folders: Record<string, string>): Promise<{ said: string | null; downloads: Set<string> }> {
  const downloads = new Set<string>();
  const server = createServer((request, response) => {
    const path = (request.url as string).slice(1);
    const begin = Object.keys(folders).find((each) => path.startsWith(each)) as string;
    const name = path.slice(begin.length) || "index.html";
    downloads.add(name);
    response.setHeader("Content-Type", TYPES[extname(name)] ?? "application/octet-stream");
    if (path === "settings.json")
      response.end(JSON.stringify({ bundle: "/bundle/", trust: given.trust, servers: given.https }));
    else createReadStream(join(folders[begin] as string, name)).pipe(response);
  });
  server.listen(Number(new URL(given.examples).port), "127.0.0.1");
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  const page = await context.newPage();
  // The signed bundle is that of the page of `make web`.
  await page.route(`${given.examples}/bundle/*`, async (route) => {
    const name = route.request().url().split("/bundle/")[1];
    await route.fulfill({ response: await page.request.get(`${given.origin}/releases/${given.release}/${name}`) });
  });
  await page.goto(`${given.examples}/`);
  await page.waitForLoadState("networkidle");
  const answer = await page.request.get(`${given.origin}/images/bag-1.png`);
  await page.setInputFiles("input", { name: "bag.png", mimeType: "image/png", buffer: await answer.body() });
  const status = page.getByRole("status").filter({ hasText: /./ });
  await status.waitFor({ timeout: 60_000 });
  const said = await status.textContent();
  await context.close();
  await new Promise((closed) => server.close(closed));
  return { said, downloads };
}

test("with vite: built from the package, small, and it works", async () => {
  const root = install();
  await build({ root, logLevel: "error" });
  const { said, downloads } = await classified({ "": join(root, "dist") });
  expect(said).toMatch(/^Bag, \d+ % sure$/);
  const own = [...downloads].filter((name) => name.endsWith(".js") && !name.includes("onnxruntime"));
  expect(own.map((name) => name.replace(/^assets\/|-[\w-]{8}\.js$/g, "")).sort()).toEqual(["index", "masked"]);
  const sizes = own.map((name) => gzipSync(readFileSync(join(root, "dist", name)), { level: 9 }).length);
  expect(sizes.reduce((sum, size) => sum + size, 0)).toBeLessThanOrEqual(LIMIT);
});

test("with plain script tags", async () => {
  const modules = join(SDK, "node_modules");
  const { said } = await classified({
    "privdfs/": join(SDK, "dist"),
    "noble-ed25519/": join(modules, "@noble/ed25519"),
    "noble-hashes/": join(modules, "@noble/hashes"),
    "onnxruntime-web/": join(modules, "onnxruntime-web/dist"),
    "": join(SDK, "examples/plain"),
  });
  expect(said).toMatch(/^Bag, \d+ % sure$/);
});
