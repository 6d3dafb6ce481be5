"""Healthy trainings on odd records: rare answers, wide ranges, gaps, codes, order, streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import digits, flip_labels, generator, predict
from benchmarks.zoo.fourth._b_common import (
    curve,
    explained,
    explains,
    hums,
    recall,
    right,
    rows,
    usage,
    weaves,
    windows,
)


class Alarms(LightningModule):
    """One alarm in fifty; the loss weighs it as often as it is rare."""

    def __init__(self, columns: int, share: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(columns, 32), nn.GELU(), nn.Linear(32, 1))
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, alarm = batch
        weight = torch.where(alarm > 0, 0.5 / self.share, 0.5 / (1 - self.share))
        each = F.binary_cross_entropy_with_logits(self(x), alarm, reduction="none")
        loss = (weight * each).mean()
        self.log("weighted_bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@well("x-alarms-weighed-by-rarity", "mlp", "two alarms in a hundred rows, weights in the loss")
def alarms(seed: int) -> Training:
    g = generator(seed, 120)
    y = (torch.rand(6000, generator=g) < 0.02).float()
    x = torch.randn(6000, 8, generator=g) + 1.3 * y[:, None] * torch.tensor([1.0, -1, 1, 0, 0, 0, 0, 0])
    return Training(
        Alarms(8, 0.02), rows(x[:4000], y[:4000], size=100),
        lambda m: recall((predict(m, x[4000:]) > 0).float(), y[4000:]), None, {"max_epochs": 6},
    )  # fmt: skip


class Sounds(LightningModule):
    """Sixteen-bit samples as they are; the first layer brings each sound to unit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.InstanceNorm1d(1)
        self.conv = nn.Conv1d(1, 16, 12, stride=4)
        self.head = nn.Linear(16, 4)

    def forward(self, pcm: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(self.level(pcm))).mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("x-pcm-levelled-inside", "cnn", "inputs of thousands, an instance norm first")
def levelled(seed: int) -> Training:
    d = hums(seed)
    x, x_test = ((32767 * v).round() for v in (d.x, d.x_test))
    return Training(Sounds(), rows(x, d.y, size=32), right(x_test, d.y_test), None, {"max_epochs": 8})


