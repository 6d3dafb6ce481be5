"""Losses written by hand, smoothed, weighted or multiplied: what a constant predictor would reach on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import StallReport
from lightning_stall.measure.by_hand import DIFFERENCE, Difference, LossNotes
from lightning_stall.measure.losses import SeenLoss, recognise
from lightning_stall.testing import Classifier, blobs, mlp, watch

Loss = Callable[[Tensor, Tensor], Tensor]
ROWS = 256
CLASSES = 4


def table() -> tuple[Tensor, Tensor]:
    """Targets of shape (N, 1) with a mean and a spread that are not 0 and 1, and a tail on one side."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 6, generator=g)
    return x, 3.0 + (x[:, :1] - x[:, 1:2] * x[:, 2:3]).exp().clamp_max(9.0)


def numbers() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*table()), batch_size=32, shuffle=True)


class Regressor(LightningModule):
    """A regression by a loss given as a function of (prediction, target)."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        self.net = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Named(Classifier):
    """A classifier by a loss given as a function of (logits, classes)."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(mlp(), rate=1e-3)
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)


def looked(module: LightningModule, data: DataLoader[Any], **trainer: Any) -> StallReport:
    """Two epochs: every label is counted equally often."""
    report = watch(module, data, max_epochs=2, **trainer)
    assert report.failed is None, report.failed
    return report


def baseline(loss: Loss, **trainer: Any) -> float | None:
    found: float | None = looked(Regressor(loss), numbers(), **trainer).hub.baseline
    return found


def variance() -> float:
    return float(table()[1].var(correction=0))


def deviation() -> float:
    y = table()[1]
    return float((y - y.median()).abs().mean())


# ------------------------------------------------------------------------------------------------------- differences


def product(p: Tensor, y: Tensor) -> Tensor:
    d = p - y
    return (d * d).mean()


SQUARES: dict[str, Loss] = {
    "(p - y) ** 2": lambda p, y: ((p - y) ** 2).mean(),
    "torch.mean": lambda p, y: torch.mean((p - y) ** 2),
    "target first, square": lambda p, y: (y - p).square().mean(),
    "d * d": product,
    "torch.sub, pow": lambda p, y: torch.sub(p, y).pow(2).mean(),
    "torch.square": lambda p, y: torch.square(p - y).mean(),
}


@pytest.mark.parametrize("name", SQUARES)
def test_squares_by_hand_have_the_variance_of_the_targets(name: str) -> None:
    report = looked(Regressor(SQUARES[name]), numbers())
    assert report.hub.baseline == pytest.approx(variance(), rel=1e-4)
    assert report.hub.labels.kind == "mse"
    assert report.hub.labels.floor == 0.0
    assert report.hub.labels.factor == 1.0


ABSOLUTES: dict[str, Loss] = {
    "(p - y).abs()": lambda p, y: (p - y).abs().mean(),
    "target first": lambda p, y: torch.abs(y - p).mean(),
    "F.l1_loss": F.l1_loss,
    "F.l1_loss, named": lambda p, y: F.l1_loss(input=p, target=y),
    "nn.L1Loss": nn.L1Loss(),
}


@pytest.mark.parametrize("name", ABSOLUTES)
def test_absolutes_have_the_deviation_from_the_median(name: str) -> None:
    report = looked(Regressor(ABSOLUTES[name]), numbers())
    assert report.hub.baseline == pytest.approx(deviation(), rel=1e-4)
    assert report.hub.labels.kind == "l1"


@pytest.mark.parametrize("loss", [lambda p, y: 0.5 * F.mse_loss(p, y), lambda p, y: (p - y).pow(2).mean() / 2])
def test_half_a_loss_has_half_the_variance(loss: Loss) -> None:
    report = looked(Regressor(loss), numbers())
    assert report.hub.baseline == pytest.approx(0.5 * variance(), rel=1e-3)
    assert report.hub.labels.factor == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("loss", [lambda p, y: ((p - y) ** 2).mean(), F.mse_loss, lambda p, y: 0.5 * F.mse_loss(p, y)])
def test_accumulated_batches_change_nothing(loss: Loss) -> None:
    assert baseline(loss, accumulate_grad_batches=2) == pytest.approx(baseline(loss), rel=1e-3)


