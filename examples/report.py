"""The demo's report, as a page and as a picture: each image beside what every server received of it.

Of masked shares that is all: a few integers. Coded shares are drawn modulo the first prime of the first round, twice,
since the same image is shared anew in every call.
"""

import base64
import html
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray
from PIL import Image

from privdfs import Bundle, Result
from privdfs._coded_format import CodedManifest, round_bytes

#: Colours of the lowest value, of zero, and of the highest.
LOW, ZERO, HIGH = (33, 102, 172), (236, 236, 236), (217, 95, 14)
#: A share is drawn as rows of at least so many cells; longer shares get longer rows, not only more of them.
MIN_COLUMNS = 16
CELL_PIXELS, GAP_PIXELS = 13, 1
#: From so many values on, cells are small and touch.
FINE_VALUES, FINE_PIXELS = 150, 3
PNG_COLUMNS, CAPTION_CHARACTERS = 4, 225
RIGHT, WRONG, FAINT = "#1a7f37", "#c62828", "#555555"


@dataclass(frozen=True)
class Classified:
    """One image, its true label, the answer, and shares of it by server.

    `sharings` are one of masked shares, int8 [K_i] each; of coded ones, int8 [primes, values], two, as two calls make
    them.
    """

    path: Path
    label: str
    result: Result
    sharings: tuple[tuple[NDArray[np.int8], ...], ...] = field(repr=False)

    @property
    def is_right(self) -> bool:
        """Whether the answer is the true label."""
        return self.result.label == self.label

    @property
    def image_bytes(self) -> int:
        """What the pixels would take if they were sent as they are."""
        with Image.open(self.path) as image:
            return image.width * image.height * len(image.getbands())


@dataclass(frozen=True)
class Shown:
    """A release, and what came of the images with it."""

    bundle: Bundle
    rows: Sequence[Classified]

    @property
    def is_coded(self) -> bool:
        """Whether its shares are coded."""
        return isinstance(self.bundle.manifest, CodedManifest)

    @property
    def servers(self) -> int:
        """How many took part."""
        return len(self.rows[0].result.answered)

    def strips(self, row: Classified, server: int) -> list[tuple[NDArray[np.int8], int]]:
        """What is drawn of a server's shares: int8 values, and how many levels each can have."""
        manifest = self.bundle.manifest
        if isinstance(manifest, CodedManifest):
            return [(sharing[server][0], manifest.rounds[0].moduli[0]) for sharing in row.sharings]
        return [(row.sharings[0][server], manifest.servers[server].levels)]


