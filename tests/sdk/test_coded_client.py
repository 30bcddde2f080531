"""Coded releases over both clients: exact answers, whoever is silent or lies, and nothing to see but noise."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from privdfs import (
    AnswerError,
    Bundle,
    Client,
    ConfigError,
    ContradictingAnswersError,
    NotEnoughAnswersError,
    RandomnessError,
    Retries,
    Server,
    coding,
)
from privdfs._chunk import Share
from privdfs._coded_format import CodedManifest
from privdfs._config import WireName
from privdfs._wires import connection_class
from privdfs.testing import FakeServer, Fault
from tests.coded_release import build_coded_release, drawn, noise
from tests.sdk.drivers import HANG_S, Driver

ROUNDS = 3
MOST = 7
PHOTOS = noise(3, seed=11)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_coded_release(tmp_path_factory.mktemp("coded") / "release", servers=MOST)


@pytest.fixture(scope="module")
def bundle(release: Path) -> Bundle:
    return Bundle.open(release / "client", allow_unsigned=True)


@pytest.fixture(scope="module")
def rounds(bundle: Bundle) -> CodedManifest:
    assert isinstance(bundle.manifest, CodedManifest)
    return bundle.manifest


@pytest.fixture(scope="module")
def running(release: Path, wire: WireName) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(release, index, wire=wire)) for index in range(MOST)]


@pytest.fixture
def servers(running: list[FakeServer]) -> list[FakeServer]:
    for server in running:
        server.fault = server.check_fault = None
        server.received.clear()
        server.rounds.clear()
    return running


def at(servers: Sequence[FakeServer], count: int) -> list[str]:
    return [server.endpoint for server in servers[:count]]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Probabilities of plain integers, without any shares."""
    with torch.no_grad():
        logits = drawn().trained.system(torch.from_numpy(PHOTOS).permute(0, 3, 1, 2))
    return logits.softmax(dim=1).numpy()


def wrong(residues: np.ndarray) -> np.ndarray:
    """A lie that is a valid answer: the results in the wrong order."""
    return residues[:, :, ::-1].copy()


def first_of_batch(residues: np.ndarray) -> np.ndarray:
    """A lie about one result of one image, by one."""
    lie = residues.copy()
    lie[0, 0, 0] += 1 if lie[0, 0, 0] < 50 else -1
    return lie


@pytest.mark.parametrize(("count", "colluding"), [(3, 1), (4, 1), (5, 1), (5, 2), (7, 2), (7, 3)])
def test_the_answer_is_that_of_plain_integers(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray,
    count: int, colluding: int,
) -> None:  # fmt: skip
    client = connect(bundle, at(servers, count), colluding=colluding)
    results = client.predict_batch(PHOTOS)
    np.testing.assert_allclose([result.probabilities for result in results], expected, atol=1e-6)
    for result in results:
        assert result.answered == (True,) * count
        assert (result.suspects, result.corrected) == ((), ())
        assert result.expected_accuracy == 0.5
        assert len(result.timings.rounds) == ROUNDS
        assert result.timings.encode_ms == pytest.approx(sum(each.encode_ms for each in result.timings.rounds))
    assert all(server.rounds == [1, 2, 3] for server in servers[:count])
    assert not any(server.received for server in servers[count:])


def test_one_call_moves_as_many_bytes_as_the_manifest_says(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], rounds: CodedManifest
) -> None:
    result = connect(bundle, at(servers, 3)).predict(PHOTOS[0])
    up = sum(len(each.moduli) * each.values for each in rounds.rounds)
    down = sum(len(each.moduli) * each.outputs for each in rounds.rounds)
    assert (result.bytes_up, result.bytes_down) == ((up,) * 3, (down,) * 3)
    assert all(sum(share.size for share in server.received) == up for server in servers[:3])


def test_local_mode_gives_the_same(release: Path, expected: np.ndarray) -> None:
    with Client.local(release, colluding=2) as client:
        results = client.predict_batch(PHOTOS)
    np.testing.assert_allclose([result.probabilities for result in results], expected, atol=1e-6)
    assert results[0].answered == (True,) * MOST


# ---------------------------------------------------------------------------------------------------- silent and lying


