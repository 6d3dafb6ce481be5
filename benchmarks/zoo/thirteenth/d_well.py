"""Healthy trainings: four everyday ones, and four with losses, scales or batches of an unusual kind."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.thirteenth.d_common import Columns, LastState, Supervised, mlp, waves


class DigitNet(LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(512, 10),
        )
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log_dict({"val_loss": F.cross_entropy(logits, y), "val_acc": (logits.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well("ja-digits-one-cycle", "images")
def digits_one_cycle(seed: int) -> Training:
    cut = data.digits(seed).to_images()
    train = cut.train(64, drop_last=True)
    return Training(DigitNet(6 * len(train)), train, cut.accuracy, cut.val(), {"max_epochs": 6})


@well("ja-diabetes-small-net", "tabular", note="R2 near 0.45 is what the table allows")
def diabetes(seed: int) -> Training:
    cut = data.table("diabetes", seed)
    cut = cut.map_targets(lambda y: y[:, None])
    module = Supervised(mlp(10, 12, 1, activation=nn.Tanh), F.mse_loss, 5e-3, torch.optim.AdamW, weight_decay=0.05)
    return Training(module, cut.train(32), cut.r2, cut.val(), {"max_epochs": 8})


@well("ja-waves-gru-plateau-schedule", "series")
def waves_forecast(seed: int) -> Training:
    class Forecast(Supervised):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.RMSprop(self.parameters(), lr=5e-3)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
            return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_loss"}

    cut = waves(seed).map_targets(lambda y: y[:, None])
    module = Forecast(LastState(1, 1, 32), nn.SmoothL1Loss())
    return Training(module, cut.train(32), cut.r2, cut.val(), {"max_epochs": 12, "gradient_clip_val": 2.0})


class GraphNet(LightningModule):
    """Two rounds of messages over a dense graph of each sample; the class is a property of the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.own1, self.near1 = nn.Linear(4, 32), nn.Linear(4, 32)
        self.own2, self.near2 = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        nodes, edges = graph
        share = edges / edges.sum(-1, keepdim=True).clamp(min=1)
        h = F.relu(self.own1(nodes) + self.near1(share @ nodes))
        h = F.relu(self.own2(h) + self.near2(share @ h))
        return self.head(h.mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self((batch["nodes"], batch["edges"])), batch["kind"])
        self.log("graph_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("graph_val", F.cross_entropy(self((batch["nodes"], batch["edges"])), batch["kind"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ja-graph-kinds", "graphs")
def graphs(seed: int) -> Training:
    g = data.generator(seed, 450)
    nodes = torch.randn(1600, 10, 4, generator=g)
    edges = (torch.rand(1600, 10, 10, generator=g) < 0.3).float()
    edges = ((edges + edges.transpose(1, 2)) > 0).float()
    share = edges / edges.sum(-1, keepdim=True).clamp(min=1)
    signal = (F.relu(nodes[..., 0] + 2 * (share @ nodes)[..., 1])).mean(1)
    kind = torch.bucketize(signal, signal.quantile(torch.tensor([1 / 3, 2 / 3])))
    columns = {"nodes": nodes, "edges": edges, "kind": kind}
    train = DataLoader(Columns(**{k: v[:1100] for k, v in columns.items()}), 32, shuffle=True)
    val = DataLoader(Columns(**{k: v[1100:] for k, v in columns.items()}), 250)
    return Training(
        GraphNet(),
        train,
        lambda m: data.accuracy(data.predict(m, (nodes[1100:], edges[1100:])), kind[1100:]),
        val,
        {"max_epochs": 9},
    )


