from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privdfs_training import loop
from privdfs_training.adversary import Adversary, choose_coalitions, leak, minority_coalitions
from privdfs_training.checkpoint import read_checkpoint
from privdfs_training.config import AdversaryConfig
from privdfs_training.data import DataSet, load_data
from privdfs_training.errors import TrainingConfigError
from privdfs_training.losses import decorrelation
from privdfs_training.reading import config_from_dict, load_config
from tests.trained import QUIET, tiny_values
from tests.training.interrupting import until_done

SIDE, SERVERS, CLASSES = 8, 3, 2


def adversary(**changes: Any) -> Adversary:
    torch.manual_seed(0)
    config = AdversaryConfig(**{"weight": 1.0, "restart": 0, "warm_up": 0, "width": 8, "learning_rate": 0.01} | changes)
    return Adversary(
        config, servers=SERVERS, values=SIDE * SIDE, image_shape=(1, SIDE, SIDE), classes=CLASSES, start=config.start
    )


def batch(images: int = 64) -> tuple[Tensor, Tensor]:
    """Smooth random images and labels that say nothing about them."""
    small = torch.rand(images, 1, 2, 2)
    smooth = nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    return (smooth * 255).to(torch.uint8), torch.randint(0, CLASSES, (images,))


def copied(images: Tensor) -> Tensor:
    """The shares of a head that sends the whole image to everybody."""
    return (images.float() / 127.5 - 1)[:, None].expand(-1, SERVERS, -1, -1, -1)


def constant(images: Tensor) -> Tensor:
    return torch.full((len(images), SERVERS, 1, SIDE, SIDE), 0.5)


def trained(attacker: Adversary, head: Any, steps: int = 40) -> list[dict[str, float]]:
    terms = []
    for _ in range(steps):
        images, labels = batch()
        terms.append(attacker(head(images), images, labels, 1.0)[1])
    return terms


@pytest.mark.parametrize("kind", ["decoder", "diffusion"])
def test_a_head_that_copies_the_image_is_punished_and_one_that_sends_a_constant_is_not(kind: str) -> None:
    copy, same = (trained(adversary(kind=kind), head) for head in (copied, constant))
    assert sum(terms["adversary"] for terms in copy[-10:]) / 10 > (0.4 if kind == "decoder" else 0.15)
    assert sum(terms["adversary"] for terms in same[-10:]) / 10 < 0.05


@pytest.mark.parametrize("kind", ["decoder", "diffusion"])
def test_proxies_learn_to_reconstruct(kind: str) -> None:
    terms = trained(adversary(kind=kind), copied)
    first, last = terms[0], terms[-1]
    assert last["adversary_psnr"] - last["adversary_floor"] > first["adversary_psnr"] - first["adversary_floor"] + 1.0
    assert last["adversary_psnr_worst"] >= last["adversary_psnr"]


def test_the_gradient_reaches_the_shares_and_never_the_proxies_and_their_training_never_the_shares() -> None:
    attacker = adversary()
    trained(attacker, copied, steps=5)
    images, labels = batch()
    shares = copied(images).clone().requires_grad_()
    term, _ = attacker(shares, images, labels, 1.0)
    assert shares.grad is None
    weights = [value.detach().clone() for value in attacker.parameters()]
    term.backward()
    assert shares.grad is not None
    assert float(shares.grad.abs().sum()) > 0
    assert all(value.grad is None for value in attacker.parameters())
    assert all(torch.equal(old, new) for old, new in zip(weights, attacker.parameters(), strict=True))


def test_a_head_that_follows_the_gradient_tells_less() -> None:
    # A head that learns how loudly to send each pixel, over a noisy line.
    attacker, gain = adversary(), nn.Parameter(torch.ones(1, SIDE, SIDE))
    optimizer, history = torch.optim.Adam([gain], lr=0.05), []
    for step in range(90):
        images, labels = batch()
        sent = copied(images) * gain + torch.randn(len(images), SERVERS, 1, SIDE, SIDE)
        term, terms = attacker(sent, images, labels, 1.0)
        history.append(terms["adversary"])
        if step >= 50:
            optimizer.zero_grad()
            term.backward()
            optimizer.step()
    assert sum(history[-10:]) < 0.5 * sum(history[40:50])


def test_the_term_is_bounded_and_flat_at_the_floor() -> None:
    error = torch.tensor([0.0, 0.05, 0.1, 7.0], requires_grad=True)
    floor = torch.full((4,), 0.1, requires_grad=True)
    told = leak(error, floor)
    assert torch.allclose(told, torch.tensor([1.0, 0.5, 0.0, 0.0]))
    told.sum().backward()
    assert floor.grad is None
    assert error.grad is not None
    assert error.grad.tolist() == pytest.approx([-10.0, -10.0, 0.0, 0.0])
    assert leak(torch.zeros(1), torch.zeros(1)).item() == 0  # an image that is its own class mean


@pytest.mark.parametrize(("servers", "size", "count"), [(3, 1, 3), (4, 1, 4), (5, 2, 10), (7, 3, 35)])
def test_minority_coalitions(servers: int, size: int, count: int) -> None:
    members = minority_coalitions(servers)
    assert [tuple(torch.nonzero(row).flatten().tolist()) for row in members] == list(combinations(range(servers), size))
    assert len(members) == count


