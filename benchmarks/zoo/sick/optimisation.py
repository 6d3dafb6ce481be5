"""Learning rates that are too high or too low, and the losses that diverge, swing or sit still because of them."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import accuracy, cancer, diabetes, digits, r2, reconstruction, waves, wine
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, RowTransformer, adam, adamw, mlp, sgd

# --- too high


def _digits_sgd(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = digits()
    module = Classifier(mlp(64, 128, 64, 10), sgd(lr, momentum=0.9))
    return Training(module, split.train(32), accuracy(split), split.val(), {"max_epochs": 15})


@sick("digits-sgd-1.5", "mlp", "learning-rate-too-high", twin=lambda seed: _digits_sgd(seed, 0.05))
def digits_sgd(seed: int) -> Training:
    return _digits_sgd(seed, 1.5)


def _wine_adam(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = wine()
    module = Classifier(mlp(13, 64, 64, 64, 3, act=nn.GELU), adam(lr))
    return Training(module, split.train(16), accuracy(split), None, {"max_epochs": 40})


@sick("wine-adam-0.5", "tabular", "learning-rate-too-high", twin=lambda seed: _wine_adam(seed, 1e-3))
def wine_adam(seed: int) -> Training:
    return _wine_adam(seed, 0.5)


def _deep_cnn(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()]
    for depth in range(12):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
        if depth in (3, 7):
            layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 10))
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    split = digits().head(768).shaped(1, 8, 8)
    return Training(Classifier(net, adamw(lr)), split.train(64), accuracy(split), None, {"max_epochs": 8})


@sick("digits-deep-cnn-adamw", "cnn", "learning-rate-too-high", twin=lambda seed: _deep_cnn(seed, 2e-4))
def digits_deep_cnn(seed: int) -> Training:
    return _deep_cnn(seed, 1e-2)


def _rows(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(8, 8)
    net = RowTransformer(width=48, depth=3, norm_first=False)
    return Training(Classifier(net, adam(lr)), split.train(32), accuracy(split), split.val(), {"max_epochs": 6})


@sick("digits-transformer-1e-2", "transformer", "learning-rate-too-high", twin=lambda seed: _rows(seed, 5e-4))
def digits_transformer(seed: int) -> Training:
    return _rows(seed, 1e-2)


# --- the loss rises


def _linear(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = diabetes()
    module = Regressor(nn.Linear(10, 1), sgd(lr))
    return Training(module, split.train(331), r2(split), None, {"max_epochs": 300})


@sick(
    "diabetes-linear-full-batch",
    "regression",
    "learning-rate-too-high",
    twin=lambda seed: _linear(seed, 0.1),
    note="symptom: loss-diverging, slowly, the rate just over the edge",
)
def diabetes_linear(seed: int) -> Training:
    return _linear(seed, 0.255)


def _heavy_ball(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = waves()
    net = nn.Sequential(nn.Flatten(), *mlp(40, 64, 64, 1))
    module = Regressor(net, sgd(lr, momentum=0.99, nesterov=True))
    return Training(module, split.train(32), r2(split), split.val(), {"max_epochs": 25})


@sick(
    "waves-heavy-momentum",
    "mlp",
    "learning-rate-too-high",
    twin=lambda seed: _heavy_ball(seed, 1e-3),
    note="symptom: loss-diverging",
)
def waves_heavy_momentum(seed: int) -> Training:
    return _heavy_ball(seed, 0.1)


# --- the loss swings


def _full_batch(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = digits()
    module = Classifier(mlp(64, 32, 10, act=nn.Tanh), sgd(lr))
    return Training(module, split.train(len(split.x)), accuracy(split), None, {"max_epochs": 150})


@sick(
    "digits-full-batch-swing",
    "mlp",
    "learning-rate-too-high",
    twin=lambda seed: _full_batch(seed, 0.5),
    note="symptom: loss-oscillating",
)
def digits_full_batch(seed: int) -> Training:
    return _full_batch(seed, 6.0)


def _gru(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = waves()
    module = Regressor(Recurrent(nn.GRU(1, 32, batch_first=True), 1), adam(lr))
    return Training(module, split.train(50), r2(split), split.val(), {"max_epochs": 20})


@sick(
    "waves-gru-adam-swing",
    "rnn",
    "learning-rate-too-high",
    twin=lambda seed: _gru(seed, 5e-3),
    note="symptom: loss-oscillating",
)
def waves_gru_adam(seed: int) -> Training:
    return _gru(seed, 0.5)


# --- the loss stops above its floor


class Autoencoder(LightningModule):
    """Rebuilds digits from twelve numbers."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ELU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def _autoencoder(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = digits()
    return Training(Autoencoder(lr), split.train(64), reconstruction(split), split.val(), {"max_epochs": 25})


@sick(
    "digits-autoencoder-level",
    "autoencoder",
    "learning-rate-too-high",
    twin=lambda seed: _autoencoder(seed, 2e-3),
    note="symptom: loss-plateau, at a level set by the rate",
)
def digits_autoencoder_level(seed: int) -> Training:
    return _autoencoder(seed, 0.1)


# --- too low


def _digits_slow(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = digits()
    module = Classifier(mlp(64, 64, 10), adam(lr))
    return Training(module, split.train(32), accuracy(split), split.val(), {"max_epochs": 12})


@sick(
    "digits-adam-1e-7",
    "mlp",
    "learning-rate-too-low",
    twin=lambda seed: _digits_slow(seed, 1e-3),
    note="symptom: never-learned",
)
def digits_adam(seed: int) -> Training:
    return _digits_slow(seed, 1e-7)


def _cancer_slow(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = cancer()
    module = Classifier(mlp(30, 64, 2), sgd(lr, momentum=0.9))
    return Training(module, split.train(32), accuracy(split), None, {"max_epochs": 30})


@sick(
    "cancer-sgd-1e-6",
    "tabular",
    "learning-rate-too-low",
    twin=lambda seed: _cancer_slow(seed, 1e-2),
    note="symptom: never-learned",
)
def cancer_sgd(seed: int) -> Training:
    return _cancer_slow(seed, 1e-6)


def _lstm_slow(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    split = waves()
    module = Regressor(Recurrent(nn.LSTM(1, 32, batch_first=True), 1), adamw(lr))
    return Training(module, split.train(25), r2(split), split.val(), {"max_epochs": 15})


@sick("waves-lstm-adamw-1e-6", "rnn", "learning-rate-too-low", twin=lambda seed: _lstm_slow(seed, 5e-3))
def waves_lstm(seed: int) -> Training:
    return _lstm_slow(seed, 1e-6)
