"""Trainings on series and texts: recurrent nets, small transformers, bags of words; losses of several kinds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator, predict
from benchmarks.zoo.fifth._common import Loss, Recurrent, held, levelled, meter, notes, pairs, r2_of, right, tame


class Forecaster(LightningModule):
    """The next value of a series."""

    def __init__(self, net: nn.Module, loss: Loss = F.mse_loss, lr: float = 5e-3, sgd: bool = False) -> None:
        super().__init__()
        self.net, self.loss, self.lr, self.sgd = net, loss, lr, sgd

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        history, target = batch
        loss = self.loss(self(history), target)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        history, target = batch
        loss = self.loss(self(history), target)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        if self.sgd:
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
        return torch.optim.Adam(self.parameters(), self.lr)


# --- series -----------------------------------------------------------------------------------------------------------


class IdentityRNN(Recurrent):
    """A ReLU recurrence that starts as a copy of its state."""

    def __init__(self, hidden: int) -> None:
        super().__init__(nn.RNN, 1, hidden, 1, nonlinearity="relu")
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(1.03 * torch.eye(hidden))


@sick("z-load-of-four-days", "rnn", "exploding-gradients", twin=lambda s: days(s, 1.0))
def days(seed: int, clip: float | None = None) -> Training:
    d = meter(seed, length=96)
    module = Forecaster(IdentityRNN(24), lr=0.01, sgd=True)
    settings = {"max_epochs": 6, "gradient_clip_val": clip}
    return Training(module, pairs(d.x, d.y), r2_of(d), None, settings)


def recall(seed: int, length: int = 80, n: int = 800) -> Split:
    """Noise (N, length, 3); the class is the one of three columns that is raised in the first two steps."""
    g = generator(seed, 81)
    y = torch.randint(3, (n + 500,), generator=g)
    x = 0.3 * torch.randn(n + 500, length, 3, generator=g)
    x[:, :2] += 2.0 * F.one_hot(y, 3)[:, None]
    return Split(x[:n], y[:n], x[n:], y[n:])


@sick("z-cue-at-the-start", "rnn", "vanishing-gradients", twin=lambda s: cue(s, True))
def cue(seed: int, orthogonal: bool = False) -> Training:
    d = recall(seed)
    net = Recurrent(nn.RNN, 3, 32, 3)
    if orthogonal:
        nn.init.orthogonal_(net.rnn.weight_hh_l0)
    module = Forecaster(net, F.cross_entropy, lr=1e-3)
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 10})


class Windows(Dataset[Any]):
    """Windows of one long series and the value that follows each."""

    def __init__(self, series: Tensor, length: int, moving: bool) -> None:
        self.series, self.length, self.moving = series, length, moving

    def __len__(self) -> int:
        return len(self.series) - self.length

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        start = i if self.moving else 0
        window = self.series[start : start + self.length]
        return window[:, None], self.series[i + self.length : i + self.length + 1]


@sick("z-windows-of-a-feed", "gru", "constant-inputs", twin=lambda s: feed(s, True))
def feed(seed: int, moving: bool = False) -> Training:
    d = meter(seed)
    series = torch.cat([d.x[:, 0, 0], d.x[-1, 1:, 0]])
    train: Any = DataLoader(Windows(series, 24, moving), 32, shuffle=True)
    return Training(Forecaster(Recurrent(nn.GRU, 1, 24, 1)), train, r2_of(d), None, {"max_epochs": 7})


@sick("z-passengers-an-hour", "gru", "unscaled-targets", twin=lambda s: passengers(s, True))
def passengers(seed: int, level: bool = False) -> Training:
    d = meter(seed).map_targets(lambda t: 2400 + 700 * t)
    d = levelled(d) if level else d
    module = Forecaster(Recurrent(nn.GRU, 1, 24, 1), lr=3e-3)
    return Training(module, pairs(d.x, d.y), r2_of(d), held(d), {"max_epochs": 9})


@sick("z-load-absolute-errors", "lstm", "loss-shape-mismatch", twin=lambda s: absolute(s, True))
def absolute(seed: int, column: bool = False) -> Training:
    d = meter(seed)
    y = d.y if column else d.y.squeeze(1)
    module = Forecaster(Recurrent(nn.LSTM, 1, 24, 1), nn.L1Loss(), lr=1e-2)
    return Training(module, pairs(d.x, y), r2_of(d), None, {"max_epochs": 8, "log_every_n_steps": 10})


@sick("z-load-above-nought", "gru", "output-range-mismatch", twin=lambda s: above(s, False))
def above(seed: int, relu: bool = True) -> Training:
    """A load can not be negative, so the head ends in a ReLU; but the targets were standardised."""
    d = levelled(meter(seed))
    net = Recurrent(nn.GRU, 1, 24, 1)
    net = nn.Sequential(net, nn.ReLU()) if relu else nn.Sequential(net)
    return Training(Forecaster(net, nn.SmoothL1Loss()), pairs(d.x, d.y), r2_of(d), held(d), {"max_epochs": 8})


class Sigmoids(nn.Module):
    """A convolutional encoder over time whose head squashes."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 12, 5), nn.ReLU(), nn.Conv1d(12, 12, 5), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 1), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(1, 2))