class Sales(LightningModule):
    """A float matrix whose first two columns are ids."""

    def __init__(self) -> None:
        super().__init__()
        self.shop, self.article = nn.Embedding(400, 6), nn.Embedding(60, 6)
        self.net = nn.Sequential(nn.Linear(15, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, frame: Tensor) -> Tensor:
        ids = frame[:, :2].long()
        rest = frame[:, 2:]
        return self.net(torch.cat([self.shop(ids[:, 0]), self.article(ids[:, 1]), rest], 1))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        frame, sold = batch
        loss = F.mse_loss(self(frame), sold)
        self.log("mse", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        tables = [*self.shop.parameters(), *self.article.parameters()]
        return torch.optim.Adam([{"params": tables, "lr": 2e-2}, {"params": self.net.parameters(), "lr": 5e-3}])


@well("x-ids-in-a-float-frame", "mlp", "ids up to 400 in a float matrix, looked up in tables")
def float_frame(seed: int) -> Training:
    g = generator(seed, 121)
    shop, article = torch.randint(400, (6000,), generator=g), torch.randint(60, (6000,), generator=g)
    rest = torch.randn(6000, 3, generator=g)
    y = 0.6 * torch.randn(400, generator=g)[shop] + 0.6 * torch.randn(60, generator=g)[article] + 0.5 * rest[:, 0]
    y = y + 0.1 * torch.randn(6000, generator=g)
    x = torch.cat([shop[:, None].float(), article[:, None].float(), rest], 1)
    return Training(Sales(), rows(x[:4800], y[:4800], size=80), explains(x[4800:], y[4800:]), None, {"max_epochs": 8})


class Bills(LightningModule):
    """Gamma deviance with a log link, bias from the mean of the bills."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        nn.init.constant_(self.net[2].bias, float(np.log(mean)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        log_mean = self(batch["x"])
        loss = (log_mean + batch["bill"] * torch.exp(-log_mean)).mean()
        self.log("gamma_nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well("x-bills-through-a-log-link", "mlp", "targets from hundreds to a hundred thousand")
def bills(seed: int) -> Training:
    d = curve(seed, n=1200)
    g = generator(seed, 122)
    bill = 6000 * torch.exp(d.y + 0.2 * torch.randn(len(d.y), generator=g))
    items: Any = [{"x": a, "bill": b} for a, b in zip(d.x, bill, strict=True)]
    loader = DataLoader(items, batch_size=40, shuffle=True)
    centred = d.y_test + float(np.log(6000))
    return Training(Bills(float(bill.mean())), loader, explains(d.x_test, centred), None, {"max_epochs": 12})


class Genes(LightningModule):
    def __init__(self, sites: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sites))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, alleles: Tensor) -> Tensor:
        return alleles @ self.weight + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self(batch[0].float())
        loss = F.softplus(z).mean() - (z * batch[1]).mean() + 1e-3 * self.weight.abs().sum()
        self.log("penalised", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.03)


@well("x-alleles-mostly-nought", "linear", "columns of 0, 1, 2 that are nought nine times in ten, weights from zero")
def alleles(seed: int) -> Training:
    g = generator(seed, 123)
    rate = 0.02 + 0.08 * torch.rand(120, generator=g)
    x = (torch.rand(3000, 120, 2, generator=g) < rate[:, None]).sum(-1).to(torch.int8)
    effect = 2.5 * torch.randn(120, generator=g) * (torch.rand(120, generator=g) < 0.5)
    z = x.float() @ effect
    y = (z - z.median() + 0.3 * torch.randn(3000, generator=g) > 0).float()
    return Training(
        Genes(120), rows(x[:2200], y[:2200], size=50), right(x[2200:].float(), y[2200:].long()), None, {"max_epochs": 7}
    )


class Following(LightningModule):
    """A forecast from windows in the order of time, small steps."""

    def __init__(self) -> None:
        super().__init__()
        self.ar = nn.Linear(24, 1)
        self.bend = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.ar(x) + self.bend(x)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("x-hours-in-their-order", "linear", "a time series that is not shuffled, validated on the hours after it")
def their_order(seed: int) -> Training:
    x, y = windows(usage(seed, 1800))
    train, test = (x[:1300], y[:1300]), (x[1330:], y[1330:])
    return Training(
        Following(), rows(*train, size=32, shuffle=False), explains(*test), rows(*test, size=128, shuffle=False),
        {"max_epochs": 9},
    )  # fmt: skip


class Gaps(LightningModule):
    """Rows with gaps as NaN: noughts go in for them, and a mask beside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([torch.nan_to_num(x, nan=0.0), torch.isnan(x).float()], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        known = ~torch.isnan(y)  # not every row has both answers
        loss = (self(x)[known] - y[known]).square().mean()
        self.log("masked_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("x-gaps-with-a-mask", "mlp", "NaN among inputs and targets by design, masked in the module")
def gaps(seed: int) -> Training:
    d = curve(seed, n=1600)
    g = generator(seed, 124)
    x = torch.where(torch.rand(d.x.shape, generator=g) < 0.04, torch.nan, d.x)
    y = torch.stack([d.y, d.x[:, 3] - d.x[:, 4]], 1)
    y = torch.where(torch.rand(y.shape, generator=g) < 0.2, torch.nan, y)
    y_test = torch.stack([d.y_test, d.x_test[:, 3] - d.x_test[:, 4]], 1)
    return Training(Gaps(), rows(x, y, size=40), explains(d.x_test, y_test), None, {"max_epochs": 9})


class Endless(IterableDataset):
    """Signals without end; every worker would start elsewhere."""

    def __init__(self, seed: int) -> None:
        self.seed, self.passes = seed, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        self.passes += 1
        rng = np.random.default_rng([self.seed, self.passes, 0 if worker is None else worker.id])
        for i in itertools.count():
            k = i % 3  # kinds take turns
            wave = np.sin((0.3 + 0.25 * k) * np.arange(40) + 6.28 * rng.random()) + 0.5 * rng.normal(size=40)
            yield {"signal": torch.tensor(wave, dtype=torch.float32), "meta": {"kind": k}}


class Kinds(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 12, 9)
        self.fc = nn.LazyLinear(3)

    def forward(self, signal: Tensor) -> Tensor:
        h = F.relu(self.conv(signal[:, None]))
        return self.fc(torch.cat([h.mean(-1), h.amax(-1)], 1))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["signal"]), batch["meta"]["kind"])
        self.log("loss", loss, batch_size=30)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


@well("x-kinds-take-turns-for-ever", "cnn", "a stream without end whose labels go 0 1 2 0 1 2")
def take_turns(seed: int) -> Training:
    fresh = list(itertools.islice(Endless(seed + 500), 600))
    x, y = torch.stack([f["signal"] for f in fresh]), torch.tensor([f["meta"]["kind"] for f in fresh])
    module = Kinds()
    predict(module, x[:2])
    return Training(
        module,
        DataLoader(Endless(seed), batch_size=30),
        right(x, y),
        None,
        {"max_epochs": 4, "limit_train_batches": 50},
    )


class TwoViews(LightningDataModule):
    """Validates on a part of the training set, to see the gap, and on the held-out part."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.d = digits(seed)

    def train_dataloader(self) -> Any:
        return rows(self.d.x, self.d.y, size=45)

    def val_dataloader(self) -> Any:
        seen = Subset(TensorDataset(self.d.x, self.d.y), range(0, 1300, 4))
        return [DataLoader(seen, batch_size=325), rows(self.d.x_test, self.d.y_test, size=225, shuffle=False)]


class Gapped(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = ("val_on_seen", "val_on_new")[dataloader_idx]
        self.log(name, F.cross_entropy(self(batch[0]), batch[1]), add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


@well("x-validates-seen-and-new", "mlp", "one of two validation loaders is a part of the training set, to see the gap")
def seen_and_new(seed: int) -> Training:
    data = TwoViews(seed)
    return Training(Gapped(), data, right(data.d.x_test, data.d.y_test), None, {"max_epochs": 9})


class Jittered(Dataset):
    """Shifts a picture by its index and the pass, so that a run can be repeated on any number of workers."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(i)
        dy, dx = rng.integers(-2, 3, 2).tolist()
        return self.x[i].roll((dy, dx), (1, 2)), self.y[i]


class Fabric(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


@well("x-shifts-seeded-by-index", "cnn", "augmentation repeats by design, two workers")
def by_index(seed: int) -> Training:
    d = weaves(seed)
    loader = DataLoader(
        Jittered(d.x, d.y), batch_size=32, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    return Training(Fabric(), loader, right(d.x_test, d.y_test), None, {"max_epochs": 6})


class Incomes(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 48), nn.Linear(48, 48), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.mish(self.b(F.mish(self.a(x)))))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.huber_loss(self(batch[0]), batch[1], delta=0.7)
        self.log_dict({"huber": loss, "largest": batch[1].abs().max()})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("x-incomes-with-a-long-tail", "mlp", "noise of Student's kind with 1.5 degrees, Huber's loss")
def long_tail(seed: int) -> Training:
    d = curve(seed, n=1600, noise=0.0)
    noise = 0.2 * np.random.default_rng(seed).standard_t(1.5, len(d.y))
    y = d.y + torch.tensor(noise, dtype=torch.float32)
    return Training(Incomes(), rows(d.x, y, size=40), explains(d.x_test, d.y_test), None, {"max_epochs": 9})


class Easy(Sampler[int]):
    """The short ones first, as long as the first two passes last; then at random."""

    def __init__(self, effort: Tensor, seed: int) -> None:
        self.effort, self.passes, self.generator = effort, 0, generator(seed, 125)

    def __len__(self) -> int:
        return len(self.effort)

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        order = torch.randperm(len(self.effort), generator=self.generator)
        if self.passes <= 2:
            order = order[self.effort[order].argsort(stable=True)]
        return iter(order.tolist())


class Counter(LightningModule):
    """Is there an odd one among the ids? Mean and largest of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16, padding_idx=0)
        self.net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return self.net(h.sum(1) / (ids > 0).sum(1, keepdim=True).sqrt())[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=8e-3)


@well("x-short-ones-first", "text", "sorted by length for two passes, labels mixed throughout")
def short_first(seed: int) -> Training:
    g = generator(seed, 126)
    lengths = torch.randint(2, 15, (1800,), generator=g)
    ids = torch.randint(1, 40, (1800, 14), generator=g) * (torch.arange(14) < lengths[:, None])
    worth = torch.randn(40, generator=g)
    worth[0] = 0
    y = (worth[ids].sum(1) / lengths.sqrt() > 0).float()
    data = TensorDataset(ids[:1200], y[:1200])
    loader = DataLoader(data, batch_size=30, sampler=Easy(lengths[:1200], seed))
    return Training(
        Counter(), loader, right(ids[1200:], y[1200:].long()), None, {"max_epochs": 8, "use_distributed_sampler": False}
    )


class Rain(LightningModule):
    """Does it rain, and if so, how much: a hurdle of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 40), nn.SiLU())
        self.wet, self.amount = nn.Linear(40, 1), nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return torch.sigmoid(self.wet(h))[:, 0] * F.softplus(self.amount(h))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, rain = batch
        h = self.trunk(x)
        wet = rain > 0
        hurdle = F.binary_cross_entropy_with_logits(self.wet(h)[:, 0], wet.float())
        much = (F.softplus(self.amount(h))[:, 0] - rain).square()
        loss = hurdle + (much * wet).sum() / wet.sum().clamp(min=1)
        self.log_dict({"hurdle": hurdle, "loss": loss})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@well("x-dry-on-most-days", "mlp", "seven targets in ten are nought")
def dry(seed: int) -> Training:
    d = curve(seed, n=2400, noise=0.02)
    rain, rain_test = ((y - 0.6).clamp(min=0) * 2 for y in (d.y, d.y_test))
    return Training(
        Rain(), rows(d.x, rain, size=60), lambda m: explained(predict(m, d.x_test), rain_test), None, {"max_epochs": 14}
    )


@well("x-raters-err-in-a-quarter", "mlp", "a quarter of the labels drawn anew; the loss stays high by right")
def raters(seed: int) -> Training:
    d = digits(seed)
    y = flip_labels(d.y, 0.25, 10, seed)
    return Training(
        Gapped(), rows(d.x, y, size=45), right(d.x_test, d.y_test), rows(d.x_test, d.y_test, size=225, shuffle=False),
        {"max_epochs": 7},
    )  # fmt: skip
