/** What the manifests of both kinds of release have in common. */

import { BundleFormatError } from "./errors.js";
import type { Manifest } from "./format.js";
import { free, list, map, number, object, Problem, text, whole } from "./schema.js";

export const positive = whole(1);
export const index = whole(0);
export const fraction = number(0, 1);
const finite = number();
export const string = text();
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
export const calibration = object({ before: fraction, after: fraction, fitted_on: string });

export const common = {
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
export const leakage = list(
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
export const measured = { data: string, images: positive, baseline: fraction, fused: fraction };

export function require(condition: boolean, problem: string): void {
  if (!condition) throw new BundleFormatError(`the manifest contradicts itself: ${problem}; get the release again`);
}

export const distinct = (values: readonly unknown[]): boolean => new Set(values).size === values.length;

export function requireFiles(manifest: Manifest, names: readonly string[]): void {
  for (const name of names) require(Object.hasOwn(manifest.files, name), `\`files\` lacks ${name}`);
}
