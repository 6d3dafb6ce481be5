"""ActivationHealth: dead and saturated units, bad starts, modules in the wrong mode; each with its twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_stall import ActivationHealth, StallReport
from lightning_stall.measure.activations import activations, at_the_edge, fired
from lightning_stall.measure.initial import starts
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch


def top(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


def test_outputs_are_found_in_the_graph_modules_and_calls_alike() -> None:
    first, second = nn.Linear(4, 6), nn.Linear(6, 5)
    hidden = torch.relu(first(torch.randn(7, 4)))
    out = F.sigmoid(second(hidden))
    found = activations(out.sum())
    assert [(a.kind, tuple(a.output.shape)) for a in found] == [("relu", (7, 6)), ("sigmoid", (7, 5))]
    assert [a.hidden for a in found] == [True, False]
    assert [a.source for a in found] == [id(first.bias), id(second.bias)]
    assert torch.equal(found[0].output, hidden)


def test_what_checkpointing_packed_is_left_alone() -> None:
    calls = []

    def block(x: Tensor) -> Tensor:
        calls.append(1)
        return torch.relu(layer(x))

    layer = nn.Linear(4, 4)
    loss = checkpoint(block, torch.randn(3, 4), use_reentrant=False).sum()
    assert activations(loss) == []
    assert len(calls) == 1


def test_measures_against_brute_force() -> None:
    x = torch.randn(5, 3, 4, 4)
    x[:, 1] = -1
    assert fired(x, 1).tolist() == [bool((x[:, c] > 0).any()) for c in range(3)]
    assert fired(torch.full((2, 3), torch.nan), 1).all(), "a value that is no number is not a dead unit"
    s = torch.tensor([0.001, 0.5, 0.995, 0.2])
    assert float(at_the_edge(s, "sigmoid")) == 0.5
    assert float(at_the_edge(s * 2 - 1, "tanh")) == 0.5


def biased(value: float, activation: type[nn.Module] = nn.ReLU) -> Classifier:
    net = nn.Sequential(nn.Linear(8, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 4))
    nn.init.constant_(net[2].bias, value)
    return Classifier(net, rate=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_dead_units(seed: int) -> None:
    report = watch(biased(-50.0), blobs(), ActivationHealth(), max_epochs=15, seed=seed)
    assert top(report) == "dead-activations"
    assert report.causes[0].findings[0].where[0] == "relu after net.2"
    assert watch(biased(0.0), blobs(), ActivationHealth(), max_epochs=15, seed=seed).findings == []


def test_a_dead_layer_is_given_new_weights_where_allowed() -> None:
    module = biased(-50.0)
    report = watch(module, blobs(), ActivationHealth(auto_remedy=True, reinitialize=True), max_epochs=15)
    assert any(f.remedy and "net.2" in f.remedy for f in report.findings)
    assert report.outcome in ("learning", "converged")


@pytest.mark.parametrize("seed", range(3))
def test_saturated_units(seed: int) -> None:
    ill = biased(40.0, nn.Sigmoid)
    report = watch(ill, blobs(), ActivationHealth(), max_epochs=15, seed=seed)
    assert top(report) == "saturated-activations"


def started(std: float | None) -> Classifier:
    module = Classifier(mlp(depth=3), rate=1e-3)
    for layer in module.net:
        if isinstance(layer, nn.Linear) and std is not None:
            nn.init.normal_(layer.weight, std=std) if std else nn.init.constant_(layer.weight, 0.0)
            nn.init.zeros_(layer.bias)
    return module


@pytest.mark.parametrize("std", [0.0, 1e-5])
def test_bad_starts(std: float) -> None:
    report = watch(started(std), blobs(), ActivationHealth(), max_epochs=15)
    assert top(report) == "bad-initialization"


def test_good_starts() -> None:
    for std in (None, 0.1, 0.3):
        assert watch(started(std), blobs(), ActivationHealth(), max_epochs=10).causes == []
    (start, *_) = starts(nn.Linear(64, 64))
    assert start.gain == pytest.approx(3**-0.5, rel=0.1)
    assert starts(nn.Sequential(nn.LazyLinear(4))) == []


@pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode")
def test_modules_left_in_evaluation_mode() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)), nn.Linear(32, 4)
        )

    ill = Classifier(net())
    ill.net.eval()
    report = watch(ill, blobs(), ActivationHealth())
    first = report.findings[0]
    assert (first.code, first.step, first.where) == ("mode-mismatch", 1, ("net",))

    frozen = Classifier(net())
    frozen.net[0][1].eval()  # BatchNorm alone: a choice
    assert watch(frozen, blobs(), ActivationHealth()).causes == []


class Drops(Classifier):
    def __init__(self, always: bool) -> None:
        super().__init__(mlp())
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.3, training=self.always or self.training))


@pytest.mark.parametrize("always", [False, True])
def test_dropout_in_validation(always: bool) -> None:
    report = watch(Drops(always), blobs(), ActivationHealth(), val=blobs(shuffle=False, draw=1))
    assert [f.code for f in report.findings if f.speaks] == (["mode-mismatch"] if always else [])


@pytest.mark.parametrize("seed", range(3))
def test_silent_on_the_healthy(seed: int) -> None:
    report = watch(healthy(), blobs(), ActivationHealth(), seed=seed, val=blobs(shuffle=False, draw=1))
    assert report.findings == []


def test_nothing_is_copied_for_a_run_without_activations() -> None:
    assert watch(Classifier(nn.Linear(8, 4)), blobs(), ActivationHealth()).findings == []
