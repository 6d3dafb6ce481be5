"""Which loss is trained, and what a constant predictor would reach on the labels it has seen."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stall.measure.by_hand import difference, entropy_of, matched, smoothed
from lightning_stall.measure.graph import saved
from lightning_stall.measure.loss_match import shares

Kind = Literal["cross-entropy", "binary cross-entropy", "mse", "l1", "smooth l1", "pairs"]

_WRAPPERS = {"DivBackward0", "MulBackward0", "ToCopyBackward0", "MeanBackward0", "AliasBackward0", "CloneBackward0"}
_REGRESSION: dict[str, Kind] = {"MseLossBackward0": "mse", "L1LossBackward0": "l1"}
_SMOOTH = {"SmoothL1LossBackward0": "beta", "HuberLossBackward0": "delta"}
_NLL = {"NllLossBackward0", "NllLoss2DBackward0"}
_BINARY = {"BinaryCrossEntropyWithLogitsBackward0", "BinaryCrossEntropyBackward0"}
FACTORS = 2  # batches on which the loss is compared with its parts
LEAST = 1e-12  # loss below which it is not
ALIKE = 0.01
_VIEWS = {"SqueezeBackward0", "SqueezeBackward1", "ViewBackward0", "ReshapeAliasBackward0", "SelectBackward0"}
HITS = 8  # batches whose accuracy is kept
LEAST_HITS = 64  # samples
_PAIRS = {"SoftplusBackward0", "LogSigmoidBackward0", "LogBackward0"}
_MEAN, _SUM = 1, 2  # at::Reduction
_SUMS = {"SumBackward0", "SumBackward1"}
_MAX_COLUMNS = 65_536
_MAX_CLASSES = 65_536


@dataclass(frozen=True)
class SeenLoss:
    """A loss recognised in the graph: its kind, the targets it was given, and how it is averaged."""

    kind: Kind
    target: Tensor
    prediction: Tensor
    node: Any
    mean: bool  # reduction="mean"; a sum has another scale for every batch
    ignore_index: int | None = None
    weighted: bool = False
    smoothing: float = 0.0  # of the labels
    summed: bool = False  # over the samples too
    scale: float = 1.0  # times the mean over all entries: what is summed over features, and averaged over samples
    root: bool = False  # of it

    def value(self) -> Tensor | None:
        """The loss itself, without what it was multiplied by on its way; None where that is not worked out."""
        prediction, target = self.prediction.detach().float(), self.target.detach()
        if self.kind == "mse":
            squared = (prediction - target.float()).square().mean()
            return squared.sqrt() if self.root else squared
        if self.kind == "l1":
            return (prediction - target.float()).abs().mean()
        if self.kind == "pairs":
            return F.softplus(-prediction).mean()
        ignore = -100 if self.ignore_index is None else self.ignore_index
        if self.smoothing:
            return F.cross_entropy(prediction, target, label_smoothing=self.smoothing, ignore_index=ignore)
        if self.kind == "cross-entropy":
            weight = getattr(self.node, "_saved_weight", None)
            return F.nll_loss(prediction, target, weight if weight is None else weight.float(), ignore_index=ignore)
        if self.kind == "binary cross-entropy" and not self.weighted:
            logits = "Logits" in self.node.name()
            of = F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy
            return of(prediction, target.float())
        return None


def recognise(loss: Tensor) -> SeenLoss | None:
    """The built-in loss at the top of the graph, looking through scaling and averaging; None for any other loss."""
    return recognise_from(loss.grad_fn)


def recognise_from(node: Any) -> SeenLoss | None:
    """The same, from one autograd node on."""
    path = _Path()
    averaged = negated = False
    for _ in range(10):
        if node is None:
            return None
        name = node.name()
        if (pair := _matched(node)) is not None:
            return pair
        if name == "NegBackward0" and not negated:
            negated, node = True, node.next_functions[0][0]
            continue
        if negated:
            if name in ("GatherBackward0", "IndexBackward0"):
                return _likelihood(node, averaged)
            if name not in _WRAPPERS | _VIEWS:
                return None
        elif _known(name):
            return path.end(_read(node, name, averaged))
        noted = None if negated else _noted(node, averaged)
        if name == "SubBackward0" and not negated:
            return _log_odds(node, averaged)
        if noted is not None:
            return path.end(noted)
        if name in _SUMS and not negated and path.sum(node):
            node = node.next_functions[0][0]
            continue
        if not path.times(node, name):
            return None
        if name == "MeanBackward1" and not path.whole:
            averaged, node = True, node.next_functions[0][0]
            continue
        if name not in _WRAPPERS and not (negated and name in _VIEWS):
            return None
        averaged = averaged or name == "MeanBackward0"
        inner = [child for child, _ in node.next_functions if child is not None]
        if len(inner) != 1:
            return None
        node = inner[0]
    return None


def recognise_pairs(loss: Tensor) -> SeenLoss | None:
    """A loss of pairs, -log sigmoid(a - b) on average, where the model gives both: a constant model reaches log 2.

    RankNet and Bayesian personalised ranking; as `softplus(b - a)`, `-logsigmoid(a - b)` or `-log(sigmoid(a - b))`.
    """
    node: Any = loss.grad_fn
    path, averaged, sign = _Path(), False, 1
    for _ in range(8):
        name = "" if node is None else node.name()
        if name in _PAIRS:
            return _pairs(node, name, sign, averaged)
        if name == "NegBackward0":
            sign = -sign
        elif name not in ("MeanBackward0", "DivBackward0", "MulBackward0") or not path.times(node, name):
            return None
        averaged = averaged or name == "MeanBackward0"
        inner = [child for child, _ in node.next_functions if child is not None]
        if len(inner) != 1:
            return None
        node = inner[0]
    return None


def _pairs(node: Any, name: str, sign: int, averaged: bool) -> SeenLoss | None:
    given = saved(node, "self")
    if given is None or not averaged or sign != (1 if name == "SoftplusBackward0" else -1):
        return None
    below, squashed = node.next_functions[0][0], name != "LogBackward0"
    for _ in range(8):
        if below is None or below.name() == "SubBackward0":
            break
        squashed = squashed or below.name() == "SigmoidBackward0"
        if below.name() not in _VIEWS | {
            "NegBackward0",
            "MulBackward0",
            "DivBackward0",
            "SigmoidBackward0",
            "AddBackward0",
        }:
            return None
        below = below.next_functions[0][0]
    if below is None or not squashed or sum(child is not None for child, _ in below.next_functions) != 2:
        return None
    if getattr(node, "_saved_beta", 1) != 1:
        return None
    given = given.detach().float()
    ahead = {"SoftplusBackward0": -given, "LogSigmoidBackward0": given}.get(name)
    ahead = torch.logit(given, 1e-7) if ahead is None else ahead
    return SeenLoss("pairs", torch.ones_like(ahead), ahead, node, True)


@dataclass
class _Path:
    """What a loss was multiplied by, and what it was summed over, on the way down from the whole of it."""

    by: float = 1.0
    features: float = 1.0  # entries that were summed of each sample
    whole: bool = False  # everything was summed

    def times(self, node: Any, name: str) -> bool:
        """Go past a division or a product; False where entries have weights of their own."""
        if name not in ("DivBackward0", "MulBackward0"):
            return True
        factors = [f for f in (saved(node, "other"), saved(node, "self")) if isinstance(f, Tensor)]
        if any(f.numel() > 1 and not f.requires_grad for f in factors):
            return False
        other = factors[0] if factors else None
        if other is not None and not other.ndim and other.device.type == "cpu" and not other.requires_grad:
            value = float(other)
            self.by *= value if name == "MulBackward0" else (1 / value if value else math.nan)
        return True

    def sum(self, node: Any) -> bool:
        """Go past a sum; whether it is one of everything, or of each sample's own entries."""
        sizes = getattr(node, "_saved_self_sym_sizes", None)
        if sizes is None:
            return False
        if node.name() == "SumBackward0":
            self.whole = True
            return True
        dims = {d % 2**64 - (2**64 if d >= 2**63 else 0) for d in node._saved_dim}
        dims = {d % len(sizes) for d in dims} if sizes else {0}
        if 0 in dims or not dims:
            return False
        self.features *= math.prod(int(sizes[d]) for d in dims)
        return True

    def end(self, seen: SeenLoss | None) -> SeenLoss | None:
        """The loss at the end of the way: a sum over samples that was divided by their number is a mean over them."""
        if seen is None:
            return None
        target = seen.target
        if not (self.whole or seen.summed) or not target.ndim:
            return replace(seen, scale=self.features) if self.features != 1 else seen
        # classes are one entry a sample, or one a pixel; entries that count for nothing are no matter here
        each = target.numel() / max(1, len(target))
        return replace(seen, mean=abs(self.by * len(target) - 1) < 1e-4, summed=True, scale=each)


