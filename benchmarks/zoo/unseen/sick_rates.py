"""Learning rates too high, too low, or gone before the work is done."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    Tagger,
    adam,
    adamw,
    batches,
    conv_net,
    dense,
    factors,
    friedman,
    held_out,
    series,
    sgd,
    shapes,
    token_loss,
    tokens,
)

# --- too high ---------------------------------------------------------------------------------------------------------


@sick("u-tagger-hot-adamw", "transformer", "learning-rate-too-high", twin=lambda s: tagger_hot(s, 0.01))
def tagger_hot(seed: int, lr: float = 0.6) -> Training:
    d = tokens(seed)
    module = Fit(Tagger(12, 3, pool=False), token_loss, adamw(lr))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 12})


class Prices(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = dense(10, 48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        prediction = self(x)
        loss = ((prediction - y) ** 2).mean()
        return {"loss": loss, "mae": (prediction - y).abs().mean().detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


@sick("u-prices-sgd-one", "mlp", "learning-rate-too-high", twin=lambda s: prices_sgd(s, 0.1))
def prices_sgd(seed: int, lr: float = 1.5) -> Training:
    d = friedman(seed)
    return Training(Prices(lr), batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


@sick("u-shapes-momentum-hot", "cnn", "learning-rate-too-high", twin=lambda s: shapes_hot(s, 0.02))
def shapes_hot(seed: int, lr: float = 0.8) -> Training:
    d = shapes(seed)
    module = Fit(conv_net(), nn.CrossEntropyLoss(), sgd(lr, momentum=0.9, nesterov=True))
    return Training(module, batches(d.x, d.y, 50), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 12})


@sick("u-gru-rmsprop-hot", "gru", "learning-rate-too-high", "loss-oscillating", twin=lambda s: gru_hot(s, 3e-3))
def gru_hot(seed: int, lr: float = 0.15) -> Training:
    d = series(seed)
    module = Fit(Recurrent(nn.GRU, 1, 24, 1), F.smooth_l1_loss, lambda p: torch.optim.RMSprop(p, lr))
    return Training(module, batches(d.x, d.y, 40), d.r2, trainer={"max_epochs": 10, "gradient_clip_val": 5.0})


class Codec(LightningModule):
    """An autoencoder optimised by hand."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder, self.decoder, self.lr = dense(20, 32, 4), dense(4, 32, 20), lr

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        loss = F.mse_loss(self(x), x)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@sick("u-codec-adam-one", "autoencoder", "learning-rate-too-high", twin=lambda s: codec_hot(s, 3e-3))
def codec_hot(seed: int, lr: float = 0.3) -> Training:
    d = factors(seed)
    return Training(Codec(lr), batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


class Ramp(Prices):
    """Warm-up that never ends: 3 % more a step."""

    def __init__(self, last: int) -> None:
        super().__init__(lr=2e-3)
        self.last = last

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.03 ** min(step, self.last))
        return [optimizer], [{"scheduler": ramp, "interval": "step"}]


@sick("u-endless-warmup", "mlp", "learning-rate-too-high", "loss-diverging", twin=lambda s: endless_warmup(s, 60))
def endless_warmup(seed: int, last: int = 10**6) -> Training:
    d = friedman(seed)
    return Training(Ramp(last), batches(d.x, d.y, 40), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 8})


@sick(
    "u-plain-regression-swings", "linear", "learning-rate-too-high", "loss-oscillating", twin=lambda s: swings(s, 0.2)
)
def swings(seed: int, lr: float = 0.7) -> Training:
    d = friedman(seed)
    net = nn.Linear(10, 1)
    nn.init.normal_(net.weight)
    return Training(Fit(net, F.mse_loss, sgd(lr)), batches(d.x, d.y, 50), d.r2, trainer={"max_epochs": 8})


@sick("u-noise-ball", "mlp", "learning-rate-too-high", "loss-plateau", twin=lambda s: noise_ball(s, 5e-3))
def noise_ball(seed: int, lr: float = 0.15) -> Training:
    d = friedman(seed, noise=0.1)
    module = Fit(dense(10, 64, 1, act=nn.Tanh), F.mse_loss, adam(lr))
    return Training(module, batches(d.x, d.y, 16), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 8})


# --- too low ----------------------------------------------------------------------------------------------------------


