"""A small edge app: classifies the pictures that appear in a folder, and appends what it finds to a file.

    python examples/watch_folder.py FOLDER --store STORE --trust KEY --server HOST:PORT ... [--ca PEM] [--once]

A camera writes pictures into FOLDER. Each is classified once, with the bundle in use in STORE (`privdfs install`), and
becomes one line of JSON in FOLDER/results.jsonl. A picture that is none is noted and skipped; when too few servers
answer, it is tried again at the next look. For development, `--local RELEASE` takes the place of servers and store.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from privdfs import TLS, BundleStore, Client, Error, ImageError, NotEnoughAnswersError, Result, Server

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
#: A file that was changed more recently may still be being written.
QUIET_S = 0.5


def waiting(folder: Path, done: set[str]) -> Iterator[Path]:
    """Pictures that have not been classified yet, oldest first."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name not in done]
    stamped = sorted((path.stat().st_mtime, path) for path in found)
    return (path for changed, path in stamped if time.time() - changed >= QUIET_S)


def done_before(results: Path) -> set[str]:
    """Names in the file of results, so that a restart classifies nothing twice."""
    if not results.exists():
        return set()
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    # A last line without its end was cut short by a crash; that picture is classified again.
    return {json.loads(line)["picture"] for line in lines if line.endswith("\n")}


def row_of(path: Path, result: Result) -> dict[str, object]:
    """What is kept of a result."""
    return {
        "picture": path.name,
        "label": result.label,
        "probability": round(result.probability, 4),
        "answered": result.answered,
        "suspects": result.suspects,
    }


def look(client: Client, folder: Path, results: Path, done: set[str]) -> int:
    """Classify what has come since the last look; how many pictures have to be tried again."""
    again = 0
    for path in waiting(folder, done):
        try:
            row = row_of(path, client.predict(path))
        except ImageError as error:
            row = {"picture": path.name, "error": error.message}
        except NotEnoughAnswersError as error:
            print(f"watch_folder: {path.name} waits: {error}", file=sys.stderr)
            again += 1
            continue
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        done.add(path.name)
    return again


def make_client(options: argparse.Namespace) -> Client:
    """A client of the bundle in use, or of a release in this process."""
    if options.local:
        return Client.local(options.local, timeout=options.timeout)
    tls = TLS(ca=options.ca) if options.ca else None
    bundle = BundleStore(options.store, trust=options.trust).open()
    servers = [Server(endpoint.split(","), tls) for endpoint in options.server]
    return Client(bundle, servers, timeout=options.timeout, min_answers=options.min_answers)


def main() -> int:
    """Watch until Ctrl-C, or look once; exit code 1 where pictures are left, 2 after an error."""
    parser = argparse.ArgumentParser(prog="watch_folder", description="Classify the pictures that appear in a folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--store", metavar="STORE", help="the device's bundles")
    parser.add_argument("--trust", metavar="PEM", help="public key of the releases' signer")
    parser.add_argument("--server", action="append", default=[], metavar="HOST:PORT", help="once for every server")
    parser.add_argument("--ca", metavar="PEM", help="certificates that may sign the servers'")
    parser.add_argument("--local", metavar="RELEASE", help="run a release in this process: not private")
    parser.add_argument("--min-answers", type=int, metavar="N", help="how many servers must answer (default: all)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for each picture")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between looks")
    parser.add_argument("--once", action="store_true", help="look once and end")
    options = parser.parse_args()
    if not options.local and not (options.store and options.trust):
        parser.error("give --store and --trust, or --local")
    results = options.folder / "results.jsonl"
    try:
        done = done_before(results)
        with make_client(options) as client:
            client.warmup()
            while True:
                left = look(client, options.folder, results, done)
                if options.once:
                    return 1 if left else 0
                time.sleep(options.every)
    except KeyboardInterrupt:
        return 0
    except (Error, OSError) as error:
        print(f"watch_folder: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
