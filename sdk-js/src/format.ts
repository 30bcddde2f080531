/**
 * The release format: what a client's manifest holds, and how inputs and outputs of graphs are described. What only one
 * kind of release has is in `masked-format.ts` and `coded-format.ts`.
 */

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

export const spec = (
  name: string,
  type: DataType,
  shape: readonly (number | string)[],
  batched = true,
): TensorSpec => ({
  name,
  type,
  shape,
  batched,
});

export const shareName = (server: number): string => `share_${server}`;

export const imageTensor = (image: ImageSpec): TensorSpec =>
  spec("image", "uint8", [image.height, image.width, image.channels]);

/** A network that every server serves: of a masked release one, of a coded one for each round. */
export interface Model {
  readonly name: string;
  readonly inputs: readonly TensorSpec[];
  readonly output: TensorSpec;
  /** Primes of the residues in its answers; none in masked releases. */
  readonly moduli: readonly number[];
}

export const largestMinority = (servers: number): number => Math.floor((servers - 1) / 2);

/** The largest minority; where no minority has a member, one server alone. */
export const largestCoalition = (servers: number): number => Math.max(1, largestMinority(servers));
