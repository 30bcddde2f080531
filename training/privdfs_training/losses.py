"""Terms of the split model's loss. Each is a plain function; `split_loss` adds them up with the config's weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.config import LossConfig
from privdfs_training.parallel import Terms, per_image


def choices(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of either task as choices of one among several.

    An attribute is a choice of two: softmax over (-x/2, x/2) is the sigmoid of x, so cross-entropy over these choices
    is binary cross-entropy, and the share of right choices is the mean accuracy over the attributes.

    Args:
        logits: float [batch, classes] or [batch, attributes].
        labels: int64 [batch], or uint8 [batch, attributes] of 0 and 1.

    Returns:
        The same, or logits [batch * attributes, 2] and labels int64 [batch * attributes].
    """
    if labels.ndim == 1:
        return logits, labels
    return torch.stack([-logits / 2, logits / 2], dim=-1).flatten(0, 1), labels.flatten().long()


def labelled(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of the images that have a label.

    Args:
        logits: float [batch, classes] or [batch, attributes].
        labels: Of the last images, as for `choices`; the others are blends (`augment.blended`).
        label_smoothing: Of the cross-entropy.

    Returns:
        Scalar, 0 where no image has a label.
    """
    if not len(labels):
        return logits.new_zeros(())
    known = choices(logits[len(logits) - len(labels) :], labels)
    return F.cross_entropy(*known, label_smoothing=label_smoothing)


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


def decorrelation(shares: Tensor) -> Tensor:
    """Redundancy between shares of different servers: the mean squared correlation of their values.

    The off-diagonal term of Zbontar et al. (arXiv 2103.03230, equation 1), between servers instead of between the
    features of one network. A pair of values from different servers costs 1 where one tells the other, 0 where they are
    uncorrelated; independent values have about 1 / batch by chance.

    Args:
        shares: float [batch, servers, channels, h, w], zero where a server owns nothing; at least 2 images.

    Returns:
        Scalar in 0..1: mean over all pairs of values of different servers that vary within the batch.
    """
    values = shares.flatten(2).float()
    centred = values - values.mean(dim=0)
    variance = centred.square().mean(dim=0)
    # The square root of a constant value's variance has an infinite gradient.
    varies = variance > 1e-8
    standard = torch.where(varies, centred * torch.where(varies, variance, 1.0).rsqrt(), 0.0)
    # The sum of squares of all correlations between servers i and j is <G_i, G_j> / batch^2 with the Gram matrices G_i
    # [batch, batch]: the matrix of the correlations itself, whose size grows with the feature's squared, is never made.
    with torch.autocast(shares.device.type, enabled=False):
        gram = torch.einsum("bne,cne->nbc", standard, standard).flatten(1) / len(shares)
        squared = gram @ gram.T
    live = varies.sum(dim=1).to(squared.dtype)
    pairs = torch.outer(live, live)
    between = ~torch.eye(len(live), dtype=torch.bool, device=shares.device)
    return (squared * between).sum() / (pairs * between).sum().clamp(min=1)


def random_answered(batch: int, servers: int, dropout: float) -> Tensor:
    """Who answers in training: one server that is drawn for the image, and each other with probability 1 - dropout.

    Args:
        batch: Number of images.
        servers: Number of servers.
        dropout: Probability that an answer of the others is withheld.

    Returns:
        bool [batch, servers].
    """
    answered = per_image(lambda count: torch.rand(count, servers), batch) >= dropout
    somebody = per_image(lambda count: torch.randint(0, servers, (count,)), batch)
    answered[torch.arange(batch), somebody] = True
    return answered


def branches_alone(answers: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of the branches, each for itself.

    Lee et al., arXiv 1409.5185 (deep supervision): a classifier's loss on what lies below the one that counts.

    Args:
        answers: The servers' logits, float [batch, servers, classes].
        labels: int64 [batch], or uint8 [batch, attributes] of 0 and 1.
        label_smoothing: Of the cross-entropy.

    Returns:
        Scalar.
    """
    of_each = labels.repeat_interleave(answers.shape[1], dim=0)
    return F.cross_entropy(*choices(answers.flatten(0, 1), of_each), label_smoothing=label_smoothing)


def split_loss(
    fused: Tensor, student: Tensor, answers: Tensor, labels: Tensor, teacher: Tensor | None, config: LossConfig
) -> tuple[Tensor, Terms]:
    """The whole loss of the split model.

    Args:
        fused: Fused logits, float [batch, classes].
        student: Logits that are to come close to the teacher's, float [batch, classes].
        answers: The servers' logits, float [batch, servers, classes].
        labels: int64 [batch], or uint8 [batch, attributes] of 0 and 1.
        teacher: The teacher's logits, float [batch, classes]; None where distillation has no weight.
        config: Weights of the terms.

    Returns:
        The scalar to minimise, and the value of each term.
    """
    smoothing = config.label_smoothing
    terms = {
        "fused": F.cross_entropy(*choices(fused, labels), label_smoothing=smoothing),
        "auxiliary": branches_alone(answers, labels, smoothing),
    }
    total = terms["fused"] + config.auxiliary * terms["auxiliary"]
    if teacher is not None:
        temperature = config.distillation_temperature
        terms["distillation"] = distillation(choices(student, labels)[0], choices(teacher, labels)[0], temperature)
        total = total + config.distillation * terms["distillation"]
    return total, {name: value.detach() for name, value in terms.items()}
