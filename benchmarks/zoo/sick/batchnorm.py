"""Batch normalisation with too few values to normalise by, or with statistics that do not describe the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import accuracy, digits, friedman, r2
from benchmarks.zoo.sick._modules import Classifier, Regressor, adam, sgd

# --- too few values


class Pooled(nn.Module):
    """Convolutions down to one pixel, batch normalisation there, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU()]
        self.squeeze = nn.Sequential(*layers)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.squeeze(self.body(x)).flatten(1))


def _pooled(seed: int, batch_size: int) -> Training:
    torch.manual_seed(seed)
    split = digits().head(640).shaped(1, 8, 8)
    module = Classifier(Pooled(), adam(2e-3))
    epochs = 2 if batch_size < 8 else 15
    return Training(module, split.train(batch_size, drop_last=True), accuracy(split), None, {"max_epochs": epochs})


@sick("digits-cnn-pairs", "cnn", "batchnorm-small-batch", twin=lambda seed: _pooled(seed, 32))
def digits_cnn_pairs(seed: int) -> Training:
    return _pooled(seed, 2)


def _normed_mlp(columns: int, outputs: int, depth: int = 2, momentum: float = 0.1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in in [columns] + [48] * (depth - 1):
        layers += [nn.Linear(fan_in, 48), nn.BatchNorm1d(48, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(48, outputs))


def _friedman_pairs(seed: int, batch_size: int) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    epochs = 2 if batch_size < 8 else 25
    module = Regressor(_normed_mlp(10, 1), adam(3e-3))
    return Training(module, split.train(batch_size), r2(split), split.val(), {"max_epochs": epochs})


@sick("friedman-pairs", "regression", "batchnorm-small-batch", twin=lambda seed: _friedman_pairs(seed, 32))
def friedman_pairs(seed: int) -> Training:
    return _friedman_pairs(seed, 2)


def _leftover(seed: int, drop_last: bool) -> Training:
    torch.manual_seed(seed)
    split = friedman().head(865)
    loader = split.train(32, drop_last=drop_last)  # 27 batches of 32 and one sample over
    return Training(Regressor(_normed_mlp(10, 1), adam(1e-3)), loader, r2(split), None, {"max_epochs": 25})


@sick(
    "friedman-leftover-sample",
    "tabular",
    "batchnorm-small-batch",
    twin=lambda seed: _leftover(seed, True),
    note="raises at the last batch of the first epoch; the score is that of the few steps before",
)
def friedman_leftover(seed: int) -> Training:
    return _leftover(seed, False)


def _image_leftover(seed: int, drop_last: bool) -> Training:
    torch.manual_seed(seed)
    split = digits().head(1025).shaped(1, 8, 8)
    loader = split.train(32, drop_last=drop_last)
    return Training(
        Classifier(Pooled(), sgd(0.05, momentum=0.9)), loader, accuracy(split), split.val(), {"max_epochs": 12}
    )


@sick(
    "digits-cnn-leftover-scan",
    "cnn",
    "batchnorm-small-batch",
    twin=lambda seed: _image_leftover(seed, True),
    note="raises at the last batch of the first epoch",
)
def digits_cnn_leftover(seed: int) -> Training:
    return _image_leftover(seed, False)


# --- statistics of other data


class Convolutional(nn.Sequential):
    """Three normalised convolutions for (N, 1, 8, 8) and ten classes."""

    def __init__(self, momentum: float = 0.1) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in ((1, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out, momentum=momentum), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def _slow_average(seed: int, momentum: float) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    module = Classifier(Convolutional(momentum), adam(1e-3))
    return Training(module, split.train(64), accuracy(split), split.val(), {"max_epochs": 8})


@sick("digits-cnn-momentum-1e-4", "cnn", "batchnorm-stale-statistics", twin=lambda seed: _slow_average(seed, 0.1))
def digits_cnn_momentum(seed: int) -> Training:
    return _slow_average(seed, 1e-4)


def _shifted(seed: int, momentum: float) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    module = Regressor(_normed_mlp(10, 1, depth=5, momentum=momentum), adam(2e-3))
    return Training(module, split.train(50), r2(split), split.val(), {"max_epochs": 20})


@sick("friedman-momentum-1e-4", "regression", "batchnorm-stale-statistics", twin=lambda seed: _shifted(seed, 0.1))
def friedman_momentum(seed: int) -> Training:
    return _shifted(seed, 1e-4)


class Frozen(Classifier):
    """Keeps its normalisation layers in evaluation mode, as fine-tuning recipes advise."""

    def __init__(self, net: nn.Module, freeze: bool) -> None:
        super().__init__(net, sgd(0.02, momentum=0.9))
        self.freeze = freeze

    def on_train_epoch_start(self) -> None:
        if self.freeze:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()


def _frozen(seed: int, freeze: bool) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    return Training(Frozen(Convolutional(), freeze), split.train(64), accuracy(split), split.val(), {"max_epochs": 8})


@sick(
    "digits-cnn-frozen-norm",
    "cnn",
    "batchnorm-stale-statistics",
    "mode-mismatch",
    twin=lambda seed: _frozen(seed, False),
    note="nothing was pretrained: the frozen statistics are those of a new layer",
)
def digits_cnn_frozen(seed: int) -> Training:
    return _frozen(seed, True)
