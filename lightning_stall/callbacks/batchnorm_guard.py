"""BatchNormBatchSizeGuard: whether BatchNorm gets enough values, and whether it evaluates as it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import SyncBatchNorm

from lightning_stall.callback import StallCallback, guarded
from lightning_stall.errors import require
from lightning_stall.measure.batchnorm import leading_size
from lightning_stall.measure.batchnorm_copies import MovingCopies
from lightning_stall.measure.batchnorm_readings import BatchNormReadings, Rehearsal, SmallBatch, small_batches_ahead
from lightning_stall.readings import plain_name
from lightning_stall.remedies import batchnorm_layers
from lightning_stall.remedies_batchnorm import Conversion, KeptBatches, RunningInstead, shorten_epoch
from lightning_stall.sinks import clean_tag, themes
from lightning_stall.verdicts import batchnorm as verdicts
from lightning_stall.verdicts.batchnorm import SMALL, STALE, BothWays, Layer, Setting, Verdict

Remedy = Literal["auto", "running-statistics", "drop-batch", "sync", "group-norm", "re-estimate"]
AUTO = ("running-statistics", "re-estimate")  # what "auto" chooses from, by what is found

PROBE_FROM = 16  # optimizer steps
LOOKS = 3  # validations before which the averages are looked at
# what holds, and the code that says so
CODE = {"few": SMALL, "stale": STALE, "frozen": STALE, "left behind": STALE, "put back": STALE}


class BatchNormBatchSizeGuard(StallCallback):
    """Watches every BatchNorm layer: how many values its statistics are made of, and how it does in evaluation.

    Says: batchnorm-small-batch. For certain where a batch will raise (one value per channel; foretold from the loader
    before the first optimizer step, with epoch and batch), where a layer never gets more than two values, which leaves
    only their order, and where batch statistics are measured to cost the loss; fewer than `min_values` otherwise only
    once the outcome is bad. batchnorm-stale-statistics: the same training batch has a far worse loss by running
    statistics than by its own, for long or at the end of the run (measured on a copy that shares the weights).

    Logs: `stall/batchnorm/values/<layer>` (per channel and device, smallest first), `stall/batchnorm/spread/<layer>`
    (batch means from the running ones, in standard deviations), `stall/batchnorm/remedied_batches`.

    Args:
        min_values: values per channel and device (batch times space) from which batch statistics pass for sound. The
            mean of 8 values is off by a third of a standard deviation, their variance by a half of itself.
        remedy: what `auto_remedy` does. "running-statistics" normalises a batch that is too small by the running
            statistics, and every batch once all are found to be, with gradients centred over batches (Chiley et al.,
            2019); "re-estimate" sets the running statistics to the average over the last training batches before each
            validation; "auto" does the first, and the second once
            they are found to be stale. "drop-batch" leaves out an epoch's last batch that is too small; "sync" and
            "group-norm" put SyncBatchNorm (several accelerators only) or GroupNorm in the place of every BatchNorm
            before the optimizer is made, and a checkpoint then loads only into a model converted likewise.
        auto_remedy: apply it.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes never to be told.

    >>> from lightning_stall.testing import Classifier, blobs, mlp, watch
    >>> one_left_over = blobs(samples=257, batch_size=32)
    >>> report = watch(Classifier(mlp(batchnorm=True)), one_left_over, BatchNormBatchSizeGuard(auto_remedy=True))
    >>> report.findings[0].code, report.outcome
    ('batchnorm-small-batch', 'converged')
    """

    reads_norms = False
    codes = (SMALL, STALE)
    shares = ("batchnorm_gap", "batchnorm_streak")

    def __init__(
        self,
        *,
        min_values: int = 8,
        remedy: Remedy = "auto",
        auto_remedy: bool = False,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(auto_remedy=auto_remedy, every_n_steps=every_n_steps, mute=mute)
        whole = isinstance(min_values, int) and not isinstance(min_values, bool)
        require(whole and min_values >= 2, "min_values", min_values, "give a whole number of at least 2")
        require(remedy in get_args(Remedy), "remedy", remedy, f"give one of {', '.join(map(repr, get_args(Remedy)))}")
        self.min_values = min_values
        self.remedy: Remedy = remedy
        self._conversion = Conversion()
        self._reset([])

    def _reset(self, layers: list[tuple[str, Any]], devices: int = 1) -> None:
        self.seen = BatchNormReadings([plain_name(n) for n, _ in layers], [m for _, m in layers], devices)
        self.apart = BothWays()
        self._probed = 0  # the step of the last probe
        self.remedied = 0  # batches normalised by running statistics, or evaluations after a new estimate
        self._holding: set[str] = set()  # what was said and not taken back, by the keys of CODE
        self._rows: int | None = None
        self._foretold = False
        self._instead = RunningInstead(self.seen.layers)
        self._kept = KeptBatches()
        self._rehearsal: Rehearsal | None = None
        self._refitted = self._told_new = False
        self._copies = MovingCopies()
        self._evaluated = False  # a validation has been made, for which any statistics should have been there
        self._looked_at_counts = 0  # validations
        self._counted: dict[str, int] = {}  # batches in each layer's averages as a validation began
        self._harmless: set[int] = set()  # numbers of rows that leave every layer enough values
        self._undo: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ verbs

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put other layers in place, before strategies wrap the model and optimizers hold its parameters."""
        if stage != "fit" or not self.auto_remedy:
            return
        try:
            self._conversion.convert(self.remedy, trainer, pl_module)
        except Exception as error:  # a remedy must not end the run
            self.fail(repr(error))

    def begin(self) -> None:
        kept = (self.remedied, self.apart) if self.hub.step else (0, BothWays())
        layers = batchnorm_layers(self.hub.module)
        self._reset(layers, self.hub.world_size)
        self.remedied, self.apart = kept
        self._copies = MovingCopies.of(self.hub.module, layers, self.hub.readings.optimizers)
        self._rehearsal = Rehearsal(self.hub.trainer, self.hub.module, self.seen)
        if self._uses("running-statistics"):
            self._instead.install()
        self._tell_conversion()

    @property
    def rare(self) -> frozenset[str]:
        if not self.seen.layers:
            return frozenset({"before_batch", "before_backward", "step_end", "micro_batch_end"})
        return frozenset({"before_backward", *(() if self.auto_remedy else ("step_end", "micro_batch_end"))})

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        if not self.seen.layers:
            return
        self._rows = leading_size(batch)
        if self.hub.checking:
            self._probe(batch, batch_idx)
            self.seen.open()
        if self._uses("re-estimate") and (self.remedy != "auto" or self.apart.streak or self._unfit):
            self._kept.keep(batch, batch_idx)
        if self._rows is not None and self._rows not in self._harmless:
            self._meet_small_batch(self._rows)

    def before_backward(self, loss: Tensor) -> None:
        if self.seen.layers and self.hub.checking and not self._foretold and self.seen.learn(self._rows):
            self._foretold = True
            self._foretell()

    def micro_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch_ends()

    def step_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch_ends()

    def validated(self) -> None:
        self._evaluated = True

    def check(self) -> None:
        if self.seen.layers:
            self._judge(at_end=False)

    @guarded
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        if self._due_for_new_ones():
            self._reestimate()
        self._bring_copies()
        if self._looked_at_counts < LOOKS and self.hub.step >= PROBE_FROM:
            self._looked_at_counts += 1
            self._counted = self._counts()

    @guarded
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *rest: Any) -> None:
        """What the module's own hooks did between `on_validation_start` and here may have emptied the averages."""
        if batch_idx or not self._counted:
            return
        names, counts = [n for n, c in self._counted.items() if c], self._counts()
        self._counted = {}
        self._hold("put back", verdicts.put_back([plain_name(n) for n in names if counts.get(n) == 0], self.hub.step))

    def _counts(self) -> dict[str, int]:
        """How many batches went into each layer's averages; waits for the device."""
        pairs = zip(self.seen.names, self.seen.layers, strict=True)
        known = {n: m.num_batches_tracked for n, m in pairs if m.num_batches_tracked is not None}
        return dict(zip(known, torch.stack([*known.values()]).tolist(), strict=True)) if known else {}

    def finish(self) -> None:
        if self.seen.layers:
            self._probe_last()
            self._judge(at_end=True)
        if self._due_for_new_ones() and (self.remedy == "auto" or not self.hub.trainer.enable_validation):
            self._reestimate()
        self._bring_copies()

    def aborted(self, error: BaseException) -> None:
        self._instead.release()
        if verdicts.ERROR in str(error):
            self._explain_the_error()

    def detach(self) -> None:
        self._instead.remove()
        self.seen.remove()
        for undo in self._undo:
            undo()
        self._undo.clear()
        self._kept.batches.clear()
        self._copies = MovingCopies()
        self._rehearsal = None

    def numbers(self) -> Mapping[str, float]:
        seen, names = self.seen, [clean_tag(name) for name in self.seen.names]
        by_size = sorted((v[-1], i) for i, v in seen.values.items())
        numbers = {f"stall/batchnorm/values/{names[i]}": float(v) for v, i in by_size}
        numbers |= {f"stall/batchnorm/spread/{names[i]}": pairs[-1][0] for i, pairs in seen.gaps.items()}
        if self.apart.probes:
            numbers["stall/batchnorm/loss_by_batch"], numbers["stall/batchnorm/loss_by_running"] = self.apart.probes[
                -1
            ][1:]
        if self.auto_remedy:
            numbers["stall/batchnorm/remedied_batches"] = float(self.remedied)
        return numbers

    def panels(self) -> Mapping[str, Sequence[str]]:
        if not self.seen.names:  # a model without BatchNorm gets no empty panels
            return {}
        return {themes.BATCHNORM: ["stall/batchnorm/spread/.*", "stall/batchnorm/loss_.*"]}

    def share(self) -> Mapping[str, float]:
        worst = self.seen.worst()
        return {"batchnorm_gap": worst[0][0] if worst else 0.0, "batchnorm_streak": float(self.apart.streak)}

    def state(self) -> dict[str, Any]:
        apart = self.apart
        probes = [list(p) for p in apart.probes]
        return {"remedied": self.remedied, "probes": probes, "apart": [apart.streak, apart.since, apart.top]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.remedied = state["remedied"]
        self.apart = BothWays([(int(s), b, r) for s, b, r in state["probes"]], *state["apart"])

    # ------------------------------------------------------------------ one value: PyTorch will raise

    def _tell_conversion(self) -> None:
        remedy = self._conversion.done() if self.auto_remedy else None
        if remedy is not None:
            where, self._conversion.names = self._conversion.names, []
            text = f"{verdicts.count(len(where), 'BatchNorm layer')} looked across the batch of one device."
            self.tell(SMALL, text, severity="info", where=where, evidence={"layers": len(where)}, remedy=remedy)
        elif self._uses("sync") and not all(isinstance(m, SyncBatchNorm) for m in self.seen.layers):
            devices, kind = self.hub.world_size, self.hub.trainer.strategy.root_device.type
            text = f"SyncBatchNorm needs several accelerators; this run has {devices} ({kind}): the layers stay."
            self.tell(SMALL, text, severity="info", evidence={"devices": devices})

    def _batch_ends(self) -> None:
        self._say_remedied()
        if self.hub.checking and self.seen.layers:
            self.seen.close(self._rows)
            self._harmless.clear()  # shapes may have changed

    def _foretell(self) -> None:
        """Look through the epoch for a batch that leaves a layer one value per channel."""
        window = self.hub.trainer.accumulate_grad_batches if self.hub.module.automatic_optimization else 1
        training = [i for i, layer in enumerate(self.seen.layers) if layer.training]
        for batch in small_batches_ahead(self.hub.trainer, self.hub.batch_idx, window):
            expected = {i: n for i in training if (n := self.seen.expected_of(batch, i)) is not None}
            small = [i for i, n in expected.items() if n < self.min_values]
            if small and batch.last and batch.alone and self._uses("drop-batch") and self._may_shorten():
                self._undo.append(shorten_epoch(self.hub.trainer, batch.index))
                self._tell_foretold(batch, small, f"ended each epoch before batch {batch.index}")
                return
            alone = [i for i in small if expected[i] == 1]
            if alone:
                self._tell_foretold(batch, alone, None)
                return

    def _may_shorten(self) -> bool:
        """Whether all ranks see the same epoch: one rank that stops earlier would hang the others."""
        loader = self.hub.trainer.fit_loop._combined_loader.flattened[0]
        return not self.hub.distributed or "Distributed" in type(getattr(loader, "sampler", None)).__name__

    def _tell_foretold(self, batch: SmallBatch, layers: list[int], remedy: str | None) -> None:
        where = [self.seen.names[i] for i in layers]
        fewest = min(n for i in layers if (n := self.seen.expected_of(batch, i)) is not None)
        spared = remedy is not None or self._uses("running-statistics")
        which = "the last" if batch.last else "one"
        text = verdicts.foretold(
            batch.index, which, self.hub.epoch, batch.samples, batch.plan, fewest, self.min_values, where
        )
        self._tell(replace(text, severity="warning" if spared else "critical"), remedy)

    def _meet_small_batch(self, rows: int) -> None:
        """A batch is about to run that leaves some layer too few values: step in, or say so."""
        seen = self.seen
        expected = {i: n for i, m in enumerate(seen.layers) if m.training and (n := seen.expected(i, rows)) is not None}
        alone = [i for i, n in expected.items() if n == 1]
        if expected and all(n >= self.min_values for n in expected.values()):
            self._harmless.add(rows)
        if self._uses("running-statistics"):
            for i, n in expected.items():
                usual, settled = seen.usual(i), self.hub.step > 3 / (seen.layers[i].momentum or 0.1)
                if n == 1 or (n < self.min_values and settled and usual is not None and usual >= self.min_values):
                    self._instead.force(seen.layers[i])
        elif alone:
            self._tell_alone(f"has {verdicts.count(rows, 'row')}", [seen.names[i] for i in alone])

    def _explain_the_error(self) -> None:
        name = self.seen.last_alone()
        self._tell_alone("ended the run", [name] if name else [])

    def _tell_alone(self, what: str, where: list[str]) -> None:
        self._tell(verdicts.alone(self.hub.batch_idx, self.hub.epoch, what, self._rows or 0, self.min_values, where))

    def _spare_all(self, few: Verdict) -> None:
        """From here on no batch is normalised by its own statistics, in the layers for which each is too small."""
        fresh = [m for m, n in zip(self.seen.layers, self.seen.names, strict=True) if n in few.where]
        fresh = [m for m in fresh if all(m is not other for other in self._instead.always)]
        self._instead.always += fresh
        if fresh:
            self._tell(
                few, "normalised every batch from here on by the running statistics, which go on following the batches"
            )

    def _say_remedied(self) -> None:
        layers = [m for m in self._instead.release() if all(m is not other for other in self._instead.always)]
        if layers:
            self.remedied += 1
        if layers and self.remedied == 1:
            where = [n for n, m in zip(self.seen.names, self.seen.layers, strict=True) if m in layers]
            text = verdicts.met(self.hub.batch_idx, self.hub.epoch, self._rows or 0, self.min_values, where)
            self._tell(text, "normalised this batch, and any like it, by the running statistics")

    # ------------------------------------------------------------------ statistics over several checks

    def _judge(self, at_end: bool) -> None:
        hub, seen = self.hub, self.seen
        layers = [
            Layer(name, seen.values.get(i, ()), seen.gaps.get(i, ()), seen.frozen.get(i, ()), seen.layers[i].momentum)
            for i, name in enumerate(seen.names)
        ]
        setting = Setting(
            step=hub.step,
            planned=hub.curve.horizon,
            rows=int(median(seen.rows)) if seen.rows else 1,
            min_values=self.min_values,
            accumulate=hub.trainer.accumulate_grad_batches,
            devices=hub.world_size,
            shared=any(seen.sharing(i) > 1 for i in range(len(layers))),
        )
        few = verdicts.few_values(layers, setting, self.apart)
        self._hold("few", few)
        if few is not None and not few.statistical and self._uses("running-statistics"):
            self._spare_all(few)
        self._hold("stale", verdicts.stale(layers, setting, self.apart, at_end))
        self._hold("frozen", verdicts.frozen(layers))
        if (at_end or self._evaluated) and hub.step >= PROBE_FROM and not self._copies.brought:
            self._hold("left behind", verdicts.left_behind([plain_name(n) for n in self._copies.left_behind()]))
        if self._unfit and hub.gate_open and self._uses("re-estimate") and not at_end and not self._refitted:
            self._refitted = True
            self._reestimate()

    @property
    def _unfit(self) -> bool:
        """Whether averages that nothing moves any more do not fit what they get."""
        return "frozen" in self._holding

    def _due_for_new_ones(self) -> bool:
        """Whether running statistics are to be estimated anew, where the remedy is to."""
        return self._uses("re-estimate") and (self.remedy != "auto" or "stale" in self._holding)

    def _uses(self, remedy: Remedy) -> bool:
        return self.auto_remedy and (self.remedy == remedy or (self.remedy == "auto" and remedy in AUTO))

    def _hold(self, what: str, verdict: Verdict | None) -> None:
        """Tell what holds, and take back what does so no more, unless something else still says the same."""
        if verdict is not None:
            self._holding.add(what)
            self._tell(verdict)
        elif what in self._holding:
            self._holding.discard(what)
            if not any(CODE[other] == CODE[what] for other in self._holding):
                self.retract(CODE[what])

    def _tell(self, verdict: Verdict, remedy: str | None = None) -> None:
        self.tell(
            verdict.code,
            verdict.summary,
            advice=verdict.advice,
            severity=verdict.severity,
            statistical=verdict.statistical,
            evidence=verdict.evidence,
            where=verdict.where,
            remedy=remedy,
        )

    # ------------------------------------------------------------------ a copy that shares the weights

    def _probe(self, batch: Any, batch_idx: int) -> None:
        """Where the statistics are far apart, ask what that does to the loss of a batch not yet trained on."""
        hub = self.hub
        own = self.share()
        gaps, streaks = (hub.shared.get(n, []) if hub.distributed else [own[n]] for n in self.shares)
        # now and then without a reason: a second forward pass may fill the averages with something else
        unasked = hub.step >= 2 * max(PROBE_FROM, self._probed)
        ask = any(g > verdicts.FAR for g in gaps) or any(streaks) or unasked  # the same on every rank
        if hub.step < PROBE_FROM or not hub.curve.first or not ask or self._rehearsal is None:
            return
        self._probed = hub.step
        if self._set_apart(self._rehearsal, batch, batch_idx):
            hub.evaluates_apart = self.apart.streak >= verdicts.IN_A_ROW

    def _set_apart(self, rehearsal: Rehearsal, batch: Any, batch_idx: int) -> bool:
        """Take the loss of this batch both ways; whether it could be had."""
        hub, losses = self.hub, rehearsal.losses(batch, batch_idx)
        if losses is None:
            return False
        top = fmean(hub.curve.first[:5]) if hub.baseline is None else hub.baseline
        self.apart.update(hub.step, *losses, top, hub.curve.noise(), slow=not self._settled_by(hub.curve.horizon))
        return True

    def _settled_by(self, step: float) -> bool:
        """Whether all running averages will have forgotten their start by this step."""
        return all(step * (m.momentum or 0.1) >= verdicts.SETTLED for m in self.seen.layers)

    def _probe_last(self) -> None:
        """What came after the last step, as at the end of an epoch, may have filled the averages with something else."""
        hub, (batch, batch_idx) = self.hub, self.hub.batch
        if batch is None or hub.distributed or hub.step < PROBE_FROM or self._rehearsal is None:
            return
        if not self._settled_by(hub.step):
            return
        apart = self.apart
        if not self._set_apart(self._rehearsal, batch, batch_idx):
            return
        _, by_batch, by_running = apart.probes[-1]
        if (
            apart.streak and by_batch < 0.5 * apart.top and not by_running <= apart.top
        ):  # worse than having learnt nothing
            apart.streak = max(apart.streak, verdicts.IN_A_ROW)

    def _bring_copies(self) -> None:
        """Give a moving copy's layers the statistics of those that it copies, before they are evaluated by."""
        if not self._uses("re-estimate") or self.hub.step < PROBE_FROM:
            return
        again = bool(self._copies.brought)
        behind = [] if again else self._copies.left_behind()
        found = verdicts.left_behind([plain_name(n) for n in behind])
        if (found is not None or again) and self._copies.bring(behind):
            self.remedied += 1
            if found is not None:
                self._tell(found, "copied the statistics of the layers that they follow, as before each evaluation")

    def _reestimate(self) -> None:
        """Average the statistics of the last batches, at the weights as they are."""
        batches, seen = list(self._kept.batches), self.seen
        if self._rehearsal is None:
            return
        which = {*seen.values, *(seen.frozen if self._unfit else ())}
        done = self._rehearsal.reestimate([seen.layers[i] for i in sorted(which)], batches)
        self.remedied += done > 0
        if done and not self._told_new:
            self._told_new = True
            self.tell(
                STALE,
                f"{verdicts.count(done, 'layer')} would normalise by averages over past weights; those of the present "
                "weights would do.",
                severity="info",
                evidence={"layers": done, "batches": len(batches)},
                remedy=f"estimated them anew from the last {len(batches)} batches",
            )
