/**
 * Where the next attempt at a server goes: its replicas, which of them is well, and the connections to each.
 *
 * A replica belongs to one server for good. Nothing here knows of two servers, so no failover, retry or hedge can leave
 * the server that a share is bound to. A connection is used by one attempt at a time.
 */

import { BREAKER_FAILURES, BREAKER_FIRST_MS, BREAKER_LAST_MS, BREAKER_MAX_MS, HEDGE_BURST } from "./constants.js";
import type { Connection } from "./wire.js";

/** A connection to one replica of one server, and how much of the release check it has passed. */
export class Link {
  /** How many of the models that the server must have were found to be right, and whether all were. */
  passed = 0;
  checked = false;

  constructor(
    readonly server: number,
    readonly endpoint: string,
    readonly connection: Connection,
  ) {}

  /** Have the other end checked again before the next share. */
  distrust(): void {
    this.passed = 0;
    this.checked = false;
  }
}

/** Whether an endpoint may be tried: after `BREAKER_FAILURES` in a row it is left alone for a growing pause. */
export class Breaker {
  #failures = 0;
  #until = 0;
  #pause = BREAKER_FIRST_MS;
  #noted = Number.NEGATIVE_INFINITY;

  /** `last`: the server has no better replica. */
  admits(now: number, last = false): boolean {
    const paused = this.#failures >= BREAKER_FAILURES && now < this.#until;
    return !paused || (last && now >= this.#noted + BREAKER_LAST_MS);
  }

  /** An attempt is made: after a pause it is the only one until it has ended. */
  enter(now: number): void {
    if (this.#failures < BREAKER_FAILURES) return;
    this.#until = now + this.#pause;
    this.#noted = now;
  }

  note(now: number, failed: boolean): void {
    if (!failed) {
      this.#failures = 0;
      this.#pause = BREAKER_FIRST_MS;
      return;
    }
    this.#failures++;
    if (this.#failures < BREAKER_FAILURES) return;
    this.#until = now + this.#pause;
    this.#noted = now;
    this.#pause = Math.min(2 * this.#pause, BREAKER_MAX_MS);
  }
}

class Replica {
  readonly breaker = new Breaker();
  readonly running = new Set<Link>();
  /** The one used last comes last, and is taken first. */
  readonly idle: Link[] = [];

  constructor(readonly endpoint: string) {}
}

/** All replicas of one server. `connect` gives a new connection, which its first request makes. */
export class Replicas {
  readonly #replicas: readonly Replica[];
  readonly #server: number;
  readonly #connect: (endpoint: string) => Connection;
  #turn = 0;
  #purse = HEDGE_BURST;
  #closed = false;

  constructor(server: number, endpoints: readonly string[], connect: (endpoint: string) => Connection) {
    this.#server = server;
    this.#replicas = endpoints.map((endpoint) => new Replica(endpoint));
    this.#connect = connect;
  }

  get endpoints(): string[] {
    return this.#replicas.map((replica) => replica.endpoint);
  }

  /**
   * Choose where an attempt goes, and count it as running there until `giveBack`; null where there is no replica to try.
   *
   * @param avoid endpoints that only another replica can stand in for.
   * @param busy endpoints that come last.
   */
  take(avoid: ReadonlySet<string>, busy: ReadonlySet<string>): Link | null {
    const now = performance.now();
    const turn = this.#turn;
    const count = this.#replicas.length;
    const fresh = this.#able(new Set([...avoid, ...busy]), now);
    const able = fresh.length ? fresh : this.#able(avoid, now);
    const order = able
      .map((replica) => {
        const place = (((this.#replicas.indexOf(replica) - turn) % count) + count) % count;
        return { replica, running: replica.running.size, place };
      })
      .sort((a, b) => a.running - b.running || a.place - b.place);
    const chosen = order[0]?.replica;
    if (!chosen) return null;
    this.#turn++;
    chosen.breaker.enter(now);
    return this.#begin(chosen);
  }

  /** A connection to one endpoint, whatever its breaker says, until `giveBack`. */
  takeFrom(endpoint: string): Link {
    return this.#begin(this.#of(endpoint));
  }

  /** End an attempt: with a failure, without, or (null) cut short, which says nothing. */
  giveBack(link: Link, failed: boolean | null): void {
    const replica = this.#of(link.endpoint);
    replica.running.delete(link);
    if (failed !== null) replica.breaker.note(performance.now(), failed);
    if (link.connection.open && !this.#closed) replica.idle.push(link);
    else link.connection.close();
    while (replica.idle[0]?.connection.open === false) replica.idle.shift()?.connection.close();
  }

  /** Whether a replica outside `avoid` could be tried now. */
  others(avoid: ReadonlySet<string>): boolean {
    return this.#able(avoid, performance.now()).length > 0;
  }

  dropIdle(endpoint: string): void {
    for (const link of this.#of(endpoint).idle.splice(0)) link.connection.close();
  }

  /** Close every connection; attempts that run end at once. */
  close(): void {
    this.#closed = true;
    for (const replica of this.#replicas) {
      this.dropIdle(replica.endpoint);
      for (const link of replica.running) link.connection.close();
    }
  }

  /** Put what one call earns into the purse that hedges are paid from. */
  saveForHedges(part: number): void {
    this.#purse = Math.min(HEDGE_BURST, this.#purse + part);
  }

  payForHedge(): boolean {
    if (this.#purse < 1) return false;
    this.#purse--;
    return true;
  }

  #of(endpoint: string): Replica {
    return this.#replicas.find((replica) => replica.endpoint === endpoint) as Replica;
  }

  #able(avoid: ReadonlySet<string>, now: number): Replica[] {
    const wanted = this.#replicas.filter((replica) => !avoid.has(replica.endpoint));
    const able = wanted.filter((replica) => replica.breaker.admits(now));
    return able.length ? able : wanted.filter((replica) => replica.breaker.admits(now, true));
  }

  #begin(replica: Replica): Link {
    let link = replica.idle.pop();
    while (link && !link.connection.open) {
      link.connection.close();
      link = replica.idle.pop();
    }
    link ??= new Link(this.#server, replica.endpoint, this.#connect(replica.endpoint));
    if (this.#closed) link.connection.close();
    replica.running.add(link);
    return link;
  }
}
