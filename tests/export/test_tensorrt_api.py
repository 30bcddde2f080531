"""Every name of TensorRT and torch-tensorrt that the exporter uses, on the real packages of both major versions.

The bindings are NVIDIA's own wheels, imported over stub libraries of ours that make nothing: classes, methods, enums
and argument names are the real ones. `make tensorrt` installs them into .venv-tensorrt.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privdfs_export import engine

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".venv-tensorrt"
SOURCES = [ROOT / "export" / "privdfs_export" / name for name in ("engine.py", "engine_runtime.py")]
VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}
#: Variable in our sources -> class of TensorRT that it holds.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "refusal": "ParserError",
}
#: What a call of ours gives, where we go on with an attribute of it.
RESULTS = {"get_input": "ITensor", "get_timing_cache": "ITimingCache"}

pytestmark = [
    pytest.mark.skipif(not PACKAGES.is_dir(), reason="needs .venv-tensorrt: run `make tensorrt`"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stub libraries"),
]

LOOK = """
import inspect, json, sys
import tensorrt_bindings as trt
def members(value):
    return {name: (getattr(value, name).__doc__ or "") for name in dir(value)}
print(json.dumps({"version": trt.__version__, "module": sorted(dir(trt)),
    "classes": {name: members(value) for name, value in vars(trt).items() if inspect.isclass(value)}}))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Names of one version: of the module, and of each class, with docstrings."""
    major = request.param
    libraries = tmp_path_factory.mktemp(f"stubs{major}")
    source = Path(__file__).parent / "stubs" / "tensorrt.c"
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = libraries / f"lib{name}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{file.name}", "-o", str(file), str(source)], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(PACKAGES / major)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == VERSIONS[major]
    return found


def attributes() -> Iterator[tuple[str, ast.Attribute]]:
    """Every attribute access in our sources, with where it is."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                yield f"{source.name}:{node.lineno}", node


def used() -> tuple[set[tuple[str, ...]], set[tuple[str, str]]]:
    """Paths below `trt`, and pairs of class and attribute."""
    paths: set[tuple[str, ...]] = set()
    members: set[tuple[str, str]] = set()
    for _, node in attributes():
        match node:
            case ast.Attribute(ast.Name("trt"), first):
                paths.add((first,))
            case ast.Attribute(ast.Attribute(ast.Name("trt"), first), second):
                paths.add((first, second))
            case ast.Attribute(ast.Name(variable), name) if variable in CLASSES:
                members.add((CLASSES[variable], name))
            case ast.Attribute(ast.Call(ast.Attribute(_, call)), name) if call in RESULTS:
                members.add((RESULTS[call], name))
    return paths, members


def test_every_name_exists_in_both_versions(api: dict[str, Any]) -> None:
    paths, members = used()
    for path in paths:
        if path[0].startswith("__"):
            continue
        assert path[0] in api["module"], path
        if len(path) == 2 and not path[1].startswith("__"):
            assert path[1] in api["classes"][path[0]], path
    for kind, name in sorted(members):
        assert name in api["classes"][kind], (kind, name)
    # The walk must have seen what it is for.
    assert {("BuilderFlag", "TF32"), ("MemoryPoolType", "WORKSPACE"), ("TensorIOMode", "OUTPUT")} <= paths
    assert {("Builder", "build_serialized_network"), ("IExecutionContext", "execute_async_v3")} <= members
    assert len(members) >= 25


def test_names_in_tables_exist_too(api: dict[str, Any]) -> None:
    assert set(engine._HARDWARE.values()) <= set(api["classes"]["HardwareCompatibilityLevel"])
    assert "STRONGLY_TYPED" in api["classes"]["NetworkDefinitionCreationFlag"]


def test_keyword_arguments_are_called_so_in_both_versions(api: dict[str, Any]) -> None:
    seen = 0
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name(variable), name), _, [_, *_] as keywords) if variable in CLASSES:
                    for keyword in keywords:
                        assert f"{keyword.arg}:" in api["classes"][CLASSES[variable]][name], (name, keyword.arg)
                        seen += 1
    assert seen >= 2  # set_timing_cache, twice


def test_the_stubs_make_nothing(api: dict[str, Any]) -> None:
    """What only TensorRT 10 has is not named, and what the walk relies on differs between the versions."""
    old = api["version"].startswith("10.")
    assert ("FP16" in api["classes"]["BuilderFlag"]) == old
    assert ("EXPLICIT_BATCH" in api["classes"]["NetworkDefinitionCreationFlag"]) == old


# -------------------------------------------------------------------------------------------------- torch-tensorrt


def function(module: Path, name: str) -> ast.FunctionDef:
    tree = ast.parse(module.read_text())
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_torch_tensorrt_has_what_we_call() -> None:
    package = PACKAGES / "torch" / "torch_tensorrt"
    ours = ast.parse((ROOT / "export" / "privdfs_export" / "torch_engine.py").read_text())
    calls = {
        ast.unparse(node.func): node
        for node in ast.walk(ours)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch_tensorrt.")
    }
    convert = "convert_exported_program_to_serialized_trt_engine"
    assert set(calls) == {"torch_tensorrt.Input", f"torch_tensorrt.dynamo.{convert}"}
    assert convert in (package / "dynamo" / "__init__.py").read_text()
    signature = function(package / "dynamo" / "_compiler.py", convert).args
    known = {argument.arg for argument in (*signature.args, *signature.kwonlyargs)}
    given = {keyword.arg for keyword in calls[f"torch_tensorrt.dynamo.{convert}"].keywords} - {None}
    assert given <= known
    assert {"workspace_size", "optimization_level"} <= known  # passed by name, in a dictionary
    documented = (package / "_Input.py").read_text()
    for keyword in calls["torch_tensorrt.Input"].keywords:
        assert f'"{keyword.arg}" in kwargs' in documented or f'kwargs.get("{keyword.arg}")' in documented
    for key in ("min_shape", "opt_shape", "max_shape"):
        assert f'"{key}"' in documented
