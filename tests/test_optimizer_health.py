"""OptimizerHealth: each code on its patient, silence on the twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from lightning_stall import OptimizerHealth, StallReport
from lightning_stall.measure.initial import starts
from lightning_stall.measure.weights import untrained
from lightning_stall.remedies_rate import RateClimb
from lightning_stall.sinks.console import StallWarning
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch
from lightning_stall.verdicts.rates import hidden
from lightning_stall.verdicts.schedules import wrong_unit


def told(report: StallReport) -> list[str]:
    return [f.code for f in report.findings if f.speaks]


def top(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


@pytest.mark.parametrize("seed", range(3))
def test_silent_on_the_healthy(seed: int) -> None:
    assert watch(healthy(), blobs(), OptimizerHealth(), seed=seed).findings == []


@pytest.mark.parametrize(("rate", "optimizer"), [(1e-7, "adam"), (1e-6, "sgd")])
def test_too_low(rate: float, optimizer: Any) -> None:
    report = watch(healthy(rate=rate, optimizer=optimizer), blobs(), OptimizerHealth(), max_epochs=15)
    assert top(report) == "learning-rate-too-low"
    assert report.causes[0].findings[0].evidence["reach"] < 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "optimizer"), [(3.0, "momentum"), (1.0, "adam")])
def test_too_high(rate: float, optimizer: Any, seed: int) -> None:
    module = Classifier(mlp(depth=3), rate=rate, optimizer=optimizer)
    assert top(watch(module, blobs(), OptimizerHealth(), max_epochs=15, seed=seed)) == "learning-rate-too-high"


class Decays(Classifier):
    def __init__(self, gamma: float) -> None:
        super().__init__(mlp(), rate=1e-3)
        self.gamma = gamma

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        scheduler = lr_scheduler.ExponentialLR(optimizer, self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_decayed_early_and_its_twin() -> None:
    report = watch(Decays(0.8), blobs(), OptimizerHealth(), max_epochs=25)
    assert top(report) == "learning-rate-decayed-early"
    assert watch(Decays(0.9995), blobs(), OptimizerHealth(), max_epochs=25).causes == []


class HeadOnly(Classifier):
    """The optimizer holds the last layer; the twin freezes the rest and says so."""

    def __init__(self, freeze: bool) -> None:
        super().__init__(mlp())
        if freeze:
            torch.manual_seed(1)
            for p in self.net[:-1].parameters():
                nn.init.normal_(p, std=0.3)  # weights from elsewhere
                p.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net[-1].parameters(), 1e-2)


def test_parameters_no_optimizer_holds_are_told_at_once() -> None:
    report = watch(HeadOnly(freeze=False), blobs(), OptimizerHealth())
    (finding,) = [f for f in report.findings if f.code == "parameters-not-optimized"]
    assert finding.step == 1
    assert finding.where == ("net.0", "net.2")
    assert watch(HeadOnly(freeze=True), blobs(), OptimizerHealth()).causes == []


class Detached(Classifier):
    def __init__(self) -> None:
        super().__init__(mlp(width=8), rate=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[:-1](x).detach()
        out: Tensor = self.net[-1](hidden * 0.01)
        return out


def test_layers_cut_off_are_told_once_the_run_is_bad() -> None:
    report = watch(Detached(), blobs(features=8), OptimizerHealth(), max_epochs=15)
    assert "parameters-not-optimized" in [f.code for f in report.findings]


class Manual(LightningModule):
    """Manual optimisation that clears its gradients before the backward pass, before the step, or never."""

    def __init__(self, clears: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.clears = mlp(), clears

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        if self.clears == "right":
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        if self.clears == "early":
            optimizer.zero_grad()
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


@pytest.mark.parametrize("clears", ["never", "early"])
def test_gradients_not_cleared(clears: str) -> None:
    report = watch(Manual(clears), blobs(), OptimizerHealth())
    first = next(f for f in report.findings if f.code == "gradients-not-cleared")
    assert first.step <= 8
    assert top(report) == "gradients-not-cleared"


def test_gradients_cleared_rightly() -> None:
    assert told(watch(Manual("right"), blobs(), OptimizerHealth())) == []
    assert told(watch(healthy(), blobs(), OptimizerHealth(), accumulate_grad_batches=4)) == []


class Decayed(Classifier):
    def __init__(self, decay: float) -> None:
        super().__init__(mlp(depth=3))
        self.decay = decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=self.decay)


def test_excess_regularization() -> None:
    assert top(watch(Decayed(20.0), blobs(), OptimizerHealth(), max_epochs=20)) == "excess-regularization"
    assert watch(Decayed(0.01), blobs(), OptimizerHealth(), max_epochs=20).findings == []


def test_untrained_knows_torchs_own_initialisation() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.Conv2d(3, 16, 3), nn.LSTM(8, 16)]
    assert all(untrained(layer) for layer in layers)
    for layer in layers:
        for p in layer.parameters():
            nn.init.normal_(p, std=0.1)
    assert not any(untrained(layer) for layer in layers)
    assert not untrained(nn.LayerNorm(64))
    assert not untrained(nn.LazyLinear(4))


def accuracy(module: Classifier) -> float:
    x, y = blobs().dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return float((module.eval()(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("seed", range(3))
def test_raises_a_rate_that_is_too_low(seed: int) -> None:
    module, right = healthy(rate=1e-7), healthy()
    report = watch(module, blobs(), OptimizerHealth(auto_remedy=True), max_epochs=30, seed=seed)
    watch(right, blobs(), OptimizerHealth(), max_epochs=30, seed=seed)
    assert accuracy(module) > 0.9 * accuracy(right)
    (done,) = [f.remedy for f in report.findings if f.remedy]
    step, rest = done.removeprefix("raised the learning rate at step ").split(",", 1)
    assert 30 <= int(step) <= 100
    assert rest == " to 10000 times the schedule's, as on a copy that learnt by it"


def test_raises_without_trials_tenfold_at_a_time(make_trainer: Callable[..., Trainer]) -> None:
    seed_everything(0)
    module, health = healthy(rate=1e-7), OptimizerHealth(auto_remedy=True)
    with pytest.warns(StallWarning):
        make_trainer([health], max_epochs=30).fit(module, blobs())
    assert (health.climb.factor, health.climb.raised_at, health.climb.tried) == (10000.0, 140, False)
    assert accuracy(module) > 0.9


def test_a_climb_goes_on_while_it_does_no_harm_and_goes_back_where_it_does() -> None:
    climb = RateClimb()
    assert climb.begin(100, 1e-7, 2.0) == "raised the learning rate at step 100, to 1000 times the schedule's"
    assert climb.begin(110, 1e-4, 2.0) is None
    assert climb.judge(110, 1e-4, 2.0, 0.01) is None
    assert climb.judge(120, 1e-4, 2.02, 0.01) == "raised the learning rate at step 120, to 10000 times the schedule's"
    kept = RateClimb()
    kept.load_state_dict(climb.state_dict())
    assert kept.judge(140, 1e-3, 2.1, 0.01) == (
        "took the raise of step 120 back, from 10000 to 1000 times the schedule's rate"
    )
    assert kept.judge(160, 1e-4, 1.0, 0.01) is None
    assert climb.judge(140, 1e-3, 1.9, 0.01) is None
    assert climb.ended


def test_steps_that_hardly_move_the_weights_are_followed_by_longer_ones_soon() -> None:
    climb = RateClimb()
    assert climb.begin(30, 5e-5, 2.0) == "raised the learning rate at step 30, to 10 times the schedule's"
    slow = RateClimb()
    assert slow.begin(30, 1e-9, 2.0) == "raised the learning rate at step 30, to 100000 times the schedule's"
    assert slow.judge(39, 2e-5, 2.9, 0.0) is None
    assert slow.judge(40, 2e-5, 2.9, 0.0) is not None, (
        "a little worse is not by such steps; a leap is, by the few that move"
    )
    assert slow.judge(45, 2e-4, 2.0, 0.0) is None
    assert slow.judge(50, 2e-5, math.nan, 0.0) == (
        "took the raise of step 40 back, from 1e+06 to 100000 times the schedule's rate"
    )


def test_a_climb_out_of_a_known_limit_goes_as_far_as_that_has_cut() -> None:
    climb = RateClimb()
    climb.begin(40, 2e-4, 2.0, goal=250.0)
    assert climb.judge(60, 2e-3, 2.0, 0.0) == "raised the learning rate at step 60, to 100 times the schedule's"
    assert climb.judge(80, 2e-2, 1.9, 0.0) == "raised the learning rate at step 80, to 250 times the schedule's"
    assert climb.judge(100, 5e-2, 1.5, 0.0) is None
    assert climb.ended


class OneCycle(Classifier):
    """A one-cycle schedule as long as the run in optimizer steps, stepped at each of them or once an epoch."""

    def __init__(self, interval: str) -> None:
        super().__init__(mlp())
        self.interval = interval

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using")
def test_a_schedule_in_another_unit_than_it_is_stepped_in() -> None:
    report = watch(OneCycle("epoch"), blobs(), OptimizerHealth())
    assert top(report) == "learning-rate-decayed-early"
    assert report.findings[0].step == 0
    assert watch(OneCycle("step"), blobs(), OptimizerHealth()).findings == []


@pytest.mark.parametrize(
    ("kind", "length", "interval", "calls", "steps", "epochs", "found"),
    [
        ("OneCycleLR", 1000, "epoch", 10, 1000, 10, True),
        ("OneCycleLR", 1000, "step", 1000, 1000, 10, False),
        ("CosineAnnealingLR", 10, "step", 1000, 1000, 10, True),
        ("CosineAnnealingLR", 10, "epoch", 10, 1000, 10, False),
        ("CosineAnnealingLR", 50, "epoch", 10, 1000, 10, False),  # restarts, or a longer run was planned
        ("CosineAnnealingLR", 100, "step", 1000, 1000, 10, False),
        ("CosineAnnealingLR", 4, "step", 8, 8, 4, False),
    ],
)
def test_units_of_schedules(
    kind: str, length: float, interval: str, calls: float, steps: float, epochs: float, found: bool
) -> None:
    assert (wrong_unit(kind, length, interval, calls, steps, epochs) is not None) == found


class Two(LightningModule):
    """A generator that is trained at every third batch, on its critic's word or on a copy that leads nowhere."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic, self.detach = nn.Linear(8, 8), nn.Linear(8, 1), detach

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        fake = self.generator(batch[0])
        second.zero_grad()
        self.manual_backward(
            (self.critic(fake.detach()) - self.critic(batch[0])).mean() + self.critic(batch[0]).square().mean()
        )
        second.step()
        if batch_idx % 3 == 2:
            made = self.generator(batch[0])
            first.zero_grad()
            self.manual_backward(-self.critic(made.detach() if self.detach else made).mean())
            first.step()
            first.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.generator.parameters(), 1e-3), torch.optim.SGD(self.critic.parameters(), 1e-3)]


