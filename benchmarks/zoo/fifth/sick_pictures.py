"""Trainings on pictures: strokes, nuclei and digits, by small convolutional nets; some log an accuracy, some nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, flip_labels, generator, predict
from benchmarks.zoo.fifth._common import Score, held, marks, named, nuclei, pairs, right, tame


class ConvNet(nn.Module):
    """Two convolutions, optionally normalised, and a linear head."""

    def __init__(self, classes: int = 5, width: int = 8, norm: Any = None, act: Any = nn.ReLU, side: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm1 = norm(width) if norm else nn.Identity()
        self.norm2 = norm(2 * width) if norm else nn.Identity()
        self.act1, self.act2 = act(), act()
        self.fc = nn.Linear(2 * width * (side // 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act1(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(self.act2(self.norm2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


class Pictures(LightningModule):
    """A class for each picture."""

    def __init__(self, model: nn.Module, lr: float = 5e-3, optimizer: str = "adam") -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def _shared_step(self, batch: Any, stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.log(f"{stage}_loss", loss, prog_bar=True)
        self.log(f"{stage}_acc", (logits.argmax(1) == labels).float().mean())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "val")

    def configure_optimizers(self) -> Any:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [torch.optim.Adam(self.parameters(), lr=self.lr)]


# --- what is in the pictures ------------------------------------------------------------------------------------------


@sick("z-thermal-camera", "cnn", "unscaled-inputs", twin=lambda s: thermal(s, True))
def thermal(seed: int, standard: bool = False) -> Training:
    """Temperatures in kelvin: three hundred, give or take four."""
    d = marks(seed)
    d = replace(d, x=300 + 4 * d.x, x_test=300 + 4 * d.x_test)
    if standard:
        mean, std = d.x.mean(), d.x.std()
        d = replace(d, x=(d.x - mean) / std, x_test=(d.x_test - mean) / std)
    return Training(Pictures(ConvNet()), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 7})


@sick("z-strokes-hot-pixels", "cnn", "corrupt-samples", twin=lambda s: hot(s, False))
def hot(seed: int, broken: bool = True) -> Training:
    """Four of eight hundred pictures hold a pixel of a million."""
    d = marks(seed)
    x = d.x.clone()
    if broken:
        g = generator(seed, 71)
        which = torch.randperm(len(x), generator=g)[:4]
        x[which, 0, 5, 6] = 1e6
    return Training(Pictures(ConvNet(), 0.02, "sgd"), pairs(x, d.y), right(d), held(d), {"max_epochs": 6})


@sick("z-strokes-in-decibel", "cnn", "nonfinite-inputs", twin=lambda s: decibel(s, 1e-3))
def decibel(seed: int, floor: float = 0.0) -> Training:
    """Powers in decibel; some pixels of some pictures hold no power at all."""
    d = marks(seed, noise=0.1)

    def level(x: Tensor) -> Tensor:
        power = x.abs() + 0.02
        power[(x - x.amin((2, 3), keepdim=True) == 0) & (x < -0.37)] = 0
        return torch.log10(power.clamp(min=floor) if floor else power) + 1.2

    d = replace(d, x=level(d.x), x_test=level(d.x_test).nan_to_num(neginf=-1.8))
    return Training(Pictures(ConvNet()), pairs(d.x, d.y), right(d), None, {"max_epochs": 5, "log_every_n_steps": 10})


@sick("z-strokes-folder-order", "cnn", "unshuffled-data", twin=lambda s: folders(s, True))
def folders(seed: int, shuffle: bool = False) -> Training:
    d = marks(seed)
    order = d.y.argsort(stable=True)
    train = pairs(d.x[order], d.y[order], 32, shuffle=shuffle)
    return Training(Pictures(ConvNet(), 0.03, "sgd"), train, right(d), held(d), {"max_epochs": 5})


@sick(
    "z-strokes-final-fit",
    "cnn",
    "train-val-leakage",
    twin=lambda s: final(s, False),
    note="the score is minus the gap between the watched accuracy and that on pictures never seen",
)
def final(seed: int, together: bool = True) -> Training:
    """All labelled pictures are trained on, those that validate among them; a sixth of the labels is wrong."""
    d = marks(seed, n=500)
    x, y = d.x, flip_labels(d.y, 0.2, 5, seed)
    fresh = marks(seed + 1000, n=10)
    watched = Split(x[:350], y[:350], x[350:], y[350:])
    train = (x, y) if together else (watched.x, watched.y)

    def score(module: LightningModule) -> float:
        seen = data.accuracy(predict(module, watched.x_test), watched.y_test)
        return -abs(seen - 0.84 * data.accuracy(predict(module, fresh.x_test), fresh.y_test))

    return Training(Pictures(ConvNet(width=16)), pairs(*train, 25), score, held(watched), {"max_epochs": 14})


@sick("z-strokes-a-handful", "cnn", "too-little-data", twin=lambda s: handful(s, 800))
def handful(seed: int, n: int = 15) -> Training:
    d = marks(seed)
    train = pairs(d.x[:n], d.y[:n], 15)
    return Training(Pictures(ConvNet()), train, right(d), None, {"max_steps": 150, "log_every_n_steps": 1})


@sick("z-strokes-long-after", "cnn", "overfitting", twin=lambda s: after(s, True))
def after(seed: int, regular: bool = False) -> Training:
    """A fifth of all labels are wrong; the twin stops about where validation does."""
    d = marks(seed, n=250)
    d = replace(d, y=flip_labels(d.y, 0.25, 5, seed), y_test=flip_labels(d.y_test, 0.25, 5, seed + 1))
    module = Pictures(ConvNet(width=16), 3e-3)

    def score(module: LightningModule) -> float:
        return tame(-F.cross_entropy(predict(module, d.x_test), d.y_test).item())

    return Training(module, pairs(d.x, d.y, 40), score, held(d), {"max_epochs": 12 if regular else 55})


# --- the net ----------------------------------------------------------------------------------------------------------


@sick("z-strokes-softmax-layer", "cnn", "probabilities-as-logits", twin=lambda s: softmax(s, False))
def softmax(seed: int, last: bool = True) -> Training:
    d = marks(seed)
    net = nn.Sequential(ConvNet(), nn.Softmax(dim=1)) if last else ConvNet()
    return Training(Pictures(net, 0.02, "sgd"), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 7})


@sick("z-strokes-convs-in-a-row", "cnn", "missing-nonlinearity", twin=lambda s: row(s, True))
def row(seed: int, act: bool = False) -> Training:
    d = marks(seed)
    layers: list[nn.Module] = []
    for a, b in ((1, 12), (12, 12), (12, 12)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()] if act else [nn.Conv2d(a, b, 3, padding=1)]
    net = nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(12 * 16, 5))
    return Training(Pictures(net), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 7})


@sick("z-strokes-prior-in-every-bias", "cnn", "dead-activations", "bad-initialization", twin=lambda s: prior(s, False))
def prior(seed: int, everywhere: bool = True) -> Training:
    """The bias that a detection head starts with, given to each layer."""
    d = marks(seed)
    net = ConvNet()
    if everywhere:
        for layer in (net.conv1, net.conv2, net.fc):
            nn.init.constant_(layer.bias, -4.6)
    return Training(Pictures(net), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


class PreActivated(nn.Module):
    """Activation first, then convolution, as in later residual nets."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.BatchNorm2d(1) if norm else nn.Identity(), nn.ReLU())
        self.body = ConvNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


