"""`privdfs verify` of coded releases; test_cli.py has masked ones, with the same command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from privdfs import BundleFormatError, BundleIntegrityError
from privdfs._cli import main
from privdfs._coded_format import CodedServerManifest, ServerRound
from privdfs._verify import check_server, server_manifest, verify
from privdfs.coding import MAX_SERVERS, PRIMES
from tests.sdk.coded_folders import RELEASE, coded_manifest, write_coded_release, write_coded_server, write_manifest


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    return write_coded_release(tmp_path / "coded")


def rewrite(folder: Path, **fields: Any) -> None:
    """Change a server's manifest, which stays valid by itself."""
    write_manifest(folder, msgspec.structs.replace(server_manifest(folder), **fields))


@pytest.mark.parametrize("servers", [1, 3, 5, MAX_SERVERS])
def test_a_release_has_as_many_servers_as_there_are_folders(tmp_path: Path, servers: int) -> None:
    found = verify(write_coded_release(tmp_path / "release", servers))
    assert [row.name for row in found] == ["client", *(f"server-{i}" for i in range(servers)), "baseline"]
    assert {row.release for row in found} == {RELEASE}
    assert [row.files for row in found[:2]] == [4, 3]


@pytest.mark.parametrize(("folder", "name"), [("client", "client"), ("server-2", "server-2"), ("baseline", "baseline")])
def test_each_folder_by_itself(coded: Path, folder: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(coded / folder)]) == 0
    assert f"ok: {name}, " in capsys.readouterr().out
    assert main(["verify", str(coded / folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folders"][0]["name"] == name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "client" / "relay-1.onnx").write_text("other"), "relay-1.onnx is not the file"),
        (lambda r: (r / "client" / "relay-2.onnx").write_text("other"), "relay-2.onnx is not listed"),
        (lambda r: (r / "server-1" / "branch-2" / "1" / "model.onnx").unlink(), "branch-2/1/model.onnx"),
        (lambda r: (r / "server-1" / "branch-2" / "1" / "model.onnx").write_text("other"), "is not the file"),
        (lambda r: shutil.rmtree(r / "server-1"), "has no server-1"),
        (lambda r: [shutil.rmtree(r / f"server-{i}") for i in range(3)], "has no server-0"),
        (lambda r: (r / "server-1").rename(r / "server-01"), "has no server-1"),
        (lambda r: (r / "server-2").rename(r / "server-02"), "has no server-2"),
        (lambda r: shutil.copytree(r / "server-2", r / "server-7"), "has no server-3"),
        (lambda r: shutil.copytree(r / "server-2", r / "server-3"), "server-3 holds server 2"),
        (lambda r: rewrite(r / "server-2", release="other-1"), "server-2 is of release other-1"),
        (lambda r: rewrite(r / "baseline", release="other-1"), "baseline is of release other-1"),
    ],
)
def test_what_does_not_belong_is_found(
    coded: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(coded)
    assert main(["verify", str(coded)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("field", [{"values": 11}, {"outputs": 9}, {"degree": 3}, {"moduli": PRIMES[:4]}])
@pytest.mark.parametrize("number", [0, 1])
def test_a_server_must_take_the_rounds_of_the_client(coded: Path, number: int, field: dict[str, Any]) -> None:
    own = server_manifest(coded / "server-1")
    assert isinstance(own, CodedServerManifest)
    rounds = list(own.rounds)
    rounds[number] = msgspec.structs.replace(rounds[number], **field)
    rewrite(coded / "server-1", rounds=tuple(rounds))
    with pytest.raises(BundleFormatError, match="server-1 and the client disagree on the rounds"):
        verify(coded)


def test_a_server_of_other_rounds_than_the_client(coded: Path) -> None:
    own = server_manifest(coded / "server-0")
    assert isinstance(own, CodedServerManifest)
    fewer = msgspec.structs.replace(own, rounds=own.rounds[:1])
    with pytest.raises(BundleFormatError, match="disagree on the rounds"):
        check_server(coded_manifest(), fewer, 0)
    more = msgspec.structs.replace(own, rounds=(*own.rounds, ServerRound(values=4, outputs=4, degree=1, moduli=(241,))))
    with pytest.raises(BundleFormatError, match="disagree on the rounds"):
        check_server(coded_manifest(), more, 0)


def test_all_servers_run_the_same_networks(coded: Path) -> None:
    (coded / "server-2" / "branch-2" / "1" / "model.onnx").write_text("another network")
    rewrite(coded / "server-2")
    assert verify(coded / "server-2"), "by itself it is in order"
    with pytest.raises(BundleFormatError, match=r"branch-2/1/model\.onnx of server-2 and of server-0 differ"):
        verify(coded)


def test_a_server_of_the_other_kind(coded: Path, release: Path) -> None:
    masked = msgspec.structs.replace(server_manifest(release / "server-0"), release=RELEASE)
    with pytest.raises(BundleFormatError, match="disagree on whether shares are masked or coded"):
        check_server(coded_manifest(), masked, 0)


def test_a_folder_that_is_added_later_belongs(coded: Path) -> None:
    write_coded_server(coded / "server-3", coded_manifest(), 3)
    assert [row.name for row in verify(coded)][-2:] == ["server-3", "baseline"]


def test_a_file_in_the_place_of_a_folder(coded: Path) -> None:
    shutil.rmtree(coded / "server-2")
    (coded / "server-2").write_text("no folder")
    with pytest.raises(BundleIntegrityError, match="has no server-2"):
        verify(coded)
