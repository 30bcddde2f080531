// Unpacks what sdk-js/examples/react-native is type-checked against:
//
//   node get-react-native.mjs FOLDER     FOLDER/react-native and the others, without what they need in order to run
//
// Installed with all of that they take 950 MB, most of it Skia's libraries for phones. What arrives is compared with the
// digests below; `npm pack` needs the registry.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const PACKAGES = {
  "react-native@0.88.1": "wajWcLZ93GCN7k4Uwh4CS4L2Ah8ohcvkOXnvIYmh4Yvuqho5j3APZ9qozK+nQrHWSgauq4h8D3HN5DKK84SrHA==",
  "@react-native/virtualized-lists@0.88.1": "Zt+OGvJE6VgmzgemZL8TSA0VomNWpHMNcG0OvLkkBQEGrzY8OdDHRfjJh7S+f+UFJF77kicRC6o6mt3A7ER9lQ==",
  "@types/react@19.3.3": "K8uWpJc4teiuOPdiP1umjeA9rGMgVPiXuoL66fcS1QlwBT1WMqY8PORmub9FadopIs+RCW6siYEs7Lpq+vDlog==",
  "csstype@3.2.4": "PoKaoPzQapnEoqUSnHx1u6W6ku8CVEgKsnpmmzU3m1nwkidpPBQ8V/Zq2+bWNrsOKoKLwTGdbx6xF7BXP1zLVQ==",
  "react-native-image-picker@8.2.1": "FBeGYJGFDjMdGCcyubDJgBAPCQ4L1D3hwLXyUU91jY9ahOZMTbluceVvRmrEKqnDPFJ0gF1NVhJ0nr1nROFLdg==",
  "@shopify/react-native-skia@2.14.0": "mzizcTeUAgvam+m1BsxTs+K8ujUXkzoCmwumUhV5NWcoImmKJiWUMfQYgw2OOt1p6qpr7+G5pPOELAmNzZRvlw==",
  "react-native-get-random-values@2.0.0": "wx7/aPqsUIiWsG35D+MsUJd8ij96e3JKddklSdrdZUrheTx89gPtz3Q2yl9knBArj5u26Cl23T88ai+Q0vypdQ==",
};

const folder = resolve(process.argv[2]);
const download = mkdtempSync(join(tmpdir(), "react-native-"));
rmSync(folder, { recursive: true, force: true });
try {
  const npm = [process.env.npm_execpath, "pack", "--silent", "--pack-destination", download, ...Object.keys(PACKAGES)];
  execFileSync(process.execPath, npm, { stdio: ["ignore", "ignore", "inherit"] });
  for (const [id, digest] of Object.entries(PACKAGES)) {
    const file = join(download, `${id.replace(/^@/, "").replace(/[/@]/g, "-")}.tgz`);
    if (createHash("sha512").update(readFileSync(file)).digest("base64") !== digest)
      throw new Error(`${id} is not the package whose digest is listed here`);
    const place = join(folder, id.slice(0, id.lastIndexOf("@")));
    mkdirSync(place, { recursive: true });
    execFileSync("tar", ["-xzf", file, "-C", place, "--strip-components=1"]);
  }
} finally {
  rmSync(download, { recursive: true, force: true });
}
