"""How often a coded release is right, for several numbers of servers, silent ones and liars among them."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from privdfs import CanaryError, Client, Queries, coding
from privdfs._coded_format import CodedManifest, largest_degree, round_bytes
from privdfs_bench.coded import CodedNetworks, open_coded
from privdfs_bench.coded_client import TIMEOUT_S, local_client
from privdfs_bench.releases import graph_digests, manifest_data, nhwc, release_name, verified_graph
from privdfs_bench.results import made_by
from privdfs_export import evaluate
from privdfs_export.calibration import calibration_error
from privdfs_export.serve import serve_release

#: N and T that are measured, where so many servers decode what they compute.
SETTINGS = ((3, 1), (4, 1), (5, 1), (5, 2), (7, 2), (7, 3))
#: Images of one call.
CALL_IMAGES = 512
#: Of canaries: rates, and calls of one image each until the experiment ends.
CANARY_RATES, CANARY_CALLS = (0.02, 0.1, 0.5), 400


def measure_coded(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one coded release.

    Args:
        release: Its folder.
        options: Of the command line.
        console: For progress.

    Returns:
        Its entry in the result file.

    Raises:
        Error: The release or its data set cannot be used, or a server did not answer.
    """
    networks, name = open_coded(release), release_name(release)
    manifest = networks.manifest
    data = manifest_data(manifest, options.data)
    images, labels = nhwc(data.test_images), data.test_labels.numpy()
    with console.status(f"{name}: exported files, {len(labels)} images"):
        baseline = evaluate.session(verified_graph(release / "baseline", "baseline"))
        logits = evaluate.run_batched(baseline, {"image": images})[0]
        exported = networks.plain(images).probabilities
    with Progress(console=console, transient=True) as progress:
        with serve_release(release) as endpoints, Client(release / "client", endpoints, **_open()) as client:
            served = predict(client, images, progress, f"{name}: {len(endpoints)} tritonservers")[0]
            about = made_by({"agreement": options.agreement}, seed=manifest.made_by.seed, endpoint=endpoints[0])
        some = images if options.agreement is None else images[: options.agreement]
        rows = [
            row
            for servers, colluding in settings(manifest)
            for row in _setting(release, networks, (servers, colluding), some, exported, labels, progress)
        ]
    with console.status(f"{name}: canaries"):
        canaries = [_canary(release, rate, images) for rate in CANARY_RATES] if fewest_servers(manifest) <= 3 else []
    up, down = (sum(way) for way in zip(*map(round_bytes, manifest.rounds), strict=True))
    return {
        "release": manifest.release,
        "sharing": "coded",
        "rounds": len(manifest.rounds),
        "degree": [each.degree for each in manifest.rounds],
        "moduli": [list(each.moduli) for each in manifest.rounds],
        "graphs": graph_digests(release),
        "data": manifest.accuracy.data,
        "backbone": manifest.made_by.config["backbone"]["name"],
        "images": len(labels),
        "baseline": evaluate.fraction_right(logits, labels),
        "fused": evaluate.fraction_right(served, labels),
        "fused_exported": evaluate.fraction_right(exported, labels),
        "ece": calibration_error(served, labels),
        "linear_readouts": manifest.accuracy.readout,
        "agreement": agreement(served, exported),
        "settings": rows,
        "canaries": canaries,
        "client_macs": manifest.macs.head + manifest.macs.fusion,
        "baseline_macs": manifest.macs.baseline,
        "bytes_up": up,
        "bytes_down": down,
        "made_by": about,
    }


def settings(manifest: CodedManifest) -> list[tuple[int, int]]:
    """N and T of `SETTINGS` that the degrees of the rounds allow."""
    degree = largest_degree(manifest)
    return [(servers, colluding) for servers, colluding in SETTINGS if degree * colluding < servers]


def fewest_servers(manifest: CodedManifest) -> int:
    """How many servers decode with T = 1."""
    return coding.needed_answers(largest_degree(manifest), 1)


