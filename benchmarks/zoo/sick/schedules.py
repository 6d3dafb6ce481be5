"""Rates that decay too early, runs that are too short or too long, regularisation that outweighs learning."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import accuracy, diabetes, digits, friedman, messages, r2, reconstruction, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, RowTransformer, adamw, mlp, sgd, small_cnn

# --- the rate decays before the loss does


class StepwiseClassifier(Classifier):
    """Adam with an exponential decay."""

    def __init__(self, net: nn.Module, interval: str) -> None:
        super().__init__(net)
        self.interval = interval

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


def _exponential(seed: int, interval: str) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    module = StepwiseClassifier(small_cnn(), interval)
    return Training(module, split.train(32), accuracy(split), split.val(), {"max_epochs": 10})


@sick("digits-exponential", "cnn", "learning-rate-decayed-early", twin=lambda seed: _exponential(seed, "epoch"))
def digits_exponential(seed: int) -> Training:
    return _exponential(seed, "step")


class MilestoneRegressor(Regressor):
    """SGD whose rate falls tenfold every `step_size` epochs."""

    def __init__(self, net: nn.Module, step_size: int) -> None:
        super().__init__(net)
        self.step_size = step_size

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        return [optimizer], [lr_scheduler.StepLR(optimizer, self.step_size, gamma=0.1)]


def _milestones(seed: int, step_size: int) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    module = MilestoneRegressor(mlp(10, 64, 64, 1), step_size)
    return Training(module, split.train(32), r2(split), split.val(), {"max_epochs": 30})


@sick(
    "friedman-step-every-epoch",
    "regression",
    "learning-rate-decayed-early",
    twin=lambda seed: _milestones(seed, 12),
    note="symptom: loss-plateau",
)
def friedman_step(seed: int) -> Training:
    return _milestones(seed, 1)


class CosineForecaster(Regressor):
    """Adam down a half cosine that ends at zero after `total` steps and stays there."""

    def __init__(self, net: nn.Module, total: int) -> None:
        super().__init__(net)
        self.total = total

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        cosine = lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1, step / self.total))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def _cosine(seed: int, total: int) -> Training:
    torch.manual_seed(seed)
    split = waves()
    module = CosineForecaster(Recurrent(nn.LSTM(1, 32, batch_first=True), 1), total)
    return Training(module, split.train(25), r2(split), None, {"max_epochs": 15})


@sick("waves-cosine-total", "rnn", "learning-rate-decayed-early", twin=lambda seed: _cosine(seed, 15 * 24))
def waves_cosine(seed: int) -> Training:
    return _cosine(seed, 15)  # the number of epochs, where steps are counted


class OneCycleClassifier(Classifier):
    """AdamW under the one-cycle policy."""

    def __init__(self, net: nn.Module, interval: str) -> None:
        super().__init__(net)
        self.interval = interval

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        total = int(self.trainer.estimated_stepping_batches)
        policy = lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=total, div_factor=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": policy, "interval": self.interval}}


def _one_cycle(seed: int, interval: str) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(8, 8)
    module = OneCycleClassifier(RowTransformer(), interval)
    return Training(module, split.train(64), accuracy(split), split.val(), {"max_epochs": 8})


@sick(
    "digits-one-cycle-by-epoch",
    "transformer",
    "learning-rate-decayed-early",
    "learning-rate-too-low",
    twin=lambda seed: _one_cycle(seed, "step"),
    note="stepped once an epoch, so the rate never leaves the start of its warm-up",
)
def digits_one_cycle(seed: int) -> Training:
    return _one_cycle(seed, "epoch")


# --- too short, too long


class Compressor(LightningModule):
    """A convolutional autoencoder for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _compress(seed: int, epochs: int) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    return Training(Compressor(), split.train(16), reconstruction(split), None, {"max_epochs": epochs})


@sick("digits-compress-briefly", "autoencoder", "training-too-short", twin=lambda seed: _compress(seed, 8))
def digits_compress(seed: int) -> Training:
    return _compress(seed, 1)


def _brief(seed: int, epochs: int) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    module = Regressor(mlp(10, 64, 64, 1), sgd(5e-3))
    return Training(module, split.train(16), r2(split), split.val(), {"max_epochs": epochs})


@sick("friedman-three-epochs", "regression", "training-too-short", twin=lambda seed: _brief(seed, 25))
def friedman_brief(seed: int) -> Training:
    return _brief(seed, 3)


def _memorise(seed: int, well: bool) -> Training:
    torch.manual_seed(seed)
    split = diabetes()
    net = mlp(10, 16, 1) if well else mlp(10, 256, 256, 1)
    trainer = {"max_epochs": 12 if well else 60}
    return Training(Regressor(net), split.train(32), r2(split), split.val(), trainer)


@sick("diabetes-wide-and-long", "tabular", "overfitting", twin=lambda seed: _memorise(seed, True))
def diabetes_wide(seed: int) -> Training:
    return _memorise(seed, False)


def _noisy_labels(seed: int, well: bool) -> Training:
    torch.manual_seed(seed)
    whole = digits()
    rng = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(whole.y), generator=rng) < 0.4  # labelled by a hurried crowd
    y = torch.where(wrong, torch.randint(0, 10, whole.y.shape, generator=rng), whole.y)
    split = whole.with_train(whole.x, y).head(800)
    if well:
        net, epochs = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)), 20
    else:
        net, epochs = mlp(64, 256, 256, 10), 50
    return Training(Classifier(net), split.train(32), accuracy(split), split.val(), {"max_epochs": epochs})


@sick("digits-crowd-labels", "mlp", "overfitting", twin=lambda seed: _noisy_labels(seed, True))
def digits_crowd_labels(seed: int) -> Training:
    return _noisy_labels(seed, False)


# --- held back


def _decay(seed: int, weight_decay: float) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    module = Regressor(mlp(10, 64, 64, 1), adamw(5e-3, weight_decay=weight_decay))
    return Training(module, split.train(32), r2(split), split.val(), {"max_epochs": 25})


@sick("friedman-decay-10", "regression", "excess-regularization", twin=lambda seed: _decay(seed, 0.01))
def friedman_decay(seed: int) -> Training:
    return _decay(seed, 10.0)


def _shrunk(seed: int, weight_decay: float) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    module = Classifier(small_cnn(), sgd(0.05, momentum=0.9, weight_decay=weight_decay))
    return Training(module, split.train(32), accuracy(split), None, {"max_epochs": 8})


@sick("digits-cnn-decay-0.5", "cnn", "excess-regularization", twin=lambda seed: _shrunk(seed, 5e-4))
def digits_cnn_decay(seed: int) -> Training:
    return _shrunk(seed, 0.5)


def _dropped(seed: int, rate: float) -> Training:
    torch.manual_seed(seed)
    split = messages()
    net = nn.Sequential(
        nn.EmbeddingBag(24, 32, padding_idx=0),
        nn.Dropout(rate),
        nn.Linear(32, 64),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(64, 4),
    )
    return Training(Classifier(net), split.train(32), accuracy(split), split.val(), {"max_epochs": 15})


@sick("messages-dropout-0.95", "text", "excess-regularization", twin=lambda seed: _dropped(seed, 0.1))
def messages_dropout(seed: int) -> Training:
    return _dropped(seed, 0.95)
