"""Sick trainings whose step is of the wrong size: rates, schedules and clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.eleventh.a_common import (
    Network,
    Plain,
    dense,
    figures,
    iou,
    loader,
    log_likelihood,
    ratings,
    reviews,
    series,
    steps,
    tones,
)


class Topics(LightningModule):
    """A small encoder over words, with the warm-up and the linear decay of the fine-tuning recipes."""

    def __init__(self, lr: float, total: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(80, 32, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(20, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.encoder(self.embed(ids) + self.place, src_key_padding_mask=ids == 0)
        keep = (ids != 0).unsqueeze(-1)
        return self.head((hidden * keep).sum(1) / keep.sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.01)
        warm, total = self.hparams.total // 10, self.hparams.total

        def shape(step: int) -> float:
            return (step + 1) / warm if step < warm else max(0.0, (total - step) / (total - warm))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def topics(seed: int, *, lr: float = 1e-3) -> Training:
    d = reviews(seed)
    return Training(Topics(lr, 240), d.train(32), d.accuracy, d.val(), steps(240))


@sick("ea-encoder-rate-2e-5", "transformer", "learning-rate-too-low", twin=topics)
def encoder_slow(seed: int) -> Training:
    return topics(seed, lr=2e-5)


def digit_conv(seed: int, *, lr: float = 0.2) -> Training:
    d = data.digits(seed).to_images()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten()
    )
    net.append(nn.Linear(128, 10))
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=lr))
    return Training(module, d.train(48), d.accuracy, trainer=steps(200))


@sick("ea-sgd-with-adams-rate", "images", "learning-rate-too-low", twin=digit_conv)
def digit_conv_slow(seed: int) -> Training:
    return digit_conv(seed, lr=1e-3)


class Pitch(LightningModule):
    def __init__(self, batch_size: int, reference: int) -> None:
        super().__init__()
        self.lr = 0.05 * batch_size / reference  # linear scaling rule
        self.body = nn.Sequential(
            nn.Conv1d(1, 12, 9, stride=2), nn.ReLU(), nn.Conv1d(12, 24, 7, stride=2), nn.ReLU(), nn.AdaptiveMaxPool1d(1)
        )
        self.out = nn.Linear(24, 5)

    def forward(self, wave: Tensor) -> Tensor:
        return self.out(self.body(wave).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss_step", loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def pitch(seed: int, *, reference: int = 64) -> Training:
    d = tones(seed)
    return Training(Pitch(64, reference), d.train(64), d.accuracy, trainer=steps(250))


@sick("ea-scaling-rule-per-sample", "audio", "learning-rate-too-high", twin=pitch)
def pitch_fast(seed: int) -> Training:
    return pitch(seed, reference=1)


class NextCharacter(LightningModule):
    def __init__(self, symbols: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.tokens = nn.Embedding(symbols, 32)
        self.positions = nn.Embedding(32, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(32)
        self.out = nn.Linear(32, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.tokens(ids) + self.positions(torch.arange(length))
        return self.out(self.norm(self.block(hidden, src_mask=mask, is_causal=True)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (ids,) = batch
        logits = self(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.log("nll", loss)
        self.log("ppl", loss.exp())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def next_character(seed: int, *, lr: float = 3e-3) -> Training:
    text = data.characters(seed)
    return Training(
        NextCharacter(text.symbols, lr),
        loader([text.train], 32),
        lambda m: log_likelihood(m, text.test[:, :-1], text.test[:, 1:]),
        trainer=steps(300),
    )


@sick("ea-character-adam-0.1", "language", "learning-rate-too-high", twin=next_character)
def next_character_fast(seed: int) -> Training:
    return next_character(seed, lr=0.1)


class Motifs(LightningModule):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.lstm = nn.LSTM(1, 32, num_layers=2, batch_first=True)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.rate)


def motifs(seed: int, *, rate: float = 3e-3) -> Training:
    d = data.motifs(seed)
    return Training(Motifs(rate), d.train(40), d.accuracy, trainer=steps(300))


@sick("ea-lstm-rmsprop-0.1", "sequence", "learning-rate-too-high", twin=motifs)
def motifs_fast(seed: int) -> Training:
    return motifs(seed, rate=0.1)


class Segment(LightningModule):
    """Trained for 10 epochs; the drop of the rate is meant for the last ones."""

    def __init__(self, interval: str) -> None:
        super().__init__()
        self.interval = interval
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.last = nn.Conv2d(13, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([torch.relu(self.up(self.down(x))), x], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, mask = batch["image"], batch["mask"]
        loss = F.cross_entropy(self(image), mask)
        self.log("seg_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def named(rows: list[Any]) -> dict[str, Tensor]:
    return {"image": torch.stack([r[0] for r in rows]), "mask": torch.stack([r[1] for r in rows])}


def segment(seed: int, *, interval: str = "epoch") -> Training:
    d = figures(seed)
    return Training(
        Segment(interval),
        d.train(25, collate_fn=named),
        lambda m: iou(data.predict(m, d.x_test), d.y_test),
        trainer={"max_epochs": 10},
    )


@sick("ea-step-lr-by-batch", "segmentation", "learning-rate-decayed-early", twin=segment)
def segment_early(seed: int) -> Training:
    return segment(seed, interval="step")


class Taste(LightningModule):
    """Factors of users and items; the polynomial decay is stepped by hand."""

    def __init__(self, epochs: int, per_epoch: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.per_epoch = per_epoch
        self.epochs = epochs
        self.user, self.item = nn.Embedding(50, 8), nn.Embedding(60, 8)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.user(pairs[:, 0]) * self.item(pairs[:, 1])).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = F.mse_loss(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if not self.per_epoch:
            schedule.step()
        return loss

    def on_train_epoch_end(self) -> None:
        if self.per_epoch:
            self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=self.epochs, power=0.9)]


def taste(seed: int, *, per_epoch: bool = True) -> Training:
    d = ratings(seed)
    return Training(Taste(8, per_epoch), d.train(100), d.r2, trainer={"max_epochs": 8})


@sick("ea-polynomial-by-batch", "recommender", "learning-rate-decayed-early", twin=taste)
def taste_early(seed: int) -> Training:
    return taste(seed, per_epoch=False)


class Nodes(LightningModule):
    def __init__(self, graph: Network) -> None:
        super().__init__()
        self.register_buffer("adjacency", graph.adjacency)
        self.register_buffer("features", graph.features)
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.adjacency @ self.first(self.features))
        return (self.adjacency @ self.second(hidden))[ids]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def nodes(seed: int, *, clip: float = 1.0) -> Training:
    graph = Network(seed)
    return Training(
        Nodes(graph),
        loader([graph.train, graph.labels[graph.train]], 50),
        lambda m: data.accuracy(data.predict(m, graph.test), graph.labels[graph.test]),
        trainer=steps(120, gradient_clip_val=clip),
    )


@sick("ea-graph-clip-0.001", "graph", "clipping-too-tight", twin=nodes)
def nodes_clipped(seed: int) -> Training:
    return nodes(seed, clip=0.001)


class Ahead(LightningModule):
    """Forecast with two causal convolutions, optimised by hand."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bound = bound
        self.conv1, self.conv2 = nn.Conv1d(1, 16, 5), nn.Conv1d(16, 16, 5)
        self.fc = nn.Linear(16 * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv1(x.transpose(1, 2)))
        return self.fc(torch.relu(self.conv2(h)).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        opt = self.optimizers()
        loss = F.mse_loss(self(batch[0]), batch[1])
        opt.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_value_(self.parameters(), self.bound)
        opt.step()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


def ahead(seed: int, *, bound: float = 1.0) -> Training:
    d = series(seed)
    return Training(Ahead(bound), d.train(32), d.r2, trainer=steps(200))


@sick("ea-clip-each-value-5e-5", "time series", "clipping-too-tight", twin=ahead)
def ahead_clipped(seed: int) -> Training:
    return ahead(seed, bound=5e-5)


class Angles(LightningModule):
    """An angle told as a point on the circle."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = dense(6, 64, 64, 2, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, angle = batch
        loss = F.mse_loss(self(x), torch.stack([angle.cos(), angle.sin()], 1))
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=self.lr)


def angles(seed: int, *, lr: float = 0.05) -> Training:
    g = data.generator(seed, 31)
    x = torch.randn(2400, 6, generator=g)
    angle = torch.atan2(x[:, 0] + 0.5 * x[:, 1] * x[:, 2], x[:, 3] - 0.4 * x[:, 4].sin()) % (2 * math.pi)

    def score(module: LightningModule) -> float:
        out = data.predict(module, x[1800:])
        return torch.cos(torch.atan2(out[:, 1], out[:, 0]) - angle[1800:]).mean().item()

    return Training(Angles(lr), loader([x[:1800], angle[:1800]], 64), score, trainer=steps(300))


@sick("ea-adagrad-1e-4", "tabular", "learning-rate-too-low", twin=angles)
def angles_slow(seed: int) -> Training:
    return angles(seed, lr=1e-4)
