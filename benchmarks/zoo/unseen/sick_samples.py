"""Samples that are missing, broken, or stand in an order or a share that hurts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    adam,
    balanced_accuracy,
    batches,
    conv_net,
    dense,
    dicts,
    friedman,
    held_out,
    series,
    sgd,
    shapes,
)

# --- missing ----------------------------------------------------------------------------------------------------------


@sick("u-spreadsheet-with-gaps", "mlp", "nonfinite-inputs", twin=lambda s: gaps(s, 0.0))
def gaps(seed: int, fill: float = float("nan")) -> Training:
    d = friedman(seed)
    lost = torch.rand(len(d.x), generator=generator(seed, 43)) < 0.01
    x = d.x.clone()
    x[lost, 4] = fill
    return Training(Fit(dense(10, 32, 1), F.mse_loss, adam(3e-3)), batches(x, d.y), d.r2, None, {"max_epochs": 8})


@sick("u-log-of-zero-counts", "gru", "nonfinite-inputs", twin=lambda s: log_counts(s, 1.0))
def log_counts(seed: int, offset: float = 0.0) -> Training:
    d = series(seed)
    counts = [(10 * (x + 1.4)).clamp(min=0).round() for x in (d.x, d.x_test)]
    counts[0][torch.rand(counts[0].shape, generator=generator(seed, 44)) < 0.002] = 0
    x = torch.log(counts[0] + offset) - 2.5
    module = Fit(Recurrent(nn.GRU, 1, 20, 1), F.l1_loss, adam(5e-3))
    score = Split(x, d.y, torch.log(counts[1].clamp(min=1) + offset) - 2.5, d.y_test).r2
    return Training(module, batches(x, d.y), score, trainer={"max_epochs": 8, "gradient_clip_val": 1.0})


# --- broken -----------------------------------------------------------------------------------------------------------


@sick("u-broken-sensor", "mlp", "corrupt-samples", twin=lambda s: broken_sensor(s, 1.0))
def broken_sensor(seed: int, factor: float = 3e4) -> Training:
    d = friedman(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=generator(seed, 45))[:6]] *= factor
    module = Fit(dense(10, 48, 1), F.mse_loss, sgd(0.05, momentum=0.9))
    return Training(module, batches(x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 10})


@sick("u-target-99999", "mlp", "corrupt-samples", twin=lambda s: sentinel(s, None))
def sentinel(seed: int, value: float | None = 99_999.0) -> Training:
    d = friedman(seed)
    y = d.y.clone()
    if value is not None:
        y[torch.randperm(len(y), generator=generator(seed, 46))[:8]] = value
    return Training(Fit(dense(10, 48, 1), F.mse_loss, adam(5e-3)), batches(d.x, y), d.r2, None, {"max_epochs": 10})


@sick("u-overflown-pictures", "cnn", "corrupt-samples", twin=lambda s: overflown(s, False))
def overflown(seed: int, broken: bool = True) -> Training:
    d = shapes(seed)
    x = d.x.clone()
    if broken:
        x[torch.randperm(len(x), generator=generator(seed, 47))[:9]] = 65_535.0
    module = Fit(conv_net(), F.cross_entropy, sgd(0.05, momentum=0.9))
    return Training(module, batches(x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 8})


# --- shares -----------------------------------------------------------------------------------------------------------


def rare(seed: int, share: float, distance: float, n: int = 2500, columns: int = 8) -> Split:
    """Two clouds `distance` apart, the second one with this share of the rows."""
    g = generator(seed, 48)
    y = (torch.rand(2 * n, generator=g) < share).long()
    x = torch.randn(2 * n, columns, generator=g)
    x[:, :2] += distance / 2**0.5 * y[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


@sick("u-fraud-two-percent", "mlp", "class-imbalance", twin=lambda s: fraud(s, 50.0))
def fraud(seed: int, weight: float = 1.0) -> Training:
    d = rare(seed, 0.02, 1.5)

    def loss(logit: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logit[:, 0], y.float(), pos_weight=torch.tensor(weight))

    module = Fit(dense(8, 24, 1), loss, adam(2e-3))
    score = lambda m: balanced_accuracy(m, d.x_test, d.y_test, lambda z: (z[:, 0] > 0).long())  # noqa: E731
    return Training(module, batches(d.x, d.y, 64), score, held_out(d.x_test, d.y_test), {"max_epochs": 8})


@sick("u-one-kind-in-five-at-94", "mlp", "class-imbalance", twin=lambda s: five_kinds(s, True))
def five_kinds(seed: int, weighted: bool = False) -> Training:
    shares = torch.tensor([0.94, 0.015, 0.015, 0.015, 0.015])
    d = data.blobs(seed, classes=5, columns=10, n=2500, spread=1.4, shares=shares)
    weight = 0.2 / shares if weighted else None
    module = Fit(nn.Linear(10, 5), nn.CrossEntropyLoss(weight=weight), adam(5e-3))
    score = lambda m: balanced_accuracy(m, d.x_test, d.y_test, lambda z: z.argmax(1))  # noqa: E731
    return Training(module, batches(d.x, d.y, 50), score, None, {"max_epochs": 8})


class Lesions(LightningModule):
    """Finds one faint pixel in a hundred and forty-four."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1))
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch["scan"]), batch["mask"], pos_weight=self.weight)
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("u-lesions-one-pixel", "segmentation", "class-imbalance", twin=lambda s: lesions(s, 140.0))
def lesions(seed: int, weight: float = 1.0) -> Training:
    g = generator(seed, 49)
    mask = F.one_hot(torch.randint(144, (700,), generator=g), 144).float().view(-1, 1, 12, 12)
    scan = torch.randn(700, 1, 12, 12, generator=g) + 2.0 * mask
    train = dicts(scan=scan[:500], mask=mask[:500])
    truth = mask[500:].long()
    score = lambda m: balanced_accuracy(m, scan[500:], truth, lambda z: (z > 0).long())  # noqa: E731
    return Training(Lesions(weight), train, score, trainer={"max_epochs": 15})


