"""A backbone of the user's own: any torch module that a function makes, named in a config as "package.module:function".

The function is called as `function(image_shape, classes, **arguments)`, with (channels, height, width) and the number
of logits. It gives a `torch.nn.Module` from images, float32 [batch, channels, height, width], normalised as the config
says, to logits, float [batch, classes]. Only here is code imported that a config names; `trusted.py` keeps a file that
somebody else wrote from naming it.
"""

import importlib.util
import inspect
import io
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from privdfs_training.config import CustomConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.models.normalise import Normalise

#: How far a traced network may be from the network, relative to the largest logit.
TOLERANCE = 1e-3
#: ONNX operators that multiply and accumulate and that nobody counts, and those whose graphs run any number of times.
#: A release says how many multiply-accumulates the device saves.
UNCOUNTED = frozenset(
    {
        *("ConvInteger", "DeformConv", "DFT", "Einsum", "MatMulInteger", "QLinearConv", "QLinearMatMul", "STFT"),
        *("GRU", "LSTM", "RNN"),
        *("If", "Loop", "Scan", "SequenceMap"),
    }
)


class CustomBackbone(nn.Module):
    """A module of the user's own, behind the normalisation of pixels."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int], factory: str) -> None:
        """Take the module.

        Args:
            model: From normalised images, float32 [batch, channels, height, width], to logits.
            image_shape: Channels, height, width.
            factory: What made it, for messages.
        """
        super().__init__()
        self.normalise = Normalise(image_shape[0])
        self.model = model
        self.image_shape, self.factory = image_shape, factory

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        return self.model(self.normalise(images))


def custom_backbone(config: CustomConfig, image_shape: tuple[int, int, int], classes: int) -> CustomBackbone:
    """Import the function, call it, and try what it gave on two images.

    Args:
        config: Names the function.
        image_shape: Channels, height, width.
        classes: Number of logits.

    Returns:
        The backbone, in evaluation mode, with the weights that the function gave it.

    Raises:
        TrainingConfigError: There is no such function, it fails, or what it gives cannot be trained, saved or exported;
            the message says which.
    """
    model = _call(_function(config.factory), config, image_shape, classes)
    if not isinstance(model, nn.Module):
        _refuse(config, f"gave a {type(model).__name__}, not a torch.nn.Module")
    model.eval()
    _check_logits(model, config, image_shape, classes)
    _check_tensors(model, config)
    _check_trace(model, config, image_shape)
    return CustomBackbone(model, image_shape, config.factory)


def _function(factory: str) -> Callable[..., Any]:
    module, _, name = factory.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            message = f"backbone.factory: {module} needs the module {error.name}, which is not installed: install it."
        else:
            message = (
                f"backbone.factory: there is no module {error.name}. Install its package, or put the folder that it "
                "lies in on PYTHONPATH."
            )
        raise TrainingConfigError(message) from error
    except Exception as error:  # whatever the user's module does while it is imported
        message = f"backbone.factory: importing {module} failed with {type(error).__name__}: {error}"
        raise TrainingConfigError(message) from error
    function = getattr(found, name, None)
    if function is None:
        functions = [key for key, value in vars(found).items() if inspect.isfunction(value) and key[0] != "_"]
        known = f"Functions there: {', '.join(functions)}." if functions else "There is no public function in it."
        message = f"backbone.factory: the module {module} has no {name}. {known}"
        raise TrainingConfigError(message)
    if not callable(function):
        message = f"backbone.factory: {factory} is a {type(function).__name__}, not a function"
        raise TrainingConfigError(message)
    return function


def _call(function: Callable[..., Any], config: CustomConfig, image_shape: tuple[int, int, int], classes: int) -> Any:  # noqa: ANN401  whatever the user's function gives
    try:
        return function(image_shape, classes, **config.arguments)
    except Exception as error:
        given = ", ".join(["image_shape", "classes", *config.arguments])
        message = (
            f"backbone.factory: {config.factory}({given}) failed with {type(error).__name__}: {error}. It is called "
            f"with image_shape = {image_shape} (channels, height, width) and classes = {classes}."
        )
        raise TrainingConfigError(message) from error


def _check_logits(model: nn.Module, config: CustomConfig, image_shape: tuple[int, int, int], classes: int) -> None:
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *image_shape))
    except Exception as error:
        message = (
            f"backbone.factory: the module of {config.factory} failed on images float32 {(2, *image_shape)} with "
            f"{type(error).__name__}: {error}"
        )
        raise TrainingConfigError(message) from error
    if not isinstance(logits, Tensor) or logits.dtype != torch.float32:
        kind = str(logits.dtype) if isinstance(logits, Tensor) else type(logits).__name__
        _refuse(config, f"gave a module that gives {kind}, not logits as one float32 tensor")
    if tuple(logits.shape) != (2, classes):
        _refuse(
            config,
            f"gave a module that gives a tensor of shape {tuple(logits.shape)} for 2 images and {classes} classes; "
            f"logits are {(2, classes)}",
        )


def _check_tensors(model: nn.Module, config: CustomConfig) -> None:
    """Refuse what a checkpoint cannot hold: it keeps every tensor once, and takes NaN and infinity for damage."""
    owners: dict[int, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            _refuse(config, f"gave a module that keeps {name} in its state, which is not a tensor")
        if value.is_floating_point() and not value.isfinite().all():
            _refuse(config, f"gave a module with NaN or infinite values in {name}: register it with persistent=False")
        owner = owners.setdefault(value.untyped_storage().data_ptr(), name) if value.numel() else name
        if owner != name:
            _refuse(config, f"gave a module in which {owner} and {name} share their memory: give each its own")


def _check_trace(model: nn.Module, config: CustomConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse what the exporter could not trace: it sees the operators of one call, on two images."""
    generator = torch.Generator().manual_seed(0)
    example, others = torch.zeros(2, *image_shape), torch.randn(3, *image_shape, generator=generator)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            traced: Any = torch.jit.trace(model, example, check_trace=False)
            same = _alike(traced(others), model(others))
            uncounted = sorted(_operators(traced, example) & UNCOUNTED)
    except Exception as error:
        reason = (str(error) or "no reason given").strip().splitlines()[0].partition(" Please feel free")[0][:300]
        message = (
            f"backbone.factory: the module of {config.factory} cannot be exported ({type(error).__name__}: {reason}). "
            "Releases hold its operators as ONNX, for any number of images: let it compute with tensors alone, by "
            "operators that ONNX has, and let no size be the number of images."
        )
        raise TrainingConfigError(message) from error
    if uncounted:
        _refuse(config, f"gave a module with {', '.join(uncounted)}, whose multiply-accumulates are not counted")
    if not same:
        _refuse(
            config,
            "gave a module that computes something else when it is traced: what it computes depends on values of its "
            "input, is random in evaluation, or depends on the number of images. Releases hold its operators as ONNX, "
            "traced once",
        )


def _operators(traced: nn.Module, example: Tensor) -> set[str]:
    """Types of the operators in the module's ONNX graph; none where onnx is missing, as only the exporter needs it."""
    if importlib.util.find_spec("onnx") is None:
        return set()
    graph = io.BytesIO()
    torch.onnx.export(traced, (example,), graph, dynamo=False)  # pyright: ignore[reportArgumentType]
    model = importlib.import_module("onnx").load_from_string(graph.getvalue())
    return {node.op_type for node in model.graph.node}


def _alike(traced: Tensor, own: Tensor) -> bool:
    return traced.shape == own.shape and bool((traced - own).abs().max() <= TOLERANCE * own.abs().max().clamp(min=1))


def _refuse(config: CustomConfig, what: str) -> NoReturn:
    message = f"backbone.factory: {config.factory} {what}."
    raise TrainingConfigError(message)
