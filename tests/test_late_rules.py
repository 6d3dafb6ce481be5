"""Rules that came last, each on a training that is ill with just that, and on one that only looks like it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import (
    GradientHealth,
    InputHealth,
    LossCheck,
    OptimizerHealth,
    PlateauWatch,
    StallReport,
)
from lightning_stall.finding import Finding
from lightning_stall.measure.weights import untrained
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def found(report: StallReport, code: str) -> list[Finding]:
    return [f for f in report.findings if f.code == code]


def told(report: StallReport, code: str) -> list[Finding]:
    return [f for f in found(report, code) if f.speaks]


def top(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


def rows(*tensors: Tensor, batch_size: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=True)


# --------------------------------------------------------------------------------------------- what happens to gradients


class Hooked(Classifier):
    """Does something to the gradients between the backward pass and the step."""

    def __init__(self, hook: Callable[[Hooked, torch.optim.Optimizer], None], **settings: Any) -> None:
        super().__init__(mlp(), **settings)
        self.hook = hook

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.hook(self, optimizer)


def to_none(module: Hooked, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)


def to_zero(module: Hooked, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def log_the_norm(module: Hooked, optimizer: torch.optim.Optimizer) -> None:
    norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
    module.log("norm", torch.stack(norms).norm())


@pytest.mark.parametrize("hook", [to_none, to_zero])
def test_gradients_that_a_hook_clears_before_the_step(hook: Any) -> None:
    report = watch(Hooked(hook), blobs(), OptimizerHealth())
    (finding,) = told(report, "gradients-not-cleared")
    assert finding.step <= 8
    assert finding.severity == "critical"
    assert top(report) == "gradients-not-cleared"


def test_a_hook_that_only_logs() -> None:
    assert watch(Hooked(log_the_norm), blobs(), OptimizerHealth()).findings == []


def shrink(factor: float) -> Callable[[Hooked, torch.optim.Optimizer], None]:
    """The gradient of `factor / 2` times the squared weights."""

    def hook(module: Hooked, optimizer: torch.optim.Optimizer) -> None:
        for p in module.parameters():
            p.grad.add_(p.detach(), alpha=factor)

    return hook


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_penalty_in_a_hook_that_pulls_the_weights_to_0(optimizer: Any) -> None:
    report = watch(Hooked(shrink(5.0), optimizer=optimizer), blobs(), OptimizerHealth(), max_epochs=20)
    assert top(report) == "excess-regularization"
    assert "though the optimizer has no decay" in told(report, "excess-regularization")[0].summary
    assert told(report, "excess-regularization")[0].evidence["norm_left"] < 0.25


def test_a_little_penalty_in_a_hook() -> None:
    assert watch(Hooked(shrink(1e-4)), blobs(), OptimizerHealth(), max_epochs=20).findings == []


# -------------------------------------------------------------------------------------------- what no optimizer trains


class Loose(Classifier):
    """Its layers are tensors in a plain list; all that `self.parameters()` finds is a bias."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        g = torch.Generator().manual_seed(0)
        self.layers = [0.3 * torch.randn(8, 16, generator=g), 0.3 * torch.randn(16, 4, generator=g)]
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        first, last = (layer.requires_grad_() for layer in self.layers)
        return 0.05 * torch.tanh(x @ first) @ last + self.bias


def test_tensors_in_a_plain_list() -> None:
    report = watch(Loose(), blobs(), OptimizerHealth(), max_epochs=15)
    finding = told(report, "parameters-not-optimized")[0]
    assert top(report) == "parameters-not-optimized"
    assert finding.evidence["weights"] == 8 * 16 + 16 * 4
    assert finding.where == ("2 tensors that are no part of the LightningModule",)


def test_tensors_in_a_plain_list_are_known_at_step_16() -> None:
    report = watch(Loose(), blobs(), OptimizerHealth(), max_steps=16)
    (finding,) = found(report, "parameters-not-optimized")
    assert (finding.severity, finding.step) == ("info", 16)


