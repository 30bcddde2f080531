"""`privdfs-export leakage`: from a result file into the manifest, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privdfs import Bundle, BundleSignatureError, Client, LeakageError
from privdfs._verify import verify
from privdfs_export.cli import main
from privdfs_export.sign import sign
from tests.coded_release import build_coded_release
from tests.sdk.tiny_release import build_release

MADE_BY = {"command": "privacy.py", "commit": "feed", "date": "2026-02-02"}
FLAGS = [{"check": "few images", "message": "16 images"}]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_release(tmp_path / "tiny")


def results(release: str = "tiny-1", **changes: Any) -> dict[str, Any]:
    """As bench/privacy.py writes them."""
    worst = {
        str(size): {
            "attack": "dense",
            "members": members,
            "psnr": 10.0 + size,
            "ssim": 0.3,
            "floor": 9.5,
            "images": 200,
        }
        for size, members in ((1, [2]), (2, [0, 2]), (3, [0, 1, 2]))
    }
    entry = {"made_by": MADE_BY, "release": release, "effort": "quick", "worst": worst, "flags": FLAGS} | changes
    return {"made_by": MADE_BY, "releases": {"other": {"release": "other-1"}, "tiny": entry}}


def record(release: Path, what: Any, capsys: pytest.CaptureFixture[str]) -> str:
    path = release.parent / "privacy.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    code = main(["leakage", str(release), str(path)])
    captured = capsys.readouterr()
    assert code == (2 if captured.err else 0)
    return captured.err or captured.out


def test_the_manifest_has_the_worst_of_every_size(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Bundle.open(release / "client", allow_unsigned=True).manifest
    told = record(release, results(), capsys)
    assert "servers 0, 2 by dense: 12.00 dB, +2.50 dB above the class mean" in told
    assert "sign" not in told
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    assert [(row.coalition, row.psnr) for row in bundle.manifest.leakage] == [
        ((2,), 11.0),
        ((0, 2), 12.0),
        ((0, 1, 2), 13.0),
    ]
    first = bundle.manifest.leakage[0]
    assert (first.attack, first.ssim, first.floor, first.images) == ("dense", 0.3, 9.5, 200)
    assert (first.effort, first.date, first.commit) == ("quick", "2026-02-02", "feed")
    assert (bundle.release, bundle.manifest.files) == (before.release, before.files)
    assert "effort quick" in bundle.describe()
    assert bundle.selftest().images == 6
    with pytest.raises(LeakageError):
        Client.local(release, max_leakage_db=1.4)
    assert Client.local(release, max_leakage_db=1.5)


def test_figures_of_the_same_encoder_count(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calibration gives a release another id; what its servers see stays what was attacked."""
    encoder = Bundle.open(release / "client", allow_unsigned=True).manifest.files["encoder.onnx"]
    for graphs in ({}, {"encoder": ""}, {"encoder": "0" * 16}, {"fusion": encoder[:16]}):
        assert "not of tiny-1" in record(release, results("tiny-0", graphs=graphs), capsys)
    told = record(release, results("tiny-0", graphs={"encoder": encoder[:16], "fusion": "0" * 16}), capsys)
    assert "servers 0, 2 by dense" in told


