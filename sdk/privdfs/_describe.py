"""A page of plain text on a release, of either kind."""

import re
import textwrap
from collections.abc import Iterable, Sequence

import msgspec

from privdfs._coded_format import CodedManifest, largest_degree, round_bytes
from privdfs._errors import ConfigError
from privdfs._format import (
    CalibrationError,
    ClientManifest,
    ImageSpec,
    Leakage,
    Macs,
    MadeBy,
    bytes_up,
    key_spec,
    largest_coalition,
)
from privdfs._given import shown
from privdfs._manifest import AnyClientManifest
from privdfs.coding import MAX_SERVERS, correctable, needed_answers

#: What a reader who has not chosen yet is shown.
_USUAL_NUMBERS = (3, 4, 5, 7)
#: The first ten digits of a commit are enough to find it.
_COMMIT_REST = re.compile(r"(?<=\b[0-9a-f]{10})[0-9a-f]{30}\b")
_COLUMNS, _INDENT = 110, " " * 13


def describe(manifest: AnyClientManifest, *, servers: int | None = None, colluding: int | None = None) -> str:
    """What a release classifies, its accuracy, its cost, and what servers can learn and break.

    Args:
        manifest: of the client.
        servers: N, for a coded release; None shows the usual numbers.
        colluding: T, how many servers together must learn nothing, for a coded release; None shows every minority.

    Raises:
        ConfigError: a number out of range, or one for a masked release, which has fixed ones.
    """
    if isinstance(manifest, CodedManifest):
        return _page(_coded(manifest, _choices(servers, colluding)))
    if servers is not None or colluding is not None:
        raise ConfigError(
            f"{manifest.release} has masked shares, for {len(manifest.servers)} servers: `servers` and `colluding` are "
            "chosen for coded releases alone"
        )
    return _page(_masked(manifest))


def _page(lines: Iterable[str]) -> str:
    """Long lines go on under their own beginning; tables, which begin with spaces, stay as they are."""
    wrap = textwrap.TextWrapper(_COLUMNS, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line if line.startswith(" ") else wrap.fill(line) for line in lines)


def _choices(servers: int | None, colluding: int | None) -> list[tuple[int, int]]:
    """The N and T that are to be shown."""
    if servers is not None and (type(servers) is not int or not 2 <= servers <= MAX_SERVERS):
        raise ConfigError(f"servers={shown(servers)} is not a whole number from 2 to {MAX_SERVERS}")
    most = (servers or MAX_SERVERS) - 1
    if colluding is not None and (type(colluding) is not int or not 1 <= colluding <= most):
        raise ConfigError(
            f"colluding={shown(colluding)} is not a whole number from 1 to {most}, one less than the servers"
        )
    return [
        (number, together)
        for number in (_USUAL_NUMBERS if servers is None else (servers,))
        for together in (range(1, largest_coalition(number) + 1) if colluding is None else (colluding,))
        if together < number
    ]


def _calibration(error: CalibrationError | msgspec.UnsetType) -> list[str]:
    """How much the probabilities are off, where that was measured."""
    if error is msgspec.UNSET:
        return []
    told = f"probabilities are off by {error.after:.2%}, before calibration {error.before:.2%}"
    return [f"calibration  {told} (expected calibration error; fitted on {error.fitted_on})"]


def _masked(manifest: ClientManifest) -> list[str]:
    accuracy, lengths = manifest.accuracy, bytes_up(manifest)
    branches = ", ".join(f"{value:.2%}" for value in accuracy.branches)
    measured_on = f"{accuracy.data}, {accuracy.images} images"
    lines = [
        *_opening(manifest),
        f"servers      {len(lengths)}, bytes up per image: {' + '.join(map(str, lengths))} = {sum(lengths)}",
        f"accuracy     fused {accuracy.fused:.2%}, baseline {accuracy.baseline:.2%} ({measured_on})",
        f"branches     {branches}",
        _device(manifest.macs),
    ]
    lines += _calibration(accuracy.calibration)
    keys = key_spec(manifest)
    if keys is not None:
        lines.append(f"keys         {keys.partitions} partitions, a user's key picks one (family {keys.family})")
    for row in accuracy.malicious:
        cheap = min(row.random, row.constant, row.flipped, row.runner_up)
        lines.append(
            f"liars        {row.liars} of {len(lengths)}: {cheap:.2%} under simple lies, {row.adversarial:.2%} under "
            "liars who know everything"
        )
    return [*lines, *(_leakage(manifest.leakage) or ["leakage      not measured"])]


