"""One typed TOML file describes a whole run.

Every key has one place and one type; a misspelt key is an error before any time is spent. `load_config` is the
only reader.
"""

import difflib
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from privdfs._format import MAX_PARTITIONS
from privdfs_training.errors import TrainingConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

#: Of a CIFAR ResNet's first stage. Below it oneDNN's gradient of the strided shortcut writes past its memory where a
#: processor has AVX2 alone (https://github.com/uxlfoundation/oneDNN/issues/6035).
NARROWEST = 8


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Common behaviour of all sections: immutable, and unknown keys are errors.

    Values left at their default are not written into checkpoints, so that a key added later changes no older config.
    """


class DataConfig(Section, frozen=True):
    """Which images, and whether training mirrors half of them."""

    name: Literal["fashion-mnist", "cifar10", "cifar100", "celeba-attributes", "celeba-identity", "imagenet"]
    flip: bool
    image_size: int | None = None  # CelebA and ImageNet: height and width in pixels; None means 64 and 224
    identity_images: int | None = None  # celeba-identity: people with fewer images are left out; None means 30
    layout: Literal["folder", "shards"] = "folder"  # imagenet: one folder for each class, or WebDataset shards
    held_out: int = 0  # training images that take the place of the test images, to choose a design by; 0: none

    @property
    def task(self) -> Literal["classes", "attributes"]:
        """One class per image, or any number of yes-or-no attributes."""
        return "attributes" if self.name == "celeba-attributes" else "classes"


class BackboneConfig(Section, frozen=True):
    """The unprotected model that the release is compared with, and the teacher of the split model.

    The name decides which of the other keys there are; `checkpoint` is always one.
    """

    name: Literal[
        "resnet8",
        "resnet20",
        "resnet32",
        "resnet56",
        "resnet18",
        "resnet34",
        "resnet50",
        "vit-tiny",
        "vit-small",
        "vit-base",
    ]
    width: int = 0  # CIFAR ResNets (8 to 56): channels of the first stage; the second and third have twice, four times
    stem: Literal["", "cifar", "imagenet"] = ""  # ResNet-18, 34, 50: 3x3 without max-pool, or 7x7 with stride 2 and one
    patch: int = 0  # ViT: height and width of a patch in pixels
    depth: int = 0  # ViT: number of blocks; not given, the papers' 12
    checkpoint: str | None = None  # safetensors file that the baseline stage starts from
    mean: tuple[float, ...] = ()  # of the pixels that the checkpoint's weights expect, per channel in 0..1; () measures
    std: tuple[float, ...] = ()  # likewise


class HeadConfig(Section, frozen=True):
    """The client network.

    "compact": a stem, then stages of depthwise-separable blocks, then a narrow 1x1 convolution. "backbone": the
    backbone's own first layers, started from the baseline's weights, then a narrow convolution.
    """

    channels: int  # of the feature that the masks cut
    kind: Literal["compact", "backbone"] = "compact"
    stem: int = 0  # compact: channels of the first convolution
    stages: tuple[tuple[int, int], ...] = ()  # compact: (channels, blocks); all but the first halve height and width
    split: str = ""  # backbone: name of its last layer, such as "layer2.0" or "blocks.1"; a wrong one lists all
    stride: int = 0  # backbone: of the narrow convolution; not given, 1
    stem_stride: Literal[1, 2] = 2  # compact
    checkpoint: str | None = None  # finished system whose head and masks are taken as they are


class MaskConfig(Section, frozen=True):
    """How the feature is cut into shares."""

    servers: int
    values: int  # elements of the feature that each server owns
    levels: int  # quantisation levels of one value; odd, so that zero is one of them
    temperature: tuple[float, float]  # of the Gumbel-softmax, at the first step and once settled
    settled: float  # share of the masks stage after which the draw is without noise, so that branches can rely on it
    unit: Literal["element", "channel"] = "element"  # what is owned; of a ViT, an element is one channel of one token
    assignment: Literal["learned", "random", "channel-block"] = "learned"  # the fixed ones are there to compare with
    overlap: float = 0.0  # share of a server's values that another server may own too
    learned_levels: bool = False  # whether each server's step and number of levels are trained; `levels` is the most


class KeysConfig(Section, frozen=True):
    """Keyed partitions: a user's key picks one of many ways to deal the same values to the servers."""

    partitions: int  # ways, the learned one included; without this section there is one for everybody


