"""Rates, schedules and lengths of training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, generator, predict
from benchmarks.zoo.sixth._common import (
    DeepSet,
    Factors,
    GraphNet,
    Learner,
    Mixture,
    Recur,
    Rows,
    Words,
    branches,
    clips,
    clouds,
    concordance,
    cox,
    explains,
    harvest,
    hits,
    lifetimes,
    loader,
    mixture_nll,
    mlp,
    networks,
    optim,
    per_place,
    riddles,
    stars,
    supervised,
    turbines,
)

# --- large steps ------------------------------------------------------------------------------------------------------


@sick(
    "q-stars-from-two-tables",
    "recommender",
    "learning-rate-too-high",
    "loss-diverging",
    twin=lambda s: two_tables(s, 0.03),
)
def two_tables(seed: int, lr: float = 0.3) -> Training:
    d = stars(seed)
    module = Learner(Factors(), supervised(F.mse_loss), optim("Adam", lr), "mse")
    return Training(module, loader(d.x, d.y, size=64), explains(d.x_test, d.y_test), None, {"max_epochs": 9})


@sick(
    "q-heaps-rings-and-lines",
    "point set",
    "learning-rate-too-high",
    "loss-oscillating",
    "dead-activations",
    twin=lambda s: heaps(s, 3e-3),
)
def heaps(seed: int, lr: float = 0.4) -> Training:
    d = clouds(seed)
    module = Learner(DeepSet(), supervised(F.cross_entropy), optim("AdamW", lr), "train/ce")
    settings = {"max_steps": 300, "log_every_n_steps": 10}
    return Training(module, Rows(d), hits(d.x_test, d.y_test), None, settings)


class Density(LightningModule):
    """A mixture density net with its rate among the hyperparameters."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Mixture()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        nll = mixture_nll(self(x), y)
        self.log_dict({"nll": nll}, prog_bar=True)
        return {"loss": nll}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
        return {"optimizer": optimizer}


@sick(
    "q-curve-that-folds-back",
    "mixture density",
    "learning-rate-too-high",
    "loss-oscillating",
    twin=lambda s: folds(s, 0.006),
)
def folds(seed: int, lr: float = 0.1) -> Training:
    d = branches(seed)
    score = lambda m: -mixture_nll(predict(m, d.x_test), d.y_test).item()  # noqa: E731
    return Training(Density(lr), loader(d.x, d.y, size=45), score, None, {"max_steps": 400})


# --- small steps ------------------------------------------------------------------------------------------------------


@sick("q-neighbours-of-eight-nodes", "graph", "learning-rate-too-low", twin=lambda s: neighbours(s, 3e-3))
def neighbours(seed: int, lr: float = 3e-7) -> Training:
    d = networks(seed)
    module = Learner(GraphNet(), supervised(F.smooth_l1_loss), optim("Adam", lr))
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 15})


@sick("q-read-in-the-mirror", "transformer", "learning-rate-too-low", twin=lambda s: mirrored(s, 0.1))
def mirrored(seed: int, lr: float = 1e-5) -> Training:
    d = riddles(seed)
    module = Learner(Words(10, 10, 8), supervised(per_place), optim("SGD", lr, momentum=0.9), "xent")
    val = loader(d.x_test, d.y_test, size=100, shuffle=False)
    return Training(module, loader(d.x, d.y), hits(d.x_test, d.y_test), val, {"max_epochs": 12})


@sick("q-who-goes-first", "survival", "learning-rate-too-low", twin=lambda s: goes_first(s, 0.05))
def goes_first(seed: int, lr: float = 1e-6) -> Training:
    d = lifetimes(seed)
    module = Learner(mlp(5, 24, 1, act=nn.SiLU), supervised(cox), optim("Adagrad", lr), "partial_likelihood")
    score = lambda m: concordance(predict(m, d.x_test)[:, 0], d.y_test)  # noqa: E731
    return Training(module, loader(d.x, d.y, size=40), score, None, {"max_steps": 300, "log_every_n_steps": 1})