def _likelihood(node: Any, averaged: bool) -> SeenLoss | None:
    """A cross-entropy written by hand: the log-probabilities of the targets, picked out by `gather` or by an index."""
    below = node.next_functions[0][0]
    if below is None or below.name() != "LogSoftmaxBackward0":
        return None
    try:
        return _picked(node, below._saved_result, averaged)
    except (RuntimeError, AttributeError, IndexError):
        return None


def _log_odds(node: Any, averaged: bool) -> SeenLoss | None:
    """The same as `logsumexp(logits)` minus the logits of the targets."""
    total, chosen = (_below_views(child) for child, _ in node.next_functions[:2])
    if total is None or chosen is None or total.name() != "LogsumexpBackward0" or chosen.name() != "GatherBackward0":
        return None
    try:
        if total.next_functions[0][0] is not chosen.next_functions[0][0]:
            return None
        logits, sums = total._saved_self, total._saved_result
        sums = sums if sums.ndim == logits.ndim else sums.unsqueeze(-1)
        return _picked(chosen, (logits - sums).detach(), averaged)
    except (RuntimeError, AttributeError, IndexError):
        return None


def _below_views(node: Any) -> Any:
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node


def _picked(node: Any, logs: Tensor, averaged: bool) -> SeenLoss | None:
    """What `gather` along the last dimension, or an index into rows, takes from log-probabilities (..., classes)."""
    if node.name() == "IndexBackward0":
        index = node._saved_indices[-1]
        if logs.ndim != 2 or not isinstance(index, Tensor) or index.numel() != len(logs):
            return None
    else:
        index, dim = node._saved_index, int(node._saved_dim)
        last = dim - 2**64 if dim >= 2**63 else dim
        if last not in (-1, logs.ndim - 1) or index.shape != (*logs.shape[:-1], 1):
            return None
    return SeenLoss("cross-entropy", index.reshape(-1), logs.reshape(-1, logs.shape[-1]), node, averaged)


