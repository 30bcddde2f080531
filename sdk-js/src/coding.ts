/**
 * Sharing integers over small primes, and finding who gave wrong answers; docs/PROTOCOL.md has the mathematics.
 *
 * Residues are centred, from -(p - 1) / 2 to (p - 1) / 2, so that int8 holds them. All arithmetic is on whole numbers
 * far below 2^53, or on BigInt where results are joined.
 */

import { MAX_SERVERS } from "./constants.js";

/** Gives so many random bytes. Only tests use another one than the system's. */
export type Source = (count: number) => Uint8Array;

export { MAX_SERVERS };

/** How many answers decode a round: D T + 1. */
export const neededAnswers = (degree: number, colluding: number): number => degree * colluding + 1;

/** How many wrong answers can be found and left out. */
export const correctable = (answered: number, needed: number): number => Math.floor(Math.max(0, answered - needed) / 2);

/** The residue from 0 to p - 1. */
const reduced = (value: number, prime: number): number => ((value % prime) + prime) % prime;

/** The residue from -(p - 1) / 2 to (p - 1) / 2. */
const centred = (value: number, prime: number): number => {
  const half = (prime - 1) / 2;
  return reduced(value + half, prime) - half;
};

function power(base: number, exponent: number, prime: number): number {
  let result = 1;
  for (let i = 0; i < exponent; i++) result = reduced(result * base, prime);
  return result;
}

const inverse = (value: number, prime: number): number => power(reduced(value, prime), prime - 2, prime);

/**
 * Fresh uniform residues, by rejection: bytes that are no residue are thrown away.
 *
 * Returns centred residues, int8 [batch, colluding, primes, values]. Use them once, and wipe them.
 */
export function draw(
  batch: number,
  colluding: number,
  values: number,
  moduli: readonly number[],
  source: Source,
): Int8Array {
  const rows = batch * colluding;
  const drawn = new Int8Array(rows * moduli.length * values);
  moduli.forEach((prime, column) => {
    const half = (prime - 1) / 2;
    const count = rows * values;
    let kept = 0;
    while (kept < count) {
      const missing = count - kept;
      const bytes = source(missing + Math.floor(missing / 4) + 16);
      for (const byte of bytes) {
        if (byte >= prime || kept === count) continue;
        const row = Math.floor(kept / values);
        // Any p numbers in a row are the residues of p, each once: shifting keeps them uniform.
        drawn[(row * moduli.length + column) * values + (kept % values)] = byte - half;
        kept++;
      }
      bytes.fill(0);
    }
  });
  return drawn;
}

/** a_i to the power of 1 to T modulo each prime, centred: int8 [primes, servers, colluding]. */
export function powers(moduli: readonly number[], servers: number, colluding: number): Int8Array {
  const rows: number[] = [];
  for (const prime of moduli)
    for (let place = 1; place <= servers; place++)
      for (let exponent = 1; exponent <= colluding; exponent++)
        rows.push(centred(power(place, exponent, prime), prime));
  return Int8Array.from(rows);
}

/** What each point counts for in the value at `at` of the polynomial through all of them (Lagrange), 0 to p - 1. */
export function interpolation(places: readonly number[], prime: number, at = 0): number[] {
  return places.map((place) => {
    let above = 1;
    let below = 1;
    for (const other of places) {
      if (other === place) continue;
      above = reduced(above * (at - other), prime);
      below = reduced(below * (place - other), prime);
    }
    return reduced(above * inverse(below, prime), prime);
  });
}

/** What each answer counts for in the result, centred: int8 [primes, answered]. */
export const weights = (moduli: readonly number[], places: readonly number[]): Int8Array =>
  Int8Array.from(moduli.flatMap((prime) => interpolation(places, prime).map((factor) => centred(factor, prime))));

/**
 * Makes integers of their residues, which need not be reduced (Chinese remainder theorem, digits in mixed radix).
 *
 * The integer is the one of smallest magnitude.
 */
export function joiner(moduli: readonly number[]): (residues: readonly number[]) => bigint {
  let product = 1n;
  const steps = moduli.map((prime) => {
    const step = { prime, before: product, inverse: inverse(Number(product % BigInt(prime)), prime) };
    product *= BigInt(prime);
    return step;
  });
  return (residues) => {
    let value = 0n;
    steps.forEach(({ prime, before, inverse }, column) => {
      const missing = reduced((residues[column] as number) - Number(value % BigInt(prime)), prime);
      value += BigInt((missing * inverse) % prime) * before;
    });
    return value > product / 2n ? value - product : value;
  };
}

/**
 * The integers that answers stand for: what relay and fusion compute.
 *
 * `answers[k]` is the answer from `places[k]`, int8 [batch, primes, outputs]. Returns [batch, outputs].
 */
export function decode(
  answers: readonly Int8Array[],
  places: readonly number[],
  moduli: readonly number[],
  outputs: number,
): bigint[] {
  const factors = moduli.map((prime) => interpolation(places, prime));
  const join = joiner(moduli);
  const found: bigint[] = [];
  const images = (answers[0]?.length ?? 0) / (moduli.length * outputs);
  for (let image = 0; image < images; image++)
    for (let output = 0; output < outputs; output++) {
      const residues = moduli.map((_, column) => {
        const at = (image * moduli.length + column) * outputs + output;
        return answers.reduce((sum, answer, k) => sum + (answer[at] as number) * (factors[column]?.[k] as number), 0);
      });
      found.push(join(residues));
    }
  return found;
}

