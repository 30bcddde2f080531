import gzip
import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from privdfs_training.augment import crop_and_flip
from privdfs_training.cli import main
from privdfs_training.config import DataConfig
from privdfs_training.data import DataSet, fashion, load_data
from privdfs_training.errors import DataError, TrainingConfigError
from tests.official import write_cifar, write_official
from tests.trained import shifted_images

CONFIG = Path(__file__).parents[2] / "configs" / "fashion-resnet20.toml"


def test_files_are_read_as_they_are(data_folder: Path) -> None:
    data = load_data("fashion-mnist", data_folder)
    images, labels = shifted_images(50, seed=2)
    assert data.test_images.shape == (1000, 1, 28, 28)
    assert torch.equal(data.test_images[:, 0], torch.from_numpy(images))
    assert data.test_labels.tolist() == labels.tolist()
    assert data.classes[9] == "Ankle boot"
    assert "1000 test images" in repr(data)


def test_folder_may_come_from_the_environment(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVDFS_DATA", str(data_folder))
    assert len(load_data("fashion-mnist", None).train_labels) == 520


def test_an_empty_variable_counts_as_none(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVDFS_DATA", "")
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", data_folder)
    assert len(load_data("fashion-mnist", None).train_labels) == 520
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "celeba-identity", "imagenet"):
        with pytest.raises(DataError, match=r"is not in \.: .* pass .* with --data or \$PRIVDFS_DATA"):
            load_data(name, None)


def packed(content: bytes) -> bytes:
    """Compressed, always to the same bytes: they name tests, which two processes must collect alike."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar100", "celeba-attributes", "imagenet"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    missing, file = tmp_path / "none", tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match=rf"^the data folder {missing} does not exist\. "):
        load_data(name, missing)
    with pytest.raises(DataError, match=rf"^the data folder {file} is not a folder\. "):
        load_data(name, file)
    monkeypatch.setenv("PRIVDFS_DATA", str(missing))
    with pytest.raises(DataError, match=rf"^the data folder of \$PRIVDFS_DATA, {missing}, does not exist\. "):
        load_data(name, None)


@pytest.mark.parametrize("dot", ["-", "."])
def test_unpacked_files_are_read_too(tmp_path: Path, data_folder: Path, dot: str) -> None:
    for path in data_folder.iterdir():
        unpacked = path.name.removesuffix(".gz").replace("-idx", f"{dot}idx")
        (tmp_path / unpacked).write_bytes(gzip.decompress(path.read_bytes()))
    found, packed = load_data("fashion-mnist", tmp_path), load_data("fashion-mnist", data_folder)
    assert torch.equal(found.train_images, packed.train_images)
    assert torch.equal(found.test_labels, packed.test_labels)
    name = f"t10k-labels{dot}idx1-ubyte"
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        load_data("fashion-mnist", tmp_path)


def test_an_epoch_is_the_same_wherever_it_starts_and_however_it_is_cut(data_folder: Path) -> None:
    data = load_data("fashion-mnist", data_folder)
    order = torch.randperm(520, generator=torch.Generator().manual_seed(7))
    whole = list(data.train_batches(7, 64))
    assert torch.equal(torch.cat([labels for _, labels in whole]), data.train_labels[order[:512]])
    assert torch.equal(torch.cat([images for images, _ in whole]), data.train_images[order[:512]])
    later = list(data.train_batches(7, 64, start=3))
    assert [labels.tolist() for _, labels in later] == [labels.tolist() for _, labels in whole[3:]]
    parts = [list(data.train_batches(7, 64, rank=rank, world=4)) for rank in range(4)]
    for (images, _), *cut in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in cut]), images)
    with pytest.raises(TrainingConfigError, match="batch of 64 images cannot be cut into equal parts for 3 processes"):
        next(data.train_batches(7, 64, world=3))


def test_missing_set_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(CONFIG), "--data", str(tmp_path), "--out", str(tmp_path / "runs")])
    assert code == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("train-images-idx3-ubyte.gz", b"not gzip", "not an idx file of 3"),
        ("train-labels-idx1-ubyte.gz", packed(b"\0\0\x08\x03" + b"\0" * 12), "not an idx file of 1"),
        (
            "train-images-idx3-ubyte.gz",
            packed(b"\0\0\x08\x03\0\0\0\x01\0\0\0\x02\0\0\0\x02" + b"\0" * 4),
            r"images are \(2, 2\), Fashion-MNIST's",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            packed(b"\0\0\x08\x01\0\0\0\x09" + b"\1" * 5),
            "5 values where its header",
        ),
        ("t10k-labels-idx1-ubyte.gz", packed(b"\0\0\x08\x01\0\0\0\x02" + b"\1" * 2), "1000 images but 2 labels"),
        ("t10k-labels-idx1-ubyte.gz", packed(b"\0\0\x08\x01\0\0\x03\xe8" + b"\x0b" * 1000), "go up to 11"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, data_folder: Path, file: str, content: bytes, problem: str) -> None:
    folder = shutil.copytree(data_folder, tmp_path / "data")
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_data("fashion-mnist", folder)


def test_truncated_file_is_named(tmp_path: Path, data_folder: Path) -> None:
    folder = shutil.copytree(data_folder, tmp_path / "data")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        load_data("fashion-mnist", folder)


def test_crops_are_windows_of_the_padded_image_and_some_are_mirrored() -> None:
    torch.manual_seed(0)
    image = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))[0, 0]
    windows = {
        (padded[top : top + 6, left : left + 6].flatten()).numpy().tobytes() for top in range(5) for left in range(5)
    }
    crops = crop_and_flip(image.expand(200, 1, 6, 6), padding=2, flip=True)
    straight = [crop.numpy().tobytes() in windows for crop in crops]
    mirrored = [crop.flip(-1).numpy().tobytes() in windows for crop in crops]
    assert all(one or other for one, other in zip(straight, mirrored, strict=True))
    assert 60 < sum(straight) < 140


CIFAR10_FILES = {f"data_batch_{number}.bin": 4 for number in range(1, 6)} | {"test_batch.bin": 6}


def test_cifar10_is_read_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder, classes=10, label_bytes=1, files=CIFAR10_FILES, names="batches.meta.txt")
    for root in (tmp_path, folder):
        data = load_data("cifar10", root)
        assert data.image_shape == (3, 32, 32)
        assert len(data.train_labels) == 20
        assert data.train_labels[4:8].tolist() == [1, 2, 3, 4]  # the second file
        assert data.test_images[2, :, 31, 0].tolist() == [7, 57, 107]
        assert data.classes[3] == "class3"


def test_held_out_training_images_take_the_place_of_the_test_images(data_folder: Path) -> None:
    whole = load_data("fashion-mnist", data_folder)
    config = DataConfig(name="fashion-mnist", flip=False, held_out=100)
    data = load_data(config, data_folder)
    assert isinstance(data, DataSet)
    assert torch.equal(data.train_images, whole.train_images[:-100])
    assert torch.equal(data.test_images, whole.train_images[-100:])
    assert torch.equal(data.train_labels, whole.train_labels[:-100])
    assert torch.equal(data.test_labels, whole.train_labels[-100:])
    with pytest.raises(TrainingConfigError, match="leave some to train on"):
        load_data(msgspec.structs.replace(config, held_out=520), data_folder)


def test_streamed_sets_hold_nothing_out(tmp_path: Path) -> None:
    config = DataConfig(name="imagenet", flip=False, image_size=64, held_out=2)
    folder = write_official("imagenet", "folder", tmp_path)
    with pytest.raises(TrainingConfigError, match=r"data\.held_out is for sets that fit in memory"):
        load_data(config, folder)


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    files = {"train.bin": 5, "test.bin": 3}
    write_cifar(folder, classes=100, label_bytes=2, files=files, names="fine_label_names.txt")
    data = load_data("cifar100", tmp_path)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert data.test_images[0, :, 0, 0].tolist() == [1, 51, 101]
    assert len(data.classes) == 100


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("data_batch_3.bin", None, r"data_batch_3\.bin cannot be read: No such file.*binary version of CIFAR10"),
        ("data_batch_3.bin", b"\0" * 3000, "3000 bytes do not divide into records of 3073"),
        ("test_batch.bin", b"", "0 bytes do not divide into records"),
        ("test_batch.bin", b"\x0b" + b"\0" * 3072, "has label 11"),
        ("batches.meta.txt", None, r"batches\.meta\.txt cannot be read"),
    ],
)
def test_damaged_cifar_files_are_named(tmp_path: Path, file: str, content: bytes | None, problem: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder, classes=10, label_bytes=1, files=CIFAR10_FILES, names="batches.meta.txt")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_data("cifar10", tmp_path)
