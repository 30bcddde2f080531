import ast
import inspect
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import privdfs
import privdfs.testing
from privdfs.testing import FakeServer

SDK = Path(privdfs.__file__).parent

PUBLIC = {
    "TLS", "AnswerError", "AsyncClient", "Bundle", "BundleError", "BundleFormatError", "BundleIntegrityError",
    "BundleSignatureError", "BundleStore", "BundleStoreError", "BundleVersionError", "CanaryError", "Client",
    "ConfigError", "ContradictingAnswersError", "DeadlineExceededError", "Error", "Health", "ImageError",
    "LeakageError", "NotEnoughAnswersError", "Queries", "QueryBudgetError", "RandomnessError", "Result", "Retries",
    "RoundTimings", "SelfTest", "SelfTestError", "Server", "ServerBusyError", "ServerError",
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
        "heavy = {'onnxruntime', 'grpc', 'tritonclient', 'google.protobuf', 'h2', 'torch', 'safetensors', "
        "'cryptography', 'asyncio'};"
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


WITHOUT_GRPC = """
import asyncio, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"grpc", "h2", "hpack", "hyperframe", "tritonclient"} or name == "google.protobuf":
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
import numpy as np
from privdfs import AsyncClient, Bundle, Client, ConfigError
from privdfs.testing import FakeServer

bundle = Bundle.open(sys.argv[1], allow_unsigned=True)
spec = bundle.manifest.image
image = np.zeros((spec.height, spec.width, spec.channels), np.uint8)
options = {"allow_shared_hosts": True, "timeout": 30}

async def predict():
    async with AsyncClient(bundle, sys.argv[2:], **options) as client:
        return await client.predict(image)

with Client(bundle, sys.argv[2:], **options) as client:
    assert all(client.predict(image).answered)
    assert all(health.ok for health in client.health())
assert all(asyncio.run(predict()).answered)
for kind in (Client, AsyncClient):
    try:
        kind(bundle, [f"127.0.0.1:{port}" for port, _ in enumerate(sys.argv[2:], 1)], **options)
    except ConfigError as error:
        print(error)
try:
    FakeServer.for_release(sys.argv[1] + "/..", 0)
except ConfigError as error:
    print(error)
"""


def test_http_works_without_what_grpc_needs_and_grpc_says_what_to_install(release: Path) -> None:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer.for_release(release, i, wire="http")) for i in range(3)]
        line = [sys.executable, "-c", WITHOUT_GRPC, str(release / "client"), *(fake.endpoint for fake in fakes)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    *clients, fake = done.stdout.splitlines()
    assert len(clients) == 2
    assert all("pip install 'privdfs[grpc]'" in said for said in clients)
    assert "pip install 'privdfs[testing]'" in fake
