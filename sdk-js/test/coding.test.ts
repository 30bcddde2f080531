/** Who lies is found by equations; here it is compared with trying every set of servers. */

import { expect, test } from "vitest";
import { correctable, findLiars, interpolation } from "../src/coding.js";

/** What servers at places 1 to `count` answer whose polynomials modulo each prime are 3 x^2 + k x + k. */
function honest(count: number, moduli: readonly number[], outputs: number): Int8Array[] {
  return Array.from({ length: count }, (_, index) => {
    const x = index + 1;
    return Int8Array.from({ length: moduli.length * outputs }, (_, k) => {
      const prime = moduli[Math.floor(k / outputs)] as number;
      return ((3 * x * x + k * x + k) % prime) - (prime - 1) / 2;
    });
  });
}

const places = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

function lie(answers: readonly Int8Array[], server: number, at: number): void {
  const own = answers[server] as Int8Array;
  own[at] = (own[at] as number) + 1;
}

/** The same numbers; `read` is told of every one that is read. */
function counted(numbers: Int8Array, read: () => void): Int8Array {
  return new Proxy(numbers, {
    get(target, key): unknown {
      if (key === "subarray") return (first: number, last: number) => counted(target.subarray(first, last), read);
      read();
      return Reflect.get(target, key, target);
    },
  });
}

test.each([
  [6, [0, 1, 2, 3, 4, 5]],
  [7, null],
])("%i liars among 16 servers cost little, whether they can be told or not", (lies, found) => {
  const moduli = [241, 239, 233, 229];
  const answers = honest(16, moduli, 50);
  for (let server = 0; server < lies; server++) lie(answers, server, moduli.length * 50 - 1);
  let reads = 0;
  const watched = answers.map((own) =>
    counted(own, () => {
      reads++;
    }),
  );
  expect(findLiars(watched, places(16), moduli, 50, 3)).toEqual(found);
  expect(reads).toBeLessThan(200_000); // trying 14,892 sets of servers reads each answer thousands of times
});

function agree(answers: readonly Int8Array[], moduli: readonly number[], who: readonly number[]): boolean {
  const base = who.slice(0, 3);
  return who.slice(3).every((other) =>
    moduli.every((prime, column) => {
      const factors = interpolation(
        base.map((index) => index + 1),
        prime,
        other + 1,
      );
      const foretold = base.reduce(
        (sum, index, k) => sum + (factors[k] as number) * (answers[index]?.[column] as number),
        0,
      );
      return (foretold - (answers[other]?.[column] as number)) % prime === 0;
    }),
  );
}

/** All sets of servers, small ones first, as the bits of a number. */
function tried(answers: readonly Int8Array[], moduli: readonly number[]): number[] | null {
  const everybody = answers.map((_, index) => index);
  const within = (set: number): number[] => everybody.filter((index) => set & (1 << index));
  const sets = Array.from({ length: 1 << answers.length }, (_, set) => set)
    .filter((set) => within(set).length <= correctable(answers.length, 3))
    .sort((a, b) => within(a).length - within(b).length);
  const out = sets.find((set) => agree(answers, moduli, within(~set)));
  return out === undefined ? null : within(out);
}

test.each([4, 5, 6, 7, 8])("of %i servers those are named whom trying finds", (count) => {
  const moduli = [17, 241];
  const kinds = new Set<number | null>();
  for (let mask = 0; mask < 1 << count; mask++) {
    const answers = honest(count, moduli, 1);
    for (let server = 0; server < count; server++) if (mask & (1 << server)) lie(answers, server, server % 2);
    const found = findLiars(answers, places(count), moduli, 1, 3);
    expect(found).toEqual(tried(answers, moduli));
    kinds.add(found?.length ?? null);
  }
  expect(kinds).toContain(null);
  expect(kinds).toContain(correctable(count, 3));
});
