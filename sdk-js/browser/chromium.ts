/** A real Chromium, driven from Node. */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { given } from "./given.js";
import type { Browsing } from "./visit.js";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "../../.chromium");

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

/** The page of `make web`, allowed whatever tests do in it. */
export async function browse(): Promise<Browsing> {
  const browser = await launch();
  const { page } = await openPage(browser, { bypassCSP: true, ignoreHTTPSErrors: true });
  return {
    page,
    visit: () => page.context().newPage(),
    protocols: async () => {
      const protocols = new Set<string>();
      const inspector = await page.context().newCDPSession(page);
      await inspector.send("Network.enable");
      inspector.on("Network.responseReceived", ({ response }) => protocols.add(response.protocol ?? ""));
      return protocols;
    },
    close: () => browser.close(),
  };
}
