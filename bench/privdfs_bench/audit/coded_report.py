"""The page of an audit of a coded release: what is proven, what was seen of it, and the cliff, with pictures."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from privdfs_bench.audit.coded import CodedVictim
from privdfs_bench.audit.effort import SHOWN
from privdfs_bench.audit.pictures import Strip, draw_reconstructions
from privdfs_bench.audit.report import IMAGES, NO_IMAGES, PAGE_NAME, as_bytes, listed_flags, sources
from privdfs_bench.audit.run import Done
from privdfs_bench.html import document, picture, table
from privdfs_export.release import MAY_BE_PASSED_ON

_HOW_TO_READ = """<ul>
<li><b>Proven</b>: as many servers as may collude see uniform numbers, whatever the image is. The proof needs no figure;
the figures look for faults of the code that shares.</li>
<li>Every attacker knows all networks and how sharing works, and learns from a fresh sharing of its images at every
step. It sees shares and answers of all rounds. The <b>mean image</b> is what one reconstructs who knows nothing: an
attacker falls back on it where its guesses are worse on images kept aside.</li>
<li><b>One server more</b> decodes the feature exactly, now or from shares that were stored. What it shows of the image
was <b>measured</b>, and is a lower bound.</li>
<li>The same attacks must break the <b>undefended split</b>, or they are too weak to say anything.</li>
</ul>"""


def write_coded_report(folder: Path, name: str, entry: Mapping[str, Any], strips: Sequence[Strip]) -> Path:
    """Write the page of a coded release, and its picture beside it.

    Args:
        folder: Of the page.
        name: Of the release.
        entry: Of the release in the result file.
        strips: What came out of the attacks; none draws no images.

    Returns:
        The page's path.

    Raises:
        OSError: A file cannot be written.
    """
    if strips:
        folder.mkdir(parents=True, exist_ok=True)
        draw_reconstructions(folder / IMAGES, strips)
    else:
        (folder / IMAGES).unlink(missing_ok=True)
    return write_coded_page(folder, name, entry)


def write_coded_page(folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Write the page from results and the picture beside it; its arguments are those above.

    Raises:
        OSError: The page cannot be written.
    """
    shown = folder / IMAGES
    parts = [
        listed_flags(entry["flags"]),
        f"<p>{escape(entry['release'])}; effort {escape(entry['effort'])}; {escape(entry['data'])}.</p>",
        "<h2>As many servers as may collude: proven to learn nothing</h2>",
        _proven(entry),
        "<h2>What travels</h2>",
        _wire(entry),
        "<h2>Every attack</h2>",
        _attacks(entry),
        sources(entry),
        "<h2>How to read it</h2>",
        _HOW_TO_READ,
        "<h2>Reconstructions</h2>",
        picture(shown) if shown.exists() else NO_IMAGES,
    ]
    folder.mkdir(parents=True, exist_ok=True)  # where images may not be shown nothing is checked in
    page = folder / PAGE_NAME
    page.write_text(document(f"Leakage of {name}", parts, entry["made_by"]), encoding="utf-8")
    return page


def write_coded_for(
    victim: CodedVictim, name: str, entry: dict[str, Any], done: dict[str, list[Done]], out: Path, private: Path | None
) -> Path:
    """Write the page beside the results; as `report.write_for`, whose arguments these are."""
    shared = victim.data.name in MAY_BE_PASSED_ON
    page = write_coded_report(out.with_suffix("") / name, name, entry, coded_strips(victim, done) if shared else [])
    if shared or private is None:
        return page
    return write_coded_report(private / victim.name, name, entry, coded_strips(victim, done))


def coded_strips(victim: CodedVictim, done: Mapping[str, Sequence[Done]]) -> list[Strip]:
    """Originals, floors, what the strongest attack of each coalition made, and what was made of the decoded feature.

    Args:
        victim: The release.
        done: What the attacks found.

    Returns:
        Rows of the picture.
    """
    rows = [("original", victim.data.test_images[:SHOWN])]
    for floor, images in victim.floor_images.items():
        mean = float(victim.floor_psnr[floor].mean())
        rows.append((f"{floor.replace('_', ' ')}, {mean:.1f} dB", as_bytes(images[:SHOWN])))
    for size in sorted({len(one.job.members) for one in done["coalitions"]}):
        best = max((one for one in done["coalitions"] if len(one.job.members) == size), key=lambda one: one.margin)
        rows.append((f"{size} of those who may collude: {best.job.attack}, {best.row['psnr']:.1f} dB", best.shown))
    rows += [(f"one server more: {one.job.attack}, {one.row['psnr']:.1f} dB", one.shown) for one in done["cliff"]]
    rows += [(f"undefended split: {one.job.attack}, {one.row['psnr']:.1f} dB", one.shown) for one in done["undefended"]]
    return [Strip(label, images[:SHOWN].numpy()) for label, images in rows]


def _proven(entry: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{one['colluding']} of {one['servers']}",
            escape(one["strongest"]["attack"]),
            f"{one['strongest']['psnr']:.2f}",
            f"{one['above_mean_image']:+.3f}",
            f"{one['class']['accuracy']:.2%}",
            f"{one['class']['chance']:.2%}",
            f"{one['class']['images']:,}",
        )
        for one in entry["proven"]
    ]
    more = entry["cliff_class"]
    worst = entry["worst"][min(entry["worst"], key=int)]
    above = worst["psnr"] - entry["floor"]["mean_image"]
    rows.append(
        (
            "one more: measured",
            escape(worst["attack"]),
            f"{worst['psnr']:.2f}",
            f"{above:+.3f}",
            f"{more['accuracy']:.2%}",
            f"{more['chance']:.2%}",
            f"{more['images']:,}",
        )
    )
    head = (
        "servers", "strongest attack", "PSNR, dB", "above mean image", "class guessed", "chance", "images of the guess"
    )  # fmt: skip
    return table(head, rows)


def _wire(entry: Mapping[str, Any]) -> str:
    rows = [
        (
            f"T = {one['colluding']} of {one['servers']}: {escape(each['check'])}",
            f"{each['p']:.3g}",
            f"{each['compared']:,}",
            "" if each["largest"] is None else f"{each['largest']:.4f}",
        )
        for one in entry["proven"]
        for each in one["wire"]
    ]
    head = ("check", "chance does as badly", "numbers or pairs compared", "largest correlation")
    return table(head, rows)


def _attacks(entry: Mapping[str, Any]) -> str:
    rows = [("no share", floor.replace("_", " "), f"{psnr:.2f}", *[""] * 5) for floor, psnr in entry["floor"].items()]
    for group, who in (("coalitions", "may collude"), ("cliff", "decode")):
        rows += [
            (
                f"servers {', '.join(map(str, one['members']))} of {one['servers']}, T = {one['colluding']}: {who}",
                escape(one["attack"]),
                f"{one['psnr']:.2f}<br><small>{one['interval'][0]:.2f}..{one['interval'][1]:.2f}</small>",
                f"{one['psnr'] - one['blind_floor']:+.2f}",
                f"{one['psnr'] - one['floor']:+.2f}",
                f"{one['psnr_worst']:.2f}",
                f"{one['ssim']:.3f}",
                f"{one['images']:,}",
            )
            for one in entry[group]
        ]
    rows += [("undefended split", escape(name), f"{psnr:.2f}", *[""] * 5) for name, psnr in entry["undefended"].items()]
    head = (
        "attacker", "attack", "PSNR, dB", "above mean image", "above class mean", "best twentieth, dB", "SSIM", "images"
    )  # fmt: skip
    return table(head, rows)
