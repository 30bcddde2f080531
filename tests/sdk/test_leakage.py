"""A release that leaks more than allowed, or of which nobody knows, is refused before anything is sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from privdfs import Bundle, Client, ConfigError, LeakageError
from privdfs._cli import main
from privdfs._format import ClientManifest, Leakage
from privdfs._leakage import refuse_leakage, worst_leakage
from privdfs.testing import FakeServer
from tests.sdk.coded_folders import a_leakage, coded_manifest
from tests.sdk.drivers import Driver
from tests.sdk.tiny_release import build_release


def row(coalition: tuple[int, ...], above: float, attack: str = "dense") -> Leakage:
    values = {"psnr": 9.0 + above, "ssim": 0.1, "floor": 9.0, "images": 8, "date": "2026-01-01", "commit": "abc"}
    return msgspec.convert({"coalition": coalition, "attack": attack, **values}, Leakage)


def manifest_with(release: Path, *rows: Leakage) -> ClientManifest:
    manifest = Bundle.open(release / "client", allow_unsigned=True).masked
    return msgspec.structs.replace(manifest, leakage=rows)


def test_the_release_of_the_tests_leaks_half_a_decibel(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    assert connect(release / "client", endpoints, max_leakage_db=0.5).predict(images[0]).answered == (True,) * 3
    seen = [(fake.checks, len(fake.received)) for fake in fakes]
    with pytest.raises(LeakageError, match=r"0\.50 dB better than the class mean \(ridge: 9\.00 dB") as caught:
        connect(release / "client", endpoints, max_leakage_db=0.4)
    assert (caught.value.measured, caught.value.allowed) == (pytest.approx(0.5), 0.4)
    assert [(fake.checks, len(fake.received)) for fake in fakes] == seen


def test_an_open_bundle_and_local_mode_are_checked_too(
    connect: Callable[..., Driver], connect_local: Callable[..., Driver], release: Path, endpoints: list[str]
) -> None:
    with pytest.raises(LeakageError):
        connect(Bundle.open(release / "client", allow_unsigned=True), endpoints, max_leakage_db=0.1)
    with pytest.raises(LeakageError):
        connect_local(release, max_leakage_db=0.1)
    assert connect_local(release, max_leakage_db=1)


def test_every_minority_must_have_been_measured(tmp_path: Path, endpoints: list[str]) -> None:
    five = build_release(tmp_path / "five", share_lengths=(3, 3, 3, 3, 3))  # its manifest knows of one server alone
    with pytest.raises(LeakageError, match="not measured for 2 servers together") as caught:
        Client(five / "client", [*endpoints, "127.0.0.1:1", "127.0.0.1:2"], max_leakage_db=9, allow_unsigned=True)
    assert caught.value.measured is None


def test_the_worst_attack_of_the_worst_coalition_counts(tmp_path: Path, release: Path) -> None:
    rows = (row((0,), 0.2), row((1,), 0.7, "decoder"), row((0, 1), 5.0), row((0, 1, 2), 20.0))
    (worst,) = worst_leakage(manifest_with(release, *rows)).items()
    assert worst == (1, rows[1])  # of three servers two are a majority, which nothing is promised of
    five = build_release(tmp_path / "five", share_lengths=(3, 3, 3, 3, 3))
    assert worst_leakage(manifest_with(five, *rows)) == {1: rows[1], 2: rows[2]}
    two = build_release(tmp_path / "two", share_lengths=(3, 3))
    assert worst_leakage(manifest_with(two)) == {1: None}


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf"), True, "1"])
def test_a_limit_that_is_none(release: Path, limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_leakage_db"):
        Client.local(release, max_leakage_db=limit)


def test_on_the_command_line(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--local", str(release), "--max-leakage-db", "0.1", str(tmp_path / "any.png")]) == 2
    assert "max_leakage_db allows 0.1" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, 0.0, 0.5, None])
def test_coded_shares_fit_every_limit_whatever_more_servers_were_measured_to_learn(limit: float | None) -> None:
    cliff = coded_manifest(leakage=(a_leakage((0,)), a_leakage((0, 1))))
    assert worst_leakage(cliff) == {}
    refuse_leakage(cliff, limit)
    refuse_leakage(coded_manifest(), limit)


@pytest.mark.parametrize("limit", [-0.1, float("nan"), True, "1"])
def test_a_limit_must_make_sense_for_coded_shares_too(limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_leakage_db"):
        refuse_leakage(coded_manifest(), limit)
