/** A real Chromium, driven from Node, and what `tests/js/test_browser.py` says about what runs. */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "../../.chromium");

/** What Python made of the same images. Bytes are base64. */
export interface Given {
  /** Where the page of `make web` is. */
  readonly origin: string;
  /** Where the pages of the examples are to be, which the gateways with TLS let in, too. */
  readonly examples: string;
  readonly release: string;
  /** Gateways with TLS and HTTP/2, and the public key of the bundle. */
  readonly https: readonly string[];
  readonly trust: string;
  /** Of the release's size, uint8, one after the other, with the shares of each server and the labels of the servers. */
  readonly images: string;
  readonly shares: readonly string[];
  readonly labels: readonly string[];
  readonly probabilities: readonly number[];
  readonly files: readonly ImageFile[];
  /** Other releases that the page has, whose bundles are tested on their own. */
  readonly others: readonly string[];
  /** File that takes what was measured; null: nothing is. */
  readonly measured: string | null;
}

/** A file, and what Pillow makes of it: SHA-256 of the upright RGB pixels, and of those of a model's size. */
export interface ImageFile {
  readonly name: string;
  readonly data: string;
  readonly size: readonly [width: number, height: number];
  readonly whole: string;
  readonly resized: string;
}

export const given: Given = JSON.parse(readFileSync(process.env.PRIVDFS_JS_BROWSER as string, "utf8"));

export const launch = (): Promise<Browser> =>
  chromium.launch({
    executablePath: join(FOLDER, "chromium"),
    // Containers have no user namespaces for the sandbox; the pages are our own. The camera shows a drawing.
    args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
    env: {
      ...(process.env as Record<string, string>),
      LD_LIBRARY_PATH: join(FOLDER, "lib"),
      FONTCONFIG_FILE: join(FOLDER, "fonts.conf"),
    },
  });

/** The page of `make web`, once it has an answer. Whatever goes wrong in it on the way is in `problems`. */
export async function openPage(
  browser: Browser,
  options: BrowserContextOptions = {},
  prepare?: (page: Page) => Promise<unknown>,
): Promise<{ page: Page; problems: string[] }> {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") problems.push(message.text());
  });
  await prepare?.(page);
  await page.goto(`${given.origin}/`);
  await page.waitForSelector(".label, #alert:not([hidden])", { timeout: 60_000 });
  return { page, problems };
}
