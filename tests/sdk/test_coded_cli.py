"""The command line on a coded release: every command, its page and its JSON, and what it refuses."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from privdfs._cli import main
from privdfs.testing import FakeServer, Fault
from tests.coded_release import build_coded_release, noise
from tests.sdk.commands import failed, options

SERVERS = 5


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_coded_release(tmp_path_factory.mktemp("coded") / "release", servers=SERVERS)


@pytest.fixture
def servers(release: Path) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(release, index)) for index in range(SERVERS)]


@pytest.fixture
def endpoints(servers: list[FakeServer]) -> list[str]:
    return [server.endpoint for server in servers]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(noise(1)[0, :, :, 0]).save(path)
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command says as JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def wrong(residues: np.ndarray) -> np.ndarray:
    return residues[:, :, ::-1].copy()


def test_predict_counts_the_servers_and_the_bytes_of_all_rounds(
    release: Path, endpoints: list[str], picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(release / "client"), *options(endpoints), picture]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    rounds = told(capsys, "describe", str(release / "client"))["rounds"]
    up = SERVERS * sum(each["values"] * len(each["moduli"]) for each in rounds)
    found = re.search(r"(\d+\.\d+)%  5/5 servers +\d+\.\d ms  ([\d,]+) bytes up$", line)
    assert found is not None
    assert int(found[2].replace(",", "")) == up


def test_predict_gives_the_same_through_servers_and_in_local_mode(
    release: Path, endpoints: list[str], picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (far,) = told(capsys, "predict", str(release / "client"), *options(endpoints), picture)["results"]
    (local,) = told(capsys, "predict", "--local", str(release), picture)["results"]
    assert (far["label"], far["probability"]) == (local["label"], local["probability"])
    assert (far["suspects"], far["corrected"]) == ([], [])


def test_a_liar_is_named(
    release: Path, servers: list[FakeServer], endpoints: list[str], picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (honest,) = told(capsys, "predict", "--local", str(release), picture)["results"]
    servers[3].fault = Fault(logits=wrong)
    words = ["predict", str(release / "client"), *options(endpoints), "--colluding", "1", picture]
    (found,) = told(capsys, *words)["results"]
    assert (found["suspects"], found["corrected"], found["probability"]) == ([3], [3], honest["probability"])
    assert "contradict" in failed(capsys, *options_of_four(release, endpoints, picture))


def options_of_four(release: Path, endpoints: list[str], picture: str) -> list[str]:
    """With one answer more than decode, a lie is seen, and not whose it is."""
    return ["predict", str(release / "client"), *options(endpoints[:4]), "--colluding", "1", picture]


@pytest.mark.parametrize(
    ("count", "words", "problem"),
    [
        (
            0,
            ["--allow-unsigned"],
            "no servers were given: pass --server once for each party, in the release's order, or --servers FILE",
        ),
        (2, [], "2 servers cannot keep 1 of them ignorant"),
        (4, ["--colluding", "2"], "give 5 servers, or pass --colluding 1"),
        (5, ["--colluding", "0"], "at least 1"),
        (5, ["--min-answers", "2"], "5 servers with --colluding 2 need 5 answers; --min-answers 2 is too few"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_sent(
    release: Path, servers: list[FakeServer], endpoints: list[str], picture: str,
    capsys: pytest.CaptureFixture[str], count: int, words: list[str], problem: str,
) -> None:  # fmt: skip
    said = failed(capsys, "predict", str(release / "client"), *options(endpoints[:count]), *words, picture)
    assert problem in said
    assert not any(server.received for server in servers)


def test_a_key_is_refused(
    release: Path, endpoints: list[str], picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "user.key"
    key.write_text("6b" * 16)
    key.chmod(0o600)
    words = ["predict", str(release / "client"), *options(endpoints), "--user-key", str(key), picture]
    assert "a key was given for a coded release" in failed(capsys, *words)


def test_health_names_every_server(release: Path, endpoints: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["health", str(release / "client"), *options(endpoints)]
    assert main(words) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [str(index) for index in range(5)]
    assert [row["ok"] for row in told(capsys, *words)["endpoints"]] == [True] * SERVERS


def test_describe_says_what_so_many_servers_can_stand(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["describe", str(release / "client")]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert "shares       coded, 3 rounds" in plain
    for numbers, row in (
        (["--n-servers", "5", "--colluding", "1"], r"\n +5  1  "),
        (["--n-servers", "2"], r"\n +2  1 +3  too few servers: 3 or more, or a smaller T\n"),
    ):
        assert main([*words, *numbers]) == 0
        assert re.search(row, capsys.readouterr().out)
    assert len(told(capsys, *words)["rounds"]) == 3
    assert "from 2 to 16" in failed(capsys, *words, "--n-servers", "1")


def test_selftest_and_verify(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(release / "client")]) == 0
    assert "ok: 6 golden examples" in capsys.readouterr().out
    assert told(capsys, "selftest", str(release / "client"))["selftest"]["differing_values"] == 0
    assert main(["verify", str(release)]) == 0
    names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["ok: client", *(f"ok: server-{index}" for index in range(SERVERS)), "ok: baseline"]


def test_a_store_takes_it_and_serves_predict(
    release: Path, endpoints: list[str], picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    assert main(["install", store, str(release / "client"), "--allow-unsigned"]) == 0
    assert "is in use" in capsys.readouterr().out
    (found,) = told(capsys, "predict", store, *options(endpoints), picture)["results"]
    assert found["answered"] == [True] * SERVERS
