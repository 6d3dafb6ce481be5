"""Trainings whose learning rate is at fault: too high, too low, or brought down too early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, characters, digits, predict, regression
from benchmarks.zoo.tenth.a_common import Conv, Plain, Records, community, loader, mlp, ratings, seasons, shapes, tones

# ---- learning-rate-too-high


class Speller(LightningModule):
    """A small transformer over characters."""

    def __init__(self, symbols: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.embed = nn.Embedding(symbols, 32)
        self.place = nn.Parameter(0.02 * torch.randn(32, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.norm(self.block(self.embed(ids) + self.place, src_mask=mask, is_causal=True)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (ids,) = batch
        loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("train_nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def speller(seed: int, rate: float) -> Training:
    text = characters(seed, n=1600)

    def score(m: LightningModule) -> float:
        out = predict(m, text.test[:, :-1])
        return -F.cross_entropy(out.flatten(0, 1), text.test[:, 1:].flatten()).item()

    return Training(Speller(text.symbols, rate), loader(text.train, batch=32), score, trainer={"max_epochs": 6})


@sick("ta-speller-rate", "transformers", "learning-rate-too-high", twin=lambda seed: speller(seed, 3e-3))
def speller_rate(seed: int) -> Training:
    return speller(seed, 0.6)


class Taste(LightningModule):
    """Users and items as vectors; their product is the rating."""

    def __init__(self, users: int, items: int, optim: Any) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, 8), nn.Embedding(items, 8)
        nn.init.normal_(self.user.weight, std=0.3)
        nn.init.normal_(self.item.weight, std=0.3)
        self._optim = optim

    def forward(self, pair: Tensor) -> Tensor:
        return (self.user(pair[:, 0]) * self.item(pair[:, 1])).sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["pair"]), batch["stars"])
        self.log("rmse", loss.sqrt())
        return loss

    def configure_optimizers(self) -> Any:
        return self._optim(self.parameters())


def taste(seed: int, optim: Any, epochs: int = 8) -> Training:
    data = ratings(seed)
    train = DataLoader(Records(pair=data.x, stars=data.y), 128, shuffle=True)
    return Training(Taste(120, 80, optim), train, data.r2, trainer={"max_epochs": epochs})


@sick(
    "ta-taste-adagrad",
    "recommenders",
    "learning-rate-too-high",
    twin=lambda seed: taste(seed, lambda p: torch.optim.Adagrad(p, lr=0.3)),
)
def taste_adagrad(seed: int) -> Training:
    return taste(seed, lambda p: torch.optim.Adagrad(p, lr=3.0))


def cosine_classifier(seed: int, rate: float) -> Training:
    """Images by SGD with momentum, the rate multiplied by the batch size as for a large one."""
    data = digits(seed).to_images()
    data = replace(data, x=(data.x - 0.3) / 0.38, x_test=(data.x_test - 0.3) / 0.38)
    module = Plain(
        Conv(10, size=8, width=12),
        nn.CrossEntropyLoss(),
        lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, nesterov=True),
        log="step_loss",
        val="val/ce",
    )
    train = loader(data.x, data.y, batch=64, drop_last=True)
    return Training(module, train, data.accuracy, data.val(), {"max_epochs": 12})


@sick("ta-rate-times-batch", "images", "learning-rate-too-high", twin=lambda seed: cosine_classifier(seed, 0.03))
def rate_times_batch(seed: int) -> Training:
    return cosine_classifier(seed, 0.03 * 64 / 2)


# ---- learning-rate-too-low


def ported(seed: int, rate: float) -> Training:
    """A table model whose optimizer line came over from Keras."""
    data = blobs(seed, classes=5, n=2000)
    module = Plain(
        mlp(10, 48, 5), nn.CrossEntropyLoss(), lambda p: torch.optim.Adadelta(p, lr=rate), log="loss", val="val_loss"
    )
    return Training(module, loader(data.x, data.y, batch=32), data.accuracy, data.val(), {"max_epochs": 4})


@sick("ta-keras-adadelta", "tabular", "learning-rate-too-low", twin=lambda seed: ported(seed, 1.0))
def keras_adadelta(seed: int) -> Training:
    return ported(seed, 0.001)


class Forecast(LightningModule):
    """Next value of a series by an LSTM; the rate warms up over forty steps."""

    def __init__(self, absolute: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        self.absolute = absolute

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x[..., None])[0][:, -1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> dict[str, Any]:
        peak = 1e-2
        optimizer = torch.optim.Adam(self.parameters(), lr=peak)
        scale = peak if self.absolute else 1.0
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale * 0.3 * min(1.0, (step + 1) / 40))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def forecast(seed: int, absolute: bool) -> Training:
    data = seasons(seed, n=1200)
    return Training(Forecast(absolute), loader(data.x, data.y, batch=32), data.r2, data.val(), {"max_epochs": 7})


@sick("ta-lambda-returns-rate", "time series", "learning-rate-too-low", twin=lambda seed: forecast(seed, False))
def lambda_rate(seed: int) -> Training:
    return forecast(seed, True)


def probe(seed: int, rate: float) -> Training:
    """Mask prediction with the fine-tuning rate of a far larger model."""
    _, data = shapes(seed, n=400)
    x, x_test = (data.x - 0.2) / 0.25, (data.x_test - 0.2) / 0.25
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 1, 1)
    )
    module = Plain(net, nn.BCEWithLogitsLoss(), lambda p: torch.optim.AdamW(p, lr=rate), log="mask_bce", val=None)

    def score(m: LightningModule) -> float:
        out, real = predict(m, x_test) > 0, data.y_test > 0
        return ((out & real).sum() / (out | real).sum()).item()

    return Training(module, loader(x, data.y, batch=20), score, trainer={"max_epochs": 8})


@sick("ta-fine-tuning-rate", "segmentation", "learning-rate-too-low", twin=lambda seed: probe(seed, 5e-3))
def fine_tuning_rate(seed: int) -> Training:
    return probe(seed, 5e-5)


# ---- learning-rate-decayed-early


class Scheduled(LightningModule):
    """A classifier of signals; the schedule's interval is `interval`."""

    def __init__(self, interval: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=2, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, stride=2, padding=4), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip
        self.interval = interval

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss/train", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.4)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def scheduled(seed: int, interval: str) -> Training:
    data = tones(seed, n=1000)
    return Training(Scheduled(interval), loader(data.x, data.y, batch=40), data.accuracy, trainer={"max_epochs": 10})


