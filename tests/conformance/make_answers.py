"""Files about what servers say: answers to a share that are none, and answers to the release check."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from privdfs._constants import MAX_ANSWER_BYTES, MAX_HEAD_BYTES, MAX_HEADERS
from tests.conformance import calls
from tests.conformance.form import raw, text
from tests.conformance.releases import images
from tests.conformance.replay import Answerer, Request
from tests.conformance.servers import Small, answerer, framed, json_bytes, model_config, open_small, tensor_answer

ANSWERS = (
    "What a client makes of a server's answer to its share. Server 0 of `release` gives these bytes: `parts`, each "
    "repeated so often; the other servers answer truly. The client needs all answers and may send a share twice. "
    "`error` is the cause that it names for server 0 (none: the answer is taken); `asked` are the requests that server "
    "0 gets, each on the connection that is counted from 1, if it answers every share in this way."
)
CHECKS = (
    "What a client makes of a server's answer to the release check, as `answers` do: server 0 of `release` gives these "
    "bytes when it is asked for the configuration of its first model. `error` is the cause that it names (none: the "
    "check is passed)."
)

#: Bytes, and how often they come.
Parts = list[tuple[bytes, int]]
#: Name, error and bytes.
Named = tuple[str, "str | None", Parts]
_BUSY = "ServerBusyError"
_MISMATCH, _ANSWER, _DOWN = "ServerMismatchError", "AnswerError", "ServerUnavailableError"
_TRUE = np.array([[0.5, -1.25, 3, 2]], np.float32)


def answers() -> Iterable[dict[str, Any]]:
    for name, section, release, error, parts in _answers():
        told = _told(name, section, release, parts)
        found = outcome(told, check=False)
        assert found["error"] == error, (name, found)
        yield told | {key: value for key, value in found.items() if value is not None}


def checks() -> Iterable[dict[str, Any]]:
    for name, release, error, parts in _checks():
        told = _told(name, "6.4" if error == _DOWN else "7", release, parts)
        found = outcome(told, check=True)
        assert found["error"] == error, (name, found)
        yield told | ({} if error is None else {"error": error})


def _told(name: str, section: str, release: str, parts: Parts) -> dict[str, Any]:
    written = [{"data": text(data), "times": times} for data, times in parts]
    return {"name": name, "section": section, "release": release, "parts": written}


def outcome(told: Mapping[str, Any], *, check: bool, asynchronous: bool = False) -> dict[str, Any]:
    """What a client makes of the bytes: an error's name, and what server 0 was asked."""
    small = open_small(told["release"], 3)
    given = b"".join(raw(part["data"]) * part["times"] for part in told["parts"])
    servers = [_saying(small, given, check=check), *(answerer(small, server) for server in (1, 2))]
    pixels = images("answers", 1, small.bundle.manifest.image)
    options = {"timeout": 20.0} | ({"key": bytes(16)} if told["release"] == "keyed" else {})
    ended = calls.run(small.bundle, servers, pixels, options, attempts=1 if check else 2, asynchronous=asynchronous)
    described = calls.described(ended)
    asked = [f"{request.connection} {request.line}" for request in ended.received[0]]
    return {"error": described.get("causes", {}).get("0"), "asked": asked}


def _saying(small: Small, given: bytes, *, check: bool) -> Answerer:
    true, first = answerer(small, 0), small.branches[0].models[0].name

    def answer(request: Request) -> bytes | None:
        spoiled = request.is_check == check and (not check or request.model == first)
        return given if spoiled else true(request)

    return answer


_HEAD, _, _BODY = tensor_answer("branch", "logits", _TRUE).partition(b"\r\n\r\n")
_TOLD = _BODY[: -_TRUE.nbytes]
_LENGTH = b"Content-Length: %d" % len(_BODY)
_CHUNKED = b"Transfer-Encoding: chunked"
_OUTPUT = {"name": "logits", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}


def _answers() -> Iterable[tuple[str, str, str, str | None, Parts]]:
    for name, error, parts in _framing():
        yield name, "6.4", "masked", error, parts
    for name, error, parts in _statuses():
        yield name, "6.6", "masked", error, parts
    for name, error, parts in (*_messages(), *_logits()):
        yield name, "6.5", "masked", error, parts
    for name, error, parts in _residues():
        yield name, "6.5", "coded", error, parts


