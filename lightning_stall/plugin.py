"""The entry point: watches every Trainer of a process, with no line of the script changed, where a user asks for it.

LIGHTNING_STALL=observe python train.py                                  # or =remedy
LIGHTNING_STALL=observe LIGHTNING_STALL_MUTE=loss-plateau,overfitting python train.py
"""

from __future__ import annotations

import os

from lightning_stall.callback import StallCallback
from lightning_stall.errors import LightningCallback, MisconfigurationException
from lightning_stall.family import stall_callbacks

VARIABLE = "LIGHTNING_STALL"
MUTE = "LIGHTNING_STALL_MUTE"


def callbacks_from_environment() -> list[LightningCallback]:
    """What Lightning adds to each Trainer: nothing unless `LIGHTNING_STALL` is "observe" or "remedy".

    A callback that the script gives by hand keeps its settings: the one from here stands aside. `LIGHTNING_STALL_MUTE`
    holds codes with commas between them.

    Raises:
        MisconfigurationException: for any other value, or an unknown code.
    """
    wish = os.environ.get(VARIABLE, "").strip().lower()
    if wish in ("", "0", "off", "no", "false"):
        return []
    if wish not in ("observe", "remedy"):
        raise MisconfigurationException(
            f'{VARIABLE} is {wish!r}; set it to "observe" to watch, "remedy" to let the remedies act, or unset it'
        )
    codes = [code.strip() for code in os.environ.get(MUTE, "").split(",")]
    made = stall_callbacks(auto_remedy=wish == "remedy", mute=[code for code in codes if code])
    for callback in made:
        assert isinstance(callback, StallCallback)
        callback.stands_aside = True
    return made
