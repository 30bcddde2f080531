"""Stands where torch-tensorrt would be: its plans are those of `fake_tensorrt`, of the program as an ONNX graph.

Only what the exporter calls is here, under the names that test_tensorrt_api holds against the real package.
"""

import base64
import json
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.export import fake_tensorrt


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make it importable; its `given` has the arguments of the last call."""
    package: Any = ModuleType("torch_tensorrt")
    package.given, package.Input = {}, SimpleNamespace

    def convert(program: Any, **options: Any) -> bytes:
        package.given = options | {"program": program}
        names, output = list(options["arg_input_binding_names"]), options["output_binding_names"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own code
            exported: Any = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=[output], verbose=False
            )
        profiles = [
            {
                source.name: [sizes[f"{end}_shape"] for end in ("min", "opt", "max")]
                for source in options["arg_inputs"]
                for sizes in [source.profiles[index]]
            }
            for index in range(len(options["arg_inputs"][0].profiles))
        ]
        plan = {
            "version": fake_tensorrt.__version__,
            "profiles": profiles,
            "off": fake_tensorrt.spoiled["off"],
            "graph": base64.b64encode(exported.model_proto.SerializeToString()).decode(),
        }
        return json.dumps(plan).encode()

    package.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    return package