# --- a rate that goes -------------------------------------------------------------------------------------------------


class Restorer(LightningModule):
    """Takes noise of a random strength off a curve; steps its optimizer and its schedule itself."""

    def __init__(self, each_batch: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.each_batch = each_batch
        self.net = nn.Sequential(nn.Linear(25, 64), nn.GELU(), nn.Linear(64, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (clean,) = batch
        level = torch.rand(len(clean), 1)
        loss = F.mse_loss(self(torch.cat([clean + level * torch.randn_like(clean), level], 1)), clean)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.each_batch or self.trainer.is_last_batch:
            self.lr_schedulers().step()
        self.log("denoise", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.8)]


@sick("q-curves-out-of-the-noise", "denoiser", "learning-rate-decayed-early", twin=lambda s: out_of_noise(s, False))
def out_of_noise(seed: int, each_batch: bool = True) -> Training:
    g = generator(seed, 80)
    pitch, phase = 0.2 + 0.4 * torch.rand(1000, 1, generator=g), 6.28 * torch.rand(1000, 1, generator=g)
    wave = torch.sin(pitch * torch.arange(24) + phase)
    level = torch.full((200, 1), 0.5)
    noisy = torch.cat([wave[800:] + 0.5 * torch.randn(200, 24, generator=g), level], 1)
    return Training(Restorer(each_batch), loader(wave[:800]), explains(noisy, wave[800:]), None, {"max_epochs": 10})


class Impatient(Learner):
    """Lowers its rate when the training loss stops improving."""

    patience, interval = 2, "step"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        plan = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=self.patience)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plan, "monitor": self.name, "interval": self.interval, "strict": False},
        }


@sick("q-three-drifting-channels", "gru", "learning-rate-decayed-early", twin=lambda s: drifting(s, "epoch"))
def drifting(seed: int, interval: str = "step") -> Training:
    d = turbines(seed)
    module = Impatient(Recur(nn.GRU, 3, 20, 1), supervised(F.l1_loss), optim("Adam", 5e-3), "train_mae")
    module.interval = interval
    return Training(module, Rows(d), explains(d.x_test, d.y_test), None, {"max_epochs": 9, "gradient_clip_val": 5.0})


# --- too few steps ----------------------------------------------------------------------------------------------------


class Translator(nn.Module):
    """Reads ids with a GRU and writes the answer from its last state."""

    def __init__(self, symbols: int = 10, length: int = 8, width: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, 16)
        self.reader = nn.GRU(16, width, batch_first=True)
        self.writer = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, symbols)
        self.length = length

    def forward(self, ids: Tensor) -> Tensor:
        state = self.reader(self.table(ids))[1]
        steps = state.transpose(0, 1).expand(-1, self.length, -1)
        return self.head(self.writer(steps.contiguous(), state)[0])


@sick("q-back-from-one-state", "seq2seq", "training-too-short", twin=lambda s: one_state(s, 450))
def one_state(seed: int, steps: int = 70) -> Training:
    d = riddles(seed, 1600, 5, 6)
    module = Learner(Translator(6, 5), supervised(per_place), optim("Adam", 4e-3))
    settings = {"max_steps": steps, "max_epochs": -1, "gradient_clip_val": 1.0}
    return Training(module, loader(d.x, d.y, size=64), hits(d.x_test, d.y_test), None, settings)


