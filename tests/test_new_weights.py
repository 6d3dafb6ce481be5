"""New weights where the user allows them: a bad start begun anew, zero factors, and what standardised inputs begin with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stall import (
    ActivationHealth,
    AutoClip,
    InputHealth,
    PlateauWatch,
    StallCallback,
    StallReport,
    stall_callbacks,
)
from lightning_stall.measure.columns import FieldWatch
from lightning_stall.measure.entries import Entry
from lightning_stall.remedies_inputs import Standardizer
from lightning_stall.remedies_rate import RateClimb
from lightning_stall.remedies_start import start_afresh
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def allowed() -> list[Any]:
    """The family, with remedies, and new weights allowed."""
    family: list[Any] = list(stall_callbacks(auto_remedy=True)[:-1])
    for callback in family:
        if isinstance(callback, ActivationHealth):
            callback.reinitialize = True
    return family


def deeds(report: StallReport, code: str) -> list[str]:
    return [f.remedy for f in report.findings if f.remedy and f.code == code]


def accuracy(module: Classifier) -> float:
    x, y = blobs(draw=1).dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def flat_start() -> Classifier:
    """Every weight of the hidden layers is one number: units that never differ."""
    net = mlp(width=32)
    for layer in net[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)
    return Classifier(net)


class Adapter(Classifier):
    """A frozen layer and a product of two factors beside it that are both 0."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 4))
        self.net.requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(16, 8))
        self.up = nn.Parameter(torch.zeros(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x @ self.down.T @ self.up.T


def test_a_start_of_equal_weights_is_begun_anew_and_learns():
    module = flat_start()
    report = watch(module, blobs(), *allowed(), max_steps=300, max_epochs=-1)
    assert len(deeds(report, "bad-initialization")) == 1
    assert "`reset_parameters`" in deeds(report, "bad-initialization")[0]
    assert report.causes[0].code == "bad-initialization"
    bare = flat_start()
    watch(bare, blobs(), max_steps=300, max_epochs=-1)
    assert accuracy(module) > accuracy(bare) + 0.1


def test_a_start_is_left_as_it_is_where_new_weights_are_not_allowed():
    module, twin = flat_start(), flat_start()
    twin.load_state_dict(copy.deepcopy(module.state_dict()))
    report = watch(module, blobs(), ActivationHealth(auto_remedy=True), max_steps=120, max_epochs=-1)
    watch(twin, blobs(), max_steps=120, max_epochs=-1)
    assert not deeds(report, "bad-initialization")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


def test_a_healthy_run_keeps_its_weights_where_new_ones_are_allowed():
    module, twin = healthy(), healthy()
    twin.load_state_dict(copy.deepcopy(module.state_dict()))
    report = watch(module, blobs(), ActivationHealth(auto_remedy=True, reinitialize=True), max_steps=150, max_epochs=-1)
    watch(twin, blobs(), max_steps=150, max_epochs=-1)
    assert not report.causes
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


def test_an_odd_start_that_learns_keeps_its_weights():
    module = healthy()
    with torch.no_grad():
        module.net[0].weight.mul_(30.0)
    report = watch(module, blobs(), ActivationHealth(auto_remedy=True, reinitialize=True), max_steps=200, max_epochs=-1)
    assert "bad-initialization" in {f.code for f in report.findings}  # as a note
    assert not deeds(report, "bad-initialization")


def test_of_two_factors_that_are_zero_one_is_drawn_and_the_model_learns():
    module = Adapter()
    report = watch(module, blobs(), ActivationHealth(auto_remedy=True, reinitialize=True), max_steps=150, max_epochs=-1)
    assert deeds(report, "bad-initialization")[0].startswith("drew 1 of these weights")
    assert module.down.any()
    bare = Adapter()
    watch(bare, blobs(), max_steps=150, max_epochs=-1)
    assert not bare.down.any()
    assert accuracy(module) > accuracy(bare) + 0.1


def test_start_afresh_draws_what_is_trained_and_forgets_its_optimizer_state():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    net[1].requires_grad_(False)
    optimizer = torch.optim.Adam(net[0].parameters())
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    was = [p.clone() for p in net.parameters()]
    assert start_afresh(net.modules(), [optimizer.state]) == 1
    changed = [not torch.equal(a, b) for a, b in zip(was, net.parameters(), strict=True)]
    assert changed == [True, True, False, False]
    assert not optimizer.state


def far_off() -> Any:
    data = blobs()
    data.dataset.tensors[0].mul_(1000.0)  # type: ignore[attr-defined]
    return data


def test_standardised_inputs_meet_the_weights_that_no_step_has_moved():
    module = Classifier(mlp(width=32), rate=0.05, optimizer="momentum")
    callbacks = [InputHealth(auto_remedy=True, standardize=True), PlateauWatch(auto_remedy=True)]
    report = watch(module, far_off(), *callbacks, max_steps=200, max_epochs=-1)
    assert any("standardised" in deed for deed in deeds(report, "unscaled-inputs"))
    assert "went back to the weights it began with" in deeds(report, "loss-plateau")
    x, y = far_off().dataset.tensors
    with torch.no_grad():
        assert F.cross_entropy(module(x), y) < 0.3


def test_a_flattened_field_is_standardised_in_front_of_its_layer():
    watched = FieldWatch("Linear")
    images = torch.rand(64, 1, 4, 4) * torch.tensor([1.0, 10.0, 100.0, 1000.0])
    for _ in range(2):
        watched.update(images, keep_rows=False)
    scale = Standardizer()
    assert scale.fit("batch[0]", watched, [Entry("net.1", "Linear", "batch[0]", 100.0, 10.0, (16,))])
    assert scale.layers == {"batch[0]": ["net.1"]}
    assert scale.statistics["batch[0]"][0].shape == (1, 16)
    mean, _ = scale.statistics["batch[0]"]
    torch.testing.assert_close(mean[0, :4], images.mean((0, 1, 2)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean[0, :4], mean[0, 4:8])


def test_a_column_that_has_not_changed_yet_is_not_blown_up_when_it_does():
    watched = FieldWatch("Linear")
    table = torch.randn(64, 3) * 100
    table[:, 1] = 7.0
    watched.update(table, keep_rows=False)
    found = watched.statistics()
    assert found is not None
    assert 50 < float(found[1][0, 1]) < 150


def test_a_climb_ends_where_the_loss_leaps_though_most_weights_hardly_move():
    climb = RateClimb()
    assert climb.begin(100, 1e-6, 2.3) is not None
    high = climb.factor
    assert climb.judge(110, 1e-6, 2.31, 0.001) is not None  # a little worse, by steps this short, is noise
    done = climb.judge(120, 1e-6, 6.0, 0.001)
    assert done is not None
    assert done.startswith("took the raise of step 110 back")
    assert climb.factor == high
    assert climb.ended


def test_a_rate_is_raised_on_the_word_of_a_trial():
    climb = RateClimb()
    assert climb.heed(120, 0.69, 10.0) == (
        "raised the learning rate at step 120, to 10 times the schedule's, as on a copy that learnt by it"
    )
    assert climb.judge(150, 1e-2, 0.5, 0.01) is None  # and stays
    assert climb.factor == 10.0


def test_steps_too_short_for_a_copy_are_lengthened_by_the_whole_family():
    module = Classifier(mlp(width=32), rate=2e-6)
    report = watch(module, blobs(), *allowed(), max_steps=300, max_epochs=-1)
    assert any("raised the learning rate" in deed for deed in deeds(report, "learning-rate-too-low"))
    assert accuracy(module) > 0.8


class Grows(Classifier):
    """Its gradients are ten thousand times as large from step 60 on, as where a saturated start is gone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1.0 if self.global_step < 60 else 1e4)


class Mends(StallCallback):
    """Says that inputs are standardised since step 60."""

    def judged(self) -> None:
        if self.hub.step >= 60:
            self.hub.mended.setdefault("unscaled-inputs", 60)


@pytest.mark.parametrize("mended", [True, False])
def test_norms_of_inputs_that_are_no_more_limit_nothing(mended: bool):
    clip = AutoClip(auto_remedy=True, warmup=10**9)
    watch(Grows(mlp()), blobs(), clip, *[Mends()] * mended, max_steps=90, max_epochs=-1, log_every_n_steps=10)
    after, before = clip.numbers()["stall/clip/norm_after"], clip.numbers()["stall/clip/norm_before"]
    assert (after == before) == mended
    assert mended or after < 0.1 * before
