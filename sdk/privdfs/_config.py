"""Where the servers are: small frozen values that check themselves."""

import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from privdfs._constants import DEFAULT_ATTEMPTS, DEFAULT_HEDGE_BUDGET, MAX_ATTEMPTS, MAX_TIMEOUT_S, RESOLVE_LIMIT_S
from privdfs._errors import ConfigError
from privdfs._given import check_flag, shown
from privdfs._tls import TLS, Token

#: When a call ends: when every server has answered or failed, or as soon as `min_answers` of them have answered.
Wait: TypeAlias = Literal["all", "quorum"]

_HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
#: "host:port" is gRPC, as ever. A web address may leave its port out, and end in one slash; it has no path.
_ENDPOINT = re.compile(
    rf"(?:(?:grpc://)?(?P<grpc>{_HOST}):(?P<grpc_port>[0-9]{{1,5}})"
    rf"|(?P<scheme>https?)://(?P<http>{_HOST})(?::(?P<http_port>[0-9]{{1,5}}))?/?)"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65535

#: How a server is spoken to.
WireName: TypeAlias = Literal["grpc", "http"]

_log = logging.getLogger("privdfs")


@dataclass(frozen=True, init=False)
class Server:
    """One party: one trust domain that holds one branch, at one or more endpoints (its replicas).

    Attributes:
        endpoints: of every replica, all of the same wire: "https://host" or "http://host:port" for HTTP, "host:port" or
            "grpc://host:port" for gRPC. All of them belong to this party and may see its share.
        tls: how to connect; None means plaintext, which is accepted for loopback addresses only. For "https://" it is
            `TLS()`, which trusts the system's authorities, unless another is given.
        insecure: allow plaintext to other addresses too. Anybody on the way can then read the share.
        token: a secret that the server asks for; not over plaintext beyond loopback. The text, a function that gives
            the present one, or a `Token`, which can name another header than "authorization".

    Raises:
        ConfigError: no endpoint, one of another form, one named twice, endpoints of different wires, `tls` with
            "http://", plaintext beyond loopback, or an argument of another type.
    """

    endpoints: tuple[str, ...]
    tls: TLS | None
    insecure: bool
    token: Token | None

    def __init__(
        self,
        endpoints: str | Sequence[str],
        tls: TLS | None = None,
        *,
        insecure: bool = False,
        token: Token | str | Callable[[], str] | None = None,
    ) -> None:
        listed = _check_endpoints(endpoints)
        _check_tls(tls)
        check_flag(insecure, "insecure")
        for endpoint in listed:
            split_endpoint(endpoint)
        tls = _tls_of_scheme(listed, tls)
        if tls is not None and insecure:
            raise ConfigError("a server has `tls` and `insecure=True`: drop one of them")
        how = "write https://" if wire_of(listed[0]) == "http" else "pass tls=TLS(…)"
        for endpoint in listed:
            host = split_endpoint(endpoint)[0]
            if tls is None and not insecure and not is_loopback(host):
                raise ConfigError(
                    f"{endpoint} is not on this machine and has no TLS, so anyone on the network could read the share: "
                    f"{how}, or insecure=True for a network that you trust"
                )
            if tls is None and token is not None and not is_loopback(host):
                raise ConfigError(f"a token would be sent to {endpoint} in plaintext: {how}")
        refuse_repeated(listed)
        object.__setattr__(self, "endpoints", listed)
        object.__setattr__(self, "tls", tls)
        object.__setattr__(self, "insecure", insecure)
        object.__setattr__(self, "token", token if token is None or isinstance(token, Token) else Token(token))


@dataclass(frozen=True)
class Retries:
    """How often a share may be sent to the server it is bound to: to that server's replicas, never to another server.

    Attributes:
        attempts: how often in all, 1 to 10; 1 means once. Another attempt is made after an error that another attempt
            can help with, at another replica at once, at the same one after a growing wait.
        hedge_after: seconds without an answer after which the share is sent once more, to another replica if there is
            one; the first answer counts, the other attempt is cancelled. None: never. About the 95th percentile of
            `result.timings.servers_ms` is a good value.
        hedge_budget: hedges for each call, in the long run, 0 to 1: what hedging may add to a server's load.

    Raises:
        ConfigError: a value outside its range.
    """

    attempts: int = DEFAULT_ATTEMPTS
    hedge_after: float | None = None
    hedge_budget: float = DEFAULT_HEDGE_BUDGET

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ConfigError(f"attempts={shown(self.attempts)} is not a whole number from 1 to {MAX_ATTEMPTS}")
        if self.hedge_after is not None:
            check_timeout(self.hedge_after, "hedge_after")
        budget = self.hedge_budget
        if type(budget) not in {int, float} or not 0 <= budget <= 1:
            raise ConfigError(f"hedge_budget={shown(budget)} is not a number from 0 to 1")


def check_servers(
    servers: Sequence[Server | str], count: int | None, *, allow_shared_hosts: bool = False
) -> tuple[Server, ...]:
    """The servers of a client, in the order of the release.

    Args:
        servers: as the caller gave them.
        count: how many the release has; None: any number.
        allow_shared_hosts: say so in the log, instead of refusing servers that share an address.

    Raises:
        ConfigError: not exactly `count` servers; an endpoint, address or pinned certificate that stands for two of
            them; a TLS file that cannot be read or does not fit.
    """
    if isinstance(servers, (str, Server)):
        raise ConfigError(
            f"one server was given where a list {f'of {count} ' if count else ''}is expected: pass [Server(…), …] in "
            "the release's order"
        )
    listed = _list(servers, "the servers", "a list, [Server(…), …] in the release's order")
    check_flag(allow_shared_hosts, "allow_shared_hosts")
    if not listed:
        raise ConfigError("no servers were given: pass [Server(…), …], one for each party, in the release's order")
    checked = tuple(_check_server(index, server) for index, server in enumerate(listed))
    if count is not None and len(checked) != count:
        raise ConfigError(
            f"the release has {count} servers, {len(checked)} were given: pass one for each, in the release's order"
        )
    refuse_repeated([endpoint for server in checked for endpoint in server.endpoints])
    shared = shared_address([[split_endpoint(endpoint)[0] for endpoint in server.endpoints] for server in checked])
    if shared is not None:
        problem = "servers {} and {} are both at {}, where one host sees the shares of both".format(*shared)
        if not allow_shared_hosts:
            raise ConfigError(
                f"{problem}: name hosts of different parties, or pass allow_shared_hosts=True for development"
            )
        _log.warning("%s: this is for development, and not private", problem)
    owners: dict[bytes, int] = {}
    for index, server in enumerate(checked):
        for pinned in () if server.tls is None else server.tls.read().pinned:
            if owners.setdefault(pinned, index) != index:
                raise ConfigError(
                    f"servers {owners[pinned]} and {index} have the same pinned certificate, so they are one party: "
                    "pin each server's own"
                )
    return checked


def _check_server(index: int, server: object) -> Server:
    if isinstance(server, str):
        return Server(server)
    if not isinstance(server, Server):
        raise ConfigError(f"server {index} has the type {type(server).__name__}: pass Server('host:port', …)")
    return server


def _check_endpoints(endpoints: object) -> tuple[str, ...]:
    """One or several; the form of each is checked with its host."""
    if isinstance(endpoints, str):
        return (endpoints,)
    listed = _list(endpoints, "the endpoints", "'host:port', or a list of them")
    if not listed:
        raise ConfigError("a server needs at least one endpoint: Server('host:port')")
    return cast("tuple[str, ...]", listed)


def _tls_of_scheme(endpoints: Sequence[str], tls: TLS | None) -> TLS | None:
    """The TLS of a server, given what the schemes of its endpoints say."""
    schemes = {endpoint.partition("://")[0] if wire_of(endpoint) == "http" else "grpc" for endpoint in endpoints}
    if len(schemes) > 1:
        raise ConfigError(
            f"the endpoints of a server are of different kinds ({', '.join(sorted(schemes))}): its replicas share one "
            "way to connect, so write all of them as https://…, all as http://…, or all as host:port"
        )
    if schemes == {"http"} and tls is not None:
        raise ConfigError("tls is given for an endpoint that begins with http://: write https://, or drop `tls`")
    return TLS() if schemes == {"https"} and tls is None else tls


def _list(value: object, what: str, advice: str) -> tuple[object, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise ConfigError(f"{what} have the type {type(cast('object', value)).__name__}: pass {advice}")
    return tuple(cast("Sequence[object]", value))


def _check_tls(tls: object) -> None:
    if tls is not None and not isinstance(tls, TLS):
        raise ConfigError(
            f"tls has the type {type(tls).__name__}: pass tls=TLS(ca=…), or TLS() for the system's authorities"
        )


def check_timeout(timeout: object, name: str = "timeout") -> float:
    """A timeout, or another time of that name, in seconds.

    Raises:
        ConfigError: it is not a number above zero and within an hour.
    """
    seconds = timeout if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:  # NaN compares false
        raise ConfigError(f"{name}={shown(timeout)} is not a number of seconds above 0 and up to {MAX_TIMEOUT_S:.0f}")
    return float(seconds)


def check_min_answers(min_answers: int | None, count: int) -> int:
    """How many of `count` servers must answer; all of them when None.

    Raises:
        ConfigError: it is not a whole number from 1 to `count`.
    """
    if min_answers is None:
        return count
    if type(min_answers) is not int or not 1 <= min_answers <= count:
        raise ConfigError(
            f"min_answers={shown(min_answers)} is not a whole number from 1 to {count}, the number of servers"
        )
    return min_answers


def check_wait(wait: object) -> Wait:
    """When a call ends.

    Raises:
        ConfigError: it is neither "all" nor "quorum".
    """
    if not isinstance(wait, str) or wait not in {"all", "quorum"}:
        raise ConfigError(f"wait={shown(wait)} is neither 'all' nor 'quorum'")
    return cast("Wait", wait)


def check_retries(retries: object) -> Retries:
    """The policy, the default one when None.

    Raises:
        ConfigError: it is something else.
    """
    if retries is None:
        return Retries()
    if not isinstance(retries, Retries):
        raise ConfigError(f"retries has the type {type(retries).__name__}: pass Retries(attempts=…, hedge_after=…)")
    return retries


def split_endpoint(endpoint: object) -> tuple[str, int]:
    """Host (without brackets, lower case) and port of an endpoint.

    Raises:
        ConfigError: it is neither "host:port" nor a URL of one of the wires.
    """
    match = _ENDPOINT.fullmatch(endpoint) if isinstance(endpoint, str) else None
    port = 0 if match is None else int(match["grpc_port"] or match["http_port"] or _DEFAULT_PORTS[match["scheme"]])
    if match is None or not 1 <= port <= _MAX_PORT:
        raise ConfigError(
            f"the endpoint {shown(endpoint)} is not of the form host:port: write it as in a.example:8001 or "
            "[::1]:8001 for gRPC, and as in https://a.example or http://127.0.0.1:8000, without a path, for HTTP"
        )
    return (match["grpc"] or match["http"]).strip("[]").lower(), port


def authority(endpoint: str) -> str:
    """Host and port as an endpoint spells them: what is told to the server."""
    return endpoint.rpartition("://")[2].rstrip("/")


def wire_of(endpoint: str) -> WireName:
    """How an endpoint is spoken to."""
    return "http" if endpoint.startswith(("http://", "https://")) else "grpc"


def is_loopback(host: str) -> bool:
    """Whether a host can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_repeated(endpoints: Sequence[str]) -> None:
    """Check that no endpoint is named twice, whatever the spelling: two shares at one place are not apart.

    Raises:
        ConfigError: two name the same host and port.
    """
    seen: dict[tuple[str, int], str] = {}
    for endpoint in endpoints:
        host, port = split_endpoint(endpoint)
        key = (_canonical(host), port)
        if key in seen:
            raise ConfigError(
                f"{endpoint} is named twice (first as {seen[key]}): every server is another party and must not get "
                "the share of a second one; correct the list of servers"
            )
        seen[key] = endpoint


def shared_address(hosts: Sequence[Sequence[str]]) -> tuple[int, int, str] | None:
    """Two servers with one address, and that address.

    Names are looked up, those that the network knows within `RESOLVE_LIMIT_S`. This machine does not count: servers on
    loopback are a test, or proxies to somewhere else.

    Args:
        hosts: those of every server.
    """
    found = _look_up({host for own in hosts for host in own if not is_loopback(host)})
    owners: dict[str, int] = {}
    for server, own in enumerate(hosts):
        for host in own:
            for address in found.get(host, ()):
                if owners.setdefault(address, server) != server:
                    return owners[address], server, address
    return None


def _look_up(hosts: set[str]) -> dict[str, set[str]]:
    """Every host's name and addresses, in one spelling each; loopback ones are left out."""
    found = {host: {_canonical(host)} for host in hosts}

    def ask(host: str) -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return  # it cannot be reached now; the call will say so
        found[host] = found[host] | {_canonical(str(row[4][0])) for row in answers if not is_loopback(str(row[4][0]))}

    # Daemons, since a name server that is silent must hold up neither the client nor the end of the process.
    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts if not _is_address(host)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + RESOLVE_LIMIT_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(found)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _canonical(host: str) -> str:
    """One spelling per host, as far as possible without asking the network."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return host.rstrip(".")
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    # "localhost" may mean either of the two, so they count as one.
    return "127.0.0.1" if address == ipaddress.IPv6Address("::1") else address.compressed
