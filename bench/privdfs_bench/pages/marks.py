"""The marks between which a document shows figures, and where figures come from."""

from collections.abc import Mapping
from typing import Any

from privdfs._format import CLIENT_FOLDER
from privdfs_bench.releases import RELEASES, graph_digests

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


def named(name: str, graphs: Mapping[str, str] | None) -> str:
    """A release's name in a table, which says so where other graphs were measured than the release has today.

    Args:
        name: of the release, and of its folder in model_repository.
        graphs: digests of what was measured, as `graph_digests` names them; None where the result has none.

    Returns:
        The name alone where there is no such release: then it is that of something else, such as a rival.
    """
    release = RELEASES / name
    if not (release / CLIENT_FOLDER).is_dir():
        return name
    return name if graphs and graphs.items() <= graph_digests(release).items() else f"{name} (earlier release)"


#: What `named` means by an earlier release; below a table of which a row says so.
EARLIER = (
    "*Earlier release*: measured on a release of this name that has since been replaced; `privdfs describe` has the "
    "current figures."
)


def between(*parts: str) -> str:
    """Figures between their marks, and what is meant by an earlier release where one is named."""
    shown = "\n\n".join(parts)
    return "\n\n".join((BEGIN, shown, *([EARLIER] if "(earlier release)" in shown else []), END))


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