def test_a_signed_release_has_to_be_signed_again(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = Ed25519PrivateKey.generate()
    trust = key.public_key().public_bytes_raw()
    sign(release, key)
    assert "sign it again" in record(release, results(), capsys)
    with pytest.raises(BundleSignatureError):
        Bundle.open(release / "client", trust=trust)
    assert (release / "server-0" / "manifest.sig").exists()
    sign(release / "client", key)
    assert len(Bundle.open(release / "client", trust=trust).manifest.leakage) == 3


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (results("tiny-2"), "is of other-1, tiny-2, not of tiny-1"),
        (
            results(flags=[{"check": "undefended", "message": "dense reaches 12.0 dB"}]),
            "too weak for a manifest",
        ),
        (results(worst={"1": {"attack": "decoder", "psnr": 11.0, "ssim": 0.2}}), "Measure it again"),
        (results(worst={"1": results()["releases"]["tiny"]["worst"]["1"] | {"images": 0}}), "Measure it again"),
        (results(worst={"1": results()["releases"]["tiny"]["worst"]["1"] | {"members": [7]}}), "contradicts itself"),
        ("{", "does not hold results"),
        ("[]", "does not hold results"),
        ('{"releases": {}}', "is of no release"),
    ],
)
def test_what_is_not_of_this_release_is_refused(
    release: Path, what: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (release / "client" / "manifest.json").read_bytes()
    assert told in record(release, what, capsys)
    assert (release / "client" / "manifest.json").read_bytes() == before
    assert {path.name for path in (release / "client").iterdir()} >= {"manifest.json", "encoder.onnx"}


def test_no_results_and_no_release(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leakage", str(release), str(release / "none.json")]) == 2
    assert "python bench/privacy.py" in capsys.readouterr().err
    assert main(["leakage", str(release / "client")]) == 2
    assert "whole release" in capsys.readouterr().err


def test_a_damaged_release_is_not_given_a_new_manifest(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "client" / "fusion.onnx").write_bytes(b"")
    assert "fusion.onnx" in record(release, results(), capsys)


# --------------------------------------------------------------------------------------------------- coded releases


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    return build_coded_release(tmp_path / "coded", "pooled")


def cliffs(release: Path, **changes: Any) -> dict[str, Any]:
    """As bench/privacy.py writes them of a coded release: coalitions of more servers than may collude."""
    row = {"attack": "dense", "psnr": 21.0, "ssim": 0.7, "floor": 9.5, "images": 200}
    worst = {str(size): row | {"members": list(range(size))} for size in (2, 3)}
    name = Bundle.open(release / "client", allow_unsigned=True).release
    return results(name, **({"worst": worst} | changes))


def test_a_coded_manifest_has_what_more_servers_than_may_collude_see(
    coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = record(coded, cliffs(coded), capsys)
    assert "servers 0, 1 by dense: 21.00 dB, +11.50 dB above the class mean" in told
    manifest = Bundle.open(coded / "client", allow_unsigned=True).manifest
    assert [row.coalition for row in manifest.leakage] == [(0, 1), (0, 1, 2)]
    assert Client.local(coded, max_leakage_db=0)  # of one server it is proven that it learns nothing
    assert main(["verify", str(coded)]) == 0


@pytest.mark.parametrize("check", ["not at the floor", "class", "wire", "undefended"])
def test_an_audit_that_speaks_against_the_shares_is_not_recorded(
    coded: Path, capsys: pytest.CaptureFixture[str], check: str
) -> None:
    before = (coded / "client" / "manifest.json").read_bytes()
    told = record(coded, cliffs(coded, flags=[{"check": check, "message": "1 of 3 servers see it"}]), capsys)
    assert "1 of 3 servers see it" in told
    assert (coded / "client" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("members", "told"),
    [([0], "one server of tiny-3-"), ([0, 0], "names a server twice"), ([0, 16], "contradicts itself")],
)
def test_a_coalition_that_a_coded_release_has_not(
    coded: Path, capsys: pytest.CaptureFixture[str], members: list[int], told: str
) -> None:
    before = (coded / "client" / "manifest.json").read_bytes()
    row = {"attack": "dense", "members": members, "psnr": 9.0, "ssim": 0.1, "floor": 9.5, "images": 200}
    assert told in record(coded, cliffs(coded, worst={"2": row}), capsys)
    assert (coded / "client" / "manifest.json").read_bytes() == before


def test_a_signed_coded_release_has_to_be_signed_again(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = Ed25519PrivateKey.generate()
    trust = key.public_key().public_bytes_raw()
    assert [folder.name for folder in sign(coded, key)] == ["baseline", "client", "server-0", "server-1", "server-2"]
    assert len(verify(coded, trust=trust)) == 5
    assert "sign it again" in record(coded, cliffs(coded), capsys)
    with pytest.raises(BundleSignatureError):
        Bundle.open(coded / "client", trust=trust)
    sign(coded / "client", key)
    assert len(Bundle.open(coded / "client", trust=trust).manifest.leakage) == 2
