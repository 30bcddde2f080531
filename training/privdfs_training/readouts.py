"""Linear readouts: what a linear map of the shares can tell, so that one sees what the branches are worth.

If it told as much as the branches, the servers would do nothing for the device, which could run the map itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ITERATIONS = 100


def linear_readouts(
    shares: Sequence[Tensor], labels: Tensor, shares_test: Sequence[Tensor], labels_test: Tensor, classes: int
) -> float:
    """Accuracy when every branch is a linear map of its share, by the better of two ways to train and fuse them.

    One map per server, each trained alone and fused by the mean of the log-probabilities; and one map of all shares
    together, which is a map per server, trained together and fused by a sum. Logistic regression, by L-BFGS.

    Args:
        shares: One per server: int8 [training images, values].
        labels: int64 [training images].
        shares_test: One per server: int8 [test images, values].
        labels_test: int64 [test images].
        classes: Number of classes.

    Returns:
        Fraction of the test images.
    """
    alone = torch.stack(
        [
            _readout(share, labels, test, classes).log_softmax(dim=1)
            for share, test in zip(shares, shares_test, strict=True)
        ]
    ).mean(dim=0)
    together = _readout(torch.cat(list(shares), dim=1), labels, torch.cat(list(shares_test), dim=1), classes)
    return max(float((scores.argmax(dim=1) == labels_test).double().mean()) for scores in (alone, together))


def _readout(values: Tensor, labels: Tensor, values_test: Tensor, classes: int) -> Tensor:
    """Logits float [test images, classes] of a logistic regression."""
    values = values.float()
    middle, spread = values.mean(dim=0), values.std(dim=0).clamp(min=1e-6)  # a value that never changes tells nothing
    values = (values - middle) / spread
    readout = nn.Linear(values.shape[1], classes)
    nn.init.zeros_(readout.weight)
    nn.init.zeros_(readout.bias)
    optimiser = torch.optim.LBFGS(readout.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(readout(values), labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return readout((values_test.float() - middle) / spread)
