"""The invariant, on the wire: real tritonservers behind proxies that fail in any order, and every byte looked at.

Whatever happens, also where another server of the release is put into the place of one between two calls or two rounds:
no server receives a share of another; every call ends by its deadline; every result is right for the servers that it
names, or in a coded release exact; and everything else is a typed error.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from privdfs import (
    AsyncClient,
    Bundle,
    Client,
    DeadlineExceededError,
    NotEnoughAnswersError,
    Result,
    Retries,
    Server,
    ServerError,
    _coded,
)
from privdfs._coded_format import CodedManifest
from privdfs._config import WireName
from privdfs._kinds import Sent
from privdfs._local import open_branches
from privdfs_export.serve import RunningServer, serve_measured
from tests.coded_release import build_coded_release
from tests.e2e.processes import Queued, descendants
from tests.e2e.wire_release import write_wire_release
from tests.sdk.drivers import AsyncDriver, SyncDriver
from tests.sdk.tiny_release import MAX_BATCH
from tests.thorough import THOROUGH, count
from tests.wire_proxy import TROUBLES, Door, Proxies

pytestmark = pytest.mark.e2e

TIMEOUT_S = 0.6
#: The promise is 50 ms, beside the time in which the machine ran others. The quick run is for machines that do much at
#: once; a call that hangs is late there too.
GRACE_S = 0.05 if THOROUGH else 10.0


class World:
    """The tritonservers of a release with two doors each, and what the right answers are."""

    count: int  # servers
    enough: tuple[int, ...]  # for `min_answers`

    def __init__(self, release: Path, wire: WireName, proxies: Proxies, stack: ExitStack) -> None:
        self.proxies = proxies
        self.wire = wire
        self.all = range(self.count)
        self._release, self._stack = release, stack
        self.running = [self._serve(i) for i in self.all]
        self.bundle = Bundle.open(release / "client", allow_unsigned=True)
        self.servers = [Server([door.endpoint for door in proxies.doors[2 * i : 2 * i + 2]]) for i in self.all]

    def draw(self, random: np.random.Generator, number: int) -> np.ndarray:
        image = self.bundle.manifest.image
        return random.integers(0, 256, (number, image.height, image.width, image.channels), dtype=np.uint8)

    def judge(self, image: np.ndarray, result: Result, needed: int) -> None:
        """Fail the test unless the result is right."""
        raise NotImplementedError

    def parts(self, images: list[np.ndarray]) -> list[list[list[bytes]]]:
        """What calls for these images made for each server, piece by piece, by round."""
        raise NotImplementedError

    def heal(self) -> None:
        self.start_what_ended()
        for index, door in enumerate(self.proxies.doors):
            door.trouble = "none"
            door.lead_to(self.endpoint(index // 2), index // 2)
            self.proxies.drop(index)
            door.sent.clear()

    def replace(self, index: int, server: int) -> None:
        """Another server of the release stands where a door leads, as after a restart or behind a load balancer."""
        self.proxies.doors[index].lead_to(self.endpoint(server), server)
        self.proxies.drop(index)

    def start_what_ended(self) -> bool:
        """Whether any had. When clients give up many requests, Triton 2.51 crashes now and then, soon after
        (https://github.com/triton-inference-server/server/issues/8034): one more thing to live with.
        """
        ended = [server for server in self.all if not self.runs(server)]
        for server in ended:
            self.running[server] = self._serve(server)
        return bool(ended)

    def insist(self, run: Callable[[], Result]) -> Result:
        """What a call gives while all is well; if a server is crashing just then, once it is back."""
        until, excused = time.monotonic() + 30, False
        while True:
            try:
                return run()
            except NotEnoughAnswersError:
                time.sleep(1.0)  # until what crashes has ended, or connections are tried again
                excused = self.start_what_ended() or excused
                if not excused or time.monotonic() > until:
                    raise

    def endpoint(self, server: int) -> str:
        return self.running[server].http or self.running[server].endpoint

    def runs(self, server: int) -> bool:
        return self.running[server].keeper.poll() is None

    def kill(self, server: int) -> None:
        """End a tritonserver without a warning; its keeper clears away what it leaves."""
        keeper = self.running[server].keeper
        for pid in descendants(keeper.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        keeper.wait()

    def _serve(self, server: int) -> RunningServer:
        folder = self._release / f"server-{server}"
        (started,) = self._stack.enter_context(serve_measured([folder], http=self.wire == "http"))
        for door in self.proxies.doors[2 * server : 2 * server + 2]:
            door.lead_to(started.http or started.endpoint, server)
        return started

    def sent_to(self, server: int) -> list[bytes]:
        """What a server received, by connection, through whichever door."""
        return [bytes(record) for door in self.proxies.doors for owner, record in door.sent if owner == server]


class Masked(World):
    """Any answers give a result, each combination its own."""

    count, enough = 3, (1, 2, 3)

    def __init__(self, release: Path, wire: WireName, proxies: Proxies, stack: ExitStack) -> None:
        write_wire_release(release)
        super().__init__(release, wire, proxies, stack)
        self._branches = [open_branches(release, self.bundle.manifest, i)[0] for i in self.all]

    def judge(self, image: np.ndarray, result: Result, needed: int) -> None:
        assert sum(result.answered) >= needed
        shares = self.bundle.encode(image[np.newaxis])
        logits = [branch.run({"share": share})[0] for branch, share in zip(self._branches, shares, strict=True)]
        expected = self.bundle.fuse(np.stack(logits, axis=1), np.array([result.answered]))[0]
        assert np.abs(result.probabilities - expected).max() < 1e-4

    def parts(self, images: list[np.ndarray]) -> list[list[list[bytes]]]:
        return [[[share.tobytes() for share in self.bundle.encode(image[np.newaxis])] for image in images]]


class Coded(World):
    """Rounds, whose shares are others each time: what calls shared is noted as it is made."""

    count, enough = 4, (3, 4)

    def __init__(self, release: Path, wire: WireName, proxies: Proxies, stack: ExitStack) -> None:
        build_coded_release(release, servers=self.count)
        super().__init__(release, wire, proxies, stack)
        self._local = stack.enter_context(Client.local(release, timeout=60))
        self._made: list[Sent] = []
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        made = _coded._sent

        def noted(*arguments: Any) -> Sent:
            sent = made(*arguments)
            self._made.append(Sent(tuple(map(np.array, sent.shares)), sent.round))  # a copy: shares are wiped
            return sent

        patched.setattr(_coded, "_sent", noted)

    def heal(self) -> None:
        super().heal()
        self._made.clear()

    def judge(self, image: np.ndarray, result: Result, needed: int) -> None:
        assert len(result.timings.rounds) == self._rounds
        for each in result.timings.rounds:  # not always the same servers
            assert sum(ms is not None for ms in each.servers_ms) >= needed
        noted = list(self._made)
        expected = self._local.predict(image)
        self._made[:] = noted  # what is shared in this process travels nowhere
        np.testing.assert_array_equal(result.probabilities, expected.probabilities)
        assert result.corrected == ()

    def parts(self, images: list[np.ndarray]) -> list[list[list[bytes]]]:
        """Every row, one image's values modulo one prime, is looked for by itself."""
        assert self._made
        return [
            [
                [share[image, prime].tobytes() for share in sent.shares]
                for sent in self._made
                if sent.round == number
                for image, prime in np.ndindex(sent.shares[0].shape[:2])
            ]
            for number in range(self._rounds)
        ]

    @property
    def _rounds(self) -> int:
        assert isinstance(self.bundle.manifest, CodedManifest)
        return len(self.bundle.manifest.rounds)


@pytest.fixture(scope="module", params=["grpc", "http"])
def wire(request: pytest.FixtureRequest) -> WireName:
    return request.param


@pytest.fixture(scope="module", params=[Masked, Coded])
def world(request: pytest.FixtureRequest, wire: WireName, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    scheme = {"grpc": "", "http": "http://"}[wire]
    with Proxies([f"{scheme}127.0.0.1:1"] * (2 * request.param.count)) as proxies, ExitStack() as stack:
        yield request.param(tmp_path_factory.mktemp("wire") / "release", wire, proxies, stack)


class Wire(RuleBasedStateMachine):
    """Faults and calls in any order."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.heal()
        self.random = np.random.default_rng(0)
        self.images: list[np.ndarray] = []
        self.killed = self.restarted = False  # each once in a history: a start takes a second or two
        retries = Retries(hedge_after=0.03, hedge_budget=1.0)
        options: Any = {"timeout": TIMEOUT_S, "allow_shared_hosts": True, "min_answers": self.world.count}
        self.drivers = (
            SyncDriver(Client(self.world.bundle, self.world.servers, **options)),
            AsyncDriver(AsyncClient(self.world.bundle, self.world.servers, retries=retries, **options)),
        )

    @initialize()
    def all_is_well(self) -> None:
        for driver in self.drivers:
            image = self.draw(1)[0]
            result = self.world.insist(partial(driver.predict, image, timeout=30))
            assert all(result.answered)
            self.world.judge(image, result, self.world.count)

    @rule(door=st.integers(0, 7), trouble=st.sampled_from(TROUBLES), seconds=st.sampled_from([0.02, 0.2, 2.0]))
    def fail(self, door: int, trouble: Any, seconds: float) -> None:
        self.door(door).trouble, self.door(door).seconds = trouble, seconds

    @rule(door=st.integers(0, 7))
    def drop(self, door: int) -> None:
        self.world.proxies.drop(door % (2 * self.world.count))

    @rule(door=st.integers(0, 7))
    def end_trouble(self, door: int) -> None:
        self.door(door).trouble = "none"

    @rule(door=st.integers(0, 7), server=st.integers(0, 3))
    def put_another_server_there(self, door: int, server: int) -> None:
        self.world.replace(door % (2 * self.world.count), server % self.world.count)

    @rule()
    def keep_the_default_executor_busy(self) -> None:
        self.drivers[1].occupy(partial(time.sleep, 0.5))

    @precondition(lambda self: not self.killed)
    @rule(server=st.integers(0, 3))
    def kill(self, server: int) -> None:
        self.world.kill(server % self.world.count)
        self.killed = True

    @precondition(lambda self: self.killed and not self.restarted)
    @rule()
    def start_again(self) -> None:
        self.restarted = True
        self.world.start_what_ended()

    @rule(which=st.integers(0, 1), level=st.integers(0, 2), wait=st.sampled_from(["all", "quorum"]))
    def predict(self, which: int, level: int, wait: str) -> None:
        image, needed = self.draw(1)[0], self.world.enough[level % len(self.world.enough)]
        driver = self.drivers[which].with_options(min_answers=needed, wait=wait)
        for result in self.call(lambda: [driver.predict(image)], needed):
            self.world.judge(image, result, needed)

    @rule(which=st.integers(0, 1))
    def predict_a_batch(self, which: int) -> None:
        images = self.draw(MAX_BATCH)
        needed = self.world.enough[-2]
        driver = self.drivers[which].with_options(min_answers=needed)
        for image, result in zip(images, self.call(lambda: driver.predict_batch(images), needed), strict=False):
            self.world.judge(image, result, needed)

    @rule()
    def predict_from_many_threads(self) -> None:
        images, needed = self.draw(6), self.world.enough[-2]
        drivers = [driver.with_options(min_answers=needed) for driver in self.drivers]

        def one(position: int) -> list[Result]:
            return self.call(lambda: [drivers[position % 2].predict(images[position])], needed)

        with ThreadPoolExecutor(6) as pool:
            for image, results in zip(images, pool.map(one, range(6)), strict=True):
                for result in results:
                    self.world.judge(image, result, needed)

    def draw(self, number: int) -> np.ndarray:
        images = self.world.draw(self.random, number)
        self.images += list(images)
        return images

    def door(self, index: int) -> Door:
        """Worlds have six or eight."""
        return self.world.proxies.doors[index % (2 * self.world.count)]

    def call(self, run: Callable[[], list[Result]], needed: int) -> list[Result]:
        started, queued = time.monotonic(), Queued()
        results: list[Result] = []
        failed: NotEnoughAnswersError | None = None
        try:
            results = run()
        except NotEnoughAnswersError as error:
            failed = error
        except DeadlineExceededError:  # this machine was too busy to make the shares; whatever else comes up is a fault
            results = []
        took = time.monotonic() - started
        assert took < TIMEOUT_S + GRACE_S + queued.seconds
        if failed is not None:
            assert all(isinstance(cause, ServerError) for cause in failed.causes.values())
            assert len(failed.answered) < needed
        return results

    def teardown(self) -> None:
        for driver in self.drivers:
            driver.stop()
        by_round = self.world.parts(self.images)
        for server in self.world.all:
            sent = self.world.sent_to(server)
            for parts in by_round:
                assert any(part[server] in record for part in parts for record in sent)  # so that it would be found
                for part in parts:
                    others = part[:server] + part[server + 1 :]
                    assert not any(other in record for other in others for record in sent)


@pytest.mark.timeout(3600 if THOROUGH else 300)
def test_whatever_fails_shares_stay_apart_and_answers_are_right(world: World) -> None:
    class Here(Wire):
        pass

    Here.world = world
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=count(12, 300),
            stateful_step_count=count(20, 40),
            deadline=None,
            database=None,
            derandomize=not THOROUGH,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.parametrize("trouble", [trouble for trouble in TROUBLES if trouble not in {"dribble", "narrow"}])
def test_each_failure_of_one_server_is_a_typed_cause_and_the_others_answer(world: World, trouble: Any) -> None:
    world.heal()
    image = world.draw(np.random.default_rng(1), 1)[0]
    needed = world.count - 1
    for door in world.proxies.doors[2:4]:
        door.trouble, door.seconds = trouble, 30.0
    with Client(world.bundle, world.servers, timeout=1.5, min_answers=needed, allow_shared_hosts=True) as client:
        ends = trouble in {"reset", "truncated", "garbage", "refused"}  # on its own, without a deadline
        result = client.predict(image, timeout=20 if ends else 1.5)
        assert result.answered == tuple(server != 1 for server in world.all)
        world.judge(image, result, needed)
        with pytest.raises(NotEnoughAnswersError) as caught:
            client.with_options(min_answers=world.count).predict(image)
        assert set(caught.value.causes) == {1}
    world.heal()
