"""Columns that are not what the model takes them for, classes that outweigh, and samples that do not belong."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, generator, motifs, predict, r2, regression
from benchmarks.zoo.fourteenth.b_common import Fit, Logged, adam, batches, epochs, mlp, recalls, sgd

# --- rents by district


def rents(seed: int, dummies: bool) -> Training:
    g = generator(seed, 11)
    n, cut = 2400, 1800
    district = torch.randint(12, (n,), generator=g)
    z = torch.randn(n, 4, generator=g)
    level = torch.tensor([1.6, -1.2, 0.9, -0.3, 1.4, -1.7, 0.2, 1.1, -0.8, 1.5, -1.4, 0.0])
    level = level[torch.randperm(12, generator=g)]
    y = (0.5 * z[:, 0] - 0.4 * z[:, 1] + level[district] + 0.25 * torch.randn(n, generator=g))[:, None]
    y = y - y.mean()
    place = F.one_hot(district, 12).float() if dummies else district.float()[:, None]
    x = torch.cat([z, place], 1)
    model = Logged(mlp(x.shape[1], 32, 1), F.mse_loss, adam(5e-3))
    val = batches(x[cut:], y[cut:], size=200, shuffle=False)
    return Training(
        model, batches(x[:cut], y[:cut], size=60), lambda m: r2(predict(m, x[cut:]), y[cut:]), val, epochs(8)
    )


@sick("pa-rents-district", "tabular", "categorical-as-numeric", twin=lambda s: rents(s, True))
def rents_district(seed: int) -> Training:
    return rents(seed, False)


# --- promoter or not: four letters


class Motif(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, 8, 4)
        self.out = nn.Linear(8, 2)

    def forward(self, strand: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(strand)).amax(-1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        strand, label = batch
        loss = F.cross_entropy(self(strand), label)
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def promoters(seed: int, letters: bool) -> Training:
    g = generator(seed, 12)
    n, cut = 2400, 1800
    strand = torch.randint(4, (n, 30), generator=g)
    y = torch.randint(2, (n,), generator=g)
    start = torch.randint(26, (n,), generator=g)
    planted, decoy = torch.tensor([2, 0, 2, 1]), torch.tensor([1, 3, 1, 2])
    for i in range(n):
        strand[i, start[i] : start[i] + 4] = planted if y[i] else decoy
    x = F.one_hot(strand, 4).float().transpose(1, 2) if letters else strand.float()[:, None]
    return Training(
        Motif(x.shape[1]), batches(x[:cut], y[:cut], size=40), lambda m: accuracy(predict(m, x[cut:]), y[cut:]), None,
        epochs(8),
    )  # fmt: skip


@sick("pa-promoter-letters", "sequence", "categorical-as-numeric", twin=lambda s: promoters(s, True))
def promoters_numbers(seed: int) -> Training:
    return promoters(seed, False)


# --- shapes in short series, each series standardised on its own


class Shapes(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x.transpose(1, 2)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        self.log("acc", (out.argmax(1) == y).float().mean())
        return F.cross_entropy(out, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Series(LightningDataModule):
    def __init__(self, seed: int, axis: int) -> None:
        super().__init__()
        self.cut = motifs(seed, n=1600)
        self.axis = axis

    def scale(self, x: Tensor) -> Tensor:
        mean = x.mean(self.axis, keepdim=True)
        std = x.std(self.axis, keepdim=True, correction=0)
        return (x - mean) / (std + 1e-6)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.scale(self.cut.x), self.cut.y), 32, shuffle=True)


def series(seed: int, axis: int) -> Training:
    data = Series(seed, axis)
    held = data.scale(data.cut.x_test)
    return Training(
        Shapes(), data.train_dataloader(), lambda m: accuracy(predict(m, held), data.cut.y_test), None, epochs(6)
    )


@sick("pa-series-last-axis", "time series", "constant-inputs", twin=lambda s: series(s, 1))
def series_last_axis(seed: int) -> Training:
    return series(seed, -1)


# --- a table joined with a second one by customer


def joined(seed: int, own_row: bool) -> Training:
    cut = regression(seed, r2=0.9, n=1800, columns=8, n_test=900)

    def join(x: Tensor) -> Tensor:
        right = x[:, 3:] if own_row else x[0, 3:].expand(len(x), -1)
        return torch.cat([x[:, :3], right], 1)

    x, held = join(cut.x), join(cut.x_test)
    model = Logged(mlp(8, 48, 24, 1), F.mse_loss, lambda p: torch.optim.AdamW(p, 4e-3))
    val = batches(held, cut.y_test, size=300, shuffle=False)
    return Training(model, batches(x, cut.y, size=60), lambda m: r2(predict(m, held), cut.y_test), val, epochs(8))


@sick("pa-join-first-row", "tabular", "constant-inputs", twin=lambda s: joined(s, True))
def joined_first_row(seed: int) -> Training:
    return joined(seed, False)


# --- claims, few of them false


class Claim(NamedTuple):
    features: Tensor
    false: Tensor


class Claims(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Claim, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch.features), batch.false)
        self.log("loss_tr", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3, weight_decay=1e-3)


def claims(seed: int, balanced: bool) -> Training:
    g = generator(seed, 13)
    n, cut = 9000, 6000
    y = (torch.rand(n, generator=g) < 0.025).long()
    side = torch.randn(10, generator=g)
    x = torch.randn(n, 10, generator=g) + 1.7 * y[:, None] * side / side.norm()
    rows = [Claim(a, b) for a, b in zip(x[:cut], y[:cut], strict=True)]
    sampler = None
    if balanced:
        weight = torch.where(y[:cut] == 1, 1 / (y[:cut] == 1).sum(), 1 / (y[:cut] == 0).sum())
        sampler = WeightedRandomSampler(weight.tolist(), cut)
    loader = DataLoader(rows, 100, shuffle=sampler is None, sampler=sampler)  # type: ignore[arg-type]
    return Training(Claims(), loader, lambda m: recalls(predict(m, x[cut:]).argmax(1), y[cut:]), None, epochs(4))


@sick("pa-claims-plain", "tabular", "class-imbalance", twin=lambda s: claims(s, True))
def claims_plain(seed: int) -> Training:
    return claims(seed, False)


# --- small spots on large plates


def spots(seed: int, weight: float | None) -> Training:
    g = generator(seed, 14)
    n, cut, side = 500, 350, 20
    row, col = torch.randint(1, side - 1, (n,), generator=g), torch.randint(1, side - 1, (n,), generator=g)
    y = torch.zeros(n, 1, side, side)
    for dr, dc in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
        y[torch.arange(n), 0, row + dr, col + dc] = 1
    x = 0.9 * y + torch.randn(n, 1, side, side, generator=g)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    criterion = nn.BCEWithLogitsLoss(pos_weight=None if weight is None else torch.tensor(weight))
    return Training(
        Fit(net, criterion, adam(1e-2)),
        batches(x[:cut], y[:cut], size=25),
        lambda m: recalls((predict(m, x[cut:]) > 0).long().flatten(), y[cut:].long().flatten()),
        None,
        epochs(10),
    )


@sick("pa-spots-unweighted", "segmentation", "class-imbalance", twin=lambda s: spots(s, 75.0))
def spots_unweighted(seed: int) -> Training:
    return spots(seed, None)


# --- measured parts, a few of them in another unit


def parts(seed: int, checked: bool) -> Training:
    cut = regression(seed, r2=0.9, n=1200, columns=6, n_test=800)
    x = cut.x.clone()
    odd = torch.randperm(len(x), generator=generator(seed, 15))[:8]
    x[odd] = x[odd] * 1000
    keep = x.abs().amax(1) < 20 if checked else torch.ones(len(x), dtype=torch.bool)
    model = Fit(mlp(6, 48, 1), F.mse_loss, sgd(0.02))
    return Training(
        model,
        batches(x[keep], cut.y[keep], size=30),
        lambda m: r2(predict(m, cut.x_test), cut.y_test),
        None,
        epochs(8, gradient_clip_val=5.0),
    )


@sick("pa-parts-other-unit", "tabular", "corrupt-samples", twin=lambda s: parts(s, True))
def parts_unit(seed: int) -> Training:
    return parts(seed, False)


# --- ages from a short signal, where 999 stands for unknown


class Age(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 20, batch_first=True)
        self.out = nn.Linear(20, 1)

    def forward(self, signal: Tensor) -> Tensor:
        return self.out(self.rnn(signal)[1][0])[:, 0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["signal"]), (batch["age"] - 45) / 15)
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def ages(seed: int, known: bool) -> Training:
    g = generator(seed, 16)
    n, cut = 1800, 1300
    z = torch.randn(n, 2, generator=g)
    signal = z[:, None] * torch.tensor([1.0, 0.6]) + 0.5 * torch.randn(n, 12, 2, generator=g)
    age = 45 + 15 * (0.8 * z[:, 0] + 0.6 * torch.sin(2 * z[:, 1]) + 0.2 * torch.randn(n, generator=g))
    asked = age[:cut].clone()
    asked[torch.randperm(cut, generator=g)[:9]] = 999.0
    rows = [{"signal": s, "age": a} for s, a in zip(signal[:cut], asked, strict=True) if not known or a < 200]
    return Training(
        Age(),
        DataLoader(rows, 32, shuffle=True),  # type: ignore[arg-type]
        lambda m: r2(predict(m, signal[cut:]), (age[cut:] - 45) / 15),
        None,
        epochs(7),
    )


@sick("pa-age-999", "signal", "corrupt-samples", twin=lambda s: ages(s, True))
def ages_999(seed: int) -> Training:
    return ages(seed, False)
