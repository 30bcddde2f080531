"""All numeric policy of the SDK. Times in seconds, sizes in bytes or pixels."""

#: A call that names no timeout ends after this long.
DEFAULT_TIMEOUT_S = 5.0
#: A longer timeout is probably in the wrong unit.
MAX_TIMEOUT_S = 3600.0
#: Longest that a new client waits for the servers' names to be resolved.
RESOLVE_LIMIT_S = 2.0
#: Certificate files are checked for changes this often.
RELOAD_AFTER_S = 1.0
#: When a host has several addresses, the next one is also tried after this long.
CONNECT_STAGGER_S = 0.25
#: Whole seconds without a byte after which the system probes an idle connection, between probes, and how many it sends
#: before it gives the connection up. Below the idle limit of every common load balancer and NAT.
KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3
#: A connection unused for this long is closed.
IDLE_CONNECTION_S = 60.0
#: A connection is replaced after this many calls: HTTP/2 keeps a little state for each.
MAX_CALLS_PER_CONNECTION = 10_000
#: How many calls of one client may run at once; others wait their turn, within their deadline.
MAX_CALLS_AT_ONCE = 64
#: Most threads in which an asyncio client decodes and encodes.
MAX_WORKERS = 4

#: How often one share is sent to its server at most: at first, again after an error, or as a hedge.
DEFAULT_ATTEMPTS = 3
MAX_ATTEMPTS = 10
#: A replica that failed is tried again after the first wait, which doubles up to the second, plus or minus the jitter.
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
BACKOFF_JITTER = 0.25
#: Hedges for each call, in the long run, and how many may come in one burst.
DEFAULT_HEDGE_BUDGET = 0.1
HEDGE_BURST = 5
#: A replica that failed this often in a row is not tried for the first pause, which doubles up to the second.
BREAKER_FAILURES = 5
BREAKER_FIRST_S = 1.0
BREAKER_MAX_S = 30.0
#: A paused replica is still tried this often when its server has no other.
BREAKER_LAST_S = 1.0
#: When a call can no longer succeed, running requests get this long, so that the error can name every cause.
FAIL_GRACE_S = 0.1
#: The same when one of them has a full queue: this error is to come at once.
BUSY_GRACE_S = 0.03

#: Larger files of a bundle are refused while they are fetched.
MAX_BUNDLE_FILE_BYTES = 1024 * 1024 * 1024
#: A download is given up after this long without a byte, and after this long in total.
DOWNLOAD_STALL_S = 30.0
DOWNLOAD_LIMIT_S = 1800.0
#: Longest that an installation waits for another one of the same store.
STORE_LOCK_LIMIT_S = 120.0

#: Images that `Queries` remembers, by default, and at most (about a kilobyte each).
DEFAULT_REPEATS = 256
MAX_REPEATS = 100_000

#: Images with more pixels are refused before they are decoded (a 64-megapixel photo takes 192 MB as RGB).
MAX_PIXELS = 64_000_000
#: Images with a shorter side are refused: nothing can be recognised in them.
MIN_SIDE = 8
#: Encoded files beyond this are refused before they are read.
MAX_ENCODED_BYTES = 128 * 1024 * 1024

#: Answers beyond this are refused while they are read: logits are a few kilobytes.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
#: A server may send so many bytes beside an answer (headers, settings, pings) before its connection is closed.
MAX_OVERHEAD_BYTES = 256 * 1024
#: So many answers over a gRPC connection may be late, which nobody waits for; with one more it is closed.
MAX_LATE_ANSWERS = 8
#: Headers of an HTTP answer beyond this are refused: inference servers and proxies send a dozen.
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
#: No trained branch gives such a logit; below it the fusion's float32 arithmetic stays finite.
MAX_ABS_LOGIT = 1e6

#: A server is suspected by its last so many images, not before so many, and from so many standard deviations on; what
#: the manifest says of its errors counts as so many images.
SUSPECT_WINDOW = 200
SUSPECT_AFTER = 20
SUSPECT_SIGMAS = 4.0
SUSPECT_PRIOR = 10

#: The graphs on the device are small; waking a second thread costs more than it gains.
ONNX_THREADS = 1
#: Multiply-accumulates of a head that runs in less time than it takes to wake another thread for it.
BRIEF_MACS = 2_000_000

#: Rounding at ties differs between processors: this share of the golden int8 values may differ on a healthy device.
SELFTEST_SHARE_TOLERANCE = 0.01
#: Largest difference of a fused probability from the recorded one.
SELFTEST_PROBABILITY_TOLERANCE = 1e-3
#: Largest difference of a canary's probability from the recorded one: float32 rounding, far below what a lie does.
CANARY_TOLERANCE = 1e-5
