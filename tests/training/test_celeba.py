import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from privdfs_export.errors import ExportError
from privdfs_export.release import export_release
from privdfs_training.checkpoint import load_system
from privdfs_training.config import DataConfig
from privdfs_training.data import DataSet, load_data, streamed
from privdfs_training.errors import DataError, TrainingConfigError
from privdfs_training.loop import train
from privdfs_training.losses import choices
from privdfs_training.models.fusion import AttributeFusion
from privdfs_training.reading import config_from_dict
from tests.official import jpeg, write_celeba
from tests.trained import QUIET, tiny_values

ATTRIBUTES = DataConfig(name="celeba-attributes", flip=True, image_size=24)
IDENTITY = DataConfig(name="celeba-identity", flip=True, image_size=24, identity_images=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_celeba(tmp_path / "celeba")


def test_attributes_follow_the_official_partition(folder: Path) -> None:
    data = load_data(ATTRIBUTES, folder.parent)
    assert isinstance(data, DataSet)
    assert (data.task, len(data.classes), data.image_shape) == ("attributes", 40, (3, 24, 24))
    assert data.classes[3] == "Attribute_3"
    numbers = (data.test_labels.long() << torch.arange(40)).sum(1)
    assert numbers.tolist() == list(range(4, 40, 5))
    assert data.train_size == 24
    # Picture 9: the middle square of 178 pixels, resized.
    picture = (
        Image.open(io.BytesIO(jpeg(9, 178, 218))).crop((0, 20, 178, 198)).resize((24, 24), Image.Resampling.BILINEAR)
    )
    assert np.abs(data.test_images[1].permute(1, 2, 0).numpy().astype(int) - np.asarray(picture)).max() <= 1


def test_identities_are_split_person_by_person(folder: Path) -> None:
    data = load_data(IDENTITY, folder)
    assert data.classes == ("1000", "1001", "1002", "1003")
    images, labels = data.sample("test")
    assert torch.bincount(labels).tolist() == [2, 2, 2, 2]
    assert torch.bincount(data.sample("train")[1]).tolist() == [8, 8, 8, 8]
    assert labels.tolist() == [0, 1, 2, 3] * 2  # in the order of the pictures, not person by person
    # A person's fifth picture, of numbers 0, 4, 8 …, is number 16.
    picture = (
        Image.open(io.BytesIO(jpeg(16, 178, 218))).crop((0, 20, 178, 198)).resize((24, 24), Image.Resampling.BILINEAR)
    )
    assert np.abs(images[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(picture)).max() <= 1
    with pytest.raises(DataError, match=r"0 of 4 people have 11 images or more.*identity_images"):
        load_data(DataConfig(name="celeba-identity", flip=True, identity_images=11), folder)


def test_a_set_too_large_for_memory_is_streamed_and_holds_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_data(ATTRIBUTES, folder)
    monkeypatch.setattr(streamed, "MEMORY_LIMIT", 1000)
    stream = load_data(ATTRIBUTES, folder)
    assert isinstance(whole, DataSet)
    assert isinstance(stream, streamed.StreamedDataSet)
    for ours, theirs in zip(stream.train_batches(3, 4), whole.train_batches(3, 4), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert torch.equal(torch.cat([labels for _, labels in stream.test_batches(3)]), whole.test_labels)


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("list_attr_celeba.txt", "40\n", "41\n", "does not give its 40 pictures"),
        ("list_attr_celeba.txt", "000003.jpg  -1", "000003.jpg ", r"line 5: 000003\.jpg must have 40.*has 39"),
        (
            "list_attr_celeba.txt",
            "000003.jpg  -1",
            "000003.jpg  0",
            r"line 5: 000003\.jpg must have 40 attributes of 1",
        ),
        ("list_eval_partition.txt", "000002.jpg 0", "000002.jpg 3", "line 2: part '3' is not 0, 1 or 2"),
        ("list_eval_partition.txt", "000002.jpg", "999999.jpg", r"line 2: 999999\.jpg has no line in list_attr"),
        ("list_eval_partition.txt", " 2\n", " 0\n", "names no test images"),
        ("identity_CelebA.txt", "000007.jpg 1002", "000007.jpg", "line 7: a picture and one value"),
        ("identity_CelebA.txt", "000007.jpg 1002", "000007.jpg x", "line 7: 'x' is not the number of a person"),
    ],
)
def test_damaged_annotations_are_named(folder: Path, file: str, old: str, new: str, problem: str) -> None:
    content = (folder / file).read_text()
    assert old in content
    (folder / file).write_text(content.replace(old, new))
    with pytest.raises(DataError, match=rf"{file}.*{problem}.*authors"):
        load_data(IDENTITY if file.startswith("identity") else ATTRIBUTES, folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"img_align_celeba/ is missing.*from its authors"):
        load_data(ATTRIBUTES, tmp_path.parent)
    (folder / "img_align_celeba" / "000011.jpg").unlink()
    with pytest.raises(DataError, match=r"list_eval_partition\.txt names 1 pictures.*first of them 000011\.jpg"):
        load_data(ATTRIBUTES, folder)
    with pytest.raises(DataError, match=r"identity_CelebA\.txt names 1 pictures"):
        load_data(IDENTITY, folder)
    (folder / "list_attr_celeba.txt").unlink()
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt cannot be read"):
        load_data(ATTRIBUTES, folder)


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(1, 178, 218)[:1500]])
def test_a_damaged_picture_is_named(folder: Path, content: bytes) -> None:
    (folder / "img_align_celeba" / "000005.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"000005\.jpg is not a complete picture: (it is|image file is truncated)"):
        load_data(ATTRIBUTES, folder)


def test_attributes_are_choices_of_two() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(6, 5), (torch.rand(6, 5) < 0.5).to(torch.uint8)
    pairs, wanted = choices(logits, labels)
    ours, theirs = F.cross_entropy(pairs, wanted), F.binary_cross_entropy_with_logits(logits, labels.float())
    assert torch.allclose(ours, theirs)
    assert torch.equal(pairs.argmax(1), (logits > 0).long().flatten())
    numbers = torch.arange(6)
    assert choices(logits, numbers)[0] is logits
    assert choices(logits, numbers)[1] is numbers


def test_each_attribute_is_fused_from_its_own_answers() -> None:
    torch.manual_seed(0)
    fusion = AttributeFusion(servers=3, hidden=4)
    logits, answered = torch.randn(6, 3, 5), torch.ones(6, 3, dtype=torch.bool)
    fused = fusion(logits, answered)
    assert fused.shape == (6, 5)
    changed = logits.clone()
    changed[:, :, 2] += 10
    others = [0, 1, 3, 4]
    assert torch.equal(fusion(changed, answered)[:, others], fused[:, others])
    assert bool((fusion(changed, answered)[:, 2] > fused[:, 2]).all())
    answered[:, 1] = False
    changed[:, 1] = torch.inf  # what a silent server's row holds does not matter
    logits[:, 1] = 0
    assert torch.equal(fusion(changed, answered)[:, others], fusion(logits, answered)[:, others])


def test_training_learns_attributes_and_export_refuses_them(folder: Path, tmp_path: Path) -> None:
    values = tiny_values()
    stage = values["train"]["masks"] | {"batch": 8, "epochs": 8, "crop_padding": 0}
    values["data"] = {"name": "celeba-attributes", "flip": False, "image_size": 16}
    values["train"] = {"baseline": stage, "masks": stage, "finetune": stage | {"epochs": 1}}
    config = config_from_dict(values, "tests")
    data = load_data(config.data, folder)
    path = train(config, data, tmp_path / "run", QUIET)
    trained = load_system(path)
    assert trained.accuracy["fused"] > 0.85  # 34 of the 40 attributes are never there
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in epochs if line["stage"] == "masks"]
    assert losses[-1] < losses[0] / 2
    with pytest.raises(ExportError, match=r"celeba-attributes has attributes.*such as one trained on celeba-identity"):
        export_release(trained, data, tmp_path / "out", engine="python", console=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "keys", "name"),
    [
        ("loss", {"rate": 0.1}, r"loss\.rate"),
        ("adversary", {"weight": 0.1}, r"\[adversary\]"),
    ],
)
def test_what_goes_by_the_class_is_refused_with_attributes(section: str, keys: dict[str, float], name: str) -> None:
    values = tiny_values()
    values["data"] = {"name": "celeba-attributes", "flip": False}
    values[section] = values.get(section, {}) | keys
    with pytest.raises(TrainingConfigError, match=rf"{name} goes by the class of an image"):
        config_from_dict(values, "tests")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"name": "cifar10", "image_size": 64}, "the images of cifar10 keep their own size"),
        ({"name": "imagenet", "image_size": 8}, "image_size is 8; images need at least 16"),
        ({"name": "celeba-identity", "identity_images": 4}, "a person with fewer than 5 has no test image"),
        ({"name": "imagenet", "layout": "tar"}, "layout"),
    ],
)
def test_impossible_data_sections_are_refused(keys: dict[str, Any], problem: str) -> None:
    values = tiny_values()
    values["data"] = keys | {"flip": False}
    with pytest.raises(TrainingConfigError, match=problem):
        config_from_dict(values, "tests")
