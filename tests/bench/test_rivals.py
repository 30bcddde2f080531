"""The same attacks on a release and on rivals: all tiny, all really trained."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.rivals import main
from privdfs_bench.audit import rivals, views
from privdfs_bench.audit.attacks import ATTACKS, quiet
from privdfs_bench.audit.effort import Effort
from privdfs_bench.audit.jobs import job
from privdfs_bench.audit.run import run
from privdfs_bench.audit.victim import Victim
from privdfs_bench.results import write_results
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.optimise import OptimiseBudget
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.rivals.config import rival_config
from privdfs_training.rivals.system import load_rival
from privdfs_training.rivals.train import train_rival
from tests.trained import QUIET, tiny_values

TINY = Effort(
    pairs=500,
    targets=40,
    optimised=12,
    dense=DecoderBudget(epochs=6, width=8),
    strong=DecoderBudget(epochs=2, width=8, blocks=1),
    sizes=False,
    forms=(),
    optimise=OptimiseBudget(steps=60, restarts=1),
    undefended=100,
)


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    return in_memory(load_data("fashion-mnist", data_folder))


def rival_values(kind: str, **defence: Any) -> dict[str, Any]:
    """A shallow cut, trained for one epoch."""
    values = tiny_values()
    stage = values["train"]["baseline"] | {"epochs": 1}
    return {
        "name": f"tiny-{kind}",
        "seed": 0,
        "data": values["data"],
        "backbone": {"name": "resnet8", "width": 8},
        "head": {"kind": "compact", "stem": 16, "stages": [[16, 1]], "channels": 8},
        "branch": {"kind": "residual", "width": 8, "blocks": 1},
        "defence": {"kind": kind, **defence},
        "loss": {"distillation": 0.1, "distillation_temperature": 4.0, "label_smoothing": 0.0},
        "train": {"baseline": stage, "split": stage},
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rivals")
    noise = {"weight": 0.5, "noise": 0.3, "components": 2, "momentum": 0.9}
    kinds: dict[str, dict[str, Any]] = {"none": {}, "cem": noise}
    return {
        kind: train_rival(rival_config(rival_values(kind, **defence), folder), data, folder / kind, QUIET)
        for kind, defence in kinds.items()
    }


@pytest.fixture
def tiny_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.EFFORTS, "quick", TINY)


def attacked(out: Path, data_folder: Path, *systems: Path) -> int:
    options = ["--effort", "quick", "--data", str(data_folder), "--out", str(out)]
    return main([*map(str, systems), *options])


@pytest.mark.usefixtures("tiny_effort")
def test_all_systems_meet_the_same_attacks(
    checkpoints: dict[str, Path],
    trained_release: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rivals.json"
    assert attacked(out, data_folder, trained_release, checkpoints["none"]) == 0
    assert attacked(out, data_folder, checkpoints["cem"]) == 0
    systems = json.loads(out.read_text())["systems"]
    assert set(systems) == {trained_release.name, "tiny-none", "tiny-cem"}
    for entry in systems.values():
        assert {name: one["images"] for name, one in entry["attacks"].items()} == {
            "dense": 40,
            "decoder": 40,
            "optimisation": 12,
            "optimisation-tv": 12,
        }
        assert entry["matched"] is (entry["accuracy"] >= systems[trained_release.name]["accuracy"] - 0.01)
        assert entry["worst"]["above"] == max(one["above"] for one in entry["attacks"].values())
    ours, plain, noisy = systems[trained_release.name], systems["tiny-none"], systems["tiny-cem"]
    assert (ours["servers"], len(ours["members"]), ours["bits"]) == (3, 1, 96)
    assert (plain["defence"], plain["bits"], noisy["bits"]) == ("none", 8 * 14 * 14 * 8, 8 * 14 * 14 * 32)
    # The attacks break what nothing defends, or what they say of the others would mean nothing.
    assert plain["worst"]["above"] > 6
    assert plain["worst"]["psnr"] > ours["worst"]["psnr"] + 3
    told = capsys.readouterr().out
    assert "tiny-cem" in told
    assert "fashion-mnist, effort quick" in told

    # What was measured is not measured again.
    before = out.read_text()
    assert attacked(out, data_folder, checkpoints["none"]) == 0
    assert "already" in " ".join(capsys.readouterr().out.split())
    assert out.read_text() == before


def test_the_view_of_a_rivals_server_is_what_travels(checkpoints: dict[str, Path], data: DataSet) -> None:
    rival = load_rival(checkpoints["none"])
    view = rivals.rival_view(rival, data, TINY)
    assert view.shares.dtype == torch.int8
    assert torch.equal(view.received, rival.feature(data.test_images[:40], seed=9))
    assert view.steps is not None
    with torch.no_grad():
        again = view.steps(data.test_images[:40].float() / 255)
    assert (again.round().clamp(-127, 127) - view.received.float()).abs().max() <= 1
    row = views.flat(view)
    assert row.steps is not None
    assert row.received.shape == row.steps(data.test_images[:40].float() / 255).shape == (40, 8 * 14 * 14)
    assert row.limits.shape == (8 * 14 * 14,)


def test_noise_of_a_view_is_never_drawn_twice(checkpoints: dict[str, Path], data: DataSet) -> None:
    view = rivals.rival_view(load_rival(checkpoints["cem"]), data, TINY)
    images = data.test_images[:4].float() / 255
    assert view.steps is not None
    with torch.no_grad():
        one, other = view.steps(images), view.steps(images)
    assert 0.2 < float((one - other).std() / 2**0.5) < 0.4  # 0.3 in the config
    assert not torch.equal(view.received[:4], one)


def test_the_attacks_are_those_of_the_audit(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    assert set(rivals.RIVALS) <= ATTACKS.keys()
    assert not any(ATTACKS[name].hears_answers for name in rivals.RIVALS)  # a rival has one server, and one branch
    system = rivals.release_system(trained_release, data_folder, TINY)
    scores = rivals.measure(system, TINY, "tiny", lambda _name: quiet)["attacks"]
    victim = Victim(trained_release, data_folder, TINY)
    assert list(scores) == list(rivals.RIVALS)
    for name, found in scores.items():
        wanted = replace(job(victim, name, system.members), targets=found["images"])
        row = run(victim, wanted, tmp_path, quiet).row
        for score in ("psnr", "ssim", "floor", "blind_floor"):
            assert row[score] == pytest.approx(found[score], abs=1e-4), name


def test_what_efforts_had_once_makes_no_entry_stale(
    checkpoints: dict[str, Path], data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attacked_again(*_: object) -> None:
        raise AssertionError("it was attacked again")

    monkeypatch.setitem(rivals.EFFORTS, "quick", TINY)
    monkeypatch.setattr(rivals, "measure", attacked_again)
    out, system = tmp_path / "rivals.json", rivals.rival_system(checkpoints["none"], data_folder, TINY)
    config = json.loads(json.dumps(asdict(TINY))) | {"every": False}
    write_results(out, {"systems": {system.name: {"identity": system.identity, "made_by": {"config": config}}}})
    rivals.add(checkpoints["none"], "quick", data_folder, out, QUIET)
    monkeypatch.setitem(rivals.EFFORTS, "quick", replace(TINY, optimised=13))
    with pytest.raises(AssertionError, match="attacked again"):
        rivals.add(checkpoints["none"], "quick", data_folder, out, QUIET)


def entry(defence: str, above: float, accuracy: float = 0.925) -> dict[str, Any]:
    about = {"data": "fashion-mnist", "effort": "quick", "accuracy": accuracy}
    return about | {"defence": defence, "worst": {"above": above}}


def said(systems: dict[str, dict[str, Any]]) -> str:
    (sentence,) = rivals.verdicts(rivals.with_matched(systems))
    return sentence


def test_the_verdict_is_the_rivals_when_the_rival_wins() -> None:
    systems = {"mine": entry(rivals.OURS, 1.5), "cem": entry("cem", 1.25), "none": entry("none", 14.0)}
    assert "cem leaks least, +1.25 dB above the class mean; mine +1.50 dB" in said(systems)
    systems["cem"] = entry("cem", 2.5)
    assert "mine leaks least, +1.50 dB above the class mean; cem +2.50 dB" in said(systems)


def test_who_is_more_than_a_point_behind_is_not_compared() -> None:
    systems = {"mine": entry(rivals.OURS, 1.5), "cem": entry("cem", 0.25, accuracy=0.914)}
    assert "no other system at most 1 point behind it" in said(systems)
    systems["cut"] = entry("shares, random masks", 4.0, accuracy=0.916)
    assert "mine leaks least, +1.50 dB above the class mean; cut +4.00 dB" in said(systems)
    systems["better"] = entry("none", 1.0, accuracy=0.99)
    assert "better leaks least, +1.00 dB above the class mean; mine +1.50 dB" in said(systems)
    assert "no release of ours" in said({"cem": entry("cem", 0.25)})


@pytest.mark.parametrize(
    ("path", "told"), [("none.safetensors", "none.safetensors"), ("empty", "manifest.json"), ("text", "text")]
)
def test_what_is_no_system_is_refused(
    tmp_path: Path, data_folder: Path, path: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no weights")
    assert attacked(tmp_path / "rivals.json", data_folder, tmp_path / path) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "rivals.json").exists()
