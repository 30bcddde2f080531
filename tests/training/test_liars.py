import itertools

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_export import graphs
from privdfs_training import liars
from privdfs_training.data import DataSet
from privdfs_training.models.fusion import Fusion
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from privdfs_training.readouts import linear_readouts
from privdfs_training.stages import stages
from tests.trained import FUSION_STAGE, tiny_values

CLASSES = 4


def agreed(servers: int, images: int = 40) -> tuple[Tensor, Tensor]:
    """Honest answers of which all are right and sure, and the labels."""
    torch.manual_seed(0)
    labels = torch.randint(0, CLASSES, (images,))
    return 8.0 * F.one_hot(labels, CLASSES)[:, None] + torch.randn(images, servers, CLASSES), labels


def told(kind: str, fusion: Fusion, answers: Tensor, lying: Tensor, labels: Tensor) -> list[Tensor]:
    everybody = torch.ones(answers.shape[:2], dtype=torch.bool)
    if kind == "constant":
        return [liars.constant_lies(answers, lying, torch.full_like(labels, one)) for one in range(CLASSES)]
    return [
        {
            "random": lambda: liars.random_lies(answers, lying),
            "flipped": lambda: liars.flipped_lies(answers, lying),
            "runner_up": lambda: liars.runner_up_lies(answers, lying),
            "ascended": lambda: liars.ascended_lies(fusion, answers, everybody, lying, labels),
            "searched": lambda: liars.searched_lies(fusion, answers, lying, labels, steps=10),
        }[kind]()
    ]


