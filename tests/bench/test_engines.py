import json
import shutil
from pathlib import Path

import pytest

from bench.engines import main
from privdfs_export.precision import PRECISIONS
from tests.coded_release import build_coded_release


def test_every_branch_is_built_in_every_precision(trained_release: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")
    release, out = tmp_path / "tiny", tmp_path / "engines.json"
    shutil.copytree(trained_release / "client", release / "client")
    shutil.copytree(trained_release / "server-0", release / "server-0")
    assert main([str(release), "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["releases"]["tiny"]
    assert [row["precision"] for row in rows] == list(PRECISIONS)
    assert all(row["seconds"] > 0 and row["plan_bytes"] > row["weights_bytes"] > 0 for row in rows)
    assert [row["agreement"] is None for row in rows] == [precision == "bf16" for precision in PRECISIONS]


def test_every_round_of_a_coded_release_is_built_and_exact(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")
    release, out = build_coded_release(tmp_path / "drawn", "rounds"), tmp_path / "engines.json"
    out.write_text(json.dumps({"made_by": {}, "releases": {"masked": []}, "coded": {"other": []}}))
    assert main([str(release), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    rows = found["coded"]["drawn"]
    assert [(row["round"], row["precision"], row["differing"]) for row in rows] == [(n, "fp32", 0) for n in (1, 2, 3)]
    assert all(row["golden_residues"] > 0 and row["plan_bytes"] > row["weights_bytes"] > 0 for row in rows)
    assert (found["releases"], found["coded"]["other"]) == ({"masked": []}, [])  # what was measured before stays


def test_a_folder_that_is_no_release_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "out.json")]) == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
