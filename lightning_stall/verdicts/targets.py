"""What the numbers of targets, of their order and of the two sets mean: floats in, a verdict out. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_stall.measure.probe import NO_SIGNAL
from lightning_stall.verdicts.inputs import Verdict, ramp, short

LARGE = 30.0  # root mean square of regression targets
SMALL = 1e-3
MOST = 0.9  # share of the largest class
ALONE = 0.3  # of the other classes' share of the targets: the most that the model may give them to name one alone
UNSURE = -0.5  # share of a constant predictor's loss explained, below which a model does not know how rare classes are
GROUPED = 0.8  # of 1: batches of one class
LEANING = 0.3
LEAKED_SHARE = 0.05
SORTED = 0.95  # of 1: numbers in order
LEAKED_ROWS = 10
FEW_SAMPLES = 50
MEMORISED = 0.9  # share of a constant predictor's loss that is explained
WORSE = 3.0  # validation loss over training loss
EXPLAINED_LITTLE = 0.15  # memorising explains a little as well


def unscaled_targets(mean: float, std: float, residual: float, rows: int, kind: str) -> Verdict | None:
    """Regression targets far from unit scale that the model has not yet come near.

    Args:
        mean, std: of the targets as they reached the loss.
        residual: root mean square error of the model now.
        rows: samples seen.
        kind: the loss.
    """
    size = math.hypot(mean, std)
    if size > LARGE:
        strength, fine = 0.3 + 0.6 * ramp(size, 10.0, 1e3), f"up to {LARGE:g} would pass"
    elif 0 < size < SMALL:
        strength, fine = 0.2 + 0.4 * ramp(1 / size, 1e2, 1e5), f"{SMALL:g} and more would pass"
    else:
        return None
    missing = min(1.0, residual / size) if size else 1.0
    if missing < 0.1:
        return None  # the model is there already: the scale did not stop it
    return Verdict(
        "unscaled-targets",
        f"The targets have mean {short(mean)} and standard deviation {short(std)} where they reach the {kind} loss "
        f"(over {rows} samples); about 0 and 1 are best, {fine} as root mean square.",
        f"""Train on standardised targets (measured here on {rows} samples), and undo it where you predict:

    y_mean, y_std = {mean:.6g}, {std if std > 0 else 1.0:.6g}
    loss = loss_fn(self(x), (y - y_mean) / y_std)
    prediction = self(x) * y_std + y_mean
""",
        {"mean": mean, "std": std, "residual": residual, "strength": strength * missing},
        ("targets",),
    )


def soft_targets(total: float, spread: float, multi_hot: bool, rows: int, name: str) -> Verdict | None:
    """Class probabilities of a cross-entropy that do not sum to one.

    Args:
        total: mean sum of a row; spread: its standard deviation.
        multi_hot: all entries are 0 or 1, as several labels of one sample are.
        rows: samples seen; name: the batch's field, empty where it is not one.
    """
    off = max(total, 1 / max(total, 1e-30))
    if off < 1.5 or not name:
        return None
    return Verdict(
        "unscaled-targets",
        f"The soft targets `{name}` of the cross-entropy sum to {short(total)} a sample (standard deviation "
        f"{short(spread)}, {rows} samples); they must sum to 1.",
        """Make each row a distribution, or pass class indices of type int64:

    target = target / target.sum(dim=1, keepdim=True)

Several labels a sample: `nn.BCEWithLogitsLoss()` instead of a cross-entropy.
""",
        {"row_sum": total, "row_sum_std": spread, "strength": 0.95 if off > 5 and not multi_hot else 0.5},
        (name,),
        statistical=multi_hot or off < 5,
    )


def class_imbalance(
    counts: Sequence[float],
    predicted: Sequence[float],
    weighted: bool,
    settled: bool = False,
    explained: float = math.nan,
) -> Verdict | None:
    """One class outweighs the others and the model names it alone; silent where the loss is weighted, and where it stands
    far above what naming that class takes: such a model has not even learnt how rare the others are.

    Args:
        counts: targets seen, by class.
        predicted: what the model says of late, by class.
        weighted: the loss weighs its classes.
        settled: the run is no longer young, and has not learnt half of what there is to learn: it will not come by itself.
        explained: share of a constant predictor's loss that the run has explained; NaN where that is not known.
    """
    total, guesses = sum(counts), sum(predicted)
    if weighted or total < 200 or guesses < 100 or (settled and explained < UNSURE):
        return None
    top = max(range(len(counts)), key=lambda k: counts[k])
    largest, alone = counts[top] / total, predicted[top] / guesses
    passes = 1 - ALONE * (1 - largest)
    if largest < MOST or alone < passes or total - counts[top] < 3:
        return None
    odds = largest / max(1 - largest, 1e-12)
    rare = [k for k in range(len(counts)) if k != top and counts[k]]
    weights = ", ".join(f"{total / (len(counts) * max(c, 1)):.4g}" for c in counts[:32])
    if len(counts) == 2:
        positive = f"{counts[0] / max(counts[1], 1):.4g}"
        paste = f"loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor({positive}))  # one output"
        paste += f"\n    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([{weights}]))  # one output a class"
    else:
        paste = f"loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([{weights}]))"
    return Verdict(
        "class-imbalance",
        f"Class {top} makes up {largest:.1%} of {total:.0f} targets and {alone:.1%} of what the model predicts; with "
        f"less than {MOST:.0%} of the targets, or less than {passes:.1%} of the predictions, it would pass.",
        f"""Weigh the classes by how rare they are, or draw rare ones more often (`WeightedRandomSampler`), not both:

    {paste}

