/** Bytes, text and randomness, the same in browsers, Node and React Native. */

import { RandomnessError } from "./errors.js";

const encoder = new TextEncoder();

export const utf8 = (text: string): Uint8Array => encoder.encode(text);

/** Text of UTF-8 bytes; null where they are none. Strict decoders are missing in React Native, so it is compared. */
export function textOf(bytes: Uint8Array): string | null {
  const text = new TextDecoder().decode(bytes);
  return same(encoder.encode(text), bytes) ? text : null;
}

export function same(one: ArrayLike<number>, other: ArrayLike<number>): boolean {
  if (one.length !== other.length) return false;
  for (let i = 0; i < one.length; i++) if (one[i] !== other[i]) return false;
  return true;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const toHex = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Bytes of an even number of hexadecimal digits. */
export const fromHex = (digits: string): Uint8Array =>
  Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));

/** Random bytes of the system's generator, which gives at most 65,536 at once. */
export function randomBytes(count: number): Uint8Array {
  const bytes = new Uint8Array(count);
  try {
    for (let at = 0; at < count; at += 65_536) crypto.getRandomValues(bytes.subarray(at, at + 65_536));
    // A stand-in that does nothing, as tests and shims have; by chance 16 zeros in a row never come.
    if (count >= 16 && bytes.every((byte) => byte === 0)) throw new Error();
  } catch {
    throw new RandomnessError(
      "the system's random generator failed, so nothing was sent: without it shares would not be private; check that " +
        "crypto.getRandomValues works here (React Native needs react-native-get-random-values)",
    );
  }
  return bytes;
}
