"""Adversarial reconstruction: the head is trained against attackers that are trained beside it.

The first version of the paper names "adversarial training with a diffusion-based proxy attacker" (PrivDFS-AT, arXiv
2508.04346v1, abstract); ResSFL (Li et al., arXiv 2205.04007) trains a feature extractor against a decoder in the same
way. The bounded form of the term is this project's own: it compares a proxy with the class mean of the image, and there
is nothing to gain below that floor, so the head is never paid for misleading a proxy, only for telling it less. Proxies
are told the class, so neither is it paid for hiding what it has to tell.

A head learns to beat the one attacker it sees while a fresh one still succeeds. Hence several proxies that start afresh
in turn, and none before the classifier has learned something.

The proxies are shared by all coalitions and are told which one attacks. Their first layer has columns of its own for
every server, so what they share is how to paint. A batch is divided: each image is attacked by one of the few
coalitions that are chosen in a step, and by one proxy. So a step costs the same for 35 coalitions as for 3, and for
four proxies as for one; what makes the attackers stronger, and costs time, is their width and their number of steps.
"""

from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from privdfs._format import largest_minority
from privdfs_training.checkpoint import load_weights, optimizer_tensors, restore_optimizer
from privdfs_training.config import AdversaryConfig
from privdfs_training.parallel import Terms
from privdfs_training.precision import uncached_autocast
from privdfs_training.proxies import DecoderProxy, DiffusionProxy

KINDS = {"decoder": DecoderProxy, "diffusion": DiffusionProxy}
COALITIONS_PER_STEP = 4
MOMENTUM = 0.05  # of the coalitions' running scores
WEIGHT_DECAY = 1e-4  # of the proxies, as of the decoder in the attack