class BranchConfig(Section, frozen=True):
    """One server's network.

    "residual": residual blocks on the feature's grid. "backbone": the rest of the backbone, started from the baseline's
    weights; it continues where a head of the same kind ends, and behind a compact one from a layer of its own.
    """

    kind: Literal["residual", "backbone"] = "residual"
    split: str = ""  # backbone behind a compact head: the last layer that it leaves out, such as "blocks.1"
    width: int = 0  # residual: channels inside
    blocks: int = 0  # residual: number of blocks


class FusionConfig(Section, frozen=True):
    """The client network that combines the answers."""

    hidden: int  # width of the network that corrects the sorted answers; 0 leaves it out
    branch_dropout: float  # probability that an answer is withheld in training, where its server was not drawn to stay


class LossConfig(Section, frozen=True):
    """Weights of the terms of the split model's loss, beside the fused cross-entropy with weight one."""

    auxiliary: float  # mean cross-entropy of the branches alone
    distillation: float  # Kullback-Leibler divergence from the baseline's softened answer
    distillation_temperature: float
    label_smoothing: float
    rate: float = 0.0  # per bit that a share holds beyond the class, mean over the servers
    bits: float = 0.0  # per bit of a share's size, mean over the servers; only learned levels can lower it
    decorrelation: float = 0.0  # what the shares of different servers tell twice; losses.decorrelation


class AdversaryConfig(Section, frozen=True):
    """Proxy attackers that reconstruct images during training, to be beaten; without this section there are none."""

    weight: float  # of what they reconstruct beyond the class mean, which is in 0..1
    kind: Literal["decoder", "diffusion"] = "decoder"
    proxies: int = 2
    steps: int = 2  # times that they train on the batch, divided between them, for one step of the model
    restart: int = 1000  # steps of the model until the next proxy starts afresh, one after another; 0: none ever does
    warm_up: int = 200  # steps of the model for which a fresh proxy trains before it counts
    width: int = 16  # channels inside a proxy
    learning_rate: float = 2e-3  # of the proxies
    start: float = 0.3  # share of the masks stage without proxies; in finetune they are there from the first step


class StageConfig(Section, frozen=True):
    """Budget, optimiser and augmentation of one stage."""

    epochs: int
    batch: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    crop_padding: int  # pixels added on each side before a random crop of the original size; 0 crops nothing
    clip: float = 0.0  # norm that a gradient is cut to; 0 cuts none


class FusionStageConfig(StageConfig, frozen=True):
    """The stage that trains the fusion alone, on the answers of branches that no longer change."""

    malicious: float = 0.0  # weight of the loss while a minority lies, beside the honest one's weight of one


class TrainConfig(Section, frozen=True):
    """The stages, in the order in which they run; the last two may be left out, and then nothing changes there."""

    baseline: StageConfig
    masks: StageConfig
    finetune: StageConfig
    branches: StageConfig | None = None  # each branch for itself, on the shares of a head that no longer changes
    fusion: FusionStageConfig | None = None
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of convolutions and products; weights are always float32
    compile: bool = False  # whether torch.compile fuses all networks but the head, at the cost of a slow start


class RunConfig(Section, frozen=True):
    """What every run has, whatever keeps its images private."""

    name: str
    seed: int
    data: DataConfig
    backbone: BackboneConfig
    head: HeadConfig


