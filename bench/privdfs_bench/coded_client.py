"""The real client on any number of servers in this process, some of which are silent or lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from privdfs import Client, Queries, coding
from privdfs._base import Shared
from privdfs._bundle import Bundle
from privdfs._chunk import Chunk
from privdfs._coded import Coded
from privdfs._coded_format import CodedManifest, RoundSpec
from privdfs._core import Call, Settings
from privdfs._errors import ServerUnavailableError
from privdfs._format import SHARE
from privdfs._kinds import Outcome
from privdfs._local import LocalServers, open_branches, open_client
from privdfs._onnx import Graph
from privdfs.coding import Residues
from privdfs_bench.errors import BenchError

TIMEOUT_S = 600.0


class Servers(LocalServers):
    """Servers of one coded release, as many as are wanted, since all run the same networks.

    Args:
        graphs: Of one server, for each round.
        rounds: Of the release.
        servers: N.
        colluding: T.
        silent: Servers that never answer.
        liar: A server that knows everything, and answers such that who decodes with it gets another answer; None: no
            server lies.
    """

    def __init__(
        self,
        graphs: list[Graph],
        rounds: Sequence[RoundSpec],
        servers: int,
        colluding: int,
        *,
        silent: Sequence[int] = (),
        liar: int | None = None,
    ) -> None:
        self._graphs = [graphs] * servers
        self._rounds, self._colluding, self._silent, self._liar = rounds, colluding, frozenset(silent), liar

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:  # noqa: ARG002 - as a transport's
        """Run every branch on its share; let the liar add its lie."""
        answers: dict[int, Residues] = {}
        outcomes = []
        for share in chunk.shares:
            if share.server in self._silent:
                error = ServerUnavailableError("silent, for a measurement", share.server)
                outcomes.append(Outcome(share.server, 0.0, error=error, sends=1))
            else:
                (answers[share.server],) = self._graphs[share.server][share.round].run({SHARE: share.values})
        if self._liar is not None:
            number = chunk.shares[0].round
            answers[self._liar] = _lie(self._rounds[number], answers, self._liar, self._colluding)
        return [*outcomes, *(Outcome(server, 0.0, answer, sends=1) for server, answer in answers.items())]


def _lie(about: RoundSpec, answers: dict[int, Residues], liar: int, colluding: int) -> Residues:
    """The lie of a server that knows everything: with it the first servers decode the results of other outputs.

    Every output takes its neighbour's result, so in the last round every class takes its neighbour's score. Of all
    lies this is one that decoding cannot tell from the truth by its size.
    """
    needed = coding.needed_answers(about.degree, colluding)
    first = sorted(answers)[:needed]
    if liar not in first:
        raise BenchError("the liar is not among the first that are decoded: let server 0 lie")
    places = [server + 1 for server in first]
    heard = np.stack([answers[server] for server in first], axis=1).astype(np.int64)
    lied = np.empty_like(answers[liar])
    for column, prime in enumerate(about.moduli):
        factors = np.array(coding.interpolation(places, prime))
        true = np.tensordot(heard[:, :, column], factors, axes=(1, 0)) % prime
        change = (np.roll(true, 1, axis=-1) - true) * pow(int(factors[first.index(liar)]), -1, prime)
        lied[:, column] = coding.centred(answers[liar][:, column] + change, prime)
    return lied


def local_client(
    release: Path,
    servers: int,
    colluding: int,
    *,
    silent: Sequence[int] = (),
    liar: int | None = None,
    queries: Queries | None = None,
) -> Client:
    """A client of a coded release with servers in this process.

    Args:
        release: Its folder.
        servers: N; the release may have folders for fewer.
        colluding: T.
        silent: As `Servers` takes it.
        liar: As there.
        queries: Of the client.

    Returns:
        The client.

    Raises:
        Error: The release cannot be used, or so many servers cannot serve it.
    """
    bundle = open_client(release)
    manifest = _coded(bundle)
    graphs = open_branches(release, manifest, 0)
    kind = Coded.check(bundle.coded, manifest, servers, colluding)
    transport = Servers(graphs, manifest.rounds, servers, colluding, silent=silent, liar=liar)
    settings = Settings.check(
        bundle, kind, timeout=TIMEOUT_S, min_answers=None, wait="all", retries=None, queries=queries
    )
    client = Client.__new__(Client)
    client._begin(settings, Shared(Client._wrap(transport)), owner=True)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return client


def _coded(bundle: Bundle) -> CodedManifest:
    """Of a coded release."""
    manifest = bundle.manifest
    if not isinstance(manifest, CodedManifest):
        raise BenchError(f"{bundle.release} is not a coded release: pass one")
    return manifest
