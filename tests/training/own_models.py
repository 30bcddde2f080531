"""Models as users bring them: what `backbone.factory` of the tests names, good ones and bad ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, int, int]
A_NUMBER = 7


class Small(nn.Module):
    """Convolutions in a row, written as users do: a bias before a normalisation, and functions of torch."""

    def __init__(self, channels: int, classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.last = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.conv(self.pool(self.stem(images)))))
        features = features + torch.relu(self.last(features))  # a shortcut
        return self.fc(features.mean((2, 3)))


def small(image_shape: Shape, classes: int, width: int = 8) -> nn.Module:
    return Small(image_shape[0], classes, width)


def transposed(image_shape: Shape, classes: int) -> nn.Module:
    channels, height, width = image_shape
    up = nn.ConvTranspose2d(channels, 2, 3, stride=2)
    return nn.Sequential(up, nn.Flatten(), nn.Linear(2 * (2 * height + 1) * (2 * width + 1), classes))


class Recurrent(nn.Module):
    """Reads the image row by row, which no graph's multiply-accumulates are counted of."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.rows = nn.GRU(width, 8, batch_first=True)
        self.fc = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.rows(images[:, 0])
        return self.fc(states[:, -1])


def recurrent(image_shape: Shape, classes: int) -> nn.Module:
    return Recurrent(image_shape[2], classes)


class Computed(nn.Module):
    """A linear classifier with something wrong in it."""

    def __init__(self, image_shape: Shape, classes: int, wrong: Any) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(classes)
        self.wrong = wrong

    def forward(self, images: Tensor) -> Any:
        return self.wrong(self.fc(images.flatten(1)))


def two_answers(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, lambda logits: (logits, logits))


def labels(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, lambda logits: logits.argmax(1))


def too_few(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, lambda logits: logits[:, 1:])


def by_value(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, lambda logits: logits if float(logits.std()) < 0.3 else -3 * logits)


def of_two_images(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, lambda logits: logits.view(int(logits.shape[0]), -1) + torch.ones(2, 1))


def without_onnx(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, torch.special.bessel_j0)


def failing(image_shape: Shape, classes: int) -> nn.Module:
    return Computed(image_shape, classes, lambda logits: logits @ logits)


def tied(image_shape: Shape, classes: int) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(), nn.LazyLinear(classes), nn.Linear(classes, classes), nn.Linear(classes, classes)
    )
    model[3].weight = model[2].weight
    return model


def infinite(image_shape: Shape, classes: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    return model


def not_a_module(image_shape: Shape, classes: int) -> int:
    return classes


def takes_nothing() -> nn.Module:
    return nn.Identity()


class Row(nn.Module):
    """All layers that an int8 head can have, a name for each, then something else."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, (3, 5), padding=(1, 2))
        self.norm0 = nn.BatchNorm2d(4, eps=0.1, momentum=0.5)
        self.skipped = nn.Identity()
        self.wide = nn.Sequential(nn.Conv2d(4, 8, 4, stride=2, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm1 = nn.BatchNorm2d(8)
        self.smooth = nn.SiLU()
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.fc = nn.Linear(8 * 7 * 7, classes)
        self.shift: Tensor
        self.register_buffer("shift", torch.ones(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features = F.max_pool2d(self.norm0(self.stem(images)).relu(), 2)
        features = self.pool(self.wide(self.skipped(features)))
        features = self.smooth(self.norm1(self.conv(features)))
        features = F.interpolate(features, (7, 7)) + self.shift
        return self.fc(self.dilated(features).flatten(1))


def row(image_shape: Shape, classes: int) -> nn.Module:
    return Row(image_shape[0], classes)


class Looping(nn.Module):
    """Can be traced by example, but not followed by torch.fx."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(images)))
        for _ in range(features.shape[2] // 8):
            features = features * 0.5
        return self.fc(features.mean((2, 3)))


def looping(image_shape: Shape, classes: int) -> nn.Module:
    return Looping(image_shape[0], classes)


class Shuffled(nn.Module):
    """Mixes channels as ShuffleNets do, by sizes that it reads from its input."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 6, 3, groups=2)
        self.fc = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        batch, channels, height, width = features.size()
        mixed = features.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.fc(self.second(mixed.view(batch, channels, height, width)).mean((2, 3)))


def shuffled(image_shape: Shape, classes: int) -> nn.Module:
    return Shuffled(image_shape[0], classes)


def normed(image_shape: Shape, classes: int) -> nn.Module:
    """Of weights that a rule computes from others."""
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(image_shape[0], 4, 3))
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def _doubled(_module: nn.Module, _given: Any, found: Tensor) -> Tensor:
    return 2 * found


def hooked(image_shape: Shape, classes: int) -> nn.Module:
    """Of a layer that does more than its class says."""
    model = nn.Sequential(nn.Conv2d(image_shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model[0].register_forward_hook(_doubled)
    return model.append(nn.LazyLinear(classes))


class _Doubles(nn.Module):
    """Logits of another type."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.last = nn.LazyLinear(classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.flatten(1)).double()


def of_doubles(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    model = _Doubles(classes)
    model(torch.zeros(1, *image_shape))
    return model
