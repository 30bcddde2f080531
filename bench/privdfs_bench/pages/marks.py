"""The marks between which a document shows figures, and where figures come from."""

from collections.abc import Mapping
from typing import Any

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def commands(results: Mapping[str, Any]) -> str:
    """How each release was measured, in the order of the table."""
    made_by = [entry.get("made_by", results["made_by"]) for entry in results["releases"].values()]
    return "; ".join(dict.fromkeys(map(source, made_by))) + "."


def source(made_by: Mapping[str, Any]) -> str:
    """Command, commit and date of a result; a tree that was not the commit's alone says so."""
    commit, changes = made_by["commit"][:10], " with changes" if made_by["commit"].endswith("+changes") else ""
    return f"`{made_by['command']}`, commit {commit}{changes}, {made_by['date']}"


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
