/** All numeric policy. Times in milliseconds, sizes in bytes or pixels; the numbers are the Python SDK's. */

export const DEFAULT_TIMEOUT_MS = 5_000;
export const MAX_TIMEOUT_MS = 3_600_000;
/** A socket unused for this long is closed. */
export const IDLE_SOCKET_MS = 60_000;
/** `fetch` shows no connections, so a server is asked again what it serves after so long without a call. */
export const IDLE_FETCH_MS = 10_000;
export const MAX_CALLS_PER_CONNECTION = 10_000;
export const MAX_CALLS_AT_ONCE = 64;
/** After so long without a byte the system probes an idle socket. */
export const KEEPALIVE_IDLE_MS = 15_000;

export const DEFAULT_ATTEMPTS = 3;
export const MAX_ATTEMPTS = 10;
export const BACKOFF_FIRST_MS = 50;
export const BACKOFF_MAX_MS = 1_000;
export const BACKOFF_JITTER = 0.25;
export const DEFAULT_HEDGE_BUDGET = 0.1;
export const HEDGE_BURST = 5;
export const BREAKER_FAILURES = 5;
export const BREAKER_FIRST_MS = 1_000;
export const BREAKER_MAX_MS = 30_000;
/** A paused replica is still tried this often when its server has no other. */
export const BREAKER_LAST_MS = 1_000;
/** When a call can no longer succeed, running requests get this long, so that the error can name every cause. */
export const FAIL_GRACE_MS = 100;
/** The same when one of them has a full queue: this error is to come at once. */
export const BUSY_GRACE_MS = 30;

export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;
export const MAX_SIGNATURE_BYTES = 4096;
export const MAX_BUNDLE_FILE_BYTES = 1024 * 1024 * 1024;

/** How long an installation waits for another one to end, and how often it looks where there is no queue. */
export const STORE_LOCK_LIMIT_MS = 120_000;
export const STORE_LOOK_MS = 50;

/** Images that `Queries` remembers, by default and at most. */
export const DEFAULT_REPEATS = 256;
export const MAX_REPEATS = 100_000;

export const MAX_PIXELS = 64_000_000;
export const MIN_SIDE = 8;
export const MAX_ENCODED_BYTES = 128 * 1024 * 1024;

export const MAX_ANSWER_BYTES = 4 * 1024 * 1024;
export const MAX_HEAD_BYTES = 16 * 1024;
export const MAX_HEADERS = 100;
/** No trained branch gives such a logit; below it the fusion's float32 arithmetic stays finite. */
export const MAX_ABS_LOGIT = 1e6;

/** Python's sums over as many answers stay exact in float32, and every prime is larger. */
export const MAX_SERVERS = 16;

export const SUSPECT_WINDOW = 200;
export const SUSPECT_AFTER = 20;
export const SUSPECT_SIGMAS = 4;
export const SUSPECT_PRIOR = 10;

/** Rounding at ties differs between processors: this share of the golden int8 values may differ. */
export const SELFTEST_SHARE_TOLERANCE = 0.01;
export const SELFTEST_PROBABILITY_TOLERANCE = 1e-3;
/** Of a canary's probability from the recorded one: float32 rounding, far below what a lie does. */
export const CANARY_TOLERANCE = 1e-5;
