"""The newest rules, each on a training that is ill with just that, and on a twin that is well or only looks ill."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.run import load_cases, run
from lightning_stall import BatchNormBatchSizeGuard, LossCheck, PlateauWatch, StallReport, stall_callbacks
from lightning_stall.detectors import Overfitting
from lightning_stall.diagnosis import diagnose
from lightning_stall.finding import Finding
from lightning_stall.measure.activations import activations
from lightning_stall.measure.initial import starts
from lightning_stall.measure.validation_watch import LossTwins, less_is_better, validation_loss
from lightning_stall.outcome import LossCurve, Outcome
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp, watch
from lightning_stall.trials.batches import without_model
from lightning_stall.trials.records import Arm, Fit, Fits, Situation
from lightning_stall.trials.verdict import started_badly
from lightning_stall.verdicts.batchnorm import BothWays


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def spoken(report: StallReport) -> list[str]:
    return [f.code for f in report.findings if f.speaks]


def causes(report: StallReport) -> list[str]:
    return [c.code for c in report.causes]


def family() -> list[Any]:
    return list(stall_callbacks()[:-1])  # `watch` brings the report along


def rows(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=32, shuffle=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Fn(nn.Module):  # a function as a module
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function  # type: ignore[method-assign]


class Task(LightningModule):
    """Any network under any loss."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor] = F.mse_loss, rate: float = 1e-2) -> None:
        super().__init__()
        self.net, self.loss, self.rate = net, loss, rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.rate)


