"""Rates, schedules, clipping, decay and update loops, as they stand in configure_optimizers and in Trainer arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import predict
from benchmarks.zoo.eighth._common import (
    Encoder,
    Module,
    Plain,
    Series,
    Task,
    Tastes,
    beat_net,
    beats,
    commands,
    loader,
    marks,
    mask_net,
    minus,
    mlp,
    notes,
    overlap,
    picture_net,
    spots,
    visits,
    walks,
    yields,
)

# --- the rate ---------------------------------------------------------------------------------------------------------


@sick("k-commands-adam", "transformer", "learning-rate-too-high", twin=lambda s: commands_adam(s, False))
def commands_adam(seed: int, ill: bool = True) -> Training:
    d = commands(seed)
    module = Task(Encoder(16, 4), F.cross_entropy, lr=0.8 if ill else 4e-3)
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 9, "log_every_n_steps": 10})


class Forecast(Plain):
    def step_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.8)]


@sick("k-forecast-rmsprop", "lstm", "learning-rate-too-high", twin=lambda s: forecast_rmsprop(s, False))
def forecast_rmsprop(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    module = Forecast(Series(nn.LSTM, 1, 24, 1), 0.2 if ill else 3e-3)
    return Training(module, loader(d.x, d.y, size=45), d.r2, trainer={"max_steps": 160, "max_epochs": -1})


@sick(
    "k-yields-momentum",
    "mlp",
    "learning-rate-too-high",
    twin=lambda s: yields_momentum(s, False),
    note="a rate taken from plain SGD, kept when momentum 0.95 was added",
)
def yields_momentum(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    module = Task(mlp(6, 64, 64, 1), F.mse_loss, lr=0.25 if ill else 0.01, kind="SGD", momentum=0.95)
    rows = Module((d.x, d.y), (d.x_test, d.y_test), 40)
    return Training(module, rows, d.r2, trainer={"max_epochs": 8})


@sick("k-digits-sgd", "cnn", "learning-rate-too-low", twin=lambda s: digits_sgd(s, False))
def digits_sgd(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    module = Task(picture_net(), nn.CrossEntropyLoss(), lr=1e-3 if ill else 0.1, kind="SGD")
    return Training(module, d.train(64), d.accuracy, d.val(), {"max_epochs": 9})


class WarmRatings(Plain):
    """A linear warm-up meant to be stepped at every batch."""

    every = "epoch"

    def step_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 500))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm, "interval": self.every}}


@sick("k-ratings-warm-up", "recommender", "learning-rate-too-low", twin=lambda s: ratings_warm(s, False))
def ratings_warm(seed: int, ill: bool = True) -> Training:
    d = marks(seed)
    module = WarmRatings(Tastes(), 0.03)
    module.every = "epoch" if ill else "step"
    score = minus(F.mse_loss, d.x_test, d.y_test)
    return Training(module, loader(d.x, d.y, size=64), score, trainer={"max_epochs": 10})


@sick("k-notes-adamw", "text", "learning-rate-too-low", twin=lambda s: notes_adamw(s, False))
def notes_adamw(seed: int, ill: bool = True) -> Training:
    d = notes(seed)
    net = nn.Sequential(nn.EmbeddingBag(40, 16), nn.Linear(16, 2))
    module = Task(net, F.cross_entropy, lr=1e-5 if ill else 1e-2, kind="AdamW")
    return Training(module, loader(d.x, d.y), d.accuracy, loader(d.x_test, d.y_test, shuffle=False), {"max_epochs": 6})


class Scheduled(Task):
    """A schedule of the user's choice, stepped at each `interval`."""

    def __init__(self, *args: Any, schedule: Any, interval: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.schedule, self.interval = schedule, interval

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": self.interval},
        }


@sick("k-beats-exponential", "cnn1d", "learning-rate-decayed-early", twin=lambda s: beats_exponential(s, False))
def beats_exponential(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    module = Scheduled(
        beat_net(),
        F.cross_entropy,
        lr=2e-3,
        schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.85),
        interval="step" if ill else "epoch",
    )
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 8, "log_every_n_steps": 1})


