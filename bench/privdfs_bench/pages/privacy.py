"""The figures of docs/PRIVACY.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privdfs._format import largest_coalition
from privdfs_bench.pages.coded_privacy import CODED_ROWS, coded_beside_rivals, coded_tables, is_coded
from privdfs_bench.pages.marks import between, commands, named, source
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "docs" / "PRIVACY.md"


def figures(folder: Path) -> str:
    """Everything between the marks of docs/PRIVACY.md: the strongest attack of every size of a coalition.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    entries = read_results(folder / "privacy.json").get("releases", {})
    if not entries:
        return between("Not measured yet: `python bench/privacy.py`.")
    rows = ["| release | servers together | strongest attack | PSNR | above class mean | SSIM | undefended split |"]
    rows.append("| --- " * 7 + "|")
    about = []
    for name, entry in entries.items():
        if is_coded(entry):
            continue
        shown = named(name, entry.get("graphs"))
        servers, broken = len(entry["worst"]), max(entry["undefended"].values())
        for size, one in entry["worst"].items():
            who = f"{size} of {servers}" + ("" if int(size) <= largest_coalition(servers) else ", not a minority")
            above = one["psnr"] - one.get("floor", entry["floor"]["class_mean"])
            rows.append(
                f"| {shown} | {who} | {one['attack']} | {one['psnr']:.2f} dB | {above:+.2f} dB | {one['ssim']:.3f} "
                f"| {broken:.2f} dB |"
            )
        flags = ", ".join(flagged(entry)) or "none" if "flags" in entry else "not checked"
        about.append(f"- {entry['release']}: {source(entry['made_by'])}; flags of these rows: {flags}.")
    return between(
        "### Masked shares: measured",
        "\n".join(rows),
        "\n".join(about),
        *keys_tables(entries),
        "### Coded shares: proven up to T servers, measured beyond",
        coded_tables(entries),
        "### Other defences, and people",
        rivals_table(
            read_results(folder / "rivals.json"),
            coded_beside_rivals(read_results(folder / "accuracy.json").get("releases", {}), entries),
        ),
        people_table(read_results(folder / "reidentify.json")),
    )


def flagged(entry: Mapping[str, Any]) -> list[str]:
    """Checks that speak against a row of the first table; those of other figures, as of few pairs, are left out."""
    rows = [
        (row["attack"], row["members"], row["pairs"], row["relation"])
        for one in entry["worst"].values()
        for row in entry["coalitions"]
        if (row["attack"], row["members"]) == (one["attack"], one["members"])
    ]
    told = [
        flag["check"]
        for flag in entry["flags"]
        if flag.get("attack") is None or (flag["attack"], flag["members"], flag["pairs"], flag["relation"]) in rows
    ]
    return list(dict.fromkeys(told))


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
        shown = named(name, entry.get("graphs"))
        rows = [f"| {shown}: the attacker knows | the same image came under | PSNR | above class mean | SSIM |"]
        rows.append("| --- " * 5 + "|")
        for one in entry["keys"]:
            count = f"{one['requests']} key{'s' * (one['requests'] > 1)}"
            above = one["psnr"] - one["floor"]
            rows.append(
                f"| {knowledge[one['knows']]} | {count} | {one['psnr']:.2f} dB | {above:+.2f} dB | {one['ssim']:.3f} |"
            )
        tables.append("\n".join(rows))
    return tables


def rivals_table(results: Mapping[str, Any], coded: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table of rivals.json and coded releases, the least leaking first, and who wins at matched accuracy."""
    if not results:
        return "Other defences are not measured yet: `python bench/rivals.py`."
    rows = ["| system | defence | a coalition receives | client / baseline MACs | accuracy | points lost "]
    rows[0] += "| strongest attack | PSNR | above class mean |"
    rows.append("| --- " * 9 + "|")
    systems = {**results["systems"], **coded}
    for name, entry in sorted(systems.items(), key=lambda one: (one[1]["data"], one[1]["worst"]["above"])):
        worst, accuracy = (
            entry["worst"],
            f"{entry['accuracy']:.2%}{'' if entry.get('matched', True) else ', not matched'}",
        )
        cost = entry["baseline_macs"] / entry["client_macs"]
        rows.append(
            f"| {named(name, entry.get('graphs'))} | {entry['defence']} | {entry['bits']:,} bits | 1/{cost:.1f} "
            f"| {accuracy} | {entry['lost_points']:.2f} | {worst['attack']} "
            f"| {worst['psnr']:.2f} dB | {worst['above']:+.2f} dB |"
        )
    made_by = results["made_by"]
    said = ". ".join(results["verdicts"])
    audited = f" {CODED_ROWS}" if coded else ""
    return "\n".join(rows) + f"\n\n{said}. {source(made_by)}.{audited}"


def people_table(results: Mapping[str, Any]) -> str:
    """Markdown table of reidentify.json: how often the worst coalition of each size names the right person first."""
    if not results:
        return "Whether shares tell people apart is not measured yet: `python bench/reidentify.py`."
    attacks = list(next(iter(next(iter(results["releases"].values()))["coalitions"].values())))
    rows = ["| release | servers together | guessing | " + " | ".join(attacks) + " | the photographs themselves |"]
    rows.append("| --- " * (4 + len(attacks)) + "|")
    for name, entry in results["releases"].items():
        shown = named(name, entry.get("graphs"))
        servers, whole = len(entry["bits"]), entry["photographs"]["rank 1"]["rate"]
        for size, found in entry["coalitions"].items():
            rates = " | ".join(f"{found[attack]['rank 1']['rate']:.1%}" for attack in attacks)
            rows.append(f"| {shown} | {size} of {servers} | {1 / entry['people']:.1%} | {rates} | {whole:.1%} |")
    return "\n".join(rows) + f"\n\n{commands(results)}"
