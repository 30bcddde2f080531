"""CUDA graphs (NVIDIA, CUDA C++ Programming Guide, section "CUDA Graphs"): what a network launches is recorded once.

The networks here are small: on a GPU, a step of training waits for the processor, which launches hundreds of kernels of
a few microseconds each. A recorded network is launched as a whole, and computes what it computed; on other devices
nothing changes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from privdfs_training.precision import uncached_autocast

#: Calls before a recording, in which libraries choose their algorithms.
WARM_UP = 3


@contextmanager
def replayed_networks(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside it, networks in training mode on a GPU are recorded at their first call and replayed from then on.

    Args:
        networks: Each called once in a step, because the next call overwrites what the last one gave; with inputs of
            the same shapes in all steps. They read nothing from the device.
    """
    every = list(networks)
    for network in every:
        network.forward = _recording(network)
    try:
        yield
    finally:
        for network in every:
            del network.forward  # the method of the class is left


def _recording(network: nn.Module) -> Callable[..., Tensor]:
    forward = network.forward

    def first(*inputs: Tensor) -> Tensor:
        if not (network.training and inputs[0].is_cuda):
            return forward(*inputs)
        network.forward = forward
        samples = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in inputs)
        before = [buffer.clone() for buffer in network.buffers()]
        with uncached_autocast(inputs[0].device.type):  # cached casts of weights would not be in the recording
            torch.cuda.make_graphed_callables(network, samples, num_warmup_iters=WARM_UP, allow_unused_input=True)
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)  # running averages saw the samples; this step counts once
        return network.forward(*inputs)

    return first


def replayed(compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of images without a gradient, on a GPU recorded at its first call for each shape.

    Args:
        compute: Images to anything. It reads nothing from the device, and the weights that it uses
            stay where they are.

    Returns:
        The same function.
    """
    recorded: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    @torch.no_grad()
    def call(images: Tensor) -> Tensor:
        if not images.is_cuda:
            return compute(images)
        if images.shape not in recorded:
            recorded[images.shape] = _record(compute, images)
        return recorded[images.shape](images)

    return call


def _record(compute: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[Tensor], Tensor]:
    given, graph, side = images.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with uncached_autocast(images.device.type):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                compute(given)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            found = compute(given)

    def replay(images: Tensor) -> Tensor:
        given.copy_(images)
        graph.replay()
        return found.clone()

    return replay
