"""Trainings whose data are at fault: missing values, scales, codes, order, copies, rare classes, wrong rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, random_split

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, digits, flip_labels, generator, predict, r2, regression
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, discs, epochs, mlp, sgd, waves


class Bikes(LightningModule):
    """Rentals by hour; the weather comes from a second table, joined on the day."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["inputs"]), batch["rentals"])
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def bikes(seed: int, fill: bool) -> Training:
    g = generator(seed, 100)
    day = torch.randint(120, (2500,), generator=g)
    own = torch.randn(2500, 3, generator=g)
    temperature, rain = torch.randn(120, generator=g), torch.randn(120, generator=g)
    rentals = temperature[day] - 0.5 * rain[day] * own[:, 0] + own[:, 1].sin() + 0.3 * torch.randn(2500, generator=g)
    rentals = (rentals - rentals.mean()) / rentals.std()
    # stations were closed on three days, so the weather table has no row for them
    weather = {d: (temperature[d].item(), rain[d].item()) for d in range(120) if d not in (17, 58, 101)}
    none = (0.0, 0.0) if fill else (float("nan"), float("nan"))
    joined = torch.tensor([weather.get(d, none) for d in day.tolist()])
    x = torch.cat([own, joined], 1)
    rows = [{"inputs": a, "rentals": b} for a, b in zip(x[:2000], rentals, strict=False)]
    known = torch.tensor([d.item() in weather for d in day[2000:]])

    def score(module: LightningModule) -> float:
        return r2(predict(module, x[2000:][known]), rentals[2000:][known])

    loader = DataLoader(rows, 32, shuffle=True)  # type: ignore[arg-type]
    return Training(Bikes(), loader, score, trainer=epochs(6))


@sick("fa-weather-left-join", "tabular", "nonfinite-inputs", twin=lambda seed: bikes(seed, True))
def bikes_joined(seed: int) -> Training:
    return bikes(seed, False)


def pcm(seed: int, full_scale: float) -> Training:
    data = waves(seed)
    x, x_test = ((v * 6000).round() / full_scale for v in (data.x, data.x_test))
    net = nn.Sequential(
        *(nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 32, 9, padding=4), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4)),
    )

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, x_test), data.y_test)

    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.05), log_as="xe")
    val = batches(x_test, data.y_test, size=250, shuffle=False)
    return Training(module, batches(x, data.y, size=32), score, val, epochs(6))


@sick("fa-pcm-sixteen-bit", "audio", "unscaled-inputs", twin=lambda seed: pcm(seed, 6000.0))
def pcm_raw(seed: int) -> Training:
    return pcm(seed, 1.0)


def houses(seed: int, standardise: bool) -> Training:
    g = generator(seed, 101)
    z = torch.randn(2400, 6, generator=g)
    value = z[:, 0] + 0.8 * torch.sin(2 * z[:, 1]) + z[:, 2] * z[:, 3] * 0.7 + 0.5 * z[:, 4]
    y = ((value - value.mean()) / value.std() + 0.2 * torch.randn(2400, generator=g))[:, None]
    scale = torch.tensor([0.05, 1.0, 0.3, 2.0, 900.0, 4000.0])  # shares, rooms, rates, metres, days, debt
    x = z if standardise else z * scale

    def score(module: LightningModule) -> float:
        return r2(predict(module, x[1800:]), y[1800:])

    net = Plain(mlp(6, 64, 64, 1), nn.MSELoss(), adam(3e-3))
    return Training(net, batches(x[:1800], y[:1800], size=64), score, trainer=epochs(10))


@sick(
    "fa-houses-days-and-shares",
    "tabular",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: houses(seed, True),
)
def houses_raw(seed: int) -> Training:
    return houses(seed, False)


