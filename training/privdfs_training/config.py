"""The sections of a run's config; every key has one place and one type. `checks` has the rules for their values."""

from typing import Literal

import msgspec


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
