"""`privdfs-export capacity`: the formulas of docs/SCALING.md, on figures of the result files."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from privdfs_export.capacity import RESULTS, Cost, Load, capacity
from privdfs_export.cli import main
from privdfs_export.errors import ExportError

RELEASES = Path(__file__).parents[2] / "model_repository"
COST = Cost(service_ms=2.0, bytes_up=1000, bytes_down=500, source="", wire_source="")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["capacity", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_formulas_by_hand() -> None:
    found = capacity(Load(calls=1000, servers=3, needed=3, utilisation=0.5, link=10), COST)
    assert found.instances == 4  # 1000 calls of 2 ms are 2 s in each second, at half of the time 4
    assert found.wait_ms == pytest.approx(1.0)  # r S / (2 (1 - r))
    assert found.wait_99_ms == pytest.approx(4 * math.log(150))  # S / (1 - r) ln(100 N r)
    assert found.most_calls == pytest.approx(2000)
    assert (found.up_mbit, found.down_mbit) == pytest.approx((8.0, 4.0))
    assert found.links == 2  # 8 of 10 Mbit/s would be more than half
    assert (found.replicas, found.availability) == (None, None)


def test_the_scaling_table_is_what_the_calculator_says() -> None:
    """The table of docs/SCALING.md was written by bench/figures.py, from the same measurement."""
    service = json.loads((RESULTS / "scaling.json").read_text())["service"]["one_ms"]
    text = (RESULTS.parents[1] / "docs" / "SCALING.md").read_text()
    for percent in (30, 50, 70, 90):
        load = Load(calls=1e6 / 60, servers=3, needed=3, utilisation=percent / 100)
        found = capacity(load, Cost(service, 0, 0, "", ""))
        row = f"| {percent}% | {found.wait_ms:.2f} ms | {found.wait_99_ms:.1f} ms | {found.instances} |"
        assert row in text


@pytest.mark.parametrize(("servers", "needed"), [(3, 3), (5, 3), (1, 1)])
def test_replicas_reach_the_target_and_one_fewer_does_not(servers: int, needed: int) -> None:
    """Compared with a simulation of parties and replicas that fail independently."""
    load = Load(calls=1000, servers=servers, needed=needed, replica=0.9, target=0.95)
    found = capacity(load, COST)
    assert found.replicas is not None
    assert found.availability is not None
    assert found.availability >= load.target
    draw = random.Random(0)  # noqa: S311  a simulation

    def up(replicas: int) -> float:
        def party() -> bool:
            return sum(draw.random() < 0.9 for _ in range(replicas)) >= found.instances

        return sum(sum(party() for _ in range(servers)) >= needed for _ in range(20_000)) / 20_000

    assert up(found.replicas) == pytest.approx(found.availability, abs=0.01)
    assert up(found.replicas - 1) < load.target


def test_a_target_that_cannot_be_is_refused() -> None:
    with pytest.raises(ExportError, match="lower the target"):
        capacity(Load(calls=1e6, servers=9, needed=9, replica=0.0001, target=0.99999), COST)


def test_the_time_is_the_release_s_own_where_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    latency = json.loads((RESULTS / "latency.json").read_text())
    found = told(capsys, str(RELEASES / latency["release"]), "--calls", "100")
    compute = [server["compute_ms"] for server in latency["stages"]["servers"]]
    assert found["cost"]["service_ms"] == max(compute)
    assert latency["made_by"]["commit"][:10] in found["cost"]["source"]
    other = told(capsys, str(RELEASES / "cifar10-resnet20" / "client"), "--calls", "100")
    assert "of another release" in other["cost"]["source"]
    own = told(capsys, str(RELEASES / "cifar10-resnet20"), "--calls", "100", "--service-ms", "0.1")
    assert (own["cost"]["service_ms"], own["cost"]["source"]) == (0.1, "--service-ms")


def test_a_coded_release_counts_all_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    release = RELEASES / "cifar10-coded"
    found = told(capsys, str(release), "--calls", "10", "--servers", "5", "--replica-availability", "0.99")
    measured = json.loads((RESULTS / "cifar10-coded" / "coded-latency.json").read_text())
    assert found["cost"]["at_most"]
    assert found["cost"]["bytes_up"] > measured["bytes_up"]
    assert found["cost"]["bytes_down"] > measured["bytes_down"]
    assert (found["load"]["servers"], found["load"]["needed"]) == (5, 3)
    assert found["availability"] >= 0.999


@pytest.mark.parametrize("release", ["fashion-resnet20", "fashion-coded"])
def test_the_time_of_an_earlier_release_of_this_name_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], release: str
) -> None:
    for path in ("latency.json", "fashion-coded/coded-latency.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(RESULTS / path, tmp_path / path)
    words = [str(RELEASES / release), "--calls", "10", "--results", str(tmp_path)]
    path = tmp_path / ("latency.json" if release == "fashion-resnet20" else "fashion-coded/coded-latency.json")
    results = json.loads(path.read_text())
    name = json.loads((RELEASES / release / "client" / "manifest.json").read_text())["release"]
    for measured, said in ((name, False), (f"{release}-0123456789ab", True)):
        results["made_by"]["config"]["release"] = measured
        path.write_text(json.dumps(results))
        source = told(capsys, *words)["cost"]["source"]
        earlier = f"of an earlier {release} (0123456789ab): measure it, or pass --service-ms"
        assert source.endswith(earlier) == said
        assert ("earlier" in source) == said


def test_the_table_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(RELEASES / "fashion-resnet20"), "--devices", "1000000", "--every", "60", "--link", "100"]
    words += ["--replica-availability", "0.99"]
    found = told(capsys, *words)
    assert main(["capacity", *words]) == 0
    table = capsys.readouterr().out
    for part in (
        found["release"],
        f"{found['cost']['service_ms']:.3f}  ms",
        f"{found['availability']:.6f}",
        "latency.json",
    ):
        assert part in table


@pytest.mark.parametrize(
    ("release", "words", "message"),
    [
        ("fashion-resnet20", ["--servers", "5"], "has 3 servers"),
        ("fashion-resnet20", ["--min-answers", "4"], "from 1 to 3"),
        ("fashion-coded", ["--servers", "2"], "cannot be"),
        ("fashion-coded", ["--min-answers", "2"], "for masked releases"),
        ("fashion-resnet20", ["--results", "nowhere"], "--results"),
    ],
)
def test_contradictions_are_refused(
    capsys: pytest.CaptureFixture[str], release: str, words: list[str], message: str
) -> None:
    assert main(["capacity", str(RELEASES / release), "--calls", "1", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--calls", "0"], ["--calls", "nan"], ["--utilisation", "1"], ["--link", "-3"]])
def test_numbers_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["capacity", str(RELEASES / "fashion-resnet20"), "--devices", "5", *words])
    assert "expected a number" in capsys.readouterr().err


def test_an_unmeasured_coded_release_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RELEASES / "fashion-coded" / "client", tmp_path / "mine" / "client")
    assert main(["capacity", str(tmp_path / "mine"), "--calls", "1"]) == 2
    assert "coded-latency.json" in capsys.readouterr().err
