// Draws the page of `make web`, which must be running, as docs/images/web.png shows it:
//
//   scripts/npm.sh exec --offline -- node ../scripts/web-picture.mjs FILE [WIDTH [light|dark [MODEL]]]
//
// The browser is that of `make chromium`. MODEL is text on the button of a model, such as "coded".

import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const { chromium } = createRequire(join(root, "sdk-js/package.json"))("playwright-core");
const [file, width = "1100", colorScheme = "light", model] = process.argv.slice(2);
const folder = join(root, ".chromium");
const browser = await chromium.launch({
  executablePath: join(folder, "chromium"),
  args: ["--no-sandbox"], // containers have no user namespaces; the page is our own
  env: { ...process.env, LD_LIBRARY_PATH: join(folder, "lib") },
});
const page = await browser.newPage({ viewport: { width: Number(width), height: 1230 }, colorScheme });
await page.goto(process.env.PRIVDFS_WEB ?? "http://127.0.0.1:8642/");
await page.waitForSelector(".label", { timeout: 60_000 });
if (model) {
  await page.getByText(model).first().click();
  await page.waitForTimeout(20_000); // its servers start
}
await page.getByRole("button", { name: "Ask again" }).click(); // the first answer's times are those of connecting
await page.waitForTimeout(2_000);
await page.screenshot({ path: resolve(file), fullPage: Number(width) < 1000 });
await browser.close();
