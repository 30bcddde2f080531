"""Fixtures of the whole suite: a tiny data set in the true format, and releases really trained on it."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.trained import train_and_export, write_data

# From the first test on: sums depend on the number of threads, and runs are compared bit for bit.
torch.set_num_threads(1)

#: Of these, lines of the SDK are not counted: that would slow down what computes, and the SDK has tests of its own.
UNCOUNTED = tuple(Path(__file__).parent / folder for folder in ("bench", "export", "training"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the suite, they begin with the modules that take longest: none is left for the end.

    A process takes a whole module (`--dist loadfile`), so that its fixtures are made once. Coverage skips `UNCOUNTED`.
    """
    for item in items:
        if any(map(item.path.is_relative_to, UNCOUNTED)):
            item.add_marker("no_cover")
    if not hasattr(config, "workerinput"):
        return
    long = {item.path for item in items if item.get_closest_marker("e2e") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    """A command that a test runs in this process may set the number of threads; the next test starts with one."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def _hangup_counts() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it, also where the suite runs under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST's four files, made of shifted copies of the 20 shipped images."""
    return write_data(tmp_path_factory.mktemp("data") / "fashion")


@pytest.fixture(scope="session")
def trained_release(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A release of three servers; its run lies in the folder beside it."""
    return _made_once(tmp_path_factory, "three", lambda folder: train_and_export(folder, data_folder, 3))


@pytest.fixture(scope="session")
def trained_release_of_five(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A release of five servers."""
    return _made_once(tmp_path_factory, "five", lambda folder: train_and_export(folder, data_folder, 5))


@pytest.fixture(scope="session")
def keyed_trained_release(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A release of three servers with 64 partitions; its run lies in the folder beside it."""
    return _made_once(tmp_path_factory, "keyed", lambda folder: train_and_export(folder, data_folder, 3, partitions=64))


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """What `make` puts into a folder; of the processes that share the suite one makes it, and each has a copy."""
    folder = factory.mktemp(name, numbered=False)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make(folder)
    kept = factory.getbasetemp().parent / name  # in the folder that the processes have in common
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            whole = factory.mktemp(f"{name}-made")
            make(whole)
            whole.rename(kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return folder / "release"
