"""The sections of a run's config; every key has one place and one type. `checks` has the rules for their values."""

from typing import Annotated, Literal, TypeAlias

import msgspec

#: A number of channels, blocks or pixels.
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


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
    held_out: int = 0  # training images that take the place of the test images, to choose or calibrate by; 0: none

    @property
    def task(self) -> Literal["classes", "attributes"]:
        """One class per image, or any number of yes-or-no attributes."""
        return "attributes" if self.name == "celeba-attributes" else "classes"

    def whole(self) -> "DataConfig":
        """The same set with its own test images, whatever was held out."""
        return msgspec.structs.replace(self, held_out=0)


class _Backbone(Section, frozen=True, kw_only=True, tag_field="name"):
    """The unprotected model that the release is compared with, and the teacher of the split model without [teacher]."""

    checkpoint: str | None = None  # safetensors file: the baseline stage starts from it, a teacher has these weights
    mean: tuple[float, ...] = ()  # of the pixels that the checkpoint's weights expect, per channel in 0..1; () measures
    std: tuple[float, ...] = ()  # likewise

    @property
    def name(self) -> str:
        """Such as "resnet20"."""
        return str(self.__struct_config__.tag)


class CifarResNetConfig(_Backbone, frozen=True, kw_only=True):
    """The ResNets of the CIFAR papers."""

    width: int  # channels of the first stage; the second and third have twice and four times as many


class ResNet8Config(CifarResNetConfig, frozen=True, tag="resnet8"):
    """One block a stage."""


class ResNet20Config(CifarResNetConfig, frozen=True, tag="resnet20"):
    """Three blocks a stage."""


class ResNet32Config(CifarResNetConfig, frozen=True, tag="resnet32"):
    """Five blocks a stage."""


class ResNet56Config(CifarResNetConfig, frozen=True, tag="resnet56"):
    """Nine blocks a stage."""


class ImageNetResNetConfig(_Backbone, frozen=True, kw_only=True):
    """The ResNets of torchvision."""

    stem: Literal["cifar", "imagenet"]  # 3x3 without max-pool, or 7x7 with stride 2 and one


class ResNet18Config(ImageNetResNetConfig, frozen=True, tag="resnet18"):
    """Basic blocks."""


class ResNet34Config(ImageNetResNetConfig, frozen=True, tag="resnet34"):
    """Basic blocks."""


class ResNet50Config(ImageNetResNetConfig, frozen=True, tag="resnet50"):
    """Bottleneck blocks."""


class VitConfig(_Backbone, frozen=True, kw_only=True):
    """Vision transformers."""

    patch: Size  # height and width of a patch in pixels
    depth: Size = 12  # number of blocks; the papers have 12


class VitTinyConfig(VitConfig, frozen=True, tag="vit-tiny"):
    """Tokens of 192 values."""


class VitSmallConfig(VitConfig, frozen=True, tag="vit-small"):
    """Tokens of 384 values."""


class VitBaseConfig(VitConfig, frozen=True, tag="vit-base"):
    """Tokens of 768 values."""


class CustomConfig(_Backbone, frozen=True, kw_only=True, tag="custom"):
    """A model of the user's own; whoever trains it runs the code that `factory` names."""

    factory: str  # "package.module:function"; models/custom.py says what the function takes and gives
    #: Given to the function by name. No text: a file from elsewhere could name a path or an address with one.
    arguments: dict[str, bool | int | float] = msgspec.field(default_factory=dict[str, bool | int | float])


#: The name decides which other keys there are.
BackboneConfig: TypeAlias = (
    ResNet8Config
    | ResNet20Config
    | ResNet32Config
    | ResNet56Config
    | ResNet18Config
    | ResNet34Config
    | ResNet50Config
    | VitTinyConfig
    | VitSmallConfig
    | VitBaseConfig
    | CustomConfig
)


class _Head(Section, frozen=True, kw_only=True, tag_field="kind"):
    """The client network."""

    checkpoint: str | None = None  # finished system whose head and masks are taken as they are


class CompactHeadConfig(_Head, frozen=True, kw_only=True, tag="compact"):
    """A stem, then stages of depthwise-separable blocks, then a narrow convolution."""

    channels: Size  # of the feature
    stem: Size  # channels of the first convolution
    stem_stride: Literal[1, 2] = 2
    stages: tuple[tuple[Size, Size], ...]  # (channels, blocks); all but the first halve height and width


