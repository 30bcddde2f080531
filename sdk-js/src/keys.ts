/**
 * User keys: which partition of a keyed release a user's images are split with.
 *
 *     partition = HMAC-SHA256(key, "privdfs partition" || family id), its first 8 bytes as a big-endian number, mod P
 *
 * The index is sent, the key never. A client keeps the index alone.
 */

import { concat, fromHex, utf8 } from "./bytes.js";
import { hmacSha256 } from "./crypto.js";
import { ConfigError } from "./errors.js";
import type { KeySpec } from "./format.js";
import { typeName } from "./given.js";

const KEY_BYTES = 16;

/** The secret of one user: 16 bytes of a system's generator, or 32 hexadecimal digits. Keep it with the user's data. */
export class UserKey {
  readonly #secret: Uint8Array;

  constructor(secret: Uint8Array | string) {
    this.#secret = readSecret(secret);
  }

  /** Index of the partition that this key picks of a family. */
  async partition(keys: KeySpec): Promise<number> {
    const digest = await hmacSha256(this.#secret, concat(utf8("privdfs partition"), fromHex(keys.family)));
    const first = new DataView(digest.buffer, digest.byteOffset).getBigUint64(0);
    return Number(first % BigInt(keys.partitions));
  }
}

/** The key of a user's images, checked; null for a release without keys. */
export function checkKey(key: UserKey | Uint8Array | string | undefined, keys: KeySpec | undefined): UserKey | null {
  if (!keys) {
    if (key !== undefined) throw new ConfigError("the release has no keys, but a user key was given: leave `key` out");
    return null;
  }
  if (key === undefined)
    throw new ConfigError(
      `the release has ${keys.partitions} partitions and needs the user's key: pass \`key\`, always the same for one user`,
    );
  return key instanceof UserKey ? key : new UserKey(key);
}

function readSecret(secret: unknown): Uint8Array {
  if (typeof secret === "string") {
    if (!/^[0-9A-Fa-f]{32}$/.test(secret))
      throw new ConfigError("the user key is text, but not 32 hexadecimal digits: pass those, or 16 bytes");
    return fromHex(secret);
  }
  if (!(secret instanceof Uint8Array))
    throw new ConfigError(`a user key is bytes or text, not ${typeName(secret)}: pass 16 bytes`);
  if (secret.length !== KEY_BYTES)
    throw new ConfigError(`the user key has ${secret.length} bytes, not 16: make one with crypto.getRandomValues`);
  return secret.slice();
}
