"""Sick trainings whose network is built wrongly: too small, linear, dead, saturated, mixing samples, in a wrong mode."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, characters, digits, generator, motifs, predict, regression
from benchmarks.zoo.tenth.b_common import (
    Classifier,
    Logged,
    Plain,
    adam,
    adamw,
    dense,
    iou,
    r2_on,
    ratings,
    rings,
    seasons,
    shapes,
    tones,
)


class CharModel(LightningModule):
    """Next-character prediction with an embedding and an LSTM."""

    def __init__(self, symbols: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.rnn = nn.LSTM(embedding, hidden, batch_first=True)
        self.decoder = nn.Linear(hidden, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.embedding(ids))[0])

    def training_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        self.log("nats", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def char_model(seed: int, embedding: int, hidden: int) -> Training:
    text = characters(seed)

    def score(fitted: LightningModule) -> float:
        out = predict(fitted, text.test[:, :-1])
        return -F.cross_entropy(out.transpose(1, 2), text.test[:, 1:]).item()

    train = DataLoader(text.train, 32, shuffle=True)
    return Training(CharModel(text.symbols, embedding, hidden), train, score, trainer={"max_epochs": 5})


@sick("tb-characters-two-units", "text", "insufficient-capacity", twin=lambda seed: char_model(seed, 16, 64))
def characters_two_units(seed: int) -> Training:
    return char_model(seed, 2, 2)


class Factors(LightningModule):
    """Matrix factorisation with biases; squared error on known ratings."""

    def __init__(self, users: int, items: int, rank: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, rank), nn.Embedding(items, rank)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        u, i = pairs[:, 0], pairs[:, 1]
        return (self.user(u) * self.item(i)).sum(-1) + (self.user_bias(u) + self.item_bias(i))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, rating = batch
        loss = F.mse_loss(self(pairs), rating)
        self.log("rating_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pairs, rating = batch
        self.log("val_rating_mse", F.mse_loss(self(pairs), rating))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-5)


def factors(seed: int, rank: int) -> Training:
    task = ratings(seed, share=0.8, noise=0.2)
    return Training(Factors(80, 60, rank), task.train(128), task.r2, task.val(), {"max_epochs": 15})


@sick("tb-ratings-one-factor", "recommender", "insufficient-capacity", twin=lambda seed: factors(seed, 6))
def ratings_one_factor(seed: int) -> Training:
    return factors(seed, 1)


class LayerList(nn.Module):
    """Layers from a list of widths, applied in turn."""

    def __init__(self, widths: list[int], act: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            if self.act is not None:
                x = self.act(x)
        return self.layers[-1](x)


def ring_net(seed: int, act: nn.Module | None) -> Training:
    task = rings(seed)
    module = Classifier(LayerList([6, 48, 48, 2], act), adam(5e-3))
    return Training(module, task.train(32), task.accuracy, task.val(), {"max_epochs": 8})


@sick("tb-ring-layer-loop", "tabular", "missing-nonlinearity", twin=lambda seed: ring_net(seed, nn.ReLU()))
def ring_layer_loop(seed: int) -> Training:
    return ring_net(seed, None)


class Conv1D(nn.Module):
    """A convolution with the arguments of Keras' layer of this name."""

    def __init__(
        self, channels: int, filters: int, kernel: int, strides: int = 1, activation: str | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, filters, kernel, strides, padding=kernel // 2)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return getattr(F, self.activation)(x) if self.activation else x


def tone_net(seed: int, activation: str | None) -> Training:
    task = tones(seed)
    net = nn.Sequential(
        Conv1D(1, 16, 9, 2, activation),
        Conv1D(16, 24, 7, 2, activation),
        Conv1D(24, 24, 5, 1, activation),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    module = Plain(net, nn.CrossEntropyLoss(), adam(3e-3))
    return Training(module, task.train(25), task.accuracy, trainer={"max_epochs": 6})


@sick("tb-tones-keras-default-activation", "audio", "missing-nonlinearity", twin=lambda seed: tone_net(seed, "relu"))
def tones_keras(seed: int) -> Training:
    return tone_net(seed, None)


class ThresholdedReLU(nn.Module):
    """`x` where it is above `theta`, else zero, as in Keras."""

    def __init__(self, theta: float = 1.0) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, self.theta, 0.0)


def thresholded(seed: int, theta: float) -> Training:
    task = digits(seed)
    net = dense(64, 64, 64, 10, act=lambda: ThresholdedReLU(theta))
    return Training(Classifier(net, adam(2e-3)), task.train(32), task.accuracy, task.val(), {"max_epochs": 8})


@sick("tb-digits-thresholded-relu", "images", "dead-activations", twin=lambda seed: thresholded(seed, 0.0))
def digits_thresholded(seed: int) -> Training:
    return thresholded(seed, 1.0)


def prior_everywhere(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        nn.init.constant_(module.bias, -math.log((1 - 0.02) / 0.02))


def detector(seed: int, everywhere: bool) -> Training:
    """Where the discs are, with the bias of a rare class; the last layer alone needs it."""
    task = shapes(seed)
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
    )
    net = nn.Sequential(body, nn.ReLU(), nn.Conv2d(16, 1, 1))
    if everywhere:
        net.apply(prior_everywhere)
    else:
        prior_everywhere(net[-1])
    module = Logged(net, nn.BCEWithLogitsLoss(), adam(3e-3))

    def score(fitted: LightningModule) -> float:
        return iou(predict(fitted, task.x_test).sigmoid(), task.y_test)

    return Training(module, task.train(20), score, task.val(), {"max_epochs": 5})


@sick(
    "tb-disc-detector-prior-bias-applied",
    "segmentation",
    "dead-activations",
    "bad-initialization",
    twin=lambda seed: detector(seed, False),
)
def detector_prior_bias(seed: int) -> Training:
    return detector(seed, True)


class ScaledTanh(nn.Module):
    """tanh(x / temperature)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / self.temperature)


def tempered(seed: int, temperature: float) -> Training:
    task = regression(seed, r2=0.95, n=1500)
    net = nn.Sequential(
        nn.Linear(8, 48), ScaledTanh(temperature), nn.Linear(48, 48), ScaledTanh(temperature), nn.Linear(48, 1)
    )
    module = Logged(net, nn.MSELoss(), adamw(2e-3))
    return Training(module, task.train(32), task.r2, task.val(), {"max_epochs": 12})


@sick("tb-tanh-temperature-of-contrast", "tabular", "saturated-activations", twin=lambda seed: tempered(seed, 1.0))
def tempered_tanh(seed: int) -> Training:
    return tempered(seed, 0.01)


class SetPool(LightningModule):
    """One learned query per class reads a set of vectors by dot products."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(6, width), nn.Linear(6, width)
        self.query = nn.Parameter(torch.randn(4, width))
        self.head = nn.Sequential(nn.Linear(4 * width, 48), nn.ReLU(), nn.Linear(48, 1))
        self.scale = scale

    def forward(self, items: Tensor) -> Tensor:
        weights = (self.query @ self.key(items).transpose(1, 2) * self.scale).softmax(-1)
        return self.head((weights @ self.value(items)).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        items, target = batch
        loss = F.mse_loss(self(items), target)
        self.log("fit", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def set_pool(seed: int, scale: float) -> Training:
    g = generator(seed, 230)
    items = torch.randn(1600, 20, 6, generator=g)
    direction = torch.randn(6, 1, generator=g)
    y = torch.sigmoid(items @ direction).mean(1) + 0.3 * items[..., :1].square().mean(1)
    y = (y - y.mean()) / y.std()
    task = Split(items[:1200], y[:1200], items[1200:], y[1200:])
    return Training(SetPool(64, scale), task.train(24), task.r2, trainer={"max_epochs": 8})


@sick("tb-set-attention-times-width", "sets", "saturated-activations", twin=lambda seed: set_pool(seed, 1 / 8))
def set_attention_scale(seed: int) -> Training:
    return set_pool(seed, 64.0)


class DriftRemover(LightningModule):
    """A transformer block that takes the offset of a sensor out of its readings."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, **options)
        self.lower = nn.Linear(32, 1)

    def forward(self, reading: Tensor) -> Tensor:
        return self.lower(self.encoder(self.lift(reading)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        reading, clean = batch
        loss = F.mse_loss(self(reading), clean)
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        reading, clean = batch
        self.log("val/mse", F.mse_loss(self(reading), clean))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def drift(seed: int, **options: Any) -> Training:
    g = generator(seed, 231)
    clean = torch.randn(1300, 20, 1, generator=g)
    clean = clean - clean.mean(1, keepdim=True)
    offset = 1.2 * torch.randn(1300, 1, 1, generator=g)
    reading = (clean + offset) / 1.56
    task = Split(reading[:1000], clean[:1000], reading[1000:], clean[1000:])

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, task.x_test, task.y_test)

    return Training(DriftRemover(**options), task.train(32), score, task.val(32), {"max_epochs": 10})


@sick("tb-sensor-drift-batch-second", "series", "batch-mixing", twin=lambda seed: drift(seed, batch_first=True))
def drift_batch_second(seed: int) -> Training:
    return drift(seed)


class MotifReader(LightningModule):
    """A bidirectional GRU whose last states feed a classifier."""

    def __init__(self, swap: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 32, batch_first=True, bidirectional=True)
        self.classify = nn.Linear(64, 4)
        self.swap = swap

    def forward(self, sequence: Tensor) -> Tensor:
        state = self.gru(sequence)[1]
        if self.swap:
            state = state.transpose(0, 1)
        return self.classify(state.reshape(len(sequence), -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def motif_reader(seed: int, swap: bool) -> Training:
    task = motifs(seed)
    return Training(
        MotifReader(swap), task.train(24), task.accuracy, trainer={"max_epochs": 8, "gradient_clip_val": 5.0}
    )


@sick("tb-motif-states-reshaped", "sequences", "batch-mixing", twin=lambda seed: motif_reader(seed, True))
def motif_reshaped(seed: int) -> Training:
    return motif_reader(seed, False)


class ConvForecast(LightningModule):
    """Causal convolutions for the next value, with dropout from the functional interface."""

    def __init__(self, module_dropout: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 32, 5, 3), nn.Conv1d(32, 48, 5, 3)
        self.out = nn.Linear(48, 1)
        self.module_dropout = module_dropout

    def forward(self, window: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(window.transpose(1, 2))))).flatten(1)
        x = F.dropout(x, 0.4, self.training) if self.module_dropout else F.dropout(x, 0.4)
        return self.out(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def conv_forecast(seed: int, module_dropout: bool) -> Training:
    task = seasons(seed, noise=0.1)

    def score(fitted: LightningModule) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return task.r2(fitted)

    return Training(ConvForecast(module_dropout), task.train(32), score, task.val(), {"max_epochs": 10})


@sick("tb-forecast-functional-dropout", "series", "mode-mismatch", twin=lambda seed: conv_forecast(seed, True))
def forecast_functional_dropout(seed: int) -> Training:
    return conv_forecast(seed, False)


class HardExamples(LightningModule):
    """Weighs each sample by how unsure a first pass in evaluation mode was."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU()) for _ in range(10)]
        self.net = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), *blocks, nn.Linear(48, 10))
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.eval()
        with torch.no_grad():
            sure = self(x).softmax(-1).gather(1, y[:, None])[:, 0]
        if self.back:
            self.train()
        weight = 1.5 - sure
        loss = (weight * F.cross_entropy(self(x), y, reduction="none")).mean()
        self.log("weighted", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class DigitTable(LightningDataModule):
    """Digits as rows of pixels."""

    def __init__(self, task: Split, batch_size: int) -> None:
        super().__init__()
        self.task, self.batch_size = task, batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.task.x, self.task.y), self.batch_size, shuffle=True, drop_last=True)


def hard_examples(seed: int, back: bool) -> Training:
    task = digits(seed)
    return Training(
        HardExamples(back), DigitTable(task, 48), task.accuracy, trainer={"max_epochs": 10, "num_sanity_val_steps": 0}
    )


@sick("tb-hard-examples-first-pass", "images", "mode-mismatch", twin=lambda seed: hard_examples(seed, True))
def hard_examples_eval(seed: int) -> Training:
    return hard_examples(seed, False)
