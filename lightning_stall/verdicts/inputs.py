"""What the numbers of a batch's inputs mean: floats in, a verdict out. Knows neither torch nor Lightning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_stall.finding import Severity

LARGE = 30.0  # root mean square of inputs
SMALL = 0.01  # of those that are not 0, so that one-hot and sparse inputs are not small
DISPARATE = 1e3  # largest over smallest spread of columns
ENOUGH_BATCHES = 8
ENOUGH_ROWS = 32
ENOUGH_LOST = 128  # samples that show that a column never changes
LOST = 0.5  # share of the columns
FILLED = 0.25  # the same, of columns that hold the same number, and not 0
DENSE = 0.9  # share of the entries of the other columns that are not 0
LEVELS_EXPLAIN = 0.1  # share of the targets' variance that only categories explain, no curve
THROWN = 10.0  # times the usual loss or gradient norm
HURT = 3.0  # times the loss of other batches, that those with a value for missing ones must have
FAR = 100.0  # times the usual magnitude, under which what an outlier throws must be thrown further
FAR_THROWN = 100.0
BEYOND_DOUBT = 1e3  # times the usual magnitude, at which an outlier that throws the loss is told at once
FEW = 0.02  # share of samples that may be outliers; more of them are the data
UNORDERED = 0.15  # correlation of neighbours in a sequence, from which on they are measurements of something
LISTED = 32  # columns printed as code


@dataclass(frozen=True)
class Verdict:
    """What to tell. `statistical` ones wait for a bad outcome; `strength` is how sure this alone explains a stall."""

    code: str
    summary: str
    advice: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    statistical: bool = True
    severity: Severity = "warning"


@dataclass(frozen=True)
class InputNumbers:
    """One float input field. `spreads` are robust standard deviations a column; 0 for constant and two-valued ones."""

    name: str
    batches: int
    rows: int
    rms: float
    nonzero_rms: float
    mean: Sequence[float]
    std: Sequence[float]
    spreads: Sequence[float] = ()
    columns: Sequence[str] = ()
    changes: bool = True
    single_value: bool = False
    normalised: bool = False  # the first layer is a normalisation
    entry: str = ""  # name of the layer it enters; empty where unknown
    entry_rms: float = math.nan  # of what really enters, where a step makes something else of the field
    entry_spreads: float = math.nan


def ramp(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`, straight in the logarithm."""
    if not value > 0:
        return 0.0
    return min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))


def short(value: float) -> str:
    return f"{value:.3g}"


def as_code(mean: Sequence[float], std: Sequence[float]) -> str:
    """The measured statistics as lines to paste."""
    if len(mean) > LISTED:
        lines = ["mean, std = x_train.mean(dim=0), x_train.std(dim=0).clamp_min(1e-6)"]
    elif len(mean) == 1:
        lines = [f"mean, std = {mean[0]:.6g}, {std[0]:.6g}"]
    else:
        lines = [
            f"{n} = torch.tensor([{', '.join(f'{v:.5g}' for v in vs)}])" for n, vs in (("mean", mean), ("std", std))
        ]
    return "".join(f"\n    {line}" for line in [*lines, "x = (x - mean) / std"]) + "\n"


def nonfinite_inputs(
    name: str, target: bool, batch: str, rows: int, row: int, columns: Sequence[str], share: float, validation: bool
) -> Verdict:
    """NaN or Inf in a batch that also spoilt the gradients (or the validation loss) which were finite before.

    Args:
        name: the field; target: whether the loss uses it as one.
        batch: "batch 3 of epoch 0".
        rows: samples that hold such values; row: the first of them, -1 where the batch could not be looked into.
        columns: of a table, those concerned.
        share: of the field's entries, NaN where not known.
        validation: seen in validation.
    """
    inside = f" in {', '.join(columns[:5])}" + (" and others" if len(columns) > 5 else "") if columns else ""
    many = f" in {rows} sample{'s' if rows > 1 else ''} (the first is sample {row})" if row >= 0 else ""
    after = (
        "the validation loss is not finite" if validation else "the gradients, finite before it, are not finite on it"
    )
    return Verdict(
        "nonfinite-inputs",
        f"`{name}`, {'a target' if target else 'an input'}, holds NaN or Inf{inside}{many} of {batch}, and {after}; "
        "none would do.",
        evidence={"samples": float(rows), "share": share, "strength": 0.98},
        where=tuple(f"{name}: {c}" for c in columns) or (name,),
        statistical=False,
        severity="warning" if validation else "critical",
    )