def test_three_coalitions_all_attack() -> None:
    assert choose_coalitions(torch.zeros(3), torch.zeros(3, dtype=torch.int64), 4).tolist() == [0, 1, 2]


def test_of_many_coalitions_the_best_attack_every_time_and_the_others_in_turn() -> None:
    gains, attacked_at, times = torch.zeros(35), torch.full((35,), -1), torch.zeros(35)
    gains[[4, 20]] = torch.tensor([1.0, 2.0])
    for step in range(34):
        chosen = choose_coalitions(gains, attacked_at, 4)
        assert len(set(chosen.tolist())) == 4
        attacked_at[chosen] = step
        times[chosen] += 1
    assert times[[4, 20]].tolist() == [34, 34]
    others = times[[index for index in range(35) if index not in (4, 20)]]
    assert int(others.min()) == 2
    assert int(others.max()) == 3


def test_a_coalition_sees_the_shares_of_its_members_alone() -> None:
    attacker, shares = adversary(), torch.rand(2, SERVERS, 1, SIDE, SIDE)
    seen = attacker._seen(shares, torch.tensor([1, 2]))
    values, members = seen[:, :-SERVERS].view(2, SERVERS, 1, SIDE, SIDE), seen[:, -SERVERS:]
    assert torch.equal(values[0, 1], shares[0, 1])
    assert torch.equal(values[1, 2], shares[1, 2])
    assert float(values[0, [0, 2]].abs().sum() + values[1, :2].abs().sum()) == 0
    assert members.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_proxies_start_afresh_in_turn_and_count_again_after_their_warm_up() -> None:
    attacker = adversary(proxies=2, restart=10, warm_up=4)
    counting, ages = [], []
    for _ in range(30):
        trained(attacker, copied, steps=1)
        attacker.step -= 1
        counting.append(attacker._counting())
        attacker.step += 1
        ages.append(
            [
                int(optimizer.state[next(iter(optimizer.param_groups[0]["params"]))]["step"])
                for optimizer in attacker.optimizers
            ]
        )
    both = [0, 1]
    assert counting == [[]] * 4 + [both] * 6 + [[1]] * 4 + [both] * 6 + [[0]] * 4 + [both] * 6
    # Two training steps for each step of the model; the first proxy is fresh at step 10, the second at 20.
    assert ages[9] == [20, 20]
    assert ages[10] == [2, 22]
    assert ages[20] == [22, 2]


def test_a_restart_replaces_the_weights_of_one_proxy() -> None:
    attacker = adversary(proxies=2, restart=20, learning_rate=1e-9)
    trained(attacker, copied, steps=20)
    before = [next(proxy.parameters()).detach().clone() for proxy in attacker.proxies]
    trained(attacker, copied, steps=1)
    after = [next(proxy.parameters()).detach() for proxy in attacker.proxies]
    assert float((before[0] - after[0]).abs().mean()) > 0.01
    assert float((before[1] - after[1]).abs().max()) < 1e-6


def test_there_are_no_proxies_before_the_start() -> None:
    attacker, (images, labels) = adversary(start=0.5), batch()
    weights = [value.detach().clone() for value in attacker.parameters()]
    term, terms = attacker(copied(images), images, labels, 0.49)
    assert float(term) == 0
    assert terms["adversary_psnr"] == terms["adversary_floor"]
    assert all(torch.equal(old, new) for old, new in zip(weights, attacker.parameters(), strict=True))
    attacker(copied(images), images, labels, 0.5)
    assert any(not torch.equal(old, new) for old, new in zip(weights, attacker.parameters(), strict=True))


def test_the_class_means_are_those_of_all_images_so_far() -> None:
    attacker, batches = adversary(start=0.9), [batch(16) for _ in range(3)]
    for images, labels in batches:
        attacker(copied(images), images, labels, 0.0)
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    for label in range(CLASSES):
        expected = images[labels == label].float().mean(dim=0) / 255
        assert torch.allclose(attacker.means[label], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["decoder", "diffusion"])
def test_bf16_gives_finite_gradients_and_every_training_step_sees_the_weights_of_the_one_before(kind: str) -> None:
    attacker = adversary(kind=kind, steps=3)
    shares, terms = torch.zeros(()), dict[str, float]()
    for _ in range(12):
        images, labels = batch()
        shares = copied(images).clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # An open cache of cast weights is what the loop has; a stale one would fail in the second training step.
            attacker.proxies[0](
                attacker._seen(shares.detach(), torch.zeros(64, dtype=torch.int64)),
                torch.zeros(64, CLASSES),
                images / 255,
                images / 255,
            )
            term, terms = attacker(shares, images, labels, 1.0)
        term.backward()
    assert shares.grad is not None
    assert torch.isfinite(shares.grad).all()
    assert float(shares.grad.abs().sum()) > 0
    assert all(torch.isfinite(value).all() for value in attacker.state_dict().values())
    assert terms["adversary"] > 0.05


