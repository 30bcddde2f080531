"""LPIPS: the numbers of its authors' package, and files that are none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from privdfs_training.attacks.perceptual import load_lpips
from privdfs_training.errors import AttackError, CheckpointError
from tests.training.lpips_weights import weights
from tests.training.shipped import shifted_and_pale, shipped_images


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lpips-alex.safetensors"
    save_file(weights(), path)
    return path


def test_distances_are_those_of_the_authors_package(file: Path) -> None:
    """The numbers are of lpips 0.1.4 with torchvision 0.29.1's AlexNet, both with the weights above."""
    lpips = load_lpips(file)
    images = shipped_images()
    mosaic = torch.cat([torch.cat(list(images[5 * row : 5 * row + 5, 0]), dim=1) for row in range(4)])
    large = mosaic.expand(1, 3, -1, -1).clone()
    large[:, 1] = 255 - large[:, 1]
    assert lpips(shifted_and_pale(large), large.float() / 255).tolist() == pytest.approx([0.594805], rel=1e-4)
    small = lpips(shifted_and_pale(images), images.float() / 255)
    assert small[:3].tolist() == pytest.approx([0.402330, 0.454804, 0.528922], rel=1e-4)  # enlarged to 64 pixels before
    assert lpips(images.float() / 255, images.float() / 255).tolist() == [0] * 20
    assert "tensor" not in repr(lpips)


def test_a_file_without_the_linear_weights_says_how_to_make_one(file: Path) -> None:
    save_file({name: value for name, value in weights().items() if not name.startswith("lin")}, file)
    with pytest.raises(AttackError, match=r"lin0\.model\.1\.weight.*and others.*save_model"):
        load_lpips(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere"):
        load_lpips(tmp_path / "nowhere")
