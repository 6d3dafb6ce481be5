"""Ten faults planted in one tiny regression, the comparison that other tools were put through; two of them are none."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick, well
from benchmarks.zoo.sick._data import Score, Split, friedman, r2
from benchmarks.zoo.sick._modules import Regressor, mlp, sgd

RATE = 0.05
EPOCHS = 20


class Slow(Dataset[tuple[Tensor, Tensor]]):
    """Rows that take some milliseconds each to fetch."""

    def __init__(self, x: Tensor, y: Tensor, delay: float) -> None:
        self.x, self.y, self.delay = x, y, delay

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.delay)
        return self.x[index], self.y[index]


def _tiny(seed: int, net: nn.Module | None = None, lr: float = RATE, split: Split | None = None) -> Training:
    """The healthy one: two hidden layers, SGD, 900 standardised rows."""
    torch.manual_seed(seed)
    split = split or friedman()
    module = Regressor(net or mlp(10, 32, 32, 1), sgd(lr))
    return Training(module, split.train(32), _judge(), friedman().val(), {"max_epochs": EPOCHS})


def _judge() -> Score:
    return r2(friedman())


@well("planted-healthy", "planted")
def healthy(seed: int) -> Training:
    return _tiny(seed)


@sick("planted-rate-x300", "planted", "learning-rate-too-high", twin=healthy)
def rate_x300(seed: int) -> Training:
    return _tiny(seed, lr=300 * RATE)


@sick("planted-nan-batch", "planted", "nonfinite-inputs", twin=healthy)
def nan_batch(seed: int) -> Training:
    split = friedman()
    x = split.x.clone()
    x[480:484] = float("nan")
    return _tiny(seed, split=split.with_train(x, split.y))


@sick("planted-spike", "planted", "corrupt-samples", twin=healthy)
def spike(seed: int) -> Training:
    split = friedman()
    x = split.x.clone()
    x[480] *= 1e4
    return _tiny(seed, split=split.with_train(x, split.y))


@sick("planted-twelve-sigmoid", "planted", "vanishing-gradients", twin=healthy)
def twelve_sigmoid(seed: int) -> Training:
    torch.manual_seed(seed)
    return _tiny(seed, mlp(10, *[32] * 12, 1, act=nn.Sigmoid))


@sick("planted-dead-relu", "planted", "dead-activations", twin=healthy)
def dead_relu(seed: int) -> Training:
    torch.manual_seed(seed)
    net = mlp(10, 32, 32, 1)
    nn.init.constant_(net[2].bias, -20.0)  # type: ignore[arg-type]
    return _tiny(seed, net)


@sick("planted-rate-1e-8", "planted", "learning-rate-too-low", twin=healthy)
def rate_1e_8(seed: int) -> Training:
    return _tiny(seed, lr=1e-8)


@sick("planted-all-frozen-but-a-bias", "planted", "parameters-not-optimized", twin=healthy)
def all_frozen_but_a_bias(seed: int) -> Training:
    torch.manual_seed(seed)
    net = mlp(10, 32, 32, 1).requires_grad_(False)
    net[-1].bias.requires_grad_(True)  # type: ignore[union-attr]
    return _tiny(seed, net)


@sick("planted-slow-loader", "planted", "data-starvation", twin=healthy, note="scores are equal; wall time differs")
def slow_loader(seed: int) -> Training:
    training, split = _tiny(seed), friedman()
    training.train = DataLoader(Slow(split.x, split.y, 0.0005), batch_size=32, shuffle=True)
    training.trainer["max_epochs"] = 8
    return training


@well("planted-slow-validation", "planted", note="validation takes most of the time; the training loader is fast")
def slow_validation(seed: int) -> Training:
    training, split = _tiny(seed), friedman()
    training.val = DataLoader(Slow(split.test_x, split.test_y, 0.001), batch_size=100)
    training.trainer["max_epochs"] = 10
    return training
