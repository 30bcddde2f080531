"""How the benchmarks are put together: small modules, no circles, each imported once."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
PACKAGE = BENCH / "privdfs_bench"
COMMANDS = sorted(path.stem for path in BENCH.glob("*.py"))
#: Imports every module and every command, then says which files were loaded under two names.
TWICE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
seen = {}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None) and name != "__main__":
        seen.setdefault(module.__file__, []).append(name)
print(*(names for file, names in seen.items() if file.startswith(BENCH) and len(names) > 1), sep="\\n")
"""


def modules() -> dict[str, Path]:
    """Of the package, by dotted name; what Triton runs on its own is none of them."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(BENCH).with_suffix("").parts
        if "jpeg_engine" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{name}" if f"{node.module}.{name}" in known else str(node.module) for name in names
            ]
        yield from (name for name in names if name in known)


def test_no_file_has_more_than_400_lines() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in BENCH.rglob("*.py")}
    assert len(lines) > 50
    assert {str(path): count for path, count in lines.items() if count > 400} == {}


def test_no_function_has_more_than_60_lines() -> None:
    long = {
        f"{path.name}: {node.name}"
        for path in BENCH.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    }
    assert long == set()


def test_imports_make_no_circle() -> None:
    known = modules()
    arrows = {name: set(imported(path, known)) - {name} for name, path in known.items()}
    assert "privdfs_bench.audit.victim" in arrows["privdfs_bench.audit.views"]
    order = list(TopologicalSorter(arrows).static_order())  # raises CycleError where there is a circle
    assert len(order) == len(known)


def test_each_module_is_imported_once() -> None:
    names = [*modules(), *(f"bench.{name}" for name in COMMANDS)]
    line = [sys.executable, "-W", "error", "-c", f"BENCH = {str(BENCH)!r}\n{TWICE}", *names]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=BENCH.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_commands_are_no_modules_to_import_from() -> None:
    """What a command and another share is in the package: one that imported a neighbour would load it twice."""
    for path in [*BENCH.glob("*.py"), *modules().values()]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert not {name.split(".")[0] for name in names} & {*COMMANDS, "bench"}, path