class BranchedConfig(RunConfig, frozen=True):
    """What every run has whose servers have networks of their own."""

    branch: BranchConfig


class Config(BranchedConfig, frozen=True):
    """A whole run of masked shares."""

    masks: MaskConfig
    fusion: FusionConfig
    loss: LossConfig
    train: TrainConfig
    adversary: AdversaryConfig | None = None
    keys: KeysConfig | None = None


def load_config(path: Path) -> Config:
    """Read and check one TOML config.

    Args:
        path: The TOML file.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: The file is missing, is not TOML, has an unknown or missing key, a value of the wrong
            type, or values that cannot work together.
    """
    raw = read_toml(path)
    refuse_unknown_keys(raw, Config, path, "")
    return config_from_dict(raw, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.

    Returns:
        Its values, unchecked.

    Raises:
        TrainingConfigError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = (
            f"cannot read the config {path}: {error.strerror}. Pass the path of a TOML file, such as "
            "configs/fashion-resnet20.toml."
        )
        raise TrainingConfigError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not a TOML file: {error}"
        raise TrainingConfigError(message) from error


def config_from_dict(raw: dict[str, Any], source: str) -> Config:
    """Build a config from plain values and check that they can work together.

    Args:
        raw: Nested dictionaries, as TOML or JSON give them.
        source: Where they come from; used in messages.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: As `load_config`.
    """
    try:
        config = msgspec.convert(without_retired_keys(raw), Config)
    except msgspec.ValidationError as error:
        message = f"{source}: {error}"
        raise TrainingConfigError(message) from error
    for problem in _problems(config):
        message = f"{source}: {problem}"
        raise TrainingConfigError(message)
    return config


#: Older versions could compute all branches as one grouped network. The weights are the same either way.
_RETIRED_KEY = "branch.together"


def without_retired_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """Leave out what configs of older versions may say and this version has no use for.

    Args:
        raw: Nested dictionaries.

    Returns:
        A copy without such keys.
    """
    section, key = _RETIRED_KEY.split(".")
    values = raw.get(section)
    if not isinstance(values, dict):
        return raw
    return raw | {section: {name: value for name, value in values.items() if name != key}}


def refuse_unknown_keys(raw: dict[str, Any], section: type[msgspec.Struct], path: Path, prefix: str) -> None:
    """Compare the keys with a section's, and those of the sections in it.

    Args:
        raw: Nested dictionaries.
        section: Whose keys they should be.
        path: Where they come from; used in the message.
        prefix: Of the keys in the message, such as "train.".

    Raises:
        TrainingConfigError: A key is not known; the message names the closest one.
    """
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in raw.items():
        if f"{prefix}{key}" == _RETIRED_KEY and value is False:
            continue
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" Known keys: {', '.join(sorted(fields))}."
            message = f"{path}: unknown key '{prefix}{key}'.{hint}"
            raise TrainingConfigError(message)
        # An optional section is a union with None. Of several sections, msgspec chooses by their tag.
        kinds = get_args(fields[key]) or (fields[key],)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
        if isinstance(value, dict) and len(sections) == 1:
            refuse_unknown_keys(value, sections[0], path, f"{prefix}{key}.")


# Which keys a kind of section needs, and which it may have; for sections whose keys depend on their kind.
_CIFAR_RESNET, _RESNET, _VIT = (("width",), ()), (("stem",), ()), (("patch",), ("depth",))
_KEYS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "backbone": {
        **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet56"), _CIFAR_RESNET),
        **dict.fromkeys(("resnet18", "resnet34", "resnet50"), _RESNET),
        **dict.fromkeys(("vit-tiny", "vit-small", "vit-base"), _VIT),
    },
    "head": {"compact": (("stem", "stages"), ("stem_stride",)), "backbone": (("split",), ("stride",))},
    "branch": {"residual": (("width", "blocks"), ()), "backbone": ((), ("split",))},
}


