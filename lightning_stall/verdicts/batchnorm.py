"""What the readings of BatchNorm layers amount to, in numbers and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev

from lightning_stall.finding import Severity
from lightning_stall.measure.batch_sizes import LoaderPlan, ways_out

SMALL, STALE = "batchnorm-small-batch", "batchnorm-stale-statistics"
ERROR = "Expected more than 1 value per channel when training"
SIGN_ONLY = 2  # values per channel of which normalisation leaves nothing but which is the larger
VERY_FEW = 4  # values a channel, whose mean is off by half a standard deviation
FEW_ROWS = 8  # samples under which even wide images may give poor statistics: their pixels are much alike
FAR = 0.5  # standard deviations or log of a ratio of variances; a mean of 4 independent values is as far
UNFIT = 2.0  # the same for frozen statistics that fit the batches no more
LOST = 0.5  # share of what was learnt that evaluation may lose before it is called stale
SLOW = 0.05  # the same, where the averages are so slow that they will not have forgotten their start at the end
NOISY = 0.25  # share of what could be learnt that noisy batch statistics may cost
IN_A_ROW = 3  # probes, or checks
LONG = 5  # probes: as long as a fast start may take to settle
SETTLED = 3.0  # time constants after which a running average has forgotten its start (5 % of it is left)

Gap = tuple[float, float]  # (distance of the means in standard deviations, |log| of the ratio of variances)


@dataclass(frozen=True)
class Verdict:
    """A finding in the making: the arguments of `StallCallback.tell`."""

    code: str
    summary: str
    advice: str
    evidence: dict[str, float]
    where: list[str]
    statistical: bool = False
    severity: Severity = "warning"


@dataclass(frozen=True)
class Layer:
    """One layer as its verdict needs it, over the last checks."""

    name: str
    values: Sequence[int] = ()  # per channel
    gaps: Sequence[Gap] = ()  # batch from running statistics
    frozen: Sequence[Gap] = ()  # the same while it was kept from updating
    momentum: float | None = 0.1


@dataclass(frozen=True)
class Setting:
    """What the layers share."""

    step: int
    planned: float  # optimizer steps in all
    rows: int  # of the last batch
    min_values: int
    accumulate: int = 1
    devices: int = 1
    shared: bool = False  # SyncBatchNorm is at work


def poor(layer: Layer, setting: Setting) -> bool:
    """Too few values, or so few samples that their statistics are as noisy as those of half as many values as would do.

    The distance of batch means from running ones is noise only once the averages have settled.
    """
    if len(layer.values) < IN_A_ROW:
        return False
    settled = setting.step * (layer.momentum or 0.0) > 3 * SETTLED and len(layer.gaps) >= IN_A_ROW
    few = setting.rows < FEW_ROWS and settled and median(d for d, _ in layer.gaps) > (2 / setting.min_values) ** 0.5
    return median(layer.values) < setting.min_values or few


@dataclass
class BothWays:
    """The loss of one batch by its own statistics and by the running ones, over a run."""

    probes: list[tuple[int, float, float]] = field(default_factory=list)  # (step, by batch, by running statistics)
    streak: int = 0  # probes in a row in which running statistics undid half of what was learnt
    since: int = 0  # step of the streak's first probe
    top: float = math.nan  # loss that nothing learnt gives

    def update(
        self, step: int, by_batch: float, by_running: float, top: float, noise: float, slow: bool = False
    ) -> None:
        """Take a probe.

        Args:
            step: of the probe, whose losses are `by_batch` and `by_running`.
            top: the loss at the start, or a constant predictor's.
            noise: of a single step's loss.
            slow: the averages will not have forgotten their start when the run ends, as is planned.
        """
        self.probes = [*self.probes[-9:], (step, by_batch, by_running)]
        learnt = by_batch < top - 3 * noise
        allowed = max(LOST * (top - by_batch), 3 * noise)
        if slow:  # both are of one batch, and what differs is known
            allowed = min(allowed, max(SLOW * (top - by_batch), 0.5 * by_batch))
        undone = learnt and not by_running - by_batch <= allowed  # NaN counts as undone
        self.since = self.since if undone and self.streak else step
        self.streak = self.streak + 1 if undone else 0
        self.top = top

    @property
    def noisy(self) -> bool:
        """Whether batch statistics cost the loss a share of what could be learnt, beyond three standard errors."""
        recent = self.probes[-LONG:]
        if len(recent) < LONG:
            return False
        costs = [by_batch - by_running for _, by_batch, by_running in recent]
        cost = fmean(costs)
        could = self.top - fmean(by_running for _, _, by_running in recent)
        return could > 0 and cost > max(NOISY * could, 3 * stdev(costs) / len(costs) ** 0.5)

    def stale(self, momentum: float, step: int, planned: float, at_end: bool) -> bool:
        """Whether evaluation has been undoing what was learnt for too long, or is going to be.

        A fast start outruns the averages for a while in healthy runs too: they get ten time constants to catch up,
        unless the run is over, or planned to be over, before they have made three.
        """
        if self.streak < IN_A_ROW:
            return False
        if at_end:  # what was seen long ago may have mended itself since
            return momentum * (step - self.probes[-1][0]) <= 1
        never = planned * momentum < SETTLED
        return self.streak >= LONG and (never or step - self.since >= 10 / momentum)


def foretold(
    index: int, which: str, epoch: int, samples: int, plan: LoaderPlan, values: int, min_values: int, where: list[str]
) -> Verdict:
    """A batch of this epoch will hold too few samples; `which` one it is."""
    of = f" ({plan.samples} in batches of {plan.usual})" if plan.samples is not None else ""
    then = f', and PyTorch raises "{ERROR}"; 2 values would pass' if values == 1 else ""
    return Verdict(
        SMALL,
        f"Batch {index}, {which} of epoch {epoch}, will hold {count(samples, 'sample')}{of}: {_list(where)} will get "
        f"{count(values, 'value')} per channel there{then}; {min_values} would do.",
        ways_out(plan),
        {"batch_idx": index, "epoch": epoch, "samples": samples, "values": values, "layers": len(where)},
        where,
    )


def alone(index: int, epoch: int, what: str, rows: int, min_values: int, where: list[str]) -> Verdict:
    """A batch that leaves a layer one value is here."""
    return Verdict(
        SMALL,
        f"Batch {index} of epoch {epoch} {what}: {_list(where) or 'a BatchNorm layer'} gets 1 value per channel, and "
        f'PyTorch raises "{ERROR}"; 2 would pass, {min_values} would do.',
        "",
        {"batch_idx": index, "epoch": epoch, "values": 1.0, "rows": rows},
        where,
        severity="critical",
    )


def met(index: int, epoch: int, rows: int, min_values: int, where: list[str]) -> Verdict:
    """A batch that was too small has been spared."""
    return Verdict(
        SMALL,
        f"Batch {index} of epoch {epoch} has {count(rows, 'row')}, too few for {_list(where)}; {min_values} values per "
        "channel would do.",
        "",
        {"batch_idx": index, "epoch": epoch, "rows": rows},
        where,
    )


def count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{names[0]}`{more}" if names else ""


def few_values(layers: Sequence[Layer], setting: Setting, apart: BothWays) -> Verdict | None:
    """Layers whose batches are too small, every time."""
    s = setting
    few = [x for x in layers if poor(x, s) and median(x.values) > 0]  # a batch of no rows is none
    if not few:
        return None
    few.sort(key=lambda x: median(x.values))
    first, fewest = few[0], median(few[0].values)
    evidence = {"values": fewest, "min_values": s.min_values, "layers": len(few), "rows": s.rows}
    cost = ""
    if apart.noisy or apart.streak >= IN_A_ROW:
        _, by_batch, by_running = apart.probes[-1]
        evidence |= {"loss_by_batch": by_batch, "loss_by_running": by_running}
        cost = (
            f" On the same batch the loss is {by_batch:.4g} by its own statistics and {by_running:.4g} by the running "
            "ones; sound statistics give the same."
        )
    hollow = max(first.values) <= SIGN_ONLY
    if fewest <= VERY_FEW:
        evidence["strength"] = 0.8 if hollow else 0.7
    if fewest >= s.min_values:
        spread = median(d for d, _ in first.gaps)
        evidence["spread"] = spread
        what = (
            f"`{first.name}` sees {s.rows} samples a batch, and their mean is {spread:.2f} standard deviations off the "
            f"running one, as that of {1 / spread**2:.1f} independent values; {s.min_values} would give "
            f"{s.min_values**-0.5:.2f}."
        )
    else:
        meaning = (
            "normalisation keeps only which is the larger" if hollow else f"their mean is off by {fewest**-0.5:.2f} sd"
        )
        what = (
            f"`{first.name}` makes its statistics of {fewest:.0f} values per channel in every batch ({meaning}); "
            f"{s.min_values} would do."
        )
    names = [x.name for x in few]
    return Verdict(SMALL, what + cost, _larger(fewest, s), evidence, names, statistical=not (hollow or cost))


def _larger(fewest: float, s: Setting) -> str:
    needed = max(math.ceil(s.min_values * s.rows / max(1.0, fewest)), FEW_ROWS if fewest >= s.min_values else 2)
    parts = [
        f"Give each device batches of {needed} or more:",
        f"    train_loader = DataLoader(dataset, batch_size={needed}, shuffle=True, drop_last=True)",
    ]
    if s.accumulate > 1:
        parts.append(
            f"`accumulate_grad_batches={s.accumulate}` does not help: the gradient is that of {s.accumulate * s.rows} "
            f"samples, but BatchNorm sees {s.rows} at a time."
        )
    if s.devices > 1 and not s.shared:
        parts += [
            f"Or share the statistics of the {s.devices} devices, which makes {fewest * s.devices:.0f} values:",
            f"    Trainer(devices={s.devices}, sync_batchnorm=True)",
        ]
    parts += [
        "Or use a layer that does not look across the batch:",
        "    norm = nn.GroupNorm(num_groups=8, num_channels=64)  # in place of nn.BatchNorm2d(64)",
    ]
    return "\n\n".join(parts)


def stale(layers: Sequence[Layer], setting: Setting, apart: BothWays, at_end: bool) -> Verdict | None:
    """Evaluation by running statistics undoes what was learnt by batch statistics."""
    followed = [x for x in layers if x.gaps]
    slowest = min((x.momentum for x in followed if x.momentum is not None), default=0.1)
    if not followed or not apart.stale(slowest, setting.step, setting.planned, at_end):
        return None
    if any(poor(x, setting) for x in layers):
        return None  # small batches explain it, and are told
    followed.sort(key=lambda x: -max(x.gaps[-1]))
    step, by_batch, by_running = apart.probes[-1]
    distance, ratio = followed[0].gaps[-1]
    moved = 1 - (1 - slowest) ** setting.step
    summary = (
        f"Evaluation undoes the training: on one training batch the loss is {by_batch:.4g} by the batch's own "
        f"statistics and {by_running:.4g} by the running ones (step {step}, {apart.streak} probes in a row); equal "
        f"would be fine. In `{followed[0].name}` the batch mean is {distance:.2g} standard deviations off, and "
        f"variances differ {math.exp(min(ratio, 50.0)):.3g}-fold."
    )
    evidence = {
        "loss_by_batch": by_batch,
        "loss_by_running": by_running,
        "mean_distance": distance,
        "variance_ratio": math.exp(min(ratio, 50.0)),
        "momentum": slowest,
        "moved": moved,
        # half as sure where it undoes half of what was learnt, and as sure as a fact where it undoes all
        "strength": 0.5 + 0.5 * min(1.0, max(0.0, (by_running - by_batch) / max(abs(apart.top), 1e-12)))
        if math.isfinite(by_running)
        else 1.0,
    }
    if slowest * setting.step < SETTLED:
        summary += f" With momentum {slowest:g} the averages have come {moved:.1%} of the way in {setting.step} steps."
        better = min(0.1, float(f"{10 / max(setting.step, 1):.1g}")) if setting.step > 100 else 0.1
        advice = (
            f"Let the averages follow (in PyTorch `momentum` is the share of the new batch):\n\n"
            "    for m in model.modules():\n        if isinstance(m, nn.modules.batchnorm._BatchNorm):\n"
            f"            m.momentum = {better:g}\n\nor re-estimate them from training batches before evaluating:\n\n"
        )
    else:
        advice = (
            "Look for batches that differ from each other: sorted by class, or of two kinds through one layer. A lower "
            "learning rate lets the averages keep up. To evaluate the model as it is, re-estimate them:\n\n"
        )
    advice += "    torch.optim.swa_utils.update_bn(train_loader, model, device=model.device)"
    return Verdict(STALE, summary, advice, evidence, [x.name for x in followed])


def frozen(layers: Sequence[Layer]) -> Verdict | None:
    """Layers in evaluation mode while they train, whose statistics do not fit what they get."""
    unfit = [x for x in layers if len(x.frozen) >= IN_A_ROW and min(max(g) for g in x.frozen) > UNFIT]
    if not unfit:
        return None
    unfit.sort(key=lambda x: -max(x.frozen[-1]))
    distance, ratio = unfit[0].frozen[-1]
    spread = math.exp(min(ratio, 50.0))
    return Verdict(
        STALE,
        f"`{unfit[0].name}` is in evaluation mode while its weights train, and its running statistics do not fit: "
        f"batch means are {distance:.2g} standard deviations off and variances differ {spread:.3g}-fold; 0.5 and "
        "1.5-fold would do.",
        "Let it train with the model, unless its statistics were learnt on such data:\n\n    model.train()",
        {"mean_distance": distance, "variance_ratio": spread, "layers": float(len(unfit))},
        [x.name for x in unfit],
        statistical=True,
    )


def put_back(names: Sequence[str], step: int) -> Verdict | None:
    """Layers whose averages were emptied after training and before evaluation."""
    if not names:
        return None
    return Verdict(
        STALE,
        f"The running statistics of {_list(names)} are put back to their start before validation (step {step}): evaluation "
        "normalises by mean 0 and variance 1, whatever the training has seen.",
        "Leave them as training has made them, or estimate them anew before they are used:\n\n"
        "    layer.reset_running_stats()\n    with torch.no_grad():\n        for x, _ in train_loader:\n            model(x)"
        "  # in training mode",
        {"layers": float(len(names)), "strength": 0.9},
        list(names),
    )


def left_behind(names: Sequence[str]) -> Verdict | None:
    """Layers of a moving copy of the weights, whose statistics are still those that it began with."""
    if not names:
        return None
    return Verdict(
        STALE,
        f"The weights of `{names[0]}` follow the training without an optimizer, as an average of weights does, and its "
        "running statistics are still those it began with, while those of the layers that train have moved; they should "
        "follow as well.",
        "Copy the buffers wherever the averaged weights are updated:\n\n"
        "    for slow, fast in zip(average.buffers(), model.buffers()):\n        slow.copy_(fast)",
        {"layers": float(len(names)), "strength": 0.9},
        list(names),
    )
