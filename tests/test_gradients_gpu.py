"""On a GPU: the norms are exact, nothing waits between checks, and clipping and skipping are the CPU's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_stall.callbacks.auto_clip import AutoClip
from lightning_stall.callbacks.gradient_health import GradientHealth
from lightning_stall.measure import gradients
from lightning_stall.measure.clipping import PercentileOnDevice, PercentileOnHost, ZScoreOnDevice, ZScoreOnHost
from lightning_stall.measure.gradients import gradient_norms, total_norm
from lightning_stall.sinks import StallWarning

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]


@pytest.fixture(autouse=True)
def waits_allowed() -> Any:
    """Whatever a test does, the next one may wait for the device again."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


class Net(LightningModule):
    """A regression; the batches of the steps in `bad` are multiplied by a number, on the device."""

    def __init__(self, make: Any, bad: dict[int, float] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 1))
        self.make, self.bad = make, bad or {}
        self.weights: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0] * self.bad.get(batch_idx, 1.0)).squeeze(-1), batch[1])

    def on_train_batch_end(self, *args: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in self.parameters()]).clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


class NoWait(Callback):
    """Makes every wait for the device an error once our early checks are over. Comes first in the list."""

    guarded = 0

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop._batches_that_stepped >= 33:
            torch.cuda.set_sync_debug_mode("error")
            self.guarded += 1

    def on_train_epoch_end(self, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def batches(device: str, steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps, 16, 32, generator=generator)
    return [(a.to(device), (a[:, 0] * 3 + 1).to(device)) for a in x]


class Loader:
    """Batches that lie on the device already."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def fit(folder: Path, module: LightningModule, callbacks: list[Any], steps: int, **settings: Any) -> Trainer:
    trainer = Trainer(
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        max_epochs=1,
        log_every_n_steps=1000,
        callbacks=callbacks,
        **{"accelerator": "gpu", **settings},
    )
    trainer.fit(module, Loader(batches("cuda" if trainer.strategy.root_device.type == "cuda" else "cpu", steps)))
    assert not [c.failed for c in callbacks if getattr(c, "failed", None)]
    return trainer


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_norms_are_exact(dtype: torch.dtype) -> None:
    shapes = [(512, 2048), (2048,), (3_000_017,), (), (0, 4), (64, 3, 7, 7)]
    grads = [torch.randn(s, device="cuda", dtype=torch.float32).to(dtype) for s in shapes]
    expected = [
        g.to(torch.complex128 if dtype.is_complex else torch.float64).abs().square().sum().sqrt() for g in grads
    ]
    norms = gradient_norms(grads)
    torch.testing.assert_close(norms, torch.stack(expected).float(), rtol=2e-6, atol=0)
    torch.testing.assert_close(total_norm(norms), torch.stack(expected).norm().float(), rtol=2e-6, atol=0)


def test_norms_of_two_devices_come_together() -> None:
    grads = [torch.ones(4, device="cuda"), torch.ones(9), None]
    assert gradient_norms(grads).tolist() == [2.0, 3.0, 0.0]
    assert gradient_norms(grads).device.type == "cuda"


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_limits_are_the_hosts(kind: str) -> None:
    device = torch.device("cuda", 0)
    host: Any = PercentileOnHost(50, 10, 5) if kind == "percentile" else ZScoreOnHost(2.5, 10)
    ours: Any = PercentileOnDevice(50, 10, 5, device) if kind == "percentile" else ZScoreOnDevice(2.5, 10, device)
    norms = (torch.rand(200, generator=torch.Generator().manual_seed(2)) + 0.5).tolist()
    given = torch.tensor(norms, device=device)
    limits = torch.zeros(200, device=device)
    ours.update(given[0])
    torch.cuda.set_sync_debug_mode("error")
    for i in range(1, 200):
        limits[i] = ours.update(given[i])
    torch.cuda.set_sync_debug_mode("default")
    expected = [host.update(n) for n in norms]
    assert limits.tolist()[1:] == pytest.approx(expected[1:], rel=1e-3)


@pytest.mark.parametrize("name", ["fused adamw", "fused sgd"])
@pytest.mark.parametrize("auto_remedy", [False, True])
def test_nothing_waits_between_checks(tmp_path: Path, name: str, auto_remedy: bool) -> None:
    ours = [GradientHealth(auto_remedy=auto_remedy), AutoClip(auto_remedy=auto_remedy)]
    fit(tmp_path, Net(OPTIMIZERS[name]), [guard := NoWait(), *ours], 64, precision="bf16-mixed")
    assert guard.guarded == 31


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clips_as_on_the_cpu(tmp_path: Path, name: str) -> None:
    weights, histories = [], []
    for accelerator in ("cpu", "gpu"):
        module, clip = Net(OPTIMIZERS[name]), AutoClip(warmup=4)
        fit(tmp_path, module, [clip], 30, accelerator=accelerator)
        weights.append(module.weights[-1].cpu())
        histories.append(clip.state()["rules"][0].cpu())
    torch.testing.assert_close(*histories, rtol=2e-2, atol=1e-3, equal_nan=True)
    if "sgd" in name:  # Adam moves the bias in front of BatchNorm, whose gradient is rounding alone, by its sign
        torch.testing.assert_close(*weights, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("health", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bad_batches_leave_everything_sane(tmp_path: Path, name: str, health: bool, exact: bool) -> None:
    module = Net(OPTIMIZERS[name], {6: math.nan, 12: math.inf, 18: 1e30})
    clip = AutoClip(warmup=4, exact_skip=exact)
    with pytest.warns(StallWarning):
        fit(tmp_path, module, [clip, GradientHealth(auto_remedy=True)] if health else [clip], 40)
    assert all(torch.isfinite(w).all() for w in module.weights)
    assert all(torch.isfinite(b).all() for b in module.buffers())
    if exact or health or name.startswith("fused"):
        assert torch.equal(module.weights[6], module.weights[5])
    assert torch.isfinite(clip.state()["rules"][0]).all()


@pytest.mark.parametrize("name", ["adamw", "fused adamw"])
def test_with_a_grad_scaler(tmp_path: Path, name: str) -> None:
    module = Net(OPTIMIZERS[name])
    clip = AutoClip(warmup=4)
    fit(tmp_path, module, [GradientHealth(), clip], 40, precision="16-mixed")
    assert torch.isfinite(module.weights[-1]).all()
    assert not torch.equal(module.weights[-1], module.weights[0])
    assert 0 < clip.state()["rules"][0][1] < 1e3  # unscaled


# ---------------------------------------------------------------------- the kernel


def _many(dtype: torch.dtype, sizes: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator(device="cuda").manual_seed(0)
    return [(torch.randn(n, generator=generator, device="cuda") * scale).to(dtype) for n in sizes]


SIZES = (1, 3, 0, 17, 4096, 4097, 65535, 65536, 65537, 200_001, 1_000_000, *range(100, 130))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_gives_the_norms_of_many_tensors(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    tensors = _many(dtype, SIZES)
    found = gradients._norms_on_gpu(tensors)
    assert found is not None
    assert found.dtype is torch.float32
    exact = torch.stack([t.double().norm() for t in tensors])
    assert torch.allclose(found.double(), exact, rtol=3e-7, atol=0)
    again = gradients._norms_on_gpu(tensors)
    assert again is not None
    assert torch.equal(again, found)
    moved = [t * 2 for t in tensors]  # other addresses
    twice = gradients._norms_on_gpu(moved)
    assert twice is not None
    assert torch.allclose(twice, found * 2)


def test_the_kernel_tells_what_is_not_finite() -> None:
    pytest.importorskip("triton")
    tensors = _many(torch.float32, SIZES)
    tensors[4][7], tensors[10][999_999], tensors[9][5] = math.nan, math.inf, 1e30
    found = gradients._norms_on_gpu(tensors)
    assert found is not None
    assert [i for i, v in enumerate(found.tolist()) if not math.isfinite(v)] == [4, 9, 10]


def test_what_the_kernel_cannot_read_is_read_otherwise() -> None:
    tensors = _many(torch.float32, SIZES)
    aside = [*tensors[:-1], torch.randn(8, 8, device="cuda").t()]
    odd = [*tensors[:-1], torch.randn(9, device="cuda")[1:]]
    mixed = [*tensors[:-1], tensors[-1].half()]
    sparse = [*tensors[:-1], torch.eye(4, device="cuda").to_sparse()]
    for group in (aside, odd, mixed, sparse, [*tensors[:-1], torch.ones(3)]):
        assert gradients._norms_on_gpu(group) is None
        exact = torch.stack([t.to_dense().double().norm().cpu() for t in group])
        assert torch.allclose(gradient_norms(group).double().cpu(), exact, rtol=1e-3)


def test_layouts_stay_few_and_wait_for_nobody() -> None:
    pytest.importorskip("triton")
    for count in range(3 * gradients.LAYOUTS):
        group = [torch.ones(count + 1, device="cuda") for _ in range(20)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = gradients._norms_on_gpu(group)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found is not None
        assert torch.allclose(found, torch.tensor(math.sqrt(count + 1), device="cuda"))
    assert len(gradients._LAYOUTS) <= gradients.LAYOUTS
