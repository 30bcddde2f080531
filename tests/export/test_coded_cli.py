"""`privdfs-export` on a coded release; building one, `servers`, `plan` and `leakage` have tests of their own."""

from pathlib import Path

import pytest

from privdfs import Bundle, BundleSignatureError
from privdfs_export.cli import main
from tests.coded_release import build_coded_release

SERVERS = 3


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_coded_release(tmp_path / "release", servers=SERVERS)


def test_verify_runs_every_graph(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(release)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("client", *(f"server-{index}" for index in range(SERVERS)), "baseline"):
        assert any(name in line for line in lines), f"nothing is said of {name}"


def test_sign_signs_every_folder_and_added_servers_are_not(release: Path, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    assert main(["keygen", str(key)]) == 0
    assert main(["sign", str(release), "--key", str(key)]) == 0
    folders = ["client", "baseline", *(f"server-{index}" for index in range(SERVERS))]
    assert all((release / folder / "manifest.sig").is_file() for folder in folders)
    assert Bundle.open(release / "client", trust=public).coded.rounds
    other, theirs = tmp_path / "other.pem", tmp_path / "other.pub.pem"
    assert main(["keygen", str(other)]) == 0
    with pytest.raises(BundleSignatureError):
        Bundle.open(release / "client", trust=theirs)
    assert main(["servers", str(release), "--servers", str(SERVERS + 1)]) == 0
    assert not (release / f"server-{SERVERS}" / "manifest.sig").exists()


def test_calibrate_says_that_coded_releases_are_calibrated_when_they_are_built(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in release.rglob("*") if path.is_file()}
    assert main(["calibrate", str(release), "--out", str(release.parent / "out")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("privdfs-export calibrate: ")
    assert "coded" in said
    assert {path: path.read_bytes() for path in release.rglob("*") if path.is_file()} == before
