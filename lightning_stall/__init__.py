"""Why is my training stalled, and what do I change? Diagnostic callbacks for PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_stall.version import __version__

if TYPE_CHECKING:
    from lightning_stall.callback import StallCallback as StallCallback
    from lightning_stall.callbacks.activation_health import ActivationHealth as ActivationHealth
    from lightning_stall.callbacks.auto_clip import AutoClip as AutoClip
    from lightning_stall.callbacks.batchnorm_guard import BatchNormBatchSizeGuard as BatchNormBatchSizeGuard
    from lightning_stall.callbacks.data_starvation import DataStarvationMonitor as DataStarvationMonitor
    from lightning_stall.callbacks.gradient_health import GradientHealth as GradientHealth
    from lightning_stall.callbacks.input_health import InputHealth as InputHealth
    from lightning_stall.callbacks.loss_check import LossCheck as LossCheck
    from lightning_stall.callbacks.optimizer_health import OptimizerHealth as OptimizerHealth
    from lightning_stall.callbacks.plateau_watch import PlateauWatch as PlateauWatch
    from lightning_stall.callbacks.stall_report import StallReport as StallReport
    from lightning_stall.catalogue import explain as explain
    from lightning_stall.family import stall_callbacks as stall_callbacks
    from lightning_stall.finding import Cause as Cause
    from lightning_stall.finding import Finding as Finding

# Imported on first use: `lightning-stall explain CODE` must not wait seconds for torch.
_WHERE = {
    "ActivationHealth": "lightning_stall.callbacks.activation_health",
    "AutoClip": "lightning_stall.callbacks.auto_clip",
    "BatchNormBatchSizeGuard": "lightning_stall.callbacks.batchnorm_guard",
    "Cause": "lightning_stall.finding",
    "DataStarvationMonitor": "lightning_stall.callbacks.data_starvation",
    "Finding": "lightning_stall.finding",
    "GradientHealth": "lightning_stall.callbacks.gradient_health",
    "InputHealth": "lightning_stall.callbacks.input_health",
    "LossCheck": "lightning_stall.callbacks.loss_check",
    "OptimizerHealth": "lightning_stall.callbacks.optimizer_health",
    "PlateauWatch": "lightning_stall.callbacks.plateau_watch",
    "StallCallback": "lightning_stall.callback",
    "StallReport": "lightning_stall.callbacks.stall_report",
    "explain": "lightning_stall.catalogue",
    "stall_callbacks": "lightning_stall.family",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lightning_stall' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
