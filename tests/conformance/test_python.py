"""The Python SDK gives what `tests/vectors` says. `tests/vectors/README.md` explains the files."""

import filecmp
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import Bundle, ImageError, UserKey, coding
from privdfs._coded_format import (
    CodedManifest,
    coded_encoder_signature,
    coded_fusion_signature,
    relay_signature,
)
from privdfs._format import ImageSpec, KeySpec, Signature, encoder_signature, fusion_signature
from privdfs._images import load_image
from privdfs._onnx import Graph
from tests.conformance import calls, make_answers, make_releases, make_suspects, releases
from tests.conformance.form import RELEASES, ROOT, VECTORS, array, load, raw, request
from tests.conformance.make_bundles import bundle_outcome, signature_outcome
from tests.conformance.make_calls import options, token
from tests.conformance.make_numbers import once
from tests.conformance.make_pixels import pattern
from tests.conformance.makers import MAKERS, made
from tests.conformance.replay import Answerer, Request
from tests.conformance.servers import open_small

#: Largest difference of a probability: runtimes may compute a softmax in another order.
CLOSE = 1e-5


def vectors(name: str) -> Any:
    """A test for each vector of a file."""
    found = load(name)
    return pytest.mark.parametrize("vector", found, ids=[each["name"] for each in found])


# ---------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("name", MAKERS)
def test_making_the_vectors_again_gives_the_same_bytes(name: str) -> None:
    assert made(name) == (VECTORS / f"{name}.json").read_bytes(), "run `python -m tests.vectors.make`, and say why"