def left_out(count: int, batches: int, field: str) -> Verdict:
    """Batches that hold NaN or Inf, and that the training step made no loss of.

    Args:
        count: of these; batches: of all so far.
        field: the field of the first, empty where it was not looked for.
    """
    name = f"`{field}`" if field else "A field"
    return Verdict(
        "nonfinite-inputs",
        f"{name} holds NaN or Inf in {count} of {batches} batches, on which no backward pass was made: {count / batches:.0%} "
        "of the data train nothing, for a few values; under 20% would pass.",
        "Mend the few values, and keep the rest of their batches:\n\n"
        "    x = torch.where(x.isfinite(), x, mean)  # or drop those samples in the dataset",
        {"batches": float(count), "of": float(batches), "strength": 0.8},
        (field,) if field else (),
        statistical=False,
    )


def unscaled_inputs(x: InputNumbers) -> Verdict | None:
    """Inputs far from unit scale where they enter the first trained layer, unless that layer normalises them."""
    if x.batches < 1 or x.normalised or not x.changes:
        return None
    rms, nonzero = x.rms, x.nonzero_rms
    if not math.isnan(x.entry_rms):  # made smaller on the way in, zeros stay zeros
        rms, nonzero = x.entry_rms, x.entry_rms * max(1.0, nonzero / rms if rms > 0 else 1.0)
    if math.isinf(x.entry_rms) and not math.isinf(x.rms):
        return None  # what the model itself makes of them on their way in is another fault
    if rms > LARGE:
        strength, fine = 0.3 + 0.6 * ramp(rms, 10.0, 1e3), f"up to {LARGE:g} would pass"
        size = f"a root mean square of {short(rms)}"
    elif 0 < nonzero < SMALL:
        strength, fine = 0.3 + 0.6 * ramp(1 / nonzero, 10.0, 1e4), f"{SMALL:g} and more would pass"
        size = f"a root mean square of {short(nonzero)} where they are not 0"
    else:
        return None
    into = f" where they enter `{x.entry}`" if x.entry else ""
    return Verdict(
        "unscaled-inputs",
        f"The inputs `{x.name}` have {size}{into} (over {x.rows} samples); about 1 is best, {fine}.",
        "Standardise the inputs, once, with the numbers of the training set (measured here on "
        f"{x.rows} samples), and the same for validation and prediction:\n{as_code(x.mean, x.std)}",
        {"rms": rms, "nonzero_rms": nonzero, "samples": float(x.rows), "strength": strength},
        (x.name,),
    )


def disparate_scales(x: InputNumbers) -> Verdict | None:
    """Columns whose spreads differ by orders of magnitude; constant and two-valued columns do not count."""
    known = [(s, n) for s, n in zip(x.spreads, x.columns, strict=False) if s > 0]
    if len(known) < 2 or x.rows < ENOUGH_ROWS or x.normalised:
        return None
    known.sort(reverse=True)
    (widest, wide), (narrowest, narrow) = known[0], known[-1]
    ratio = widest / narrowest
    if not math.isnan(x.entry_spreads):
        ratio = min(ratio, x.entry_spreads)  # a step may scale them on the way
    if not ratio > DISPARATE:
        return None
    return Verdict(
        "disparate-feature-scales",
        f"The spreads of the columns of `{x.name}` differ {short(ratio)}-fold: {short(widest)} in {wide}, "
        f"{short(narrowest)} in {narrow}; up to {DISPARATE:g}-fold would pass, 1 is best.",
        f"Standardise each column by itself (measured here on {x.rows} samples):\n{as_code(x.mean, x.std)}",
        {
            "spread_ratio": ratio,
            "largest_std": widest,
            "smallest_std": narrowest,
            "strength": 0.3 + 0.6 * ramp(ratio, 1e2, 1e5),
        },
        (f"{x.name}: {wide}", f"{x.name}: {narrow}"),
    )


