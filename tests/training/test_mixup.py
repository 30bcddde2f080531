"""`mixup`, `cutmix`, the teacher's windows and `taught_by`: what is drawn, who says what it shows, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.augment import blended
from privdfs_training.coded.config import coded_config
from privdfs_training.coded.system import CodedSystem
from privdfs_training.coded.train import coded_stages
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.errors import TrainingConfigError
from privdfs_training.losses import labelled
from privdfs_training.reading import config_from_dict
from privdfs_training.rivals.config import rival_config
from privdfs_training.stage import Stage
from tests.trained import tiny_values
from tests.training.coded_systems import CLASSES, coded_values
from tests.training.rival_configs import rival_values


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    return in_memory(load_data("fashion-mnist", data_folder))


def rounds_stage(data: DataSet, *, flip: bool = False, **keys: Any) -> tuple[CodedSystem, Stage]:
    """The rounds stage with some keys, of a system with always the same weights, ready to train."""
    values = coded_values()
    values["data"]["flip"] = flip
    values["loss"]["distillation"] = 1.0
    values["train"]["rounds"] |= keys
    torch.manual_seed(0)
    config = coded_config(values, "tests")
    system = CodedSystem(config, image_shape=data.image_shape, classes=CLASSES)
    stage = coded_stages(config, system, data)[1]
    stage.prepare()
    return system, stage


def test_the_first_images_are_blended_with_the_next_and_the_others_stay() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(400)
    blends, left = blended(images, labels, mixup=0.75)
    assert blends.dtype == torch.uint8
    assert torch.equal(blends[300:], images[300:])
    assert torch.equal(left, labels[300:])
    first, second = images[:300].double().flatten(1), images[1:301].double().flatten(1)
    along = second - first
    shares = ((blends[:300].double().flatten(1) - first) * along).sum(1) / along.square().sum(1)
    expected = first + shares[:, None] * along
    assert (blends[:300].double().flatten(1) - expected).abs().max() < 1.0
    # Proportions are drawn evenly from 0 to 1, for each image anew.
    counts = torch.histc(shares.float(), 4, -0.01, 1.01)
    assert counts.min() > 50
    assert not torch.equal(blended(images, labels, mixup=0.75)[0], blends)


def test_a_whole_batch_can_be_blended() -> None:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    blends, left = blended(images, torch.arange(4), mixup=1.0)
    assert (blends != images).flatten(1).any(1).all()
    assert not len(left)


def test_others_get_a_rectangle_of_the_next_image() -> None:
    torch.manual_seed(0)
    images = torch.arange(1, 201, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 16, 12)
    found, left = blended(images, torch.arange(200), mixup=0.25, cutmix=0.5)
    assert found.dtype == torch.uint8
    assert torch.equal(found[150:], images[150:])
    assert torch.equal(left, torch.arange(150, 200))
    assert (found[:50, :, :1, :1] == found[:50]).all()  # blends of images of one colour
    sides, centres = list[float](), list[tuple[float, float]]()
    for image, own, other in zip(found[50:150], images[50:150], images[51:151], strict=True):
        pasted = (image == other).all(0)
        assert torch.equal(torch.where(pasted, other, own), image)
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        if not len(rows):
            continue
        assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        sides.append(len(rows) / 16)
        centres.append((float(rows.float().mean()) / 16, float(columns.float().mean()) / 12))
    assert len(sides) > 80
    assert min(sides) < 0.3
    assert max(sides) > 0.8
    # Areas are drawn evenly: half an image on average, of which edges cut off a third.
    pasted = blended(images, torch.arange(200), cutmix=1.0)[0] != images
    assert 0.28 < float(pasted.float().mean()) < 0.37
    where = torch.tensor(centres).T
    assert where.std(1).min() > 0.1  # anywhere, not in the middle
    assert abs(float(torch.corrcoef(where)[0, 1])) < 0.3


def test_a_rectangle_and_a_blend_are_of_different_images() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    found, left = blended(images, torch.arange(8), mixup=0.5, cutmix=0.5)
    assert len(found) == 8
    assert not len(left)
    assert ((found == images) | (found == images.roll(-1, 0)))[4:].all()


def test_nothing_is_drawn_where_nothing_is_blended() -> None:
    """So runs of older configs stay the same to the bit."""
    images, labels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4)
    before = torch.get_rng_state()
    found = blended(images, labels, mixup=0.0)
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], labels)
    assert torch.equal(torch.get_rng_state(), before)


def seen_by(system: CodedSystem) -> list[Tensor]:
    """What the baseline is asked about, from now on."""
    asked = list[Tensor]()
    system.baseline.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    return asked


def test_the_teacher_says_what_blends_show_and_labels_what_the_others_do(data: DataSet) -> None:
    images, labels = (part[:8] for part in data.sample("train"))
    system, stage = rounds_stage(data, mixup=0.5)
    asked = seen_by(system)

    def loss(given: Tensor) -> dict[str, float]:
        torch.manual_seed(3)
        terms = stage.loss(images, given, 0.5)[1]
        return {name: float(value) for name, value in terms.items() if name != "range"}  # of running statistics

    found = loss(labels)
    shown = torch.cat(asked)
    assert (shown[:4] != images[:4]).flatten(1).any(1).all()
    assert torch.equal(shown[4:], images[4:])
    head = list[Tensor]()
    system.head.register_forward_pre_hook(lambda _, given: head.append(given[0]))
    others = (labels + 1) % CLASSES
    assert loss(torch.cat([others[:4], labels[4:]])) == found
    assert torch.equal(head[0], shown)  # the student sees what the teacher is asked about
    assert loss(torch.cat([labels[:4], others[4:]])) != found


@pytest.mark.parametrize("shares", [{"mixup": 1.0}, {"mixup": 0.5, "cutmix": 0.5}, {"cutmix": 1.0}])
def test_without_labels_the_teacher_alone_teaches(data: DataSet, shares: dict[str, float]) -> None:
    images, labels = (part[:8] for part in data.sample("train"))
    _, stage = rounds_stage(data, flip=False, **shares)
    total, terms = stage.loss(images, labels, 0.5)
    assert float(terms["coded"]) == float(terms["readout"]) == 0
    assert float(terms["coded_distillation"]) > 0
    total.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(total)


def test_without_mixup_images_stay(data: DataSet) -> None:
    images, labels = (part[:8] for part in data.sample("train"))
    system, stage = rounds_stage(data)
    asked = seen_by(system)
    _, terms = stage.loss(images, labels, 0.5)
    assert torch.equal(torch.cat(asked), images)
    values = system.values(images)
    assert float(terms["readout"]) == pytest.approx(
        float(F.cross_entropy(system.read(values), labels).detach()), rel=1e-4
    )


def test_answers_about_blends_are_not_computed_ahead(data: DataSet) -> None:
    assert rounds_stage(data, epochs=3, crop_padding=0)[1].known is not None
    assert rounds_stage(data, epochs=3, crop_padding=0, mixup=0.1)[1].known is None
    assert rounds_stage(data, epochs=3, crop_padding=0, cutmix=0.1)[1].known is None


@pytest.mark.parametrize(
    ("change", "distillation", "problem"),
    [
        ({"mixup": 1.5}, 1.0, r"train\.rounds\.mixup is 1\.5; it is a share"),
        ({"mixup": -0.1}, 1.0, r"train\.rounds\.mixup is -0\.1; it is a share"),
        ({"mixup": float("nan")}, 1.0, r"train\.rounds\.mixup is nan; give a finite number"),
        ({"mixup": 0.5}, 0.0, r"train\.rounds\.mixup makes images that only a teacher knows, and no teacher"),
        ({"mixup": 0.01, "batch": 40}, 1.0, r"train\.rounds\.mixup is 0\.01, which blends no image"),
        ({"cutmix": 1.5}, 1.0, r"train\.rounds\.cutmix is 1\.5; it is a share"),
        ({"cutmix": 0.5}, 0.0, r"train\.rounds\.cutmix makes images that only a teacher knows, and no teacher"),
        ({"cutmix": 0.01, "batch": 40}, 1.0, r"train\.rounds\.cutmix is 0\.01, which blends no image"),
        ({"cutmix": 0.6, "mixup": 0.5}, 1.0, r"train\.rounds\.mixup and cutmix are shares of different images"),
        ({"taught_by": "baseline"}, 1.0, r"train\.rounds\.taught_by chooses between \[teacher\] and the baseline"),
        ({"taught_by": "nobody"}, 1.0, r"taught_by"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, Any], distillation: float, problem: str) -> None:
    values = coded_values()
    values["loss"]["distillation"] = distillation
    values["train"]["rounds"] |= change
    with pytest.raises(TrainingConfigError, match=problem):
        coded_config(values, "tests")


def test_blends_of_a_stage_without_epochs_are_refused() -> None:
    values = coded_values() | {"teacher": {"name": "resnet8", "width": 8, "checkpoint": "somewhere"}}
    values["backbone"]["checkpoint"] = "somewhere"
    values["train"]["baseline"] |= {"mixup": 0.5, "epochs": 0}
    with pytest.raises(TrainingConfigError, match=r"train\.baseline\.mixup is 0\.5, which blends no image"):
        coded_config(values, "tests")


def test_a_teacher_that_no_stage_learns_from_is_refused() -> None:
    values = coded_values() | {"teacher": {"name": "resnet8", "width": 8, "checkpoint": "somewhere"}}
    values["backbone"]["checkpoint"] = "somewhere"
    for stage in ("rounds", "finetune"):
        values["train"][stage]["taught_by"] = "baseline"
    coded_config(values, "tests")  # the baseline's own stage does
    values["train"]["baseline"]["epochs"] = 0
    with pytest.raises(TrainingConfigError, match=r"\[teacher\] teaches no stage"):
        coded_config(values, "tests")


def test_attributes_are_blended_too() -> None:
    logits, given = torch.randn(4, 40), torch.randint(0, 2, (4, 40), dtype=torch.uint8)
    expected = F.binary_cross_entropy_with_logits(logits[2:], given[2:].float())
    assert float(labelled(logits, given[2:], 0.0)) == pytest.approx(float(expected), rel=1e-5)
    assert float(labelled(logits, given[4:], 0.0)) == 0


@pytest.mark.parametrize("kind", ["masked", "coded", "rival"])
def test_a_baseline_without_a_teacher_has_no_blends(kind: str) -> None:
    values = {"masked": tiny_values, "coded": coded_values, "rival": lambda: rival_values("none")}[kind]()
    values["train"]["baseline"] |= {"mixup": 0.5}
    read = {"masked": config_from_dict, "coded": coded_config, "rival": rival_config}[kind]
    with pytest.raises(TrainingConfigError, match=r"train\.baseline\.mixup makes images that only a teacher knows"):
        read(values, Path("tests"))  # type: ignore[operator]


def test_other_stages_have_no_blends() -> None:
    values = tiny_values()
    values["train"]["masks"] |= {"mixup": 0.5}
    with pytest.raises(TrainingConfigError, match="mixup"):
        config_from_dict(values, "tests")


@pytest.mark.parametrize("flip", [False, True])
def test_the_teacher_sees_another_window_of_what_the_network_sees(data: DataSet, flip: bool) -> None:  # noqa: FBT001
    system, stage = rounds_stage(data, flip=flip, mixup=0.5, teacher_crop_padding=2)
    images, labels = (part[:64] for part in data.sample("train"))
    taught, learned = list[Tensor](), list[Tensor]()
    system.baseline.register_forward_pre_hook(lambda _, given: taught.append(given[0]))
    system.head.register_forward_pre_hook(lambda _, given: learned.append(given[0]))
    torch.manual_seed(3)
    stage.loss(images, labels, 0.5)
    theirs, ours = torch.cat(taught), torch.cat(learned)
    assert torch.equal(ours[32:], images[32:])
    size, found = images.shape[2], list[tuple[int, ...]]()
    for one, other in zip(theirs, F.pad(ours, (2,) * 4), strict=True):
        windows = {(top, left): other[:, top : top + size, left : left + size] for top in range(5) for left in range(5)}
        ways = {
            (*where, flips): window.flip(2) if flips else window
            for where, window in windows.items()
            for flips in (0, 1)
        }
        found += [way for way, window in ways.items() if torch.equal(window, one)][:1]
    assert len(found) == 64
    assert len(set(found)) > 15
    assert {flipped for *_, flipped in found} == ({False, True} if flip else {False})


def test_what_is_seen_through_drawn_windows_is_not_asked_ahead(data: DataSet) -> None:
    assert rounds_stage(data, epochs=3, crop_padding=0, teacher_crop_padding=1)[1].known is None


@pytest.mark.parametrize(
    ("padding", "distillation", "message"),
    [
        (-1, 1.0, r"train\.rounds\.teacher_crop_padding is -1; it is a number of pixels"),
        (2, 0.0, r"train\.rounds\.teacher_crop_padding is for a teacher, and none answers in this stage"),
    ],
)
def test_windows_that_no_teacher_can_see_are_refused(padding: int, distillation: float, message: str) -> None:
    values = coded_values()
    values["loss"]["distillation"] = distillation
    values["train"]["rounds"]["teacher_crop_padding"] = padding
    with pytest.raises(TrainingConfigError, match=message):
        coded_config(values, "tests")
