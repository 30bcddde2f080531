"""Calls on one connection, without a client."""

from typing import Any, TypeVar

from privdfs._dial import Steps
from privdfs._drive import Ask, carry_out
from privdfs._wire import Reply

M = TypeVar("M")


class One:
    """An exchange of one ask."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.done = False
        self.reply: Reply[Any] | None = None
        self.wake = float("inf")

    def begin(self) -> list[Ask]:
        return [self.ask]

    def take(self, ask: Ask, reply: Reply[Any]) -> list[Ask]:
        self.done, self.reply = True, reply
        return []

    def tick(self) -> list[Ask]:
        return []


def ask(steps: Steps[Reply[M]]) -> Reply[M]:
    """Carry out a call."""
    one = One(Ask(steps))
    carry_out(one)
    assert one.reply is not None
    return one.reply


def finish(steps: Steps[Any]) -> Any:
    """Go on with a call whose sockets are all ready."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value
