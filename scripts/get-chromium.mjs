// Unpacks the Chromium that sdk-js's tests run in, without root, with the libraries and the font that it needs:
//
//   node get-chromium.mjs FOLDER     FOLDER/chromium is the program; its libraries are in FOLDER/lib
//
// The package comes from npm, pinned in sdk-js/package-lock.json. It is for x86-64 with glibc 2.34 or newer.

import { createReadStream, createWriteStream, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { brotliDecompressSync, createBrotliDecompress } from "node:zlib";

const packed = join(dirname(fileURLToPath(import.meta.url)), "../sdk-js/node_modules/@sparticuz/chromium/bin");
const folder = resolve(process.argv[2]);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

await pipeline(
  createReadStream(join(packed, "chromium.br")),
  createBrotliDecompress(),
  createWriteStream(join(folder, "chromium"), { mode: 0o755 }),
);
for (const name of ["al2023", "fonts", "swiftshader"]) unpack(brotliDecompressSync(readFileSync(join(packed, `${name}.tar.br`))));
// The package's own names folders of the machines that it was made for.
writeFileSync(join(folder, "fonts.conf"), `<fontconfig><dir>${folder}/fonts</dir><cachedir>${folder}/cache</cachedir></fontconfig>\n`);

/** Write the plain files of a tar archive. */
function unpack(archive) {
  const text = (from, length) => archive.toString("latin1", from, from + length).replace(/\0.*$/s, "");
  for (let at = 0; archive[at]; ) {
    const name = normalize(text(at, 100));
    const size = Number.parseInt(text(at + 124, 12), 8);
    if (name.startsWith("..") || name.startsWith("/")) throw new Error(`${name} is outside of the archive`);
    if ("0\0".includes(String.fromCharCode(archive[at + 156]))) {
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      writeFileSync(join(folder, name), archive.subarray(at + 512, at + 512 + size));
    }
    at += 512 + 512 * Math.ceil(size / 512);
  }
}
