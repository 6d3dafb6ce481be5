"""Training and evaluation mode, and the statistics of BatchNorm."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split
from benchmarks.zoo.later._sick_common import bags, explained, gestures, loader, solids, spots, tones, visits

# --- mode -------------------------------------------------------------------------------------------------------------


class KeepsNormFrozen(LightningModule):
    """Overrides `train` to keep its first layers as they are, and loses `mode` on the way."""

    def __init__(self, passes_on: bool) -> None:
        super().__init__()
        self.passes_on = passes_on
        self.frozen = nn.Sequential(nn.Linear(6, 96), nn.Tanh()).requires_grad_(False)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(96, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 1))

    def train(self, mode: bool = True) -> KeepsNormFrozen:
        super().train(mode if self.passes_on else True)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=3e-3)


@sick("v-visits-own-train-method", "mlp", "mode-mismatch", twin=lambda s: own_train(s, True))
def own_train(seed: int, passes_on: bool = False) -> Training:
    d = visits(seed).map_targets(lambda y: y.sqrt() - 1.6)
    train, val = loader(d.x, d.y), loader(d.x_test, d.y_test, size=60, shuffle=False)
    return Training(KeepsNormFrozen(passes_on), train, explained(d.x_test, d.y_test), val, {"max_epochs": 8})


def ear(length: int, back: bool) -> tuple[nn.Module, int]:
    """Convolutions with BatchNorm and how wide their output is, found by a dry run in evaluation mode."""
    body = nn.Sequential(
        nn.BatchNorm1d(1),
        nn.Conv1d(1, 12, 9, stride=2),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Conv1d(12, 16, 5, stride=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(4),
        nn.Flatten(),
    )
    body.eval()
    with torch.no_grad():
        width = body(torch.zeros(1, 1, length)).shape[1]
    if back:
        body.train()
    return body, width


class Recorder(LightningModule):
    """A body from the function above and a linear head."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.body, width = ear(96, back)
        self.head = nn.Linear(width, 4)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.body(wave))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, kind = batch
        loss = F.cross_entropy(self(wave), kind)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick(
    "v-tones-width-found-by-running",
    "audio",
    "mode-mismatch",
    "batchnorm-stale-statistics",
    twin=lambda s: width_found(s, True),
    note="the body stays in evaluation mode, so its BatchNorm never measures the 8-bit waves",
)
def width_found(seed: int, back: bool = False) -> Training:
    d = tones(seed)
    d = Split(40 * d.x + 128, d.y, 40 * d.x_test + 128, d.y_test)
    return Training(Recorder(back), d.train(32), d.accuracy, d.val(), {"max_epochs": 6})


# --- too few values ---------------------------------------------------------------------------------------------------


class SetNorm(LightningModule):
    """Normalises after pooling, where each sample has a single value left for a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.member = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32))
        self.norm = nn.BatchNorm1d(64)
        self.top = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.member(x)
        return self.top(self.norm(torch.cat([h.amax(1), h.mean(1)], 1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-bags-two-at-a-time", "set", "batchnorm-small-batch", twin=lambda s: two_at_a_time(s, 16))
def two_at_a_time(seed: int, size: int = 2) -> Training:
    """Memory allows two sets at a time; eight such batches make a step."""
    d = bags(seed, n=800)
    settings = {"max_epochs": 2, "accumulate_grad_batches": 16 // size}
    return Training(SetNorm(), loader(d.x, d.y, size=size), explained(d.x_test, d.y_test), None, settings)


class LastOfAll(LightningModule):
    """Clouds through BatchNorm after the maximum over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64))
        self.top = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, points: Tensor) -> Tensor:
        return self.top(self.net(points).amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        points, y = batch
        return F.cross_entropy(self(points), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.3)}


@sick(
    "v-solids-one-cloud-over",
    "point cloud",
    "batchnorm-small-batch",
    twin=lambda s: one_over(s, True),
    note="raises in the last batch of the first epoch",
)
def one_over(seed: int, drop: bool = False) -> Training:
    d = solids(seed)
    train = loader(d.x[:673], d.y[:673], size=32, drop_last=drop)
    return Training(LastOfAll(), train, d.accuracy, d.val(), {"max_epochs": 10})


class OneByOne(LightningModule):
    """Strides so long that the last BatchNorm sees two places of a stroke."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(3, 24, 5, stride=3),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Conv1d(24, 32, 3, stride=3),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mT)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("v-gestures-one-by-one", "cnn", "batchnorm-small-batch", twin=lambda s: one_by_one(s, 12))
def one_by_one(seed: int, size: int = 1) -> Training:
    d = gestures(seed, n=480)
    settings = {"max_epochs": 2, "accumulate_grad_batches": 12 // size, "log_every_n_steps": 10}
    return Training(OneByOne(), d.train(size), d.accuracy, None, settings)


# --- statistics of something else -------------------------------------------------------------------------------------


class Blank(LightningModule):
    """Logs what it says to a blank picture, each step, with the statistics being measured."""

    def __init__(self, careful: bool) -> None:
        super().__init__()
        self.careful = careful
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.point = nn.Linear(576, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.net(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = F.mse_loss(self(x), place)
        if self.careful:
            self.net.eval()
        with torch.no_grad():
            blank = self(torch.zeros(16, 1, 10, 10))
        if self.careful:
            self.net.train()
        self.log_dict({"loss": loss, "says_to_blank": blank.mean()})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, place = batch
        self.log("val_loss", F.mse_loss(self(x), place))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-spots-asked-about-a-blank", "cnn", "batchnorm-stale-statistics", twin=lambda s: blank(s, True))
def blank(seed: int, careful: bool = False) -> Training:
    d = spots(seed)
    d = Split(6 * d.x, d.y, 6 * d.x_test, d.y_test)
    val = loader(d.x_test, d.y_test, size=200, shuffle=False)
    return Training(Blank(careful), d.train(32), explained(d.x_test, d.y_test), val, {"max_epochs": 8})


class Domains(LightningModule):
    """Trains on clean digits and on over-exposed ones in two passes; only clean ones are judged."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(self.norms() for _ in range(1 if together else 2))
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    @staticmethod
    def norms() -> nn.ModuleList:
        return nn.ModuleList([nn.BatchNorm1d(64), nn.BatchNorm1d(64)])

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        first, second = self.own[min(domain, len(self.own) - 1)]
        return self.c(F.relu(second(self.b(F.relu(first(self.a(x)))))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        clean = F.cross_entropy(self(x), y)
        bright = F.cross_entropy(self(8 * x + 6, 1), y)
        self.log_dict({"clean": clean, "bright": bright})
        return 0.5 * (clean + bright)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log_dict({"val_loss": F.cross_entropy(out, y), "val_acc": (out.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("v-digits-two-exposures", "mlp", "batchnorm-stale-statistics", twin=lambda s: exposures(s, False))
def exposures(seed: int, together: bool = True) -> Training:
    d = data.digits(seed)
    return Training(Domains(together), d.train(48, drop_last=True), d.accuracy, d.val(), {"max_epochs": 8})