def key_problems(config: RunConfig) -> list[str]:
    """Keys that the chosen kind of backbone, head or branch lacks, or does not have.

    Args:
        config: Any run.

    Returns:
        A message for each.
    """
    problems = []
    branch = config.branch if isinstance(config, BranchedConfig) else None
    for name, kinds in _KEYS.items():
        section = getattr(config, name, None)  # a coded run has no branches
        if section is None:
            continue
        kind = section.name if name == "backbone" else section.kind
        needed, allowed = kinds[kind]
        every = {key for keys in kinds.values() for group in keys for key in group}
        defaults = {field.name: field.default for field in msgspec.structs.fields(section)}
        for key in sorted(every):
            value = getattr(section, key)
            given = value != defaults[key]
            if key in needed and not given:
                hint = "give at least one [channels, blocks]" if key == "stages" else f"'{kind}' needs it"
                problems.append(f"{name}.{key} is missing or empty; {hint}")
            elif given and key not in (*needed, *allowed):
                known = ", ".join((*needed, *allowed)) or "none"
                problems.append(f"{name}.{key} does not belong to '{kind}'. Keys of its own: {known}.")
            elif isinstance(value, int) and value < 0:
                problems.append(f"{name}.{key} is {value}; it must be at least 1")
    problems += _pixel_problems(config.backbone)
    if 0 < config.backbone.width < NARROWEST:
        problems.append(
            f"backbone.width is {config.backbone.width}; it must be at least {NARROWEST}: training a narrower ResNet "
            "crashes on processors without AVX-512"
        )
    if branch is not None and branch.kind == "backbone" and bool(branch.split) == (config.head.kind == "backbone"):
        problems.append(
            "branch.split does not go with head.kind = 'backbone': the branches continue where the head ends"
            if branch.split
            else "branch.kind = 'backbone' behind a compact head needs branch.split: the last layer that branches lack"
        )
    return problems


def _pixel_problems(backbone: BackboneConfig) -> list[str]:
    if len(backbone.mean) != len(backbone.std):
        return ["backbone.mean and backbone.std go together: give both, with a value for each channel, or neither"]
    wrong = not all(0 <= value <= 1 for value in backbone.mean) or not all(0 < value <= 1 for value in backbone.std)
    return ["backbone.mean and backbone.std are of pixels in 0..1, and std is above 0"] if wrong else []


def _problems(config: Config) -> list[str]:
    return [
        *data_problems(config.data),
        *_attribute_problems(config),
        *_mask_problems(config),
        *key_problems(config),
        *_adversary_problems(config),
        *_fusion_problems(config),
        *loss_problems(config.loss),
        *_budget_problems(config),
        *_other_problems(config),
    ]


def data_problems(data: DataConfig) -> list[str]:
    """What is wrong with a data section.

    Args:
        data: The section.

    Returns:
        A message for each problem.
    """
    checks = (
        (
            data.image_size is not None and not data.name.startswith(("celeba", "imagenet")),
            f"data.image_size is for CelebA and ImageNet; the images of {data.name} keep their own size",
        ),
        (
            data.image_size is not None and data.image_size < 16,
            f"data.image_size is {data.image_size}; images need at least 16 pixels",
        ),
        (
            data.layout != "folder" and data.name != "imagenet",
            f"data.layout is for ImageNet; {data.name} has one layout",
        ),
        (
            data.identity_images is not None and data.name != "celeba-identity",
            f"data.identity_images is for celeba-identity, not for {data.name}",
        ),
        (
            data.held_out < 0,
            f"data.held_out is {data.held_out}; it is a number of training images, 0 for none",
        ),
        (
            data.identity_images is not None and data.identity_images < 5,
            f"data.identity_images is {data.identity_images}; a person with fewer than 5 has no test image",
        ),
    )
    return [problem for wrong, problem in checks if wrong]