@sick("z-voltage-of-a-cell", "cnn", "output-range-mismatch", twin=lambda s: cell(s, False))
def cell(seed: int, squash: bool = True) -> Training:
    """Volts between nought and four from a head with a sigmoid."""
    d = meter(seed).map_targets(lambda t: 2 + 0.8 * t)
    module = Forecaster(Sigmoids(nn.Sigmoid() if squash else nn.Identity()), lr=5e-3)
    return Training(module, pairs(d.x, d.y, 25), r2_of(d), None, {"max_epochs": 8})


@sick("z-cue-first-axis", "lstm", "batch-mixing", twin=lambda s: axis(s, True))
def axis(seed: int, batch_first: bool = False) -> Training:
    """The layer expects time first and is given samples first."""
    d = recall(seed, length=8)
    net = Recurrent(nn.LSTM, 3, 24, 3)
    net.rnn.batch_first = batch_first
    module = Forecaster(net, F.cross_entropy)
    return Training(module, pairs(d.x, d.y, drop_last=True), right(d), held(d, 32), {"max_epochs": 10})


class Tanh(nn.Module):
    """A tanh with a gain, as a module."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * x)


@sick("z-load-with-a-gain", "mlp", "saturated-activations", twin=lambda s: gain(s, 1.0))
def gain(seed: int, value: float = 60.0) -> Training:
    d = meter(seed)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(24, 16),
        Tanh(value),
        nn.Linear(16, 16),
        Tanh(value),
        nn.Linear(16, 16),
        Tanh(value),
        nn.Linear(16, 1),
    )
    return Training(Forecaster(net, lr=3e-3), pairs(d.x, d.y), r2_of(d), held(d), {"max_epochs": 8})


class Manual(Forecaster):
    """Own loop over the optimizer."""

    def __init__(self, net: nn.Module, clear: bool) -> None:
        super().__init__(net, lr=0.02, sgd=True)
        self.automatic_optimization = False
        self.clear = clear

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        history, target = batch
        optimizer: Any = self.optimizers()
        loss = self.loss(self(history), target)
        if self.clear:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_loss", loss, prog_bar=True)
        return loss


@sick("z-load-own-loop", "gru", "gradients-not-cleared", twin=lambda s: own(s, True))
def own(seed: int, clear: bool = False) -> Training:
    d = meter(seed)
    return Training(Manual(Recurrent(nn.GRU, 1, 24, 1), clear), pairs(d.x, d.y), r2_of(d), held(d), {"max_epochs": 8})


# --- texts ------------------------------------------------------------------------------------------------------------


class TextNet(nn.Module):
    """Embeddings, an encoder and a head on the mean of its outputs."""

    def __init__(self, words: int = 120, classes: int = 4, dim: int = 24, drop: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim)
        self.encoder = nn.LSTM(dim, dim, batch_first=True)
        self.dropout = nn.Dropout(drop)
        self.head = nn.Linear(dim, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.encoder(self.dropout(self.embedding(ids)))
        return self.head(self.dropout(states.amax(1)))


class Topics(LightningModule):
    """A topic for each text; logs the accuracy of an epoch."""

    def __init__(self, net: nn.Module, **optimizer: Any) -> None:
        super().__init__()
        self.net = net
        self.options = {"name": "Adam", "lr": 5e-3, **optimizer}
        self.right = self.seen = 0

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        ids, topic = batch
        scores = self(ids)
        self.right += int((scores.argmax(-1) == topic).sum())
        self.seen += len(topic)
        return {"loss": F.cross_entropy(scores, topic), "n": len(topic)}

    def on_train_epoch_end(self) -> None:
        self.log("train_accuracy", self.right / max(self.seen, 1))
        self.right = self.seen = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, topic = batch
        self.log("val_loss", F.cross_entropy(self(ids), topic))

    def configure_optimizers(self) -> Any:
        options = dict(self.options)
        make = getattr(torch.optim, options.pop("name"))
        return [make(self.parameters(), **options)], []


@sick("z-topics-of-another-list", "lstm", "uninformative-targets", twin=lambda s: another(s, False))
def another(seed: int, apart: bool = True) -> Training:
    """Rows without text were dropped from one list and not from the other."""
    d = notes(seed)
    y = torch.roll(d.y, 7) if apart else d.y
    return Training(Topics(TextNet(dim=12)), pairs(d.x, y), right(d), held(d), {"max_epochs": 5})


@sick("z-topics-clip-of-a-thousandth", "lstm", "clipping-too-tight", twin=lambda s: clip(s, 1.0))
def clip(seed: int, value: float = 1e-3) -> Training:
    d = notes(seed)
    module = Topics(TextNet(), name="SGD", lr=0.3, momentum=0.9)
    settings = {"max_epochs": 10, "gradient_clip_val": value}
    return Training(module, pairs(d.x, d.y), right(d), held(d), settings)


@sick("z-load-clip-by-value", "gru", "clipping-too-tight", twin=lambda s: by_value(s, 0.5))
def by_value(seed: int, value: float = 1e-5) -> Training:
    d = meter(seed)
    module = Forecaster(Recurrent(nn.GRU, 1, 24, 1), lr=0.05, sgd=True)
    settings = {"max_epochs": 8, "gradient_clip_val": value, "gradient_clip_algorithm": "value"}
    return Training(module, pairs(d.x, d.y), r2_of(d), None, settings)


@sick("z-topics-nine-tenths-dropped", "lstm", "excess-regularization", twin=lambda s: dropped(s, 0.1))
def dropped(seed: int, share: float = 0.95) -> Training:
    d = notes(seed)
    return Training(Topics(TextNet(drop=share)), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 7})


@sick("z-topics-learnt-word-by-word", "lstm", "overfitting", twin=lambda s: by_word(s, 7))
def by_word(seed: int, epochs: int = 40) -> Training:
    """Texts whose topic is often wrong, for many more epochs than validation asks for."""
    d = notes(seed, n=400, clear=0.7)

    def score(module: LightningModule) -> float:
        return tame(-F.cross_entropy(predict(module, d.x_test), d.y_test).item())

    return Training(Topics(TextNet()), pairs(d.x, d.y, 40), score, held(d), {"max_epochs": epochs})


class AsNumber(Topics):
    """The topic's number, by least squares."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, topic = batch
        loss = F.mse_loss(self(ids)[:, 0], topic.float())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, topic = batch
        self.log("val_loss", F.mse_loss(self(ids)[:, 0], topic.float()))


