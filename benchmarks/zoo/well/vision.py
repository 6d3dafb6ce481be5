"""Image nets on the bundled digits that end well: convolutions, residuals, patches, reconstruction, segmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, Regressor, mlp


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@well("cnn-batchnorm", "vision", "two convolutions with BatchNorm; accuracy about 0.98")
def cnn_batchnorm(seed: int) -> Training:
    d = data.digits(seed).to_images()
    return Training(
        Classifier(small_cnn(), lr=5e-3), d.train(64, drop_last=True), d.accuracy, d.val(), {"max_epochs": 15}
    )


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)  # each block starts as the identity, as in torchvision's zero_init_residual

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    """22 layers: a stem, ten blocks of two convolutions, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.blocks = nn.Sequential(*[Block(12) for _ in range(10)])
        self.fc = nn.Linear(12 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


@well(
    "resnet-22",
    "vision",
    "residual blocks that start as the identity: half their gradients are zero at step 1; accuracy 0.98",
)
def resnet_22(seed: int) -> Training:
    d = data.digits(seed).to_images()

    def optimizers(m: Any) -> Any:
        sgd = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=int(m.trainer.estimated_stepping_batches))
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    model = Classifier(ResNet(), optimizers=optimizers)
    return Training(model, d.train(64, drop_last=True), d.accuracy, d.val(), {"max_epochs": 10})


class PatchTransformer(nn.Module):
    """Patches of 2 x 4, a class token, learnt positions, pre-norm encoder."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, (2, 4), stride=(2, 4))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 9, dim))
        layer = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        return self.head(self.norm(self.encoder(x))[:, 0])


@well("vit-patches", "vision", "a small vision transformer with warm-up and label smoothing; accuracy about 0.96")
def vit_patches(seed: int) -> Training:
    d = data.digits(seed).to_images()

    class LitViT(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            loss = F.cross_entropy(self(x), y, label_smoothing=0.1)
            self.log("train_loss", loss)
            return loss

    def optimizers(m: Any) -> Any:
        adam = torch.optim.AdamW(m.parameters(), lr=4e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            adam, 4e-3, total_steps=int(m.trainer.estimated_stepping_batches), pct_start=0.15
        )
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Training(
        LitViT(PatchTransformer(), optimizers=optimizers), d.train(64), d.accuracy, d.val(), {"max_epochs": 22}
    )


class MixupClassifier(Classifier):
    """Mixup and label smoothing with a torchmetrics accuracy: the training loss can not come near zero."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__(net, lr)
        self.train_acc = MulticlassAccuracy(10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        lam = torch.distributions.Beta(0.4, 0.4).sample()
        order = torch.randperm(len(x))
        logits = self(lam * x + (1 - lam) * x[order])
        loss = lam * F.cross_entropy(logits, y, label_smoothing=0.1)
        loss = loss + (1 - lam) * F.cross_entropy(logits, y[order], label_smoothing=0.1)
        self.train_acc(logits, y)
        self.log("train_acc", self.train_acc, on_epoch=True, on_step=False)
        self.log("train_loss", loss)
        return loss


@well(
    "mixup-smoothing",
    "vision",
    "mixup and label smoothing keep the training loss near 0.9 and noisy; accuracy about 0.98",
)
def mixup_smoothing(seed: int) -> Training:
    d = data.digits(seed).to_images()
    return Training(
        MixupClassifier(small_cnn(), 5e-3), d.train(64, drop_last=True), d.accuracy, d.val(), {"max_epochs": 25}
    )


@well("autoencoder", "vision", "16 of 64 numbers; R2 of the picture about 0.85, as good as the best linear code")
def autoencoder(seed: int) -> Training:
    d = data.digits(seed)
    d = data.Split(d.x, d.x, d.x_test, d.x_test)
    net = nn.Sequential(mlp(64, 128, 16), mlp(16, 128, 64))
    return Training(Regressor(net, lr=3e-3), d.train(64), d.r2, d.val(), {"max_epochs": 45})


class NoiseToShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.out = nn.Conv2d(17, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.mid(F.relu(self.down(x))))
        return self.out(torch.cat([F.relu(self.up(y)), x], dim=1))


class Segmenter(Classifier):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        p = torch.sigmoid(logits)
        dice = 1 - 2 * (p * y).sum() / (p.sum() + y.sum())
        loss = F.binary_cross_entropy_with_logits(logits, y) + dice
        self.log("train_loss", loss)
        return loss


@well(
    "segmentation-dice",
    "vision",
    "a small U-Net finds the ink under noise by cross-entropy plus dice; pixel accuracy about 0.95",
)
def segmentation_dice(seed: int) -> Training:
    d = data.digits(seed).to_images()
    g = data.generator(seed, 21)
    clean = (d.x, d.x_test)
    noisy = [x + 0.2 * torch.randn(x.shape, generator=g) for x in clean]
    ink = [(x > 0.5).float() for x in clean]

    def pixels(m: Any) -> float:
        return ((data.predict(m, noisy[1]) > 0) == ink[1].bool()).float().mean().item()

    d = data.Split(noisy[0], ink[0], noisy[1], ink[1])
    return Training(Segmenter(NoiseToShape(), lr=5e-3), d.train(32), pixels, None, {"max_epochs": 20})
