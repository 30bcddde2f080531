"""The command `privdfs`: the edge side of a release.

    privdfs predict BUNDLE IMAGE... --trust KEY --server HOST:PORT --server HOST:PORT --server HOST:PORT
    privdfs predict BUNDLE IMAGE... --trust KEY --servers FILE
    privdfs predict --local RELEASE IMAGE...
    privdfs health BUNDLE --trust KEY --servers FILE
    privdfs describe BUNDLE
    privdfs selftest BUNDLE
    privdfs verify DIR
    privdfs install STORE SOURCE --trust KEY
    privdfs rollback STORE --trust KEY

`_cli_servers.py` says what a servers file is, and which options do without one.

`--trust` names the public key of the releases' signer. `predict`, `health`, `install` and `rollback` insist on it (or
on --allow-unsigned); the others say whether the signature was checked. A BUNDLE is a folder, or a store's, of which the
bundle in use is taken. Results go to standard output (`--json` for programs). What goes wrong is one line on standard
error and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from privdfs import __version__
from privdfs._bundle import Bundle
from privdfs._cli_servers import Renamed, add_arguments, servers_of
from privdfs._client import Client
from privdfs._constants import DEFAULT_TIMEOUT_S
from privdfs._errors import ConfigError, Error, ImageError
from privdfs._keys import UserKey
from privdfs._result import Result
from privdfs._store import BundleStore, is_store
from privdfs._verify import verify

_FAILED = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parse(arguments)
    try:
        options.run(options)
    except Error as error:
        print(f"privdfs: {' '.join(error.message.split())}", file=sys.stderr)
        return _FAILED
    except BrokenPipeError:  # the reader of the output, `head` for example, has seen enough
        sys.stderr.close()
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Like `parse_args`, but images may also stand behind the options, which argparse cannot do in a subcommand."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if rest and (options.run is not _predict or unknown):
        # Names only: what follows one may be a secret.
        parser.error(f"unrecognized arguments: {' '.join(unknown) or f'{len(rest)} too many'}{_hint(unknown)}")
    if rest:
        options.images += rest
    return options


def _hint(unknown: Sequence[str]) -> str:
    return " (a token comes from a file, --token-file, or a variable, --token-env)" if "--token" in unknown else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="privdfs", description="Classify images without showing them to any server.")
    parser.add_argument("--version", action="version", version=f"privdfs {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # Abbreviations would change their meaning with every new option.
    add = partial(commands.add_parser, allow_abbrev=False)

    predict = add("predict", help="classify images")
    predict.set_defaults(run=_predict)
    predict.add_argument("bundle", metavar="BUNDLE", help="client folder of a release (an image with --local)")
    predict.add_argument("images", metavar="IMAGE", nargs="*", help="image files")
    predict.add_argument("--local", metavar="RELEASE", help="run a whole release folder in this process (not private)")
    predict.add_argument("--min-answers", type=int, metavar="N", help="how many servers must answer (default: all)")

    health = add("health", help="ask every endpoint whether it serves its part of the release; no image is involved")
    health.set_defaults(run=_health, local=None, min_answers=None)
    health.add_argument("bundle", metavar="BUNDLE", help="client folder of a release")

    for command in (predict, health):
        command.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="S", help="seconds per call")
        command.add_argument(
            "--user-key", metavar="FILE", help="the user's key, 32 hexadecimal digits (keyed releases)"
        )
        command.add_argument("--key-file", action=Renamed, dest="user_key", help=argparse.SUPPRESS)
        command.add_argument(
            "--max-leakage-db",
            type=float,
            metavar="DB",
            help="refuse a release that leaks more above the class mean, or of which it was not measured",
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

    install = add("install", help="verify a bundle and put it into use; the one before is kept")
    install.set_defaults(run=_install)
    install.add_argument("store", metavar="STORE", type=Path, help="folder of the device's bundles")
    install.add_argument("source", metavar="SOURCE", help="client folder of a release, or its https address")
    rollback = add("rollback", help="put the bundle before the present one back into use")
    rollback.set_defaults(run=_rollback)
    rollback.add_argument("store", metavar="STORE", type=Path, help="folder of the device's bundles")

    for command in (predict, health, install, rollback):
        command.add_argument("--allow-unsigned", action="store_true", help="do not ask who made the bundle")
    for command in commands.choices.values():
        command.add_argument("--trust", action="append", metavar="PEM", help="public key of the releases' signer")
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _predict(options: argparse.Namespace) -> None:
    with _client(options) as client:
        images = [options.bundle, *options.images] if options.local else options.images
        if not images:
            raise ConfigError("no image was given: privdfs predict BUNDLE IMAGE... --server HOST:PORT ...")
        results = [_predict_file(client, image) for image in images]
        if options.json:
            rows = [{"image": image, **_plain(result)} for image, result in zip(images, results, strict=True)]
            _print_json({"release": client.bundle.release, "results": rows})
            return
    width = max(len(image) for image in images)
    for image, result in zip(images, results, strict=True):
        who = f"{sum(result.answered)}/{len(result.answered)} servers"
        print(
            f"{image:<{width}}  {result.label:<16} {result.probability:7.2%}  {who}  "
            f"{result.timings.total_ms:7.1f} ms  {sum(result.bytes_up)} bytes up"
        )


def _predict_file(client: Client, image: str) -> Result:
    try:
        return client.predict(image)
    except ImageError as error:  # among many files, which one
        raise ImageError(f"{image}: {error.message}") from error


def _client(options: argparse.Namespace) -> Client:
    limits: dict[str, Any] = {"timeout": options.timeout, "min_answers": options.min_answers}
    limits["max_leakage_db"] = options.max_leakage_db
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
        if options.json:
            told = [{**asdict(row), "ok": row.ok, "error": None if row.ok else str(row.error)} for row in rows]
            _print_json({"release": client.bundle.release, "endpoints": told})
        else:
            for row in rows:
                print(f"server {row.server}  {row.endpoint:<24}  {'ok' if row.ok else row.error}")
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
        "bytes_up": result.bytes_up,
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
    if options.json:
        _print_json(bundle.manifest)
    else:
        print(bundle.describe())
        print(f"{'signature':<12} {_signed(options)}")


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


def _rollback(options: argparse.Namespace) -> None:
    store = BundleStore(options.store, trust=options.trust, allow_unsigned=options.allow_unsigned)
    _in_use(options, store.rollback())


def _in_use(options: argparse.Namespace, bundle: Bundle) -> None:
    if options.json:
        _print_json({"release": bundle.release})
        return
    print(f"ok: release {bundle.release} is in use, {_signed(options)}")


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


if __name__ == "__main__":
    sys.exit(main())
