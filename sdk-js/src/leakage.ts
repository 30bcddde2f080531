/** The check of what a release leaks, by its manifest, against what the application allows. */

import { ConfigError, LeakageError } from "./errors.js";
import { isCoded, type Leakage, largestCoalition, type Manifest } from "./format.js";
import { shown } from "./given.js";

/**
 * Refuse a masked release whose manifest says that a minority of the servers can reconstruct images more than `limit` dB
 * better than the class mean, or does not say how well. A coded one fits every limit: it is proven.
 */
export function refuseLeakage(manifest: Manifest, limit: number | undefined): void {
  if (limit === undefined) return;
  if (typeof limit !== "number" || !(limit >= 0 && limit < Number.POSITIVE_INFINITY))
    throw new ConfigError(
      `maxLeakageDb is ${shown(limit)}: give the dB above the class mean that a minority of the servers may reach, a ` +
        "finite number of at least 0",
    );
  if (isCoded(manifest)) return;
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
