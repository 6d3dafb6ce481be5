"""Inputs, data sets and loaders that look suspicious to a rule, and nets that look odd, all of which do well."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    Tagger,
    adam,
    adamw,
    balanced_accuracy,
    batches,
    conv_net,
    dense,
    dicts,
    friedman,
    held_out,
    keyword,
    series,
    sgd,
    shapes,
)


@well("u-one-in-fifty-but-learnt", "mlp", "2 % positives far from the rest; balanced accuracy 0.97")
def one_in_fifty(seed: int) -> Training:
    d = data.blobs(seed, classes=2, columns=6, n=3000, spread=4.5, shares=torch.tensor([0.98, 0.02]))
    score = lambda m: balanced_accuracy(m, d.x_test, d.y_test, lambda z: z.argmax(1))  # noqa: E731
    return Training(Fit(dense(6, 24, 2), F.cross_entropy, adam(5e-3)), d.train(64), score, d.val(), {"max_epochs": 8})


@well("u-word-counts", "linear", "rare counts from 0 to 30, most of them 0; accuracy 0.93")
def word_counts(seed: int) -> Training:
    g = data.generator(seed, 91)
    topics = torch.distributions.Gamma(0.3, 1.0).sample((3, 60)) + 0.02
    y = torch.randint(3, (2400,), generator=g)
    x = torch.poisson(topics[y], generator=g)
    d = data.split(x, y, seed)
    return Training(
        Fit(nn.Linear(60, 3), F.cross_entropy, adam(0.02)), d.train(32), d.accuracy, d.val(), {"max_epochs": 6}
    )


@well("u-one-hot-columns", "mlp", "40 columns of zeros and ones beside two numbers; R2 0.95")
def one_hot(seed: int) -> Training:
    g = data.generator(seed, 92)
    kind, place = torch.randint(30, (2500,), generator=g), torch.randint(10, (2500,), generator=g)
    numbers = torch.randn(2500, 2, generator=g)
    level = torch.randn(30, generator=g)[kind] + torch.randn(10, generator=g)[place] * numbers[:, 0]
    x = torch.cat([F.one_hot(kind, 30), F.one_hot(place, 10), numbers], 1).float()
    d = data.split(x, ((level - level.mean()) / level.std())[:, None], seed)
    return Training(Fit(dense(42, 64, 1), F.mse_loss, adam(6e-3)), d.train(32), d.r2, d.val(), {"max_epochs": 12})


@well("u-black-and-white", "mlp", "inputs are 0 or 1, corner pixels never change; accuracy 0.92")
def black_and_white(seed: int) -> Training:
    d = data.digits(seed)
    d = Split((d.x > 0.4).float(), d.y, (d.x_test > 0.4).float(), d.y_test)
    return Training(
        Fit(dense(64, 96, 10), F.cross_entropy, adam(3e-3)), d.train(32), d.accuracy, d.val(), {"max_epochs": 8}
    )


@well("u-bytes-into-batchnorm", "cnn", "pictures in 0..255 meet a BatchNorm first; accuracy 0.98")
def bytes_first(seed: int) -> Training:
    d = shapes(seed)
    d = Split(
        *(t if i % 2 else (60 * t + 80).clamp(0, 255).round() for i, t in enumerate((d.x, d.y, d.x_test, d.y_test)))
    )
    net = nn.Sequential(nn.BatchNorm2d(1), conv_net())
    module = Fit(net, F.cross_entropy, adam(5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 9})


class Normalised(nn.Module):
    """Subtracts and divides inside the model, by numbers kept as buffers."""

    def __init__(self, x: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", x.std(0).clamp(min=1e-6))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@well("u-standardised-in-the-model", "mlp", "raw wine measurements in, scaled inside the model; accuracy 0.97")
def in_model(seed: int) -> Training:
    d = data.table("wine", seed, standardise=False)
    net = Normalised(d.x, dense(13, 24, 3))
    return Training(Fit(net, F.cross_entropy, adam(6e-3)), d.train(16), d.accuracy, d.val(), {"max_epochs": 15})


@well("u-iris-of-112-rows", "linear", "few rows are enough here; accuracy 0.95")
def iris(seed: int) -> Training:
    d = data.table("iris", seed)
    return Training(
        Fit(nn.Linear(4, 3), F.cross_entropy, adam(0.03)), d.train(8), d.accuracy, d.val(), {"max_epochs": 20}
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.down(F.gelu(self.up(self.norm(x))))


@well("u-sixteen-residual-blocks", "mlp", "33 linear layers with residuals and LayerNorm; R2 0.9")
def deep(seed: int) -> Training:
    d = friedman(seed)
    net = nn.Sequential(nn.Linear(10, 32), *[Residual(32) for _ in range(16)], nn.LayerNorm(32), nn.Linear(32, 1))
    module = Fit(net, F.mse_loss, adamw(2e-3))
    return Training(module, batches(d.x, d.y), d.r2, held_out(d.x_test, d.y_test), {"max_epochs": 8})


@well("u-two-layer-gru", "rnn", "a two-layer GRU with dropout between; R2 0.95")
def two_layers(seed: int) -> Training:
    d = series(seed)
    net = Recurrent(nn.GRU, 1, 24, 1, num_layers=2, dropout=0.1)
    return Training(Fit(net, F.l1_loss, adam(6e-3)), batches(d.x, d.y), d.r2, None, {"max_epochs": 10})


class Reversal(LightningModule):
    """Encoder and decoder with teacher forcing: writes a string backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 24)
        self.encoder, self.decoder = nn.GRU(24, 64, batch_first=True), nn.GRU(24, 64, batch_first=True)
        self.head = nn.Linear(64, 9)

    def forward(self, x: Tensor) -> Tensor:
        target = x.flip(1)
        shifted = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
        _, state = self.encoder(self.embedding(x))
        return self.head(self.decoder(self.embedding(shifted), state)[0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = batch["text"]
        loss = F.cross_entropy(self(x).flatten(0, 1), x.flip(1).flatten())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well("u-writes-backwards", "seq2seq", "teacher forcing; share of letters right 0.95")
def backwards(seed: int) -> Training:
    x = torch.randint(1, 9, (1800, 6), generator=data.generator(seed, 93))
    score = lambda m: (predict(m, x[1500:]).argmax(-1) == x[1500:].flip(1)).float().mean().item()  # noqa: E731
    return Training(Reversal(), dicts(50, text=x[:1500]), score, trainer={"max_epochs": 16})


@well(
    "u-characters-to-their-entropy", "language-model", "the loss ends at the entropy of the text; minus loss about -0.6"
)
def text_model(seed: int) -> Training:
    text = data.characters(seed, n=1200, length=24)
    net = nn.Sequential(nn.Embedding(text.symbols, 24), _AllSteps(24, 48, text.symbols))
    loss = lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())  # noqa: E731
    module = Fit(net, loss, adam(8e-3))
    score = lambda m: -loss(predict(m, text.test[:, :-1]), text.test[:, 1:]).item()  # noqa: E731
    return Training(module, batches(text.train[:, :-1], text.train[:, 1:]), score, None, {"max_epochs": 10})


class _AllSteps(nn.Module):
    """A GRU whose head answers at every place."""

    def __init__(self, columns: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(columns, hidden, batch_first=True), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@well("u-batchnorm-of-eight", "mlp", "batches of 8 under BatchNorm, the last one dropped; accuracy 0.94")
def norm_of_eight(seed: int) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    module = Fit(net, F.cross_entropy, adam(2e-3))
    return Training(module, d.train(8, drop_last=True), d.accuracy, d.val(), {"max_epochs": 4})


class Detector(nn.Module):
    """Dot-product attention that ends up nearly one-hot, because one place alone matters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.score, self.head = nn.Embedding(20, 24), nn.Linear(24, 1), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embedding(x)
        return self.head((self.score(e).softmax(1) * e).sum(1))


@well("u-attention-all-on-one-place", "attention", "softmax weights saturate because they should; accuracy 0.99")
def one_place(seed: int) -> Training:
    d = keyword(seed)
    module = Fit(Detector(), F.cross_entropy, adam(0.02))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


@well("u-tanh-output-for-bounded-targets", "mlp", "targets of -1 and 1 behind a tanh that saturates; accuracy 0.99")
def tanh_output(seed: int) -> Training:
    d = data.moons(seed, n=800, noise=0.08).map_targets(lambda y: (2.0 * y - 1)[:, None])
    net = nn.Sequential(dense(2, 32, 1), nn.Tanh())
    score = lambda m: (predict(m, d.x_test).sign() == d.y_test).float().mean().item()  # noqa: E731
    return Training(Fit(net, F.mse_loss, sgd(0.1, momentum=0.9)), d.train(32), score, d.val(), {"max_epochs": 16})


@well(
    "u-third-of-labels-wrong", "mlp", "a third of the training labels are drawn at random; accuracy on clean ones 0.9"
)
def noisy_labels(seed: int) -> Training:
    d = data.digits(seed)
    y = data.flip_labels(d.y, 0.3, 10, seed)
    module = Fit(nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 10)), F.cross_entropy, adam(4e-3))
    return Training(module, batches(d.x, y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 10})


@well("u-one-length-a-batch", "transformer", "batches of one length each, shuffled; accuracy 0.97")
def bucketed(seed: int) -> Training:
    rows: list[Any] = []
    for length in (8, 12, 16):
        d = keyword(seed, n=320, length=length)
        rows += [(d.x[i : i + 32], d.y[i : i + 32]) for i in range(0, 320, 32)]
    train = DataLoader(rows, batch_size=None, shuffle=True)  # type: ignore[arg-type]
    test = keyword(seed, n=320, length=12)
    module = Fit(Tagger(20, 4, pool=True), F.cross_entropy, adam(5e-3))
    return Training(module, train, test.accuracy, None, {"max_epochs": 12})