class Appraiser(LightningModule):
    """Takes areas, years and metres as they are and answers in francs; its scales were measured beforehand."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.register_buffer("x_mean", x.mean(0))
        self.register_buffer("x_std", x.std(0))
        self.register_buffer("y_mean", y.mean(0))
        self.register_buffer("y_std", y.std(0))
        self.net = mlp(4, 48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.x_mean) / self.x_std) * self.y_std + self.y_mean

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, francs = batch
        loss = F.mse_loss((self(x) - self.y_mean) / self.y_std, (francs - self.y_mean) / self.y_std)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("ja-francs-scaled-within", "tabular")
def francs(seed: int) -> Training:
    g = data.generator(seed, 451)
    z = torch.randn(2000, 4, generator=g)
    price = z[:, 0] + 0.5 * z[:, 0] * z[:, 1].tanh() + 0.5 * z[:, 2].sin() - 0.3 * z[:, 3]
    price = 640_000 + 150_000 * (price + 0.2 * torch.randn(2000, generator=g))
    x = z * torch.tensor([35.0, 20.0, 900.0, 4000.0]) + torch.tensor([110.0, 1975.0, 2100.0, 9000.0])
    y = price[:, None]
    module = Appraiser(x[:1500], y[:1500])
    train = DataLoader(TensorDataset(x[:1500], y[:1500]), 50, shuffle=True)
    return Training(module, train, lambda m: data.r2(data.predict(m, x[1500:]), y[1500:]), trainer={"max_epochs": 10})


class Experts(LightningModule):
    """A gate weighs the class probabilities of four experts; the loss is the log of the weighed sum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(10, 4)
        self.experts = nn.ModuleList(mlp(10, 16, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([expert(x).log_softmax(-1) for expert in self.experts], 1)
        return torch.logsumexp(self.gate(x).log_softmax(-1)[..., None] + answers, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.nll_loss(self(x), y)
        self.log("nll", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_nll", F.nll_loss(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ja-experts-log-mixture", "tabular", note="accuracy near 0.92 is the best that the clouds allow")
def experts(seed: int) -> Training:
    cut = data.blobs(seed, spread=3.0, n=2400)
    return Training(Experts(), cut.train(64), cut.accuracy, cut.val(), {"max_epochs": 7})


class Quantiles(LightningModule):
    """Five quantiles (N, 5) of each target (N, 1), by the pinball loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 64, 64, 5)
        self.register_buffer("levels", torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        gap = y - self(x)
        loss = torch.maximum(self.levels * gap, (self.levels - 1) * gap).sum(1).mean()
        self.log("pinball", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.4)]


@well("ja-quantiles-pinball", "tabular", note="R2 of the median near 0.7 is the best that the noise allows")
def quantiles(seed: int) -> Training:
    cut = data.regression(seed, r2=0.75, n=3000)
    return Training(
        Quantiles(),
        cut.train(64),
        lambda m: data.r2(data.predict(m, cut.x_test)[:, 2:3], cut.y_test),
        trainer={"max_epochs": 8},
    )


class TwoViews(LightningModule):
    """Two views of one object are to be nearer to each other than to the other objects of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(20, 64, 16), mlp(12, 64, 16)

    def forward(self, views: tuple[Tensor, Tensor]) -> Tensor:
        left, right = F.normalize(self.left(views[0]), dim=-1), F.normalize(self.right(views[1]), dim=-1)
        return left @ right.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        nearness = self((batch[0], batch[1])) / 0.1
        mates = torch.arange(len(nearness))
        loss = 0.5 * (F.cross_entropy(nearness, mates) + F.cross_entropy(nearness.T, mates))
        self.log("contrast", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("ja-two-views-contrast", "metric learning", note="share of 100 objects whose mate is the nearest")
def two_views(seed: int) -> Training:
    g = data.generator(seed, 452)
    latent = torch.randn(2100, 8, generator=g)
    left = torch.tanh(latent @ torch.randn(8, 20, generator=g) / 2) + 0.1 * torch.randn(2100, 20, generator=g)
    right = torch.tanh(latent @ torch.randn(8, 12, generator=g) / 2) + 0.1 * torch.randn(2100, 12, generator=g)
    mates = torch.arange(100)
    return Training(
        TwoViews(),
        DataLoader(TensorDataset(left[:2000], right[:2000]), 100, shuffle=True, drop_last=True),
        lambda m: data.accuracy(data.predict(m, (left[2000:], right[2000:])), mates),
        trainer={"max_epochs": 15},
    )
