import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from PIL import Image

from privdfs import Client, __version__
from privdfs._cli import main
from privdfs.testing import FakeServer, Fault
from tests.sdk.commands import failed, options


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(1)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def test_predict_prints_a_line_per_image(
    release: Path, endpoints: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(release / "client"), *options(endpoints), *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, path in zip(lines, pictures, strict=True):
        assert line.startswith(path)
        assert re.search(r"\d+\.\d+%  3/3 servers +\d+\.\d ms  18 bytes up$", line)


def test_the_file_that_is_not_an_image_is_named(
    release: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    assert str(text) in failed(capsys, "predict", "--local", str(release), str(text))


def run(
    release: Path, *arguments: str | bytes, encoding: str = "utf-8", data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """`privdfs predict --local` as a process, in a terminal of some encoding."""
    return subprocess.run(
        [sys.executable, "-m", "privdfs._cli", "predict", "--local", release, *arguments],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        input=data,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_one_bad_file_does_not_cost_the_answers_of_the_others(
    release: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    files = [pictures[0], str(text), "", str(tmp_path), pictures[1], pictures[0]]
    assert main(["predict", "--local", str(release), *files]) == 2
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == [pictures[0], pictures[1], pictures[0]]
    complaints = captured.err.splitlines()
    assert len(complaints) == 3
    for line, part in zip(complaints, (str(text), "the path is empty", "a folder"), strict=True):
        assert line.startswith("privdfs: ")
        assert part in line

    assert main(["predict", "--local", str(release), *files, "--json"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 3
    rows = json.loads(captured.out)["results"]
    assert [row["image"] for row in rows] == files
    assert [i for i, row in enumerate(rows) if "error" in row] == [1, 2, 3]
    assert all("label" in rows[i] for i in (0, 4, 5))


def test_a_line_is_there_as_soon_as_it_is_known(release: Path, pictures: list[str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "privdfs._cli", "predict", "--local", release, pictures[0], pipe]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(pictures[0])  # and only now comes the second image
        pipe.write_bytes(Path(pictures[1]).read_bytes())
        assert process.stdout.readline().startswith(str(pipe))
    assert process.returncode == 0


def test_names_that_begin_with_a_dash(release: Path, pictures: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "-dash.png"
    odd.write_bytes(Path(pictures[0]).read_bytes())
    for words in (["--", "-dash.png"], [str(Path(pictures[1])), "--timeout", "20", "--", "-dash.png"]):
        done = subprocess.run(
            [sys.executable, "-m", "privdfs._cli", "predict", "--local", str(release), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "-dash.png" in done.stdout


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_answers_that_are_known_are_not_lost_when_the_servers_fail(
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    predict = Client.predict

    def then_fail(self: Client, image: Any) -> Any:
        result = predict(self, image)
        fakes[0].fault = Fault(status="UNAVAILABLE")
        return result

    monkeypatch.setattr(Client, "predict", then_fail)
    assert main(["predict", str(release / "client"), *options(endpoints), *pictures, *form]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("privdfs: ")
    assert "server 0: " in captured.err
    if form:
        assert [row["image"] for row in json.loads(captured.out)["results"]] == pictures[:1]
    else:
        assert captured.out.startswith(pictures[0])
        assert captured.out.count("\n") == 1


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_an_image(release: Path, pictures: list[str], name: str) -> None:
    data = Path(pictures[0]).read_bytes()
    for arguments in ((name, "--json"), ("--json", name)):
        ran = run(release, *arguments, data=data)
        assert ran.returncode == 0, ran.stderr
        (row,) = json.loads(ran.stdout)["results"]
        assert (row["image"], "label" in row) == (name, True)
    ran = run(release, name, name, data=data)  # it ends only once
    assert (ran.returncode, ran.stdout.count(b"\n"), ran.stderr.count(b"\n")) == (2, 1, 1)
    assert b"was read before" in ran.stderr


def in_bash(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the shell; $0 is Python, $1 and so on are the arguments."""
    bash = shutil.which("bash")
    assert bash
    return subprocess.run(
        [bash, "-c", command, sys.executable, *arguments], capture_output=True, check=False, timeout=60
    )


def test_pipes_and_endless_files(release: Path, pictures: list[str]) -> None:
    command = '"$0" -m privdfs._cli predict --local "$1" <(cat "$2") /dev/zero "$2" - </dev/zero'
    ran = in_bash(command, release, pictures[0])
    assert ran.returncode == 2
    lines = ran.stdout.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].split()[1] == lines[1].split()[1]  # the same image, the same class
    zero, endless = ran.stderr.decode().splitlines()
    assert "not a regular file" in zero
    assert "more than" in endless


@pytest.mark.parametrize(("redirect", "message"), [("<&-", "closed"), ("</dev/null", "empty")])
def test_standard_input_that_is_closed_or_empty(
    release: Path, pictures: list[str], redirect: str, message: str
) -> None:
    ran = in_bash(f'"$0" -m privdfs._cli predict --local "$1" - "$2" {redirect}', release, pictures[0])
    assert ran.returncode == 2
    assert re.search(f"^privdfs: -: .*{message}", ran.stderr.decode())
    assert ran.stdout.decode().startswith(pictures[0])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_of_any_bytes_in_any_terminal(release: Path, tmp_path: Path, pictures: list[str], encoding: str) -> None:
    raw = [b"caf\xff.png", "caf\u00e9 \u2603.png".encode(), b"a\nb\x1b[31m.png"]
    names = [os.fsencode(tmp_path) + b"/" + name for name in raw]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(Path(pictures[0]).read_bytes())
    missing = os.fsencode(tmp_path) + b"/none\xff\x1b.png"
    ran = run(release, *names, missing, encoding=encoding)
    assert ran.returncode == 2
    assert b"Traceback" not in ran.stderr
    lines = ran.stdout.decode(encoding).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{tmp_path}/caf\\xff.png ")
    assert lines[1].startswith(
        f"{tmp_path}/caf{shown}" if (shown := {"ascii": "\\xe9"}.get(encoding)) else f"{tmp_path}/caf\u00e9"
    )
    assert lines[2].startswith(f"{tmp_path}/a\\nb\\x1b[31m.png ")
    assert b"\x1b" not in ran.stdout + ran.stderr
    assert b"none\\xff\\x1b.png" in ran.stderr
    assert ran.stderr.count(b"\n") == 1

    ran = run(release, *names, missing, "--json", encoding=encoding)
    assert ran.returncode == 2
    rows = json.loads(ran.stdout)["results"]
    assert [Path(row["image"]).name for row in rows] == [
        "caf\\xff.png",
        "caf\u00e9 \u2603.png",
        "a\nb\x1b[31m.png",
        "none\\xff\x1b.png",
    ]


def test_a_reader_that_has_seen_enough(release: Path, pictures: list[str]) -> None:
    command = '"$0" -m privdfs._cli predict --local "$1" "$2" "$2" "$2" "$2" | head -1; exit ${PIPESTATUS[0]}'
    ran = in_bash(command, release, pictures[0])
    assert ran.stdout.count(b"\n") == 1
    assert not ran.stderr
    assert ran.returncode in {0, 2}  # 0 if all was written before `head` ended


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_has_no_room(release: Path, pictures: list[str]) -> None:
    ran = in_bash('"$0" -m privdfs._cli predict --local "$1" "$2" > /dev/full', release, pictures[0])
    assert ran.returncode == 2
    assert ran.stderr.startswith(b"privdfs: the output cannot be written (No space left on device)")
    assert ran.stderr.count(b"\n") == 1


def test_output_that_is_closed(release: Path, pictures: list[str]) -> None:
    ran = in_bash('"$0" -m privdfs._cli predict --local "$1" "$2" >&-', release, pictures[0])
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_output_that_nobody_reads(release: Path, pictures: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["predict", "--local", release, pictures[0]], ["describe", release / "client", "--json"]):
        ran = subprocess.run(
            [sys.executable, "-m", "privdfs._cli", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
        assert (ran.returncode, ran.stderr) == (2, b"")
    os.close(writer)


def test_predict_in_json_is_the_same_in_local_mode(
    release: Path, endpoints: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(release / "client"), *pictures, *options(endpoints), "--json"]) == 0
    remote = json.loads(capsys.readouterr().out)
    assert main(["predict", "--local", str(release), *pictures, "--json"]) == 0
    local = json.loads(capsys.readouterr().out)
    assert remote["release"] == local["release"] == "tiny-1"
    for one, other, path in zip(remote["results"], local["results"], pictures, strict=True):
        assert one["image"] == path
        assert one["answered"] == [True, True, True]
        assert one["bytes_up"] == [5, 6, 7]
        assert one["timings"]["total_ms"] > 0
        assert one.pop("timings") != other.pop("timings")
        assert one == other


def test_predict_with_a_server_missing(
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fakes[0].fault = Fault(status="UNAVAILABLE")
    line = failed(capsys, "predict", str(release / "client"), *options(endpoints), *pictures)
    assert "server 0: " in line
    assert main(["predict", str(release / "client"), *options(endpoints), "--min-answers", "2", pictures[0]]) == 0
    assert "2/3 servers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "CLIENT", "none.png", "SERVERS"], "no image file"),
        (["predict", "CLIENT", "SERVERS"], "no image was given"),
        (
            ["predict", "CLIENT", "PICTURE", "--allow-unsigned"],
            "no servers were given: pass --server once for each party",
        ),
        (["predict", "CLIENT", "PICTURE", "--server", "127.0.0.1:1,127.0.0.1:1"], "twice"),
        (["predict", "CLIENT", "PICTURE", "--server", "a.example:1"], "TLS"),
        (["predict", "CLIENT", "PICTURE", "SERVERS", "--timeout", "0"], "timeout"),
        (["predict", "CLIENT", "PICTURE", "--server", "a.example:1", "--tls-cert", "c.pem"], "mutual TLS needs both"),
        (["predict", "--local", "RELEASE", "PICTURE", "SERVERS"], "drop one"),
        (["predict", "CLIENT", "PICTURE"], "pass --trust KEY, or --allow-unsigned"),
        (["predict", "none", "PICTURE", "SERVERS"], "manifest.json"),
        (["describe", "RELEASE"], "client folder"),
        (["selftest", "none"], "manifest.json"),
        (["verify", "none"], "manifest.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    release: Path,
    endpoints: list[str],
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    words: list[str] = []
    for argument in arguments:
        known = {"CLIENT": [str(release / "client")], "RELEASE": [str(release)], "PICTURE": pictures[:1]}
        words += options(endpoints) if argument == "SERVERS" else known.get(argument, [argument])
    assert message in failed(capsys, *words)


# -------------------------------------------------------------------------------------------- which servers, and how


class Secured:
    """Three servers with TLS, each with a certificate and a token of its own, that want one of the device."""

    def __init__(self, stack: ExitStack, release: Path, folder: Path) -> None:
        self.folder, self.seen = folder, [[], [], []]
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
        device = authority.issue_cert("device.example")
        device.cert_chain_pems[0].write_to_path(folder / "device.pem")
        device.private_key_pem.write_to_path(folder / "device.key")
        self.endpoints: list[str] = []
        for i in range(3):
            own = authority.issue_cert("127.0.0.1")
            own.cert_chain_pems[0].write_to_path(folder / f"{i}.pem")
            (folder / f"{i}.token").write_text(f"secret-{i}\n")
            pair = own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
            credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
            fake = stack.enter_context(FakeServer.for_release(release, i, credentials=credentials))
            fake._model_infer = partial(self._infer, i, fake._model_infer)
            self.endpoints.append(fake.endpoint)

    def _infer(self, index: int, real: Any, request: Any, context: Any) -> Any:
        self.seen[index] += [value for name, value in context.invocation_metadata() if name in HEADERS]
        return real(request, context)

    def options(self, *names: str) -> list[str]:
        """Of every server's endpoint, then options whose values are files in the folder."""
        servers = [word for endpoint in self.endpoints for word in ("--server", endpoint)]
        return [*servers, *(word if word.startswith("--") else str(self.folder / word) for word in names)]


HEADERS = {"authorization", "triton-grpc-protocol-x"}
DEVICE = ("--tls-cert", "device.pem", "--tls-key", "device.key")


@pytest.fixture
def secured(release: Path, tmp_path: Path) -> Iterator[Secured]:
    with ExitStack() as stack:
        yield Secured(stack, release, tmp_path)


def test_options_once_for_all_servers(
    release: Path, secured: Secured, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(release / "client"), pictures[0], "--allow-unsigned"]
    assert main([*words, *secured.options("--ca", "ca.pem", *DEVICE, "--token-file", "0.token")]) == 0
    assert "3/3 servers" in capsys.readouterr().out
    assert secured.seen == [["Bearer secret-0"]] * 3


def test_options_once_for_each_server(
    release: Path, secured: Secured, pictures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["predict", str(release / "client"), pictures[0], "--allow-unsigned"]
    pins = ["--pin", "0.pem", "--pin", "1.pem", "--pin", "2.pem"]
    tokens = [word for i in range(3) for word in ("--token-env", f"TOKEN_{i}")]
    for i in range(3):
        monkeypatch.setenv(f"TOKEN_{i}", f"secret-{i}")
    header = ["--token-header", "triton-grpc-protocol-x"]
    assert main([*words, *secured.options(*pins, *DEVICE), *tokens, *header]) == 0
    assert "3/3 servers" in capsys.readouterr().out
    assert secured.seen == [["secret-0"], ["secret-1"], ["secret-2"]]
    shifted = ["--pin", "1.pem", "--pin", "2.pem", "--pin", "0.pem"]
    assert main([*words, *secured.options(*shifted, *DEVICE), *tokens, *header]) == 2
    assert "server 0" in capsys.readouterr().err
    assert main([*words, *secured.options("--pin", "0.pem", *DEVICE), *tokens]) == 2
    assert "the same pinned certificate" in capsys.readouterr().err
    assert [len(seen) for seen in secured.seen] == [1, 1, 1]


def servers_file(secured: Secured, **changes: Any) -> Path:
    first, second, third = secured.endpoints
    device = {"cert": "device.pem", "key": str(secured.folder / "device.key")}
    servers = [
        {"endpoints": [first], "ca": "ca.pem", "token_file": "0.token", **device},
        {"endpoints": [second], "pin": "1.pem", "token_env": "TOKEN_1", **device},
        {"endpoints": [third], "ca": "ca.pem", **device, **changes},
    ]
    path = secured.folder / "servers.json"
    path.write_text(json.dumps({"servers": servers}))
    return path


@pytest.mark.parametrize("command", ["predict", "health"])
def test_a_file_says_it_for_each_server(
    release: Path,
    secured: Secured,
    pictures: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setenv("TOKEN_1", "secret-1")
    words = [command, str(release / "client"), "--allow-unsigned", *(pictures[:1] if command == "predict" else [])]
    assert main([*words, "--servers", str(servers_file(secured))]) == 0
    out = capsys.readouterr().out
    if command == "predict":
        assert "3/3 servers" in out
        assert secured.seen == [["Bearer secret-0"], ["Bearer secret-1"], []]
        return
    assert [line.split()[:2] + line.split()[3:] for line in out.splitlines()] == [
        ["server", str(i), "ok"] for i in range(3)
    ]
    assert main([*words, "--servers", str(servers_file(secured, ca="other-ca.pem")), "--json"]) == 2
    captured = capsys.readouterr()
    assert [row["ok"] for row in json.loads(captured.out)["endpoints"]] == [True, True, False]
    assert captured.err.startswith(f"privdfs: 1 of 3 endpoints cannot be used: {secured.endpoints[2]}")
    assert secured.seen == [[], [], []], "no share was sent"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pin", "a.pem", "--pin", "b.pem"], "--pin was given 2 times for 3 servers"),
        (["--ca", "zz-none.pem"], "zz-none.pem' cannot be read"),
        (["--token-file", "zz-secret"], "the token: the file cannot be read"),
        (["--token-env", "zz-secret"], "the environment variable of the token is not set"),
        (["--token-env", "ZZ_SECRET"], "the environment variable of the token is not set"),
        (["--token-env", "HOME", "--token-file", "x"], "drop one of them"),
        (["--token-header", "triton-grpc-protocol-X", "--token-env", "HOME"], "in lower case"),
        (["--token-header", "zz-secret"], "no token"),
        (["--servers", "servers.json"], "--servers and --server were both given"),
        (["--tls-key", "k.pem"], "mutual TLS needs both"),
        (["--ca", "ca.pem", "--pin", "a.pem"], "drop one of them"),
        (["--insecure", "--tls"], "drop one of them"),
    ],
)
def test_connection_options_that_do_not_fit(
    release: Path, pictures: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    servers = options(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    line = failed(capsys, "predict", str(release / "client"), pictures[0], *servers, *words)
    assert message in line
    assert "zz-secret" not in line.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be used"),
        ("[]", "Expected `object`"),
        ('{"servers": [{"endpoints": "a:1"}]}', "Expected `array`"),
        ('{"servers": [{"endpoints": ["127.0.0.1:1"], "token": "zz-secret"}]}', "unknown field `token`"),
        ('{"servers": []}', "no servers were given"),
        ("\xff", "cannot be used"),
    ],
)
def test_a_servers_file_that_does_not_fit(
    release: Path,
    pictures: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    (tmp_path / "servers.json").write_bytes(content.encode("latin-1"))
    words = ["--allow-unsigned", "--servers", str(tmp_path / "servers.json")]
    line = failed(capsys, "predict", str(release / "client"), pictures[0], *words)
    assert message in line
    assert "zz-secret" not in line


def test_old_names_of_options_still_work_and_say_the_new_one(
    release: Path, secured: Secured, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(release / "client"), pictures[0], "--allow-unsigned"]
    old = ["--ca", "ca.pem", "--cert", "device.pem", "--key", "device.key"]
    assert main([*words, *secured.options(*old)]) == 0
    captured = capsys.readouterr()
    assert "3/3 servers" in captured.out
    assert captured.err.splitlines() == [
        "privdfs predict: --cert is now --tls-cert; the next version drops the old name",
        "privdfs predict: --key is now --tls-key; the next version drops the old name",
    ]


@pytest.mark.parametrize(
    "words", [["--token", "zz-secret"], ["--token=zz-secret"], ["--tok=zz-secret"], ["--pas=zz-secret"]]
)
def test_a_token_on_the_command_line_is_refused_and_not_repeated(
    release: Path, pictures: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(release / "client"), pictures[0], *words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "zz-secret" not in error
    assert ("--token-file" in error.splitlines()[-1]) == words[0].startswith("--token")


def test_describe(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(release / "client")]) == 0
    assert "release      tiny-1" in capsys.readouterr().out
    assert main(["describe", str(release / "client"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == "tiny-1"


def test_selftest(release: Path, release_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(release / "client")]) == 0
    assert "ok: 6 golden examples" in capsys.readouterr().out
    assert main(["selftest", str(release / "client"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selftest"]["images"] == 6
    (release_copy / "client" / "fusion.onnx").write_bytes(b"")
    assert "fusion.onnx" in failed(capsys, "selftest", str(release_copy / "client"))


@pytest.mark.parametrize("folder", [".", "client", "server-1"])
def test_verify_passes_on_what_was_exported(release: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    assert main(["verify", str(release / folder)]) == 0
    names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    expected = ["client", "server-0", "server-1", "server-2"] if folder == "." else [folder]
    assert names == [f"ok: {name}" for name in expected]
    assert main(["verify", str(release / folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == "tiny-1"


def test_verify_checks_the_baseline_of_a_release(
    release_copy: Path, other_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(release_copy / "server-0", release_copy / "baseline")
    assert main(["verify", str(release_copy)]) == 0
    assert "ok: baseline" in capsys.readouterr().out
    shutil.rmtree(release_copy / "baseline")
    shutil.copytree(other_release / "server-0", release_copy / "baseline")
    assert "baseline is of release tiny-2" in failed(capsys, "verify", str(release_copy))


def test_verify_finds_what_does_not_belong(
    release_copy: Path, other_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = release_copy / "server-1" / "branch" / "2" / "model.onnx"
    extra.parent.mkdir()
    extra.write_bytes(b"")
    assert "branch/2/model.onnx is not listed" in failed(capsys, "verify", str(release_copy))
    shutil.rmtree(extra.parent)
    model = release_copy / "server-1" / "branch" / "1" / "model.onnx"
    good = model.read_bytes()
    model.write_bytes(good + b"\0")
    assert "branch/1/model.onnx is not the file" in failed(capsys, "verify", str(release_copy))
    model.write_bytes(good)
    shutil.copytree(other_release / "server-0", release_copy / "server-3")
    assert "server-3 is not one of the 3 servers" in failed(capsys, "verify", str(release_copy))
    shutil.rmtree(release_copy / "server-3")
    shutil.rmtree(release_copy / "server-1")
    assert "server-1" in failed(capsys, "verify", str(release_copy))
    shutil.copytree(other_release / "server-1", release_copy / "server-1")
    assert "server-1 is of release tiny-2" in failed(capsys, "verify", str(release_copy))


def test_the_command_as_a_process() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "privdfs._cli", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == f"privdfs {__version__}\n"
    ran = subprocess.run([sys.executable, "-m", "privdfs._cli", "fly"], capture_output=True, check=False, timeout=60)
    assert ran.returncode == 2


def test_an_image_comes_through_standard_input_or_a_pipe(
    release: Path,
    endpoints: list[str],
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, pipe = Path(pictures[0]).read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    line = ["predict", str(release / "client"), *options(endpoints), "--json", pictures[0], "-", str(pipe)]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True).start()
    assert main(line) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["image"] for row in rows] == line[-3:]
    one, *others = [{key: row[key] for key in row.keys() - {"image", "timings"}} for row in rows]
    assert one["label"]
    assert others == [one, one]


@pytest.mark.parametrize(
    ("stdin", "told"),
    [(None, "standard input is closed"), (SimpleNamespace(buffer=io.BytesIO()), "nothing came from the pipe")],
    ids=["closed", "empty"],
)
def test_nothing_on_standard_input(
    release: Path,
    endpoints: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdin: object,
    told: str,
) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    assert told in failed(capsys, "predict", str(release / "client"), *options(endpoints), "-")