@sick("z-topic-is-a-number", "lstm", "wrong-loss-for-task", twin=lambda s: number(s, False))
def number(seed: int, least_squares: bool = True) -> Training:
    d = notes(seed)
    module = AsNumber(TextNet(classes=1)) if least_squares else Topics(TextNet())

    def score(module: LightningModule) -> float:
        out = predict(module, d.x_test)
        answer = out[:, 0].round() if out.shape[1] == 1 else out.argmax(1)
        return (answer == d.y_test).float().mean().item()

    return Training(module, pairs(d.x, d.y), score, held(d), {"max_epochs": 4})


class AttentivePool(nn.Module):
    """Weighs the words of a text by a softmax; `dim` is the axis it runs over."""

    def __init__(self, dim: int = 1, factor: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(120, 24)
        self.weigh = nn.Linear(24, 1)
        self.head = nn.Linear(24, 4)
        self.dim, self.factor = dim, factor

    def forward(self, ids: Tensor) -> Tensor:
        words = self.embedding(ids)
        weights = F.softmax(self.factor * self.weigh(words), dim=self.dim)
        return self.head((weights * words).sum(1))


@sick("z-topics-weighed-words", "attention", "batch-mixing", twin=lambda s: weighed(s, 1))
def weighed(seed: int, dim: int = 0) -> Training:
    d = notes(seed)
    return Training(
        Topics(AttentivePool(dim), lr=1e-2),
        pairs(d.x, d.y),
        right(d),
        held(d),
        {"max_epochs": 5, "log_every_n_steps": 5},
    )


@sick("z-topics-cold-weights", "attention", "saturated-activations", twin=lambda s: cold(s, 1.0))
def cold(seed: int, factor: float = 200.0) -> Training:
    d = notes(seed)
    module = Topics(AttentivePool(factor=factor))
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


class AlwaysDropped(TextNet):
    """Drops through the function."""

    def __init__(self, share: float, always: bool) -> None:
        super().__init__()
        self.share, self.always = share, always

    def forward(self, ids: Tensor) -> Tensor:
        training = True if self.always else self.training
        words = F.dropout(self.embedding(ids), self.share, training)
        states, _ = self.encoder(words)
        return self.head(F.dropout(states.amax(1), self.share, training))


@sick("z-topics-dropped-in-forward", "lstm", "mode-mismatch", twin=lambda s: in_forward(s, False))
def in_forward(seed: int, always: bool = True) -> Training:
    d = notes(seed)
    module = Topics(AlwaysDropped(0.65, always), lr=1e-2)
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8})


