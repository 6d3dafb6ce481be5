"""What the cases of this part's first author share: loaders, scores, a small tabular module and a weight keeper."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo.data import predict


class Records(Dataset[dict[str, Tensor]]):
    """Columns of equal length, given out as one dict a row."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.columns.items()}


class KeepBest(Callback):
    """Puts the weights of the epoch with the best monitored value back when the fit ends."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = float("inf")
        self.state: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or value.item() >= self.best:
            return
        self.best = value.item()
        self.state = copy.deepcopy(pl_module.state_dict())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.state is not None:
            pl_module.load_state_dict(self.state)


class Tabular(LightningModule):
    """A network, a loss and an optimizer over `(x, y)` batches."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Any], torch.optim.Optimizer],
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.criterion = loss
        self.make_optimizer = optimizer
        self.metric_name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        if self.metric_name:
            self.log(f"train_{self.metric_name}", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log(f"val_{self.metric_name or 'loss'}", self.criterion(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with `act` between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b)] + ([act()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def batches(*tensors: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    """Shuffled tuples."""
    return DataLoader(TensorDataset(*tensors), size, **{"shuffle": True, **options})


def balanced_accuracy(prediction: Tensor, y: Tensor) -> float:
    """Mean recall over the classes present in `y`."""
    hits = (prediction == y).float()
    return sum(hits[y == c].mean().item() for c in y.unique()) / len(y.unique())


def f1(prediction: Tensor, y: Tensor) -> float:
    """Of boolean masks, all entries together."""
    both = (prediction & y).sum().item()
    return 2 * both / max(1, prediction.sum().item() + y.sum().item())


def hit_rate(x: Any, y: Tensor) -> Callable[[LightningModule], float]:
    """A score: accuracy on fixed samples, 0 where the outputs are not finite."""

    def score(module: LightningModule) -> float:
        out = predict(module, x)
        if not torch.isfinite(out).all():
            return 0.0
        return (out.argmax(-1) == y).float().mean().item()

    return score


def explained(x: Any, y: Tensor) -> Callable[[LightningModule], float]:
    """A score: R2 on fixed samples, not below -1, and -1 where the outputs are not finite."""

    def score(module: LightningModule) -> float:
        out = predict(module, x).reshape(y.shape)
        if not torch.isfinite(out).all():
            return -1.0
        return max(-1.0, 1 - ((out - y).square().mean() / (y - y.mean(0)).square().mean()).item())

    return score
