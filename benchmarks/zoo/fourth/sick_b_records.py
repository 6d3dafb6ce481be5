"""Trainings that go wrong by the records they are fed with: gaps, units, codes, columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_wine
from sklearn.preprocessing import PolynomialFeatures
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import generator, predict, split
from benchmarks.zoo.fourth._b_common import (
    curve,
    explained,
    explains,
    hums,
    right,
    rows,
    solids,
    tickets,
    usage,
    weaves,
    windows,
)


class LoadForecaster(LightningModule):
    """One GRU layer over a day of hours."""

    def __init__(self, hidden: int = 24, lr: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rnn = nn.GRU(1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x.unsqueeze(-1))
        return self.out(h[-1]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


@sick("x-meter-reindexed-to-hours", "rnn", "nonfinite-inputs", twin=lambda s: meter(s, fill=True))
def meter(seed: int, fill: bool = False) -> Training:
    series = usage(seed).numpy().copy()
    g = np.random.default_rng(seed)
    for start in g.integers(100, 1100, 3):
        series[start : start + 4] = np.nan  # hours that the meter did not send
    if fill:
        index = np.where(np.isnan(series), 0, np.arange(len(series)))
        series = series[np.maximum.accumulate(index)]
    x, y = windows(torch.tensor(series))
    keep = torch.isfinite(y)  # there must be something to forecast
    x, y = x[keep], y[keep]
    train, test = (x[:1200], y[:1200]), (x[1260:], y[1260:])
    return Training(
        LoadForecaster(),
        rows(*train, size=40),
        explains(*test),
        rows(*test, size=128, shuffle=False),
        {"max_epochs": 6},
    )


class Bank(LightningModule):
    """Convolutions over a bank of bands, as one does with spectrograms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(33, 24, 3, padding=1)
        self.conv2 = nn.Conv1d(24, 24, 3, padding=1)
        self.fc = nn.Linear(24, 4)

    def forward(self, s: Tensor) -> Tensor:
        h = F.relu(self.conv2(F.relu(self.conv1(s))))
        return self.fc(h.amax(-1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch["spec"])
        loss = F.cross_entropy(logits, batch["label"])
        return {"loss": loss, "acc": (logits.argmax(-1) == batch["label"]).float().mean()}

    def configure_optimizers(self) -> dict[str, Any]:
        return {"optimizer": torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-4)}


def spectrogram(x: Tensor, floor: float) -> Tensor:
    power = torch.stft(x[:, 0], 64, 16, window=torch.hann_window(64), return_complex=True).abs().square()
    return (10 * torch.log10(power + floor)) / 20


@sick("x-clips-in-decibels", "cnn", "nonfinite-inputs", twin=lambda s: decibels(s, 1e-4))
def decibels(seed: int, floor: float = 0.0) -> Training:
    d = hums(seed)
    x = d.x.clone()
    x[::150, :, 70:] = 0  # clips shorter than the others are padded
    spec = spectrogram(x, floor)
    items: Any = [{"spec": a, "label": b} for a, b in zip(spec, d.y, strict=True)]
    loader = DataLoader(items, batch_size=30, shuffle=True)
    return Training(
        Bank(), loader, right(spectrogram(d.x_test, 1e-4), d.y_test), None, {"max_epochs": 6, "log_every_n_steps": 10}
    )


