/** What `tests/js/test_browser.py` says about what runs. */

import { readFileSync } from "node:fs";

/** What Python made of the same images. Bytes are base64. */
export interface Given {
  /** In which the SDK runs. */
  readonly browser: "chromium" | "firefox";
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
  /** Files that browsers may read otherwise than Pillow, and its pixels of a model's size, where it reads them. */
  readonly odd: readonly { readonly name: string; readonly data: string; readonly pixels: string }[];
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