def stage_problems(name: str, stage: StageConfig, *, least_epochs: int = 1) -> list[str]:
    """What is wrong with the budget of a stage.

    Args:
        name: Of its section.
        stage: The section.
        least_epochs: 0 for a stage that may take finished weights as they are.

    Returns:
        A message for each problem.
    """
    checks = (
        (
            stage.epochs < least_epochs or stage.batch < 2,
            f"{name} needs at least 1 epoch and a batch of at least 2",
        ),
        (not stage.learning_rate > 0, f"{name}.learning_rate is {stage.learning_rate}; it must be above 0"),
        (not stage.weight_decay >= 0, f"{name}.weight_decay is {stage.weight_decay}; it must be 0 or more"),
        (not stage.clip >= 0, f"{name}.clip is {stage.clip}; it is a norm, or 0 to cut no gradient"),
        (stage.crop_padding < 0, f"{name}.crop_padding is {stage.crop_padding}; it is a number of pixels, 0 or more"),
    )
    return [problem for wrong, problem in checks if wrong]


def loss_problems(loss: Section) -> list[str]:
    """What is wrong with the weights of a loss.

    Args:
        loss: The section; it has distillation_temperature, label_smoothing, and weights.

    Returns:
        A message for each problem.
    """
    weights = msgspec.structs.asdict(loss)
    temperature, smoothing = weights.pop("distillation_temperature"), weights.pop("label_smoothing")
    checks = (
        (not temperature > 0, f"loss.distillation_temperature is {temperature}; it must be above 0"),
        (not 0 <= smoothing <= 1, f"loss.label_smoothing is {smoothing}; it is a share, from 0 to 1"),
        *((not weight >= 0, f"loss.{key} is {weight}; it must be 0 or more") for key, weight in weights.items()),
    )
    return [problem for wrong, problem in checks if wrong]


def _attribute_problems(config: Config) -> list[str]:
    if config.data.task == "classes":
        return []
    by_class = {
        "loss.rate": config.loss.rate > 0,
        "[adversary]": config.adversary is not None,
        "train.fusion.malicious": _malicious(config) > 0,
    }
    message = "goes by the class of an image, and images with attributes have none: remove it"
    return [f"{name} {message}" for name, given in by_class.items() if given]


def _mask_problems(config: Config) -> list[str]:
    masks = config.masks
    checks = (
        (
            masks.servers < 2,
            f"masks.servers is {masks.servers}; a split needs at least 2 servers, and 3 for an honest majority",
        ),
        (
            masks.levels < 3 or masks.levels % 2 == 0 or masks.levels > 255,
            f"masks.levels is {masks.levels}; it must be odd, from 3 to 255, so that zero is a level and int8 holds it",
        ),
        (masks.values < 1, f"masks.values is {masks.values}; every server needs at least one value"),
        (
            not min(masks.temperature) > 0,
            f"masks.temperature is {list(masks.temperature)}; both must be above 0",
        ),
        (
            not 0 < masks.settled <= 1,
            f"masks.settled is {masks.settled}; it is a share of the stage, above 0 and at most 1",
        ),
        (
            not 0 <= masks.overlap <= 1,
            f"masks.overlap is {masks.overlap}; it is a share of a server's values, from 0 to 1",
        ),
        (
            masks.overlap > 0 and masks.assignment != "learned",
            f"masks.overlap needs learned masks; with '{masks.assignment}' shares are disjoint",
        ),
        (
            config.loss.bits > 0 and not masks.learned_levels,
            "loss.bits has nothing to act on: set masks.learned_levels = true, or remove it",
        ),
        (
            config.keys is not None and not 2 <= config.keys.partitions <= MAX_PARTITIONS,
            f"keys.partitions must be from 2 to {MAX_PARTITIONS}; without [keys] there is one partition for everybody",
        ),
        (
            config.keys is not None and not 0 <= config.seed < 2**64,
            f"seed is {config.seed}; the family of keyed partitions is derived from one from 0 to 2**64 - 1",
        ),
    )
    return [problem for wrong, problem in checks if wrong]


