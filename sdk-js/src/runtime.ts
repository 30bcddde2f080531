/**
 * The only module that touches ONNX Runtime, which the application passes in: `onnxruntime-web/wasm`,
 * `onnxruntime-node` or `onnxruntime-react-native`.
 */

import { BundleFormatError, ConfigError } from "./errors.js";
import { type DataType, FUSION_NAME, type Signature, type TensorSpec } from "./format.js";

// biome-ignore lint/suspicious/noExplicitAny: the runtimes' own types are overloaded beyond what can be compared
type Foreign = any;

export type TypedArray = Uint8Array | Int8Array | Int32Array | Float32Array;

/** A tensor: numbers in row-major order, and the lengths of its axes. */
export interface Tensor<T extends TypedArray = TypedArray> {
  readonly data: T;
  readonly dims: readonly number[];
}

/** What is used of an ONNX runtime; its own types fit. */
export interface Runtime {
  readonly Tensor: new (type: Foreign, data: Foreign, dims: readonly number[]) => unknown;
  readonly InferenceSession: {
    create(model: Uint8Array, options?: Foreign): Promise<Session>;
  };
}

interface Session {
  run(feeds: Foreign, fetches: readonly string[]): Promise<Readonly<Record<string, Foreign>>>;
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Missing in older runtimes. */
  readonly inputMetadata?: Foreign;
  readonly outputMetadata?: Foreign;
}

const OPTIONS = {
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
  logSeverityLevel: 4, // only fatal: whatever goes wrong is thrown, and log lines can show values
  extra: { session: { intra_op: { allow_spinning: "0" } } },
};

export function checkRuntime(runtime: unknown): void {
  const { InferenceSession, Tensor } = (runtime ?? {}) as Partial<Runtime>;
  if (typeof InferenceSession?.create !== "function" || typeof Tensor !== "function")
    throw new ConfigError(
      "the runtime is not an ONNX runtime: pass the module, as in import * as ort from 'onnxruntime-web/wasm'",
    );
}

/** What the fusion gave, float32 [batch, classes], which must be numbers. */
export function checkProbabilities(probabilities: Float32Array): Float32Array {
  if (!probabilities.every(Number.isFinite))
    throw new BundleFormatError(`${FUSION_NAME} gives NaN or infinite probabilities: run the bundle's self-test`);
  return probabilities.slice();
}

/** Makes a tensor of a graph's input. */
export const tensor = <T extends TypedArray>(data: T, ...dims: readonly number[]): Tensor<T> => ({ data, dims });

/** An ONNX graph with exactly the inputs and outputs that the release format promises. */
export class Graph {
  readonly #runtime: Runtime;
  readonly #session: Session;
  readonly #name: string;
  readonly #signature: Signature;
  /** Runs one after the other: not every runtime allows more on one session. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(runtime: Runtime, session: Session, name: string, signature: Signature) {
    this.#runtime = runtime;
    this.#session = session;
    this.#name = name;
    this.#signature = signature;
  }

  /** Parse a graph, whose bytes must have been verified, and compare its inputs and outputs. */
  static async open(runtime: Runtime, name: string, data: Uint8Array, signature: Signature): Promise<Graph> {
    let session: Session;
    try {
      session = await runtime.InferenceSession.create(data, OPTIONS);
    } catch {
      throw new BundleFormatError(`${name} cannot be loaded by this ONNX Runtime: update it, or get the release again`);
    }
    compare(name, "inputs", session.inputNames, session.inputMetadata, signature.inputs);
    compare(name, "outputs", session.outputNames, session.outputMetadata, signature.outputs);
    return new Graph(runtime, session, name, signature);
  }

  /** Run the graph; the outputs come in the order of the signature, each compared with it. */
  run(feeds: Readonly<Record<string, Tensor>>, sizes: Readonly<Record<string, number>>): Promise<Tensor[]> {
    const result = this.#last.then(() => this.#run(feeds, sizes));
    this.#last = result.catch(() => {});
    return result;
  }

  async #run(feeds: Readonly<Record<string, Tensor>>, sizes: Readonly<Record<string, number>>): Promise<Tensor[]> {
    const inputs: Record<string, unknown> = {};
    for (const spec of this.#signature.inputs) {
      const feed = feeds[spec.name];
      if (!feed) throw new Error(`${this.#name} was run without ${spec.name}`);
      inputs[spec.name] = new this.#runtime.Tensor(spec.type, feed.data, feed.dims);
    }
    const outputs = this.#signature.outputs;
    let found: Readonly<Record<string, Tensor & { readonly type?: string }>>;
    try {
      found = await this.#session.run(
        inputs,
        outputs.map((spec) => spec.name),
      );
    } catch {
      // The runtime's own message may quote values, so it is not passed on.
      throw new BundleFormatError(
        `${this.#name} fails on an input that fits its signature: run the bundle's self-test, and get the release ` +
          "again if that fails",
      );
    }
    return outputs.map((spec) => {
      const output = found[spec.name];
      const wanted = [...(spec.batched ? ["batch"] : []), ...spec.shape].map((axis) =>
        typeof axis === "number" ? axis : sizes[axis],
      );
      if (!output || !isOf(output.data, spec.type) || output.dims.join() !== wanted.join())
        throw new BundleFormatError(
          `${this.#name} gives ${spec.name} [${output?.dims}] where the manifest promises [${wanted}]: get the ` +
            "release again",
        );
      return { data: output.data, dims: output.dims };
    });
  }
}

const ARRAYS = { uint8: Uint8Array, int8: Int8Array, int32: Int32Array, float32: Float32Array, bool: Uint8Array };

const isOf = (data: unknown, type: DataType): boolean => data instanceof ARRAYS[type];

/** Names, types and shapes must be exactly those expected, and the axes that a call decides free. */
function compare(
  name: string,
  side: string,
  found: readonly string[],
  metadata: unknown,
  expected: readonly TensorSpec[],
): void {
  const wanted = expected.map((spec) =>
    describe(spec.name, spec.type, [...(spec.batched ? ["batch"] : []), ...spec.shape]),
  );
  const known = Array.isArray(metadata) && metadata.length === found.length;
  const actual = found.map((own, i) => {
    const about = known ? metadata[i] : null;
    const spec = expected[i];
    if (!about) return own === spec?.name ? (wanted[i] as string) : `${own} of an unknown form`;
    const axes: unknown[] = [...(about.shape ?? [])];
    if (spec?.batched && axes.length && typeof axes[0] !== "number") axes[0] = "batch";
    return describe(own, about.type, axes);
  });
  if (actual.join("; ") !== wanted.join("; "))
    throw new BundleFormatError(
      `${name} has the ${side} ${actual.join(", ")} where the manifest promises ${wanted.join(", ")}: the files ` +
        "belong to different releases; get the release again",
    );
}

const describe = (name: string, type: string, axes: readonly unknown[]): string =>
  `${name} ${type}[${axes.join(", ")}]`;