def focal(out: Tensor, y: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(out, F.one_hot(y, 4).float(), reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def likelihood(out: Tensor, y: Tensor) -> Tensor:
    return -torch.distributions.Categorical(logits=out).log_prob(y).mean()


@pytest.mark.parametrize(("loss", "last"), [(focal, nn.Sigmoid()), (likelihood, nn.Softmax(-1))])
def test_probabilities_in_a_loss_written_by_hand(loss: Any, last: nn.Module) -> None:
    report = watch(Task(nn.Sequential(mlp(), last), loss), blobs(), LossCheck(), max_epochs=2)
    assert [(f.code, f.step) for f in report.findings if f.speaks] == [("probabilities-as-logits", 1)]
    assert causes(report) == ["probabilities-as-logits"]
    assert watch(Task(mlp(), loss), blobs(), LossCheck(), max_epochs=2).findings == []


@pytest.mark.parametrize("size", [6.0, 1.0])
def test_targets_longer_than_a_direction(size: float) -> None:
    x, net = randn(512, 6), nn.Sequential(mlp(6, 3), Fn(lambda h: F.normalize(h, dim=-1)))
    report = watch(Task(net), rows(x, size * F.normalize(x[:, :3].tanh(), dim=-1)), LossCheck(), max_epochs=2)
    assert causes(report) == ["output-range-mismatch"] * (size > 1.0)
    assert all("divided by its length" in f.summary for f in report.findings)


class Thawed(Classifier):
    """A body frozen and in evaluation mode for an epoch."""

    wakes = False

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 0:
            self.net[0].eval().requires_grad_(False)
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True).train(self.wakes)


@pytest.mark.parametrize("wakes", [False, True])
def test_a_body_that_trains_again_in_evaluation_mode(wakes: bool) -> None:
    body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
    module = Thawed(nn.Sequential(body, nn.Linear(32, 4)), rate=3e-3)
    module.wakes = wakes
    report = watch(module, blobs(), *family(), max_epochs=5)
    assert causes(report) == spoken(report) == ["mode-mismatch"] * (not wakes)
    assert all(f.step > 16 and f.where == ("net.0",) for f in report.findings if f.speaks), "frozen it was right"


class LooksElsewhere(Classifier):
    """Runs other data through its layers at the end of each epoch, long before which it has forgotten the last."""

    in_training = True

    def on_train_epoch_end(self) -> None:
        self.train(self.in_training)
        for i in range(40):
            self(8.0 + 5.0 * randn(32, 8, seed=i))
        self.train()


def test_other_data_in_training_mode_at_the_end_of_an_epoch() -> None:
    for in_training in (True, False):
        module = LooksElsewhere(mlp(batchnorm=True), rate=3e-3)
        module.in_training = in_training
        report = watch(module, blobs(samples=960, batch_size=16), BatchNormBatchSizeGuard(), max_epochs=3)
        assert causes(report) == ["batchnorm-stale-statistics"] * in_training
        assert all(f.evidence["loss_by_running"] > 10 * f.evidence["loss_by_batch"] for f in report.findings)


def test_left_behind() -> None:
    for validation, training, expected in (
        ([2.0] * 20, 0.1, True),
        ([2.0] * 11, 0.1, False),  # half of these are fewer than six
        ([2.0] * 20, 0.5, False),  # training has a fourth of it to go
        ([0.6] * 20, 0.1, False),  # most of it holds for others too
        ([2.0 - 0.05 * i for i in range(20)], 0.1, False),  # and is going on to
    ):
        detector = Overfitting()
        for value in validation:
            detector.update(value, training, 2.0)
        assert detector.left_behind(2.0) == expected


class Tastes(Task):
    """A number for each person, learnt by heart, or one for each age; logs `val_mse`."""

    def __init__(self, by_heart: bool) -> None:
        table = nn.Embedding(400, 1)
        nn.init.zeros_(table.weight)
        super().__init__(nn.Sequential(Fn(lambda i: i if by_heart else i % 10), table, nn.Flatten(0)), rate=0.05)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", self.training_step(batch, batch_idx))


def test_a_model_that_knows_its_training_set_by_heart() -> None:
    people = torch.arange(400)
    y = randn(10)[people % 10] + 0.05 * randn(400, seed=1)
    for by_heart in (True, False):
        train, val = rows(people[:200], y[:200]), DataLoader(TensorDataset(people[200:], y[200:]), 200)
        report = watch(Tastes(by_heart), train, PlateauWatch(), val=val, max_epochs=40)
        assert causes(report) == spoken(report) == ["overfitting"] * by_heart


def test_names_of_losses() -> None:
    assert all(map(less_is_better, ["val_ce", "bce/val", "val_mse", "valid.PPL", "val-l1", "val_loss_epoch", "kl"]))
    assert not any(map(less_is_better, ["val_acc", "val_score", "precision", "val_face", "scale", "val_f1", "auc"]))
    assert validation_loss({"val_acc": 0.9, "train_ce": 0.1, "bce/val": 0.3}) == 0.3
    assert validation_loss({"val_acc": 0.9}) is None


class Highway(nn.Module):
    """`g * h + (1 - g) * x`, in which each gate stands open or shut; or a layer of such sigmoids."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)])
        self.layers[2].bias.data = torch.where(torch.arange(32) % 2 == 0, 30.0, -30.0)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        first, way, gate, last = self.layers
        x = torch.relu(first(x))
        g = torch.sigmoid(gate(x))
        out: Tensor = last(g * torch.relu(way(x)) + (1 - g) * x if self.gated else g)
        return out


@pytest.mark.parametrize("gated", [True, False])
def test_gates_may_stand_at_their_limits(gated: bool) -> None:
    net = Highway(gated)
    assert [a.gate for a in activations(net(randn(32, 8)).sum()) if a.kind == "sigmoid"] == [gated]
    report = watch(Classifier(net), blobs(), *family(), max_epochs=12)
    assert causes(report)[:1] == ["saturated-activations"] * (not gated)


class Stages(Task):
    """From the sixth epoch on another task joins the loss; or a rate that throws the weights takes over."""

    adds = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        loss = F.mse_loss(out[:, 0], batch[1])
        return loss + F.cross_entropy(out[:, 1:], batch[2]) if self.adds and self.current_epoch >= 5 else loss

    def on_train_epoch_start(self) -> None:
        if not self.adds and self.current_epoch == 5:
            self.trainer.optimizers[0].param_groups[0]["lr"] = 3.0


def staged(adds: bool, seed: int) -> StallReport:
    torch.manual_seed(seed)
    x, module = randn(512, 6, seed=seed), Stages(mlp(6, 5), rate=5e-3)
    module.adds = adds
    data = rows(x, torch.tanh(x[:, 0]) + 0.5 * x[:, 1], (x[:, 2] > 0).long() + 2 * (x[:, 3] > 0).long())
    return watch(module, data, *family(), max_epochs=12, seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_a_term_that_joins_the_loss_and_a_rate_that_throws_it(seed: int) -> None:
    joined, thrown = staged(adds=True, seed=seed), staged(adds=False, seed=seed)
    assert (spoken(joined), joined.outcome in ("converged", "learning")) == ([], True)
    assert "loss-diverging" in spoken(thrown)
    assert thrown.outcome not in ("learning", "converged")


def test_a_new_phase() -> None:
    def curve(losses: list[float]) -> LossCurve:
        made = LossCurve(horizon=400)
        for i, loss in enumerate(losses):
            made.update(loss, 0.1, new_epoch=i % 16 == 0)
        return made

    fall = [math.exp(-i / 30) for i in range(96)]
    joined = curve([*fall, *(2.0 * math.exp(-i / 40) for i in range(20))])
    assert joined.new_phase() == 20
    assert (joined.since(20).recent, joined.since(20).horizon) == (joined.recent[-20:], 400 - 96)
    assert curve([*fall[:-6], *(2.0 * math.exp(-i / 40) for i in range(26))]).new_phase() == 0, "not where one begins"
    assert curve([*fall, *(2.0 * math.exp(i / 4) for i in range(20))]).new_phase() == 0, "it goes on to rise"
    assert curve([1.0 + (i % 16 < 2) for i in range(120)]).new_phase() == 0, "it does so each epoch"
    assert curve(fall).new_phase() == 0


@pytest.mark.parametrize("std", [40.0, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_word_vectors_that_begin_far_too_large(std: float, seed: int) -> None:
    torch.manual_seed(seed)
    ids, table, last = torch.randint(40, (1280, 3)), nn.Embedding(40, 16), Fn(lambda h: h[0][:, -1])
    nn.init.normal_(table.weight, std=std)
    net = nn.Sequential(table, nn.GRU(16, 24, batch_first=True), last, nn.Linear(24, 3))
    data = rows(ids, (ids % 2 == 0).sum(1).clamp(max=2))
    report = watch(Task(net, F.cross_entropy, 5e-3), data, *family(), max_epochs=6, seed=seed)
    assert causes(report)[:1] == ["bad-initialization"] * (std > 1.0)


def test_what_makes_a_bad_start() -> None:
    wide = nn.Embedding(50, 8)
    nn.init.normal_(wide.weight, std=40.0)
    assert [s.gain for s in starts(wide)] == [pytest.approx(40.0 / math.sqrt(3), rel=0.1)]
    assert [s.name for s in starts(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8)))] == ["1"]
    run = Situation("learning", level=(0.95, 1.0, 1.05), baseline=1.2, floor=0.0, start=1.3)
    losses = tuple(1.3 - 0.02 * i for i in range(50))
    for after, said in (((0.3, 0.35, 0.4), [("bad-initialization", 1.0)]), ((0.93, 1.0, 1.02), [])):
        fresh = Fit(Arm(start="fresh"), 50, 0.1, losses, before=(1.3,) * 3, after=after)
        assert [(c.code, c.weight) for c in started_badly(run, Fits([fresh]))] == said


@pytest.mark.parametrize("width", [2, 48])
@pytest.mark.parametrize("seed", range(1))
def test_a_bent_function_by_two_units(width: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = 2.0 * torch.rand(640, 2, generator=torch.Generator().manual_seed(seed)) - 1.0
    y = torch.sin(4.0 * x[:, :1]) + torch.cos(5.0 * x[:, 1:]) * x[:, :1]
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
    report = watch(Task(net, rate=0.02), rows(x, y), *family(), max_epochs=60, seed=seed)
    assert causes(report) == ["insufficient-capacity"] * (width == 2)
    assert width > 2 or (report.outcome, [f.step for f in report.findings if f.speaks]) == ("converged", [1200])


@pytest.mark.parametrize("shuffled", [True, False])
def test_grades_of_other_samples(shuffled: bool) -> None:
    x = randn(640, 6)
    grade = torch.bucketize(x[:, 0] + 0.7 * torch.tanh(x[:, 1]), torch.tensor([-1.0, -0.3, 0.3, 1.0]))
    order = torch.randperm(640) if shuffled else torch.arange(640)

    def cumulative(out: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out, (y[:, None] > torch.arange(4)).float())

    report = watch(Task(mlp(6, 4), cumulative), rows(x, grade[order]), *family(), max_epochs=10)
    assert causes(report) == ["uninformative-targets"] * shuffled


def test_which_cause_outranks_which() -> None:
    slow, mixing, straight = (
        Finding(code, 10, 0, "warning", "seen", evidence={"strength": strength})
        for code, strength in (("learning-rate-too-low", 0.6), ("batch-mixing", 0.9), ("missing-nonlinearity", 0.7))
    )
    first, *others = diagnose([slow, mixing], Outcome("stalled", 200))
    assert first.code == "batch-mixing"
    assert all(c.confidence < 0.5 * first.confidence for c in others)
    thrown, high, stale, dead = (
        Finding(code, 10, 0, "warning", "seen", evidence={"strength": strength})
        for code, strength in (
            ("corrupt-samples", 0.5),
            ("learning-rate-too-high", 0.9),
            ("batchnorm-stale-statistics", 0.5),
            ("dead-activations", 0.9),
        )
    )
    assert next(c.code for c in diagnose([high, thrown], Outcome("oscillating", 200))) == "corrupt-samples"
    assert next(c.code for c in diagnose([dead, stale], Outcome("stalled", 200))) == "batchnorm-stale-statistics"
    broken, huge = (Finding(code, 10, 0, "critical", "seen") for code in ("nonfinite-loss", "exploding-gradients"))
    assert [c.code for c in diagnose([broken, huge], Outcome("non-finite", 20))] == [huge.code, broken.code]
    never = Finding("never-learned", 100, 0, "warning", "seen")
    assert [len(diagnose([never], Outcome(state, 200))) for state in ("never learned", "converged")] == [1, 0]
    for state, explained, said in (("learning", 0.9, 0), ("learning", 0.5, 1), ("stalled", 0.9, 1)):
        outcome = Outcome(state, 200, {"baseline": 1.0, "explained": explained})  # type: ignore[arg-type]
        assert len(diagnose([straight], outcome)) == said


@pytest.mark.parametrize("recurrent", [True, False])
def test_an_infinity_that_is_squashed(recurrent: bool) -> None:
    """Decibels of what may be nothing at all."""
    x = torch.rand(512, 6, 4) + 0.1
    y = 4.0 * x[:, -1].mean(-1, keepdim=True)
    x[::40, -1, 0] = 0.0
    last = Fn(lambda h: h[0][:, -1] if recurrent else h[:, -1])
    first = [nn.GRU(4, 16, batch_first=True), last] if recurrent else [last, nn.Linear(4, 16), nn.Tanh()]
    for floor in (0.0, 1e-3):
        net = nn.Sequential(Fn(lambda x, floor=floor: torch.log10(x + floor)), *first, nn.Linear(16, 1))
        report = watch(Task(copy.deepcopy(net)), rows(x, y), *family(), max_epochs=10)
        assert causes(report)[:1] == ["unstable-operation"] * (floor == 0.0)
        assert all(f.step <= 2 for f in report.findings if f.code == "unstable-operation")


@pytest.mark.parametrize("rate", [0.3, 0.01])
def test_a_rate_too_high_is_told_in_mid_flight(rate: float) -> None:
    x = 4.0 * torch.rand(800, 2, generator=torch.Generator().manual_seed(3)) - 2.0
    y = ((2 * x[:, 0]).sin() + (2 * x[:, 1]).cos() > 0).long() + (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(3)
    report = watch(Task(mlp(2, 3, 48), F.cross_entropy, rate), rows(x, y), *family(), max_epochs=10, seed=3)
    assert causes(report)[:1] == ["learning-rate-too-high"] * (rate == 0.3)
    tried = [f for f in report.findings if f.code == "learning-rate-too-high" and f.evidence.get("trial") == 1.0]
    assert [60 <= f.step <= 100 for f in tried[:1]] == [True] * (rate == 0.3)


# ---------------------------------------------------------------------- averages that arrive too late


@pytest.mark.parametrize(("slow", "streak"), [(True, 3), (False, 0)])
def test_averages_that_never_arrive_need_undo_less(slow: bool, streak: int) -> None:
    apart = BothWays()
    for step in (50, 100, 150):
        apart.update(step, 0.05, 0.3, 2.3, 0.03, slow=slow)
    assert apart.streak == streak
    apart.update(200, 0.05, 0.08, 2.3, 0.03, slow=slow)  # what differs so little is no loss
    assert apart.streak == 0


@pytest.mark.parametrize("ill", [True, False])
def test_running_averages_that_are_too_slow_for_their_run(ill: bool) -> None:
    report = StallReport(table=False, html=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        run(load_cases()["k-slow-average"], 0, callbacks=[*family(), report], twin=not ill)
    assert causes(report) == ["batchnorm-stale-statistics"] * ill


# ---------------------------------------------------------------------- what a small model need not learn


@pytest.mark.parametrize(("noise", "same"), [(0.0, True), (0.3, True), (3.0, False)])
def test_targets_that_are_the_inputs_show_nothing_of_a_model(noise: float, same: bool) -> None:
    y = randn(96, 6)
    batches = [(part + noise * randn(32, 6, seed=i + 1), part) for i, part in enumerate(y.split(32))]
    assert math.isnan(without_model(batches, 1, False).shown) == same


def test_a_linear_autoencoder_finds_its_subspace() -> None:
    torch.manual_seed(0)
    x = randn(640, 24) @ randn(24, 24, seed=1) / 5
    net = nn.Sequential(nn.Linear(24, 8, bias=False), nn.Linear(8, 24, bias=False))
    report = watch(Task(net, F.mse_loss, 5e-3), rows(x, x), *family(), max_epochs=12)
    assert causes(report) == []


# ---------------------------------------------------------------------- runs that end before they have begun


@pytest.mark.parametrize(("steps", "short"), [(40, True), (400, False)])
def test_a_run_of_few_steps(steps: int, short: bool) -> None:
    torch.manual_seed(0)
    module = Classifier(mlp(8, 4, 32), rate=5e-4)
    report = watch(module, blobs(2048, batch_size=32), *family(), max_steps=steps, max_epochs=-1)
    assert causes(report) == ["training-too-short"] * short


def test_a_validation_metric_is_the_training_loss_where_the_numbers_say_so() -> None:
    twins = LossTwins()
    for loss in (0.8, 0.6):
        metrics = {"rating/train": torch.tensor(loss), "rating/val": 0.9, "hits/train": 0.3, "hits/val": 0.2}
        twins.update(["rating/val", "hits/val"], metrics, [1.0, 0.7, loss])
        assert twins.names == (frozenset() if loss == 0.8 else {"rating/val"})
    assert validation_loss({"hits/val": 0.2, "rating/val": 0.9}, twins.names) == 0.9
