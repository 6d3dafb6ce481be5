"""Trainings that go wrong on the way from the disk to the step: order, splits, amounts, workers, waiting."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, flip_labels, generator, predict
from benchmarks.zoo.fourth._b_common import explains, hums, right, rows, tickets, weaves


class BagNet(LightningModule):
    """Mean of embeddings, SGD with momentum and a constant rate."""

    def __init__(self, lr: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.bag = nn.EmbeddingBag(150, 32)
        self.fc = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.bag(ids))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, language = batch
        loss = F.cross_entropy(self(ids), language)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Shards(IterableDataset):
    """Reads files one after the other through a small shuffle buffer."""

    def __init__(self, files: list[tuple[Tensor, Tensor]], room: int, seed: int) -> None:
        self.files, self.room, self.seed = files, room, seed
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self.seed, self.passes])
        self.passes += 1
        kept: list[tuple[Tensor, Tensor]] = []
        for lines, languages in self.files:
            for pair in zip(lines, languages, strict=True):
                if len(kept) < self.room:
                    kept.append(pair)
                    continue
                at = int(rng.integers(self.room))
                kept[at], out = pair, kept[at]
                yield out
        for at in rng.permutation(len(kept)):
            yield kept[at]


@sick("x-one-shard-per-language", "text", "unshuffled-data", twin=lambda s: one_shard(s, 1600))
def one_shard(seed: int, room: int = 48) -> Training:
    d = tickets(seed, n=1600)
    files = [(d.x[d.y == k], d.y[d.y == k]) for k in range(4)]
    loader = DataLoader(Shards(files, room, seed), batch_size=32)
    return Training(BagNet(), loader, right(d.x_test, d.y_test), None, {"max_epochs": 6, "log_every_n_steps": 10})


class Gratings(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 12, 5, padding=2), nn.Conv2d(12, 16, 3)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.c1(x)), 2)
        return self.fc(F.relu(self.c2(h)).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss)
        self.log("train_acc", (logits.argmax(1) == y).float().mean(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=6e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)}


class Sources(LightningDataModule):
    """Each source is a set of its own and holds one kind of cloth."""

    def __init__(self, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.d, self.shuffle = weaves(seed, n=960), shuffle

    def train_dataloader(self) -> Any:
        parts = [TensorDataset(self.d.x[self.d.y == k], self.d.y[self.d.y == k]) for k in range(4)]
        return DataLoader(ConcatDataset(parts), batch_size=32, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return rows(self.d.x_test, self.d.y_test, size=250, shuffle=False)


@sick("x-four-mills-joined", "cnn", "unshuffled-data", twin=lambda s: mills(s, True))
def mills(seed: int, shuffle: bool = False) -> Training:
    data = Sources(seed, shuffle)
    return Training(Gratings(), data, right(data.d.x_test, data.d.y_test), None, {"max_epochs": 8})


class Lengths:
    """Batches of sequences of like length, so that nothing is wasted on padding."""

    def __init__(self, lengths: Tensor, size: int, by_length: bool, seed: int) -> None:
        self.lengths, self.size, self.by_length = lengths, size, by_length
        self.generator = generator(seed, 90)

    def __len__(self) -> int:
        return len(self.lengths) // self.size

    def __iter__(self) -> Iterator[list[int]]:
        n = len(self.lengths)
        order = self.lengths.argsort() if self.by_length else torch.randperm(n, generator=self.generator)
        for i in range(len(self)):
            yield order[i * self.size : (i + 1) * self.size].tolist()


class Mood(LightningModule):
    """How long will the answer be in days? A GRU over a message; long messages tend to wait longer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12, padding_idx=0)
        self.rnn = nn.GRU(12, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, lengths = batch
        h = self.rnn(self.embed(ids))[0]
        return self.out(h[torch.arange(len(ids)), lengths - 1]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, lengths, days = batch
        loss = F.mse_loss(self((ids, lengths)), days)
        self.log("mse", loss, batch_size=len(ids))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("x-batches-by-message-length", "rnn", "unshuffled-data", twin=lambda s: by_length(s, False))
def by_length(seed: int, sort: bool = True) -> Training:
    g = generator(seed, 91)
    lengths = torch.randint(2, 25, (1500,), generator=g)
    ids = torch.randint(1, 30, (1500, 24), generator=g) * (torch.arange(24) < lengths[:, None])
    urgent = ((ids > 0) & (ids < 5)).float().sum(1)
    days = (lengths - 13) / 6.6 - 0.25 * urgent + 0.1 * torch.randn(1500, generator=g)
    sampler: Any = Lengths(lengths[:1000], 25, sort, seed)
    loader = DataLoader(TensorDataset(ids[:1000], lengths[:1000], days[:1000]), batch_sampler=sampler)
    return Training(
        Mood(), loader, explains((ids[1000:], lengths[1000:]), days[1000:]), None,
        {"max_epochs": 8, "gradient_clip_val": 1.0, "use_distributed_sampler": False},
    )  # fmt: skip


class Wide(LightningModule):
    """A wide net, which keeps the best accuracy that its validation has shown."""

    def __init__(self, columns: int, classes: int, lr: float = 2e-3) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(columns, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)
        )
        self.lr = lr
        self.reported = 0.0
        self.hits: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.hits.append((logits.argmax(1) == y).float())
        self.log("val_loss", F.cross_entropy(logits, y))

    def on_validation_epoch_end(self) -> None:
        accuracy = torch.cat(self.hits).mean()
        self.hits.clear()
        self.log("val_acc", accuracy, prog_bar=True)
        self.reported = accuracy.item()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def honesty(x: Tensor, y: Tensor) -> Any:
    """Minus the distance between the accuracy that validation reported last and that on fresh samples."""

    def score(module: Any) -> float:
        return -abs(module.reported - (predict(module, x).argmax(-1) == y).float().mean().item())

    return score


class Split(LightningDataModule):
    """A cut of a set in two."""

    def __init__(self, whole: Any, generators: list[Any]) -> None:
        super().__init__()
        self.whole, self.generators = whole, generators

    def cut(self, i: int) -> Any:
        return random_split(self.whole, [0.75, 0.25], generator=self.generators[i])[i]

    def train_dataloader(self) -> Any:
        return DataLoader(self.cut(0), batch_size=32, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.cut(1), batch_size=128)


@sick("x-cut-anew-for-each-loader", "mlp", "train-val-leakage", twin=lambda s: cut_anew(s, same=True))
def cut_anew(seed: int, same: bool = False) -> Training:
    d = blobs(seed, n=800, spread=1.3, columns=12)
    seeds = (seed, seed) if same else (seed, seed + 1)
    data = Split(TensorDataset(d.x, d.y), [torch.Generator().manual_seed(s) for s in seeds])
    return Training(Wide(12, 5), data, honesty(d.x_test, d.y_test), None, {"max_epochs": 20})


@sick("x-two-crawls-in-one-table", "mlp", "train-val-leakage", twin=lambda s: two_crawls(s, True))
def two_crawls(seed: int, unique: bool = False) -> Training:
    d = digits(seed)
    x, y = d.x[:600], flip_labels(d.y, 0.35, 10, seed)[:600]
    y_test = flip_labels(d.y_test, 0.35, 10, seed + 1)  # raters err there as well
    x, y = torch.cat([x, x[:450]]), torch.cat([y, y[:450]])
    table = [(tuple(row.tolist()), k) for row, k in zip(x, y.tolist(), strict=True)]
    table = list(dict.fromkeys(table)) if unique else table
    whole: Any = [(torch.tensor(row), k) for row, k in table]
    train, val = random_split(whole, [0.7, 0.3], generator=torch.Generator().manual_seed(seed))
    return Training(
        Wide(64, 10, 3e-3), DataLoader(train, batch_size=28, shuffle=True), honesty(d.x_test, y_test),
        DataLoader(val, batch_size=200), {"max_epochs": 27, "check_val_every_n_epoch": 3},
    )  # fmt: skip


@sick("x-folds-added-up", "mlp", "train-val-leakage", twin=lambda s: folds(s, True))
def folds(seed: int, leave_out: bool = False) -> Training:
    d = blobs(seed, n=700, classes=4, spread=1.2, columns=16)
    whole = TensorDataset(d.x, d.y)
    parts = [list(range(k, 700, 5)) for k in range(5)]
    held = 3
    kept = [i for k, part in enumerate(parts) for i in part if not leave_out or k != held]
    return Training(
        Wide(16, 4), DataLoader(Subset(whole, kept), batch_size=28, shuffle=True), honesty(d.x_test, d.y_test),
        DataLoader(Subset(whole, parts[held]), batch_size=140), {"max_epochs": 16, "val_check_interval": 0.5},
    )  # fmt: skip


class Strokes(LightningModule):
    """An LSTM reads the rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 48, num_layers=1, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@sick("x-share-kept-from-a-trial", "rnn", "too-little-data", "overfitting", twin=lambda s: share_kept(s, 1.0))
def share_kept(seed: int, share: float = 0.02) -> Training:
    d = digits(seed)
    n = int(share * len(d.x))
    return Training(
        Strokes(), rows(d.x[:n], d.y[:n], size=13), right(d.x_test, d.y_test),
        rows(d.x_test, d.y_test, size=225, shuffle=False),
        {"max_steps": 300, "max_epochs": -1, "check_val_every_n_epoch": max(1, int(2 / share / 20))},
    )  # fmt: skip


@sick("x-twenty-four-tweets", "text", "too-little-data", "overfitting", twin=lambda s: tweets(s, 1200))
def tweets(seed: int, n: int = 24) -> Training:
    d = tickets(seed, n=1200)
    return Training(
        BagNet(0.3),
        rows(d.x[:n], d.y[:n], size=12),
        right(d.x_test, d.y_test),
        None,
        {"max_steps": 240, "max_epochs": -1},
    )


@sick("x-cloth-with-settings-of-a-trial", "cnn", "too-little-data", "overfitting", twin=lambda s: four_batches(s, 0))
def four_batches(seed: int, batches: int = 1) -> Training:
    d = weaves(seed, noise=1.2)
    val = rows(d.x_test, d.y_test, size=250, shuffle=False)
    settings: dict[str, Any] = {"max_steps": 300, "max_epochs": -1}
    if batches:
        settings["overfit_batches"] = batches
    return Training(
        Gratings(), rows(d.x, d.y, size=10), right(d.x_test, d.y_test), val,
        {**settings, "check_val_every_n_epoch": 25 if batches else 1},
    )  # fmt: skip


class Simulator(IterableDataset):
    """Draws a picture of waves for each sample, with a generator of its own."""

    def __init__(self, seed: int, samples: int, per_worker: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.samples, self.per_worker = samples, per_worker

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        if self.per_worker and worker is not None:
            self.rng = np.random.default_rng(worker.seed)
        for _ in range(self.samples // (1 if worker is None else worker.num_workers)):
            yield draw(self.rng)


def draw(rng: Any) -> tuple[Tensor, Tensor]:
    a, b = rng.normal(size=2)
    t = np.arange(32) / 8
    x = np.sin(a + t) * (1.5 + np.cos(b * t)) + 0.8 * rng.normal(size=32)
    return torch.tensor(x, dtype=torch.float32), torch.tensor([np.sin(a), np.cos(a), np.tanh(b) ** 2]).float()


class Inverse(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, z = batch
        loss = (self(x) - z).square().sum(1).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("x-simulated-by-two-workers", "mlp", "duplicate-randomness", twin=lambda s: two_workers(s, True))
def two_workers(seed: int, per_worker: bool = False) -> Training:
    rng = np.random.default_rng(10_000 + seed)
    test = [torch.stack(v) for v in zip(*(draw(rng) for _ in range(600)), strict=True)]
    loader: Any = DataLoader(Simulator(seed, 32, per_worker), batch_size=4, num_workers=2)
    return Training(Inverse(), loader, explains(*test), None, {"max_epochs": 24})


class Noised(Dataset):
    """Denoising pairs: the noise of a sample comes from a generator that the set was given."""

    def __init__(self, clean: Tensor, rng: Any, fresh: bool) -> None:
        self.clean, self.rng, self.fresh = clean, rng, fresh

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        draw = torch.randn(64) if self.fresh else torch.from_numpy(self.rng.normal(size=64)).float()
        return {"noisy": self.clean[i] + 0.9 * draw, "clean": self.clean[i]}


class Denoiser(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(64, 160), nn.Linear(160, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(F.relu(self.enc(x)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["noisy"]), batch["clean"])
        self.log("mse", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=1e-4)


@sick("x-noise-of-a-forked-generator", "autoencoder", "duplicate-randomness", twin=lambda s: forked(s, True))
def forked(seed: int, fresh: bool = False) -> Training:
    d = digits(seed)
    clean, test = (2 * x - 0.6 for x in (d.x[:120], d.x_test))
    noisy = test + 0.9 * torch.randn(test.shape, generator=generator(seed, 92))
    loader = DataLoader(Noised(clean, np.random.RandomState(seed), fresh), batch_size=12, num_workers=2)
    return Training(Denoiser(), loader, explains(noisy, test), None, {"max_epochs": 24})


class Exercises(IterableDataset):
    """Rows of numbers of which two are marked; the answer is their sum."""

    def __init__(self, seed: int, amount: int) -> None:
        self.random = random.Random(seed)
        self.amount = amount

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        for _ in range(self.amount // (worker.num_workers if worker else 1)):
            yield exercise(self.random)


class Reseeded(Exercises):
    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        if worker:
            self.random.seed(worker.seed)
        yield from super().__iter__()


def exercise(source: random.Random) -> tuple[Tensor, Tensor]:
    numbers = [source.uniform(-1, 1) for _ in range(6)]
    i, j = source.sample(range(6), 2)
    marks = [float(k in (i, j)) for k in range(6)]
    return torch.tensor([numbers, marks]).T, torch.tensor(numbers[i] + numbers[j])


class Adder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 48, batch_first=True)
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.015)


@sick("x-exercises-made-up-on-the-fly", "rnn", "duplicate-randomness", twin=lambda s: exercises(s, Reseeded))
def exercises(seed: int, kind: Any = Exercises) -> Training:
    source = random.Random(seed + 10_000)
    test = [torch.stack(v) for v in zip(*(exercise(source) for _ in range(500)), strict=True)]
    loader: Any = DataLoader(kind(seed, 32), batch_size=4, num_workers=2)
    return Training(Adder(), loader, explains(*test), None, {"max_epochs": 24, "gradient_clip_val": 1.0})


class Stopwatch(LightningModule):
    """A classifier that keeps how many batches it trains on in a second."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.begin, self.batches, self.elapsed = 0.0, 0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_start(self) -> None:
        self.begin = time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1
        self.elapsed = time.perf_counter() - self.begin

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def pace(module: Any) -> float:
    """Batches a second."""
    return module.batches / module.elapsed


class Spectra(Dataset):
    """A spectrum by a plain double loop, each time it is asked for, or once at the start."""

    def __init__(self, waves: Tensor, y: Tensor, cached: bool) -> None:
        self.waves, self.y = waves[:, 0].tolist(), y
        self.ready = torch.fft.rfft(waves[:, 0]).abs()[:, 1:25] / 8 if cached else None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.ready is not None:
            return self.ready[i], self.y[i]
        wave, turn = self.waves[i], 2j * np.pi / len(self.waves[i])
        out = [abs(sum(v * np.exp(-turn * k * t) for t, v in enumerate(wave))) / 8 for k in range(1, 25)]
        return torch.tensor(out, dtype=torch.float32), self.y[i]


@sick("x-spectrum-in-getitem", "mlp", "data-starvation", twin=lambda s: in_getitem(s, True))
def in_getitem(seed: int, cached: bool = False) -> Training:
    d = hums(seed, n=640, length=112)
    net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4))
    loader = DataLoader(Spectra(d.x, d.y, cached), batch_size=16, shuffle=True)
    return Training(Stopwatch(net, 5e-3), loader, pace, None, {"max_steps": 90, "max_epochs": -1})