Judge by balanced accuracy or F1, not by accuracy.
""",
        {
            "largest_share": largest,
            "predicted_share": alone,
            "targets": total,
            "strength": 0.9 if settled else 0.3 + 0.5 * ramp(odds, 9.0, 300.0),
        },
        tuple(f"class {k} ({counts[k] / total:.2%})" for k in sorted(rare, key=lambda k: counts[k])[:8]),
    )


def one_class(counts: Sequence[float], rows: int, whole_epoch: bool, only_loss: bool) -> Verdict | None:
    """Every target is of one class, over a whole epoch: there is nothing to tell apart. Certain for the only loss."""
    present = [k for k, c in enumerate(counts) if c]
    if len(counts) < 2 or len(present) != 1 or sum(counts) < 64 or rows < 32 or not whole_epoch:
        return None
    return Verdict(
        "uninformative-targets",
        f"All {sum(counts):.0f} targets seen ({rows} samples) are of class {present[0]}, of {len(counts)} the model "
        "knows; two classes are the least there is to learn.",
        """Look at the labels before and after each transform. A cast to integer takes every fraction to 0, and so does
scaling that was meant for images:

    print(y_before.unique(), y.unique())  # before and after the cast
    y = (y_before > 0.5).long()  # or .round(), and not .long() alone
