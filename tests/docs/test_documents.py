"""The documents as a checkout shows them; `make docs` checks the site that is built of them."""

import re
from pathlib import Path

import pytest

import privdfs

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    return CODE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """What a link into a document can name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path, text: str) -> list[str]:
    """Links of a text, as it would stand in the document, that lead nowhere."""
    missing = []
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = document if not path else document.parent / path
        if "://" in link or (target.exists() and (not anchor or anchor in anchors(target))):
            continue
        missing.append(link)
    return missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document, prose(document)) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/SDK.md#calls) [b](docs/NONE.md) [c](docs/SDK.md#nowhere) [d](https://example.org) [e](#privacy)"
    assert broken(ROOT / "README.md", text) == ["docs/NONE.md", "docs/SDK.md#nowhere"]


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert text.index("## Use the SDK") < len(text) / 2
    assert len(re.findall(r"^\| ---.*\n\| ", text, re.MULTILINE)) == 2  # releases, and where to read on
    assert all(command in text for command in ("make demo", "make test", "Client.local("))


def test_the_api_page_has_every_public_name() -> None:
    shown = re.findall(r"^::: privdfs\.(\w+)$", (ROOT / "docs" / "API.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted({*privdfs.__all__, "testing", "otel"} - {"__version__"})
