"""Rules and savings of a later look at all parts of the zoo, each with what it must leave alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stall import AutoClip, GradientHealth, StallCallback, stall_callbacks
from lightning_stall.finding import Finding
from lightning_stall.measure.gradients import are_small, gradient_norms, norms_of_small, norms_on_host
from lightning_stall.outcome import LossCurve, Outcome
from lightning_stall.readings import StepReading
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch
from lightning_stall.trials.records import Arm, Fit, Fits, Situation
from lightning_stall.trials.verdict import conclude, outlearnt
from lightning_stall.verdicts.targets import class_imbalance


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


# --- trials -----------------------------------------------------------------------------------------------------------


def fit(after: float, **arm: Any) -> Fit:
    return Fit(Arm(**arm), 50, 0.1, (1.0, after), (1.0,) * 3, (after - 0.01, after, after + 0.01))


def run(*spoken: str, **known: Any) -> Situation:
    level = (0.99, 1.0, 1.01)
    usual: dict[str, Any] = {"state": "never learned", "level": level, "baseline": 1.0, "floor": 0.0, "explained": 0.0}
    return Situation(**{**usual, "rate": 1e-3, "spoken": frozenset(spoken), **known})


STUCK = [fit(1.0), fit(1.0, factor=10.0), fit(2.0, factor=100.0), fit(1.0, factor=0.1)]


def told(situation: Situation, *fits: Fit) -> list[str]:
    return [c.code for c in conclude(situation, Fits([*STUCK, *fits])) if c.weight > 0]


def test_fresh_weights_that_do_best_at_the_same_rate_clear_the_rate() -> None:
    thrown = run("saturated-activations", "learning-rate-too-high")
    slower, as_it_is = fit(0.7, start="fresh", factor=0.1), fit(0.1, start="fresh")
    assert told(thrown, slower, as_it_is) == ["saturated-activations"]
    assert told(thrown, fit(0.3, start="fresh", factor=0.1), fit(0.3, start="fresh")) == ["learning-rate-too-high"]


def test_targets_far_from_unit_scale_are_why_other_weights_get_there_sooner() -> None:
    far = fit(1.0, start="fresh"), fit(0.4, start="fresh", factor=10.0)
    assert told(run(), *far) == ["bad-initialization"]
    assert told(run("unscaled-targets"), *far) == []


@pytest.mark.parametrize(
    ("off_scale", "factor", "named"), [(False, 0.001, True), (True, 0.001, False), (True, 0.1, True)]
)
def test_a_rate_of_a_thousandth_is_what_unscaled_inputs_need(off_scale: bool, factor: float, named: bool) -> None:
    fits = Fits([fit(1.0, start="fresh"), fit(0.4, start="fresh", factor=factor)])
    assert [c.code for c in outlearnt(run(off_scale=off_scale), fits)] == ["learning-rate-too-high"] * named


# --- classes and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explained", "settled", "named"), [(0.0, True, True), (-1.7, True, False), (-1.7, False, True)]
)
def test_a_model_that_does_not_know_how_rare_a_class_is(explained: float, settled: bool, named: bool) -> None:
    found = class_imbalance([950.0, 50.0], [500.0, 0.0], False, settled, explained)
    assert (found is not None) == named


class Rarely(Classifier):
    """Only each `nth` batch has anything to teach."""

    nth = 4

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        return loss * (0.0 if (batch_idx + 1) % self.nth else 1.0)


@pytest.mark.parametrize(("nth", "seen"), [(4, False), (10**6, True)])
def test_a_batch_with_nothing_to_teach_is_no_vanished_gradient(nth: int, seen: bool) -> None:
    module = Rarely(mlp())
    module.nth = nth
    health = GradientHealth(every_n_steps=10)
    report = watch(module, blobs(), health, max_steps=60, max_epochs=-1)
    hub = report.hub
    assert any(f.code == "vanishing-gradients" for f in hub.journal.known()) == seen


# --- norms on a CPU ---------------------------------------------------------------------------------------------------


def with_gradients(*grads: Tensor | None) -> list[Tensor]:
    params = [torch.nn.Parameter(torch.zeros(()) if g is None else torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return params


def test_norms_tensor_by_tensor_are_those_of_all_at_once() -> None:
    grads = [torch.randn(3, 5), None, torch.randn(()), torch.empty(0), torch.randn(70_000), torch.randn(4, 4).t()]
    expected = gradient_norms(grads).tolist()
    assert norms_on_host(grads) == pytest.approx(expected, rel=1e-6)
    small = with_gradients(*[g for g in grads if g is None or g.numel() < 70_000])
    assert norms_of_small(small) == pytest.approx([expected[i] for i in (0, 1, 2, 3, 5)], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    grad = torch.full((5000,), 30.0, dtype=dtype)
    assert norms_on_host([grad]) == pytest.approx([30.0 * math.sqrt(5000)], rel=1e-4)
    assert not are_small([grad])


def test_what_is_no_ordinary_gradient_is_left_to_the_other_way() -> None:
    sparse = torch.eye(3).to_sparse()
    assert norms_on_host([torch.ones(2), sparse]) is None
    assert norms_on_host([torch.ones(2, dtype=torch.float64)]) is None
    param = torch.nn.Parameter(torch.zeros(3, 3))
    param.grad = sparse
    assert are_small([param])
    assert norms_of_small([param]) is None


# --- quiet steps ------------------------------------------------------------------------------------------------------


class Counts(GradientHealth):
    """A user's own, with a verb of its own."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=20)
        self.steps: list[int] = []

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        super().before_batch(batch, batch_idx)
        self.steps.append(self.hub.step)


