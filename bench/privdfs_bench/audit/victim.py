"""A release under attack, its data set, and what its device and servers make of it."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from privdfs import Bundle
from privdfs._format import BASELINE_FOLDER, BASELINE_MODEL, CLIENT_FOLDER, largest_coalition
from privdfs_bench.audit.effort import HIGHEST, SHOWN, Effort
from privdfs_bench.audit.keyed import most_telling_partition, partition_tables
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import (
    branch_graphs,
    client_graphs,
    nhwc,
    partitions_of,
    release_data,
    shares_of,
    verified_graph,
)
from privdfs_bench.results import ROOT
from privdfs_export import evaluate
from privdfs_training.attacks.floors import class_means, mean_image, nearest_by_answer
from privdfs_training.attacks.metrics import psnr
from privdfs_training.attacks.perceptual import Lpips
from privdfs_training.attacks.prior import Prior, load_prior
from privdfs_training.data import DataSet
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU


class Attacked:
    """A release under attack and its data set: what masked and coded releases have alike.

    Attributes:
        again: Opens the same release in another process.
    """

    again: Callable[[], "Attacked"]

    def __init__(
        self,
        release: Path,
        name: str,
        data: DataSet,
        effort: Effort,
        prior: Path | None = None,
        lpips: Lpips | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Nothing is computed yet.

        Args:
            release: Its folder.
            name: Its id.
            data: Its data set.
            effort: Its limits on images.
            prior: The diffusion prior's file; None takes the data set's in checkpoints/.
            lpips: A further measure of likeness.
            device: Where networks are trained and attacks go through the head; all else stays on the processor.

        Raises:
            BenchError: There are too few images.
        """
        self.release, self.name, self.data, self.effort, self.lpips = release, name, data, effort, lpips
        self.device = device
        self.pairs = min(effort.pairs, len(data.train_images))
        self.targets = min(effort.targets, len(data.test_images))
        if self.targets < SHOWN:
            raise BenchError(f"{self.targets} test images are too few to measure on: give at least {SHOWN}")
        self.prior_path = prior or ROOT / "checkpoints" / f"{data.name}-prior.safetensors"

    @cached_property
    def partition(self) -> int | None:
        """Of a keyed release, that of the user whom attackers are after."""
        return None

    @cached_property
    def probabilities(self) -> tuple[Tensor, Tensor]:
        """The fused answer to pairs and targets, float [images, classes]."""
        raise NotImplementedError

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the graphs that attacks look at, in hex."""
        raise NotImplementedError

    @cached_property
    def prior(self) -> tuple[Prior, str]:
        """The data set's diffusion prior and the SHA-256 of its file.

        Raises:
            TrainingError: It is missing, damaged or of other images; the message says how to train one.
        """
        try:
            prior = load_prior(self.prior_path, self.data.image_shape, self.data.name)
        except AttackError as error:
            raise AttackError(f"{error}; or leave its attack out with --prior none") from error
        return prior.to(self.device), hashlib.sha256(self.prior_path.read_bytes()).hexdigest()

    @cached_property
    def baseline(self) -> bytes:
        """The unprotected model, as ONNX."""
        return verified_graph(self.release / BASELINE_FOLDER, BASELINE_MODEL)

    @cached_property
    def floor_images(self) -> dict[str, Tensor]:
        """What attackers without a share reconstruct of the targets, float [targets, channels, height, width]."""
        data, labels = self.data, self.data.test_labels[: self.targets]
        nearest = nearest_by_answer(self.probabilities[0], self.probabilities[1])
        return {
            "mean_image": mean_image(data.train_images).expand(self.targets, *data.image_shape),
            "class_mean": class_means(data.train_images, data.train_labels, len(data.classes))[labels],
            "nearest_training": data.train_images[nearest].float() / 255,
        }

    @cached_property
    def floor_psnr(self) -> dict[str, Tensor]:
        """Of every target and floor, in dB."""
        images = self.data.test_images[: self.targets].float() / 255
        return {name: psnr(guess, images).clamp(max=HIGHEST) for name, guess in self.floor_images.items()}

    @cached_property
    def judge(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The baseline's penultimate features and its logits, of float images in 0..1."""
        graph = onnx.load_from_string(self.baseline)
        last = next(node for node in reversed(graph.graph.node) if node.op_type in {"Gemm", "MatMul"})
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.input[0]))
        model, names = evaluate.session(graph.SerializeToString()), ["logits", last.input[0]]

        def look(images: Tensor) -> tuple[Tensor, Tensor]:
            pixels = nhwc((images * 255).round().to(torch.uint8))
            logits, features = (
                torch.from_numpy(np.asarray(one, np.float32)) for one in model.run(names, {"image": pixels})
            )
            return features.flatten(1), logits

        return look


