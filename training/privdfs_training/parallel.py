"""Data-parallel training: several processes, started by torchrun, that together compute what one process computes.

Each process takes its equal part of every batch; gradients are averaged (Li et al., arXiv 2006.15704). For the same
losses as one process at the same batch, three things are done for the whole batch: random values of images are drawn
(`per_image`), batch normalisation takes its statistics (`synchronise`; Peng et al., arXiv 1711.07240), and
reported values are averaged (`mean`). A loss that is not a mean over images
takes the whole batch (`gather`).

Without torchrun there is one process, and nothing here changes what it computes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from privdfs_training.errors import CheckpointError, TrainingConfigError, TrainingError

Terms: TypeAlias = dict[str, float | Tensor]
"""Values to report, by name: numbers, or scalar tensors, which `mean` reads when the whole step is on its way."""

CPU = torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started; do nothing where it did not start this one."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    # Small values always travel between processors: they are needed there, and a GPU need not stop for them.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def leave_together() -> None:
    """Wait for the other processes at the end: one whose peers are gone while its own threads run can end in an abort.

    Not after an error, which the others may not have: torchrun ends them when this process is gone.
    """
    if distributed.is_initialized():
        distributed.barrier()


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def choose_device(name: str | None) -> torch.device:
    """Where this process computes.

    Args:
        name: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one. Without a number, processes of one machine
            take one GPU each.

    Returns:
        The device; a GPU is also made torch's current one, and computes float32 in float32.

    Raises:
        TrainingConfigError: There is no such device.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if available else "cpu"))
    except RuntimeError as error:
        message = f"--device {name} is none of: cpu, cuda, cuda:N"
        raise TrainingConfigError(message) from error
    if device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if device.type != "cuda" or index >= available:
        message = (
            f"--device {name or 'cuda'}: process {rank()} wants {device.type}:{index}, and torch sees {available} CUDA "
            "devices. Start no more processes than there are GPUs, or pass --device cpu."
        )
        raise TrainingConfigError(message)
    torch.cuda.set_device(index)
    # TF32 has ten bits of a factor, too few for the sums that int8 arithmetic keeps exactly.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", index)


def per_image(draw: Callable[[int], Tensor], images: int) -> Tensor:
    """Random values of this process's images, the same ones that a single process would draw for them.

    Args:
        draw: Number of images to random values [images, ...], from the CPU generator, which the loop seeds alike in all
            processes.
        images: Of this process.

    Returns:
        Values [images, ...].
    """
    return part(draw(images * world()))


def part(values: Tensor) -> Tensor:
    """This process's part of values of the whole batch.

    Args:
        values: [images of all processes, ...].

    Returns:
        [images, ...].
    """
    return values.chunk(world())[rank()]


def mean(values: Terms) -> dict[str, float]:
    """Mean of each value over the processes.

    Args:
        values: By name; the names are the same in every process. Tensors are read together: a GPU stops once.

    Returns:
        The means, the same in every process.
    """
    tensors = {name: value.detach().double() for name, value in values.items() if isinstance(value, Tensor)}
    read = torch.stack(list(tensors.values())).tolist() if tensors else []
    numbers: dict[str, float] = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    numbers |= dict(zip(tensors, read, strict=True))
    if world() == 1:
        return numbers
    together = torch.tensor(list(numbers.values()), dtype=torch.float64)
    distributed.all_reduce(together)
    return dict(zip(numbers, (together / world()).tolist(), strict=True))


def same(number: int) -> bool:
    """Whether every process has the same number."""
    if world() == 1:
        return True
    ends = torch.tensor([number, -number])
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def first_only(write: Callable[[], None]) -> None:
    """Do in process 0 what must be done once; the others wait for it.

    Args:
        write: What to do.

    Raises:
        TrainingError: What `write` raised.
        CheckpointError: In the other processes, when it did.
    """
    error: TrainingError | None = None
    if rank() == 0:
        try:
            write()
        except TrainingError as raised:
            error = raised
    failed = mean({"failed": float(error is not None)})["failed"]
    if error is not None:
        raise error
    if failed:
        message = "process 0 could not write its files; its own message says why"
        raise CheckpointError(message)


