"""The marks between which a document shows figures, and where figures come from."""

from collections.abc import Mapping
from typing import Any

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def commands(results: Mapping[str, Any]) -> str:
    """How each release was measured, in the order of the table."""
    made_by = [entry.get("made_by", results["made_by"]) for entry in results["releases"].values()]
    return "; ".join(dict.fromkeys(map(source, made_by))) + "."


def footnotes(results: Mapping[str, Any], prefix: str) -> tuple[dict[str, str], str]:
    """How each release was measured.

    Args:
        results: what a result file holds.
        prefix: of the footnotes' names.

    Returns:
        The mark to put behind each release's name, and the footnotes; releases measured by one command share theirs.
    """
    sources = {name: source(entry.get("made_by", results["made_by"])) for name, entry in results["releases"].items()}
    numbers = {told: number for number, told in enumerate(dict.fromkeys(sources.values()), 1)}
    marks = {name: f"[^{prefix}-{numbers[told]}]" for name, told in sources.items()}
    return marks, "\n".join(f"[^{prefix}-{number}]: {told}." for told, number in numbers.items())


def source(made_by: Mapping[str, Any]) -> str:
    """Command, commit and date of a result; a tree that was not the commit's alone says so."""
    commit, changes = made_by["commit"][:10], " with changes" if made_by["commit"].endswith("+changes") else ""
    return f"`{made_by['command']}`, commit {commit}{changes}, {made_by['date']}"


def updated(text: str, shown: str) -> str:
    """A document with its figures replaced.

    Args:
        text: whole.
        shown: as `figures` gives it.

    Returns:
        The new text.
    """
    before, _, rest = text.partition(BEGIN)
    return before + shown + rest.partition(END)[2]
