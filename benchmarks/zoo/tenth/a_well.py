"""Healthy trainings of an everyday kind."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, accuracy, characters, digits, generator, motifs, predict, table
from benchmarks.zoo.tenth.a_common import (
    Bag,
    Gcn,
    Items,
    Listener,
    Plain,
    Records,
    balanced_accuracy,
    community,
    loader,
    mlp,
    ratings,
    reviews,
    seasons,
    shapes,
    tones,
)


@well("ta-well-wine", "tabular")
def wine(seed: int) -> Training:
    data = table("wine", seed)
    module = Plain(mlp(13, 24, 3), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=1e-2), log="train_loss")
    return Training(module, data.train(16), data.accuracy, data.val(), {"max_epochs": 12})


class Numbers(LightningModule):
    """A convolutional net with batch normalisation under a one-cycle schedule."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Dropout(0.1), nn.Linear(96, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y, label_smoothing=0.05)
        self.log_dict({"train/loss": loss, "train/acc": accuracy(out, y)})
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log_dict({"val/loss": F.cross_entropy(out, y), "val/acc": accuracy(out, y)}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well("ta-well-digits-one-cycle", "images")
def digits_one_cycle(seed: int) -> Training:
    data = digits(seed).to_images()
    train = data.train(64, drop_last=True)
    return Training(Numbers(8 * len(train)), train, data.accuracy, data.val(), {"max_epochs": 8})


@well("ta-well-diabetes", "tabular", note="R2 of 0.5 is the best there is")
def diabetes(seed: int) -> Training:
    data = table("diabetes", seed)
    data = data.map_targets(lambda t: t[:, None])
    module = Plain(nn.Linear(10, 1), nn.MSELoss(), lambda p: torch.optim.SGD(p, lr=0.02), log="mse", val="val_mse")
    return Training(module, data.train(32), data.r2, data.val(), {"max_epochs": 9})


class Motifs(LightningModule):
    """A bidirectional GRU with its gradient norm held at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 20, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(40, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0].max(1).values)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["seq"]), batch["cls"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ta-well-motifs-gru", "sequences")
def motifs_gru(seed: int) -> Training:
    data = motifs(seed)
    train = DataLoader(Records(seq=data.x, cls=data.y), 32, shuffle=True)
    return Training(Motifs(), train, data.accuracy, trainer={"max_epochs": 8, "gradient_clip_val": 1.0})


class Speech(LightningDataModule):
    """Named tuples of a signal and its label."""

    def __init__(self, data: Split) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Any:
        return DataLoader(Items(self.data.x, self.data.y), 40, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Items(self.data.x_test, self.data.y_test), 200)


@well("ta-well-tones-rmsprop", "audio")
def tones_rmsprop(seed: int) -> Training:
    data = tones(seed)
    module = Plain(
        Listener(5), nn.CrossEntropyLoss(), lambda p: torch.optim.RMSprop(p, lr=1e-3), log="ce", val="val_ce"
    )
    return Training(module, Speech(data), data.accuracy, trainer={"max_epochs": 8})


class Factors(LightningModule):
    """User and item vectors with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(120, 8), nn.Embedding(80, 8)
        self.user_bias, self.item_bias = nn.Embedding(120, 1), nn.Embedding(80, 1)
        for weight in (self.user.weight, self.item.weight):
            nn.init.normal_(weight, std=0.3)
        for weight in (self.user_bias.weight, self.item_bias.weight):
            nn.init.zeros_(weight)

    def forward(self, pair: Tensor) -> Tensor:
        u, i = pair.unbind(1)
        return (self.user(u) * self.item(i)).sum(1) + (self.user_bias(u) + self.item_bias(i)).squeeze(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pair, stars = batch
        return F.mse_loss(self(pair), stars)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-5)


@well("ta-well-ratings", "recommenders")
def rating_factors(seed: int) -> Training:
    data = ratings(seed)
    return Training(Factors(), loader(data.x, data.y, batch=64), data.r2, trainer={"max_epochs": 6})


class Dice(LightningModule):
    """Cross-entropy and Dice together."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, mask = batch
        out = self(x)
        p = out.sigmoid()
        dice = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        bce = F.binary_cross_entropy_with_logits(out, mask)
        self.log("train_dice", dice)
        self.log("train_bce", bce)
        return bce + dice

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, mask = batch
        self.log("val_bce", F.binary_cross_entropy_with_logits(self(x), mask))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ta-well-masks", "segmentation")
def masks(seed: int) -> Training:
    _, data = shapes(seed, n=480)

    def score(m: LightningModule) -> float:
        out, real = predict(m, data.x_test) > 0, data.y_test > 0
        return ((out & real).sum() / (out | real).sum()).item()

    return Training(Dice(), loader(data.x, data.y, batch=16), score, data.val(200), {"max_epochs": 6})


@well("ta-well-load-early-stop", "time series")
def load_early_stop(seed: int) -> Training:
    data = seasons(seed, n=1500)
    module = Plain(mlp(24, 32, 1), nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=2e-3), log="loss", val="val_loss")
    stop = EarlyStopping("val_loss", patience=3)
    return Training(module, data.train(32), data.r2, data.val(), {"max_epochs": 12, "callbacks": [stop]})


@well("ta-well-topics", "text")
def topics(seed: int) -> Training:
    data = reviews(seed, n=1800)
    module = Plain(Bag(60, 3), nn.CrossEntropyLoss(), lambda p: torch.optim.AdamW(p, lr=4e-3), log="nll", val="val_nll")
    return Training(module, data.train(32), data.accuracy, data.val(), {"max_epochs": 6})


class Writer(LightningModule):
    """A character LSTM under warm-up and cosine decay."""

    def __init__(self, symbols: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.embed = nn.Embedding(symbols, 24)
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.out = nn.Linear(64, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(ids))[0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (ids,) = batch
        loss = F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        self.log("train_nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
        down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps - 20)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, down], milestones=[20])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well("ta-well-writer", "text")
def writer(seed: int) -> Training:
    text = characters(seed, n=1600)
    train = loader(text.train, batch=32)

    def score(m: LightningModule) -> float:
        out = predict(m, text.test[:, :-1])
        return -F.cross_entropy(out.transpose(1, 2), text.test[:, 1:]).item()

    return Training(Writer(text.symbols, 6 * len(train)), train, score, trainer={"max_epochs": 6})


@well("ta-well-communities", "graphs")
def communities(seed: int) -> Training:
    graph = community(seed, nodes=600)
    rest = torch.ones(600, dtype=torch.bool)
    rest[graph.known] = False
    test = rest.nonzero()[:, 0]
    train = loader(graph.known, graph.y[graph.known], batch=300)
    return Training(
        Gcn(graph.adjacency, graph.x, dropout=0.3, decay=5e-4),
        train,
        lambda m: accuracy(predict(m, test), graph.y[test]),
        trainer={"max_epochs": 80, "log_every_n_steps": 1},
    )


@well("ta-well-weighted-fraud", "tabular")
def weighted_fraud(seed: int) -> Training:
    g = generator(seed, 61)
    y = (torch.rand(6000, generator=g) < 0.06).long()
    x = torch.randn(6000, 8, generator=g)
    x[:, :3] += 1.3 * y[:, None]
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.53, 8.3]))
    module = Plain(mlp(8, 16, 2), loss, lambda p: torch.optim.Adam(p, lr=3e-3), log="wce", val="val_wce")
    return Training(
        module,
        loader(x[:4000], y[:4000], batch=64),
        lambda m: balanced_accuracy(m, x[4000:], y[4000:]),
        loader(x[4000:], y[4000:], batch=400, shuffle=False),
        {"max_epochs": 4},
    )
