"""Docs/FRONTIER.md's table: from which model on a call is faster than running the model on the device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privdfs_bench.pages.coded_privacy import is_coded
from privdfs_bench.pages.marks import named, source
from privdfs_bench.results import read_results

RESULT = "coded-latency.json"
NOT_YET = "Not measured yet: `python bench/latency.py RELEASE --network 20,100`, of a coded release."


def table(folder: Path, accuracy: Mapping[str, Any]) -> str:
    """Markdown: for each coded release, and the masked one beside it, over every network that was measured.

    A call takes `c`, of which `h b` is the device's head: `h` its part of the baseline's multiply-accumulates, `b` the
    baseline's time on the same device. A model that takes `t` there needs a head of `h t`, so the call is faster from
    `t = (c - h b) / (1 - h)` on.

    Args:
        folder: Of the result files.
        accuracy: Entries of accuracy.json by name.
    """
    lines, sources = list[str](), list[str]()
    for name, entry in accuracy.items():
        found = read_results(folder / name / RESULT) if is_coded(entry) else {}
        if not found:
            continue
        beside = accuracy[found["made_by"]["config"]["beside"].rpartition("-")[0]]  # a release id ends in its digest
        alone = found["systems"]["baseline_device"]["p50_ms"]
        shown = named(name, found.get("graphs"))
        calls = {"loopback": found["systems"], **{key: one["systems"] for key, one in found["networks"].items()}}
        for network, systems in calls.items():
            cells = []
            for kind, of in (("coded", entry), ("masked", beside)):
                call, head = systems[kind]["p50_ms"], of["client_macs"] / of["baseline_macs"]
                worth = (call - head * alone) / (1 - head)
                cells.append(f"{call:.1f} ms | {worth:.1f} ms, {worth / alone:.0f} times")
            lines.append(f"| {shown} | {found['rounds']} | {network} | {alone:.2f} ms | {' | '.join(cells)} |")
        sources.append(f"{name}: {source(found['made_by'])}")
    if not lines:
        return NOT_YET
    head_lines = [
        (
            "| release | rounds | network (round trip in ms, Mbit/s) | ResNet-20 on the device | coded call "
            "| pays from | masked call beside it | pays from |"
        ),
        "| --- " * 8 + "|",
    ]
    told = (
        "*Pays from*: the time that a model must take on the device, also in times of ResNet-20's, so that the call is "
        "faster. It counts the device's head in proportion, and assumes that the servers answer as soon as they do "
        "here; larger models take them longer. The device is this machine's processor: a slower device comes to that "
        "time with a smaller model."
    )
    return "\n".join([*head_lines, *lines]) + f"\n\n{told} {'; '.join(sources)}."
