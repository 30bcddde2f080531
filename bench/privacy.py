"""`python bench/privacy.py [RELEASE …]`: what each coalition of servers can reconstruct, by a learned decoder.

The attacker has what a coalition has: its shares as the bundle makes them from the attacker's own images (the training
half of the data set, so the same distribution), each value in its known place. It trains a decoder from scratch for
every coalition, and is scored on the test images. Beside every figure stand the two floors (the mean image; the mean
image of the class, which every branch's answer reveals anyway) and the same attack on an undefended split, the
baseline cut after its first convolution.

This is one attack, and a modest one: a lower bound on what a coalition can learn, not a proof that it learns no more.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import (
    ENCODED_AT_ONCE,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    UNDEFENDED_IMAGES,
    made_by,
    merge_release,
    read_results,
    release_data,
    release_name,
    release_parser,
    releases,
    shares_of,
    verified_graph,
    write_results,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from privdfs import Bundle, Error
from privdfs_export import evaluate
from privdfs_training.attacks.decoder import DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.floors import class_means, mean_image
from privdfs_training.attacks.metrics import Scores, score
from privdfs_training.data import DataSet

ATTACK = "decoder"
SEED = 0


@dataclass(frozen=True)
class Coalition:
    """What one coalition reconstructs.

    Attributes:
        size: number of servers.
        members: their indices.
        attack: its name.
        psnr: mean over test images, in dB.
        psnr_worst: mean of the twentieth of the images that came out best, in dB.
        ssim: mean over test images.
        images: number of test images.
    """

    size: int
    members: list[int]
    attack: str
    psnr: float
    psnr_worst: float
    ssim: float
    images: int


def undefended_features(release: Path, images: Tensor) -> Tensor:
    """What an undefended split would send: the baseline's feature after its first convolution and ReLU.

    Args:
        release: folder of the release.
        images: uint8 [images, channels, height, width].

    Returns:
        float16 [images, channels, height, width], to halve the memory.
    """
    whole = onnx.load_from_string(verified_graph(release / "baseline", "baseline"))
    first = next(node.output[0] for node in whole.graph.node if node.op_type == "Relu")
    del whole.graph.output[:]
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(first))
    cut = evaluate.session(whole.SerializeToString())
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    parts = [
        np.asarray(cut.run([first], {"image": pixels[at : at + ENCODED_AT_ONCE]})[0]).astype(np.float16)
        for at in range(0, len(pixels), ENCODED_AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts))


def attack(
    seen: Tensor, seen_test: Tensor, data: DataSet, budget: DecoderBudget, progress: Progress, name: str
) -> Scores:
    """Train a decoder on pairs and score it on the test images."""
    task = progress.add_task(name, total=1.0)
    decoder = train_decoder(
        seen,
        data.train_images[: len(seen)],
        budget,
        seed=SEED,
        progress=lambda done, loss: progress.update(task, completed=done, description=f"{name}, loss {loss:.4f}"),
    )
    progress.remove_task(task)
    return score(reconstruct(decoder, seen_test), data.test_images[: len(seen_test)])


def measure(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one release: floors, the undefended split, and every coalition.

    Returns:
        Its entry of the result file.

    Raises:
        Error: the release or the data set cannot be used.
    """
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    data = release_data(bundle, options.data)
    budget = DecoderBudget(epochs=options.epochs, width=options.width, blocks=options.blocks)
    count = len(data.test_images)
    average = mean_image(data.train_images).expand(count, *data.image_shape)
    by_class = class_means(data.train_images, data.train_labels, len(data.classes))[data.test_labels]
    floor = {
        "mean_image": score(average, data.test_images).psnr,
        "class_mean": score(by_class, data.test_images).psnr,
    }
    console.print(f"floors: mean image {floor['mean_image']:.2f} dB, class mean {floor['class_mean']:.2f} dB")
    found: list[Coalition] = []
    with Progress(console=console, transient=True) as progress:
        shares, shares_test = shares_of(bundle, data.train_images), shares_of(bundle, data.test_images)
        for size in range(1, bundle.n_servers + 1):
            for members in itertools.combinations(range(bundle.n_servers), size):
                seen, seen_test = (
                    torch.cat([every[server] for server in members], dim=1) for every in (shares, shares_test)
                )
                scores = attack(seen, seen_test, data, budget, progress, f"servers {members}")
                found.append(
                    Coalition(
                        size=size,
                        members=list(members),
                        attack=ATTACK,
                        psnr=scores.psnr,
                        psnr_worst=scores.psnr_worst,
                        ssim=scores.ssim,
                        images=count,
                    )
                )
                console.print(f"servers {members}: {scores.psnr:.2f} dB, SSIM {scores.ssim:.3f}")
        pairs = data.train_images[: options.undefended_pairs]
        features, features_test = (
            undefended_features(release, images) for images in (pairs, data.test_images[:UNDEFENDED_IMAGES])
        )
        undefended = attack(features, features_test, data, budget, progress, "undefended split")
        console.print(f"undefended split: {undefended.psnr:.2f} dB, SSIM {undefended.ssim:.3f}")
    worst = {
        str(size): max((one for one in found if one.size == size), key=lambda one: one.psnr)
        for size in range(1, bundle.n_servers + 1)
    }
    return {
        "made_by": made_by(asdict(budget) | {"undefended_pairs": len(pairs)}, seed=SEED),
        "release": bundle.release,
        "data": f"{data.name}, decoder trained on the training half, scored on the test half",
        "floor": floor,
        "undefended": {ATTACK: undefended.psnr},
        "coalitions": [asdict(one) for one in found],
        "worst": {size: {"attack": one.attack, "psnr": one.psnr, "ssim": one.ssim} for size, one in worst.items()},
    }


def table(name: str, entry: dict[str, Any]) -> Table:
    """One release's coalitions beside floors and the undefended split."""
    shown = Table(title=f"Reconstruction from the shares of {name}", title_justify="left", show_edge=False)
    for column in ("attacker", "PSNR, dB", "best twentieth, dB", "SSIM"):
        shown.add_column(column, justify="left" if column == "attacker" else "right")
    shown.add_row("knows nothing (mean image)", f"{entry['floor']['mean_image']:.2f}", "", "")
    shown.add_row("knows the class (class mean)", f"{entry['floor']['class_mean']:.2f}", "", "")
    for one in entry["coalitions"]:
        who = f"servers {', '.join(map(str, one['members']))}"
        shown.add_row(who, f"{one['psnr']:.2f}", f"{one['psnr_worst']:.2f}", f"{one['ssim']:.3f}")
    shown.add_row("undefended split", f"{entry['undefended'][ATTACK]:.2f}", "", "")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = release_parser("privacy", "Measure what coalitions of servers can reconstruct.")
    parser.add_argument("--epochs", type=int, default=5, help="of each decoder (default: 5)")
    parser.add_argument("--width", type=int, default=32, help="channels of each decoder (default: 32)")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks at each resolution (default: 1)")
    parser.add_argument(
        "--undefended-pairs", type=int, default=10_000, metavar="N", help="pairs for the undefended split"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    try:
        read_results(options.out)  # a file that cannot be added to is an error now, not after an hour
        for release in releases(options.releases):
            entry = measure(release, options, console)
            name = release_name(release)
            write_results(options.out, merge_release(read_results(options.out), name, entry))
            console.print(table(name, entry))
    except KeyboardInterrupt:
        print("privacy: stopped; releases measured before are kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"privacy: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(f"\nadded to {options.out}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
