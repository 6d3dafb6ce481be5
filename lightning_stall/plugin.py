"""The entry point: watches every Trainer of a process, with no line of the script changed, where a user asks for it.

LIGHTNING_STALL=observe python train.py     # or =remedy
"""

from __future__ import annotations

import os

from lightning_stall.errors import LightningCallback, MisconfigurationException
from lightning_stall.family import stall_callbacks

VARIABLE = "LIGHTNING_STALL"


def callbacks_from_environment() -> list[LightningCallback]:
    """What Lightning adds to each Trainer: nothing unless `LIGHTNING_STALL` is "observe" or "remedy".

    Raises:
        MisconfigurationException: for any other value.
    """
    wish = os.environ.get(VARIABLE, "").strip().lower()
    if wish in ("", "0", "off", "no", "false"):
        return []
    if wish not in ("observe", "remedy"):
        raise MisconfigurationException(
            f'{VARIABLE} is {wish!r}; set it to "observe" to watch, "remedy" to let the remedies act, or unset it'
        )
    return stall_callbacks(auto_remedy=wish == "remedy")