@sick("q-three-pitches", "audio", "training-too-short", twin=lambda s: pitches(s, 1.0))
def pitches(seed: int, share: float = 0.1) -> Training:
    d = clips(seed)
    net = nn.Sequential(nn.Conv1d(1, 12, 7), nn.ReLU(), nn.Conv1d(12, 12, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    net.extend([nn.Flatten(), nn.Linear(12, 3)])
    module = Learner(net, supervised(F.cross_entropy), optim("SGD", 0.05), "ce")
    settings = {"max_epochs": 14, "limit_train_batches": share}
    return Training(module, Rows(d, 28), hits(d.x_test, d.y_test), None, settings)


# --- what is seen -----------------------------------------------------------------------------------------------------


class Dropped(Learner):
    """Lowers its rate tenfold at given steps, if any."""

    steps: tuple[int, ...] = ()

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe(self.parameters())
        plan = lr_scheduler.MultiStepLR(optimizer, list(self.steps), 0.1)
        return [optimizer], [{"scheduler": plan, "interval": "step"}]


@sick(
    "q-stars-at-one-rate",
    "recommender",
    "loss-plateau",
    "learning-rate-too-high",
    "loss-oscillating",
    "overfitting",
    twin=lambda s: stars_at_one_rate(s, (120, 220)),
)
def stars_at_one_rate(seed: int, steps: tuple[int, ...] = ()) -> Training:
    d = stars(seed, 3000)
    module = Dropped(Factors(), supervised(F.mse_loss), optim("Adam", 0.15), "rating_loss")
    module.steps = steps
    return Training(module, loader(d.x, d.y, size=75), explains(d.x_test, d.y_test), None, {"max_epochs": 8})


@sick(
    "q-line-through-eight-gauges",
    "linear",
    "loss-diverging",
    "learning-rate-too-high",
    "exploding-gradients",
    twin=lambda s: eight_gauges(s, 0.03),
)
def eight_gauges(seed: int, lr: float = 0.18) -> Training:
    g = generator(seed, 81)
    x = (torch.randn(1000, 8, generator=g) + 2 * torch.randn(1000, 1, generator=g)) / 5**0.5
    y = x @ torch.randn(8, 1, generator=g) + 0.2 * torch.randn(1000, 1, generator=g)
    module = Learner(nn.Linear(8, 1), supervised(F.mse_loss), optim("SGD", lr), "squared_error")
    train = loader(x[:700], y[:700], size=35)
    return Training(module, train, explains(x[700:], y[700:]), None, {"max_epochs": 12, "log_every_n_steps": 10})


@sick(
    "q-fields-back-and-forth",
    "mlp",
    "loss-oscillating",
    "learning-rate-too-high",
    "loss-plateau",
    "saturated-activations",
    twin=lambda s: back_and_forth(s, 0.006),
)
def back_and_forth(seed: int, lr: float = 0.1) -> Training:
    d = harvest(seed)
    module = Learner(mlp(6, 32, 32, 1, act=nn.Tanh), supervised(F.mse_loss), optim("RMSprop", lr), "")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 14})


@sick("q-median-of-a-line", "linear", "learning-rate-too-high", "loss-oscillating", twin=lambda s: median_line(s, 0.05))
def median_line(seed: int, lr: float = 6.0) -> Training:
    g = generator(seed, 82)
    x = torch.randn(1100, 7, generator=g)
    y = x @ torch.randn(7, 1, generator=g) + 0.3 * torch.randn(1100, 1, generator=g).sinh()
    module = Learner(nn.Linear(7, 1), supervised(F.l1_loss), optim("SGD", lr), "mae")
    return Training(module, loader(x[:700], y[:700], size=28), explains(x[700:], y[700:]), None, {"max_epochs": 12})


class Ranked(LightningModule):
    """Scores rows so that of two the better one scores higher."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 1)
        for layer in (self.first, self.second):
            nn.init.uniform_(layer.weight, -start, start)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        a, b = self(x).chunk(2)
        better = torch.sign(y[: len(a)] - y[len(a) :])
        return F.softplus(-better * (a - b)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3)


@sick(
    "q-better-of-two-fields",
    "ranking",
    "never-learned",
    "bad-initialization",
    "vanishing-gradients",
    twin=lambda s: better_field(s, 0.4),
)
def better_field(seed: int, start: float = 0.0) -> Training:
    d = harvest(seed)
    score = lambda m: accuracy(  # noqa: E731
        torch.cat([-predict(m, d.x_test), predict(m, d.x_test)], 1), (d.y_test[:, 0] > d.y_test.median()).long()
    )
    return Training(Ranked(start), loader(d.x, d.y, size=32), score, None, {"max_epochs": 8})
