/**
 * Bundles on the device: installed, verified, switched and rolled back, one of them in use.
 *
 *     state.json     which folder is in use, and which was before: one file, replaced in one step
 *     bundle-…/      one bundle each, never changed once it is named in state.json
 *
 * A bundle is in use only after its signature, the digest of every file and its golden examples have been checked, from
 * the copy in the store. Whatever fails before state.json is replaced leaves the bundle in use as it was. One installs at
 * a time (`Shelf.lock`); readers need no lock, and start again when state.json has changed under them. Not guaranteed:
 * that a bundle is the latest.
 */

import { Bundle, type BundleOptions, checkOptions } from "./bundle.js";
import { randomBytes, same, textOf, toHex, utf8 } from "./bytes.js";
import { MAX_BUNDLE_FILE_BYTES, MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, STORE_LOCK_LIMIT_MS } from "./constants.js";
import { BundleError, BundleIntegrityError, BundleStoreError, ConfigError } from "./errors.js";
import { MANIFEST_NAME, SIGNATURE_NAME } from "./format.js";
import { typeName } from "./given.js";
import { readManifest } from "./manifest.js";
import { parse, record } from "./schema.js";
import { checkSignature } from "./signature.js";
import { checkDigest, checkSource, type Source } from "./source.js";

/** Where a store keeps its files, by names such as "bundle-0123456789abcdef/encoder.onnx". */
export interface Shelf {
  read(name: string, limit: number): Promise<Uint8Array | null>;
  /** Write a file in one step: whoever reads it sees the old bytes or the new ones. */
  write(name: string, data: Uint8Array): Promise<void>;
  /** Names of the folders. */
  folders(): Promise<string[]>;
  remove(folder: string): Promise<void>;
  /** Run work while no other installation runs in this place. Without it, install from one process at a time. */
  lock?<T>(work: () => Promise<T>): Promise<T>;
}

/** The error of an installation that waited too long for the lock. */
export const tooLong = (advice: string): BundleStoreError =>
  new BundleStoreError(
    `another process has been installing into the store for ${STORE_LOCK_LIMIT_MS / 1000} s: wait for it, or end it; if ` +
      `there is none, ${advice}`,
  );

interface State {
  readonly current: string;
  readonly previous: string | null;
}

const STATE = "state.json";
const FOLDER = /^bundle-[0-9a-f]{16}$/;

export class BundleStore {
  readonly #shelf: Shelf;
  readonly #options: BundleOptions;

  /**
   * @param options as for `Bundle.open`; they hold for every bundle of the store.
   * @throws ConfigError an argument makes no sense.
   * @throws BundleSignatureError no trusted key was named.
   */
  constructor(shelf: Shelf, options: BundleOptions) {
    if (typeof shelf?.read !== "function")
      throw new ConfigError(`the place of a store has the type ${typeName(shelf)}: pass what shelfIn(…) gives`);
    this.#shelf = shelf;
    this.#options = checkOptions(options);
  }

  /**
   * Fetch a bundle, verify it, and put it into use; the one before it is kept for `rollback`. One that is in use already
   * is left as it is. After an error, the bundle in use is unchanged.
   *
   * @throws BundleError it is not signed by a trusted key, changed, incomplete, or does not work on this device.
   * @throws BundleStoreError the place cannot be written, or others have been installing there for too long.
   */
  install(source: Source): Promise<Bundle> {
    return this.#alone(async () => this.#install(checkSource(source)));
  }

