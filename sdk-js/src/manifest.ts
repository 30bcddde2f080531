/**
 * Reading `manifest.json` of a bundle, strictly: an unknown version is refused before anything else is looked at, and
 * so is an unknown field, a missing one, a value of another type, or a manifest that contradicts itself.
 */

import { textOf } from "./bytes.js";
import { BundleFormatError, BundleIntegrityError, BundleVersionError } from "./errors.js";
import { CODED_FORMAT_VERSION, FORMAT_VERSION, MANIFEST_NAME, type Manifest, SIGNATURE_NAME } from "./format.js";
import { shown } from "./given.js";
import type { ReleaseKind } from "./kinds.js";
import { loaded } from "./loaded.js";
import { distinct, require } from "./manifest-common.js";
import { Problem, parse, readJson, record, wholeNumbersOnly } from "./schema.js";

/** Read a client's manifest of either kind. */
export async function readManifest(data: Uint8Array): Promise<Manifest> {
  return (await readRelease(data)).manifest;
}

/** Read a manifest; with it comes what its kind of release is read and run with. */
export async function readRelease(data: Uint8Array): Promise<{ manifest: Manifest; kind: ReleaseKind }> {
  const source = textOf(data);
  if (source === null) throw new BundleFormatError("the manifest is not UTF-8: get the release again");
  const kind = await releaseKind(versionOf(source));
  let manifest: Manifest;
  try {
    manifest = readJson(source, kind.fields) as Manifest;
  } catch (error) {
    throw unreadable(error);
  }
  for (const name of Object.keys(manifest.files)) checkListedPath(name);
  require(distinct(manifest.classes), "`classes` has a name twice");
  kind.checkManifest(manifest);
  return { manifest, kind };
}

/** By the version of a manifest's format. A page downloads only the one of its own release. */
async function releaseKind(version: number): Promise<ReleaseKind> {
  return (version === CODED_FORMAT_VERSION
    ? await loaded(import("./coded.js"))
    : await loaded(import("./masked.js"))) as unknown as ReleaseKind;
}

function versionOf(source: string): number {
  let found: unknown;
  let lexical: unknown;
  try {
    const whole = parse(source);
    if (!record(whole)) throw new Problem("it is not an object");
    found = whole.format_version;
    lexical = (parse(wholeNumbersOnly(source)) as Record<string, unknown>).format_version;
  } catch (error) {
    throw unreadable(error);
  }
  if (typeof lexical !== "number" || (found !== FORMAT_VERSION && found !== CODED_FORMAT_VERSION))
    throw new BundleVersionError(
      `the manifest has format version ${shown(found)}, this version of privdfs reads ${FORMAT_VERSION} and ` +
        `${CODED_FORMAT_VERSION}: install the privdfs that fits the release, or get a release that fits`,
      found,
      CODED_FORMAT_VERSION,
    );
  return found;
}

function unreadable(error: unknown): BundleFormatError {
  const why = error instanceof Problem ? error.message : "it is nested too deeply";
  return new BundleFormatError(`the manifest is not one of this format (${why}): get the release again`);
}

/** Refuse a path that is not relative, not in plain posix form, or leaves the folder. */
export function checkListedPath(name: string): void {
  const parts = name.split("/");
  const plain = parts.every((part) => part !== "" && part !== "." && part !== "..") && !/[\\:\0]/.test(name);
  if (!plain || name === MANIFEST_NAME || name === SIGNATURE_NAME)
    throw new BundleIntegrityError(
      `the manifest lists ${shown(name)}, which is not a plain path inside its folder: get the release again`,
      name,
    );
}
