/**
 * Reading `manifest.json` of a bundle, strictly: an unknown version is refused before anything else is looked at, and
 * so is an unknown field, a missing one, a value of another type, or a manifest that contradicts itself.
 */

import { textOf } from "./bytes.js";
import { MAX_SERVERS } from "./constants.js";
import { BundleFormatError, BundleIntegrityError, BundleVersionError } from "./errors.js";
import {
  CODED_FORMAT_VERSION,
  type CodedManifest,
  ENCODER_NAME,
  FORMAT_VERSION,
  FUSION_NAME,
  GOLDEN_NAME,
  largestMinority,
  MANIFEST_NAME,
  type Manifest,
  type MaskedManifest,
  relayName,
  SIGNATURE_NAME,
} from "./format.js";
import { shown } from "./given.js";
import {
  type Check,
  free,
  list,
  map,
  number,
  object,
  Problem,
  parse,
  readJson,
  record,
  text,
  whole,
  wholeNumbersOnly,
} from "./schema.js";

const positive = whole(1);
const index = whole(0);
const fraction = number(0, 1);
const finite = number();
const string = text();
const release = text(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/);
const sha256 = text(/^[0-9a-f]{64}$/);

const image = object({
  height: positive,
  width: positive,
  channels: (value, lexical, place) => {
    whole(1, 3)(value, lexical, place);
    if (value === 2) throw new Problem(`${place} is neither 1 nor 3`);
  },
});
const calibration = object({ before: fraction, after: fraction, fitted_on: string });

const common = {
  format_version: whole(),
  release,
  made_by: object({
    command: string,
    commit: string,
    date: string,
    seed: whole(),
    config: map(free),
    versions: map(string),
  }),
  classes: list(string, 2),
  image,
  max_batch: positive,
  files: map(sha256),
  macs: object({ head: index, fusion: index, branch: index, baseline: index }),
};
const leakage = list(
  object(
    {
      coalition: list(index),
      attack: string,
      psnr: finite,
      ssim: finite,
      floor: finite,
      images: positive,
      date: string,
      commit: string,
    },
    { effort: string },
  ),
);
const measured = { data: string, images: positive, baseline: fraction, fused: fraction };

const MASKED = object(
  {
    ...common,
    servers: list(
      object({
        share_length: positive,
        levels: whole(3, 255),
        scale: number(undefined, undefined, 0),
      }),
      1,
    ),
    accuracy: object(
      {
        ...measured,
        branches: list(fraction),
        subsets: list(object({ answered: list(index), accuracy: fraction })),
      },
      {
        malicious: list(
          object({
            liars: positive,
            random: fraction,
            constant: fraction,
            flipped: fraction,
            runner_up: fraction,
            adversarial: fraction,
          }),
        ),
        precisions: list(object({ precision: string, fused: fraction, branches: list(fraction), agreement: fraction })),
        calibration,
      },
    ),
  },
  { leakage, keys: object({ partitions: whole(2, 65_536), family: text(/^[0-9a-f]{32}$/) }) },
);

const CODED = object(
  {
    ...common,
    rounds: list(
      object({
        values: positive,
        elements: positive,
        levels: whole(3, 255),
        outputs: positive,
        degree: whole(1, 8),
        moduli: list(whole(MAX_SERVERS + 1, 241), 1),
        bound: whole(1, Number.MAX_SAFE_INTEGER),
        seen: index,
        added: index,
        macs: index,
      }),
      1,
    ),
    accuracy: object({ ...measured, readout: fraction }, { calibration }),
  },
  { leakage },
);

/** Read a client's manifest of either kind. */
export function readManifest(data: Uint8Array): Manifest {
  const source = textOf(data);
  if (source === null) throw new BundleFormatError("the manifest is not UTF-8: get the release again");
  const coded = versionOf(source) === CODED_FORMAT_VERSION;
  const manifest = decode(source, coded ? CODED : MASKED) as unknown as Manifest;
  for (const name of Object.keys(manifest.files)) checkListedPath(name);
  if (manifest.format_version === CODED_FORMAT_VERSION) checkCoded(manifest);
  else checkMasked(manifest);
  return manifest;
}

function versionOf(source: string): number {
  let found: unknown;
  let lexical: unknown;
  try {
    const whole = parse(source);
    if (!record(whole)) throw new Problem("it is not an object");
    found = whole.format_version;
    lexical = (parse(wholeNumbersOnly(source)) as Record<string, unknown>).format_version;
  } catch (error) {
    throw unreadable(error);
  }
  if (typeof lexical !== "number" || (found !== FORMAT_VERSION && found !== CODED_FORMAT_VERSION))
    throw new BundleVersionError(
      `the manifest has format version ${shown(found)}, this version of privdfs reads ${FORMAT_VERSION} and ` +
        `${CODED_FORMAT_VERSION}: install the privdfs that fits the release, or get a release that fits`,
      found,
      CODED_FORMAT_VERSION,
    );
  return found;
}