  async #install(source: Source): Promise<Bundle> {
    const state = await this.#readState().catch((error: unknown) => {
      if (error instanceof BundleStoreError) return null; // damaged: this install repairs it
      throw error;
    });
    await this.#removeAllBut(state);
    const folder = `bundle-${toHex(randomBytes(8))}`;
    try {
      await this.#fetch(source, folder);
      const current = state && (await this.#open(state.current).catch(onlyBundleErrors));
      if (state && current && (await this.#isSame(folder, state.current))) {
        await this.#shelf.remove(folder);
        return current;
      }
      const bundle = await this.#open(folder);
      await bundle.selftest();
      // A damaged bundle is nothing to roll back to; then the one before it stays.
      const next = { current: folder, previous: (current ? state?.current : state?.previous) ?? null };
      await this.#writeState(next);
      await this.#removeAllBut(next);
      return bundle;
    } catch (error) {
      await this.#shelf.remove(folder).catch(() => {}); // what is left is removed by the next install
      throw error;
    }
  }

  /** Open the bundle in use, with every check of `Bundle.open`. */
  async open(): Promise<Bundle> {
    for (;;) {
      const { current } = await this.#state();
      try {
        return await this.#open(current);
      } catch (error) {
        if ((await this.#state()).current === current) throw error; // else it was removed while it was being read
      }
    }
  }

  /** Put the bundle that was in use before back into use, and remove the present one. */
  rollback(): Promise<Bundle> {
    return this.#alone(() => this.#rollback());
  }

  async #rollback(): Promise<Bundle> {
    const { previous } = await this.#state();
    if (previous === null) throw new BundleStoreError("the store holds no earlier bundle: install one");
    const bundle = await this.#open(previous);
    const next = { current: previous, previous: null };
    await this.#writeState(next);
    await this.#removeAllBut(next);
    return bundle;
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    return this.#shelf.lock ? this.#shelf.lock(work) : work();
  }

  #open(folder: string): Promise<Bundle> {
    return Bundle.open((name, limit) => this.#shelf.read(`${folder}/${name}`, limit), this.#options);
  }

  /** Write a bundle into a new folder: signature before manifest, and every file only after its digest was compared. */
  async #fetch(source: Source, folder: string): Promise<void> {
    const manifest = await source(MANIFEST_NAME, MAX_MANIFEST_BYTES);
    if (!manifest)
      throw new BundleIntegrityError(
        `the source has no ${MANIFEST_NAME}: give the client folder of a release`,
        MANIFEST_NAME,
      );
    const signature = await source(SIGNATURE_NAME, MAX_SIGNATURE_BYTES);
    if (this.#options.trust !== undefined) await checkSignature(manifest, signature, this.#options.trust);
    if (signature) await this.#shelf.write(`${folder}/${SIGNATURE_NAME}`, signature);
    for (const [name, expected] of Object.entries((await readManifest(manifest)).files)) {
      const data = await source(name, MAX_BUNDLE_FILE_BYTES);
      if (!data) throw new BundleIntegrityError(`${name} is missing: get the release again, whole`, name, expected);
      await checkDigest(name, expected, data);
      await this.#shelf.write(`${folder}/${name}`, data);
    }
    await this.#shelf.write(`${folder}/${MANIFEST_NAME}`, manifest);
  }

  async #isSame(one: string, other: string): Promise<boolean> {
    for (const name of [MANIFEST_NAME, SIGNATURE_NAME]) {
      const [mine, theirs] = await Promise.all(
        [one, other].map((folder) => this.#shelf.read(`${folder}/${name}`, MAX_MANIFEST_BYTES)),
      );
      if (!same(mine ?? [], theirs ?? [])) return false;
    }
    return true;
  }

  async #state(): Promise<State> {
    const state = await this.#readState();
    if (!state) throw new BundleStoreError("the store holds no bundle yet: install one");
    return state;
  }

  async #readState(): Promise<State | null> {
    const data = await this.#shelf.read(STATE, MAX_MANIFEST_BYTES);
    if (!data) return null;
    try {
      const found = parse(textOf(data) ?? "");
      const { current, previous = null } = record(found) ? found : {};
      if (isFolder(current) && (previous === null || isFolder(previous))) return { current, previous };
    } catch {} // as any other damage
    throw new BundleStoreError("state.json of the store is damaged: install a bundle again to repair it");
  }

  #writeState(state: State): Promise<void> {
    return this.#shelf.write(STATE, utf8(`${JSON.stringify(state)}\n`));
  }

  async #removeAllBut(state: State | null): Promise<void> {
    const kept = [state?.current, state?.previous];
    for (const folder of await this.#shelf.folders())
      if (FOLDER.test(folder) && !kept.includes(folder)) await this.#shelf.remove(folder);
  }
}

const isFolder = (name: unknown): name is string => typeof name === "string" && FOLDER.test(name);

function onlyBundleErrors(error: unknown): null {
  if (error instanceof BundleError) return null;
  throw error;
}
