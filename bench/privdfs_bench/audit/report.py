"""The page of bench/privacy.py: what was found of one release, how to read it, and pictures of what came out.

Images of a data set that may not be passed on are never drawn into it, unless it is written where nothing is shared.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privdfs._format import largest_coalition
from privdfs_bench.audit.effort import SHOWN
from privdfs_bench.audit.pictures import (
    Strip,
    draw_collusion,
    draw_queries,
    draw_reconstructions,
    query_rows,
    worst_rows,
)
from privdfs_bench.audit.run import Done
from privdfs_bench.audit.victim import Victim
from privdfs_bench.html import document, picture, table
from privdfs_bench.results import read_results
from privdfs_export.release import MAY_BE_PASSED_ON

PAGE_NAME = "report.html"
COLLUSION, QUERIES, IMAGES = "collusion.png", "queries.png", "reconstructions.png"
_HOW_TO_READ = """<ul>
<li>A figure means something only beside its floor. The <b>class mean</b> is what one reconstructs who is told the
class, which every server learns anyway; the <b>mean image</b> is what one reconstructs who knows nothing. Zero in the
curves is the class mean; what stands above it was learned from the shares.</li>
<li>A <b>minority</b> of the servers, at most floor((N-1)/2), is what the release is meant to withstand. What more
servers reconstruct is shown so that nobody takes it for protected.</li>
<li>Every attacker knows the masks, the head and all branches, sees the very bytes that travel, and has its own images
of the same distribution. One that does not know the masks proves nothing.</li>
<li>The same attacks must break the <b>undefended split</b>. If they do not, they are too weak, and a flag says
so.</li>
<li>Everything here is a <b>lower bound</b>: a better attack finds at least as much. A high PSNR is a leak for
certain, a low one is the failure of these attacks alone. "Best twentieth" is what the most exposed images give
away.</li>
<li><b>MS-SSIM</b> needs images of 176 pixels a side, <b>LPIPS</b> (0 where equal) a file of weights: --lpips.</li>
<li><b>Feature similarity</b> compares what an unprotected model sees in reconstruction and original; <b>same
label</b> is how often it names the right class, which the class mean alone can reach: it is no sign of a
likeness.</li>
</ul>"""
_ABOUT_IMAGES = (
    "<p>The first test images, not chosen. Of every attack and size of a coalition the worst coalition; PSNR as above, "
    "over all images of the attack.</p>"
)
NO_IMAGES = (
    "<p>Not shown: images of this data set may not be passed on. --show-images writes a page with them into the folder "
    "of --runs.</p>"
)


def write_report(folder: Path, name: str, entry: Mapping[str, Any], strips: Sequence[Strip], frontier: Path) -> Path:
    """Write the page of a release, and its pictures beside it.

    Args:
        folder: Of the page; made if it does not exist.
        name: Of the release.
        entry: Of the release in the result file.
        strips: What came out of the attacks; none draws no images.
        frontier: Results of bench/frontier.py, with their picture beside; the file need not exist.

    Returns:
        The page's path.

    Raises:
        BenchError: The frontier's results are damaged.
        OSError: A file cannot be written.
    """
    draw(folder, entry, strips)
    return write_page(folder, name, entry, frontier)


def draw(folder: Path, entry: Mapping[str, Any], strips: Sequence[Strip]) -> None:
    """Draw the pictures of a release's page.

    Args:
        folder: Where; made if it does not exist.
        entry: Of the release in the result file.
        strips: What came out of the attacks; without any, no picture of images is left there.

    Raises:
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_collusion(folder / COLLUSION, entry)
    if query_rows(entry):
        draw_queries(folder / QUERIES, entry)
    if strips:
        draw_reconstructions(folder / IMAGES, strips)
    else:
        (folder / IMAGES).unlink(missing_ok=True)


def write_page(folder: Path, name: str, entry: Mapping[str, Any], frontier: Path) -> Path:
    """Write the page of a release from its results and the pictures beside it; its arguments are those above.

    Raises:
        BenchError: The frontier's results are damaged.
        OSError: A picture is missing, or the page cannot be written.
    """
    parts = [
        listed_flags(entry["flags"]),
        "<h2>What a coalition reconstructs</h2>",
        _attacks(entry),
        "<h2>How to read it</h2>",
        _HOW_TO_READ,
        "<h2>More servers</h2>",
        picture(folder / COLLUSION),
    ]
    if query_rows(entry):
        parts += ["<h2>More pairs to learn from</h2>", picture(folder / QUERIES)]
    shown = folder / IMAGES
    parts += ["<h2>Reconstructions</h2>", *([_ABOUT_IMAGES, picture(shown)] if shown.exists() else [NO_IMAGES])]
    parts += _frontier(frontier, entry)
    page = folder / PAGE_NAME
    page.write_text(document(f"Leakage of {name}", parts, entry["made_by"]), encoding="utf-8")
    return page


def write_for(
    victim: Victim, name: str, entry: dict[str, Any], done: dict[str, list[Done]], out: Path, private: Path | None
) -> Path:
    """Write the page of a release beside the results, and where images are wanted that may not be passed on, another.

    Args:
        victim: The release.
        name: Of the release.
        entry: Of the release in the result file.
        done: What the attacks found.
        out: The result file.
        private: Folder, shared with nobody, for images that may not be passed on; None draws none of those.

    Returns:
        The page, of two the one with images.
    """
    frontier = out.with_name("frontier.json")
    shared = victim.data.name in MAY_BE_PASSED_ON
    page = write_report(out.with_suffix("") / name, name, entry, strips(victim, done) if shared else [], frontier)
    if shared or private is None:
        return page
    return write_report(private / victim.bundle.release, name, entry, strips(victim, done), frontier)


