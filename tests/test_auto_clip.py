"""AutoClip: its limits against NumPy and by hand, its remedies on sick batches, its silence on healthy runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_stall.callback import StallCallback
from lightning_stall.callbacks.auto_clip import AutoClip
from lightning_stall.callbacks.gradient_health import GradientHealth
from lightning_stall.errors import MisconfigurationException
from lightning_stall.hub import Hub
from lightning_stall.measure.clipping import PercentileOnDevice, PercentileOnHost, ZScoreOnDevice, ZScoreOnHost
from lightning_stall.remedies import StepControl, fused
from lightning_stall.sinks import StallWarning
from lightning_stall.verdicts.clipping import shrinks_steps, tight

CPU = torch.device("cpu")


class Net(LightningModule):
    """A linear regression whose batches of the steps in `bad` are multiplied by a number."""

    def __init__(self, make: Any = None, bad: dict[int, float] | None = None, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 1))
        self.make = make or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
        self.bad = bad or {}
        self.norms: list[float] = []  # of the gradient that each step used
        self.weights: list[Tensor] = []
        self.factors: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        factor = self.bad.get(self.global_step, 1.0)
        loss = nn.functional.mse_loss(self.net(x * factor if not math.isfinite(factor) else x).squeeze(-1), y)
        return loss * factor if math.isfinite(factor) else loss

    def on_train_batch_end(self, *args: Any) -> None:
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat([g.flatten() for g in grads]).norm()) if grads else math.nan)
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in self.parameters()]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


def loader(steps: int, batch: int = 8, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps * batch, 6, generator=generator)
    y = x @ torch.arange(6.0) * scale + torch.randn(len(x), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch)


def fit(folder: Path, module: LightningModule, callbacks: list[Any], steps: int = 30, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **{"max_epochs": 1, "log_every_n_steps": 10, **settings},
    )
    trainer.fit(module, loader(steps))
    assert not any(c.failed for c in callbacks if hasattr(c, "failed"))
    return trainer


def hub_of(trainer: Trainer) -> Hub:
    return next(c.hub for c in trainer.callbacks if isinstance(c, StallCallback))  # type: ignore[attr-defined]


def codes(trainer: Trainer) -> list[str]:
    return [f.code for f in hub_of(trainer).journal.findings if f.speaks]


class OnDevice(AutoClip):
    """AutoClip as it runs on an accelerator, on the CPU: everything stays in tensors."""

    def _on_host(self, home: torch.device) -> bool:
        return False


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize("percentile", [0.0, 10.0, 50.0, 97.0, 100.0])
@pytest.mark.parametrize("history", [4, 7, 1000])
def test_percentile_is_numpys(percentile: float, history: int) -> None:
    norms = torch.rand(60, generator=torch.Generator().manual_seed(2)).double() + 0.5
    host = PercentileOnHost(history, percentile, warmup=0)
    device = PercentileOnDevice(history, percentile, 0, CPU)
    for i, norm in enumerate(norms.tolist()):
        expected = np.percentile(norms[max(0, i + 1 - history) : i + 1].numpy(), percentile)
        assert host.update(norm) == pytest.approx(expected, rel=1e-9)
        assert float(device.update(torch.tensor(norm))) == pytest.approx(expected, rel=1e-6)


def test_zscore_is_zclips() -> None:
    norms = (torch.rand(80, generator=torch.Generator().manual_seed(3)).double() + 0.5).tolist()
    norms[40], norms[60] = 30.0, 8.0
    host, device = ZScoreOnHost(2.5, 25), ZScoreOnDevice(2.5, 25, CPU)
    mean = variance = 0.0
    for i, norm in enumerate(norms):
        used = norm
        if i >= 25:
            z = (norm - mean) / math.sqrt(variance)
            used = mean + 2.5**2 / z * math.sqrt(variance) if z > 2.5 else norm
        limit = host.update(norm)
        assert min(norm, limit) == pytest.approx(used)
        assert float(device.update(torch.tensor(norm))) == pytest.approx(limit, rel=1e-4)
        weight = max(1 / (i + 1), 0.03)
        mean, variance = mean + weight * (used - mean), (1 - weight) * (variance + weight * (used - mean) ** 2)
    assert used < 1.6


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("at", [0, 1, 5, 40])
def test_bad_norms_leave_limits_sane(kind: str, where: str, at: int) -> None:
    if kind == "percentile":
        rules: list[Any] = [
            PercentileOnHost(50, 90, 10) if where == "host" else PercentileOnDevice(50, 90, 10, CPU) for _ in "ab"
        ]
    else:
        rules = [ZScoreOnHost(2.5, 10) if where == "host" else ZScoreOnDevice(2.5, 10, CPU) for _ in "ab"]
    norms = (torch.rand(80, generator=torch.Generator().manual_seed(4)) + 0.5).tolist()
    wrap = (lambda v: v) if where == "host" else torch.tensor
    sane, tried = [], []
    for i, norm in enumerate(norms):
        if i == at:
            bad = [math.nan, math.inf, 0.0] + ([1e30] if at > 1 else [])
            [rules[1].update(wrap(v)) for v in bad]
        sane.append(float(rules[0].update(wrap(norm))))
        tried.append(float(rules[1].update(wrap(norm))))
    assert torch.isfinite(rules[1].save()).all()
    assert 0.5 < tried[-1] < 2 * sane[-1]
    assert max(tried[10:]) < (20 if at else 1000)  # the device cannot tell that it has seen no norm yet


@pytest.mark.parametrize("make", [lambda d: PercentileOnHost(20, 30, 5), lambda d: PercentileOnDevice(20, 30, 5, CPU)])
@pytest.mark.parametrize("take", [lambda d: PercentileOnHost(20, 30, 5), lambda d: PercentileOnDevice(20, 30, 5, CPU)])
@pytest.mark.parametrize("seen", [3, 12, 50])
def test_history_moves_between_devices(make: Any, take: Any, seen: int) -> None:
    norms = (torch.rand(90, generator=torch.Generator().manual_seed(5)) + 0.5).tolist()
    give = lambda rule, v: float(rule.update(v if isinstance(rule, PercentileOnHost) else torch.tensor(v)))  # noqa: E731
    first = make(0)
    for norm in norms[:seen]:
        give(first, norm)
    second = take(0)
    second.load(first.save())
    for norm in norms[seen:]:
        assert give(second, norm) == pytest.approx(give(first, norm), rel=1e-6)


def test_history_is_bounded() -> None:
    host, device = PercentileOnHost(8, 10, 0), PercentileOnDevice(8, 10, 0, CPU)
    for i in range(1, 100):
        host.update(float(i))
        device.update(torch.tensor(float(i)))
    assert host.save()[3:].tolist() == device.save()[3:].tolist() == [float(i) for i in range(92, 100)]
    assert device.ring.shape == (8,)
    host.restart([97.0, 98.0, 99.0])
    device.restart([97.0, 98.0, 99.0])
    assert host.save()[3:].tolist() == device.save()[3:].tolist() == [97.0, 98.0, 99.0]
    assert host.update(100.0) == pytest.approx(float(device.update(torch.tensor(100.0))))


# ---------------------------------------------------------------------- in a fit

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("kind", [AutoClip, OnDevice])
def test_clips_to_the_percentile(tmp_path: Path, kind: type[AutoClip]) -> None:
    bare = Net(lambda p: torch.optim.SGD(p, lr=0.0))
    fit(tmp_path, bare, [])
    module = Net(lambda p: torch.optim.SGD(p, lr=0.0))
    fit(tmp_path, module, [kind(warmup=0)])
    for i, norm in enumerate(module.norms):
        limit = np.percentile(bare.norms[: i + 1], 10)
        assert norm == pytest.approx(min(bare.norms[i], limit), rel=1e-4)
    assert min(np.array(module.norms) / np.array(bare.norms)) < 0.8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_the_device_as_on_the_host(tmp_path: Path, name: str) -> None:
    host, device = Net(OPTIMIZERS[name]), Net(OPTIMIZERS[name])
    fit(tmp_path, host, [AutoClip(warmup=4)])
    fit(tmp_path, device, [OnDevice(warmup=4)])
    torch.testing.assert_close(host.weights[-1], device.weights[-1], rtol=1e-4, atol=1e-6)
    bare = Net(OPTIMIZERS[name])
    fit(tmp_path, bare, [])
    assert not torch.allclose(host.weights[-1], bare.weights[-1], rtol=1e-4)


@pytest.mark.parametrize("kind", [AutoClip, OnDevice])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ["percentile", "zscore"])
def test_bad_batches_leave_everything_sane(tmp_path: Path, kind: type[AutoClip], name: str, method: Any) -> None:
    module = Net(OPTIMIZERS[name], {6: math.nan, 12: math.inf, 18: 1e30}, norm=True)
    clip = kind(method=method, warmup=4)
    with pytest.warns(StallWarning) as told:
        fit(tmp_path, module, [clip])
    assert "left out step 7" in str(next(w.message for w in told if w.category is StallWarning))
    for step in (6, 12):
        assert torch.equal(module.weights[step], module.weights[step - 1])
    assert all(torch.isfinite(w).all() for w in module.weights)
    assert all(torch.isfinite(b).all() for b in module.buffers())
    assert max(w.abs().max() for w in module.weights) < 10
    saved = clip.state()["rules"][0]
    assert torch.isfinite(saved).all()
    assert saved[1] < 100
    assert clip.skipped in (2, 3)  # where squares of 1e30 overflow, that step is left out too


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [AutoClip, OnDevice])
def test_together_with_gradient_health_in_either_order(tmp_path: Path, kind: type[AutoClip], name: str) -> None:
    runs = []
    for order in (1, -1):
        module = Net(OPTIMIZERS[name], {6: math.nan, 12: math.inf}, norm=True)
        with pytest.warns(StallWarning):
            trainer = fit(tmp_path, module, [kind(warmup=4), GradientHealth(auto_remedy=True)][::order])
        assert torch.equal(module.weights[6], module.weights[5])
        runs.append(module.weights[-1])
        assert not any(hasattr(o, "found_inf") or hasattr(o, "grad_scale") for o in trainer.optimizers)
        assert hub_of(trainer).readings.measured <= 30 + 6  # once a step, and at checks
    assert torch.equal(*runs)
    assert torch.isfinite(runs[0]).all()


def test_switched_off_says_what_it_would_do_to_a_run_that_is_not_well(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Net(lambda p: torch.optim.SGD(p, lr=1e-9)), [clip := AutoClip(auto_remedy=False)], 400)
    assert hub_of(trainer).outcome.bad
    (said,) = hub_of(trainer).journal.findings
    assert said.severity == "info"
    assert "would have cut" in said.summary
    assert clip.numbers()["stall/clip/share_clipped"] > 0.05


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_switched_off_changes_nothing_and_is_silent_where_all_is_well(tmp_path: Path, name: str) -> None:
    bare, watched = Net(OPTIMIZERS[name]), Net(OPTIMIZERS[name])
    fit(tmp_path, bare, [])
    trainer = fit(tmp_path, watched, [clip := AutoClip(auto_remedy=False)])
    assert all(torch.equal(a, b) for a, b in zip(bare.weights, watched.weights, strict=True))
    assert not hub_of(trainer).journal.findings
    assert clip.numbers()["stall/clip/share_clipped"] > 0.3


def test_says_which_limit_rules(tmp_path: Path) -> None:
    for value, ruler in ((1e-2, "the Trainer's"), (1e3, "AutoClip's")):
        trainer = fit(tmp_path, Net(), [AutoClip()], gradient_clip_val=value)
        said = [f for f in hub_of(trainer).journal.findings if "both set" in f.summary]
        assert len(said) == 1
        assert f"lower limit rules: {ruler}" in said[0].summary
        assert said[0].severity == "info"


def test_numbers(tmp_path: Path) -> None:
    fit(tmp_path, Net(), [clip := AutoClip(warmup=0)], 40)
    numbers = clip.numbers()
    assert set(numbers) == {
        f"stall/clip/{n}" for n in ("norm_before", "norm_after", "threshold", "share_clipped", "skipped_steps")
    }
    assert numbers["stall/clip/norm_after"] == pytest.approx(
        min(numbers["stall/clip/norm_before"], numbers["stall/clip/threshold"])
    )
    assert 0.5 < numbers["stall/clip/share_clipped"] < 1


def test_resumes_where_it_was(tmp_path: Path) -> None:
    def trainer(epochs: int, **more: Any) -> tuple[Trainer, Net, AutoClip]:
        module, clip = Net(OPTIMIZERS["adamw"]), AutoClip(history=25, warmup=3)
        made = fit(tmp_path, module, [clip], 20, max_epochs=epochs, **more)
        return made, module, clip

    _, whole, clip = trainer(2)
    first, _, _ = trainer(1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    module, again = Net(OPTIMIZERS["adamw"]), AutoClip(history=25, warmup=3)
    resumed = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[again],
        max_epochs=2,
        log_every_n_steps=10,
    )
    resumed.fit(module, loader(20), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(again.state()["rules"][0], clip.state()["rules"][0])
    assert torch.equal(module.weights[-1], whole.weights[-1])


class TwoByHand(LightningModule):
    """Manual optimisation with two optimizers, the second of which has gradients a thousand times the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 1), nn.Linear(6, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        for optimizer, net, scale in zip(self.optimizers(), (self.a, self.b), (1.0, 1000.0), strict=True):
            optimizer.zero_grad()
            self.manual_backward(scale * nn.functional.mse_loss(net(x).squeeze(-1), y))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.a.parameters(), lr=0.0), torch.optim.AdamW(self.b.parameters(), fused=True)]


