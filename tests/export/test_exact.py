"""INT8 rounds: the very residues of plain integers, by ONNX Runtime and in 32-bit sums; what is unproven stays."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from privdfs.coding import PRIMES, draw
from privdfs_export.coded_graphs import round_graph
from privdfs_export.engine import BuildOptions, build_engine, check_graph
from privdfs_export.errors import PrecisionError
from privdfs_export.exact import EXACT, exact_layers, proven_bounds, with_exact_int8
from privdfs_export.sessions import session
from privdfs_training.coded.rounds import IntegerMap, IntegerNetwork
from tests.coded_release import drawn
from tests.export.small_branches import untrained
from tests.training.coded_systems import KINDS

RELEASES = sorted((Path(__file__).parents[2] / "model_repository").glob("*-coded*/server-0/branch-*/1/model.onnx"))
Values = NDArray[np.generic]


def wide(weight: Values) -> IntegerNetwork:
    """One linear map of everything at once."""
    layer = IntegerMap("all", weight.astype(np.int64), (len(weight), 1, 1), 1, 0)
    return IntegerNetwork((weight.shape[1], 1, 1), 7, (layer,), (), 1)


def rounds_of(kind: str) -> list[tuple[IntegerNetwork, onnx.ModelProto]]:
    """Networks of a drawn system, and their graphs with all primes that there are, so that every one is seen."""
    networks = [current.network for current in drawn(kind).trained.system.plain()]
    return [(network, round_graph(network, PRIMES)) for network in networks]


def worst_shares(moduli: Sequence[int], inputs: Sequence[int], weights: NDArray[np.int64]) -> NDArray[np.int8]:
    """Random shares, and the largest: all residues up, all down, and with the signs of the heaviest output's weights.

    The last give the largest first sum that there is.

    Args:
        moduli: of the round.
        inputs: channels, height, width.
        weights: of the first map.
    """
    heaviest = weights[np.abs(weights).reshape(len(weights), -1).sum(1).argmax()]
    signs = np.ones(inputs, np.int64)
    if weights.ndim == 4:
        signs[:, : weights.shape[2], : weights.shape[3]] = np.where(heaviest < 0, -1, 1)
    elif heaviest.size == signs.size:
        signs = np.where(heaviest < 0, -1, 1).reshape(inputs)
    else:  # over positions
        signs *= np.where(heaviest < 0, -1, 1).reshape(1, *inputs[1:])
    half = np.array(moduli)[:, None] // 2
    largest = np.stack([half + 0 * signs.ravel(), -half + 0 * signs.ravel(), half * signs.ravel()])
    return np.concatenate([draw((4, 1, signs.size), moduli)[:, 0], largest.astype(np.int8)])


def worst_of(network: IntegerNetwork, moduli: Sequence[int] = PRIMES) -> NDArray[np.int8]:
    return worst_shares(moduli, network.inputs, network.maps[0].weight)


def expected(network: IntegerNetwork, moduli: Sequence[int], shares: NDArray[np.int8]) -> NDArray[np.int64]:
    """What plain integers give, prime by prime."""
    columns = [
        network(shares[:, column].astype(np.int64).reshape(-1, *network.inputs), prime)
        for column, prime in enumerate(moduli)
    ]
    return np.stack([column.reshape(len(shares), -1) for column in columns], axis=1)


def with_32_bit_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every convolution of int8 by int8 as a ConvInteger: what an engine's INT8 kernel computes."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    dequantised = {node.output[0]: node.input[0] for node in changed.graph.node if node.op_type == "DequantizeLinear"}
    nodes = list[onnx.NodeProto]()
    for node in changed.graph.node:
        kept = onnx.NodeProto.FromString(node.SerializeToString())
        if node.op_type == "Conv" and {*node.input} <= {*dequantised}:
            kept.op_type, name = "ConvInteger", node.output[0]
            kept.input[:] = [dequantised[each] for each in node.input]
            kept.output[0] = f"{name}_sums"
            nodes += [kept, helper.make_node("Cast", [kept.output[0]], [name], to=TensorProto.FLOAT)]
        else:
            nodes.append(kept)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def kinds_of(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kind", KINDS)
def test_int8_gives_the_residues_of_plain_integers(kind: str) -> None:
    """Of every prime, and of the largest residues; by ONNX Runtime in float32, and with int8 kernels' 32-bit sums."""
    for network, model in rounds_of(kind):
        turned = with_exact_int8(model)
        shares = worst_of(network)
        wanted = expected(network, PRIMES, shares)
        (found,) = session(turned.SerializeToString()).run(None, {"share": shares})
        np.testing.assert_array_equal(found, wanted)
        integer = with_32_bit_sums(turned)
        assert kinds_of(integer).count("ConvInteger") == kinds_of(model).count("Conv")
        assert "Conv" not in kinds_of(integer)
        (found,) = ReferenceEvaluator(integer).run(None, {"share": shares})
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: "-".join(path.parts[-5:-2:2]))
def test_every_round_of_every_release_is_int8_throughout(path: Path) -> None:
    model = onnx.load(path)
    turned = with_exact_int8(model)
    check_graph(turned)
    assert len(exact_layers(model.graph)) == kinds_of(model).count("Conv") == 2
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layer, reshaped = first(model.graph, "Conv"), first(model.graph, "Reshape")
    primes = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    inputs, weights = constants[reshaped.input[1]][1:].tolist(), constants[f"{layer.input[1]}_int8"].astype(np.int64)
    shares = worst_shares(PRIMES[:primes], inputs, weights)
    given, found = (session(each.SerializeToString()).run(None, {"share": shares})[0] for each in (model, turned))
    np.testing.assert_array_equal(found, given)
    assert np.asarray(found).any()


