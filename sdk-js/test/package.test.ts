/** What an app downloads: how large it is, and that a bundler leaves out what is not used. */

import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "vite";
import { expect, test } from "vitest";

const SOURCE = new URL("../src/", import.meta.url).pathname;

/** What a page may download, gzipped, without the ONNX runtime and the bundle, for each kind of release. */
const LIMITS = { masked: 22_600, coded: 23_900 };

interface Chunk {
  readonly fileName: string;
  readonly code: string;
}

/** A page's code, bundled and minified: what it begins with, and what it loads when it needs it. */
async function bundled(code: string): Promise<Chunk[]> {
  const input = join(mkdtempSync(join(tmpdir(), "privdfs-")), "page.js");
  writeFileSync(input, code);
  const made = await build({
    root: new URL("..", import.meta.url).pathname,
    configFile: false,
    logLevel: "error",
    build: { write: false, minify: true, target: "es2022", modulePreload: false, rolldownOptions: { input } },
  });
  const [output] = (Array.isArray(made) ? made : [made]) as { output: Chunk[] }[];
  return [...(output?.output ?? [])];
}

const sizeOf = (chunks: readonly Chunk[]): number =>
  chunks.reduce((sum, { code }) => sum + gzipSync(code, { level: 9 }).length, 0);

test("a page downloads little, and no library for what its browser has", async () => {
  const chunks = await bundled(`
    import { Bundle, Client, fromUrl } from "${SOURCE}index.ts";
    import { decodeImage } from "${SOURCE}image.ts";
    globalThis.page = { Bundle, Client, fromUrl, decodeImage };
  `);
  const names = chunks.map(({ fileName }) => fileName.replace(/^assets\/|-[\w-]{8}\.js$/g, ""));
  expect(names.sort()).toEqual(["coded", "crypto-noble", "firefox", "health", "masked", "page", "selftest"]);
  const named = (pattern: RegExp): Chunk[] => chunks.filter(({ fileName }) => pattern.test(fileName));
  const code = named(/page/)[0]?.code as string;
  expect(code).toContain("NotEnoughAnswersError"); // names are literals, which minifiers leave alone
  expect(code).not.toContain("node:");
  const sizes = { masked: sizeOf(named(/page|masked/)), coded: sizeOf(named(/page|coded/)) };
  if (process.env.PRIVDFS_JS_SIZES)
    writeFileSync(process.env.PRIVDFS_JS_SIZES, JSON.stringify({ ...sizes, all: sizeOf(chunks) }));
  expect(sizes.masked).toBeLessThanOrEqual(LIMITS.masked);
  expect(sizes.coded).toBeLessThanOrEqual(LIMITS.coded);
});

test("a bundler leaves out what is not imported", async () => {
  const chunks = await bundled(`import { UserKey } from "${SOURCE}index.ts"; globalThis.page = { UserKey };`);
  const first = chunks.filter(({ fileName }) => !fileName.includes("crypto-noble"));
  expect(first.map((chunk) => chunk.code).join("")).not.toContain("/v2/models/");
  expect(sizeOf(first)).toBeLessThan(3_000);
});
