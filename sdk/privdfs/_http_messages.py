"""HTTP's way to write what both wires carry: the KServe v2 protocol with JSON, and tensors as bytes behind it.

The length of a request depends on the model and the shapes alone: the one number that varies is padded.
"""

from typing import TypeAlias

import msgspec

from privdfs._wire import ModelConfig, Query, Tensor, TensorType

#: What msgspec raises about bytes that a server sent.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Size(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Size = _Size()


#: What an answer says of its tensors.
Outputs: TypeAlias = tuple[_Output, ...]


class _Answer(msgspec.Struct, frozen=True):
    outputs: Outputs = ()


class _Text(msgspec.Struct, frozen=True):
    string_value: str = ""


class _ModelTensor(msgspec.Struct, frozen=True):
    name: str
    data_type: str
    dims: tuple[int, ...]


class _Config(msgspec.Struct, frozen=True):
    max_batch_size: int = 0
    input: tuple[_ModelTensor, ...] = ()
    output: tuple[_ModelTensor, ...] = ()
    parameters: dict[str, _Text] = msgspec.field(default_factory=dict[str, _Text])


_read_answer = msgspec.json.Decoder(_Answer).decode
_read_config = msgspec.json.Decoder(_Config).decode


def infer_json(query: Query) -> bytes:
    """The JSON of a query, which the bytes of its tensors follow."""
    inputs = [
        {"name": each.name, "datatype": each.datatype, "shape": each.shape, "parameters": _Size(len(each.raw or b""))}
        for each in query.inputs
    ]
    output = {"name": query.output, "parameters": {"binary_data": True}}  # as JSON its length would tell of the content
    json = msgspec.json.encode({"inputs": inputs, "outputs": [output]})
    # JSON has no leading zeros, so blanks pad the time: ten digits are an hour and more in microseconds.
    return b'{"parameters":{"timeout":%10d},%b' % (query.timeout_us, json[1:])


def read_config(data: bytes) -> ModelConfig | None:
    """What the JSON of a model's configuration says; None when it is not one."""
    try:
        config = _read_config(data)
    except _UNREADABLE:
        return None
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    return ModelConfig(parameters, _types(config.input), _types(config.output), config.max_batch_size)


def read_outputs(json: bytes) -> Outputs | None:
    """What the JSON of an answer says of its tensors; None when it is not one."""
    try:
        return _read_answer(json).outputs
    except _UNREADABLE:
        return None


def cut(outputs: Outputs, data: bytes, position: int) -> tuple[Tensor, ...] | None:
    """The tensors of an answer, whose bytes begin at a position and go to the end; None where their sizes differ."""
    tensors: list[Tensor] = []
    for output in outputs:
        size, raw = output.parameters.binary_data_size, None
        if size is not None:
            if not 0 <= size <= len(data) - position:
                return None
            raw = data[position : position + size]
            position += size
        tensors.append(Tensor(output.name, output.datatype, output.shape, raw))
    return tuple(tensors) if position == len(data) else None


def _types(tensors: tuple[_ModelTensor, ...]) -> tuple[TensorType, ...]:
    return tuple(TensorType(each.name, each.data_type.removeprefix("TYPE_"), each.dims) for each in tensors)
