import json
import re
from pathlib import Path

import pytest

from privdfs import ConfigError
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import RELEASES, release_name, releases
from privdfs_bench.results import ROOT, merge_release, read_results, to_json, write_results

ABOUT = {"commit": "abc", "date": "2026-01-01"}


def entry(fused: float, commit: str = "abc") -> dict:
    return {"fused": fused, "made_by": ABOUT | {"commit": commit}}


def test_the_first_release_makes_the_file() -> None:
    assert merge_release({}, "a", entry(0.9)) == {"made_by": ABOUT, "releases": {"a": entry(0.9)}}


def test_other_releases_stay_and_the_same_one_is_replaced_whole() -> None:
    before = merge_release(merge_release({}, "b", entry(0.9) | {"fused_torch": 0.91}), "a", entry(0.8))
    after = merge_release(before, "b", entry(0.7, commit="def"))
    assert after["releases"] == {"a": entry(0.8), "b": entry(0.7, commit="def")}
    assert after["made_by"]["commit"] == "def"
    assert list(after["releases"]) == ["a", "b"]
    assert before["releases"]["b"]["fused"] == 0.9


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "accuracy.json"
    assert read_results(path) == {}
    results = merge_release({}, "a", entry(0.9) | {"branches": [0.5, 0.25], "nested": [[1, 2], [3, 4]], "none": []})
    write_results(path, results)
    assert read_results(path) == results
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_lists_of_numbers_take_one_line_and_strings_are_left_alone() -> None:
    results = {"samples": [1.5, -2, 3e-7], "words": ["[\n 1,\n 2\n]"], "mixed": [1, "a"], "open": [0.5, None]}
    text = to_json(results)
    assert '"samples": [1.5, -2, 3e-07]' in text
    assert json.loads(text) == results
    assert text.endswith("}\n")


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    write_results(path, merge_release({}, "a", entry(0.9)))
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, merge_release({}, "a", entry(float("nan"))))
    assert read_results(path)["releases"]["a"]["fused"] == 0.9


@pytest.mark.parametrize("text", ["{", "[]", '{"releases": []}', "\0"])
def test_a_file_that_is_no_result_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(text)
    with pytest.raises(BenchError, match="remove it"):
        read_results(path)


def test_releases_are_named_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert release_name(Path()) == "a"
    assert releases([Path("x/b"), Path()]) == [Path("x/b"), Path()]
    with pytest.raises(ConfigError, match="same folder name"):
        releases([Path("x/b"), Path("y/b")])


def test_without_names_all_releases_of_the_project_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privdfs_bench.releases.RELEASES", tmp_path)
    with pytest.raises(ConfigError, match="no release"):
        releases([])
    for name in ("b", "a", "unfinished"):
        (tmp_path / name / "client").mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / name / "client" / "manifest.json").touch()
    assert releases([]) == [tmp_path / "a", tmp_path / "b"]


def test_nothing_committed_names_a_folder_of_the_machine_that_made_it() -> None:
    files = [*RELEASES.rglob("manifest.json"), *(ROOT / "bench" / "results").rglob("*.json")]
    assert len(files) > 60
    absolute = re.compile(r"(?<![\w.:/])/(?:work|home|root|tmp|mnt|Users)/")
    assert [str(file) for file in files if absolute.search(file.read_text(encoding="utf-8"))] == []
