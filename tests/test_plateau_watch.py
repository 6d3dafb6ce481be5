"""PlateauWatch: its codes, the monitored metric, and a rate that is exact under every scheduler and on resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as S

from lightning_stall import PlateauWatch, StallReport
from lightning_stall.remedies import RateScale
from lightning_stall.sinks.console import StallWarning
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch


def told(report: StallReport) -> list[str]:
    return [f.code for f in report.findings if f.speaks]


class Bowl(LightningModule):
    """A quadratic, full batch: the cleanest place to see a rate act. `curvature` 2 diverges above a rate of 1."""

    def __init__(self, rate: float, spread: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 3.0]))
        self.rate, self.spread = rate, spread

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        target = torch.zeros(2) + 0.0 * batch[0].sum()
        return F.mse_loss(self.w * torch.tensor([1.0, self.spread]), target) * 2 + 0.01

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_are_never_learned(seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(2000, 8), torch.randint(4, (2000,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 32, shuffle=True)
    report = watch(Classifier(mlp(), rate=1e-3), loader, PlateauWatch(), max_epochs=4, seed=seed)
    first = next(f for f in report.findings if f.code == "never-learned")
    assert first.step <= 130
    assert first.evidence["explained"] < 0.05


def test_a_rate_of_1e_minus_7_is_never_learned() -> None:
    report = watch(healthy(rate=1e-7), blobs(), PlateauWatch(), max_epochs=15)
    assert sorted(told(report)) == ["learning-rate-too-low", "never-learned"]  # the first by a trial


def test_a_diverging_run_is_mended() -> None:
    bare = watch(Bowl(rate=1.02), blobs(), PlateauWatch(), max_epochs=12)
    assert "loss-diverging" in told(bare) or "loss-oscillating" in told(bare)
    mended = watch(Bowl(rate=1.02), blobs(), PlateauWatch(auto_remedy=True), max_epochs=12)
    assert any(f.remedy and f.remedy.startswith("reduced the learning rate from 1.02 to ") for f in mended.findings)
    assert mended.hub.curve.last < 0.05 < bare.hub.curve.last


def coins() -> torch.utils.data.DataLoader[Any]:
    """Labels that nothing foretells."""
    torch.manual_seed(0)
    x, y = torch.randn(2000, 8), torch.randint(4, (2000,))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 32, shuffle=True)


def test_a_reduction_that_does_not_help_is_taken_back(make_trainer: Callable[..., Trainer]) -> None:
    watcher = PlateauWatch(auto_remedy=True, patience=60, cooldown=30)
    torch.manual_seed(2)  # chance decides when the loss has stood still for so long
    with pytest.warns(StallWarning):
        make_trainer([watcher], max_epochs=6).fit(Classifier(mlp(), rate=1e-3), coins())
    remedies = [f.remedy for f in watcher.hub.journal.findings if f.remedy]
    assert remedies[0].startswith("reduced the learning rate from 0.001 to 0.0005")
    assert any(r.startswith("took the reduction") for r in remedies)


def test_no_reduction_where_a_copy_is_no_better_for_one() -> None:
    watcher = PlateauWatch(auto_remedy=True, patience=60, cooldown=30)
    report = watch(Classifier(mlp(), rate=1e-3), coins(), watcher, max_epochs=6)
    assert [f.remedy for f in report.findings if f.remedy] == []
    assert watcher.vain >= 1
    assert watcher.scale == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_silent_on_the_healthy(seed: int) -> None:
    report = watch(healthy(), blobs(), PlateauWatch(), seed=seed)
    assert report.findings == []


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "none": lambda o: None,
    "LambdaLR": lambda o: S.LambdaLR(o, lambda s: 0.95**s),
    "StepLR": lambda o: S.StepLR(o, 3, gamma=0.7),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [3, 6], gamma=0.5),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 5),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.2, total_steps=20, cycle_momentum=False),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
    "LinearLR": lambda o: S.LinearLR(o, total_iters=10),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.LinearLR(o, total_iters=4), S.CosineAnnealingLR(o, 8)], [4]),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 12),
}


class Scheduled(Classifier):
    """Keeps the rate that each step really used: of plain SGD it is the change of a weight over its gradient."""

    def __init__(self, scheduler: str) -> None:
        super().__init__(mlp(), rate=0.1, optimizer="sgd")
        self.scheduler = scheduler
        self.used: list[float] = []
        self.native: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.rate)
        scheduler = SCHEDULERS[self.scheduler](optimizer)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        bias = self.net[0].bias
        self.before, self.grad = bias.detach().clone(), bias.grad.clone()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        moved = self.before - self.net[0].bias.detach()
        self.used.append(float(moved @ self.grad / (self.grad @ self.grad)))


class Halves(PlateauWatch):
    """Reduces at step 8, whatever the loss does."""

    def __init__(self) -> None:
        super().__init__(auto_remedy=True)

    def act(self) -> None:
        """Nothing else."""

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        if self.hub.step == 8:
            self.scale = 0.5
            self._apply()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_rate_is_exact_under_every_scheduler_and_on_resume(
    make_trainer: Callable[..., Trainer], tmp_path: Path, scheduler: str
) -> None:
    def run(steps: int, callbacks: list[Any], ckpt: Path | None = None) -> tuple[Scheduled, Trainer]:
        seed_everything(0, verbose=False)
        module = Scheduled(scheduler)
        trainer = make_trainer(callbacks, max_steps=steps, max_epochs=-1)
        trainer.fit(module, blobs(shuffle=False), ckpt_path=ckpt)
        return module, trainer

    bare, _ = run(16, [])
    halved, _ = run(16, [Halves()])
    moving = [(b, h) for b, h in zip(bare.used, halved.used, strict=True) if b > 1e-9]
    ratios = [h / b for b, h in moving]
    assert ratios[:7] == pytest.approx([1.0] * 7, rel=1e-3)
    assert ratios[7:] == pytest.approx([0.5] * len(ratios[7:]), rel=2e-3)

    _, trainer = run(12, [Halves()])
    trainer.save_checkpoint(tmp_path / "at12.ckpt")
    saved = torch.load(tmp_path / "at12.ckpt", weights_only=True)
    resumed_watch = Halves()
    resumed, _ = run(16, [resumed_watch], tmp_path / "at12.ckpt")
    assert resumed_watch.scale == 0.5
    assert resumed.used == pytest.approx(halved.used[12:], rel=1e-3, abs=1e-9)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(
        trainer.optimizers[0].param_groups[0]["lr"]
    ), "the checkpoint keeps the schedule's own rate"


class LogsLate(Classifier):
    """Logs its metric in its own on_train_epoch_end, after every callback's."""

    def on_train_epoch_end(self) -> None:
        self.log("late", 1.0 if self.current_epoch < 2 else 0.5)