def strips(victim: Victim, done: Mapping[str, Sequence[Done]]) -> list[Strip]:
    """Originals, floors, and what came out of the worst coalition of each size by every attack.

    Args:
        victim: The release.
        done: What the attacks found, by the groups of `jobs`.

    Returns:
        Rows of the picture.
    """
    rows = [("original", victim.data.test_images[:SHOWN])]
    for floor, images in victim.floor_images.items():
        mean = float(victim.floor_psnr[floor].mean())
        rows.append((f"{floor.replace('_', ' ')}, {mean:.1f} dB", as_bytes(images[:SHOWN])))
    shown = {(one.job.attack, one.job.members): one for one in done["coalitions"]}
    for row in worst_rows({"coalitions": [one.row for one in done["coalitions"]]}):
        one = shown[row["attack"], tuple(row["members"])]
        rows.append((f"{_who(row)}: {row['attack']}, {row['psnr']:.1f} dB", one.shown))
    rows += [(f"undefended split: {one.job.attack}, {one.row['psnr']:.1f} dB", one.shown) for one in done["undefended"]]
    return [Strip(label, images[:SHOWN].numpy()) for label, images in rows]


def as_bytes(images: Tensor) -> Tensor:
    """Images in 0..1, cut and rounded to uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _who(row: Mapping[str, Any]) -> str:
    members = ", ".join(map(str, row["members"]))
    return f"server {members}" if len(row["members"]) == 1 else f"servers {members}"


def listed_flags(flags: Sequence[Mapping[str, str]]) -> str:
    """What speaks against the figures, before they are shown."""
    if not flags:
        return "<p>No self-check of the evaluation was raised. That does not prove that its attacks are strong.</p>"
    listed = "".join(f"<li><b>{escape(flag['check'])}</b>: {escape(flag['message'])}</li>" for flag in flags)
    return (
        '<div class="missed"><p>Self-checks raised by this evaluation, reasons to look twice at what they name:</p>'
        f"<ul>{listed}</ul></div>"
    )


def _or_not(value: float | None) -> str:
    """A score that not every image size, or every run, has."""
    return "n/a" if value is None else f"{value:.3f}"


def _attacks(entry: Mapping[str, Any]) -> str:
    rows = [("no share", floor.replace("_", " "), f"{psnr:.2f}", *[""] * 8) for floor, psnr in entry["floor"].items()]
    # Releases that are not keyed, and audits from before keys were attacked, have no such rows.
    together = sorted(entry["coalitions"], key=lambda one: (one["size"], one["psnr"] - one["floor"]))
    rows += [
        (
            _who(one),
            escape(one["attack"]),
            f"{one['psnr']:.2f}<br><small>{one['interval'][0]:.2f}..{one['interval'][1]:.2f}</small>",
            f"{one['psnr'] - one['floor']:+.2f}",
            f"{one['psnr_worst']:.2f}",
            f"{one['ssim']:.3f}",
            _or_not(one["ms_ssim"]),
            _or_not(one["lpips"]),
            f"{one['feature_similarity']:.2f}",
            f"{one['label_accuracy']:.0%}",
            f"{one['images']:,}",
        )
        for one in [*together, *entry.get("keys", [])]
    ]
    rows += [
        (
            f"{_who(one)}, knowing other classes only",
            escape(one["attack"]),
            f"{one['psnr']:.2f}",
            *[""] * 7,
            f"{one['images']:,}",
        )
        for one in entry["shifted"]
    ]
    rows += [("undefended split", escape(name), f"{psnr:.2f}", *[""] * 8) for name, psnr in entry["undefended"].items()]
    head = (
        "attacker", "attack", "PSNR, dB", "above class mean", "best twentieth, dB", "SSIM", "MS-SSIM", "LPIPS",
        "feature similarity", "same label", "images",
    )  # fmt: skip
    return (
        f"<p>{escape(entry['release'])}; effort {escape(entry['effort'])}; {escape(entry['data'])}.</p>"
        + table(head, rows)
        + sources(entry)
    )


def sources(entry: Mapping[str, Any]) -> str:
    """Where the attacks come from, folded away."""
    listed = "".join(f"<li>{escape(name)}: {escape(source)}</li>" for name, source in entry["sources"].items())
    return f"<details><summary>Where the attacks come from</summary><ul>{listed}</ul></details>"


def _frontier(path: Path, entry: Mapping[str, Any]) -> list[str]:
    """Accuracy against leakage of other systems on the same data set, if any were measured."""
    frontier, data = read_results(path), entry["data"].partition(",")[0]
    runs = [run for run in frontier.get("runs", []) if run["data"] == data]
    if not runs:
        return []
    floor = frontier["floors"][data]["class_mean"]
    rows = []
    for run in runs:
        minority = run["worst"][str(largest_coalition(run["servers"]))]
        rows.append(
            (
                escape(run["name"]),
                str(run["servers"]),
                f"{run['bits_per_share']:.1f}",
                f"{run['baseline']:.2%}",
                f"{run['accuracy']:.2%}",
                f"{minority['psnr'] - floor:+.2f}",
            )
        )
    head = ("system", "servers", "bits a share", "baseline", "fused", "worst minority, dB above class mean")
    return [
        "<h2>Accuracy and leakage</h2>",
        f"<p>Other systems on {escape(data)}, attacked by one decoder alone (bench/frontier.py).</p>",
        table(head, rows),
        *(picture(drawn) for drawn in [path.with_suffix(".png")] if drawn.exists()),
    ]