def molecules(seed: int, n: int, nodes: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Atom codes (N, nodes), bonds (N, nodes, nodes), degrees as they are, and an energy of atoms and bonds."""
    g = generator(seed, 77)
    kinds = torch.randint(8, (n, nodes), generator=g)
    bonds = (torch.rand(n, nodes, nodes, generator=g) < 0.28).float().triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    own = torch.tensor([1.1, -0.9, 0.2, -1.4, 1.6, -0.3, 0.8, -1.1])
    charge = torch.tensor([0.9, -0.8, -0.9, 0.7, -0.6, 0.9, -0.8, 0.6])[kinds]
    energy = own[kinds].sum(1) + 0.4 * (bonds * charge[:, None] * charge[:, :, None]).sum((1, 2))
    energy = (energy - energy.mean()) / energy.std() + 0.05 * torch.randn(n, generator=g)
    return kinds, bonds, bonds.sum(2), energy


class GraphNet(LightningModule):
    def __init__(self, features: int = 8, width: int = 32, lr: float = 4e-3) -> None:
        super().__init__()
        self.lr = lr
        self.enter = nn.Linear(features, width)
        self.mix = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.leave = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        h, adjacency = graph
        h = F.elu(self.enter(h))
        for layer in self.mix:
            h = h + F.elu(layer(torch.cat([h, adjacency @ h], -1)))
        return self.leave(h).sum((1, 2)) / 3

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        nodes, adjacency, energy = batch
        return F.mse_loss(self((nodes, adjacency)), energy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]


def normalised(bonds: Tensor, degree: Tensor) -> Tensor:
    scale = degree.pow(-0.5)
    return scale[:, :, None] * bonds * scale[:, None]


@sick("x-adjacency-normalised-once", "graph", "nonfinite-inputs", twin=lambda s: adjacency(s, loops=True))
def adjacency(seed: int, loops: bool = False) -> Training:
    kinds, bonds, degree, energy = molecules(seed, 1400)
    apart = (degree == 0).any(1)
    part = torch.cat([torch.arange(1400)[~apart], torch.arange(1400)[apart][:6]])  # a few hold an atom on its own
    bonds, degree, kinds, energy = bonds[part], degree[part], kinds[part], energy[part]
    if loops:
        bonds = bonds + torch.eye(9)
        degree = degree + 1
    nodes, adj = F.one_hot(kinds, 8).float(), normalised(bonds, degree)
    cut = 300  # those for the test come from the front, where no atom is alone
    module = GraphNet()
    return Training(
        module,
        rows(nodes[cut:], adj[cut:], energy[cut:], size=32),
        lambda m: explained(predict(m, (nodes[:cut], adj[:cut])), energy[:cut]),
        trainer={"max_epochs": 20, "gradient_clip_val": 1.0},
    )


class Waveform(LightningModule):
    """Strided convolutions on the raw wave."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 16, stride=4),
            nn.ReLU(),
            nn.Conv1d(16, 24, 8, stride=2),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, label = batch
        loss = F.cross_entropy(self(wave), label)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


class Recordings(Dataset):
    """Sixteen-bit samples as they lie in the files."""

    def __init__(self, pcm: Tensor, labels: Tensor, full_scale: float) -> None:
        self.pcm, self.labels, self.full_scale = pcm, labels, full_scale

    def __len__(self) -> int:
        return len(self.pcm)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.pcm[i].float() / self.full_scale, self.labels[i]


@sick("x-pcm-straight-from-the-file", "cnn", "unscaled-inputs", twin=lambda s: pcm(s, 32768.0))
def pcm(seed: int, full_scale: float = 1.0) -> Training:
    d = hums(seed)
    stored = (d.x * 32767).to(torch.int16)
    test = (d.x_test * 32767).to(torch.int16).float() / full_scale
    loader = DataLoader(Recordings(stored, d.y, full_scale), batch_size=36, shuffle=True)
    return Training(Waveform(), loader, right(test, d.y_test), None, {"max_steps": 240, "max_epochs": -1})


class PointNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.ELU(), nn.Linear(32, 48), nn.ELU())
        self.all = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, cloud: Tensor) -> Tensor:
        return self.all(self.each(cloud).amax(1))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["scan"]["xyz"]), batch["kind"], label_smoothing=0.02)
        self.log_dict({"loss": loss, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.8)


@sick("x-laser-scans-in-millimetres", "set", "unscaled-inputs", twin=lambda s: laser(s, True))
def laser(seed: int, scaled: bool = False) -> Training:
    d = solids(seed, n=900)
    desk = torch.tensor([4100.0, 2600.0, 1150.0])
    scans, test = (900 * x + desk for x in (d.x, d.x_test))
    if scaled:
        scans, test = ((x - desk) / 450 for x in (scans, test))
    items: Any = [{"scan": {"xyz": x, "time": i}, "kind": k} for i, (x, k) in enumerate(zip(scans, d.y, strict=True))]
    loader = DataLoader(items, batch_size=25, shuffle=True, drop_last=True)
    return Training(PointNet(), loader, right(test, d.y_test), None, {"max_epochs": 11})


class TileNet(LightningModule):
    """Two convolutions, mean over the tile, logistic head; SGD with a schedule per epoch."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3), nn.ReLU()
        )
        self.classifier = nn.Linear(24, 4)

    def forward(self, tile: Tensor) -> Tensor:
        return self.classifier(self.features(tile).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tile, crop = batch
        return nn.functional.cross_entropy(self(tile), crop)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        tile, crop = batch
        logits = self(tile)
        self.log("val_acc", (logits.argmax(1) == crop).float().mean())
        self.log("val_loss", nn.functional.cross_entropy(logits, crop))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class Fields(LightningDataModule):
    def __init__(self, seed: int, factor: float) -> None:
        super().__init__()
        self.seed, self.factor = seed, factor

    def setup(self, stage: str) -> None:
        d = weaves(self.seed, noise=0.4)
        both = [torch.cat([x, 0.3 * x.flip(1)], 1) * 3000 for x in (d.x, d.x_test)]  # stored as integers
        self.train, self.test = ((x.round() * self.factor, y) for x, y in zip(both, (d.y, d.y_test), strict=True))

    def train_dataloader(self) -> Any:
        return rows(*self.train, size=40)

    def val_dataloader(self) -> Any:
        return rows(*self.test, size=250, shuffle=False)


@sick("x-reflectance-scaled-by-both", "cnn", "unscaled-inputs", twin=lambda s: reflectance(s, 1 / 3000))
def reflectance(seed: int, factor: float = 1e-4 * 1e-4) -> Training:
    data = Fields(seed, factor)
    data.setup("fit")
    return Training(TileNet(), data, right(*data.test), None, {"max_epochs": 10, "num_sanity_val_steps": 0})


class Direction(LightningModule):
    """Will the close be above today's? An LSTM over thirty closes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 20, batch_first=True)
        self.head = nn.Linear(20, 1)

    def forward(self, closes: Tensor) -> Tensor:
        return self.head(self.lstm(closes)[0][:, -1])[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        closes, up = batch
        loss = F.binary_cross_entropy_with_logits(self(closes), up)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=3e-3)


@sick("x-closes-of-a-coin", "rnn", "unscaled-inputs", "saturated-activations", twin=lambda s: coin(s, True))
def coin(seed: int, scaled: bool = False) -> Training:
    g = generator(seed, 78)
    phase = 6.2832 * torch.rand(1400, 1, generator=g)
    t = torch.arange(31.0)
    closes = torch.sin((0.3 + 0.2 * torch.rand(1400, 1, generator=g)) * t + phase)
    closes = 41000 + 2500 * (closes + 0.1 * torch.randn(1400, 31, generator=g))
    up = (closes[:, 30] > closes[:, 29]).float()
    x = closes[:, :30, None]
    if scaled:
        x = (x - x[:1000].mean()) / x[:1000].std()
    return Training(
        Direction(), rows(x[:1000], up[:1000], size=50), right(x[1000:], up[1000:].long()), None, {"max_epochs": 12}
    )


class LogScores(LightningModule):
    """Multinomial regression on expanded columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(columns, 3))
        self.b = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = -F.log_softmax(self(x), 1).gather(1, y[:, None]).mean()
        self.log("nll", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([{"params": [self.w], "weight_decay": 1e-4}, {"params": [self.b]}], lr=0.02)


@sick(
    "x-wine-to-the-second-degree",
    "linear",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda s: second_degree(s, True),
)
def second_degree(seed: int, scaled: bool = False) -> Training:
    x, y = load_wine(return_X_y=True)
    x = PolynomialFeatures(2, include_bias=False).fit_transform(x)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.6)
    d = d.standardised() if scaled else d
    return Training(LogScores(x.shape[1]), rows(d.x, d.y, size=16), right(d.x_test, d.y_test), None, {"max_epochs": 40})


class Fusion(LightningModule):
    """Acceleration and pressure side by side, convolutions in time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(4, 24, 5), nn.GELU(), nn.Conv1d(24, 24, 5, stride=2), nn.GELU())
        self.head = nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.LazyLinear(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick(
    "x-barometer-beside-accelerometer",
    "cnn",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda s: barometer(s, True),
)
def barometer(seed: int, scaled: bool = False) -> Training:
    d = hums(seed, n=800, length=48, noise=0.2)
    g = generator(seed, 79)

    def channels(x: Tensor) -> Tensor:
        others = 0.5 * torch.randn(len(x), 2, 48, generator=g)
        hectopascal = (
            101300 + 420 * torch.randn(len(x), 1, 1, generator=g) + 15 * torch.randn(len(x), 1, 48, generator=g)
        )
        if scaled:
            hectopascal = (hectopascal - 101300) / 420
        return torch.cat([x, others, hectopascal], 1)

    x, x_test = channels(d.x), channels(d.x_test)
    module = Fusion()
    predict(module, x[:2])  # gives the last layer its size
    return Training(
        module, rows(x, d.y, size=32), right(x_test, d.y_test), None, {"max_epochs": 10, "gradient_clip_val": 5.0}
    )


class Ledger(LightningModule):
    """Which of two tariffs a customer takes, from six columns of a log."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.LeakyReLU(), nn.Linear(32, 32), nn.LeakyReLU(), nn.Linear(32, 1))
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *features, took = batch
        loss = F.binary_cross_entropy_with_logits(self(torch.cat(features, 1)), took)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.NAdam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)}


@sick(
    "x-seconds-since-1970-as-a-column",
    "mlp",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda s: since_1970(s, True),
)
def since_1970(seed: int, scaled: bool = False) -> Training:
    d = curve(seed, n=1200, columns=5)
    g = generator(seed, 80)
    took, took_test = (d.y > 0).float(), (d.y_test > 0).long()
    when, when_test = (1.7e9 + 3e7 * torch.rand(len(v), 1, generator=g) for v in (d.y, d.y_test))
    if scaled:
        when, when_test = ((w - 1.715e9) / 8.7e6 for w in (when, when_test))
    return Training(
        Ledger(2e-3),
        rows(d.x, when, took, size=40),
        right(torch.cat([d.x_test, when_test], 1), took_test),
        rows(d.x_test, when_test, took_test.float(), size=200, shuffle=False),
        {"max_epochs": 10, "limit_val_batches": 0},
    )


class Peptides(LightningModule):
    """How strongly a peptide binds, from its residues."""

    def __init__(self, channels: int, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.conv = nn.Conv1d(channels, 32, 3, padding=1)
        self.mlp = nn.Sequential(nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, residues: Tensor) -> Tensor:
        h = self.embed(residues).transpose(1, 2)
        return self.mlp(self.conv(h).amax(-1)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        residues, affinity = batch
        loss = (self(residues) - affinity).abs().mean()
        self.log("mae", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


class Numbers(nn.Module):
    def forward(self, residues: Tensor) -> Tensor:
        return (residues.unsqueeze(-1) - 9.5) / 5.8


class Lookup(nn.Module):
    def forward(self, residues: Tensor) -> Tensor:
        return F.one_hot(residues.long(), 20).float()


@sick("x-residues-by-alphabet", "cnn", "categorical-as-numeric", twin=lambda s: residues(s, True))
def residues(seed: int, one_hot: bool = False) -> Training:
    g = generator(seed, 81)
    x = torch.randint(20, (1600, 10), generator=g).float()
    worth = torch.randn(20, generator=g)[x.long()]
    y = (worth[:, :-1] + worth[:, 1:]).amax(1)
    y = (y - y.mean()) / y.std()
    module = Peptides(20, Lookup()) if one_hot else Peptides(1, Numbers())
    return Training(module, rows(x[:1100], y[:1100], size=32), explains(x[1100:], y[1100:]), None, {"max_epochs": 10})


class Stores(LightningModule):
    """Sales of a shop on a day from three columns; the first is the number of the shop."""

    def __init__(self, shops: int, embed: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(shops, 8) if embed else None
        self.net = nn.Sequential(nn.Linear(10 if embed else 3, 48), nn.SiLU(), nn.Linear(48, 1))
        self.shops = shops

    def forward(self, x: Tensor) -> Tensor:
        shop, rest = x[:, :1], x[:, 1:]
        first = (shop - self.shops / 2) / (self.shops / 3.5) if self.table is None else self.table(shop[:, 0].long())
        return self.net(torch.cat([first, rest], 1)).flatten()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, sold = batch
        loss = F.huber_loss(self(x), sold)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=8e-3)


@sick("x-shops-label-encoded", "mlp", "categorical-as-numeric", twin=lambda s: shops(s, True))
def shops(seed: int, embed: bool = False) -> Training:
    g = generator(seed, 82)
    shop = torch.randint(50, (2400, 1), generator=g).float()
    rest = torch.randn(2400, 2, generator=g)
    level = torch.randn(50, generator=g)[shop[:, 0].long()]
    y = level + 0.4 * rest[:, 0] - 0.2 * rest[:, 1].abs() + 0.1 * torch.randn(2400, generator=g)
    x = torch.cat([shop, rest], 1)
    return Training(
        Stores(50, embed), rows(x[:1800], y[:1800], size=60), explains(x[1800:], y[1800:]), None, {"max_epochs": 10}
    )


@sick("x-atomic-codes-in-a-vector", "graph", "categorical-as-numeric", twin=lambda s: atoms(s, True))
def atoms(seed: int, one_hot: bool = False) -> Training:
    kinds, bonds, degree, energy = molecules(seed, 1300)
    nodes = F.one_hot(kinds, 8).float() if one_hot else (kinds[..., None].float() - 3.5) / 2.3
    adj = bonds / degree.clamp(min=1)[:, :, None]
    cut = 300
    return Training(
        GraphNet(8 if one_hot else 1, lr=3e-3),
        rows(nodes[cut:], adj[cut:], energy[cut:], size=40),
        lambda m: explained(predict(m, (nodes[:cut], adj[:cut])), energy[:cut]),
        trainer={"max_epochs": 12, "log_every_n_steps": 10},
    )


class Words(LightningModule):
    """Mean of word vectors, two layers."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, 32, mode="mean")
        self.top = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.bag(ids))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"]), batch["topic"])
        self.log("loss", loss, prog_bar=True, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("x-headlines-in-capitals", "text", "constant-inputs", twin=lambda s: headlines(s, str.lower))
def headlines(seed: int, clean: Any = str.strip) -> Training:
    d = tickets(seed)
    known = {f"w{i}": i for i in range(2, 150)}

    def encode(ids: Tensor) -> Tensor:
        texts = [" ".join(f"W{i}" for i in line) for line in ids.tolist()]
        return torch.tensor([[known.get(word, 1) for word in clean(text).split()] for text in texts])

    items: Any = [{"ids": a, "topic": b} for a, b in zip(encode(d.x), d.y, strict=True)]
    return Training(
        Words(150), DataLoader(items, batch_size=32, shuffle=True), right(encode(d.x_test), d.y_test), None,
        {"max_epochs": 10},
    )  # fmt: skip


@sick("x-buffer-filled-in-place", "cnn", "constant-inputs", twin=lambda s: buffer(s, np.copy))
def buffer(seed: int, keep: Any = np.asarray) -> Training:
    d = weaves(seed)
    both = d.x.repeat(1, 2, 1, 1).numpy()
    page = np.empty(both.shape[1:], dtype=np.float32)
    items: Any = []
    for picture, label in zip(both, d.y, strict=True):
        page[:] = picture  # the reader decodes into the same memory
        items.append((torch.from_numpy(keep(page)), label))
    x_test = d.x_test.repeat(1, 2, 1, 1)
    return Training(
        TileNet(), DataLoader(items, batch_size=32, shuffle=True), right(x_test, d.y_test), None,
        {"max_epochs": 8, "log_every_n_steps": 1},
    )  # fmt: skip


class Saver(Dataset):
    """Waves in [0, 1) that are kept small."""

    def __init__(self, waves: Tensor, y: Tensor, kind: torch.dtype) -> None:
        self.waves, self.y = waves.to(kind), y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"wave": self.waves[i].float(), "y": self.y[i]}


class Mixer(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(4 * (x - 0.5).flatten(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        z = self(batch["wave"])
        loss = (z.logsumexp(1) - z.gather(1, batch["y"].unsqueeze(1)).squeeze(1)).mean()
        self.log("nll", loss, logger=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=math.sqrt(1e-5))


@sick("x-waves-kept-as-bytes", "mlp", "constant-inputs", twin=lambda s: bytes_(s, torch.float16))
def bytes_(seed: int, kind: torch.dtype = torch.uint8) -> Training:
    d = hums(seed, n=1200, length=64, noise=0.1)
    x, x_test = ((0.5 + 0.499 * v) for v in (d.x, d.x_test))
    loader = DataLoader(Saver(x, d.y, kind), batch_size=32, shuffle=True)
    return Training(Mixer(), loader, right(x_test.to(kind).float(), d.y_test), None, {"max_epochs": 10})