def test_an_optimizer_whose_parameters_never_have_a_gradient() -> None:
    report = watch(Two(detach=True), blobs(), OptimizerHealth())
    (finding,) = [f for f in report.findings if f.code == "parameters-not-optimized" and f.speaks]
    assert finding.where == ("generator.weight", "generator.bias")
    assert top(report) == "parameters-not-optimized"
    assert told(watch(Two(detach=False), blobs(), OptimizerHealth())) == []


class ToZero(Manual):
    """Clears its gradients to zeros, before the step."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()


def test_gradients_cleared_to_zero_before_the_step() -> None:
    report = watch(ToZero("early"), blobs(), OptimizerHealth())
    assert top(report) == "gradients-not-cleared"
    assert report.findings[0].step <= 4


@pytest.mark.parametrize("size", [0, 100])
def test_a_shard_that_has_lost_its_shape_tells_nothing(size: int) -> None:
    """As FSDP leaves a layer's weight on each rank: flat, and perhaps empty."""
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(torch.zeros(size))
    assert not untrained(layer)
    assert starts(nn.Sequential(layer)) == []


@pytest.mark.parametrize(("p", "ill"), [(0.7, True), (0.4, False)])
def test_dropout_that_hides_what_was_learnt(p: float, ill: bool) -> None:
    layers = nn.Linear(8, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 4)
    torch.manual_seed(0)
    report = watch(Classifier(nn.Sequential(*layers), rate=1e-2), blobs(), OptimizerHealth(), max_epochs=20, seed=0)
    told = [f for f in report.findings if f.code == "excess-regularization" and f.speaks]
    assert bool(told) == ill
    if told:
        assert {"loss_dropped", "trial"} & set(told[0].evidence), "measured on the run, or on a copy of it"


