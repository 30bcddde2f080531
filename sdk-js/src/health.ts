/** Asks every replica of every server what it serves, once, whatever its breaker says. */

import type { ServerChannel } from "./channel.js";
import type { ServerError } from "./errors.js";
import type { Health } from "./result.js";
import { Trouble } from "./wire.js";

/** The state of every replica, in the order of the servers; `end` is on the clock of `performance.now()`. */
export function checkHealth(
  channels: readonly ServerChannel[],
  end: number,
  signal: AbortSignal | undefined,
): Promise<Health[]> {
  signal?.throwIfAborted();
  return Promise.all(
    channels.flatMap((channel) =>
      channel.replicas.endpoints.map((endpoint) => checkReplica(channel, endpoint, end, signal)),
    ),
  );
}

async function checkReplica(
  channel: ServerChannel,
  endpoint: string,
  end: number,
  signal: AbortSignal | undefined,
): Promise<Health> {
  const started = performance.now();
  const link = channel.replicas.takeFrom(endpoint);
  const asking = new AbortController();
  const abort = (): void => asking.abort();
  const timer = setTimeout(abort, Math.max(0, end - started));
  signal?.addEventListener("abort", abort, { once: true });
  let failed: boolean | null = null;
  let error: ServerError | null = null;
  try {
    do {
      const reply = await link.connection.send(channel.askConfig(link), asking.signal).catch((caught: unknown) => {
        if (caught instanceof Trouble) return caught;
        throw caught;
      });
      signal?.throwIfAborted();
      error = asking.signal.aborted ? channel.tooLate(link) : (channel.readConfig(link, reply)?.error ?? null);
    } while (!error && !link.checked);
    if (!error) failed = false; // it is tried again at once, whatever its breaker said
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
    channel.replicas.giveBack(link, failed);
  }
  return { server: channel.server, endpoint, ms: performance.now() - started, error, ok: !error };
}
