"""`python bench/figures.py`: write the figures of README.md, the guides in docs and deploy/README.md from result files.

    python bench/figures.py           rewrite what stands between the marks
    python bench/figures.py --check   exit 1 when a file does not show what the result files say

No figure there is typed by hand.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, ROOT, UNDEFENDED_IMAGES, largest_minority, read_results

README, DEPLOY = ROOT / "README.md", ROOT / "deploy" / "README.md"
PRIVACY, SCALING, FRONTIER = (ROOT / "docs" / f"{name}.md" for name in ("PRIVACY", "SCALING", "FRONTIER"))
#: The bars: points of accuracy lost, dB of the worst minority above the class mean, baseline MACs per client MAC.
LOST, ABOVE, CHEAPER = 1.0, 1.0, 20
#: The others: points below the fused answer that a missing server and a lying minority may cost, and linear readouts in
#: the place of the branches must; points between one key and the mean of all; dB of the undefended split; the baseline.
MISSING, LYING, EARNED, KEYS, BROKEN = 2.5, 5.0, 2.0, 0.5, 30.0
BASELINE = {"fashion-mnist, ResNet": ("Fashion-MNIST", 93.0), "cifar10, ResNet": ("CIFAR-10", 90.0)}
#: What the queueing estimate is made for.
LOADS, SERVERS, DEVICES, EVERY_S = (0.3, 0.5, 0.7, 0.9), 3, 10**6, 60
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Markdown table of all releases in accuracy.json."""
    rows = [
        (
            "| release | servers | baseline | fused, over tritonservers | one server missing (worst) "
            "| lying minority (simple lies; knows everything) | a branch alone | linear readouts | bytes up "
            "| client / baseline MACs |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in results["releases"].items():
        branches = entry["branches"]
        rows.append(
            f"| {name} | {len(branches)} | {entry['baseline']:.2%} | **{entry['fused']:.2%}** "
            f"| {entry['missing']['1']['worst']:.2%} | {_lying(entry)} | {min(branches):.2%} to {max(branches):.2%} "
            f"| {_linear(entry)} | {entry['bytes_up']} | 1/{entry['baseline_macs'] / entry['client_macs']:.1f} |"
        )
    images = {entry["images"] for entry in results["releases"].values()}
    counted = " and ".join(f"{count:,}" for count in sorted(images))
    return (
        "\n".join(rows) + f"\n\n{counted} test images; exported int8 files, one real tritonserver per server. "
        f"{_commands(results)}{_over_keys(results)}"
    )


def _over_keys(results: Mapping[str, Any]) -> str:
    """How far accuracy differs between users' keys, for each keyed release."""
    told = ""
    for name, entry in results["releases"].items():
        if "keys" in entry:
            keys = entry["keys"]
            told += (
                f" {name} under {keys['keys']} random users' keys: {keys['mean']:.2%} on average, {keys['min']:.2%} to "
                f"{keys['max']:.2%}."
            )
    return told


def _commands(results: Mapping[str, Any]) -> str:
    """How each release was measured, in the order of the table."""
    made_by = [entry.get("made_by", results["made_by"]) for entry in results["releases"].values()]
    return "; ".join(dict.fromkeys(map(_source, made_by))) + "."


def _source(made_by: Mapping[str, Any]) -> str:
    """Command, commit and date of a result; a tree that was not the commit's alone says so."""
    commit, changes = made_by["commit"][:10], " with changes" if made_by["commit"].endswith("+changes") else ""
    return f"`{made_by['command']}`, commit {commit}{changes}, {made_by['date']}"


def _lying(entry: Mapping[str, Any]) -> str:
    """Accuracy under the largest lying minority: the worst simple lie, and liars who know everything."""
    lied = _lied_to(entry)
    if lied is None:
        return "not measured"
    size, simple, adversarial = lied
    return f"{size} of {len(entry['branches'])}: {simple:.2%}; {adversarial:.2%}"


def _lied_to(entry: Mapping[str, Any]) -> tuple[int, float, float] | None:
    """Size of the largest lying minority, accuracy under its worst simple lie, and where it knows everything."""
    sizes = [int(size) for size in entry.get("malicious", {}) if size != "0"]
    if not sizes:
        return None
    found = entry["malicious"][str(max(sizes))]
    simple = min(value for kind, value in found.items() if kind not in {"adversarial", "worst"})
    return max(sizes), simple, found["adversarial"]


def _linear(entry: Mapping[str, Any]) -> str:
    return f"{entry['linear_readouts']:.2%}" if "linear_readouts" in entry else "not measured"


def latency_table(results: Mapping[str, Any]) -> str:
    """Markdown table of latency.json."""
    networks = results.get("networks", {})
    head = ["system", "p50", "p90", "p99", "p99.9", "processor time of the device", "bytes up"]
    head += [f"p50 through {one['rtt_ms']:g} ms and {one['mbit']:g} Mbit/s" for one in networks.values()]
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, system in results["systems"].items():
        cells = [_ms(system.get(f"{key}_ms")) for key in ("p50", "p90", "p99", "p99.9", "cpu")]
        cells.append(f"{system['bytes_up']:,}")
        cells += [_ms(one["systems"].get(name, {}).get("p50_ms")) for one in networks.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    made_by = results["made_by"]
    samples = next(iter(results["systems"].values()))["samples"]
    return (
        "\n".join(rows) + f"\n\n{samples:,} calls each, interleaved, on loopback, {made_by['machine']['cores']} cores "
        f"({made_by['machine']['processor']}), release {results['release']}. {_source(made_by)}. "
        f"Machines like this one are noisy: compare within the table."
    )


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} ms"


def privacy_table(results: Mapping[str, Any]) -> str:
    """Markdown table of privacy.json: the worst coalition of each size, between the floors and the undefended split."""
    rows = ["| attacker | " + " | ".join(results["releases"]) + " |", "| --- |" + " --- |" * len(results["releases"])]
    entries = list(results["releases"].values())

    def row(label: str, values: list[str]) -> None:
        rows.append(f"| {label} | " + " | ".join(values) + " |")

    row("floor: knows nothing (mean image)", [f"{entry['floor']['mean_image']:.2f} dB" for entry in entries])
    row("floor: knows the class (class mean)", [f"{entry['floor']['class_mean']:.2f} dB" for entry in entries])
    for size in sorted({size for entry in entries for size in entry["worst"]}, key=int):
        found = [entry["worst"].get(size) for entry in entries]
        shown = [f"{one['psnr']:.2f} dB, SSIM {one['ssim']:.3f}" if one else "" for one in found]
        row(f"{size} server{'s' * (size != '1')}, worst coalition", shown)
    row("undefended split, the attack that does best on it", [_undefended(entry) for entry in entries])
    row("test images; effort", [f"{_most_images(entry):,}; {entry['effort']}" for entry in entries])
    most = min(max(map(_most_images, entries)), UNDEFENDED_IMAGES)
    return (
        "\n".join(rows)
        + "\n\nMean PSNR per image; the strongest of several attacks on each coalition on the bytes that "
        "the bundle makes, knowing the masks (undefended split: the baseline's feature after its first convolution, at "
        f"most {most:,} images). {_commands(results)}"
    )


def _most_images(entry: Mapping[str, Any]) -> int:
    """Test images of the attacks that met the most."""
    return max(one["images"] for one in entry["coalitions"])


def _undefended(entry: Mapping[str, Any]) -> str:
    attack, psnr = max(entry["undefended"].items(), key=lambda item: item[1])
    return f"{psnr:.2f} dB ({attack})"


def figures(folder: Path) -> str:
    """Everything between the marks.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    accuracy, privacy, latency = (read_results(folder / f"{name}.json") for name in ("accuracy", "privacy", "latency"))
    tables = (accuracy_table(accuracy), privacy_table(privacy), latency_table(latency))
    return "\n\n".join((BEGIN, *tables, END))


def privacy_figures(folder: Path) -> str:
    """Everything between the marks of docs/PRIVACY.md: the strongest attack of every size of a coalition.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    entries = read_results(folder / "privacy.json").get("releases", {})
    if not entries:
        return f"{BEGIN}\n\nNot measured yet: `python bench/privacy.py`.\n\n{END}"
    rows = ["| release | servers together | strongest attack | PSNR | above class mean | SSIM | undefended split |"]
    rows.append("| --- " * 7 + "|")
    about = []
    for name, entry in entries.items():
        servers, broken = len(entry["worst"]), max(entry["undefended"].values())
        for size, one in entry["worst"].items():
            who = f"{size} of {servers}" + ("" if int(size) <= largest_minority(servers) else ", no minority")
            above = one["psnr"] - one.get("floor", entry["floor"]["class_mean"])
            rows.append(
                f"| {name} | {who} | {one['attack']} | {one['psnr']:.2f} dB | {above:+.2f} dB | {one['ssim']:.3f} "
                f"| {broken:.2f} dB |"
            )
        flags = (
            ", ".join(dict.fromkeys(flag["check"] for flag in entry["flags"])) or "none" if "flags" in entry else None
        )
        about.append(f"{entry['release']}: {_source(entry['made_by'])}; flags: {flags or 'not checked'}.")
    return "\n\n".join(
        (
            BEGIN,
            "\n".join(rows),
            "\n".join(about),
            *keys_tables(entries),
            rivals_table(read_results(folder / "rivals.json")),
            people_table(read_results(folder / "reidentify.json")),
            END,
        )
    )


def keys_tables(releases: Mapping[str, Any]) -> list[str]:
    """Markdown tables of the keyed releases in privacy.json: what the largest minority does with a user's partition."""
    knowledge = {
        "partition": "the user's partition",
        "family": "all partitions, pairs under others",
        "nothing": "pairs under others, no partition: protects nobody",
    }
    tables = []
    for name, entry in releases.items():
        if not entry.get("keys"):
            continue
        rows = [f"| {name}: the attacker knows | the same image came under | PSNR | above class mean | SSIM |"]
        rows.append("| --- " * 5 + "|")
        for one in entry["keys"]:
            count = f"{one['requests']} key{'s' * (one['requests'] > 1)}"
            above = one["psnr"] - one["floor"]
            rows.append(
                f"| {knowledge[one['knows']]} | {count} | {one['psnr']:.2f} dB | {above:+.2f} dB | {one['ssim']:.3f} |"
            )
        tables.append("\n".join(rows))
    return tables


def rivals_table(results: Mapping[str, Any]) -> str:
    """Markdown table of rivals.json, the least leaking first, and who wins at matched accuracy."""
    if not results:
        return "Other defences are not measured yet: `python bench/rivals.py`."
    rows = ["| system | defence | a coalition receives | client / baseline MACs | accuracy | points lost "]
    rows[0] += "| strongest attack | PSNR | above class mean |"
    rows.append("| --- " * 9 + "|")
    for name, entry in sorted(results["systems"].items(), key=lambda one: (one[1]["data"], one[1]["worst"]["above"])):
        worst, accuracy = entry["worst"], f"{entry['accuracy']:.2%}{'' if entry['matched'] else ', not matched'}"
        cost = entry["baseline_macs"] / entry["client_macs"]
        rows.append(
            f"| {name} | {entry['defence']} | {entry['bits']:,} bits | 1/{cost:.1f} "
            f"| {accuracy} | {entry['lost_points']:.2f} | {worst['attack']} "
            f"| {worst['psnr']:.2f} dB | {worst['above']:+.2f} dB |"
        )
    made_by = results["made_by"]
    said = ". ".join(results["verdicts"])
    return "\n".join(rows) + f"\n\n{said}. {_source(made_by)}."


def people_table(results: Mapping[str, Any]) -> str:
    """Markdown table of reidentify.json: how often the worst coalition of each size names the right person first."""
    if not results:
        return "Whether shares tell people apart is not measured yet: `python bench/reidentify.py`."
    attacks = list(next(iter(next(iter(results["releases"].values()))["coalitions"].values())))
    rows = ["| release | servers together | guessing | " + " | ".join(attacks) + " | the photographs themselves |"]
    rows.append("| --- " * (4 + len(attacks)) + "|")
    for name, entry in results["releases"].items():
        servers, whole = len(entry["bits"]), entry["photographs"]["rank 1"]["rate"]
        for size, found in entry["coalitions"].items():
            rates = " | ".join(f"{found[attack]['rank 1']['rate']:.1%}" for attack in attacks)
            rows.append(f"| {name} | {size} of {servers} | {1 / entry['people']:.1%} | {rates} | {whole:.1%} |")
    return "\n".join(rows) + f"\n\n{_commands(results)}"


def frontier_figures(folder: Path) -> str:
    """Everything between the marks of docs/FRONTIER.md: which bars hold together, the sweeps' runs, and other seeds.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    accuracy, privacy, sweeps, seeds, accuracy_of_seeds = (
        read_results(folder / f"{name}.json") for name in ("accuracy", "privacy", "frontier", "seeds", "seeds-accuracy")
    )
    if not sweeps:
        return f"{BEGIN}\n\nNot measured yet: `python bench/frontier.py`.\n\n{END}"
    floors = {name: floor["class_mean"] for name, floor in sweeps["floors"].items()}
    points = [_point(run, floors[run["data"]]) for run in sweeps["runs"]]
    points += [
        _release_point(name, entry, privacy["releases"][name])
        for name, entry in accuracy.get("releases", {}).items()
        if name in privacy.get("releases", {})
    ]
    return "\n\n".join(
        (
            BEGIN,
            "## Which bars the releases meet",
            held_table(accuracy.get("releases", {}), privacy.get("releases", {})),
            "## Which bars hold together",
            bars_table(points),
            *(f"## Sweep on {name}\n\n{sweep_table(sweeps['runs'], name, floors[name])}" for name in sorted(floors)),
            "## Seeds",
            seeds_table(seeds, accuracy_of_seeds, accuracy, privacy)
            if seeds and accuracy_of_seeds
            else "Not measured yet: configs/seeds/fashion.toml.",
            END,
        )
    )


def _point(run: Mapping[str, Any], floor: float) -> dict[str, Any]:
    """What the bars are about, of a sweep's run."""
    return {
        "name": run["name"],
        "data": _data_and_backbone(run["data"], run["backbone"]),
        "lost": 100 * (run["baseline"] - run["accuracy"]),
        "above": run["worst"][str(largest_minority(run["servers"]))]["psnr"] - floor,
        "cheaper": run["baseline_macs"] / run["client_macs"],
    }


def _release_point(name: str, entry: Mapping[str, Any], audit: Mapping[str, Any]) -> dict[str, Any]:
    """What the bars are about, of a release."""
    worst = audit["worst"][str(largest_minority(len(entry["branches"])))]
    return {
        "name": name,
        "data": _data_and_backbone(entry["data"], entry["backbone"]),
        "lost": 100 * (entry["baseline"] - entry["fused"]),
        "above": worst["psnr"] - worst.get("floor", audit["floor"]["class_mean"]),
        "cheaper": entry["baseline_macs"] / entry["client_macs"],
    }


def held_table(accuracy: Mapping[str, Any], privacy: Mapping[str, Any]) -> str:
    """Markdown table of every release beside every bar; what misses one is bold."""
    held = {name: _held(name, accuracy[name], privacy[name]) for name in accuracy if name in privacy}
    rows = ["| bar | " + " | ".join(held) + " |", "| --- " * (1 + len(held)) + "|"]
    for bar in dict.fromkeys(bar for bars in held.values() for bar in bars):
        cells = [bars.get(bar, ("", True)) for bars in held.values()]
        rows.append(f"| {bar} | " + " | ".join(shown if met else f"**{shown}**" for shown, met in cells) + " |")
    return "\n".join(rows) + "\n\nBold: missed. Without a unit: points of accuracy. README.md names the commands."


def _held(name: str, entry: Mapping[str, Any], audit: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """What a release comes to at each bar that it has, and whether it meets it."""
    point, fused, undefended = _release_point(name, entry, audit), entry["fused"], max(audit["undefended"].values())
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
    lied = _lied_to(entry)
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


def _data_and_backbone(data: str, backbone: str) -> str:
    """Within which points compare: a ViT has the bars of its own baseline."""
    return f"{data.partition(',')[0]}, {'ViT' if backbone.startswith('vit') else 'ResNet'}"


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


def sweep_table(runs: Sequence[Mapping[str, Any]], data: str, floor: float) -> str:
    """Markdown table of the runs on one data set, with what each changes."""
    rows = [
        (
            "| run | changes | servers | bits a share | client compute | baseline | fused | one missing "
            "| linear readouts | 1 server | largest minority | all servers |"
        ),
        "| --- " * 12 + "|",
    ]
    for run in (run for run in runs if run["data"] == data):
        worst = run["worst"]
        leaks = [
            f"{worst[str(size)]['psnr'] - floor:+.2f} dB"
            for size in (1, largest_minority(run["servers"]), run["servers"])
        ]
        rows.append(
            f"| {run['name'].partition('-')[2]} | {_change(run['change'])} | {run['servers']} "
            f"| {run['bits_per_share']:.1f} | 1/{run['baseline_macs'] / run['client_macs']:.1f} "
            f"| {run['baseline']:.2%} | {run['accuracy']:.2%} | {run['one_missing']:.2%} "
            f"| {run['linear_readouts']:.2%} | {' | '.join(leaks)} |"
        )
    commits = sorted({run["made_by"]["commit"][:10] for run in runs if run["data"] == data})
    return "\n".join(rows) + (
        f"\n\nLeakage above the class mean, {floor:.2f} dB. Commits {', '.join(commits)}; frontier.json has the "
        "command, date and versions of each run."
    )


def _change(change: Mapping[str, Any], prefix: str = "") -> str:
    """What a run changes, as `masks.values = 4`; nothing for the reference."""
    return ", ".join(
        _change(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"`{prefix}{key} = {value}`"
        for key, value in change.items()
    )


def seeds_table(
    seeds: Mapping[str, Any],
    accuracy_of_seeds: Mapping[str, Any],
    accuracy: Mapping[str, Any],
    privacy: Mapping[str, Any],
) -> str:
    """Markdown table of trainings from several seeds, with mean and spread; the release is that of seed 0."""
    audit = privacy["releases"]["fashion-resnet20"]
    alike = {
        str(len(one["members"])): one["psnr"] for one in audit["coalitions"] if one["attack"] == "decoder"
    }  # the network of the other seeds' attack, on the coalitions chosen as theirs
    found = {"0, the release": _headlines(accuracy["releases"]["fashion-resnet20"], alike)}
    sources = []
    for run in seeds["runs"]:
        entry, reached = accuracy_of_seeds["releases"][run["name"]], run["worst"].items()
        found[str(run["made_by"]["seed"])] = _headlines(entry, {size: one["psnr"] for size, one in reached})
        sources += [_source(run["made_by"]), _source(entry["made_by"])]
    columns = list(zip(*found.values(), strict=True))
    found["mean"] = tuple(map(statistics.mean, columns))
    found["standard deviation"] = tuple(map(statistics.stdev, columns))
    head = "| seed | fused | one missing (worst) | simple lies | knows everything | linear readouts "
    rows = [f"{head}| 1 of 3 | 2 of 3 | 3 of 3 |", "| --- " * 9 + "|"]
    for name, values in found.items():
        shown = [f"{value:.2%}" for value in values[:5]] + [f"{value:.2f} dB" for value in values[5:]]
        rows.append(f"| {name} | {' | '.join(shown)} |")
    said = "Reconstruction by the residual decoder of effort `standard` alone; the release's by that of its own audit."
    return "\n".join(rows) + f"\n\n{said} {'; '.join(sources)}."


def _headlines(entry: Mapping[str, Any], psnr: Mapping[str, float]) -> tuple[float, ...]:
    """A row of the seeds' table: accuracies, and what a decoder reaches by the number of servers."""
    lies = (_lied_to(entry) or ())[1:]  # of three servers, so one may lie
    told = tuple(psnr[size] for size in ("1", "2", "3"))
    return entry["fused"], entry["missing"]["1"]["worst"], *lies, entry["linear_readouts"], *told


def scaling_figures(folder: Path) -> str:
    """Everything between the marks of docs/SCALING.md: the fitted curves, and the queueing estimate made of them.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    results = read_results(folder / "scaling.json")
    if not results:
        return f"{BEGIN}\n\nNot measured yet: `python bench/scaling.py`.\n\n{END}"
    growth = ["| what grows | measured at | p50 of a call | for each further one | explained |", "| --- " * 5 + "|"]
    for name, points in results["curves"].items():
        line = results["growth"][name]
        sizes = ", ".join(f"{point['size']:,}" for point in points)
        times = ", ".join(f"{point['privdfs']['p50_ms']:.2f}" for point in points)
        growth.append(f"| {name} | {sizes} | {times} ms | {line['slope_ms']:.3g} ms | {line['explained']:.0%} |")
    service, most = results["service"], results["throughput"]
    loads = ["| utilisation | mean wait | 99 % of calls wait at most, of three servers | instances a party |"]
    loads.append("| --- " * 4 + "|")
    for load in LOADS:
        mean, tail, instances = queueing(service["one_ms"], load)
        loads.append(f"| {load:.0%} | {mean:.2f} ms | {tail:.1f} ms | {instances} |")
    per_second = "none measured" if most["per_second"] is None else f"{most['per_second']:.0f}"
    told = (
        f"Most calls a second with p99 within {most['bound_ms']:g} ms, all on one machine: {per_second}. "
        f"One request costs a server {service['one_ms']:.3f} ms; a batch of b {service['base_ms']:.3f} + "
        f"{service['image_ms']:.3g} b ms. The estimate for {DEVICES:,} devices with one image every {EVERY_S} seconds, "
        f"a party having so many instances like the measured one:"
    )
    made_by = results["made_by"]
    cores = made_by["machine"]["cores"]
    source = f"{_source(made_by)}, {cores} cores."
    return "\n\n".join((BEGIN, "\n".join(growth), told, "\n".join(loads), source, END))


def queueing(service_ms: float, load: float) -> tuple[float, float, int]:
    """The estimate of docs/SCALING.md.

    Args:
        service_ms: what one request costs an instance, S.
        load: utilisation, between 0 and 1, r.

    Returns:
        Mean wait of a request in ms, M/D/1; what 99 % of the calls to `SERVERS` such servers wait at most, M/M/1; and
        the instances that a party needs for `DEVICES` devices with one image every `EVERY_S` seconds.
    """
    mean = load * service_ms / (2 * (1 - load))
    tail = service_ms / (1 - load) * max(0.0, math.log(100 * SERVERS * load))
    return mean, tail, math.ceil(DEVICES * service_ms / 1e3 / (EVERY_S * load))


def engines_figures(folder: Path) -> str:
    """Everything between the marks of deploy/README.md: what the branches of every release come to, by precision.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    results = read_results(folder / "engines.json")
    if not results:
        return f"{BEGIN}\n\nNot measured yet: `python bench/engines.py`.\n\n{END}"
    rows = ["| release | precision | engines | seconds to build one | plan | weights | off by at most | same class |"]
    rows.append("| --- " * 8 + "|")
    for name, engines in results["releases"].items():
        branches = [one for one in engines if one["server"] != "baseline"]
        for precision in dict.fromkeys(one["precision"] for one in branches):
            found = [one for one in branches if one["precision"] == precision]
            seconds, plans, weights, off, same = (
                [one[key] for one in found]
                for key in ("seconds", "plan_bytes", "weights_bytes", "difference", "agreement")
            )
            compared = "not computed by ONNX Runtime | " if None in off else f"{max(off):.2g} | {min(same):.0%}"
            rows.append(
                f"| {name} | {precision} | {len(found)} | {min(seconds):.2f} to {max(seconds):.2f} "
                f"| {max(plans) / 1e3:,.0f} kB | {max(weights) / 1e3:,.0f} kB | {compared} |"
            )
    made_by = results["made_by"]
    source = (
        f"{_source(made_by)}: built by TensorRT-RTX without a "
        "GPU, never run; compared with FP32 on the golden examples by ONNX Runtime, relative to the largest logit."
    )
    return "\n\n".join((BEGIN, "\n".join(rows), source, END))


def updated(readme: str, shown: str) -> str:
    """A document with its figures replaced.

    Args:
        readme: whole text.
        shown: as `figures` gives it.

    Returns:
        The new text.
    """
    before, _, rest = readme.partition(BEGIN)
    return before + shown + rest.partition(END)[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done or up to date, 1 not up to date.
    """
    parser = argparse.ArgumentParser(prog="figures", description="Write the documents' figures from the result files.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a document is out of date")
    options = parser.parse_args(arguments)
    stale = 0
    documents = {
        README: figures(RESULTS),
        PRIVACY: privacy_figures(RESULTS),
        SCALING: scaling_figures(RESULTS),
        FRONTIER: frontier_figures(RESULTS),
        DEPLOY: engines_figures(RESULTS),
    }
    for path, shown in documents.items():
        text = path.read_text(encoding="utf-8")
        wanted = updated(text, shown)
        if not options.check:
            path.write_text(wanted, encoding="utf-8")
        elif text != wanted:
            print(f"{path.name} does not show what bench/results says: run python bench/figures.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
