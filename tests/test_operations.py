"""Operations that have spoilt several steps are given only what they are defined for; all else comes out as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import GradientHealth
from lightning_stall.measure.instability import find
from lightning_stall.remedies_operations import OperationGuard
from lightning_stall.testing import blobs, nan_batch, watch

FINE = torch.tensor([[0.3, 1.7, 2.0, 0.9], [0.5, 0.25, 4.0, 1.0]])
INF = math.inf

CASES: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "log": (lambda x: x.log(), [0.0, -1.0, 1.0, 2.0]),
    "log2": (torch.log2, [0.0, -1.0, 1.0, 2.0]),
    "log10": (lambda x: x.log10(), [0.0, 1.0, 1.0, 2.0]),
    "log1p": (torch.log1p, [-1.0, -2.0, 1.0, 2.0]),
    "sqrt": (lambda x: (x * 1).sqrt(), [-1.0, 1.0, 1.0, 2.0]),
    "rsqrt": (torch.rsqrt, [0.0, 1.0, 1.0, 2.0]),
    "div": (lambda x: (x + 1) / x, [0.0, 1.0, -1.0, 2.0]),
    "div by function": (lambda x: torch.div(x, x), [0.0, 1.0, -1.0, 2.0]),
    "reciprocal": (lambda x: 1 / x, [0.0, 1.0, -1.0, 2.0]),
    "mul": (lambda x: x.exp() * x, [-INF, 1.0, -1.0, 2.0]),
    "exp": (lambda x: x.exp(), [100.0, 1.0, -1.0, 2.0]),
    "expm1": (torch.expm1, [100.0, 1.0, -1.0, 2.0]),
    "pow": (lambda x: x**-1.5, [0.0, 1.0, 3.0, 2.0]),
    "softmax": (lambda x: F.softmax(x, -1), [-INF, -INF, -INF, -INF]),
    "softmax of a tensor": (lambda x: x.softmax(dim=-1), [-INF, -INF, -INF, -INF]),
}
KINDS = {"div by function": "Div", "softmax of a tensor": "Softmax", "log1p": "Log1P"}


def guard(name: str) -> OperationGuard:
    made = OperationGuard()
    kind = KINDS.get(name, name.capitalize()) + "Backward0"
    assert made.knows(kind)
    strategy: Any = type("Strategy", (), {"training_step": lambda self: None})()
    made.add(kind, strategy)
    return made


@pytest.mark.parametrize("name", CASES)
def test_what_is_fine_comes_out_bit_by_bit(name: str) -> None:
    operation, _ = CASES[name]
    plain, kept = FINE.clone().requires_grad_(), FINE.clone().requires_grad_()
    expected = operation(plain)
    with guard(name):
        found = operation(kept)
    expected.sum().backward()
    found.sum().backward()
    assert torch.equal(found, expected)
    assert torch.equal(kept.grad, plain.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_what_it_is_not_defined_for_is_left_out(name: str) -> None:
    operation, bad = CASES[name]
    rows = torch.tensor([bad, FINE[0].tolist()]).requires_grad_()
    assert not operation(rows).isfinite().all()
    with guard(name):
        out = operation(rows)
    assert out.isfinite().all()
    out.sum().backward()
    if name != "mul":  # the exponent of minus infinity is another operation's
        assert rows.grad is not None
        assert rows.grad.isfinite().all()


def test_an_exponent_that_is_too_large_may_come_down() -> None:
    x = torch.tensor([100.0, 0.0]).requires_grad_()
    with guard("exp"):
        torch.log(1 + x.exp()).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([1.0, 0.5])


def test_what_a_guard_does_not_understand_is_called_as_it_was() -> None:
    with guard("div"):
        assert torch.equal(torch.tensor([4, 6]) / 2, torch.tensor([2.0, 3.0]))
    with guard("pow"):
        assert torch.equal(torch.tensor([2.0]) ** torch.tensor([0.5]), torch.tensor([2.0]) ** 0.5)


def test_nought_times_infinity_is_named() -> None:
    logits = torch.tensor([[0.0, -INF, 1.0]]).requires_grad_()
    log_p = (logits * 1.0).log_softmax(-1)
    found = find(-(log_p.exp() * log_p).sum())
    assert found is not None
    assert found.operation == "0 times infinity"
    assert find((torch.ones(3, requires_grad=True).exp() * torch.ones(3, requires_grad=True)).sum()) is None


class Sharp(LightningModule):
    """A softmax written out, of cosines over a small temperature."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.written_out = written_out
        self.body, self.prototypes = nn.Linear(8, 16), nn.Parameter(torch.randn(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=1) @ F.normalize(self.prototypes, dim=1).T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self(batch[0]) / 0.004
        if not self.written_out:
            return F.cross_entropy(z, batch[1])
        e = torch.exp(z)
        return -(e / e.sum(1, keepdim=True)).gather(1, batch[1][:, None]).log().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def clusters() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    y = torch.randint(4, (512,), generator=g)
    return 2 * torch.randn(4, 8, generator=g)[y] + 0.5 * torch.randn(512, 8, generator=g), y


@pytest.mark.parametrize("act", [False, True])
def test_a_run_that_no_step_of_would_count_learns(act: bool) -> None:
    torch.manual_seed(0)
    module, (x, y) = Sharp(True), clusters()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    report = watch(module, loader, GradientHealth(auto_remedy=act), max_epochs=10)
    assert report.causes[0].code == "unstable-operation"
    done = [f.remedy for f in report.findings if f.remedy and "where it is defined" in f.remedy]
    if not act:
        assert not done
        return
    assert any("`exp`" in text for text in done)
    assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
    with torch.no_grad():
        assert float((module(x).argmax(1) == y).float().mean()) > 0.9


def test_the_strategy_is_put_back() -> None:
    strategy: Any = type("Strategy", (), {"training_step": lambda self: torch.zeros(1).log()})()
    made = OperationGuard()
    made.add("LogBackward0", strategy)
    assert strategy.training_step().isfinite()
    made.remove()
    assert strategy.training_step().isinf()
    assert "training_step" not in vars(strategy)


class Unit(nn.Module):
    """Divides each row by its length, and hands it to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x / x.norm(dim=1, keepdim=True))
        return out


class Rows(LightningModule):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.net: nn.Module = nn.Sequential(nn.Identity(), Unit() if inside else nn.Linear(8, 4))
        self.inside = inside

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0] if self.inside else batch[0] / batch[0].norm(dim=1, keepdim=True)
        return F.cross_entropy(self.net(x), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize(("inside", "where"), [(True, "net.1 (Unit)"), (False, "net.0 (Identity)")])
def test_what_is_made_before_the_first_weight_is_traced_to_its_place(inside: bool, where: str) -> None:
    torch.manual_seed(0)
    x, y = clusters()
    x[5] = 0.0
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    report = watch(Rows(inside), loader, GradientHealth(), max_epochs=1)
    assert report.causes[0].code == "unstable-operation"
    assert where in report.causes[0].summary
    assert ("`div` makes" in report.causes[0].summary) != inside


def test_a_number_that_is_put_in_is_no_operation() -> None:
    report = watch(nan_batch(), blobs(), GradientHealth(), max_epochs=2)
    assert [c.code for c in report.causes] == ["nonfinite-loss"]
