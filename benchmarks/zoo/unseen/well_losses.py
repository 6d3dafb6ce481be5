"""Losses that are negative, never zero, often zero, or in units of their own, and end well."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import predict
from benchmarks.zoo.unseen._common import (
    Fit,
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
    minus_loss,
    sgd,
    shapes,
    tokens,
)


class Density(LightningModule):
    """Mean and deviation of each target; with little noise the loss goes far below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense(10, 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        mean, raw = self.net(batch["x"]).chunk(2, 1)
        nll = -torch.distributions.Normal(mean, F.softplus(raw) + 0.01).log_prob(batch["y"]).mean()
        self.log("nll", nll)
        return {"loss": nll, "spread": raw.mean().detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("u-likelihood-below-zero", "mlp", "a density, so the loss crosses zero; R2 0.95")
def below_zero(seed: int) -> Training:
    d = friedman(seed, n=1600, noise=0.1)
    return Training(Density(), dicts(x=d.x, y=d.y), d.r2, trainer={"max_epochs": 25})


class Triplets(LightningModule):
    """Anchor, one of its kind, one of another; soon most batches cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense(64, 64, 16)
        self.loss = nn.TripletMarginLoss(margin=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch["a"]), self(batch["p"]), self(batch["n"]))
        self.log("triplet", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("u-triplets-mostly-zero", "siamese", "a loss of exactly 0 on many batches; nearest neighbour accuracy 0.95")
def triplets(seed: int) -> Training:
    d = data.digits(seed)
    g = data.generator(seed, 72)
    anchor = torch.randint(len(d.x), (2000,), generator=g)
    keys = torch.rand(2000, len(d.x), generator=g)
    same = d.y[anchor][:, None] == d.y[None]
    positive, negative = (keys * same).argmax(1), (keys * ~same).argmax(1)

    def nearest(m: Any) -> float:
        found = torch.cdist(predict(m, d.x_test), predict(m, d.x)).argmin(1)
        return (d.y[found] == d.y_test).float().mean().item()

    return Training(
        Triplets(), dicts(16, a=d.x[anchor], p=d.x[positive], n=d.x[negative]), nearest, trainer={"max_epochs": 4}
    )


@well("u-smoothed-labels", "transformer", "label smoothing of 0.2 keeps the loss above 0.6; accuracy 0.99")
def smoothed(seed: int) -> Training:
    d = keyword(seed)
    module = Fit(Tagger(20, 4, pool=True), nn.CrossEntropyLoss(label_smoothing=0.2), adamw(5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 8})


class Mixed(Fit):
    """Each batch is mixed with itself in another order."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share = torch.distributions.Beta(1.0, 1.0).sample()
        order = torch.randperm(len(x))
        logits = self(share * x + (1 - share) * x[order])
        loss = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[order])
        self.log("mixed_loss", loss)
        return loss


@well("u-mixup-uniform", "cnn", "mixup over the whole range: the training loss stays near 0.7; accuracy 0.98")
def mixup(seed: int) -> Training:
    d = shapes(seed)
    module = Mixed(conv_net(width=12), F.cross_entropy, adam(5e-3))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 16})


@well("u-half-dropped-out", "mlp", "dropout 0.5 keeps the training loss above that of validation; accuracy 0.96")
def dropped(seed: int) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5))
    module = Fit(nn.Sequential(*net, nn.Linear(128, 10)), F.cross_entropy, adam(2e-3))
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 12})


