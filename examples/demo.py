"""`make demo`: classify 20 real test images with the help of real local tritonservers, none of which sees an image.

    .venv/bin/python examples/demo.py [RELEASE …]

Without a RELEASE it shows both kinds: masked shares, then coded ones. Of each it starts one tritonserver for each
server (three of a coded release), sends each its shares over gRPC, and prints a table. Then it stops the servers and
writes build/demo/report.html and report.png: each image beside what every server received of it. `classify` is what an
application does; the rest is for show.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

try:
    from report import Classified, Shown, write_html, write_png
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from privdfs import Bundle, Client, Error, Result
    from privdfs._coded_format import CodedManifest
    from privdfs._command_line import signals_interrupt
    from privdfs._format import server_folder
    from privdfs_export.serve import serve, serve_release
except ModuleNotFoundError as missing:
    print(f"demo: {missing.name} is not installed here: run `make demo`, which installs what it needs", file=sys.stderr)
    raise SystemExit(2) from None

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "examples" / "images"
#: One of masked shares, one of coded ones.
REFERENCE_RELEASES = [ROOT / "model_repository" / name for name in ("fashion-resnet20", "fashion-coded")]
#: Of a coded release, which may have folders for more: clients choose.
CODED_SERVERS = 3
REPORT = ROOT / "build" / "demo"
#: Generous, for slow machines: the first call also connects to the servers and checks what they serve.
TIMEOUT_S = 15.0
#: Where the terminal is narrower, the table is set tight.
WIDE_COLUMNS = 108
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def classify(client: Client, images: Path, console: Console) -> list[Classified]:
    """Classify the images of a folder, one call each.

    Args:
        client: connected to the servers.
        images: folder with image files and labels.json (file name -> true label).
        console: for the progress bar.

    Returns:
        One record per image, in the order of labels.json.
    """
    labels: dict[str, str] = json.loads((images / "labels.json").read_text(encoding="utf-8"))
    # A masked share is always the same; a coded one is another each time.
    sharings = 2 if isinstance(client.bundle.manifest, CodedManifest) else 1
    return [
        Classified(
            path=images / name,
            label=label,
            result=client.predict(images / name),
            sharings=tuple(tuple(client.encode(images / name)) for _ in range(sharings)),
        )
        for name, label in track(
            labels.items(), "classifying", console=console, transient=True, disable=not console.is_terminal
        )
    ]


def table(rows: Sequence[Classified], *, width: int) -> Table:
    """The result for every image, set for a terminal of so many columns."""
    wide = width >= WIDE_COLUMNS
    shown = Table(box=None, padding=(0, 2, 0, 0) if wide else (0, 1, 0, 0), pad_edge=False, header_style="bold")
    shown.add_column("image")
    shown.add_column("true label")
    shown.add_column("predicted")
    shown.add_column("confidence" if wide else "conf", justify="right")
    shown.add_column("answered" if wide else "who")
    times = ("decode", "encode", "servers", "fusion", "total") if wide else ("dec", "enc", "srv", "fus", "all")
    for name in times:
        shown.add_column(f"{name}\nms", justify="right")
    shown.add_column("bytes to\neach server" if wide else "bytes\nup", justify="right")
    for row in rows:
        result, took = row.result, row.result.timings
        shown.add_row(
            row.path.stem,
            row.label,
            f"[{'green' if row.is_right else 'red'}]{result.label}[/]",
            f"{result.probability:.1%}" if wide else f"{result.probability:.0%}",
            _who(result),
            *(_ms(value) for value in (took.decode_ms, took.encode_ms, slowest(result), took.fusion_ms, took.total_ms)),
            _bytes(result),
        )
    return shown


def slowest(result: Result) -> float:
    """Milliseconds until the last server had answered; they work in parallel."""
    return max(ms for ms in result.timings.servers_ms if ms is not None)


def summary(rows: Sequence[Classified]) -> str:
    """What the table comes to, in a few lines."""
    right = sum(row.is_right for row in rows)
    everybody = all(all(row.result.answered) for row in rows)
    totals = [row.result.timings.total_ms for row in rows]
    bytes_up, image_bytes = sum(rows[0].result.bytes_up), rows[0].image_bytes
    return (
        f"[bold]{right} of {len(rows)} right[/]; "
        f"{'every server answered for every image' if everybody else 'some servers did not answer for some images'}. "
        f"Median {statistics.median(totals):.1f} ms an image; the first took {totals[0]:.0f} ms, since it also loads "
        f"the image decoder, connects to the servers and checks that they serve this release. The servers work in "
        f"parallel, so the time of the slowest is shown.\n"
        f"{bytes_up:,} bytes up for each image, to all servers together; its pixels are {image_bytes:,} bytes."
    )


def _who(result: Result) -> str:
    return "all" if all(result.answered) else ",".join(str(i) for i, heard in enumerate(result.answered) if heard)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _bytes(result: Result) -> str:
    sizes = result.bytes_up
    return f"{len(sizes)}x{sizes[0]}" if len(set(sizes)) == 1 else "+".join(map(str, sizes))


def comparison(shown: Sequence[Shown], *, width: int) -> Table:
    """The releases side by side, set for a terminal of so many columns."""
    gap = 2 if width >= WIDE_COLUMNS else 1
    compared = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for name in ("release", "shares"):
        compared.add_column(name, no_wrap=True)
    for name in ("right", "median\nms", "bytes\nup", "bytes\ndown", "rounds"):
        compared.add_column(name, justify="right", no_wrap=True)
    compared.add_column("one server\nlearns", no_wrap=True)
    for each in shown:
        result = each.rows[0].result
        totals = [row.result.timings.total_ms for row in each.rows]
        compared.add_row(
            each.bundle.release.rpartition("-")[0],  # without the digest, which stands above the release's own table
            "coded" if each.is_coded else "masked",
            f"{sum(row.is_right for row in each.rows)} of {len(each.rows)}",
            _ms(statistics.median(totals)),
            f"{sum(result.bytes_up):,}",
            f"{sum(result.bytes_down):,}",
            str(len(result.timings.rounds)),
            "nothing" if each.is_coded else "little; the class",
        )
    return compared


def demonstrate(release: Path, console: Console) -> Shown:
    """Serve a release, classify the images, and show what came out.

    Raises:
        Error: the release cannot be used or served, or a server did not answer.
    """
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    with ExitStack() as servers:
        started = time.perf_counter()
        with console.status("starting tritonservers"):
            if isinstance(bundle.manifest, CodedManifest):
                folders = [release / server_folder(server) for server in range(CODED_SERVERS)]
                endpoints = servers.enter_context(serve(folders))
            else:
                endpoints = servers.enter_context(serve_release(release))
        console.print(
            f"Release [bold]{bundle.release}[/]: {len(endpoints)} tritonservers, "
            f"ready after {time.perf_counter() - started:.1f} s:\n{', '.join(endpoints)}\n",
            highlight=False,
        )
        with Client(bundle, endpoints, timeout=TIMEOUT_S) as client:
            rows = classify(client, IMAGES, console)
        console.print(table(rows, width=console.width))
        console.print(f"\n{summary(rows)}\n", highlight=False)
        with console.status("stopping the servers"):
            servers.close()
    return Shown(bundle, rows)


def report(shown: Sequence[Shown], out: Path, console: Console) -> None:
    """Compare the releases, and write the report.

    Raises:
        OSError: it cannot be written.
    """
    if len(shown) > 1:
        console.print(comparison(shown, width=console.width))
        console.print(
            "\nThat one server learns nothing of coded shares is proven; how little it learns of masked ones is "
            "measured (docs/PRIVACY.md).",
            highlight=False,
        )
    with console.status("drawing the report"):
        out.mkdir(parents=True, exist_ok=True)
        write_html(out / "report.html", shown)
        write_png(out / "report.png", shown)
    console.print("\nWhat each server received, drawn beside each image:", highlight=False)
    for name in ("report.html", "report.png"):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="demo", description="Classify real test images on local tritonservers.")
    parser.add_argument(
        "releases",
        nargs="*",
        type=Path,
        default=REFERENCE_RELEASES,
        metavar="RELEASE",
        help="folders of releases of the Fashion-MNIST classes (default: fashion-resnet20 and fashion-coded, of "
        "model_repository)",
    )
    parser.add_argument("--out", type=Path, default=REPORT, help="folder of the report (default: build/demo)")
    options = parser.parse_args(arguments)
    try:
        with signals_interrupt():
            console = Console()
            report([demonstrate(release, console) for release in options.releases], options.out, console)
    except KeyboardInterrupt:
        print("demo: stopped; the servers have ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
