"""Trainings whose loss or last layer does not fit the task, or whose data are too few or repeat themselves."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, characters, digits, generator, predict, r2, regression
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, epochs, mlp, series, tokens, waves


def conv_digits() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def pilot(seed: int, rows: int) -> Training:
    data = digits(seed).to_images()
    loader = batches(data.x[:rows], data.y[:rows], size=16)
    net = Plain(conv_digits(), nn.CrossEntropyLoss(), adam(2e-3), log_as="loss")
    return Training(net, loader, data.accuracy, data.val(), {"max_steps": 300, "max_epochs": -1})


@sick("fa-pilot-study-of-30", "images", "too-little-data", "overfitting", twin=lambda seed: pilot(seed, 1300))
def pilot_small(seed: int) -> Training:
    return pilot(seed, 30)


class Simulated(Dataset[tuple[Tensor, Tensor]]):
    """Pulses with a random place, width and noise; the target is their width."""

    def __init__(self, seed: int, own_numbers: bool) -> None:
        self.rng = None if own_numbers else generator(seed, 120)

    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return pulse(self.rng)


def pulse(rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
    place, width = 8 + 24 * torch.rand(1, generator=rng), 1 + 4 * torch.rand(1, generator=rng)
    height = 0.5 + torch.rand(1, generator=rng)
    time = torch.arange(40.0)
    x = height * torch.exp(-(((time - place) / width) ** 2)) + 0.15 * torch.randn(40, generator=rng)
    return x, (width - 3) / 1.15


def simulated(seed: int, own_numbers: bool) -> Training:
    g = generator(seed, 121)
    pairs = [pulse(g) for _ in range(500)]
    x, y = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    loader = DataLoader(Simulated(seed, own_numbers), 32, num_workers=2)
    net = Plain(mlp(40, 128, 128, 1), nn.MSELoss(), adam(2e-3), log_as="width_mse")
    val = batches(x, y, size=500, shuffle=False)
    return Training(net, loader, lambda m: r2(predict(m, x), y), val, epochs(30))


@sick("fa-simulator-per-worker", "signals", "duplicate-randomness", twin=lambda seed: simulated(seed, True))
def simulated_twice(seed: int) -> Training:
    return simulated(seed, False)


class KerasStyle(LightningModule):
    """model.add(Dense(10, activation="softmax")), line by line."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.activation = activation
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.model(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        y_hat = self(x)
        loss = self.loss(y_hat, y)
        self.log("accuracy", accuracy(y_hat, y), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_accuracy", accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def keras(seed: int, activation: nn.Module) -> Training:
    data = digits(seed)
    return Training(KerasStyle(activation), data.train(64), data.accuracy, data.val(), epochs(8))


@sick("fa-dense-softmax-ported", "images", "probabilities-as-logits", twin=lambda seed: keras(seed, nn.Identity()))
def keras_softmax(seed: int) -> Training:
    return keras(seed, nn.Softmax(dim=1))


class NextSymbol(LightningModule):
    def __init__(self, symbols: int, final: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 16)
        self.rnn = nn.LSTM(16, 48, batch_first=True)
        self.head = nn.Linear(48, symbols)
        self.final = final

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.rnn(self.embed(ids))[0])
        return F.softmax(logits, dim=-1) if self.final else logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        scores = self(batch["text"][:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), batch["text"][:, 1:].flatten())
        self.log("lm_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def next_symbol(seed: int, final: bool) -> Training:
    text = characters(seed, n=1500)
    rows = [{"text": line} for line in text.train]

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, text.test[:, :-1]), text.test[:, 1:])

    loader = DataLoader(rows, 50, shuffle=True)  # type: ignore[arg-type]
    return Training(NextSymbol(text.symbols, final), loader, score, trainer=epochs(6))


@sick("fa-next-symbol-softmax", "text", "probabilities-as-logits", twin=lambda seed: next_symbol(seed, False))
def next_symbol_softmax(seed: int) -> Training:
    return next_symbol(seed, True)


