"""The figures of docs/PRIVACY.md for coded releases: what was seen of what is proven, and what was measured of more."""

from collections.abc import Mapping, Sequence
from typing import Any

from privdfs_bench.pages.marks import named, source

CODED_ROWS = "Rows of coded shares come from the audit above: one server of three, which is proven to learn nothing."
NOTHING_YET = "No coded release has been audited yet: `python bench/privacy.py RELEASE`."


def is_coded(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a result file is of a coded release; those of masked ones say nothing."""
    return entry.get("sharing") == "coded"


def masked_alone(results: Mapping[str, Any]) -> dict[str, Any]:
    """A result file without its coded releases."""
    return {**results, "releases": {name: one for name, one in results["releases"].items() if not is_coded(one)}}


def coded_tables(releases: Mapping[str, Any]) -> str:
    """Markdown of all coded releases in privacy.json: a table for the proof, one for the cliff, and where from."""
    found = {name: entry for name, entry in releases.items() if is_coded(entry)}
    if not found:
        return NOTHING_YET
    seen = [
        (
            "| release, proven | servers that may collude | strongest attack | above mean image | class guessed "
            "(chance) | wire: uniform | two sharings of one image | any two values | any two calls |"
        ),
        "| --- " * 9 + "|",
    ]
    cliff = [
        (
            "| release, measured | servers together | strongest attack | PSNR | above class mean | above mean image "
            "| SSIM | class guessed | undefended split |"
        ),
        "| --- " * 9 + "|",
    ]
    about = []
    for name, entry in found.items():
        shown = named(name, entry.get("graphs"))
        seen += [_proven(shown, one) for one in entry["proven"]]
        worst = entry["worst"][min(entry["worst"], key=int)]
        above = (worst["psnr"] - floor for floor in (worst["floor"], entry["floor"]["mean_image"]))
        cliff.append(
            f"| {shown} | T + 1 | {worst['attack']} | {worst['psnr']:.2f} dB "
            f"| {' | '.join(f'{db:+.2f} dB' for db in above)} | {worst['ssim']:.3f} "
            f"| {entry['cliff_class']['accuracy']:.1%} | {max(entry['undefended'].values()):.2f} dB |"
        )
        flags = ", ".join(dict.fromkeys(map(_flag, entry["flags"]))) or "none"
        about.append(f"- {entry['release']}: {source(entry['made_by'])}; effort {entry['effort']}; flags: {flags}.")
    told = (
        "The last four columns say how often chance alone looks at least so bad: at most 0.001 would be a fault. What "
        "more than T servers decode is the same for every N and T."
    )
    return "\n\n".join(("\n".join(seen), "\n".join(cliff), told, "\n".join(about)))


def coded_beside_rivals(accuracy: Mapping[str, Any], privacy: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What coded releases have for the table of other defences: the same attacks by one server of three.

    Args:
        accuracy: Releases of accuracy.json.
        privacy: Releases of privacy.json.

    Returns:
        Name -> an entry like those of rivals.json.
    """
    found = {}
    for name, entry in accuracy.items():
        if not is_coded(entry) or name not in privacy:
            continue
        strongest = privacy[name]["proven"][0]["strongest"]
        found[name] = {
            "data": entry["data"].partition(",")[0],
            "graphs": entry["graphs"],
            "defence": "coded shares",
            "bits": 8 * entry["bytes_up"],
            "client_macs": entry["client_macs"],
            "baseline_macs": entry["baseline_macs"],
            "accuracy": entry["fused"],
            "lost_points": 100 * (entry["baseline"] - entry["fused"]),
            "worst": {**strongest, "above": strongest["psnr"] - strongest["floor"]},
        }
    return found


def _flag(flag: Mapping[str, Any]) -> str:
    """The check, and the attack that it speaks against: most often not the one of the row."""
    attack = flag.get("attack")
    return flag["check"] if attack is None else f"{flag['check']} ({attack})"


def _proven(name: str, one: Mapping[str, Any]) -> str:
    guess = one["class"]
    chances = " | ".join(f"p = {check['p']:.2g}" for check in _in_order(one["wire"]))
    return (
        f"| {name} | {one['colluding']} of {one['servers']} | {one['strongest']['attack']} "
        f"| {one['above_mean_image']:+.3f} dB | {guess['accuracy']:.1%} ({guess['chance']:.1%}) | {chances} |"
    )


def _in_order(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As the table has them."""
    order = ("uniform", "two sharings of one image", "two values", "two calls")
    named = {check["check"]: check for check in checks}
    return [named[name] for name in order]