@sick("z-sonar-pre-activated", "cnn", "dead-activations", twin=lambda s: sonar(s, True))
def sonar(seed: int, norm: bool = False) -> Training:
    """Echo levels lie below zero, and the first thing they meet is a ReLU."""
    d = marks(seed, noise=0.2)
    d = replace(d, x=d.x / 2 - 2, x_test=d.x_test / 2 - 2)
    return Training(Pictures(PreActivated(norm)), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


@sick("z-strokes-nine-sigmoid-convs", "cnn", "vanishing-gradients", twin=lambda s: nine(s, nn.ReLU))
def nine(seed: int, act: Any = nn.Sigmoid) -> Training:
    d = marks(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 10, 3, padding=1), act()]
    for k in range(8):
        layers += [nn.Conv2d(10, 10, 3, padding=1), act()] + ([nn.MaxPool2d(2)] if k in (2, 5) else [])
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(90, 5))
    return Training(Pictures(net, 3e-3), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 12})


@sick("z-strokes-two-at-a-time", "cnn", "batchnorm-small-batch", twin=lambda s: two(s, nn.LayerNorm))
def two(seed: int, norm: Any = nn.BatchNorm1d) -> Training:
    """Normalised vectors at the head, from batches of two; the twin normalises each vector by itself."""
    d = marks(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(288, 48), norm(48), nn.ReLU(), nn.Linear(48, 5),
    )  # fmt: skip
    return Training(Pictures(net, 3e-3), pairs(d.x, d.y, 2, drop_last=True), right(d), None, {"max_steps": 500})