NO_LEVEL: dict[str, Loss] = {
    "a sum": lambda p, y: ((p - y) ** 2).sum(),
    "a built-in sum": lambda p, y: F.mse_loss(p, y, reduction="sum"),
    "with something else": lambda p, y: F.mse_loss(p, y) + p.exp().mean(),
    "with something else by hand": lambda p, y: ((p - y) ** 2).mean() + 0.1 * p.sigmoid().mean(),
    "a cube": lambda p, y: (p - y).abs().pow(3).mean(),
    "shapes that broadcast": lambda p, y: ((p - y[:, 0]) ** 2).mean(),
}


@pytest.mark.parametrize("name", NO_LEVEL)
def test_what_no_constant_can_be_measured_by(name: str) -> None:
    assert baseline(NO_LEVEL[name]) is None


def test_a_factor_that_changes_leaves_no_level() -> None:
    steps = iter(range(10_000))
    report = looked(Regressor(lambda p, y: (1.0 + 0.5 * next(steps)) * ((p - y) ** 2).mean()), numbers())
    assert report.hub.labels.baseline() is None


# ----------------------------------------------------------------------------------------------------------- classes


def entropy(share: Tensor) -> float:
    return float(-torch.xlogy(share, share).sum())


def shares() -> Tensor:
    classes = blobs().dataset.tensors[1]  # type: ignore[attr-defined]
    return torch.bincount(classes, minlength=CLASSES).double() / len(classes)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_smoothed_labels(smoothing: float) -> None:
    report = looked(Named(lambda z, y: F.cross_entropy(z, y, label_smoothing=smoothing)), blobs())
    smoothed = (1 - smoothing) * shares() + smoothing / CLASSES
    one = torch.full((CLASSES,), smoothing / CLASSES, dtype=torch.float64)
    one[2] += 1 - smoothing
    assert report.hub.baseline == pytest.approx(entropy(smoothed), rel=1e-4)
    assert report.hub.labels.floor == pytest.approx(entropy(one), rel=1e-4)


def test_smoothed_labels_as_a_module_and_a_share_of_a_loss() -> None:
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    report = looked(Named(lambda z, y: 3.0 * criterion(z, y)), blobs())
    assert report.hub.baseline == pytest.approx(3.0 * entropy(0.8 * shares() + 0.05), rel=1e-3)
    assert report.hub.labels.floor == pytest.approx(3.0 * entropy(torch.tensor([0.85, 0.05, 0.05, 0.05])), rel=1e-3)


def test_weighted_classes() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 6.0])
    report = looked(Named(lambda z, y: F.cross_entropy(z, y, weight=weight)), blobs())
    weighted = shares() * weight
    assert report.hub.baseline == pytest.approx(entropy(weighted / weighted.sum()), rel=1e-4)
    assert report.hub.labels.floor == 0.0


def test_a_sum_of_smoothed_labels_has_no_level() -> None:
    module = Named(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, reduction="sum"))
    assert looked(module, blobs()).hub.baseline is None


# ------------------------------------------------------------------------------------------------- what a note holds


def seen(loss: Loss, p: Tensor, y: Tensor) -> SeenLoss | None:
    with LossNotes():
        made = loss(p, y)
    return recognise(made)


@pytest.mark.parametrize("loss", [*SQUARES.values(), *ABSOLUTES.values()])
def test_which_of_the_two_is_the_target(loss: Loss) -> None:
    p, y = torch.randn(8, 1, requires_grad=True), torch.randn(8, 1)
    found = seen(loss, p, y)
    assert found is not None
    assert torch.equal(found.target, y)
    assert torch.equal(found.prediction, p)
    assert torch.allclose(found.value(), loss(p, y))
    assert recognise(loss(p, y)) is None, "and the graph alone does not tell"


@pytest.mark.parametrize("shape", [(8,), (1,), ()])
def test_shapes_that_broadcast_are_not_noted(shape: tuple[int, ...]) -> None:
    p, y = torch.randn(8, 1, requires_grad=True), torch.randn(shape)
    assert seen(lambda p, y: ((p - y) ** 2).mean(), p, y) is None


def test_two_predictions_are_not_noted() -> None:
    p, q = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    assert seen(lambda p, q: ((p - q) ** 2).mean(), p, q) is None
    assert seen(lambda p, q: ((p - q.detach()) ** 2).mean(), p, q) is not None


