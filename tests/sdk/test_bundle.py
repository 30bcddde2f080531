import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from privdfs import Bundle, BundleFormatError, BundleIntegrityError, BundleVersionError, ConfigError, SelfTestError
from privdfs._files import sha256_file
from tests.sdk.tiny_release import CLASSES, HEIGHT, WIDTH, build_release

FILES = ("encoder.onnx", "fusion.onnx", "golden.safetensors")


def relist(client: Path, name: str) -> None:
    """Make the manifest list a file as it is now, as a faulty exporter would."""
    path = client / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = sha256_file(client / name)
    path.write_text(json.dumps(manifest))


def test_a_bundle_shows_what_it_is(release: Path) -> None:
    bundle = Bundle.open(str(release / "client"), allow_unsigned=True)
    assert (bundle.release, bundle.n_servers, bundle.classes) == ("tiny-1", 3, CLASSES)
    assert repr(bundle) == "Bundle(release='tiny-1', servers=3, classes=4)"
    assert bundle.manifest.max_batch == 4


def test_describe_names_the_numbers(release: Path) -> None:
    text = Bundle.open(release / "client", allow_unsigned=True).describe()
    for part in (
        "tiny-1",
        "5 + 6 + 7 = 18",
        "ankle boot",
        "50.00%",
        "11.0% of the baseline",
        "ridge",
        "9.0 dB",
        "1 of 3: 40.00%",
    ):
        assert part in text


def test_encode_gives_one_share_per_server(release: Path, images: np.ndarray) -> None:
    shares = Bundle.open(release / "client", allow_unsigned=True).encode(images)
    assert [(share.dtype, share.shape) for share in shares] == [(np.int8, (10, length)) for length in (5, 6, 7)]
    assert len({share.tobytes() for share in shares[0]}) > 1


def test_a_share_does_not_depend_on_its_neighbours_in_the_batch(release: Path, images: np.ndarray) -> None:
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    together = bundle.encode(images)
    for position, image in enumerate(images):
        for share, alone in zip(together, bundle.encode(image[np.newaxis]), strict=True):
            np.testing.assert_array_equal(share[position], alone[0])


def test_fuse_ignores_servers_that_did_not_answer(release: Path) -> None:
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    answered = np.array([[True, False, True], [True, True, True]])
    other = logits.copy()
    other[0, 1] = 100
    first, second = bundle.fuse(logits, answered), bundle.fuse(other, answered)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)
    assert (bundle.fuse(other, np.ones((2, 3), dtype=bool))[0] != first[0]).any()


@pytest.mark.parametrize(
    "bad", [np.zeros((1, HEIGHT, WIDTH, 3), np.float32), np.zeros((HEIGHT, WIDTH, 3), np.uint8),
            np.zeros((1, HEIGHT, WIDTH, 1), np.uint8), np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)],
)  # fmt: skip
def test_encode_refuses_other_tensors(release: Path, bad: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="encode takes"):
        Bundle.open(release / "client", allow_unsigned=True).encode(bad)


@pytest.mark.parametrize(
    ("logits", "answered"),
    [
        (np.zeros((1, 3, 4)), np.ones((1, 3), bool)),
        (np.zeros((1, 2, 4), np.float32), np.ones((1, 2), bool)),
        (np.zeros((1, 3, 4), np.float32), np.ones((1, 3), np.int8)),
        (np.zeros((2, 3, 4), np.float32), np.ones((1, 3), bool)),
        (np.zeros((0, 3, 4), np.float32), np.ones((0, 3), bool)),
    ],
)
def test_fuse_refuses_other_tensors(release: Path, logits: np.ndarray, answered: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="fuse takes"):
        Bundle.open(release / "client", allow_unsigned=True).fuse(logits, answered)


def test_a_fusion_that_gives_no_probabilities_is_an_error(release: Path) -> None:
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    with pytest.raises(BundleFormatError, match="self-test"):  # nobody answered: 0 / 0
        bundle.fuse(np.zeros((1, 3, 4), np.float32), np.zeros((1, 3), bool))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_before_anything_is_parsed(
    release_copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        pytest.fail("an unverified graph was parsed")

    monkeypatch.setattr("privdfs._bundle.Graph", never)
    path = release_copy / "client" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleIntegrityError) as caught:
        Bundle.open(release_copy / "client", allow_unsigned=True)
    assert caught.value.file == name


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_found(release_copy: Path, name: str) -> None:
    (release_copy / "client" / name).unlink()
    with pytest.raises(BundleIntegrityError, match=re.escape(name)):
        Bundle.open(release_copy / "client", allow_unsigned=True)


def test_a_file_of_another_release_is_found(release_copy: Path, other_release: Path) -> None:
    shutil.copy(other_release / "client" / "fusion.onnx", release_copy / "client" / "fusion.onnx")
    shutil.copy(other_release / "client" / "encoder.onnx", release_copy / "client" / "encoder.onnx")
    with pytest.raises(BundleIntegrityError, match=r"encoder\.onnx"):
        Bundle.open(release_copy / "client", allow_unsigned=True)


def test_an_unknown_format_version_is_refused(release_copy: Path) -> None:
    path = release_copy / "client" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 3'))
    with pytest.raises(BundleVersionError, match="install the privdfs that fits"):
        Bundle.open(release_copy / "client", allow_unsigned=True)


def test_the_release_folder_instead_of_the_bundle(release: Path) -> None:
    with pytest.raises(BundleIntegrityError, match="give its client folder"):
        Bundle.open(release, allow_unsigned=True)