@pytest.mark.parametrize("silent", [(0,), (4,), (0, 3), (1, 4)])
@pytest.mark.parametrize("number", [None, 1, 2, 3])
def test_silent_servers_change_nothing_while_enough_answer(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray,
    silent: tuple[int, ...], number: int | None,
) -> None:  # fmt: skip
    client = connect(bundle, at(servers, 5), colluding=1, retries=Retries(attempts=1))
    for server in silent:
        servers[server].fault = Fault(status="UNAVAILABLE", round=number)
    results = client.predict_batch(PHOTOS)
    np.testing.assert_allclose([result.probabilities for result in results], expected, atol=1e-6)
    assert [server for server in range(5) if not results[0].answered[server]] == list(silent)
    # Whoever was silent is asked again in every round.
    assert all(server.rounds == [1, 2, 3] for server in servers[:5])


def test_a_server_that_hangs_does_not_use_up_the_time_of_the_rest(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray
) -> None:
    client = connect(bundle, at(servers, 4), colluding=1)
    client.warmup()
    servers[2].fault = Fault(delay=HANG_S)
    result = client.predict(PHOTOS[0], timeout=3)
    np.testing.assert_allclose(result.probabilities, expected[0], atol=1e-6)
    assert result.answered == (True, True, False, True)
    assert servers[0].rounds == [1, 2, 3]


def test_a_quorum_ends_every_round_as_soon_as_it_decodes(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray
) -> None:
    client = connect(bundle, at(servers, 4), colluding=1, wait="quorum", timeout=HANG_S)
    client.warmup()
    servers[1].fault = Fault(delay=HANG_S)
    started = time.monotonic()
    result = client.predict(PHOTOS[0])
    assert time.monotonic() - started < HANG_S / 2
    np.testing.assert_allclose(result.probabilities, expected[0], atol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_too_few_answers_are_an_error_that_names_the_round(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], number: int
) -> None:
    client = connect(bundle, at(servers, 3), retries=Retries(attempts=1))
    servers[1].fault = Fault(status="UNAVAILABLE", round=number)
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(PHOTOS[0])
    assert ("in round" in str(caught.value)) == (number > 1)
    assert (caught.value.needed, set(caught.value.causes)) == (3, {1})
    assert max(servers[0].rounds) == number, "nothing of a later round is sent"


@pytest.mark.parametrize("liar", range(5))
@pytest.mark.parametrize("number", [None, 1, 2, 3])
@pytest.mark.parametrize("lie", [wrong, first_of_batch])
def test_one_liar_of_five_is_named_and_changes_nothing(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray,
    liar: int, number: int | None, lie: Callable[[np.ndarray], np.ndarray],
) -> None:  # fmt: skip
    client = connect(bundle, at(servers, 5), colluding=1)
    honest = client.predict_batch(PHOTOS)
    servers[liar].fault = Fault(logits=lie, round=number)
    results = client.predict_batch(PHOTOS)
    np.testing.assert_array_equal(
        [result.probabilities for result in results], [result.probabilities for result in honest]
    )
    np.testing.assert_allclose([result.probabilities for result in results], expected, atol=1e-6)
    assert all(result.suspects == result.corrected == (liar,) for result in results)


def test_two_liars_of_seven_are_named(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray
) -> None:
    """They tell the same lie: what both give are points of one polynomial, which is not the others'."""
    client = connect(bundle, at(servers, 7), colluding=1)
    for liar in (2, 5):
        servers[liar].fault = Fault(logits=wrong)
    result = client.predict(PHOTOS[0])
    np.testing.assert_allclose(result.probabilities, expected[0], atol=1e-6)
    assert result.corrected == (2, 5)


def test_a_server_that_was_caught_is_not_believed_in_a_later_round(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer]
) -> None:
    """Silent servers would leave its second lie unchecked."""
    client = connect(bundle, at(servers, 5), colluding=1, retries=Retries(attempts=1))
    servers[0].fault = Fault(logits=wrong)
    for silent in (3, 4):
        servers[silent].fault = Fault(status="UNAVAILABLE", round=ROUNDS)
    with pytest.raises(ContradictingAnswersError, match=r"gave wrong ones in earlier rounds \(0\)") as caught:
        client.predict(PHOTOS[0])
    assert (caught.value.answered, caught.value.round) == ((0, 1, 2), ROUNDS)


@pytest.mark.parametrize("number", [1, 2])
def test_answers_that_contradict_each_other_end_the_call(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], number: int
) -> None:
    client = connect(bundle, at(servers, 4), colluding=1)
    servers[3].fault = Fault(logits=wrong, round=number)
    with pytest.raises(ContradictingAnswersError, match=r"servers 0, 1, 2, 3 contradict") as caught:
        client.predict(PHOTOS[0])
    assert (caught.value.answered, caught.value.round) == ((0, 1, 2, 3), number)
    assert all(server.rounds == list(range(1, number + 1)) for server in servers[:4]), "no later round, no retry"