def _adversary_problems(config: Config) -> list[str]:
    adversary = config.adversary
    if adversary is None:
        return []
    lifetime = adversary.proxies * adversary.restart
    checks = (
        (
            config.masks.servers < 3,
            f"adversary needs at least 3 servers: with {config.masks.servers} no minority coalition has a member",
        ),
        (
            adversary.weight <= 0,
            f"adversary.weight is {adversary.weight}; it must be above 0. Remove the section to train without",
        ),
        (
            min(adversary.proxies, adversary.steps, adversary.width) < 1 or adversary.learning_rate <= 0,
            "adversary.proxies, steps, width and learning_rate must be above 0",
        ),
        (
            adversary.proxies > min(config.train.masks.batch, config.train.finetune.batch),
            f"adversary.proxies is {adversary.proxies}; they divide a batch, which has fewer images",
        ),
        (
            min(adversary.restart, adversary.warm_up) < 0,
            "adversary.restart and adversary.warm_up are numbers of steps, 0 or more",
        ),
        (
            0 < lifetime <= adversary.warm_up,
            f"adversary.warm_up must be below the {lifetime} steps that a proxy lives (proxies * restart)",
        ),
        (
            not 0 <= adversary.start < 1,
            f"adversary.start is {adversary.start}; it is a share of the masks stage, from 0 to below 1",
        ),
    )
    return [problem for wrong, problem in checks if wrong]


def _fusion_problems(config: Config) -> list[str]:
    dropout, malicious, servers = config.fusion.branch_dropout, _malicious(config), config.masks.servers
    checks = (
        (config.fusion.hidden < 0, f"fusion.hidden is {config.fusion.hidden}; it is a width, or 0 for no correction"),
        (not 0 <= dropout < 1, f"fusion.branch_dropout is {dropout}; it is a probability below 1"),
        (malicious < 0, f"train.fusion.malicious is {malicious}; it is the weight of a loss, 0 or more"),
        (
            malicious > 0 and servers < 3,
            f"train.fusion.malicious is {malicious}, but of {servers} servers no minority can lie: use 0.0",
        ),
    )
    return [problem for wrong, problem in checks if wrong]


def _malicious(config: Config) -> float:
    return 0.0 if config.train.fusion is None else config.train.fusion.malicious


def _budget_problems(config: Config) -> list[str]:
    return [
        problem
        for name, stage in msgspec.structs.asdict(config.train).items()
        if isinstance(stage, StageConfig)
        for problem in stage_problems(f"train.{name}", stage, least_epochs=int(name in ("branches", "fusion")))
    ]


def _other_problems(config: Config) -> list[str]:
    given = config.head.checkpoint is not None
    finished = (
        ("baseline", config.backbone.checkpoint is not None, "backbone"),
        ("masks", given, "head"),
        ("finetune", given, "head"),
    )
    protecting = {
        "[adversary]": config.adversary is not None,
        **{f"loss.{name}": getattr(config.loss, name) != 0 for name in ("rate", "bits", "decorrelation")},
    }
    idle = [name for name, used in protecting.items() if given and used]
    checks = (
        *(
            (
                getattr(config.train, name).epochs == 0 and not there,
                f"train.{name}.epochs = 0 takes finished weights as they are: name them in {part}.checkpoint",
            )
            for name, there, part in finished
        ),
        (
            given and (config.train.masks.epochs > 0 or config.train.finetune.epochs > 0),
            "head.checkpoint takes head and masks as they are: set train.masks.epochs and train.finetune.epochs to 0",
        ),
        (
            given and config.train.branches is None,
            "head.checkpoint brings no branches: add the stage [train.branches]",
        ),
        (
            bool(idle),
            f"{' and '.join(idle)} cannot train the finished head of head.checkpoint any more: leave one out",
        ),
    )
    return [problem for wrong, problem in checks if wrong]
