"""The failing trainings of five question-and-answer articles on stalled PyTorch models, run long enough to judge.

Small full-batch loops as the articles have them. Causes are those that measurement bears out, not always the ones
claimed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, r2
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, adam, adamw, mlp, sgd


def _whole(x: Tensor, y: Tensor) -> DataLoader:
    """Every sample in every batch."""
    return DataLoader(TensorDataset(x, y), batch_size=len(x), shuffle=True)


def _held_out(x: Tensor, y: Tensor) -> Split:
    return Split(x, y, x, y)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _classes(samples: int, rng: torch.Generator, columns: int = 10) -> tuple[Tensor, Tensor]:
    """Standard normal rows whose class is the sign of a noisy sum of the first columns."""
    x = torch.randn(samples, columns, generator=rng)
    return x, (x[:, : columns // 2].sum(1) + 0.3 * torch.randn(samples, generator=rng) > 0).long()


# --- the first article


class SoftTargets(Classifier):
    """Cross-entropy against a row of class weights for each sample."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, weights = batch
        loss = F.cross_entropy(self(x), weights)
        self.log("train_loss", loss)
        return loss


def _soft(seed: int, scale: bool) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    x = torch.rand(400, 10, generator=rng)
    lean = (x[:, :2] * 6).softmax(1)
    targets = lean if scale else torch.rand(400, 2, generator=rng) * 1000
    module = SoftTargets(mlp(10, 20, 2), adam(1e-3))
    test = torch.rand(300, 10, generator=rng)
    judge = accuracy(_held_out(test, test[:, :2].argmax(1)))
    return Training(module, _whole(x, targets), judge, None, {"max_epochs": 400})


@sick(
    "article-000-1",
    "article",
    "unscaled-targets",
    "uninformative-targets",
    twin=lambda seed: _soft(seed, True),
    note="soft targets that sum to about 1000; they are drawn at random as well",
)
def soft_targets(seed: int) -> Training:
    return _soft(seed, False)


def _line(seed: int, batch_size: int) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    x = torch.rand(200, 1, generator=rng) * 10 - 5
    y = 2 * x + 3 + torch.randn(200, 1, generator=rng)
    test = torch.linspace(-5, 5, 100)[:, None]
    module = Regressor(mlp(1, 2, 1), adam(0.01))
    split = Split(x, y, test, 2 * test + 3)
    return Training(module, split.train(batch_size), r2(split), None, {"max_epochs": 100})


@sick(
    "article-000-2",
    "article",
    "training-too-short",
    "learning-rate-too-low",
    "unscaled-targets",
    twin=lambda seed: _line(seed, 12),
    note="blamed on capacity; the loss still falls when it ends. The twin takes 17 steps for one",
)
def line(seed: int) -> Training:
    return _line(seed, 200)


def _codes(seed: int, informed: bool) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    codes = torch.randint(0, 3, (300,), generator=rng)
    y = (codes + 1) % 3 if informed else torch.randint(0, 3, (300,), generator=rng)
    x = F.one_hot(codes, 3).float() if informed else codes.float()[:, None]
    tests = torch.arange(3)
    test_x = F.one_hot(tests, 3).float() if informed else tests.float()[:, None]
    module = Classifier(mlp(3 if informed else 1, 10, 3), adam(0.01))
    return Training(module, _whole(x, y), accuracy(_held_out(test_x, (tests + 1) % 3)), None, {"max_epochs": 300})


@sick(
    "article-000-3",
    "article",
    "uninformative-targets",
    twin=lambda seed: _codes(seed, True),
    note="category codes as numbers as well, but the labels are random: one-hot would not help",
)
def codes(seed: int) -> Training:
    return _codes(seed, False)


# --- the second article; its loader is in articles_loaders.py


def _growing(seed: int, scaled: bool) -> Training:
    torch.manual_seed(seed)
    time = torch.arange(700.0)
    series = 50 + 2 * time + 40 * torch.sin(time / 6) + 5 * torch.randn(700, generator=_rng())
    if scaled:
        series = (series - series.mean()) / series.std()
    windows = series.unfold(0, 31, 1)
    order = torch.randperm(len(windows), generator=_rng(1))
    x, y = windows[order, :30, None], windows[order, 30:]
    split = Split(x[:500], y[:500], x[500:], y[500:])
    net = Recurrent(nn.LSTM(1, 32, batch_first=True), 1)
    trainer = {"max_epochs": 20, "gradient_clip_val": 1.0 if scaled else None}
    return Training(Regressor(net, sgd(0.01, momentum=0.9)), split.train(25), r2(split), None, trainer)


@sick(
    "article-001-2",
    "article",
    "unscaled-inputs",
    "unscaled-targets",
    twin=lambda seed: _growing(seed, True),
    note="an LSTM on a raw growing series: the inputs are the targets, both in the thousands",
)
def growing(seed: int) -> Training:
    return _growing(seed, False)


def _deep(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    layers: list[nn.Module] = [nn.Conv2d(1, 96, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)]
    for _ in range(28):
        layers += [nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(384, 2))
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    x = torch.randn(640, 1, 8, 8, generator=rng)
    y = torch.randint(0, 2, (640,), generator=rng)
    x[:, 0, 2:6, 2:6] += 0.8 * (2 * y - 1)[:, None, None]
    split = Split(x[:384], y[:384], x[384:], y[384:])
    return Training(Classifier(net, adamw(lr)), split.train(32), accuracy(split), None, {"max_epochs": 6})


@sick("article-001-3", "article", "learning-rate-too-high", twin=lambda seed: _deep(seed, 5e-5))
def deep(seed: int) -> Training:
    return _deep(seed, 1e-3)


# --- the third


def _noise(seed: int, informed: bool) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    x, y = _classes(1000, rng)
    if not informed:
        y = torch.randint(0, 2, (1000,), generator=rng)
    module = Classifier(nn.Linear(10, 2), adam(1e-2 if informed else 1e-3))
    return Training(module, _whole(x, y), accuracy(_held_out(*_classes(500, _rng(1)))), None, {"max_epochs": 300})


@sick("article-002-1", "article", "uninformative-targets", twin=lambda seed: _noise(seed, True))
def noise(seed: int) -> Training:
    return _noise(seed, False)


class Scheduled(Classifier):
    """Reduces the rate when the training loss stops falling."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=10, factor=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}


def _largest(samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ten standard normal columns; the class is which of them is largest."""
    x = torch.randn(samples, 10, generator=rng)
    return x, x.argmax(1)


def _softmax(seed: int, final: bool, scheduled: bool) -> Training:
    torch.manual_seed(seed)
    x, y = _largest(2000, _rng())
    net = mlp(10, 50, 10)
    if final:
        net.append(nn.Softmax(dim=1))
    module = Scheduled(net) if scheduled else Classifier(net, sgd(0.2))
    loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
    judge = accuracy(_held_out(*_largest(500, _rng(1))))
    return Training(module, loader, judge, None, {"max_epochs": 15 if scheduled else 10})


@sick("article-002-2", "article", "probabilities-as-logits", twin=lambda seed: _softmax(seed, False, False))
def softmax(seed: int) -> Training:
    return _softmax(seed, True, False)


@sick(
    "article-002-3",
    "article",
    "probabilities-as-logits",
    twin=lambda seed: _softmax(seed, False, True),
    note="symptom: loss-plateau; the scheduler watches the training loss",
)
def softmax_scheduled(seed: int) -> Training:
    return _softmax(seed, True, True)