@sick("ta-six-steps-not-epochs", "audio", "learning-rate-decayed-early", twin=lambda seed: scheduled(seed, "epoch"))
def six_steps(seed: int) -> Training:
    return scheduled(seed, "step")


class Nodes(LightningModule):
    """A graph network; the rate is lowered where the validation accuracy stays."""

    def __init__(self, adjacency: Tensor, x: Tensor, mode: Any, watch: str) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.register_buffer("x", x)
        self.one, self.two = nn.Linear(12, 24), nn.Linear(24, 4)
        self.mode, self.watch = mode, watch

    def forward(self, nodes: Tensor) -> Tensor:
        h = torch.relu(self.one(self.adjacency @ self.x))
        return self.two(self.adjacency @ h)[nodes]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", accuracy(out, batch[1]))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=8e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.mode, patience=1, factor=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": self.watch}}


def nodes(seed: int, mode: str) -> Training:
    graph = community(seed, nodes=600)
    rest = torch.ones(600, dtype=torch.bool)
    rest[graph.known] = False
    held, test = rest.nonzero()[:100, 0], rest.nonzero()[100:, 0]
    return Training(
        Nodes(graph.adjacency, graph.x, mode, "val_loss"),
        loader(graph.known, graph.y[graph.known], batch=50),
        lambda m: -F.cross_entropy(predict(m, test), graph.y[test]).item(),
        loader(held, graph.y[held], batch=100, shuffle=False),
        {"max_epochs": 30},
    )


@sick("ta-plateau-mode-max", "graphs", "learning-rate-decayed-early", twin=lambda seed: nodes(seed, "min"))
def plateau_mode(seed: int) -> Training:
    return nodes(seed, "max")


class Stepped(LightningModule):
    """Manual optimisation; the rate decays by `gamma` each time the scheduler is called."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp(8, 64, 64, 1, act=nn.SiLU)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = F.mse_loss(self(x), y)
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]
        if (batch_idx + 1) % self.every == 0:
            schedule.step()  # type: ignore[union-attr, call-arg]
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.85)]


def stepped(seed: int, every: int) -> Training:
    data = regression(seed, r2=0.95, n=1920)
    return Training(Stepped(every), loader(data.x, data.y, batch=32), data.r2, trainer={"max_epochs": 8})


@sick("ta-manual-exponential", "regression", "learning-rate-decayed-early", twin=lambda seed: stepped(seed, 60))
def manual_exponential(seed: int) -> Training:
    return stepped(seed, 1)
