"""Rules that came with the tenth part of the zoo, each with what it must leave alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import ActivationHealth, BatchNormBatchSizeGuard, InputHealth, PlateauWatch
from lightning_stall.diagnosis import diagnose
from lightning_stall.finding import Finding
from lightning_stall.journal import Journal
from lightning_stall.outcome import Outcome
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch
from lightning_stall.verdicts.inputs import categorical_as_numeric
from lightning_stall.verdicts.targets import too_little_data


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(report: Any) -> set[str]:
    return {f.code for f in report.findings}


# --- BatchNorm --------------------------------------------------------------------------------------------------------


class Emptied(Classifier):
    """Empties its running averages when a validation begins."""

    refill = False

    def on_validation_epoch_start(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
                if self.refill:
                    layer.train()
        if self.refill:
            with torch.no_grad():
                self(blobs().dataset.tensors[0])  # type: ignore[attr-defined]
            self.eval()


@pytest.mark.parametrize("refill", [False, True])
def test_averages_that_are_emptied_before_validation(refill: bool) -> None:
    module = Emptied(mlp(batchnorm=True))
    module.refill = refill
    report = watch(module, blobs(), BatchNormBatchSizeGuard(), val=blobs(draw=1, shuffle=False), max_epochs=4)
    told = [f for f in report.findings if f.code == "batchnorm-stale-statistics" and "put back" in f.summary]
    assert bool(told) != refill
    if not refill:
        assert told[0].where == ("net.1", "net.4")
        assert told[0].severity == "warning"


# --- activations ------------------------------------------------------------------------------------------------------


class Above(nn.Module):
    """What is above a threshold, else 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, self.threshold, 0.0)


@pytest.mark.parametrize(("threshold", "dead"), [(4.0, True), (0.05, False)])
def test_units_under_a_threshold_of_their_own_are_dead(threshold: float, dead: bool) -> None:
    net = nn.Sequential(nn.Linear(8, 32), Above(threshold), nn.Linear(32, 4))
    with torch.no_grad():
        net[0].weight.mul_(0.3)
    report = watch(Classifier(net, rate=1e-4), blobs(), ActivationHealth(), max_epochs=3)
    assert ("dead-activations" in codes(report)) == dead


# --- inputs and targets -----------------------------------------------------------------------------------------------


class Sequences(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.GRU(3, 12, batch_first=True))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][:, -1])


@pytest.mark.parametrize(("scales", "told"), [((0.01, 1.0, 40.0), True), ((0.5, 1.0, 4.0), False)])
def test_columns_of_sequences_have_scales_too(scales: tuple[float, ...], told: bool) -> None:
    x = randn(320, 10, 3) * torch.tensor(scales)
    y = torch.randint(4, (320,), generator=torch.Generator().manual_seed(1))
    report = watch(Sequences(), DataLoader(TensorDataset(x, y), 32, shuffle=True), InputHealth(), max_epochs=2)
    assert ("disparate-feature-scales" in codes(report)) == told


@pytest.mark.parametrize(
    ("columns", "rows", "told"),
    [
        (60, 40, True),  # any targets fit so few rows of so many columns
        (4, 40, False),  # no wider than it is long: nothing is validated, and nothing is known
    ],
)
def test_rows_fewer_than_columns_are_too_little(columns: int, rows: int, told: bool) -> None:
    found = too_little_data(rows, rows, 5000, 0.99, 1e-6, math.nan, columns)
    assert found is not None  # a note in any case
    assert (not found.statistical) == told
    assert ("fit any targets" in found.summary) == told


@pytest.mark.parametrize(("likeness", "told"), [(0.02, True), (0.6, False)])
def test_a_sequence_of_unordered_whole_numbers_may_be_codes(likeness: float, told: bool) -> None:
    columns = [(f"position {i}", 4, 0.0, 0.0) for i in range(30)]
    found = categorical_as_numeric("x", columns, 1, True, (30, likeness))
    assert (found is not None) == told


def test_what_validation_has_come_to_predict_is_not_uninformative() -> None:
    finding = Finding("uninformative-targets", 110, 1, "warning", "said", "", {"strength": 0.75})
    against = Finding("uninformative-targets", 300, 3, "info", "against", "", {"trial": -1.0, "explained": 0.2})
    stalled = Outcome("stalled", 300, {"explained": 0.2, "baseline": 1.0, "level": 0.8})
    assert diagnose([finding], stalled)[0].confidence > 0.8
    assert diagnose([finding, against], stalled)[0].confidence < 0.4


# --- the diagnosis ----------------------------------------------------------------------------------------------------


def test_units_that_sorted_batches_have_killed_are_their_effect() -> None:
    killed = Finding("dead-activations", 200, 2, "warning", "dead", "", {"strength": 1.0, "dead": 1.0})
    order = Finding("unshuffled-data", 16, 0, "warning", "order", "", {"strength": 0.9})
    outcome = Outcome("never learned", 250, {})
    assert diagnose([killed, order], outcome)[0].code == "unshuffled-data"
    assert diagnose([killed], outcome)[0].code == "dead-activations"


def test_a_class_named_alone_under_a_tight_limit_is_an_effect_of_it() -> None:
    tight = Finding("clipping-too-tight", 60, 1, "warning", "cut", "", {"strength": 0.5})
    alone = Finding("class-imbalance", 110, 2, "warning", "alone", "", {"strength": 0.9})
    outcome = Outcome("never learned", 180, {})
    assert diagnose([tight, alone], outcome)[0].code == "clipping-too-tight"
    assert diagnose([alone], outcome)[0].code == "class-imbalance"


@pytest.mark.parametrize(("after", "kept"), [(0.05, True), (0.2, False)])
def test_a_copy_far_ahead_of_a_run_that_learnt_is_remembered(after: float, kept: bool) -> None:
    e = {"trial": 1.0, "after": after, "strength": 0.9}
    finding = Finding("learning-rate-too-high", 260, 3, "warning", "trial", "", e)
    learnt = Outcome("converged", 300, {"explained": 0.82, "baseline": 1.4, "level": 0.25})
    assert bool(diagnose([finding], learnt)) == kept


# --- when it is told --------------------------------------------------------------------------------------------------


def test_what_has_spoken_early_does_not_speak_again_at_the_verdict() -> None:
    journal = Journal()
    strong = Finding("dead-activations", 8, 0, "warning", "dead", "", {"strength": 0.95})
    weak = Finding("saturated-activations", 8, 0, "warning", "full", "", {"strength": 0.3})
    journal.submit(strong, statistical=True)
    journal.submit(weak, statistical=True)
    assert [f.code for f in journal.promote(50, 1, least=0.75, meant=False)] == ["dead-activations"]
    journal.submit(strong, statistical=True)
    assert [f.code for f in journal.promote(110, 2)] == ["saturated-activations"]


def test_strong_causes_speak_before_the_verdict_where_nothing_was_gained() -> None:
    net = mlp(width=32)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.bias.fill_(-30.0)
    report = watch(Classifier(net, rate=1e-4), blobs(), ActivationHealth(), PlateauWatch(), max_epochs=10)
    told = next(f for f in report.findings if f.code == "dead-activations" and f.speaks)
    assert told.step <= 60
    assert "dead-activations" not in codes(watch(healthy(), blobs(), ActivationHealth()))