def agreement(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """How many of the same images get the same class both ways, and how far probabilities differ: not at all."""
    return {
        "images": len(found),
        "agreeing": int((found.argmax(axis=1) == expected[: len(found)].argmax(axis=1)).sum()),
        "largest_probability_difference": float(np.abs(found - expected[: len(found)]).max()),
    }


def _setting(
    release: Path,
    networks: CodedNetworks,
    setting: tuple[int, int],
    images: NDArray[np.uint8],
    exported: NDArray[np.float32],
    labels: NDArray[np.int64],
    progress: Progress,
) -> list[dict[str, Any]]:
    """One N and T: all answer, as many as may are silent, and one lies."""
    servers, colluding = setting
    needed = coding.needed_answers(largest_degree(networks.manifest), colluding)
    silent, lies = servers - needed, coding.correctable(servers, needed)
    cases: list[tuple[str, dict[str, Any]]] = [("all answer", {})]
    if silent:
        cases.append((f"{silent} silent", {"silent": range(silent)}))
    if lies or servers == needed:  # with one more than decode, a lie is seen, and the call ends with an error
        cases.append(("1 lies", {"liar": 0}))
    rows = []
    for case, how in cases:
        with local_client(release, servers, colluding, **how) as client:
            found, named = predict(client, images, progress, f"N = {servers}, T = {colluding}: {case}")
        rows.append(
            {
                "servers": servers,
                "colluding": colluding,
                "case": case,
                "corrects": lies,
                "accuracy": evaluate.fraction_right(found, labels[: len(found)]),
                **agreement(found, exported),
                "images_with_liar_named": named if "liar" in how else None,
            }
        )
    return rows


def _canary(release: Path, rate: float, images: NDArray[np.uint8]) -> dict[str, Any]:
    """How often a call to three servers ends with the alarm, one of which lies in every exchange."""
    caught = 0
    queries = Queries(repeats=0, canary_rate=rate)
    with local_client(release, 3, 1, liar=0, queries=queries) as client:
        for number in range(CANARY_CALLS):
            try:
                client.predict(images[number % len(images)])
            except CanaryError:
                caught += 1
    return {"rate": rate, "calls": CANARY_CALLS, "detected": caught / CANARY_CALLS}


def predict(
    client: Client, images: NDArray[np.uint8], progress: Progress, what: str
) -> tuple[NDArray[np.float32], int]:
    """Probabilities float32 [images, classes] through the SDK, and for how many images server 0 alone was named."""
    task, found, named = progress.add_task(what, total=len(images)), [], 0
    for start in range(0, len(images), CALL_IMAGES):
        results = client.predict_batch(images[start : start + CALL_IMAGES])
        found += [result.probabilities for result in results]
        named += sum(result.suspects == result.corrected == (0,) for result in results)
        progress.advance(task, len(results))
    progress.remove_task(task)
    return np.stack(found), named


def _open() -> dict[str, Any]:
    return {"allow_unsigned": True, "timeout": TIMEOUT_S}


def coded_rows(entry: dict[str, Any]) -> dict[str, str]:
    """Label and value of every line of the table, for one coded release."""
    found, client, whole = entry["agreement"], entry["client_macs"], entry["baseline_macs"]
    rows = {
        "test images": f"{entry['images']:,}",
        "baseline": f"{entry['baseline']:.2%}",
        "[bold]fused, tritonservers[/]": f"[bold]{entry['fused']:.2%}[/]",
        "  against the baseline": f"{100 * (entry['fused'] - entry['baseline']):+.2f} points",
        "fused, exported files": f"{entry['fused_exported']:.2%}",
        "tritonservers agree": f"{found['agreeing']:,} of {found['images']:,}",
        "linear readouts": f"{entry['linear_readouts']:.2%}",
        "calibration error": f"{entry['ece']:.2%}",
    }
    for row in entry["settings"]:
        named = row["images_with_liar_named"]
        told = f"{row['accuracy']:.2%}" + ("" if named is None else f", named for {named:,} of {row['images']:,}")
        rows[f"N = {row['servers']}, T = {row['colluding']}, {row['case']}"] = told
    for row in entry["canaries"]:
        rows[f"canaries, rate {row['rate']:g}"] = f"{row['detected']:.1%} of calls"
    rows |= {"client MACs": f"{client:,}", "baseline MACs": f"{whole:,}"}
    rows["  client of baseline"] = f"{client / whole:.1%}" if whole else "unknown"
    rows["bytes up, to each server"] = f"{entry['bytes_up']:,}"
    rows["bytes down, from each server"] = f"{entry['bytes_down']:,}"
    return rows
