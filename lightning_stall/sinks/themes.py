"""The panels that TensorBoard shows, one a theme, in the order in which a stalled training is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

OUTCOME = "outcome and loss, with its baseline"
FINDINGS = "findings on the time axis"
DEPTH = "gradient norms by depth"
CLIPPING = "gradient norm before and after clipping, threshold"
UPDATES = "update-to-weight ratios (log10), healthy band"
RATE = "learning rate set and effective"
TIME = "where a step's time goes"
WAIT = "share of time without data"
BATCHNORM = "BatchNorm: batch means from running ones; losses by both"
ACTIVATIONS = "activations: dead units, saturated values"
INPUTS = "inputs: mean and spread; class shares"

# TensorBoard shows twelve on its first page: leave room for one of the user's own
ORDER = (OUTCOME, FINDINGS, DEPTH, CLIPPING, UPDATES, RATE, TIME, WAIT, BATCHNORM, ACTIVATIONS, INPUTS)

# Powers of ten of the update-to-weight ratio of one step that trainings which learn mostly show: a thousandth is the
# usual rule of thumb (A. Karpathy, "makemore" part 3). A mark to read by, not a verdict.
_HEALTHY = {"stall/updates/log10_healthy_low": -4.0, "stall/updates/log10_healthy_high": -2.0}
_LEAST = 1e-12  # a step that moves nothing is drawn here


def updates(name: str, ratio: float) -> dict[str, float]:
    """An update-to-weight ratio as the panel draws it: its power of ten, between the marks of what is healthy.

    >>> updates("ratio", 1e-3)["stall/updates/log10_ratio"]
    -3.0
    """
    if not math.isfinite(ratio):
        return {}
    return {f"stall/updates/log10_{name}": math.log10(max(ratio, _LEAST)), **_HEALTHY}


def in_order(panels: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Our own themes first, in their order, then those that others bring."""
    known = {title: panels[title] for title in ORDER if title in panels}
    return {**known, **{title: tags for title, tags in panels.items() if title not in known}}
