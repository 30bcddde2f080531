"""Runs all stages in double precision, alone or started by torchrun: `CONFIG DATA OUT`.

In double precision the sums of two processes and of one agree to 1e-14, so that no value crosses a threshold of a ReLU
or of a quantiser. torch's fake quantisation knows no doubles: weights are rounded as on a GPU.
"""

import os
import sys
from pathlib import Path

import torch

from privdfs_training import loop, parallel, quantise
from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.coded.system import CodedSystem
from privdfs_training.coded.train import coded_stages
from privdfs_training.data import load_data
from privdfs_training.interruption import StopRequest
from privdfs_training.models.system import System
from privdfs_training.reading import load_config, read_toml
from privdfs_training.run import Compute, Run
from privdfs_training.stages import stages
from tests.trained import QUIET

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  where code asks for full precision
torch.fake_quantize_per_channel_affine = lambda weight, scale, _zero, axis, *_limits: quantise._straight_through(  # type: ignore[assignment]
    weight, scale, axis
)

path, data = Path(sys.argv[1]), load_data("fashion-mnist", Path(sys.argv[2]))
raw = read_toml(path)
config = coded_config(raw, path) if "sharing" in raw else load_config(path)
with parallel.process_group():
    torch.manual_seed(config.seed)
    if isinstance(config, CodedConfig):
        system = CodedSystem(config, image_shape=data.image_shape, classes=len(data.classes))
        todo = coded_stages(config, system, data)
    else:
        system = System(config, image_shape=data.image_shape, classes=len(data.classes))
        todo = stages(config, system, data)
    parallel.synchronise(system)
    run = Run(config, system, data, Path(sys.argv[3]), QUIET, Compute(precision="float32"))
    for stage in todo:
        loop.run_stage(stage, run, StopRequest())
    parallel.leave_together()
# Not by way of torch's own end, which now and then aborts in one of two processes. What is tested is written.
os._exit(0)