def recognise_node(node: Any) -> SeenLoss | None:
    """The built-in loss that this one autograd node is, if it is any; `mean` as its own reduction says."""
    return _read(node, node.name(), False) if _known(node.name()) else _noted(node, False)


def _noted(node: Any, averaged: bool) -> SeenLoss | None:
    """A loss written by hand, or with smoothed labels, that was noted as it was made."""
    found = difference(node)
    if found is not None:
        kind: Kind = "mse" if found[0] == "mse" else "l1"
        return SeenLoss(kind, found[1].target, found[1].prediction, node, averaged)
    s = smoothed(node)
    if s is None:
        return None
    return SeenLoss("cross-entropy", s.target, s.logits, node, s.mean, s.ignore_index, s.weighted, s.smoothing)


def _matched(node: Any) -> SeenLoss | None:
    """A loss written by hand that was found to be, number for number, a known one."""
    pair = matched(node)
    if pair is None:
        return None
    if pair.formula in ("mse", "rmse", "l1"):
        kind: Kind = "l1" if pair.formula == "l1" else "mse"
        return SeenLoss(kind, pair.target, pair.prediction, node, True, root=pair.formula == "rmse")
    kind = "cross-entropy" if pair.formula in ("classes", "class shares") else "binary cross-entropy"
    return SeenLoss(kind, pair.target, shares(pair), node, True)


def _known(name: str) -> bool:
    return name in _NLL or name in _BINARY or name in _REGRESSION or name in _SMOOTH


def _read(node: Any, name: str, averaged: bool) -> SeenLoss | None:
    try:
        target, prediction = node._saved_target, node._saved_self
        reduction = getattr(node, "_saved_reduction", _MEAN)
        weighted = any(_tells(getattr(node, f"_saved_{name}", None)) for name in ("weight", "pos_weight"))
    except (RuntimeError, AttributeError):  # freed, or packed by checkpointing: not ours to unpack
        return None
    if not isinstance(target, Tensor) or not isinstance(prediction, Tensor):
        return None
    mean, summed = reduction == _MEAN or (reduction == 0 and averaged), reduction == _SUM
    if name in _NLL:
        ignore = int(node._saved_ignore_index)
        ignore = ignore - 2**64 if ignore >= 2**63 else ignore
        return SeenLoss("cross-entropy", target, prediction, node, mean, ignore, weighted, summed=summed)
    if name in _BINARY:
        return SeenLoss("binary cross-entropy", target, prediction, node, mean, None, weighted, summed=summed)
    if name in _SMOOTH:
        return SeenLoss("smooth l1", target, prediction, node, mean, summed=summed)
    return SeenLoss(_REGRESSION[name], target, prediction, node, mean, summed=summed)


