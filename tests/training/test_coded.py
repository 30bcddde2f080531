"""Coded runs: integers that are exact, ranges that hold, training that learns, continues and refuses what cannot be."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from privdfs.coding import Residues, decode, draw, fewest_moduli, share
from privdfs_training.checkpoint import load_system, read_checkpoint
from privdfs_training.cli import main
from privdfs_training.coded.bounds import eigenvalue_bounds, interval, interval_bound, proven_bound
from privdfs_training.coded.config import MapConfig, RoundConfig, SharingConfig, coded_config
from privdfs_training.coded.network import HERMITE, PolynomialMap, PolynomialRound, exact
from privdfs_training.coded.rounds import IntegerMap, IntegerNetwork, Logits, Relay, Round, run
from privdfs_training.coded.system import CodedSystem, describe, load_coded
from privdfs_training.coded.train import SECTIONS, train_coded
from privdfs_training.data import DataSet, load_data
from privdfs_training.errors import CheckpointError, RangeError, TrainingConfigError
from tests.trained import QUIET, write_toml
from tests.training.coded_systems import (
    CLASSES,
    IMAGE,
    KINDS,
    coded_of,
    coded_values,
    drawn_system,
    drawn_values,
)
from tests.training.interrupting import until_done


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    whole = load_data("fashion-mnist", data_folder)
    assert isinstance(whole, DataSet)
    return replace(whole, test_images=whole.test_images[:200], test_labels=whole.test_labels[:200])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> Path:
    return train_coded(coded_of(), data, tmp_path_factory.mktemp("coded") / "run", QUIET)


# ------------------------------------------------------------------------------------------------------- exact integers


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_computes_what_int64_arithmetic_computes(kind: str) -> None:
    system = drawn_system(kind)
    values = drawn_values(system)
    with torch.no_grad():
        answer = system.answer(torch.from_numpy(values).float()).numpy()
    shared, results, logits = system.run(values)
    shared_plain, results_plain, logits_plain = run(system.plain(), values)
    assert len(shared) == len(results) == len(KINDS[kind])
    for found, plain in zip((*shared, *results), (*shared_plain, *results_plain), strict=True):
        assert found.dtype == plain.dtype == np.int64
        assert np.array_equal(found, plain)
        assert len(np.unique(found)) > 2
    assert np.array_equal(logits, logits_plain)
    assert np.array_equal(answer, logits_plain)


@pytest.mark.parametrize("kind", KINDS)
def test_training_computes_the_same_up_to_rounding(kind: str) -> None:
    system = drawn_system(kind)
    values = drawn_values(system)
    *_, logits = system.run(values)
    system.train()
    for module in system.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        answer = system.answer(torch.from_numpy(values).float()).numpy()
    # A value just at the edge of two levels may fall on either side.
    close = np.abs(answer - logits).max(axis=1) < 1e-3 * np.abs(logits).max()
    assert close.mean() > 0.9


def answer(network: IntegerNetwork, own: Residues, moduli: Sequence[int]) -> Residues:
    """What one server answers to its share, int8 [batch, primes, values]."""
    columns = [
        network(own[:, column].reshape(-1, *network.inputs).astype(np.int64), prime).reshape(len(own), -1)
        for column, prime in enumerate(moduli)
    ]
    return np.stack(columns, axis=1).astype(np.int8)


@pytest.mark.parametrize(("servers", "colluding"), [(3, 1), (5, 2)])
@pytest.mark.parametrize("kind", ["rounds", "mixer", "pooled"])
def test_servers_that_see_shares_alone_give_the_networks_integers(kind: str, servers: int, colluding: int) -> None:
    system = drawn_system(kind)
    values = drawn_values(system, 3)
    shared, results, logits = run(system.plain(), values)
    sent = [values]
    for number, current in enumerate(system.plain()):
        network = current.network
        moduli = fewest_moduli(interval_bound(network))
        assert moduli is not None
        flat = sent[-1].reshape(3, -1)
        shares = share(flat, moduli, draw((3, colluding, flat.shape[1]), moduli), servers)
        answers = np.stack([answer(network, shares[:, server], moduli) for server in range(servers)], axis=1)
        assert np.abs(answers).max() <= 120
        needed = network.degree * colluding + 1
        places = range(servers - needed + 1, servers + 1)
        found = decode(answers[:, -needed:], places, moduli).reshape(-1, *network.outputs)
        assert np.array_equal(found, results[number])
        if isinstance(current.device, Logits):
            assert np.array_equal(current.device(found), logits)
        else:
            sent.append(current.device(found, sent))
            assert np.array_equal(sent[-1], shared[number + 1])
    assert [current.network.degree for current in system.plain()] == [
        2 ** len(each.get("hidden", ())) for each in KINDS[kind]
    ]


def test_degree_four_decodes_from_five_servers() -> None:
    system = drawn_system("quartic")
    values = drawn_values(system, 3)
    (only,) = system.plain()
    moduli = fewest_moduli(interval_bound(only.network))
    assert moduli is not None
    assert only.network.degree == 4
    flat, expected = values.reshape(3, -1), only.network(values).reshape(3, -1)
    shares = share(flat, moduli, draw((3, 1, flat.shape[1]), moduli), 5)
    answers = np.stack([answer(only.network, shares[:, server], moduli) for server in range(5)], axis=1)
    assert np.array_equal(decode(answers, range(1, 6), moduli), expected)
    assert not np.array_equal(decode(answers[:, :4], range(1, 5), moduli), expected)


def test_a_bfloat16_context_does_not_touch_exact_integers() -> None:
    system = drawn_system("rounds")
    values = drawn_values(system)
    with torch.autocast("cpu", torch.bfloat16):
        shared, results, _ = system.run(values)
    shared_plain, results_plain, _ = run(system.plain(), values)
    assert all(map(np.array_equal, (*shared, *results), (*shared_plain, *results_plain)))


def test_weights_are_integers_of_the_bits_of_the_config_and_gradients_reach_everything() -> None:
    system = drawn_system("rounds").train()
    for current in system.plain():
        for layer in current.network.maps:
            assert np.abs(layer.weight).max() == 15
    images = torch.randint(0, 256, (16, *IMAGE), dtype=torch.uint8)
    system(images).square().sum().backward()
    for name, parameter in system.named_parameters():
        if not name.startswith(("baseline", "readout")):
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


def test_large_strides_are_not_computed_in_bfloat16() -> None:
    """On processors, torch 2.13's gradient of such a convolution can write outside its memory, and end the process."""
    planned = MapConfig(outputs=16, kernel=7, stride=7)
    system = drawn_system("rounds")
    wide = PolynomialMap(planned, (4, 14, 14), 16, 5)
    values = torch.randint(-7, 8, (32, 4, 14, 14)).float()
    with torch.autocast("cpu", torch.bfloat16):
        answers = wide(values)
        other = system.polynomials[0].hidden[0](torch.zeros(2, *system.polynomials[0].inputs))
    assert torch.equal(answers, wide(values))
    assert answers.dtype == torch.float32
    assert other.dtype == torch.bfloat16


