"""What optimizers hold, and what their steps find: counts in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_stall.verdicts.inputs import Verdict

IDLE = 0.2  # share of all weights that may stand untrained and without gradient

CLEAR_FIRST = "Clear first, step last:\n\n    opt.zero_grad()\n    self.manual_backward(loss)\n    opt.step()"


def loose(count: int, total: int, where: Sequence[str], certain: bool) -> Verdict:
    """Weights that the loss depends on and no optimizer holds.

    Args:
        count: such weights.
        total: weights the loss depends on.
        where: their layers.
        certain: some are as their initialisation drew them, or are no part of the module: no frozen backbone.
    """
    return Verdict(
        "parameters-not-optimized",
        f"The loss depends on {count} of {total} weights that no optimizer holds; 0 would be right.",
        "Hand every parameter to the optimizer, and build it after the last layer is replaced:\n\n"
        "    return torch.optim.Adam(self.parameters(), lr=self.lr)\n\n"
        "Keep submodules in `nn.ModuleList`, not in a list. If they are frozen on purpose, say so with "
        "`module.requires_grad_(False)`, which also saves their backward pass.",
        {"weights": float(count), "of": float(total), "strength": min(1.0, 0.5 + count / max(total, 1))},
        tuple(where),
        statistical=not certain,
        severity="critical",
    )


def kept_apart(shapes: Sequence[tuple[int, ...]], count: int, total: int) -> Verdict | None:
    """Tensors that get gradients at each step, and that neither the module nor an optimizer knows.

    Args:
        shapes: of each.
        count: their elements.
        total: these, and all weights of the module.
    """
    if not shapes or count < 2:
        return None
    listed = ", ".join(str(s) for s in shapes[:4])
    return Verdict(
        "parameters-not-optimized",
        f"{len(shapes)} tensors of shape {listed} get a gradient at each step, are the same at each step, and no optimizer "
        "holds them; 0 would be right, unless they are inputs whose gradient is wanted.",
        "Make them parameters, so that `self.parameters()` finds them:\n\n"
        "    self.waves = nn.ParameterList(nn.Parameter(t) for t in tensors)",
        {"weights": float(count), "of": float(total), "strength": min(0.85, 0.5 + count / max(total, 1))},
        (f"{len(shapes)} tensors that are no part of the LightningModule",),
        severity="critical",
    )


def idle(layers: Sequence[tuple[str, int, bool]], total: int, tables: bool = False) -> Verdict | None:
    """Layers that never get a gradient: as torch drew them, or held by an optimizer that is to train them.

    Args:
        layers: name, number of weights, and whether it is frozen, of each.
        total: weights in all.
        tables: whether all of them are tables of embeddings.
    """
    count = sum(n for _, n, _ in layers)
    if not layers or count < IDLE * total:
        return None
    frozen = sum(f for _, _, f in layers)
    how = "frozen" if frozen == len(layers) else "cut off from the loss" if not frozen else "frozen or cut off"
    return Verdict(
        "parameters-not-optimized",
        f"{len(layers)} layers with {100 * count / total:.0f} % of all weights are {how}: not one gradient has "
        f"reached them; up to {100 * IDLE:.0f} % might be meant.",
        "Train them, or load the weights they should have:\n\n    module.requires_grad_(True)\n\n"
        "Look for `detach()`, `torch.no_grad()` and `requires_grad = False` on the way from them to the loss.",
        # somebody may have frozen them on purpose, and a run that gets on with it is to be believed
        {
            "weights": float(count),
            "of": float(total),
            "strength": min(1.0, 0.5 + count / total),
            **({"meant": 1.0} if frozen == len(layers) else {}),
            **({"tables": 1.0} if frozen == len(layers) and tables else {}),
        },
        tuple(name for name, _, _ in layers),
        severity="critical",
    )


def without_slope(layers: Sequence[tuple[str, int, bool]], total: int) -> Verdict | None:
    """Layers as torch drew them whose every gradient was exactly 0; see `idle`. Units that are dead explain it, too."""
    count = sum(n for _, n, _ in layers)
    if not layers or count < IDLE * total:
        return None
    return Verdict(
        "parameters-not-optimized",
        f"Every gradient of {len(layers)} layers with {100 * count / total:.0f} % of all weights has been exactly 0; up to "
        f"{100 * IDLE:.0f} % might be meant. Something between them and the loss has no slope.",
        "Look for an operation without a slope behind them, such as `round`, `sign`, `argmax` or a comparison, and let the "
        "gradient through:\n\n    whole = code + (code.round() - code).detach()",
        {"weights": float(count), "of": float(total), "strength": _strength(count / total)},
        tuple(name for name, _, _ in layers),
    )


def _strength(share: float) -> float:
    """Grows with the share; where no layer of all has a slope, what enters them may be as much to blame."""
    return 0.3 + 0.5 * share if share < 1 else 0.6


def without_gradient(optimizer: int, steps: int, names: Sequence[str], count: int) -> Verdict:
    """None of an optimizer's steps found a gradient, and no backward pass made one."""
    return Verdict(
        "parameters-not-optimized",
        f"Optimizer {optimizer} has made {steps} steps, and none of its {count} parameters ever had a gradient; all should.",
        "Let the loss it steps on reach them. Look for `detach()`, `torch.no_grad()` and `.item()` on the way, and for a "
        "part of the model that another one replaced:\n\n"
        "    score = self.critic(self.generator(noise))  # not .detach() where the generator is trained",
        {"steps": float(steps), "parameters": float(count), "strength": 1.0},
        tuple(names[:8]),
        statistical=False,
        severity="critical",
    )


def not_cleared(optimizer: int, found: int, steps: int) -> Verdict:
    """Gradients of the last step were still there when the next backward pass began."""
    return Verdict(
        "gradients-not-cleared",
        f"Optimizer {optimizer} found the gradients of its last step still there in {found} of {steps} steps; 0 would be "
        "right.",
        "Clear them before each backward pass:\n\n    opt.zero_grad()\n    self.manual_backward(loss)\n    opt.step()",
        {"uncleared": float(found), "steps": float(steps), "strength": 1.0},
        statistical=False,
        severity="critical",
    )


def cleared_early(optimizer: int, steps: int, to_zero: bool) -> Verdict:
    """The backward pass left gradients, and the step found none, or zeros."""
    told = (
        f"In all {steps} steps that were looked at the backward pass left optimizer {optimizer} gradients, and its step "
        "found zeros"
        if to_zero
        else f"Optimizer {optimizer} has made {steps} steps without a gradient, though the backward pass left some"
    )
    return Verdict(
        "gradients-not-cleared",
        f"{told}: they are cleared before the step, where after it would be right.",
        CLEAR_FIRST,
        {"steps": float(steps), "strength": 1.0},
        statistical=False,
        severity="critical",
    )