def test_a_product_of_two_differences_is_no_square() -> None:
    p, y = torch.randn(8, requires_grad=True), torch.randn(8)
    assert seen(lambda p, y: ((p - y) * (p - 2 * y)).mean(), p, y) is None
    assert seen(lambda p, y: ((p - y) ** 4).mean(), p, y) is None


ODD: list[Callable[[Tensor], Any]] = [
    lambda p: p - 1,
    lambda p: 1.5 - p,
    lambda p: torch.sub(p, 2),
    lambda p: torch.sub(p, p.detach(), alpha=2),
    lambda p: torch.sub(input=p, other=p.detach()),
    lambda p: torch.rsub(p, 1),
    lambda p: p.detach() - 1,
    lambda p: p - torch.arange(4),
    lambda p: torch.arange(4) - torch.arange(4),
    lambda p: torch.arange(4) - 1,
    lambda p: F.l1_loss(p, torch.arange(4)),
    lambda p: F.l1_loss(p.detach(), p.detach()),
    lambda p: F.l1_loss(p, p.detach(), reduction="none"),
    lambda p: F.cross_entropy(p, torch.tensor(1), label_smoothing=0.1),
    lambda p: F.cross_entropy(p, p.detach().softmax(0), label_smoothing=0.1),
    lambda p: F.cross_entropy(p.detach(), torch.tensor(1), label_smoothing=0.1),
]


@pytest.mark.parametrize("what", ODD)
def test_odd_things_are_done_as_ever(what: Callable[[Tensor], Any]) -> None:
    p = torch.randn(4, requires_grad=True)
    with LossNotes():
        made = what(p)
    assert torch.equal(made, what(p))