@sick("k-yields-milestones", "mlp", "learning-rate-decayed-early", twin=lambda s: yields_milestones(s, False))
def yields_milestones(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    steps = [12, 24, 36] if ill else [120, 240, 360]
    module = Scheduled(
        mlp(6, 64, 64, 1),
        F.mse_loss,
        lr=0.05,
        kind="SGD",
        momentum=0.9,
        schedule=lambda o: torch.optim.lr_scheduler.MultiStepLR(o, steps, 0.1),
        interval="step",
    )
    return Training(module, loader(d.x, d.y, size=50), d.r2, loader(d.x_test, d.y_test), {"max_steps": 300})


# --- clipping ---------------------------------------------------------------------------------------------------------


@sick("k-spots-clip-value", "segmentation", "clipping-too-tight", twin=lambda s: spots_clip(s, False))
def spots_clip(seed: int, ill: bool = True) -> Training:
    d = spots(seed)
    module = Task(mask_net(), F.binary_cross_entropy_with_logits, lr=0.3, kind="SGD", momentum=0.9)
    clip = {"gradient_clip_val": 1e-5 if ill else 1.0, "gradient_clip_algorithm": "value"}
    return Training(module, loader(d.x, d.y, size=20), overlap(d), trainer={"max_epochs": 8, **clip})


@sick("k-forecast-clip", "gru", "clipping-too-tight", twin=lambda s: forecast_clip(s, False))
def forecast_clip(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    module = Task(Series(nn.GRU, 1, 24, 1), F.mse_loss, lr=0.1, kind="SGD", momentum=0.9)
    settings = {"max_epochs": 7, "gradient_clip_val": 0.002 if ill else 2.0}
    return Training(module, loader(d.x, d.y, size=30), d.r2, loader(d.x_test, d.y_test, shuffle=False), settings)


class HandClipped(Plain):
    limit = 1.0

    def step_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y, reduction="sum") / 4

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), self.limit)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


@sick("k-yields-hook-clip", "mlp", "clipping-too-tight", twin=lambda s: yields_hook(s, False))
def yields_hook(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    module = HandClipped(mlp(6, 48, 48, 1), 0.01)
    module.limit = 0.05 if ill else 30.0
    return Training(module, loader(d.x, d.y), d.r2, trainer={"max_epochs": 8})


# --- what the optimizer holds -----------------------------------------------------------------------------------------


class Forked(Plain):
    """A list of towers, one answer; the towers kept in a plain list or in a ModuleList."""

    def __init__(self, ill: bool) -> None:
        super().__init__(nn.Linear(3 * 6, 1), 0.01)
        towers = [mlp(6, 24, 6) for _ in range(3)]
        self.towers: Any = towers if ill else nn.ModuleList(towers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([torch.relu(t(x)) for t in self.towers], 1))

    def step_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)


@sick("k-three-towers", "mlp", "parameters-not-optimized", twin=lambda s: three_towers(s, False))
def three_towers(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    return Training(Forked(ill), loader(d.x, d.y, size=40), d.r2, trainer={"max_epochs": 7})


class Tuned(Plain):
    """A body pretrained on even digits; a new head and the body are tuned on all ten."""

    def __init__(self, body: nn.Module, ill: bool) -> None:
        super().__init__(body, 3e-3)
        self.head = nn.Linear(32, 10)
        self.ill = ill

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))

    def configure_optimizers(self) -> Any:
        if self.ill:
            return torch.optim.Adam(self.net.parameters(), self.lr)
        return torch.optim.Adam([*self.net.parameters(), *self.head.parameters()], self.lr)


@sick(
    "k-tuned-digits",
    "fine-tuning",
    "parameters-not-optimized",
    twin=lambda s: tuned_digits(s, False),
    note="the optimizer gets the body alone; the sigmoids before the head leave its answers faint unless it learns",
)
def tuned_digits(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    body = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 32), nn.Sigmoid())
    optimizer = torch.optim.Adam(body.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(body(d.x)[:, :1], (d.y % 2).float()[:, None]).backward()
        optimizer.step()
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Tuned(body, ill), d.train(50), score, trainer={"max_epochs": 9})


