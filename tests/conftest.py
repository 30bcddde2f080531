"""Fixtures of the whole suite: a tiny data set in the true format, and releases really trained on it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trained import train_and_export, write_data

# From the first test on: sums depend on the number of threads, and runs are compared bit for bit.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run the suite, one of them takes a whole module, so that its fixtures are made once.

    All that starts tritonservers goes to one process: two that ask the system for free ports could get the same ones.
    """
    for item in items:
        group = "servers" if item.get_closest_marker("e2e") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


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
    return train_and_export(tmp_path_factory.mktemp("three"), data_folder, 3)


@pytest.fixture(scope="session")
def trained_release_of_five(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A release of five servers."""
    return train_and_export(tmp_path_factory.mktemp("five"), data_folder, 5)


@pytest.fixture(scope="session")
def keyed_trained_release(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A release of three servers with 64 partitions; its run lies in the folder beside it."""
    return train_and_export(tmp_path_factory.mktemp("keyed"), data_folder, 3, partitions=64)
