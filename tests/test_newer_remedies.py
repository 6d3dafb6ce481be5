"""The newest remedies: what is done about an ill run, that it learns by it, and that a run which needs none is left alone."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import (
    BatchNormBatchSizeGuard,
    GradientHealth,
    InputHealth,
    OptimizerHealth,
    PlateauWatch,
    StallReport,
    stall_callbacks,
)
from lightning_stall.measure.batchnorm_copies import MovingCopies
from lightning_stall.measure.instability import find, take_for_zero
from lightning_stall.remedies_batchnorm import RunningInstead
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def family(auto_remedy: bool = True) -> list[Any]:
    return list(stall_callbacks(auto_remedy=auto_remedy)[:-1])  # `watch` brings the report along


def done(report: StallReport, code: str = "") -> list[str]:
    return [f.remedy for f in report.findings if f.remedy and code in ("", f.code)]


def top(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def accuracy(net: Callable[[Tensor], Tensor], data: DataLoader[Any] | None = None) -> float:
    x, y = (data or blobs(draw=1)).dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def finite(module: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in module.parameters())


class Apart(Classifier):
    """How far two things are apart, told by how far their places are; in each batch some are the same thing twice."""

    epsilon = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        one, other, far = batch
        return F.mse_loss(torch.sqrt((self(one) - self(other)).square().sum(-1) + self.epsilon), far)

    def unexplained(self) -> float:
        one, other, far = pairs(9).dataset.tensors  # type: ignore[attr-defined]
        with torch.no_grad():
            return float(F.mse_loss((self(one) - self(other)).norm(dim=-1), far) / far.var())


def pairs(seed: int = 0) -> DataLoader[Any]:
    one, other = randn(512, 6, seed=seed), randn(512, 6, seed=seed + 50)
    other[::8] = one[::8]
    return DataLoader(TensorDataset(one, other, (one[:, :3] - other[:, :3]).norm(dim=-1)), batch_size=32)


@pytest.mark.parametrize("members", [lambda: [GradientHealth(auto_remedy=True)], family])
@pytest.mark.parametrize("seed", range(2))
def test_slopes_that_are_infinite_are_taken_for_0(members: Any, seed: int) -> None:
    torch.manual_seed(seed)
    mended = Apart(mlp(6))
    safe = copy.deepcopy(mended)
    safe.epsilon = 1e-8
    report = watch(mended, pairs(), *members(), max_epochs=8, seed=seed)
    watch(safe, pairs(), max_epochs=8, seed=seed)
    assert "took slopes that are not finite for 0, from step 3 on" in done(report)
    assert finite(mended)
    assert mended.unexplained() < max(0.05, 2.0 * safe.unexplained())
    assert top(report) == "unstable-operation"


def test_slopes_stay_as_they_are_without_a_remedy_and_without_a_need() -> None:
    for epsilon, remedy in ((0.0, False), (1e-8, True)):
        module = Apart(mlp(6))
        module.epsilon = epsilon
        bare = copy.deepcopy(module)
        assert done(watch(module, pairs(), GradientHealth(auto_remedy=remedy), max_epochs=1)) == []
        watch(bare, pairs(), max_epochs=1)
        assert finite(module) == finite(bare) == remedy
        assert not remedy or all(map(torch.equal, module.parameters(), bare.parameters()))


@pytest.mark.parametrize("kind", ["SqrtBackward0", "", "PowBackward0"])
def test_take_for_zero(kind: str) -> None:
    w = torch.ones(3, requires_grad=True)
    loss = torch.sqrt(w * torch.tensor([0.0, 4.0, 9.0])).sum()
    found = find(loss, in_gradient=True)
    assert found is not None
    assert found.kind == "SqrtBackward0"
    take_for_zero(loss, kind)
    loss.backward()
    first = torch.nan if kind.startswith("Pow") else 0.0  # another operation's are left alone
    assert torch.allclose(w.grad, torch.tensor([first, 1.0, 1.5]), equal_nan=True)


def holes(draw: int = 0, share: float = 0.05) -> DataLoader[Any]:
    """Every batch has some."""
    data = blobs(draw=draw)
    x = data.dataset.tensors[0]  # type: ignore[attr-defined]
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(draw)) < share] = torch.nan
    return data


class Rebuilds(Classifier):
    """What goes in is what should come out."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[0])