def focal(logits: Tensor, y: Tensor) -> Tensor:
    ce = F.cross_entropy(logits, y, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


@well(
    "u-focal-tiny-losses", "mlp", "1 row in 12 is of the second class; the focal loss is small; balanced accuracy 0.95"
)
def focal_loss(seed: int) -> Training:
    d = data.blobs(seed, classes=2, columns=6, n=2500, spread=3.2, shares=torch.tensor([0.92, 0.08]))
    module = Fit(dense(6, 32, 2), focal, adam(3e-3))
    score = lambda m: balanced_accuracy(m, d.x_test, d.y_test, lambda z: z.argmax(1))  # noqa: E731
    return Training(module, d.train(64), score, d.val(), {"max_epochs": 8})


def pinball(out: Tensor, y: Tensor) -> Tensor:
    gap = y - out
    quantile = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(quantile * gap, (quantile - 1) * gap).mean()


@well("u-three-quantiles", "mlp", "three outputs against one target column on purpose; minus pinball loss about -0.15")
def quantiles(seed: int) -> Training:
    d = data.regression(seed, r2=0.7, n=2000)
    module = Fit(dense(8, 48, 3), pinball, adam(4e-3))
    return Training(module, d.train(50), minus_loss(d.x_test, d.y_test, pinball), d.val(), {"max_epochs": 10})


@well("u-poisson-counts", "glm", "counts with a mean of 6 and a Poisson likelihood that is negative; R2 0.8")
def poisson(seed: int) -> Training:
    g = data.generator(seed, 73)
    x = torch.randn(3000, 5, generator=g)
    y = torch.poisson((1.5 + x @ torch.tensor([[0.5], [-0.4], [0.3], [0.0], [0.0]])).exp(), generator=g)
    d = data.split(x, y, seed)
    module = Fit(nn.Linear(5, 1), nn.PoissonNLLLoss(log_input=True), adam(0.01))
    score = lambda m: data.r2(predict(m, d.x_test).exp(), d.y_test)  # noqa: E731
    return Training(module, d.train(64), score, d.val(), {"max_epochs": 10})


class Speech(LightningModule):
    """CTC: frames in, a shorter string out; its first steps learn the blank alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(6, 48, 5, padding=2), nn.ReLU(), nn.Conv1d(48, 6, 3, padding=1))
        self.ctc = nn.CTCLoss(zero_infinity=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).permute(2, 0, 1).log_softmax(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        frames = torch.full((len(x),), x.shape[-1])
        loss = self.ctc(self(x), y, frames, torch.full((len(x),), y.shape[1]))
        self.log("ctc", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("u-ctc-plateau-first", "speech", "CTC sits on a plateau of blanks before it falls; share of strings right 0.9")
def ctc(seed: int) -> Training:
    g = data.generator(seed, 74)
    y = torch.randint(1, 6, (1000, 4), generator=g)
    sounds = torch.randn(6, 6, generator=data.generator(3, 75))
    x = torch.zeros(1000, 6, 24)
    for place in range(4):
        start = 1 + 6 * place
        x[:, :, start : start + 3] = sounds[y[:, place]][:, :, None]
    x += 0.2 * torch.randn(x.shape, generator=g)

    def whole(m: Any) -> float:
        best = predict(m, x[800:]).argmax(-1).T
        right = 0
        for path, truth in zip(best, y[800:], strict=True):
            heard = torch.unique_consecutive(path)
            right += heard[heard > 0].tolist() == truth.tolist()
        return right / 200

    return Training(Speech(), batches(x[:800], y[:800]), whole, trainer={"max_epochs": 15})


def hinge(out: Tensor, y: Tensor) -> Tensor:
    return F.relu(1 - out[:, 0] * (2.0 * y - 1)).mean()


@well("u-hinge", "linear", "a hinge loss with most rows beyond the margin; accuracy 0.96")
def hinge_loss(seed: int) -> Training:
    d = data.table("breast_cancer", seed)
    score = lambda m: ((predict(m, d.x_test)[:, 0] > 0) == (d.y_test == 1)).float().mean().item()  # noqa: E731
    module = Fit(nn.Linear(30, 1), hinge, sgd(0.05, momentum=0.9))
    return Training(module, d.train(16), score, d.val(), {"max_epochs": 10})


@well("u-two-thirds-padding", "transformer", "most labels are -100 and ignored; accuracy 0.99 on the rest")
def padding(seed: int) -> Training:
    d = tokens(seed, n=1600, length=12)
    lengths = torch.randint(2, 7, (len(d.x), 1), generator=data.generator(seed, 76))
    real = torch.arange(12) < lengths
    x, y = torch.where(real, d.x, 0), torch.where(real, d.y, -100)
    loss = lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten(), ignore_index=-100)  # noqa: E731
    module = Fit(Tagger(12, 3, pool=False), loss, adamw(6e-3))
    score = lambda m: (predict(m, x[1200:]).argmax(-1) == y[1200:])[real[1200:]].float().mean().item()  # noqa: E731
    return Training(module, batches(x[:1200], y[:1200]), score, trainer={"max_epochs": 10})