def constant_inputs(
    inputs: Sequence[InputNumbers], others_vary: bool, targets_vary: bool, epoch: float
) -> Verdict | None:
    """Fields that are the same for every sample: certain where all are and the targets differ, else statistical.

    One sample that comes again and again, as a whole graph does, is none.

    Args:
        inputs: the float fields.
        epoch: batches an epoch.
        others_vary: whether an integer field that is no target varies (token ids, sizes, indices).
        targets_vary: whether the targets differ from sample to sample.
    """
    enough = [
        x
        for x in inputs
        if x.batches >= ENOUGH_BATCHES and x.rows / x.batches * min(epoch, float(x.batches)) >= ENOUGH_ROWS
    ]
    still = [x for x in enough if not x.changes]
    if not still or not targets_vary:
        return None
    everything = len(still) == len(inputs) and not others_vary
    # a mask, a grid or a weight may be the same for all samples; what a trained layer eats should not
    eaten = [x for x in still if x.single_value and x.entry]
    if not everything and not eaten:
        return None
    worst = still[0] if everything else eaten[0]
    what = f"every entry is {short(worst.mean[0])}" if worst.single_value else "each sample is equal to the first"
    into = f" that enter `{worst.entry}`" if worst.entry else ""
    whole = "Nothing of the input" if everything else f"Nothing of `{worst.name}`"
    return Verdict(
        "constant-inputs",
        f"{whole} changed over {worst.rows} samples in {worst.batches} batches{into}: {what}; it should differ from "
        "sample to sample.",
        evidence={
            "samples": float(worst.rows),
            "batches": float(worst.batches),
            "constant_fields": float(len(still)),
            "fields": float(len(inputs)),
            "strength": 0.95 if everything else 0.7,
        },
        where=tuple(x.name for x in (still if everything else eaten)),
        statistical=not everything,
    )


def lost_columns(x: InputNumbers) -> Verdict | None:
    """Most columns of a table hold one value each, as where a join or an export lost them; or several the same one.

    Sparse counts are zero where nothing was counted: zeros count only where the other columns are hardly ever zero. Of
    columns that all hold the same other number, as where a default has filled them, a few are enough to be suspected.
    """
    if x.batches < ENOUGH_BATCHES or x.rows < ENOUGH_LOST or len(x.std) < 4 or not x.changes:
        return None
    still = [i for i, spread in enumerate(x.std) if not spread > 1e-6 * max(1.0, abs(x.mean[i]))]
    filled = sum(x.mean[i] != 0 for i in still)
    nonzero = (x.rms / x.nonzero_rms) ** 2 if x.nonzero_rms > 0 else 0.0  # share of all entries
    dense = nonzero * len(x.std) - filled >= DENSE * (len(x.std) - len(still)) > 0
    most = len(still) >= LOST * len(x.std) and (filled >= 0.5 * len(still) or dense)
    alike = Counter(round(x.mean[i], 6) for i in still if x.mean[i] != 0 or dense).most_common(1)
    if not most:
        if not alike or alike[0][1] < max(3, FILLED * len(x.std)):
            return None
        still = [i for i in still if round(x.mean[i], 6) == alike[0][0]]  # 0 among them, where the others never are
    names = [x.columns[i] if x.columns else f"column {i}" for i in still]
    return Verdict(
        "constant-inputs",
        f"{len(still)} of the {len(x.std)} columns of `{x.name}` did not change over {x.rows} samples ({names[0]} is always "
        f"{short(x.mean[still[0]])}); under {LOST if most else FILLED:.0%} would pass.",
        evidence={
            "constant_columns": float(len(still)),
            "columns": float(len(x.std)),
            "samples": float(x.rows),
            "strength": 0.7 if most else 0.6,
        },
        where=tuple(names[:8]),
    )


def categorical_as_numeric(
    name: str,
    columns: Sequence[tuple[str, int, float, float]],
    width: int,
    targets_known: bool,
    order: tuple[int, float] | None = None,
) -> Verdict | None:
    """Columns of codes that act as categories: told by what they say of the targets, or, weakly, by being all there is.

    Args:
        name: the field.
        columns: of columns that hold codes: name, levels, share of the targets' variance explained by a value for each
            level, and share explained by a smooth curve.
        width: all columns of the field.
        targets_known: whether those shares were measured.
        order: of a sequence of whole numbers, its places, and how much a value is like the next, as quantities are.
    """
    acting = [c for c in columns if c[2] - c[3] > LEVELS_EXPLAIN]
    if acting:
        column, levels, categories, curve = max(acting, key=lambda c: c[2] - c[3])
        gain = categories - curve
        return Verdict(
            "categorical-as-numeric",
            f"In `{name}`, {column} holds {levels} whole numbers that act as names: a value for each explains "
            f"{categories:.0%} of the targets' variance, a smooth curve through them {curve:.0%}; within "
            f"{LEVELS_EXPLAIN:.0%} of each other they would pass for numbers.",
            evidence={
                "levels": float(levels),
                "as_categories": categories,
                "as_curve": curve,
                "columns": float(len(acting)),
                "strength": min(0.9, 0.4 + gain),
            },
            where=tuple(f"{name}: {c[0]}" for c in acting),
        )
    if order is not None and targets_known and len(columns) == order[0] and len({c[1] for c in columns}) == 1:
        places, likeness = order
        if abs(likeness) < UNORDERED:
            return Verdict(
                "categorical-as-numeric",
                f"Each of the {places} places of `{name}` holds one of {columns[0][1]} whole numbers, as codes of letters do, "
                f"and the next is no more like it than any other (correlation {likeness:.2f}; of a quantity it would be over "
                f"{UNORDERED:g}).",
                evidence={"levels": float(columns[0][1]), "columns": float(places), "strength": 0.4},
                where=(name,),
            )
    if targets_known and width == len(columns) and 0 < width <= 2:
        column, levels, *_ = columns[0]
        return Verdict(
            "categorical-as-numeric",
            f"All there is in `{name}` is {column} with {levels} whole numbers from 0 or 1 up, as category codes have; "
            "a measured quantity would have fractions.",
            evidence={"levels": float(levels), "columns": float(len(columns)), "strength": 0.2},
            where=tuple(f"{name}: {c[0]}" for c in columns),
        )
    return None


