"""Which codes of the catalogue another tool's words may mean. Generous: a word is given every code it could point to.

Matched against what a tool says is wrong and why, not against what it suggests to try: such lists name every remedy
there is, so that any of them would be right about everything.
"""

from __future__ import annotations

import re

_HIGH = {"learning-rate-too-high", "loss-diverging", "loss-oscillating"}
_STUCK = {"loss-plateau", "never-learned"}
_BAD_DATA = {"corrupt-samples", "nonfinite-inputs"}
_NONFINITE = {"nonfinite-loss", "nonfinite-gradients", "nonfinite-inputs", "unstable-operation"}

# (pattern, case-insensitive; codes it may mean)
WORDS: tuple[tuple[str, set[str]], ...] = (
    (r"\bnan|nan_|\binf\b|non-?finite|not finite|overflow", _NONFINITE),
    (r"(lr|learning rate|update ratio)( is)? too high|too much", _HIGH),
    (r"(lr|learning rate|update ratio)( is)? too low|too little", {"learning-rate-too-low", "excess-regularization"}),
    (r"unstable|instability|catapult|edge of stability|lyapunov", _HIGH | {"exploding-gradients"}),
    (r"oscillat|swings", _HIGH),
    (r"explo(d|sion)|gradient-norm spike", {"exploding-gradients", "bad-initialization"} | _HIGH),
    (r"diverg|sustained rise|is increasing|worsening|drift_detected", _HIGH),
    (r"spike", {"exploding-gradients", "nonfinite-loss"} | _BAD_DATA | _HIGH),
    (r"bad batch|outlier batch|data.{0,12}issue|incoming data", _BAD_DATA | {"unscaled-inputs", "unscaled-targets"}),
    (r"label(ing|s)? issue|data/labeling", {"uninformative-targets", "wrong-loss-for-task", "class-imbalance"}),
    (r"plateau|no progress|no early progress|did not improve|not improving|stagnat", _STUCK),
    (r"plateau|stagnat|stalling", {"learning-rate-too-low", "learning-rate-decayed-early", "insufficient-capacity"}),
    (r"frozen|not.{0,20}(updat|train)ed|stagnant weight|gradient stalling", {"parameters-not-optimized"}),
    (
        r"vanish|gradient (starvation|stalling)",
        {"vanishing-gradients", "saturated-activations", "missing-nonlinearity"},
    ),
    (r"dead(/| units?|\b.{0,10}relu)|unit death|inactive", {"dead-activations"}),
    (r"saturat", {"saturated-activations", "unscaled-inputs", "vanishing-gradients"}),
    (r"poor init|initiali[sz]|weight norm imbalance", {"bad-initialization", "disparate-feature-scales"}),
    (r"rank collapse|bottleneck -- rank", {"insufficient-capacity", "missing-nonlinearity", "constant-inputs"}),
    (r"overfit|memoriz", {"overfitting", "too-little-data", "train-val-leakage"}),
    (r"did not improve", {"overfitting"}),
    (r"schedule", {"learning-rate-decayed-early"}),
    (r"weight norm explosion", {"learning-rate-too-high", "exploding-gradients", "unscaled-targets"}),
    (r"gradient noise|low snr", {"batchnorm-small-batch", "uninformative-targets", "gradients-not-cleared"}),
    (r"input pipeline|dataloader|data_stall|fetching data", {"data-starvation", "dataloader-hang", "too-many-workers"}),
    (r"jitter|step-time variance", {"dataloader-hang", "training-hang", "data-starvation"}),
    (r"backward pass|optimizer step is costly", {"training-hang"}),
)


def codes_meant(text: str) -> set[str]:
    """Every code that the text could be about; empty where it names nothing the catalogue knows."""
    found: set[str] = set()
    return found.union(*(codes for pattern, codes in WORDS if re.search(pattern, text, re.IGNORECASE)))
