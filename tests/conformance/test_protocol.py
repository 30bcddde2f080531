"""docs/PROTOCOL.md against the SDK and the vectors: its code is run, its numbers and sections are compared."""

import functools
import itertools
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from privdfs import _constants, _files, _signature, coding
from tests.conformance.form import RELEASES, ROOT, array, load, raw
from tests.conformance.make_pixels import pattern
from tests.conformance.makers import MAKERS
from tests.conformance.stranger import CallEndedError, Stranger

TEXT = (ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
CALLS = load("calls")
HEADINGS = dict(re.findall(r"^#{2,3} ([0-9.]+?)\.? (.+)$", TEXT, re.MULTILINE))


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The functions of the page, as a reader would type them."""
    found: dict[str, Any] = {}
    for block in re.findall(r"^ *```python\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(block, found)  # noqa: S102 - our own page
    return found


# ---------------------------------------------------------------------------------------------------- the page


def test_every_vector_illustrates_a_section() -> None:
    used = {vector["section"] for name in MAKERS for vector in load(name)}
    assert used <= set(HEADINGS)
    parts = {section for section in HEADINGS if section.split(".")[0] in "234567" and "." in section}
    without = {"2.6", "5.1", "5.2", "5.8", "6.1", "6.7", "2.8"}
    assert parts - used <= without, "a section that could have a vector has none"


def test_the_table_of_numbers_is_that_of_the_sdk() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([0-9.,]+) \|", TEXT, re.MULTILINE)
    assert len(rows) > 30
    for name, value in rows:
        homes = [home for home in (_constants, _files, _signature, coding) if hasattr(home, name)]
        assert float(value.replace(",", "")) == getattr(homes[0], name), name
    told = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", TEXT))
    assert told == {name for name, _ in rows}


def test_every_error_is_placed_and_no_other() -> None:
    table = (ROOT / "docs" / "ERRORS.md").read_text("utf-8")
    known = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) - {"Error", "BundleError", "ServerError"}
    placed = TEXT[TEXT.index("| raised | by sections |") : TEXT.index("## 13")]
    assert set(re.findall(r"`(\w+Error)`", placed)) == known
    assert set(re.findall(r"`(\w+Error)`", TEXT)) == known
    for section in re.findall(r"\| ([0-9., ]+)(?:,[^|]*)? \|$", placed, re.MULTILINE):
        assert set(section.split(", ")) <= set(HEADINGS)


def test_statuses_are_those_of_the_table() -> None:
    table = TEXT[TEXT.index("### 6.6") : TEXT.index("### 6.7")]
    rows = re.findall(r"^\| ([^|]+) \| [A-Z_]+ \| `(\w+)` \| (yes|no) \|$", table, re.MULTILINE)
    wanted = {status: (error, again) for names, error, again in rows for status in names.split(", ")}
    vectors = [each for each in load("answers") if each["name"].startswith("status ")]
    assert len(vectors) > 10
    for vector in vectors:
        status = vector["name"].split()[1]
        sent = sum(" POST " in line for line in vector["asked"])
        found = vector["error"], "yes" if sent == 2 else "no"
        assert found == wanted.get(status, wanted[f"another {status[0]}xx"]), status


# ---------------------------------------------------------------------------------------------------- its code


@pytest.mark.parametrize("seed", range(40))
def test_liars_as_written_are_those_of_the_sdk_and_of_trying_all_sets(written: dict[str, Any], seed: int) -> None:
    generator = np.random.default_rng(seed)
    answered, needed = int(generator.integers(2, 9)), int(generator.integers(1, 4))
    places, moduli = sorted(generator.permutation(np.arange(1, 17))[:answered].tolist()), [241, 239]
    coefficients = generator.integers(-99, 100, (needed, 2, 3))
    values = np.array([sum(row * place**k for k, row in enumerate(coefficients)) for place in places])
    lies = (generator.random((answered, 2, 3)) < 0.4) & (np.arange(answered) < generator.integers(4))[:, None, None]
    values = np.where(lies, values + generator.integers(1, 200, values.shape), values)
    residues = np.stack([coding.centred(values[:, i], prime) for i, prime in enumerate(moduli)], axis=1)
    most = max(0, answered - needed) // 2
    sets = itertools.chain.from_iterable(itertools.combinations(range(answered), count) for count in range(most + 1))
    agree = functools.partial(written["contradiction"], residues.tolist(), places, moduli, needed)
    tried = next((list(out) for out in sets if agree([i for i in range(answered) if i not in out]) is None), None)
    expected = tried if answered >= needed else None
    assert written["find_liars"]([residues.tolist()], places, moduli, needed) == expected
    if answered >= needed:
        found = coding.find_liars(residues[None].astype(np.int8), places, moduli, needed)
        assert (None if found is None else list(found)) == expected


def test_resizing_as_written(written: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(written, "weights_of", functools.cache(written["weights_of"]))  # the same for every line
    for vector in load("resize"):
        wanted = array(vector["pixels"])
        height, width, channels = wanted.shape
        given = pattern(vector["width"], vector["height"], vector["channels"])
        if channels < vector["channels"]:
            red, green, blue = (given[:, :, [i]].astype(np.int64) for i in range(3))
            given = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        rows = _lines(written, given, width)
        columns = _lines(written, rows.transpose(1, 0, 2), height).transpose(1, 0, 2)
        np.testing.assert_array_equal(columns, wanted, vector["name"])


def _lines(written: dict[str, Any], lines: NDArray[Any], after: int) -> NDArray[np.int64]:
    """Every line of every channel to another length: [lines, before, channels]."""
    channels = [[written["resize_line"](line[:, c].tolist(), after) for line in lines] for c in range(lines.shape[2])]
    return np.moveaxis(np.array(channels), 0, 2)


def test_transparency_as_written(written: dict[str, Any]) -> None:
    colours, alphas = (each.astype(np.uint8) for each in np.mgrid[0:256, 0:256])
    layer = Image.fromarray(np.stack([colours, colours, colours, alphas], axis=2))
    shown = np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer))[:, :, 0]
    found = [[written["over_white"](colour, alpha) for alpha in range(256)] for colour in range(256)]
    np.testing.assert_array_equal(found, shown)


def test_grey_as_written() -> None:
    draw = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    red, green, blue = (draw[:, :, i].astype(np.int64) for i in range(3))
    found = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    assert "(19595 * R + 38470 * G + 7471 * B + 32768) >> 16" in TEXT
    np.testing.assert_array_equal(np.asarray(Image.fromarray(draw).convert("L")), found)


def test_partitions_as_written(written: dict[str, Any]) -> None:
    for vector in load("partitions"):
        key, family = bytes.fromhex(vector["key"]), bytes.fromhex(vector["family"])
        assert written["partition"](key, family, vector["partitions"]) == vector["partition"]


def test_suspects_as_written(written: dict[str, Any]) -> None:
    for vector in load("suspects"):
        rows = [
            [f"of {i} alone" if each == "invalid" else each for i, each in enumerate(row)] for row in vector["answers"]
        ]
        changes: list[list[Any]] = []
        for number in range(1, len(rows) + 1):
            found = written["suspects"](rows[:number], vector["accuracies"])
            if found != (changes[-1][1] if changes else []):
                changes.append([number, found])
        assert changes == vector["suspects"], vector["name"]


def test_drawing_as_written(written: dict[str, Any]) -> None:
    for vector in load("randomness"):
        source = iter(raw(vector["bytes"]))
        shape = vector["batch"], vector["colluding"], vector["moduli"], vector["values"]
        drawn = written["draw"](lambda source=source: next(source), *shape)
        np.testing.assert_array_equal(drawn, array(vector["residues"]))
        if "used" in vector:
            assert len(list(source)) == len(raw(vector["bytes"])) - vector["used"]


def test_powers_as_written(written: dict[str, Any]) -> None:
    for vector in load("powers"):
        found = written["powers"](vector["moduli"], vector["servers"], vector["colluding"])
        np.testing.assert_array_equal(found, array(vector["powers"]))


def test_decoding_as_written(written: dict[str, Any]) -> None:
    for vector in load("decoding"):
        answers, places, moduli = array(vector["answers"]).tolist(), vector["places"], vector["moduli"]
        assert vector["needed"] == vector["degree"] * vector["colluding"] + 1
        assert written["find_liars"](answers, places, moduli, vector["needed"]) == vector["liars"], vector["name"]
        if vector["liars"] is None:
            continue
        weights = written["weights"](moduli, [places[position] for position in vector["chosen"]])
        np.testing.assert_array_equal(weights, array(vector["weights"]))
        for image, wanted in zip(answers, vector["results"], strict=True):
            told = [image[position] for position in vector["chosen"]]
            sums = [
                [
                    sum(w * server[column][output] for w, server in zip(row, told, strict=True))
                    for column, row in enumerate(weights)
                ]
                for output in range(len(told[0][0]))
            ]
            assert [str(written["join"](row, moduli)) for row in sums] == wanted


def test_shares_as_written(written: dict[str, Any]) -> None:
    """What a sharing is said to be is what the graphs compute, and what decoding undoes."""
    checked = 0
    for vector in load("graphs"):
        if "shares" not in vector["outputs"]:
            continue
        shares, values = array(vector["outputs"]["shares"]), array(vector["outputs"]["values"])
        randomness = array(vector["inputs"]["randomness"]).astype(int)
        moduli = (241, 239, 233)[: shares.shape[2]]
        chosen = values[:, values.shape[1] - shares.shape[3] :]
        for place, column in itertools.product(range(1, shares.shape[1] + 1), range(len(moduli))):
            blinding = sum(randomness[:, k, column] * place ** (k + 1) for k in range(randomness.shape[1]))
            found = written["centred"](chosen + blinding, moduli[column])
            np.testing.assert_array_equal(found, shares[:, place - 1, column])
            checked += 1
    assert checked > 50


def test_requests_as_written(written: dict[str, Any]) -> None:
    bodies = 0
    for vector in load("calls"):
        for asked in (each["request"] for own in vector["servers"] for each in own):
            head = dict(asked["headers"])
            if "body" not in asked:
                assert list(head)[:3] == ["Host", "User-Agent", "Accept-Encoding"]
                continue
            body, length = raw(asked["body"]), int(head["Inference-Header-Content-Length"])
            shape = [int(size) for size in re.search(rb'"shape":\[([0-9,]+)\]', body)[1].split(b",")]  # type: ignore[index]
            data = body[length : length + int(np.prod(shape))]
            partition = _partition(written, vector["options"]) if vector["release"] == "keyed" else None
            output = "residues" if vector["release"].startswith("coded") else "logits"
            timeout = vector["options"].get("timeout", 5.0)
            assert written["infer_request"]((shape, data), output, timeout, partition) == (length, body)
            assert list(head) == [*list(head)[:-2], "Inference-Header-Content-Length", "Content-Length"]
            bodies += 1
    assert bodies > 100


def _partition(written: dict[str, Any], options: dict[str, Any]) -> int:
    family = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
    return written["partition"](bytes.fromhex(options["key"]), family, 5)


# ---------------------------------------------------------------------------------------------------- a stranger


@pytest.mark.parametrize("vector", CALLS, ids=[each["name"] for each in CALLS])
def test_a_client_written_from_the_page_alone(vector: dict[str, Any], written: dict[str, Any]) -> None:
    """Every request it makes, and every result and error, is that of the vector."""
    configs = {each["name"]: each["answer"] for each in load("configs")}
    scripts = [list(own) for own in vector["servers"]]

    def exchange(server: int, asked: bytes) -> bytes | None:
        said = scripts[server].pop(0)
        wanted = said["request"]
        head = "\r\n".join([wanted["line"], *(": ".join(pair) for pair in wanted["headers"])])
        assert asked == head.encode() + b"\r\n\r\n" + raw(wanted.get("body", ""))
        given = said["answer"]
        return given if given is None else raw(configs.get(given, given))

    client = Stranger(written, RELEASES / vector["release"] / "client", exchange, len(scripts), vector["options"])
    draws = [array(each) for each in vector.get("randomness", ())]
    try:
        found = client.classify(array(vector["images"]), draws)
    except CallEndedError as end:
        found = end.told
    assert not any(scripts)
    assert not draws
    wanted = dict(vector["result"])
    if "probabilities" in wanted:
        np.testing.assert_allclose(found.pop("probabilities"), wanted.pop("probabilities"), rtol=0, atol=1e-5)
    assert found == wanted
