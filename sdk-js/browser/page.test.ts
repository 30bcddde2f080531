/** The page of `make web` in a real Chromium, against real tritonservers behind nginx. */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { launch, openPage } from "./chromium.js";
import { given } from "./given.js";

let browser: Browser;

beforeAll(async () => {
  browser = await launch();
});

afterAll(() => browser?.close());

const label = (page: Page): Promise<string | null> => page.locator(".label").textContent();
const told = (page: Page, server: number): Promise<string | null> =>
  page.locator(`#server-${server} h3 span`).textContent();
const alert = (page: Page): Promise<string | null> => page.locator("#alert:not([hidden])").textContent();
const turn = (page: Page, server: number, mode: string) =>
  page.locator(`#server-${server} .modes`).getByText(mode, { exact: true }).click();

test("a picture is classified, and what each server received is drawn, without an error or a breach of its policy", async () => {
  const { page, problems } = await openPage(browser);
  expect(await label(page)).toBe("T-shirt/top");
  expect(await page.locator(".server canvas").count()).toBe(3);
  expect(await page.locator("#steps tr").count()).toBe(7);
  await page.getByRole("button", { name: "trouser-1" }).click();
  await page.locator(".label", { hasText: "Trouser" }).waitFor();
  expect(problems).toEqual([]);
});

test("a file that the user chooses, and one that is no image", async () => {
  const { page } = await openPage(browser);
  const drawn = page.locator("#name");
  await page.setInputFiles("#file", {
    name: "chosen.jpg",
    mimeType: "image/jpeg",
    buffer: Buffer.from((given.files[0] as { data: string }).data, "base64"),
  });
  await drawn.getByText(/^chosen\.jpg, \d+ × \d+$/).waitFor();
  await page.setInputFiles("#file", { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no image") });
  expect(await alert(page)).toContain("no image that this browser reads");
});

test("a picture from the camera", async () => {
  const { page } = await openPage(browser);
  await page.getByRole("button", { name: "Camera" }).click();
  await page.waitForFunction(() => (document.querySelector("#video") as HTMLVideoElement).videoWidth > 0);
  await page.getByRole("button", { name: "Take the picture" }).click();
  await page.locator("#name", { hasText: /^camera, (\d+) × \1$/ }).waitFor();
  await page.locator("#notes", { hasText: "All 3 servers answered" }).waitFor();
  expect(await page.evaluate(() => (document.querySelector("#video") as HTMLVideoElement).srcObject)).toBeNull();
});

test("a server switched off: a quorum answers; two: an error says what to do; on again: all answer", async () => {
  const { page } = await openPage(browser);
  await turn(page, 0, "Off");
  await page.locator("#notes", { hasText: "2 of 3 servers answered" }).waitFor();
  expect(await told(page, 0)).toBe("switched off");
  expect(await page.locator("#server-0 .shares").textContent()).toBe("Nothing was sent to it.");
  expect(await label(page)).toBe("T-shirt/top");
  await turn(page, 1, "Off");
  expect(await alert(page)).toContain("Too few servers gave a usable answer");
  expect(await page.locator(".server canvas").count()).toBe(0);
  await turn(page, 0, "On");
  await turn(page, 1, "On");
  await page.locator("#notes", { hasText: "All 3 servers answered" }).waitFor();
});

test("a server that lies is suspected", async () => {
  const { page } = await openPage(browser);
  await turn(page, 2, "Lies");
  const again = page.getByRole("button", { name: "Ask again" });
  for (let calls = 0; calls < 60 && (await told(page, 2)) !== "suspected of lying"; calls++) {
    await page.locator("#server-2 h3 span", { hasText: /answered|suspected/ }).waitFor();
    await again.click();
  }
  expect(await told(page, 2)).toBe("suspected of lying");
});

test("a tampered bundle is refused before anything is sent", async () => {
  const sent: string[] = [];
  const { page } = await openPage(browser, {}, async (fresh) => {
    fresh.on("request", (request) => {
      if (!request.url().startsWith(given.origin)) sent.push(request.url());
    });
    await fresh.route("**/releases/*/encoder.onnx", async (route) => {
      const body = await (await route.fetch()).body();
      body[body.length - 3] = (body[body.length - 3] as number) ^ 1;
      await route.fulfill({ body, contentType: "application/octet-stream" });
    });
  });
  expect(await alert(page)).toContain("encoder.onnx is not the file that the manifest lists");
  expect(sent).toEqual([]);
});

test("by keyboard alone: a picture is asked for, and a server switched off and on", async () => {
  const { page } = await openPage(browser);
  await page.getByRole("button", { name: "bag-1" }).focus();
  await page.keyboard.press("Enter");
  await page.locator(".label", { hasText: "Bag" }).waitFor();
  await page.locator("#server-1 input[value=on]").focus();
  await page.keyboard.press("ArrowRight");
  await page.locator("#notes", { hasText: "2 of 3" }).waitFor();
  await page.keyboard.press("ArrowLeft");
  await page.locator("#notes", { hasText: "All 3" }).waitFor();
});

test("on a phone's width nothing is cut off, and text can be read in both colour schemes", async () => {
  const { page } = await openPage(browser, { viewport: { width: 320, height: 640 } });
  expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(320);
  const grounds = new Set<string>();
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    grounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
    expect(await page.evaluate(leastContrast)).toBeGreaterThan(4.5);
  }
  expect(grounds.size).toBe(2);
});

/** In the page: between text on a card and the card, as WCAG computes it. */
function leastContrast(): number {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d") as OffscreenCanvasRenderingContext2D;
  const light = (colour: string): number => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r = 0, g = 0, b = 0] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const card = light(getComputedStyle(document.querySelector("section") as Element).backgroundColor);
  const found = [...document.querySelectorAll("section p, section button, figcaption")]
    .filter((each) => each.id !== "choose" && each.checkVisibility() && each.textContent)
    .map((each) => {
      const text = light(getComputedStyle(each).color);
      return (Math.max(text, card) + 0.05) / (Math.min(text, card) + 0.05);
    });
  return Math.min(...found);
}
