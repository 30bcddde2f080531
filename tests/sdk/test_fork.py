"""A client in a forked child: refused at once, and one made there works. In a process of its own, which forks."""

import subprocess
import sys
from pathlib import Path

from privdfs.testing import FakeServer

SCRIPT = """
import os, socket, sys, time
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

# A lookup that runs while the process forks does not come along; the child begins its own.
real, parent = socket.getaddrinfo, os.getpid()

def look_up(host, port, *args, **options):
    if host != "slow.example" or options.get("flags"):
        return real(host, port, *args, **options)
    time.sleep(60 if os.getpid() == parent else 0)
    return real("127.0.0.1", port, type=socket.SOCK_STREAM)

socket.getaddrinfo = look_up
servers[2] = privdfs.Server(servers[2].replace("127.0.0.1", "slow.example"), insecure=True)

def make_with_name(**options):
    return privdfs.Client(
        release + "/client", servers, allow_unsigned=True, allow_shared_hosts=True, timeout=20, **options
    )

with make_with_name(min_answers=2) as own:
    own.predict(image, timeout=0.5)

def with_name():
    with make_with_name() as own:
        assert all(own.predict(image).answered)

in_child(with_name)
print("done")
"""


def test_a_forked_child(release: Path, fakes: list[FakeServer]) -> None:
    line = [sys.executable, "-c", SCRIPT, str(release), *(fake.endpoint for fake in fakes)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
