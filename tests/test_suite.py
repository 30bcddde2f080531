"""How the suite is put together."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
#: Writes down which process ran which module.
NOTE = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(4))
def test(number):
    worker = os.environ["PYTEST_XDIST_WORKER"]
    (pathlib.Path(__file__).parent / f"{pathlib.Path(__file__).stem} in {worker}").touch()
"""


def test_no_test_module_is_imported_by_another() -> None:
    """What several test modules share is in a helper module: fixtures and checks of a test module are its own."""
    found = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            ours = [name for name in names if name.startswith("tests.")]
            found += [f"{path.name}: {name}" for name in ours if any(p.startswith("test_") for p in name.split("."))]
    assert found == []


def test_each_module_runs_in_one_process(tmp_path: Path) -> None:
    """A pytest that xdist did not know yet gave single tests to whichever process was free, and told nobody."""
    (options,) = re.findall(r"/pytest (--numprocesses.*) --cov$", (TESTS.parent / "Makefile").read_text(), re.MULTILINE)
    modules = [tmp_path / f"test_{number}.py" for number in range(5)]
    for module in modules:
        module.write_text(NOTE)
    line = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", *options.split()]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*line, "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120, env=alone,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    noted = [path.name.partition(" in ") for path in tmp_path.glob("* in *")]
    assert sorted(name for name, _, _ in noted) == [module.stem for module in modules]
    assert len({worker for _, _, worker in noted}) > 1
