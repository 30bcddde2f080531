import json
from pathlib import Path

import pytest

from bench.branches import main
from privdfs_bench.speed.steps import interleaved
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, tiny_values, write_toml


def test_every_config_is_timed(tmp_path: Path) -> None:
    values = tiny_values()  # with all that a reference config can have
    values["head"]["checkpoint"] = "not-needed-for-times.safetensors"
    values["train"] |= {"branches": BRANCHES_STAGE, "fusion": FUSION_STAGE}
    for stage in ("masks", "finetune"):
        values["train"][stage] = values["train"][stage] | {"epochs": 0}
    config, out = write_toml(tmp_path / "tiny-3.toml", values), tmp_path / "branches.json"
    assert main([str(config), "--rounds", "1", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    (row,) = results["steps"]
    assert row["config"] == "tiny-3"
    assert row["masks_ratio"] == pytest.approx(row["masks_ms"] / row["baseline_ms"], rel=0.1)
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
