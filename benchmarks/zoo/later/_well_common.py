"""Small pieces that the later well cases share: loaders, a dense net and a few scores."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.data import predict


def loader(*columns: Tensor, size: int = 64, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    """Batches of these columns, shuffled unless told otherwise."""
    return DataLoader(TensorDataset(*columns), batch_size=size, shuffle=shuffle, **options)


def stack(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with `act` between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def hit_rate(x: Any, y: Tensor) -> Callable[[Any], float]:
    """Score: share of rows whose largest output is their class."""
    return lambda m: (predict(m, x).argmax(-1) == y).float().mean().item()


def explained(x: Any, y: Tensor) -> Callable[[Any], float]:
    """Score: share of the variance of `y` that the outputs explain."""
    return lambda m: 1 - ((predict(m, x) - y) ** 2).mean().item() / y.var(unbiased=False).item()


def recall_mean(logits: Tensor, y: Tensor) -> float:
    """Recall averaged over the classes."""
    answer = logits.argmax(-1)
    return torch.stack([(answer[y == k] == k).float().mean() for k in y.unique()]).mean().item()
