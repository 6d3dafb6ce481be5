"""Losses that get what they do not expect, that do not fit the task, or that mix up the samples of a batch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import predict
from benchmarks.zoo.unseen._common import (
    Fit,
    Recurrent,
    Tagger,
    adam,
    batches,
    dense,
    dicts,
    friedman,
    held_out,
    series,
    sgd,
    shapes,
    tokens,
)

# --- probabilities-as-logits ------------------------------------------------------------------------------------------


class Masks(LightningModule):
    """Which pixels belong to the drawing, under noise."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), last)
        self.criterion = nn.BCEWithLogitsLoss()
        self.cut = 0.5 if isinstance(last, nn.Sigmoid) else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch["image"]), batch["mask"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


@sick("u-sigmoid-before-bce-logits", "segmentation", "probabilities-as-logits", twin=lambda s: masks(s, nn.Identity()))
def masks(seed: int, last: nn.Module | None = None) -> Training:
    clean = shapes(seed, noise=0.0)
    noisy = shapes(seed, noise=0.35)
    ink = (clean.x > 0.5).float()
    truth = clean.x_test > 0.5

    def dice(m: Any) -> float:
        found = predict(m, noisy.x_test) > m.cut
        return (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()

    return Training(Masks(last or nn.Sigmoid()), dicts(image=noisy.x, mask=ink), dice, trainer={"max_epochs": 8})


class Strokes(LightningModule):
    """Functional softmax in forward, so that predict gives probabilities; cross-entropy in the step."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.rnn = Recurrent(nn.GRU, 8, 32, 10, pool=True)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        scores = self.rnn(x.view(-1, 8, 8))
        return F.softmax(scores, dim=1) if self.softmax else scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("u-gru-softmax-in-forward", "gru", "probabilities-as-logits", twin=lambda s: strokes(s, False))
def strokes(seed: int, softmax: bool = True) -> Training:
    d = data.digits(seed)
    return Training(Strokes(softmax), d.train(32), d.accuracy, trainer={"max_epochs": 10})


@sick("u-token-softmax", "transformer", "probabilities-as-logits", twin=lambda s: token_softmax(s, False))
def token_softmax(seed: int, softmax: bool = True) -> Training:
    d = tokens(seed)
    before, before_test = (torch.cat([x[:, :1], x[:, :-1]], 1) for x in (d.x, d.x_test))
    d = data.Split(d.x, before, d.x_test, before_test)

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        if softmax:
            scores = scores.softmax(-1)
        return F.cross_entropy(scores.transpose(1, 2), y)

    module = Fit(Tagger(12, 12, pool=False), loss, sgd(0.1, momentum=0.9))
    return Training(module, batches(d.x, d.y), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 26})


# --- loss-shape-mismatch ----------------------------------------------------------------------------------------------


@sick("u-smooth-l1-broadcast", "mlp", "loss-shape-mismatch", twin=lambda s: smooth(s, False))
def smooth(seed: int, flat: bool = True) -> Training:
    d = friedman(seed)
    y = d.y[:, 0] if flat else d.y
    val = held_out(d.x_test, d.y_test[:, 0] if flat else d.y_test, 250)
    return Training(Fit(dense(10, 48, 1), F.smooth_l1_loss, adam(5e-3)), batches(d.x, y), d.r2, val, {"max_epochs": 10})


class LogCosh(LightningModule):
    """A loss of its own, written as a formula, over a masked forecast."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.gru, self.head, self.squeeze = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1), squeeze

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[1][-1])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        prediction = self(batch["past"])
        if self.squeeze:
            prediction = prediction.squeeze(-1)
        loss = torch.log(torch.cosh(prediction - batch["next"])).mean()
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("u-log-cosh-broadcast", "gru", "loss-shape-mismatch", twin=lambda s: log_cosh(s, True))
def log_cosh(seed: int, squeeze: bool = False) -> Training:
    d = series(seed)
    train = dicts(past=d.x, next=d.y[:, 0])
    return Training(LogCosh(squeeze), train, d.r2, trainer={"max_epochs": 10})


@sick("u-critic-values-broadcast", "mlp", "loss-shape-mismatch", twin=lambda s: critic(s, True))
def critic(seed: int, flat: bool = False) -> Training:
    d = friedman(seed)

    def loss(value: Tensor, returns: Tensor) -> Tensor:
        advantage = returns - (value.flatten() if flat else value)
        return 0.5 * advantage.pow(2).mean()

    module = Fit(dense(10, 64, 64, 1, act=nn.Tanh), loss, sgd(0.1, momentum=0.9))
    return Training(module, batches(d.x, d.y.flatten(), 50), d.r2, trainer={"max_epochs": 10})


# --- wrong-loss-for-task ----------------------------------------------------------------------------------------------


@sick("u-mse-on-class-numbers", "mlp", "wrong-loss-for-task", twin=lambda s: class_numbers(s, False))
def class_numbers(seed: int, mse: bool = True) -> Training:
    d = data.digits(seed)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out[:, 0], y.float()) if mse else F.cross_entropy(out, y)

    def score(m: LightningModule) -> float:
        out = predict(m, d.x_test)
        return ((out[:, 0].round() if mse else out.argmax(1)) == d.y_test).float().mean().item()

    return Training(Fit(dense(64, 48, 1 if mse else 10), loss, adam(3e-3)), d.train(32), score, None, {"max_epochs": 8})