def _framing() -> Iterable[Named]:
    """Ways to say where an answer ends, of which one is right."""

    def changed(old: bytes, new: bytes) -> Parts:
        assert _HEAD.count(old) == 1, old
        return [(_HEAD.replace(old, new) + b"\r\n\r\n" + _BODY, 1)]

    def added(line: bytes, times: int = 1) -> Parts:
        return [(_HEAD, 1), (b"\r\n" + line, times), (b"\r\n\r\n" + _BODY, 1)]

    good = _HEAD + b"\r\n\r\n" + _BODY
    redirect = "Location: http://127.0.0.1:9/\r\n"
    chunks = b"HTTP/1.1 200 OK\r\n" + _CHUNKED + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
    json_length, large = b"Header-Content-Length: %d", MAX_ANSWER_BYTES + 1
    yield "right", None, [(good, 1)]
    yield "headers that a client does not know", None, added(b"X-Served-By: a\r\nServer: b")
    yield "names of headers in any case", None, changed(b"\r\nContent-Length", b"\r\ncONTENT-lENGTH")
    yield "a server that closes the connection behind it", None, added(b"Connection: close")
    yield "two lengths", _DOWN, added(b"Content-Length: 3")
    yield "the same length twice", _DOWN, added(_LENGTH)
    yield "a length with a sign", _DOWN, changed(_LENGTH, _LENGTH.replace(b": ", b": +"))
    yield "a length in hex", _DOWN, changed(_LENGTH, _LENGTH.replace(b": ", b": 0x"))
    yield "a list of lengths", _DOWN, changed(_LENGTH, _LENGTH + b", " + _LENGTH[16:])
    yield "no length", _DOWN, changed(_LENGTH, b"X: y")
    yield "a length beyond what an answer may have", _DOWN, changed(_LENGTH, b"Content-Length: %d" % large)
    yield "more JSON than answer", _DOWN, changed(json_length % len(_TOLD), json_length % (len(_BODY) + 1))
    yield "chunks", _DOWN, [(chunks, 1)]
    yield "chunks and a length", _DOWN, added(_CHUNKED)
    yield "compression", _DOWN, added(b"Content-Encoding: gzip")
    yield "an interim answer before it", _DOWN, [(b"HTTP/1.1 100 Continue\r\n\r\n" + good, 1)]
    yield "a redirect", _DOWN, _with_status("307 Temporary Redirect", redirect)
    yield "another success than 200", _DOWN, _with_status("206 Partial Content")
    yield "HTTP/1.0", _DOWN, changed(b"HTTP/1.1", b"HTTP/1.0")
    yield "no HTTP", _DOWN, [(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18), 1)]
    yield "bytes behind the answer", _DOWN, [(good + b"x", 1)]
    yield "a folded header", _DOWN, added(b"X: y\r\n z")
    yield "a blank before the colon", _DOWN, added(b"X : y")
    yield "a header without a colon", _DOWN, added(b"X")
    yield "a bare line feed", _DOWN, added(b"X: y\nZ: 3")
    yield "a zero byte in a header", _DOWN, added(b"X: \0")
    yield "a status of four digits", _DOWN, changed(b"200 OK", b"2000 OK")
    yield "too many headers", _DOWN, added(b"X: y", MAX_HEADERS)
    yield "too long a header", _DOWN, added(b"X: " + b"y" * 1022, MAX_HEAD_BYTES // 1024)


def _with_status(code: str, headers: str = "") -> Parts:
    return [(framed(b'{"error":"told"}', None, code, headers), 1)]


def _statuses() -> Iterable[Named]:
    names = {
        400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
        413: "Too Large", 429: "Too Many Requests", 499: "Client Closed Request", 500: "Internal Server Error",
        501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 599: "Other",
    }  # fmt: skip
    for code, name in names.items():
        error = {404: _MISMATCH, 429: _BUSY, 504: "ServerTimeoutError"}.get(code, _DOWN)
        yield f"status {code}", error, _with_status(f"{code} {name}")
    full = b'{"error":"in ensemble: Exceeds maximum queue size"}'
    yield "Triton's words for a full queue", _BUSY, [(framed(full, None, "503 Service Unavailable"), 1)]
    busy = b"HTTP/1.1 503 Busy\r\n"
    yield "an error in chunks", _DOWN, [(busy + _CHUNKED + b"\r\n\r\n4\r\nbusy\r\n0\r\n\r\n", 1)]
    yield "an error without a length", _DOWN, [(busy + b"\r\n", 1)]


def _outputs(*rows: object, behind: bytes = _TRUE.tobytes(), **more: object) -> Parts:
    told = json_bytes({"model_name": "branch", "model_version": "1", "outputs": list(rows), **more})
    return [(framed(told + behind, len(told)), 1)]


def _messages() -> Iterable[Named]:
    """What the JSON says, and the bytes behind it."""

    def sized(size: object) -> dict[str, object]:
        return {**_OUTPUT, "parameters": {"binary_data_size": size}}

    in_json = {"name": "logits", "datatype": "FP32", "shape": [1, 4], "data": [0.5, -1.25, 3, 2]}
    deep = b"HTTP/1.1 200 OK\r\nContent-Length: 100005\r\n\r\n" + b'{"x":'
    yield "no JSON", _ANSWER, [(framed(b"logits", 6), 1)]
    yield "an empty answer", _ANSWER, [(framed(b"", 0), 1)]
    yield "JSON that is no object", _ANSWER, [(framed(b"[]", 2), 1)]
    yield "JSON nested too deeply", _ANSWER, [(deep, 1), (b"[", 100_000)]
    yield "no outputs", _ANSWER, _outputs(behind=b"")
    yield "two outputs", _ANSWER, _outputs(_OUTPUT, _OUTPUT, behind=_TRUE.tobytes() * 2)
    yield "an output in JSON", _ANSWER, _outputs(in_json, behind=b"")
    yield "an output without a name", _ANSWER, _outputs({**_OUTPUT, "name": None})
    yield "a negative size", _ANSWER, _outputs(sized(-16))
    yield "a size beyond the answer", _ANSWER, _outputs(sized(17))
    yield "a size below the answer", _ANSWER, _outputs(sized(12))
    yield "a size as text", _ANSWER, _outputs(sized("16"))
    yield "fields to come", None, _outputs({**_OUTPUT, "more": 1}, more={"new": True})


def _logits() -> Iterable[Named]:
    """Tensors that could be an answer of a masked release, and others."""

    def saying(name: str, values: Any) -> Parts:
        return [(tensor_answer("branch", name, values), 1)]

    def largest(value: float) -> Parts:
        return saying("logits", np.where(_TRUE > 2.5, value, _TRUE).astype(np.float32))

    yield "another name", _ANSWER, saying("probabilities", _TRUE)
    yield "another type", _ANSWER, saying("logits", _TRUE.astype(np.float64))
    yield "another type of the same size", _ANSWER, saying("logits", _TRUE.astype(np.int32))
    yield "another batch", _ANSWER, saying("logits", np.repeat(_TRUE, 2, axis=0))
    yield "another number of classes", _ANSWER, saying("logits", _TRUE[:, :3])
    yield "no batch", _ANSWER, saying("logits", _TRUE[0])
    yield "a shape that the bytes do not have", _ANSWER, _outputs({**_OUTPUT, "shape": [1, 5]})
    yield "NaN logits", _ANSWER, largest(np.nan)
    yield "infinite logits", _ANSWER, largest(np.inf)
    yield "absurdly large logits", _ANSWER, largest(1.1e6)
    yield "absurdly small logits", _ANSWER, largest(-1.1e6)
    yield "the largest logits", None, largest(1e6)


def _residues() -> Iterable[Named]:
    """The same of a coded release, whose moduli are 241, 239 and 233."""
    yield "logits in place of residues", _ANSWER, [(tensor_answer("branch-1", "residues", _TRUE), 1)]
    for value, column in ((120, 0), (121, 0), (-120, 0), (-121, 0), (119, 1), (117, 2)):
        prime = (241, 239, 233)[column]
        residues = np.zeros((1, 3, 4), np.int8)
        residues[0, column, 1] = value
        parts: Parts = [(tensor_answer("branch-1", "residues", residues), 1)]
        yield f"{value} modulo {prime}", _ANSWER if abs(value) > prime // 2 else None, parts


def _checks() -> Iterable[tuple[str, str, str | None, Parts]]:
    branch = open_small("masked", 3).branches[0]
    good = model_config(branch, 0)

    def saying(config: object) -> Parts:
        return [(framed(json_bytes(config)), 1)]

    def parameters(**changes: object) -> Parts:
        own = {key: value for key, value in (good["parameters"] | changes).items() if value is not None}
        return saying(good | {"parameters": own})

    def of(text_: object) -> dict[str, object]:
        return {"string_value": text_}

    yield "right", "masked", None, saying(good)
    yield (
        "fields and parameters to come",
        "masked",
        None,
        saying(good | {"new": [1], "parameters": good["parameters"] | {"more": of("x")}}),
    )
    yield "a larger batch", "masked", None, saying(good | {"max_batch_size": 5})
    yield "another release", "masked", _MISMATCH, parameters(privdfs_release=of("vectors-masked-2"))
    yield "an id that only begins the same", "masked", _MISMATCH, parameters(privdfs_release=of("vectors-masked-10"))
    yield "an id in upper case", "masked", _MISMATCH, parameters(privdfs_release=of("VECTORS-MASKED-1"))
    yield "no release", "masked", _MISMATCH, parameters(privdfs_release=None)
    yield "another server", "masked", _MISMATCH, parameters(privdfs_server=of("1"))
    yield "no server", "masked", _MISMATCH, parameters(privdfs_server=None)
    yield "a server's index spelled in another way", "masked", _MISMATCH, parameters(privdfs_server=of("00"))
    yield "a server's index as a number", "masked", _ANSWER, parameters(privdfs_server=of(0))
    yield "parameters that are text", "masked", _ANSWER, parameters(privdfs_server="0")
    yield "no parameters", "masked", _MISMATCH, saying({key: good[key] for key in good if key != "parameters"})
    yield "a smaller batch", "masked", _MISMATCH, saying(good | {"max_batch_size": 3})
    yield "a batch as text", "masked", _ANSWER, saying(good | {"max_batch_size": "4"})
    share, logits = good["input"][0], good["output"][0]
    yield "a shorter share", "masked", _MISMATCH, saying(good | {"input": [share | {"dims": [4]}]})
    yield (
        "a share of another type",
        "masked",
        _MISMATCH,
        saying(good | {"input": [share | {"data_type": "TYPE_UINT8"}]}),
    )
    yield "another input", "masked", _MISMATCH, saying(good | {"input": [share | {"name": "image"}]})
    yield "one more input", "masked", _MISMATCH, saying(good | {"input": [share, share | {"name": "more"}]})
    yield "no inputs", "masked", _MISMATCH, saying(good | {"input": []})
    yield "one more class", "masked", _MISMATCH, saying(good | {"output": [logits | {"dims": [5]}]})
    yield "one more output", "masked", _MISMATCH, saying(good | {"output": [logits, logits | {"name": "more"}]})
    yield "an input without a shape", "masked", _ANSWER, saying(good | {"input": [{"name": "share"}]})
    yield "not JSON", "masked", _ANSWER, [(framed(b"config"), 1)]
    yield "not an object", "masked", _ANSWER, saying([good])
    yield "an empty object", "masked", _MISMATCH, saying({})
    yield "nothing", "masked", _ANSWER, [(framed(b""), 1)]
    yield "not UTF-8", "masked", _ANSWER, [(framed(json_bytes(good).replace(b"vectors", b"vector\xff")), 1)]
    yield "bytes behind the object", "masked", _ANSWER, [(framed(json_bytes(good) + b"{}"), 1)]
    yield "no such model", "masked", _MISMATCH, [(framed(b'{"error":"no"}', None, "404 Not Found"), 1)]
    yield "a server that is busy", "masked", _DOWN, [(framed(b'{"error":"no"}', None, "503 Busy"), 1)]
    yield "a redirect", "masked", _DOWN, [(framed(b"", None, "301 Moved", "Location: http://127.0.0.1:9/\r\n"), 1)]
    keyed = model_config(open_small("keyed", 3).branches[0], 0)
    yield "a server of a release without keys", "keyed", _MISMATCH, saying(keyed | {"input": keyed["input"][:1]})
    yield "inputs in another order", "keyed", _MISMATCH, saying(keyed | {"input": keyed["input"][::-1]})
    coded = open_small("coded-rounds", 3).branches[0]
    first, second = (model_config(coded, number) for number in (0, 1))
    yield "the first of two models", "coded-rounds", None, saying(first)
    yield "the second model in place of the first", "coded-rounds", _MISMATCH, saying(second)
    yield (
        "fewer primes",
        "coded-rounds",
        _MISMATCH,
        saying(json.loads(json.dumps(first).replace('"dims": [3, 7]', '"dims": [2, 7]'))),
    )