def _coded(manifest: CodedManifest, choices: Sequence[tuple[int, int]]) -> list[str]:
    accuracy, macs = manifest.accuracy, manifest.macs
    traffic = [round_bytes(each) for each in manifest.rounds]
    up, down = (sum(column) for column in zip(*traffic, strict=True))
    count = "1 round" if len(traffic) == 1 else f"{len(traffic)} rounds"
    measured_on = f"{accuracy.data}, {accuracy.images} images"
    lines = [
        *_opening(manifest),
        f"shares       coded, {count}; to and from each server, per image: {up:,} bytes up, {down:,} down",
        *_table(
            ("round", "degree", "values", "results", "primes", "bytes up", "bytes down"),
            (
                (number, each.degree, each.values, each.outputs, len(each.moduli), *of_round)
                for number, (each, of_round) in enumerate(zip(manifest.rounds, traffic, strict=True), 1)
            ),
        ),
        f"accuracy     fused {accuracy.fused:.2%}, baseline {accuracy.baseline:.2%} ({measured_on})",
        f"readout      {accuracy.readout:.2%}: linear, of the same values, which the device could compute alone",
    ]
    return [
        *lines,
        *_calibration(accuracy.calibration),
        _device(macs),
        f"on a server  {macs.branch:,} multiply-accumulates per image, over all primes and rounds",
        "servers      you choose: N servers, of which T together (`colluding`) must learn nothing",
        *_table(
            ("N", "T", "answers needed", "may be silent", "lies corrected", "lies noticed"),
            (_tolerance(manifest, *choice) for choice in choices),
        ),
        "             Lies are counted where all N answer. Each silent server takes one from those noticed, every two",
        "             one from those corrected.",
        "leakage      proven: nothing, up to T servers together",
        *(_leakage(manifest.leakage, by_server=False) or ["leakage      more than T together: not measured"]),
    ]


def _tolerance(manifest: CodedManifest, servers: int, colluding: int) -> tuple[object, ...]:
    """A row of the table of N and T."""
    needed = needed_answers(largest_degree(manifest), colluding)
    if needed > servers:
        return servers, colluding, needed, f"too few servers: {needed} or more, or a smaller T"
    return servers, colluding, needed, servers - needed, correctable(servers, needed), servers - needed


def _opening(manifest: AnyClientManifest) -> list[str]:
    image: ImageSpec = manifest.image
    made_by: MadeBy = manifest.made_by
    names = ", ".join(manifest.classes[:10]) + (", …" if len(manifest.classes) > 10 else "")
    return [
        f"release      {manifest.release} (format {manifest.format_version})",
        f"made by      {made_by.command} at {_COMMIT_REST.sub('', made_by.commit)}, {made_by.date}",
        f"image        {image.height} x {image.width} x {image.channels}, up to {manifest.max_batch} at a time",
        f"classes      {len(manifest.classes)}: {names}",
    ]


def _device(macs: Macs) -> str:
    ratio = (macs.head + macs.fusion) / macs.baseline if macs.baseline else float("nan")
    return f"on device    {macs.head + macs.fusion:,} multiply-accumulates per image, {ratio:.1%} of the baseline's"


def _leakage(rows: Iterable[Leakage], *, by_server: bool = True) -> list[str]:
    """A line for each attack; more than T servers of a coded release have the same feature, whoever they are."""
    lines = (
        f"leakage      {'servers ' + ', '.join(map(str, row.coalition)) if by_server else 'more than T together'} by "
        f"{row.attack}: PSNR {row.psnr:.1f} dB (floor {row.floor:.1f} dB), SSIM {row.ssim:.2f}, {row.images} images"
        + (f", effort {row.effort.replace(', changed', ', with other settings')}" if row.effort else "")
        for row in rows
    )
    return list(dict.fromkeys(lines))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Columns as wide as their headers, numbers to the right."""
    lines = [header, *([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows)]
    return [
        _INDENT + "  ".join(cell.rjust(len(name)) for cell, name in zip(line, header, strict=False)) for line in lines
    ]
