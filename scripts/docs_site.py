"""MkDocs calls these while it builds the site: documents keep the links and code blocks that suit a checkout.

Pages come from `docs/` and from a few documents elsewhere in the project. Links between them become links of the site.
A link to any other file of the project becomes plain text, since the site has no copy of it.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: What the site has from outside of `docs/`: its name there, and the file.
ELSEWHERE = {
    "index.md": "README.md",
    "TENSORRT.md": "deploy/README.md",
    "CHECKPOINTS.md": "checkpoints/README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "images/frontier.png": "bench/results/frontier.png",
}
_PAGES = {source: page for page, source in ELSEWHERE.items()}
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_LOADED = re.compile(r"""<(?:script|img|iframe|link\b(?=[^>]*stylesheet))[^>]*?(?:src|href)="((?:https?:)?//[^"]*)\"""")
#: DEPLOY.md says after a block's language who runs it (the tests run it): the site shows that as the block's title.
_FENCE = re.compile(r"^```(\w+) ([\w. -]+)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that lie elsewhere."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs's
    """Fit a document's links and code blocks to the site."""
    source = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def fitted(link: re.Match[str]) -> str:
        path, mark, anchor = link["target"].partition("#")
        if not path or "://" in path:
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        name = _PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if name is None:
            return link["text"] if (ROOT / target).exists() else link[0]
        relative = os.path.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        return f"{link['picture']}[{link['text']}]({relative}{mark}{anchor})"

    return _FENCE.sub(r'```\1 title="\2"', _LINK.sub(fitted, markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - MkDocs's
    """Refuse a page that loads anything from elsewhere: it would break without a network, and tell others who reads."""
    foreign = _LOADED.search(output)
    if foreign:
        message = f"{page.file.src_uri} loads {foreign[1]}: a page of this site loads nothing from elsewhere"
        raise PluginError(message)
    return output