def test_each_optimizer_has_its_own_history(tmp_path: Path) -> None:
    fit(tmp_path, TwoByHand(), [clip := AutoClip(warmup=0)])
    first, second = (clip.state()["rules"][i][1] for i in (0, 1))
    assert second / first > 100
    assert "stall/clip/1/threshold" in clip.numbers()


def test_a_loss_that_is_often_zero_does_not_freeze_the_run(tmp_path: Path) -> None:
    module = Net(OPTIMIZERS["sgd"], dict.fromkeys(range(0, 40, 2), 0.0))
    fit(tmp_path, module, [AutoClip(warmup=0)], 40)
    assert (module.weights[-1] - module.weights[20]).abs().max() > 1e-3


# ---------------------------------------------------------------------- clipping-too-tight


def test_tight() -> None:
    assert tight([0.05] * 20) is not None
    assert tight([0.05] * 19) is None
    assert tight([0.5] * 100) is None
    assert tight([0.01] * 80 + [1.0] * 20) is None
    found = tight([0.01] * 95 + [1.0] * 5)
    assert found is not None
    assert (found.left, found.share) == (0.01, 0.95)


def test_what_a_small_gradient_does_to_an_optimizer() -> None:
    p = [nn.Parameter(torch.zeros(100))]
    assert shrinks_steps(torch.optim.SGD(p, lr=0.1), 1.0, 100)
    assert not shrinks_steps(torch.optim.Adam(p), 1e-4, 100)
    assert shrinks_steps(torch.optim.Adam(p), 1e-9, 100)
    assert not shrinks_steps(torch.optim.Rprop(p), 1e-12, 100)


