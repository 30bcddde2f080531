"""`python bench/figures.py`: write the figures of README.md, docs and deploy/README.md from result files.

    python bench/figures.py           rewrite what stands between the marks, redraw the frontier
    python bench/figures.py --check   exit 1 when a file does not show what the result files say

No figure there is typed by hand. The picture of the frontier is drawn with them.
"""

import argparse
import sys
from collections.abc import Sequence

from privdfs_bench.pages import deploy, frontier, privacy, readme, results, scaling
from privdfs_bench.pages.marks import updated
from privdfs_bench.results import RESULTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done or up to date, 1 not up to date."""
    parser = argparse.ArgumentParser(prog="figures", description="Write the documents' figures from the result files.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a document is out of date")
    options = parser.parse_args(arguments)
    stale = 0
    for page in (readme, results, privacy, scaling, frontier, deploy):
        text = page.DOCUMENT.read_text(encoding="utf-8")
        wanted = updated(text, page.figures(RESULTS))
        if not options.check:
            page.DOCUMENT.write_text(wanted, encoding="utf-8")
        elif text != wanted:
            told = f"{page.DOCUMENT.name} does not show what bench/results says: run python bench/figures.py"
            print(told, file=sys.stderr)
            stale = 1
    if not options.check:
        frontier.draw_picture(RESULTS)
    elif not frontier.picture_is_current(RESULTS):
        print("frontier.png does not show what bench/results says: run python bench/figures.py", file=sys.stderr)
        stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
