"""Healthy runs whose loss moves with the learning rate: steps, warm-up, cosine, restarts, one cycle, plateaus."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, Regressor, mlp


def _each_step(optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@well("multistep-decay", "schedule", "the loss is flat until each drop of the rate, then falls at once; R2 about 0.9")
def multistep_decay(seed: int) -> Training:
    d = data.regression(seed, r2=0.95, n=1600)

    def optimizers(m: LightningModule) -> Any:
        sgd = SGD(m.parameters(), lr=0.1, momentum=0.9)
        return [sgd], [schedulers.MultiStepLR(sgd, milestones=[10, 18], gamma=0.1)]

    return Training(Regressor(mlp(8, 64, 64, 1), optimizers=optimizers), d.train(32), d.r2, d.val(), {"max_epochs": 24})


@well("warmup-from-zero", "schedule", "400 steps of linear warm-up, the first at rate 0; accuracy about 0.97")
def warmup_from_zero(seed: int) -> Training:
    d = data.digits(seed)

    def optimizers(m: LightningModule) -> Any:
        adam = AdamW(m.parameters(), lr=2e-3)
        return _each_step(adam, schedulers.LambdaLR(adam, lambda step: min(1.0, step / 400)))

    return Training(
        Classifier(mlp(64, 128, 10), optimizers=optimizers), d.train(64), d.accuracy, d.val(), {"max_epochs": 45}
    )


@well("cosine-to-zero", "schedule", "the rate ends at zero, and the last epochs change nothing; accuracy about 0.97")
def cosine_to_zero(seed: int) -> Training:
    d = data.digits(seed)

    def optimizers(m: LightningModule) -> Any:
        adam = Adam(m.parameters(), lr=3e-3)
        return _each_step(adam, schedulers.CosineAnnealingLR(adam, T_max=int(m.trainer.estimated_stepping_batches)))

    return Training(
        Classifier(mlp(64, 128, 10), optimizers=optimizers), d.train(64), d.accuracy, d.val(), {"max_epochs": 35}
    )


@well("warm-restarts", "schedule", "the rate leaps up every 10 epochs and the loss with it; R2 about 0.9")
def warm_restarts(seed: int) -> Training:
    d = data.regression(seed, r2=0.9, n=1600)

    def optimizers(m: LightningModule) -> Any:
        adam = Adam(m.parameters(), lr=2e-2)
        return [adam], [schedulers.CosineAnnealingWarmRestarts(adam, T_0=8, eta_min=1e-4)]

    return Training(Regressor(mlp(8, 64, 1), optimizers=optimizers), d.train(32), d.r2, d.val(), {"max_epochs": 32})


@well("one-cycle", "schedule", "OneCycle to a high rate and back; accuracy about 0.97")
def one_cycle(seed: int) -> Training:
    d = data.digits(seed)

    def optimizers(m: LightningModule) -> Any:
        sgd = SGD(m.parameters(), lr=0.01, momentum=0.9)
        return _each_step(
            sgd, schedulers.OneCycleLR(sgd, max_lr=0.5, total_steps=int(m.trainer.estimated_stepping_batches))
        )

    return Training(
        Classifier(mlp(64, 96, 10), optimizers=optimizers), d.train(64), d.accuracy, d.val(), {"max_epochs": 30}
    )


@well("reduce-on-plateau", "schedule", "the user's own ReduceLROnPlateau answers each plateau; R2 about 0.8")
def reduce_on_plateau(seed: int) -> Training:
    d = data.regression(seed, r2=0.85, n=1600)

    def optimizers(m: LightningModule) -> Any:
        sgd = SGD(m.parameters(), lr=0.15, momentum=0.9)
        scheduler = schedulers.ReduceLROnPlateau(sgd, factor=0.3, patience=3)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    return Training(Regressor(mlp(8, 32, 1), optimizers=optimizers), d.train(32), d.r2, d.val(), {"max_epochs": 30})


@well("early-stopping", "schedule", "EarlyStopping on the validation loss ends the run on its floor; R2 about 0.6")
def early_stopping(seed: int) -> Training:
    d = data.regression(seed, r2=0.65, n=3000)
    trainer = {"max_epochs": 60, "callbacks": [EarlyStopping(monitor="val_loss", patience=4, mode="min")]}
    return Training(Regressor(mlp(8, 24, 1), lr=3e-3), d.train(64), d.r2, d.val(), trainer)


@well("exponential-decay", "schedule", "the rate shrinks by a tenth each epoch to the end; R2 about 0.9")
def exponential_decay(seed: int) -> Training:
    d = data.regression(seed, r2=0.95, n=1600)

    def optimizers(m: LightningModule) -> Any:
        adam = Adam(m.parameters(), lr=1e-2)
        return [adam], [schedulers.ExponentialLR(adam, gamma=0.85)]

    return Training(Regressor(mlp(8, 64, 64, 1), optimizers=optimizers), d.train(32), d.r2, d.val(), {"max_epochs": 25})