def test_what_dropout_may_cost() -> None:
    assert hidden(dropped=1.2, whole=0.5, baseline=1.4, noise=0.05, most=0.7) is not None
    assert hidden(dropped=1.2, whole=0.9, baseline=1.4, noise=0.05, most=0.7) is None
    assert hidden(dropped=1.2, whole=0.5, baseline=1.4, noise=0.3, most=0.7) is None
    assert hidden(dropped=1.2, whole=0.5, baseline=1.4, noise=0.05, most=0.3) is None


class TwoGroups(Classifier):
    """A body and a head with rates of their own."""

    def __init__(self, body: float) -> None:
        net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
        with torch.no_grad():
            net[2].weight.mul_(1e-3)  # the head sees next to nothing until the body moves
        super().__init__(net)
        self.body = body

    def configure_optimizers(self) -> torch.optim.Optimizer:
        body, head = [*self.net[:4].parameters()], [*self.net[4].parameters()]
        return torch.optim.Adam([{"params": body, "lr": self.body}, {"params": head, "lr": 1e-3}])


@pytest.mark.parametrize(("body", "ill"), [(1e-10, True), (1e-3, False)])
def test_one_group_whose_rate_is_too_low(body: float, ill: bool) -> None:
    module, watcher = TwoGroups(body), OptimizerHealth()
    report = watch(module, blobs(), watcher, max_epochs=10)
    assert set(watcher.by_group) == {0, 1}
    told = [f for f in report.findings if f.code == "learning-rate-too-low" and f.speaks]
    assert bool(told) == ill
    if told:
        assert told[0].where == ("parameter group 0",)
        assert "Parameter group 0, with 95 % of the weights" in told[0].summary