@sick("u-digits-adam-micro", "mlp", "learning-rate-too-low", twin=lambda s: digits_micro(s, 2e-3))
def digits_micro(seed: int, lr: float = 2e-6) -> Training:
    d = data.digits(seed)
    return Training(
        Fit(dense(64, 64, 10), F.cross_entropy, adam(lr)), d.train(32), d.accuracy, d.val(), {"max_epochs": 6}
    )


@sick("u-shapes-sgd-small", "cnn", "learning-rate-too-low", twin=lambda s: shapes_small(s, 0.1))
def shapes_small(seed: int, lr: float = 1e-5) -> Training:
    d = shapes(seed)
    module = Fit(conv_net(), nn.CrossEntropyLoss(), sgd(lr, momentum=0.9, weight_decay=1e-4))
    return Training(module, batches(d.x, d.y, 32), d.accuracy, trainer={"max_epochs": 9, "accumulate_grad_batches": 2})


@sick("u-lstm-fine-tuning-rate", "lstm", "learning-rate-too-low", twin=lambda s: lstm_low(s, 5e-3))
def lstm_low(seed: int, lr: float = 1e-6) -> Training:
    d = series(seed)
    module = Fit(Recurrent(nn.LSTM, 1, 20, 1), nn.L1Loss(), adamw(lr))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 10})


@sick("u-codec-adam-tiny", "mlp", "learning-rate-too-low", twin=lambda s: codec_hot(s, 3e-3))
def codec_low(seed: int) -> Training:
    d = factors(seed)
    return Training(Codec(3e-7), batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


# --- gone early -------------------------------------------------------------------------------------------------------


class Scheduled(LightningModule):
    """A classifier of pictures whose scheduler is given as a config."""

    def __init__(self, kind: str, interval: str = "epoch", **options: Any) -> None:
        super().__init__()
        self.net = conv_net()
        self.kind, self.interval, self.options = kind, interval, options

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log_dict({"train_loss": loss, "train_acc": (logits.argmax(1) == y).float().mean()})
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)
        scheduler = getattr(torch.optim.lr_scheduler, self.kind)(optimizer, **self.options)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.interval, "monitor": "train_loss"},
        }


def pictures(seed: int, module: LightningModule) -> Training:
    d = shapes(seed)
    return Training(module, batches(d.x, d.y), d.accuracy, trainer={"max_epochs": 12})


@sick("u-exponential-by-step", "cnn", "learning-rate-decayed-early", twin=lambda s: exponential(s, "epoch"))
def exponential(seed: int, interval: str = "step") -> Training:
    return pictures(seed, Scheduled("ExponentialLR", interval, gamma=0.8))


@sick("u-milestones-in-steps", "cnn", "learning-rate-decayed-early", twin=lambda s: milestones(s, "epoch"))
def milestones(seed: int, interval: str = "step") -> Training:
    return pictures(seed, Scheduled("MultiStepLR", interval, milestones=[5, 8, 10], gamma=0.05))


@sick("u-impatient-plateau", "cnn", "learning-rate-decayed-early", twin=lambda s: impatient(s, "epoch"))
def impatient(seed: int, interval: str = "step") -> Training:
    return pictures(seed, Scheduled("ReduceLROnPlateau", interval, patience=1, factor=0.2))


class Linear(Prices):
    """A linear decay to zero over a number of steps written down once and for all."""

    def __init__(self, steps: int) -> None:
        super().__init__(lr=3e-3)
        self.steps = steps

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


@sick("u-linear-decay-30-of-400", "mlp", "learning-rate-decayed-early", twin=lambda s: linear_decay(s, 400))
def linear_decay(seed: int, steps: int = 30) -> Training:
    d = friedman(seed)
    return Training(Linear(steps), batches(d.x, d.y, 25), d.r2, trainer={"max_epochs": 10})


@sick("u-stopped-in-mid-fall", "mlp", "training-too-short", twin=lambda s: mid_fall(s, 30), note="told as information")
def mid_fall(seed: int, epochs: int = 1) -> Training:
    d = data.digits(seed)
    return Training(
        Fit(dense(64, 32, 10), F.cross_entropy, adam(1e-3)), d.train(32), d.accuracy, trainer={"max_epochs": epochs}
    )
