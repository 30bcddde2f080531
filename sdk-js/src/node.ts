/**
 * PrivDFS for Node: bundles in folders, and connections on sockets of its own.
 *
 *     import * as ort from "onnxruntime-node";
 *     import { Bundle, Client, fromFolder } from "privdfs/node";
 */

import { lstat, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Bundle } from "./bundle.js";
import { type ClientOptions, Client as EverywhereClient } from "./client.js";
import type { Server } from "./config.js";
import { BundleIntegrityError, BundleStoreError, ConfigError } from "./errors.js";
import { MANIFEST_NAME } from "./format.js";
import { typeName } from "./given.js";
import { hold } from "./lock.js";
import { SocketConnection } from "./socket.js";
import type { Source } from "./source.js";
import type { Shelf } from "./store.js";
import { checkTls } from "./tls.js";

export * from "./index.js";

/** As in browsers, but no share is sent on a connection that has not passed the check: see `socket.ts`. */
export class Client extends EverywhereClient {
  constructor(bundle: Bundle, servers: readonly (Server | string)[], options: ClientOptions = {}) {
    super(bundle, servers, options, {
      checkTls,
      connect: (endpoint, tls) => new SocketConnection(endpoint, tls),
    });
  }
}

/** The `client` folder of a release. Symbolic links are refused. */
export function fromFolder(folder: string): Source {
  if (typeof folder !== "string" || !folder || folder.includes("\0"))
    throw new ConfigError(`the bundle has the type ${typeName(folder)}: pass the path of its folder`);
  return async (name, limit) => {
    let path = folder;
    try {
      for (const part of name.split("/")) {
        path = join(path, part);
        if ((await lstat(path)).isSymbolicLink())
          throw new BundleIntegrityError(
            `${name} is a symbolic link, which releases never contain: get the release again`,
            name,
          );
      }
      const file = await open(path);
      try {
        if (!(await file.stat()).isFile()) return null;
        return await readUpTo(file, limit + 1);
      } finally {
        await file.close();
      }
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? "";
      if (name === MANIFEST_NAME && code === "ENOENT") await refuseWhole(folder);
      if (code === "ENOENT" || code === "ENOTDIR") return null;
      if (!code) throw error;
      throw new BundleStoreError(`${name} cannot be read (${code}): check its permissions and the disk`);
    }
  };
}

async function readUpTo(file: Awaited<ReturnType<typeof open>>, most: number): Promise<Uint8Array> {
  const { size } = await file.stat();
  const bytes = new Uint8Array(Math.min(size, most));
  let at = 0;
  while (at < bytes.length) {
    const { bytesRead } = await file.read(bytes, at, bytes.length - at, at);
    if (!bytesRead) break;
    at += bytesRead;
  }
  return bytes.subarray(0, at);
}

/** A whole release was given in the place of its client folder. */
async function refuseWhole(folder: string): Promise<void> {
  const inside = await readdir(join(folder, "client")).catch((): string[] => []);
  if (inside.includes(MANIFEST_NAME))
    throw new BundleIntegrityError("this is a whole release: give its client folder", MANIFEST_NAME);
}

/** A folder for a `BundleStore`; it is made by the first `install`. */
export function shelfIn(folder: string): Shelf {
  const read = fromFolder(folder);
  const told = async <T>(work: Promise<T>): Promise<T> => {
    try {
      return await work;
    } catch (error) {
      if (error instanceof BundleStoreError) throw error;
      const { code = "an error" } = error as NodeJS.ErrnoException;
      throw new BundleStoreError(
        `the bundle store cannot be used (${code}): free some space, and check its permissions; the bundle in use is ` +
          "unchanged",
      );
    }
  };
  return {
    read,
    write: (name, data) => told(writeWhole(join(folder, name), data)),
    folders: () => told(readdir(folder).catch(() => [])),
    remove: (name) => told(rm(join(folder, name), { recursive: true, force: true })),
    async lock(work) {
      const letGo = await told(hold(folder));
      return await work().finally(() => told(letGo()));
    },
  };
}

/** Write a file down to the disk, and put it into its place in one step. */
async function writeWhole(path: string, data: Uint8Array): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const file = await open(`${path}.next`, "w");
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.next`, path);
  const folder = await open(dirname(path), "r");
  await folder.sync().finally(() => folder.close());
}
