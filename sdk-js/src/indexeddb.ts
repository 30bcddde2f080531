/** Where a page keeps bundles: IndexedDB, so that it downloads each once, and works with what it has. */

import { STORE_LOCK_LIMIT_MS } from "./constants.js";
import { BundleStoreError } from "./errors.js";
import { type Shelf, tooLong } from "./store.js";

const FILES = "files";

/**
 * A place for a `BundleStore`, of this page's origin. Every script of the origin can write there, which is why a store
 * verifies a bundle each time that it opens it. Browsers may empty it when space runs out, unless the page asked for
 * `navigator.storage.persist()`.
 *
 * @param name of the database; one for each store.
 */
export function shelfIn(name: string): Shelf {
  let opened: Promise<IDBDatabase> | undefined;

  /** Do it in one transaction: all of it happens, or nothing. */
  const transact = async <T>(mode: IDBTransactionMode, work: (files: IDBObjectStore) => IDBRequest<T>): Promise<T> => {
    try {
      opened ??= openDatabase(name);
      const transaction = (await opened).transaction(FILES, mode, { durability: "strict" });
      const request = work(transaction.objectStore(FILES));
      await new Promise<void>((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => reject(transaction.error);
      });
      return request.result;
    } catch (error) {
      opened = undefined;
      const reason = error instanceof DOMException ? error.name : "an error";
      throw new BundleStoreError(
        `the bundle store cannot be used (${reason}): free some space, and let this site keep data; the bundle in use ` +
          "is unchanged",
      );
    }
  };

  /** Where there are no Web Locks (plain http), the tabs of a browser cannot wait for each other, but a page's own calls. */
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const turn = last.then(work);
    last = turn.catch(() => {});
    return turn;
  };

  return {
    async lock(work) {
      if (!navigator.locks) return inTurn(work);
      const waiting = new AbortController();
      const timer = setTimeout(() => waiting.abort(tooLong("close the other tabs of this site")), STORE_LOCK_LIMIT_MS);
      return await navigator.locks.request(`privdfs ${name}`, { signal: waiting.signal }, () => {
        clearTimeout(timer);
        return work();
      });
    },
    async read(file, limit) {
      const found: unknown = await transact("readonly", (files) => files.get(file));
      return found instanceof Uint8Array ? found.slice(0, limit + 1) : null;
    },
    async write(file, data) {
      await transact("readwrite", (files) => files.put(data, file));
    },
    async folders() {
      const names = await transact("readonly", (files) => files.getAllKeys());
      return [...new Set(names.map((each) => String(each).split("/")[0] as string))];
    },
    async remove(folder) {
      await transact("readwrite", (files) => files.delete(IDBKeyRange.bound(`${folder}/`, `${folder}0`, false, true)));
    },
  };
}

function openDatabase(name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(FILES);
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      // Another page that deletes it, or makes a newer one, is not kept waiting.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
  });
}