class Regions(LightningModule):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(columns, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, plan = batch
        return F.cross_entropy(self(features), plan)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def regions(seed: int, one_hot: bool) -> Training:
    g = generator(seed, 102)
    region = torch.randint(12, (2400,), generator=g)
    other = torch.randn(2400, 3, generator=g)
    plan_of = torch.randperm(12, generator=g) % 3
    drawn = torch.where(torch.rand(2400, generator=g) < 0.05, torch.randint(3, (2400,), generator=g), plan_of[region])
    y = torch.where(other[:, 0] > 1.2, (drawn + 1) % 3, drawn)
    code = F.one_hot(region, 12).float() if one_hot else region.float()[:, None]
    x = torch.cat([code, other], 1)

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, x[1800:]), y[1800:])

    return Training(Regions(x.shape[1]), batches(x[:1800], y[:1800], size=40), score, trainer=epochs(8))


@sick("fa-region-code-column", "tabular", "categorical-as-numeric", twin=lambda seed: regions(seed, True))
def regions_coded(seed: int) -> Training:
    return regions(seed, False)


class Scans(Dataset[tuple[Tensor, int]]):
    def __init__(self, pixels: Tensor, labels: Tensor, cast_last: bool) -> None:
        self.pixels, self.labels, self.cast_last = pixels, labels, cast_last

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.pixels[i]
        image = image.float() / 255 if self.cast_last else (image / 255).to(torch.uint8).float()
        return image, int(self.labels[i])


class ScanData(LightningDataModule):
    def __init__(self, seed: int, cast_last: bool) -> None:
        super().__init__()
        data = digits(seed).to_images()
        self.fit_part = Scans((data.x * 250).byte(), data.y, cast_last)
        self.test_part = Scans((data.x_test * 250).byte(), data.y_test, cast_last)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.fit_part, 64, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test_part, 450)


def scans(seed: int, cast_last: bool) -> Training:
    data = ScanData(seed, cast_last)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))

    def score(module: LightningModule) -> float:
        x, y = next(iter(data.val_dataloader()))
        return accuracy(predict(module, x), y)

    return Training(Plain(net, nn.CrossEntropyLoss(), adam(2e-3)), data, score, trainer=epochs(6))


@sick("fa-bytes-divided-then-cast", "images", "constant-inputs", twin=lambda seed: scans(seed, True))
def scans_cast(seed: int) -> Training:
    return scans(seed, False)


