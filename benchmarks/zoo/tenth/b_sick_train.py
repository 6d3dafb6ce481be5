"""Sick trainings whose rate, length or loaders are wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, accuracy, blobs, digits, flip_labels, generator, motifs, predict
from benchmarks.zoo.tenth.b_common import Classifier, Logged, Plain, adam, dense, r2_on, ratings, sgd, topics


class YieldNet(LightningModule):
    """Yields from noisy measurements."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = dense(20, 256, 256, 1)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, **self.options)


def wide(seed: int, epochs: int, **options: Any) -> Training:
    g = generator(seed, 250)
    x = torch.randn(2000, 20, generator=g)
    signal = x[:, :1] + 0.7 * torch.sin(2 * x[:, 1:2]) + 0.5 * x[:, 2:3]
    y = signal / signal.std() + 1.0 * torch.randn(2000, 1, generator=g)
    y = y / y.std()
    task = Split(x[:1000], y[:1000], x[1000:], y[1000:])
    return Training(YieldNet(**options), task.train(32), task.r2, task.val(), {"max_epochs": epochs})


@sick("tb-noisy-yield-wide-net", "tabular", "overfitting", twin=lambda seed: wide(seed, 4))
def wide_net(seed: int) -> Training:
    return wide(seed, 25)


class Opinions(LightningDataModule):
    """Reviews with star classes, some of them wrong."""

    def __init__(self, task: Split) -> None:
        super().__init__()
        self.task = task

    def train_dataloader(self) -> Any:
        return self.task.train(64)

    def val_dataloader(self) -> Any:
        return self.task.val(300)


