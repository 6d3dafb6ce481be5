"""Patients: tiny trainings that are ill with exactly one thing, and what is needed to test a detector of your own.

report = watch(deep_sigmoid(), blobs(), GradientHealth())
assert report.causes[0].code == "vanishing-gradients"
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall.callbacks.stall_report import StallReport
from lightning_stall.sinks.console import StallWarning


def blobs(
    samples: int = 512,
    features: int = 8,
    classes: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    draw: int = 0,
    **loader: Any,
) -> DataLoader[Any]:
    """A loader of well-separated Gaussian clusters: (N, features) float32 of unit scale, (N,) int64.

    `seed` places the clusters; another `draw` takes other samples of the same clusters, as a validation set needs.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(classes, features, generator=generator)
    if draw:
        generator = torch.Generator().manual_seed(1000 * seed + draw)
    y = torch.randint(classes, (samples,), generator=generator)
    x = centres[y] + torch.randn(samples, features, generator=generator)
    x = (x - x.mean(0)) / x.std(0)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, **{"shuffle": True, **loader})


class Classifier(LightningModule):
    """Any network under cross-entropy, with the optimizer named. Logs `train_loss`, and `val_loss` where validated."""

    def __init__(
        self,
        net: nn.Module,
        rate: float = 1e-2,
        optimizer: Literal["adam", "sgd", "fused-adam", "momentum"] = "adam",
        corrupt: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.rate, self.optimizer, self.corrupt = net, rate, optimizer, corrupt

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if self.corrupt is not None:
            x = self.corrupt(x, batch_idx)
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.rate)
        if self.optimizer == "momentum":
            return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)
        return torch.optim.Adam(self.parameters(), self.rate, fused=True if self.optimizer == "fused-adam" else None)


def mlp(features: int = 8, classes: int = 4, width: int = 32, depth: int = 2, batchnorm: bool = False) -> nn.Sequential:
    """A plain multilayer perceptron with ReLU, optionally with BatchNorm."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Linear(features if i == 0 else width, width))
        if batchnorm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(width, classes))


def healthy(**settings: Any) -> Classifier:
    """Learns `blobs()` to near zero loss; every callback must sleep through it."""
    return Classifier(mlp(), **settings)


def deep_sigmoid(layers: int = 12, width: int = 32) -> Classifier:
    """Vanishing gradients: each sigmoid passes at most a quarter of what it gets."""
    stack: list[nn.Module] = []
    for i in range(layers):
        stack += [nn.Linear(8 if i == 0 else width, width), nn.Sigmoid()]
    return Classifier(nn.Sequential(*stack, nn.Linear(width, 4)), rate=1e-3)


def nan_batch(at: int = 5, **settings: Any) -> Classifier:
    """A NaN in one batch of each epoch: one step later every weight is NaN."""

    def corrupt(x: Tensor, batch_idx: int) -> Tensor:
        return torch.where(torch.arange(len(x), device=x.device)[:, None] == 0, torch.nan, x) if batch_idx == at else x

    return Classifier(mlp(batchnorm=True), corrupt=corrupt, **settings)


def spikes(at: int = 5, size: float = 1e4, **settings: Any) -> Classifier:
    """One batch of each epoch is thousands of times too large and throws the weights away."""

    def corrupt(x: Tensor, batch_idx: int) -> Tensor:
        return x * size if batch_idx == at else x

    return Classifier(mlp(), corrupt=corrupt, **settings)


def watch(
    module: LightningModule, train: Any, *callbacks: Any, val: Any = None, seed: int = 0, **trainer: Any
) -> StallReport:
    """Fit `module` quietly on the CPU under these callbacks and a `StallReport`, which is returned.

    `trainer` takes any of Trainer's arguments; by default 10 epochs, no logger, no checkpoint, a directory that is
    removed again. Findings are not printed.
    """
    report = StallReport(table=False)
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        settings: dict[str, Any] = {
            "max_epochs": 10,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "num_sanity_val_steps": 0,
            **trainer,
        }
        Trainer(callbacks=[*callbacks, report], **settings).fit(module, train, val)
    return report