""",
        {"classes": 1.0, "targets": float(sum(counts)), "strength": 0.95},
        (f"class {present[0]}",),
        statistical=not only_loss,
    )


def one_value(value: float, rows: int, only_loss: bool) -> Verdict | None:
    """Every target is the same number, over a whole epoch. Certain for the only loss."""
    if rows < 64:
        return None
    return Verdict(
        "uninformative-targets",
        f"All targets of {rows} samples are {value:.4g}: a constant answers them all; two values are the least there is "
        "to learn.",
        "Look at the targets before and after each transform, and at the column that they are read from:\n\n"
        "    print(y.min(), y.max(), y.unique()[:10])",
        {"value": value, "targets": float(rows), "strength": 0.95},
        (f"value {value:.4g}",),
        statistical=not only_loss,
    )


def unshuffled(grouping: float, error: float, blocks: int, shuffles: bool | None, classes: bool) -> Verdict | None:
    """Batches hold one class at a time (certain where nothing shuffles), or lean that way (statistical).

    Args:
        grouping: 0 under random order, 1 where each batch holds one class; of numbers, the variance between batches.
        error: standard error of `grouping` under random order.
        blocks: batches it was measured on.
        shuffles: whether the loader draws at random, None where that is not known.
        classes: class labels, and not numbers.
    """
    if not math.isfinite(grouping) or blocks < 8 or grouping < LEANING or grouping < 6 * error:
        return None
    if not classes and (shuffles is not False or grouping <= GROUPED):
        return None  # the numbers of a time series drift
    certain = classes and grouping > GROUPED and shuffles is not True
    label = "class" if classes else "target values"
    return Verdict(
        "unshuffled-data",
        f"Batches come sorted: samples of one batch share their {label} far beyond chance, {grouping:.2f} on a scale "
        f"from 0 (random order) to 1 (one {'class' if classes else 'value'} a batch), over {blocks} batches; under "
        f"{LEANING:g} would pass.",
        evidence={
            "grouping": grouping,
            "error": error,
            "batches": float(blocks),
            "strength": 0.9 if certain else 0.3 + 0.4 * grouping if classes else _of_numbers(grouping),
        },
        where=("train_dataloader",),
        statistical=not certain,
    )


def _of_numbers(grouping: float) -> float:
    """How sure numbers that come grouped make it: those of a time series may drift."""
    return 0.9 if grouping > SORTED else 0.6


def leakage(found: int, looked_up: int, remembered: int) -> Verdict | None:
    """Samples of the validation set stand in the training set."""
    if not looked_up or found < LEAKED_ROWS or found / looked_up < LEAKED_SHARE:
        return None
    return Verdict(
        "train-val-leakage",
        f"{found} of {looked_up} validation samples ({found / looked_up:.0%}) also stand among {remembered} training "
        f"samples; under {LEAKED_SHARE:.0%} would pass for chance copies.",
        evidence={
            "leaked": float(found),
            "validation_samples": float(looked_up),
            "share": found / looked_up,
            "strength": 0.9,
        },
        where=("val_dataloaders",),
        statistical=False,
    )


def too_little_data(
    samples: int,
    targets: float,
    parameters: int,
    explained: float,
    train_loss: float,
    val_loss: float,
    columns: int = 0,
) -> Verdict | None:
    """Fewer than fifty samples: a warning where they are known by heart and validation is far worse, else a note.

    Where nothing is validated, a table of fewer rows than columns is enough, since any targets fit those.

    Args:
        samples: of one epoch; targets: single targets of one epoch (one picture may hold thousands).
        parameters: that are trained.
        explained: share of a constant predictor's loss that the model explains, NaN where not known.
        train_loss, val_loss: NaN where not known.
        columns: of the table that is learnt from; 0 where it is none.
    """
    if not 0 < samples < FEW_SAMPLES or parameters <= samples:
        return None
    wide = math.isnan(val_loss) and samples < columns
    by_heart = explained >= MEMORISED and (val_loss > WORSE * max(train_loss, 0.0) or wide)
    if not by_heart and targets >= FEW_SAMPLES:
        return None
    summary = f"The training set holds {samples} sample{'s' if samples > 1 else ''} for {parameters} parameters"
    if by_heart:
        summary += f", and the model knows them by heart: training loss {short(train_loss)}, "
        if wide:
            summary += f"of {columns} columns, which fit any targets of so few rows"
        else:
            summary += f"validation loss {short(val_loss)}, where up to {WORSE:g} times the training loss would pass"
    return Verdict(
        "too-little-data",
        f"{summary}; {FEW_SAMPLES} samples are the least to judge by.",
        evidence={
            "samples": float(samples),
            "parameters": float(parameters),
            "train_loss": train_loss,
            "val_loss": val_loss,
            "strength": 0.9 if by_heart else 0.5 if max(samples, targets) <= 10 else 0.1,
        },
        where=("train_dataloader",),
        statistical=not by_heart,
    )


def uninformative_targets(
    explained: float, signal: float, samples: int, update_ratio: float, val_explained: float, healthy_inputs: bool
) -> Verdict | None:
    """The model moves, yet explains nothing, and neither do nearest neighbours or a ridge regression.

    Args:
        explained: share of a constant predictor's loss that the model explains (of validation, where it is known).
        signal: of the samples themselves, in standard deviations above shuffled targets.
        samples: how many it was asked on.
        update_ratio: norm of a step's change over the norm of the weights, NaN where not known.
        val_explained: the best of all validations, NaN where there is none.
        healthy_inputs: whether nothing is wrong with the inputs.
    """
    honest = val_explained if math.isfinite(val_explained) else explained
    if not math.isfinite(signal) or signal >= NO_SIGNAL or not honest < EXPLAINED_LITTLE:
        return None
    moving = 1e-6 < update_ratio < 0.3 if math.isfinite(update_ratio) else True
    if not moving or not healthy_inputs:
        return None
    strength = 0.45 + (0.15 if samples >= 256 else 0.0) + (0.15 if math.isfinite(val_explained) else 0.0)
    return Verdict(
        "uninformative-targets",
        f"The inputs seem to say nothing about the targets: the model explains {honest:.1%} of them, although its "
        f"weights move, and on {samples} samples neither nearest neighbours, a ridge regression nor any column alone "
        f"beat shuffled targets by more than {signal:.1f} standard deviations; above {NO_SIGNAL:g} there would be a bond.",
        evidence={
            "explained": explained,
            "val_explained": val_explained,
            "signal": signal,
            "samples": float(samples),
            "update_ratio": update_ratio,
            "strength": strength,
        },
        where=("targets",),
    )
