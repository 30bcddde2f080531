/** The page of `make web` in a real Firefox. */

import { expect, test } from "vitest";
import { openItsPage } from "./firefox.js";

test("a picture is classified, without an error or a breach of the page's policy", async () => {
  const { page, problems } = await openItsPage();
  expect(await page.$eval(".label", (found) => found.textContent)).toBe("T-shirt/top");
  expect(problems).toEqual([]);
  await page.evaluate(() => fetch("https://somewhere.example/").catch(() => {}));
  await expect.poll(() => problems).toEqual([expect.stringContaining("connect-src")]); // a breach is seen
});

test.each(["privacy.resistFingerprinting", "privacy.fingerprintingProtection"])(
  "with %s pictures are what they are, or refused, though the browser alters what pages read of a canvas",
  async (setting) => {
    const { page } = await openItsPage({ [setting]: true });
    expect(await page.$eval(".label", (found) => found.textContent)).toBe("T-shirt/top");
    // As text: the test runner rewrites imports of its own.
    const decode = `import("privdfs/image").then(async ({ decodeImage }) =>
      decodeImage(await (await fetch("images/bag-1.png")).blob()))`;
    const size = await page.evaluate(`${decode}.then(({ width, height }) => [width, height])`);
    expect(size).toEqual([28, 28]);
    const said = await page.evaluate(`(globalThis.VideoFrame = undefined, ${decode}.then(String, String))`);
    expect(said).toMatch(/alters the pixels that pages read/);
  },
);