class Adversary(nn.Module):
    """The proxies of one stage, their optimisers, and the floor that they are compared with.

    Attributes:
        members: Who belongs to each minority coalition, float [coalitions, servers].
        gains: Running mean of what each coalition reconstructs beyond the class mean, in dB, float [coalitions].
        attacked_at: The last step at which each coalition attacked, int64 [coalitions].
        means: Running mean image of each class in 0..1, float [classes, channels, height, width]. It is taken from the
            augmented images, since those are what proxies reconstruct.
        counts: Images in each of the means, float [classes].
    """

    members: Tensor
    gains: Tensor
    attacked_at: Tensor
    means: Tensor
    counts: Tensor

    def __init__(
        self,
        config: AdversaryConfig,
        *,
        servers: int,
        values: int,
        image_shape: tuple[int, int, int],
        classes: int,
        start: float,
    ) -> None:
        """Start with fresh proxies.

        Args:
            config: Kind, number and budget of the proxies.
            servers: Number of servers, at least 3.
            values: Elements of the feature.
            image_shape: Channels, height, width.
            classes: Number of classes.
            start: Share of the stage that passes before there are proxies.
        """
        super().__init__()
        self.config, self.start, self.step = config, start, 0
        members = minority_coalitions(servers)
        self._shape = (servers * values + servers, classes, image_shape)
        self.register_buffer("members", members)
        self.register_buffer("gains", torch.zeros(len(members)))
        self.register_buffer("attacked_at", torch.full((len(members),), -1))
        self.register_buffer("means", torch.zeros(classes, *image_shape))
        self.register_buffer("counts", torch.zeros(classes))
        self.proxies = nn.ModuleList(self._fresh() for _ in range(config.proxies))
        self.optimizers = [
            torch.optim.AdamW(proxy.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
            for proxy in self.proxies
        ]

    def forward(self, shares: Tensor, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Terms]:
        """Train the proxies on a batch, then attack it with those that are trained enough.

        Args:
            shares: float [batch, servers, channels, h, w]; the gradient of the result flows into them, that of the
                proxies' own training does not.
            images: uint8 [batch, channels, height, width].
            labels: int64 [batch].
            progress: Of the stage, in 0..1.

        Returns:
            The term to minimise, in 0..1: by how much the squared error is below the class mean's, as a fraction of it,
            mean over images. And the values to report; PSNR is that of the class mean plus what the proxies
            gain over it.
        """
        images = images.float() / 255
        means = self._class_means(images, labels)
        term = shares.new_zeros((), dtype=torch.float32)
        if progress >= self.start:
            classes = F.one_hot(labels, len(self.means)).to(shares.dtype)
            self._restart()
            with uncached_autocast(shares.device.type):  # the proxies' weights change while it is open
                for _ in range(self.config.steps):
                    self._train(shares.detach(), classes, images, means)
                if counting := self._counting():
                    term = self._attack(counting, shares, classes, images, means)
            self.step += 1
        floor = -10 * torch.log10((means - images).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)).mean()
        return term, {
            "adversary": term.detach(),
            "adversary_psnr": floor + self.gains.mean(),
            "adversary_psnr_worst": floor + self.gains.max(),
            "adversary_floor": floor,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a stage needs to go on with these proxies.

        Returns:
            Tensors whose names begin with `adversary.`.
        """
        state = {f"state.{name}": value for name, value in self.state_dict().items()}
        for index, optimizer in enumerate(self.optimizers):
            state |= {f"{index}.{name}": value for name, value in optimizer_tensors(optimizer).items()}
        return {f"adversary.{name}": value for name, value in state.items()} | {
            "adversary.step": torch.tensor(self.step)
        }

    def restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Put back what `tensors` gave.

        Args:
            tensors: May hold other entries too.
            path: Where they come from; used in messages.

        Raises:
            CheckpointError: A tensor is missing, left over, or of another shape.
        """
        load_weights(self, _below(tensors, "adversary.state."), path)
        for index, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, _below(tensors, f"adversary.{index}."))
        self.step = int(tensors["adversary.step"])

    def _counting(self) -> list[int]:
        """Indices of the proxies that have trained for long enough to count."""
        every, ages = self.config.restart, []
        for index in range(self.config.proxies):
            # Proxy i starts afresh at step (i + 1) * restart and every proxies * restart steps from there.
            since = self.step - (index + 1) * every
            ages.append(since % (self.config.proxies * every) if every and since >= 0 else self.step)
        return [index for index, age in enumerate(ages) if age >= self.config.warm_up]

    def _fresh(self) -> nn.Module:
        seen, classes, image_shape = self._shape
        return KINDS[self.config.kind](seen, classes, image_shape, width=self.config.width).to(
            memory_format=torch.channels_last  # pyright: ignore[reportCallIssue]
        )

    def _class_means(self, images: Tensor, labels: Tensor) -> Tensor:
        arrived = torch.zeros_like(self.counts).index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))
        sums = torch.zeros_like(self.means).index_add_(0, labels, images)
        self.counts += arrived
        self.means += (sums - _per_image(arrived) * self.means) / _per_image(self.counts.clamp(min=1))
        return self.means[labels]

    def _restart(self) -> None:
        every = self.config.restart
        if every and self.step and not self.step % every:
            index = (self.step // every - 1) % self.config.proxies
            self.proxies[index].load_state_dict(self._fresh().state_dict())
            self.optimizers[index].state.clear()

    def _choose(self, batch: int) -> Tensor:
        """One coalition for each image, int64 [batch], from the few that attack in this step."""
        chosen = choose_coalitions(self.gains, self.attacked_at, COALITIONS_PER_STEP)
        self.attacked_at[chosen] = self.step
        return chosen[torch.randperm(batch, device=chosen.device) % len(chosen)]

    def _seen(self, shares: Tensor, coalition: Tensor) -> Tensor:
        members = self.members[coalition].to(shares.dtype)
        return torch.cat([(shares * _per_image(members, 3)).flatten(1), members], dim=1)

    def _train(self, shares: Tensor, classes: Tensor, images: Tensor, means: Tensor) -> None:
        seen = self._seen(shares, self._choose(len(images)))
        for index, (proxy, optimizer) in enumerate(zip(self.proxies, self.optimizers, strict=True)):
            part = slice(index, None, len(self.proxies))
            error, floor = proxy(seen[part], classes[part], images[part], means[part])
            with torch.autocast(seen.device.type, enabled=False):
                (error + floor).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _attack(self, counting: list[int], shares: Tensor, classes: Tensor, images: Tensor, means: Tensor) -> Tensor:
        coalition = self._choose(len(images))
        seen = self._seen(shares, coalition)
        leaks, gains = [], torch.empty(len(images), device=images.device)
        for turn, index in enumerate(counting):
            # While all of them count, none attacks what it was trained on a moment ago.
            proxy, part = self.proxies[index], slice((turn + 1) % len(counting), None, len(counting))
            # Detached weights: the gradient goes to the shares alone.
            weights = {name: value.detach() for name, value in proxy.named_parameters()}
            error, floor = functional_call(proxy, weights, (seen[part], classes[part], images[part], means[part]))
            leaks.append(leak(error, floor))
            gains[part] = 10 * torch.log10((floor + 1e-10) / (error + 1e-10)).detach()
        attacked = torch.zeros_like(self.gains).index_add_(0, coalition, torch.ones_like(gains))
        mean = torch.zeros_like(self.gains).index_add_(0, coalition, gains) / attacked.clamp(min=1)
        self.gains += MOMENTUM * (mean - self.gains) * (attacked > 0)
        return torch.cat(leaks).mean()


def minority_coalitions(servers: int) -> Tensor:
    """The largest coalitions that an honest majority allows; smaller ones see less than some of these.

    Args:
        servers: Number of servers, at least 3.

    Returns:
        Zeros and ones, float [coalitions, servers].
    """
    coalitions = list(combinations(range(servers), largest_minority(servers)))
    return torch.stack([torch.zeros(servers).index_fill_(0, torch.tensor(members), 1.0) for members in coalitions])


def choose_coalitions(gains: Tensor, attacked_at: Tensor, count: int) -> Tensor:
    """Half of them the ones that scored best lately, the other half those whose last attack was longest ago.

    Args:
        gains: Recent score of each coalition, float [coalitions].
        attacked_at: Step of its last attack, int64 [coalitions]; ties are broken at random.
        count: How many to choose; all, where there are not more.

    Returns:
        int64 [chosen].
    """
    if len(gains) <= count:
        return torch.arange(len(gains), device=gains.device)
    best = gains.topk(count // 2).indices
    order = attacked_at + torch.rand(len(gains), device=gains.device)
    order[best] = torch.inf
    return torch.cat([best, order.topk(count - len(best), largest=False).indices])


def leak(error: Tensor, floor: Tensor) -> Tensor:
    """What a reconstruction tells beyond the class: 0 at or above the floor's error, 1 for a perfect copy.

    Args:
        error: Squared error of the reconstruction, float [batch].
        floor: Squared error of the class mean, float [batch]; no gradient flows into it.

    Returns:
        float [batch] in 0..1.
    """
    floor = floor.detach()
    return F.relu(floor - error) / floor.clamp(min=1e-6)


def _per_image(values: Tensor, axes: int = 3) -> Tensor:
    return values[(..., *(None,) * axes)]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
