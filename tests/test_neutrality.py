"""An observing run is bitwise the run without us; a healthy run with remedies on is too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_stall import stall_callbacks
from lightning_stall.testing import blobs, healthy


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws from the global generator for every sample, so that any foreign draw shows."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        y = i % 3
        return torch.randn(1, 8, 8) + y, torch.tensor(y)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(288, 3),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.body(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.body(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def fingerprint(trainer: Trainer, module: LightningModule) -> str:
    """Weights, buffers, optimizer state and the generator, to the bit."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for state in trainer.optimizers[0].state.values():
        for tensor in state.values():
            digest.update(tensor.numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("extra", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}])
def test_observing_changes_not_a_bit(make_trainer: Callable[..., Trainer], extra: dict[str, Any]) -> None:
    prints = []
    for callbacks in ([], stall_callbacks()):
        seed_everything(1, verbose=False)
        module = Net()
        trainer = make_trainer(callbacks, max_epochs=3, log_every_n_steps=5, **extra)
        trainer.fit(module, DataLoader(Augmented(), 16, shuffle=True), DataLoader(Augmented(), 16))
        prints.append(fingerprint(trainer, module))
    assert prints[0] == prints[1]


def test_a_healthy_run_keeps_its_weights_with_remedies_on(make_trainer: Callable[..., Trainer]) -> None:
    """All but AutoClip and the loader's tuner, whose work is to change every run a little."""
    prints = []
    for watched in (False, True):
        seed_everything(1, verbose=False)
        module = healthy()
        left_out = ("AutoClip", "DataStarvationMonitor")
        callbacks = [c for c in stall_callbacks(auto_remedy=True) if type(c).__name__ not in left_out]
        trainer = make_trainer(callbacks if watched else [], max_epochs=10)
        trainer.fit(module, blobs())
        prints.append(fingerprint(trainer, module))
    assert prints[0] == prints[1]