def test_saved_proxies_go_on_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"restart": 7, "warm_up": 2}
    whole, first, second = adversary(**settings), adversary(**settings), adversary(**settings)
    results = []
    for attackers in ([whole] * 12, [first] * 6 + [second] * 6):
        term = torch.zeros(())
        for step, attacker in enumerate(attackers):
            if step == 6 and attacker is second:
                second.restore(first.tensors(), tmp_path)
            torch.manual_seed(step)
            images, labels = batch()
            term, _ = attacker(copied(images), images, labels, 1.0)
        results.append((float(term), attackers[-1].tensors()))
    assert results[0][0] == results[1][0] > 0
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def small_data(folder: Path) -> DataSet:
    data = load_data("fashion-mnist", folder)
    return replace(
        data,
        train_images=data.train_images[:96],
        train_labels=data.train_labels[:96],
        test_images=data.test_images[:40],
        test_labels=data.test_labels[:40],
    )


def test_an_interrupted_run_with_an_adversary_ends_as_the_uninterrupted_one(tmp_path: Path, data_folder: Path) -> None:
    values = tiny_values()
    stage = values["train"]["baseline"] | {"epochs": 1, "batch": 16}
    values["train"] = {"baseline": stage, "masks": stage | {"epochs": 2}, "finetune": stage}
    values["loss"]["decorrelation"] = 1.0
    values["adversary"] = {"weight": 1.0, "width": 4, "restart": 2, "warm_up": 1, "start": 0.2}
    config, data = config_from_dict(values, "tests"), small_data(data_folder)
    whole = read_checkpoint(loop.train(config, data, tmp_path / "whole", QUIET))
    assert not any("prox" in name or "adversary" in name for name in whole.tensors)
    for name in ("masks", "finetune"):
        saved = read_checkpoint(tmp_path / "whole" / f"{name}.safetensors")
        assert not any(tensor.startswith("adversary.") for tensor in saved.tensors)
    record = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[2]
    assert '"adversary_psnr_worst"' in record
    assert '"decorrelation"' in record

    # Before and after the proxies' start, and in the last stage.
    path, steps = until_done(lambda: loop.train(config, data, tmp_path / "resumed", QUIET), 9, 13, 22)
    resumed = read_checkpoint(path)
    assert steps == 24
    assert all(torch.equal(resumed.tensors[name], value) for name, value in whole.tensors.items())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weight": 0.0}, "Remove the section"),
        ({"proxies": 0}, "must be above 0"),
        ({"proxies": 65}, "they divide a batch"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"restart": -1}, "0 or more"),
        ({"restart": 100, "warm_up": 200}, "below the 200 steps that a proxy lives"),
        ({"start": 1.0}, "share of the masks stage"),
        ({"kind": "gan"}, "Invalid enum value"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainingConfigError, match=problem):
        config_from_dict(tiny_values() | {"adversary": {"weight": 1.0} | changes}, "tests")


def test_an_adversary_needs_a_minority() -> None:
    with pytest.raises(TrainingConfigError, match="at least 3 servers"):
        config_from_dict(tiny_values(2) | {"adversary": {"weight": 1.0}}, "tests")


def test_a_misspelt_key_of_the_optional_section_is_named_with_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    committed = Path(__file__).parents[2] / "configs" / "fashion-resnet20.toml"
    path.write_text(committed.read_text() + "\n[adversary]\nweight = 1.0\nproxys = 2\n")
    with pytest.raises(TrainingConfigError, match=r"unknown key 'adversary\.proxys'.*Did you mean 'proxies'"):
        load_config(path)


def test_decorrelation_is_between_servers_and_between_zero_and_one() -> None:
    torch.manual_seed(0)
    value = torch.randn(512, 1)
    same = value.expand(-1, 3)[:, :, None, None, None].repeat(1, 1, 2, 2, 2)
    assert float(decorrelation(same)) == pytest.approx(1.0, abs=1e-4)
    assert float(decorrelation(torch.randn(512, 3, 2, 2, 2))) < 0.01
    # What one server's own values tell twice costs nothing.
    own = torch.randn(512, 3, 1, 1, 1).repeat(1, 1, 2, 2, 2)
    assert float(decorrelation(own)) < 0.02


def test_decorrelation_is_the_mean_squared_correlation_of_what_varies() -> None:
    torch.manual_seed(0)
    shares = torch.randn(64, 2, 1, 1, 4)
    shares[:, 1] += 0.7 * shares[:, 0].roll(1, dims=-1)
    shares[:, 0, ..., 3], shares[:, 1, ..., 0] = 0.0, 0.0  # not owned
    shares.requires_grad_()
    result = decorrelation(shares)
    both = torch.corrcoef(torch.cat([shares[:, 0].flatten(1)[:, :3], shares[:, 1].flatten(1)[:, 1:]], dim=1).T)
    assert result.item() == pytest.approx(both[:3, 3:].square().mean().item(), rel=1e-4)
    result.backward()
    assert shares.grad is not None
    assert torch.isfinite(shares.grad).all()


def test_decorrelation_of_constant_shares_is_zero() -> None:
    assert float(decorrelation(torch.ones(8, 3, 1, 2, 2))) == 0