class Slope(LightningModule):
    """Fits a curve and its slope, which takes the gradient by its inputs: those of the batch, or of its own."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.points = torch.linspace(-1, 1, 64)[:, None] if own else None
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = (batch if self.points is None else self.points).requires_grad_()
        y = self.net(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return F.mse_loss(slope, 2 * x.detach()) + F.mse_loss(y, x.detach() ** 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("own", [False, True])
def test_inputs_whose_gradient_is_wanted(own: bool) -> None:
    points = torch.linspace(-1, 1, 64)[:, None]
    report = watch(Slope(own), DataLoader([points], batch_size=None), OptimizerHealth(), max_epochs=200)
    assert report.outcome in ("learning", "converged")
    assert report.causes == []
    assert [f for f in report.findings if f.speaks] == []
    assert bool(found(report, "parameters-not-optimized")) == own, "what stands in the batch is no weight at all"


class CutOff(Classifier):
    """The head is trained on what a body of its own initialisation makes, and the body never hears of it."""

    def __init__(self, cut: bool) -> None:
        super().__init__(mlp(), rate=3e-3)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        self.net, self.cut = nn.Linear(2, 4), cut
        for layer in self.body[::2]:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        out: Tensor = self.net(h.data if self.cut else h)
        return out


def test_layers_that_data_cuts_off() -> None:
    module = CutOff(cut=True)
    assert not any(untrained(layer) for layer in module.body[::2]), (
        "by their weights alone they may come from elsewhere"
    )
    report = watch(module, blobs(), OptimizerHealth(), max_epochs=15)
    assert top(report) == "parameters-not-optimized"
    assert told(report, "parameters-not-optimized")[0].where == ("body.0", "body.2", "body.4")
    assert found(watch(CutOff(cut=False), blobs(), OptimizerHealth(), max_epochs=15), "parameters-not-optimized") == []


# ------------------------------------------------------------------------------------------------------ constant ids


class Words(LightningModule):
    """A bag of token ids, and perhaps another of what kind of text it is."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.kinds, self.head = nn.EmbeddingBag(20, 16), nn.Embedding(20, 16), nn.Linear(16, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, *more, y = batch
        h = self.bag(ids)
        for kind in more:
            h = h + self.kinds(kind).mean(1)
        return F.cross_entropy(self.head(h), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def texts(varying: int = 0) -> list[Tensor]:
    """Ids, of which the first `varying` places differ from text to text, and classes."""
    g = torch.Generator().manual_seed(0)
    ids = torch.full((512, 12), 7)
    ids[:, :varying] = torch.randint(20, (512, varying), generator=g)
    return [ids, torch.randint(4, (512,), generator=g)]


def test_token_ids_that_are_all_equal() -> None:
    report = watch(Words(), rows(*texts()), InputHealth())
    (finding,) = told(report, "constant-inputs")
    assert "every entry is 7" in finding.summary
    assert top(report) == "constant-inputs"


def test_token_ids_of_which_some_differ() -> None:
    assert found(watch(Words(), rows(*texts(varying=1)), InputHealth()), "constant-inputs") == []
    ids, y = texts()
    kinds = torch.randint(20, (512, 1), generator=torch.Generator().manual_seed(1))
    assert found(watch(Words(), rows(ids, kinds, y), InputHealth()), "constant-inputs") == []


# ----------------------------------------------------------------------------------- hidden states that are predictions


class Memory(LightningModule):
    """Predicts a number by the one unit of a recurrent layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.read = getattr(nn, kind)(3, 1, **({} if kind.endswith("Cell") else {"batch_first": True}))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if not self.kind.endswith("Cell"):
            return F.mse_loss(self.read(x)[0][:, -1], y)
        state = None
        for step in x.unbind(1):
            state = self.read(step, state)
        return F.mse_loss(state[0] if isinstance(state, tuple) else state, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def series(size: float) -> DataLoader[Any]:
    x = torch.randn(256, 6, 3, generator=torch.Generator().manual_seed(0))
    return rows(x, size * torch.tanh(x[:, -1, :1]))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell"])
def test_targets_beyond_a_hidden_state(kind: str) -> None:
    report = watch(Memory(kind), series(4.0), LossCheck(), max_epochs=2)
    (finding,) = told(report, "output-range-mismatch")
    assert finding.step == 1
    assert found(watch(Memory(kind), series(0.9), LossCheck(), max_epochs=2), "output-range-mismatch") == []


# ------------------------------------------------------------------------------------------------ nothing nonlinear


def stacked(between: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), between(), nn.Linear(16, 16), between(), nn.Linear(16, 4))


def test_a_leaky_relu_that_leaks_all() -> None:
    report = watch(Classifier(stacked(lambda: nn.LeakyReLU(1.0))), blobs(), LossCheck(), max_epochs=2)
    assert [(f.code, f.step) for f in report.findings] == [("missing-nonlinearity", 1)]
    assert not report.causes  # the task is one for a linear model, too


@pytest.mark.parametrize("between", [nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.Tanh])
def test_layers_with_something_between_them(between: Any) -> None:
    assert watch(Classifier(stacked(between)), blobs(), LossCheck(), max_epochs=2).findings == []


class Rounds(LightningModule):
    """Three rounds in which each of five nodes hears its neighbours, which are the same in every graph."""

    def __init__(self, act: nn.Module, alone: bool) -> None:
        super().__init__()
        self.act, self.alone = act, alone
        self.own = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.others = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)
        near = torch.eye(5).roll(1, 0) + torch.eye(5).roll(-1, 0)
        self.register_buffer("near", near / 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h, y = batch
        for own, others in zip(self.own, self.others, strict=True):
            heard = self.near @ others(h)
            h = self.act(heard if self.alone else own(h) + heard)
        return F.cross_entropy(self.head(h.mean(1)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        params = [*self.others.parameters(), *self.head.parameters(), *(() if self.alone else self.own.parameters())]
        return torch.optim.Adam(params, 1e-2)


def graphs() -> DataLoader[Any]:
    x, y = blobs().dataset.tensors  # type: ignore[attr-defined]
    return rows(x[:, None] + 0.1 * torch.randn(512, 5, 8, generator=torch.Generator().manual_seed(1)), y)


@pytest.mark.parametrize("alone", [True, False])
def test_rounds_of_messages_with_nothing_nonlinear(alone: bool) -> None:
    report = watch(Rounds(nn.Identity(), alone), graphs(), LossCheck(), max_epochs=2)
    assert [f.code for f in report.findings] == ["missing-nonlinearity"]
    assert watch(Rounds(nn.ReLU(), alone), graphs(), LossCheck(), max_epochs=2).findings == []


# ------------------------------------------------------------------------------------------------ several optimizers


class Halves(LightningModule):
    """Two optimizers, each with half of the net, stepped on one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = nn.Sequential(nn.Linear(8, 32), nn.ReLU()), nn.Linear(32, 4)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(F.cross_entropy(self.head(self.body(x)), y))
        first.step()
        second.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.body.parameters(), 1e-2), torch.optim.SGD(self.head.parameters(), 0.1)]


