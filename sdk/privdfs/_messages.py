"""gRPC's way to write what both wires carry: the few protobuf messages of the KServe v2 protocol that a client needs.

The definition is https://github.com/kserve/open-inference-protocol and Triton's model_config.proto; fields that are not
listed here are skipped when a message is read. Written as a table, so that neither generated code nor tritonclient is
needed; the messages live in a pool of their own and do not meet those of tritonclient in the same process.
"""

import functools
import itertools
from typing import Any, TypeAlias

from privdfs._wire import ModelConfig, Query, Tensor, TensorType

#: Protobuf's messages have no types; their objects do not leave this module, `_grpc.py` and `testing.py`.
Message: TypeAlias = Any

#: Message -> field -> (number, type); "*" before a type: repeated; "map": from text to that message.
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "InferParameter": {"int64_param": (2, "int64")},
    "Tensor": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "*int64")},
    "RequestedOutput": {"name": (1, "string")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "parameters": (4, "map InferParameter"),
        "inputs": (5, "*Tensor"),
        "outputs": (6, "*RequestedOutput"),
        "raw_input_contents": (7, "*bytes"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "outputs": (5, "*Tensor"),
        "raw_output_contents": (6, "*bytes"),
    },
    "ModelConfigRequest": {"name": (1, "string")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelInput": {"name": (1, "string"), "data_type": (2, "int32"), "dims": (4, "*int64")},
    "ModelOutput": {"name": (1, "string"), "data_type": (2, "int32"), "dims": (3, "*int64")},
    "ModelConfig": {
        "name": (1, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "*ModelInput"),
        "output": (6, "*ModelOutput"),
        "parameters": (14, "map ModelParameter"),
    },
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
}

#: Triton's numbers for the types of tensors that a release has (its enum DataType).
TYPE_NUMBERS = {"INT8": 6, "INT32": 8, "FP32": 11}
_TYPES = {number: name for name, number in TYPE_NUMBERS.items()}


def infer_request(query: Query) -> Message:
    """The ModelInferRequest of a query."""
    request = new("ModelInferRequest", model_name=query.model)
    request.parameters["timeout"].int64_param = query.timeout_us
    for tensor in query.inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(tensor.raw)
    request.outputs.add(name=query.output)
    return request


def read_config(data: bytes) -> ModelConfig | None:
    """What a ModelConfigResponse says; None when it is not one."""
    response = _parsed("ModelConfigResponse", data)
    if response is None:
        return None
    config = response.config
    parameters = {name: config.parameters[name].string_value for name in config.parameters}
    return ModelConfig(parameters, _types(config.input), _types(config.output), config.max_batch_size)


def read_tensors(data: bytes) -> tuple[Tensor, ...] | None:
    """The tensors of a ModelInferResponse; None when it is not one."""
    response = _parsed("ModelInferResponse", data)
    if response is None or len(response.raw_output_contents) > len(response.outputs):
        return None
    pairs = itertools.zip_longest(response.outputs, response.raw_output_contents)
    return tuple(Tensor(each.name, each.datatype, tuple(each.shape), raw) for each, raw in pairs)


def _types(tensors: Any) -> tuple[TensorType, ...]:  # noqa: ANN401 - protobuf has no types
    return tuple(TensorType(each.name, _TYPES.get(each.data_type, ""), tuple(each.dims)) for each in tensors)


def _parsed(name: str, data: bytes) -> Message | None:
    from google.protobuf.message import DecodeError

    message = new(name)
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return message


def new(kind: str, /, **fields: Any) -> Message:  # noqa: ANN401 - protobuf has no types
    """A new message of the table."""
    return message_class(kind)(**fields)


@functools.cache
def message_class(name: str) -> Any:  # noqa: ANN401 - protobuf has no types
    """The class of a message of the table; protobuf is imported with the first."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"privdfs.{name}"))


@functools.cache
def _pool() -> Any:  # noqa: ANN401 - protobuf has no types
    from google.protobuf import descriptor_pb2, descriptor_pool

    file: Any = descriptor_pb2.FileDescriptorProto(name="privdfs.proto", package="privdfs", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(message: Any, name: str, number: int, kind: str) -> None:  # noqa: ANN401 - protobuf has no types
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    labels: Any = FieldDescriptorProto
    if kind.startswith("map "):
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind.removeprefix("map "))
        kind = f"*{message.name}.{entry.name}"
    field = message.field.add(name=name, number=number)
    field.label = labels.LABEL_REPEATED if kind.startswith("*") else labels.LABEL_OPTIONAL
    plain = kind.removeprefix("*")
    scalars = {"string": "TYPE_STRING", "bytes": "TYPE_BYTES", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}
    if plain in scalars:
        field.type = getattr(labels, scalars[plain])
    else:
        field.type, field.type_name = labels.TYPE_MESSAGE, f".privdfs.{plain}"
