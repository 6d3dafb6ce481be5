"""Which trials are made, in which order, and what they may cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lightning_stall.trials.batches import KEEP, UNEVEN, KeptBatches, split
from lightning_stall.trials.fits import Bench, OutOfTimeError
from lightning_stall.trials.pairing import PairingWatch
from lightning_stall.trials.records import Arm, Conclusion, Fits, Situation
from lightning_stall.trials.sandbox import DeclinedError, apart, why_not
from lightning_stall.trials.verdict import (
    LEARNT,
    THERE,
    calmed,
    conclude,
    creeps,
    falls_short,
    few_weights,
    outlearnt,
    started_badly,
)

LONGEST = 60.0  # seconds an occasion may take, however long the fit has run
ARMS = 8  # fits that an occasion is planned for; those that come last may find no time
STEPS = 100  # optimizer steps a fit, at most
BY_HEART = 3  # times as many to learn one batch by heart
FEWEST = 12  # and at least: fewer tell nothing
YOUNG = 110  # optimizer steps in which batches are kept although nothing is known to be wrong
NEARLY_DONE = 0.9  # share of a constant predictor's loss, from which on nobody will ask at the end
NEARLY = 0.97  # of the best gain, that a rate nearer to the present one must reach to be preferred
DROPOUT = 0.3  # dropout above this is worth a trial without


@dataclass
class Trials:
    """The trials of one fit. Keeps a few batches, says what they settle, and what they took.

    Args:
        hub: the fit's.
        share: of the fit's wall time so far that one occasion may take.
        seconds: that it may take in any case.
    """

    hub: Any
    share: float = 0.02
    seconds: float = 2.0
    kept: KeptBatches = field(default_factory=KeptBatches)
    spent: float = 0.0  # seconds, over all occasions
    made: int = 0  # fits, over all occasions
    fits: Fits = field(default_factory=Fits)  # of the last occasion
    situation: Situation | None = None
    declined: str | None = None
    hopeless: bool = False  # the last occasion had no arm that won
    began: float = field(default_factory=time.perf_counter)
    pairing: PairingWatch = field(init=False)
    _asleep: Any = None  # the verdict by which no batch is kept
    _wakes_at: float = 0.0  # optimizer step from which on one may be kept all the same

    def __post_init__(self) -> None:
        self.pairing = PairingWatch(self)

    # ------------------------------------------------------------------ batches

    def keep(self, batch: Any, index: int) -> None:
        """A batch is about to be trained on: keep it while the run is young or fares badly."""
        hub = self.hub
        if hub.distributed or (hub.outcome is self._asleep and hub.step < self._wakes_at):
            return  # declined anyway, or none is wanted until there is another verdict
        # what has left some of its task may be asked once it has ended, whatever the verdict will be then
        ends = hub.explained < NEARLY_DONE and hub.step >= hub.curve.horizon - 2 * KEEP
        asked = ends or (hub.baseline is None and self.pairing.open)
        if hub.outcome.bad or hub.step <= YOUNG or hub.outcome.state == "too early" or asked:
            self.kept.add(batch, index, hub.epoch)
        else:
            self._asleep, self._wakes_at = hub.outcome, hub.curve.horizon - 2 * KEEP
            self.kept.clear()

    @property
    def ready(self) -> bool:
        """Whether enough batches have passed since keeping began."""
        return self.kept.passed >= KEEP // 2

    def budget(self) -> float:
        """Seconds that one occasion may take now."""
        return min(LONGEST, max(self.seconds, self.share * (time.perf_counter() - self.began)))

    # ------------------------------------------------------------------ what may be asked

    def run(self, spoken: frozenset[str] = frozenset()) -> list[Conclusion]:
        """Make the trials that the run's state calls for; what they settle. `spoken`: the causes told so far."""
        done = self._on_a_copy(spoken, self._settle)
        s = self.situation
        self.hopeless = (
            done and s is not None and len(self.fits.all) >= 4 and not any(map(s.won, self.fits.all.values()))
        )
        return conclude(self.situation, self.fits) if done and self.situation is not None else []

    def better_rate(self, factors: Sequence[float] = (0.1, 10.0)) -> float | None:
        """The factor on the learning rate with which a copy does clearly better than with the present rate.

        None where none does, where the present rate does well too, and where no trial can be made. Changes nothing.
        """

        arms = [Arm(factor=factor) for factor in (1.0, *factors)]
        if not self._on_a_copy(frozenset(), self._sweep(arms), arms=len(arms)) or self.situation is None:
            return None
        s, rates = self.situation, self.fits.rates("now")
        if self.does_well:
            return None
        winners = {f: s.gain(fit) for f, fit in rates.items() if s.won(fit)}
        # of rates that do about as well, the one nearest to the present: a few batches stand for all here
        near = [f for f, gain in winners.items() if gain >= NEARLY * max(winners.values())]
        return min(near, key=lambda f: abs(math.log(f)), default=None)

    def from_scratch(self, factors: Sequence[float] = (0.1, 0.01), steps: int | None = None) -> list[Conclusion]:
        """Whether fresh weights learn more at a lower rate, in as many steps at most, than the run in all of its own."""

        arms = [Arm(start="fresh", factor=factor) for factor in (1.0, *factors)]
        most = steps or self.hub.curve.n
        done = self._on_a_copy(frozenset(), self._sweep(arms), arms=len(arms), most=most)
        return outlearnt(self.situation, self.fits) if done and self.situation is not None else []

    def fresh_start(self, steps: int | None = None) -> list[Conclusion]:
        """Whether weights as the layers draw them learn more, in so many steps (those of the run, at most), than the run
        from its own in all."""

        sweep = self._sweep([Arm(start="fresh")])
        done = self._on_a_copy(frozenset({"bad-initialization"}), sweep, arms=1, most=steps or self.hub.curve.n)
        return started_badly(self.situation, self.fits) if done and self.situation is not None else []

    def faster(self) -> list[Conclusion]:
        """Of a run that ends on its way, by short steps: whether a copy gets on far better at a higher rate."""
        done = self._on_a_copy(frozenset(), self._sweep([Arm(), Arm(factor=10.0)]), arms=2, most=self.hub.curve.n)
        return creeps(self.situation, self.fits) if done and self.situation is not None else []

    def calmer(self) -> list[Conclusion]:
        """Of a run that long steps have brought to rest half way: whether it does better at a lower rate."""
        arms = [Arm(), Arm(factor=0.1), Arm(start="fresh", factor=0.1), Arm(start="fresh", factor=0.01)]
        done = self._on_a_copy(frozenset(), self._sweep(arms), arms=len(arms), most=self.hub.curve.n)
        return calmed(self.situation, self.fits) if done and self.situation is not None else []

    def too_small(self, spoken: frozenset[str]) -> list[Conclusion]:
        """Of a model of few weights that has ended half way: whether it could not have learnt what its samples tell."""
        arms = [Arm(factor=f) for f in (0.1, 1.0, 10.0)]
        arms += [Arm(start="fresh"), Arm(start="fresh", factor=10.0), Arm(start="fresh", adam=1e-2)]

        def ask(bench: Bench, steps: int) -> None:
            assert self.situation is not None
            s = self.situation
            if few_weights(s) and s.shown > s.of_variance + THERE:
                self._sweep(arms)(bench, steps)

        done = self._on_a_copy(spoken, ask, arms=len(arms))
        return falls_short(self.situation, self.fits) if done and self.situation is not None else []

    @property
    def does_well(self) -> bool:
        """Whether, in the last trial, a copy learnt at the present rate as the run itself does not."""
        return self.situation is not None and self.situation.won(self.fits.rates("now").get(1.0))

    # ------------------------------------------------------------------ how it is done

    def _sweep(self, arms: Sequence[Arm]) -> Callable[[Bench, int], None]:
        """What fits each of these arms in so many steps."""

        def sweep(bench: Bench, steps: int) -> None:
            for arm in arms:
                self.fits.add(bench.fit(arm, steps))

        return sweep

    def _on_a_copy(self, spoken: frozenset[str], what: Any, arms: int = ARMS, most: int = STEPS) -> bool:
        """Whether `what(bench, steps)` was begun; whichever fits it made in its time are in `fits`."""
        hub, start = self.hub, time.perf_counter()
        trainer, module = hub.trainer, hub.module
        self.fits, self.situation = Fits(), None
        kept = self.kept.of_one_epoch()
        self.declined = why_not(trainer, module) or (None if kept else "no batches are at hand")
        if self.declined is not None:
            return False
        fitted, judged = split(kept)
        bench = Bench(trainer, module, fitted, judged, start + self.budget(), hub.rate.factor)

        def trial() -> None:
            level = bench.look()
            self.situation = self._situation(bench, level, spoken)
            steps = min(STEPS, most, bench.steps_in((bench.deadline - time.perf_counter()) / arms))
            if steps < FEWEST:
                step = bench.cost * bench.window
                raise DeclinedError(f"a step takes {step:.2g} s, too long for the {self.budget():.2g} s allowed")
            what(bench, steps)

        try:
            outcome = apart(module, lambda: _in_time(trial))
        finally:
            self.spent += time.perf_counter() - start
            self.made += len(self.fits.all)
        if isinstance(outcome, DeclinedError):
            self.declined = str(outcome)
        return not isinstance(outcome, DeclinedError) or bool(self.fits.all)

    def _situation(self, bench: Bench, level: Sequence[float], spoken: frozenset[str]) -> Situation:
        hub, module = self.hub, self.hub.module
        finite = all(map(math.isfinite, level))
        e = hub.outcome.evidence
        groups = bench.trainer.optimizers[0].param_groups
        decay = max((float(g.get("weight_decay", 0.0)) for g in groups), default=0.0)
        dropout = max((m.p for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)), default=0.0)
        if finite and "level" in e and hub.outcome.state in ("stalled", "never learned"):
            mean, noise = sum(level) / len(level), e.get("noise", 0.0)
            off = mean - e["level"]
            # the copy is looked at without dropout, which may only better it
            if max(off, 0.0 if dropout else -off) > max(6 * noise, 0.5 * abs(e["level"])):
                raise DeclinedError(f"the copy's loss of {mean:.4g} is not the run's {e['level']:.4g}")
        return Situation(
            # what has hardly moved by the end has not learnt, however straight it falls
            state="never learned" if hub.ending and e.get("explained", 1.0) < LEARNT / 2 else hub.outcome.state,
            level=tuple(level) if finite else (),
            baseline=hub.baseline,
            floor=hub.labels.floor,
            start=e.get("start"),
            peak=self._peak(bench),
            rate=max((float(g.get("lr", 0.0)) for g in groups), default=math.nan) * hub.rate.factor,
            gained=e.get("gain", 0.0),
            explained=e.get("explained", e.get("gain", math.nan)),
            absolute=hub.labels.kind in ("l1", "smooth l1") or getattr(hub.labels, "root", False),
            moved=hub.readings.usual_update(),
            finite_steps=hub.curve.n + hub.other_phases,
            weights=sum(p.numel() for p in module.parameters() if p.requires_grad),
            targets=bench.targets,
            regularised=decay > 0 or dropout >= DROPOUT,
            shown=bench.known.shown,
            names=bench.known.names,
            bond=self._bond(bench),
            off_scale=bench.inputs.off,
            uneven=bench.inputs.uneven > UNEVEN,
            apart=bool(bench.judged),
            spoken=spoken,
        )

    def _bond(self, bench: Bench) -> float:
        """What samples tell of their targets; by those of the first epoch, where they were asked: they are more."""
        known = self.hub.bond
        return bench.known.bond if known is None else max(known.best, bench.known.bond)

    def _settle(self, bench: Bench, steps: int) -> None:
        s = self.situation
        assert s is not None
        for arm in self._arms(s, bench):
            self.fits.add(bench.fit(arm, steps if arm.one < 0 else BY_HEART * steps))

    def _arms(self, s: Situation, bench: Bench) -> Iterator[Arm]:
        """The next arm to try, in view of the fits so far."""
        fits, won = self.fits, s.won
        if self.hopeless:  # no rate and no start did any good the last time: can it learn anything?
            yield Arm(start="fresh")
            yield Arm(start="fresh", adam=1e-3)
            if not any(map(won, fits.all.values())):
                yield from self._by_heart(s, bench)
            return
        if s.level:
            yield Arm()
            if won(fits.get()):
                if self.hub.ending and s.explained < LEARNT:  # it learns, and ends before it has begun
                    yield Arm(factor=10.0)
                return
            for factor in (10.0, 100.0, 1000.0, 1e4):
                yield Arm(factor=factor)
                last = fits.get(factor=factor)
                if won(last) or (factor > 10 and s.diverged(last)):
                    break
            yield Arm(factor=0.1)
            if s.regularised:
                yield Arm(free=True)
        yield Arm(start="fresh")
        if s.peak > 1:
            yield Arm(start="fresh", factor=s.peak)
        if won(fits.get(start="fresh")):
            yield Arm(start="fresh", factor=0.1)
        else:
            if s.off_scale and bench.inputs.means:
                yield Arm(start="fresh", scaled=True)
            if s.regularised:
                yield Arm(start="fresh", free=True)
            known = any(map(won, fits.rates("now").values()))
            for factor in () if known else (0.1, 0.01, 10.0, 100.0):
                yield Arm(start="fresh", factor=factor)
        for rate in (1e-3, 1e-2):
            if not any(map(won, fits.all.values())):
                yield Arm(start="fresh", adam=rate)
        if not any(map(won, fits.all.values())) or s.falls_short(fits):
            yield from self._by_heart(s, bench)

    def _by_heart(self, s: Situation, bench: Bench) -> Iterator[Arm]:
        """One batch at a time, with its own targets and with shuffled ones."""
        for one in range(min(3, len(bench.fitted))):
            arm = Arm(start="fresh", adam=1e-2, one=one)
            yield arm
            if one == 0 and s.gain(self.fits.all[arm]) < 0.5:
                arm = replace(arm, adam=1e-1)
                yield arm
                return
            if bench.target is None:
                return
            yield replace(arm, shuffled=True)

    def _peak(self, bench: Bench) -> float:
        """How many times the present rate the highest was; 1 where it was about the same."""
        top = self.hub.curve.top_rate
        rate = max((float(g.get("lr", 0.0)) for g in bench.trainer.optimizers[0].param_groups), default=0.0)
        rate *= self.hub.rate.factor
        return round(top / rate, 3) if rate > 0 and top > 1.5 * rate else 1.0


def _in_time(what: Any) -> None:
    with suppress(OutOfTimeError):
        what()