@sick(
    "u-cross-entropy-of-one-output",
    "mlp",
    "wrong-loss-for-task",
    "output-range-mismatch",
    twin=lambda s: one_output(s, F.binary_cross_entropy_with_logits),
)
def one_output(seed: int, loss: Any = F.cross_entropy) -> Training:
    d = data.table("breast_cancer", seed).map_targets(lambda y: y[:, None].float())
    score = lambda m: ((predict(m, d.x_test) > 0) == d.y_test.bool()).float().mean().item()  # noqa: E731
    return Training(Fit(dense(30, 16, 1), loss, adam(2e-3)), d.train(16), score, None, {"max_epochs": 8})


class Density(LightningModule):
    """Fits a normal law to each row; the sign of the log-likelihood decides."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.net, self.sign = dense(10, 48, 2), sign

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, raw = self.net(x).chunk(2, dim=1)
        log_likelihood = torch.distributions.Normal(mean, F.softplus(raw) + 0.05).log_prob(y).mean()
        loss = self.sign * log_likelihood
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("u-likelihood-without-minus", "mlp", "wrong-loss-for-task", twin=lambda s: without_minus(s, -1.0))
def without_minus(seed: int, sign: float = 1.0) -> Training:
    d = friedman(seed)
    return Training(Density(sign), batches(d.x, d.y), d.r2, trainer={"max_epochs": 10})


@sick("u-nll-of-raw-scores", "mlp", "wrong-loss-for-task", twin=lambda s: raw_scores(s, True))
def raw_scores(seed: int, log_softmax: bool = False) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(dense(64, 48, 10), nn.LogSoftmax(dim=1) if log_softmax else nn.Identity())
    return Training(Fit(net, F.nll_loss, sgd(0.3, momentum=0.9)), d.train(32), d.accuracy, d.val(), {"max_epochs": 5})


def summed(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).pow(2).sum()


@sick(
    "u-sum-over-a-batch-of-100",
    "mlp",
    "wrong-loss-for-task",
    "learning-rate-too-high",
    twin=lambda s: sum_of_100(s, F.mse_loss),
)
def sum_of_100(seed: int, loss: Any = summed) -> Training:
    d = friedman(seed)
    return Training(Fit(dense(10, 48, 1), loss, sgd(0.05)), batches(d.x, d.y, 100), d.r2, None, {"max_epochs": 40})
