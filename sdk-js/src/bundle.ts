/** The bundle: what an app embeds of a release. */

import { MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES } from "./constants.js";
import { BundleFormatError, BundleIntegrityError, BundleSignatureError, ConfigError } from "./errors.js";
import { GOLDEN_NAME, type ImageSpec, MANIFEST_NAME, type Manifest, SIGNATURE_NAME } from "./format.js";
import { checkFlag, checkNames } from "./given.js";
import type { Graphs, SelfTest } from "./kinds.js";
import { loaded } from "./loaded.js";
import { readRelease } from "./manifest.js";
import { checkRuntime, type Runtime } from "./runtime.js";
import { checkSignature, type Trust } from "./signature.js";
import { checkSource, readVerified, type Source } from "./source.js";

export interface BundleOptions {
  /** The ONNX runtime: the module `onnxruntime-web/wasm`, `onnxruntime-node` or `onnxruntime-react-native`. */
  readonly runtime: Runtime;
  /** Public key of the signer, or several, one of which must have signed. This or `allowUnsigned` is needed. */
  readonly trust?: Trust;
  /** Open it without a signature check, for development. */
  readonly allowUnsigned?: boolean;
}

/** The client's part of a release, verified and ready to run. Make one with `Bundle.open`; clients may share it. */
export class Bundle {
  private constructor(
    /** Everything that the release states about itself; `format_version` tells masked (1) from coded (2). */
    readonly manifest: Manifest,
    /** @internal */
    readonly graphs: Graphs,
    /** @internal the golden file */
    readonly golden: Uint8Array,
  ) {}

  /**
   * Open the `client` folder of a release.
   *
   * The signature is checked before the manifest is parsed, and every file is compared with its SHA-256 in the manifest
   * before ONNX Runtime sees a byte of it.
   *
   * @throws BundleSignatureError it is not signed by a trusted key, or none was named.
   * @throws BundleVersionError the manifest's format is not one that this version reads.
   * @throws BundleFormatError the manifest or a graph is not what the format promises.
   * @throws BundleIntegrityError a file is missing or changed.
   * @throws BundleStoreError a file cannot be fetched, or the part of this package that the release needs.
   * @throws ConfigError an option makes no sense.
   */
  static async open(source: Source, options: BundleOptions): Promise<Bundle> {
    const { runtime, trust } = checkOptions(options);
    const read = checkSource(source);
    const manifestBytes = await read(MANIFEST_NAME, MAX_MANIFEST_BYTES);
    if (manifestBytes === null)
      throw new BundleIntegrityError(
        `there is no ${MANIFEST_NAME}: give the client folder of a release, whole`,
        MANIFEST_NAME,
      );
    if (manifestBytes.length > MAX_MANIFEST_BYTES)
      throw new BundleFormatError(`${MANIFEST_NAME} is too large to be a manifest: get the release again`);
    if (trust !== undefined)
      await checkSignature(manifestBytes, await read(SIGNATURE_NAME, MAX_SIGNATURE_BYTES), trust);
    const { manifest, kind } = await readRelease(manifestBytes);
    const files = await readVerified(read, manifest.files);
    const graphs = await kind.openGraphs(runtime, manifest, files);
    return new Bundle(manifest, graphs, files.get(GOLDEN_NAME) as Uint8Array);
  }

  /** Id of the release. */
  get release(): string {
    return this.manifest.release;
  }

  get classes(): readonly string[] {
    return this.manifest.classes;
  }

  /** Size of the images that the encoder takes. */
  get image(): ImageSpec {
    return this.manifest.image;
  }

  /**
   * Replay the golden examples on this device: images to shares, recorded answers to probabilities. Of a coded release
   * all but the head has to give the very integers that were recorded.
   *
   * @throws SelfTestError they differ by more than rounding explains.
   * @throws BundleFormatError the golden file does not hold the tensors of this release.
   */
  async selftest(): Promise<SelfTest> {
    return (await loaded(import("./selftest.js"))).replay(this.graphs, this.golden);
  }
}

/** The options of `Bundle.open`, also where a store will open bundles with them. */
export function checkOptions(options: BundleOptions): BundleOptions {
  checkNames(options, ["runtime", "trust", "allowUnsigned"], "Bundle.open");
  const { runtime, trust } = options;
  checkRuntime(runtime);
  const unsigned = checkFlag(options.allowUnsigned, "allowUnsigned");
  if (trust !== undefined && unsigned)
    throw new ConfigError("`trust` and `allowUnsigned` contradict each other: drop one of them");
  if (trust === undefined && !unsigned)
    throw new BundleSignatureError(
      "this could be anyone's bundle: pass trust: <public key of the signer>, or allowUnsigned: true for development",
    );
  return options;
}
