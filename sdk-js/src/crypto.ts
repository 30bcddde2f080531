/**
 * SHA-256, HMAC and Ed25519: by the platform where it has them, else by @noble, which is then loaded. Pages behind https
 * have them, so they download no library for it; React Native and plain http have not.
 */

import { loaded } from "./loaded.js";

const platform = (): SubtleCrypto | undefined => globalThis.crypto?.subtle;
const library = (): Promise<typeof import("./crypto-noble.js")> => loaded(import("./crypto-noble.js"));

export async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  const subtle = platform();
  if (!subtle) return (await library()).sha256(bytes);
  return new Uint8Array(await subtle.digest("SHA-256", bytes as BufferSource));
}

export async function hmacSha256(key: Uint8Array, bytes: Uint8Array): Promise<Uint8Array> {
  const subtle = platform();
  if (!subtle) return (await library()).hmacSha256(key, bytes);
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const imported = await subtle.importKey("raw", key as BufferSource, algorithm, false, ["sign"]);
  return new Uint8Array(await subtle.sign("HMAC", imported, bytes as BufferSource));
}

/** Whether an Ed25519 signature is right; false too for what cannot be a key or a signature. */
export async function verifyEd25519(key: Uint8Array, signature: Uint8Array, message: Uint8Array): Promise<boolean> {
  const subtle = platform();
  try {
    const imported = await subtle?.importKey("raw", key as BufferSource, "Ed25519", false, ["verify"]);
    if (subtle && imported)
      return await subtle.verify("Ed25519", imported, signature as BufferSource, message as BufferSource);
  } catch {
    // It does not know Ed25519, or this is no key: the library says.
  }
  return (await library()).verifyEd25519(key, signature, message);
}