# --- order ------------------------------------------------------------------------------------------------------------


@sick("u-digits-in-order", "mlp", "unshuffled-data", twin=lambda s: in_order(s, True))
def in_order(seed: int, shuffle: bool = False) -> Training:
    d = data.digits(seed)
    order = d.y.argsort(stable=True)
    train = DataLoader(TensorDataset(d.x[order], d.y[order]), batch_size=32, shuffle=shuffle)
    return Training(Fit(dense(64, 64, 10), F.cross_entropy, sgd(0.1)), train, d.accuracy, d.val(), {"max_epochs": 6})


class ByFolder(Sampler[int]):
    """Indices folder by folder, as a walk over directories gives them."""

    def __init__(self, y: Tensor, mixed: bool) -> None:
        self.y, self.mixed = y, mixed

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.y)) if self.mixed else self.y.argsort(stable=True)
        return iter(order.tolist())


@sick("u-walks-folder-by-folder", "cnn", "unshuffled-data", twin=lambda s: by_folder(s, True))
def by_folder(seed: int, mixed: bool = False) -> Training:
    d = shapes(seed)
    train = DataLoader(TensorDataset(d.x, d.y), batch_size=25, sampler=ByFolder(d.y, mixed))
    module = Fit(conv_net(), F.cross_entropy, sgd(0.03, momentum=0.9))
    return Training(module, train, d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


class Streamed(Dataset[Any]):
    """Rows sorted by the target, as an ORDER BY leaves them."""

    def __init__(self, d: Split) -> None:
        order = d.y[:, 0].argsort()
        self.x, self.y = d.x[order], d.y[order]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


@sick("u-order-by-price", "mlp", "unshuffled-data", twin=lambda s: order_by(s, True))
def order_by(seed: int, shuffle: bool = False) -> Training:
    d = friedman(seed)
    train: Any = DataLoader(Streamed(d), batch_size=20, shuffle=shuffle)
    module = Fit(dense(10, 48, 1), F.mse_loss, sgd(0.05))
    return Training(module, train, d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 8})