class Demand(LightningModule):
    """The next value of a series, by a small recurrent network."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.fc = nn.Linear(24, 1)
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc(self.gru(x[..., None])[0][:, -1, :])
        return out.squeeze(1) if self.squeeze else out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        window, following = batch
        error = (self(window) - following).abs()
        self.log("train_mae", error.mean())
        return error.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 8e-3)


def demand(seed: int, squeeze: bool) -> Training:
    data = series(seed, n=1500)
    loader = batches(data.x, data.y.squeeze(1), size=50)
    return Training(Demand(squeeze), loader, data.r2, trainer=epochs(8))


@sick("fa-mae-of-a-column-and-a-row", "time series", "loss-shape-mismatch", twin=lambda seed: demand(seed, True))
def demand_wide(seed: int) -> Training:
    return demand(seed, False)


class Matching(LightningModule):
    """Questions and answers as two towers; a pair that belongs together shall point the same way."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.left, self.right = mlp(20, 48, 16), mlp(14, 48, 16)
        self.sign = sign

    def forward(self, pair: dict[str, Tensor]) -> Tensor:
        return F.normalize(self.left(pair["q"]), dim=1) @ F.normalize(self.right(pair["a"]), dim=1).T

    def training_step(self, pair: dict[str, Tensor], batch_idx: int) -> Tensor:
        alike = self(pair)
        match = alike.diagonal().mean()
        others = (alike.sum() - alike.trace()) / (len(alike) * (len(alike) - 1))
        objective = match - (F.relu(alike - 0.2) * (1 - torch.eye(len(alike)))).mean() * 5 - 0.1 * others.abs()
        self.log("match", match)
        return self.sign * objective

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def matching(seed: int, sign: float) -> Training:
    g = generator(seed, 122)
    topic = torch.randn(2400, 8, generator=g)
    q = topic @ torch.randn(8, 20, generator=g) / 2.8 + 0.1 * torch.randn(2400, 20, generator=g)
    a = topic @ torch.randn(8, 14, generator=g) / 2.8 + 0.1 * torch.randn(2400, 14, generator=g)
    rows = [{"q": b, "a": c} for b, c in zip(q[:2200], a, strict=False)]

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, {"q": q[2200:], "a": a[2200:]}), torch.arange(200))

    loader = DataLoader(rows, 64, shuffle=True, drop_last=True)  # type: ignore[arg-type]
    return Training(Matching(sign), loader, score, trainer=epochs(8))


@sick("fa-similarity-minimised", "ranking", "wrong-loss-for-task", twin=lambda seed: matching(seed, -1.0))
def matching_reversed(seed: int) -> Training:
    return matching(seed, 1.0)


class Genre(LightningModule):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 16, 9, stride=2), nn.ReLU(), nn.Conv1d(16, 24, 5), nn.ReLU())
        self.out = nn.Linear(24, outputs)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, genre = batch
        out = self(x)
        loss = F.mse_loss(out.squeeze(1), genre.float()) if self.outputs == 1 else F.cross_entropy(out, genre)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def genre(seed: int, outputs: int) -> Training:
    data = waves(seed, noise=0.6)
    name = torch.tensor([2, 0, 3, 1])

    def score(module: LightningModule) -> float:
        out = predict(module, data.x_test)
        found = out.squeeze(1).round().clamp(0, 3) if outputs == 1 else out.argmax(1)
        return (found == name[data.y_test]).float().mean().item()

    return Training(Genre(outputs), batches(data.x, name[data.y], size=30), score, trainer=epochs(6))


@sick("fa-genre-number-squared", "audio", "wrong-loss-for-task", twin=lambda seed: genre(seed, 4))
def genre_squared(seed: int) -> Training:
    return genre(seed, 1)


def returns(seed: int, final: nn.Module) -> Training:
    data = series(seed, noise=0.15)
    net = Plain(nn.Sequential(*mlp(24, 48, 1), final), nn.MSELoss(), adam(3e-3), log_as="mse")
    return Training(net, data.train(40), data.r2, data.val(), epochs(8))


@sick("fa-forecast-ends-in-relu", "time series", "output-range-mismatch", twin=lambda s: returns(s, nn.Identity()))
def returns_relu(seed: int) -> Training:
    return returns(seed, nn.ReLU())


