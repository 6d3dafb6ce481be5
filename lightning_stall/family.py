"""`stall_callbacks`: the whole family in one call."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from lightning_stall.catalogue import check_codes
from lightning_stall.errors import LightningCallback

# in the order they read best in a report; StallReport last, so that it weighs what the others said
FAMILY = (
    ("gradient_health", "GradientHealth"),
    ("auto_clip", "AutoClip"),
    ("plateau_watch", "PlateauWatch"),
    ("optimizer_health", "OptimizerHealth"),
    ("batchnorm_guard", "BatchNormBatchSizeGuard"),
    ("data_starvation", "DataStarvationMonitor"),
    ("input_health", "InputHealth"),
    ("loss_check", "LossCheck"),
    ("activation_health", "ActivationHealth"),
    ("stall_report", "StallReport"),
)


# AutoClip's own default, the 10th percentile, cuts most steps of any run. Here a healthy run is to be left alone: its
# warm-up, in which only leaps over ten times the usual norm are cut, never ends
LEAPS_ONLY = 10**9


def stall_callbacks(
    auto_remedy: bool = False, mute: Sequence[str] = (), *, trials: bool = True
) -> list[LightningCallback]:
    """Every callback of the package, StallReport last: `Trainer(callbacks=stall_callbacks())`.

    Args:
        auto_remedy: let each apply its remedy; False only watches, and leaves the run bitwise alone. `AutoClip` cuts
            only gradients that leap over ten times their usual norm; give one of your own for its percentile.
        mute: codes never to be told, as in `mute=("class-imbalance",)`.
        trials: let StallReport try on a copy what could be wrong, once a run fares badly (see there).

    Raises:
        MisconfigurationException: for an unknown code.

    >>> [type(callback).__name__ for callback in stall_callbacks(mute=("class-imbalance",))][-1]
    'StallReport'
    """
    codes = check_codes(mute)
    made: list[LightningCallback] = []
    for module, name in FAMILY:
        cls = getattr(importlib.import_module(f"lightning_stall.callbacks.{module}"), name)
        settings: dict[str, Any] = {"trials": trials} if name == "StallReport" else {"auto_remedy": auto_remedy}
        if name == "AutoClip":
            settings["warmup"] = LEAPS_ONLY
        made.append(cls(mute=codes, **settings))
    return made
