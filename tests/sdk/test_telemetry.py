"""ONNX Runtime reports to nobody: its telemetry is switched off before it is imported."""

import subprocess
import sys
from pathlib import Path

import privdfs


def test_onnxruntime_starts_no_telemetry(tmp_path: Path) -> None:
    """From 1.29 on it would write its session file into the temporary folder as soon as it is imported."""
    path = str(Path(privdfs.__file__).parents[1])
    settings = {"PYTHONPATH": path, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    line = [sys.executable, "-c", "import privdfs, onnxruntime, time; time.sleep(1)"]
    subprocess.run(line, env=settings, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
