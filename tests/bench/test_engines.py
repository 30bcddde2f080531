import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.engines import main
from privdfs._files import read_manifest_bytes
from privdfs._format import BRANCH_FILE
from privdfs._manifest import read_server_manifest
from privdfs_bench.releases import graph_digests, short_digest
from privdfs_export.precision import PRECISIONS
from tests.coded_release import build_coded_release


def test_every_branch_is_built_in_every_precision(trained_release: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")
    release, out = tmp_path / "tiny", tmp_path / "engines.json"
    shutil.copytree(trained_release / "client", release / "client")
    shutil.copytree(trained_release / "server-0", release / "server-0")
    assert main([str(release), "--out", str(out)]) == 0
    entry = json.loads(out.read_text())["releases"]["tiny"]
    assert (entry["made_by"]["seed"], set(entry["made_by"]["config"])) == (0, {"tensorrt_rtx"})
    rows = entry["branches"]
    assert {row["graph"] for row in rows} == {branch_digest(release / "server-0")}
    assert [row["precision"] for row in rows] == list(PRECISIONS)
    assert all(row["seconds"] > 0 and row["plan_bytes"] > row["weights_bytes"] > 0 for row in rows)
    assert [row["agreement"] is None for row in rows] == [precision == "bf16" for precision in PRECISIONS]


def branch_digest(folder: Path) -> str:
    return short_digest(read_server_manifest(read_manifest_bytes(folder)).files[BRANCH_FILE])


def test_every_round_of_a_coded_release_is_built_and_exact(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")
    release, out = build_coded_release(tmp_path / "drawn", "pooled"), tmp_path / "engines.json"
    before = {"made_by": {"command": "an earlier one"}, "branches": [{"server": "server-0"}]}
    stale = {"made_by": {"command": "an earlier one"}, "rounds": []}
    out.write_text(json.dumps({"made_by": {}, "releases": {"masked": before, "drawn": stale}}))
    assert main([str(release), "--out", str(out)]) == 0
    found = json.loads(out.read_text())["releases"]
    assert list(found) == ["drawn", "masked"]
    assert found["masked"] == before  # what was not measured keeps its own source
    assert found["drawn"]["made_by"]["config"] == {"tensorrt_rtx": version("tensorrt-rtx-cu12-bindings")}
    rows = found["drawn"]["rounds"]
    assert [(row["round"], row["precision"], row["differing"]) for row in rows] == [(1, "fp32", 0), (1, "int8", 0)]
    assert {row["graph"] for row in rows} == {graph_digests(release)["branch-1"]}
    assert all(row["golden_residues"] > 0 and row["plan_bytes"] > row["weights_bytes"] > 0 for row in rows)


def test_a_file_of_other_results_is_an_error_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines.json"
    out.write_text("[]")
    assert main([str(tmp_path), "--out", str(out)]) == 2
    assert "does not hold results of this benchmark" in capsys.readouterr().err


def test_a_folder_that_is_no_release_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "out.json")]) == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