class Bucket(Dataset):
    """Objects of a store far away: each request takes its time, a request for many not much more."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.002)
        return self.x[i], self.y[i]


class Together(Bucket):
    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        time.sleep(0.0005)
        return [(self.x[i], self.y[i]) for i in indices]


@sick("x-one-request-per-object", "cnn", "data-starvation", twin=lambda s: requests(s, Together))
def requests(seed: int, kind: Any = Bucket) -> Training:
    d = weaves(seed)
    net = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 4))
    loader = DataLoader(kind(d.x, d.y), batch_size=20, shuffle=True)
    return Training(Stopwatch(net, 3e-3), loader, pace, None, {"max_steps": 60, "max_epochs": -1})


class Hardest:
    """A batch sampler that ranks the whole set anew for each batch."""

    def __init__(self, x: Tensor, size: int, every: int, seed: int) -> None:
        self.x, self.size, self.every, self.generator = x, size, every, generator(seed, 93)

    def __len__(self) -> int:
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[list[int]]:
        near = torch.zeros(0)
        for i in range(len(self)):
            if i % self.every == 0:
                near = torch.cdist(self.x, self.x).argsort(1)
            start = torch.randint(len(self.x), (self.size // 4,), generator=self.generator)
            yield near[start, :4].flatten().tolist()


@sick("x-neighbours-ranked-per-batch", "mlp", "data-starvation", twin=lambda s: ranked(s, 1000))
def ranked(seed: int, every: int = 1) -> Training:
    d = digits(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    sampler: Any = Hardest(d.x, 32, every, seed)
    loader = DataLoader(TensorDataset(d.x, d.y), batch_sampler=sampler)
    return Training(
        Stopwatch(net, 3e-3), loader, pace, None, {"max_steps": 28, "max_epochs": 1, "use_distributed_sampler": False}
    )