class Masks(Classifier):
    """Knows how to read such values."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(torch.nan_to_num(x))
        return out


FILLED = "put the mean of the others in the place of such values, from step "


@pytest.mark.parametrize("kind", [Classifier, Rebuilds])
def test_values_that_are_not_finite_are_filled_where_most_batches_hold_some(kind: Any) -> None:
    classes = 4 if kind is Classifier else 8
    module, bare = kind(mlp(classes=classes)), kind(mlp(classes=classes))
    report = watch(module, holes(), InputHealth(auto_remedy=True), max_epochs=8)
    (filled,) = [r for r in done(report, "nonfinite-inputs") if r.startswith(FILLED)]
    assert int(filled.removeprefix(FILLED).split()[0]) < 10
    assert report.outcome in ("learning", "converged")
    assert top(report) == "nonfinite-inputs"
    with torch.no_grad():  # the model takes such data by itself from now on
        assert bool(module.eval()(holes(draw=1).dataset.tensors[0]).isfinite().all())  # type: ignore[attr-defined]
    assert kind is Rebuilds or accuracy(module, holes(draw=1)) > 0.9
    report = watch(bare, holes(), InputHealth(), max_epochs=2)
    assert done(report) == []
    assert not finite(bare)


def test_a_model_that_masks_them_itself_is_left_alone() -> None:
    kept = []
    for remedy in (True, False):
        torch.manual_seed(0)
        module = Masks(mlp())
        report = watch(module, holes(), InputHealth(auto_remedy=remedy), max_epochs=6)
        assert done(report) == []
        assert report.causes == []
        assert not any(m._forward_pre_hooks for m in module.modules())
        kept.append([p.detach().clone() for p in module.parameters()])
    assert all(map(torch.equal, *kept))


def test_what_fills_them_outlives_a_checkpoint(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    seed_everything(0, verbose=False)
    first, again = InputHealth(auto_remedy=True), InputHealth(auto_remedy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        trainer = make_trainer([first, StallReport(table=False)], max_epochs=2)
        trainer.fit(healthy(), holes())
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        report, module = StallReport(table=False), healthy()
        make_trainer([again, report], max_epochs=3).fit(module, holes(), ckpt_path=tmp_path / "c.ckpt")
    kept, restored = first.state()["filler"], again.state()["filler"]
    assert list(kept) == list(restored) == ["batch[0]"]
    assert torch.equal(kept["batch[0]"]["mean"], restored["batch[0]"]["mean"])
    assert again.state()["skipped"] == first.state()["skipped"], "none more was left out"
    assert accuracy(module.eval(), holes(draw=1)) > 0.8


class Averaged(Classifier):
    """Keeps an average of its weights, not of its buffers, and is evaluated by that."""

    def __init__(self) -> None:
        super().__init__(mlp(batchnorm=True), rate=3e-3)
        self.average = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(p, 0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.average(batch[0]), batch[1]))


def shifted() -> DataLoader[Any]:
    x, y = blobs().dataset.tensors  # type: ignore[attr-defined]
    return DataLoader(TensorDataset(3.0 * x + 4.0, y), batch_size=32, shuffle=True)


@pytest.mark.parametrize("validated", [True, False])
def test_an_averaged_copy_gets_statistics(validated: bool) -> None:
    val = DataLoader(shifted().dataset, 256)
    trainer = {"max_epochs": 6, "val": val if validated else None, "limit_val_batches": int(validated)}
    module = Averaged()
    bare = copy.deepcopy(module)
    report = watch(module, shifted(), BatchNormBatchSizeGuard(auto_remedy=True), **trainer)
    (remedy,) = done(report, "batchnorm-stale-statistics")
    assert remedy == "copied the statistics of the layers that they follow, as before each evaluation"
    assert accuracy(module.eval().average, shifted()) > 0.95
    assert top(report) == "batchnorm-stale-statistics"
    report = watch(bare, shifted(), BatchNormBatchSizeGuard(), **trainer)
    assert done(report) == []
    assert accuracy(bare.eval().average, shifted()) < 0.8


def test_moving_copies_bring() -> None:
    module = nn.ModuleDict({"net": mlp(depth=2, batchnorm=True), "mean": mlp(depth=2, batchnorm=True)})
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.BatchNorm1d)]
    optimizer = torch.optim.SGD(module["net"].parameters(), 0.1)
    copies = MovingCopies.of(module, layers, [optimizer])
    assert copies.left_behind() == []
    with torch.no_grad():
        module["net"](3.0 + randn(64, 8))
        for p in module.parameters():
            p.add_(0.1)
    assert copies.left_behind() == ["mean.1", "mean.4"]
    assert copies.bring(["mean.1", "mean.4"]) == 2
    assert copies.brought == {"mean.1": "net.1", "mean.4": "net.4"}
    assert all(map(torch.equal, module["net"].buffers(), module["mean"].buffers()))
    module["net"](randn(64, 8))
    assert copies.bring([]) == 2, "and once more before the next evaluation"
    assert all(map(torch.equal, module["net"].buffers(), module["mean"].buffers()))
    assert MovingCopies.of(module, layers, [torch.optim.SGD(module.parameters(), 0.1)]).bring([]) == 0


def cleared(*members: Any) -> list[str]:
    """What is said of gradients that were cleared, where the first four steps of each epoch are left out."""
    module = Classifier(mlp(), corrupt=lambda x, batch_idx: x * torch.nan if batch_idx < 4 else x)
    report = watch(module, blobs(), *members, max_epochs=4)
    assert any(r.startswith("left out") for r in done(report))
    assert report.outcome in ("learning", "converged")
    return [f.summary for f in report.findings if f.code == "gradients-not-cleared"]


def test_a_step_left_out_is_none_whose_gradients_were_cleared() -> None:
    assert cleared(OptimizerHealth(), GradientHealth(auto_remedy=True)) == []


@pytest.mark.parametrize("members", [lambda: [GradientHealth(auto_remedy=True), OptimizerHealth()], family])
def test_first_steps_left_out_are_none_whose_gradients_were_cleared(members: Any) -> None:
    assert cleared(*members()) == []


@pytest.mark.parametrize("members", [lambda: [PlateauWatch(auto_remedy=True)], family])
def test_no_rate_is_to_blame_where_no_loss_is_finite(members: Any) -> None:
    report = watch(Classifier(mlp(), corrupt=lambda x, _: x * torch.nan), blobs(), *members(), max_epochs=12)
    assert len([r for r in done(report) if r.startswith("reduced the learning rate")]) <= 1
    assert report.outcome == "non-finite"


class ClipsItself(Classifier):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1e-3)


class ByHand(Classifier):
    """Manual optimisation, of which no copy can be made."""

    def __init__(self, rate: float, depth: int = 2) -> None:
        super().__init__(mlp(depth=depth), rate=rate)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def raised_at(report: StallReport) -> list[int]:
    start = "raised the learning rate at step "
    return [int(r.removeprefix(start).split(",")[0]) for r in done(report) if r.startswith(start)]


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_rate_that_leads_nowhere_is_raised_early(by_hand: bool, seed: int) -> None:
    torch.manual_seed(seed)
    module = ByHand(1e-7) if by_hand else ClipsItself(mlp(), rate=0.1, optimizer="sgd")
    bare = copy.deepcopy(module)
    report = watch(module, blobs(), *family(), max_epochs=16, seed=seed)
    assert 0 < raised_at(report)[0] < 60
    assert accuracy(module.net) > 0.85
    report = watch(bare, blobs(), *family(auto_remedy=False), max_epochs=16, seed=seed)
    assert done(report) == []
    assert accuracy(bare.net) < 0.6
    assert top(report) == ("learning-rate-too-low" if by_hand else "clipping-too-tight")


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_first_steps_that_threw_the_weights_are_made_again(rate: float) -> None:
    module = ByHand(rate, depth=5)
    bare = copy.deepcopy(module)
    report = watch(module, blobs(), *family(), max_epochs=20)
    assert any(r.endswith(", and went back to the weights it began with") for r in done(report, "loss-plateau"))
    assert accuracy(module.net) > 0.9
    assert top(report) == "learning-rate-too-high"
    assert done(watch(bare, blobs(), *family(auto_remedy=False), max_epochs=20)) == []
    assert accuracy(bare.net) < 0.6


class Odd(Classifier):
    """Its `buffers` is no method."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(mlp(batchnorm=True), **settings)
        self.buffers = True


