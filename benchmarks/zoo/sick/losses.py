"""Losses that receive what they do not expect, and losses that do not fit the task."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    accuracy,
    digits,
    loader,
    mlp,
    predict,
    r2,
    split,
    standardise,
    surface,
    table,
    waves,
)

# --- probabilities-as-logits ------------------------------------------------------------------------------------------


@sick("softmax-at-the-end", "mlp", "probabilities-as-logits", twin=lambda seed: softmax_at_end(seed, last=nn.Identity))
def softmax_at_end(seed: int, last: type[nn.Module] = nn.Softmax) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    end = last(dim=1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), end)
    module = Classifier(net, lr=0.05, optimizer="SGD")
    val = loader(rows.x_test, rows.y_test, batch_size=150, shuffle=False)
    return Training(module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), val, {"max_epochs": 10})


class TokenNet(LightningModule):
    """Which token of the sequence is the most frequent."""

    def __init__(self, tokens: int, normalise: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, tokens)
        self.normalise = normalise

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.encoder(self.embedding(x)).mean(1))
        return F.softmax(scores, dim=-1) if self.normalise else F.log_softmax(scores, dim=-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.nll_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


@sick(
    "likelihood-of-softmax",
    "transformer",
    "probabilities-as-logits",
    twin=lambda seed: nll_softmax(seed, normalise=False),
)
def nll_softmax(seed: int, normalise: bool = True) -> Training:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(60, (2000,), generator=random)
    x = torch.randint(60, (2000, 12), generator=random)
    x = torch.where(torch.rand(x.shape, generator=random) < 0.4, y[:, None], x)
    rows = split(x, y, seed)
    return Training(
        TokenNet(60, normalise), loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 8}
    )


class TagNet(LightningModule):
    """Several tags a row, each of them rare."""

    def __init__(self, last: nn.Module, threshold: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 12), last)
        self.threshold = threshold
        self.criterion = nn.BCEWithLogitsLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def predict_step(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self(x) > self.threshold

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("sigmoid-before-its-loss", "multi-label", "probabilities-as-logits", twin=lambda seed: sigmoid_tags(seed, True))
def sigmoid_tags(seed: int, logits: bool = False) -> Training:
    """The score is F1 over all tags."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1500, 16, generator=random)
    y = (x @ torch.randn(16, 12, generator=random) / 4 > 1.2).float()
    rows = split(x, y, seed)
    module = TagNet(nn.Identity(), 0.0) if logits else TagNet(nn.Sigmoid(), 0.5)

    def score(module: LightningModule) -> float:
        tags = (predict(module, rows.x_test) > module.threshold).float()
        return (2 * (tags * rows.y_test).sum() / (tags.sum() + rows.y_test.sum())).item()

    return Training(module, loader(rows.x, rows.y), score, trainer={"max_epochs": 15})


# --- loss-shape-mismatch ----------------------------------------------------------------------------------------------


class Progression(LightningModule):
    """How far the disease has come after a year."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("column-against-row", "mlp", "loss-shape-mismatch", twin=lambda seed: column_against_row(seed, column=True))
def column_against_row(seed: int, column: bool = False) -> Training:
    torch.manual_seed(seed)
    rows = standardise(split(*table("diabetes"), seed))
    y, y_test = (rows.y - 150) / 80, (rows.y_test - 150) / 80
    train = loader(rows.x, y[:, None] if column else y, batch_size=16)
    return Training(Progression(), train, r2(rows.x_test, y=y_test), trainer={"max_epochs": 15})


class Surface(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.head = nn.Linear(64, 1)
        self.criterion = nn.L1Loss()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch["x"]), batch["y"])
        self.log("train_mae", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick("targets-kept-as-a-column", "mlp", "loss-shape-mismatch", twin=lambda seed: kept_as_column(seed, column=False))
def kept_as_column(seed: int, column: bool = True) -> Training:
    torch.manual_seed(seed)
    rows = surface(seed)
    samples = [{"x": x, "y": y[None] if column else y} for x, y in zip(rows.x, rows.y, strict=True)]
    train = torch.utils.data.DataLoader(samples, batch_size=32, shuffle=True)  # type: ignore[arg-type,var-annotated]
    return Training(Surface(), train, r2(rows.x_test, y=rows.y_test), trainer={"max_epochs": 15})


class Forecaster(LightningModule):
    """The next value of a series."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.lstm(x)[0][:, -1])
        return y.squeeze(1) if self.squeeze else y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = ((self(x) - y) ** 2).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", ((self(x) - y) ** 2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("squared-by-hand", "lstm", "loss-shape-mismatch", twin=lambda seed: squared_by_hand(seed, squeeze=True))
def squared_by_hand(seed: int, squeeze: bool = False) -> Training:
    torch.manual_seed(seed)
    rows = waves(seed)
    train = loader(rows.x[:, :-1], rows.x[:, -1, 0])
    val = loader(rows.x_test[:, :-1], rows.x_test[:, -1, 0], batch_size=75, shuffle=False)
    score = r2(rows.x_test[:, :-1], y=rows.x_test[:, -1, 0])
    return Training(Forecaster(squeeze), train, score, val, {"max_epochs": 12})