class BackboneHeadConfig(_Head, frozen=True, kw_only=True, tag="backbone"):
    """The backbone's own first layers, started from the baseline's weights, then a narrow convolution."""

    channels: Size  # of the feature
    split: str  # name of its last layer, such as "layer2.0" or "blocks.1"; a wrong one lists all
    stride: Size = 1  # of the narrow convolution


class PixelsHeadConfig(_Head, frozen=True, kw_only=True, tag="pixels"):
    """No network: the pixels themselves, at the levels of the first round. Only coded shares hide them."""


HeadConfig: TypeAlias = CompactHeadConfig | BackboneHeadConfig | PixelsHeadConfig


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


class ResidualBranchConfig(Section, frozen=True, tag_field="kind", tag="residual"):
    """One server's network: residual blocks on the feature's grid."""

    width: Size  # channels inside
    blocks: Size


class BackboneBranchConfig(Section, frozen=True, tag_field="kind", tag="backbone"):
    """One server's network: the rest of the backbone, started from the baseline's weights.

    It continues where a head of the same kind ends, and behind a compact one from a layer of its own.
    """

    split: str | None = None  # behind a compact head: the last layer that it leaves out, such as "blocks.1"


BranchConfig: TypeAlias = ResidualBranchConfig | BackboneBranchConfig


class FusionConfig(Section, frozen=True):
    """The client network that combines the answers."""

    hidden: int  # width of the network that corrects the sorted answers; 0 leaves it out
    branch_dropout: float  # probability that an answer is withheld in training, where its server was not drawn to stay


class TaughtLossConfig(Section, frozen=True, kw_only=True):
    """What the losses of all kinds of runs have in common, beside a cross-entropy with weight one."""

    distillation: float  # Kullback-Leibler divergence from the teacher's softened answer
    distillation_temperature: float
    label_smoothing: float


class LossConfig(TaughtLossConfig, frozen=True, kw_only=True):
    """Weights of the terms of the split model's loss, beside the fused cross-entropy with weight one."""

    auxiliary: float  # mean cross-entropy of the branches alone
    rate: float = 0.0  # per bit that a share holds beyond the class, mean over the servers
    bits: float = 0.0  # per bit of a share's size, mean over the servers; only learned levels can lower it
    decorrelation: float = 0.0  # redundancy between the shares of different servers; losses.decorrelation


class AdversaryConfig(Section, frozen=True):
    """Proxy attackers, which the head is trained to defeat; without this section there are none."""

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
    average: float = 0.0  # share that a moving average of the weights keeps in each step; 0: the last weights count


class TaughtStageConfig(StageConfig, frozen=True):
    """A stage whose images may be blended for its teacher, who may see them through windows of its own."""

    #: Share of a batch that is blended with other images, not the alpha of other tools, which is 1 here. The teacher
    #: alone says what a blend shows.
    mixup: float = 0.0
    cutmix: float = 0.0  # share of a batch, beside that one, into which a rectangle of another image is pasted
    #: The teacher sees what the network sees through another window, cut as crop_padding says, and mirrored or not if
    #: data.flip allows it: the network learns what it says of many views. 0: the teacher sees what the network sees.
    teacher_crop_padding: int = 0

    @property
    def unlabelled(self) -> float:
        """Share of a batch whose images are blends of either kind."""
        return self.mixup + self.cutmix


class FusionStageConfig(StageConfig, frozen=True):
    """The stage that trains the fusion alone, on the answers of branches that no longer change."""

    malicious: float = 0.0  # weight of the loss while a minority lies, beside the honest one's weight of one


class TrainConfig(Section, frozen=True):
    """The stages, in the order in which they run; the last two are optional."""

    baseline: TaughtStageConfig
    masks: StageConfig
    finetune: StageConfig
    branches: StageConfig | None = None  # each branch for itself, on the shares of a head that no longer changes
    fusion: FusionStageConfig | None = None
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of convolutions and products; weights are always float32
    compile: bool = False  # whether torch.compile fuses all networks but the head, at the cost of a slow start


class RunConfig(Section, frozen=True, kw_only=True):
    """What every run has, masked, coded or of a rival."""

    name: str
    seed: int
    data: DataConfig
    backbone: BackboneConfig
    head: HeadConfig
    teacher: BackboneConfig | None = None  # finished network that teaches in the baseline's place, and the baseline too


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