/**
 * Who gave answers that do not lie on one polynomial with the others' (Reed and Solomon).
 *
 * Every image is judged by itself, and who lied about one of them is left out for all.
 *
 * `answers` are as for `decode`, `needed` is D T + 1. Returns indices into `places`; empty: all agree; null: some
 * lied, and it cannot be told who.
 */
export function findLiars(
  answers: readonly Int8Array[],
  places: readonly number[],
  moduli: readonly number[],
  outputs: number,
  needed: number,
): number[] | null {
  const size = moduli.length * outputs;
  const images = (answers[0]?.length ?? 0) / size;
  const liars = new Set<number>();
  for (let image = 0; image < images; image++) {
    const about = answers.map((answer) => answer.subarray(image * size, (image + 1) * size));
    const found = liarsAbout(about, places, moduli, outputs, needed);
    if (!found) return null;
    for (const index of found) liars.add(index);
  }
  return places.length - liars.size < needed ? null : [...liars].sort((a, b) => a - b);
}

/** The fewest servers without whom the answers about one image agree, if these are few enough to be told. */
function liarsAbout(
  answers: readonly Int8Array[],
  places: readonly number[],
  moduli: readonly number[],
  outputs: number,
  needed: number,
): Set<number> | null {
  const liars = new Set<number>();
  while (liars.size <= correctable(places.length, needed)) {
    const rest = places.map((_, index) => index).filter((index) => !liars.has(index));
    const at = contradiction(answers, places, moduli, outputs, needed, rest);
    if (at === null) return liars;
    const values = answers.map((answer) => answer[at] as number);
    const found = wrongPoints(places, values, moduli[Math.floor(at / outputs)] as number, needed);
    if (!found) return null;
    for (const index of found) liars.add(index); // one more at least: without these alone the answers contradict
  }
  return null;
}

/** The first residue about which some servers' answers do not lie on one polynomial; null: there is none. */
function contradiction(
  answers: readonly Int8Array[],
  places: readonly number[],
  moduli: readonly number[],
  outputs: number,
  needed: number,
  who: readonly number[],
): number | null {
  const base = who.slice(0, needed);
  const basePlaces = base.map((index) => places[index] as number);
  const known = base.map((index) => answers[index] as Int8Array);
  for (const other of who.slice(needed)) {
    const found = answers[other] as Int8Array;
    for (const [column, prime] of moduli.entries()) {
      const factors = interpolation(basePlaces, prime, places[other]);
      for (let at = column * outputs; at < (column + 1) * outputs; at++) {
        let foretold = 0;
        for (let k = 0; k < known.length; k++)
          foretold += (factors[k] as number) * ((known[k] as Int8Array)[at] as number);
        if ((foretold - (found[at] as number)) % prime !== 0) return at;
      }
    }
  }
  return null;
}

/**
 * Which values are not those of the one polynomial that all others have; null: those are too few to tell.
 *
 * By linear equations (Welch and Berlekamp, US patent 4633470): Q(a) = value E(a), where E is zero at the wrong ones.
 */
function wrongPoints(
  places: readonly number[],
  values: readonly number[],
  prime: number,
  needed: number,
): Set<number> | null {
  const most = correctable(places.length, needed);
  const locating = places.map((place) =>
    Array.from({ length: needed + most }, (_, exponent) => power(place, exponent, prime)),
  );
  const rows = locating.map((row, index) => [
    ...row,
    ...row.slice(0, most + 1).map((each) => reduced(-(values[index] as number) * each, prime)),
  ]);
  const solution = solve(rows, prime);
  if (!solution) return null;
  const locator = solution.slice(needed + most);
  const right = locating
    .map((row, index) => ({ index, zero: sum(locator, row) % prime === 0 }))
    .filter(({ zero }) => !zero)
    .slice(0, needed)
    .map(({ index }) => index);
  const base = right.map((index) => places[index] as number);
  const known = right.map((index) => values[index] as number);
  const wrong = values
    .map((value, index) => (sum(interpolation(base, prime, places[index]), known) - value) % prime)
    .flatMap((left, index) => (left === 0 ? [] : [index]));
  return wrong.length <= most ? new Set(wrong) : null;
}

const sum = (factors: readonly number[], values: readonly number[]): number =>
  factors.reduce((total, factor, k) => total + factor * (values[k] as number), 0);

/** Numbers, not all zero, whose sum with the factors of every row is zero modulo a prime (Gauss and Jordan). */
function solve(rows: number[][], prime: number): number[] | null {
  const width = rows[0]?.length ?? 0;
  const pivots: number[] = [];
  for (let column = 0; column < width; column++) {
    const done = pivots.length;
    const chosen = rows.findIndex((row, index) => index >= done && row[column] !== 0);
    if (chosen < 0) {
      const solution = new Array<number>(width).fill(0);
      solution[column] = 1;
      pivots.forEach((pivot, index) => {
        solution[pivot] = reduced(-(rows[index]?.[column] as number), prime);
      });
      return solution;
    }
    const taken = rows[chosen] as number[];
    const factor = inverse(taken[column] as number, prime);
    const pivotRow = taken.map((value) => (value * factor) % prime);
    rows[chosen] = rows[done] as number[];
    rows[done] = pivotRow;
    rows.forEach((row, index) => {
      const times = row[column] as number;
      if (index !== done && times !== 0)
        rows[index] = row.map((value, k) => reduced(value - times * (pivotRow[k] as number), prime));
    });
    pivots.push(column);
  }
  return null;
}
