"""The bars that bench/latency.py is held to, and its regression gate: ratios of a run against a committed record.

Times depend on the machine and its mood; ratios of systems that took turns on it depend on the code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from privdfs_bench.errors import BenchError

#: By how much a ratio may exceed the record, by what its name holds; the first that fits. Percentiles of the tail
#: move with the machine even in a ratio; bytes do not move at all.
MARGINS = {"p99": 0.5, "cpu": 0.2, "bytes": 0.0, "p50": 0.15}


@dataclass(frozen=True)
class Compared:
    """One ratio of a run beside the record's, and the most it may be."""

    name: str
    record: float
    now: float

    @property
    def limit(self) -> float:
        """The record and its margin."""
        return self.record * (1 + next(margin for part, margin in MARGINS.items() if part in self.name))

    @property
    def is_worse(self) -> bool:
        """Whether the run is worse than the margin explains."""
        return self.now > self.limit


def all_ratios(results: Mapping[str, Any]) -> dict[str, float]:
    """Every ratio of a run where less is better, those through networks under "NETWORK: NAME"."""
    found = {name: value for name, value in results["ratios"].items() if not name.startswith("crypten")}
    for network, shown in results.get("networks", {}).items():
        found |= {f"{network}: {name}": value for name, value in shown["ratios"].items()}
    return found


def check_record(record: Mapping[str, Any], release: str) -> None:
    """Check, before anything is measured, that there is something to compare with.

    Raises:
        BenchError: the record is missing, of another release, or of a benchmark that had no floor yet.
    """
    if record.get("release", release) != release:
        msg = f"the record is of release {record['release']}, not of {release}: name that release, or another --out"
        raise BenchError(msg)
    if not any("floor" in name for name in record.get("ratios", {})):
        msg = "there is no record with a floor yet: measure without --check first, on a quiet machine, and commit it"
        raise BenchError(msg)


def compare(results: Mapping[str, Any], record: Mapping[str, Any]) -> list[Compared]:
    """Ratios that a run and the record both have."""
    before, now = all_ratios(record), all_ratios(results)
    return [Compared(name, before[name], now[name]) for name in now if name in before]


@dataclass(frozen=True)
class Bar:
    """One bar: what it is about, the value to keep to, and what was measured (None: not in this run)."""

    what: str
    limit: float
    measured: float | None
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def bars(results: Mapping[str, Any]) -> Iterator[Bar]:
    """The bars of the project, of a run with three servers and one image a call: over gRPC, then HTTP and HTTPS."""
    ratios, cold = results["ratios"], results["cold"]["privdfs"]
    network = results["networks"].get("20,10", {"ratios": {}})["ratios"]
    yield Bar("PrivDFS p50 / floor p50", 1.10, ratios["privdfs_p50_to_floor_p50"])
    yield Bar("PrivDFS p99 / floor p99", 1.25, ratios["privdfs_p99_to_floor_p99"])
    yield Bar("PrivDFS p50 / unprotected p50, loopback", 2.0, ratios["privdfs_p50_to_baseline_triton_p50"])
    name = "PrivDFS p50 / unprotected p50, 20 ms and 10 Mbit/s"
    yield Bar(name, 1.05, network.get("privdfs_p50_to_baseline_triton_p50"))
    yield Bar("bytes up, all servers / pixels", 0.25, ratios["privdfs_bytes_up_to_pixels"])
    yield Bar("cold start to the first answer, ms", 1000, cold["total_ms"])
    yield Bar("peak memory over a bare interpreter, MB", 120, cold["peak_over_bare_mb"])
    yield Bar("processor time of a call / of encoder and fusion alone", 2.0, ratios["privdfs_cpu_to_graphs_cpu"])
    cold = results["cold"].get("http", {})
    yield Bar("HTTP: PrivDFS p50 / floor p50", 1.15, ratios.get("http_p50_to_floor"))
    yield Bar("PrivDFS p50 over HTTP / over gRPC", 0.75, ratios.get("http_p50_to_grpc_p50"))
    yield Bar("processor time of a call over HTTP / over gRPC", 0.4, ratios.get("http_cpu_to_grpc_cpu"))
    name = "HTTP: processor time of a call / of encoder and fusion alone"
    yield Bar(name, 2.5, ratios.get("http_cpu_to_graphs_cpu"))
    yield Bar("HTTP: PrivDFS p50 / unprotected p50, loopback", 1.5, ratios.get("http_p50_to_baseline_p50"))
    name = "HTTP: PrivDFS p50 / unprotected p50, 20 ms and 10 Mbit/s"
    yield Bar(name, 1.05, network.get("http_p50_to_baseline_p50"))
    name = "HTTPS: PrivDFS p50 / unprotected p50"
    yield Bar(f"{name}, loopback", 1.5, ratios.get("https_p50_to_unprotected_https_p50"))
    yield Bar(f"{name}, 20 ms and 10 Mbit/s", 1.05, network.get("https_p50_to_unprotected_https_p50"))
    yield Bar("HTTP: cold start to the first answer, ms", 250, cold.get("total_ms"))
    yield Bar("HTTP: peak memory over a bare interpreter, MB", 60, cold.get("peak_over_bare_mb"))
    yield Bar("CrypTen p50 / PrivDFS p50", 50, ratios.get("crypten_p50_to_privdfs_p50"), at_least=True)
