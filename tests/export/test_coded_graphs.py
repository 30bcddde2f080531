"""Coded graphs in ONNX Runtime: the very integers of training, for every kind of round and number of servers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from privdfs.coding import PRIMES, draw, fewest_moduli, powers, weights
from privdfs_export import coded_graphs
from privdfs_export.coded_modules import REDUCED, Decoding, exact_pieces
from privdfs_export.engine import BuildOptions, build_engine, check_graph
from privdfs_export.errors import ExportError
from privdfs_export.exact import EXACT
from privdfs_export.sessions import session
from privdfs_training.coded.bounds import proven_bound
from privdfs_training.coded.rounds import IntegerMap, IntegerNetwork, Logits, Relay, run
from privdfs_training.coded.system import CodedSystem
from tests.training.coded_systems import IMAGE, KINDS, drawn_system

Values = NDArray[np.generic]


def computed(model: onnx.ModelProto, feed: Mapping[str, Values]) -> list[Values]:
    """What ONNX Runtime makes of a graph, output by output."""
    found: Any = session(model.SerializeToString()).run(None, dict(feed))
    return found


def moduli_of(network: IntegerNetwork) -> tuple[int, ...]:
    moduli = fewest_moduli(proven_bound(network))
    assert moduli is not None
    return moduli


@pytest.fixture(scope="module", params=KINDS)
def system(request: pytest.FixtureRequest) -> CodedSystem:
    return drawn_system(request.param)


def test_a_rounds_graph_gives_the_residues_of_plain_integers(system: CodedSystem) -> None:
    for current in system.plain():
        network, moduli = current.network, moduli_of(current.network)
        values = math.prod(network.inputs)
        shares = draw((5, 1, values), moduli)[:, 0]
        (found,) = computed(coded_graphs.round_graph(network, moduli), {"share": shares})
        assert found.dtype == np.int8
        for column, prime in enumerate(moduli):
            expected = network(shares[:, column].astype(np.int64).reshape(-1, *network.inputs), prime)
            np.testing.assert_array_equal(found[:, column], expected.reshape(len(found), -1))


def test_values_that_do_not_travel_are_zero_for_servers() -> None:
    network = drawn_system("pooled").plain()[0].network
    moduli, sent = moduli_of(network), tuple(range(0, math.prod(network.inputs), 3))
    shares = draw((3, 1, len(sent)), moduli)[:, 0]
    whole = np.zeros((3, len(moduli), math.prod(network.inputs)), np.int8)
    whole[:, :, list(sent)] = shares
    (found,) = computed(coded_graphs.round_graph(network, moduli, sent), {"share": shares})
    (expected,) = computed(coded_graphs.round_graph(network, moduli), {"share": whole})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("colluding", "spare"), [(1, 0), (1, 2), (2, 0), (2, 1)])
def test_images_become_the_logits_of_training_whoever_answers(system: CodedSystem, colluding: int, spare: int) -> None:
    rounds = system.plain()
    servers = max(current.network.degree for current in rounds) * colluding + 1 + spare
    moduli = [moduli_of(current.network) for current in rounds]
    pixels = np.random.default_rng(2).integers(0, 256, (4, *IMAGE[1:], IMAGE[0]), dtype=np.uint8)
    with torch.no_grad():
        integers = system.values(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy().astype(np.int64)
    shared, results, logits = run(rounds, integers)
    branches = [
        coded_graphs.round_graph(current.network, primes) for current, primes in zip(rounds, moduli, strict=True)
    ]

    def sharing(index: int, values: int) -> dict[str, Values]:
        return {
            "randomness": draw((4, colluding, values), moduli[index]),
            "powers": powers(moduli[index], servers, colluding),
        }

    def answered(index: int, shares: Values) -> dict[str, Values]:
        """Answers of as few servers as are needed, in another choice for each round."""
        needed = rounds[index].network.degree * colluding + 1
        chosen = np.random.default_rng(index).permutation(servers)[:needed]
        answers = [computed(branches[index], {"share": shares[:, server]})[0] for server in chosen]
        places = [int(server) + 1 for server in chosen]
        return {"answers": np.stack(answers, axis=1), "weights": weights(moduli[index], places)}

    encoder = coded_graphs.encoder_graph(system, moduli[0])
    first = math.prod(rounds[0].network.inputs)
    shares, values = computed(encoder, {"image": pixels} | sharing(0, first))
    np.testing.assert_array_equal(values, integers.reshape(4, -1))
    travelled = [values]
    for index, current in enumerate(rounds):
        feed = answered(index, shares)
        decoding = Decoding(moduli[index])
        decoded = decoding(torch.from_numpy(feed["answers"]), torch.tensor(feed["weights"])).numpy()
        np.testing.assert_array_equal(decoded, results[index].reshape(4, -1))
        if isinstance(current.device, Relay):
            graph = coded_graphs.relay_graph(current.network, current.device, moduli[index], moduli[index + 1])
            feed |= sharing(index + 1, math.prod(current.network.outputs))
            if current.device.skip:
                feed["added"] = travelled[current.device.skip - 1]
            shares, values = computed(graph, feed)
            np.testing.assert_array_equal(values, shared[index + 1].reshape(4, -1))
            travelled.append(values)
        else:
            assert isinstance(current.device, Logits)
            fusion = coded_graphs.fusion_graph(current.network, current.device, moduli[index])
            (probabilities,) = computed(fusion, feed)
            expected = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
            assert np.abs(probabilities.astype(np.float32) - expected).max() < 1e-6


def test_one_share_says_nothing_and_two_sharings_of_one_image_are_unrelated() -> None:
    system = drawn_system("pooled")
    moduli = moduli_of(system.plain()[0].network)
    encoder = coded_graphs.encoder_graph(system, moduli)
    values = math.prod(system.polynomials[0].inputs)
    pixels = np.random.default_rng(3).integers(0, 256, (1, *IMAGE[1:], IMAGE[0]), dtype=np.uint8).repeat(400, 0)
    feed = {"image": pixels, "randomness": draw((400, 1, values), moduli), "powers": powers(moduli, 3, 1)}
    shares, _ = computed(encoder, feed)
    for server in range(3):
        for column, prime in enumerate(moduli):
            seen = shares[:, server, column].astype(np.int64).ravel() + prime // 2
            counts = np.bincount(seen, minlength=prime)
            expected = len(seen) / prime
            statistic = float(((counts - expected) ** 2 / expected).sum())
            assert len(counts) == prime
            assert statistic < prime - 1 + 6 * math.sqrt(2 * (prime - 1)), "uniform, at six standard deviations"
    first, second = shares[:200, 0].astype(float).ravel(), shares[200:, 0].astype(float).ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / math.sqrt(len(first))


def wide(outputs: int, inputs: int, weight: int) -> IntegerMap:
    return IntegerMap("all", np.full((outputs, inputs), weight, np.int64), (outputs, 1, 1), 1, 0)


def test_sums_beyond_float32_are_cut_into_pieces_and_stay_exact() -> None:
    inputs = 40_000
    layer = wide(3, inputs, 7)
    pieces = exact_pieces(layer)
    assert len(pieces) > 1
    assert [first for first, _ in pieces[1:]] == [last for _, last in pieces[:-1]]
    assert (pieces[0][0], pieces[-1][1]) == (0, inputs)
    assert all((last - first) * 7 * REDUCED < EXACT for first, last in pieces)
    network = IntegerNetwork((inputs, 1, 1), 7, (layer,), (), 1)
    shares = np.full((1, 1, inputs), 120, np.int8)
    (found,) = computed(coded_graphs.round_graph(network, PRIMES[:1]), {"share": shares})
    expected = network(shares[:, 0].astype(np.int64).reshape(1, inputs, 1, 1), PRIMES[0])
    np.testing.assert_array_equal(found[:, 0], expected.reshape(1, -1))


def test_a_weight_that_no_float32_sum_holds_is_refused() -> None:
    with pytest.raises(ExportError, match="more than 2"):
        exact_pieces(wide(1, 2, 200_000))


@pytest.mark.parametrize("weight", [128, -128, 300])
def test_a_weight_that_int8_cannot_hold_is_refused(weight: int) -> None:
    """It would wrap around, and the round compute something else."""
    network = IntegerNetwork((2, 1, 1), 7, (wide(1, 2, weight),), (), 1)
    with pytest.raises(ExportError, match=r"exceeds 127.*8 bits at most"):
        coded_graphs.round_graph(network, PRIMES[:1])


def test_weights_are_stored_as_small_integers() -> None:
    network = drawn_system("rounds").plain()[0].network
    model = coded_graphs.round_graph(network, moduli_of(network))
    kinds = {tensor.data_type for tensor in model.graph.initializer if math.prod(tensor.dims) >= 100}
    assert kinds == {onnx.TensorProto.INT8}


def test_onnxruntime_keeps_the_exact_kernels(system: CodedSystem, tmp_path: Path) -> None:
    """It makes MatMulNBits, which is not exact, of a matrix product with a dequantised weight."""
    for current in system.plain():
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        model = coded_graphs.round_graph(current.network, moduli_of(current.network))
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
        assert kinds & {"Conv", "FusedConv"}
        assert not [kind for kind in kinds if "NBits" in kind or "Integer" in kind or kind.startswith("QLinear")]


def test_every_round_builds_in_tensorrt(system: CodedSystem) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")
    for current in system.plain():
        model = coded_graphs.round_graph(current.network, moduli_of(current.network))
        assert not {"If", "Loop"} & {node.op_type for node in model.graph.node}
        check_graph(model)
        plan = build_engine(model, BuildOptions(max_batch=8), rtx)
        assert plan.data
        assert not [text for severity, text in plan.messages if severity.endswith("ERROR")]
