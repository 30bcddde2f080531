"""A client whose servers all speak HTTP loads nothing that only gRPC needs."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from privdfs.testing import FakeServer

PROGRAM = """
import sys
import numpy as np
from privdfs import Client

with Client(sys.argv[1], sys.argv[2:], allow_unsigned=True, timeout=20) as client:
    print(client.predict(np.zeros((12, 10, 3), np.uint8)).answered)
print(sorted({"h2", "hpack", "google.protobuf", "grpc", "http.client", "urllib.request"} & set(sys.modules)))
"""


def test_gRPCs_libraries_are_not_loaded(release: Path) -> None:  # noqa: N802 - its name
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer.for_release(release, i, wire="http")) for i in range(3)]
        line = [sys.executable, "-c", PROGRAM, str(release / "client"), *(fake.endpoint for fake in fakes)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "(True, True, True)\n[]\n", done.stderr
