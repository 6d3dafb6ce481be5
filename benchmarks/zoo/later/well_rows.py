"""Tables: noise that cannot be told, few rows, few steps, rare classes, linear truths."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_linnerud,
    load_wine,
    make_multilabel_classification,
)
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict, split
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, stack


class Ridge(LightningModule):
    """A linear model with its penalty in the loss, which therefore stays above the error."""

    def __init__(self, columns: int, penalty: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(columns))
        self.b = nn.Parameter(torch.zeros(()))
        self.penalty = penalty

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y) + self.penalty * self.w.square().sum()
        self.log("objective", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=0.05)
        return [opt], [torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + 0.3 * epoch))]


@well("v-ridge-for-diabetes", "linear", "R2 on a quarter of the rows, as scikit-learn's ridge: 0.4 to 0.5")
def ridge(seed: int) -> Training:
    x, y = load_diabetes(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), seed).standardised()
    mean, std = d.y.mean(), d.y.std()
    d = d.map_targets(lambda t: (t - mean) / std)
    module = Ridge(10, 0.01)
    return Training(module, d.train(32), explained(d.x_test, d.y_test), trainer={"max_epochs": 30})


@well("v-plain-line", "linear", "R2 0.9, all that the noise leaves, by a linear layer alone")
def line(seed: int) -> Training:
    g = generator(seed, 661)
    x = torch.randn(1500, 12, generator=g)
    clean = x @ torch.randn(12, generator=g)
    y = clean / clean.std() + 0.333 * torch.randn(1500, generator=g)

    class Line(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).squeeze(-1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=2e-2)

    return Training(
        Line(), loader(x[:1000], y[:1000], size=40), explained(x[1000:], y[1000:]), trainer={"max_epochs": 10}
    )


class Weather(LightningModule):
    """Only a fifth of the variance can be told: the loss falls from 1.0 to 0.8 and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = (self(batch["x"]) - batch["y"]).pow(2).mean()
        self.log("train/mse", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/mse", (self(batch["x"]) - batch["y"]).pow(2).mean())

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)}


@well("v-a-fifth-can-be-told", "regression", "R2 against 0.2 at best")
def weather(seed: int) -> Training:
    g = generator(seed, 662)
    x = torch.randn(6000, 7, generator=g)
    clean = x[:, 0] + 0.7 * x[:, 1].abs() + 0.5 * x[:, 2] * (x[:, 3] > 0)
    y = math.sqrt(0.2) * (clean - clean.mean()) / clean.std() + math.sqrt(0.8) * torch.randn(6000, generator=g)
    rows: Any = [{"x": x[i], "y": y[i, None]} for i in range(6000)]
    train = DataLoader(rows[:3000], batch_size=100, shuffle=True)
    val = DataLoader(rows[3000:4000], batch_size=500)
    return Training(Weather(), train, explained(x[4000:], y[4000:, None]), val, {"max_epochs": 8})


