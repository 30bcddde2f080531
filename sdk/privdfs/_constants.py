"""All numeric policy of the SDK. Times in seconds, sizes in bytes or pixels."""

#: A call that names no timeout ends after this long, whatever the servers do.
DEFAULT_TIMEOUT_S = 5.0
#: A longer timeout is taken for a mistake in the unit.
MAX_TIMEOUT_S = 3600.0
#: gRPC ends its calls at the deadline by itself; if it ever does not, the SDK gives up this much later.
TRANSPORT_GRACE_S = 1.0
#: A lost connection is tried again after the first wait, which doubles up to the second.
RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 5.0

#: Images with more pixels are refused before they are decoded (a 64-megapixel photo takes 192 MB as RGB).
MAX_PIXELS = 64_000_000
#: Images with a shorter side are refused: nothing can be recognised in them.
MIN_SIDE = 8
#: Encoded files beyond this are refused before they are read.
MAX_ENCODED_BYTES = 128 * 1024 * 1024

#: Answers beyond this are refused by gRPC: logits are a few kilobytes.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
#: No trained branch gives such a logit; below it the fusion's float32 arithmetic stays finite.
MAX_ABS_LOGIT = 1e6

#: The graphs on the device are small; a second thread costs more in waking up than it gains.
ONNX_THREADS = 1

#: Rounding at ties differs between processors: this share of the golden int8 values may differ on a healthy device.
SELFTEST_SHARE_TOLERANCE = 0.01
#: Largest difference of a fused probability from the recorded one.
SELFTEST_PROBABILITY_TOLERANCE = 1e-3
