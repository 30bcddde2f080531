import math
from pathlib import Path
from typing import Any

import pytest

from privdfs_training.cli import main
from privdfs_training.config import Config
from privdfs_training.errors import TrainingConfigError
from privdfs_training.reading import config_from_dict, load_config, refuse_unknown_keys
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, tiny_values, write_toml

COMMITTED = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
CONFIGS = [path for path in COMMITTED if "[sharing]" not in path.read_text()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_committed_config_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_misspelt_key_is_named_with_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIGS[0].read_text().replace("branch_dropout", "branch_droput"))
    with pytest.raises(
        TrainingConfigError, match=r"unknown key 'fusion\.branch_droput'.*Did you mean 'branch_dropout'"
    ):
        load_config(path)


def test_grouped_branches_of_older_versions(tmp_path: Path) -> None:
    """`branch.together` is gone. Configs that say false and checkpoints that say either still open."""
    for together in (False, True):
        values = tiny_values()
        values["branch"]["together"] = together
        assert config_from_dict(values, "a checkpoint") == config_from_dict(tiny_values(), "tests")
        path = write_toml(tmp_path / "config.toml", values)
        if together:
            with pytest.raises(TrainingConfigError, match=r"unknown key 'branch\.together'"):
                load_config(path)
        else:
            assert load_config(path) == config_from_dict(tiny_values(), "tests")


def test_the_image_itself_is_shared_by_coded_runs_alone(tmp_path: Path) -> None:
    values = tiny_values() | {"head": {"kind": "pixels"}}
    with pytest.raises(TrainingConfigError, match=r"head\.kind = 'pixels' shares the image itself"):
        load_config(write_toml(tmp_path / "config.toml", values))


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIGS[0].read_text().replace("seed = 0\n", ""))
    with pytest.raises(TrainingConfigError, match="seed"):
        load_config(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [
        ("masks", "servers", 1, "at least 2 servers"),
        ("masks", "servers", 13, "12 are the most"),
        ("masks", "levels", 4, "must be odd"),
        ("masks", "overlap", 1.5, "from 0 to 1"),
        ("loss", "bits", 0.1, "learned_levels = true"),
        ("masks", "levels", 257, "from 3 to 255"),
        ("masks", "values", 0, "at least one value"),
        ("masks", "settled", 0.0, "share of the stage"),
        ("masks", "temperature", [1.0, 0.0], "both must be above 0"),
        ("loss", "distillation_temperature", 0.0, "must be above 0"),
        ("loss", "label_smoothing", 1.5, "from 0 to 1"),
        ("loss", "auxiliary", -0.1, r"loss\.auxiliary is -0\.1; it must be 0 or more"),
        ("train", "masks", BRANCHES_STAGE | {"learning_rate": 0.0}, r"train\.masks\.learning_rate is 0\.0"),
        ("train", "finetune", BRANCHES_STAGE | {"weight_decay": -1.0}, r"train\.finetune\.weight_decay is -1"),
        ("train", "baseline", BRANCHES_STAGE | {"crop_padding": -1}, r"train\.baseline\.crop_padding is -1"),
        ("train", "masks", BRANCHES_STAGE | {"clip": -1.0}, r"train\.masks\.clip is -1"),
        ("data", "layout", "shards", "layout is for ImageNet"),
        ("data", "identity_images", 30, "for celeba-identity, not for fashion-mnist"),
        ("head", "stages", [], "at least one"),
        ("fusion", "branch_dropout", 1.0, "probability"),
        ("fusion", "hidden", -1, "0 for no correction"),
        ("train", "fusion", FUSION_STAGE | {"malicious": -1.0}, "weight of a loss"),
        ("train", "fusion", FUSION_STAGE | {"epochs": 0}, "at least 1 epoch"),
        ("train", "branches", BRANCHES_STAGE | {"epochs": 0}, "at least 1 epoch"),
        ("train", "masks", BRANCHES_STAGE | {"epochs": -1}, "at least 1 epoch"),
        ("backbone", "mean", [0.5], "go together"),
        ("backbone", "name", "resnet21", "Invalid value 'resnet21'"),
        ("backbone", "width", "wide", "Expected `int`"),
    ],
)
def test_values_that_cannot_work_are_refused(section: str, key: str, value: Any, problem: str) -> None:
    values = tiny_values()
    values[section][key] = value
    with pytest.raises(TrainingConfigError, match=problem):
        config_from_dict(values, "tests")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/absolute", "my run", "modèle", "-x", "a" * 116])
