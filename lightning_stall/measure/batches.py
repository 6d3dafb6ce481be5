"""What is in a batch: its tensors by name, and which of them are inputs and which targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_stall.measure.graph import nodes
from lightning_stall.measure.losses import SeenLoss, recognise, recognise_node

MOST_FIELDS = 64
DEPTH = 6
NEAR_THE_LOSS = 96  # autograd nodes looked at for targets
TARGET_NAMES = frozenset({"y", "label", "labels", "target", "targets", "tgt", "y_true", "gt", "ground_truth", "class"})


_PLACES = tuple(f"batch[{i}]" for i in range(8))


class Field(NamedTuple):
    """One tensor of a batch, named as one would reach it: `batch[0]`, `batch['image']`, `batch.x`."""

    name: str
    tensor: Tensor

    @property
    def floating(self) -> bool:
        return self.tensor.is_floating_point()


def fields(batch: Any) -> list[Field]:
    """Every strided, non-empty tensor of a batch of any nesting, in order; at most 64, six levels deep."""
    if type(batch) is list or type(batch) is tuple:  # what nearly every loader gives, at a tenth of the cost
        flat = [Field(n, t) for n, t in zip(_PLACES, batch, strict=False) if type(t) is Tensor and _usable(t)]
        if len(flat) == len(batch):
            return flat
    found: list[Field] = []
    for name, tensor in _walk(batch, "batch", DEPTH):
        if _usable(tensor):
            found.append(Field(name, tensor))
        if len(found) == MOST_FIELDS:
            break
    return found


def _usable(tensor: Tensor) -> bool:
    if tensor.is_nested or tensor.is_quantized:  # they answer few questions, some with an error
        return False
    return tensor.layout is torch.strided and tensor.numel() > 0 and not tensor.is_complex()


def _walk(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth == 0:
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{name}[{key!r}]", depth - 1)
    elif isinstance(value, tuple) and (names := getattr(value, "_fields", None)) is not None:
        for key in names:
            yield from _walk(getattr(value, key), f"{name}.{key}", depth - 1)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value[:MOST_FIELDS]):
            yield from _walk(item, f"{name}[{i}]", depth - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from _walk(getattr(value, part.name, None), f"{name}.{part.name}", depth - 1)


def replace_tensors(value: Any, by: Mapping[str, Any], name: str = "batch", depth: int = DEPTH) -> Any:
    """The same batch with some tensors put through `by[name](tensor)`; containers are copied, tensors are not changed.

    Containers other than dicts, lists, tuples and named tuples are handed on as they are.
    """
    if isinstance(value, Tensor):
        return by[name](value) if name in by else value
    if depth == 0:
        return value
    if isinstance(value, dict):
        return type(value)({k: replace_tensors(v, by, f"{name}[{k!r}]", depth - 1) for k, v in value.items()})
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)) is not None:
        return type(value)(*(replace_tensors(getattr(value, k), by, f"{name}.{k}", depth - 1) for k in names))
    if type(value) in (list, tuple):
        return type(value)(replace_tensors(v, by, f"{name}[{i}]", depth - 1) for i, v in enumerate(value))
    return value


def batch_size(found: Sequence[Field]) -> int:
    """Samples in the batch: the first dimension that most fields share; 0 where there is none."""
    sizes = [f.tensor.shape[0] for f in found if f.tensor.ndim]
    return max(sizes, key=sizes.count) if sizes else 0


@dataclass
class Roles:
    """Which fields are inputs and which targets, by name. `certain` where the loss was seen to use the targets."""

    inputs: list[str] = field(default_factory=list)  # float fields that are not (only) targets
    targets: list[str] = field(default_factory=list)
    certain: bool = False


def find_roles(found: Sequence[Field], losses: Sequence[SeenLoss]) -> Roles:
    """Tell inputs from targets by what reached the loss; by name and place where that tells nothing. May wait."""
    seen = [name for loss in losses if (name := match(loss.target, found)) is not None]
    roles = Roles(targets=list(dict.fromkeys(seen)) or guess_targets(found), certain=bool(seen))
    roles.inputs = [f.name for f in found if f.floating and f.name not in roles.targets]
    if not roles.inputs and roles.certain:
        # an autoencoder's target is its input, where nothing else could be one
        others = [f for f in found if f.name not in roles.targets and f.tensor.ndim > 1]
        if not others:
            roles.inputs = [f.name for f in found if f.floating and f.name in roles.targets and _wide(f.tensor)]
    return roles


def _wide(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor[0].numel() >= 4


def match(target: Tensor, found: Sequence[Field]) -> str | None:
    """The field that a loss's target came from: it shares its memory, or holds the same values.

    Type and shape may differ. Comparing values waits for the device.
    """
    memory = target.untyped_storage().data_ptr()
    for f in found:
        if memory and f.tensor.untyped_storage().data_ptr() == memory:
            return f.name
    for f in found:
        if f.tensor.numel() == target.numel() and f.tensor.device == target.device:
            a, b = f.tensor.detach().reshape(-1), target.detach().reshape(-1)
            if bool((a.to(b.dtype) == b).all()):
                return f.name
    return None


def guess_targets(found: Sequence[Field]) -> list[str]:
    """Targets by convention: keys such as `y` or `label`, else the last of several elements."""
    named = [f.name for f in found if _last_key(f.name).lower() in TARGET_NAMES]
    if named:
        return named
    top = [f for f in found if f.name.count("[") == 1 and "'" not in f.name]
    return [top[-1].name] if len(top) > 1 and len(top) == len(found) else []


def _last_key(name: str) -> str:
    return name.rpartition("[")[2].strip("]'\"") if name.endswith("]") else name.rpartition(".")[2]


def loss_terms(loss: Tensor) -> list[SeenLoss]:
    """Every built-in loss near the top of the graph: one of a plain loss, several of a weighed sum."""
    found = []
    for node in nodes(loss.grad_fn, NEAR_THE_LOSS):
        seen = recognise_node(node)
        if seen is not None:
            found.append(seen)
    if (
        not found and (whole := recognise(loss)) is not None
    ):  # written by hand, of operations that are no loss by themselves
        found.append(whole)
    return found


def soft_target(loss: Tensor) -> Tensor | None:
    """The class probabilities given to a cross-entropy, shape (N, C, ...): sum of -target * log_softmax(logits).

    The built-in loss, or one written by hand that sums over the classes, or over everything, or averages it.
    """
    for node in nodes(loss.grad_fn, NEAR_THE_LOSS):
        if node.name() not in ("SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1"):
            continue
        product = _past_minus(node.next_functions[0][0])
        if product is None or product.name() != "MulBackward0":
            continue
        first = [child for child, _ in product.next_functions if child is not None]
        if len(first) == 1 and _log_softmax(first[0]):
            try:
                values = product._saved_other if product.next_functions[0][0] is not None else product._saved_self
            except (RuntimeError, AttributeError):  # freed, or packed by checkpointing
                return None
            if not isinstance(values, Tensor) or values.ndim < 2 or values.shape[1] < 2:
                return None
            return values * torch.copysign(values.new_ones(()), values.detach().sum())  # the minus may stand there
    return None


def _log_softmax(node: Any) -> bool:
    if node.name() == "LogBackward0":
        below = node.next_functions[0][0]
        return below is not None and below.name() == "SoftmaxBackward0"
    return bool(node.name() == "LogSoftmaxBackward0")


def _past_minus(node: Any) -> Any:
    return node.next_functions[0][0] if node is not None and node.name() == "NegBackward0" else node


def sample_count(loader: Any) -> int | None:
    """Samples that one epoch of this loader draws from, where it says so."""
    dataset = getattr(loader, "dataset", None)
    try:
        return len(dataset) if dataset is not None else None
    except Exception:  # a dataset's own code, whatever it does
        return None


def column_names(loader: Any, width: int) -> list[str]:
    """Names of the input columns, where the dataset (or what it is a subset of) lists exactly so many."""
    dataset = getattr(loader, "dataset", None)
    for _ in range(4):
        for attribute in ("feature_names", "columns", "column_names"):
            names = getattr(dataset, attribute, None)
            if names is not None and not callable(names) and hasattr(names, "__len__") and len(names) == width:
                return [str(n) for n in names]
        dataset = getattr(dataset, "dataset", None)
    return [f"column {i}" for i in range(width)]