def share_cells(share: NDArray[np.int8], levels: int) -> NDArray[np.uint8]:
    """A share as a little heat map, in the order in which its values travel.

    Args:
        share: int8 [K].
        levels: that a value can take, odd; they are symmetric around zero.

    Returns:
        uint8 RGBA [rows, columns, 4], a cell per value; what is left of the last row is transparent.
    """
    columns = min(len(share), max(MIN_COLUMNS, math.ceil(math.sqrt(2 * len(share)))))
    rows = math.ceil(len(share) / columns)
    strength = np.clip(share / (levels // 2), -1, 1)[:, None]
    ends = np.where(strength < 0, np.array(LOW), np.array(HIGH))
    colours = np.array(ZERO) * (1 - np.abs(strength)) + ends * np.abs(strength)
    cells = np.zeros((rows * columns, 4), np.uint8)
    cells[: len(share), :3] = colours.round()
    cells[: len(share), 3] = 255
    return cells.reshape(rows, columns, 4)


def share_bits(length: int, levels: int) -> float:
    """The most information that a share can carry, in bits."""
    return length * math.log2(levels)


def explanation(shown: Shown) -> tuple[str, str]:
    """What the pictures of shares show, and what they do not."""
    manifest, image_bytes = shown.bundle.manifest, shown.rows[0].image_bytes
    colours = "Cells are values, in the order in which they travel: blue is negative, grey zero, orange positive."
    if isinstance(manifest, CodedManifest):
        first, rounds = manifest.rounds[0], len(manifest.rounds)
        shows = (
            "Coded shares: two pictures of what one server received for the image beside them, in two calls. Each has "
            f"{first.values} residues modulo {first.moduli[0]}, the first of {len(first.moduli)} primes; a server gets "
            f"{round_bytes(first)[0]:,} bytes in the first of {rounds} round{'s' * (rounds > 1)}. {colours}"
        )
        proves = (
            "Every residue is equally likely, whatever the image is: one server alone learns nothing, not even the "
            "class. That is proven; this picture is not the proof. Two servers together have the whole feature."
        )
        return shows, proves
    specs = {(server.share_length, server.levels) for server in manifest.servers}
    sizes = " or ".join(
        f"{length} int8 values of {levels} levels ({length} bytes on the wire, at most "
        f"{share_bits(length, levels):.1f} bits of information)"
        for length, levels in sorted(specs)
    )
    shows = (
        f"Masked shares: a strip is all that one server received for the image beside it: {sizes}; the image has "
        f"{image_bytes} bytes. {colours}"
    )
    proves = (
        "This picture proves nothing about privacy. That a strip means nothing to the eye does not say what can be "
        "reconstructed from it: that is measured elsewhere, by attackers who know the encoder and train on shares."
    )
    return shows, proves


def write_png(path: Path, shown: Sequence[Shown]) -> None:
    """Draw the report as one picture: a block for each release.

    Raises:
        OSError: the file cannot be written.
    """
    blocks = [math.ceil(len(each.rows) / PNG_COLUMNS) for each in shown]
    height = sum(1.5 + 1.65 * lines for lines in blocks)
    figure = Figure(figsize=(15, height), dpi=110, facecolor="white")
    top = height
    for each, lines in zip(shown, blocks, strict=True):
        _draw_block(figure, each, lines, top / height, height)
        top -= 1.5 + 1.65 * lines
    figure.savefig(path)


def _draw_block(figure: Figure, shown: Shown, lines: int, top: float, height: float) -> None:
    """The images of one release, below a heading, above a caption; `top` is a fraction of the figure's height."""
    bottom = top - (1.5 + 1.65 * lines) / height
    grid = figure.add_gridspec(
        lines,
        PNG_COLUMNS,
        left=0.015,
        right=0.985,
        top=top - 0.5 / height - 0.04 * (top - bottom),
        bottom=bottom + 0.95 / height,
        hspace=0.2,
    )
    for position, row in enumerate(shown.rows):
        _draw_card(figure, grid[divmod(position, PNG_COLUMNS)], shown, row)
    figure.text(
        0.5,
        top - 0.3 / height,
        f"What each of the {shown.servers} servers receives of an image  ·  release {shown.bundle.release}",
        ha="center",
        va="center",
        fontsize=13,
        fontweight="bold",
    )
    lines_of_text = [line for part in explanation(shown) for line in textwrap.wrap(part, CAPTION_CHARACTERS)]
    figure.text(0.015, bottom + 0.75 / height, "\n".join(lines_of_text), va="top", fontsize=8.5, linespacing=1.5)


def _draw_card(figure: Figure, place: SubplotSpec, shown: Shown, row: Classified) -> None:
    """One image, the answer above it, and its shares to the right, one server below the other."""
    card = place.subgridspec(2, 2, width_ratios=(1, 2), height_ratios=(1, 5), wspace=0.5, hspace=0.06)
    title, picture = figure.add_subplot(card[0, :]), figure.add_subplot(card[1, 0])
    title.text(0, 0.2, _verdict(row), transform=title.transAxes, fontsize=9, color=RIGHT if row.is_right else WRONG)
    with Image.open(row.path) as image:
        picture.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
    picture.set_anchor("W")
    _bare(title)
    _bare(picture)
    strips = [shown.strips(row, server) for server in range(shown.servers)]
    lines = card[1, 1].subgridspec(len(strips), len(strips[0]), hspace=0.1, wspace=0.08)
    for server, own in enumerate(strips):
        for column, (share, levels) in enumerate(own):
            strip, cells = figure.add_subplot(lines[server, column]), share_cells(share, levels)
            strip.imshow(cells, interpolation="nearest", aspect="equal")
            strip.set_anchor("W")
            if len(share) < FINE_VALUES:
                strip.set_xticks(np.arange(cells.shape[1] + 1) - 0.5, minor=True)
                strip.set_yticks(np.arange(cells.shape[0] + 1) - 0.5, minor=True)
                strip.grid(which="minor", color="white", linewidth=0.8)
            if column == 0:
                name = f"server {server}"
                strip.set_ylabel(name, fontsize=7, rotation="horizontal", ha="right", va="center", color=FAINT)
            _bare(strip)


def _bare(axes: Axes) -> None:
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _verdict(row: Classified) -> str:
    answer = f"{row.result.label} {row.result.probability:.0%}"
    return answer if row.is_right else f"{answer} (true: {row.label})"


def write_html(path: Path, shown: Sequence[Shown]) -> None:
    """Write the report as one page that needs no other file.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(_PAGE.replace("{sections}", "\n".join(map(_section, shown))), encoding="utf-8")


def _section(shown: Shown) -> str:
    shows, proves = explanation(shown)
    accuracy, result = shown.bundle.manifest.accuracy, shown.rows[0].result
    return _SECTION.format(
        servers=shown.servers,
        release=html.escape(shown.bundle.release),
        right=sum(row.is_right for row in shown.rows),
        images=len(shown.rows),
        bytes_up=sum(result.bytes_up),
        image_bytes=shown.rows[0].image_bytes,
        fused=f"{accuracy.fused:.2%}",
        baseline=f"{accuracy.baseline:.2%}",
        measured=html.escape(f"{accuracy.images:,} images of {accuracy.data}"),
        shows=html.escape(shows),
        proves=html.escape(proves),
        cards="\n".join(_card(shown, row) for row in shown.rows),
        server_heads="".join(f"<th>server {server}" for server in range(shown.servers)),
        times="\n".join(_times(row) for row in shown.rows),
    )


def _card(shown: Shown, row: Classified) -> str:
    with Image.open(row.path) as image:
        picture = _data_uri(image)
    strips = "\n".join(
        f"<dt>server {server}<dd>{''.join(_strip(share, levels) for share, levels in shown.strips(row, server))}"
        for server in range(shown.servers)
    )
    return (
        f'<figure><img class="image" src="{picture}" alt="{html.escape(row.label)}">'
        f'<div><figcaption class="{"right" if row.is_right else "wrong"}">{html.escape(_verdict(row))}</figcaption>'
        f"<dl>{strips}</dl></div></figure>"
    )


def _strip(share: NDArray[np.int8], levels: int) -> str:
    cells = share_cells(share, levels)
    if len(share) >= FINE_VALUES:  # the numbers would be longer than the picture
        large = np.kron(cells, np.ones((FINE_PIXELS, FINE_PIXELS, 1), np.uint8))
        return f'<img src="{_data_uri(Image.fromarray(large))}" alt="{len(share)} residues modulo {levels}">'
    large = np.kron(cells, np.ones((CELL_PIXELS, CELL_PIXELS, 1), np.uint8))
    for offset in range(GAP_PIXELS):
        large[offset::CELL_PIXELS] = 0
        large[:, offset::CELL_PIXELS] = 0
    values = " ".join(map(str, share.tolist()))
    return f'<img src="{_data_uri(Image.fromarray(large))}" alt="{values}" title="{values}">'


def _times(row: Classified) -> str:
    took = row.result.timings
    parts = (took.decode_ms, took.encode_ms, *took.servers_ms, took.fusion_ms, took.total_ms)
    cells = "".join("<td>no answer" if ms is None else f"<td>{ms:.2f}" for ms in parts)
    return f"<tr><th>{html.escape(row.path.name)}{cells}"


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PrivDFS demo: what each server receives</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #8881; --faint: #777; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0; }
  h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
  h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
  .facts { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; list-style: none; }
  .facts li { background: var(--soft); border-radius: 8px; padding: .6rem 1rem; }
  .facts b { display: block; font-size: 1.25rem; }
  .proves { border-left: 4px solid #d95f0e; padding: .3rem 1rem; background: var(--soft); }
  .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: .75rem; }
  figure { display: flex; gap: .9rem; margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: 8px; }
  figcaption { font-weight: 600; }
  .right { color: light-dark(#1a7f37, #4ac26b); } .wrong { color: light-dark(#c62828, #ff6b62); }
  .image { width: 96px; height: 96px; image-rendering: pixelated; border-radius: 4px; }
  dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .5rem; margin: .25rem 0 0; align-items: center; }
  dt { font-size: .75rem; color: var(--faint); white-space: nowrap; }
  dd { margin: 0; min-width: 0; }
  dd img { display: inline-block; max-width: 100%; margin-right: 4px; vertical-align: top; }
  .times { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
  th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
  th:first-child { text-align: left; font-weight: normal; }
</style>
<h1>PrivDFS demo: what each server receives of an image</h1>
{sections}
</html>
"""

_SECTION = """<section>
<h2>{release}: {servers} servers</h2>
<ul class="facts">
  <li><b>{right} of {images}</b>of these images right
  <li><b>{fused}</b>on {measured} (unprotected baseline: {baseline})
  <li><b>{bytes_up} bytes</b>up for each image, to all servers; its pixels: {image_bytes}
</ul>
<p>{shows}</p>
<p class="proves">{proves}</p>
<div class="cards">
{cards}
</div>
<h3>Time of each call, in milliseconds</h3>
<p>The servers work in parallel. The first call also loads the image decoder, connects to the servers and checks what
they serve.</p>
<div class="times"><table>
<thead><tr><th>image<th>decode<th>encode{server_heads}<th>fusion<th>total</thead>
<tbody>
{times}
</tbody>
</table></div>
</section>"""
