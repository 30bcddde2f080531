import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from privdfs_training.config import DataConfig
from privdfs_training.data import DataSet, ImageData, in_memory, load_data
from privdfs_training.data.pictures import random_resized_crop
from privdfs_training.data.shards import buffered_order
from privdfs_training.data.streamed import StreamedDataSet
from privdfs_training.errors import DataError
from tests.official import add, jpeg, write_folders, write_shards

FOLDER = DataConfig(name="imagenet", flip=True, image_size=28)
SHARDS = DataConfig(name="imagenet", flip=True, image_size=28, layout="shards")


@pytest.fixture(params=["folder", "cls", "json"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> ImageData:
    if request.param == "folder":
        return load_data(FOLDER, write_folders(tmp_path / "imagenet"))
    return load_data(SHARDS, write_shards(tmp_path / "imagenet", label=request.param))


def test_an_epoch_is_the_same_wherever_it_starts_and_however_it_is_cut(data: ImageData) -> None:
    assert isinstance(data, StreamedDataSet)
    whole = list(data.train_batches(7, 6))
    assert len(whole) == 6  # 40 images
    assert whole[0][0].shape == (6, 3, 28, 28)
    assert whole[0][0].dtype == torch.uint8
    again, other = list(data.train_batches(7, 6)), list(data.train_batches(8, 6))
    assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(whole, again, strict=True))
    assert not torch.equal(torch.cat([images for images, _ in whole]), torch.cat([images for images, _ in other]))
    for (images, labels), (later, later_labels) in zip(whole[4:], data.train_batches(7, 6, start=4), strict=True):
        assert torch.equal(images, later)
        assert torch.equal(labels, later_labels)
    parts = [list(data.train_batches(7, 6, rank=rank, world=2)) for rank in range(2)]
    for (images, labels), *cut in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in cut]), images)
        assert torch.equal(torch.cat([part for _, part in cut]), labels)


def test_samples_are_spread_and_prepared_as_for_the_test(data: ImageData) -> None:
    images, labels = data.sample("train", 8)
    assert labels.bincount().tolist() == [2, 2, 2, 2]
    assert torch.equal(data.sample("train", 8)[0], images)
    small = in_memory(data)
    assert isinstance(small, DataSet)
    assert torch.equal(small.test_images, torch.cat([part for part, _ in data.test_batches(4)]))
    assert (small.train_size, small.image_shape) == (40, (3, 28, 28))


def test_folders_are_classes_and_the_test_crop_is_the_usual_one(tmp_path: Path) -> None:
    data = load_data(FOLDER, write_folders(tmp_path))
    assert data.classes == tuple(f"n{label:08d}" for label in range(4))
    (images, labels), *_ = data.test_batches(100)
    assert labels.tolist() == [label for label in range(4) for _ in range(5)]
    # Short side 80 to 32 pixels, and the middle 28 of them: 70 of 80.
    picture = Image.open(io.BytesIO(jpeg(11, 100, 80))).resize((28, 28), Image.Resampling.BILINEAR, box=(15, 5, 85, 75))
    assert np.array_equal(images[6].permute(1, 2, 0).numpy(), np.asarray(picture))


def test_a_shard_holds_what_a_folder_holds(tmp_path: Path) -> None:
    data = load_data(SHARDS, write_shards(tmp_path / "shards"))
    assert data.classes[2] == "class 2"
    images, labels = data.sample("train", 40)
    assert labels.tolist() == [number % 4 for number in range(40)]
    picture = Image.open(io.BytesIO(jpeg(13, 90, 80))).resize((28, 28), Image.Resampling.BILINEAR, box=(10, 5, 80, 75))
    assert np.array_equal(images[13].permute(1, 2, 0).numpy(), np.asarray(picture))


def test_shards_are_shuffled_and_mixed_within_a_window() -> None:
    shard = np.repeat(np.arange(20), 50)
    order = buffered_order(shard, seed=1, buffer=100)
    assert sorted(order.tolist()) == list(range(1000))
    assert not torch.equal(order, buffered_order(shard, seed=2, buffer=100))
    first = shard[order.numpy()][:100]
    assert 2 <= len(set(first.tolist())) <= 4  # two or three shards are open at a time
    assert shard[buffered_order(shard, seed=1, buffer=1).numpy()][::50].tolist() != list(range(20))


def test_random_crops_stay_inside_and_vary() -> None:
    random = np.random.default_rng(0)
    boxes = [random_resized_crop(100, 60, random) for _ in range(300)]
    areas = [(right - left) * (bottom - top) / 6000 for left, top, right, bottom in boxes]
    assert all(0 <= left < right <= 100 and 0 <= top < bottom <= 60 for left, top, right, bottom in boxes)
    assert min(areas) < 0.15
    assert max(areas) > 0.6
    left, top, right, bottom = random_resized_crop(1000, 4, random)  # too flat for most draws
    assert (right - left) / (bottom - top) <= 1.6


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/ cannot be read.*image-net\.org"):
        load_data(FOLDER, tmp_path)
    folder = write_folders(tmp_path / "imagenet")
    for path in (folder / "train" / "n00000002").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/n00000002 holds no"):
        load_data(FOLDER, folder)
    (folder / "train" / "n00000002").rmdir()
    with pytest.raises(DataError, match=r"different classes; 1 are in one of them only, such as n00000002"):
        load_data(FOLDER, folder)


def test_a_damaged_picture_ends_the_epoch_and_is_named(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    path = folder / "train" / "n00000001" / "n00000001_3.JPEG"
    path.write_bytes(path.read_bytes()[:700])
    data = load_data(FOLDER, folder)
    with pytest.raises(DataError, match=r"n00000001_3\.JPEG is not a complete picture: image file is truncated"):
        list(data.train_batches(0, 4))
    path.unlink()
    with pytest.raises(DataError, match=r"n00000001_3\.JPEG cannot be read: No such file"):
        list(data.train_batches(0, 4))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"000000.jpg": jpeg(0, 40, 40)}, r"000000\.tar: key 000000 has no readable label"),
        ({"000000.jpg": jpeg(0, 40, 40), "000000.cls": b"one"}, "key 000000 has no readable label"),
        ({"000000.jpg": jpeg(0, 40, 40), "000000.json": b'{"label": null}'}, "key 000000 has no readable label"),
        ({"000000.cls": b"1"}, "key 000000 has no picture"),
        ({"000000.jpg": jpeg(0, 40, 40), "000000.cls": b"4"}, r"has label 4, but there are 4 classes.*classes\.txt"),
        ({"000000.jpg": jpeg(0, 40, 40), "000000.cls": b"-1"}, "has label -1"),
        ({}, "holds no samples"),
    ],
)
def test_damaged_samples_are_found_at_the_start(tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    folder = write_shards(tmp_path / "shards")
    with tarfile.open(folder / "imagenet-val-000000.tar", "w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    with pytest.raises(DataError, match=rf"imagenet-val-000000\.tar.*{problem}|{problem}"):
        load_data(SHARDS, folder)


def test_damaged_and_missing_shards_are_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    path = folder / "imagenet-train-000002.tar"
    content = path.read_bytes()
    for damaged in (content[:3000], b"no tar" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"imagenet-train-000002\.tar is not a complete tar file"):
            load_data(SHARDS, folder)
    path.write_bytes(content)
    (folder / "imagenet-val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"no shard with 'val' in its name"):
        load_data(SHARDS, folder)
    (folder / "classes.txt").write_text("one\n")
    with pytest.raises(DataError, match=r"classes\.txt names 1 classes"):
        load_data(SHARDS, folder)
