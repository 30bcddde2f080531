"""The systems of bench/latency.py that speak TLS, and the servers that they speak it with.

Over HTTP, the project's gateway (nginx) stands before the very tritonservers that are called without TLS too. A
tritonserver's gRPC speaks either plaintext or TLS, so for that there is a second set of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from privdfs import TLS, Bundle, Client, Server, UserKey
from privdfs_bench.speed.endpoints import Endpoints, Secured
from privdfs_bench.speed.http_systems import RawServer
from privdfs_bench.speed.sockets import connections
from privdfs_bench.speed.stubs import stubs
from privdfs_bench.speed.systems import FLOAT_BYTES, TIMEOUT_S, OneServer, PrivDFS, System
from privdfs_export.errors import NginxMissingError
from privdfs_export.serve import Gateway, RunningGateway, RunningServer, find_nginx, gateways_before, serve_measured

HTTPS_SYSTEMS, GRPCS_SYSTEMS = ("https", "https_baseline"), ("grpcs", "grpcs_baseline")
#: Calls a second that a gateway lets in: more than one device makes.
RATE = 1_000_000


@contextmanager
def secured(
    servers: Sequence[RunningServer], repositories: Sequence[Path]
) -> Iterator[tuple[dict[str, Secured], dict[str, str]]]:
    """Servers that speak TLS, as long as the `with`.

    Args:
        servers: of the release, then of the unprotected model; they serve HTTP.
        repositories: theirs.

    Yields:
        Where they are reached, as `Endpoints` takes it; and by name, why systems are left out.
    """
    with ExitStack() as stack:
        grpc = stack.enter_context(serve_measured(repositories, tls=True))
        found = {"grpcs": _secured(grpc)}
        try:
            find_nginx()
        except NginxMissingError as error:
            yield found, dict.fromkeys(HTTPS_SYSTEMS, str(error))
            return
        yield found | {"https": _secured(stack.enter_context(gateways_before(servers, Gateway(rate=RATE))))}, {}


@contextmanager
def served(repositories: Sequence[Path], private: Sequence[int]) -> Iterator[tuple[Endpoints, dict[str, str]]]:
    """A server of each repository over both wires, and some of them in TLS too, as long as the `with`.

    Args:
        repositories: folders that tritonservers serve.
        private: positions of those that speak TLS too.

    Yields:
        Where they are reached; and by name, why systems are left out.
    """
    with ExitStack() as stack:
        running = stack.enter_context(serve_measured(repositories, http=True))
        some = [running[i] for i in private], [repositories[i] for i in private]
        in_tls, left_out = stack.enter_context(secured(*some))
        plain = [one.endpoint for one in running], [str(one.http) for one in running]
        yield Endpoints(*plain, **in_tls), left_out


def _secured(running: Sequence[RunningServer] | Sequence[RunningGateway]) -> Secured:
    """Where servers or gateways that share an authority are reached."""
    ca = running[0].ca
    assert ca is not None  # noqa: S101 - one was made for this run
    return Secured([one.endpoint for one in running], ca)


@contextmanager
def tls_systems(
    bundle: Bundle,
    sizes: tuple[list[int], list[int]],
    endpoints: Endpoints,
    *,
    what: str = "PrivDFS",
    key: UserKey | None = None,
) -> Iterator[dict[str, System]]:
    """The systems for which there are servers, not called yet.

    Args:
        bundle: of the release.
        sizes: bytes to and from each of its servers.
        endpoints: of its servers, then of the unprotected model.
        what: the release is called in tables.
        key: of a user, where the release is keyed.
    """
    image, systems, servers = bundle.manifest.image, dict[str, System](), len(sizes[0])
    shape = (1, image.height, image.width, image.channels)
    source, pixels = ("image", "UINT8", shape), ([int(np.prod(shape))], [FLOAT_BYTES * len(bundle.classes)])
    with ExitStack() as stack:

        def private(by: str, way: Secured) -> System:
            tls = TLS(ca=str(way.ca))
            own = [Server(endpoint, tls) for endpoint in way.endpoints[:servers]]
            client = stack.enter_context(Client(bundle, own, timeout=TIMEOUT_S, key=key))
            return System(f"{what} over {by}", *sizes, PrivDFS(client).classify)

        if (way := endpoints.grpcs) is not None:
            (stub,) = stack.enter_context(stubs(way.endpoints[-1:], way.ca))
            called = OneServer(stub.ModelInfer, "baseline", source, lambda image: image.tobytes())
            systems["grpcs"] = private("gRPC in TLS", way)
            systems["grpcs_baseline"] = System("unprotected, pixels over gRPC in TLS", *pixels, called.classify)
        if (way := endpoints.https) is not None:
            (connection,) = stack.enter_context(connections(way.endpoints[-1:], way.ca))
            asked = RawServer(connection, "baseline", source)
            systems["https"] = private("HTTPS, by a gateway of each server", way)
            systems["https_baseline"] = System("unprotected, pixels over HTTPS, by a gateway", *pixels, asked.classify)
        yield systems
