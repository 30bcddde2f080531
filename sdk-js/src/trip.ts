/**
 * The trip of one chunk's shares to all servers and back.
 *
 * - No share is sent before `minAnswers` servers have passed the release check: a call that cannot succeed reveals
 *   nothing.
 * - A share, its retries and its hedges go to replicas of its own server only, on connections that have passed the check.
 * - A trip ends at its deadline, whether all have answered or not, and at once when the caller aborts it.
 * - In a coded release, while another exchange follows, those who are late are waited for only until this exchange's
 *   part of the time is over.
 * - Once too few servers can still answer, nothing new is sent; what is on its way gets `FAIL_GRACE_MS` to say why
 *   (`BUSY_GRACE_MS` where one has a full queue).
 */

import { Failure, type ServerChannel, type Share } from "./channel.js";
import type { CheckedRetries, Wait } from "./config.js";
import { BACKOFF_FIRST_MS, BACKOFF_JITTER, BACKOFF_MAX_MS, BUSY_GRACE_MS, FAIL_GRACE_MS } from "./constants.js";
import { ServerBusyError, type ServerError, ServerMismatchError, ServerTimeoutError } from "./errors.js";
import type { Answer, Outcome } from "./kinds.js";
import type { Link } from "./routing.js";
import { type Request, type Response, Trouble } from "./wire.js";

/** What a trip is to keep to. `end` is on the clock of `performance.now()`. */
export interface Terms {
  readonly end: number;
  /** Of the whole call, in milliseconds. */
  readonly timeout: number;
  readonly minAnswers: number;
  readonly wait: Wait;
  readonly retries: CheckedRetries;
  readonly signal: AbortSignal | undefined;
  readonly exchangesLeft: number;
}

/** One try of one share on one connection: first the check, if it has not passed it, then the share. */
class Attempt {
  /** Ends what is being asked; null: it has passed the check, and waits for the other servers' checks. */
  asking: AbortController | null = null;
  /** When the share itself was sent. */
  sentAt: number | null = null;

  constructor(readonly link: Link) {}
}

/** The delivery of one share to its server: attempts, and in the end one outcome. */
class Delivery {
  attempts = 0;
  readonly running = new Set<Attempt>();
  /** Endpoints that fail on every try. */
  readonly avoid = new Set<string>();
  readonly tried = new Set<string>();
  /** The latest. */
  error: ServerError | null = null;
  outcome: Outcome | null = null;
  sentAt: number | null = null;
  sends = 0;
  /** Of the next retry, or of a hedge while an attempt is running. */
  wake = Number.POSITIVE_INFINITY;

  constructor(
    readonly channel: ServerChannel,
    readonly share: Share,
  ) {}

  get held(): boolean {
    return [...this.running].some((attempt) => !attempt.asking);
  }
}

/** Carry out a trip; one outcome for every server. Rejects only if the caller aborts. */
export function travel(channels: readonly ServerChannel[], shares: readonly Share[], terms: Terms): Promise<Outcome[]> {
  return new Promise((resolve, reject) => {
    new Trip(channels, shares, terms, resolve, reject).begin();
  });
}

