"""A client in a forked child: refused at once, and one made there works. In a process of its own, which forks."""

import subprocess
import sys
from pathlib import Path

from privdfs.testing import FakeServer

SCRIPT = """
import os, sys
import numpy as np
import privdfs

release, servers = sys.argv[1], sys.argv[2:]
image = np.zeros((12, 10, 3), np.uint8)

def make(bundle=None):
    return privdfs.Client(bundle or release + "/client", servers, allow_unsigned=bundle is None, timeout=20)

def refused(call):
    try:
        call()
    except privdfs.ConfigError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("used in a child")

def in_child(run):
    child = os.fork()
    if not child:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0

unused = make()

def before():
    refused(lambda: unused.predict(image))
    refused(unused.health)
    refused(unused.warmup)
    refused(lambda: unused.with_options(timeout=1).predict(image))
    unused.close()
    with make() as own:
        assert all(own.predict(image).answered)

in_child(before)
assert all(unused.predict(image).answered)

def after():
    refused(lambda: unused.predict(image))
    refused(unused.health)

in_child(after)
assert all(unused.predict(image).answered)
unused.close()
print("done")
"""


def test_a_forked_child(release: Path, fakes: list[FakeServer]) -> None:
    line = [sys.executable, "-c", SCRIPT, str(release), *(fake.endpoint for fake in fakes)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
