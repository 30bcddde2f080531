/** The golden examples of a bundle, replayed on this device. */

import { same } from "./bytes.js";
import type { CodedGraphs } from "./coded.js";
import { SELFTEST_PROBABILITY_TOLERANCE, SELFTEST_SHARE_TOLERANCE } from "./constants.js";
import { SelfTestError } from "./errors.js";
import { isCoded, type RoundSpec, shareName } from "./format.js";
import { type Golden, goldenAnswers, readGolden } from "./golden.js";
import type { Graphs, SelfTest } from "./kinds.js";
import type { MaskedGraphs } from "./masked.js";
import { argmax } from "./result.js";

/** Replay the examples of a release. */
export function replay(graphs: Graphs, file: Uint8Array): Promise<SelfTest> {
  const golden = readGolden(graphs.manifest, file);
  return isCoded(graphs.manifest)
    ? replayCoded(graphs as CodedGraphs, golden)
    : replayMasked(graphs as MaskedGraphs, golden);
}

/** Images to shares, recorded answers to probabilities, one image at a time: whatever the batch, it must be the same. */
async function replayMasked(graphs: MaskedGraphs, golden: Golden): Promise<SelfTest> {
  const { manifest } = graphs;
  const { height, width, channels } = manifest.image;
  const servers = manifest.servers.length;
  const names = manifest.servers.map((_, server) => shareName(server));
  const images = golden.count;
  const partitions = manifest.keys ? new Int32Array(golden.bytes("partition")) : null;
  const pixels = new Uint8Array(golden.bytes("images"));
  const size = height * width * channels;
  let differing = 0;
  let all = 0;
  for (let image = 0; image < images; image++) {
    const one = pixels.subarray(image * size, (image + 1) * size);
    const shares = await graphs.encode(one, 1, partitions ? (partitions[image] as number) : null);
    shares.forEach((share, server) => {
      const recorded = new Int8Array(golden.bytes(names[server] as string));
      differing += count(share, (value, i) => value !== recorded[image * share.length + i]);
      all += share.length;
    });
  }
  const answered = new Uint8Array(images * servers).fill(1);
  const found = await graphs.fuse(new Float32Array(golden.bytes("logits")), answered, images);
  return judge(images, differing / all, found, new Float32Array(golden.bytes("probabilities")), true);
}

/** The head within rounding, everything after it exactly. */
async function replayCoded(graphs: CodedGraphs, golden: Golden): Promise<SelfTest> {
  const { manifest } = graphs;
  const places = (round: RoundSpec): number[] => Array.from({ length: goldenAnswers(round) }, (_, i) => i + 1);
  const images = golden.count;
  const recorded = (name: string, index: number): Int8Array => new Int8Array(golden.bytes(`${name}_${index + 1}`));
  let exact = true;
  let moved = 0;
  for (const [index, round] of manifest.rounds.entries()) {
    const servers = goldenAnswers(round);
    const kept = recorded("values", index);
    const before = manifest.rounds[index - 1];
    const pixels = new Uint8Array(golden.bytes("images"));
    const { shares, values } = before
      ? await graphs.relay(
          index - 1,
          recorded("answers", index - 1),
          places(before),
          before.added ? recorded("values", before.added - 1) : null,
          servers,
          1,
        )
      : await graphs.encode(pixels, images, servers, 1);
    const differing = count(values, (value, i) => value !== kept[i]);
    if (before) exact &&= differing === 0;
    else moved = differing / values.length;
    const size = shares.length / (images * servers);
    for (let image = 0; image < images; image++) {
      const start = image * servers * size;
      const own = places(round).map((_, k) => shares.subarray(start + k * size, start + (k + 1) * size));
      const decoded = graphs.decode(index, own, places(round));
      exact &&= travelled(decoded, values.subarray(image * round.elements, (image + 1) * round.elements));
    }
  }
  const last = manifest.rounds.length - 1;
  const found = await graphs.fuse(recorded("answers", last), places(manifest.rounds[last] as RoundSpec));
  return judge(images, moved, found, new Float32Array(golden.bytes("probabilities")), exact);
}

/** Whether what shares stand for is what they share; of values that a mask chose, the others are zero. */
function travelled(decoded: readonly number[], values: Int8Array): boolean {
  if (decoded.length === values.length) return same(decoded, values);
  const sorted = (all: Iterable<number>): number[] => [...all].filter((value) => value).sort((a, b) => a - b);
  return same(sorted(decoded), sorted(values));
}

function judge(
  images: number,
  differingValues: number,
  found: Float32Array,
  recorded: Float32Array,
  exact: boolean,
): SelfTest {
  const classes = found.length / images;
  let probabilityError = 0;
  found.forEach((value, i) => {
    const error = Math.abs(value - (recorded[i] as number));
    if (!(error <= probabilityError)) probabilityError = error; // NaN stays
  });
  const label = (all: Float32Array, image: number): number =>
    argmax(all.subarray(image * classes, (image + 1) * classes));
  const labels = Array.from({ length: images }, (_, image) => label(found, image) === label(recorded, image));
  const close = differingValues <= SELFTEST_SHARE_TOLERANCE && probabilityError <= SELFTEST_PROBABILITY_TOLERANCE;
  if (!close || !exact || labels.includes(false))
    throw new SelfTestError(
      `the golden examples give different results here: ${(differingValues * 100).toFixed(2)} % of the values differ ` +
        `(allowed ${SELFTEST_SHARE_TOLERANCE * 100} %), probabilities by up to ${probabilityError.toPrecision(2)} ` +
        `(allowed ${SELFTEST_PROBABILITY_TOLERANCE}), sharing and decoding are ${exact ? "" : "not "}exact: try ` +
        "another version of the ONNX runtime; do not use the bundle on this device until this passes",
    );
  return { images, differingValues, probabilityError };
}

function count(values: Int8Array, differs: (value: number, index: number) => boolean): number {
  let found = 0;
  for (let i = 0; i < values.length; i++) if (differs(values[i] as number, i)) found++;
  return found;
}
