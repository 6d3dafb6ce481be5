"""Two tasks on one body, one of them ill."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._tabular import digits, explained, loader, predict, split, standardise, table


class InkNet(LightningModule):
    """The digit, and how much ink it took."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()
        )
        self.digit, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.digit(x), self.ink(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, digit, ink = batch
        named, measured = self(x)
        digit_loss, ink_loss = F.cross_entropy(named, digit), F.mse_loss(measured, ink)
        loss = digit_loss + ink_loss
        self.log_dict({"digit_loss": digit_loss, "ink_loss": ink_loss, "train_loss": loss})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("ink-in-nanograms", "multi-task", "unscaled-targets", twin=lambda seed: ink_in_nanograms(seed, unit=1.0))
def ink_in_nanograms(seed: int, unit: float = 2e4) -> Training:
    """The score is the accuracy on the digits, whose loss the other one drowns."""
    torch.manual_seed(seed)
    rows = digits(seed)
    ink = unit * (rows.x.mean((1, 2, 3)) + 0.05 * torch.randn(len(rows.x))) / 0.3
    train = loader(rows.x, rows.y, ink)

    def score(module: LightningModule) -> float:
        return (predict(module, rows.x_test)[0].argmax(1) == rows.y_test).float().mean().item()

    return Training(InkNet(), train, score, trainer={"max_epochs": 8})


class WineNet(LightningModule):
    """The grower, and the colour from the other measurements."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.Tanh())
        self.grower, self.colour = nn.Linear(32, 3), nn.Linear(32, 1)
        self.flat = flat

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        colour = self.colour(x)
        return {"grower": self.grower(x), "colour": colour.flatten() if self.flat else colour}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, grower, colour = batch
        out = self(x)
        loss = F.cross_entropy(out["grower"], grower) + F.smooth_l1_loss(out["colour"], colour)
        self.log("train_loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("colour-as-a-column", "multi-task", "loss-shape-mismatch", twin=lambda seed: colour_as_column(seed, flat=True))
def colour_as_column(seed: int, flat: bool = False) -> Training:
    """The score is R2 for the colour."""
    torch.manual_seed(seed)
    rows = standardise(split(*table("wine"), seed))
    keep = [column for column in range(13) if column != 9]
    colour, colour_test = rows.x[:, 9], rows.x_test[:, 9]
    train = loader(rows.x[:, keep], rows.y, colour, batch_size=8)

    def score(module: LightningModule) -> float:
        out: Any = predict(module, rows.x_test[:, keep])
        return explained(out["colour"], colour_test)

    return Training(WineNet(flat), train, score, trainer={"max_epochs": 25})
