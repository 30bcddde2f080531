"""What each rival does to the feature, and the term that it adds to the loss.

A defence is a module with two duties: `send` turns the head's feature into what the server gets, in training as in
use, and `term` gives what is added to the loss of the split. Networks that a defence plays against are its own
submodules: their gradients and the defender's come out of one backward pass, the sign turned where the two part
(Ganin and Lempitsky, arXiv 1409.7495, section 3), so that the training loop needs to know of no game.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.attacks.decoder import Decoder
from privdfs_training.attacks.metrics import ssim
from privdfs_training.rivals.config import (
    CemConfig,
    Defence,
    DiscoConfig,
    NoPeekConfig,
    ResSflConfig,
    ShredderConfig,
    UndefendedConfig,
)
from privdfs_training.rivals.terms import distance_correlation, information_bound, per_group, turn_gradient

Shape = tuple[int, int, int]
DISCO_TEMPERATURE = 1 / 30  # of the sigmoid whose gradient stands in for that of the pruning
ADVERSARY_BLOCKS = 1  # residual blocks of DISCO's adversary at each resolution


class Undefended(nn.Module):
    """A plain split, and what the other defences share.

    Attributes:
        noisy: Whether two features of one image differ.
    """

    noisy = False

    def start(self, feature: Tensor, labels: Tensor) -> None:
        """Look at some features before the first step of the split.

        Args:
            feature: Of the untrained head, float [images, channels, h, w].
            labels: int64 [images].
        """

    def send(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the server gets.

        Args:
            feature: float [batch, channels, h, w].
            generator: Of noise; None takes torch's own.

        Returns:
            float, same shape.
        """
        del generator
        return feature

    def term(
        self, images: Tensor, feature: Tensor, sent: Tensor, labels: Tensor
    ) -> tuple[Tensor | float, dict[str, float]]:
        """What is added to the loss of the split.

        Args:
            images: uint8 [batch, channels, height, width].
            feature: float32 [batch, channels, h, w].
            sent: What `send` made of it, float32.
            labels: int64 [batch].

        Returns:
            The weighted scalar, and the values to report.
        """
        del images, feature, sent, labels
        return 0.0, {}


class NoPeek(Undefended):
    """Distance correlation of image and feature added to the loss (Vepakomma et al., arXiv 2008.09161, section 3)."""

    def __init__(self, config: NoPeekConfig) -> None:
        """Take the weight.

        Args:
            config: Of the run.
        """
        super().__init__()
        self.config = config

    def term(
        self, images: Tensor, feature: Tensor, sent: Tensor, labels: Tensor
    ) -> tuple[Tensor | float, dict[str, float]]:
        """As `Undefended.term`."""
        del sent, labels
        value = distance_correlation(images.float() / 255, feature)
        return self.config.weight * value, {"distance_correlation": float(value.detach())}


