"""Which values of a config cannot work together; every check gives a message for each problem that it finds."""

import msgspec

from privdfs._format import MAX_PARTITIONS
from privdfs_training.config import (
    BackboneBranchConfig,
    BackboneConfig,
    BackboneHeadConfig,
    BranchedConfig,
    CifarResNetConfig,
    CompactHeadConfig,
    Config,
    CustomConfig,
    DataConfig,
    PixelsHeadConfig,
    RunConfig,
    Section,
    StageConfig,
    TaughtStageConfig,
)

#: Of a CIFAR ResNet's first stage. Below it oneDNN's gradient of the strided shortcut writes past its memory where a
#: processor has AVX2 alone (https://github.com/uxlfoundation/oneDNN/issues/6035).
NARROWEST = 8
#: Of masked shares: they can answer in two to the power of so many ways.
MOST_SERVERS = 12


def network_problems(config: RunConfig) -> list[str]:
    """What is wrong with a backbone, a head and branches, each for itself and together.

    Args:
        config: Any run.

    Returns:
        A message for each problem.
    """
    backbone, head = config.backbone, config.head
    branch = config.branch if isinstance(config, BranchedConfig) else None
    problems = _pixel_problems(backbone)
    if isinstance(backbone, CifarResNetConfig) and backbone.width < NARROWEST:
        problems.append(
            f"backbone.width is {backbone.width}; it must be at least {NARROWEST}: training a narrower ResNet "
            "crashes on processors without AVX-512"
        )
    if isinstance(backbone, CustomConfig):
        problems += factory_problems(backbone)
    if isinstance(head, CompactHeadConfig) and not head.stages:
        problems.append("head.stages is empty; give at least one [channels, blocks]")
    if isinstance(head, PixelsHeadConfig) and isinstance(config, BranchedConfig):
        problems.append(
            "head.kind = 'pixels' shares the image itself, which only coded runs ([sharing], [[rounds]]) hide: take "
            "another kind"
        )
    if isinstance(branch, BackboneBranchConfig) and bool(branch.split) == isinstance(head, BackboneHeadConfig):
        problems.append(
            "branch.split does not go with head.kind = 'backbone': the branches continue where the head ends"
            if branch.split
            else "branch.kind = 'backbone' behind a compact head needs branch.split: the last layer that branches lack"
        )
    return problems


def teacher_problems(config: RunConfig, baseline: TaughtStageConfig, distillation: float) -> list[str]:
    """What is wrong with a teacher of its own, and with what the baseline learns from it.

    Args:
        config: Any run.
        baseline: Its first stage.
        distillation: Weight of what it teaches.

    Returns:
        A message for each problem.
    """
    teacher = config.teacher
    blends = taught_problems("train.baseline", baseline, taught=teacher is not None)
    if teacher is None:
        return blends
    problems = _pixel_problems(teacher) + (factory_problems(teacher) if isinstance(teacher, CustomConfig) else [])
    problems = [problem.replace("backbone.", "teacher.") for problem in problems]
    if teacher.checkpoint is None:
        problems.append("teacher.checkpoint is missing: a teacher has learned before, so name its weights")
    if not distillation:
        problems.append("[teacher] teaches nothing where loss.distillation is 0: give it a weight, or remove [teacher]")
    return problems + blends


def factory_problems(backbone: CustomConfig) -> list[str]:
    """What is wrong with the name of a factory, before anything is imported.

    Args:
        backbone: Names it.

    Returns:
        A message for each problem.
    """
    module, _, function = backbone.factory.partition(":")
    if all(part.isidentifier() for part in (*module.split("."), function)):
        return []
    return [f"backbone.factory is {backbone.factory!r}; it has the form 'package.module:function'"]


def _pixel_problems(backbone: BackboneConfig) -> list[str]:
    if len(backbone.mean) != len(backbone.std):
        return ["backbone.mean and backbone.std go together: give both, with a value for each channel, or neither"]
    wrong = not all(0 <= value <= 1 for value in backbone.mean) or not all(0 < value <= 1 for value in backbone.std)
    return ["backbone.mean and backbone.std are of pixels in 0..1, and std is above 0"] if wrong else []


def problems_of(config: Config) -> list[str]:
    """What cannot work in a run of masked shares.

    Args:
        config: The run.

    Returns:
        A message for each problem.
    """
    return [
        *data_problems(config.data),
        *_attribute_problems(config),
        *_mask_problems(config),
        *network_problems(config),
        *teacher_problems(config, config.train.baseline, config.loss.distillation),
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
        (
            not 0 <= stage.average < 1,
            f"{name}.average is {stage.average}; it is a share, such as 0.999, or 0 to let the last weights count",
        ),
        (stage.average > 0 and not stage.epochs, f"{name}.average is of steps, and the stage has none. Remove it"),
    )
    return [problem for wrong, problem in checks if wrong]


def taught_problems(name: str, stage: TaughtStageConfig, *, taught: bool) -> list[str]:
    """What is wrong with the blends of a stage, and with what its teacher sees.

    Args:
        name: Of its section.
        stage: The section.
        taught: Whether a teacher answers in it.

    Returns:
        A message for each problem.
    """
    checks = []
    for key, share in (("mixup", stage.mixup), ("cutmix", stage.cutmix)):
        checks += [
            (not 0 <= share <= 1, f"{name}.{key} is {share}; it is a share of a batch, from 0 to 1"),
            (
                share > 0 and not taught,
                (
                    f"{name}.{key} makes images that only a teacher knows, and no teacher answers in this stage: add a "
                    "[teacher] and give loss.distillation a weight, or remove it"
                ),
            ),
            (
                0 < share <= 1 and not (stage.epochs and round(share * stage.batch)),
                f"{name}.{key} is {share}, which blends no image: no epochs, or too small a batch. Remove it",
            ),
        ]
    checks += [
        (
            stage.unlabelled > 1,
            f"{name}.mixup and cutmix are shares of different images of a batch: let their sum be 1 at most",
        ),
        (
            stage.teacher_crop_padding < 0,
            f"{name}.teacher_crop_padding is {stage.teacher_crop_padding}; it is a number of pixels, 0 or more",
        ),
        (
            stage.teacher_crop_padding > 0 and not (taught and stage.epochs),
            f"{name}.teacher_crop_padding is for a teacher, and none answers in this stage. Remove it",
        ),
    ]
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
            masks.servers > MOST_SERVERS,
            f"masks.servers is {masks.servers}; each set of them is measured, so {MOST_SERVERS} are the most",
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
