"""LossCheck: a loss that is given the wrong thing, does not fit the task, or can not be reached by the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, RandomSampler, default_collate

from lightning_stall.callback import StallCallback
from lightning_stall.diagnosis import LEARNT, MASTERED
from lightning_stall.measure.batches import fields
from lightning_stall.measure.class_numbers import Indices
from lightning_stall.measure.gradients import in_parts
from lightning_stall.measure.loss_fault import Fault, Given, capital, log_softmax
from lightning_stall.measure.loss_formulas import given_by_formula
from lightning_stall.measure.loss_graph import (
    BUILT_IN,
    Expression,
    Term,
    children,
    prediction,
    producer,
    short,
    take_apart,
)
from lightning_stall.measure.loss_inputs import given_wrong, normalised_twice
from lightning_stall.measure.loss_names import Names
from lightning_stall.measure.loss_reach import out_of_reach
from lightning_stall.measure.loss_signs import divergence_sign, endless, maximised, overlap, similarity
from lightning_stall.measure.loss_tasks import Summed, misfit_depth
from lightning_stall.measure.mixing import Watch, probe, softmax_across, verdict
from lightning_stall.measure.policy_sign import Rewards
from lightning_stall.measure.quiet import compiled
from lightning_stall.outcome import LONG_ENOUGH
from lightning_stall.readings import StepReading

LOSSES_A_STEP = 4  # losses looked at in one step; manual optimisation and accumulation have several
AT_REST = 50  # optimizer steps before which a run that stands still may only be on its way
FORGOTTEN = 3  # checks in a row without a fault before it is taken back


class LossCheck(StallCallback):
    """Reads the loss's own graph, before the backward pass of a check, and the targets that it was given.

    Says: probabilities-as-logits, loss-shape-mismatch, wrong-loss-for-task, output-range-mismatch, batch-mixing,
    missing-nonlinearity, insufficient-capacity (a layer of one unit that everything passes through). What the graph
    proves is told at once, by step 2; the rest once the run fares badly. Nothing is done between checks.

    Blind where `training_step` is compiled (its graph is one node) or the loss is an `autograd.Function`; then silent.

    Args:
        auto_remedy: accepted for the sake of one signature; there is no remedy, only a person can mend a loss.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    >>> from lightning_stall.testing import Classifier, blobs, mlp, watch
    >>> ends_in_softmax = Classifier(torch.nn.Sequential(mlp(), torch.nn.Softmax(dim=1)))
    >>> watch(ends_in_softmax, blobs(), LossCheck()).findings[0].code
    'probabilities-as-logits'
    """

    reads_norms = False
    codes = (
        "probabilities-as-logits",
        "loss-shape-mismatch",
        "wrong-loss-for-task",
        "output-range-mismatch",
        "batch-mixing",
        "missing-nonlinearity",
        "insufficient-capacity",
    )

    def __init__(
        self, *, auto_remedy: bool = False, every_n_steps: int | None = None, mute: Sequence[str] = ()
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        self._reset()

    def _reset(self) -> None:
        self.missed: dict[str, int] = {}  # code -> checks in a row at which it was not seen
        self.seen: set[str] = set()  # codes seen since the last check
        self.lasting: set[str] = set()  # codes known for certain of the model itself, which is looked at once
        self.waiting: dict[str, Fault] = {}  # seen of the model itself, and told once the run fares as it would by it
        self.meant: Fault | None = None  # certain, and told unless the run learns its task all the same
        self.looked = 0  # losses looked at in this step
        self.indices = Indices()
        self.summed = Summed()
        self.rewards = Rewards()
        self._batch: list[Tensor] = []
        self._across: str | None = None  # a softmax over the samples somewhere in the model
        self._names: Names | None = None
        self._watch: Watch | None = None
        self._weights: Tensor | None = None
        self._first = True  # the model has not been looked at yet, only the loss

    # ------------------------------------------------------------------ verbs

    def begin(self) -> None:
        self._reset()
        self._names = Names(self.hub.module)
        if self.hub.step:  # what a resumed run has been told, and whether it still holds, stands in the journal
            self.missed = {code: 0 for code in self.codes if code in self.hub.journal.told}
        self._watch = None if compiled(self.hub.module) else Watch(self.hub.module)

    @property
    def rare(self) -> frozenset[str]:
        return frozenset({"before_batch", "before_backward", "before_step", "step_end", "micro_batch_end"})

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        self.looked = 0
        if not self.hub.checking:
            return
        self._batch = [f.tensor for f in fields(batch)]
        if self._first and self._watch is not None and self._names is not None:
            self._names.watch()
            self._watch.start(self._batch)

    def before_backward(self, loss: Tensor) -> None:
        if not self.hub.checking or self.looked >= LOSSES_A_STEP or self._names is None:
            return
        self.looked += 1
        expression = take_apart(loss, wait=True)
        given = Given(self._names, self._batch, len(self.hub.readings.optimizers), self._value(loss))
        if self._first:
            self._look_at_model(expression, given)
        for fault in find(expression, given, loss):
            self._tell(fault)
        self.rewards.look(loss)
        self.indices.update(expression, given.batch_size, self._batch)
        self.summed.update(expression, given.batch_size, self.hub.readings.accumulate)

    def judged(self) -> None:
        if not self.hub.checking and self.hub.module.device.type == "cpu":
            self.rewards.update(self.hub.trainer.callback_metrics)
        fault = endless(self.hub.curve.first[0], self.hub.curve.level(20)) if self.hub.curve.n >= 40 else None
        if fault is not None:
            self._tell(fault, lasting=True)
        self._tell_of_what_may_be_meant()

    def micro_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch = []
        self._after_first_batch()

    def before_step(self, optimizer: Optimizer) -> None:
        if self.summed.waiting and self.hub.checking and not in_parts(self.hub.module, self.hub.readings.copies):
            params = self.hub.readings.table(optimizer).params
            self._weights = torch.stack(torch._foreach_norm([p.detach() for p in params])).norm() if params else None

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch = []
        self._after_first_batch()

    def observe(self, reading: StepReading) -> None:
        if self.summed.waiting and self._weights is not None:
            plain = type(self.hub.readings.optimizers[reading.optimizer]).__name__ in ("SGD", "ASGD")
            clipped = bool(getattr(self.hub.trainer, "gradient_clip_val", None))
            self.summed.weigh(
                reading.rate * reading.total_norm / max(float(self._weights), 1e-12), plain and not clipped
            )
            self._weights = None

    def check(self) -> None:
        self.rewards.update(self.hub.trainer.callback_metrics)
        self._tell_gated()
        for code in [c for c in self.missed if self.looked]:
            self.missed[code] = 0 if code in self.seen else self.missed[code] + 1
            if self.missed[code] >= FORGOTTEN:
                del self.missed[code]
                self.retract(code)
        self.seen.clear()

    def finish(self) -> None:
        self._tell_gated()
        self._tell_of_what_may_be_meant()
        against = self.rewards.fault()
        if against is not None:
            self._tell(against, lasting=True)
        unordered = self.indices.unordered(self.hub.explained < MASTERED and self.hub.curve.n >= LONG_ENOUGH)
        if unordered is not None:
            self._tell(unordered, lasting=True)

    def aborted(self, error: BaseException) -> None:
        self._tell_gated()

    def detach(self) -> None:
        self._stop_watching()
        self._names = self._watch = None
        self._batch = []

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_names": None, "_watch": None, "_batch": []}  # they hold the model

    # ------------------------------------------------------------------ how it is done

    def _value(self, loss: Tensor) -> float:
        """The loss as the user computed it."""
        value = loss.detach()
        value = (value.real if value.is_complex() else value).float().mean() * self.hub.readings.accumulate
        scaler = self.hub.readings.scaler
        return float(value if scaler is None else value / scaler._scale)

    def _tell(self, fault: Fault, lasting: bool = False) -> None:
        if not fault.certain and fault.code in (*self.missed, *self.lasting):
            return  # known for certain already
        if fault.certain and lasting:
            self.lasting.add(fault.code)
            self.missed.pop(fault.code, None)
        elif fault.certain and fault.code not in self.lasting:
            self.missed[fault.code] = 0
        ended = self.hub.ending and self.hub.mediocre and self.hub.curve.n >= LONG_ENOUGH
        fits = fault.certain or ended or self.hub.outcome.state in fault.states
        if lasting and not fits:
            self.waiting[fault.code] = fault
        self.seen.add(fault.code)
        self.tell(
            fault.code,
            fault.summary,
            advice=fault.advice,
            severity="warning" if fits else "info",
            statistical=not fault.certain and fits,
            evidence=fault.evidence,
            where=fault.where,
        )

    def _tell_gated(self) -> None:
        state = self.hub.outcome.state
        for fault in (self.indices.fault(), self.summed.fault(state), *self.waiting.values()):
            if fault is not None:
                self._tell(fault)

    def _tell_of_what_may_be_meant(self) -> None:
        """Once the run fares badly, has come to rest half way, or ends before it has learnt its task."""
        hub = self.hub
        at_rest = hub.half_way and hub.curve.n >= AT_REST
        explained = hub.outcome.evidence.get("explained", 0.0)
        unlearnt = hub.ending and hub.baseline is not None and explained < LEARNT
        if self.meant is not None and (hub.outcome.bad or at_rest or unlearnt):
            fault, self.meant = self.meant, None
            self._tell(fault, lasting=True)

    def _look_at_model(self, expression: Expression, given: Given) -> None:
        """Once: the layers between the input and what the loss receives."""
        edges = [edge for term in expression.main if (edge := model_output(term)) is not None]
        for edge in edges[:2]:
            # two optimizers train two models, and where one ends the other may begin with a layer
            for fault in misfit_depth(edge, self.hub.module) if given.optimizers == 1 else ():
                if fault.may_be_meant:
                    self.meant = fault
                    self.tell(
                        fault.code,
                        fault.summary,
                        advice=fault.advice,
                        severity="info",
                        evidence=fault.evidence,
                        where=fault.where,
                    )
                else:
                    self._tell(fault, lasting=True)
            across = softmax_across(edge, given.batch_size)
            if across is not None:
                self._across = capital(given.names.of(short(across[0]), across)[0])

    def _after_first_batch(self) -> None:
        if not self._first or not self.hub.checking:
            return
        self._first = False
        seen = self._watch.seen if self._watch is not None else None
        self._stop_watching()
        self._watch = None
        loader = self.hub.trainer.train_dataloader
        if seen is None or seen.called is None or seen.value is None or self.hub.distributed:
            return
        # only the default collation makes it sure that dimension 0 counts samples
        if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate:
            return
        n = len(seen.value)
        if loader.batch_size != n or n < 3:
            return
        found = probe(seen.called, seen.value, self.hub.trainer.precision_plugin.forward_context)
        shuffled = isinstance(loader.sampler, RandomSampler)
        fault = verdict(found, seen, n, shuffled, self._across) if found is not None else None
        if fault is not None:
            self._tell(fault, lasting=True)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self._names is not None:
            self._names.stop()


def find(loss: Expression, given: Given, whole: Tensor | None = None) -> Iterator[Fault]:
    """Everything wrong with a loss that its graph and this batch prove; waits for the device.

    Args:
        loss: taken apart.
        given: what else is known.
        whole: the loss as it is, to look behind what could not be taken apart.
    """
    if whole is not None and not any(t.kind in BUILT_IN for t in loss.terms):
        yield from normalised_twice(whole, given)
    alone = len(loss.main) == 1
    for term in loss.terms:
        yield from given_wrong(term, given)
        yield from out_of_reach(term, given, alone)
    yield from itertools.chain(maximised(loss, given), divergence_sign(loss), similarity(loss, given))
    yield from itertools.chain(overlap(loss, given), given_by_formula(loss, given))


def model_output(term: Term) -> Any:
    """The edge at which the model ends for this term: below the loss's own or a last activation; None if unknown."""
    log = log_softmax(term)
    if log is not None:
        edge = children(log[0])[0]
    else:
        found = prediction(term)
        if found is None or term.kind == "other":
            return None
        edge = found.edge
    edge = producer(edge)
    if short(edge[0]) in ("Softmax", "LogSoftmax", "Sigmoid", "Tanh") and len(children(edge[0])) == 1:
        edge = children(edge[0])[0]
    return edge
