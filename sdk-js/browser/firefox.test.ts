/** The page of `make web` in a real Firefox. */

import { expect, test } from "vitest";
import { openItsPage } from "./firefox.js";

test("a picture is classified, without an error or a breach of the page's policy", async () => {
  const { page, problems, close } = await openItsPage();
  expect(await page.$eval(".label", (found) => found.textContent)).toBe("T-shirt/top");
  expect(problems).toEqual([]);
  await page.evaluate(() => fetch("https://somewhere.example/").catch(() => {}));
  await expect.poll(() => problems).toEqual([expect.stringContaining("connect-src")]); // a breach is seen
  await close();
});