class Hand(Plain):
    """Manual optimisation with one optimizer."""

    clear = True

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__(net, lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss = self.step_loss(batch)
        if self.clear:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("loss", loss)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


@sick("k-beats-by-hand", "cnn1d", "gradients-not-cleared", twin=lambda s: beats_by_hand(s, False))
def beats_by_hand(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    module = Hand(beat_net(), 0.1)
    module.clear = not ill
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 7})


class Denoiser(Plain):
    """Manual accumulation over two batches; the gradients are cleared after the backward in the ill one."""

    ill = True

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__(net, lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        (x,) = batch
        loss = F.mse_loss(self(x + 0.3 * torch.randn_like(x)), x)
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            if self.ill:
                optimizer.zero_grad(set_to_none=False)
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss.detach()}


@sick("k-denoiser-in-pairs", "autoencoder", "gradients-not-cleared", twin=lambda s: denoiser(s, False))
def denoiser(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    module = Denoiser(mlp(64, 48, 16, 48, 64), 3e-3)
    module.ill = ill
    score = lambda m: data.r2(predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(module, loader(d.x, size=16), score, trainer={"max_epochs": 5})


# --- decay and dropout ------------------------------------------------------------------------------------------------


@sick("k-counts-adam-decay", "poisson", "excess-regularization", twin=lambda s: counts_decay(s, False))
def counts_decay(seed: int, ill: bool = True) -> Training:
    d = visits(seed)
    loss = nn.PoissonNLLLoss()
    net = nn.Sequential(mlp(5, 32, 32, 1), nn.Flatten(0))
    module = Task(net, loss, lr=5e-3, weight_decay=0.5 if ill else 1e-4)
    return Training(module, loader(d.x, d.y), minus(loss, d.x_test, d.y_test), trainer={"max_epochs": 6})


class Penalised(Plain):
    weight = 1e-5

    def step_loss(self, batch: Any) -> Tensor:
        x, y = batch
        penalty = torch.stack([p.abs().sum() for p in self.parameters()]).sum()
        loss = F.cross_entropy(self(x), y)
        self.log_dict({"ce": loss, "penalty": penalty}, on_epoch=True)
        return loss + self.weight * penalty


@sick("k-digits-l1", "cnn", "excess-regularization", twin=lambda s: digits_l1(s, False))
def digits_l1(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    module = Penalised(picture_net(), 2e-3)
    module.weight = 0.03 if ill else 1e-5
    return Training(module, d.train(48), d.accuracy, trainer={"max_epochs": 7})


# --- what the curve shows ---------------------------------------------------------------------------------------------


@sick("k-digits-two-passes", "cnn", "training-too-short", twin=lambda s: digits_two(s, False))
def digits_two(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    module = Task(picture_net(), F.cross_entropy, lr=4e-4)
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 2 if ill else 9})


@sick("k-forecast-to-step-70", "gru", "training-too-short", twin=lambda s: forecast_short(s, False))
def forecast_short(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    module = Task(Series(nn.GRU, 1, 20, 1), F.mse_loss, lr=7e-4)
    steps = {"max_steps": 70 if ill else 420, "max_epochs": -1}
    return Training(module, loader(d.x, d.y), d.r2, trainer=steps)


@sick(
    "k-yields-large-steps",
    "mlp",
    "learning-rate-too-high",
    "loss-oscillating",
    "loss-plateau",
    twin=lambda s: yields_large(s, False),
    note="learns, then swings at a level",
)
def yields_large(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    module = Task(mlp(6, 48, 48, 1), F.mse_loss, lr=0.15 if ill else 0.01)
    return Training(module, loader(d.x, d.y, size=24), d.r2, trainer={"max_epochs": 6, "accumulate_grad_batches": 1})


@sick(
    "k-commands-rate-climbs",
    "transformer",
    "learning-rate-too-high",
    "loss-diverging",
    twin=lambda s: commands_climb(s, False),
    note="a one-cycle schedule whose peak was typed with two noughts too few",
)
def commands_climb(seed: int, ill: bool = True) -> Training:
    d = commands(seed)
    module = Scheduled(
        Encoder(16, 4),
        F.cross_entropy,
        lr=1e-3,
        kind="AdamW",
        schedule=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5 if ill else 0.005, total_steps=224),
        interval="step",
    )
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 7, "gradient_clip_val": 5.0})
