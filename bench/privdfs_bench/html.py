"""What the pages of the benchmarks are made of: one file that needs no other, nothing loaded from anywhere."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}small{color:#777}.missed{color:#b30000}.met{color:#006d2c}
img{max-width:100%}pre{background:#f6f6f6;padding:.8em;overflow:auto}"""


def document(title: str, parts: Iterable[str], made_by: Mapping[str, Any]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        parts: HTML, one below the other.
        made_by: Of the results, shown at the end.

    Returns:
        HTML.
    """
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>',
            f"<h1>{escape(title)}</h1>",
            *parts,
            "<h2>Made by</h2>",
            f"<pre>{escape(json.dumps(made_by, indent=2, ensure_ascii=False))}</pre></html>",
        ]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def picture(path: Path) -> str:
    """A PNG file, embedded.

    Raises:
        OSError: It cannot be read.
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
