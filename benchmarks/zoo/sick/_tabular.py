"""Small data, plain modules and scores that several ill trainings share. Nothing here is ill by itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training

Score = Callable[[LightningModule], float]


class Split(NamedTuple):
    """Rows to train on and rows to judge on."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def table(name: str) -> tuple[Tensor, Tensor]:
    """A data set that comes with scikit-learn, as it is: features (N, D), targets (N,), long unless it is diabetes."""
    kwargs = {"scaled": False} if name == "diabetes" else {}
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True, **kwargs)
    target = torch.tensor(y)
    return torch.tensor(x, dtype=torch.float32), target.float() if name == "diabetes" else target.long()


def split(x: Tensor, y: Tensor, seed: int, test: float = 0.25) -> Split:
    """Rows in random order, the last `test` share of them held out."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = int(len(x) * (1 - test))
    return Split(x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]])


def standardise(rows: Split) -> Split:
    """Each column to mean 0 and spread 1 over the training rows; a column that never changes becomes 0."""
    mean, std = rows.x.mean(0), rows.x.std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return rows._replace(x=(rows.x - mean) / std, x_test=(rows.x_test - mean) / std)


def loader(*tensors: Tensor, batch_size: int = 32, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle)


def digits(seed: int) -> Split:
    """The 8x8 digits as images (N, 1, 8, 8) with pixels 0 to 1."""
    x, y = table("digits")
    return split(x.view(-1, 1, 8, 8) / 16, y, seed)


def waves(seed: int, rows: int = 900, steps: int = 24) -> Split:
    """Noisy waves (N, steps, 1) of three frequencies in random phase; the frequency is the class."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (rows,), generator=random)
    phase = 2 * math.pi * torch.rand(rows, 1, generator=random)
    time = torch.arange(steps) / steps
    x = torch.sin(2 * math.pi * (y[:, None] + 1.0) * time + phase) + 0.2 * torch.randn(rows, steps, generator=random)
    return split(x[..., None], y, seed)


def surface(seed: int, rows: int = 900, columns: int = 6, noise: float = 0.1) -> Split:
    """A smooth regression on standard normal columns; the targets have mean 0 and spread 1."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=random)
    y = x[:, 0] + torch.sin(2 * x[:, 1]) + x[:, 2] * x[:, 3] + noise * torch.randn(rows, generator=random)
    return split(x, (y - y.mean()) / y.std(), seed)


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given widths with an activation between them and none at the end."""
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(widths):
        layers += [nn.Linear(inside, outside), activation()]
    return nn.Sequential(*layers[:-1])


class Classifier(LightningModule):
    """`net` gives one logit a class."""

    def __init__(self, net: nn.Module, lr: float = 1e-3, optimizer: str = "Adam", **options: Any) -> None:
        super().__init__()
        self.net = net
        self.lr, self.optimizer, self.options = lr, optimizer, options

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
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr, **self.options)


class Regressor(Classifier):
    """`net` gives one number a row, (N, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y))


def predict(module: LightningModule, *inputs: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module(*inputs)


def accuracy(*inputs: Tensor, y: Tensor) -> Score:
    """The share of rows whose largest logit is their class."""
    return lambda module: (predict(module, *inputs).argmax(-1) == y).float().mean().item()


def balanced(logits: Tensor, y: Tensor) -> float:
    """Accuracy averaged over the classes, for (N, classes) logits."""
    right = (logits.argmax(-1) == y).float()
    return torch.stack([right[y == label].mean() for label in y.unique()]).mean().item()


def explained(prediction: Tensor, y: Tensor) -> float:
    """R2 over all entries; no less than -1, which is also what a prediction that is not finite gets."""
    value = 1 - F.mse_loss(prediction.reshape(y.shape), y).item() / y.var(unbiased=False).item()
    return max(-1.0, value) if math.isfinite(value) else -1.0


def r2(*inputs: Tensor, y: Tensor) -> Score:
    return lambda module: explained(predict(module, *inputs), y)


class Diagnosis(LightningModule):
    """Malignant or benign, one output."""

    def __init__(self, last: nn.Module, loss: nn.Module, threshold: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1), last)
        self.loss = loss
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y.float().unsqueeze(1))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", ((self(x)[:, 0] > self.threshold) == y.bool()).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def diagnosis(seed: int, last: nn.Module, loss: nn.Module, threshold: float) -> Training:
    """Breast cancer by one output that is called benign above `threshold`; scored by accuracy over the two classes."""
    rows = standardise(split(*table("breast_cancer"), seed))

    def score(module: LightningModule) -> float:
        margin = predict(module, rows.x_test)[:, 0] - threshold
        return balanced(torch.stack([torch.zeros_like(margin), margin], 1), rows.y_test)

    val = loader(rows.x_test, rows.y_test, batch_size=143, shuffle=False)
    train = loader(rows.x, rows.y, batch_size=16)
    return Training(Diagnosis(last, loss, threshold), train, score, val, {"max_epochs": 12})
