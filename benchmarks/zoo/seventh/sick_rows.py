"""Trainings whose trouble lies in what the batches hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, accuracy, blobs, digits, generator, predict, r2, table
from benchmarks.zoo.seventh._common import (
    BagOfWords,
    LastStep,
    Model,
    adam,
    balanced,
    iou,
    loader,
    mlp,
    reviews,
    sales,
    scenes,
    sgd,
    small_cnn,
    unet,
    waves,
)


class Tables(LightningDataModule):
    def __init__(self, d: Split, size: int, **options: Any) -> None:
        super().__init__()
        self.d, self.size, self.options = d, size, options

    def train_dataloader(self) -> Any:
        return self.d.train(self.size, **self.options)

    def val_dataloader(self) -> Any:
        return self.d.val()


def classify(x: Tensor, d: Split, net: nn.Module, optimizers: Callable[..., Any], **trainer: Any) -> Training:
    """Train on x with the labels of d; judge on the test part of d."""
    module = Model(net, F.cross_entropy, optimizers)
    return Training(module, loader(x, d.y), d.accuracy, d.val(), {"max_steps": 200, "max_epochs": -1, **trainer})


def gaps(seed: int, share: float) -> Training:
    d = table("wine", seed)
    x = d.x.clone()
    x[torch.rand(len(x), generator=generator(seed, 81)) < share, 6] = torch.nan
    return classify(x, d, mlp(13, 24, 3), adam(5e-3), log_every_n_steps=1)


@sick("p-wine-gaps", "table", "nonfinite-inputs", twin=lambda s: gaps(s, 0.0))
def wine_gaps(seed: int) -> Training:
    return gaps(seed, 0.1)


def ratio_rows(seed: int, broken: bool) -> Training:
    d = sales(seed)
    x = d.x.clone()
    if broken:
        x[700, 3] = torch.inf
    module = Model(mlp(10, 64, 3), F.mse_loss, adam(5e-3))
    return Training(module, loader(x, d.y, 50), d.r2, d.val(), {"max_epochs": 7})


@sick("p-orders-ratio", "regression", "nonfinite-inputs", twin=lambda s: ratio_rows(s, False))
def orders_ratio(seed: int) -> Training:
    return ratio_rows(seed, True)


class Careful(Model):
    """Leaves out a batch whose loss is not a number."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return loss if loss.isfinite() else None


def sensor(seed: int, share: float) -> Training:
    d = waves(seed)
    x = d.x.clone()
    x[torch.rand(len(x), generator=generator(seed, 82)) < share, 4] = torch.nan
    module = Careful(LastStep(nn.LSTM(1, 16, batch_first=True), 3), F.mse_loss, adam(5e-3))
    return Training(module, loader(x, d.y, 30), d.r2, trainer={"max_epochs": 8})


@sick("p-sensor-careful", "forecast", "nonfinite-inputs", twin=lambda s: sensor(s, 0.0))
def sensor_careful(seed: int) -> Training:
    return sensor(seed, 0.07)


def scaled_pixels(seed: int, factor: float, optimizers: Callable[..., Any]) -> Training:
    d = digits(seed)
    d = Split(factor * d.x, d.y, factor * d.x_test, d.y_test)
    return Training(
        Model(mlp(64, 64, 10), F.cross_entropy, optimizers), Tables(d, 32), d.accuracy, trainer={"max_epochs": 4}
    )


@sick("p-digits-raw", "mlp", "unscaled-inputs", twin=lambda s: scaled_pixels(s, 1.0, sgd(0.1)))
def digits_raw(seed: int) -> Training:
    return scaled_pixels(seed, 4000.0, sgd(0.1))


@sick("p-digits-faint", "mlp", "unscaled-inputs", twin=lambda s: scaled_pixels(s, 1.0, adam(1e-3)))
def digits_faint(seed: int) -> Training:
    return scaled_pixels(seed, 0.01, adam(1e-3))


def cellar(seed: int, standardise: bool) -> Training:
    d = table("wine", seed, standardise=standardise)
    module = Model(mlp(13, 32, 3), nn.CrossEntropyLoss(), sgd(0.02, momentum=0.9))
    return Training(module, d.train(16), d.accuracy, d.val(), {"max_epochs": 20, "log_every_n_steps": 1})


@sick("p-wine-cellar", "table", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: cellar(s, True))
def wine_cellar(seed: int) -> Training:
    return cellar(seed, False)


