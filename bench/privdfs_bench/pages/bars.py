"""The bars of the project: which of them a release meets, and which hold together."""

from collections.abc import Mapping, Sequence
from typing import Any

from privdfs._format import largest_coalition

#: The bars: points of accuracy lost, dB of the worst minority above the class mean, baseline MACs per client MAC.
LOST, ABOVE, CHEAPER = 1.0, 1.0, 20
#: The others: points below the fused answer that a missing server and a lying minority may cost, and linear readouts in
#: the place of the branches must; points between one key and the mean of all; dB of the undefended split; the baseline.
MISSING, LYING, EARNED, KEYS, BROKEN = 2.5, 5.0, 2.0, 0.5, 30.0
#: What a release comes to at a bar, and whether it meets it.
Held = tuple[str, bool]
BASELINE = {"fashion-mnist, ResNet": ("Fashion-MNIST", 93.0), "cifar10, ResNet": ("CIFAR-10", 90.0)}


def lied_to(entry: Mapping[str, Any]) -> tuple[int, float, float] | None:
    """Size of the largest lying minority, accuracy under its worst simple lie, and where it knows everything."""
    sizes = [int(size) for size in entry.get("malicious", {}) if size != "0"]
    if not sizes:
        return None
    found = entry["malicious"][str(max(sizes))]
    simple = min(value for kind, value in found.items() if kind not in {"adversarial", "worst"})
    return max(sizes), simple, found["adversarial"]


def point_of_run(run: Mapping[str, Any], floor: float) -> dict[str, Any]:
    """What the bars are about, of a sweep's run."""
    return {
        "name": run["name"],
        "data": data_and_backbone(run["data"], run["backbone"]),
        "lost": 100 * (run["baseline"] - run["accuracy"]),
        "above": run["worst"][str(largest_coalition(run["servers"]))]["psnr"] - floor,
        "cheaper": run["baseline_macs"] / run["client_macs"],
    }


def point_of_release(name: str, entry: Mapping[str, Any], audit: Mapping[str, Any]) -> dict[str, Any]:
    """What the bars are about, of a release."""
    worst = audit["worst"][str(largest_coalition(len(entry["branches"])))]
    return {
        "name": name,
        "data": data_and_backbone(entry["data"], entry["backbone"]),
        "lost": 100 * (entry["baseline"] - entry["fused"]),
        "above": worst["psnr"] - worst.get("floor", audit["floor"]["class_mean"]),
        "cheaper": entry["baseline_macs"] / entry["client_macs"],
    }


def held_table(accuracy: Mapping[str, Any], privacy: Mapping[str, Any]) -> str:
    """Markdown table of every release beside every bar; what misses one is bold."""
    held = table({name: _held(name, accuracy[name], privacy[name]) for name in accuracy if name in privacy})
    return held + "\n\nBold: missed. Without a unit: points of accuracy. RESULTS.md names the commands."


def table(held: Mapping[str, Mapping[str, Held]]) -> str:
    """Markdown table of releases beside bars.

    Args:
        held: of each release, what it comes to at each bar that it has.

    Returns:
        A column a release, a row a bar; what misses one is bold.
    """
    rows = ["| bar | " + " | ".join(held) + " |", "| --- " * (1 + len(held)) + "|"]
    for bar in dict.fromkeys(bar for bars in held.values() for bar in bars):
        cells = [bars.get(bar, ("", True)) for bars in held.values()]
        rows.append(f"| {bar} | " + " | ".join(shown if met else f"**{shown}**" for shown, met in cells) + " |")
    return "\n".join(rows)


def _held(name: str, entry: Mapping[str, Any], audit: Mapping[str, Any]) -> dict[str, Held]:
    """What a release comes to at each bar that it has, and whether it meets it."""
    point, fused, undefended = point_of_release(name, entry, audit), entry["fused"], max(audit["undefended"].values())
    held = {}
    if point["data"] in BASELINE:
        bar = "baseline, at least " + ", ".join(f"{lowest} ({data})" for data, lowest in BASELINE.values())
        held[bar] = f"{entry['baseline']:.2%}", 100 * entry["baseline"] >= BASELINE[point["data"]][1]
    held[f"fused, at most {LOST} below it"] = f"{-point['lost']:+.2f}", point["lost"] <= LOST
    held[f"largest minority, at most {ABOVE} dB above the class mean"] = (
        f"{point['above']:+.2f} dB",
        point["above"] <= ABOVE,
    )
    held[f"client compute, at most 1/{CHEAPER} of the baseline's"] = (
        f"1/{point['cheaper']:.1f}",
        point["cheaper"] >= CHEAPER,
    )
    below = {f"one server missing, at most {MISSING} below fused": (entry["missing"]["1"]["worst"], MISSING)}
    lied = lied_to(entry)
    if lied is not None:
        below[f"minority with simple lies, at most {LYING} below fused"] = lied[1], LYING
        below[f"minority that knows everything, at most {LYING} below fused"] = lied[2], LYING
    for bar, (accuracy, most) in below.items():
        lost = 100 * (fused - accuracy)
        held[bar] = f"{-lost:+.2f}", lost <= most
    if "linear_readouts" in entry:
        earned = 100 * (fused - entry["linear_readouts"])
        held[f"linear readouts, at least {EARNED} below fused"] = f"{-earned:+.2f}", earned >= EARNED
    if "keys" in entry:
        furthest = 100 * entry["keys"]["largest_distance_from_mean"]
        held[f"one of 100 keys, at most {KEYS} from their mean"] = f"{furthest:.2f}", furthest <= KEYS
    held[f"undefended split, at least {BROKEN:.0f} dB"] = f"{undefended:.1f} dB", undefended >= BROKEN
    return held


def data_and_backbone(data: str, backbone: str) -> str:
    """Within which points compare: a ViT, and a backbone of no known kind, has the bars of its own baseline."""
    kinds = {"vit": "ViT", "res": "ResNet"}
    return f"{data.partition(',')[0]}, {kinds.get(backbone[:3], backbone)}"


def bars_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table: of points that compare, for each two bars the one that meets them and is best at the third."""
    meets = {
        "accuracy": lambda point: point["lost"] <= LOST,
        "leakage": lambda point: point["above"] <= ABOVE,
        "compute": lambda point: point["cheaper"] >= CHEAPER,
    }
    # Each bar's figure, the smaller the better. Where nothing meets two bars, what misses the first by least.
    figure = {
        "accuracy": lambda point: point["lost"],
        "leakage": lambda point: point["above"],
        "compute": lambda point: -point["cheaper"],
    }
    pairs = (("accuracy", "leakage", "compute"), ("accuracy", "compute", "leakage"), ("leakage", "compute", "accuracy"))
    rows = [
        "| data, baseline | bars held to | met by | points lost | largest minority above class mean | client compute |"
    ]
    rows.append("| --- " * 6 + "|")
    for data in sorted({point["data"] for point in points}):
        here = [point for point in points if point["data"] == data]
        for first, second, third in pairs:
            met = [point for point in here if meets[first](point) and meets[second](point)]
            near = [point for point in here if meets[second](point)]
            if not met and not near:
                rows.append(f"| {data} | {first} and {second} | none | | | |")
                continue
            best = min(met, key=figure[third]) if met else min(near, key=figure[first])
            rows.append(
                f"| {data} | {first} and {second} | {best['name'] if met else 'none; nearest is ' + best['name']} "
                f"| {best['lost']:.2f} | {best['above']:+.2f} dB | 1/{best['cheaper']:.1f} |"
            )
    return "\n".join(rows)
