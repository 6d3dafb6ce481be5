"""Runs one zoo case: seeds, builds, fits on the CPU, and keeps what a judge of the run needs."""

from __future__ import annotations

import hashlib
import importlib
import logging
import pkgutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.nn.parameter import is_lazy

from benchmarks.zoo.case import CASES, Case


@dataclass
class Result:
    """One run. `loss` has an entry for each optimizer step (None where `training_step` returned nothing)."""

    name: str
    seed: int
    score: float | None = None
    seconds: float = 0.0
    steps: int = 0
    loss: list[float | None] = field(default_factory=list)
    val: list[dict[str, float]] = field(default_factory=list)  # what was logged, once a validation, with its "step"
    error: str | None = None
    weights: str = ""  # digest of all parameters and buffers after the fit

    @property
    def pace(self) -> float | None:
        """Seconds a step of the fit, its start included; None where no step was made."""
        return self.seconds / self.steps if self.steps else None


class Recorder(Callback):
    """Keeps the loss of each optimizer step: the mean over its micro-batches, not divided as Lightning divides it."""

    def __init__(self) -> None:
        self.loss: list[float | None] = []
        self.val: list[dict[str, float]] = []
        self._pending: list[float] = []
        self._step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            scale = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._pending.append(loss.item() * scale)
        if trainer.global_step > self._step:
            self.loss.append(sum(self._pending) / len(self._pending) if self._pending else None)
            self._pending.clear()
            self._step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            logged = {k: v.item() for k, v in trainer.callback_metrics.items() if "val" in k}
            self.val.append({"step": trainer.global_step, **logged})


# written without sight of the ones before, each in a folder of its name
HELD_OUT = (
    "unseen",
    "later",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
)


def load_cases() -> dict[str, Case]:
    """Import every module under `well`, `sick` and the parts that were held out, which fills CASES."""
    for folder in ("well", "sick", *HELD_OUT):
        package = importlib.import_module(f"benchmarks.zoo.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return CASES


def part(case: Case) -> str:
    """Which of `HELD_OUT` a case belongs to, or "seen"."""
    return next((name for name in HELD_OUT if f".{name}." in case.build.__module__), "seen")


def digest(module: LightningModule) -> str:
    """Equal for two modules only where all their parameters and buffers are, bit by bit."""
    bits = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and not is_lazy(value):
            flat = value.detach().cpu().contiguous().reshape(-1)
            bits.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            bits.update(flat.view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()[:16]


def quiet() -> None:
    """Keep Lightning's advice about tiny demos off the console."""
    # Lightning's messages go through the logger of whichever of its two packages was imported last
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)


def run(
    case: Case,
    seed: int,
    callbacks: Sequence[Callback] = (),
    twin: bool = False,
    logger: Any = None,
    accelerator: str = "cpu",
) -> Result:
    """Fit `case` (or its mended twin) and judge it. What `fit` or the score raises is kept in `error`, not raised."""
    quiet()
    result = Result(case.name, seed)
    recorder = Recorder()
    seed_everything(seed, workers=True, verbose=False)
    build = case.twin if twin and case.twin is not None else case.build
    training = build(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread, and lose much on a busy machine
    settings = {"accelerator": accelerator, "devices": 1, "enable_checkpointing": False, **training.trainer}
    own = settings.pop("callbacks", [])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            logger=logger or False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[*own, recorder, *callbacks],
            **settings,
        )
        start = time.perf_counter()
        try:
            trainer.fit(training.module, training.train, training.val)
        except Exception:
            result.error = traceback.format_exc(limit=-4)
        result.seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    result.steps = trainer.global_step
    result.loss, result.val = recorder.loss, recorder.val
    result.weights = digest(training.module)
    try:
        result.score = float(training.score(training.module))
    except Exception:
        result.error = result.error or traceback.format_exc(limit=-4)
    return result