def test_a_lie_passes_unseen_where_no_answer_is_to_spare(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray
) -> None:
    servers[0].fault = Fault(logits=wrong, round=ROUNDS)
    result = connect(bundle, at(servers, 3)).predict(PHOTOS[0])
    assert result.corrected == ()
    assert np.abs(result.probabilities - expected[0]).max() > 1e-3


@pytest.mark.parametrize(
    "fault",
    [
        Fault(logits=lambda residues: residues[:, :, :-1]),
        Fault(logits=lambda residues: residues[:, :-1]),
        Fault(logits=lambda residues: np.repeat(residues, 2, axis=0)),
        Fault(logits=lambda residues: residues.astype(np.float32)),
        Fault(logits=lambda residues: np.full_like(residues, 127)),
        Fault(logits=lambda residues: np.full_like(residues, -121)),
    ],
    ids=["short", "a prime less", "a batch more", "floats", "beyond every prime", "one beyond the largest"],
)
@pytest.mark.parametrize("number", [1, 3])
def test_what_is_no_answer_of_the_round_counts_as_silence(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], expected: np.ndarray,
    fault: Fault, number: int,
) -> None:  # fmt: skip
    client = connect(bundle, at(servers, 4), colluding=1)
    servers[1].fault = Fault(logits=fault.logits, round=number)
    result = client.predict(PHOTOS[0])
    np.testing.assert_allclose(result.probabilities, expected[0], atol=1e-6)
    assert result.answered == (True, False, True, True)
    strict = connect(bundle, at(servers, 4), colluding=1, min_answers=4)
    with pytest.raises(NotEnoughAnswersError) as caught:
        strict.predict(PHOTOS[0])
    assert isinstance(caught.value.causes[1], AnswerError)


@pytest.mark.parametrize("number", [1, 2])
def test_a_deadline_in_the_middle_of_the_rounds(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], number: int
) -> None:
    client = connect(bundle, at(servers, 3))
    client.warmup()
    for server in servers[:3]:
        server.fault = Fault(delay=HANG_S, round=number)
    started = time.monotonic()
    with pytest.raises(NotEnoughAnswersError):
        client.predict(PHOTOS[0], timeout=0.5)
    assert time.monotonic() - started < HANG_S / 2
    assert max(servers[0].rounds) == number


# ------------------------------------------------------------------------------------------------- what servers can see


def decoded(servers: Sequence[FakeServer], index: int, moduli: Sequence[int]) -> np.ndarray:
    """What the shares of one message to each server stand for."""
    shares = np.stack([server.received[index] for server in servers], axis=1)
    return coding.decode(shares, range(1, len(servers) + 1), moduli)


def test_every_server_gets_its_own_point_of_one_polynomial_in_every_round(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], rounds: CodedManifest
) -> None:
    connect(bundle, at(servers, 5), colluding=2).predict_batch(PHOTOS)
    with torch.no_grad():
        values = drawn().trained.system.values(torch.from_numpy(PHOTOS).permute(0, 3, 1, 2)).numpy().astype(np.int64)
    shared, _, _ = drawn().trained.system.run(values)
    for index, (about, own) in enumerate(zip(rounds.rounds, shared, strict=True)):
        flat = own.reshape(len(own), -1)
        for three in itertools.combinations(range(5), 3):  # T + 1 points of their own places, and no others
            shares = np.stack([servers[server].received[index] for server in three], axis=1)
            found = coding.decode(shares, [server + 1 for server in three], about.moduli)
            np.testing.assert_array_equal(found, flat)


def test_equal_images_are_shared_anew_in_every_call_and_message(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], rounds: CodedManifest
) -> None:
    client = connect(bundle, at(servers, 3))
    client.predict(PHOTOS[0])
    client.predict_batch(np.stack([PHOTOS[0], PHOTOS[0]]))
    one, other = client.encode(PHOTOS[0]), client.encode(PHOTOS[0])
    for server in range(3):
        alike = [*servers[server].received[0], *servers[server].received[ROUNDS], one[server], other[server]]
        assert one[server].shape == (len(rounds.rounds[0].moduli), rounds.rounds[0].values)
        for first, second in itertools.combinations(alike, 2):
            assert (first == second).mean() < 0.02
    first = coding.decode(np.stack(one)[None], range(1, 4), rounds.rounds[0].moduli)
    second = coding.decode(np.stack(other)[None], range(1, 4), rounds.rounds[0].moduli)
    np.testing.assert_array_equal(first, second)


