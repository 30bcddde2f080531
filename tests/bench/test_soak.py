"""The soak: what it takes for right and wrong, and its comparison of clients before one late server."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from privdfs import Bundle, Client
from privdfs_bench.speed import soak
from tests.sdk.tiny_release import HEIGHT, WIDTH, build_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(tmp_path_factory.mktemp("soak") / "tiny")


def test_a_wrong_answer_and_one_that_names_others_are_found(release: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = soak.Truth(release, Bundle.open(release / "client", allow_unsigned=True), images)
    with Client.local(release) as client:
        result = client.predict(images[1])
    assert truth.agrees(1, result)
    assert not truth.agrees(0, result)
    assert not truth.agrees(1, dataclasses.replace(result, answered=(True, False, True)))
    assert not truth.agrees(1, dataclasses.replace(result, probabilities=result.probabilities[::-1]))


def test_a_late_server_is_compared(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "LATE_SHARE", 1.0)
    monkeypatch.setattr(soak, "LATE_S", 0.3)
    monkeypatch.setattr(soak, "PROBES", 5)
    found = soak.straggler(release, 3)
    assert set(found["systems"]) == set(found["p99_to_healthy"]) == {"healthy", "unprotected", "quorum", "hedged"}
    assert found["systems"]["unprotected"]["p50_ms"] >= 300
    assert found["p99_to_healthy"]["healthy"] == 1


def test_figures_of_this_process() -> None:
    figures = soak.process_figures()
    assert figures["rss_mb"] > 10
    assert min(figures["threads"], figures["fds"]) >= 1