def gather(values: Tensor) -> Tensor:
    """The values of the whole batch, for a loss that is not a mean over images: every process then computes all of it.

    Args:
        values: Of this process's images, [images, ...].

    Returns:
        [images of all processes, ...]; the gradient flows back to the process that each came from.
    """
    return values if world() == 1 else _Gather.apply(values.contiguous()).flatten(0, 1)


class _Whole(nn.Module):
    """A loss as a module, as DistributedDataParallel wants it."""

    def __init__(self, modules: nn.Module, loss: Callable[..., tuple[Tensor, Terms]]) -> None:
        super().__init__()
        self.trained, self.loss = modules, loss

    def forward(self, *arguments: object) -> tuple[Tensor, Terms]:
        return self.loss(*arguments)


def averaging(modules: nn.Module, loss: Callable[..., tuple[Tensor, Terms]]) -> Callable[..., tuple[Tensor, Terms]]:
    """The same loss, whose backward pass averages the gradients over all processes.

    Args:
        modules: What is trained.
        loss: Of these modules; anything to the scalar to minimise and the values to report.

    Returns:
        The loss itself where there is one process.
    """
    if world() == 1:
        return loss
    # Frozen masks have no gradient, and what a stage trains need not all be used in every step.
    return DistributedDataParallel(_Whole(modules, loss), find_unused_parameters=True)


def remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add the statistics of a batch to the running averages of a normalisation.

    Args:
        norm: With running averages, as all normalisations of this project have them.
        mean: Of this process's values, [channels].
        variance: Of this process's values, not corrected for their number, [channels].
        count: Values of a channel in this process.

    Returns:
        Mean and variance of the values of all processes.
    """
    # Parts are of equal size: the variance is that within them plus that of their means.
    parts = gather(torch.stack([mean, variance])[None])
    mean, variance = parts[:, 0].mean(0), parts[:, 1].mean(0) + parts[:, 0].var(0, correction=0)
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        raise AssertionError
    count *= world()
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        # Without a momentum, torch's averages weigh all batches alike.
        share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * (count / (count - 1)), share)
    return mean, variance


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, on any device; torch's own knows GPUs only."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch names it
        """[batch, channels, h, w] to the same shape and type."""
        if not self.training or world() == 1:
            return super().forward(input)
        values = input.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        mean, variance = remember(self, mean, variance, input.numel() // input.shape[1])
        gain = torch.rsqrt(variance + self.eps)
        gain = self.weight * gain if self.affine else gain
        normalised = (values - mean[:, None, None]) * gain[:, None, None]
        normalised = normalised + self.bias[:, None, None] if self.affine else normalised
        return normalised.to(input.dtype)


class _Gather(torch.autograd.Function):
    """[...] of each process to [world, ...] in all of them."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(world())]
        distributed.all_gather(found, values)
        return torch.stack(found)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        del ctx
        gradient = grad_outputs[0].contiguous().clone()
        distributed.all_reduce(gradient)  # every process's loss depends on every part
        return gradient[rank()]


def synchronise(module: nn.Module) -> None:
    """Let every batch normalisation inside take the statistics of all processes' images; one process needs none of it.

    Args:
        module: Changed in place. Parameters, buffers and their names stay.
    """
    if world() == 1:
        return
    for child in module.modules():
        if parametrize.type_before_parametrizations(child) is nn.BatchNorm2d:
            # The same object goes on: a replacement would leave other references to it behind. It stays what it was,
            # too: torch gives a module with parametrizations a class of its own.
            kind = type(child)
            child.__class__ = type(kind.__name__, (SynchronisedBatchNorm2d, kind), {})