def test_one_servers_bytes_are_uniform_whatever_the_image(connect: Callable[..., Driver], bundle: Bundle) -> None:
    client = connect(bundle, [f"127.0.0.1:{port}" for port in (1, 2, 3)])
    black = np.zeros_like(PHOTOS[0])
    seen = np.stack([client.encode(black)[1] for _ in range(60)]).astype(np.int64)
    prime = 241
    counts = np.bincount((seen[:, 0] % prime).ravel(), minlength=prime)
    expected = counts.sum() / prime
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - (prime - 1)) < 6 * math.sqrt(2 * (prime - 1))


@pytest.mark.parametrize("fault", [Fault(logits=wrong), Fault(status="UNAVAILABLE"), None])
def test_what_was_decoded_changes_nothing_that_servers_see(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], fault: Fault | None
) -> None:
    servers[2].fault = fault if fault is None else Fault(logits=fault.logits, status=fault.status, round=1)
    connect(bundle, at(servers, 5), colluding=1, retries=Retries(attempts=1)).predict_batch(PHOTOS)
    forms = [[(number, share.shape) for number, share in zip(s.rounds, s.received, strict=True)] for s in servers[:5]]
    assert forms == [forms[0]] * 5
    assert [number for number, _ in forms[0]] == [1, 2, 3]


def test_a_retry_sends_the_same_share_to_the_same_server(
    connect: Callable[..., Driver], bundle: Bundle, release: Path, servers: list[FakeServer], wire: WireName
) -> None:
    with FakeServer.for_release(release, 1, wire=wire) as replica:
        servers[1].fault = Fault(status="UNAVAILABLE", round=2)
        listed = [servers[0].endpoint, Server([servers[1].endpoint, replica.endpoint]), servers[2].endpoint]
        client, twice = connect(bundle, listed), 0
        for _ in range(20):  # which replica is tried first is a matter of chance
            own = (servers[1], replica)
            before = [len(each.received) for each in own]
            assert all(client.predict(PHOTOS[0]).answered)
            second = [
                share
                for each, start in zip(own, before, strict=True)
                for number, share in zip(each.rounds[start:], each.received[start:], strict=True)
                if number == 2
            ]
            twice += len(second) == 2
            assert all(np.array_equal(share, second[0]) for share in second)
        assert twice


def test_a_server_at_another_place_gets_no_share(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer]
) -> None:
    endpoints = at(servers, 3)
    with pytest.raises(NotEnoughAnswersError, match="put the servers in order"):
        connect(bundle, [endpoints[0], endpoints[2], endpoints[1]]).predict(PHOTOS[0])
    assert not any(server.received for server in servers)


def test_no_share_is_sent_before_the_models_of_all_rounds_have_passed_the_check(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer]
) -> None:
    def another_last_round(response: object) -> None:
        config = response.config  # pyright: ignore[reportAttributeAccessIssue]
        if config.name == f"branch-{ROUNDS}":
            config.output[0].dims[1] += 1

    servers[0].check_fault = Fault(response=another_last_round)
    with pytest.raises(NotEnoughAnswersError, match="its tensors differ"):
        connect(bundle, at(servers, 3)).predict(PHOTOS[0])
    assert not any(server.received for server in servers)


def test_a_share_of_a_round_is_refused_where_it_does_not_belong(
    bundle: Bundle, servers: list[FakeServer], wire: WireName
) -> None:
    from privdfs._channel import Channels

    channels = Channels(bundle.manifest, [Server(endpoint) for endpoint in at(servers, 3)])
    client = Client(bundle, at(servers, 3))
    own = client.encode(PHOTOS[0])
    connection = connection_class(wire)(0, servers[0].endpoint)
    connection.checked = True
    for share in (Share(1, own[1][None]), Share(0, own[0][None], round=2), Share(0, own[0][None], partition=3)):
        with pytest.raises(RuntimeError, match="about to be sent"):
            channels[0].ask_branch(connection, share, 1, 1)
    connection.checked = False
    with pytest.raises(RuntimeError, match="not passed the check"):
        channels[0].ask_branch(connection, Share(0, own[0][None]), 1, 1)
    channels.close()
    client.close()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("when", [1, 2])