def fill_value(place: str, size: float, usual: float, held: int, of: int, hurt: float) -> Verdict | None:
    """One value, the same each time and far outside all others, as is written where nothing was measured.

    Args:
        place: the field, and its column.
        size: its magnitude; usual: the largest magnitude without it.
        held: batches with it; of: all that were looked at.
        hurt: the loss, or the gradient norm, on these over that on others; NaN where only one batch was looked into.
    """
    if hurt < HURT:
        return None
    thrown = "" if math.isnan(hurt) else f", and the loss or its gradient is {short(hurt)} times as large on them"
    return Verdict(
        "corrupt-samples",
        f"`{place}` holds {short(size)} (or minus that), always the same, in {held} of {of} batches looked at, where up to "
        f"{short(usual)} is usual{thrown}: as if it stood for values that are missing.",
        evidence={
            "value": size,
            "usual": usual,
            "ratio": size / usual,
            "batches": float(held),
            "of": float(of),
            **({} if math.isnan(hurt) else {"hurt": hurt}),
            # a model may leave out what is marked so
            "strength": 0.65 if math.isnan(hurt) else 0.85,
        },
        where=(place,),
    )


@dataclass(frozen=True)
class Outlier:
    """A batch with samples far outside, and what the training did on it."""

    field: str
    batch: str  # "batch 3 of epoch 0"
    step: int
    row: int  # in the batch; -1 where not known
    ratio: float  # over what is usual
    limit: float
    loss_leap: float  # loss of that step over the usual loss; infinite where it was not finite
    norm_leap: float


def corrupt_samples(outliers: Sequence[Outlier], seen: int) -> Verdict | None:
    """Samples orders of magnitude outside all others, on whose batches the loss or the gradients leap.

    Heavy tails do not count: what leaps must also leap out of the data's own spread (`limit`), and hurt, the more so
    where it leaps less far.

    Args:
        outliers: worst first.
        seen: batches looked at.
    """
    hurting = [o for o in outliers if max(o.loss_leap, o.norm_leap) >= (THROWN if o.ratio >= FAR else FAR_THROWN)]
    if not hurting or len({o.step for o in hurting}) > max(3.0, 0.25 * seen):
        return None
    worst = max(hurting, key=lambda o: o.ratio)
    hurt = max(worst.loss_leap, worst.norm_leap)
    what = "loss" if worst.loss_leap >= worst.norm_leap else "gradient norm"
    leapt = f"the {what} leapt {short(hurt)}-fold" if math.isfinite(hurt) else f"the {what} was not finite"
    row = f", sample {worst.row}," if worst.row >= 0 else ""
    beyond = worst.ratio >= BEYOND_DOUBT and hurt >= 10 * THROWN
    return Verdict(
        "corrupt-samples",
        f"In {worst.batch}{row} `{worst.field}` is {short(worst.ratio)} times as large as in a usual batch, and "
        f"{leapt} on it; up to {short(worst.limit)} times would pass for these data. {len(hurting)} of {seen} batches "
        "are like that.",
        evidence={
            "ratio": worst.ratio,
            "limit": worst.limit,
            "loss_leap": min(worst.loss_leap, 1e30),
            "gradient_leap": min(worst.norm_leap, 1e30),
            "batches": float(len(hurting)),
            "strength": 0.95 if beyond else 0.5 + 0.3 * ramp(worst.ratio, 1e2, 1e4),
        },
        where=tuple(f"{o.field}: {o.batch}" + (f", sample {o.row}" if o.row >= 0 else "") for o in hurting[:16]),
        statistical=not beyond,
    )
