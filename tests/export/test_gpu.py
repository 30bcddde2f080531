"""Plans of real TensorRT on a real GPU: built, compared, verified, served. Never run yet: no GPU was at hand.

Where something is missing the tests are skipped, and say what. To run them: a checkout on a GPU host with the TensorRT
of its tritonserver, and `pytest -m gpu`.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from privdfs import Client
from privdfs_export.errors import TensorRTMissingError
from privdfs_export.gpu import find_gpu
from privdfs_export.plan import EXACT_PRECISIONS, PlanOptions, plan_release
from privdfs_export.precision import PRECISIONS, Precision
from privdfs_export.repository import read_repository
from privdfs_export.serve import serve_release
from privdfs_export.verify import check_repository
from tests.coded_release import build_coded_release
from tests.trained import shifted_images
from tests.training.coded_systems import KINDS


def missing() -> str | None:
    """What this machine lacks; None where it has all."""
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_bindings")):
        return "NO ENGINE WAS RUN: TensorRT is not installed"
    try:
        find_gpu()
    except TensorRTMissingError as error:
        return f"NO ENGINE WAS RUN: {error}"
    return None


LACKS = missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(LACKS is not None, reason=LACKS or "")]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plans_answer_what_their_graphs_answer(trained_release: Path, tmp_path: Path, precision: Precision) -> None:
    checks = plan_release(trained_release, tmp_path / "planned", PlanOptions(precision))
    assert len(checks) == 4  # three servers and the baseline; a plan that is too far off is not written
    for folder in ("server-0", "server-1", "server-2", "baseline"):
        found = [check.found for check in check_repository(read_repository(tmp_path / "planned" / folder))]
        assert any("golden examples on" in text for text in found)


@pytest.mark.parametrize("precision", EXACT_PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_plans_of_coded_rounds_are_exact(tmp_path: Path, kind: str, precision: Precision) -> None:
    release = build_coded_release(tmp_path / "release", kind)
    checks = plan_release(release, tmp_path / "planned", PlanOptions(precision))  # with one other residue: refused
    rounds = len(read_repository(release / "server-0").models)
    assert sum("no residue differs" in check.found for check in checks) == 3 * rounds
    found = [check.found for check in check_repository(read_repository(tmp_path / "planned" / "server-1"))]
    assert sum("golden examples on" in text for text in found) == rounds


@pytest.mark.skipif(shutil.which("tritonserver") is None, reason="no tritonserver on PATH with a TensorRT backend")
@pytest.mark.parametrize("precision", ["fp16", "int8-fp16"])
def test_tritonserver_serves_plans(trained_release: Path, tmp_path: Path, precision: Precision) -> None:
    plan_release(trained_release, tmp_path / "planned", PlanOptions(precision))
    images, _ = shifted_images(10, seed=8)
    with (
        serve_release(tmp_path / "planned", tritonserver="tritonserver") as endpoints,
        Client(trained_release / "client", endpoints, timeout=60, allow_unsigned=True) as served,
        Client.local(trained_release, timeout=60) as local,
    ):
        there, here = (client.predict_batch(images[..., None]) for client in (served, local))
    agreement = np.mean([one.index == other.index for one, other in zip(there, here, strict=True)])
    assert agreement >= 0.99
