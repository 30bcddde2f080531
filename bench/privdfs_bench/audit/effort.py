"""What an audit spends on a release."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from privdfs_bench.errors import BenchError
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.diffusion import DiffuseBudget
from privdfs_training.attacks.optimise import OptimiseBudget

SEED = 0
#: Images whose reconstructions are kept to be looked at, and those that the baseline looks at.
SHOWN, JUDGED = 12, 500
#: PSNR of an image that came out exactly, in dB: a result file holds no infinity.
HIGHEST = 100.0
#: Up to so many servers every coalition is attacked by the stronger attacks of effort `full`.
EVERY_COALITION = 5
#: Of which "diffusion-mean" is the mean.
SAMPLES = 8
QUERIES = (64, 256, 1000, 4000, 16_000, 50_000)
Progress = Callable[[float, float], None]


#: Of an attack; ridge regression has none.
Budget = DecoderBudget | OptimiseBudget | DiffuseBudget | None


@dataclass(frozen=True)
class Effort:
    """What is spent on a release.

    Attributes:
        pairs: The attacker's own images, at most.
        targets: Test images that are attacked by decoders, at most.
        optimised: Test images that are attacked by optimisation.
        dense: Of fully connected decoders.
        strong: Of convolutional ones.
        sizes: Whether convolutional decoders attack coalitions of every size, or the largest minority alone.
        forms: Attacks that are made once, by the worst minority.
        optimise: Of attacks through the head.
        undefended: Pairs for the undefended split.
        diffuse: Of attacks guided by a diffusion prior; None makes none.
        diffused: Test images that they attack.
        seconds: Stop training a decoder after so long; None never does.
    """

    pairs: int
    targets: int
    optimised: int
    dense: DecoderBudget
    strong: DecoderBudget
    sizes: bool
    forms: tuple[str, ...]
    optimise: OptimiseBudget
    undefended: int
    diffuse: DiffuseBudget | None = None
    diffused: int = 64
    seconds: float | None = None

    def budget(self, attack: str) -> Budget:
        """What an attack spends, by its name; convolutional decoders all spend `strong`."""
        fixed: dict[str, Budget] = {
            "linear": None,
            "dense": self.dense,
            "dense+answers": self.dense,
            "optimisation": self.optimise,
            "optimisation-tv": OptimiseBudget(3 * self.optimise.steps, 1, prior="variation", weight=1e-3),
        }
        if self.diffuse is not None:
            several = replace(self.diffuse, samples=SAMPLES)
            fixed |= {"diffusion": self.diffuse, "diffusion-mean": several, "diffusion+dense": self.diffuse}
        return fixed.get(attack, self.strong)


#: For Fashion-MNIST and three servers `quick` took 159 s of processor time, and `standard` 5,100 s on one thread of a
#: core with AVX-512, so about three quarters of an hour on two. What `full` takes has not been measured.
EFFORTS = {
    "quick": Effort(
        pairs=20_000,
        targets=2000,
        optimised=16,
        dense=DecoderBudget(epochs=10, width=32),
        strong=DecoderBudget(epochs=2, width=32, blocks=1),
        sizes=False,
        forms=("dense+answers",),
        optimise=OptimiseBudget(steps=100, restarts=2),
        undefended=10_000,
    ),
    "standard": Effort(
        pairs=60_000,
        targets=10_000,
        optimised=128,
        dense=DecoderBudget(epochs=20, width=64),
        strong=DecoderBudget(epochs=5, width=32, blocks=1),
        sizes=True,
        forms=("dense+answers", "decoder-ssim", "unet"),
        optimise=OptimiseBudget(steps=400, restarts=4),
        undefended=20_000,
        diffuse=DiffuseBudget(steps=50, recurrence=2),
    ),
    "full": Effort(
        pairs=60_000,
        targets=10_000,
        optimised=256,
        dense=DecoderBudget(epochs=60, width=64, blocks=2),
        strong=DecoderBudget(epochs=50, width=64, blocks=2, learning_rate=1e-3),
        sizes=True,
        forms=("dense+answers", "decoder-ssim", "unet"),
        optimise=OptimiseBudget(steps=4000, restarts=8),
        undefended=60_000,
        diffuse=DiffuseBudget(),
    ),
}
#: Test images that the attack on the undefended split is scored on: its dense features take much memory.
UNDEFENDED_IMAGES = 1000


def chosen(
    name: str,
    *,
    pairs: int | None = None,
    images: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    diffusion: bool = True,
) -> Effort:
    """The effort of a name, with what was asked to be changed.

    Args:
        name: A key of `EFFORTS`.
        pairs: The attacker's own images, at most.
        images: Test images to attack, at most.
        epochs: Of every decoder.
        seconds: Stop training a decoder after so long.
        diffusion: Whether to attack by a diffusion prior, where the effort does.

    Raises:
        BenchError: A number is not positive.
    """
    for option, value in {"pairs": pairs, "images": images, "epochs": epochs, "seconds": seconds}.items():
        if value is not None and value <= 0:
            raise BenchError(f"--{option} must be more than 0, not {value}")
    effort = EFFORTS[name]
    if pairs:
        effort = replace(effort, pairs=pairs, undefended=min(effort.undefended, pairs))
    if images:
        few = {name: min(getattr(effort, name), images) for name in ("optimised", "diffused")}
        effort = replace(effort, targets=images, **few)
    if epochs:
        changed = (replace(budget, epochs=epochs) for budget in (effort.dense, effort.strong))
        effort = replace(effort, **dict(zip(("dense", "strong"), changed, strict=True)))
    if not diffusion:
        effort = replace(effort, diffuse=None)
    return replace(effort, seconds=seconds) if seconds else effort
