"""`calls.json`: images to requests to answers to probabilities, with subsets, liars and errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs import Token, UserKey
from tests.conformance import calls
from tests.conformance.form import request, tensor, text
from tests.conformance.releases import images, residues
from tests.conformance.replay import Answerer, Request
from tests.conformance.servers import BUSY, Spoil, answerer, framed, json_bytes, model_config, open_small

ABOUT = (
    "Whole calls. A client of `release` with `options`, one endpoint for each of `servers`, every share sent once, "
    "classifies `images`. Server i must receive exactly these requests, in this order ({authority} stands for its host "
    "and port), and answers each with `answer`: the bytes of an HTTP answer in base64, or the name of one in "
    "configs.json, or null, when it closes the connection. "
    "A coded client takes its residues from `randomness`, one array for each sharing. `result` is how the call ends."
)

CONFIGS = (
    "What a server of a small release says when it is asked for a model's configuration, by release, server and model: "
    "`answer` are the bytes of an HTTP answer. The release check must accept it."
)


@dataclass(frozen=True)
class Case:
    name: str
    section: str
    release: str
    servers: int = 3
    count: int = 1
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    spoil: Spoil | None = None
    configs: Mapping[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])


def busy(*servers: int, only: int | None = None) -> Spoil:
    """Servers that answer 503; in one round alone, if that is given."""

    def spoil(server: int, number: int, answer: NDArray[Any]) -> NDArray[Any] | bytes:
        return BUSY if server in servers and only in {None, number} else answer

    return spoil


def lying(*servers: int, only: int | None = None, image: int | None = None) -> Spoil:
    """Servers that answer something else that could be true; about one image alone, if that is given."""

    def spoil(server: int, number: int, answer: NDArray[Any]) -> NDArray[Any]:
        if server not in servers or only not in {None, number}:
            return answer
        false = -answer if answer.dtype == np.float32 else np.where(answer > 0, answer - 1, answer + 1).astype(np.int8)
        if image is None:
            return false
        told = answer.copy()
        told[image] = false[image]
        return told

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(server: int, number: int, answer: NDArray[Any]) -> NDArray[Any] | bytes | None:
        for each in spoils:
            given = each(server, number, answer)
            if not isinstance(given, np.ndarray):
                return given
            answer = given
        return answer

    return spoil


def hanging_up(*servers: int) -> Spoil:
    """Servers that close the connection instead of an answer."""

    def spoil(server: int, number: int, answer: NDArray[Any]) -> NDArray[Any] | None:
        return None if server in servers else answer

    return spoil


def out_of_range(*servers: int) -> Spoil:
    """Servers of which one number is no residue of its prime."""

    def spoil(server: int, number: int, answer: NDArray[Any]) -> NDArray[Any]:
        told = answer.copy()
        if server in servers:
            told[0, -1, 0] = 121
        return told

    return spoil


#: How many servers the small releases have, at most.
SERVERS = {"masked": 3, "keyed": 3, "coded": 5, "coded-rounds": 5}
ANOTHER = {"privdfs_release": {"string_value": "vectors-masked-2"}, "privdfs_server": {"string_value": "1"}}
KEY = "00112233445566778899aabbccddeeff"

CASES = (
    Case("masked, one image", "4.1", "masked"),
    Case("masked, more images than a request may hold", "8.5", "masked", count=6),
    Case("masked, another timeout has a request of the same length", "6.3", "masked", options={"timeout": 0.25}),
    Case("masked, with a token", "6.2", "masked", options={"token": "a-token"}),
    Case("masked, with a token in a header of its own", "6.2", "masked",
         options={"token": "secret", "token_header": "x-api-key"}),
    Case("masked, server 1 is silent", "4.3", "masked", options={"min_answers": 2}, spoil=busy(1)),
    Case("masked, servers 0 and 1 are silent", "4.3", "masked", options={"min_answers": 1}, spoil=hanging_up(0, 1)),
    Case("masked, server 2 lies", "4.3", "masked", spoil=lying(2)),
    Case("masked, too few answers", "8.3", "masked", spoil=both(busy(0), hanging_up(2))),
    Case("masked, one server is of another release and no share is sent", "8.2", "masked",
         configs={1: {"parameters": ANOTHER}}),
    Case("masked, one server is of another release and is not needed", "8.2", "masked", options={"min_answers": 2},
         configs={1: {"parameters": ANOTHER}}),
    Case("keyed, one image", "4.2", "keyed", options={"key": KEY}),
    Case("keyed, two images and another key", "4.2", "keyed", count=2, options={"key": "f" * 32}),
    Case("coded, three servers of which one may collude", "5.4", "coded"),
    Case("coded, two images", "5.4", "coded", count=2),
    Case("coded, five servers of which two may collude", "5.4", "coded", servers=5, options={"colluding": 2}),
    Case("coded, servers 0 and 3 are silent", "5.7", "coded", servers=5, options={"colluding": 1}, spoil=busy(0, 3)),
    Case("coded, server 0 lies and is corrected", "5.6", "coded", servers=5, options={"colluding": 1}, spoil=lying(0)),
    Case("coded, servers 1 and 3 lie about one image each, and both are corrected", "5.6", "coded", servers=5, count=2,
         options={"colluding": 1}, spoil=both(lying(1, image=0), lying(3, image=1))),
    Case("coded, server 0 lies and it cannot be told who does", "5.6", "coded", servers=4, options={"colluding": 1},
         spoil=lying(0)),
    Case("coded, a lie that nothing shows", "5.6", "coded", spoil=lying(1)),
    Case("coded, two of five lie", "5.6", "coded", servers=5, options={"colluding": 1}, spoil=lying(0, 2)),
    Case("coded, an answer that is no residue", "6.5", "coded", servers=4, options={"colluding": 1},
         spoil=out_of_range(2)),
    Case("coded, too few answers", "8.3", "coded", spoil=busy(1)),
    Case("two rounds, three servers", "5.5", "coded-rounds"),
    Case("two rounds, more images than a request may hold", "8.5", "coded-rounds", count=5),
    Case("two rounds, server 1 is silent in the first", "5.5", "coded-rounds", servers=4, options={"colluding": 1},
         spoil=busy(1, only=1)),
    Case("two rounds, server 1 is silent in the second", "5.5", "coded-rounds", servers=4, options={"colluding": 1},
         spoil=busy(1, only=2)),
    Case("two rounds, server 4 lies in the first and is not believed in the second", "5.6", "coded-rounds", servers=5,
         options={"colluding": 1}, spoil=lying(4, only=1)),
    Case("two rounds, server 0 lies in the second", "5.6", "coded-rounds", servers=5, options={"colluding": 1},
         spoil=lying(0, only=2)),
    Case("two rounds, a lie in the first ends the call before the second", "5.6", "coded-rounds", servers=4,
         options={"colluding": 1}, spoil=lying(2, only=1)),
    Case("two rounds, too few answers in the second", "8.3", "coded-rounds", spoil=busy(0, only=2)),
)  # fmt: skip


def options(told: Mapping[str, Any]) -> dict[str, Any]:
    """A vector's options as the client's arguments; the token is told to the servers."""
    given = {name: value for name, value in told.items() if not name.startswith("token")}
    if "key" in given:
        given["key"] = UserKey(given["key"])
    return {"timeout": 5.0, **given}


def token(told: Mapping[str, Any]) -> Token | None:
    """What every server of a vector asks for."""
    if "token" not in told:
        return None
    return Token(told["token"], told.get("token_header", "authorization"))


def configs() -> Iterable[dict[str, Any]]:
    for release, servers in SERVERS.items():
        small = open_small(release, servers)
        for branch in small.branches:
            for number, model in enumerate(branch.models):
                answer = framed(json_bytes(model_config(branch, number)))
                name = f"{release}/{branch.server}/{model.name}"
                yield {"name": name, "section": "7", "answer": text(answer)}


def make() -> Iterable[dict[str, Any]]:
    known = {each["answer"]: each["name"] for each in configs()}
    for case in CASES:
        yield _made(case, known)


def _made(case: Case, known: Mapping[str, str]) -> dict[str, Any]:
    """Run a call against servers that compute, and write down what was said."""
    small = open_small(case.release, case.servers)
    pixels = images(f"calls {case.release} {case.count}", case.count, small.bundle.manifest.image)
    drawn = list[NDArray[np.int8]]()
    said: list[list[tuple[Request, bytes | None]]] = [[] for _ in range(case.servers)]

    def kept(shape: tuple[int, int, int], moduli: Sequence[int]) -> NDArray[np.int8]:
        found = residues(f"{case.name} {len(drawn)}", shape, moduli)
        drawn.append(found.copy())
        return found

    def noted(server: int) -> Answerer:
        compute = answerer(small, server, case.spoil, case.configs.get(server))

        def answer(asked: Request) -> bytes | None:
            given = compute(asked)
            said[server].append((asked, given))
            return given

        return answer

    servers = [noted(server) for server in range(case.servers)]
    with calls.fixed_randomness(kept):
        ended = calls.run(small.bundle, servers, pixels, options(case.options), token(case.options))

    def told(asked: Request, given: bytes | None) -> dict[str, Any]:
        answer = None if given is None else text(given)
        return {"request": request(asked), "answer": known.get(answer or "", answer)}

    return {
        "name": case.name,
        "section": case.section,
        "release": case.release,
        "options": dict(case.options),
        "images": tensor(pixels),
        **({"randomness": [tensor(each) for each in drawn]} if drawn else {}),
        "servers": [[told(*each) for each in own] for own in said],
        "result": calls.described(ended),
    }
