/** Files that were cut off are seen, wherever that was. */

import { readdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import { expect, test } from "vitest";
import { isWhole } from "../src/firefox.js";

const FOLDER = join(import.meta.dirname, "../../tests/vectors/images");
const FORMATS = [".jpg", ".png", ".gif", ".webp", ".bmp"];
/** Of what marks the end of a file, which decoders can do without. */
const SPARE = 8;

const files = readdirSync(FOLDER).filter((name) => FORMATS.includes(extname(name)) && !name.startsWith("damaged"));

test("there are files of every format", () => {
  expect(new Set(files.map((name) => extname(name)))).toEqual(new Set(FORMATS));
});

test.each(files)("%s: whole as it is, not without its end", (name) => {
  const file = readFileSync(join(FOLDER, name));
  expect(isWhole(file)).toBe(true);
  expect(isWhole(Buffer.concat([file, Buffer.from("what cameras add")]))).toBe(true);
  for (let length = 2; length <= file.length - SPARE; length++) {
    const cut = Buffer.from(file.subarray(0, length)); // a copy: there is nothing behind it
    if (isWhole(cut)) throw new Error(`${name} counts as whole with ${length} of ${file.length} bytes`);
  }
});

test("of a format that it does not know, and of nothing, it says nothing", () => {
  expect(isWhole(Buffer.from("\0\0\0 ftypavif"))).toBe(true);
  expect(isWhole(new Uint8Array())).toBe(true);
});
