/** The small releases of tests/vectors, and servers of them that compute their answers. */

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { type Answerer, type Asked, framed, ReplayServer } from "./replay.js";

export const VECTORS = new URL("../../tests/vectors/", import.meta.url).pathname;

// biome-ignore lint/suspicious/noExplicitAny: every file has fields of its own
export type Vector = any;

export const load = (name: string): Vector[] => JSON.parse(readFileSync(`${VECTORS}${name}.json`, "utf8")).vectors;

export const fromBase64 = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(text, "base64"));

/** What right servers say of their models, by release, server and model. */
export const configs = new Map<string, Uint8Array>(load("configs").map((each) => [each.name, fromBase64(each.answer)]));

export const releaseFolder = (release: string): string => `${VECTORS}releases/${release}/client`;

/** The model that a request names. */
export const modelOf = (asked: Asked): string => asked.line.split("/")[3] as string;
export const isCheck = (asked: Asked): boolean => asked.line.startsWith("GET ");

const sessions = new Map<string, Promise<ort.InferenceSession>>();

/** A server of a release that answers truly, by its own model. */
export function computing(release: string, server: number): Answerer {
  return async (asked) => {
    const model = modelOf(asked);
    if (isCheck(asked)) return configs.get(`${release}/${server}/${model}`) as Uint8Array;
    const path = `${VECTORS}releases/${release}/server-${server}/${model}/1/model.onnx`;
    if (!sessions.has(path)) sessions.set(path, ort.InferenceSession.create(path));
    const session = (await sessions.get(path)) as ort.InferenceSession;
    const header = asked.headers.find(([name]) => name.toLowerCase() === "inference-header-content-length");
    let at = Number(header?.[1]);
    const feeds: Record<string, ort.Tensor> = {};
    for (const input of JSON.parse(asked.body.toString("utf8", 0, at)).inputs) {
      const bytes = Uint8Array.from(asked.body.subarray(at, at + input.parameters.binary_data_size));
      at += bytes.length;
      feeds[input.name] =
        input.datatype === "INT8"
          ? new ort.Tensor("int8", new Int8Array(bytes.buffer), input.shape)
          : new ort.Tensor("int32", new Int32Array(bytes.buffer), input.shape);
    }
    const name = session.outputNames[0] as string;
    const output = (await session.run(feeds))[name] as ort.Tensor;
    return tensorAnswer(model, name, output.dims, output.data as Float32Array | Int8Array);
  };
}

/** An answer of one tensor. */
export function tensorAnswer(
  model: string,
  name: string,
  shape: readonly number[],
  values: Float32Array | Int8Array,
): Buffer {
  const raw = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  const datatype = values instanceof Int8Array ? "INT8" : "FP32";
  const outputs = [{ name, datatype, shape, parameters: { binary_data_size: raw.length } }];
  const json = Buffer.from(JSON.stringify({ model_name: model, model_version: "1", outputs }));
  return framed(Buffer.concat([json, raw]), json.length);
}

/** Run a test with started servers, and stop them. */
export async function withServers<T>(
  answerers: readonly Answerer[],
  body: (servers: ReplayServer[]) => Promise<T>,
): Promise<T> {
  const servers = await Promise.all(answerers.map((answer) => new ReplayServer(answer).start()));
  const result = await body(servers).finally(() => Promise.all(servers.map((server) => server.stop())));
  const [fault] = servers.flatMap((server) => server.faults);
  if (fault) throw fault;
  return result;
}
