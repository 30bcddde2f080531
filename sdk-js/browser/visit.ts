/** What the tests of the SDK need of a browser. */

/** A page in it. */
export interface Visit {
  /** Run a function there, or an expression; what it returns comes back as JSON does. */
  evaluate<A, R>(work: (argument: A) => R | Promise<R>, argument: A): Promise<R>;
  evaluate(expression: string): Promise<unknown>;
  goto(url: string): Promise<unknown>;
  close(): Promise<void>;
}

/** A browser that shows the page of `make web`. */
export interface Browsing {
  readonly page: Visit;
  /** Another page of the same origin's storage. */
  visit(): Promise<Visit>;
  /** The protocols of all answers from now on; absent where the browser does not tell. */
  protocols?(): Promise<ReadonlySet<string>>;
  close(): Promise<void>;
}

/** Wait until an expression is true in a page. Tabs behind others draw no frames, so this asks from outside. */
export async function until(visit: Visit, expression: string): Promise<void> {
  while ((await visit.evaluate(expression)) !== true) await new Promise((resolve) => setTimeout(resolve, 50));
}
