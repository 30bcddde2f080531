"""The command `privdfs`: the edge side of a release.

    privdfs predict BUNDLE IMAGE... --trust KEY --server HOST:PORT --server HOST:PORT --server HOST:PORT
    privdfs predict BUNDLE IMAGE... --trust KEY --servers FILE
    privdfs predict --local RELEASE IMAGE...
    privdfs health BUNDLE --trust KEY --servers FILE
    privdfs describe BUNDLE
    privdfs selftest BUNDLE
    privdfs verify DIR
    privdfs install STORE SOURCE --trust KEY
    privdfs refresh STORE SOURCE --trust KEY
    privdfs rollback STORE --trust KEY

`_cli_servers.py` describes servers files, and the options that replace one.

`--trust` names the public key of the signer. `predict`, `health`, `install`, `refresh` and `rollback` require it
(or --allow-unsigned); the others say whether the signature was checked. A BUNDLE is a client folder, or a store, whose
bundle in use is taken. Results go to standard output (`--json` for programs). An error is one line on standard error
and exit code 2. An IMAGE is a file, a pipe, or `-` for standard input. If one is not an image, the others are still
classified.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec

from privdfs import __version__
from privdfs._bundle import Bundle
from privdfs._cli_servers import Renamed, add_arguments, servers_of
from privdfs._cli_words import in_options
from privdfs._client import Client
from privdfs._command_line import explain
from privdfs._constants import DEFAULT_TIMEOUT_S
from privdfs._errors import ConfigError, Error, ImageError
from privdfs._images import read_rest
from privdfs._keys import UserKey
from privdfs._result import Result
from privdfs._store import BundleStore, is_store
from privdfs._verify import verify

_STDIN = "-"
_FAILED = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parse(arguments)
    output: TextIO = sys.stdout
    if isinstance(output, io.TextIOWrapper):  # a terminal may not show every character of a file or class name
        cast("io.TextIOWrapper", output).reconfigure(errors="backslashreplace")
    try:
        code: int = options.run(options) or 0
        print(end="", flush=True)
    except Error as error:
        _complain(in_options(error.message))
        return _FAILED
    except OSError as error:
        return explain("privdfs", error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Like `parse_args`, but images may also follow the options, which argparse cannot do in a subcommand."""
    parser = _parser()
    options, rest = parser.parse_known_args(_without_dashes(sys.argv[1:] if arguments is None else arguments))
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-") and word != _STDIN]
    if rest and (options.run is not _predict or unknown):
        # Names only: what follows one may be a secret.
        parser.error(f"unrecognized arguments: {' '.join(unknown) or f'{len(rest)} too many'}{_hint(unknown)}")
    if rest:
        options.images += rest
    return options


def _without_dashes(arguments: Sequence[str]) -> list[str]:
    """What `--` separates, without it: behind it are files, whatever their names begin with."""
    words = list(arguments)
    if "--" not in words:
        return words
    cut = words.index("--")
    files = words[cut + 1 :]
    return words[:cut] + [f"./{name}" if name.startswith("-") and name != _STDIN else name for name in files]