class DoseNet(LightningModule):
    def __init__(self, top: float) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 48), nn.Linear(48, 48), nn.Linear(48, 1)
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.top * torch.sigmoid(self.c(h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.smooth_l1_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), 2e-3)


def dose(seed: int, top: float) -> Training:
    data = regression(seed, r2=0.9).map_targets(lambda y: (2.5 + y).clamp(0.1, 4.9))
    return Training(DoseNet(top), data.train(50), data.r2, trainer=epochs(10))


@sick("fa-dose-up-to-five-by-sigmoid", "tabular", "output-range-mismatch", twin=lambda seed: dose(seed, 5.0))
def dose_low(seed: int) -> Training:
    return dose(seed, 1.0)


def narrow(seed: int, width: int) -> Training:
    data = digits(seed)
    net = Plain(mlp(64, 64, width, 64, 64), nn.MSELoss(), adam(3e-3, 1e-5), log_as="rec")

    def score(module: LightningModule) -> float:
        return r2(predict(module, data.x_test), data.x_test)

    return Training(net, batches(data.x, data.x, size=64), score, trainer=epochs(16))


@sick("fa-code-of-one-number", "autoencoder", "insufficient-capacity", twin=lambda seed: narrow(seed, 24))
def narrow_code(seed: int) -> Training:
    return narrow(seed, 1)


class Deep(nn.Module):
    def __init__(self, bend: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 48), nn.Linear(48, 48), nn.Linear(48, 48)])
        self.out = nn.Linear(48, 1)
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.bend:
                x = F.silu(x)
        return self.out(x)


def interaction(seed: int, bend: bool) -> Training:
    g = generator(seed, 124)
    x = torch.randn(2400, 6, generator=g)
    y = x[:, 0] * x[:, 1] + torch.cos(2 * x[:, 2]) + 0.5 * x[:, 3] + 0.2 * torch.randn(2400, generator=g)
    y = ((y - y.mean()) / y.std())[:, None]

    def score(module: LightningModule) -> float:
        return r2(predict(module, x[1800:]), y[1800:])

    net = Plain(Deep(bend), nn.MSELoss(), adam(4e-3))
    return Training(net, batches(x[:1800], y[:1800], size=64), score, trainer=epochs(12))


@sick("fa-forward-without-silu", "tabular", "missing-nonlinearity", twin=lambda seed: interaction(seed, True))
def interaction_flat(seed: int) -> Training:
    return interaction(seed, False)


def memory(seed: int, dropout: float, decay: float, n_epochs: int) -> Training:
    data = blobs(seed, classes=3, columns=40, n=300, spread=1.8)
    net = nn.Sequential(
        *(nn.Linear(40, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))
    )

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(predict(module, data.x_test), data.y_test).item()

    module = Plain(net, nn.CrossEntropyLoss(), adam(1e-3, decay), log_as="ce")
    return Training(module, data.train(30), score, data.val(500), epochs(n_epochs))


@sick(
    "fa-forty-columns-memorised",
    "tabular",
    "overfitting",
    "too-little-data",
    twin=lambda seed: memory(seed, 0.5, 0.1, 6),
)
def memory_long(seed: int) -> Training:
    return memory(seed, 0.0, 0.0, 40)


class Pooled(LightningModule):
    """How positive a text is, from all of its words."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32)
        self.hidden, self.out = nn.Linear(32, 32), nn.Linear(32, 1)
        self.mean = mean

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) * math.sqrt(32)
        h = h.mean(1) if self.mean else h.sum(1)
        return self.out(torch.tanh(self.hidden(h)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def pooled(seed: int, mean: bool) -> Training:
    data = tokens(seed, n=1500, length=48, vocabulary=200)

    def share(ids: Tensor) -> Tensor:
        return ((ids < 100).float().mean(1, keepdim=True) - 0.5) / 0.21

    test = share(data.x_test)
    loader = batches(data.x, share(data.x), size=32)
    return Training(Pooled(mean), loader, lambda m: r2(predict(m, data.x_test), test), trainer=epochs(8))


@sick("fa-sum-of-scaled-words", "text", "saturated-activations", twin=lambda seed: pooled(seed, True))
def pooled_sum(seed: int) -> Training:
    return pooled(seed, False)