def test_a_monitored_metric_logged_late_is_seen() -> None:
    watcher = PlateauWatch(monitor="late", patience=40, auto_remedy=True)
    report = watch(LogsLate(mlp()), blobs(), watcher, max_epochs=12)
    assert watcher.value == 0.5
    assert watcher.plateau.best == 0.5
    assert any(f.code == "loss-plateau" and f.remedy for f in report.findings)


def test_validation_loss_and_a_maximised_metric() -> None:
    for monitor, mode in (("val_loss", "min"), ("val_loss", "max")):
        watcher = PlateauWatch(monitor=monitor, mode=mode, patience=30)  # type: ignore[arg-type]
        watch(healthy(), blobs(), watcher, val=blobs(shuffle=False, draw=1))
        assert 0 < watcher.value < 1


def test_an_unknown_monitor_is_said_once(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer([PlateauWatch(monitor="val_los")], max_epochs=3)
    with pytest.warns(UserWarning, match="logs no such metric.*train_loss") as caught:
        trainer.fit(healthy(), blobs())
    assert len([w for w in caught if "no such metric" in str(w.message)]) == 1


@pytest.mark.parametrize("tensor_rate", [False, True])
def test_tensor_rates_and_min_lr(make_trainer: Callable[..., Trainer], tensor_rate: bool) -> None:
    class Mine(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), torch.tensor(1.02) if tensor_rate else 1.02, foreach=False)

    watcher = PlateauWatch(auto_remedy=True, factor=0.1, min_lr=0.5, rollback=False)
    watcher_report = watch(Mine(mlp()), blobs(), watcher, max_epochs=1)
    watcher._hub = watcher_report.hub
    watcher.hub.outcome = type(watcher.hub.outcome)("diverging", 5, {})
    watcher._treat(False)
    assert watcher.scale * 1.02 == pytest.approx(0.5)


