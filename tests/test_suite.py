"""How the suite is put together."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


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
