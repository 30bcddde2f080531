/** What `crypto.ts` needs, where the platform does not have it. */

import { hashes, verify } from "@noble/ed25519";
import { hmac } from "@noble/hashes/hmac.js";
import { sha256, sha512 } from "@noble/hashes/sha2.js";

export { sha256 };

export const hmacSha256 = (key: Uint8Array, bytes: Uint8Array): Uint8Array => hmac(sha256, key, bytes);

export function verifyEd25519(key: Uint8Array, signature: Uint8Array, message: Uint8Array): boolean {
  hashes.sha512 = sha512;
  try {
    return verify(signature, message, key, { zip215: false });
  } catch {
    return false;
  }
}