class Disco(Undefended):
    """Channels pruned image by image (Singh et al., CVPR 2021, arXiv 2012.11025, section 3).

    A network scores the channels of each feature, and the lowest `ratio` of them are zeroed. The head minimises the
    classification alone; the pruning network minimises `1 - weight` of it and maximises `weight` of the error of an
    adversary, which learns to reconstruct from what is left. Departure: the pruning network is two convolutions and a
    full layer, where the paper takes the rest of a ResNet-18, since it runs on the device.
    """

    def __init__(self, config: DiscoConfig, shape: Shape, image_shape: Shape) -> None:
        """Build both networks.

        Args:
            config: Of the run.
            shape: Of the feature.
            image_shape: Channels, height, width.
        """
        super().__init__()
        self.config, channels = config, shape[0]
        self.kept = channels - int(channels * config.ratio)
        self.pruner = nn.Sequential(
            nn.Conv2d(channels, config.width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(config.width, config.width, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(config.width, channels),
        )
        self.adversary = Decoder(shape, image_shape, width=config.adversary_width, blocks=ADVERSARY_BLOCKS)

    def keep(self, feature: Tensor) -> Tensor:
        """Which channels stay: ones and zeros, float [batch, channels, 1, 1]; the gradient is that of a sigmoid."""
        scores = self.pruner(feature).float()
        ordered = scores.detach().sort(dim=1, descending=True)
        hard = torch.zeros_like(scores).scatter_(1, ordered.indices[:, : self.kept], 1.0)
        after = min(self.kept, scores.shape[1] - 1)
        threshold = (ordered.values[:, self.kept - 1] + ordered.values[:, after]) / 2
        soft = torch.sigmoid((scores - threshold[:, None]) / DISCO_TEMPERATURE)
        return (hard + soft - soft.detach())[:, :, None, None]

    def send(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `Undefended.send`; the pruning network gets its part of the classification's gradient, the head all."""
        del generator
        return feature * turn_gradient(self.keep(feature.detach()), 1 - self.config.weight)

    def term(
        self, images: Tensor, feature: Tensor, sent: Tensor, labels: Tensor
    ) -> tuple[Tensor | float, dict[str, float]]:
        """As `Undefended.term`: the adversary's error, which only adversary and pruning network get a gradient of."""
        del sent, labels
        feature = feature.detach()
        pruned = feature * turn_gradient(self.keep(feature), -self.config.weight)
        error = F.mse_loss(self.adversary(pruned).float(), images.float() / 255)
        return error, {"adversary": float(error.detach())}


class Shredder(Undefended):
    """A collection of additive noise tensors, one drawn for each feature (Mireshghallah et al., arXiv 1905.11814).

    The network is trained first, without any of this, and is then frozen; each tensor starts from a Laplace
    distribution and minimises the cross-entropy minus the weighted sum of its magnitudes (section 2.4), until the
    noise has the wanted share of the feature's power. Departures: all tensors are learned in one stage, each on the
    images that draw it; and in use one of them is drawn, where the later version of the paper draws from a
    distribution fitted to them.
    """

    noisy = True
    learning: Tensor

    def __init__(self, config: ShredderConfig, shape: Shape) -> None:
        """Draw the tensors.

        Args:
            config: Of the run.
            shape: Of the feature.
        """
        super().__init__()
        self.config = config
        start = torch.distributions.Laplace(0.0, config.scale).sample((config.tensors, *shape))
        self.noise = nn.Parameter(start)
        self.register_buffer("learning", torch.zeros((), dtype=torch.bool))  # nothing is added before the noise stage

    def send(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `Undefended.send`."""
        if not self.learning:
            return feature
        count = (len(feature),)
        drawn = torch.randint(0, len(self.noise), count, generator=generator, device=feature.device)
        return feature + self.noise[drawn]

    def begin(self) -> None:
        """Add noise from now on."""
        self.learning.fill_(True)

    def push(self, feature: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The term of the noise stage: minus the weighted magnitudes, zero once the noise is loud enough.

        Args:
            feature: float32 [batch, channels, h, w].

        Returns:
            The weighted scalar, and the values to report.
        """
        ratio = float(self.noise.detach().square().mean() / feature.detach().square().mean())
        weight = self.config.weight if ratio < self.config.limit else 0.0
        return -weight * self.noise.abs().sum() / len(self.noise), {"noise_to_signal": ratio}


class ResSfl(Undefended):
    """Attacker-aware training of a bottleneck (Li et al., CVPR 2022, arXiv 2205.04007, section 4).

    An attacker learns, all the while, to reconstruct the image from the feature, by structural similarity; the head
    minimises the classification plus the weighted similarity that the attacker reaches, while that is above a
    threshold. The bottleneck is the head's own narrow end. This is the paper's expert; its second half, which hands
    the expert on to federated clients, changes nothing for inference and is left out.
    """

    similarity: Tensor

    def __init__(self, config: ResSflConfig, shape: Shape, image_shape: Shape) -> None:
        """Build the attacker.

        Args:
            config: Of the run.
            shape: Of the feature.
            image_shape: Channels, height, width; at least 11 pixels a side.
        """
        super().__init__()
        self.config = config
        self.attacker = Decoder(shape, image_shape, width=config.attacker_width, blocks=config.attacker_blocks)
        self.register_buffer("similarity", torch.ones(()))  # what the attacker reached in the step before

    def term(
        self, images: Tensor, feature: Tensor, sent: Tensor, labels: Tensor
    ) -> tuple[Tensor | float, dict[str, float]]:
        """As `Undefended.term`: what the attacker minimises, and the head maximises."""
        del sent, labels
        weight = self.config.weight if self.similarity > self.config.threshold else 0.0
        reconstructed = self.attacker(turn_gradient(feature, -weight)).float()
        with torch.autocast(feature.device.type, enabled=False):  # variances are differences of near equals
            reached = ssim(reconstructed, images.float() / 255).mean()
        self.similarity.copy_(reached.detach())
        return 1 - reached, {"attacker_ssim": float(reached.detach())}


class Cem(Undefended):
    """Conditional entropy maximisation (Xia et al., CVPR 2025, arXiv 2503.00383, section 4).

    The feature of a class is taken for a mixture of Gaussians, to which noise of known variance is added. Then the
    information about the image is at most the mixture's mean of half the log-determinant of one plus a component's
    covariance over the noise's, plus a constant; the term is that bound with diagonal covariances, so it grows with the
    spread within a class. It is a plug-in: here it is plugged into noise corruption, the simplest of the paper's hosts.
    Departure: components follow the batches (mini-batch k-means, Sculley, WWW 2010), where the paper clusters each
    class anew after every epoch.
    """

    noisy = True
    centroids: Tensor

    def __init__(self, config: CemConfig, shape: Shape, classes: int) -> None:
        """Reserve the components.

        Args:
            config: Of the run.
            shape: Of the feature.
            classes: Number of classes.
        """
        super().__init__()
        self.config, self.classes = config, classes
        self.register_buffer("centroids", torch.zeros(classes, config.components, math.prod(shape)))

    def start(self, feature: Tensor, labels: Tensor) -> None:
        """Put the components of each class on the first features of the class."""
        for label in range(self.classes):
            own = feature[labels == label].flatten(1)[: self.config.components]
            self.centroids[label, : len(own)] = own

    def send(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `Undefended.send`."""
        noise = torch.randn(feature.shape, generator=generator, device=feature.device)
        return feature + self.config.noise * noise

    def term(
        self, images: Tensor, feature: Tensor, sent: Tensor, labels: Tensor
    ) -> tuple[Tensor | float, dict[str, float]]:
        """As `Undefended.term`; in training the components follow the batch."""
        del images, sent
        values = feature.flatten(1)
        nearest = (self.centroids[labels] - values.detach()[:, None]).square().sum(dim=2).argmin(dim=1)
        bound = information_bound(values, self.centroids, labels, nearest, self.config.noise)
        if self.training:
            self._follow(values.detach(), labels * self.config.components + nearest)
        return self.config.weight * bound, {"information_bound": float(bound.detach())}

    def _follow(self, values: Tensor, group: Tensor) -> None:
        flat = self.centroids.view(-1, values.shape[1])
        totals, counts = per_group(values, group, len(flat))
        found = counts > 0
        flat[found] = flat[found].lerp((totals / counts.clamp(min=1)[:, None])[found], 1 - self.config.momentum)


def build_defence(config: Defence, shape: Shape, image_shape: Shape, classes: int) -> Undefended:
    """The module of a [defence] section.

    Args:
        config: The section.
        shape: Of the feature.
        image_shape: Channels, height, width.
        classes: Number of classes.

    Returns:
        The defence with fresh weights.
    """
    match config:
        case UndefendedConfig():
            return Undefended()
        case NoPeekConfig():
            return NoPeek(config)
        case DiscoConfig():
            return Disco(config, shape, image_shape)
        case ShredderConfig():
            return Shredder(config, shape)
        case ResSflConfig():
            return ResSfl(config, shape, image_shape)
        case CemConfig():
            return Cem(config, shape, classes)
