"""Gradients that grow, fade or are clipped away."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import accuracy, cancer, digits, first_sign, friedman, r2, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, adam, mlp, sgd, small_cnn

# --- exploding


def _forecast(seed: int, clip: float | None) -> Training:
    torch.manual_seed(seed)
    cell = nn.RNN(1, 48, nonlinearity="relu", batch_first=True)
    nn.init.orthogonal_(cell.weight_hh_l0, gain=1.5)
    split = waves(length=100)
    trainer = {"max_epochs": 15, "gradient_clip_val": clip}
    module = Regressor(Recurrent(cell, 1), sgd(0.03, momentum=0.9))
    return Training(module, split.train(32), r2(split), split.val(), trainer)


@sick("waves-relu-rnn", "rnn", "exploding-gradients", "bad-initialization", twin=lambda seed: _forecast(seed, 1.0))
def waves_relu_rnn(seed: int) -> Training:
    return _forecast(seed, None)


class Block(nn.Module):
    """x + f(x), with or without a normalisation in front of f."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        nn.init.kaiming_normal_(self.up.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.down.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def _residual(seed: int, norm: bool) -> Training:
    torch.manual_seed(seed)
    blocks = [Block(48, norm) for _ in range(18)]
    net = nn.Sequential(nn.Linear(64, 48), *blocks, nn.LayerNorm(48) if norm else nn.Identity(), nn.Linear(48, 10))
    split = digits()
    return Training(Classifier(net, sgd(0.01)), split.train(32), accuracy(split), split.val(), {"max_epochs": 12})


@sick("digits-residual-sum", "mlp", "exploding-gradients", twin=lambda seed: _residual(seed, True))
def digits_residual_sum(seed: int) -> Training:
    return _residual(seed, False)


def _gain(seed: int, gain: float) -> Training:
    torch.manual_seed(seed)
    net = mlp(10, 64, 64, 64, 64, 64, 64, 1)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight, gain=gain)
            nn.init.zeros_(layer.bias)
    split = friedman()
    return Training(Regressor(net, sgd(0.01)), split.train(32), r2(split), None, {"max_epochs": 25})


@sick("friedman-large-gain", "regression", "exploding-gradients", "bad-initialization", twin=lambda s: _gain(s, 2**0.5))
def friedman_large_gain(seed: int) -> Training:
    return _gain(seed, 4.0)


# --- vanishing


def _digits_depth(seed: int, act: type[nn.Module]) -> Training:
    torch.manual_seed(seed)
    net = mlp(64, *[48] * 12, 10, act=act)
    if act is nn.ReLU:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    split = digits()
    return Training(Classifier(net, adam(1e-3)), split.train(64), accuracy(split), split.val(), {"max_epochs": 15})


@sick("digits-twelve-sigmoid", "mlp", "vanishing-gradients", twin=lambda seed: _digits_depth(seed, nn.ReLU))
def digits_twelve_sigmoid(seed: int) -> Training:
    return _digits_depth(seed, nn.Sigmoid)


def _cancer_tanh(seed: int, std: float | None) -> Training:
    torch.manual_seed(seed)
    net = mlp(30, *[32] * 8, 2, act=nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear):
            if std is None:
                nn.init.xavier_normal_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    split = cancer()
    return Training(
        Classifier(net, sgd(0.05, momentum=0.9)), split.train(16), accuracy(split), None, {"max_epochs": 15}
    )


@sick("cancer-deep-tanh", "tabular", "vanishing-gradients", "bad-initialization", twin=lambda s: _cancer_tanh(s, None))
def cancer_deep_tanh(seed: int) -> Training:
    return _cancer_tanh(seed, 0.02)


class Gated(nn.Module):
    """An LSTM that starts out remembering (forget bias), read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(2, 32, batch_first=True)
        self.head = nn.Linear(32, 2)
        with torch.no_grad():
            self.cell.bias_ih_l0[32:64] = 4.0
            self.cell.bias_ih_l0[:32] = -4.0

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        return self.head(states[:, -1])


def _recall(seed: int, gated: bool) -> Training:
    torch.manual_seed(seed)
    net = Gated() if gated else Recurrent(nn.RNN(2, 32, batch_first=True), 2)
    split = first_sign()
    return Training(
        Classifier(net, adam(3e-3)),
        split.train(32),
        accuracy(split),
        split.val(),
        {"max_epochs": 12, "gradient_clip_val": 1.0},
    )


@sick("recall-over-100-steps", "rnn", "vanishing-gradients", twin=lambda seed: _recall(seed, True))
def recall_over_100_steps(seed: int) -> Training:
    return _recall(seed, False)


# --- clipped away


def _clipped_cnn(seed: int, clip: float) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    trainer = {"max_epochs": 10, "gradient_clip_val": clip}
    module = Classifier(small_cnn(), sgd(0.05, momentum=0.5))
    return Training(module, split.train(32), accuracy(split), split.val(), trainer)


@sick("digits-cnn-clip-1e-4", "cnn", "clipping-too-tight", twin=lambda seed: _clipped_cnn(seed, 2.0))
def digits_cnn_clip(seed: int) -> Training:
    return _clipped_cnn(seed, 1e-4)


def _clipped_values(seed: int, clip: float) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    trainer = {"max_epochs": 25, "gradient_clip_val": clip, "gradient_clip_algorithm": "value"}
    module = Regressor(mlp(10, 64, 64, 1, act=nn.SiLU), sgd(0.05, momentum=0.9))
    return Training(module, split.train(32), r2(split), None, trainer)


@sick("friedman-clip-by-value", "regression", "clipping-too-tight", twin=lambda seed: _clipped_values(seed, 1.0))
def friedman_clip_by_value(seed: int) -> Training:
    return _clipped_values(seed, 1e-6)


class Forecaster(LightningModule):
    """A GRU that clips for itself before each step, as many training scripts do."""

    def __init__(self, max_norm: float) -> None:
        super().__init__()
        self.max_norm = max_norm
        self.net = Recurrent(nn.GRU(1, 32, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.smooth_l1_loss(self(x), y)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), self.max_norm)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def _clipped_gru(seed: int, max_norm: float) -> Training:
    torch.manual_seed(seed)
    split = waves()
    return Training(Forecaster(max_norm), split.train(32), r2(split), None, {"max_epochs": 12})


@sick("waves-gru-own-clip", "rnn", "clipping-too-tight", twin=lambda seed: _clipped_gru(seed, 1.0))
def waves_gru_own_clip(seed: int) -> Training:
    return _clipped_gru(seed, 1e-4)
