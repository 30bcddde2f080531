/** PrivDFS for browsers and React Native; `privdfs/node` has the same for Node. */

export { Bundle, type BundleOptions } from "./bundle.js";
export { type CallOptions, Client, type ClientOptions } from "./client.js";
export type { Retries, Server, TlsOptions, Token, TokenValue, Wait } from "./config.js";
export * from "./errors.js";
export type { CodedManifest, ImageSpec, Leakage, Manifest, MaskedManifest, RoundSpec } from "./format.js";
export { UserKey } from "./keys.js";
export type { SelfTest } from "./kinds.js";
export type { Pixels } from "./pixels.js";
export { Queries, type QueriesOptions } from "./queries.js";
export type { Health, Result, RoundTimings, Timings } from "./result.js";
export type { Runtime } from "./runtime.js";
export type { PublicKey, Trust } from "./signature.js";
export { fromFiles, fromUrl, type Source } from "./source.js";
export { BundleStore, type Shelf } from "./store.js";
