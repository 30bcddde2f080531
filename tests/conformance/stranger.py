"""A client that knows docs/PROTOCOL.md and none of this project's code: the page's functions, JSON, an ONNX runtime.

It has no sockets, no clock and no retries: it asks one server after the other, through a function that a test gives it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

#: A server's index and a whole request, to the bytes of its answer; None: it closed the connection.
Exchange = Callable[[int, bytes], "bytes | None"]
Written = Mapping[str, Any]

_AGAIN_LATER = "ServerUnavailableError"
_MISMATCH, _ANSWER = "ServerMismatchError", "AnswerError"


class CallEndedError(Exception):
    """How a call failed, in the words of a vector."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told)
        self.told = told


class Stranger:
    """A client of one release and its servers, for one call."""

    def __init__(
        self, written: Written, folder: Path, exchange: Exchange, servers: int, options: Mapping[str, Any]
    ) -> None:
        self._written, self._exchange, self._options = written, exchange, options
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name, digest in manifest["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        self._manifest, self._coded = manifest, manifest["format_version"] == 2
        self._graphs: dict[str, Any] = {
            path.name: onnxruntime.InferenceSession(path.read_bytes()) for path in folder.glob("*.onnx")
        }
        self._servers, self._checked = servers, set[int]()
        self._rounds: list[dict[str, Any]] = manifest.get("rounds", [{}])
        self._colluding = options.get("colluding", max(1, (servers - 1) // 2))
        degree = max(each.get("degree", 0) for each in self._rounds)
        self._needed = options.get("min_answers", degree * self._colluding + 1 if self._coded else servers)
        keys = manifest.get("keys")
        self._partition, self._up = None, [0] * servers
        if keys is not None:
            key, family = bytes.fromhex(options["key"]), bytes.fromhex(keys["family"])
            self._partition = written["partition"](key, family, keys["partitions"])

    def classify(self, images: NDArray[np.uint8], randomness: list[NDArray[np.int8]]) -> dict[str, Any]:
        """What a vector's `result` says of the images."""
        step = self._manifest["max_batch"]
        chunks = [images[start : start + step] for start in range(0, len(images), step)]
        ends = [self._coded_chunk(chunk, randomness) if self._coded else self._masked_chunk(chunk) for chunk in chunks]
        rows = np.concatenate([probabilities for probabilities, _ in ends]).tolist()
        labels = [self._manifest["classes"][int(np.argmax(row))] for row in rows]
        return {"probabilities": rows, "labels": labels, **ends[0][1]}

    # -------------------------------------------------------------------------------------------------- sections 4, 5

    def _masked_chunk(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._up = [0] * self._servers
        feeds: dict[str, Any] = {"image": pixels}
        if self._partition is not None:
            feeds["partition"] = np.full((len(pixels), 1), self._partition, np.int32)
        shares = self._graphs["encoder.onnx"].run(None, feeds)
        answers = self._ask(1, shares)
        logits = np.zeros((len(pixels), self._servers, len(self._manifest["classes"])), np.float32)
        for server, answer in answers.items():
            logits[:, server] = answer
        answered = [server in answers for server in range(self._servers)]
        feeds = {"logits": logits, "answered": np.array([answered] * len(pixels))}
        (probabilities,) = self._graphs["fusion.onnx"].run(None, feeds)
        accuracy = self._manifest["accuracy"]
        rows = {tuple(row["answered"]): row["accuracy"] for row in accuracy["subsets"]}
        expected = accuracy["fused"] if all(answered) else rows.get(tuple(sorted(answers)))
        down = [4 * logits.shape[2] if took else 0 for took in answered]
        return probabilities, _end(answered, [], self._up, down, expected)

    def _coded_chunk(
        self, pixels: NDArray[np.uint8], randomness: list[NDArray[np.int8]]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._up = [0] * self._servers
        feeds: dict[str, Any] = {"image": pixels, **self._fresh(1, randomness)}
        shares, values = self._graphs["encoder.onnx"].run(None, feeds)
        shared, liars, heard = [values], set[int](), set(range(self._servers))
        down = [0] * self._servers
        for number, about in enumerate(self._rounds, 1):
            primes = len(about["moduli"])
            answers = self._ask(number, [shares[:, server] for server in range(self._servers)])
            heard &= set(answers)
            down = [each + (primes * about["outputs"] if i in answers else 0) for i, each in enumerate(down)]
            who = sorted(answers)
            stacked = np.stack([answers[server] for server in who], axis=1)
            places, needed = [server + 1 for server in who], about["degree"] * self._colluding + 1
            found = self._written["find_liars"](stacked.tolist(), places, about["moduli"], needed)
            liars |= {who[position] for position in found or ()}
            chosen = [position for position, server in enumerate(who) if server not in liars][:needed]
            if found is None or len(chosen) < needed:
                raise CallEndedError({"error": "ContradictingAnswersError", "answered": who, "round": number})
            weights = self._written["weights"](about["moduli"], [places[position] for position in chosen])
            feeds = {"answers": stacked[:, chosen], "weights": np.array(weights, np.int8)}
            if number == len(self._rounds):
                (probabilities,) = self._graphs["fusion.onnx"].run(None, feeds)
                answered = [server in heard for server in range(self._servers)]
                return probabilities, _end(answered, sorted(liars), self._up, down, self._manifest["accuracy"]["fused"])
            feeds |= self._fresh(number + 1, randomness)
            if about["added"]:
                feeds["added"] = shared[about["added"] - 1]
            shares, values = self._graphs[f"relay-{number}.onnx"].run(None, feeds)
            shared.append(values)
        raise AssertionError("a release has a last round")

    def _fresh(self, number: int, randomness: list[NDArray[np.int8]]) -> dict[str, NDArray[np.int8]]:
        powers = self._written["powers"](self._rounds[number - 1]["moduli"], self._servers, self._colluding)
        return {"randomness": randomness.pop(0), "powers": np.array(powers, np.int8)}

    # ----------------------------------------------------------------------------------------------- sections 6, 7, 8

    def _ask(self, number: int, shares: list[NDArray[np.int8]]) -> dict[int, NDArray[Any]]:
        """The answers of an exchange by server."""
        causes: dict[int, str] = {}
        for server in range(self._servers):
            if server not in self._checked:
                self._check(server, causes)
        answers: dict[int, NDArray[Any]] = {}
        if len(self._checked) >= self._needed:
            for server in sorted(self._checked):
                answer = self._infer(server, number, shares[server])
                if isinstance(answer, str):
                    causes[server] = answer
                    self._checked.discard(server)
                else:
                    answers[server] = answer
        if len(answers) < self._needed:
            told = {str(server): cause for server, cause in sorted(causes.items())}
            raise CallEndedError(
                {"error": "NotEnoughAnswersError", "causes": told, "answered": sorted(answers), "needed": self._needed}
            )
        return answers

    def _check(self, server: int, causes: dict[int, str]) -> None:
        for number in range(1, len(self._rounds) + 1):
            said = self._exchange(server, self._request("GET", f"{self._model(number)}/config"))
            read = _read(said)
            if isinstance(read, str):
                causes[server] = read
                return
            config, _ = read
            share, output = self._tensors(server, number)
            inputs = [("share", "TYPE_INT8", share)]
            if self._partition is not None:
                inputs.append(("partition", "TYPE_INT32", [1]))
            outputs = [("residues", "TYPE_INT8", output) if self._coded else ("logits", "TYPE_FP32", output)]
            named = {name: value["string_value"] for name, value in config["parameters"].items()}
            right = named.get("privdfs_release") == self._manifest["release"]
            right &= named.get("privdfs_server") == str(server)
            right &= [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == inputs
            right &= [(each["name"], each["data_type"], each["dims"]) for each in config["output"]] == outputs
            right &= config["max_batch_size"] >= self._manifest["max_batch"]
            if not right:
                causes[server] = _MISMATCH
                return
        self._checked.add(server)

    def _infer(self, server: int, number: int, share: NDArray[np.int8]) -> "NDArray[Any] | str":
        self._up[server] += share[0].size + (0 if self._partition is None else 4)
        output = "residues" if self._coded else "logits"
        length, body = self._written["infer_request"](
            (list(share.shape), share.tobytes()), output, self._options.get("timeout", 5.0), self._partition
        )
        lengths = f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n"
        read = _read(self._exchange(server, self._request("POST", f"{self._model(number)}/infer", lengths) + body))
        if isinstance(read, str):
            return read
        said, raw = read
        (told,) = said["outputs"]
        shape = [len(share), *self._tensors(server, number)[1]]
        kind, size = ("INT8", 1) if self._coded else ("FP32", 4)
        fits = (told["name"], told["datatype"], told["shape"]) == (output, kind, shape)
        if not fits or told["parameters"]["binary_data_size"] != len(raw) or len(raw) != size * math.prod(shape):
            return _ANSWER
        answer = np.frombuffer(raw, "i1" if self._coded else "<f4").reshape(shape)
        if self._coded:
            largest = np.array(self._rounds[number - 1]["moduli"])[:, np.newaxis] // 2
            return _ANSWER if (np.abs(answer.astype(int)) > largest).any() else answer
        return answer if (np.abs(answer) <= 1e6).all() else _ANSWER

    def _model(self, number: int) -> str:
        return f"branch-{number}" if self._coded else "branch"

    def _tensors(self, server: int, number: int) -> tuple[list[int], list[int]]:
        if not self._coded:
            return [self._manifest["servers"][server]["share_length"]], [len(self._manifest["classes"])]
        about = self._rounds[number - 1]
        return [len(about["moduli"]), about["values"]], [len(about["moduli"]), about["outputs"]]

    def _request(self, method: str, path: str, lengths: str = "") -> bytes:
        token = ""
        if "token" in self._options:
            name = self._options.get("token_header", "authorization")
            token = f"{name}: {'Bearer ' if name == 'authorization' else ''}{self._options['token']}\r\n"
        return (
            f"{method} /v2/models/{path} HTTP/1.1\r\nHost: {{authority}}\r\nUser-Agent: privdfs\r\n"
            f"Accept-Encoding: identity\r\n{token}{lengths}\r\n"
        ).encode()


def _read(said: bytes | None) -> tuple[dict[str, Any], bytes] | str:
    """JSON and tensors of an answer, or the error that it is the cause of."""
    if said is None:
        return _AGAIN_LATER
    head, _, body = said.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split()[1] != "200":
        return _AGAIN_LATER
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(headers.get("inference-header-content-length", len(body)))
    return json.loads(body[:length]), body[length:]


def _end(
    answered: list[bool], liars: list[int], up: list[int], down: list[int], expected: float | None
) -> dict[str, Any]:
    return {
        "answered": answered,
        "suspects": liars,
        "corrected": liars,
        "bytes_up": up,
        "bytes_down": down,
        "expected_accuracy": expected,
    }
