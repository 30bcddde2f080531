import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bench.branches import main
from privdfs_bench.speed import steps as step_times
from privdfs_bench.speed.steps import interleaved
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, tiny_values, write_toml


def test_every_config_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([{"baseline": 10.04, "masks": 25.1}, {"baseline": 8.0, "finetune": 20.0}])

    def taken(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """The steps are made, and take the times of a machine that does not vary."""
        found = next(told)
        assert set(ways) == set(found)
        for way in ways.values():
            way()
        assert rounds == 1
        return found

    monkeypatch.setattr(step_times, "interleaved", taken)
    values = tiny_values()  # with all that a reference config can have
    values["head"]["checkpoint"] = "not-needed-for-times.safetensors"
    values["train"] |= {"branches": BRANCHES_STAGE, "fusion": FUSION_STAGE}
    for stage in ("masks", "finetune"):
        values["train"][stage] = values["train"][stage] | {"epochs": 0}
    config, out = write_toml(tmp_path / "tiny-3.toml", values), tmp_path / "branches.json"
    assert main([str(config), "--rounds", "1", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["steps"] == [
        {
            "config": "tiny-3",
            "batch": 64,
            "baseline_ms": 10.0,
            "masks_ms": 25.1,
            "masks_ratio": 2.5,  # of the times before rounding
            "finetune_ratio": 2.5,
        }
    ]
    assert results["made_by"]["config"]["rounds"] == 1


def test_ways_take_turns_and_warming_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr("privdfs_bench.speed.steps.time.perf_counter", lambda: next(clock))
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 5
    assert found == {"a": 1000.0, "b": 1000.0}


def test_a_wrong_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.toml")]) == 2
    assert "cannot read the config" in capsys.readouterr().err
