/** Strict reading of JSON: an unknown field, a missing one, or a value of another type is a problem with a place. */

/** What is wrong, in words that name fields and never quote values. */
export class Problem extends Error {}

/**
 * Compares a value with what is expected.
 *
 * `lexical` is the same document with null in the place of every number that is not spelt as a whole one, since
 * JavaScript reads 1.0 and 1 alike.
 */
export type Check = (value: unknown, lexical: unknown, place: string) => void;

/** Read a JSON object and check it; throws `Problem`. */
export function readJson(text: string, check: Check): unknown {
  const value = parse(text);
  check(value, parse(wholeNumbersOnly(text)), "$");
  return value;
}

export function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem("it is not JSON");
  }
}

/** Null for every number with a fraction or an exponent; strings are left alone. */
export function wholeNumbersOnly(text: string): string {
  return text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) =>
    token.startsWith('"') || /^-?\d+$/.test(token) ? token : "null",
  );
}

export const record = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** An object with exactly these fields, those behind `optional` at will. */
export function object(fields: Record<string, Check>, optional: Record<string, Check> = {}): Check {
  const all = new Map([...Object.entries(fields), ...Object.entries(optional)]);
  return (value, lexical, place) => {
    if (!record(value) || !record(lexical)) throw new Problem(`${place} is not an object`);
    for (const name of Object.keys(fields))
      if (!Object.hasOwn(value, name)) throw new Problem(`${place} lacks \`${name}\``);
    for (const name of Object.keys(value)) {
      const check = all.get(name);
      if (!check) throw new Problem(`${place} has an unknown field`);
      check(value[name], lexical[name], `${place}.${name}`);
    }
  };
}

/** An object whose names are free. */
export function map(of: Check): Check {
  return (value, lexical, place) => {
    if (!record(value) || !record(lexical)) throw new Problem(`${place} is not an object`);
    for (const name of Object.keys(value)) of(value[name], lexical[name], `${place}[…]`);
  };
}

export function list(of: Check, least = 0): Check {
  return (value, lexical, place) => {
    if (!Array.isArray(value) || !Array.isArray(lexical)) throw new Problem(`${place} is not a list`);
    if (value.length < least) throw new Problem(`${place} is too short`);
    value.forEach((item, i) => {
      of(item, lexical[i], `${place}[${i}]`);
    });
  };
}

export function whole(low = Number.NEGATIVE_INFINITY, high = Number.POSITIVE_INFINITY): Check {
  return (value, lexical, place) => {
    if (typeof value !== "number" || typeof lexical !== "number") throw new Problem(`${place} is not a whole number`);
    if (!(value >= low && value <= high)) throw new Problem(`${place} is out of range`);
  };
}

/** A finite number, from `low` to `high`; `above` excludes `low` itself. */
export function number(
  low = Number.NEGATIVE_INFINITY,
  high = Number.POSITIVE_INFINITY,
  above = Number.NEGATIVE_INFINITY,
): Check {
  return (value, _lexical, place) => {
    if (typeof value !== "number" || !Number.isFinite(value)) throw new Problem(`${place} is not a number`);
    if (!(value >= low && value <= high && value > above)) throw new Problem(`${place} is out of range`);
  };
}

export function text(pattern = /^/): Check {
  return (value, _lexical, place) => {
    if (typeof value !== "string") throw new Problem(`${place} is not a text`);
    if (!pattern.test(value)) throw new Problem(`${place} has another form`);
  };
}

export const free: Check = () => {};