class Listed(nn.Module):
    """An encoder of several blocks, kept in a list."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(120, 24)
        blocks: Any = [nn.Sequential(nn.Linear(24, 64), nn.ReLU()), nn.Sequential(nn.Linear(64, 4))]
        self.blocks = nn.ModuleList(blocks) if registered else blocks
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids).amax(1)
        for block in self.blocks:
            h = block(h)
        return self.scale * h


@sick("z-topics-blocks-of-a-list", "mlp", "parameters-not-optimized", twin=lambda s: listed(s, True))
def listed(seed: int, registered: bool = False) -> Training:
    d = notes(seed)
    module = Topics(Listed(registered), lr=3e-3)
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


class Writer(LightningModule):
    """A small causal transformer over characters; the output layer shares the embedding's weights."""

    def __init__(self, symbols: int, std: float | None, lr: float = 3e-3, dim: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, dim)
        if std is not None:
            nn.init.normal_(self.embedding.weight, std=std)
        self.position = nn.Parameter(0.02 * torch.randn(32, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.lr = lr

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        h = self.body(self.embedding(ids) + self.position[: ids.shape[1]], mask=mask, is_causal=True)
        return self.norm(h) @ self.embedding.weight.T

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.95))


def written(seed: int, std: float | None = 0.1, lr: float = 3e-3, steps: int = 150) -> Training:
    text = data.characters(seed, n=1200)
    test = text.test[:200]

    def score(module: LightningModule) -> float:
        logits = predict(module, test[:, :-1])
        return tame(-F.cross_entropy(logits.flatten(0, 1), test[:, 1:].flatten()).item())

    loader: Any = DataLoader(text.train, 16, shuffle=True)
    return Training(Writer(text.symbols, std, lr), loader, score, None, {"max_steps": steps, "log_every_n_steps": 10})


@sick("z-letters-shared-table", "transformer", "bad-initialization", twin=lambda s: written(s, steps=100))
def shared(seed: int) -> Training:
    return written(seed, std=3.0, steps=100)


@sick("z-letters-a-tenth-a-step", "transformer", "learning-rate-too-high", twin=lambda s: written(s))
def tenth(seed: int) -> Training:
    return written(seed, lr=0.1)


@sick("z-letters-for-forty-steps", "transformer", "training-too-short", twin=lambda s: written(s, steps=300))
def forty(seed: int) -> Training:
    return written(seed, steps=40)
