/** What only a coded release's format has: its manifest's fields, and the inputs and outputs of its graphs. */

import { MAX_SERVERS } from "./constants.js";
import {
  type CodedManifest,
  ENCODER_NAME,
  FUSION_NAME,
  GOLDEN_NAME,
  imageTensor,
  type Model,
  type RoundSpec,
  type Signature,
  spec,
  type TensorSpec,
} from "./format.js";
import {
  calibration,
  common,
  distinct,
  fraction,
  index,
  leakage,
  measured,
  positive,
  require,
  requireFiles,
} from "./manifest-common.js";
import { type Check, list, object, whole } from "./schema.js";

export const fields: Check = object(
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

/** Refuse a manifest that contradicts itself. */
export function checkManifest(manifest: CodedManifest): void {
  const relays = manifest.rounds.slice(1).map((_, i) => relayName(i + 1));
  requireFiles(manifest, [ENCODER_NAME, ...relays, FUSION_NAME, GOLDEN_NAME]);
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

export const relayName = (round: number): string => `relay-${round}.onnx`;

export function codedEncoderSignature(manifest: CodedManifest): Signature {
  const first = roundOf(manifest, 0);
  return { inputs: [imageTensor(manifest.image), ...sharingInputs(first)], outputs: sharingOutputs(first) };
}

/** Of every server's network in one round. */
function roundSignature(round: RoundSpec): Signature {
  const primes = round.moduli.length;
  return {
    inputs: [spec("share", "int8", [primes, round.values])],
    outputs: [spec("residues", "int8", [primes, round.outputs])],
  };
}

/** Of what the device does after a round, counted from 1. */
export function relaySignature(manifest: CodedManifest, number: number): Signature {
  const current = roundOf(manifest, number - 1);
  const following = roundOf(manifest, number);
  const added = current.added ? [spec("added", "int8", [current.outputs])] : [];
  return {
    inputs: [...answerInputs(current), ...sharingInputs(following), ...added],
    outputs: sharingOutputs(following),
  };
}

export function codedFusionSignature(manifest: CodedManifest): Signature {
  const last = roundOf(manifest, manifest.rounds.length - 1);
  return {
    inputs: answerInputs(last),
    outputs: [spec("probabilities", "float32", [manifest.classes.length])],
  };
}

/** What every server serves. */
export const modelsOf = (manifest: CodedManifest): Model[] =>
  manifest.rounds.map((round, i) => {
    const { inputs, outputs } = roundSignature(round);
    return { name: `branch-${i + 1}`, inputs, output: outputs[0] as TensorSpec, moduli: round.moduli };
  });

export function roundOf(manifest: CodedManifest, index: number): RoundSpec {
  const round = manifest.rounds[index];
  if (!round) throw new Error(`the release has no round ${index + 1}`);
  return round;
}

/** D of all rounds: what decides how many servers a call needs. */
export const largestDegree = (manifest: CodedManifest): number =>
  Math.max(...manifest.rounds.map((round) => round.degree));

function sharingInputs(round: RoundSpec): TensorSpec[] {
  const primes = round.moduli.length;
  return [
    spec("randomness", "int8", ["colluding", primes, round.values]),
    spec("powers", "int8", [primes, "servers", "colluding"], false),
  ];
}

function sharingOutputs(round: RoundSpec): TensorSpec[] {
  return [
    spec("shares", "int8", ["servers", round.moduli.length, round.values]),
    spec("values", "int8", [round.elements]),
  ];
}

function answerInputs(round: RoundSpec): TensorSpec[] {
  const primes = round.moduli.length;
  return [
    spec("answers", "int8", ["answered", primes, round.outputs]),
    spec("weights", "int8", [primes, "answered"], false),
  ];
}