class Seen:
    """The rate that each call of an optimizer's step finds in its group."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates: list[float] = []
        step = type(optimizer).step
        inner = getattr(step, "__wrapped__", step)

        def looks(own: Any, *args: Any, **kwargs: Any) -> Any:
            self.rates.append(float(own.param_groups[0]["lr"]))
            return inner(own, *args, **kwargs)

        # beneath the hooks that torch runs around `step`
        optimizer.__class__ = type(
            type(optimizer).__name__,
            (type(optimizer),),
            {"step": torch.optim.Optimizer.profile_hook_step(looks)},
        )


class Kinds(Classifier):
    """Optimizers and loops that are not plain SGD."""

    def __init__(self, kind: str) -> None:
        super().__init__(mlp(), rate=0.01)
        self.kind = kind
        self.automatic_optimization = kind != "manual"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "lbfgs": lambda p: torch.optim.LBFGS(p, 0.01, max_iter=2),
            "fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
        }
        optimizer = kinds.get(self.kind, lambda p: torch.optim.SGD(p, 0.01))(self.parameters())
        self.seen = Seen(optimizer)
        if self.kind != "plateau":
            return optimizer
        plateau = S.ReduceLROnPlateau(optimizer, factor=0.1, patience=1000)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "interval": "step", "monitor": "never"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("never", 1.0)


@pytest.mark.parametrize("kind", ["lbfgs", "fused", "manual", "plateau"])
def test_the_rate_is_exact_with_other_optimizers_and_loops(kind: str, make_trainer: Callable[..., Trainer]) -> None:
    module, halves = Kinds(kind), Halves()
    trainer = make_trainer(callbacks=[halves], max_steps=12, max_epochs=-1)
    trainer.fit(module, blobs())
    assert halves.failed is None
    assert module.seen.rates == pytest.approx([0.01] * 7 + [0.005] * 5, rel=1e-9)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01, "between steps the rate is the schedule's"


def test_the_rate_is_scaled_once_where_a_step_calls_its_bases() -> None:
    class Inner(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            used.append(self.param_groups[0]["lr"])
            if broken:
                raise RuntimeError("broken off")
            return None

    class Outer(Inner):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(closure)

    used: list[float] = []
    broken = False
    weight = torch.nn.Parameter(torch.ones(1))
    Inner([weight], 1.0)  # from here on torch runs the hooks in either `step`
    optimizer = Outer([weight], 0.1)
    scale = RateScale({"ours": 0.5})
    scale.install([optimizer])
    optimizer.step()
    broken = True
    with pytest.raises(RuntimeError, match="broken off"):
        optimizer.step()
    broken = False
    optimizer.step()
    assert used == [0.05] * 3
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.gpu
def test_the_rate_is_exact_over_steps_that_a_scaler_skips(make_trainer: Callable[..., Trainer]) -> None:
    module, halves = Kinds("sgd"), Halves()
    module.corrupt = lambda x, batch_idx: x * float("inf") if batch_idx == 10 else x
    trainer = make_trainer([halves], max_steps=14, max_epochs=-1, accelerator="gpu", precision="16-mixed")
    trainer.fit(module, blobs())
    assert halves.failed is None
    made = len(module.seen.rates)  # the scaler leaves out the spoilt step, and any that its first scale overflows
    assert 10 <= made < 14
    assert set(module.seen.rates) == {0.01, 0.005}
    assert module.seen.rates == sorted(module.seen.rates, reverse=True)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01
