"""Tables: mixed and binary columns, several tasks, several labels, rare classes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, Regressor, mlp


@well("one-hot-and-numbers", "table", "one-hot categories beside standardised numbers; R2 about 0.9")
def one_hot_and_numbers(seed: int) -> Training:
    g = data.generator(seed, 41)
    n = 5000
    numbers = torch.randn(n, 4, generator=g)
    kind, place = torch.randint(6, (n,), generator=g), torch.randint(12, (n,), generator=g)
    effect, worth = torch.randn(6, generator=g), torch.randn(12, generator=g)
    y = effect[kind] + worth[place] + numbers[:, 0] * (1 + 0.5 * effect[kind]) + 0.5 * torch.randn(n, generator=g)
    y = (y - y.mean()) / y.std()
    d = data.split(torch.cat([numbers, F.one_hot(kind, 6), F.one_hot(place, 12)], dim=1).float(), y[:, None], seed)
    return Training(Regressor(mlp(22, 64, 1), lr=2e-3), d.train(64), d.r2, d.val(), {"max_epochs": 20})


class BinaryClassifier(LightningModule):
    """One logit, `BCEWithLogitsLoss`, targets of shape (N,)."""

    def __init__(self, net: nn.Module, lr: float, pos_weight: float | None = None) -> None:
        super().__init__()
        self.net = net
        self.lr = lr
        self.loss = nn.BCEWithLogitsLoss(pos_weight=None if pos_weight is None else torch.tensor(pos_weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y.float())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y.float()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def _right(d: data.Split) -> Any:
    return lambda m: ((data.predict(m, d.x_test) > 0) == d.y_test.bool()).float().mean().item()


@well("binary-columns", "table", "questionnaire of yes/no columns, some nearly always no; accuracy about 0.96")
def binary_columns(seed: int) -> Training:
    g = data.generator(seed, 42)
    rate = torch.rand(40, generator=g).square() * 0.6 + 0.02
    x = (torch.rand(6000, 40, generator=g) < rate).float()
    logit = (x - rate) @ (6 * torch.randn(40, generator=g))
    y = (torch.rand(6000, generator=g) < torch.sigmoid(logit)).long()
    d = data.split(x, y, seed)
    return Training(BinaryClassifier(mlp(40, 24, 1), 2e-3), d.train(64), _right(d), d.val(), {"max_epochs": 14})


@well("breast-cancer", "table", "569 patients, standardised; accuracy about 0.97")
def breast_cancer(seed: int) -> Training:
    d = data.table("breast_cancer", seed)
    return Training(BinaryClassifier(mlp(30, 16, 1), 2e-3), d.train(32), _right(d), d.val(), {"max_epochs": 25})


@well("wine-linear", "table", "a linear classifier on 133 wines; accuracy about 0.98")
def wine_linear(seed: int) -> Training:
    d = data.table("wine", seed)
    model = Classifier(nn.Linear(13, 3), optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    return Training(model, d.train(16), d.accuracy, d.val(), {"max_epochs": 40})


@well("iris-small", "table", "112 flowers; accuracy about 0.95")
def iris_small(seed: int) -> Training:
    d = data.table("iris", seed)
    return Training(Classifier(mlp(4, 16, 3), lr=1e-2), d.train(16), d.accuracy, d.val(), {"max_epochs": 50})


@well(
    "nine-to-one",
    "table",
    "nine of ten samples are of one class, yet both are told apart; balanced accuracy about 0.97",
)
def nine_to_one(seed: int) -> Training:
    d = data.blobs(seed, classes=2, spread=3.0, n=4000, shares=torch.tensor([0.9, 0.1]))

    def balanced(m: LightningModule) -> float:
        right = (data.predict(m, d.x_test) > 0) == d.y_test.bool()
        return sum(right[d.y_test == k].float().mean().item() for k in (0, 1)) / 2

    return Training(BinaryClassifier(mlp(10, 16, 1), 3e-3), d.train(64), balanced, d.val(), {"max_epochs": 14})


@well("rare-class-weighted", "table", "3 % positives with `pos_weight`, overlapping; mean of both recalls about 0.9")
def rare_class_weighted(seed: int) -> Training:
    d = data.blobs(seed, classes=2, spread=2.0, n=6000, shares=torch.tensor([0.97, 0.03]))

    def balanced(m: LightningModule) -> float:
        right = (data.predict(m, d.x_test) > 0) == d.y_test.bool()
        return sum(right[d.y_test == k].float().mean().item() for k in (0, 1)) / 2

    return Training(BinaryClassifier(mlp(10, 8, 1), 2e-3, 32.0), d.train(128), balanced, None, {"max_epochs": 12})


@well("multi-label", "table", "eight labels a sample, most of them absent; accuracy over labels about 0.97")
def multi_label(seed: int) -> Training:
    g = data.generator(seed, 43)
    x = torch.randn(5000, 12, generator=g)
    y = (x @ torch.randn(12, 8, generator=g) + 0.3 * torch.randn(5000, 8, generator=g) > 2.5).float()
    d = data.split(x, y, seed)

    class Tagger(BinaryClassifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return Training(Tagger(mlp(12, 48, 8), 3e-3), d.train(64), _right(d), d.val(), {"max_epochs": 15})


class TwoTasks(LightningModule):
    """A shared body, a class and a number; losses of different size, weighed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, 64, 64)
        self.number = nn.Linear(64, 1)
        self.sign = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.body(x))
        return self.number(h), self.sign(h)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, number, sign = batch
        a, b = self(x)
        mse, ce = F.mse_loss(a, number), F.cross_entropy(b, sign)
        self.log_dict({"mse": mse, "ce": ce})
        return {"loss": 10 * mse + ce}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("two-tasks", "table", "a number and a class from one body; mean of R2 (0.9 at best) and accuracy")
def two_tasks(seed: int) -> Training:
    d = data.regression(seed, r2=0.9, n=3000)
    sign, sign_test = (d.x[:, 0] + d.x[:, 1] > 0).long(), (d.x_test[:, 0] + d.x_test[:, 1] > 0).long()
    loader = DataLoader(TensorDataset(d.x, d.y, sign), 64, shuffle=True)

    def score(m: LightningModule) -> float:
        a, b = data.predict(m, d.x_test)
        return (data.r2(a, d.y_test) + data.accuracy(b, sign_test)) / 2

    return Training(TwoTasks(), loader, score, None, {"max_epochs": 18})