def _hint(unknown: Sequence[str]) -> str:
    return " (a token comes from a file, --token-file, or a variable, --token-env)" if "--token" in unknown else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="privdfs", description="Classify images without showing them to any server.")
    parser.add_argument("--version", action="version", version=f"privdfs {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # Abbreviations would change their meaning with every new option.
    add = partial(commands.add_parser, allow_abbrev=False)

    predict = add(
        "predict",
        help="classify images",
        usage="%(prog)s [options] BUNDLE IMAGE... --trust PEM --server HOST:PORT --server HOST:PORT ...\n"
        "       %(prog)s [options] --local RELEASE IMAGE...",
    )
    predict.set_defaults(run=_predict)
    predict.add_argument("bundle", metavar="BUNDLE", help="client folder of a release (an image with --local)")
    predict.add_argument("images", metavar="IMAGE", nargs="*", help="image files, - for standard input")
    predict.add_argument("--local", metavar="RELEASE", help="run a whole release folder in this process (not private)")
    predict.add_argument(
        "--min-answers",
        type=int,
        metavar="N",
        help="how many servers must answer (default: all; of a coded release as many as decode)",
    )

    health = add("health", help="ask every endpoint whether it serves its part of the release; no image is involved")
    health.set_defaults(run=_health, local=None, min_answers=None)
    health.add_argument("bundle", metavar="BUNDLE", help="client folder of a release")

    for command in (predict, health):
        command.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="S", help="seconds per call")
        command.add_argument(
            "--user-key", metavar="FILE", help="the user's key, 32 hexadecimal digits (keyed releases)"
        )
        command.add_argument(
            "--colluding",
            type=int,
            metavar="T",
            help="how many servers together must learn nothing (coded releases; default: the largest minority)",
        )
        command.add_argument("--key-file", action=Renamed, dest="user_key", help=argparse.SUPPRESS)
        command.add_argument(
            "--max-leakage-db",
            type=float,
            metavar="DB",
            help="refuse a release that leaks more above the class mean, or whose leakage is unknown",
        )
        add_arguments(command)

    for name, run, metavar, help_text in (
        ("describe", _describe, "BUNDLE", "show what a release says about itself"),
        ("selftest", _selftest, "BUNDLE", "replay the golden examples of a release on this device"),
        ("verify", _verify, "DIR", "compare a client folder, a server's folder or a whole release with its manifests"),
    ):
        command = add(name, help=help_text)
        command.set_defaults(run=run)
        command.add_argument("folder", metavar=metavar, type=Path)
        if name == "describe":
            command.add_argument("--n-servers", type=int, metavar="N", help="what N servers can stand (coded releases)")
            command.add_argument("--colluding", type=int, metavar="T", help="of which T together must learn nothing")

    install = add("install", help="verify a bundle and put it into use; the one before is kept")
    install.set_defaults(run=_install)
    refresh = add("refresh", help="install if the source has a new bundle, but none that was rolled back; for timers")
    refresh.set_defaults(run=_refresh)
    for command in (install, refresh):
        command.add_argument("store", metavar="STORE", type=Path, help="folder of the device's bundles")
        command.add_argument("source", metavar="SOURCE", help="client folder of a release, or its https address")
    rollback = add("rollback", help="put the bundle before the present one back into use")
    rollback.set_defaults(run=_rollback)
    rollback.add_argument("store", metavar="STORE", type=Path, help="folder of the device's bundles")

    for command in (predict, health, install, refresh, rollback):
        command.add_argument("--allow-unsigned", action="store_true", help="do not ask who made the bundle")
    for command in commands.choices.values():
        command.add_argument("--trust", action="append", metavar="PEM", help="public key of the releases' signer")
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _predict(options: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    with _client(options) as client:
        images = [options.bundle, *options.images] if options.local else options.images
        if not images:
            raise ConfigError("no image was given: privdfs predict BUNDLE IMAGE... --server HOST:PORT ...")
        width = max(len(_shown(image)) for image in images)
        failed = False
        try:
            for image in images:
                row: dict[str, Any] = {"image": _unicode(image)}
                try:
                    result = client.predict(_source(image))
                except ImageError as error:
                    failed = True
                    _complain(f"{_shown(image)}: {error.message}")
                    rows.append(row | {"error": _unicode(error.message)})
                    continue
                rows.append(row | _plain(result))
                if not options.json:
                    _print_line(f"{_shown(image):<{width}}", result)
        finally:  # whatever stops the rest, what is known is not lost
            if options.json and rows:
                _print_json({"release": client.bundle.release, "results": rows})
    return _FAILED if failed else 0


def _source(image: str) -> str | bytes:
    """What the client reads: the path of a file; of a pipe or standard input, which end only once, the bytes."""
    if image in {_STDIN, "/dev/stdin"}:
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - it is, where the shell closed it
            raise ImageError("standard input is closed: name a file instead")
        data = read_rest(sys.stdin.buffer)
    elif _is_pipe(image):
        try:
            with Path(image).open("rb") as pipe:
                data = read_rest(pipe)
        except OSError as error:
            raise ImageError(f"the pipe cannot be read ({error.strerror}): check its permissions") from error
    else:
        return image
    if not data:
        raise ImageError("nothing came from the pipe: it is empty, or was read before")
    return data


def _is_pipe(image: str) -> bool:
    try:
        return Path(image).is_fifo()
    except (OSError, ValueError):
        return False


def _print_line(image: str, result: Result) -> None:
    who = f"{sum(result.answered)}/{len(result.answered)} servers"
    print(
        f"{image}  {result.label:<16} {result.probability:7.2%}  {who}  "
        f"{result.timings.total_ms:7.1f} ms  {sum(result.bytes_up)} bytes up{_left_out(result)}",
        flush=True,
    )


def _left_out(result: Result) -> str:
    """Whose answers were found wrong."""
    who = ", ".join(map(str, result.corrected))
    return f"  wrong answers left out: server{'s' * (len(result.corrected) > 1)} {who}" if who else ""


def _complain(message: str) -> None:
    print(f"privdfs: {_shown(' '.join(message.split()))}", file=sys.stderr)


def _shown(text: str) -> str:
    """Text for a terminal: what would break the line, or the terminal, is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in _unicode(text)
    )


def _unicode(text: str) -> str:
    """Text for any reader: bytes of a file's name that are not UTF-8 become escapes, as in a shell."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _client(options: argparse.Namespace) -> Client:
    limits: dict[str, Any] = {"timeout": options.timeout, "min_answers": options.min_answers}
    limits["max_leakage_db"] = options.max_leakage_db
    limits["colluding"] = options.colluding
    if options.user_key:
        limits["key"] = UserKey.read(options.user_key)
    if options.local:
        if options.server or options.servers:
            raise ConfigError("--local and servers were both given: drop one of them")
        return Client.local(options.local, **limits)
    servers = servers_of(options)
    signed: dict[str, Any] = {"trust": options.trust, "allow_unsigned": options.allow_unsigned}
    if is_store(Path(options.bundle)):
        return Client(BundleStore(options.bundle, **signed).open(), servers, **limits)
    return Client(options.bundle, servers, **signed, **limits)


def _health(options: argparse.Namespace) -> None:
    with _client(options) as client:
        rows = client.health()
        problems = [None if row.error is None else in_options(row.error.message) for row in rows]
        if options.json:
            told = [{**asdict(row), "ok": row.ok, "error": said} for row, said in zip(rows, problems, strict=True)]
            _print_json({"release": client.bundle.release, "endpoints": told})
        else:
            for row, said in zip(rows, problems, strict=True):
                print(f"server {row.server}  {row.endpoint:<24}  {said or 'ok'}")
    failed = [row.endpoint for row in rows if not row.ok]
    if failed:
        raise Error(f"{len(failed)} of {len(rows)} endpoints cannot be used: {', '.join(failed)}")


def _plain(result: Result) -> dict[str, Any]:
    return {
        "label": result.label,
        "index": result.index,
        "probability": result.probability,
        "top": result.top(5),
        "answered": result.answered,
        "expected_accuracy": result.expected_accuracy,
        "suspects": result.suspects,
        "corrected": result.corrected,
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "timings": result.timings,
    }


def _open(options: argparse.Namespace) -> Bundle:
    signed: dict[str, Any] = {"trust": options.trust, "allow_unsigned": options.trust is None}
    if is_store(options.folder):
        return BundleStore(options.folder, **signed).open()
    return Bundle.open(options.folder, **signed)


def _signed(options: argparse.Namespace) -> str:
    return "signature not checked (--trust KEY does)" if options.trust is None else "signed by a trusted key"


def _describe(options: argparse.Namespace) -> None:
    bundle = _open(options)
    page = bundle.describe(servers=options.n_servers, colluding=options.colluding)  # it checks the numbers
    if options.json:
        _print_json(bundle.manifest)
    else:
        print(page)
        print(f"signature    {_signed(options).removeprefix('signature ')}")


def _selftest(options: argparse.Namespace) -> None:
    bundle = _open(options)
    outcome = bundle.selftest()
    if options.json:
        _print_json({"release": bundle.release, "selftest": outcome})
        return
    print(
        f"ok: {outcome.images} golden examples of release {bundle.release}: {outcome.differing_values:.2%} of the "
        f"share values differ, probabilities by at most {outcome.probability_error:.1g}"
    )


def _verify(options: argparse.Namespace) -> None:
    found = verify(options.folder, trust=options.trust)
    if options.json:
        _print_json({"release": found[0].release, "folders": found})
        return
    for folder in found:
        print(f"ok: {folder.name}, {folder.files} files of release {folder.release}, {_signed(options)}")


def _install(options: argparse.Namespace) -> None:
    store = BundleStore(options.store, trust=options.trust, allow_unsigned=options.allow_unsigned)
    _in_use(options, store.install(options.source))


def _refresh(options: argparse.Namespace) -> None:
    store = BundleStore(options.store, trust=options.trust, allow_unsigned=options.allow_unsigned)
    found = store.try_refresh(options.source)
    if isinstance(found, Bundle):
        _in_use(options, found)
        return
    bundle = store.open()
    why = "nothing new" if found is None else f"{found} was rolled back, and only `install` puts it back"
    if options.json:
        _print_json({"release": bundle.release})
    else:
        print(f"ok: {why}; release {bundle.release} stays in use, {_signed(options)}")


def _rollback(options: argparse.Namespace) -> None:
    store = BundleStore(options.store, trust=options.trust, allow_unsigned=options.allow_unsigned)
    _in_use(options, store.rollback())


def _in_use(options: argparse.Namespace, bundle: Bundle) -> None:
    if options.json:
        _print_json({"release": bundle.release})
        return
    print(f"ok: release {bundle.release} is in use, {_signed(options)}")


def _print_json(value: object) -> None:
    print(json.dumps(msgspec.to_builtins(value), indent=2), flush=True)  # ASCII, which every terminal and pipe takes


if __name__ == "__main__":
    sys.exit(main())
