"""The two packages of Lightning, seen as one: our exception and our callback base work under either.

`lightning.pytorch` and `pytorch_lightning` ship separate class trees. A Trainer only duck-types its callbacks, but
LightningCLI checks types and a user's `except` names one package, so both bases are joined here and nowhere else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_CALLBACKS = ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks")
_EXCEPTIONS = ("lightning.fabric.utilities.exceptions", "lightning_fabric.utilities.exceptions")


def _installed(modules: tuple[str, ...], name: str) -> tuple[type, ...]:
    found: list[type] = []
    for module in modules:
        try:
            kind = getattr(importlib.import_module(module), name)
        except ImportError:  # that package is not installed, or is too broken to be the user's Trainer
            continue
        if kind not in found:
            found.append(kind)
    return tuple(found)


if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException as _Misconfiguration
    from lightning.pytorch import Callback as LightningCallback

    class MisconfigurationException(_Misconfiguration):
        """A wrong argument: the message states the value it got and the way out."""

else:
    MisconfigurationException = type(
        "MisconfigurationException",
        (*_installed(_EXCEPTIONS, "MisconfigurationException"), ValueError),
        {"__doc__": "A wrong argument: the message states the value it got and the way out.", "__module__": __name__},
    )
    LightningCallback = type(
        "LightningCallback",
        _installed(_CALLBACKS, "Callback"),
        {"__doc__": "A callback of every installed Lightning package.", "__module__": __name__},
    )


def require(ok: bool, name: str, got: Any, way_out: str) -> None:
    """Raise `MisconfigurationException` unless `ok`: "`patience` is -1; give a whole number of at least 1"."""
    if not ok:
        raise MisconfigurationException(f"`{name}` is {got!r}; {way_out}")


def of_a_worker(error: BaseException) -> bool:
    """Whether this is torch's word of a loader's worker that has died. It comes by a signal, wherever the program is just
    then: in our code, too, where it is as little ours as anywhere else."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    return where == "torch.utils.data._utils.signal_handling"