def test_the_readout_leaves_the_head_alone() -> None:
    system = drawn_system("rounds").train()
    system.read(system.values(torch.randint(0, 256, (16, *IMAGE), dtype=torch.uint8))).sum().backward()
    assert system.readout.weight.grad is not None
    assert all(parameter.grad is None for parameter in system.head.parameters())


def test_annealing_starts_with_a_relu() -> None:
    system = drawn_system("pooled").train()
    (current,) = system.polynomials
    values = torch.from_numpy(drawn_values(system)).float()
    current.norm.eval()
    current.spreads[0].register_buffer("running_var", torch.ones(12))
    current.spreads[0].eval()
    answers = []
    for progress in (0.0, 0.5, 1.0):
        current.progress = progress
        answers.append(current([values]))
    # Batch normalisation in evaluation and the last map are affine, so half way is the mean of both ends.
    assert torch.allclose(answers[1], (answers[0] + answers[2]) / 2, atol=1e-4)
    assert not torch.allclose(answers[0], answers[2], atol=0.1)
    with torch.no_grad():
        current.linear[0].add_(1.0)
    current.progress = 0.0
    assert torch.equal(current([values]), answers[0])  # a ReLU has no linear term


@pytest.mark.parametrize("kind", ["rounds", "mirrored"])
def test_without_a_linear_term_servers_square(kind: str) -> None:
    values = coded_values(kind)
    values["sharing"]["linear"] = "none"
    system = drawn_system(values)
    assert not [name for name, _ in system.named_parameters() if ".linear." in name]
    for current in system.plain():
        (k,) = current.network.linear
        assert not k.any()
    shared = drawn_values(system)
    *_, expected = run(system.plain(), shared)
    assert np.array_equal(system.answer(torch.from_numpy(shared).float()).numpy(), expected.astype(np.float32))
    system.train()(torch.randint(0, 256, (16, *IMAGE), dtype=torch.uint8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in system.rounds.parameters())


def test_a_hermite_term_is_that_of_the_nearest_polynomial_to_a_relu() -> None:
    points = np.linspace(-8, 8, 16001)
    weights = np.exp(-(points**2) / 4)  # numpy squares them
    square, linear, _ = np.polyfit(points, np.maximum(points, 0), 2, w=weights)
    assert linear / square == pytest.approx(HERMITE, rel=1e-3)


@pytest.mark.parametrize("kind", ["pooled", "mirrored"])
def test_a_hermite_term_leaves_the_mean_of_what_is_squared_out(kind: str) -> None:
    """v (v + k) is (v - mean)^2 + factor * spread * (v - mean), up to a constant."""
    values = coded_values(kind)
    values["sharing"]["linear"] = "hermite"
    system = drawn_system(values)
    current = system.polynomials[0]
    mean, variance = (current.spreads[0].get_buffer(f"running_{name}") for name in ("mean", "var"))
    mean.copy_(torch.linspace(-1, 1, len(mean) // 2).repeat(2))
    factor = current.linear[0].detach().double()
    slope = (factor.repeat(2) if kind == "mirrored" else factor) * variance.double().sqrt()
    k = torch.from_numpy(current.plain().network.linear[0]) / current.worth[0]
    v = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    difference = v * (v + k) - ((v - mean) ** 2 + slope * (v - mean))
    assert torch.allclose(difference, difference[:1].expand(9, -1), atol=2 / current.worth[0])


def test_a_budget_chooses_what_is_shared_at_all() -> None:
    values = coded_values("pooled")
    values["sharing"]["values"] = 50
    torch.manual_seed(0)
    system = CodedSystem(coded_config(values, "tests"), image_shape=IMAGE, classes=CLASSES)
    assert system.mask is not None
    images = torch.randint(0, 256, (64, *IMAGE), dtype=torch.uint8)
    system.head.normalise.fit(images)
    for _ in range(20):  # batch normalisation gets to know them
        system.train().values(images)
    drawn = system.values(images, temperature=1.0, noise=1.0)
    assert int((drawn != 0).any(dim=0).sum()) <= 50
    system.answer(drawn).square().sum().backward()
    assert float(system.get_parameter("mask.logits").grad.abs().sum()) > 0  # type: ignore[union-attr]
    system.mask.freeze()
    with torch.no_grad():
        shared = system.eval().values(images).flatten(1)
    (described,) = describe(system, [1], 6)
    assert len(described.sent) == 50 == len(set(described.sent))
    assert not shared[:, [place for place in range(shared.shape[1]) if place not in described.sent]].any()
    assert shared.any()
    assert describe(drawn_system("pooled"), [1], 6)[0].sent == ()


def test_a_trained_budget_is_frozen_before_the_last_stage(tmp_path: Path, data: DataSet) -> None:
    values = coded_values("pooled")
    values["sharing"]["values"] = 50
    for stage in values["train"].values():
        stage["epochs"] = 1
    found = load_coded(train_coded(coded_config(values, "tests"), data, tmp_path / "run", QUIET))
    assert found.system.mask is not None
    assert found.system.mask.on
    assert len(found.rounds[0].sent) == 50


# --------------------------------------------------------------------------------------------------------------- ranges


def small_network(first: IntegerMap, last: IntegerMap, k: int, largest: int) -> IntegerNetwork:
    return IntegerNetwork((1, 2, 3), largest, (first, last), (np.full(first.outputs[0], k),), 1)


@pytest.mark.parametrize("k", [0, 3, -40])
@pytest.mark.parametrize("seed", range(3))
def test_no_input_at_all_exceeds_the_bound(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    first = IntegerMap("all", generator.integers(-7, 8, (8, 6)), (8, 1, 1), 1, 0)
    last = IntegerMap("all", generator.integers(-7, 8, (4, 8)), (4, 1, 1), 1, 0)
    network = small_network(first, last, k, 2)
    every = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 6), axis=-1).reshape(-1, 1, 2, 3)
    results = network(every)[:, :, 0, 0]
    low, high = interval(network)
    eigen = eigenvalue_bounds(network)
    assert eigen is not None
    for below, above in ((low, high), eigen):
        assert (results >= below[:, 0, 0]).all()
        assert (results <= above[:, 0, 0]).all()
    assert np.abs(results).max() <= proven_bound(network) <= interval_bound(network)


@pytest.mark.parametrize("weights", [(7, 7, 1, 1, 0, 0), (0,) * 6, (127, 1, 1, 1, 1, 1)])
def test_inputs_that_count_unequally_do_not_exceed_the_bound(weights: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    first = IntegerMap("all", generator.choice([-1, 1], (8, 6)) * np.array(weights), (8, 1, 1), 1, 0)
    last = IntegerMap("all", generator.integers(-7, 8, (4, 8)), (4, 1, 1), 1, 0)
    network = small_network(first, last, 3, 2)
    every = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 6), axis=-1).reshape(-1, 1, 2, 3)
    eigen = eigenvalue_bounds(network)
    assert eigen is not None
    low, high = (bound[:, 0, 0] for bound in eigen)
    results = network(every)[:, :, 0, 0]
    assert ((low <= results) & (results <= high)).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_hold_their_bound_on_the_inputs_that_push_hardest(kernel: int) -> None:
    torch.manual_seed(0)
    planned = RoundConfig(
        levels=7, hidden=(MapConfig(outputs=6, kernel=3),), pool=2, output=MapConfig(outputs=3, kernel=kernel)
    )
    current = PolynomialRound(planned, (2, 8, 8), bits=4, classes=10, next_largest=7, skipped=0)
    network = current.plain().network
    bound = proven_bound(network)
    assert bound <= interval_bound(network)
    # Coordinate-wise ascent over corners, from several starts, for outputs in the middle and at a corner.
    generator, reached = np.random.default_rng(0), 0
    for place in ((0, 0), (1, 2)):
        for sign in (1, -1):
            values = generator.choice([-3, 3], (1, 2, 8, 8))
            for _ in range(3):
                for index in np.ndindex(2, 8, 8):
                    both = np.repeat(values, 2, axis=0)
                    both[1][index] *= -1
                    scores = sign * network(both)[:, 0][:, place[0], place[1]]
                    values = both[[int(scores.argmax())]]
            reached = max(reached, int(np.abs(network(values)).max()))
    assert reached <= bound
    assert reached > bound / 20  # the search is worth something


def test_eigenvalues_prove_less_than_absolute_weights_on_wide_rounds() -> None:
    torch.manual_seed(0)
    planned = RoundConfig(levels=15, hidden=(MapConfig(outputs=64, kernel=3),), pool=2, output=MapConfig(outputs=4))
    network = PolynomialRound(planned, (16, 8, 8), bits=4, classes=10, next_largest=7, skipped=0).plain().network
    assert proven_bound(network) < interval_bound(network) / 4


@pytest.mark.parametrize(("large", "small"), [(61628387, 1), (30359323, 2), (83630887, 3), (19871917, 1)])
def test_a_bound_holds_where_huge_terms_cancel(large: int, small: int) -> None:
    """The squares of 3, 4 and 5 leave nothing but what float64 would lose beside them."""
    weights = np.array([[3 * large, small], [4 * large, 0], [5 * large, 0]])
    maps = IntegerMap("all", weights, (3, 1, 1), 1, 0), IntegerMap("all", np.array([[1, 1, -1]]), (1, 1, 1), 1, 0)
    network = IntegerNetwork((2, 1, 1), 7, maps, (np.zeros(3, np.int64),), 1)
    result = (7 * (3 * large + small)) ** 2 + (7 * 4 * large) ** 2 - (7 * 5 * large) ** 2
    assert proven_bound(network) >= result


def test_range_bits_follow_the_interval_and_have_a_gradient() -> None:
    current = drawn_system("pooled").polynomials[0]
    bits = current.range_bits()
    low, high = interval(current.plain().network)
    proven = np.log2(np.maximum(-low, high)).mean()
    assert proven <= float(bits.detach()) < proven + 1  # it takes both signs of a square's range
    bits.backward()
    assert current.output.weight.grad is not None
    assert float(current.output.weight.grad.abs().sum()) > 0


def test_what_float64_would_not_hold_is_refused() -> None:
    planned = RoundConfig(
        levels=255,
        hidden=(MapConfig(outputs=64, over="all"), MapConfig(outputs=64, over="all")),
        output=MapConfig(over="all"),
    )
    current = PolynomialRound(planned, (64, 4, 4), bits=8, classes=10, next_largest=0, skipped=0)
    with pytest.raises(RangeError, match=r"can reach 2\^.* exact sums end at 2\^53"):
        current.plain()


def test_the_device_rounds_scaled_results_to_the_nearest_level() -> None:
    relay = Relay(np.array([3]), np.array([(5 << 4) + 8]), 4, 6, 0, np.array([0]))
    results = np.arange(-60, 60)[:, None, None, None]
    expected = np.clip(np.floor(results * 3 / 16 + 5 + 0.5), -6, 6)
    assert np.array_equal(relay(results, [results]), expected)


def test_factors_leave_room_in_int64_whatever_the_statistics() -> None:
    system = drawn_system("rounds")
    current = system.polynomials[0]
    for variance in (1e-12, 1e12):
        current.norm.get_buffer("running_var").fill_(variance)
        current.norm.get_buffer("running_mean").fill_(1e6)
        plain = current.plain()
        assert isinstance(plain.device, Relay)
        bound, relay = interval_bound(plain.network), plain.device
        most = bound * int(np.abs(relay.multiplier).max()) + int(np.abs(relay.offset).max())
        assert most + relay.largest * int(np.abs(relay.skip_multiplier).max()) * 4 < 2**63


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # of torch's switch
@pytest.mark.parametrize("library", ["oneDNN", "others"])  # which may transform values before they sum them
@pytest.mark.parametrize("kind", KINDS)
def test_exact_sums_do_not_depend_on_where_they_run(kind: str, library: str) -> None:
    network = drawn_system(kind).plain()[0].network
    values = np.random.default_rng(0).integers(-network.largest, network.largest + 1, (130, *network.inputs))
    with torch.backends.mkldnn.flags(enabled=library == "oneDNN"):
        assert np.array_equal(exact(network, values, torch.device("cpu")), network(values))


@pytest.mark.parametrize(("pool", "largest"), [(4, 127), (1, 127), (1, 2**16)])
def test_sums_that_float32_does_not_have(pool: int, largest: int) -> None:
    """Of a round without a square, whose only map takes sums over windows; and of values that are large themselves."""
    drawn = np.random.default_rng(0)
    weight = drawn.integers(0, 128, (3, 8 * (28 // pool) ** 2))
    last = IntegerMap("all", weight, (3, 1, 1), 1, 0)
    network = IntegerNetwork((8, 28, 28), largest, (last,), (), pool)
    values = drawn.integers(0, largest + 1, (20, 8, 28, 28))
    assert np.array_equal(exact(network, values, torch.device("cpu")), network(values))


# ------------------------------------------------------------------------------------------------------------- training


def test_a_coded_run_learns_and_opens_as_it_was_measured(trained: Path, data: DataSet) -> None:
    found = load_coded(trained)
    assert found.classes == data.classes
    assert found.accuracy["coded"] > 0.5  # ten classes
    with torch.inference_mode():
        answers = found.system(data.test_images)
        values = found.system.values(data.test_images).numpy().astype(np.int64)
    assert float((answers.argmax(1) == data.test_labels).double().mean()) == found.accuracy["coded"]
    _, results, logits = run(found.system.plain(), values)
    assert np.array_equal(logits, answers.numpy())
    for described, plain, result in zip(found.rounds, found.system.plain(), results, strict=True):
        assert described.bound == proven_bound(plain.network)
        assert described.moduli == fewest_moduli(described.bound)
        assert 0 < described.seen <= described.bound
        assert np.abs(result).max() <= described.bound
        assert (described.degree, described.inputs) == (plain.network.degree, plain.network.inputs)
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(found.rounds))), tuple[Round, ...]) == found.rounds
    lines = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["baseline"] + ["rounds"] * 12 + ["finetune"]
    assert all({"test_accuracy_readout", "readout", "range", "coded_distillation"} <= line.keys() for line in lines[1:])
    assert lines[1]["coded"] > lines[12]["coded"]
    assert lines[-1]["test_accuracy_readout"] == found.accuracy["readout"]


def test_an_interrupted_coded_run_ends_as_the_uninterrupted_one(tmp_path: Path, data: DataSet, trained: Path) -> None:
    # In the middle of epochs of each stage.
    path, _ = until_done(lambda: train_coded(coded_of(), data, tmp_path / "run", QUIET), 3, 19, 107)
    whole, resumed = read_checkpoint(trained), read_checkpoint(path)
    assert all(torch.equal(resumed.tensors[name], value) for name, value in whole.tensors.items())
    assert resumed.about == whole.about


def test_more_primes_make_a_finished_run_what_it_failed_to_be(tmp_path: Path, data: DataSet, trained: Path) -> None:
    run_folder, values = tmp_path / "run", coded_values()
    values["sharing"]["primes"] = 1
    run_folder.mkdir()
    for file in ("baseline", "rounds", "finetune"):
        (run_folder / f"{file}.safetensors").write_bytes((trained.parent / f"{file}.safetensors").read_bytes())
    with pytest.raises(RangeError, match=r"round 1: results can reach 2\^.* sharing\.primes allows 1\. Raise"):
        train_coded(coded_config(values, "tests"), data, run_folder, QUIET)
    values["sharing"]["primes"] = 6
    assert train_coded(coded_config(values, "tests"), data, run_folder, QUIET).exists()
    values["sharing"]["bits"] = 6
    with pytest.raises(CheckpointError, match=r"other settings in: sharing\.bits"):
        train_coded(coded_config(values, "tests"), data, run_folder, QUIET)


def test_a_run_goes_on_with_the_sharing_that_it_began_with() -> None:
    """Limits may be raised; every other key decides the weights."""
    keys = {f"sharing.{key}" for key in SharingConfig.__struct_fields__}
    assert keys - set(SECTIONS) == {"sharing.kind", "sharing.degree", "sharing.primes"}


def test_a_coded_system_is_not_a_masked_one_nor_the_other_way(trained: Path, trained_release: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a coded system"):
        load_system(trained)
    with pytest.raises(CheckpointError, match="does not hold a finished coded system"):
        load_coded(trained_release.parent / "run" / "system.safetensors")
    with pytest.raises(CheckpointError, match="does not hold a finished coded system"):
        load_coded(trained.parent / "rounds.safetensors")


def test_the_command_trains_a_coded_config(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = coded_values("pooled")
    for stage in values["train"].values():
        stage["epochs"] = 1
    config = write_toml(tmp_path / "run.toml", values)
    assert main([str(config), "--data", str(data_folder), "--out", str(tmp_path / "runs"), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "linear readout:" in output
    assert "round 1: degree 2, " in output
    assert "readout" in output
    assert load_coded(tmp_path / "runs" / "tiny-3" / "system.safetensors").rounds[0].degree == 2


# ------- config


def changed(change: Callable[[dict[str, Any]], Any], kind: str = "rounds") -> dict[str, Any]:
    values = coded_values(kind)
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: v.update(keys={"partitions": 64}), r"no \[keys\]: keys add nothing here"),
        (lambda v: v.update(masks={"servers": 3}), r"no \[masks\]: .*Remove it"),
        (lambda v: v.update(fusion={"hidden": 0}), r"no \[fusion\]"),
        (lambda v: v.update(branch={"width": 8}), r"no \[branch\]"),
        (lambda v: v.update(adversary={"weight": 1.0}), r"no \[adversary\]"),
        (lambda v: v["sharing"].update(kind="masked"), r"sharing\.kind is 'masked'\. There is 'coded'"),
        (lambda v: v["sharing"].pop("kind"), r"sharing\.kind is None"),
        (lambda v: v["sharing"].update(bitts=4), r"unknown key 'sharing\.bitts'.*Did you mean 'bits'"),
        (lambda v: v["sharing"].update(bits=9), "2 to 8 bits"),
        (lambda v: v["sharing"].update(degree=3), r"sharing\.degree is 3"),
        (lambda v: v["sharing"].update(primes=7), "there are 6 primes"),
        (lambda v: v["sharing"].update(annealed=1.5), "from 0 to 1"),
        (lambda v: v["sharing"].update(linear="cubic"), "linear"),
        (
            lambda v: (v["sharing"].update(linear="none"), [each.pop("hidden") for each in v["rounds"]]),
            "for squares, and no round has one",
        ),
        (lambda v: v["sharing"].update(values=-1), r"sharing\.values is -1"),
        (lambda v: v.update(rounds=[]), r"no \[\[rounds\]\]"),
        (lambda v: v["rounds"][0].update(levels=16), "round 1: levels is 16; it must be odd"),
        (lambda v: v["rounds"][1].update(levels=257), "round 2: levels is 257"),
        (lambda v: v["rounds"][1].update(pool=0), "round 2: pool is 0"),
        (lambda v: v["rounds"][0].update(skip=2), "round 1: skip is 2"),
        (lambda v: v["rounds"][2].update(skip=1), "round 3: skip has no place in the last round"),
        (lambda v: v["rounds"][2]["output"].update(outputs=10), "number of classes in the last round: leave it out"),
        (lambda v: v["rounds"][0]["output"].pop("outputs"), "how many channels return"),
        (lambda v: v["rounds"][0]["hidden"][0].pop("outputs"), "every hidden map needs outputs"),
        (lambda v: v["rounds"][0]["hidden"][0].update(kernel=4), "kernel 4 with stride 1"),
        (lambda v: v["rounds"][2]["hidden"][0].update(kernel=3), "kernel and stride are for over = 'window'"),
        (lambda v: v["rounds"][0]["hidden"].append({"outputs": 4}), "2 squares in a row make degree 4.* allows 2"),
        (lambda v: v["rounds"][0]["hidden"][0].update(over="tokens"), "Invalid enum value"),
        (lambda v: v["rounds"][0].update(width=3), "unknown field `width`"),
        (lambda v: v["loss"].update(range=-1.0), r"loss\.range is -1\.0"),
        (lambda v: v["head"].update(checkpoint="a.safetensors"), "a coded run has none: remove it"),
        (lambda v: v["data"].update(name="celeba-attributes"), "is not for coded runs yet"),
        (lambda v: v["data"].update(held_out=-1), r"data\.held_out is -1"),
        (lambda v: v["train"]["rounds"].update(epochs=0), r"train\.rounds needs at least 1 epoch"),
        (lambda v: v["train"]["baseline"].update(epochs=0), r"name them in backbone\.checkpoint"),
    ],
)
def test_a_coded_config_that_cannot_work_is_refused(change: Callable[[dict[str, Any]], Any], problem: str) -> None:
    with pytest.raises(TrainingConfigError, match=problem):
        coded_config(changed(change), "tests")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["rounds"][1].update(pool=3), "round 2: pool = 3 does not divide the 1 x 1 positions"),
        (lambda v: v["rounds"][1]["output"].update(kernel=2, stride=2), "round 2: kernel = 2 does not fit into 1 x 1"),
        (lambda v: v["rounds"][0].update(output={"outputs": 5}), "round 1: skip = 1 adds values of"),
        (
            lambda v: v["rounds"][1]["hidden"][0].update(stride=1) or v["rounds"][2].update(hidden=[], output={}),
            "not one number for each class",
        ),
        (
            lambda v: v["sharing"].update(values=1000),
            r"sharing\.values is 1000, but the feature has 196 values \(4 x 7",
        ),
        (lambda v: v["sharing"].update(primes=1), "already before training, round 1: results can reach"),
        (lambda v: v["backbone"].update(checkpoint="none.safetensors"), "there is no checkpoint none.safetensors"),
    ],
)
def test_rounds_and_ranges_are_checked_before_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    config = write_toml(tmp_path / "run.toml", changed(change))
    assert main([str(config), "--data", str(tmp_path / "no data here")]) == 2
    assert re.search(told, capsys.readouterr().err)
