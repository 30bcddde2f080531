"""How commands end, and pages that are built from results and pictures."""

import json
import shutil
from pathlib import Path

import pytest

from bench import pages
from privdfs_bench.errors import BenchError
from privdfs_bench.results import RESULTS
from privdfs_bench.script import run


def test_a_command_ends_with_the_code_of_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("name", lambda: 1, stopped="kept") == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "name: stopped; all is kept\n"),
        (BenchError("try again"), 2, "name: try again\n"),
        (OSError("disk full"), 2, "name: disk full\n"),
    ],
)
def test_an_error_or_ctrl_c_ends_a_command_in_one_line(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert run("name", work, stopped="all is kept") == code
    assert capsys.readouterr().err == told


def test_what_is_no_error_of_ours_is_not_hidden() -> None:
    def work() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("name", work, stopped="")


def test_every_page_is_built_from_what_is_checked_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    shutil.copytree(RESULTS, results, ignore=shutil.ignore_patterns("*.html"))
    assert pages.main(["--results", str(results)]) == 0
    built = {path.relative_to(results) for path in results.rglob("*.html")}
    releases = json.loads((results / "privacy.json").read_text())["releases"]
    audits = {Path("privacy") / name / "report.html" for name in releases}
    latencies = {path.relative_to(results).with_suffix(".html") for path in results.rglob("latency.json")}
    assert built == audits | latencies
    assert sorted(capsys.readouterr().out.split()) == sorted(str(results / path) for path in built)
    page = (results / "privacy" / "fashion-resnet20" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4  # the frontier's is one of them
    assert "may not be passed on" not in page
    hidden = (results / "privacy" / "cifar10-resnet20" / "report.html").read_text()
    assert "may not be passed on" in hidden


def test_a_missing_picture_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(RESULTS / "privacy.json", tmp_path / "privacy.json")
    assert pages.main(["--results", str(tmp_path)]) == 2
    assert "collusion.png" in capsys.readouterr().err
