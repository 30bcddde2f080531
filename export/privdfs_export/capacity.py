"""`privdfs-export capacity RELEASE --calls L`: what each party needs for a load, by the formulas of docs/SCALING.md.

How long a call keeps a server comes from the result files of this project, or from `--service-ms` where you measured
it yourself, as on a GPU: nothing is built in. What the answer rests on is part of the answer.
"""

import argparse
import json
import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privdfs import coding
from privdfs._coded_format import CodedManifest
from privdfs._errors import ConfigError
from privdfs._files import read_manifest_bytes
from privdfs._format import CLIENT_FOLDER
from privdfs._manifest import AnyClientManifest, read_client_manifest
from privdfs_export.errors import ExportError

DESCRIPTION = "Estimate what each party needs for a load: instances, replicas, bytes. Formulas: docs/SCALING.md."
RESULTS = Path(__file__).parents[2] / "bench" / "results"
_LOGIT_BYTES = 4
_MOST_REPLICAS = 10_000


@dataclass(frozen=True)
class Load:
    """What is asked for.

    Attributes:
        calls: A second, of all devices together; one image each.
        servers: N.
        needed: How many of them must answer.
        utilisation: Part of its time that an instance is busy, above 0 and below 1.
        replica: Availability of one replica, as a fraction; None: not asked for.
        target: Availability of the whole that is wanted.
        link: Megabit a second that a party's link carries; None: not asked for.
    """

    calls: float
    servers: int
    needed: int
    utilisation: float = 0.5
    replica: float | None = None
    target: float = 0.999
    link: float | None = None


@dataclass(frozen=True)
class Cost:
    """What one call costs a server.

    Attributes:
        service_ms: Time of one instance, over all rounds.
        bytes_up: What reaches the server, with what the wire adds.
        bytes_down: What leaves it.
        source: Where the time is from, in words.
        at_most: The time is an upper bound.
        wire_source: Where the bytes of the wire are from, in words.
    """

    service_ms: float
    bytes_up: float
    bytes_down: float
    source: str
    wire_source: str
    at_most: bool = False


@dataclass(frozen=True)
class Capacity:
    """What each party needs.

    Attributes:
        instances: Busy at the wanted utilisation: processor cores, or GPUs if the time was measured on one.
        wait_ms: Mean wait of a request for an instance.
        wait_99_ms: What 99 % of the calls wait at most for the slowest of the servers.
        most_calls: A second, that so many instances carry at most.
        up_mbit: Megabit a second that come in.
        down_mbit: Megabit a second that go out.
        links: Links of the given speed, at the wanted utilisation; None: not asked for.
        replicas: Instances with spares for the availability; None: not asked for.
        availability: Of the whole, with so many replicas; None: not asked for.
    """

    instances: int
    wait_ms: float
    wait_99_ms: float
    most_calls: float
    up_mbit: float
    down_mbit: float
    links: int | None
    replicas: int | None
    availability: float | None


def capacity(load: Load, cost: Cost) -> Capacity:
    """Apply the formulas.

    Args:
        load: What is asked for.
        cost: Of one call.

    Returns:
        What each party needs.

    Raises:
        ExportError: No number of replicas reaches the availability.
    """
    service = cost.service_ms / 1000
    r = load.utilisation
    instances = max(1, math.ceil(load.calls * service / r))
    up, down = (load.calls * size * 8 / 1e6 for size in (cost.bytes_up, cost.bytes_down))
    replicas = None if load.replica is None else _replicas(load, instances, load.replica)
    return Capacity(
        instances=instances,
        wait_ms=r * cost.service_ms / (2 * (1 - r)),
        wait_99_ms=cost.service_ms / (1 - r) * max(0.0, math.log(100 * load.servers * r)),
        most_calls=instances / service,
        up_mbit=up,
        down_mbit=down,
        links=None if load.link is None else max(1, math.ceil(max(up, down) / (r * load.link))),
        replicas=replicas,
        availability=None
        if replicas is None or load.replica is None
        else _whole(load, instances, replicas, load.replica),
    )


def _whole(load: Load, instances: int, replicas: int, replica: float) -> float:
    """Enough parties are up, each with enough replicas; all fail independently of each other."""
    return _at_least(load.needed, load.servers, _at_least(instances, replicas, replica))


def _replicas(load: Load, instances: int, replica: float) -> int:
    numbers = range(instances, max(instances, _MOST_REPLICAS))
    enough = bisect_left(numbers, 1, key=lambda replicas: _whole(load, instances, replicas, replica) >= load.target)
    if enough < len(numbers):
        return numbers[enough]
    message = (
        f"no number of replicas below {_MOST_REPLICAS} makes {load.target} out of replicas of {replica}: lower the "
        "target, or raise --replica-availability."
    )
    raise ExportError(message)


