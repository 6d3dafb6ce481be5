"""Faults that need more than one look, or the whole model: sums, layers stacked bare or too thin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_stall.measure.loss_fault import Fault
from lightning_stall.measure.loss_graph import BUILT_IN, Edge, Expression, saved
from lightning_stall.measure.loss_names import parameter_owner
from lightning_stall.measure.stacking import Layer, stack

DEEP = 3  # layers in a row with nothing nonlinear anywhere: two may be meant, as a factorised one
TOO_LONG = 1.0  # a step as long as the weights themselves
FITTING = 0.3  # of the weights: a long step, yet one that some runs live with
UNSTABLE = frozenset({"diverging", "oscillating", "non-finite"})


@dataclass
class Summed:
    """A loss summed over the batch, and how long a step it makes against the weights."""

    elements: float = 0.0  # what a mean would have divided by, and nothing else has
    step: float = 0.0  # length of the first step over that of the weights
    weighed: bool = False

    @property
    def waiting(self) -> bool:
        """Whether the length of a step is still wanted."""
        return self.elements > 0 and not self.weighed

    def update(self, loss: Expression, samples: int, accumulate: int) -> None:
        """Look at one loss."""
        terms = loss.main
        if self.elements or len(terms) != 1 or terms[0].kind not in BUILT_IN or terms[0].mean:
            return
        values = saved(terms[0].node, "target")
        if isinstance(values, Tensor) and samples > 1 and terms[0].divided / accumulate < samples:
            self.elements = float(values.numel())

    def weigh(self, ratio: float, plain: bool) -> None:
        """Take the length of a step over that of the weights; `plain`: the optimizer takes gradients as they are."""
        self.weighed = True
        self.step = ratio if plain else 0.0

    def fault(self, state: str) -> Fault | None:
        """Only where the run is unstable, the step too long, and a mean would have made it fitting."""
        if state not in UNSTABLE or not self.step > TOO_LONG or self.step / self.elements > FITTING:
            return None
        return Fault(
            "wrong-loss-for-task",
            f"The loss is a sum over {self.elements:.0f} elements and the rate is meant for a mean: the first step was "
            f"{self.step:.3g} times as long as the weights themselves, with a mean {self.step / self.elements:.2g} "
            "times.",
            'Average over the batch, `reduction="mean"`, or divide the loss (or the rate) by its elements:\n\n'
            "    loss = loss / target.numel()",
            {"elements": self.elements, "step": self.step, "step_of_mean": self.step / self.elements},
            certain=False,
            states=UNSTABLE,
        )


def misfit_depth(edge: Edge, module: nn.Module) -> Iterator[Fault]:
    """Layers stacked with nothing between them, and a layer of one unit on the way. Certain only where the model holds
    nothing nonlinear at all; a pair or two may be a pretrained net's last layer under a new head."""
    found = stack(edge)
    many = 2 * len(found.pairs) > len(found.layers) - 1 and not found.attention
    if found.pairs and (not found.nonlinear or many):
        named = [f"{_name(lower, module)} -> {_name(upper, module)}" for upper, lower in reversed(found.pairs)]
        all_of_it = (
            "no operation of the model is nonlinear, so"
            if not found.nonlinear
            else "nothing nonlinear is between them, so"
        )
        yield Fault(
            "missing-nonlinearity",
            f"{len(found.pairs)} of {len(found.layers) - 1} pairs of neighbouring layers are stacked bare, first "
            f"`{named[0]}`: {all_of_it} each pair computes what one layer would; 0 pairs would be fine.",
            "Put an activation after each layer but the last:\n\n"
            "    nn.Sequential(nn.Linear(n_in, 64), nn.ReLU(), nn.Linear(64, n_out))",
            {"pairs": float(len(found.pairs)), "layers": float(len(found.layers))},
            named,
            certain=not found.nonlinear,
            may_be_meant=not found.nonlinear,
        )
    elif found.depth >= DEEP:
        yield Fault(
            "missing-nonlinearity",
            f"{found.depth} layers follow on one another and no operation of the model is nonlinear: all of it computes "
            "what one layer would; an activation after each but the last would be fine.",
            "Put an activation after each layer but the last, as in\n\n    h = F.relu(self.layer(h))",
            {"pairs": 0.0, "layers": float(found.depth)},
            [_name(layer, module) for layer in reversed(found.layers)],
            may_be_meant=True,
        )
    if found.bottleneck is not None:
        upper, lower = found.bottleneck
        yield Fault(
            "insufficient-capacity",
            f"`{_name(lower, module)}` passes one number on, between {lower.inside} features below and "
            f"{upper.outside} above it: all the model knows of a sample goes through it; "
            f"{min(lower.inside, upper.outside)} would be no bottleneck.",
            f"Widen `{_name(lower, module)}`, at least to the smaller of its neighbours.",
            {"width": 1.0, "below": float(lower.inside), "above": float(upper.outside), "strength": 0.9},
            [_name(lower, module)],
            certain=False,
        )
    elif found.head is not None:
        name, head = _name(found.head, module), found.head
        yield Fault(
            "insufficient-capacity",
            f"`{name}` makes {head.outside} numbers of the {head.inside} features that are computed of a sample: all the "
            f"model knows of it goes through them; {head.outside // 2} or more would be usual.",
            f"Widen what enters `{name}`.",
            {"width": float(head.inside), "above": float(head.outside), "strength": 0.9},
            [name],
            certain=False,
        )


def _name(layer: Layer, module: nn.Module) -> str:
    owner = parameter_owner(module, layer.weight) if layer.weight is not None else ""
    return owner or f"a layer of {layer.outside}"
