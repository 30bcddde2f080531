/** What only a masked release's format has: its manifest's fields, and the inputs and outputs of its graphs. */

import {
  ENCODER_NAME,
  FUSION_NAME,
  GOLDEN_NAME,
  imageTensor,
  largestMinority,
  type MaskedManifest,
  type Model,
  type Signature,
  shareName,
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
  string,
} from "./manifest-common.js";
import { type Check, list, number, object, text, whole } from "./schema.js";

export const fields: Check = object(
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

/** Refuse a manifest that contradicts itself. */
export function checkManifest(manifest: MaskedManifest): void {
  const count = manifest.servers.length;
  requireFiles(manifest, [ENCODER_NAME, FUSION_NAME, GOLDEN_NAME]);
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

const partitionTensors = (manifest: MaskedManifest): TensorSpec[] =>
  manifest.keys ? [spec("partition", "int32", [1])] : [];

export function encoderSignature(manifest: MaskedManifest): Signature {
  return {
    inputs: [imageTensor(manifest.image), ...partitionTensors(manifest)],
    outputs: manifest.servers.map((server, i) => spec(shareName(i), "int8", [server.share_length])),
  };
}

function branchSignature(manifest: MaskedManifest, server: number): Signature {
  const length = manifest.servers[server]?.share_length ?? 0;
  return {
    inputs: [spec("share", "int8", [length]), ...partitionTensors(manifest)],
    outputs: [spec("logits", "float32", [manifest.classes.length])],
  };
}

export function fusionSignature(manifest: MaskedManifest): Signature {
  const servers = manifest.servers.length;
  const classes = manifest.classes.length;
  return {
    inputs: [spec("logits", "float32", [servers, classes]), spec("answered", "bool", [servers])],
    outputs: [spec("probabilities", "float32", [classes])],
  };
}

/** What a server serves. */
export function modelsOf(manifest: MaskedManifest, server: number): Model[] {
  const { inputs, outputs } = branchSignature(manifest, server);
  return [{ name: "branch", inputs, output: outputs[0] as TensorSpec, moduli: [] }];
}

/** Accuracy that the manifest states for the fused answer of exactly these servers; null where it states none. */
export function accuracyOf(manifest: MaskedManifest, answered: readonly number[]): number | null {
  if (answered.length === manifest.servers.length) return manifest.accuracy.fused;
  const wanted = [...answered].sort().join();
  return manifest.accuracy.subsets.find((row) => [...row.answered].sort().join() === wanted)?.accuracy ?? null;
}
