/** The release format: what a client's manifest holds, and the inputs and outputs of the graphs. */

export const FORMAT_VERSION = 1;
export const CODED_FORMAT_VERSION = 2;

export const MANIFEST_NAME = "manifest.json";
export const SIGNATURE_NAME = "manifest.sig";
export const ENCODER_NAME = "encoder.onnx";
export const FUSION_NAME = "fusion.onnx";
export const GOLDEN_NAME = "golden.safetensors";

/** Parameters in a model's configuration; the release check reads them. */
export const RELEASE_PARAMETER = "privdfs_release";
export const SERVER_PARAMETER = "privdfs_server";
export const PARTITION_BYTES = 4;

/** Size of the images that the encoder takes; channels is 1 (grey) or 3 (RGB). */
export interface ImageSpec {
  readonly height: number;
  readonly width: number;
  readonly channels: 1 | 3;
}

export interface ServerSpec {
  readonly share_length: number;
  readonly levels: number;
  readonly scale: number;
}

export interface KeySpec {
  readonly partitions: number;
  readonly family: string;
}

export interface Leakage {
  readonly coalition: readonly number[];
  readonly attack: string;
  readonly psnr: number;
  readonly ssim: number;
  readonly floor: number;
  readonly images: number;
  readonly date: string;
  readonly commit: string;
  readonly effort?: string;
}

interface CommonManifest {
  readonly release: string;
  readonly made_by: Readonly<Record<string, unknown>>;
  readonly classes: readonly string[];
  readonly image: ImageSpec;
  readonly max_batch: number;
  readonly files: Readonly<Record<string, string>>;
  readonly macs: Readonly<Record<"head" | "fusion" | "branch" | "baseline", number>>;
  readonly leakage?: readonly Leakage[];
}

/** `manifest.json` of a masked release, with the names that the file has. Accuracies are fractions. */
export interface MaskedManifest extends CommonManifest {
  readonly format_version: 1;
  readonly servers: readonly ServerSpec[];
  readonly accuracy: {
    readonly data: string;
    readonly images: number;
    readonly baseline: number;
    readonly fused: number;
    readonly branches: readonly number[];
    readonly subsets: readonly { readonly answered: readonly number[]; readonly accuracy: number }[];
    readonly malicious?: readonly { readonly liars: number }[];
    readonly precisions?: readonly { readonly branches: readonly number[] }[];
  };
  readonly keys?: KeySpec;
}

/** One exchange of a coded release with all servers; docs/PROTOCOL.md explains the fields. */
export interface RoundSpec {
  readonly values: number;
  readonly elements: number;
  readonly levels: number;
  readonly outputs: number;
  readonly degree: number;
  readonly moduli: readonly number[];
  readonly bound: number;
  readonly seen: number;
  readonly added: number;
  readonly macs: number;
}

/** `manifest.json` of a coded release. */
export interface CodedManifest extends CommonManifest {
  readonly format_version: 2;
  readonly rounds: readonly RoundSpec[];
  readonly accuracy: {
    readonly data: string;
    readonly images: number;
    readonly baseline: number;
    readonly fused: number;
    readonly readout: number;
  };
}

export type Manifest = MaskedManifest | CodedManifest;

export const isCoded = (manifest: Manifest): manifest is CodedManifest =>
  manifest.format_version === CODED_FORMAT_VERSION;

export type DataType = "uint8" | "int8" | "int32" | "float32" | "bool";

/** An input or output: axes of fixed length, and names for those that a call decides; `batched`: the first is the batch. */
export interface TensorSpec {
  readonly name: string;
  readonly type: DataType;
  readonly shape: readonly (number | string)[];
  readonly batched: boolean;
}

export interface Signature {
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
}

const spec = (name: string, type: DataType, shape: readonly (number | string)[], batched = true): TensorSpec => ({
  name,
  type,
  shape,
  batched,
});

export const shareName = (server: number): string => `share_${server}`;
export const relayName = (round: number): string => `relay-${round}.onnx`;

const imageTensor = (image: ImageSpec): TensorSpec =>
  spec("image", "uint8", [image.height, image.width, image.channels]);

const partitionTensors = (manifest: MaskedManifest): TensorSpec[] =>
  manifest.keys ? [spec("partition", "int32", [1])] : [];

export function encoderSignature(manifest: MaskedManifest): Signature {
  return {
    inputs: [imageTensor(manifest.image), ...partitionTensors(manifest)],
    outputs: manifest.servers.map((server, i) => spec(shareName(i), "int8", [server.share_length])),
  };
}

export function branchSignature(manifest: MaskedManifest, server: number): Signature {
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

export function codedEncoderSignature(manifest: CodedManifest): Signature {
  const first = roundOf(manifest, 0);
  return { inputs: [imageTensor(manifest.image), ...sharingInputs(first)], outputs: sharingOutputs(first) };
}

/** Of every server's network in one round. */
export function roundSignature(round: RoundSpec): Signature {
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

export function roundOf(manifest: CodedManifest, index: number): RoundSpec {
  const round = manifest.rounds[index];
  if (!round) throw new Error(`the release has no round ${index + 1}`);
  return round;
}

/** D of all rounds: what decides how many servers a call needs. */
export const largestDegree = (manifest: CodedManifest): number =>
  Math.max(...manifest.rounds.map((round) => round.degree));

export const largestMinority = (servers: number): number => Math.floor((servers - 1) / 2);

/** The largest minority; where no minority has a member, one server alone. */
export const largestCoalition = (servers: number): number => Math.max(1, largestMinority(servers));

/** Accuracy that the manifest states for the fused answer of exactly these servers; null where it states none. */
export function accuracyOf(manifest: MaskedManifest, answered: readonly number[]): number | null {
  if (answered.length === manifest.servers.length) return manifest.accuracy.fused;
  const wanted = [...answered].sort().join();
  return manifest.accuracy.subsets.find((row) => [...row.answered].sort().join() === wanted)?.accuracy ?? null;
}

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