def _at_least(few: int, all_of: int, up: float) -> float:
    """Probability that at least `few` of `all_of` are up; by logarithms, since the counts of choices are huge."""
    if not 0 < up < 1:
        return float(up >= 1)

    def exactly(k: int) -> float:
        choices = math.lgamma(all_of + 1) - math.lgamma(k + 1) - math.lgamma(all_of - k + 1)
        return math.exp(choices + k * math.log(up) + (all_of - k) * math.log1p(-up))

    return max(0.0, 1 - math.fsum(map(exactly, range(few))))


def release_cost(name: str, manifest: AnyClientManifest, results: Path, service_ms: float | None) -> Cost:
    """What one call costs a server of a release.

    Args:
        name: Of the release, as result files have it.
        manifest: The client's.
        results: Folder of result files.
        service_ms: Measured by the operator; None: from the result files.

    Returns:
        The cost.

    Raises:
        ExportError: A result file is missing or holds something else.
    """
    latency = _read(results / "latency.json")
    network = next(iter(latency["networks"].values()))
    system = latency["systems"]["privdfs"]
    wire = network["bytes_on_the_wire"]["privdfs"]
    more_up = _mean(wire["up_by_server"]) - _mean(system["bytes_up_by_server"])
    more_down = _mean(wire["down_by_server"]) - _mean(system["bytes_down_by_server"])
    if isinstance(manifest, CodedManifest):
        exchanges = len(manifest.rounds)
        up = sum(one.values * len(one.moduli) for one in manifest.rounds)
        down = sum(one.outputs * len(one.moduli) for one in manifest.rounds)
    else:
        exchanges = 1
        up, down = max(one.share_length for one in manifest.servers), _LOGIT_BYTES * len(manifest.classes)
    measured, source = (service_ms, "--service-ms") if service_ms is not None else _service(name, manifest, results)
    at_most = service_ms is None and isinstance(manifest, CodedManifest)
    wire_source = _told("latency.json", latency)
    return Cost(measured, up + exchanges * more_up, down + exchanges * more_down, source, wire_source, at_most)


def _service(name: str, manifest: AnyClientManifest, results: Path) -> tuple[float, str]:
    """Milliseconds that a call keeps a server, and where that is from."""
    if isinstance(manifest, CodedManifest):
        path = Path(name) / "coded-latency.json"
        found = _read(results / path)
        # Servers' own time was not measured alone; all that the device does not do is more than it.
        device = sum(found["device_ms"][part] for part in ("head", "sharing", "decoding"))
        most = found["systems"]["coded"]["p50_ms"] - device
        told = f"the median call without the device's part, {_told(path.as_posix(), found)}"
        return most, told + _earlier(name, manifest, found)
    latency = _read(results / "latency.json")
    if name == latency["release"] or manifest.release == _measured(latency):
        slowest = max(server["compute_ms"] for server in latency["stages"]["servers"])
        told = f"the slowest server's compute, {_told('latency.json', latency)}"
        return slowest, told + _earlier(name, manifest, latency)
    scaling = _read(results / "scaling.json")
    config = scaling["made_by"]["config"]["config"]
    return scaling["service"]["one_ms"], f"of another release ({config}), {_told('scaling.json', scaling)}"


def _measured(found: dict[str, Any]) -> str:
    """The release that was measured, with the digest of its name."""
    return found["made_by"]["config"]["release"]


def _earlier(name: str, manifest: AnyClientManifest, found: dict[str, Any]) -> str:
    """What to add where another release of this name was measured."""
    measured = _measured(found)
    if measured == manifest.release:
        return ""
    return f"; of an earlier {name} ({measured.removeprefix(f'{name}-')}): measure it, or pass --service-ms"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = (
            f"{path} cannot be read ({type(error).__name__}), and holds what was measured: name a checkout's "
            "bench/results with --results."
        )
        raise ExportError(message) from error


