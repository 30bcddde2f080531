/**
 * Signatures of releases: Ed25519 over `manifest.json`, which lists the SHA-256 of every other file.
 *
 * `manifest.sig` is one line: "ed25519 <id of the key, 16 hex digits> <signature, 128 hex digits>". What is signed is
 * `CONTEXT` followed by the bytes of the manifest. There is one spelling; any other is refused. Not guaranteed: that a
 * release is the latest.
 */

import { concat, fromHex, same, textOf, toHex, utf8 } from "./bytes.js";
import { sha256, verifyEd25519 } from "./crypto.js";
import { BundleSignatureError, ConfigError } from "./errors.js";
import { typeName } from "./given.js";

/** A public key: the text of a PEM file, or its 32 bytes. */
export type PublicKey = string | Uint8Array;
/** One of several keys must have signed. */
export type Trust = PublicKey | readonly PublicKey[];

const CONTEXT = "privdfs manifest, signature 1\n";
const KEY_BYTES = 32;
const LINE = /^ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})\n$/;
/** What stands before an Ed25519 key in a SubjectPublicKeyInfo. */
const PREFIX = fromHex("302a300506032b6570032100");

/** Check that a trusted key signed a manifest. `signature` is null where there is none. */
export async function checkSignature(manifest: Uint8Array, signature: Uint8Array | null, trust: Trust): Promise<void> {
  const keys = await readTrust(trust);
  if (signature === null)
    throw new BundleSignatureError(
      "the bundle is not signed: get the signed release, or sign it (privdfs-export sign)",
    );
  const match = LINE.exec(textOf(signature) ?? "");
  if (!match) throw new BundleSignatureError("manifest.sig is not a signature of this format: get the release again");
  const [, named = "", digits = ""] = match;
  const key = keys.get(named);
  if (!key)
    throw new BundleSignatureError(
      `the bundle is signed with key ${named}, which is not trusted here (trusted: ${[...keys.keys()].join(", ")}): ` +
        "get the release from a signer that you trust, or add this key to the trusted ones",
      named,
    );
  if (!(await verifyEd25519(key, fromHex(digits), concat(utf8(CONTEXT), manifest))))
    throw new BundleSignatureError(
      `the manifest is not the one that key ${named} signed: it was changed; get the release again`,
      named,
    );
}

/** Public keys by their id, the beginning of the SHA-256 of the key. */
export async function readTrust(trust: Trust): Promise<Map<string, Uint8Array>> {
  const listed: readonly unknown[] = Array.isArray(trust) ? trust : [trust];
  if (!listed.length) throw new ConfigError("no trusted key was given: pass the public key of the signer");
  const keys = listed.flatMap(readKeys);
  const ids = await Promise.all(keys.map(async (key) => toHex(await sha256(key)).slice(0, 16)));
  return new Map(keys.map((key, i) => [ids[i] as string, key]));
}

/** One key, or those of a text that has several, one after the other. */
function readKeys(key: unknown): Uint8Array[] {
  if (key instanceof Uint8Array && key.length === KEY_BYTES) return [key];
  const pem = key instanceof Uint8Array ? textOf(key) : key;
  if (typeof pem !== "string")
    throw new ConfigError(
      `the key to trust has the type ${typeName(key)}: pass the text of its PEM file, or its bytes`,
    );
  if (pem.includes("PRIVATE KEY-----"))
    throw new ConfigError(
      "the key to trust is a private key, which only signs: pass the public one (`openssl pkey -in KEY -pubout` makes " +
        "it), and keep the private one away from devices",
    );
  const bodies = [...pem.matchAll(/-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END PUBLIC KEY-----/g)];
  const found = bodies.map(([, body = ""]) => fromBase64(body.replace(/\s/g, "")));
  const right = (der: Uint8Array) =>
    der.length === PREFIX.length + KEY_BYTES && same(der.subarray(0, PREFIX.length), PREFIX);
  if (!found.length || pem.split("-----BEGIN").length !== found.length + 1 || !found.every(right))
    throw new ConfigError(
      "the key to trust is not an Ed25519 public key in PEM form: pass the text of the file, not its name; " +
        "`openssl pkey -in KEY -pubout` makes it",
    );
  return found.map((der) => der.slice(PREFIX.length));
}

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** `atob` is missing in older React Native. */
function fromBase64(text: string): Uint8Array {
  const digits = text.replace(/=+$/, "");
  const bytes = new Uint8Array(Math.floor((digits.length * 3) / 4));
  let held = 0;
  for (let i = 0, at = 0; i < digits.length; i++) {
    held = ((held << 6) | ALPHABET.indexOf(digits[i] as string)) & 0xffffff;
    if (i % 4 !== 0) bytes[at++] = held >> (6 - 2 * (i % 4));
  }
  return bytes;
}
