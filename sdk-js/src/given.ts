/** What a caller passes: checked, and quoted in errors without secrets. */

import { MAX_TIMEOUT_MS } from "./constants.js";
import { ConfigError } from "./errors.js";

/** In addresses, what stands before an @ or in a query may be a secret. */
const CREDENTIALS = /:.*@|^[^/\\]*@|:\/+.*[?#]/;
const RANDOM = /^(?:[0-9a-fA-F-]{16,}|(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])(?=[^0-9]*[0-9])[A-Za-z0-9+=_~-]{20,})$/;

/** A value as errors quote it; what may be a secret, a tensor or an image is not quoted. */
export function shown(value: unknown): string {
  if (value === null || value === undefined || typeof value === "boolean" || typeof value === "number")
    return String(value);
  if (typeof value !== "string") return `a value of type ${typeName(value)}`;
  const plain = /^[\x20-\x7e]{0,200}$/.test(value) && !value.includes("-----BEGIN ") && !CREDENTIALS.test(value);
  const random = value.split(/[/\\.,:;\s]/).some((word) => RANDOM.test(word));
  return plain && !random ? JSON.stringify(value) : "(not shown, it may be a secret)";
}

/** What sort of value it is, for an error. */
export function typeName(value: unknown): string {
  if (value === null) return "null";
  return typeof value === "object" ? (value.constructor?.name ?? "object") : typeof value;
}

/** A time in milliseconds, above 0 and up to an hour. */
export function checkTimeout(value: unknown, name = "timeout"): number {
  if (typeof value !== "number" || !(value > 0 && value <= MAX_TIMEOUT_MS))
    throw new ConfigError(
      `${name}=${shown(value)} is not a number of milliseconds above 0 and up to ${MAX_TIMEOUT_MS}`,
    );
  return value;
}

/** A whole number within a range, or a ConfigError that says what is expected. */
export function checkWhole(value: unknown, name: string, low: number, high: number, what = ""): number {
  if (!Number.isSafeInteger(value) || (value as number) < low || (value as number) > high) {
    const range = high === Number.MAX_SAFE_INTEGER ? `of at least ${low}` : `from ${low} to ${high}`;
    throw new ConfigError(`${name}=${shown(value)} is not a whole number ${range}${what}`);
  }
  return value as number;
}

/** Refuse options of a misspelt name: one that is not looked at could be one that protects. */
export function checkNames(options: object, known: readonly string[], what: string): void {
  if (typeof options !== "object" || options === null)
    throw new ConfigError(`the options of ${what} have the type ${typeName(options)}: pass an object, as in { … }`);
  for (const name of Object.keys(options))
    if (!known.includes(name))
      throw new ConfigError(`${what} has no option ${shown(name)}: it takes ${known.join(", ")}`);
}

/** A switch: text such as "no" is true in JavaScript, and would turn protection off. */
export function checkFlag(value: unknown, name: string): boolean {
  if (value !== undefined && typeof value !== "boolean")
    throw new ConfigError(`${name} has the type ${typeName(value)}: pass true or false`);
  return value === true;
}

/** The signal of a call, not the controller that has it. */
export function checkSignal(signal: unknown): void {
  if (signal !== undefined && typeof (signal as AbortSignal | null)?.throwIfAborted !== "function")
    throw new ConfigError(`signal has the type ${typeName(signal)}: pass the \`signal\` of an AbortController`);
}

/** The most that a release may leak, in dB above the class mean. */
export function checkLeakageLimit(limit: unknown): void {
  if (limit !== undefined && !(typeof limit === "number" && limit >= 0 && limit < Number.POSITIVE_INFINITY))
    throw new ConfigError(
      `maxLeakageDb is ${shown(limit)}: give the dB above the class mean that a minority of the servers may reach, a ` +
        "finite number of at least 0",
    );
}