def lazy(**settings: Any) -> Classifier:
    return Classifier(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4)), **settings)


@pytest.mark.parametrize("members", [family, lambda: [PlateauWatch(auto_remedy=True)], lambda: family(False)])
@pytest.mark.parametrize("make", [lazy, Odd])
@pytest.mark.parametrize("rate", [1e-2, 10.0])
def test_nothing_of_ours_fails_on_an_odd_module(make: Any, members: Any, rate: float) -> None:
    report = watch(make(rate=rate), blobs(), *members())
    assert [m.failed for m in report.hub.members if m.failed is not None] == []
    assert rate > 1.0 or (report.outcome in ("learning", "converged") and report.causes == [])


# ---------------------------------------------------------------------- BatchNorm of few values


def test_slopes_through_running_statistics_are_centred_over_batches() -> None:
    """What many small batches let through adds up to nothing along a shift or a scale, as BatchNorm's own slopes do."""
    layer = nn.BatchNorm1d(4)
    instead = RunningInstead([layer])
    instead.install()
    instead.always = [layer]
    weight, sums, plain = randn(4), torch.zeros(2, 4), torch.zeros(2, 4)
    for i in range(400):
        x = randn(2, 4, seed=i).requires_grad_()
        value = x.detach().clone()
        out = layer(x)
        assert torch.equal(x, value)
        ((out + 1).square() * weight).sum().backward()  # wants another mean and another size
        assert x.grad is not None
        slope = 2 * (out.detach() + 1) * weight / (layer.running_var + layer.eps).sqrt()
        for found, total in ((x.grad, sums), (slope, plain)):
            total[0] += found.sum(0)
            total[1] += (found * out.detach()).sum(0)
        assert not layer.training
        instead.release()
        assert layer.training
    instead.remove()
    assert (sums.abs() < 0.1 * plain.abs()).all()