class OwnClip(Net):
    """Clips in a hook of its own."""

    limit = 1e-5

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), self.limit)


class ByHand(LightningModule):
    """Clips between backward and step, under manual optimisation."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.net, self.limit = nn.Linear(6, 1), limit

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.net(batch[0]).squeeze(-1), batch[1])
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=self.limit, gradient_clip_algorithm="norm")
        optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("auto_remedy", [True, False])
@pytest.mark.parametrize("how", ["trainer", "value", "hook", "manual"])
@pytest.mark.parametrize("well", [False, True])
def test_too_tight(tmp_path: Path, how: str, well: bool, auto_remedy: bool) -> None:
    limit = 1e3 if well else 1e-5
    sgd = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
    module: LightningModule = {"hook": OwnClip(sgd), "manual": ByHand(limit)}.get(how) or Net(sgd)
    if how == "hook":
        module.limit = limit  # type: ignore[assignment]
    settings: dict[str, Any] = {}
    if how in ("trainer", "value"):
        settings = {"gradient_clip_val": limit, "gradient_clip_algorithm": "norm" if how == "trainer" else "value"}
    trainer = fit(tmp_path, module, [AutoClip(auto_remedy=auto_remedy, every_n_steps=5)], 60, **settings)
    found = [f for f in hub_of(trainer).journal.findings if f.code == "clipping-too-tight"]
    assert bool(found) is not well
    if found:
        assert found[0].severity == "info"  # until the outcome is bad
        assert found[0].evidence["left"] < 1e-3
        expected = {
            "trainer": "gradient_clip_val=1e-05",
            "value": "'value'",
            "hook": "your own code",
            "manual": "your own code",
        }
        assert expected[how] in found[0].summary


def test_own_limit_that_lags_behind_is_loosened(tmp_path: Path) -> None:
    grown = dict.fromkeys(range(60, 200), 1000.0)
    module = Net(lambda p: torch.optim.SGD(p, lr=0.0), grown)
    with pytest.warns(StallWarning, match="clipping-too-tight"):
        trainer = fit(tmp_path, module, [clip := AutoClip()], 200)
    found = [f for f in hub_of(trainer).journal.findings if f.code == "clipping-too-tight"]
    assert found
    assert found[0].remedy is not None
    assert len([f for f in found if f.speaks]) == 1
    assert clip.state()["rules"][0][1] > module.norms[30] * 100


# ---------------------------------------------------------------------- the step control, and manners


def test_fused_sgd_with_momentum_is_not_skipped_by_its_kernel_at_first() -> None:
    p = nn.Parameter(torch.ones(3))
    momentum = torch.optim.SGD([p], lr=0.1, momentum=0.9, fused=True)
    assert not fused(momentum)
    assert fused(torch.optim.SGD([p], lr=0.1, fused=True))
    assert fused(torch.optim.Adam([p], fused=True))
    assert not fused(torch.optim.Adam([p]))
    control = StepControl()
    p.grad = torch.full((3,), math.nan)
    assert control.skip(momentum, torch.tensor(True))
    momentum.step()
    p.grad = torch.ones(3)
    control.skip(momentum, torch.tensor(False))
    momentum.step()
    assert fused(momentum)
    torch.testing.assert_close(momentum.state[p]["momentum_buffer"], torch.ones(3))


@pytest.mark.parametrize("name", ["fused sgd", "fused adamw"])
def test_a_skip_outlives_other_controls(name: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS[name]([p])
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.detach().clone()
    one, other = StepControl(), StepControl()
    one.skip(optimizer, torch.tensor(True))
    other.clip(optimizer, torch.tensor(0.5), [])
    other.skip(optimizer, torch.tensor(False))
    optimizer.step()
    assert torch.equal(p, before)
    optimizer.step()
    assert not torch.equal(p, before)


@pytest.mark.parametrize(
    "wrong", [{"method": "mean"}, {"percentile": 101}, {"history": 1}, {"warmup": -1}, {"z_threshold": 0}]
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=next(iter(wrong))):
        AutoClip(**wrong)


def test_deepspeed_is_refused_with_a_way_out(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class DeepSpeedStrategy(SingleDeviceStrategy):
        """Stands for Lightning's, which needs a package that is not installed here."""

    with pytest.raises(MisconfigurationException, match="gradient_clip_val"):
        fit(tmp_path, Net(), [AutoClip()], strategy=DeepSpeedStrategy())
