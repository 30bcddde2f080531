"""`python bench/pages.py`: build the pages of audits and of latency from checked-in results and pictures."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from privdfs_bench.audit.coded_report import write_coded_page
from privdfs_bench.audit.report import write_page as write_audit
from privdfs_bench.results import RESULTS, read_results
from privdfs_bench.script import run, start
from privdfs_bench.speed.page import write_page as write_latency


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="pages", description="Build the pages of audits and of latency.")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="(default: bench/results)")
    options = parser.parse_args(arguments)

    def work() -> int:
        for page in pages(options.results):
            print(page)
        return 0

    return run(parser.prog, work, stopped="pages written before are kept")


def pages(results: Path) -> Iterator[Path]:
    """Write every page for which there are results and pictures; gives their paths."""
    for name, entry in read_results(results / "privacy.json").get("releases", {}).items():
        folder = results / "privacy" / name
        if entry.get("sharing") == "coded":
            yield write_coded_page(folder, name, entry)
        else:
            yield write_audit(folder, name, entry, results / "frontier.json")
    for found in sorted(results.rglob("latency.json")):
        yield write_latency(found.parent, read_results(found))


if __name__ == "__main__":
    start(main)
