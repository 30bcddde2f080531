"""Coded systems that train in seconds or not at all: one config for each kind of round, and systems drawn at random."""

import json
from typing import Any

import numpy as np
import torch

from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.coded.system import CodedSystem
from tests.trained import tiny_values

IMAGE, CLASSES = (1, 28, 28), 10
ALL = {"over": "all"}
ROUNDS = [
    {"levels": 15, "hidden": [{"outputs": 12, "kernel": 3}], "output": {"outputs": 4, "kernel": 3}, "skip": 1},
    {"levels": 9, "hidden": [{"outputs": 16, "kernel": 7, "stride": 7}], "output": {"outputs": 6}},
    {"levels": 15, "hidden": [{"outputs": 32, **ALL}], "output": ALL},
]
#: Rounds that a ViT's layers become: patches, tokens mixed by a linear map over positions, an MLP; then a linear one.
MIXER = [
    {"levels": 5, "hidden": [{"outputs": 8, "kernel": 7, "stride": 7}], "output": {"outputs": 8}},
    {
        "levels": 15,
        "hidden": [{"outputs": 1, "over": "positions"}],
        "output": {"outputs": 5},
    },
    {"levels": 15, "output": ALL},
]
QUARTIC = [
    {
        "levels": 3,
        "hidden": [{"outputs": 4, "kernel": 7, "stride": 7}, {"outputs": 3}],
        "output": ALL,
    }
]
POOLED = [{"levels": 7, "hidden": [{"outputs": 12, "kernel": 3}], "pool": 7, "output": ALL}]
PIXELS = [
    {"levels": 15, "hidden": [{"outputs": 6, "kernel": 7, "stride": 7}], "output": {"outputs": 8}},
    {"levels": 15, "hidden": [{"outputs": 12, **ALL}], "output": ALL},
]
MIRRORED = [
    {"levels": 15, "hidden": [{"outputs": 12, "kernel": 3}], "output": {"outputs": 4, "kernel": 3}, "skip": 1},
    {"levels": 9, "hidden": [{"outputs": 16, "kernel": 3}], "pool": 7, "output": ALL},
]
KINDS = {
    "rounds": ROUNDS,
    "mixer": MIXER,
    "quartic": QUARTIC,
    "pooled": POOLED,
    "pixels": PIXELS,
    "mirrored": MIRRORED,
}


def coded_values(kind: str = "rounds") -> dict[str, Any]:
    """A config that trains in seconds."""
    values = tiny_values()
    stage = values["train"]["masks"]
    coded = {key: values[key] for key in ("name", "seed", "data", "backbone", "head")}
    coded["sharing"] = {"kind": "coded", "bits": 3 if kind == "quartic" else 5, "degree": 4 if kind == "quartic" else 2}
    if kind == "pixels":
        coded["head"] = {"kind": "pixels"}
    if kind == "mirrored":
        coded["sharing"]["mirrored"] = coded["data"]["flip"] = True
    coded["rounds"] = json.loads(json.dumps(KINDS[kind]))
    coded["loss"] = {"distillation": 1.0, "distillation_temperature": 4.0, "label_smoothing": 0.0, "range": 0.01}
    coded["train"] = {name: dict(stage) for name in ("baseline", "rounds", "finetune")}
    coded["train"]["baseline"] |= {"epochs": 1}
    coded["train"]["rounds"] |= {"epochs": 12, "learning_rate": 0.01}
    coded["train"]["finetune"] |= {"epochs": 1}
    return coded


def coded_of(kind: str = "rounds") -> CodedConfig:
    return coded_config(coded_values(kind), "tests")


def drawn_system(kind: str | dict[str, Any]) -> CodedSystem:
    """Of a kind or of a config: random weights with running statistics of some random images, in evaluation mode."""
    torch.manual_seed(0)
    config = coded_of(kind) if isinstance(kind, str) else coded_config(kind, "tests")
    system = CodedSystem(config, image_shape=IMAGE, classes=CLASSES)
    images = torch.randint(0, 256, (64, *IMAGE), dtype=torch.uint8)
    system.head.normalise.fit(images)
    for _ in range(20):
        system.train()(images)
    with torch.no_grad():  # terms and gains of their own for each channel
        for current in system.polynomials:
            for linear in current.linear:
                linear.add_(torch.randn_like(linear))
            gain, bias = current.norm.parameters()
            gain.mul_(torch.rand_like(gain) + 0.5)
            bias.add_(torch.randn_like(bias))
    return system.eval()


def drawn_values(system: CodedSystem, images: int = 20) -> np.ndarray:
    largest = system.polynomials[0].largest
    return np.random.default_rng(1).integers(-largest, largest + 1, (images, *system.polynomials[0].inputs))
