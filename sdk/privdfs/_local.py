"""The branches of a release, run in this process. For development and tests only: nothing is private here."""

import logging
import time
from os import PathLike
from pathlib import Path

import numpy as np

from privdfs._bundle import Bundle
from privdfs._chunk import Chunk
from privdfs._coded_format import CodedManifest, branch_file, round_signature
from privdfs._constants import ONNX_THREADS
from privdfs._core import Call
from privdfs._errors import AnswerError, BundleFormatError, ServerTimeoutError
from privdfs._files import read_verified
from privdfs._format import BRANCH_FILE, CLIENT_FOLDER, SHARE, branch_signature, server_folder
from privdfs._given import check_path
from privdfs._kinds import Outcome
from privdfs._manifest import AnyClientManifest
from privdfs._onnx import Graph, partition_feed
from privdfs._result import Health
from privdfs._verify import check_server, server_folders, server_manifest

_log = logging.getLogger("privdfs")


def open_client(release_dir: str | PathLike[str]) -> Bundle:
    """The bundle of a release folder, signed or not; for development and tests."""
    return Bundle.open(check_path(release_dir, "the release") / CLIENT_FOLDER, allow_unsigned=True)


def open_branches(release_dir: str | PathLike[str], manifest: AnyClientManifest, server: int) -> list[Graph]:
    """The verified models of one server of a release folder: one, or in a coded release one for each round.

    Raises:
        BundleError: the server's folder is missing, changed, of another release, or has no ONNX branch.
    """
    folder = Path(release_dir) / server_folder(server)
    own = server_manifest(folder)
    check_server(manifest, own, server)
    files = read_verified(folder, own.files)
    if isinstance(manifest, CodedManifest):
        rounds = enumerate(manifest.rounds, 1)
        wanted = {branch_file(number): round_signature(about) for number, about in rounds}
    else:
        wanted = {BRANCH_FILE: branch_signature(manifest, server)}
    for name in wanted:
        if name not in files:
            raise BundleFormatError(
                f"{folder} has no {name}: local mode runs the engines 'python' and 'onnxruntime', not {own.engine!r}"
            )
    return [Graph(f"{folder.name}/{name}", files[name], signature, ONNX_THREADS) for name, signature in wanted.items()]


class LocalServers:
    """Takes the place of the servers: the same shares, the same outcomes."""

    def __init__(self, release_dir: str | PathLike[str], manifest: AnyClientManifest) -> None:
        folders = server_folders(Path(release_dir), manifest)
        self._graphs = [open_branches(release_dir, manifest, i) for i in range(len(folders))]
        _log.info("release %s runs in this process: for development and tests only", manifest.release)

    @property
    def count(self) -> int:
        """How many servers there are."""
        return len(self._graphs)

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """Run every branch on its share, one after the other."""
        outcomes: list[Outcome] = []
        for share in chunk.shares:
            started = time.perf_counter()
            (answer,) = self._graphs[share.server][share.round].run(
                {SHARE: share.values, **partition_feed(share.partition, chunk.size)}
            )
            ms = (time.perf_counter() - started) * 1e3
            if call.deadline.remaining == 0:
                error = ServerTimeoutError("the branch was too slow in this process: raise `timeout`", share.server)
                outcomes.append(Outcome(share.server, ms, error=error, sends=1))
            elif not np.isfinite(answer).all():
                error = AnswerError("the branch gives NaN or infinite logits: export the release again", share.server)
                outcomes.append(Outcome(share.server, ms, error=error, sends=1))
            else:
                outcomes.append(Outcome(share.server, ms, answer, sends=1))
        return outcomes

    def health(self, call: Call) -> list[Health]:  # noqa: ARG002 - as a transport's
        """Every branch is here."""
        return [Health(i, "in this process", 0.0) for i in range(len(self._graphs))]

    def close(self) -> None:
        """Forget the graphs."""
        self._graphs.clear()
