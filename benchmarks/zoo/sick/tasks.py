"""Losses that do not fit the task, sums where a mean was meant, signs turned round."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import (
    Classifier,
    Regressor,
    accuracy,
    diagnosis,
    digits,
    loader,
    mlp,
    predict,
    r2,
    split,
)

# --- wrong-loss-for-task ----------------------------------------------------------------------------------------------


@sick("digit-as-a-number", "cnn", "wrong-loss-for-task", twin=lambda seed: digit_as_number(seed, classes=10))
def digit_as_number(seed: int, classes: int = 1) -> Training:
    """The value of the digit as a regression; the score is the share of digits that the rounded value names."""
    torch.manual_seed(seed)
    rows = digits(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )
    if classes > 1:
        module = Classifier(net, lr=3e-3)
        return Training(
            module, loader(rows.x, rows.y), accuracy(rows.x_test, y=rows.y_test), trainer={"max_epochs": 12}
        )

    def score(module: LightningModule) -> float:
        return (predict(module, rows.x_test).round().clamp(0, 9) == rows.y_test).float().mean().item()

    return Training(Regressor(net, lr=3e-3), loader(rows.x, rows.y.float()), score, trainer={"max_epochs": 12})


@sick(
    "cross-entropy-of-one-output",
    "mlp",
    "wrong-loss-for-task",
    twin=lambda seed: one_output(seed, nn.BCEWithLogitsLoss),
)
def one_output(seed: int, loss: type[nn.Module] = nn.CrossEntropyLoss) -> Training:
    torch.manual_seed(seed)
    return diagnosis(seed, nn.Identity(), loss(), 0.0)


class VAE(LightningModule):
    def __init__(self, sign: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        mean, logvar = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + torch.randn_like(mean) * (0.5 * logvar).exp())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        mean, logvar = self.encoder(x).chunk(2, 1)
        again = self.decoder(mean + torch.randn_like(mean) * (0.5 * logvar).exp())
        reconstruction = F.binary_cross_entropy(again, x, reduction="sum") / len(x)
        divergence = 0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()
        loss = reconstruction + self.sign * divergence
        self.log_dict({"loss": loss, "reconstruction": reconstruction, "divergence": divergence})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick(
    "divergence-with-the-other-sign", "vae", "wrong-loss-for-task", twin=lambda seed: divergence_sign(seed, sign=-1.0)
)
def divergence_sign(seed: int, sign: float = 1.0) -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    x, x_test = rows.x.flatten(1), rows.x_test.flatten(1)
    return Training(VAE(sign), loader(x), r2(x_test, y=x_test), trainer={"max_epochs": 15})


class Matcher(LightningModule):
    """Maps a picture to the direction of its pair."""

    def __init__(self, negate: bool) -> None:
        super().__init__()
        self.net = mlp(20, 64, 8)
        self.negate = negate

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, pair = batch
        similarity = F.cosine_similarity(self(x), pair).mean()
        loss = 1 - similarity if self.negate else similarity
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, pair = batch
        self.log("val_similarity", F.cosine_similarity(self(x), pair).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick(
    "similarity-as-a-loss",
    "metric-learning",
    "wrong-loss-for-task",
    twin=lambda seed: similarity_loss(seed, negate=True),
)
def similarity_loss(seed: int, negate: bool = False) -> Training:
    """The score is the mean cosine similarity with the pair."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 20, generator=random)
    rows = split(x, torch.tanh(x @ torch.randn(20, 8, generator=random)), seed)

    def score(module: LightningModule) -> float:
        return F.cosine_similarity(predict(module, rows.x_test), rows.y_test).mean().item()

    val = loader(rows.x_test, rows.y_test, batch_size=125, shuffle=False)
    return Training(Matcher(negate), loader(rows.x, rows.y), score, val, {"max_epochs": 12})


class SumAutoencoder(LightningModule):
    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.encoder = mlp(64, 32, 16)
        self.decoder = mlp(16, 32, 64)
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x), x, reduction=self.reduction)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


@sick(
    "squares-summed",
    "autoencoder",
    "wrong-loss-for-task",
    "learning-rate-too-high",
    twin=lambda seed: squares_summed(seed, reduction="mean"),
    note="a rate meant for a mean over 32 x 64 entries; dividing the rate by 2048 mends it as well",
)
def squares_summed(seed: int, reduction: str = "sum") -> Training:
    torch.manual_seed(seed)
    rows = digits(seed)
    x, x_test = rows.x.flatten(1), rows.x_test.flatten(1)
    return Training(SumAutoencoder(reduction), loader(x), r2(x_test, y=x_test), trainer={"max_epochs": 10})