def test_without_randomness_nothing_is_sent(
    connect: Callable[..., Driver],
    bundle: Bundle,
    servers: list[FakeServer],
    monkeypatch: pytest.MonkeyPatch,
    when: int,
) -> None:
    draws, draw = itertools.count(1), coding.draw

    def failing(*arguments: object) -> object:
        if next(draws) == when:
            raise OSError(5, "no entropy")
        return draw(*arguments)  # pyright: ignore[reportArgumentType]

    client = connect(bundle, at(servers, 3))
    monkeypatch.setattr("privdfs._coded.coding.draw", failing)
    with pytest.raises(RandomnessError):
        client.predict(PHOTOS[0])
    assert all(server.rounds == list(range(1, when)) for server in servers[:3])


def test_randomness_is_wiped_once_the_shares_are_made(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_so_far, draw = list[np.ndarray](), coding.draw

    def noting(*arguments: object) -> object:
        drawn_so_far.append(draw(*arguments))  # pyright: ignore[reportArgumentType]
        return drawn_so_far[-1]

    monkeypatch.setattr("privdfs._coded.coding.draw", noting)
    connect(bundle, at(servers, 3)).predict(PHOTOS[0])
    assert len(drawn_so_far) == ROUNDS
    assert not any(each.any() for each in drawn_so_far)


@pytest.mark.parametrize(
    ("count", "options", "problem"),
    [
        (2, {}, r"2 servers cannot keep 1 of them ignorant.*give 3 servers$"),
        (4, {"colluding": 2}, r"give 5 servers, or pass colluding=1"),
        (5, {"colluding": 0}, "at least 1"),
        (5, {"colluding": True}, "at least 1"),
        (5, {"colluding": 1.0}, "at least 1"),
        (0, {}, "no servers were given"),
        (5, {"min_answers": 4}, "5 servers with colluding=2 need 5 answers; min_answers=4 is too few"),
        (5, {"colluding": 1, "min_answers": 6}, "min_answers=6 is not a whole number from 3 to 5"),
        (3, {"key": b"k" * 16}, "a key was given for a coded release"),
        (17, {}, "more than the 16"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    connect: Callable[..., Driver], bundle: Bundle, count: int, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        connect(bundle, [f"127.0.0.1:{port}" for port in range(1, count + 1)], **options)


def test_servers_in_another_order_are_told_of_once(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    swapped = at(servers, 5)
    swapped[0], swapped[1] = swapped[1], swapped[0]
    client = connect(bundle, swapped, colluding=1)
    for _ in range(2):
        assert client.predict(PHOTOS[0]).answered == (False, False, True, True, True)
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(":")[0] for text in found] == [f"the result was made without server {i}" for i in (0, 1)]
    assert all("put the servers in order" in text for text in found)
    with pytest.raises(NotEnoughAnswersError):
        connect(bundle, swapped[:3], colluding=1).predict(PHOTOS[0])
    assert len(caplog.records) == 2, "the error says it"


def test_two_servers_at_one_address_are_refused(connect: Callable[..., Driver], bundle: Bundle) -> None:
    with pytest.raises(ConfigError):
        connect(bundle, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:1"])


def test_colluding_belongs_to_coded_releases(connect: Callable[..., Driver], tmp_path: Path) -> None:
    from tests.sdk.tiny_release import build_release

    masked = build_release(tmp_path / "masked")
    with pytest.raises(ConfigError, match="belongs to coded releases"):
        connect(masked / "client", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"], colluding=1)


def test_masked_and_coded_parts_of_a_bundle_say_which_they_are(bundle: Bundle) -> None:
    images = PHOTOS[:1]
    for ask in (lambda: bundle.n_servers, lambda: bundle.masked, lambda: bundle.encode(images)):
        with pytest.raises(ConfigError, match="coded release"):
            ask()
    assert "coded" in repr(bundle)


def test_min_answers_may_ask_for_redundancy(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer]
) -> None:
    client = connect(bundle, at(servers, 5), colluding=1, min_answers=5, retries=Retries(attempts=1))
    servers[4].fault = Fault(status="UNAVAILABLE")
    with pytest.raises(NotEnoughAnswersError, match="lower `min_answers`"):
        client.predict(PHOTOS[0])
    assert client.with_options(min_answers=3).predict(PHOTOS[0]).answered[:4] == (True,) * 4


def test_the_selftest_replays_every_round(bundle: Bundle, release: Path, tmp_path: Path) -> None:
    found = bundle.selftest()
    assert (found.images, found.differing_values, found.probability_error) == (6, 0.0, 0.0)