def test_a_name_is_one_that_a_release_can_have(tmp_path: Path, name: str) -> None:
    """It names a folder, too, which must not lie somewhere else."""
    with pytest.raises(TrainingConfigError, match=r"name is .*; it names a folder and the release"):
        load_config(write_toml(tmp_path / "config.toml", tiny_values() | {"name": name}))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_a_range(tmp_path: Path, seed: int) -> None:
    with pytest.raises(TrainingConfigError, match=r"from 0 to 2\*\*64 - 1"):
        load_config(write_toml(tmp_path / "config.toml", tiny_values() | {"seed": seed}))


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("loss", "distillation", math.inf, r"loss\.distillation is inf"),
        ("masks", "temperature", [math.nan, 0.1], r"masks\.temperature\[0\] is nan"),
        ("train", "fusion", FUSION_STAGE | {"malicious": math.nan}, r"train\.fusion\.malicious is nan"),
    ],
)
def test_numbers_are_finite(section: str, key: str, value: Any, named: str) -> None:
    values = tiny_values()
    values[section][key] = value
    with pytest.raises(TrainingConfigError, match=f"{named}; give a finite number"):
        refuse_unknown_keys(values, Config, Path("tests"))


def test_liars_among_two_servers_are_refused() -> None:
    values = tiny_values(servers=2)
    values["train"]["fusion"] = FUSION_STAGE
    with pytest.raises(TrainingConfigError, match="no minority can lie"):
        config_from_dict(values, "tests")


def test_liars_about_attributes_are_refused() -> None:
    values = tiny_values()
    values["train"]["fusion"], values["data"]["name"] = FUSION_STAGE, "celeba-attributes"
    with pytest.raises(TrainingConfigError, match=r"train\.fusion\.malicious goes by the class"):
        config_from_dict(values, "tests")


@pytest.mark.parametrize("stage", ["masks", "finetune"])
def test_no_epochs_of_the_split_need_a_finished_system(stage: str) -> None:
    values = tiny_values()
    values["train"][stage] = values["train"][stage] | {"epochs": 0}
    with pytest.raises(TrainingConfigError, match=rf"train\.{stage}\.epochs = 0 .* name them in head\.checkpoint"):
        config_from_dict(values, "tests")


def test_a_given_head_stays_as_it_is_and_needs_branches() -> None:
    values = tiny_values()
    values["head"]["checkpoint"] = "runs/earlier/system.safetensors"
    with pytest.raises(TrainingConfigError, match=r"set train\.masks\.epochs and train\.finetune\.epochs to 0"):
        config_from_dict(values, "tests")
    for stage in ("masks", "finetune"):
        values["train"][stage] = values["train"][stage] | {"epochs": 0}
    with pytest.raises(TrainingConfigError, match=r"add the stage \[train\.branches\]"):
        config_from_dict(values, "tests")
    values["train"]["branches"] = values["train"]["masks"] | {"epochs": 1}
    assert config_from_dict(values, "tests").train.branches is not None
    values["adversary"] = {"weight": 1.0}
    values["loss"] |= {"rate": 0.1}
    with pytest.raises(TrainingConfigError, match=r"\[adversary\] and loss\.rate cannot train the finished head"):
        config_from_dict(values, "tests")


def test_no_epochs_of_the_baseline_need_its_weights() -> None:
    values = tiny_values()
    values["train"]["baseline"] = values["train"]["baseline"] | {"epochs": 0}
    with pytest.raises(TrainingConfigError, match=r"name them in backbone\.checkpoint"):
        config_from_dict(values, "tests")
    values["backbone"]["checkpoint"] = "runs/earlier/baseline.safetensors"
    assert config_from_dict(values, "tests").train.baseline.epochs == 0


@pytest.mark.parametrize("text", ["seed = = 1", "\x00\x01"])
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(TrainingConfigError, match="not a TOML file"):
        load_config(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("masks", "values", 1000, "but the feature has 196"),
        ("head", "checkpoint", "none.safetensors", "there is no checkpoint none.safetensors"),
        ("backbone", "checkpoint", "none.safetensors", "there is no checkpoint none.safetensors"),
    ],
)
def test_networks_and_weights_are_checked_before_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, key: str, value: Any, told: str
) -> None:
    values = tiny_values()
    if section == "head":
        values["train"] |= {name: values["train"][name] | {"epochs": 0} for name in ("masks", "finetune")}
        values["train"]["branches"] = BRANCHES_STAGE
    values[section][key] = value
    config = write_toml(tmp_path / "run.toml", values)
    assert main([str(config), "--data", str(tmp_path / "no data here")]) == 2
    assert told in capsys.readouterr().err


def test_command_explains_and_exits_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.toml")]) == 2
    assert "cannot read the config" in capsys.readouterr().err
