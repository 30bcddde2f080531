/** A real Firefox, driven from Node. */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer, { type Browser, type Page } from "puppeteer-core";
import { onTestFinished } from "vitest";
import { given } from "./given.js";
import type { Browsing } from "./visit.js";

const PROGRAM = join(dirname(fileURLToPath(import.meta.url)), "../../.firefox/firefox");

type Settings = Readonly<Record<string, boolean>>;

/** Start it. With `lenient`, pages may do what their policies forbid, and certificates need no authority. */
const launch = (lenient: boolean, settings: Settings = {}): Promise<Browser> =>
  puppeteer.launch({
    browser: "firefox",
    executablePath: PROGRAM,
    acceptInsecureCerts: lenient,
    extraPrefsFirefox: { "security.csp.enable": !lenient, ...settings },
  });

/** The page of `make web`, once it has an answer. Whatever goes wrong in it is in `problems`, now and later. */
async function openPage(browser: Browser): Promise<{ page: Page; problems: string[] }> {
  const page = await browser.newPage();
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(String(error))); // also for what a policy forbids
  page.on("console", (message) => {
    if (["error", "warn"].includes(message.type())) problems.push(message.text());
  });
  await page.goto(`${given.origin}/`);
  await page.waitForSelector(".label, #alert:not([hidden])", { timeout: 60_000 });
  return { page, problems };
}

/** The page of `make web` under its own policy; the browser ends with the test. */
export async function openItsPage(settings: Settings = {}): Promise<{ page: Page; problems: string[] }> {
  const browser = await launch(false, settings);
  onTestFinished(() => browser.close());
  return openPage(browser);
}

/** The page of `make web`, allowed whatever tests do in it. */
export async function browse(): Promise<Browsing> {
  const browser = await launch(true);
  const { page } = await openPage(browser);
  return { page, visit: () => browser.newPage(), close: () => browser.close() };
}
