import ast
import inspect
import subprocess
import sys
from pathlib import Path

import privdfs
import privdfs.testing

SDK = Path(privdfs.__file__).parent

PUBLIC = {
    "TLS", "AnswerError", "AsyncClient", "Bundle", "BundleError", "BundleFormatError", "BundleIntegrityError",
    "BundleSignatureError", "BundleStore", "BundleStoreError", "BundleVersionError", "CanaryError", "Client",
    "ConfigError", "ContradictingAnswersError", "DeadlineExceededError", "Error", "Health", "ImageError",
    "LeakageError", "NotEnoughAnswersError", "Queries", "QueryBudgetError", "RandomnessError", "Result", "Retries",
    "RoundTimings", "SelfTest", "SelfTestError", "Server", "ServerError",
    "ServerMismatchError", "ServerTimeoutError", "ServerUnavailableError", "Timings", "Token", "UserKey", "__version__",
}  # fmt: skip

ALLOWED = {
    "cryptography",
    "google",  # protobuf
    "grpc",  # optional, for privdfs.testing
    "h2",
    "hpack",  # of h2
    "msgspec",
    "numpy",
    "onnxruntime",
    "opentelemetry",  # optional, and imported by privdfs.otel alone, when it is asked for
    "PIL",
    "privdfs",
    "safetensors",
    "typing_extensions",
}


def test_the_public_names_are_these() -> None:
    assert set(privdfs.__all__) == PUBLIC
    assert len(privdfs.__all__) == len(PUBLIC)
    visible = {
        name for name, value in vars(privdfs).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert visible == PUBLIC - {"__version__"}
    assert set(privdfs.testing.__all__) == {"Answer", "FakeServer", "Fault"}


def test_every_public_name_has_a_docstring() -> None:
    for name in PUBLIC - {"__version__"}:
        value = getattr(privdfs, name)
        assert inspect.getdoc(value), name
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{name}.{attribute}"


def test_the_async_client_has_the_calls_of_the_sync_one() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        names = [name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))]
        return {name: list(inspect.signature(getattr(kind, name)).parameters) for name in names}

    assert surface(privdfs.AsyncClient) == surface(privdfs.Client)
    assert str(inspect.signature(privdfs.AsyncClient)) == str(inspect.signature(privdfs.Client))


def test_importing_is_cheap_and_loads_no_heavy_library() -> None:
    code = (
        "import sys, time; started = time.process_time(); import privdfs; took = time.process_time() - started;"
        "heavy = {'onnxruntime', 'grpc', 'tritonclient', 'google.protobuf', 'torch', 'safetensors', 'cryptography'};"
        "print(took, sorted(heavy & set(sys.modules)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        ).stdout.split(" ", 1)
        for _ in range(3)
    ]
    assert {loaded.strip() for _, loaded in runs} == {"[]"}
    assert min(float(took) for took, _ in runs) < 0.6


def test_only_the_declared_dependencies_are_imported() -> None:
    for path in SDK.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                root = name.split(".")[0]
                assert root in ALLOWED or root in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_grpc_and_onnxruntime_stay_behind_their_modules() -> None:
    for path in SDK.glob("_*.py"):
        text = path.read_text()
        assert "import onnxruntime" not in text or path.name == "_onnx.py"
        assert "import grpc" not in text
        assert "from h2" not in text or path.name == "_grpc.py"
        assert "from google.protobuf" not in text or path.name in {"_messages.py", "_channel.py"}
        assert "import pickle" not in text


def test_the_package_says_that_it_is_typed() -> None:
    assert (SDK / "py.typed").exists()
