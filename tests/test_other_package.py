"""The main paths under `pytorch_lightning`'s own Trainer: each cause found, each remedy applied, each healthy run quiet."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_stall import (
    AutoClip,
    BatchNormBatchSizeGuard,
    GradientHealth,
    InputHealth,
    PlateauWatch,
    StallReport,
    stall_callbacks,
)
from lightning_stall.errors import MisconfigurationException
from lightning_stall.sinks.console import StallWarning
from lightning_stall.testing import blobs, mlp

pl = pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore::lightning_stall.sinks.console.StallWarning")


class Net(pl.LightningModule):  # type: ignore[misc]
    """A classifier of `blobs()`; what is wrong with it is given from outside."""

    def __init__(
        self,
        net: nn.Module | None = None,
        rate: float = 1e-2,
        scale: float = 1.0,
        optimizer: Callable[..., Any] = torch.optim.Adam,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        self.net, self.rate, self.scale = net or mlp(), rate, scale
        self.optimizer, self.loss = optimizer, loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self.net(self.scale * batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), self.rate)


class TwoOptimizers(Net):
    """Manual optimisation, one optimizer a half."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        halves = list(self.net[:2].parameters()), list(self.net[2:].parameters())
        return [torch.optim.Adam(half, 1e-2) for half in halves]


def fit(module: Any, folder: Path, *callbacks: Any, train: Any = None, val: Any = None, **settings: Any) -> StallReport:
    """One run of pytorch_lightning under these callbacks (the whole family by default) and their report."""
    pl.seed_everything(0, verbose=False)
    members = list(callbacks) or stall_callbacks()
    if not isinstance(members[-1], StallReport):
        members.append(StallReport(table=False))
    quiet = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 10, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=members, **{**quiet, **settings})
    trainer.fit(module, train or blobs(), val)
    ours = [c for c in trainer.callbacks if hasattr(c, "failed")]
    assert [c.failed for c in ours] == [None] * len(ours)
    report = ours[-1]
    assert isinstance(report, StallReport)
    return report


def spoilt(value: float) -> Any:
    """`blobs()` with four rows as many times as large, of samples of one and another class."""
    dataset: Any = blobs().dataset
    dataset.tensors[0][77:81] *= -value
    return DataLoader(dataset, 32, shuffle=True)


def on_probabilities(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.softmax(1), y)


def in_evaluation() -> Net:
    net = mlp(batchnorm=True)
    net.eval()
    return Net(net)


SICK: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "learning-rate-too-low": (lambda: Net(rate=1e-7), {}),
    "learning-rate-too-high": (lambda: Net(rate=30.0, optimizer=torch.optim.SGD), {}),
    "nonfinite-inputs": (Net, {"train": spoilt(torch.nan)}),
    "corrupt-samples": (lambda: Net(rate=0.1, optimizer=torch.optim.SGD), {"train": spoilt(1e5)}),
    "unscaled-inputs": (lambda: Net(scale=1e4, optimizer=torch.optim.SGD), {}),
    "probabilities-as-logits": (lambda: Net(loss=on_probabilities), {}),
    "mode-mismatch": (in_evaluation, {}),
    "clipping-too-tight": (lambda: Net(rate=1e-2, optimizer=torch.optim.SGD), {"gradient_clip_val": 1e-5}),
    "batchnorm-small-batch": (lambda: Net(mlp(batchnorm=True)), {"train": blobs(samples=40, batch_size=2)}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("code", SICK)
def test_a_cause_is_found(code: str, tmp_path: Path) -> None:
    make, settings = SICK[code]
    report = fit(make(), tmp_path, **settings)
    told = [c.code for c in report.causes] or [f.code for f in report.findings if f.speaks]
    assert told[:1] == [code], told
    assert (tmp_path / "stall_report.md").exists()
    lines = (tmp_path / "stall_findings.jsonl").read_text().splitlines()
    assert code in {json.loads(line).get("code") for line in lines}


WELL: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (Net, {}),
    "validated": (Net, {"val": blobs(draw=1, shuffle=False)}),
    "accumulating": (Net, {"accumulate_grad_batches": 4, "max_epochs": 20}),
    "two optimizers by hand": (TwoOptimizers, {}),
    "clipped": (Net, {"gradient_clip_val": 1.0}),
    "bf16": (Net, {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("name", WELL)
def test_a_healthy_run_is_left_in_peace(name: str, tmp_path: Path) -> None:
    make, settings = WELL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", StallWarning)
        report = fit(make(), tmp_path, **settings)
    assert report.causes == []


def test_weights_are_bitwise_those_of_the_bare_run(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], stall_callbacks()):
        pl.seed_everything(0, verbose=False)
        module = Net(mlp(batchnorm=True))
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, blobs())
        ends.append([*module.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def accuracy(module: Any) -> float:
    module.eval()
    with torch.no_grad():
        hits = [module.net(x).argmax(1).eq(y).float().mean() for x, y in blobs(shuffle=False)]
    return float(torch.stack(hits).mean())


REMEDIES: dict[str, tuple[float, Callable[[], Any], Callable[[], Any]]] = {
    "a step of a NaN batch is left out": (
        torch.nan, lambda: Net(mlp(batchnorm=True)), lambda: InputHealth(auto_remedy=True),
    ),
    "its gradients are left out": (torch.nan, Net, lambda: GradientHealth(auto_remedy=True)),
    "a thrown gradient is clipped": (
        1e5, lambda: Net(optimizer=torch.optim.SGD, rate=0.1), AutoClip,
    ),
    "the rate is reduced": (
        1.0, lambda: Net(rate=10.0, optimizer=torch.optim.SGD), lambda: PlateauWatch(auto_remedy=True, rollback=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_pays(name: str, tmp_path: Path) -> None:
    times, make, remedy = REMEDIES[name]
    module = make()
    report = fit(module, tmp_path, remedy(), train=spoilt(times), max_epochs=20)
    assert times == 1e5 or any(f.remedy for f in report.findings)  # a clip is no news
    assert accuracy(module) > 0.9


def test_a_batch_of_one_is_left_out(tmp_path: Path) -> None:
    guard = BatchNormBatchSizeGuard(auto_remedy=True, remedy="drop-batch")
    report = fit(Net(mlp(batchnorm=True)), tmp_path, guard, train=blobs(samples=33), max_epochs=3)
    assert any(f.remedy for f in report.findings if f.code == "batchnorm-small-batch")


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    first = AutoClip()
    trainer = pl.Trainer(callbacks=[first], max_epochs=2, default_root_dir=tmp_path, **settings)
    trainer.fit(Net(), blobs())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = AutoClip()
    trainer = pl.Trainer(callbacks=[again], max_epochs=3, default_root_dir=tmp_path, **settings)
    trainer.fit(Net(), blobs(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    before, after = first.state()["rules"][0], again.state()["rules"][0]
    assert after[0] == before[0] * 3 / 2  # norms seen
    assert set(before[3:].tolist()) <= set(after[3:].tolist())


def test_panels_of_its_own_tensorboard_logger(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit(Net(), tmp_path, logger=logger, log_every_n_steps=10)
    logger.finalize("success")
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert {"stall/gradients/total_norm", "stall/outcome/bad"} <= set(tags["scalars"])
    assert "custom_scalars__config__" in tags["tensors"]


def test_a_wrong_argument_is_its_own_exception() -> None:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException as Theirs

    assert issubclass(MisconfigurationException, Theirs)
    with pytest.raises(Theirs, match="patience"):
        PlateauWatch(patience=-1)
