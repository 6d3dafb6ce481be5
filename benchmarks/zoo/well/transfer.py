"""Training a part: frozen backbones, adapters, teachers, fine-tuning of what is good. `build` does the pretraining."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, mlp


def _pretrain(net: nn.Module, x: Tensor, y: Tensor, epochs: int = 8, lr: float = 3e-3) -> None:
    """Plain supervised training of `net`, outside Lightning."""
    adam = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64)[:-1]:
            adam.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()


def _halves(d: data.Split) -> tuple[data.Split, data.Split]:
    """One half of the training samples to pretrain on, the other to fine-tune on; the same test samples."""
    cut = len(d.x) // 2
    return data.Split(d.x[:cut], d.y[:cut], d.x_test, d.y_test), data.Split(d.x[cut:], d.y[cut:], d.x_test, d.y_test)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def _pretrained_backbone(d: data.Split) -> Backbone:
    """Learnt on telling odd from even digits, a task near to the one it is used for."""
    net = Backbone()
    _pretrain(nn.Sequential(net, nn.Linear(512, 2)), d.x, d.y % 2)
    return net


class FrozenBackbone(LightningModule):
    """The usual recipe: no gradients for the backbone, its BatchNorm in evaluation mode, a head on top."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=3e-3)


@well("frozen-backbone", "transfer", "a frozen backbone in evaluation mode, only the head learns; accuracy about 0.97")
def frozen_backbone(seed: int) -> Training:
    first, second = _halves(data.digits(seed).to_images())
    return Training(
        FrozenBackbone(_pretrained_backbone(first)), second.train(32), second.accuracy, None, {"max_epochs": 25}
    )


class Unfreezing(Classifier):
    """For `BackboneFinetuning`, which wants `self.backbone` and unfreezes it later."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(nn.Identity(), lr=2e-3)
        self.backbone = backbone
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


@well(
    "backbone-unfrozen-later",
    "transfer",
    "Lightning's BackboneFinetuning adds the backbone at epoch 6; accuracy about 0.98",
)
def backbone_unfrozen_later(seed: int) -> Training:
    first, second = _halves(data.digits(seed).to_images())
    trainer = {"max_epochs": 16, "callbacks": [BackboneFinetuning(6, lambda epoch: 1.2, backbone_initial_ratio_lr=0.1)]}
    return Training(
        Unfreezing(_pretrained_backbone(first)),
        second.train(32, drop_last=True),
        second.accuracy,
        second.val(),
        trainer,
    )


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices, the second zero at the start."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


@well("lora", "transfer", "low-rank adapters on frozen layers, inputs turned upside down since; accuracy about 0.96")
def lora(seed: int) -> Training:
    first, second = _halves(data.digits(seed))
    net = mlp(64, 128, 128, 10)
    _pretrain(net, first.x, first.y)
    second = data.Split(second.x.flip(1), second.y, second.x_test.flip(1), second.y_test)
    adapted = nn.Sequential(*[LowRank(m, 8) if isinstance(m, nn.Linear) else m for m in net])
    model = Classifier(
        adapted, optimizers=lambda m: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=5e-3)
    )
    return Training(model, second.train(32), second.accuracy, second.val(), {"max_epochs": 35})


@well(
    "finetune-converged",
    "transfer",
    "the net is already good, so the loss is low and flat from the first step; accuracy 0.97",
)
def finetune_converged(seed: int) -> Training:
    d = data.digits(seed)
    net = mlp(64, 128, 10)
    _pretrain(net, d.x, d.y, epochs=50)
    return Training(Classifier(net, lr=1e-4), d.train(64), d.accuracy, d.val(), {"max_epochs": 15})


@well(
    "finetune-noise-floor",
    "transfer",
    "a converged regression trained on: the loss is its noise from the first step; R2 0.6",
)
def finetune_noise_floor(seed: int) -> Training:
    d = data.regression(seed, r2=0.65, n=6000)
    net = mlp(8, 32, 1)
    adam = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(15):
        for rows in torch.randperm(len(d.x)).split(64):
            adam.zero_grad()
            F.mse_loss(net(d.x[rows]), d.y[rows]).backward()
            adam.step()

    class Continue(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = net

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    return Training(Continue(), d.train(64), d.r2, None, {"max_epochs": 8})


class MeanTeacher(LightningModule):
    """The student learns from a few labels and from its own average, whose parameters take no gradient."""

    def __init__(self, decay: float = 0.98) -> None:
        super().__init__()
        self.student = mlp(64, 128, 10, dropout=0.2)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        noisy = x + 0.1 * torch.randn_like(x)
        logits = self.student(noisy)
        with torch.no_grad():
            target = self.teacher(x).softmax(1)
        loss = F.cross_entropy(logits, y) + F.mse_loss(logits.softmax(1), target)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=2e-3)


@well("ema-teacher", "transfer", "half of the parameters are an average that no optimizer holds; accuracy about 0.97")
def ema_teacher(seed: int) -> Training:
    d = data.digits(seed)
    return Training(MeanTeacher(), d.train(64), d.accuracy, None, {"max_epochs": 30})


class Distill(LightningModule):
    """A small student matches the softened outputs of a large frozen teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = mlp(64, 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        with torch.no_grad():
            target = F.log_softmax(self.teacher(x) / 4, dim=1)
        loss = 16 * F.kl_div(F.log_softmax(self(x) / 4, dim=1), target, log_target=True, reduction="batchmean")
        self.log("distill_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=3e-3)


@well("distillation", "transfer", "only a divergence to a frozen teacher, no labels; accuracy about 0.96")
def distillation(seed: int) -> Training:
    d = data.digits(seed)
    teacher = mlp(64, 256, 10)
    _pretrain(teacher, d.x, d.y, epochs=20)
    return Training(Distill(teacher), d.train(64), d.accuracy, None, {"max_epochs": 35})