def test_a_slope_that_is_not_finite_is_not_remembered() -> None:
    layer = nn.BatchNorm1d(3)
    instead = RunningInstead([layer])
    instead.install()
    instead.always = [layer]
    for bad in (True, False):
        x = randn(2, 3).requires_grad_()
        (layer(x).sum() * (math.inf if bad else 1.0)).backward()
        instead.release()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("again", [False, True])
def test_a_net_learns_from_two_pictures_a_step(again: bool) -> None:
    """With the block run a second time in the backward pass, too."""

    class Pairs(Classifier):
        def __init__(self) -> None:
            flat = nn.Sequential(
                nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32)
            )
            super().__init__(nn.Sequential(nn.Linear(8, 16), flat, nn.ReLU(), nn.Linear(32, 4)), rate=3e-3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.net:  # type: ignore[attr-defined]
                block = again and isinstance(layer, nn.Sequential)
                x = checkpoint(layer, x, use_reentrant=False) if block else layer(x)
            return x

    scores = []
    for remedy in (False, True):
        torch.manual_seed(0)
        module = Pairs()
        report = watch(module, blobs(256, batch_size=2), BatchNormBatchSizeGuard(auto_remedy=remedy), max_epochs=2)
        assert bool(done(report, "batchnorm-small-batch")) == remedy
        assert not any(m.failed for m in report.hub.members)
        scores.append(accuracy(module.eval()))
    assert scores[1] > max(0.9, scores[0])