def test_making_the_releases_again_gives_the_same_bytes(tmp_path: Path) -> None:
    releases.build(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {path.relative_to(RELEASES).as_posix() for path in RELEASES.rglob("*") if path.is_file()}
    assert not filecmp.cmpfiles(tmp_path, RELEASES, names, shallow=False)[1]


def test_the_vectors_are_whole_and_small() -> None:
    files = {path.name for path in VECTORS.glob("*.json")}
    assert files == {f"{name}.json" for name in MAKERS}
    for name in MAKERS:
        found = load(name)
        assert found
        assert len({each["name"] for each in found}) == len(found), f"two vectors of {name}.json have one name"
        assert all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", each["section"]) for each in found)
    size = sum(path.stat().st_size for path in VECTORS.rglob("*") if path.is_file())
    assert size < 1_000_000


# ---------------------------------------------------------------------------------------------------- the device


@vectors("pixels")
def test_pixels(vector: dict[str, Any]) -> None:
    data = (VECTORS / vector["file"]).read_bytes()
    if "error" in vector:
        spec = ImageSpec(height=vector["height"], width=vector["width"], channels=vector["channels"])
        with pytest.raises(ImageError):
            load_image(data, spec)
        assert vector["error"] == "ImageError"
        return
    wanted = array(vector["pixels"])
    height, width, channels = wanted.shape
    np.testing.assert_array_equal(load_image(data, ImageSpec(height=height, width=width, channels=channels)), wanted)


@vectors("resize")
def test_resizing(vector: dict[str, Any]) -> None:
    wanted = array(vector["pixels"])
    height, width, channels = wanted.shape
    given = pattern(vector["width"], vector["height"], vector["channels"])
    np.testing.assert_array_equal(load_image(given, ImageSpec(height=height, width=width, channels=channels)), wanted)


@vectors("partitions")
def test_partitions(vector: dict[str, Any]) -> None:
    keys = KeySpec(partitions=vector["partitions"], family=vector["family"])
    assert UserKey(vector["key"]).partition(keys) == vector["partition"]


@vectors("randomness")
def test_randomness(vector: dict[str, Any]) -> None:
    taken = list[int]()
    shape = vector["batch"], vector["colluding"], vector["values"]
    residues = coding.draw(shape, vector["moduli"], once(raw(vector["bytes"]), taken))
    np.testing.assert_array_equal(residues, array(vector["residues"]))
    assert sum(taken) >= vector.get("used", 0)


@vectors("powers")
def test_powers(vector: dict[str, Any]) -> None:
    found = coding.powers(vector["moduli"], vector["servers"], vector["colluding"])
    np.testing.assert_array_equal(found, array(vector["powers"]))


@vectors("decoding")
def test_decoding(vector: dict[str, Any]) -> None:
    answers, places, moduli = array(vector["answers"]), vector["places"], vector["moduli"]
    needed = coding.needed_answers(vector["degree"], vector["colluding"])
    assert needed == vector["needed"]
    liars = coding.find_liars(answers, places, moduli, needed)
    assert (None if liars is None else list(liars)) == vector["liars"]
    if liars is not None:
        chosen = [position for position in range(len(places)) if position not in liars][:needed]
        assert chosen == vector["chosen"]
        own = [places[position] for position in chosen]
        np.testing.assert_array_equal(coding.weights(moduli, own), array(vector["weights"]))
        decoded = coding.decode(np.ascontiguousarray(answers[:, chosen]), own, moduli)
        assert [[str(value) for value in row] for row in decoded.tolist()] == vector["results"]


@vectors("suspects")
def test_suspects(vector: dict[str, Any]) -> None:
    assert make_suspects.changes(vector) == vector["suspects"]


@vectors("graphs")
def test_graphs(vector: dict[str, Any]) -> None:
    signature = _signature(vector["release"], vector["graph"])
    data = (RELEASES / vector["release"] / "client" / vector["graph"]).read_bytes()
    feeds = {name: array(written) for name, written in vector["inputs"].items()}
    outputs = Graph(vector["graph"], data, signature, 1).run(feeds)
    assert [spec.name for spec in signature.outputs] == list(vector["outputs"])
    for output, written in zip(outputs, vector["outputs"].values(), strict=True):
        wanted = array(written)
        assert (output.dtype, output.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(output, wanted, rtol=0, atol=CLOSE if output.dtype == np.float32 else 0)


def _signature(release: str, graph: str) -> Signature:
    manifest = open_small(release, 3).bundle.manifest
    if not isinstance(manifest, CodedManifest):
        return {"encoder.onnx": encoder_signature, "fusion.onnx": fusion_signature}[graph](manifest)
    if graph.startswith("relay"):
        return relay_signature(manifest, int(graph[len("relay-") : -len(".onnx")]))
    return {"encoder.onnx": coded_encoder_signature, "fusion.onnx": coded_fusion_signature}[graph](manifest)


# ---------------------------------------------------------------------------------------------------- the bundle


@vectors("signatures")
def test_signatures(vector: dict[str, Any]) -> None:
    assert signature_outcome(vector) == vector.get("error")


@vectors("releases")
def test_releases(vector: dict[str, Any]) -> None:
    folder = ROOT / vector["folder"]
    assert hashlib.sha256((folder / "client" / "manifest.json").read_bytes()).hexdigest() == vector["manifest"]
    Bundle.open(folder / "client", allow_unsigned=True).selftest()
    assert make_releases.found(vector) == vector["images"]


@vectors("bundles")
def test_bundles(vector: dict[str, Any]) -> None:
    assert bundle_outcome(vector) == vector.get("error")


# ---------------------------------------------------------------------------------------------------- the servers


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    """Which of the two clients."""
    return request.param


@vectors("answers")
def test_answers(vector: dict[str, Any], asynchronous: bool) -> None:  # noqa: FBT001 - a fixture
    found = make_answers.outcome(vector, check=False, asynchronous=asynchronous)
    assert found == {"error": vector.get("error"), "asked": vector["asked"]}


@vectors("checks")
def test_checks(vector: dict[str, Any], asynchronous: bool) -> None:  # noqa: FBT001 - a fixture
    found = make_answers.outcome(vector, check=True, asynchronous=asynchronous)
    assert found["error"] == vector.get("error")
    was_sent = any(line.split()[1] == "POST" for line in found["asked"])
    assert was_sent == ("error" not in vector), "a share follows a check that was passed, and no other"


@vectors("calls")
def test_calls(vector: dict[str, Any], asynchronous: bool) -> None:  # noqa: FBT001 - a fixture
    configs = {each["name"]: raw(each["answer"]) for each in load("configs")}
    small = open_small(vector["release"], 3)
    answerers = [_replaying(own, configs) for own in vector["servers"]]
    draws = [array(written) for written in vector.get("randomness", ())]

    def draw(shape: tuple[int, int, int], moduli: Sequence[int]) -> Any:
        batch, colluding, values = shape
        assert draws[0].shape == (batch, colluding, len(moduli), values)
        return draws.pop(0)

    with calls.fixed_randomness(draw):
        ended = calls.run(
            small.bundle, answerers, array(vector["images"]), options(vector["options"]), token(vector["options"]),
            asynchronous=asynchronous,
        )  # fmt: skip
    assert [[request(each) for each in own] for own in ended.received] == [
        [each["request"] for each in own] for own in vector["servers"]
    ]
    assert not draws
    found, wanted = calls.described(ended), dict(vector["result"])
    if "probabilities" in wanted:
        np.testing.assert_allclose(found.pop("probabilities"), wanted.pop("probabilities"), rtol=0, atol=CLOSE)
    assert found == wanted


def _replaying(own: list[dict[str, Any]], configs: dict[str, bytes]) -> Answerer:
    answers: Iterator[str | None] = iter([each["answer"] for each in own])

    def answer(_: Request) -> bytes | None:
        given = next(answers)
        return given if given is None else configs[given] if given in configs else raw(given)

    return answer
