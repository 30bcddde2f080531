/**
 * The globals that the core uses, which browsers, Node and React Native all have. `tsconfig.core.json` checks the core
 * against these alone, so that nothing of the DOM or of Node slips in.
 */

interface AbortSignal {
  readonly aborted: boolean;
  // biome-ignore lint/suspicious/noExplicitAny: as in every platform's own types
  readonly reason: any;
  throwIfAborted(): void;
  addEventListener(type: "abort", listener: () => void, options?: { once?: boolean }): void;
  removeEventListener(type: "abort", listener: () => void): void;
}

declare class AbortController {
  readonly signal: AbortSignal;
  abort(reason?: unknown): void;
}

declare class TextEncoder {
  encode(text: string): Uint8Array<ArrayBuffer>;
}

declare class TextDecoder {
  decode(bytes: Uint8Array): string;
}

declare class URL {
  constructor(address: string);
  readonly hostname: string;
}

interface Response {
  readonly ok: boolean;
  readonly status: number;
  readonly redirected: boolean;
  readonly headers: { get(name: string): string | null };
  readonly body: {
    cancel(): Promise<void>;
    getReader(): { read(): Promise<{ done: false; value: Uint8Array } | { done: true }>; cancel(): Promise<void> };
  } | null;
  arrayBuffer(): Promise<ArrayBuffer>;
}

declare function fetch(
  address: string,
  options?: {
    method?: string;
    headers?: Record<string, string>;
    body?: Uint8Array | null;
    signal?: AbortSignal;
    redirect?: "error";
    credentials?: "omit";
    referrerPolicy?: "no-referrer";
    cache?: "no-store";
  },
): Promise<Response>;

declare const performance: { now(): number };
type BufferSource = Uint8Array<ArrayBuffer>;

/** Missing over plain http, and in React Native. */
interface SubtleCrypto {
  digest(algorithm: string, data: BufferSource): Promise<ArrayBuffer>;
  importKey(format: "raw", key: BufferSource, algorithm: unknown, extractable: false, uses: string[]): Promise<object>;
  sign(algorithm: string, key: object, data: BufferSource): Promise<ArrayBuffer>;
  verify(algorithm: string, key: object, signature: BufferSource, data: BufferSource): Promise<boolean>;
}

declare var crypto: { getRandomValues<T extends Uint8Array>(into: T): T; readonly subtle?: SubtleCrypto };
declare function setTimeout(run: () => void, ms: number): number;
declare function clearTimeout(timer: number | undefined): void;
