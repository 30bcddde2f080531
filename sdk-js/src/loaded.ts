/** Parts of this package that an app loads when it needs them, so that a page downloads no more than it uses. */

import { BundleStoreError } from "./errors.js";

/** A part, on its way by `import()`. */
export async function loaded<T>(part: Promise<T>): Promise<T> {
  try {
    return await part;
  } catch {
    throw new BundleStoreError(
      "a part of this app's code could not be downloaded: check the network and that the app's files are all there, then " +
        "try again, or load the page anew",
    );
  }
}
