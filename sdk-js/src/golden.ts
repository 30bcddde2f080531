/** The golden examples of a bundle: `golden.safetensors`, read and compared with what the manifest promises. */

import { same } from "./bytes.js";
import { BundleFormatError } from "./errors.js";
import { GOLDEN_NAME, isCoded, type Manifest, type RoundSpec, shareName } from "./format.js";
import { readSafetensors, type Stored } from "./safetensors.js";
import { Problem } from "./schema.js";

export interface Golden {
  /** How many examples there are. */
  readonly count: number;
  /** The bytes of a tensor, in a buffer of their own. */
  bytes(name: string): ArrayBuffer;
}

/** How many answers are recorded of a round: D T + 1, of one server that colludes. */
export const goldenAnswers = (round: RoundSpec): number => round.degree + 1;

/** Read the golden file of a release, which must hold exactly its tensors. */
export function readGolden(manifest: Manifest, file: Uint8Array): Golden {
  const tensors = read(file);
  const count = tensors.get("images")?.shape[0] ?? 0;
  const wanted = Object.entries(tensorsOf(manifest));
  const fits = wanted.every(([name, [type, ...sizes]]) => {
    const stored = tensors.get(name);
    return stored?.dtype === type && same(stored?.shape as number[], [count, ...(sizes as number[])]);
  });
  if (!count || !fits || tensors.size !== wanted.length)
    throw new BundleFormatError(`${GOLDEN_NAME} does not hold the tensors of this release: get the release again`);
  return { count, bytes: (name) => (tensors.get(name) as Stored).bytes.slice().buffer as ArrayBuffer };
}

/** Every tensor's type, and the sizes of one example. */
function tensorsOf(manifest: Manifest): Record<string, readonly (string | number)[]> {
  const { height, width, channels } = manifest.image;
  const classes = manifest.classes.length;
  const wanted: Record<string, readonly (string | number)[]> = {
    images: ["U8", height, width, channels],
    probabilities: ["F32", classes],
  };
  if (isCoded(manifest))
    manifest.rounds.forEach((round, i) => {
      wanted[`values_${i + 1}`] = ["I8", round.elements];
      wanted[`answers_${i + 1}`] = ["I8", goldenAnswers(round), round.moduli.length, round.outputs];
    });
  else {
    if (manifest.keys) wanted.partition = ["I32", 1];
    manifest.servers.forEach((server, i) => {
      wanted[shareName(i)] = ["I8", server.share_length];
    });
    wanted.logits = ["F32", manifest.servers.length, classes];
  }
  return wanted;
}

function read(file: Uint8Array): ReadonlyMap<string, Stored> {
  try {
    return readSafetensors(file);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    throw new BundleFormatError(`${GOLDEN_NAME} is not a safetensors file (${error.message}): get the release again`);
  }
}
