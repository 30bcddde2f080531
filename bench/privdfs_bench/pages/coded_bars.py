"""The bars of coded releases, in docs/FRONTIER.md."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privdfs_bench.pages.bars import CHEAPER, Held, data_and_backbone, table
from privdfs_bench.pages.coded_privacy import is_coded

#: Servers of which the bytes are counted.
SERVERS = 3
#: dB above the mean image that the strongest attack on a minority may seem to gain.
ABOVE = 0.1


@dataclass(frozen=True)
class Bars:
    """What a coded release on one data set is held to.

    Attributes:
        baseline: least accuracy of the unprotected model, in percent.
        lost: points that the coded system may lose to it.
        lost_alone: the same where there is one round alone.
        rounds: at most.
        kilobytes: up and down, of all three servers, at most.
        earned: points that a linear readout of what is shared must stay below; None: reported alone.
    """

    baseline: float
    lost: float
    lost_alone: float
    rounds: int
    kilobytes: int
    earned: float | None


BARS = {
    "cifar10": Bars(90.0, 1.0, 5.0, 3, 64, 5.0),
    "fashion-mnist": Bars(93.5, 0.5, 1.0, 2, 16, None),
}


def coded_held_table(
    accuracy: Mapping[str, Any],
    privacy: Mapping[str, Any],
    masked: Sequence[Mapping[str, Any]],
    seeds: Mapping[str, Sequence[float]],
) -> str:
    """Markdown table of every coded release beside every bar; what misses one is bold.

    Args:
        accuracy: releases of accuracy.json.
        privacy: releases of privacy.json; one that has not been audited has empty cells.
        masked: points of masked releases and runs, as `bars` makes them, to compare with.
        seeds: points over the baseline from every seed of a release, where there are several.
    """
    found = {name: one for name, one in accuracy.items() if is_coded(one) and _data(one) in BARS}
    return table(
        {name: _held(one, privacy.get(name), seeds.get(name)) | _beside(one, masked) for name, one in found.items()}
    )


def _beside(entry: Mapping[str, Any], masked: Sequence[Mapping[str, Any]]) -> dict[str, Held]:
    """The most accurate masked system that needs no more of the device; it has no bar."""
    here = data_and_backbone(entry["data"], entry["backbone"])
    cheap = [point for point in masked if point["data"] == here and point["cheaper"] >= CHEAPER]
    if not cheap:
        return {}
    best = min(cheap, key=lambda point: point["lost"])
    return {f"masked shares for 1/{CHEAPER}, minus baseline": (f"{-best['lost']:+.2f} ({best['name']})", True)}


def _data(entry: Mapping[str, Any]) -> str:
    return entry["data"].partition(",")[0]


def _held(entry: Mapping[str, Any], audit: Mapping[str, Any] | None, seeds: Sequence[float] | None) -> dict[str, Held]:
    """What a release comes to at each bar, and whether it meets it."""
    bars = BARS[_data(entry)]
    baseline, fused, readout = (100 * entry[key] for key in ("baseline", "fused", "linear_readouts"))
    lost = bars.lost_alone if entry["rounds"] == 1 else bars.lost
    cheaper = entry["baseline_macs"] / entry["client_macs"]
    kilobytes = SERVERS * (entry["bytes_up"] + entry["bytes_down"]) / 1000
    earned = bars.earned
    held = {
        "baseline": (f"{baseline:.2f}%, at least {bars.baseline}%", baseline >= bars.baseline),
        "coded minus baseline": (f"{fused - baseline:+.2f}, at least -{lost}", fused >= baseline - lost),
        "device compute / baseline": (f"1/{cheaper:.1f}, at most 1/{CHEAPER}", cheaper >= CHEAPER),
        "rounds": (f"{entry['rounds']}, at most {bars.rounds}", entry["rounds"] <= bars.rounds),
        f"bytes up and down, {SERVERS} servers": (
            f"{kilobytes:.1f} kB, at most {bars.kilobytes} kB",
            kilobytes <= bars.kilobytes,
        ),
        "coded minus linear readout": (
            f"{fused - readout:+.2f}" + ("" if earned is None else f", at least +{earned}"),
            earned is None or fused - readout >= earned,
        ),
    }
    if seeds is not None:
        mean = statistics.mean(seeds)
        held["the same, mean of all seeds"] = f"{mean:+.2f} ({len(seeds)} seeds), at least -{lost}", mean >= -lost
    if audit is not None:
        above = max(one["above_mean_image"] for one in audit["proven"])
        held["strongest attack on T servers"] = (
            f"{above:+.3f} dB above the mean image, at most {ABOVE}",
            above <= ABOVE,
        )
        worst = audit["worst"][min(audit["worst"], key=int)]
        held["T + 1 servers, above the class mean"] = f"{worst['psnr'] - worst['floor']:+.2f} dB", True
    return held
