"""How often a release is right, measured on the product itself, and the table that shows it."""

import argparse
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from privdfs import Bundle, Client, ConfigError
from privdfs._format import BASELINE_FOLDER, BASELINE_MODEL, CLIENT_FOLDER
from privdfs_bench.coded_accuracy import coded_rows
from privdfs_bench.pages.coded_privacy import is_coded
from privdfs_bench.releases import (
    branch_graphs,
    bytes_up,
    client_graphs,
    graph_digests,
    nhwc,
    partitions_of,
    release_data,
    release_name,
    shares_of,
    user_key,
    verified_graph,
)
from privdfs_bench.results import made_by
from privdfs_export import evaluate
from privdfs_export.calibration import calibration_error
from privdfs_export.serve import serve_release
from privdfs_training.checkpoint import TrainedSystem, load_system
from privdfs_training.data import DataSet
from privdfs_training.migration import migrated
from privdfs_training.readouts import linear_readouts
from privdfs_training.stage import EVALUATION_BATCH, accuracy

#: Images of one call of the SDK, which sends them in parts of the release's `max_batch`.
CALL_IMAGES = 512
TIMEOUT_S = 120.0
#: Random users' keys that a keyed release is measured with.
UNSEEN_KEYS = 100


def measure(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one release.

    Args:
        release: its folder.
        options: of the command line.
        console: for progress.

    Returns:
        Its entry in the result file.

    Raises:
        Error: the release, its data set or the checkpoint cannot be used, or a server did not answer.
    """
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
    data = release_data(bundle, options.data)
    trained = None if options.checkpoint is None else trained_of(bundle, options.checkpoint, options.factory)
    images, labels = nhwc(data.test_images), data.test_labels.numpy()
    name, manifest = release_name(release), bundle.manifest
    with console.status(f"{name}: exported files, {len(labels)} images"):
        exported = _exported(release, bundle, images, labels)
    served, local, about = _through_the_sdk(release, bundle, images, options, console)
    with console.status(f"{name}: linear readouts"):
        linear = _linear_readouts(bundle, data)
    entry: dict[str, Any] = {
        "release": bundle.release,
        "graphs": graph_digests(release),
        "data": manifest.accuracy.data,
        "backbone": manifest.made_by.config["backbone"]["name"],
        "images": len(labels),
        "baseline": exported.baseline,
        "fused": evaluate.fraction_right(served, labels),
        "fused_exported": exported.fused,
        "calibration_error": calibration_error(served, labels),
        "branches": list(exported.branches),
        "missing": {str(missing): _missing(exported, missing) for missing in range(1, bundle.n_servers)},
        "malicious": {"0": {"worst": exported.fused}} | {str(size): row for size, row in exported.malicious.items()},
        "linear_readouts": linear,
        "agreement": _agreement(served[: len(local)], local),
        "client_macs": manifest.macs.head + manifest.macs.fusion,
        "baseline_macs": manifest.macs.baseline,
        "bytes_up": sum(bytes_up(bundle)),
        "made_by": about,
    }
    if partitions_of(bundle) is not None:
        with console.status(f"{name}: {UNSEEN_KEYS} keys"):
            entry["keys"] = _keys(release, bundle, images, labels)
    if trained is not None:
        with console.status(f"{name}: torch"):
            entry["fused_torch"] = accuracy(trained.system, data.test_batches(EVALUATION_BATCH))
    return entry


def _through_the_sdk(
    release: Path, bundle: Bundle, images: NDArray[np.uint8], options: argparse.Namespace, console: Console
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, Any]]:
    """Probabilities from tritonservers, of the first images those of local mode, and where the result comes from."""
    name, key = release_name(release), user_key(bundle)
    with Progress(console=console, transient=True) as progress:
        with serve_release(release) as endpoints, Client(bundle, endpoints, timeout=TIMEOUT_S, key=key) as client:
            served = _predict(client, images, progress, f"{name}: tritonservers")
            about = made_by(_config(options), seed=bundle.manifest.made_by.seed, endpoint=endpoints[0])
        count = len(images) if options.agreement is None else min(options.agreement, len(images))
        with Client.local(release, timeout=TIMEOUT_S, key=key) as client:
            local = _predict(client, images[:count], progress, f"{name}: local mode")
    return served, local, about


def _agreement(served: NDArray[np.float32], local: NDArray[np.float32]) -> dict[str, Any]:
    """How many of the same images get the same class both ways."""
    return {
        "images": len(local),
        "agreeing": int((served.argmax(axis=1) == local.argmax(axis=1)).sum()),
        "largest_probability_difference": float(np.abs(served - local).max()),
    }


def _exported(
    release: Path, bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> evaluate.ExportedAccuracy:
    """Accuracies of the files of a release, in this process; of a keyed one, spread over its partitions."""
    count = partitions_of(bundle)
    partitions = None if count is None else np.arange(len(images), dtype=np.int32) % np.int32(count)
    encoder, fusion = client_graphs(release, bundle)
    return evaluate.measure(
        encoder=evaluate.session(encoder),
        branches=[evaluate.session(branch) for branch in branch_graphs(release, bundle)],
        fusion=evaluate.session(fusion),
        baseline=evaluate.session(verified_graph(release / BASELINE_FOLDER, BASELINE_MODEL)),
        images=images,
        labels=labels,
        partitions=partitions,
    )


def _linear_readouts(bundle: Bundle, data: DataSet) -> float:
    """Accuracy when every branch is a linear map of its share."""
    shares, shares_test = shares_of(bundle, data.train_images), shares_of(bundle, data.test_images)
    return linear_readouts(shares, data.train_labels, shares_test, data.test_labels, len(data.classes))


def _keys(release: Path, bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Fused accuracy over keys drawn at random, on the exported files, all images under each key."""
    words = np.random.default_rng(0).bytes(16 * UNSEEN_KEYS)
    picked = [bundle.partition(words[at : at + 16]) or 0 for at in range(0, len(words), 16)]
    encoder, fusion = client_graphs(release, bundle)
    found = evaluate.measure_partitions(
        encoder=evaluate.session(encoder),
        branches=[evaluate.session(branch) for branch in branch_graphs(release, bundle)],
        fusion=evaluate.session(fusion),
        images=images,
        labels=labels,
        partitions=sorted(set(picked)),
    )
    accuracies = np.array([found[partition] for partition in picked])
    return {
        "keys": UNSEEN_KEYS,
        "partitions": len(found),
        "mean": float(accuracies.mean()),
        "min": float(accuracies.min()),
        "max": float(accuracies.max()),
        "std": float(accuracies.std()),
        "largest_distance_from_mean": float(np.abs(accuracies - accuracies.mean()).max()),
    }


def _predict(client: Client, images: NDArray[np.uint8], progress: Progress, what: str) -> NDArray[np.float32]:
    """Probabilities float32 [images, classes] through the SDK, as an application gets them."""
    task, found = progress.add_task(what, total=len(images)), []
    for start in range(0, len(images), CALL_IMAGES):
        results = client.predict_batch(images[start : start + CALL_IMAGES])
        found += [result.probabilities for result in results]
        progress.advance(task, len(results))
    return np.stack(found)


def _missing(exported: evaluate.ExportedAccuracy, missing: int) -> dict[str, Any]:
    """Accuracies over all ways in which so many servers can be missing."""
    worst, heard = min(
        (accuracy, answered)
        for answered, accuracy in exported.subsets.items()
        if len(answered) == len(exported.branches) - missing
    )
    return {"mean": float(np.mean(exported.missing(missing))), "worst": worst, "worst_answered": list(heard)}


def trained_of(bundle: Bundle, checkpoint: Path, factory: str | None = None) -> TrainedSystem:
    """Open the trained system that a release was exported from.

    Args:
        bundle: Of the release.
        checkpoint: Its `system.safetensors`.
        factory: What makes its custom backbone; None where it has none.

    Returns:
        The system.

    Raises:
        ConfigError: Another config made the checkpoint.
        Error: It cannot be opened.
    """
    trained = load_system(checkpoint, factory=factory)
    if msgspec.json.decode(msgspec.json.encode(trained.config)) != migrated(bundle.manifest.made_by.config):
        msg = f"{checkpoint} was not trained with the config of {bundle.release}: pass the checkpoint it was made of"
        raise ConfigError(msg)
    return trained


def _config(options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = None if options.checkpoint is None else str(options.checkpoint)
    return {"agreement": options.agreement, "checkpoint": checkpoint}


def table(entries: dict[str, dict[str, Any]]) -> Table:
    """A column for each release."""
    shown = Table(title="Accuracy", title_justify="left", show_edge=False)
    shown.add_column("")
    for name in entries:
        shown.add_column(name, justify="right")
    rows = [coded_rows(entry) if is_coded(entry) else _rows(entry) for entry in entries.values()]
    for label in dict.fromkeys(label for row in rows for label in row):
        shown.add_row(label, *(row.get(label, "") for row in rows))
    return shown


def _rows(entry: dict[str, Any]) -> dict[str, str]:
    """Label and value of every line of the table, for one release."""
    agreement, client, whole = entry["agreement"], entry["client_macs"], entry["baseline_macs"]
    rows = {
        "test images": f"{entry['images']:,}",
        "baseline": f"{entry['baseline']:.2%}",
        "[bold]fused, tritonservers[/]": f"[bold]{entry['fused']:.2%}[/]",
        "  against the baseline": f"{100 * (entry['fused'] - entry['baseline']):+.2f} points",
        "fused, exported files": f"{entry['fused_exported']:.2%}",
    }
    if "fused_torch" in entry:
        rows["fused, torch"] = f"{entry['fused_torch']:.2%}"
    rows["local mode agrees"] = f"{agreement['agreeing']:,} of {agreement['images']:,}"
    for server, value in enumerate(entry["branches"]):
        rows[f"branch {server} alone"] = f"{value:.2%}"
    for missing, values in entry["missing"].items():
        rows[f"{missing} missing, mean"] = f"{values['mean']:.2%}"
        rows[f"{missing} missing, worst"] = f"{values['worst']:.2%}"
    for size, values in entry["malicious"].items():
        for kind, value in values.items():
            if size != "0" and kind != "worst":
                rows[f"{size} malicious, {kind.replace('_', ' ')}"] = f"{value:.2%}"
    rows["linear readouts"] = f"{entry['linear_readouts']:.2%}"
    if "keys" in entry:
        keys = entry["keys"]
        rows[f"{keys['keys']} keys, mean"] = f"{keys['mean']:.2%}"
        rows[f"{keys['keys']} keys, worst and best"] = f"{keys['min']:.2%} to {keys['max']:.2%}"
    rows["client MACs"] = f"{client:,}"
    rows["baseline MACs"] = f"{whole:,}"
    rows["  client of baseline"] = f"{client / whole:.1%}" if whole else "unknown"
    rows["bytes up"] = f"{entry['bytes_up']:,}"
    return rows
