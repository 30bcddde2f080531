"""bench/load.py: what it takes for saturated and for within the bound, and one point on a real tritonserver."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from privdfs import Error
from privdfs_bench.pages.availability import NO_LOAD, NO_SOAK, load_table, soak_tables
from privdfs_bench.speed import load, load_tables
from tests.bench.soak_row import soak_row
from tests.e2e.processes import proxies


def point(clients: int, per_second: float, p99: float, **more: Any) -> dict[str, Any]:
    costs = dict.fromkeys(load_tables.COSTS, 1.5)
    return {"clients": clients, "per_second": per_second, "p50_ms": 1.0, "p99_ms": p99, "errors": {}} | costs | more


def test_saturation_and_the_best_point_within_the_bound() -> None:
    points = [point(1, 100, 10), point(2, 190, 20), point(4, 200, 50), point(8, 205, 60), point(16, 199, 120)]
    assert [load.saturated(points[:number]) for number in range(6)] == [False] * 5 + [True]
    assert not load.saturated([*points[:4], point(16, 300, 120)])
    assert load.at_bound(points) == points[2]
    assert load.at_bound([point(1, 9, 51), point(2, 9, 5, errors={"ServerBusyError": 1})]) is None
    best = {"masked": {"best": points[2]}, "coded": {"best": None}, "unprotected": {"best": point(8, 400, 30)}}
    assert load.ratios(best) == {"masked": 0.5, "coded": None}
    systems = {"masked": {"points": [point(1, 9, 9, servers_cpu_ms=cost) for cost in (6.0, 4.0)]}}
    systems["unprotected"] = {"points": [point(1, 9, 9, servers_cpu_ms=1.0)]}
    assert load.party_ratios(systems) == {"masked": 0.75}


async def test_clients_call_again_and_again_and_wait_after_an_error() -> None:
    calls = 0

    async def answer() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)

    async def fail() -> None:
        raise Error("no")

    found = await load.call_on([answer, fail], 0.3)
    summary = found.summary()
    assert calls == sum(answered for *_, answered in found.rows)
    assert summary["calls"] == len(found.rows)
    assert summary["errors"] == {"Error": len(found.rows) - calls}
    assert 1 <= len(found.rows) - calls <= 0.3 / load.PAUSE_S + 1
    assert summary["p50_ms"] >= 1


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["unprotected", "masked-http", "coded"])
def test_points_are_measured_on_real_servers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in proxies().items():  # loopback is never asked for through one
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(load, "TIMEOUT_S", 30.0)
    with load.serving(load.KINDS[name]) as served:
        found = asyncio.run(load.measure_point(served, 3, 0.5))
        over = asyncio.run(load.overload(served, 1, 0.5, 0.5))
    assert found["errors"] == {}
    assert found["calls"] >= 3
    assert all(found[cost] > 0 for cost in ("clients_cpu_ms", "servers_cpu_ms", "compute_ms"))
    assert over["clients"] == [1, 10, 1]
    assert all(phase["calls"] and not phase["errors"] for phase in over["phases"].values())


def results() -> dict[str, Any]:
    phases = {name: point(4, 200, 20, calls=1000) for name in ("before", "during", "after")}
    phases["during"] |= {"errors": {"ServerBusyError": 3}, "error_p99_ms": 40.0}
    overload = {"clients": [4, 40, 4], "phases": phases, "recovered_s": 1.0}
    machine = {"cores": 2}
    return {
        "made_by": {"command": "load.py", "commit": "0123456789abcdef", "date": "2026-01-01", "machine": machine},
        "bound_ms": 50.0,
        "systems": {
            "unprotected": {"what": "unprotected", "points": [point(4, 400, 20)], "best": None},
            "masked": {
                "what": "masked",
                "points": [point(4, 200, 20)],
                "best": point(4, 200, 20),
                "overload": overload,
            },
        },
        "to_unprotected": {"masked": 0.5},
        "party_to_unprotected": {"masked": 0.9},
    }


def test_the_tables_and_the_picture(tmp_path: Path) -> None:
    assert [table.row_count for table in load_tables.tables(results())] == [1, 1, 2, 3]
    load_tables.draw(tmp_path / "load.png", results())
    with Image.open(tmp_path / "load.png") as picture:
        assert picture.width > 800
    text = load_table(results())
    assert "| masked | 4 | 200 | 0.50 | 0.90 | 1.0 ms | 20.0 ms | 1.50 ms |" in text
    assert "3 of 1,000 calls, the slowest within 40 ms (p99) | 1 s |" in text
    assert "| unprotected | no number of clients keeps to the bound |" in text
    assert load_table({}) == NO_LOAD


def test_the_tables_of_the_soak() -> None:
    about = {"made_by": results()["made_by"]}
    rows = {name: soak_row(calls=1000, answered=999) for name in ("before", "during", "after")}
    rows["during"] |= {"errors": {"ServerBusyError": 1}, "error_p99_ms": 30.0}
    text = soak_tables(
        {
            "runs": {
                "coded-liar-grpc": soak_row(calls=5000, liar=4, named_after=2, named_wrongly=0) | about,
                "full-queue-http": {"phases": rows, "recovered_s": None} | about,
                "straggler": about,
            }
        }
    )
    assert "| coded-liar-grpc | 5,000 | 100.0000% | 0 | 0 | 1 |" in text
    assert "| 2 calls |" in text
    assert "999 of 1,000, 999 of 1,000, 999 of 1,000 | 2, 2, 2 ms | 1, 30 ms | not within the phase |" in text
    assert soak_tables({"runs": {"straggler": about}}) == soak_tables({}) == NO_SOAK