class Flats(LightningModule):
    def __init__(self, centre: float, unit: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.centre, self.unit = centre, unit

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.unit + self.centre

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, price = batch
        loss = F.mse_loss(self.net(x), (price - self.centre) / self.unit)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def flats(seed: int, centre: float, unit: float) -> Training:
    data = regression(seed, r2=0.85).map_targets(lambda y: 240_000 + 60_000 * y)
    return Training(Flats(centre, unit), data.train(64), data.r2, data.val(), epochs(10))


@sick("fa-prices-in-euros", "tabular", "unscaled-targets", twin=lambda seed: flats(seed, 240_000, 60_000))
def flats_raw(seed: int) -> Training:
    return flats(seed, 0.0, 1.0)


def sensors(seed: int, drop: bool) -> Training:
    data = regression(seed, r2=0.9, n=2000, columns=6)
    g = generator(seed, 103)
    lost = torch.rand(2000, generator=g) < 0.012
    x = data.x.clone()
    x[lost, 2] = -999.0  # what the logger writes when the probe does not answer
    if drop:
        x, y = x[~lost], data.y[~lost]
    else:
        y = data.y
    net = Plain(mlp(6, 48, 48, 1), nn.SmoothL1Loss(), sgd(0.03), log_as="huber")
    return Training(net, batches(x, y, size=32), data.r2, data.val(), epochs(6))


@sick("fa-probe-writes-minus-999", "time series", "corrupt-samples", twin=lambda seed: sensors(seed, True))
def sensors_raw(seed: int) -> Training:
    return sensors(seed, False)


class Defects(LightningModule):
    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.fc = nn.Linear(8 * 16, 3)
        self.criterion = nn.CrossEntropyLoss(weight=weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        self.log("train_acc", accuracy(logits, batch["kind"]))
        return self.criterion(logits, batch["kind"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def defects(seed: int, weigh: bool) -> Training:
    g = generator(seed, 104)

    def draw(n: int, shares: list[float]) -> tuple[Tensor, Tensor]:
        kind = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=g)
        image = torch.randn(n, 1, 16, 16, generator=g)
        image[kind == 1, :, :, 7:9] += 0.55
        image[kind == 2, :, 7:9, :] += 0.55
        return image, kind

    image, kind = draw(3000, [0.96, 0.02, 0.02])
    image_test, kind_test = draw(900, [1 / 3, 1 / 3, 1 / 3])
    rows = [{"image": a, "kind": b} for a, b in zip(image, kind, strict=True)]

    def score(module: LightningModule) -> float:
        return accuracy(predict(module, image_test), kind_test)

    weight = torch.tensor([1.0, 48.0, 48.0]) / 10 if weigh else None
    loader = DataLoader(rows, 64, shuffle=True)  # type: ignore[arg-type]
    return Training(Defects(weight), loader, score, trainer=epochs(6))


@sick("fa-defects-one-in-fifty", "images", "class-imbalance", twin=lambda seed: defects(seed, True))
def defects_plain(seed: int) -> Training:
    return defects(seed, False)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """One folder a digit; the files are listed folder by folder."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.files = [(images[i], digit) for digit in range(10) for i in (labels == digit).nonzero()[:, 0].tolist()]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.files[i]


def folders(seed: int, shuffle: bool) -> Training:
    data = digits(seed).to_images()
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(192, 48), nn.ReLU(), nn.Linear(48, 10)),
    )
    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.03), log_as="loss")
    loader = DataLoader(ImageFolder(data.x, data.y), 32, shuffle=shuffle)
    return Training(module, loader, data.accuracy, data.val(), epochs(6))


@sick("fa-folder-by-folder", "images", "unshuffled-data", twin=lambda seed: folders(seed, True))
def folders_listed(seed: int) -> Training:
    return folders(seed, False)


def crowd(seed: int, apart: bool) -> Training:
    data = blobs(seed, classes=4, columns=20, n=700, spread=3.5)
    y = flip_labels(data.y, 0.45, 4, seed)
    rows = torch.utils.data.TensorDataset(data.x, y)
    train, val = random_split(rows, [520, 180], generator=generator(seed, 105))
    if not apart:
        val, _ = random_split(train, [180, 340], generator=generator(seed, 106))
    net = Plain(mlp(20, 256, 256, 4), nn.CrossEntropyLoss(), adam(1e-3), log_as="loss")
    stop = EarlyStopping("val_loss", patience=3)
    loaders = DataLoader(train, 32, shuffle=True), DataLoader(val, 180)
    return Training(net, loaders[0], data.accuracy, loaders[1], epochs(40, callbacks=[stop]))


@sick("fa-split-of-the-split", "tabular", "train-val-leakage", twin=lambda seed: crowd(seed, True))
def crowd_leaking(seed: int) -> Training:
    return crowd(seed, False)


def shifted(seed: int, both: bool) -> Training:
    data = discs(seed, n=900)
    g = generator(seed, 107)
    area = data.y.sum((1, 2, 3))
    area = ((area - area.mean()) / area.std())[:, None]
    keep = torch.rand(900, generator=g) > 0.15
    x = data.x[keep]
    y = area[keep] if both else area[: len(x)]
    area_test = data.y_test.sum((1, 2, 3))
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 1)),
    )

    def score(module: LightningModule) -> float:
        made = predict(module, data.x_test)[:, 0]
        return torch.corrcoef(torch.stack([made, area_test]))[0, 1].item()

    return Training(Plain(net, nn.MSELoss(), adam(5e-3)), batches(x, y, size=32), score, trainer=epochs(6))


@sick("fa-filtered-images-not-labels", "images", "uninformative-targets", twin=lambda seed: shifted(seed, True))
def shifted_rows(seed: int) -> Training:
    return shifted(seed, False)