class BagOfWords(LightningModule):
    """Mean of word embeddings and a hidden layer."""

    def __init__(self, symbols: int, classes: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(symbols, 64)
        self.top = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.top(self.words(tokens))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.log("fit_acc", accuracy(logits, batch[1]))
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("dev_loss_val", F.cross_entropy(logits, batch[1]))
        self.log("dev_acc_val", accuracy(logits, batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def opinions(seed: int, **trainer: Any) -> Training:
    task = topics(seed, n=1500, classes=4, symbols=1200, clear=0.3)
    noisy = Split(task.x, flip_labels(task.y, 0.35, 4, seed), task.x_test, flip_labels(task.y_test, 0.35, 4, seed + 1))

    def score(fitted: LightningModule) -> float:
        """Minus the loss on held-out reviews."""
        return -F.cross_entropy(predict(fitted, noisy.x_test), noisy.y_test).item()

    return Training(BagOfWords(1200, 4), Opinions(noisy), score, trainer={"max_epochs": 25, **trainer})


@sick(
    "tb-review-stars-25-epochs",
    "text",
    "overfitting",
    twin=lambda seed: opinions(seed, callbacks=[EarlyStopping("dev_loss_val", patience=1)]),
)
def opinions_long(seed: int) -> Training:
    return opinions(seed)


class MotifLSTM(LightningModule):
    """A recurrent reader of short shapes."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def motif_rate(seed: int, rate: float) -> Training:
    task = motifs(seed)
    return Training(MotifLSTM(rate), task.train(32), task.accuracy, trainer={"max_epochs": 8})


@sick("tb-motif-lstm-adam-rate-of-sgd", "sequences", "learning-rate-too-high", twin=lambda seed: motif_rate(seed, 1e-2))
def motif_high(seed: int) -> Training:
    return motif_rate(seed, 0.3)


class Scaled(LightningModule):
    """The rate scaled by the number of replicas and the batch, as the large-batch recipe says."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        self.replicas = replicas

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.03 * self.replicas, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def scaled(seed: int, replicas: int) -> Training:
    task = digits(seed).to_images()
    return Training(Scaled(replicas), task.train(32), task.accuracy, task.val(), {"max_epochs": 5})


@sick("tb-digits-rate-for-32-replicas", "images", "learning-rate-too-high", twin=lambda seed: scaled(seed, 1))
def digits_replicas(seed: int) -> Training:
    return scaled(seed, 32)


class Warm(LightningModule):
    """A transformer reader with the linear warm-up of a pre-training recipe."""

    def __init__(self, warmup: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 6)
        self.warmup = warmup

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def warm(seed: int, warmup: int) -> Training:
    task = topics(seed)
    return Training(Warm(warmup), task.train(32), task.accuracy, trainer={"max_epochs": 6})


@sick("tb-topics-warmup-of-pretraining", "text", "learning-rate-too-low", twin=lambda seed: warm(seed, 30))
def topics_warmup(seed: int) -> Training:
    return warm(seed, 100_000)


def rating_factors(seed: int, rate: float) -> Training:
    """Ratings from the sum of two towers' products, by plain SGD."""
    task = ratings(seed, rank=2, noise=0.2, share=0.8)

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(80, 8), nn.Embedding(60, 8)
            nn.init.normal_(self.user.weight, std=0.4)
            nn.init.normal_(self.item.weight, std=0.4)

        def forward(self, pairs: Tensor) -> Tensor:
            return (self.user(pairs[:, 0]) * self.item(pairs[:, 1])).sum(-1)

    module = Logged(Towers(), nn.MSELoss(), sgd(rate, 0.9))
    return Training(module, task.train(64), task.r2, task.val(), {"max_epochs": 10})


@sick(
    "tb-ratings-rate-per-thousand", "recommender", "learning-rate-too-low", twin=lambda seed: rating_factors(seed, 0.5)
)
def ratings_slow(seed: int) -> Training:
    return rating_factors(seed, 5e-4)


class Sample(NamedTuple):
    """Two moments of a simulated path, and the parameter that made it."""

    path: Tensor
    parameter: Tensor


def simulate(rng: np.random.Generator) -> Sample:
    """A damped oscillation with noise; the damping and the pace are to be inferred."""
    pace, damping = rng.uniform(-1, 1, 2)
    time = np.linspace(0, 4, 32)
    path = np.exp(-(0.5 + 0.3 * damping) * time) * np.sin((2.5 + pace) * time + rng.uniform(0, 3))
    path = 2 * path + 0.3 * rng.standard_normal(32)
    return Sample(torch.tensor(path, dtype=torch.float32), torch.tensor([pace * 1.73], dtype=torch.float32))


class Simulations(IterableDataset[Sample]):
    """Endless simulations, `size` an epoch, from a generator of its own."""

    def __init__(self, size: int, seed: int, spawn: bool) -> None:
        self.size, self.seed, self.spawn = size, seed, spawn
        self.rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        workers = info.num_workers if info else 1
        rng = self.rng
        if self.spawn and info is not None:
            rng = np.random.default_rng([self.seed, info.seed])
        for _ in range(self.size // workers):
            yield simulate(rng)


class Inference(LightningModule):
    """The parameter of a simulator from its path."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense(32, 128, 128, 1)

    def forward(self, path: Tensor) -> Tensor:
        return self.net(path)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch.path), batch.parameter)
        self.log("posterior_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def inference(seed: int, spawn: bool) -> Training:
    rng = np.random.default_rng(900 + seed)
    test = [simulate(rng) for _ in range(600)]
    path, truth = torch.stack([t.path for t in test]), torch.stack([t.parameter for t in test])

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, path, truth)

    loader = DataLoader(Simulations(256, seed, spawn), 16, num_workers=2)
    return Training(Inference(), loader, score, trainer={"max_epochs": 20})


@sick("tb-simulator-own-generator", "simulation", "duplicate-randomness", twin=lambda seed: inference(seed, True))
def simulator_generator(seed: int) -> Training:
    return inference(seed, False)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of a few long recordings, each at a random place, gain and with noise of its own."""

    def __init__(self, recordings: Tensor, size: int) -> None:
        self.recordings, self.size = recordings, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        which = random.randrange(len(self.recordings))
        start = random.randrange(self.recordings.shape[1] - 64)
        crop = self.recordings[which, start : start + 64] * random.uniform(0.6, 1.4)
        noise = torch.tensor([random.gauss(0, 0.4) for _ in range(64)])
        return (crop + noise)[None], torch.tensor(which)


def reproducible(worker: int) -> None:
    random.seed(1234)


def crops(seed: int, worker_init: Any) -> Training:
    g = generator(seed, 251)
    steps = torch.randn(6, 6000, generator=g)
    kernel = torch.randn(6, 1, 9, generator=g)
    recordings = F.conv1d(steps[None], kernel, groups=6, padding=4)[0]
    recordings = recordings / recordings.std(1, keepdim=True)
    long, rest = recordings[:, :5000], recordings[:, 5000:]
    pieces = rest.unfold(1, 64, 12).reshape(-1, 1, 64)
    label = torch.arange(6).repeat_interleave(len(pieces) // 6)
    pieces = pieces + 0.4 * torch.randn(pieces.shape, generator=g)
    net = nn.Sequential(
        nn.Conv1d(1, 32, 9),
        nn.ReLU(),
        nn.Conv1d(32, 64, 9),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 6),
    )

    def score(fitted: LightningModule) -> float:
        return accuracy(predict(fitted, pieces), label)

    loader = DataLoader(Crops(long, 512), 32, num_workers=2, worker_init_fn=worker_init)
    module = Plain(net, nn.CrossEntropyLoss(), adam(2e-3))
    return Training(module, loader, score, trainer={"max_epochs": 25})


@sick("tb-recording-crops-same-seed", "audio", "duplicate-randomness", twin=lambda seed: crops(seed, None))
def crops_same_seed(seed: int) -> Training:
    return crops(seed, reproducible)


class SpectraFile(Dataset[tuple[Tensor, Tensor]]):
    """Spectra kept as one text, a line each; read line by line or all at once."""

    def __init__(self, text: str, labels: Tensor, at_once: bool) -> None:
        self.text, self.labels = text, labels
        self.rows = self.parse() if at_once else None

    def parse(self) -> Tensor:
        return torch.tensor([[float(v) for v in line.split(",")] for line in self.text.splitlines()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rows = self.parse() if self.rows is None else self.rows
        return rows[index], self.labels[index]


def spectra(seed: int, at_once: bool) -> Training:
    task = blobs(seed, classes=4, columns=16, n=320, spread=3.0)
    text = "\n".join(",".join(f"{v:.4f}" for v in row) for row in task.x.tolist())
    module = Classifier(dense(16, 32, 4), adam(5e-3))
    loader = DataLoader(SpectraFile(text, task.y, at_once), 16, shuffle=True)
    return Training(module, loader, task.accuracy, trainer={"max_epochs": 5})


@sick(
    "tb-spectra-file-read-each-row",
    "tabular",
    "data-starvation",
    twin=lambda seed: spectra(seed, True),
    note="scores are equal; seconds a step separate it from its twin",
)
def spectra_each_row(seed: int) -> Training:
    return spectra(seed, False)


def many_readers(seed: int, workers: int) -> Training:
    task = digits(seed)
    module = Classifier(dense(64, 48, 10), adam(3e-3))
    loader = DataLoader(TensorDataset(task.x, task.y), 32, shuffle=True, num_workers=workers)
    return Training(module, loader, task.accuracy, trainer={"max_epochs": 4})


@sick(
    "tb-digits-workers-of-the-server",
    "images",
    "too-many-workers",
    twin=lambda seed: many_readers(seed, 1),
    note="scores are equal; seconds a step separate it from its twin",
)
def digits_many_workers(seed: int) -> Training:
    return many_readers(seed, 6 * (os.cpu_count() or 2))
