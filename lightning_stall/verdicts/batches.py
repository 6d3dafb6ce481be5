"""From what was measured on the batches to verdicts: reads the device at checks, and asks the pure judges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from lightning_stall.measure.batch_watch import BadBatch, BatchWatch
from lightning_stall.measure.batches import column_names, sample_count
from lightning_stall.measure.columns import ROWS, WIDEST, ExtremeHistory, FieldWatch, Moments, robust_spreads, stacked
from lightning_stall.measure.labels import ClassCounts, TargetScale
from lightning_stall.measure.probe import Signal, code_column, neighbours, signal
from lightning_stall.verdicts import inputs as judge_inputs
from lightning_stall.verdicts import targets as judge_targets
from lightning_stall.verdicts.inputs import InputNumbers, Outlier, Verdict

LONG_ENOUGH = 100  # optimizer steps after which "explains nothing" means something
HALF = 0.5  # share of a constant predictor's loss
SURE = 0.9  # strength of outliers by which nothing else need be looked for
REMEMBERED = 64  # outliers
SHOWN_CLASSES = 20
MOST_COLUMNS = 64  # looked at for category codes
FAR = 1e3
USUAL_OVER = 64  # optimizer steps that say what the loss usually is


@dataclass(frozen=True)
class Context:
    """What the verdicts need to know of the run besides its batches."""

    step: int
    loader: Any
    shuffles: bool | None
    deliberate: bool  # `overfit_batches` or a trial run: few samples in a fixed order are the aim
    epoch_over: bool  # at least one epoch was seen whole
    batches: float  # in an epoch, infinite where not known
    parameters: int  # that are trained
    losses: Sequence[tuple[int, float]]  # (step, loss)
    norms: Sequence[tuple[int, float]]  # (step, gradient norm)
    first_loss: float  # median of the first ones
    level: float  # the loss now, NaN where not known
    explained: float
    val_explained: float
    update_ratio: float


@dataclass
class BatchJudge:
    """Judges at checks; what is slow is done once and kept."""

    bond: Signal | None = None
    outliers: list[Outlier] = field(default_factory=list)
    codes: dict[str, list[tuple[str, int, float, float]]] = field(default_factory=dict)
    order: dict[str, tuple[int, float]] = field(default_factory=dict)  # places of a sequence, likeness of neighbours
    spreads: dict[str, list[float]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    fill: Verdict | None = None  # a value that stands for missing ones
    only_class: bool = False  # all targets so far are of one class: count on
    _sampled: int = 0
    _asked: bool = False

    def verdicts(self, watch: BatchWatch, run: Context, leave: frozenset[str]) -> Iterator[tuple[str, Verdict | None]]:
        """(code, verdict) of everything that can be judged now; None where the code does not hold.

        Args:
            leave: input fields that are standardised already.
        """
        self.moments = {n: m for n, w in watch.inputs.items() if (m := w.read()) is not None}
        self.logged = {}
        self._read_sample(watch, run.loader)
        inputs = [self._numbers(watch, name, run.loader) for name in self.moments]
        inputs += _cast(watch)
        widths = {x.name: len(x.mean) for x in inputs}
        named = {name for name, columns in watch.ids.items() if len(columns) >= widths.get(name, 0)}
        judged = [x for x in inputs if x.name not in leave | named]
        yield "unscaled-inputs", _strongest(judge_inputs.unscaled_inputs(x) for x in judged)
        yield "disparate-feature-scales", _strongest(judge_inputs.disparate_scales(x) for x in judged)
        found = (
            judge_inputs.categorical_as_numeric(name, columns, widths[name], watch.roles.certain, self.order.get(name))
            for name, columns in self.codes.items()
            if name in widths and columns
        )
        yield "categorical-as-numeric", _strongest(found)
        yield "corrupt-samples", self.corrupt(watch, run)
        yield from self._judge_targets(watch, run, inputs)

    def _judge_targets(
        self, watch: BatchWatch, run: Context, inputs: list[InputNumbers]
    ) -> Iterator[tuple[str, Verdict | None]]:
        classes, scale = watch.labels.classes(), watch.labels.scale()
        varied = True
        self.only_class = False
        grouped = imbalanced = single = None
        if classes is not None and watch.roles.certain:  # targets made in the step (a GAN's ones) are no data
            varied = sum(c > 0 for c in classes.counts) > 1
            settled = run.step >= LONG_ENOUGH and run.explained < HALF
            imbalanced = judge_targets.class_imbalance(
                classes.counts, classes.predicted, classes.weighted, settled, run.explained
            )
            if not classes.dense and not run.deliberate:
                grouped = judge_targets.unshuffled(
                    classes.grouping, classes.error, classes.blocks, run.shuffles, classes=True
                )
            single = self._one_class(watch, run, classes)
            total = max(1.0, sum(classes.counts))
            for k, count in enumerate(classes.counts[:SHOWN_CLASSES]):
                self.logged[f"stall/targets/share/{k}"] = count / total
        elif classes is not None and watch.computed:
            single = self._one_class(watch, run, classes)
        elif scale is not None and watch.roles.certain:
            varied = scale.std > 0
            self.only_class = scale.single
            whole = run.epoch_over or (run.shuffles is True and watch.labels.rows >= 512)
            if scale.single and whole and not run.deliberate:
                single = judge_targets.one_value(scale.mean, _at_most(watch.labels.rows, run), watch.plain)
            if not run.deliberate:
                grouped = judge_targets.unshuffled(
                    scale.grouping, scale.error, scale.batches, run.shuffles, classes=False
                )
            self.logged |= {"stall/targets/mean": scale.mean, "stall/targets/std": scale.std}
        if not run.deliberate:
            others = any((m := w.read()) is None or m.changes for w in watch.integers.values())
            whole = not inputs and not watch.extremes  # no field of the batch is a float
            ids = [x for x in (_numbers_of(n, w) for n, w in watch.integers.items()) if whole and x]
            still = judge_inputs.constant_inputs(inputs or ids, others, varied, run.batches)
            yield "constant-inputs", still or _strongest(judge_inputs.lost_columns(x) for x in inputs)
        yield "class-imbalance", imbalanced
        yield "unshuffled-data", grouped
        yield "unscaled-targets", self._off_scale(watch, run, scale)
        yield "uninformative-targets", single or self._uninformative(watch, run, inputs)

    def _one_class(self, watch: BatchWatch, run: Context, classes: ClassCounts) -> Verdict | None:
        self.only_class = sum(c > 0 for c in classes.counts) == 1
        whole = run.epoch_over or (run.shuffles is True and watch.labels.rows >= 512)
        return judge_targets.one_class(
            classes.counts, _at_most(watch.labels.rows, run), whole and not run.deliberate, watch.plain
        )

    def _off_scale(self, watch: BatchWatch, run: Context, scale: TargetScale | None) -> Verdict | None:
        if watch.roles.certain:
            scales = [(w.kind, s) for w in (watch.labels, *watch.terms.values()) if (s := w.scale()) is not None]
            verdict = _strongest(
                judge_targets.unscaled_targets(s.mean, s.std, s.residual, s.rows, (kind or "training").upper())
                for kind, s in scales
            )
            if verdict is not None:
                return verdict
        elif scale is None and watch.labels.kind is None and watch.guessed is not None:
            return _off_scale_by_guess(watch.guessed, run)
        if watch.soft is not None:
            total, spread, hard, least = watch.soft.numbers.tolist()
            if least >= 0:
                return judge_targets.soft_targets(total, spread, bool(hard), watch.soft.rows, watch.soft.field)
        return None

    def _uninformative(self, watch: BatchWatch, run: Context, inputs: list[InputNumbers]) -> Verdict | None:
        known = run.val_explained if math.isfinite(run.val_explained) else run.explained
        if run.step < LONG_ENOUGH or run.deliberate or not known < judge_targets.EXPLAINED_LITTLE:
            return None
        if not self._asked:
            self._asked = True
            self.bond = self._ask(watch)
        if self.bond is None:
            return None
        healthy = all(judge_inputs.unscaled_inputs(x) is None and x.changes for x in inputs)
        return judge_targets.uninformative_targets(
            run.explained, self.bond.best, self.bond.samples, run.update_ratio, run.val_explained, healthy
        )

    def _ask(self, watch: BatchWatch) -> Signal | None:
        """Whether the samples themselves tell anything about their targets."""
        parts = [w.sample for w in watch.inputs.values() if w.sample]
        lengths = [len(t) for t in watch.labels.sample]
        # wide ones end sooner, when enough of them are kept
        enough = min(ROWS, sum(lengths[:-1]))
        aligned = [p for p in parts if (sizes := [len(t) for t in p]) == lengths[: len(p)] and sum(sizes) >= enough]
        if not aligned or watch.labels.mixed or watch.labels.dense or not watch.roles.certain:
            return None
        rows = [r for p in aligned if (r := stacked(p)) is not None]
        y = stacked(watch.labels.sample)
        n = min(len(r) for r in [*rows, y]) if y is not None else 0
        if y is None or not n:
            return None
        return signal(torch.cat([r[:n] for r in rows], 1), y[:n], watch.labels.kind == "cross-entropy")

    # ------------------------------------------------------------------ inputs

    def _numbers(self, watch: BatchWatch, name: str, loader: Any) -> InputNumbers:
        m = self.moments[name]
        entry, as_it_is = watch.entry(name)
        tag = name.replace("batch", "", 1).strip("[]'.") or "batch"
        self.logged[f"stall/inputs/mean/{tag}"] = math.fsum(m.mean) / len(m.mean)
        self.logged[f"stall/inputs/std/{tag}"] = math.sqrt(math.fsum(s * s for s in m.std) / len(m.std))
        numbers = InputNumbers(
            name=name,
            batches=m.batches,
            rows=m.rows,
            rms=m.rms,
            nonzero_rms=m.nonzero_rms,
            mean=m.mean,
            std=m.std,
            # of sequences, by what is measured at each of their places
            spreads=self.spreads.get(name, m.std if len(watch.inputs[name].shape) == 2 and len(m.std) > 1 else ()),
            columns=column_names(loader, len(m.mean)),
            changes=m.changes,
            single_value=m.single_value,
            normalised=entry is not None and as_it_is and entry.normalises,
            entry=entry.module if entry is not None and as_it_is else "",
            entry_rms=math.nan if entry is None or as_it_is else entry.rms,
            entry_spreads=math.nan if entry is None or as_it_is else entry.spreads,
        )

        ids = watch.ids.get(name)
        return numbers if not ids else _without(numbers, ids)

    def _read_sample(self, watch: BatchWatch, loader: Any) -> None:
        """Look at the kept rows of tables, again only where there are more of them."""
        fields = {**watch.inputs, **{x.name: watch.integers[x.name] for x in _cast(watch)}}
        kept = sum(len(t) for w in fields.values() for t in w.sample)
        if (kept < self._sampled + 32 and kept < 2 * self._sampled) or not kept:
            return
        self._sampled = kept
        y = stacked(watch.labels.sample) if not watch.labels.mixed and not watch.labels.dense else None
        for name, w in fields.items():
            rows = stacked(w.sample)
            if rows is None or rows.shape[1] > WIDEST or len(w.shape) > 2 or (len(w.shape) == 2 and min(w.shape) > 1):
                continue
            names = [f"position {i}" for i in range(rows.shape[1])]
            if len(w.shape) == 1:
                self.spreads[name] = robust_spreads(rows)
                names = column_names(loader, rows.shape[1])
            whole = (rows == rows.round()).all(0).tolist()
            if len(w.shape) == 2 and rows.shape[1] > 1 and all(whole):
                self.order[name] = rows.shape[1], neighbours(rows)
            same = [len(t) for t in w.sample] == [len(t) for t in watch.labels.sample[: len(w.sample)]]
            target = y[: len(rows)] if y is not None and same and len(y) >= len(rows) else None
            self.codes[name] = [
                (names[i], c.levels, c.as_categories, c.as_curve)
                for i, fits in enumerate(whole[-MOST_COLUMNS:], max(0, len(whole) - MOST_COLUMNS))
                if fits
                and i not in watch.ids.get(name, ())
                and (c := code_column(rows[:, i], target, watch.labels.kind == "cross-entropy")) is not None
            ]

    def corrupt(self, watch: BatchWatch, run: Context) -> Verdict | None:
        """Samples far outside all others, those that were seen before among them."""
        for name, history in watch.extremes.items():
            for leap in history.leaps():
                place = f"{name}, column {leap.column}" if leap.column >= 0 else name
                loss, norm = (_leap_over(values, leap.step) for values in (run.losses, run.norms))
                batch = f"batch {leap.batch_idx} of epoch {leap.epoch}"
                self.outliers.append(Outlier(place, batch, leap.step, leap.row, leap.ratio, leap.limit, loss, norm))
        self.outliers = sorted(self.outliers, key=lambda o: -o.ratio)[:REMEMBERED]
        found = judge_inputs.corrupt_samples(self.outliers, watch.batches)
        if found is not None and (not found.statistical or found.evidence["strength"] >= SURE):
            return found
        fills = [v for n, h in watch.extremes.items() if (v := _filled(n, h, run)) is not None]
        self.fill = _strongest([*fills, self.fill])  # what it did at first a model may have learnt to live with
        return _strongest([self.fill, found])


def _filled(name: str, history: ExtremeHistory, run: Context) -> Verdict | None:
    """A value of this field that stands for missing ones, where the batches that hold it are thrown by it."""
    fill = history.fill_value()
    if fill is not None:
        hurt = max(_times(values, fill.with_it, fill.without) for values in (run.losses, run.norms))
        place = f"{name}, column {fill.column}" if fill.column >= 0 else name
        batches = len(fill.with_it) + len(fill.without)
        return judge_inputs.fill_value(place, fill.size, fill.usual, len(fill.with_it), batches, hurt)
    if history.inside is not None:
        _, size, other = history.inside
        return judge_inputs.fill_value(name, size, other, 1, 1, math.nan)
    return None


def _times(values: Sequence[tuple[int, float]], steps: Sequence[int], others: Sequence[int]) -> float:
    """The median over some optimizer steps over that of others; 0 where either is not known."""
    known = {step: value for step, value in values if math.isfinite(value)}
    these, those = ([known[s] for s in some if s in known] for some in (steps, others))
    return median(these) / median(those) if these and those and median(those) > 0 else 0.0


def _without(x: InputNumbers, ids: Set[int]) -> InputNumbers:
    """The numbers of a table without the columns that an embedding is given."""
    kept = [i for i in range(len(x.mean)) if i not in ids]
    if not kept:
        return x
    rms = math.sqrt(math.fsum(x.mean[i] ** 2 + x.std[i] ** 2 for i in kept) / len(kept))
    whole = len(x.spreads) == len(x.mean)
    return replace(
        x,
        rms=rms,
        nonzero_rms=rms,
        mean=[x.mean[i] for i in kept],
        std=[x.std[i] for i in kept],
        spreads=[x.spreads[i] for i in kept] if whole else x.spreads,
        columns=[x.columns[i] for i in kept] if len(x.columns) == len(x.mean) else x.columns,
        entry_rms=math.nan,
        entry_spreads=math.nan,
    )


def _numbers_of(name: str, w: FieldWatch) -> InputNumbers | None:
    """The numbers of an integer field: ids of tokens, counts, pixels."""
    m = w.read()
    if m is None or not len(w.shape):
        return None
    return InputNumbers(
        name=name,
        batches=m.batches,
        rows=m.rows,
        rms=m.rms,
        nonzero_rms=m.nonzero_rms,
        mean=m.mean,
        std=m.std,
        changes=m.changes,
        single_value=m.single_value,
    )


def _cast(watch: BatchWatch) -> Iterator[InputNumbers]:
    """Whole numbers that a step casts to float and hands to its first layer as they are: samples of sound, pixels."""
    for name, w in watch.integers.items():
        numbers = None if name in watch.roles.targets else _numbers_of(name, w)
        if numbers is None:
            continue
        entered = (e for e in watch.entries if e.field is None and 0.3 * numbers.rms < e.rms < 3 * numbers.rms)
        entry = next(entered, None)
        if entry is not None:
            yield replace(numbers, normalised=entry.normalises, entry=entry.module, entry_rms=entry.rms)


def nonfinite(bad: BadBatch, watch: BatchWatch, loader: Any, validation: bool) -> Verdict:
    """A batch whose values were not finite, and that spoilt the gradients or the validation loss."""
    names = column_names(loader, bad.width)
    number = f"batch {bad.batch_idx}" if bad.batch_idx >= 0 else "a batch"
    return judge_inputs.nonfinite_inputs(
        bad.field,
        bad.field in watch.roles.targets,
        f"{'validation ' if validation else ''}{number} of epoch {bad.epoch}",
        bad.rows,
        bad.row,
        [names[i] for i in bad.columns],
        bad.share,
        validation,
    )


def too_little(watch: BatchWatch, run: Context, val_loss: float) -> Verdict | None:
    """Whether there is enough to learn from, once the run is over."""
    samples = sample_count(run.loader)
    if samples is None or run.deliberate or not watch.measured:
        return None
    if math.isfinite(run.batches):
        samples = min(samples, math.ceil(run.batches * watch.rows / watch.measured))
    classes = watch.labels.classes()
    told = 0.0 if classes is None else sum(classes.counts)
    targets = samples * max(1.0, told / max(1, watch.labels.rows))
    if math.isfinite(run.batches):  # of one graph, many nodes are told
        targets = max(targets, run.batches * told / watch.measured)
    tables = [w for w in watch.inputs.values() if len(w.shape) == 1 and w.batches]
    # of a graph, a sample holds many rows
    columns = max((w.shape[0] for w in tables if w.rows / w.batches <= samples), default=0)
    return judge_targets.too_little_data(samples, targets, run.parameters, run.explained, run.level, val_loss, columns)


def _at_most(rows: int, run: Context) -> int:
    """Different samples among so many that were seen: no more than the set has."""
    samples = sample_count(run.loader)
    return rows if samples is None else min(rows, samples)


def _off_scale_by_guess(target: FieldWatch, run: Context) -> Verdict | None:
    """Without a built-in loss: the field that should be the target is it, if the first losses are of its size."""
    moments = target.read()
    if moments is None or not run.first_loss > 0 or not moments.rms > 0 or not run.losses:
        return None
    now = run.losses[-1][1]
    for power in (1, 2):  # a mean absolute error, a mean squared error
        if 0.2**power < run.first_loss / moments.rms**power < 5.0**power:
            residual = moments.rms * (max(now, 0.0) / run.first_loss) ** (1 / power)
            mean = math.fsum(moments.mean) / len(moments.mean)
            std = math.sqrt(max(0.0, moments.rms**2 - mean**2))
            return judge_targets.unscaled_targets(mean, std, residual, moments.rows, "training")
    return None


def _leap_over(values: Sequence[tuple[int, float]], step: int) -> float:
    """Value of one step over the median of those around it, of which there must be some, or it must be far beyond them.

    Infinite where it is not finite and was before; 0 where it can not be told.
    """
    near = [(s, v) for s, v in values if abs(s - step) <= USUAL_OVER]
    others = sorted(v for s, v in near if s != step and math.isfinite(v))
    own = [v for s, v in near if s == step]
    before = [v for s, v in near if s == step - 1]
    if any(s > step and not math.isfinite(v) for s, v in near):  # what came of it is not usual
        others = sorted(v for s, v in near if s < step and math.isfinite(v)) or others
    if not own or not others or not all(map(math.isfinite, before)):
        return 0.0
    if not math.isfinite(own[-1]):
        return math.inf
    middle = others[len(others) // 2]
    leap = own[-1] / middle if middle > 0 else 0.0
    return leap if len(others) >= 4 or leap > FAR else 0.0  # where the run was lost soon after, there are few others


def _strongest(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    return max((v for v in verdicts if v is not None), key=lambda v: v.evidence["strength"], default=None)
