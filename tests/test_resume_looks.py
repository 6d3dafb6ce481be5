"""What a run that is gone on with must still see and must not do: looks at the program, remedies switched off."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from test_resume import Same, Saves, family, fit
from torch.utils.data import DataLoader, TensorDataset
from twin_runs import QUIET

from lightning_stall import ActivationHealth, PlateauWatch, StallReport, stall_callbacks
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp


class Flat(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(1.0))


def test_a_monitored_metric_is_not_missed_before_its_first_validation(tmp_path: Path) -> None:
    def run(folder: str, ckpt: Path | None, *extra: Any) -> list[str]:
        seed_everything(4, verbose=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = {**QUIET, "max_epochs": -1, "max_steps": 120, "log_every_n_steps": 10}
            watch = PlateauWatch(monitor="val_loss")
            trainer = Trainer(callbacks=[watch, *extra], default_root_dir=tmp_path / folder, **settings)
            trainer.fit(Flat(mlp(), 1e-2), Same(), blobs(batch_size=128), ckpt_path=ckpt)
        return [str(w.message) for w in caught if issubclass(w.category, StallWarning) and "val_loss" in str(w.message)]

    assert run("whole", None, Saves(tmp_path / "a.ckpt", 52)) == []
    assert run("parts", tmp_path / "a.ckpt") == []


def test_a_remedy_switched_off_on_resume_is_off(tmp_path: Path) -> None:
    fit("plateau", tmp_path, [*family("plateau"), Saves(tmp_path / "a.ckpt", 133)], max_steps=140)

    def weights(*callbacks: Any) -> torch.Tensor:
        _, net = fit("plateau", tmp_path / "on", list(callbacks), tmp_path / "a.ckpt", max_steps=150)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(weights(), weights(PlateauWatch(auto_remedy=False), StallReport(table=False, trials=False)))


@pytest.mark.parametrize("at", [49, 63, 100])
def test_what_is_not_known_yet_is_not_taken_back(at: int, tmp_path: Path) -> None:
    def told(*extra: Any, ckpt: Path | None = None) -> list[Any]:
        callbacks = [ActivationHealth(), PlateauWatch(), StallReport(table=False, trials=False)]
        fit("diverges", tmp_path, [*callbacks, *extra], ckpt)
        return [(f.step, f.severity) for f in callbacks[-1].findings if f.code == "dead-activations"]  # type: ignore[attr-defined]

    whole = told(Saves(tmp_path / "a.ckpt", at))
    assert whole
    assert told(ckpt=tmp_path / "a.ckpt") == whole


class Forgot(Classifier):
    """The first layer is in no optimizer."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self.net[2].parameters()) + list(self.net[4].parameters()), 1e-2)  # type: ignore[index]


class Evaluates(Classifier):
    def on_train_batch_start(self, *args: Any) -> None:
        self.eval()


def far() -> Any:
    x, y = blobs(samples=1024).dataset.tensors  # type: ignore[attr-defined]
    return DataLoader(TensorDataset(3e4 * x + 1e5, y), batch_size=32, shuffle=True)


def in_order() -> Any:
    x, y = blobs(samples=1024).dataset.tensors  # type: ignore[attr-defined]
    order = y.argsort()
    return DataLoader(TensorDataset(x[order], y[order]), batch_size=32)


@pytest.mark.parametrize("at", [None, 10, 40])
@pytest.mark.parametrize(
    ("code", "make", "loader"),
    [
        ("parameters-not-optimized", lambda: Forgot(mlp(), 1e-2), blobs),
        ("mode-mismatch", lambda: Evaluates(torch.nn.Sequential(mlp(batchnorm=True), torch.nn.Dropout()), 1e-2), blobs),
        ("unscaled-inputs", lambda: Classifier(mlp(), 1e-2, "sgd"), far),
        ("unshuffled-data", lambda: Classifier(mlp(), 1e-2, "sgd"), in_order),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_look_at_the_program_is_taken_after_a_resume(
    code: str, make: Any, loader: Any, at: int | None, tmp_path: Path
) -> None:
    def run(callbacks: list[Any], steps: int, ckpt: Path | None) -> None:
        seed_everything(4, verbose=False)
        settings = {**QUIET, "max_epochs": -1, "max_steps": steps}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(callbacks=callbacks, default_root_dir=tmp_path, **settings)
            trainer.fit(make(), loader(), ckpt_path=ckpt)

    if at is not None:
        run([Saves(tmp_path / "a.ckpt", at)], at + 1, None)
    callbacks: list[Any] = list(stall_callbacks())
    callbacks[-1].table = callbacks[-1].trials = False
    run(callbacks, 200, tmp_path / "a.ckpt" if at is not None else None)
    assert code in [f.code for f in callbacks[-1].findings]


def test_a_reduction_for_a_divergence_is_not_taken_back_to_the_rate_that_diverged(tmp_path: Path) -> None:
    ends = {}
    for rollback in (True, False):
        callbacks = [PlateauWatch(auto_remedy=True, rollback=rollback), StallReport(table=False, trials=False)]
        fit("diverges", tmp_path, callbacks)
        ends[rollback] = callbacks[0].hub.curve.level(20)
    assert ends[True] < 2 * ends[False]