@sick("z-strokes-slow-averages", "cnn", "batchnorm-stale-statistics", twin=lambda s: slow(s, 0.1))
def slow(seed: int, momentum: float = 1e-3) -> Training:
    d = marks(seed)
    d = replace(d, x=3 * d.x + 2, x_test=3 * d.x_test + 2)
    net = ConvNet(norm=lambda width: nn.BatchNorm2d(width, momentum=momentum))
    return Training(Pictures(net), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 6})


class LooksFirst(Pictures):
    """Looks at the untrained answers once before the first epoch."""

    def __init__(self, model: nn.Module, sample: Tensor, back: bool) -> None:
        super().__init__(model)
        self.sample, self.back = sample, back

    def on_train_start(self) -> None:
        self.eval()
        with torch.no_grad():
            self.confidence = self(self.sample).softmax(1).amax(1).mean()
        if self.back:
            self.train()


@sick("z-strokes-looked-at-first", "cnn", "mode-mismatch", twin=lambda s: looked(s, True))
def looked(seed: int, back: bool = False) -> Training:
    d = marks(seed)
    d = replace(d, x=40 * d.x + 90, x_test=40 * d.x_test + 90)
    net = nn.Sequential(nn.BatchNorm2d(1), ConvNet(norm=nn.BatchNorm2d))
    return Training(LooksFirst(net, d.x[:64], back), pairs(d.x, d.y), right(d), None, {"max_epochs": 6})


# --- masks ------------------------------------------------------------------------------------------------------------


class Segmenter(LightningModule):
    """A logit for each pixel; batches are dicts."""

    def __init__(self, net: nn.Module, weight: float | None = None, lr: float = 1e-2) -> None:
        super().__init__()
        self.net = net
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=None if weight is None else torch.tensor(weight))
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch["image"]), batch["mask"])
        self.log("train/bce", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


def unet(*last: nn.Module, channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU(),
        nn.Conv2d(8, 1, 1), *last,
    )  # fmt: skip


def overlap(d: Split, sure: bool = False) -> Score:
    """Dice of the masks where the sigmoid of the output passes one half."""

    def score(module: LightningModule) -> float:
        answer = predict(module, d.x_test).sigmoid() > 0.5
        return (2 * (answer * d.y_test).sum() / (answer.sum() + d.y_test.sum())).item()

    return score


@sick("z-nuclei-sigmoid-at-the-end", "segmentation", "probabilities-as-logits", twin=lambda s: sigmoid(s, False))
def sigmoid(seed: int, last: bool = True) -> Training:
    d = nuclei(seed)
    net = unet(nn.Sigmoid()) if last else unet()
    return Training(Segmenter(net), named(15, image=d.x, mask=d.y), overlap(d), None, {"max_epochs": 8})


@sick("z-specks-unweighted", "segmentation", "class-imbalance", twin=lambda s: specks(s, 20.0))
def specks(seed: int, weight: float | None = None) -> Training:
    """One pixel in fifty belongs to a speck, in pictures full of noise."""
    d = nuclei(seed, noise=1.1, most=1.3)

    def score(module: LightningModule) -> float:
        answer = predict(module, d.x_test) > 0
        return sum((answer[d.y_test == k] == bool(k)).float().mean().item() for k in (0, 1)) / 2

    module = Segmenter(unet(), weight)
    return Training(module, named(15, image=d.x, mask=d.y), score, None, {"max_epochs": 6})
