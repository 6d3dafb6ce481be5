"""The main job on real data: scikit-learn's digits, one healthy training and five sick ones, one for each callback.

Each is run twice: watched, and watched with `auto_remedy=True`. Prints the causes named and what the remedies changed in
the final accuracy, and leaves a directory for TensorBoard.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_stall.callbacks.stall_report import StallReport
from lightning_stall.errors import MisconfigurationException
from lightning_stall.family import stall_callbacks
from lightning_stall.sinks.console import StallWarning

Pair = tuple[Tensor, Tensor]


class Digits(LightningModule):
    """A small classifier of 8 x 8 digits, as anybody would write it."""

    def __init__(self, rate: float = 0.1, batchnorm: bool = False) -> None:
        super().__init__()
        norm: Callable[[], list[nn.Module]] = lambda: [nn.BatchNorm1d(64)] if batchnorm else []  # noqa: E731
        self.net = nn.Sequential(
            nn.Linear(64, 64), *norm(), nn.ReLU(), nn.Linear(64, 64), *norm(), nn.ReLU(), nn.Linear(64, 10)
        )
        self.rate = rate

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)


class SlowDigits(Dataset[Pair]):
    """Digits that take a while to arrive, as from a slow disk."""

    def __init__(self, data: TensorDataset, seconds: float) -> None:
        self.data, self.seconds = data, seconds

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Pair:
        time.sleep(self.seconds)
        x, y = self.data[i]
        return x, y


@dataclass(frozen=True)
class Split:
    """Standardised digits: (N, 64) float32, (N,) int64."""

    train: TensorDataset
    test: Pair


@dataclass(frozen=True)
class Patient:
    """One training of the demo: what is wrong with it, the causes that are right, and how it is built."""

    name: str
    story: str
    right: tuple[str, ...]
    build: Callable[[Split], tuple[LightningModule, Any, dict[str, Any]]]


def load_digits(samples: int | None = None) -> Split:
    """The 1797 digits that scikit-learn ships; 297 of them are kept for the score."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise MisconfigurationException("the demo needs scikit-learn: pip install 'lightning-stall[demo]'") from error
    x, y = load(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(y, dtype=torch.long)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[297:], order[:297]
    train = train[:samples]
    return Split(TensorDataset(images[train], labels[train]), (images[test], labels[test]))


def _loader(data: Dataset[Any], batch_size: int = 50, **settings: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size, shuffle=True, **settings)


def _healthy(split: Split) -> tuple[LightningModule, Any, dict[str, Any]]:
    return Digits(), _loader(split.train), {"max_epochs": 8}


def _broken_file(split: Split) -> tuple[LightningModule, Any, dict[str, Any]]:
    images, labels = (t.clone() for t in split.train.tensors)
    images[700, 20:24] = torch.nan
    return Digits(), _loader(TensorDataset(images, labels)), {"max_epochs": 8}


def _too_fast(split: Split) -> tuple[LightningModule, Any, dict[str, Any]]:
    return Digits(rate=3.0), _loader(split.train), {"max_epochs": 12}


def _one_left_over(split: Split) -> tuple[LightningModule, Any, dict[str, Any]]:
    images, labels = split.train.tensors
    return Digits(batchnorm=True), _loader(TensorDataset(images[:1451], labels[:1451])), {"max_epochs": 8}


def _slow_disk(split: Split) -> tuple[LightningModule, Any, dict[str, Any]]:
    data = SlowDigits(split.train, seconds=0.002)
    return Digits(rate=0.01), _loader(data), {"max_time": timedelta(seconds=10), "max_epochs": -1}


def _outliers(split: Split) -> tuple[LightningModule, Any, dict[str, Any]]:
    images, labels = (t.clone() for t in split.train.tensors)
    images[::300] *= 1e3
    return Digits(), _loader(TensorDataset(images, labels)), {"max_epochs": 10}


PATIENTS = (
    Patient("healthy", "nothing is wrong", (), _healthy),
    Patient("broken-file", "one image holds NaN", ("nonfinite-inputs", "nonfinite-loss"), _broken_file),
    Patient(
        "too-fast",
        "the learning rate is 30 times too high",
        ("learning-rate-too-high", "loss-diverging", "loss-oscillating"),
        _too_fast,
    ),
    Patient(
        "one-left-over",
        "1451 samples in batches of 50 leave one for BatchNorm",
        ("batchnorm-small-batch",),
        _one_left_over,
    ),
    Patient("slow-disk", "each sample takes 2 ms to read; 10 seconds in all", ("data-starvation",), _slow_disk),
    Patient("outliers", "5 images are 1000 times too bright", ("corrupt-samples", "exploding-gradients"), _outliers),
)


@dataclass
class Run:
    """What one fit of a patient came to."""

    report: StallReport
    accuracy: float
    steps: int
    error: str | None = None


def accuracy(module: LightningModule, split: Split) -> float:
    """Share of the held-out digits named rightly, in evaluation mode."""
    module.eval()
    with torch.no_grad():
        predicted = module.net(split.test[0]).argmax(1)  # type: ignore[operator]
    return float((predicted == split.test[1]).float().mean())


def run(patient: Patient, split: Split, seed: int, auto_remedy: bool, out: Path | None) -> Run:
    """Fit a patient under the whole family. An error of the training itself (BatchNorm's) is kept, not raised."""
    seed_everything(seed, verbose=False)
    module, loader, settings = patient.build(split)
    callbacks = stall_callbacks(auto_remedy=auto_remedy)
    report = callbacks[-1]
    assert isinstance(report, StallReport)
    report.table = False
    name = "remedied" if auto_remedy else "observed"
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=TensorBoardLogger(out, name=patient.name, version=name) if out is not None else False,
        default_root_dir=out,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    error = None
    try:
        trainer.fit(module, loader)
    except ValueError as raised:  # "Expected more than 1 value per channel when training"
        error = str(raised)
    return Run(report, accuracy(module, split), trainer.global_step, error)


def main(seed: int = 0, out: Path = Path(".demo")) -> int:
    """Run the demo; returns 0 where every cause named is right and nothing is said of the healthy run."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=StallWarning)  # each report is printed whole instead
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    console = Console()
    split = load_digits()
    table = Table("training", "what is wrong", "first cause named", "sure", "accuracy", "with auto_remedy")
    wrong = []
    began = time.perf_counter()
    for patient in PATIENTS:
        console.rule(f"{patient.name}: {patient.story}")
        observed = run(patient, split, seed, False, out)
        remedied = run(patient, split, seed, True, out)
        causes = observed.report.causes
        from lightning_stall.report import rich_table

        console.print(rich_table(observed.report.findings, causes, observed.report.outcome))
        if observed.error:
            console.print(f"The training ended with: {observed.error.splitlines()[0]}", style="red")
        for finding in remedied.report.findings:
            if finding.remedy:
                console.print(f"remedy ({finding.code}): {finding.remedy}", style="green")
        first = causes[0].code if causes else ""
        if (first in patient.right) != bool(patient.right) or (not patient.right and first):
            wrong.append(patient.name)
        table.add_row(
            patient.name,
            patient.story,
            first or "(silence)",
            f"{100 * causes[0].confidence:.0f} %" if causes else "",
            f"{100 * observed.accuracy:.1f} % in {observed.steps} steps",
            f"{100 * remedied.accuracy:.1f} % in {remedied.steps} steps",
        )
    console.rule()
    console.print(table)
    console.print(f"{time.perf_counter() - began:.0f} s. Look at the panels: tensorboard --logdir {out}")
    if wrong:
        console.print(f"Not as it should be: {', '.join(wrong)}", style="red")
    return 1 if wrong else 0