class Victim(Attacked):
    """A masked release, its data set, and what its device and servers make of it."""

    def __init__(
        self,
        release: Path,
        data_folder: Path | None,
        effort: Effort,
        prior: Path | None = None,
        lpips: Lpips | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Open the release; nothing is computed yet.

        Args:
            release: Its folder.
            data_folder: Of the data set.
            effort: Its limits on images.
            prior: The diffusion prior's file; None takes the data set's in checkpoints/.
            lpips: A further measure of likeness.
            device: Where networks are trained and attacks go through the head; all else stays on the processor.

        Raises:
            Error: The release or the data set cannot be used.
        """
        self.again = partial(Victim, release, data_folder, effort, prior, lpips, device)  # for another process
        self.bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
        data = release_data(self.bundle, data_folder)
        super().__init__(release, self.bundle.release, data, effort, prior, lpips, device)
        self.servers = self.bundle.n_servers
        self.minority = largest_coalition(self.servers)

    @cached_property
    def partition(self) -> int | None:
        """Of a keyed release, that of the user whom attackers are after: no deal is known to give a minority more."""
        if partitions_of(self.bundle) is None:
            return None
        tables = partition_tables(self.bundle, self.encoder)
        train, test = self.data.train_images[: self.pairs], self.data.test_images[: self.targets]
        return most_telling_partition(self.bundle, tables, train, test, self.minority)

    @cached_property
    def shares(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the pairs and the targets, for every server."""
        train, test = self.data.train_images[: self.pairs], self.data.test_images[: self.targets]
        return shares_of(self.bundle, train, self.partition), shares_of(self.bundle, test, self.partition)

    @cached_property
    def answers(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the branches answer to them, float [images, classes]."""
        branches = [evaluate.session(graph) for graph in branch_graphs(self.release, self.bundle)]

        def answer(server: int, share: Tensor) -> Tensor:
            every = None if self.partition is None else np.full(len(share), self.partition, np.int32)
            inputs = {"share": share.numpy()} | evaluate.partition_input(every)
            return torch.from_numpy(evaluate.run_batched(branches[server], inputs)[0].astype(np.float32))

        both = [[answer(server, share) for server, share in enumerate(shares)] for shares in self.shares]
        return both[0], both[1]

    @cached_property
    def probabilities(self) -> tuple[Tensor, Tensor]:
        """The fused answer to pairs and targets, float [images, classes]."""
        fusion = evaluate.session(client_graphs(self.release, self.bundle)[1])
        fused = [
            evaluate.fuse(fusion, torch.stack(answers, dim=1).numpy(), range(self.servers)) for answers in self.answers
        ]
        return torch.from_numpy(fused[0]), torch.from_numpy(fused[1])

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the graphs that attacks look at: `encoder`, `baseline`, and `branch 0`, `branch 1`, …, in hex."""
        graphs = {"encoder": self.encoder, "baseline": self.baseline}
        for server, graph in enumerate(branch_graphs(self.release, self.bundle)):
            graphs[f"branch {server}"] = graph
        return {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()}

    @cached_property
    def encoder(self) -> bytes:
        """The device's half, as ONNX."""
        return client_graphs(self.release, self.bundle)[0]
