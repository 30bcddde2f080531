/**
 * One installation at a time, among processes that share a folder; for Node, which has no locks on files.
 *
 * Who makes the file `installing` has the lock, and the file says which process that is. One that has ended did not
 * remove it, so whoever comes next does. Only of processes of this machine it can be seen that they have ended.
 */

import { randomUUID } from "node:crypto";
import { link, mkdir, open, readFile, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { STORE_LOCK_LIMIT_MS, STORE_LOOK_MS } from "./constants.js";
import { parse, record } from "./schema.js";
import { tooLong } from "./store.js";

const LOCK = "installing";

/** Wait until nobody else holds a folder, in this process or another, and hold it; gives what ends that. */
export async function hold(folder: string): Promise<() => Promise<void>> {
  await mkdir(folder, { recursive: true });
  const file = join(folder, LOCK);
  const end = performance.now() + STORE_LOCK_LIMIT_MS;
  const holder = JSON.stringify({ host: hostname(), ...(await thisProcess()) });
  while (!(await make(file, holder))) {
    if (performance.now() > end) throw tooLong(`remove the files ${LOCK}* of the store`);
    if (!((await isDead(file)) && (await removeDead(file))))
      await new Promise((resolve) => setTimeout(resolve, STORE_LOOK_MS));
  }
  return () => rm(file, { force: true });
}

/** Make the file, unless it is there. It is never seen half written: a maker that is held up has not made it yet. */
async function make(file: string, holder: string): Promise<boolean> {
  const whole = `${file}-${randomUUID()}`;
  try {
    await writeFile(whole, holder, { flag: "wx" });
    await link(whole, file);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  } finally {
    await rm(whole, { force: true });
  }
}

async function thisProcess(): Promise<{ pid: number; start: string | null }> {
  return { pid: process.pid, start: await startOf(process.pid) };
}

/** Whether the file was left by a process that has ended. */
async function isDead(file: string): Promise<boolean> {
  const text = await readFile(file, "utf8").catch(() => null);
  if (text === null) return false; // just removed
  let holder: unknown;
  try {
    holder = parse(text);
  } catch {
    return false;
  }
  if (!record(holder) || holder.host !== hostname() || !Number.isSafeInteger(holder.pid)) return false;
  const pid = holder.pid as number;
  const start = await startOf(pid);
  if (start !== null || holder.start !== null) return start !== holder.start; // a number may have passed to another
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ESRCH";
  }
}

/** When a process began, as Linux says it; null where there is none of the number, or another system. */
async function startOf(pid: number): Promise<string | null> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => null);
  // Field 22; the second is a name in parentheses, which may hold blanks.
  return text?.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? null;
}

/** Two that see it at the same time must not remove it one after the other: the second would remove a living one's. */
async function removeDead(file: string): Promise<boolean> {
  const turn = await open(`${file}-removing`, "wx").catch(() => null);
  if (!turn) return false;
  try {
    if (await isDead(file)) await rm(file, { force: true });
  } finally {
    await turn.close();
    await rm(`${file}-removing`, { force: true });
  }
  return true;
}