class Follows(StallCallback):
    """Notes on which steps another's verb was called."""

    def __init__(self, other: StallCallback, verb: str) -> None:
        super().__init__(every_n_steps=20)
        self.called: list[int] = []
        inner = getattr(other, verb)

        def noting(*args: Any) -> Any:
            self.called.append(other.hub.step)
            return inner(*args)

        setattr(other, verb, noting)

    def observe(self, reading: StepReading) -> None:
        pass


def test_verbs_that_do_nothing_on_quiet_steps_are_not_called_then() -> None:
    health = GradientHealth(every_n_steps=20)
    follows = Follows(health, "before_step")
    watch(healthy(), blobs(), health, follows, max_steps=70, max_epochs=-1)
    # all early steps, checks (the report's own at 50 among them), and the step after each
    assert follows.called == [*range(1, 34), 40, 41, 50, 51, 60, 61]


def test_a_verb_of_a_users_own_is_called_at_every_step() -> None:
    own = Counts()
    watch(healthy(), blobs(), own, max_steps=50, max_epochs=-1)
    assert own.steps == list(range(1, 51))


class Breaks(Classifier):
    """One batch gives a loss that is no number."""

    at = 47
    in_gradient = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step == self.at - 1:
            zero = self.net[0].weight.sum() * 0
            return loss + (zero.sqrt() if self.in_gradient else loss * math.nan)
        return loss


@pytest.mark.parametrize("in_gradient", [False, True])
def test_a_quiet_step_that_breaks_is_looked_at_like_any_other(in_gradient: bool) -> None:
    module = Breaks(mlp())
    module.in_gradient = in_gradient
    report = watch(module, blobs(), GradientHealth(every_n_steps=20), AutoClip(), max_steps=55, max_epochs=-1)
    told = {f.code: f for f in report.findings}
    assert told["unstable-operation" if in_gradient else "nonfinite-loss"].step == 47


def test_the_family_says_the_same_whether_steps_are_quiet_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> list[tuple[str, int]]:
        torch.manual_seed(0)
        report = watch(Classifier(mlp(), rate=30.0, optimizer="sgd"), blobs(), *stall_callbacks()[:-1], max_steps=80)
        return [(f.code, f.step) for f in report.findings]

    quiet = said()
    for cls in {type(c) for c in stall_callbacks()}:
        monkeypatch.setattr(cls, "rare", frozenset())
    assert quiet == said() != []


def test_what_came_before_another_phase_counts_as_lived() -> None:
    hub = watch(healthy(), blobs(), max_steps=10, max_epochs=-1).hub
    hub.curve = LossCurve()
    for i in range(120):
        hub.curve.update((0.5 if i < 80 else 1.5) + 0.01 * math.sin(i), 0.01, new_epoch=i % 40 == 0)
    hub._judge()
    assert hub.curve.n == 40
    assert hub.other_phases == 80


def held(level: float, after: float) -> Any:
    """A run that ends at `level`, with a trial held back that came to `after`."""
    hub = watch(healthy(), blobs(), max_steps=10, max_epochs=-1).hub
    for _ in range(120):
        hub.curve.update(level)
    hub.outcome = Outcome("learning", 130, {"level": level, "baseline": 2.6, "explained": 1 - level / 2.6})
    trial = {"trial": 1.0, "after": after, "strength": 0.5}
    hub.journal.submit(Finding("learning-rate-too-high", 90, 0, "warning", "A copy.", evidence=trial), True, False)
    return hub


@pytest.mark.parametrize(("after", "told"), [(1.2, True), (1.5, False)])
def test_a_copy_that_came_much_further_than_the_whole_run_is_heard_at_its_end(after: float, told: bool) -> None:
    hub = held(1.6, after)
    hub._promote_last()
    assert ("learning-rate-too-high" in {f.code for f in hub.journal.findings if f.speaks}) == told