@well("v-irises-by-a-fifth", "tiny", "accuracy on a fifth of the irises, 0.93 and more")
def irises(seed: int) -> Training:
    x, y = load_iris(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.8).standardised()

    class Flower(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.hidden(x)))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.nll_loss(self(batch[0]).log_softmax(1), batch[1])
            self.log("nll", loss, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_nll", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=2e-2, weight_decay=1e-3)

    return Training(Flower(), d.train(24), hit_rate(d.x_test, d.y_test), d.val(), {"max_epochs": 30})


@well("v-forty-steps-for-wine", "short", "accuracy 0.96 and more after forty steps")
def forty_steps(seed: int) -> Training:
    x, y = load_wine(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed).standardised()

    class Few(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(32), nn.SELU(), nn.LazyLinear(3))
            self.net(torch.zeros(2, 13))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    settings = {"max_steps": 40, "log_every_n_steps": 1}
    return Training(Few(), d.train(32), hit_rate(d.x_test, d.y_test), trainer=settings)


class Wisconsin(LightningModule):
    """Twenty-five steps of a logistic regression, then done."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.linear(x), (1, 0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x)[:, 1], y.float())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.8)


@well("v-twenty-five-steps", "short", "accuracy on breast cancer 0.96 and more")
def twenty_five(seed: int) -> Training:
    x, y = load_breast_cancer(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed).standardised()
    return Training(Wisconsin(), d.train(64), hit_rate(d.x_test, d.y_test), trainer={"max_steps": 25})


class Sorted(LightningModule):
    """Its validation batches hold one digit each, so single validation batches look like collapse."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 80), nn.BatchNorm1d(80), nn.LeakyReLU())
        self.classifier = nn.Linear(80, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self(batch[0])
        self.log("val_ce", F.cross_entropy(z, batch[1]))
        self.log("val_acc", (z.argmax(1) == batch[1]).float().mean())
        return z

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


@well(
    "v-validated-digit-by-digit", "mlp", "accuracy 0.97; the training batches are shuffled, those of validation sorted"
)
def digit_by_digit(seed: int) -> Training:
    x, y = load_digits(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), seed)
    order = d.y_test.argsort(stable=True)
    val = loader(d.x_test[order], d.y_test[order], size=45, shuffle=False)
    return Training(Sorted(), d.train(50, drop_last=True), hit_rate(d.x_test, d.y_test), val, {"max_epochs": 9})


@well(
    "v-logs-of-counts",
    "regression",
    "R2 against 0.8 at best; inputs are log1p of counts, many nought, means from 0.1 to 6",
)
def log_counts(seed: int) -> Training:
    g = generator(seed, 663)
    level = torch.tensor([0.1, 0.3, 0.8, 2.0, 8.0, 30.0, 120.0, 400.0])
    counts = torch.poisson(level * torch.exp(0.8 * torch.randn(3000, 8, generator=g)), generator=g)
    x = counts.log1p()
    clean = x @ torch.tensor([0.5, 0.5, -0.6, 0.4, -0.5, 0.4, 0.3, -0.4]) + 0.6 * torch.sin(x[:, 5])
    clean = (clean - clean.mean()) / clean.std()
    y = 0.894 * clean + 0.447 * torch.randn(3000, generator=g)

    class Counts(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[:, 0]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            opt = torch.optim.Adam(self.parameters(), lr=8e-3)
            return [opt], [torch.optim.lr_scheduler.StepLR(opt, 6, 0.3)]

    train = loader(x[:2000], y[:2000], size=64, drop_last=True)
    return Training(Counts(), train, explained(x[2000:], y[2000:]), trainer={"max_epochs": 10})


class Rare(LightningModule):
    """One row in a hundred is fraud, and it is found: weights in the loss, ids and flags among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shop = nn.Embedding(60, 6)
        self.net = stack(6 + 3 + 2, 48, 2)
        self.register_buffer("weight", torch.tensor([1.0, 12.0]))

    def forward(self, row: dict[str, Tensor]) -> Tensor:
        return self.net(torch.cat([self.shop(row["shop"]), row["flags"], row["amounts"]], 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch), batch["fraud"], weight=self.weight)
        self.log("loss", loss, batch_size=len(batch["fraud"]))
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=8e-3, weight_decay=1e-2)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.05, 320), "interval": "step"}]


@well("v-one-fraud-in-a-hundred", "tabular", "area under the curve 0.97 and more")
def fraud(seed: int) -> Training:
    g = generator(seed, 664)
    n = 12000
    fraud = (torch.rand(n, generator=g) < 0.01).long()
    shop = torch.where(fraud * torch.rand(n, generator=g) > 0.35, torch.randint(8, (n,), generator=g), -1)
    shop = torch.where(shop < 0, torch.randint(60, (n,), generator=g), shop)
    flags = (torch.rand(n, 3, generator=g) < torch.where(fraud[:, None] > 0, 0.75, 0.12)).float()
    amounts = torch.randn(n, 2, generator=g) + 1.7 * fraud[:, None]
    rows: Any = {"shop": shop, "flags": flags, "amounts": amounts, "fraud": fraud}
    listed: Any = [{k: v[i] for k, v in rows.items()} for i in range(8000)]
    new = {k: v[8000:] for k, v in rows.items()}
    score = lambda m: float(roc_auc_score(new["fraud"], predict(m, new).diff(dim=1)))  # noqa: E731
    return Training(Rare(), DataLoader(listed, batch_size=200, shuffle=True), score, trainer={"max_epochs": 8})


@well("v-many-labels-a-row", "multi-label", "F1 over six labels, near a forest's")
def many_labels(seed: int) -> Training:
    x, y = make_multilabel_classification(2500, 20, n_classes=6, n_labels=2, random_state=seed)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), seed, 0.6).standardised()

    class Labels(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            each = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1], reduction="none")
            self.log_dict({f"label_{k}": v for k, v in enumerate(each.mean(0))})
            return each.sum(1).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.binary_cross_entropy_with_logits(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=3e-3, weight_decay=1e-3)

    score = lambda m: float(f1_score(d.y_test, predict(m, d.x_test) > 0, average="micro"))  # noqa: E731
    return Training(Labels(), d.train(50), score, d.val(), {"max_epochs": 10})


class Gymnasts(LightningModule):
    """Twenty rows, three targets, a linear layer: more would be too much."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.02)


@well("v-twenty-gymnasts", "tiny", "R2 on the rows themselves, as least squares: 0.3; all in one batch")
def gymnasts(seed: int) -> Training:
    raw = load_linnerud()
    x, y = (torch.tensor(v, dtype=torch.float32) for v in (raw.data, raw.target))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    return Training(
        Gymnasts(), loader(x, y, size=20), explained(x, y), trainer={"max_epochs": 80, "log_every_n_steps": 1}
    )
