"""A TCP proxy that fails on demand, and keeps what the client sent through it."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

Trouble = Literal[
    "none", "late", "reset", "truncated", "garbage", "slow close", "dribble", "narrow", "refused", "silent"
]

TROUBLES: tuple[Trouble, ...] = (
    "late", "reset", "truncated", "garbage", "slow close", "dribble", "narrow", "refused", "silent",
)  # fmt: skip
_CHUNK = 64 * 1024
#: Bytes at a time, and the seconds between: answers byte by byte, and a line of 2 kB a second each way.
_PACES = {"dribble": (1, 0.0005), "narrow": (200, 0.1)}
_HANG_S = 30.0


@dataclass
class Door:
    """One endpoint before a server.

    Attributes:
        target: host and port of the server.
        trouble: what happens to its answers, to both ways ("narrow"), or to new connections ("refused"), from now on.
        seconds: how long "late" and "slow close" take.
        sent: what the client sent, by connection, with the owner of the door's target at that time.
        endpoint: where it listens.
        owner: which server the target is, for tests that ask who received what.
    """

    target: tuple[str, int]
    trouble: Trouble
    seconds: float
    sent: list[tuple[int | None, bytearray]]
    endpoint: str = ""
    owner: int | None = None

    def lead_to(self, target: str, owner: int | None = None) -> None:
        """Send new connections to another server, given by its endpoint."""
        self.target, self.owner = _address(target), owner


class Proxies:
    """One door for each target, on an event loop of their own; a context manager."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.doors = [Door(_address(target), "none", 0.1, []) for target in targets]
        self._schemes = ["".join(target.partition("://")[:2]) if "://" in target else "" for target in targets]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._writers: dict[int, set[asyncio.StreamWriter]] = {i: set() for i in range(len(self.doors))}
        self._random = random.Random(0)  # noqa: S311 - not for secrets

    def __enter__(self) -> "Self":
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_HANG_S)
        self._loop.close()

    def forget(self, index: int) -> None:
        """Let what travels on the present connections of a door vanish, as a NAT does that has forgotten them."""
        self._forgotten |= self._writers[index]

    def drop(self, index: int) -> None:
        """Reset all connections through a door, as a server does that is killed."""
        self._run(self._drop(index))

    def _run(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_HANG_S)  # pyright: ignore[reportArgumentType]

    async def _listen(self) -> None:
        self._servers = []
        for index, door in enumerate(self.doors):

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int = index) -> None:
                await self._serve(index, reader, writer)

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            door.endpoint = f"{self._schemes[index]}127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._servers.append(server)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for index in self._writers:
            await self._drop(index)
        me = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not me]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _drop(self, index: int) -> None:
        for writer in list(self._writers[index]):
            writer.transport.abort()

    async def _serve(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        door = self.doors[index]
        if door.trouble == "refused":
            writer.transport.abort()
            return
        try:
            owner = door.owner
            back, forth = await asyncio.open_connection(*door.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers[index] |= {writer, forth}
        record = bytearray()
        door.sent.append((owner, record))
        try:
            await asyncio.gather(self._up(door, reader, forth, record), self._down(door, back, writer))
        finally:
            self._writers[index] -= {writer, forth}
            for end in (writer, forth):
                end.close()

    async def _up(
        self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if writer in self._forgotten:
                    continue
                record += data
                await _write(writer, data, "narrow" if door.trouble == "narrow" else "none")
        writer.close()

    async def _down(self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                trouble = "silent" if writer in self._forgotten else door.trouble
                if trouble == "late":
                    await asyncio.sleep(door.seconds)
                elif trouble == "reset":
                    writer.transport.abort()
                    return
                elif trouble == "truncated":
                    writer.write(data[: len(data) // 2])
                    break
                elif trouble == "slow close":
                    await asyncio.sleep(door.seconds)
                    break
                elif trouble == "garbage":
                    data = self._random.randbytes(len(data))
                elif trouble == "silent":
                    continue
                await _write(writer, data, trouble)
        writer.close()


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port of an endpoint of either wire."""
    host, port = endpoint.rpartition("://")[2].split(":")
    return host, int(port)


async def _write(writer: asyncio.StreamWriter, data: bytes, trouble: Trouble) -> None:
    """Send at once, or at the pace of a trouble."""
    step, pause = _PACES.get(trouble, (len(data), 0.0))
    for position in range(0, len(data), step):
        writer.write(data[position : position + step])
        await writer.drain()
        if pause:
            await asyncio.sleep(pause)