def _told(path: str, found: dict[str, Any]) -> str:
    made_by = found["made_by"]
    return f"{path}, commit {made_by['commit'][:10]}, {made_by['date']}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        message = "expected a number above 0 and below 1"
        raise argparse.ArgumentTypeError(message)
    return value


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        message = "expected a number above 0"
        raise argparse.ArgumentTypeError(message)
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("release", type=Path, metavar="RELEASE", help="a release, or its client folder")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--calls", type=_amount, metavar="L", help="calls a second of all devices, one image each")
    load.add_argument("--devices", type=_amount, metavar="D", help="devices, each with a call every --every seconds")
    parser.add_argument("--every", type=_amount, default=60.0, metavar="S", help="seconds (%(default)g)")
    parser.add_argument("--servers", type=int, metavar="N", help="of a coded release: how many servers are used")
    parser.add_argument("--colluding", type=int, default=1, metavar="T", help="of a coded release (%(default)s)")
    parser.add_argument("--min-answers", type=int, metavar="K", help="of a masked release: how many must answer (all)")
    parser.add_argument("--utilisation", type=_fraction, default=0.5, metavar="R", help="of an instance (%(default)s)")
    parser.add_argument("--replica-availability", type=_fraction, metavar="A", help="of one replica, such as 0.99")
    parser.add_argument(
        "--availability", type=_fraction, default=0.999, metavar="A", help="of the whole that is wanted (%(default)s)"
    )
    parser.add_argument("--link", type=_amount, metavar="MBIT", help="megabit a second of a party's link")
    parser.add_argument(
        "--service-ms", type=_amount, metavar="MS", help="time that a call keeps an instance, where you measured it"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="result files (the checkout's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Estimate, and print.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The release or a result file cannot be read, or the numbers contradict each other.
    """
    folder: Path = options.release
    client = folder / CLIENT_FOLDER if (folder / CLIENT_FOLDER).is_dir() else folder
    manifest = read_client_manifest(read_manifest_bytes(client))
    name = (client.resolve().parent if client.name == CLIENT_FOLDER else client.resolve()).name
    servers, needed = _servers(manifest, options)
    load = Load(
        calls=options.calls if options.calls is not None else options.devices / options.every,
        servers=servers,
        needed=needed,
        utilisation=options.utilisation,
        replica=options.replica_availability,
        target=options.availability,
        link=options.link,
    )
    cost = release_cost(name, manifest, options.results, options.service_ms)
    found = capacity(load, cost)
    if options.json:
        print(json.dumps({"release": manifest.release, "load": asdict(load), "cost": asdict(cost), **asdict(found)}))
    else:
        _show(manifest.release, load, cost, found)


def _servers(manifest: AnyClientManifest, options: argparse.Namespace) -> tuple[int, int]:
    """N, and how many of them must answer."""
    if isinstance(manifest, CodedManifest):
        needed = max(coding.needed_answers(one.degree, options.colluding) for one in manifest.rounds)
        servers = needed if options.servers is None else options.servers
        if options.min_answers is not None:
            raise ConfigError("--min-answers is for masked releases: of a coded one, --colluding decides that")
        if options.colluding < 1 or not needed <= servers <= coding.MAX_SERVERS:
            raise ConfigError(
                f"{servers} servers of which {options.colluding} may collude cannot be: {needed} must answer, and "
                f"there are at most {coding.MAX_SERVERS}"
            )
        return servers, needed
    servers = len(manifest.servers)
    if options.servers not in {None, servers}:
        raise ConfigError(f"this masked release has {servers} servers: leave out --servers")
    needed = servers if options.min_answers is None else options.min_answers
    if not 1 <= needed <= servers:
        raise ConfigError(f"--min-answers must be from 1 to {servers}")
    return servers, needed


def _show(release: str, load: Load, cost: Cost, found: Capacity) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{release}: {load.calls:,.1f} calls a second, {load.servers} servers, {load.needed} must answer"
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    bound, busy = " (upper bound)" if cost.at_most else "", f"if {load.utilisation:.0%} busy"
    rows = [
        (f"time of a call on one server{bound}", f"{cost.service_ms:.3f}", "ms"),
        (f"instances a party, {busy}", f"{found.instances:,}", ""),
        (f"mean wait, {busy}", f"{found.wait_ms:.2f}", "ms"),
        (f"99% of calls wait at most, {busy}", f"{found.wait_99_ms:.1f}", "ms"),
        ("most that they carry", f"{found.most_calls:,.0f}", "calls/s"),
        ("into a party", f"{found.up_mbit:,.2f}", "Mbit/s"),
        ("out of a party", f"{found.down_mbit:,.2f}", "Mbit/s"),
    ]
    if found.links is not None:
        rows.append((f"links of {load.link:g} Mbit/s a party", f"{found.links:,}", ""))
    if found.replicas is not None:
        rows.append((f"replicas a party for {load.target:g}", f"{found.replicas:,}", ""))
        rows.append(("availability of the whole then", f"{found.availability:.6f}", ""))
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(title, highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"time{bound}: {cost.source}\nbytes: {cost.wire_source}", highlight=False, soft_wrap=True)
    console.print("An instance is a processor core, or a GPU if you measured --service-ms on one.", highlight=False)


if __name__ == "__main__":
    import sys

    from privdfs_export.cli import main

    sys.exit(main(["capacity", *sys.argv[1:]]))
