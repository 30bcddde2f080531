/** Where the files of a bundle come from, and how they are compared with what the manifest lists. */

import { toHex } from "./bytes.js";
import { MAX_BUNDLE_FILE_BYTES } from "./constants.js";
import { sha256 } from "./crypto.js";
import { BundleIntegrityError, BundleStoreError, ConfigError } from "./errors.js";
import { bodyOf } from "./fetch.js";
import { typeName } from "./given.js";

/** Gives the bytes of a file by its name, or null where there is none; of a larger file, `limit` + 1 bytes will do. */
export type Source = (name: string, limit: number) => Promise<Uint8Array | null>;

/** Files that are already here, by name: of an app's assets, for example. */
export function fromFiles(files: Readonly<Record<string, Uint8Array>> | ReadonlyMap<string, Uint8Array>): Source {
  const all = files instanceof Map ? files : new Map(Object.entries(files ?? {}));
  return async (name) => all.get(name) ?? null;
}

/**
 * The folder of a bundle at an address, such as "/bundle/" in a page. What arrives is checked against the signature, so
 * the server need not be trusted.
 */
export function fromUrl(address: string): Source {
  if (typeof address !== "string" || /[?#]/.test(address))
    throw new ConfigError("the address of a bundle is that of its folder: pass it as text, without ? and #");
  const folder = address.endsWith("/") ? address : `${address}/`;
  return async (name, limit) => {
    let data: Uint8Array;
    try {
      const response = await fetch(folder + name.split("/").map(encodeURIComponent).join("/"), {
        credentials: "omit",
      });
      if (response.status === 404 || response.status === 410) return null;
      if (!response.ok)
        throw new BundleStoreError(
          `${name} is refused with HTTP ${response.status}: check the address and the permissions there`,
        );
      data = await bodyOf(response, limit);
    } catch (error) {
      if (error instanceof BundleStoreError) throw error;
      throw new BundleStoreError(
        `${name} cannot be downloaded: check the address, the network, the server's certificate and its CORS headers`,
      );
    }
    return data;
  };
}

/** Read listed files, and check the very bytes that are returned. */
export async function readVerified(
  source: Source,
  files: Readonly<Record<string, string>>,
): Promise<Map<string, Uint8Array>> {
  const read = async (name: string, expected: string): Promise<[string, Uint8Array]> => {
    const data = await source(name, MAX_BUNDLE_FILE_BYTES);
    if (data === null)
      throw new BundleIntegrityError(`${name} is missing: get the release again, whole`, name, expected);
    await checkDigest(name, expected, data);
    return [name, data];
  };
  return new Map(await Promise.all(Object.entries(files).map(([name, expected]) => read(name, expected))));
}

/** Compare the bytes of a listed file with its SHA-256. */
export async function checkDigest(name: string, expected: string, data: Uint8Array): Promise<void> {
  const actual = toHex(await sha256(data));
  if (actual !== expected)
    throw new BundleIntegrityError(
      `${name} is not the file that the manifest lists (SHA-256 ${actual}, expected ${expected}): it was changed or ` +
        "belongs to another release; get the release again",
      name,
      expected,
      actual,
    );
}

/** A source that gives bytes, or says what it gave instead. */
export function checkSource(source: unknown): Source {
  if (typeof source !== "function")
    throw new ConfigError(
      `the bundle has the type ${typeName(source)}: pass fromUrl(…), fromFiles(…), or fromFolder(…) in Node`,
    );
  return async (name, limit) => {
    const data: unknown = await source(name, limit);
    if (data === null || data instanceof Uint8Array) return data;
    throw new ConfigError(`${name} of the bundle came as ${typeName(data)}: pass its bytes, as a Uint8Array`);
  };
}