def test_a_server_folder_is_no_bundle(release: Path) -> None:
    with pytest.raises(BundleFormatError, match="ClientManifest"):
        Bundle.open(release / "server-0", allow_unsigned=True)


def test_a_manifest_beyond_all_measure_is_not_parsed(release_copy: Path) -> None:
    with (release_copy / "client" / "manifest.json").open("ab") as file:
        file.truncate(5 * 1024 * 1024)
    with pytest.raises(BundleFormatError, match="larger"):
        Bundle.open(release_copy / "client", allow_unsigned=True)


def test_a_graph_that_is_not_what_the_manifest_promises(release_copy: Path, tmp_path: Path) -> None:
    other = build_release(tmp_path / "other", share_lengths=(5, 6, 8))
    shutil.copy(other / "client" / "encoder.onnx", release_copy / "client" / "encoder.onnx")
    relist(release_copy / "client", "encoder.onnx")
    with pytest.raises(BundleFormatError, match=r"share_2 int8\[batch, 8\] where .* share_2 int8\[batch, 7\]"):
        Bundle.open(release_copy / "client", allow_unsigned=True)


def test_a_graph_that_is_no_graph(release_copy: Path) -> None:
    (release_copy / "client" / "fusion.onnx").write_bytes(b"not onnx")
    relist(release_copy / "client", "fusion.onnx")
    with pytest.raises(BundleFormatError, match="cannot be loaded"):
        Bundle.open(release_copy / "client", allow_unsigned=True)


def test_the_selftest_passes_on_an_untouched_release(release: Path) -> None:
    outcome = Bundle.open(release / "client", allow_unsigned=True).selftest()
    assert outcome.images == 6
    assert outcome.differing_values == 0
    assert outcome.probability_error < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_other_shapes_of_release(tmp_path: Path, channels: int) -> None:
    folder = build_release(tmp_path / "five", share_lengths=(3, 1, 4, 1, 5), channels=channels)
    assert Bundle.open(folder / "client", allow_unsigned=True).selftest().images == 6


def test_the_selftest_allows_what_rounding_explains_and_no_more(release_copy: Path) -> None:
    client = release_copy / "client"
    golden = load_file(client / "golden.safetensors")
    golden["share_2"][0, 0] += 1  # 1 of 108 values
    save_file(golden, client / "golden.safetensors")
    relist(client, "golden.safetensors")
    assert Bundle.open(client, allow_unsigned=True).selftest().differing_values == pytest.approx(1 / 108)
    golden["share_2"][1, 0] += 1
    save_file(golden, client / "golden.safetensors")
    relist(client, "golden.safetensors")
    with pytest.raises(SelfTestError, match="share values differ"):
        Bundle.open(client, allow_unsigned=True).selftest()


@pytest.mark.parametrize("change", [0.002, np.nan])
def test_the_selftest_finds_another_fusion(release_copy: Path, change: float) -> None:
    client = release_copy / "client"
    golden = load_file(client / "golden.safetensors")
    golden["probabilities"][2, 1] += change
    save_file(golden, client / "golden.safetensors")
    relist(client, "golden.safetensors")
    with pytest.raises(SelfTestError, match="probabilities"):
        Bundle.open(client, allow_unsigned=True).selftest()


def test_the_selftest_finds_another_label_within_the_tolerance(release_copy: Path) -> None:
    client = release_copy / "client"
    golden = load_file(client / "golden.safetensors")
    golden["logits"][0] = np.array([1, 1.0001, 0, 0])
    probabilities = Bundle.open(client, allow_unsigned=True).fuse(golden["logits"], np.ones((6, 3), dtype=bool))
    assert probabilities[0].argmax() == 1
    golden["probabilities"] = probabilities.copy()
    golden["probabilities"][0, :2] = probabilities[0, [1, 0]]
    save_file(golden, client / "golden.safetensors")
    relist(client, "golden.safetensors")
    with pytest.raises(SelfTestError, match="labels differ"):
        Bundle.open(client, allow_unsigned=True).selftest()


@pytest.mark.parametrize(
    "edit",
    [
        lambda golden: golden.pop("logits"),
        lambda golden: golden.update(images=golden["images"][:0]),
        lambda golden: golden.update(extra=golden["logits"]),
        lambda golden: golden.update(share_0=golden["share_1"]),
    ],
)
def test_a_golden_file_with_other_tensors(release_copy: Path, edit: Callable[[Any], Any]) -> None:
    client = release_copy / "client"
    golden = load_file(client / "golden.safetensors")
    edit(golden)
    save_file(golden, client / "golden.safetensors")
    relist(client, "golden.safetensors")
    with pytest.raises(BundleFormatError, match=r"golden\.safetensors"):
        Bundle.open(client, allow_unsigned=True).selftest()


def test_a_golden_file_that_is_no_safetensors(release_copy: Path) -> None:
    client = release_copy / "client"
    (client / "golden.safetensors").write_bytes(b"\x80\x04pickle")
    relist(client, "golden.safetensors")
    with pytest.raises(BundleFormatError, match="safetensors"):
        Bundle.open(client, allow_unsigned=True).selftest()


def test_a_golden_file_changed_after_opening(release_copy: Path) -> None:
    bundle = Bundle.open(release_copy / "client", allow_unsigned=True)
    (release_copy / "client" / "golden.safetensors").write_bytes(b"")
    with pytest.raises(BundleIntegrityError):
        bundle.selftest()


def test_use_in_a_forked_child_is_refused(release: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(ConfigError, match="forked"):
        bundle.encode(images)
    with pytest.raises(ConfigError, match="forked"):
        bundle.selftest()