@pytest.mark.parametrize("servers", [3, 5])
@pytest.mark.parametrize("kind", ["random", "constant", "flipped", "runner_up", "ascended", "searched"])
def test_a_lying_minority_cannot_turn_what_the_honest_agree_on(servers: int, kind: str) -> None:
    answers, labels = agreed(servers)
    fusion = Fusion(servers=servers, classes=CLASSES, hidden=8)
    everybody = torch.ones(answers.shape[:2], dtype=torch.bool)
    for members in itertools.combinations(range(servers), (servers - 1) // 2):
        lying = torch.zeros_like(everybody)
        lying[:, list(members)] = True
        for heard in told(kind, fusion, answers, lying, labels):
            assert torch.equal(heard[~lying], answers[~lying])
            assert not torch.equal(heard[lying], answers[lying])
            assert heard.abs().max() <= 1e6  # what the SDK accepts
            assert torch.equal(fusion(heard, everybody).argmax(dim=1), labels)
            # The plain mean is what such lies are good against.
            if kind == "searched":
                mean = heard.log_softmax(dim=2).mean(dim=1)
                assert (mean.argmax(dim=1) == labels).float().mean() < 0.5


def test_the_search_finds_what_the_gradient_finds() -> None:
    torch.manual_seed(1)
    answers, labels = torch.randn(300, 3, CLASSES) * 2, torch.randint(0, CLASSES, (300,))
    answers += 2.0 * F.one_hot(labels, CLASSES)[:, None]
    fusion = Fusion(servers=3, classes=CLASSES, hidden=8)
    torch.nn.init.normal_(fusion.get_parameter("correction.weight"), std=0.3)
    everybody, lying = torch.ones(300, 3, dtype=torch.bool), torch.zeros(300, 3, dtype=torch.bool)
    lying[:, 1] = True

    def right(heard: Tensor) -> float:
        return float((fusion(heard, everybody).argmax(dim=1) == labels).float().mean())

    ascended = right(liars.ascended_lies(fusion, answers, everybody, lying, labels))
    searched = right(liars.searched_lies(fusion, answers, lying, labels))
    assert searched <= ascended < right(liars.random_lies(answers, lying)) < right(answers)
    assert searched <= right(liars.searched_lies(fusion, answers, lying, labels, steps=0))


def test_runners_up_come_from_what_the_coalition_itself_has() -> None:
    answers = torch.tensor([[[0.0, 5.0, 4.0, 0.0], [9.0, 0.0, 0.0, 8.0], [0.0, 5.0, 0.0, 4.5]]])
    lying = torch.tensor([[True, False, True]])
    heard = liars.runner_up_lies(answers, lying)
    # Servers 0 and 2 together find class 1 likeliest, then class 3, by 4.5 logits against 4 for class 2.
    assert heard[0, 0].argmax() == heard[0, 2].argmax() == 3
    assert torch.equal(heard[0, 1], answers[0, 1])


def test_a_minority_of_those_who_answer_lies() -> None:
    torch.manual_seed(0)
    answered = torch.rand(4000, 5) < 0.7
    answered[:, 0] = True
    lying = liars.random_minority(answered)
    assert not (lying & ~answered).any()
    assert (2 * lying.sum(dim=1) < answered.sum(dim=1)).all()
    able = answered.sum(dim=1) >= 3
    assert torch.equal(lying.any(dim=1), able)
    assert set(lying[answered.all(dim=1)].sum(dim=1).tolist()) == {1, 2}
    assert (lying.float().mean(dim=0) > 0.05).all()


def test_no_gradient_flows_through_a_lie() -> None:
    torch.manual_seed(0)
    answers, labels = agreed(3, images=200)
    answers.requires_grad_()
    fusion = Fusion(servers=3, classes=CLASSES, hidden=8)
    torch.nn.init.normal_(fusion.get_parameter("correction.weight"), std=0.3)
    answered = torch.ones(200, 3, dtype=torch.bool)
    heard = liars.mixed_lies(fusion, answers, answered, labels)
    assert all(value.grad is None for value in fusion.parameters())  # the liars' own climb leaves none behind
    lied = (heard != answers).any(dim=2)
    assert lied.sum(dim=1).tolist() == [1] * 200
    F.cross_entropy(fusion(heard, answered), labels).backward()
    assert answers.grad is not None
    assert (answers.grad[lied] == 0).all()
    assert (answers.grad[~lied] != 0).any()
    assert all(
        value.grad is not None and value.grad.any() for value in (fusion.ranks, fusion.get_parameter("hidden.weight"))
    )


def test_the_last_stage_teaches_the_fusion_alone_to_bear_liars(monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny_values()
    values["train"]["fusion"] = FUSION_STAGE
    images, labels = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (64,))
    data = DataSet("fashion-mnist", tuple("abcdefghij"), images, labels, images, labels)
    torch.manual_seed(0)
    system = System(config_from_dict(values, "tests"), image_shape=(1, 28, 28), classes=10)
    todo = stages(config_from_dict(values, "tests"), system, data)
    assert [stage.name for stage in todo] == ["baseline", "masks", "finetune", "fusion"]
    todo[1].prepare()
    todo[2].prepare()
    forward, heard = system.fusion.forward, list[Tensor]()

    def listen(logits: Tensor, answered: Tensor) -> Tensor:
        heard.append(logits.detach())
        return forward(logits, answered)

    monkeypatch.setattr(system.fusion, "forward", listen)
    system.eval()
    loss, terms = todo[3].loss(images, labels, 0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(terms["fused"] + terms["malicious"]), rel=1e-5)
    assert system.fusion.ranks.grad is not None
    assert {name.split(".")[0] for name, value in system.named_parameters() if value.grad is not None} == {"fusion"}
    lied = (heard[0] != heard[-1]).any(dim=2)  # the first is honest, and the last one under lies
    assert lied.sum(dim=1).max() == 1
    assert 20 < lied.any(dim=1).sum() <= 64  # where a server is silent, two are left, and nobody lies


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("servers", [2, 3, 5])
def test_the_exported_fusion_is_the_trained_one_for_every_subset_of_servers(servers: int, hidden: int) -> None:
    torch.manual_seed(0)
    values = tiny_values(servers)
    values["fusion"]["hidden"] = hidden
    system = System(config_from_dict(values, "tests"), image_shape=(1, 28, 28), classes=10).eval()
    for value in system.fusion.parameters():
        torch.nn.init.normal_(value)
    model = graphs.fusion_graph(system)
    assert {node.domain for node in model.graph.node} == {""}
    answered = torch.tensor(list(itertools.product([False, True], repeat=servers))[1:])
    logits = 5 * torch.randn(len(answered), servers, 10)
    logits[-1] = logits[-1, :1]  # equal answers, so that the order among them is open
    inputs = {"logits": logits.numpy(), "answered": answered.numpy()}
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, inputs)
    expected = system.fusion(logits, answered).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)


def test_linear_readouts_find_what_is_linear_and_no_more() -> None:
    torch.manual_seed(0)
    shares = [torch.randint(-2, 3, (600, 3), dtype=torch.int8) for _ in range(2)]
    linear = (shares[0][:, 0].int() + shares[1][:, 1].int() > 0).long()  # only both shares together tell it
    product = (shares[0][:, 0].int() * shares[1][:, 1].int() > 0).long()
    halves = ([share[:400] for share in shares], [share[400:] for share in shares])
    assert linear_readouts(halves[0], linear[:400], halves[1], linear[400:], 2) > 0.97
    assert linear_readouts(halves[0], product[:400], halves[1], product[400:], 2) < 0.75
