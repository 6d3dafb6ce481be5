"""Samples of a batch that speak to one another, and layers in the wrong mode."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Score,
    accuracy,
    balanced,
    digits,
    loader,
    predict,
    r2,
    split,
    standardise,
    table,
    waves,
)


def _one_by_one(x: Tensor, y: Tensor) -> Score:
    """The accuracy where each row is a batch of its own, as a service would ask."""

    def score(module: LightningModule) -> float:
        return sum(float(predict(module, row[None]).argmax() == label) for row, label in zip(x, y, strict=True)) / len(
            y
        )

    return score


# --- batch-mixing -----------------------------------------------------------------------------------------------------


class WaveNet(LightningModule):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=batch_first)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("lstm-as-it-comes", "lstm", "batch-mixing", twin=lambda seed: lstm_as_it_comes(seed, batch_first=True))
def lstm_as_it_comes(seed: int, batch_first: bool = False) -> Training:
    """Batches of (N, steps, 1) for an LSTM that reads (steps, N, 1)."""
    torch.manual_seed(seed)
    rows = waves(seed)
    train = loader(rows.x, rows.y)
    return Training(WaveNet(batch_first), train, accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 12})


class StepsFirst(LightningModule):
    """Predicts the next value; the recurrent layer wants the steps first."""

    def __init__(self, reshape: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24)
        self.head = nn.Linear(24, 1)
        self.reshape = reshape

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, _ = x.shape
        x = x.reshape(steps, rows, 1) if self.reshape else x.transpose(0, 1)
        return self.head(self.rnn(x)[0][-1]).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("reshaped-to-steps-first", "gru", "batch-mixing", twin=lambda seed: steps_first(seed, reshape=False))
def steps_first(seed: int, reshape: bool = True) -> Training:
    torch.manual_seed(seed)
    rows = waves(seed)
    train = loader(rows.x[:, :-1], rows.x[:, -1, 0])
    score = r2(rows.x_test[:, :-1], y=rows.x_test[:, -1, 0])
    return Training(StepsFirst(reshape), train, score, trainer={"max_epochs": 12})


class Lookup(LightningModule):
    """Attention written by hand: the last token asks for the value that follows it somewhere in the sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        pairs, asked = x[:, :-1].unflatten(1, (-1, 2)), x[:, -1:]
        keys, values = self.embedding(pairs[..., 0]), self.embedding(pairs[..., 1])
        scores = self.query(self.embedding(asked)) @ self.key(keys).transpose(1, 2) / 32**0.5
        weights = F.softmax(scores, dim=self.dim)
        return self.head((weights @ self.value(values)).squeeze(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("attention-down-the-batch", "transformer", "batch-mixing", twin=lambda seed: attention_batch(seed, dim=-1))
def attention_batch(seed: int, dim: int = 0) -> Training:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    keys = torch.rand(2000, 10, generator=random).argsort(1)[:, :5]
    values = torch.randint(10, (2000, 5), generator=random)
    which = torch.randint(5, (2000,), generator=random)
    asked = keys.gather(1, which[:, None])
    x = torch.cat([torch.stack([keys, values + 10], 2).flatten(1), asked], 1)
    rows = split(x, values.gather(1, which[:, None]).squeeze(1), seed)
    train = loader(rows.x, rows.y)
    return Training(Lookup(dim), train, _one_by_one(rows.x_test, rows.y_test), trainer={"max_epochs": 15})


class ScanNet(LightningModule):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)
        self.fc = nn.Linear(576, 10)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.fc(F.relu(self.conv(x)).flatten(1)), dim=self.dim)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.nll_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@sick("log-softmax-of-dim-0", "cnn", "batch-mixing", twin=lambda seed: log_softmax_of_dim_0(seed, dim=1))
def log_softmax_of_dim_0(seed: int, dim: int = 0) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    train = loader(rows.x, rows.y)
    return Training(ScanNet(dim), train, _one_by_one(rows.x_test, rows.y_test), trainer={"max_epochs": 10})


# --- mode-mismatch ----------------------------------------------------------------------------------------------------


class DeepScanNet(LightningModule):
    """The width of the head is found by sending one picture through the features."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside in (1, *[12] * 7):
            layers += [nn.Conv2d(inside, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten())
        self.features.eval()
        with torch.no_grad():
            width = self.features(torch.zeros(1, 1, 8, 8)).shape[1]
        self.features.train(back)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("width-from-a-dry-run", "cnn", "mode-mismatch", twin=lambda seed: width_from_dry_run(seed, back=True))
def width_from_dry_run(seed: int, back: bool = False) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    val = loader(rows.x_test, rows.y_test, batch_size=150, shuffle=False)
    return Training(
        DeepScanNet(back), loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), val, {"max_epochs": 6}
    )


@sick("judged-before-training", "mlp", "mode-mismatch", twin=lambda seed: judged_before_training(seed, back=True))
def judged_before_training(seed: int, back: bool = False) -> Training:
    """The fresh model is judged once, for comparison, and stays in evaluation mode."""
    torch.manual_seed(seed)
    rows = standardise(split(*table("breast_cancer"), seed))
    layers: list[nn.Module] = []
    for inside in (30, *[24] * 5):
        layers += [nn.Linear(inside, 24), nn.BatchNorm1d(24), nn.Sigmoid()]
    module = Classifier(nn.Sequential(*layers, nn.Linear(24, 2)), lr=0.05, optimizer="SGD", momentum=0.9)

    def score(module: LightningModule) -> float:
        return balanced(predict(module, rows.x_test), rows.y_test)

    score(module)
    if back:
        module.train()
    return Training(module, loader(rows.x, rows.y, batch_size=16), score, trainer={"max_epochs": 12})


class DropNet(LightningModule):
    """Dropout on the pixels and on both hidden layers."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 10)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        dropping = self.always or self.training
        x = F.dropout(x.flatten(1), 0.3, training=dropping)
        x = F.dropout(F.relu(self.fc1(x)), 0.5, training=dropping)
        x = F.dropout(F.relu(self.fc2(x)), 0.5, training=dropping)
        return self.fc3(x)

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
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("dropout-as-a-function", "mlp", "mode-mismatch", twin=lambda seed: dropout_as_function(seed, always=False))
def dropout_as_function(seed: int, always: bool = True) -> Training:
    """`F.dropout` is on by default, in evaluation too."""
    torch.manual_seed(seed)
    rows = digits(seed)
    val = loader(rows.x_test, rows.y_test, batch_size=150, shuffle=False)
    score = accuracy(rows.x_test, y=rows.y_test)
    return Training(DropNet(always), loader(rows.x, rows.y), score, val, {"max_epochs": 12})
