"""Terms of the split model's loss. Each is a plain function; `split_loss` adds them up with the config's weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.config import LossConfig


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's softened answer from the teacher's.

    Hinton, Vinyals, Dean, arXiv 1503.02531, section 2.

    Args:
        student: Logits, float [batch, classes].
        teacher: Logits, float [batch, classes]; no gradient flows into them.
        temperature: Softens both.

    Returns:
        Scalar, scaled by the squared temperature so that its gradient does not shrink with it.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    answer = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(answer, target, reduction="batchmean", log_target=True)


def random_answered(batch: int, servers: int, dropout: float) -> Tensor:
    """Who answers in training: each server with probability 1 - dropout, and at least one per image.

    Args:
        batch: Number of images.
        servers: Number of servers.
        dropout: Probability that an answer is withheld.

    Returns:
        bool [batch, servers].
    """
    answered = torch.rand(batch, servers) >= dropout
    answered[torch.arange(batch), torch.randint(0, servers, (batch,))] = True
    return answered


def split_loss(
    fused: Tensor, answers: Tensor, labels: Tensor, teacher: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, float]]:
    """The whole loss of the split model.

    Args:
        fused: Fused logits, float [batch, classes].
        answers: The servers' logits, float [batch, servers, classes].
        labels: int64 [batch].
        teacher: The baseline's logits, float [batch, classes].
        config: Weights of the terms.

    Returns:
        The scalar to minimise, and the value of each term.
    """
    servers = answers.shape[1]
    smoothing = config.label_smoothing
    terms = {
        "fused": F.cross_entropy(fused, labels, label_smoothing=smoothing),
        "auxiliary": F.cross_entropy(
            answers.flatten(0, 1), labels.repeat_interleave(servers), label_smoothing=smoothing
        ),
        "distillation": distillation(fused, teacher, config.distillation_temperature),
    }
    total = terms["fused"] + config.auxiliary * terms["auxiliary"] + config.distillation * terms["distillation"]
    return total, {name: float(value.detach()) for name, value in terms.items()}
