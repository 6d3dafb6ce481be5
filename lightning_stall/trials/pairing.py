"""Whether a model has learnt anything at all, for a loss that is not known: does it mind whose targets it is given?

A constant predictor, and a model whose error compares every sample with every target, have the same loss on a batch
whose targets were dealt out anew; one that has learnt which target goes with which sample has a larger one. This needs
neither the loss's formula nor its scale. It is asked of a copy, on batches that were kept, without dropout.

Targets are the fields of a batch that flow into the loss and into no layer with weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_stall.trials.batches import Kept, cloned, replaced, tensors
from lightning_stall.trials.sandbox import SEED, DeclinedError, Sandbox, apart, why_not

FIRST = 100  # optimizer steps before which nothing is asked
AGAIN = 1.5  # times the steps of the last look, after which one that found nothing is made again
BATCHES = 6
DEALS = 2  # orders of the targets, a batch
LEAST = 64  # samples in all
SURE = 3.0  # standard errors
NOTHING = 0.01  # of the loss, that targets of others may cost and nothing be learnt
SOME = 0.15
TELLING = 0.25  # share of the samples, of which another's target must differ from their own
EXACT = 1e-3

FEW = 4  # samples that must have met each with each
LAYERS = frozenset({"linear", "embedding", "embedding_bag", "bilinear", "matmul", "addmm", "bmm", "mm", "einsum"})


@dataclass(frozen=True)
class Pairing:
    """Mean loss with each sample's own targets and with those of others, and the standard error of the difference."""

    own: float
    others: float
    error: float
    samples: int
    crossed: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # shapes that met: every target, every prediction
    changed: float = 1.0  # share of the samples whose targets another's differ from

    @property
    def share(self) -> float:
        """What others' targets cost, over the loss with them."""
        return (self.others - self.own) / max(abs(self.others), abs(self.own), 1e-30)

    @property
    def exact(self) -> bool:
        """Whether it makes no difference at all whose targets they are."""
        return abs(self.others - self.own) + SURE * self.error < EXACT * max(abs(self.others), abs(self.own))

    @property
    def reversed(self) -> bool:
        """Whether others' targets suit the model better than its own samples': it unlearns what it is shown."""
        return self.samples >= LEAST and self.share < -SOME and self.own - self.others > SURE * self.error

    @property
    def sure(self) -> bool:
        """Whether others' targets cost more than chance can."""
        return self.samples >= LEAST and self.others - self.own > SURE * self.error

    @property
    def learnt(self) -> bool | None:
        """Whether something was learnt; None where the numbers do not tell."""
        if self.samples < LEAST:
            return None
        if self.sure and self.share > SOME:
            return True
        # where nearly all have the same target, another's tells nothing
        return False if self.changed > TELLING and (self.share < NOTHING or not self.sure) else None


@dataclass
class PairingWatch:
    """Looks when the outcome asks, seldom, and keeps the answer."""

    trials: Any
    found: Pairing | None = None
    at: int = 0  # optimizer step of the last look
    looks: int = 0
    declined: bool = False

    @property
    def open(self) -> bool:
        """Whether batches must be kept for another look."""
        return not self.declined and (self.found is None or self.found.learnt is not True)

    def learnt(self, hub: Any) -> bool | None:
        """Whether the model minds whose targets it gets, from a new look where one is due; None where that is not known."""
        if self.declined or hub.step < FIRST:
            return None
        due = hub.step >= AGAIN * self.at or (hub.ending and hub.step > self.at)
        if self.open and due and (hub.checking or hub.ending):  # it waits for the device
            self.at = hub.step
            self.looks += 1
            kept = list(self.trials.kept.of_one_epoch())[-BATCHES:]
            answer = pairing(hub.trainer, hub.module, kept) if kept else None
            self.declined = kept != [] and answer is None
            self.found = answer
        return self.found.learnt if self.found is not None else None

    def minds(self, hub: Any) -> bool:
        """Whether the model minds at all, however little, whose targets it gets."""
        self.learnt(hub)
        return self.found is not None and self.found.sure


def pairing(trainer: Any, module: Any, kept: Sequence[Kept]) -> Pairing | None:
    """Ask it of a copy, with these batches; None where it cannot be asked, or no field is a target."""
    if why_not(trainer, module) is not None:
        return None

    def ask() -> Pairing | None:
        box = Sandbox(trainer, module)
        with box.undisturbed():
            targets, crossed = find_targets(box, kept[0].batch, kept[0].index)
            if targets is None:
                return None
            own, others, changed, samples = [], [], 0, 0
            for k in kept:
                rows = len(tensors(k.batch)[targets[0]])
                if rows < 2:
                    continue
                samples += rows
                own.append(loss_of(box, k.batch, k.index))
                deals = [_dealt(k.batch, targets, rows, seed) for seed in range(DEALS)]
                others.append(fmean(loss_of(box, batch, k.index) for batch in deals))
                changed += _changed(tensors(k.batch), tensors(deals[0]), targets)
        if len(own) < 3 or not all(map(math.isfinite, (*own, *others))):
            return None
        error = stdev(b - a for a, b in zip(own, others, strict=True)) / math.sqrt(len(own))
        return Pairing(fmean(own), fmean(others), error, samples, crossed, changed / samples)

    answer = apart(module, ask)
    return None if isinstance(answer, DeclinedError) else answer


