"""Samples that should not have been in the training set: outliers and missing values."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import (
    Split,
    accuracy,
    cancer,
    diabetes,
    digits,
    r2,
    reconstruction,
    waves,
    wine,
)
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, adam, mlp, sgd, small_cnn

# --- a few samples far outside


def _spoilt(split: Split, rows: tuple[int, ...], factor: float) -> Split:
    """The same split with these training rows multiplied, as a wrong unit does it."""
    x = split.x.clone()
    x[list(rows)] *= factor
    return split.with_train(x, split.y)


def _diabetes(seed: int, factor: float) -> Training:
    torch.manual_seed(seed)
    split = _spoilt(diabetes(), (40, 171, 300), factor)
    return Training(Regressor(mlp(10, 32, 1), sgd(0.02)), split.train(16), r2(split), None, {"max_epochs": 25})


@sick("diabetes-wrong-unit", "tabular", "corrupt-samples", twin=lambda seed: _diabetes(seed, 1.0))
def diabetes_wrong_unit(seed: int) -> Training:
    return _diabetes(seed, 1e4)


def _glitches(seed: int, size: float) -> Training:
    torch.manual_seed(seed)
    split = waves()
    y = split.y.clone()
    y[[17, 203, 388, 501]] *= size  # the sensor restarted
    net = Recurrent(nn.LSTM(1, 32, batch_first=True), 1)
    module = Regressor(net, adam(5e-3))
    return Training(module, split.with_train(split.x, y).train(32), r2(split), split.val(), {"max_epochs": 15})


@sick("waves-sensor-glitch", "rnn", "corrupt-samples", twin=lambda seed: _glitches(seed, 1.0))
def waves_sensor_glitch(seed: int) -> Training:
    return _glitches(seed, 1e4)


def _scans(seed: int, factor: float) -> Training:
    torch.manual_seed(seed)
    split = _spoilt(digits(), (12, 345, 678, 910, 1234), factor).shaped(1, 8, 8)
    module = Classifier(small_cnn(), sgd(0.05, momentum=0.9))
    return Training(module, split.train(32), accuracy(split), split.val(), {"max_epochs": 8})


@sick("digits-broken-scans", "cnn", "corrupt-samples", twin=lambda seed: _scans(seed, 1.0))
def digits_broken_scans(seed: int) -> Training:
    return _scans(seed, 1e4)


# --- missing values


def _wine(seed: int, missing: bool) -> Training:
    torch.manual_seed(seed)
    split = wine()
    x = split.x.clone()
    if missing:
        x[60:64, 3] = float("nan")  # four bottles whose alkalinity was never measured
    module = Classifier(mlp(13, 32, 3), adam(3e-3))
    return Training(module, split.with_train(x, split.y).train(16), accuracy(split), split.val(), {"max_epochs": 20})


@sick("wine-missing-measurement", "tabular", "nonfinite-inputs", twin=lambda seed: _wine(seed, False))
def wine_missing_measurement(seed: int) -> Training:
    return _wine(seed, True)


class Autoencoder(LightningModule):
    """Squeezes a row through a narrow layer and rebuilds it."""

    def __init__(self, columns: int, code: int) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(columns, 32, code), mlp(code, 32, columns)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _ratio_column(seed: int, guarded: bool) -> Training:
    torch.manual_seed(seed)
    split = cancer()
    x = split.x.clone()
    area, spots = x[:, 3], (x[:, 7] > 1.5).float()
    # a derived column, area per spot, where most tumours have none
    x[:, 7] = area / (spots + 1.0 if guarded else spots)
    return Training(
        Autoencoder(30, 8), split.with_train(x, split.y).train(32), reconstruction(split), None, {"max_epochs": 30}
    )


@sick("cancer-ratio-column", "autoencoder", "nonfinite-inputs", twin=lambda seed: _ratio_column(seed, True))
def cancer_ratio_column(seed: int) -> Training:
    return _ratio_column(seed, False)


def _gap(seed: int, gap: bool) -> Training:
    torch.manual_seed(seed)
    split = waves()
    x = split.x.clone()
    if gap:
        x[250, 12:15] = float("inf")  # the logger overflowed once
    net = nn.Sequential(nn.Flatten(), *mlp(40, 64, 1))
    return Training(Regressor(net), split.with_train(x, split.y).train(32), r2(split), None, {"max_epochs": 20})


@sick("waves-logger-overflow", "mlp", "nonfinite-inputs", twin=lambda seed: _gap(seed, False))
def waves_logger_overflow(seed: int) -> Training:
    return _gap(seed, True)