def _tells(weight: Tensor | None) -> bool:
    """Whether class weights differ from none; on an accelerator they are taken to, for looking would wait."""
    return weight is not None and (weight.device.type != "cpu" or bool((weight != 1).any()))


@dataclass
class Labels:
    """Sums over the labels seen, on their device; `baseline()` is the one place that reads them (and so waits)."""

    kind: Kind | None = None
    usable: bool = True
    counts: Tensor | None = field(default=None, repr=False)  # class counts, shape (C,)
    sums: Tensor | None = field(default=None, repr=False)  # count, sum, sum of squares a column, shape (3, D)
    sample: list[Tensor] = field(default_factory=list, repr=False)  # first values of each batch, for medians
    hits: deque[Tensor] = field(default_factory=lambda: deque(maxlen=HITS), repr=False)  # (right, all) a batch
    bend: tuple[str, float] = ("beta", 1.0)  # where a smooth L1 or Huber loss turns from squares to absolutes
    weight: Tensor | None = None  # of the classes
    smoothing: float = 0.0  # of the labels
    noted: bool = False  # its graph alone does not tell
    root: bool = False  # of the mean of squares
    factor: float = 1.0  # what the loss is multiplied by before it is returned
    _factors: list[float] = field(default_factory=list, repr=False)

    def update(self, seen: SeenLoss) -> None:
        """Add one batch's labels."""
        weight = getattr(seen.node, "_saved_weight", None) if seen.kind == "cross-entropy" else None
        # sums, several losses or weights of samples: no one level that a constant could reach
        if self.kind not in (None, seen.kind) or not seen.mean or (seen.weighted and weight is None):
            self.usable = False
        if self.kind is not None and (self.smoothing != seen.smoothing or (weight is None) != (self.weight is None)):
            self.usable = False
        self.kind, self.weight, self.smoothing = seen.kind, weight, seen.smoothing
        self.noted = any(f(seen.node) is not None for f in (difference, smoothed, matched))
        self.root = seen.root
        if not self.usable:
            return
        if seen.kind == "smooth l1":
            name = _SMOOTH[seen.node.name()]
            self.bend = name, float(getattr(seen.node, f"_saved_{name}"))
        if seen.kind == "cross-entropy":
            self._count(seen)
        elif seen.kind != "pairs":
            self._sum(seen.target)

    @property
    def calibrated(self) -> bool:
        """Whether it is known what the loss is multiplied by."""
        return not self.usable or len(self._factors) >= FACTORS

    def calibrate(self, seen: SeenLoss, loss: float) -> None:
        """Compare the loss as it was returned with what its parts give: it may be multiplied by something. Waits."""
        own = seen.value()
        value = math.nan if own is None else float(own)
        if not (math.isfinite(loss) and math.isfinite(value)) or value < LEAST or loss <= 0:
            return
        self._factors.append(loss / value)
        if max(self._factors) > (1 + ALIKE) * min(self._factors):
            self.usable = False  # multiplied by something that changes
        exact = max(abs(f - 1) for f in self._factors) < ALIKE
        self.factor = 1.0 if exact else self._factors[-1]

    def _count(self, seen: SeenLoss) -> None:
        classes = seen.prediction.shape[1 if seen.prediction.ndim > 1 else 0]
        if classes > _MAX_CLASSES:
            self.usable = False
            return
        target = seen.target.reshape(-1)
        valid = (target >= 0) & (target < classes)
        if seen.ignore_index is not None:
            valid &= target != seen.ignore_index
        counts = torch.zeros(classes, device=target.device, dtype=torch.float32)  # the default may be another
        counts.scatter_add_(0, target.clamp(0, classes - 1), valid.float())
        if self.counts is not None and self.counts.shape != counts.shape:
            self.usable = False
            return
        self.counts = counts if self.counts is None else self.counts + counts
        named = seen.prediction.detach()
        named = named.argmax(1 if named.ndim > 1 else 0).reshape(-1)
        if named.shape == target.shape:
            self.hits.append(torch.stack([((named == target) & valid).sum(), valid.sum()]))

    def mastered(self) -> float:
        """Share of the errors of always naming the largest class that the last batches' predictions do not make.

        NaN where classes are not told apart, or too few samples were seen to tell; 0 within chance.
        """
        if not self.usable or self.counts is None or not self.hits:
            return math.nan
        right, count = torch.stack(list(self.hits)).sum(0).tolist()
        largest = float(self.counts.max() / self.counts.sum().clamp_min(1))
        if count < LEAST_HITS or largest >= 1:
            return math.nan
        beyond = right / count - largest - 3 * math.sqrt(largest * (1 - largest) / count)
        return max(0.0, beyond / (1 - largest))

    def _sum(self, target: Tensor) -> None:
        if not target.numel():
            return
        values = target.detach().float()
        columns = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(-1, 1)
        if columns.shape[1] > _MAX_COLUMNS or columns.numel() == 0:
            columns = columns.reshape(-1, 1)
        if self.sums is not None and self.sums.shape[1] != columns.shape[1]:
            self.usable = False
            return
        sums = torch.stack(
            [torch.full_like(columns[0], float(len(columns))), columns.sum(0), columns.square().sum(0)]
        ).double()
        self.sums = sums if self.sums is None else self.sums + sums
        if len(self.sample) < 64:
            self.sample.append(columns[:32, :256].clone())

    def baseline(self) -> float | None:
        """Loss of the best constant predictor on these labels, in the unit of the loss; None where not known.

        Cross-entropy: entropy of the class frequencies. Binary cross-entropy: mean entropy of each column. MSE: mean
        variance of each column. L1 and its smooth kin: of the deviation from the median, on a sample. Pairs: log 2. All in
        nats or squared units.
        """
        found = self._baseline() if self.usable else None
        return None if found is None else self.factor * found

    def _baseline(self) -> float | None:
        if self.kind == "pairs":
            return math.log(2)
        if self.kind == "cross-entropy" and self.counts is not None:
            counts = self.counts
            if self.weight is not None:  # the constant that is best makes up for the weights
                counts = counts * self.weight.detach().to(counts)
            share = counts / counts.sum()
            return _finite(entropy_of((1 - self.smoothing) * share + self.smoothing / len(share)))
        if self.sums is None:
            return None
        count, first, second = self.sums
        mean = first / count
        if self.kind == "mse":
            spread = (second / count - mean.square()).clamp_min(0).mean()
            return _finite(spread.sqrt() if self.root else spread)
        if self.kind == "binary cross-entropy":
            share = mean.clamp(0, 1)
            entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
            return _finite(entropy.mean())
        if self.kind in ("l1", "smooth l1"):
            values = torch.cat(self.sample)
            off = (values - values.median(0).values).abs()
            if self.kind == "l1":
                return _finite(off.mean())
            name, bend = self.bend
            bent = torch.where(off < bend, 0.5 * off.square() / max(bend, 1e-30), off - 0.5 * bend)
            # Huber's is delta times the smooth L1 loss; with a bend of 0 both are L1
            return _finite(bent.mean() * (bend if name == "delta" else 1.0) if bend > 0 else off.mean())
        return None

    @property
    def floor(self) -> float | None:
        """The least value this loss can take: 0 for hard labels."""
        if self.smoothing and self.usable and self.counts is not None:  # that of the smoothed labels themselves
            classes = len(self.counts)
            own = torch.full((classes,), self.smoothing / classes, dtype=torch.float64)
            own[0] += 1 - self.smoothing
            return self.factor * float(entropy_of(own))
        return 0.0 if self.usable and self.kind in ("cross-entropy", "mse", "l1", "smooth l1") else None

    @property
    def even_odds(self) -> float | None:
        """The loss of a classifier that gives every class the same chance; None for other losses, sums and weights."""
        if not self.usable:
            return None
        if self.kind == "cross-entropy" and self.counts is not None:
            return self.factor * math.log(max(len(self.counts), 2))
        return self.factor * math.log(2) if self.kind == "binary cross-entropy" else None

    @property
    def seen(self) -> bool:
        return self.kind is not None and self.usable


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
