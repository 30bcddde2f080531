"""Where the servers of a measurement are reached, over each wire, in plaintext and in TLS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Secured:
    """Servers that speak TLS.

    Attributes:
        endpoints: of the servers of the release, then of the unprotected model.
        ca: PEM file of the authority that signed their certificates.
    """

    endpoints: Sequence[str]
    ca: Path


@dataclass(frozen=True)
class Endpoints:
    """Where servers are reached: their own endpoints, or those of a proxy before them.

    Attributes:
        grpc: of the servers of the release; then of what it is compared with.
        http: of the same; what is called by gRPC alone may be left out at the end.
        grpcs: over gRPC in TLS; None where that is not measured.
        https: the same over HTTP.
    """

    grpc: Sequence[str]
    http: Sequence[str]
    grpcs: Secured | None = None
    https: Secured | None = None

    def plain(self) -> list[str]:
        """All of them as HOST:PORT."""
        secured = [one.endpoints for one in (self.grpcs, self.https) if one is not None]
        return [one.rpartition("/")[2] for ones in (self.grpc, self.http, *secured) for one in ones]

    def behind(self, proxies: Sequence[str]) -> "Endpoints":
        """The same at proxies, which are in the order of `plain`."""
        left = iter(proxies)
        grpc, http = _at(left, self.grpc), _at(left, self.http)
        grpcs, https = (
            None if one is None else Secured(_at(left, one.endpoints), one.ca) for one in (self.grpcs, self.https)
        )
        return Endpoints(grpc, http, grpcs, https)


def _at(places: Iterator[str], endpoints: Sequence[str]) -> list[str]:
    """Endpoints with the same schemes at the next places."""
    return ["".join((*endpoint.rpartition("/")[:2], next(places))) for endpoint in endpoints]
