"""The rest of the articles' trainings: the fourth and the fifth article, and the loaders of the second."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, r2
from benchmarks.zoo.sick._modules import Classifier, Regressor, adam, mlp, sgd
from benchmarks.zoo.sick.articles import _classes, _held_out, _rng, _whole

# --- the second article's loaders


class Heavy(Dataset[tuple[Tensor, Tensor]]):
    """Noisy images under a chain of slow transforms; `stuck` is the sample at which a worker waits for a lock."""

    def __init__(self, transforms: int, stuck: int | None = None) -> None:
        x, self.y = _classes(480, _rng(), columns=64)
        self.x, self.transforms, self.stuck = x.view(-1, 8, 8), transforms, stuck

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.stuck:
            time.sleep(8.0)
            self.stuck = None
        image = self.x[index]
        for _ in range(self.transforms):
            image = image.flip(0).rot90(2).flip(1)  # comes out as it went in
        return image.flatten(), self.y[index]


def _loaded(seed: int, transforms: int, workers: int, stuck: int | None = None, epochs: int = 4) -> Training:
    torch.manual_seed(seed)
    loader = DataLoader(
        Heavy(transforms, stuck), batch_size=16, shuffle=True, num_workers=workers, persistent_workers=stuck is not None
    )
    judge = accuracy(_held_out(*_classes(400, _rng(1), columns=64)))
    return Training(Classifier(mlp(64, 32, 2), adam(5e-3)), loader, judge, None, {"max_epochs": epochs})


@sick(
    "article-001-1-workers",
    "article",
    "too-many-workers",
    "data-starvation",
    twin=lambda seed: _loaded(seed, 0, 0),
    note="scores are equal; wall time differs",
)
def workers(seed: int) -> Training:
    return _loaded(seed, 10, 16)


@sick(
    "article-001-1-transforms",
    "article",
    "data-starvation",
    twin=lambda seed: _loaded(seed, 0, 0),
    note="scores are equal; wall time differs",
)
def transforms(seed: int) -> Training:
    return _loaded(seed, 100, 0)


@sick(
    "article-001-1-deadlock",
    "article",
    "dataloader-hang",
    twin=lambda seed: _loaded(seed, 0, 2),
    note="scores are equal; one of two workers waits for some seconds",
)
def deadlock(seed: int) -> Training:
    return _loaded(seed, 0, 2, stuck=300)


# --- the fourth


def _steep(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    x = torch.randn(100, 10, generator=rng)
    y = torch.randn(100, 1, generator=rng)
    test = torch.randn(200, 10, generator=rng)
    judge = _held_out(test, torch.zeros(200, 1) + 0.01 * torch.randn(200, 1, generator=rng))

    def score(module: nn.Module) -> float:
        with torch.no_grad():
            return -F.mse_loss(module(judge.test_x), judge.test_y).nan_to_num(nan=1e9, posinf=1e9).item()

    return Training(Regressor(nn.Linear(10, 1), sgd(lr)), _whole(x, y), score, None, {"max_epochs": 120})


@sick(
    "article-003-1",
    "article",
    "learning-rate-too-high",
    twin=lambda seed: _steep(seed, 0.05),
    note="targets are noise, so the best model predicts their mean; scored against that",
)
def steep(seed: int) -> Training:
    return _steep(seed, 1.0)


def _simple(seed: int, informed: bool) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    samples = 2000 if informed else 100
    teacher = torch.randn(100, 10, generator=rng) / 10
    x, test = torch.randn(samples, 100, generator=rng), torch.randn(300, 100, generator=rng)
    y = x @ teacher + 0.1 * torch.randn(samples, 10, generator=rng) if informed else torch.randn(100, 10, generator=rng)
    split = Split(x, y, test, test @ teacher)
    module = Regressor(nn.Linear(100, 10), adam(1e-3 if not informed else 1e-2))
    return Training(module, _whole(x, y), r2(split), split.val(), {"max_epochs": 300})


@sick(
    "article-003-2",
    "article",
    "training-too-short",
    "too-little-data",
    "overfitting",
    "uninformative-targets",
    twin=lambda seed: _simple(seed, True),
    note="blamed on capacity; 100 samples of noise that the model learns by heart",
)
def simple(seed: int) -> Training:
    return _simple(seed, False)


def _columns(seed: int, scaled: bool) -> Training:
    torch.manual_seed(seed)
    rng = _rng()
    x = torch.randn(400, 2, generator=rng) * torch.tensor([1000.0, 1.0])
    y = (0.001 * x[:, :1] + x[:, 1:]) + 0.3 * torch.randn(400, 1, generator=rng)
    if scaled:
        x = x / x.std(0)
    split = Split(x[:300], y[:300], x[300:], y[300:])
    module = Regressor(nn.Linear(2, 1), adam(1e-2 if scaled else 1e-3))
    return Training(module, _whole(split.x, split.y), r2(split), None, {"max_epochs": 300})


@sick(
    "article-003-3",
    "article",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: _columns(seed, True),
)
def columns(seed: int) -> Training:
    return _columns(seed, False)


# --- the fifth


def _few(seed: int, samples: int, net: nn.Module, lr: float, epochs: int, sgd_rate: bool = False) -> Training:
    x, y = _classes(samples, _rng())
    loader = DataLoader(TensorDataset(x, y), batch_size=min(samples, 50), shuffle=True)
    judge = accuracy(_held_out(*_classes(500, _rng(1))))
    module = Classifier(net, sgd(lr) if sgd_rate else adam(lr))
    return Training(module, loader, judge, None, {"max_epochs": epochs})


def _one_sample(seed: int, samples: int, epochs: int) -> Training:
    torch.manual_seed(seed)
    return _few(seed, samples, mlp(10, 50, 2), 1e-3, epochs)


@sick(
    "article-004-1",
    "article",
    "too-little-data",
    twin=lambda seed: _one_sample(seed, 800, 20),
    note="blamed on the default initialisation; there is one sample to learn from",
)
def one_sample(seed: int) -> Training:
    return _one_sample(seed, 1, 100)


def _xavier(seed: int, lr: float) -> Training:
    torch.manual_seed(seed)
    net = mlp(10, 50, 2)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return _few(seed, 800, net, lr, 20, sgd_rate=True)


@sick(
    "article-004-2",
    "article",
    "learning-rate-too-low",
    twin=lambda seed: _xavier(seed, 0.1),
    note="symptom: never-learned",
)
def xavier(seed: int) -> Training:
    return _xavier(seed, 1e-6)


def _single(seed: int, batch_size: int) -> Training:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(10, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 2))
    x, y = _classes(800, _rng())
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)
    judge = accuracy(_held_out(*_classes(500, _rng(1))))
    return Training(Classifier(net, adam(3e-3)), loader, judge, None, {"max_epochs": 15})


@sick(
    "article-004-3",
    "article",
    "batchnorm-small-batch",
    twin=lambda seed: _single(seed, 40),
    note="raises at the first step",
)
def single(seed: int) -> Training:
    return _single(seed, 1)