class Trip {
  readonly #deliveries: readonly Delivery[];
  readonly #terms: Terms;
  readonly #resolve: (outcomes: Outcome[]) => void;
  readonly #reject: (reason: unknown) => void;
  readonly #abort = (): void => this.#fail(this.#terms.signal?.reason);
  #patientUntil: number;
  #open = false; // shares may be sent
  #doomedUntil: number | null = null;
  #done = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    channels: readonly ServerChannel[],
    shares: readonly Share[],
    terms: Terms,
    resolve: (outcomes: Outcome[]) => void,
    reject: (reason: unknown) => void,
  ) {
    this.#deliveries = channels.map((channel, i) => new Delivery(channel, shares[i] as Share));
    this.#terms = terms;
    this.#resolve = resolve;
    this.#reject = reject;
    const now = performance.now();
    const { end, exchangesLeft } = terms;
    // Until when those are waited for who are not needed: in the last exchange until the deadline.
    this.#patientUntil = exchangesLeft > 1 ? now + (end - now) / exchangesLeft : Number.POSITIVE_INFINITY;
  }

  begin(): void {
    const { signal, retries } = this.#terms;
    if (signal?.aborted) {
      this.#abort();
      return;
    }
    signal?.addEventListener("abort", this.#abort, { once: true });
    this.#guard(() => {
      for (const delivery of this.#deliveries) {
        delivery.channel.replicas.saveForHedges(retries.hedgeBudget);
        this.#attempt(delivery);
      }
    });
  }

  /** Do a step, and what follows from it; a fault of this package ends the trip instead of hanging it. */
  #guard(step: () => void): void {
    if (this.#done) return;
    try {
      step();
      this.#settle();
    } catch (error) {
      this.#fail(error);
    }
  }

  // ---------------------------------------------------------------------------------------------- one server's way

  /** Try a replica: the first time, again, or beside an attempt that takes long (a hedge). */
  #attempt(delivery: Delivery): void {
    delivery.wake = Number.POSITIVE_INFINITY;
    const { replicas } = delivery.channel;
    const hedge = delivery.running.size > 0;
    if (hedge && !(replicas.others(delivery.avoid) && replicas.payForHedge())) return;
    const link = replicas.take(delivery.avoid, delivery.tried);
    if (!link) {
      if (!hedge) this.#finish(delivery, delivery.error ?? delivery.channel.allPaused());
      return;
    }
    delivery.attempts++;
    delivery.tried.add(link.endpoint);
    const attempt = new Attempt(link);
    delivery.running.add(attempt);
    if (!link.checked) this.#check(delivery, attempt);
    if (hedge || attempt.asking) this.#planHedge(delivery);
  }

  #planHedge(delivery: Delivery): void {
    const { hedgeAfter, attempts } = this.#terms.retries;
    if (hedgeAfter !== null && delivery.attempts < attempts) delivery.wake = performance.now() + hedgeAfter;
  }

  #check(delivery: Delivery, attempt: Attempt): void {
    this.#ask(attempt, delivery.channel.askConfig(attempt.link), (reply) => {
      const failure = delivery.channel.readConfig(attempt.link, reply);
      if (failure) this.#failed(delivery, attempt, failure);
      else if (!attempt.link.checked)
        this.#check(delivery, attempt); // it has more models
      else {
        attempt.asking = null;
        if (!this.#open) delivery.wake = Number.POSITIVE_INFINITY; // what it waits for now is not this server
      }
    });
  }

  #send(delivery: Delivery, attempt: Attempt): void {
    const { channel, share } = delivery;
    if (!attempt.link.connection.open) {
      this.#failed(delivery, attempt, channel.goneSinceCheck(attempt.link));
      return;
    }
    const request = channel.askBranch(attempt.link, share, this.#terms.timeout);
    attempt.sentAt = performance.now();
    if (delivery.sentAt === null) {
      delivery.sentAt = attempt.sentAt;
      this.#planHedge(delivery);
    }
    delivery.sends++;
    this.#ask(attempt, request, (reply) => {
      const read = channel.readAnswer(attempt.link, share, reply);
      if (read instanceof Failure) {
        this.#failed(delivery, attempt, read);
        return;
      }
      delivery.running.delete(attempt);
      channel.replicas.giveBack(attempt.link, false);
      this.#finish(delivery, read, performance.now() - (delivery.sentAt ?? 0));
    });
  }

  /** Ask, and judge the reply; one that comes after the attempt has ended is dropped. */
  #ask(attempt: Attempt, request: Request, take: (reply: Response | Trouble) => void): void {
    const asking = new AbortController();
    attempt.asking = asking;
    const taken = (reply: Response | Trouble): void => {
      if (!asking.signal.aborted) this.#guard(() => take(reply));
    };
    attempt.link.connection.send(request, asking.signal).then(taken, (error: unknown) => {
      if (error instanceof Trouble) taken(error);
      else if (!asking.signal.aborted) this.#fail(error);
    });
  }

  /** End an attempt; try again if that can help, and it can still come in time. */
  #failed(delivery: Delivery, attempt: Attempt, failure: Failure): void {
    const { replicas } = delivery.channel;
    delivery.running.delete(attempt);
    // A busy replica is not broken: it goes on answering as many as it can.
    replicas.giveBack(attempt.link, failure.error instanceof ServerBusyError ? null : true);
    delivery.error = failure.error;
    if (failure.error instanceof ServerMismatchError && attempt.sentAt === null) delivery.attempts--; // it was sent nothing
    if (!failure.again) delivery.avoid.add(attempt.link.endpoint);
    if (delivery.running.size) return; // a hedge, or what it was to help, is still on its way
    const now = performance.now();
    const fresh = replicas.others(new Set([...delivery.avoid, ...delivery.tried]));
    const due = fresh ? now : now + backoff(delivery.attempts);
    const may = delivery.attempts < this.#terms.retries.attempts && replicas.others(delivery.avoid);
    if (may && due < this.#terms.end && this.#doomedUntil === null) delivery.wake = due;
    else this.#finish(delivery, failure.error);
  }

  /** The deadline has come. */
  #giveUp(delivery: Delivery): void {
    const { channel } = delivery;
    let { error } = delivery;
    for (const attempt of delivery.running) {
      attempt.asking?.abort();
      error = channel.tooLate(attempt.link);
      channel.replicas.giveBack(attempt.link, true);
    }
    delivery.running.clear();
    this.#finish(delivery, error ?? new ServerTimeoutError("the time was over before it was asked", channel.server));
  }

  #finish(delivery: Delivery, end: ServerError | Answer, ms = 0): void {
    const error = end instanceof Error ? delivery.channel.clearest(end) : null;
    const answer = end instanceof Error ? null : end;
    delivery.outcome = { server: delivery.channel.server, ms, answer, error, ready: false, sends: 0 };
    this.#drop(delivery);
  }

  #drop(delivery: Delivery): void {
    for (const attempt of delivery.running) {
      if (attempt.asking) {
        attempt.asking.abort();
        attempt.link.connection.close(); // HTTP/1.1 has no other way to say that nobody waits any more
      }
      delivery.channel.replicas.giveBack(attempt.link, null);
    }
    delivery.running.clear();
  }

  // ------------------------------------------------------------------------------------------------- all together

  /** Retries and hedges that are due, and the end of the call. */
  #tick(): void {
    const now = performance.now();
    if (now >= this.#terms.end) {
      for (const delivery of this.#deliveries)
        if (!delivery.outcome && !(delivery.held && !this.#open)) this.#giveUp(delivery);
      this.#done = true;
    } else if (this.#doomedUntil !== null) this.#done = now >= this.#doomedUntil;
    else {
      if (now >= this.#patientUntil) this.#patientUntil = 0; // it is over, and not waited for again
      for (const delivery of this.#deliveries) if (!delivery.outcome && delivery.wake <= now) this.#attempt(delivery);
    }
  }

  /** End the trip if it can end, open the gate if enough servers are ready, and see when something is due. */
  #settle(): void {
    if (!this.#done) this.#judge();
    if (!this.#done && this.#doomedUntil === null) {
      this.#open ||= this.#deliveries.filter((delivery) => delivery.held).length >= this.#terms.minAnswers;
      for (const delivery of this.#open ? this.#deliveries : [])
        for (const attempt of delivery.running) if (!attempt.asking) this.#send(delivery, attempt);
    }
    clearTimeout(this.#timer);
    if (this.#done) {
      const outcomes = this.#outcomes();
      this.#close();
      this.#resolve(outcomes);
      return;
    }
    const wait = Math.max(0, this.#wake() - performance.now());
    this.#timer = setTimeout(() => this.#guard(() => this.#tick()), Math.ceil(wait));
  }

  #judge(): void {
    const { minAnswers, wait } = this.#terms;
    const ended = this.#deliveries.filter((delivery) => delivery.outcome);
    const answers = ended.filter((delivery) => delivery.outcome?.answer).length;
    const patient = wait === "all" && performance.now() < this.#patientUntil;
    if (ended.length === this.#deliveries.length || (answers >= minAnswers && !patient)) this.#done = true;
    else if (this.#deliveries.length - (ended.length - answers) < minAnswers) {
      const busy = ended.some((delivery) => delivery.outcome?.error instanceof ServerBusyError);
      this.#doomedUntil ??= performance.now() + (busy ? BUSY_GRACE_MS : FAIL_GRACE_MS);
      for (const delivery of this.#deliveries)
        if (!delivery.outcome && !delivery.running.size)
          this.#finish(delivery, delivery.error ?? delivery.channel.allPaused()); // it waited to try again
      this.#done = this.#deliveries.every((delivery) => delivery.outcome || delivery.held);
    }
  }

  #wake(): number {
    const { end } = this.#terms;
    if (this.#doomedUntil !== null) return Math.min(end, this.#doomedUntil);
    const due = this.#deliveries.filter((delivery) => !delivery.outcome).map((delivery) => delivery.wake);
    return Math.min(end, this.#patientUntil || end, ...due);
  }

  #outcomes(): Outcome[] {
    return this.#deliveries.map(({ outcome, channel, held, sends }) => {
      const ready = held && !this.#open;
      const none = { server: channel.server, ms: 0, answer: null, error: null, ready, sends };
      return outcome ? { ...outcome, sends } : none;
    });
  }

  #fail(reason: unknown): void {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    this.#close();
    this.#reject(reason);
  }

  /** Let go of the attempts that were cut short. */
  #close(): void {
    this.#terms.signal?.removeEventListener("abort", this.#abort);
    for (const delivery of this.#deliveries) this.#drop(delivery);
  }
}

function backoff(attempts: number): number {
  const wait = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (attempts - 1));
  return wait * (1 + BACKOFF_JITTER * (2 * Math.random() - 1));
}
