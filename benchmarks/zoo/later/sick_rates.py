"""Learning rates and schedules as they are copied, forgotten or stepped at the wrong place."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.later._sick_common import (
    Records,
    bags,
    communities,
    demand,
    explained,
    gestures,
    loader,
    melodies,
    ratings,
    reviews,
    solids,
    spots,
    tones,
)

# --- too high ---------------------------------------------------------------------------------------------------------


class Listener(LightningModule):
    """Convolutions over a wave; the rate is a hyperparameter that came from another project's config."""

    def __init__(self, rate: float, width: int = 12) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.ears = nn.Sequential(
            nn.Conv1d(1, width, 9, stride=2), nn.ReLU(), nn.Conv1d(width, 2 * width, 5, stride=2), nn.ReLU()
        )
        self.classify = nn.Linear(8 * width, 4)

    def forward(self, wave: Tensor) -> Tensor:
        return self.classify(F.adaptive_max_pool1d(self.ears(wave), 4).flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        wave, kind = batch
        scores = self(wave)
        loss = F.cross_entropy(scores, kind)
        self.log_dict({"loss": loss.detach(), "hits": (scores.argmax(1) == kind).float().mean()}, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.hparams.rate, betas=(0.9, 0.98))


@sick("v-tones-rate-from-config", "audio", "learning-rate-too-high", twin=lambda s: tones_config(s, 2e-3))
def tones_config(seed: int, rate: float = 0.2) -> Training:
    d = tones(seed)
    return Training(Listener(rate), d.train(32), d.accuracy, None, {"max_epochs": 8, "log_every_n_steps": 10})


class Tastes(LightningModule):
    """Factorises ratings: a vector and a bias for each user and each film."""

    def __init__(self, rate: float, factors: int = 6) -> None:
        super().__init__()
        self.rate = rate
        self.user, self.film = nn.Embedding(60, factors), nn.Embedding(50, factors)
        self.user_bias, self.film_bias = nn.Embedding(60, 1), nn.Embedding(50, 1)
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=0.5)
        for bias in (self.user_bias, self.film_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, pair: Tensor) -> Tensor:
        u, f = pair.unbind(1)
        return (self.user(u) * self.film(f)).sum(1) + self.user_bias(u)[:, 0] + self.film_bias(f)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, stars = batch
        return (self(pair) - stars).square().mean()

    def configure_optimizers(self) -> list[Any]:
        return [torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)]


@sick("v-ratings-fast-factors", "recommender", "learning-rate-too-high", twin=lambda s: fast_factors(s, 0.6))
def fast_factors(seed: int, rate: float = 12.0) -> Training:
    d = ratings(seed)
    return Training(Tastes(rate), loader(d.x, d.y, size=64), explained(d.x_test, d.y_test), None, {"max_epochs": 10})


class Stroke(LightningModule):
    """Convolutions over time whose rate is warmed up over 60 steps to a peak, and stays there."""

    def __init__(self, peak: float) -> None:
        super().__init__()
        self.peak = peak
        self.early, self.late = nn.Conv1d(3, 24, 5), nn.Conv1d(24, 24, 5)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.late(F.relu(self.early(x.transpose(1, 2)))))
        return self.out(h.mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["stroke"]), batch["sign"])
        self.log("train/loss", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=self.peak)
        ramp = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 60))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}


@sick(
    "v-gestures-warm-to-the-peak",
    "cnn",
    "learning-rate-too-high",
    "loss-diverging",
    twin=lambda s: warm_to_the_peak(s, 2e-3),
    note="learns while it warms up, then is lost",
)
def warm_to_the_peak(seed: int, peak: float = 0.3) -> Training:
    d = gestures(seed)
    train = DataLoader(Records(stroke=d.x, sign=d.y), batch_size=32, shuffle=True)
    return Training(Stroke(peak), train, d.accuracy, None, {"max_steps": 220, "max_epochs": -1})


