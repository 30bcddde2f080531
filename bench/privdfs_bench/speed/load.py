"""More and more clients at once: calls a second, latencies, and where the time goes.

Every client is a device with connections of its own, which calls again when it has its answer. All of them run on one
event loop beside the servers, on the same cores. The unprotected model is asked by Python's bare gRPC stubs, which do
less than any client of a product: that favours it.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from privdfs import AsyncClient, Bundle, Error, NotEnoughAnswersError
from privdfs._config import WireName
from privdfs._format import BASELINE_FOLDER, BASELINE_MODEL, BRANCH_MODEL, CLIENT_FOLDER, server_folder
from privdfs._images import load_image
from privdfs_bench.releases import RELEASES, graph_digests
from privdfs_bench.results import ROOT
from privdfs_bench.speed.percentiles import percentiles
from privdfs_bench.speed.serving import server_time
from privdfs_bench.speed.stubs import StubError, async_stub, request_for, stubs
from privdfs_bench.speed.trouble import LOAD, recovered_s
from privdfs_export.serve import RunningServer, serve_measured

MASKED, CODED, SERVERS = "fashion-resnet20", "fashion-coded-r1", 3
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: What a service usually promises; the throughput told is the most at which p99 keeps to it.
BOUND_MS = 50.0
TIMEOUT_S = 2.0
#: Saturated: p99 beyond the bound, and so little gained twice.
GAIN, PAUSE_S = 1.05, 0.05
IMAGE = ROOT / "examples" / "images" / "bag-1.png"
UNPROTECTED = "unprotected"


@dataclass(frozen=True)
class Kind:
    """What is measured.

    Attributes:
        what: in words.
        release: its name in model_repository.
        model: which of the servers' models is called.
        wire: by which it is asked.
    """

    what: str
    release: str
    model: str
    wire: WireName = "grpc"


KINDS = {
    UNPROTECTED: Kind("unprotected, 1 server", MASKED, BASELINE_MODEL),
    "masked": Kind(f"masked, {SERVERS} servers, gRPC", MASKED, BRANCH_MODEL),
    "masked-http": Kind(f"masked, {SERVERS} servers, HTTP", MASKED, BRANCH_MODEL, "http"),
    "coded": Kind(f"coded, {SERVERS} servers, T = 1, gRPC", CODED, "branch-1"),
    "coded-http": Kind(f"coded, {SERVERS} servers, T = 1, HTTP", CODED, "branch-1", "http"),
}

Predict = Callable[[], Awaitable[object]]


@dataclass
class Calls:
    """What became of calls: when each ended, its seconds, whether it was answered; and errors by their causes."""

    started: float = field(default_factory=time.monotonic)
    rows: list[tuple[float, float, bool]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Calls a second that were answered, their percentiles, and errors with theirs."""
        taken = [seconds * 1e3 for _, seconds, answered in self.rows if answered]
        failed = [seconds * 1e3 for _, seconds, answered in self.rows if not answered]
        took = max(end for end, *_ in self.rows) - self.started
        return {
            "calls": len(self.rows), "per_second": round(len(taken) / took, 1), "errors": dict(self.errors),
            **(percentiles(taken) if taken else {}),
            **({"error_p99_ms": round(float(np.percentile(failed, 99)), 1)} if failed else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A kind whose servers run."""

    kind: Kind
    bundle: Bundle
    servers: Sequence[RunningServer]

    @asynccontextmanager
    async def clients(self, number: int) -> AsyncIterator[list[Predict]]:
        """So many devices, connected."""
        image = load_image(IMAGE, self.bundle.manifest.image)
        async with _closing() as closing:
            if self.kind.model == BASELINE_MODEL:
                request = request_for(BASELINE_MODEL, {"image": ("UINT8", (1, *image.shape))})
                request.raw_input_contents[:] = [image.tobytes()]
                made = [async_stub(self.servers[0].endpoint) for _ in range(number)]
                closing += [channel.close for channel, _ in made]
                calls: list[Predict] = [_ask(stub, request) for _, stub in made]
            else:
                endpoints = [(one.http or "") if self.kind.wire == "http" else one.endpoint for one in self.servers]
                devices = [AsyncClient(self.bundle, endpoints, timeout=TIMEOUT_S) for _ in range(number)]
                closing += [device.close for device in devices]
                calls = [_predict(device, image) for device in devices]
            for call in calls:
                await call()  # connects
            yield calls

    def spent(self) -> tuple[float, float, float]:
        """Milliseconds that all servers have spent so far: of the processor, in queues, and computing."""
        with stubs([server.endpoint for server in self.servers]) as called:
            times = [server_time(one, stub, self.kind.model) for one, stub in zip(self.servers, called, strict=True)]
        cpu = sum(_processor_ms(server.keeper.pid) for server in self.servers)
        return cpu, sum(each.queue_ms for each in times), sum(each.compute_ms for each in times)


def _ask(stub: Any, request: Any) -> Predict:  # noqa: ANN401 - grpc has no types
    return lambda: stub.ModelInfer(request, timeout=TIMEOUT_S)


def _predict(device: AsyncClient, image: np.ndarray) -> Predict:
    return lambda: device.predict(image)


@asynccontextmanager
async def _closing() -> AsyncIterator[list[Callable[[], Awaitable[object]]]]:
    """A list of what to close at the end."""
    found: list[Callable[[], Awaitable[object]]] = []
    try:
        yield found
    finally:
        await asyncio.gather(*(close() for close in found))


@contextmanager
def serving(kind: Kind) -> Iterator[Served]:
    """The servers of a kind, ready inside the `with`."""
    release = RELEASES / kind.release
    folders = [release / server_folder(server) for server in range(SERVERS)]
    folders = [release / BASELINE_FOLDER] if kind.model == BASELINE_MODEL else folders
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
    with serve_measured(folders, http=kind.wire == "http") as servers:
        yield Served(kind, bundle, servers)


async def call_on(calls: Sequence[Predict], seconds: float) -> Calls:
    """Let every client call again and again for some seconds; after an error it waits, as the error says."""
    found = Calls()
    until = found.started + seconds

    async def client(call: Predict) -> None:
        while (started := time.monotonic()) < until:
            answered = False
            try:
                await call()
                answered = True
            except (Error, StubError) as error:
                found.errors[_told(error)] += 1
            ended = time.monotonic()
            found.rows.append((ended, ended - started, answered))
            if not answered:
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*map(client, calls))
    return found


def _told(error: BaseException) -> str:
    if isinstance(error, NotEnoughAnswersError):
        return ", ".join(sorted({type(each).__name__ for each in error.causes.values()}))
    return type(error).__name__


async def measure_point(served: Served, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients for some seconds: throughput, percentiles, and what a call costs whom, in milliseconds."""
    async with served.clients(clients) as calls:
        before, cpu = served.spent(), time.process_time()
        found = await call_on(calls, seconds)
        own = (time.process_time() - cpu) * 1e3
        after = served.spent()
    number = max(1, len(found.rows))
    names = ("servers_cpu_ms", "queue_ms", "compute_ms")
    costs = {name: round((now - then) / number, 3) for name, now, then in zip(names, after, before, strict=True)}
    return {"clients": clients, **found.summary(), "clients_cpu_ms": round(own / number, 3), **costs}


def saturated(points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether more clients will not bring more calls a second: the last two points brought hardly any, and are slow."""
    if len(points) < 3 or points[-1].get("p99_ms", BOUND_MS + 1) <= BOUND_MS:
        return False
    best = max(point["per_second"] for point in points[:-2])
    return all(point["per_second"] < GAIN * best for point in points[-2:])


def at_bound(points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The point with the most calls a second whose p99 keeps to the bound; None: none does."""
    within = [point for point in points if point.get("p99_ms", BOUND_MS + 1) <= BOUND_MS and not point["errors"]]
    return max(within, key=lambda point: point["per_second"], default=None)


async def overload(served: Served, clients: int, seconds: float, minute_s: float) -> dict[str, Any]:
    """So many clients, then ten times as many for a minute, then as before."""
    async with served.clients(clients) as calls:
        before = (await call_on(calls, seconds)).summary()
        async with served.clients(clients * (LOAD - 1)) as more:
            during = (await call_on([*calls, *more], minute_s)).summary()
        after = await call_on(calls, seconds)
    return {
        "clients": [clients, clients * LOAD, clients],
        "phases": {"before": before, "during": during, "after": after.summary()},
        "recovered_s": recovered_s(after.started, after.rows, before["p99_ms"]),
    }


def measure(seconds: float, minute_s: float, most: int, console: Console) -> dict[str, Any]:
    """All kinds take turns at each number of clients, so that a slow phase of the machine shows in all of them.

    Args:
        seconds: of each point.
        minute_s: of the overload.
        most: clients at once.
        console: for progress.

    Returns:
        What goes into the result file, by kind: points, the best of them within the bound, and the overload.
    """
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    with ExitStack() as stack:
        running = {name: stack.enter_context(serving(kind)) for name, kind in KINDS.items()}
        for clients in (number for number in CLIENTS if number <= most):
            for name, served in running.items():
                if not saturated(points[name]):
                    with console.status(f"{name}: {clients} clients"):
                        points[name].append(asyncio.run(measure_point(served, clients, seconds)))
        found = {
            name: {"what": KINDS[name].what, "points": points[name], "best": at_bound(points[name])} for name in KINDS
        }
        for name, served in running.items():
            best = found[name]["best"]
            if best is not None:
                with console.status(f"{name}: ten times {best['clients']} clients"):
                    found[name]["overload"] = asyncio.run(overload(served, best["clients"], seconds, minute_s))
    return {
        "bound_ms": BOUND_MS,
        "digests": {name: graph_digests(RELEASES / name) for name in (MASKED, CODED)},
        "systems": found,
        "to_unprotected": ratios(found),
        "party_to_unprotected": party_ratios(found),
    }


def ratios(systems: Mapping[str, Any]) -> dict[str, float | None]:
    """Calls a second within the bound, to those of the unprotected model; None where one of them has none."""
    best = {name: system["best"] for name, system in systems.items()}
    base = best[UNPROTECTED]
    return {
        name: round(point["per_second"] / base["per_second"], 3) if point and base else None
        for name, point in best.items()
        if name != UNPROTECTED
    }


def party_ratios(systems: Mapping[str, Any]) -> dict[str, float]:
    """Processor time that a call costs the unprotected server, to that of one party; at the least costly point of each.

    With a machine of its own, a party answers so many calls for each of the unprotected server's.
    """
    least = {name: min(point["servers_cpu_ms"] for point in system["points"]) for name, system in systems.items()}
    base = least[UNPROTECTED]
    return {name: round(base / (cost / SERVERS), 3) for name, cost in least.items() if name != UNPROTECTED}


def _processor_ms(pid: int) -> float:
    """Processor time of a process and all below it."""
    total, todo, tick = 0.0, [pid], 1e3 / os.sysconf("SC_CLK_TCK")
    while todo:
        each = todo.pop()
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) * tick
            for thread in Path(f"/proc/{each}/task").iterdir():
                todo += map(int, (thread / "children").read_text(encoding="ascii").split())
    return total