def units(seed: int, mixed: bool) -> Training:
    d = sales(seed)
    scale = torch.tensor([1.0, 1, 0.002, 1, 300, 1, 0.002, 1, 1, 40]) if mixed else torch.ones(10)
    d = Split(d.x * scale, d.y, d.x_test * scale, d.y_test)
    module = Model(mlp(10, 64, 64, 3), F.mse_loss, adam(3e-3))
    return Training(module, d.train(50), d.r2, d.val(), {"max_epochs": 8})


@sick("p-orders-units", "regression", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: units(s, False))
def orders_units(seed: int) -> Training:
    return units(seed, True)


class Shops(LightningModule):
    """Sales from a shop's number and two measurements."""

    def __init__(self, encode: bool, hidden: int) -> None:
        super().__init__()
        self.encode = encode
        width = 16 if encode else 3
        self.net = mlp(width, hidden, 1) if hidden else nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.encode:
            x = torch.cat([F.one_hot(x[:, 0].long(), 14).float(), x[:, 1:]], 1)
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["features"]), batch["sales"])
        self.log("train/mse", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def shops(seed: int, encode: bool, hidden: int) -> Training:
    g = generator(seed, 83)
    code = torch.randint(14, (1600,), generator=g)
    rest = torch.randn(1600, 2, generator=g)
    y = torch.randn(14, generator=g)[code] + 0.4 * rest[:, 0] + 0.1 * torch.randn(1600, generator=g)
    x = torch.cat([code[:, None].float(), rest], 1)
    rows: Any = [{"features": a, "sales": b[None]} for a, b in zip(x[:1200], y[:1200], strict=True)]
    return Training(
        Shops(encode, hidden),
        DataLoader(rows, batch_size=40, shuffle=True),
        lambda m: r2(predict(m, x[1200:]), y[1200:]),
        trainer={"max_epochs": 10, "log_every_n_steps": 10},
    )


@sick("p-shops-linear", "table", "categorical-as-numeric", twin=lambda s: shops(s, True, 0))
def shops_linear(seed: int) -> Training:
    return shops(seed, False, 0)


@sick("p-shops-hidden", "table", "categorical-as-numeric", twin=lambda s: shops(s, True, 16))
def shops_hidden(seed: int) -> Training:
    return shops(seed, False, 16)


def bytes_of(seed: int, cast: bool) -> Training:
    d = digits(seed).to_images()

    def load(x: Tensor) -> Tensor:
        x = 0.95 * x
        return x.to(torch.uint8).float() if cast else x

    d = Split(load(d.x), d.y, load(d.x_test), d.y_test)
    return classify(d.x, d, small_cnn(10), adam(5e-3))


@sick("p-digits-bytes", "cnn", "constant-inputs", twin=lambda s: bytes_of(s, False))
def digits_bytes(seed: int) -> Training:
    return bytes_of(seed, True)


def filled(seed: int, fill: bool) -> Training:
    d = sales(seed)
    if fill:
        x, x_test = d.x.clone(), d.x_test.clone()
        x[:, 2:6], x_test[:, 2:6] = 0.5, 0.5
        d = Split(x, d.y, x_test, d.y_test)
    module = Model(mlp(10, 64, 64, 3), F.mse_loss, adam(5e-3))
    return Training(module, Tables(d, 50), d.r2, trainer={"max_epochs": 7})


@sick("p-orders-filled", "regression", "constant-inputs", twin=lambda s: filled(s, False))
def orders_filled(seed: int) -> Training:
    return filled(seed, True)


def prices(seed: int, scale: float, shift: float) -> Training:
    d = sales(seed).map_targets(lambda y: scale * y[:, :1] + shift)
    module = Model(mlp(10, 64, 64, 1), F.mse_loss, adam(3e-3))
    return Training(module, d.train(50), d.r2, d.val(), {"max_epochs": 8})


@sick("p-prices", "regression", "unscaled-targets", twin=lambda s: prices(s, 1.0, 0.0))
def prices_raw(seed: int) -> Training:
    return prices(seed, 4000.0, 25000.0)


class TwoTasks(LightningModule):
    """A trunk with a head for a class and a head for an amount."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(10, 32, 32)
        self.kind, self.amount = nn.Linear(32, 5), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self.trunk(x).relu())

    def training_step(self, batch: tuple[Tensor, tuple[Tensor, Tensor]], batch_idx: int) -> Tensor:
        x, (kind, amount) = batch
        h = self.trunk(x).relu()
        a, b = F.cross_entropy(self.kind(h), kind), F.mse_loss(self.amount(h)[:, 0], amount)
        self.log_dict({"kind": a, "amount": b})
        return a + b

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def two_tasks(seed: int, scale: float) -> Training:
    d = blobs(seed, n=1500)
    amount = scale * (d.x[:, 0] + d.x[:, 1].sin() + 0.1 * torch.randn(len(d.x), generator=generator(seed, 84)))
    rows: Any = [(x, (k, a)) for x, k, a in zip(d.x, d.y, amount, strict=True)]
    return Training(TwoTasks(), DataLoader(rows, 50, shuffle=True), d.accuracy, trainer={"max_epochs": 6})


@sick("p-kind-and-amount", "multi-task", "unscaled-targets", twin=lambda s: two_tasks(s, 1.0))
def kind_and_amount(seed: int) -> Training:
    return two_tasks(seed, 300.0)


def scanned(seed: int, share: float) -> Training:
    d = digits(seed).to_images()
    g = generator(seed, 85)
    x = d.x.clone()
    x[torch.rand(len(x), generator=g) < share] *= 30000
    return classify(x, d, small_cnn(10), sgd(0.1, momentum=0.9))


@sick("p-scanned-digits", "cnn", "corrupt-samples", twin=lambda s: scanned(s, 0.0))
def scanned_digits(seed: int) -> Training:
    return scanned(seed, 0.01)


def meters(seed: int, share: float) -> Training:
    d = sales(seed)
    bad = torch.rand(len(d.y), generator=generator(seed, 86)) < share
    y = torch.where(bad[:, None], 999.0, d.y)
    module = Model(mlp(10, 64, 3), F.mse_loss, adam(5e-3))
    return Training(module, loader(d.x, y, 50), d.r2, d.val(), {"max_epochs": 8})


@sick("p-meters", "regression", "corrupt-samples", twin=lambda s: meters(s, 0.0))
def meters_overflow(seed: int) -> Training:
    return meters(seed, 0.008)


def spikes(seed: int, share: float) -> Training:
    d = waves(seed)
    bad = torch.rand(len(d.x), generator=generator(seed, 87)) < share
    y = d.y + bad[:, None] * 40 * torch.randn(d.y.shape, generator=generator(seed, 88))
    module = Model(LastStep(nn.GRU(1, 24, batch_first=True), 3), F.mse_loss, adam(5e-3))
    return Training(module, loader(d.x, y, 30), d.r2, d.val(), {"max_epochs": 8})


@sick("p-spikes", "forecast", "corrupt-samples", twin=lambda s: spikes(s, 0.0))
def spikes_rare(seed: int) -> Training:
    return spikes(seed, 0.02)


class Weighted(Model):
    """Binary classification of reviews or rows with an optional weight of the rare class."""

    def __init__(self, net: nn.Module, weight: float | None, lr: float) -> None:
        super().__init__(net, F.mse_loss, adam(lr))
        self.register_buffer("weight", None if weight is None else torch.tensor([weight]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, y.float(), pos_weight=self.weight)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", ((logits > 0) == (y > 0)).float().mean())
        return loss


def defaults(seed: int, weight: float | None) -> Training:
    d = blobs(seed, classes=2, n=2500, spread=1.1, shares=torch.tensor([0.97, 0.03]))
    return Training(
        Weighted(mlp(10, 16, 1), weight, 3e-3), d.train(50), lambda m: balanced(m, d, False), trainer={"max_epochs": 5}
    )


@sick("p-defaults", "table", "class-imbalance", twin=lambda s: defaults(s, 32.0))
def defaults_plain(seed: int) -> Training:
    return defaults(seed, None)


def complaints(seed: int, even: bool) -> Training:
    d = reviews(seed, n=1600, shares=(0.95, 0.05))
    options: dict[str, Any] = {"shuffle": True}
    if even:
        weights = (1 / torch.bincount(d.y).float())[d.y]
        options = {"shuffle": False, "sampler": torch.utils.data.WeightedRandomSampler(weights.tolist(), len(d.y))}
    module = Model(BagOfWords(), F.cross_entropy, adam(2e-3))
    return Training(module, Tables(d, 40, **options), lambda m: balanced(m, d), trainer={"max_epochs": 6})


@sick("p-complaints", "text", "class-imbalance", twin=lambda s: complaints(s, True))
def complaints_plain(seed: int) -> Training:
    return complaints(seed, False)


def by_folder(d: Split) -> Split:
    order = d.y.argsort(stable=True)
    return Split(d.x[order], d.y[order], d.x_test, d.y_test)


def folders(seed: int, shuffle: bool) -> Training:
    d = by_folder(digits(seed).to_images())
    module = Model(small_cnn(10), F.cross_entropy, sgd(0.05, momentum=0.9), log=False)
    return Training(module, d.train(32, shuffle=shuffle), d.accuracy, trainer={"max_epochs": 5})


@sick("p-folders", "cnn", "unshuffled-data", twin=lambda s: folders(s, True))
def folders_in_order(seed: int) -> Training:
    return folders(seed, False)


def archive(seed: int, shuffle: bool) -> Training:
    d = by_folder(reviews(seed))
    module = Model(BagOfWords(), F.cross_entropy, adam(3e-3))
    return Training(module, Tables(d, 40, shuffle=shuffle), d.accuracy, trainer={"max_epochs": 6})


@sick("p-archive", "text", "unshuffled-data", twin=lambda s: archive(s, True))
def archive_in_order(seed: int) -> Training:
    return archive(seed, False)


class Judged(Model):
    """Keeps the accuracy of the last validation."""

    reported = 0.0

    def on_validation_epoch_start(self) -> None:
        self.hits: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        hit = (self(x).argmax(1) == y).float()
        self.hits.append(hit)
        self.log("val_acc", hit.mean(), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.reported = torch.cat(self.hits).mean().item()


def overlap(seed: int, leak: bool) -> Training:
    d = blobs(seed, n=500, spread=1.2, columns=20)
    x, y = (d.x, d.y) if leak else (d.x[:350], d.y[:350])
    module = Judged(mlp(20, 128, 5), F.cross_entropy, adam(8e-3))

    def score(m: Any) -> float:
        return -abs(m.reported - accuracy(predict(m, d.x_test), d.y_test))

    return Training(module, loader(x, y, 25), score, loader(d.x[350:], d.y[350:], 75, False), {"max_epochs": 15})


@sick(
    "p-clouds-split",
    "table",
    "train-val-leakage",
    twin=lambda s: overlap(s, False),
    note="the score is the report's error",
)
def clouds_split(seed: int) -> Training:
    return overlap(seed, True)


def pilot(seed: int, n: int | None) -> Training:
    d = digits(seed)
    train = loader(d.x[:n], d.y[:n], 10)
    module = Judged(mlp(64, 96, 10), F.cross_entropy, adam(3e-3))
    return Training(
        module, train, d.accuracy, d.val(), {"max_steps": 200, "max_epochs": -1, "log_every_n_steps": 1,
                                             "val_check_interval": 50, "check_val_every_n_epoch": None}
    )  # fmt: skip


@sick("p-pilot", "mlp", "too-little-data", "overfitting", twin=lambda s: pilot(s, None))
def pilot_study(seed: int) -> Training:
    return pilot(seed, 20)


def joined(seed: int, shift: int) -> Training:
    d = sales(seed)
    module = Model(mlp(10, 48, 3), F.mse_loss, adam(3e-3))
    return Training(module, loader(d.x, d.y.roll(shift, 0), 50), d.r2, d.val(), {"max_epochs": 8})


@sick("p-joined-tables", "regression", "uninformative-targets", twin=lambda s: joined(s, 0))
def joined_tables(seed: int) -> Training:
    return joined(seed, 1)


def sorted_names(seed: int, broken: bool) -> Training:
    d = reviews(seed, n=2400)
    y = d.y.sort().values if broken else d.y
    module = Model(BagOfWords(dim=8), F.cross_entropy, adam(5e-3))
    return Training(module, loader(d.x, y, 60), d.accuracy, d.val(), {"max_epochs": 5})


@sick("p-label-file", "text", "uninformative-targets", twin=lambda s: sorted_names(s, False))
def label_file(seed: int) -> Training:
    return sorted_names(seed, True)


def marks(seed: int, empty: bool) -> Training:
    d = scenes(seed)
    y = d.y[torch.randperm(len(d.y), generator=generator(seed, 89))] if empty else d.y
    module = Model(unet(), F.binary_cross_entropy_with_logits, adam(5e-3))
    train = DataLoader(TensorDataset(d.x, y), batch_size=20, shuffle=True)
    return Training(module, train, lambda m: iou(m, d), d.val(50), {"max_steps": 160, "max_epochs": -1})


@sick("p-marks", "segmentation", "uninformative-targets", twin=lambda s: marks(s, False))
def marks_mixed(seed: int) -> Training:
    return marks(seed, True)