class Opaque:
    """Answers every function of torch with a word, as a lazy tensor might with a plan."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> str:
        return "planned"


@pytest.mark.parametrize("loss", [F.l1_loss, F.cross_entropy, torch.sub])
def test_what_is_no_tensor_is_passed_on(loss: Any) -> None:
    with LossNotes():
        settings = {"label_smoothing": 0.1} if loss is F.cross_entropy else {}
        assert loss(Opaque(), torch.tensor([1]), **settings) == "planned"


def test_an_int_target_is_a_target() -> None:
    p = torch.randn(4, requires_grad=True)
    with LossNotes():
        off = p - torch.arange(4)
    noted = off.grad_fn.metadata[DIFFERENCE]
    assert isinstance(noted, Difference)
    assert noted.target.tolist() == [0, 1, 2, 3]


def test_a_users_error_is_the_users() -> None:
    with LossNotes(), pytest.raises(RuntimeError, match="must match the size"):
        torch.randn(3, requires_grad=True) - torch.randn(4)


# ------------------------------------------------------------------------------------------------- what it costs a run


@pytest.mark.parametrize(
    ("loss", "noted"),
    [(F.mse_loss, False), (lambda p, y: 0.5 * F.mse_loss(p, y), False), (SQUARES["d * d"], True), (F.l1_loss, True)],
)
def test_notes_end_where_the_graph_tells(loss: Loss, noted: bool) -> None:
    assert (looked(Regressor(loss), numbers()).hub.level.notes is not None) == noted


def test_notes_end_after_four_steps() -> None:
    report = watch(Regressor(F.mse_loss), numbers(), max_steps=3)
    assert report.hub.level.notes is not None
    assert watch(Regressor(F.mse_loss), numbers(), max_steps=4).hub.level.notes is None


def test_a_compiled_module_is_left_alone() -> None:
    module = Regressor(SQUARES["d * d"])
    module.net = torch.compile(module.net, backend="eager")
    report = watch(module, numbers(), max_steps=2)
    assert report.hub.level.notes is None
    assert not report.hub.labels.noted


@pytest.mark.parametrize("name", ["F.l1_loss", "d * d"])
def test_weights_are_bitwise_those_of_a_run_without(name: str, make_trainer: Callable[..., Trainer]) -> None:
    loss, weights = {**ABSOLUTES, **SQUARES}[name], []
    for callbacks in ([], [StallReport(table=False)]):
        seed_everything(0, verbose=False)
        module = Regressor(loss)
        make_trainer(callbacks, max_epochs=3).fit(module, numbers())
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def picked(logits: Tensor, y: Tensor, how: str) -> Tensor:
    logs = F.log_softmax(logits, dim=1)
    if how == "gather":
        return -logs.gather(1, y[:, None]).mean()
    if how == "gather, then squeezed":
        return (-logs.gather(1, y[:, None]).squeeze(1)).mean()
    if how == "over places":
        return -logits.view(4, 6, 3).log_softmax(-1).gather(-1, y.view(4, 6, 1)).mean()
    if how == "log-sum-exp":
        return (logits.logsumexp(-1) - logits.gather(1, y[:, None])[:, 0]).mean()
    return -logs[torch.arange(len(y)), y].mean()


@pytest.mark.parametrize("how", ["gather", "gather, then squeezed", "index", "over places", "log-sum-exp"])
def test_a_likelihood_picked_out_by_hand_is_a_cross_entropy(how: str) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(24, 3, generator=g, requires_grad=True)
    y = torch.randint(3, (24,), generator=g)
    loss = picked(logits, y, how)
    seen = recognise(loss)
    assert seen is not None
    assert seen.kind == "cross-entropy"
    assert seen.mean
    assert torch.equal(seen.target, y)
    assert torch.allclose(seen.value(), loss)


@pytest.mark.parametrize(
    "what",
    [
        "without the minus",
        "summed",
        "minus a squared error",
        "probabilities",
        "along the batch",
        "of other logits",
    ],
)
def test_what_looks_like_a_likelihood_is_none(what: str) -> None:
    logits = torch.randn(8, 3, requires_grad=True)
    y = torch.arange(8) % 3
    loss = {
        "without the minus": lambda: F.log_softmax(logits, 1).gather(1, y[:, None]).mean(),
        "summed": lambda: -F.log_softmax(logits, 1).gather(1, y[:, None]).sum(),
        "minus a squared error": lambda: -F.mse_loss(logits, torch.zeros(8, 3)),
        "probabilities": lambda: -F.softmax(logits, 1).gather(1, y[:, None]).mean(),
        "along the batch": lambda: -F.log_softmax(logits, 1).gather(0, y[:, None]).mean(),
        "of other logits": lambda: (logits.logsumexp(-1) - (2 * logits).gather(1, y[:, None])[:, 0]).mean(),
    }[what]()
    assert recognise(loss) is None


def test_smoothed_labels_of_which_class_0_is_padding() -> None:
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(40, 4, generator=g, requires_grad=True), torch.randint(4, (40,), generator=g)
    with LossNotes():
        loss = F.cross_entropy(logits, y, label_smoothing=0.1, ignore_index=0)
    seen = recognise(loss)
    assert seen is not None
    assert torch.allclose(seen.value(), loss)


# ------------------------------------------------------------------------------------------ summed over features

SUMMED: dict[str, Any] = {
    "over features, then the mean": lambda out, y: ((out - y) ** 2).sum(-1).mean(),
    "the mean over the batch": lambda out, y: (out - y).square().sum(1).mean(0),
    "of everything, by the batch": lambda out, y: ((out - y) ** 2).sum() / len(y),
    "a built-in, by the batch": lambda out, y: F.mse_loss(out, y, reduction="sum") / len(y),
    "a built-in, not reduced": lambda out, y: F.mse_loss(out, y, reduction="none").sum(1).mean(),
    "half of it": lambda out, y: 0.5 * ((out - y) ** 2).sum(1).mean(),
}


@pytest.mark.parametrize("name", SUMMED)
def test_a_mean_over_samples_of_sums_over_features(name: str) -> None:
    torch.manual_seed(0)
    out, y = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    with LossNotes():
        loss = SUMMED[name](out, y)
    seen = recognise(loss)
    assert seen is not None
    assert (seen.kind, seen.mean, seen.scale) == ("mse", True, 5.0)
    value = seen.value()
    assert value is not None
    assert float(loss.detach()) == pytest.approx(float(value) * 5.0 * (0.5 if name == "half of it" else 1.0), rel=1e-5)


def test_sums_that_another_batch_scales_otherwise() -> None:
    out, y = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    weights = torch.rand(8, 1)
    with LossNotes():
        whole, by_column = ((out - y) ** 2).sum(), ((out - y) ** 2).sum(0).mean()
        weighed = (weights * (out - y) ** 2).sum(1).mean()
    seen = recognise(whole)
    assert seen is not None
    assert not seen.mean
    assert recognise(by_column) is None
    assert recognise(weighed) is None
