/** The check of what a masked release leaks, by its manifest, against what the application allows. */

import { LeakageError } from "./errors.js";
import { type Leakage, largestCoalition, type MaskedManifest } from "./format.js";

/**
 * Refuse a release whose manifest says that a minority of the servers can reconstruct images more than `limit` dB better
 * than the class mean, or does not say how well.
 */
export function refuseLeakage(manifest: MaskedManifest, limit: number | undefined): void {
  if (limit === undefined) return;
  const above = (row: Leakage): number => row.psnr - row.floor;
  for (let size = 1; size <= largestCoalition(manifest.servers.length); size++) {
    const who = size === 1 ? "one server" : `${size} servers together`;
    const rows = (manifest.leakage ?? []).filter((row) => row.coalition.length === size);
    const worst = rows.reduce<Leakage | null>((one, row) => (one && above(one) >= above(row) ? one : row), null);
    if (!worst)
      throw new LeakageError(
        `the leakage of ${manifest.release} was not measured for ${who}, and maxLeakageDb needs that: use a release ` +
          "whose manifest has it",
        null,
        limit,
      );
    if (above(worst) > limit)
      throw new LeakageError(
        `${who} can reconstruct images of ${manifest.release} ${above(worst).toFixed(2)} dB better than the class mean, ` +
          `and maxLeakageDb allows ${limit}: use a release that leaks less, or allow more`,
        above(worst),
        limit,
      );
  }
}