def test_sums_as_large_as_they_may_be_are_exact() -> None:
    """All inputs and weights at their largest: one more input, and the sum would not be below 2^24."""
    count = (EXACT - 1) // (127 * 127)
    network = wide(np.stack([np.full(count, 127), np.resize([127, -127], count)]))
    model = round_graph(network, PRIMES[:1])
    assert kinds_of(model).count("Conv") == 1
    turned, shares = with_exact_int8(model), worst_of(network, PRIMES[:1])
    for computed in (session(turned.SerializeToString()), ReferenceEvaluator(with_32_bit_sums(turned))):
        (found,) = computed.run(None, {"share": shares})
        np.testing.assert_array_equal(found, expected(network, PRIMES[:1], shares))


def test_pieces_of_a_sum_are_int8_each() -> None:
    network = wide(np.full((2, 3000), 127))
    model = round_graph(network, PRIMES[:2])
    assert kinds_of(model).count("Conv") == len(exact_layers(model.graph)) == 3
    shares = worst_of(network, PRIMES[:2])
    (found,) = session(with_exact_int8(model).SerializeToString()).run(None, {"share": shares})
    np.testing.assert_array_equal(found, expected(network, PRIMES[:2], shares))


def test_values_that_do_not_travel_are_zero_in_int8_too() -> None:
    network, _ = rounds_of("pooled")[0]
    sent = tuple(range(0, int(np.prod(network.inputs)), 3))
    model = round_graph(network, PRIMES, sent)
    shares = draw((3, 1, len(sent)), PRIMES)[:, 0]
    given, found = (
        session(each.SerializeToString()).run(None, {"share": shares})[0] for each in (model, with_exact_int8(model))
    )
    np.testing.assert_array_equal(found, given)
    assert len(exact_layers(model.graph)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_exceeds_what_is_proven_of_it(kind: str) -> None:
    for network, model in rounds_of(kind):
        bounds = proven_bounds(model.graph)
        names = [name for node in model.graph.node for name in node.output if name in bounds]
        seen = onnx.ModelProto.FromString(model.SerializeToString())
        seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "residues")
        found = session(seen.SerializeToString()).run(names, {"share": worst_of(network)})
        for name, values in zip(names, map(np.asarray, found), strict=True):
            largest = np.abs(values.astype(np.float64))
            assert (largest == np.rint(largest)).all(), name
            assert largest.max() <= bounds[name] < EXACT, name
        assert {bounds[name] for name in exact_layers(model.graph).values()} == {PRIMES[0] // 2}


# ------------------------------------------------------------------------------------------------------- unproven


def changed(model: onnx.ModelProto, change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    other = onnx.ModelProto.FromString(model.SerializeToString())
    change(other.graph)
    return other


def constant(graph: onnx.GraphProto, name: str, values: Values) -> None:
    """Give a constant other values."""
    (tensor,) = [each for each in graph.initializer if each.name == name]
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def scale_of(number: int) -> Callable[[onnx.GraphProto], None]:
    """Halve the scale of the weights of a convolution."""

    def change(graph: onnx.GraphProto) -> None:
        layer = [node for node in graph.node if node.op_type == "Conv"][number]
        (producer,) = [node for node in graph.node if layer.input[1] in node.output]
        constant(graph, producer.input[1], np.array(0.5, np.float32))

    return change


def test_a_layer_that_is_not_proven_stays_in_float32() -> None:
    model = changed(rounds_of("pooled")[0][1], scale_of(1))
    assert len(exact_layers(model.graph)) == 1
    turned = with_exact_int8(model)
    assert kinds_of(turned).count("QuantizeLinear") == 1
    assert [node.input[0].endswith("_int8_dequantised") for node in turned.graph.node if node.op_type == "Conv"] == [
        True,
        False,
    ]


def first(graph: onnx.GraphProto, kind: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == kind)


def wrong_reciprocal(graph: onnx.GraphProto) -> None:
    rounded = first(graph, "Round")
    (product,) = [node for node in graph.node if rounded.input[0] in node.output]
    (name,) = {*product.input} & {tensor.name for tensor in graph.initializer}
    (tensor,) = [each for each in graph.initializer if each.name == name]
    constant(graph, name, numpy_helper.to_array(tensor) * np.float32(1 + 1e-5))


def no_rounding(graph: onnx.GraphProto) -> None:
    first(graph, "Round").op_type = "Identity"


def too_heavy(graph: onnx.GraphProto) -> None:
    """As one piece what coded_modules would cut in two."""
    layer = first(graph, "Conv")
    (producer,) = [node for node in graph.node if layer.input[1] in node.output]
    constant(graph, producer.input[0], np.full((1, 2000, 1, 1), 127, np.int8))


def test_what_is_not_proven_is_not_taken() -> None:
    linear = round_graph(wide(np.full((1, 2000), 7)), PRIMES[:1])
    square = rounds_of("pooled")[0][1]
    assert len(exact_layers(linear.graph)) == 1
    assert not exact_layers(changed(linear, too_heavy).graph)
    assert not exact_layers(changed(linear, scale_of(0)).graph)
    for change in (wrong_reciprocal, no_rounding):  # the first layer takes shares, and stays proven
        assert len(exact_layers(square.graph)) == 2
        assert len(exact_layers(changed(square, change).graph)) == 1


def convolution_of(*nodes: onnx.NodeProto, **constants: Values) -> onnx.GraphProto:
    """One convolution by 1 of what nodes make of a share of one value; that is the tensor `x`, and they give `y`."""
    layer = [
        helper.make_node("Cast", ["share"], ["x"], to=TensorProto.FLOAT),
        *nodes,
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["one"]),
        helper.make_node("Conv", ["y", "one"], ["sums"]),
    ]
    constants = {"weight": np.ones((1, 1, 1, 1), np.int8), "scale": np.array(1, np.float32), **constants}
    return helper.make_graph(
        layer,
        "round",
        [helper.make_tensor_value_info("share", TensorProto.INT8, ["N", 1, 1, 1])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )


PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
PADDED = helper.make_node("Pad", ["x", "pads", "value"], ["y"])
ADDED = helper.make_node("Add", ["x", "value"], ["y"])


@pytest.mark.parametrize(
    ("whole", "other"),
    [
        (
            convolution_of(PADDED, pads=PADS, value=np.array(7, np.float32)),
            convolution_of(PADDED, pads=PADS, value=np.array(0.5, np.float32)),
        ),
        (
            convolution_of(PADDED, pads=PADS, value=np.array(7, np.float32)),
            convolution_of(helper.make_node("Pad", ["x"], ["y"], pads=PADS.tolist(), value=1000.0)),
        ),
        *(
            (
                convolution_of(ADDED, value=np.array(1, np.float32)),
                convolution_of(ADDED, value=np.array(value, np.float32)),
            )
            for value in (2.0**63, 1e30, np.inf, np.nan)
        ),
        *(
            (
                convolution_of(
                    helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.INT32),
                    helper.make_node("Cast", ["cast"], ["y"], to=TensorProto.FLOAT),
                ),
                convolution_of(
                    helper.make_node("Cast", ["x"], ["cast"], to=to),
                    helper.make_node("Cast", ["cast"], ["y"], to=TensorProto.FLOAT),
                ),
            )
            for to in (TensorProto.UINT8, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        ),
        (
            convolution_of(helper.make_node("Reshape", ["x", "shape"], ["y"]), shape=np.array([-1, 1, 1, 1])),
            convolution_of(
                helper.make_node("Reshape", ["x", "shape"], ["y"], domain="elsewhere"), shape=np.array([-1, 1, 1, 1])
            ),
        ),
    ],
    ids=["pad-half", "pad-attribute", "2^63", "1e30", "inf", "nan", "uint8", "bool", "float16", "bfloat16", "domain"],
)
def test_numbers_that_are_not_whole_or_not_known_are_not_taken(whole: onnx.GraphProto, other: onnx.GraphProto) -> None:
    """Each beside the like of it that is proven."""
    added = [node.op_type for node in whole.node] == ["Cast", "Add", "DequantizeLinear", "Conv"]
    assert proven_bounds(whole)["sums"] == max(PRIMES) // 2 + added
    assert "y" not in proven_bounds(other)
    assert not exact_layers(other)


def test_a_constant_that_a_request_may_replace_is_not_taken() -> None:
    graph = convolution_of(ADDED, value=np.array(1, np.float32))
    assert "y" in proven_bounds(graph)
    graph.input.append(helper.make_tensor_value_info("value", TensorProto.FLOAT, []))
    assert "y" not in proven_bounds(graph)


def test_a_round_without_a_proven_layer_is_refused() -> None:
    model = changed(rounds_of("pooled")[0][1], scale_of(0))
    with pytest.raises(PrecisionError, match=r"no convolution .* exact in INT8: .*--precision fp32"):
        with_exact_int8(model)


def test_a_branch_of_a_masked_release_is_refused() -> None:
    from privdfs_export import graphs

    with pytest.raises(PrecisionError, match="no convolution of this round is proven"):
        with_exact_int8(graphs.branch_graph(untrained(), 1))


# ------------------------------------------------------------------------------------------------------- the engine

#: In the text that a plan of TensorRT-RTX holds: a tensor, and a convolution times 1 with what it takes and gives.
TENSOR = re.compile(
    r"tensor=\{[^}]*?dims=\{ (?P<dims>[^}]*) \}[^\n]*?name=\"(?P<name>[^\"]*)\"[^\n]*?type=(?P<type>\w+)"
)
CONVOLUTION = re.compile(r"corrltn=\{ name=\"[^\"]*\" output=\{\"([^\"]*)\" \} input=\{([^}]*)\}[^\n]* alpha=3F800000 ")


def convolutions(plan: bytes) -> list[tuple[str, str, str]]:
    """Types of input, weights and output of every convolution in a plan."""
    text = plan.decode("latin-1")
    types = {found["name"]: found["type"] for found in TENSOR.finditer(text)}
    found = list[tuple[str, str, str]]()
    for output, inputs in CONVOLUTION.findall(text):
        taken, weights = re.findall(r"\"([^\"]*)\"", inputs)[:2]
        found.append((types[taken], types[weights], types[output]))
    return found


def test_tensorrt_computes_proven_layers_in_int8() -> None:
    """Its plan says so: int8 by int8, times 1 in float32, in both profiles."""
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")
    model = rounds_of("pooled")[0][1]
    turned = with_exact_int8(model)
    check_graph(turned)
    given, found = (build_engine(each, BuildOptions(max_batch=8), rtx) for each in (model, turned))
    assert convolutions(given.data) == [("float", "float", "float")] * 4
    assert convolutions(found.data) == [("int8", "int8", "float")] * 4
    assert not [text for severity, text in found.messages if severity.endswith("ERROR")]
    assert all(b"tf32=0" in plan.data and b"tf32=1" not in plan.data for plan in (given, found))