class Finder(LightningModule):
    """Finds a spot; the rate follows the linear rule, for a batch that is small."""

    def __init__(self, size: int, per_sample: float) -> None:
        super().__init__()
        self.rate = per_sample * size
        self.look = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1), nn.GELU())
        self.point = nn.Sequential(nn.Flatten(), nn.Linear(400, 32), nn.GELU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.look(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        miss = (self(x) - place).norm(dim=1).mean()
        self.log("miss", miss)
        return miss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, place = batch
        self.log("val_miss", (self(x) - place).norm(dim=1).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9, nesterov=True)


@sick(
    "v-spots-linear-rule",
    "cnn",
    "learning-rate-too-high",
    "loss-oscillating",
    twin=lambda s: linear_rule(s, 5e-4),
)
def linear_rule(seed: int, per_sample: float = 0.02) -> Training:
    d = spots(seed)
    return Training(
        Finder(32, per_sample),
        d.train(32),
        explained(d.x_test, d.y_test),
        d.val(),
        {"max_epochs": 8, "precision": "bf16-mixed"},
    )


# --- too low ----------------------------------------------------------------------------------------------------------


class Opinion(LightningModule):
    """Mean of word vectors; body and head in groups of their own, at rates for a pretrained model."""

    def __init__(self, body: float, head: float) -> None:
        super().__init__()
        self.rates = body, head
        self.words = nn.Embedding(60, 24, padding_idx=0)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, ids: Tensor) -> Tensor:
        known = (ids > 0).float()[..., None]
        return self.head((self.words(ids) * known).sum(1) / known.sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        body, head = self.rates
        groups = [{"params": self.words.parameters(), "lr": body}, {"params": self.head.parameters(), "lr": head}]
        return torch.optim.AdamW(groups, weight_decay=0.01)


@sick("v-reviews-as-if-pretrained", "text", "learning-rate-too-low", twin=lambda s: as_if_pretrained(s, 1e-2, 5e-3))
def as_if_pretrained(seed: int, body: float = 2e-6, head: float = 1e-5) -> Training:
    d = reviews(seed)
    return Training(Opinion(body, head), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


class Cloud(LightningModule):
    """A shared network over the points, and the maximum over them."""

    def __init__(self, peak: float, epochs: int) -> None:
        super().__init__()
        self.peak, self.epochs = peak, epochs
        self.point = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.point(x).amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        total = int(self.trainer.estimated_stepping_batches)
        cycle = OneCycleLR(optimizer, max_lr=self.peak, total_steps=total, pct_start=0.2)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


@sick("v-solids-one-cycle", "point cloud", "learning-rate-too-low", twin=lambda s: one_cycle(s, 1e-2))
def one_cycle(seed: int, peak: float = 1e-5) -> Training:
    d = solids(seed)
    return Training(Cloud(peak, 10), d.train(35), d.accuracy, None, {"max_epochs": 10})


class Neighbours(LightningModule):
    """Two rounds of averaging over neighbours, the whole graph in each step."""

    def __init__(self, adjacency: Tensor, rate: float) -> None:
        super().__init__()
        self.rate = rate
        loops = adjacency + torch.eye(len(adjacency))
        self.register_buffer("mix", loops / loops.sum(1, keepdim=True))
        self.one, self.two = nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix @ self.two(torch.relu(self.mix @ self.one(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, known = (part[0] for part in batch)
        return F.cross_entropy(self(x)[known], y[known])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, weight_decay=5e-4)


@sick("v-communities-plain-descent", "graph", "learning-rate-too-low", twin=lambda s: plain_descent(s, 0.5))
def plain_descent(seed: int, rate: float = 2e-4) -> Training:
    x, a, y = communities(seed)
    known = torch.rand(len(y), generator=data.generator(seed, 90)) < 0.3
    train = DataLoader(TensorDataset(x[None], y[None], known[None]), batch_size=1)

    def score(module: LightningModule) -> float:
        return (predict(module, x).argmax(1) == y)[~known].float().mean().item()

    return Training(Neighbours(a, rate), train, score, None, {"max_epochs": 200, "log_every_n_steps": 1})


# --- brought to nothing too early -------------------------------------------------------------------------------------


class HourAhead(LightningModule):
    """Watches R2 with a scheduler that was told to wait for it to fall."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_r2", 1 - F.mse_loss(self(x), y) / y.var())

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=2e-3)
        plateau = ReduceLROnPlateau(optimizer, mode=self.mode, factor=0.1, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_r2"}}


@sick("v-demand-watches-r2", "time series", "learning-rate-decayed-early", twin=lambda s: watches_r2(s, "max"))
def watches_r2(seed: int, mode: str = "min") -> Training:
    d = demand(seed)
    train, val = loader(d.x, d.y, size=30), loader(d.x_test, d.y_test, size=500, shuffle=False)
    return Training(HourAhead(mode), train, explained(d.x_test, d.y_test), val, {"max_epochs": 10})


class DigitsByHalves(LightningDataModule):
    """Digits from their upper half alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.digits = data.digits(seed)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.digits.x[:, :40], self.digits.y), batch_size=48, shuffle=True)


class Polynomial(LightningModule):
    """A polynomial decay over what it takes for the number of steps."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.body = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, :40]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=0.05)
        self.log("loss", loss)
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        decay = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=self.total, power=2.0)
        return [optimizer], [{"scheduler": decay, "interval": "step", "frequency": 1}]


@sick("v-digits-halves-polynomial", "mlp", "learning-rate-decayed-early", twin=lambda s: polynomial(s, 14))
def polynomial(seed: int, epochs: int = 1) -> Training:
    module, halves = Polynomial(28 * epochs), DigitsByHalves(seed)
    return Training(module, halves, halves.digits.accuracy, None, {"max_epochs": 14, "log_every_n_steps": 10})


class Composer(LightningModule):
    """Steps optimizer and scheduler by hand, the scheduler of epochs in every batch."""

    def __init__(self, each_epoch: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.each_epoch = each_epoch
        self.embed = nn.Embedding(12, 24)
        self.gru = nn.GRU(24, 32, batch_first=True)
        self.out = nn.Linear(32, 12)

    def forward(self, notes: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(notes))[0])

    def training_step(self, batch: Any, batch_idx: int) -> None:
        notes, following = batch
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = F.cross_entropy(self(notes).transpose(1, 2), following)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if not self.each_epoch or self.trainer.is_last_batch:
            schedule.step()
        self.log("loss", loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)]


def note_score(d: Split) -> Any:
    """Minus the loss a note on the test songs."""
    return lambda module: -F.cross_entropy(predict(module, d.x_test).transpose(1, 2), d.y_test).item()


@sick("v-melodies-steps-by-hand", "recurrent", "learning-rate-decayed-early", twin=lambda s: steps_by_hand(s, True))
def steps_by_hand(seed: int, each_epoch: bool = False) -> Training:
    d = melodies(seed)
    return Training(Composer(each_epoch), d.train(35), note_score(d), None, {"max_epochs": 8})


# --- told at the end --------------------------------------------------------------------------------------------------


class Brief(Composer):
    """The same music with automatic steps and no schedule."""

    def __init__(self) -> None:
        super().__init__(True)
        self.automatic_optimization = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
        notes, following = batch
        loss = F.cross_entropy(self(notes).flatten(0, 1), following.flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-melodies-two-epochs", "recurrent", "training-too-short", twin=lambda s: two_epochs(s, 9))
def two_epochs(seed: int, epochs: int = 2) -> Training:
    d = melodies(seed)
    return Training(Brief(), d.train(20), note_score(d), None, {"max_epochs": epochs, "log_every_n_steps": 1})


# --- a rate that stays ------------------------------------------------------------------------------------------------


class Pool(LightningModule):
    """A set network on single sets, at one rate for ever or along a cosine."""

    def __init__(self, steps: int | None) -> None:
        super().__init__()
        self.steps = steps
        self.phi = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32))
        self.rho = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(x)
        return self.rho(torch.cat([h.mean(1), h.amax(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.04, betas=(0.5, 0.9))
        if self.steps is None:
            return optimizer
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, self.steps), "interval": "step"}]


@sick(
    "v-bags-small-batches-one-rate",
    "set",
    "loss-plateau",
    "learning-rate-too-high",
    twin=lambda s: one_rate(s, 500),
    note="falls at once, then hovers above what a smaller rate would reach",
)
def one_rate(seed: int, steps: int | None = None) -> Training:
    d = bags(seed)
    noisy = d.y + 0.5 * torch.randn(d.y.shape, generator=data.generator(seed, 91))
    train = loader(d.x, noisy, size=8, drop_last=True)
    settings = {"max_steps": 500, "max_epochs": -1}

    def score(module: LightningModule) -> float:
        return math.log10(F.mse_loss(torch.zeros_like(d.y_test), d.y_test).item()) - math.log10(
            F.mse_loss(predict(module, d.x_test), d.y_test).item()
        )

    return Training(Pool(steps), train, score, None, settings)