def computed_targets(trainer: Any, module: Any, batch: Any, index: int) -> bool:
    """Whether some field of this batch flows into the loss of a copy and into none of its layers."""
    if why_not(trainer, module) is not None:
        return False

    def ask() -> bool:
        box = Sandbox(trainer, module)
        with box.undisturbed():
            return find_targets(box, batch, index)[0] is not None

    answer = apart(module, ask)
    return answer is True


def loss_of(box: Sandbox, batch: Any, index: int, seed: int = 0) -> float:
    """The copy's loss on a clone of this batch, its random numbers drawn from a seed of their own."""
    torch.manual_seed(SEED + seed)
    return float(box.loss(cloned(batch), index).detach())


def _dealt(batch: Any, targets: Sequence[int], rows: int, seed: int) -> Any:
    """The batch with each sample's targets given to another, all of its targets to the same one."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    order = order.roll(1)[order.argsort()]  # once around, so that nobody keeps its own
    found = tensors(batch)
    return replaced(batch, {i: found[i].detach()[order.to(found[i].device)] for i in targets})


def _changed(before: Sequence[Tensor], after: Sequence[Tensor], targets: Sequence[int]) -> int:
    """How many samples have another target than before."""
    rows = [(before[i] != after[i].to(before[i].device)).reshape(len(before[i]), -1).any(1) for i in targets]
    return int(torch.stack(rows).any(0).sum())


# ---------------------------------------------------------------------- which fields are targets


def find_targets(box: Sandbox, batch: Any, index: int) -> tuple[list[int] | None, tuple[Any, Any] | None]:
    """Which of `tensors(batch)` reach the loss and no layer; None where there are none, or they are not one a sample.

    And the shapes of such a field and of a prediction that met each with each, where two did.
    """
    batch = cloned(batch)
    found = tensors(batch)
    flow = _Flow({id(t): frozenset({i}) for i, t in enumerate(found)}, list(found))
    torch.manual_seed(SEED)
    with flow:
        loss = box.loss(batch, index)
    targets = sorted(flow.of(loss) - flow.entered)
    if not targets or not flow.entered:
        return None, None
    rows = {len(found[i]) if found[i].ndim else 0 for i in targets}
    entering = {len(found[i]) if found[i].ndim else 0 for i in flow.entered}
    if len(rows) > 1 or max(rows) < 2 or not rows <= entering:
        return None, None
    met = next((shapes for which, *shapes in flow.crossed if which <= set(targets)), None)
    return targets, (met[0], met[1]) if met else None


@dataclass
class _Flow(TorchFunctionMode):
    """Follows the fields of a batch through every operation of torch."""

    marks: dict[int, frozenset[int]]  # id of a tensor -> the fields that went into it
    alive: list[Any]  # whatever has a mark: no other tensor may get its id
    entered: set[int] = field(default_factory=set)  # fields that met a weight before anything else that is learnt
    crossed: list[tuple[frozenset[int], tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def of(self, value: Any) -> frozenset[int]:
        return self.marks.get(id(value), frozenset())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        went = frozenset().union(*map(self.of, given)) if given else frozenset()
        if went:
            raw = frozenset().union(*(self.of(t) for t in given if not t.requires_grad))
            layer = getattr(func, "__name__", "") in LAYERS and any(t.requires_grad for t in given)
            if raw and (layer or any(isinstance(t, Parameter) for t in given)):
                self.entered.update(raw)
            if raw and not layer and len(given) == 2 and isinstance(out, Tensor):
                self._meet(given, out)
            # an operation in place marks what it wrote to
            for t in (*tree_leaves(out), *(given[:1] if _in_place(func) else ())):
                if isinstance(t, Tensor):
                    self.marks[id(t)] = self.of(t) | went
                    self.alive.append(t)
        return out

    def _meet(self, given: Sequence[Tensor], out: Tensor) -> None:
        """Note a field (N,) and a prediction (N, 1), or the other way round, of which each entry met each."""
        told, made = sorted(given, key=lambda t: t.requires_grad)
        n = told.numel()
        if n >= FEW and made.numel() == n and out.numel() == n * n and not told.requires_grad and made.requires_grad:
            self.crossed.append((self.of(told), tuple(told.shape), tuple(made.shape)))


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