class Rivals(LightningModule):
    """A generator and its critic, each with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.critic = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        first, second = self.optimizers()
        second.zero_grad()
        made = self.maker(torch.randn_like(x))
        real = F.binary_cross_entropy_with_logits(self.critic(x), torch.ones(len(x), 1))
        fake = F.binary_cross_entropy_with_logits(self.critic(made.detach()), torch.zeros(len(x), 1))
        self.manual_backward(real + fake)
        second.step()
        first.zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(self.critic(made), torch.ones(len(x), 1)))
        first.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.maker.parameters(), 1e-3), torch.optim.Adam(self.critic.parameters(), 1e-3)]


def test_two_optimizers_on_one_loss_have_an_outcome() -> None:
    report = watch(Halves(), blobs(), OptimizerHealth(), PlateauWatch())
    assert report.hub.curve.n == 160
    assert report.outcome in ("learning", "converged")
    assert report.causes == []


def test_two_losses_have_none() -> None:
    report = watch(Rivals(), blobs(), OptimizerHealth(), PlateauWatch())
    assert report.hub.curve.n == 0
    assert report.outcome == "too early"
    assert report.causes == []


# ------------------------------------------------------------------------------------------------ lengths and ends


class Warmed(Classifier):
    """A schedule as long in steps as the run has epochs, or half as many again."""

    def __init__(self, schedule: Callable[[torch.optim.Optimizer], Any]) -> None:
        super().__init__(mlp(), rate=1e-2)
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def test_a_warm_up_ends_and_the_rate_stays() -> None:
    code = "learning-rate-decayed-early"
    up = Warmed(lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=15))
    down = Warmed(lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=15))
    flat = Warmed(lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=15))
    assert found(watch(up, blobs(), OptimizerHealth()), code) == []
    assert found(watch(flat, blobs(), OptimizerHealth()), code) == []
    assert found(watch(down, blobs(), OptimizerHealth()), code) != []


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_ends_in_mid_fall(seed: int) -> None:
    for steps, short in ((40, True), (400, False)):
        torch.manual_seed(seed)
        report = watch(healthy(rate=1e-3), blobs(), PlateauWatch(), seed=seed, max_steps=steps, max_epochs=-1)
        assert [f.severity for f in found(report, "training-too-short") if f.speaks] == ["warning"] * short


# ------------------------------------------------------------------------------------------------ chosen away


class Rooted(Classifier):
    """The square root of a feature where it has one, and 0 elsewhere; safe where 0 goes into the root there."""

    def __init__(self, safe: bool) -> None:
        super().__init__(mlp(), optimizer="sgd")
        self.scale, self.safe = nn.Linear(8, 8), safe

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale(x)
        root = torch.sqrt(torch.where(x > 0, x, 1.0)) if self.safe else torch.sqrt(x)
        out: Tensor = self.net(torch.where(x > 0, root, 0.0))
        return out


def test_a_root_of_a_negative_value_that_is_chosen_away() -> None:
    report = watch(Rooted(safe=False), blobs(), GradientHealth())
    finding = told(report, "unstable-operation")[0]
    assert finding.step == 1
    assert "the square root of a negative value" in finding.summary
    assert top(report) == "unstable-operation"
    assert found(watch(Rooted(safe=True), blobs(), GradientHealth()), "unstable-operation") == []


# --------------------------------------------------------------------------------------- from layer to layer, less and less


def deep(layers: int, activation: Callable[[], nn.Module], norm: bool) -> Classifier:
    stack: list[nn.Module] = []
    for i in range(layers):
        stack += [nn.Linear(8 if i == 0 else 16, 16), *([nn.LayerNorm(16)] if norm else []), activation()]
    return Classifier(nn.Sequential(*stack, nn.Linear(16, 4)), rate=1e-3)


def test_gradients_that_halve_from_layer_to_layer() -> None:
    """Too little for the limit between both ends, yet nothing is learnt, and each layer gets less than the next."""
    from lightning_stall.verdicts.gradients import DECAY, LEAST, vanished

    halved = [(f"layer {i}", 2.0 ** (i - 11)) for i in range(12)]
    slight = [math.log10(0.5 * (DECAY + LEAST))] * 3
    assert vanished(slight, halved, slight[0], unlearnt=False) is None
    assert vanished(slight, halved, slight[0], unlearnt=True) is not None
    assert vanished(slight, halved[::-1], slight[0], unlearnt=True) is None  # not from layer to layer
    assert vanished(slight, halved[:5], slight[0], unlearnt=True) is None  # not over many layers
    assert vanished([math.log10(2 * LEAST)] * 3, halved, slight[0], unlearnt=True) is None


def test_half_a_task_learnt_by_the_last_layers_alone() -> None:
    """The loss comes to rest at half of what there is; what the layers at the input get is a millionth and less."""
    report = watch(deep(14, nn.Sigmoid, norm=False), blobs(), GradientHealth(), PlateauWatch(), max_epochs=12)
    assert found(report, "vanishing-gradients")[0].evidence["strength"] > 0.9
    assert top(report) == "vanishing-gradients"
    assert found(watch(deep(14, nn.Tanh, norm=True), blobs(), GradientHealth()), "vanishing-gradients") == []


# ------------------------------------------------------------------------------------------------ a line would do better


class Smoother(LightningModule):
    """Convolutions as wide as `kernel`."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 8, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv1d(8, 1, kernel, padding=kernel // 2)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("seed", range(2))
def test_a_model_that_sees_less_than_a_line_does(seed: int) -> None:
    """The slope of a drift, which a single place of it says nothing of."""
    drift = torch.cumsum(torch.randn(320, 1, 48, generator=torch.Generator().manual_seed(seed)), -1)
    data = rows(drift, F.pad(drift[..., 1:] - drift[..., :-1], (1, 0)))
    narrow = watch(Smoother(1), data, PlateauWatch(), seed=seed, max_epochs=24)
    assert top(narrow) == "insufficient-capacity"
    wide = watch(Smoother(5), data, PlateauWatch(), seed=seed, max_epochs=24)
    assert "insufficient-capacity" not in [f.code for f in wide.findings if f.speaks]
