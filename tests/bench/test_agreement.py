"""Photographs cut in three, and a release's agreement with its unprotected model on those held out."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from bench import agreement as command
from bench import photos as photos_command
from privdfs_bench.agreement import check_apart, compared, interval, nearest_photographs, softmax
from privdfs_bench.errors import BenchError
from privdfs_bench.pages.agreement import NO_AGREEMENT, agreement_table
from privdfs_bench.photos import Photo, cut, find_photos, write_parts
from privdfs_export import cli as export_cli
from privdfs_training import cli
from privdfs_training.config import DataConfig
from privdfs_training.data import load_data
from tests.trained import write_toml
from tests.training.coded_systems import coded_values

CLASSES, EACH, SIZE = 3, 12, 28
FACTORY = "tests.training.own_models:small"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class, with photographs that no hash confuses."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(3)
    for label in range(CLASSES):
        for number in range(EACH):
            file = folder / f"n{label}" / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            blocks = random.integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(file)
    return folder


def test_parts_share_no_photograph_and_are_the_same_again(photographs: Path) -> None:
    classes, found = find_photos(photographs)
    assert classes == ("n0", "n1", "n2")
    parts = cut(found, 6, 10, seed=0)
    files = [photo.path for part in (parts.train, parts.validation, parts.held_out) for photo in part]
    assert sorted(files) == sorted(photo.path for photo in found)
    assert (len(parts.train), len(parts.validation), len(parts.held_out), len(parts.left_out)) == (20, 6, 10, 0)
    assert cut(found, 6, 10, seed=0) == parts
    assert cut(found, 6, 10, seed=1) != parts


@pytest.mark.parametrize("twin", ["paler", "mirrored"])
def test_what_looks_like_a_held_out_photograph_is_in_no_part(photographs: Path, tmp_path: Path, twin: str) -> None:
    def shown(photo: Photo) -> tuple[int, str]:
        return photo.label, photo.path.name.removeprefix("twin-")

    for photo in find_photos(photographs)[1]:
        picture = Image.open(photo.path)
        pale = picture.point(lambda value: value * 0.9)
        folder = tmp_path / photo.path.parent.name
        folder.mkdir(exist_ok=True)
        picture.save(folder / photo.path.name)
        (ImageOps.mirror(picture) if twin == "mirrored" else pale).save(folder / f"twin-{photo.path.name}")
    parts = cut(find_photos(tmp_path)[1], 6, 10, seed=0)
    held_out = set(map(shown, parts.held_out))
    assert len(parts.left_out) == 2 * len(held_out) - 10 > 0
    assert not held_out & {shown(photo) for photo in (*parts.train, *parts.validation)}


def test_the_trainer_reads_two_parts_and_the_third_stays_apart(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    assert photos_command.main([str(photographs), "--out", str(out), "--validation", "6", "--held-out", "10"]) == 0
    data = load_data(DataConfig(name="imagenet", flip=True, image_size=SIZE, layout="shards"), out)
    assert (data.train_size, data.test_size, data.classes) == (20, 6, ("n0", "n1", "n2"))
    classes, found = find_photos(photographs)
    parts = cut(found, 6, 10, seed=0)
    assert data.sample("train")[1].tolist() == [photo.label for photo in parts.train]
    held_out = sorted(path.relative_to(out / "held-out") for path in (out / "held-out").rglob("*.png"))
    assert held_out == sorted(photo.path.relative_to(photographs) for photo in parts.held_out)
    with pytest.raises(BenchError, match="exists"):
        write_parts(parts, classes, out)


def test_what_cannot_be_cut_is_refused(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="two or more"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(BenchError, match="hold out fewer"):
        cut(find_photos(photographs)[1], 6, 30, seed=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(BenchError, match="a holds no"):
        find_photos(tmp_path)


@pytest.mark.parametrize("step", [1, -1])
def test_a_photograph_that_was_learned_from_is_not_held_out(step: int) -> None:
    learned = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    others = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    check_apart(others, learned)
    with pytest.raises(BenchError, match="1 of the 3 photographs"):
        check_apart(np.concatenate([others, learned[1:2, :, ::step]]), learned)


def test_the_interval_is_wilsons() -> None:
    assert interval(10, 100) == pytest.approx((0.05523, 0.17437), abs=1e-5)
    assert interval(0, 200) == pytest.approx((0.0, 0.01884), abs=1e-5)
    assert interval(200, 200)[1] == 1.0


def test_answers_are_compared_with_the_models() -> None:
    wanted, found = np.full((2, 8), 0.02), np.full((2, 8), 0.05)
    wanted[0, :2], wanted[1, 7] = (0.48, 0.4), 0.86
    found[0, 1], found[1, 7] = 0.65, 0.65
    row = compared(found, wanted, np.array([1, 0]))
    counts = {key: value["photographs"] for key, value in row.items() if key != "divergence"}
    assert counts == {"same": 1, "in_models_top5": 2, "models_in_top5": 2, "right": 1}
    first = 0.48 * math.log(0.48 / 0.05) + 0.4 * math.log(0.4 / 0.65) + 6 * 0.02 * math.log(0.02 / 0.05)
    second = 0.86 * math.log(0.86 / 0.65) + 7 * 0.02 * math.log(0.02 / 0.05)
    assert row["divergence"]["nats"] == pytest.approx((first + second) / 2)
    assert compared(wanted, wanted, np.array([0, 7]))["divergence"]["nats"] == pytest.approx(0)


def test_of_imagenet_animals_are_told_from_the_rest() -> None:
    wanted = softmax(np.eye(1000)[[3, 5, 900]] * 20)
    found = softmax(np.eye(1000)[[397, 398, 398]] * 20)
    assert compared(found, wanted, np.array([3, 5, 900]))["animal_or_not"]["photographs"] == 2


def test_the_nearest_photograph_is_found_whatever_its_brightness() -> None:
    random = np.random.default_rng(0)
    among = random.integers(20, 200, (7, 64, 64, 3), np.uint8)
    assert nearest_photographs(among[[4, 1]] + np.uint8(30), among).tolist() == [4, 1]


@pytest.mark.e2e
def test_a_model_from_outside_is_taught_exported_served_and_compared(photographs: Path, tmp_path: Path) -> None:
    out, release, results = tmp_path / "cut", tmp_path / "tiny", tmp_path / "agreement.json"
    assert photos_command.main([str(photographs), "--out", str(out), "--validation", "6", "--held-out", "10"]) == 0
    data = {"name": "imagenet", "flip": True, "image_size": SIZE, "layout": "shards"}
    values: dict[str, Any] = coded_values("pooled") | {"data": data, "backbone": {"name": "custom", "factory": FACTORY}}
    for stage in values["train"].values():
        stage |= {"epochs": 1, "batch": 8}
    config = write_toml(tmp_path / "config.toml", values)
    assert cli.main([str(config), "--data", str(out), "--out", str(tmp_path / "runs"), "--device", "cpu"]) == 0
    system = str(tmp_path / "runs" / values["name"] / "system.safetensors")
    made = ["--data", str(out), "--factory", FACTORY]
    assert export_cli.main([system, *made, "--out", str(release), "--servers", "3"]) == 0
    asked = ["--checkpoint", system, *made, "--held-out", str(out / "held-out"), "--out", str(results)]
    assert command.main([str(release), *asked]) == 0
    entry = json.loads(results.read_text())["releases"]["tiny"]
    assert entry["photographs"] == {"held_out": 10, "trained_on": 20}
    assert entry["answers_as_exported"] == 10
    assert entry["servers"] == 3
    assert set(entry["systems"]["release"]) == {"same", "in_models_top5", "models_in_top5", "right", "divergence"}
    # Of three classes all are among five; a floor looks at no photograph, so it gives one class to all.
    assert entry["systems"]["release"]["in_models_top5"]["photographs"] == 10
    shown = agreement_table(json.loads(results.read_text()))
    assert "tiny: 10 held-out photographs, after training on 20; 3 classes;" in shown
    assert "animal" not in shown
    assert shown.count(" nats |") == 5  # a floor that rules classes out is infinitely far from the model's answer
    alike, model = (
        entry["systems"]["all_alike"]["divergence"]["nats"],
        entry["systems"]["release"]["divergence"]["nats"],
    )
    assert 0 < alike < math.log(3)
    assert model > 0
    (out / "held-out" / "n0").rename(out / "held-out" / "other")
    assert command.main([str(release), *asked]) == 2


def test_without_results_the_page_names_the_command() -> None:
    assert agreement_table({}) == NO_AGREEMENT