function decode(source: string, check: Check): Record<string, unknown> {
  try {
    return readJson(source, check) as Record<string, unknown>;
  } catch (error) {
    throw unreadable(error);
  }
}

function unreadable(error: unknown): BundleFormatError {
  const why = error instanceof Problem ? error.message : "it is nested too deeply";
  return new BundleFormatError(`the manifest is not one of this format (${why}): get the release again`);
}

function require(condition: boolean, problem: string): void {
  if (!condition) throw new BundleFormatError(`the manifest contradicts itself: ${problem}; get the release again`);
}

const distinct = (values: readonly unknown[]): boolean => new Set(values).size === values.length;

function checkCommon(manifest: Manifest, names: readonly string[]): void {
  for (const name of names) require(Object.hasOwn(manifest.files, name), `\`files\` lacks ${name}`);
  require(distinct(manifest.classes), "`classes` has a name twice");
}

function checkMasked(manifest: MaskedManifest): void {
  const count = manifest.servers.length;
  checkCommon(manifest, [ENCODER_NAME, FUSION_NAME, GOLDEN_NAME]);
  for (const server of manifest.servers)
    require(server.levels % 2 === 1, "`levels` must be odd, so that zero is one of them");
  const { branches, malicious = [], precisions = [], subsets } = manifest.accuracy;
  require(branches.length === count, "`accuracy.branches` must have one value for each server");
  for (const row of malicious)
    require(row.liars <= largestMinority(count), "`accuracy.malicious` has a row whose liars are not a minority");
  for (const row of precisions)
    require(row.branches.length === count, "`accuracy.precisions` must have one value for each server");
  const groups = [...subsets.map((row) => row.answered), ...(manifest.leakage ?? []).map((row) => row.coalition)];
  for (const group of groups)
    require(distinct(group) &&
      group.every(
        (server) => server < count,
      ), `a subset or coalition names servers outside 0..${count - 1}, or one twice`);
}

function checkCoded(manifest: CodedManifest): void {
  const relays = manifest.rounds.slice(1).map((_, i) => relayName(i + 1));
  checkCommon(manifest, [ENCODER_NAME, ...relays, FUSION_NAME, GOLDEN_NAME]);
  for (const { coalition } of manifest.leakage ?? [])
    require(coalition.length > 0 &&
      distinct(coalition) &&
      coalition.every(
        (server) => server < MAX_SERVERS,
      ), `a coalition is empty, names a server twice, or one outside 0..${MAX_SERVERS - 1}`);
  manifest.rounds.forEach((round, i) => {
    const number = i + 1;
    const where = `round ${number}: `;
    require(round.levels % 2 === 1, `${where}\`levels\` must be odd, so that zero is one of them`);
    require(distinct(round.moduli) && round.moduli.every(isPrime), `${where}\`moduli\` must be different primes`);
    // Beyond 2^53 numbers of JavaScript are not exact.
    const product = round.moduli.reduce((all, prime) => all * BigInt(prime), 1n);
    require(2n * BigInt(round.bound) <
      product, `${where}the product of \`moduli\` is too small for results up to \`bound\``);
    require(number === 1
      ? round.values <= round.elements
      : round.values === round.elements, `${where}\`values\` are chosen from \`elements\` in the first round alone`);
    require(round.added === 0 ||
      (round.added <= number &&
        manifest.rounds[round.added - 1]?.elements ===
          round.outputs), `${where}\`added\` names a round with another number of values`);
    const next = manifest.rounds[number];
    require(next === undefined ||
      next.elements ===
        round.outputs, `round ${number + 1}: \`values\` must be as many as the \`outputs\` of the round before`);
  });
  const last = manifest.rounds[manifest.rounds.length - 1];
  require(last?.outputs === manifest.classes.length &&
    last.added === 0, "the last round must have one output for each class, and add nothing");
}

function isPrime(number: number): boolean {
  for (let factor = 2; factor * factor <= number; factor++) if (number % factor === 0) return false;
  return number > 1;
}

/** Refuse a path that is not relative, not in plain posix form, or leaves the folder. */
export function checkListedPath(name: string): void {
  const parts = name.split("/");
  const plain = parts.every((part) => part !== "" && part !== "." && part !== "..") && !/[\\:\0]/.test(name);
  if (!plain || name === MANIFEST_NAME || name === SIGNATURE_NAME)
    throw new BundleIntegrityError(
      `the manifest lists ${shown(name)}, which is not a plain path inside its folder: get the release again`,
      name,
    );
}
