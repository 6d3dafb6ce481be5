"""A loss of pairs is known by its graph: a constant model reaches log 2 on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stall.measure.losses import Labels, recognise_pairs

NET = nn.Linear(3, 1)
A, B = torch.randn(6, 3), torch.randn(6, 3)


def ahead() -> Tensor:
    return NET(A) - NET(B)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: F.softplus(-ahead()).mean(),
        lambda: F.softplus(-ahead().squeeze(1) / 2).mean(),
        lambda: -F.logsigmoid(ahead()).mean(),
        lambda: (-F.logsigmoid(ahead())).mean(),
        lambda: -torch.log(torch.sigmoid(ahead()) + 1e-10).mean(),
    ],
)
def test_pairs_have_the_level_of_a_coin(loss) -> None:
    value = loss()
    seen = recognise_pairs(value)
    assert seen is not None
    labels = Labels()
    labels.update(seen)
    labels.calibrate(seen, value.item())
    labels.calibrate(seen, value.item())
    assert labels.baseline() == pytest.approx(math.log(2))
    assert labels.factor == pytest.approx(1.0)


def test_a_multiple_has_a_multiple_of_it() -> None:
    value = 3 * F.softplus(-ahead()).mean()
    seen = recognise_pairs(value)
    assert seen is not None
    labels = Labels()
    labels.update(seen)
    for _ in range(2):
        labels.calibrate(seen, value.item())
    assert labels.baseline() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize(
    "loss",
    [
        lambda: F.softplus(-NET(A)).mean(),  # one answer, not two: a constant one may go on for ever
        lambda: F.softplus(-(NET(A) - B[:, :1])).mean(),  # what it is set beside is no answer of the model
        lambda: F.logsigmoid(ahead()).mean(),  # the wrong way up
        lambda: F.softplus(-ahead()).sum(),
        lambda: F.softplus(-ahead(), beta=2).mean(),
        lambda: -torch.log(ahead().abs()).mean(),
        lambda: F.mse_loss(NET(A), NET(B)),
    ],
)
def test_what_looks_like_pairs_and_is_not(loss) -> None:
    assert recognise_pairs(loss()) is None
