"""One reading a backward pass, however many ask; the norms are the norms; a step's numbers carry their step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stall import AutoClip, GradientHealth, PlateauWatch, StallCallback
from lightning_stall.measure.graph import forward_order
from lightning_stall.readings import StepReading, plain_name
from lightning_stall.testing import blobs, healthy, watch


class Keeper(StallCallback):
    """Keeps every reading, and what a plain loop over the gradients gives at the same moment."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[StepReading] = []
        self.truth: list[float] = []

    def before_step(self, optimizer: Any) -> None:
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.truth.append(float(torch.cat([g.double().flatten() for g in grads]).norm()))

    def observe(self, reading: StepReading) -> None:
        self.readings.append(reading)


def test_three_callbacks_over_ten_steps_make_ten_readings(make_trainer: Callable[..., Trainer]) -> None:
    watch = GradientHealth()
    make_trainer([watch, AutoClip(), PlateauWatch()], max_steps=10).fit(healthy(), blobs())
    assert watch.hub.readings.measured == 10
    assert watch.hub.step == 10


def test_norms_are_the_norms(make_trainer: Callable[..., Trainer]) -> None:
    keeper = Keeper()
    make_trainer([keeper], max_steps=7).fit(healthy(), blobs())
    assert [r.step for r in keeper.readings] == [1, 2, 3, 4, 5, 6, 7]
    assert [r.total_norm for r in keeper.readings] == pytest.approx(keeper.truth, rel=1e-5)
    for reading in keeper.readings:
        assert sum(n * n for n in reading.norms) ** 0.5 == pytest.approx(reading.total_norm, rel=1e-5)


def test_accumulation_reads_every_micro_batch_once(make_trainer: Callable[..., Trainer]) -> None:
    keeper = Keeper()
    module = healthy(rate=0.0)
    make_trainer([keeper], max_steps=4, accumulate_grad_batches=4).fit(module, blobs(shuffle=False))
    assert keeper.hub.readings.measured == 16
    assert [len(r.losses) for r in keeper.readings] == [4, 4, 4, 4]
    assert [len(r.partial_norms) for r in keeper.readings] == [3, 3, 3, 3]
    bare = [F.cross_entropy(module(x), y).item() for x, y in blobs(shuffle=False)]
    assert [v for r in keeper.readings for v in r.losses] == pytest.approx(bare, rel=1e-5)


class TwoOptimizers(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip((self.a, self.b), self.optimizers(), strict=True):
            loss = F.cross_entropy(net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.a.parameters(), 0.1), torch.optim.Adam(self.b.parameters(), 0.01)]


def test_manual_optimisation_reads_each_optimizer(make_trainer: Callable[..., Trainer]) -> None:
    keeper = Keeper()
    make_trainer([keeper], max_epochs=1, limit_train_batches=5).fit(TwoOptimizers(), blobs())
    assert [(r.step, r.optimizer) for r in keeper.readings] == [(s, o) for s in range(1, 6) for o in (0, 1)]
    assert [r.total_norm for r in keeper.readings] == pytest.approx(keeper.truth, rel=1e-5)
    assert all(len(r.losses) == 1 for r in keeper.readings)
    assert keeper.readings[0].names == ["a.weight", "a.bias"]


def test_lbfgs_reads_each_closure_and_counts_one_loss_a_step(make_trainer: Callable[..., Trainer]) -> None:
    class Quasi(TwoOptimizers):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
            return F.cross_entropy(self.a(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.a.parameters(), lr=0.1, max_iter=4)

    keeper = Keeper()
    make_trainer([keeper], limit_train_batches=3).fit(Quasi(), blobs())
    assert len(keeper.readings) > 3
    assert sum(r.first for r in keeper.readings) == 3
    assert keeper.hub.curve.n == 3


def test_depth_is_the_order_of_use_not_of_registration() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    net = Backwards()
    order = forward_order(net(torch.randn(5, 3)).sum())
    assert order[id(net.first.weight)] < order[id(net.last.weight)]


def test_names_are_the_users() -> None:
    assert plain_name("_fsdp_wrapped_module.net._orig_mod.0._checkpoint_wrapped_module.weight") == "net.0.weight"


class Notes(LightningModule):
    """Writes down what it does, as users do to average at the end of an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4)
        self.outputs: list[Tensor] = []
        self.by_batch: dict[int, int] = {}
        self.count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        root = (self.net.weight.sum() * 0.0).sqrt()  # its slope is infinite
        self.outputs.append(loss.detach())
        self.by_batch[len(self.by_batch)] = batch_idx
        self.count += 1
        self.last = loss.detach()
        return loss + (root if batch_idx == 4 else 0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def test_a_batch_run_again_leaves_no_note() -> None:
    module = Notes()
    report = watch(module, blobs(samples=256, batch_size=32), GradientHealth(), max_epochs=2)
    assert "unstable-operation" in [f.code for f in report.findings]  # for which the batch was run once more
    assert module.count == len(module.outputs) == len(module.by_batch) == 16
    assert len({id(v) for v in module.outputs}) == 16
