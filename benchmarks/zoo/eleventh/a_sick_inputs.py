"""Sick trainings whose inputs are ill: units, sentinels, missing values, codes used as numbers, columns that say nothing."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.eleventh.a_common import Plain, dense, loader, reviews, standard, steps


class Scans(Dataset[tuple[Tensor, int]]):
    """Digits as a camera gives them, bytes of 0 to 255, made ready one by one."""

    def __init__(self, seed: int, train: bool, ready: Any) -> None:
        d = data.digits(seed)
        x, y = (d.x, d.y) if train else (d.x_test, d.y_test)
        self.images = (x * 255).round().to(torch.uint8).view(-1, 1, 8, 8)
        self.y = y
        self.ready = ready

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.ready(self.images[index]), int(self.y[index])


class Reader(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.conv = nn.Conv2d(1, 24, 3)
        self.fc1, self.fc2 = nn.Linear(24 * 9, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def scans(seed: int, *, ready: Any = lambda image: image.float() / 255) -> Training:
    train, test = Scans(seed, True, ready), Scans(seed, False, ready)
    x = torch.stack([test[i][0] for i in range(len(test))])
    return Training(
        Reader(0.05),
        DataLoader(train, 48, shuffle=True),
        lambda m: data.accuracy(data.predict(m, x), test.y),
        trainer=steps(220),
    )


@sick("ea-camera-bytes", "images", "unscaled-inputs", twin=scans)
def scans_bytes(seed: int) -> Training:
    return scans(seed, ready=lambda image: image.float())


@sick("ea-bytes-floor-divided", "images", "constant-inputs", twin=scans, note="all but the whitest pixels become 0")
def scans_floor(seed: int) -> Training:
    return scans(seed, ready=lambda image: (image // 255 * (image < 255)).float())


class Recording(LightningModule):
    """Four electrodes, 64 samples: one of three rhythms."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv1d(4, 16, 7, padding=3),
            nn.Tanh(),
            nn.Conv1d(16, 16, 7, padding=3),
            nn.Tanh(),
            nn.AdaptiveAvgPool1d(4),
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.model(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def recording(seed: int, *, unit: float = 1.0) -> Training:
    """Signals in units of their deviation, 20 microvolts."""
    g = data.generator(seed, 41)
    y = torch.randint(3, (1400,), generator=g)
    phase = 6.3 * torch.rand(1400, 1, 1, generator=g)
    lag = torch.arange(4.0)[:, None] * (y.float()[:, None, None] - 1)
    x = 1.2 * torch.sin(0.6 * torch.arange(64.0) + phase + lag) + 0.6 * torch.randn(1400, 4, 64, generator=g)
    d = data.Split(x[:1000] * unit, y[:1000], x[1000:] * unit, y[1000:])
    return Training(Recording(), d.train(40), d.accuracy, d.val(), steps(250))


@sick("ea-rhythms-in-volts", "audio", "unscaled-inputs", twin=recording)
def recording_volts(seed: int) -> Training:
    return recording(seed, unit=2e-5)


class Homes(LightningDataModule):
    """Six columns of a survey in their own units, and what the home is worth (standardised)."""

    def __init__(self, seed: int, scaled: bool) -> None:
        super().__init__()
        g = data.generator(seed, 42)
        z = torch.randn(2600, 6, generator=g)
        worth = z[:, 0] * (z[:, 3] > 0) + torch.sin(1.5 * z[:, 1]) + 0.6 * z[:, 2] * z[:, 4] + 0.5 * z[:, 5]
        worth = worth + 0.3 * torch.randn(2600, generator=g)
        units = torch.tensor([2.5e4, 0.03, 12.0, 1.0, 0.4, 900.0])  # income, share, age, rooms, distance, people
        x = z * units + torch.tensor([4.0, 2.0, 3.0, 0.0, 2.5, 3.0]) * units
        y = ((worth - worth.mean()) / worth.std())[:, None]
        train, test = x[:2000], x[2000:]
        if scaled:
            train, test = standard(train, test)
        self.parts = data.Split(train, y[:2000], test, y[2000:])

    def train_dataloader(self) -> DataLoader[Any]:
        return self.parts.train(64)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.parts.val()


class Worth(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = dense(6, 64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("rmse", loss.sqrt())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_rmse", F.mse_loss(self(batch[0]), batch[1]).sqrt())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def homes(seed: int, *, scaled: bool = True) -> Training:
    table = Homes(seed, scaled)
    return Training(Worth(), table, table.parts.r2, trainer=steps(350))


@sick("ea-survey-in-own-units", "tabular", "disparate-feature-scales", "unscaled-inputs", twin=homes)
def homes_raw(seed: int) -> Training:
    return homes(seed, scaled=False)


class Machine(LightningModule):
    """Five gauges over time: how soon will it need care?"""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 32, batch_first=True)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        gauges, care = batch["gauges"], batch["care"]
        return F.mse_loss(self(gauges), care)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def machine(seed: int, *, mixed: bool = False) -> Training:
    """Pressure in kilopascals, heat in units of ten degrees, current, speed, and vibration in metres a second."""
    g = data.generator(seed, 43)
    x = torch.randn(1800, 16, 5, generator=g).cumsum(1) / 3
    care = x[:, -1, 0] + 0.7 * torch.tanh(x[:, :, 4].mean(1) * 2) - 0.6 * x[:, 8:, 2].mean(1)
    care = care + 0.15 * torch.randn(1800, generator=g)
    care = ((care - care.mean()) / care.std())[:, None]
    x = x / x.std((0, 1))
    if mixed:
        x = x * torch.tensor([400.0, 3.0, 1.0, 30.0, 2e-3])
    rows = [{"gauges": a, "care": b} for a, b in zip(x[:1300], care[:1300], strict=True)]
    return Training(
        Machine(), DataLoader(rows, 50, shuffle=True), lambda m: data.r2(data.predict(m, x[1300:]), care[1300:]),
        trainer=steps(250),
    )  # fmt: skip


@sick("ea-gauges-mixed-units", "sequence", "disparate-feature-scales", "unscaled-inputs", twin=machine)
def machine_mixed(seed: int) -> Training:
    return machine(seed, mixed=True)


class Sales(LightningModule):
    """What a shop sells, from its number and three measures."""

    def __init__(self, shops: int | None) -> None:
        super().__init__()
        self.shops = shops
        self.embed = nn.Embedding(shops, 8) if shops else None
        self.net = dense(11 if shops else 4, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.embed is not None:
            x = torch.cat([self.embed(x[:, 0].long()), x[:, 1:]], 1)
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse_train", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def sales(seed: int, *, shops: int | None = 12) -> Training:
    g = data.generator(seed, 44)
    level = 1.3 * torch.randn(12, generator=g)
    shop = torch.randint(12, (2400,), generator=g)
    z = torch.randn(2400, 3, generator=g)
    y = level[shop] + 0.6 * z[:, 0] - 0.4 * z[:, 1] * z[:, 2] + 0.2 * torch.randn(2400, generator=g)
    y = ((y - y.mean()) / y.std())[:, None]
    x = torch.cat([shop[:, None].float(), z], 1)
    d = data.Split(x[:1800], y[:1800], x[1800:], y[1800:])
    return Training(Sales(shops), d.train(64), d.r2, trainer=steps(300))


@sick("ea-shop-number", "tabular", "categorical-as-numeric", twin=sales)
def sales_number(seed: int) -> Training:
    return sales(seed, shops=None)


class Ailment(LightningModule):
    """Which illness, from codes of a form: `one_hot` takes the columns apart."""

    def __init__(self, levels: list[int], one_hot: bool) -> None:
        super().__init__()
        self.levels = levels
        self.one_hot = one_hot
        width = sum(levels) if one_hot else len(levels)
        self.body = nn.Sequential(nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.one_hot:
            parts = [F.one_hot(x[:, i].long(), k) for i, k in enumerate(self.levels)]
            x = torch.cat(parts, 1).float()
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def ailment(seed: int, *, one_hot: bool = True) -> Training:
    g = data.generator(seed, 45)
    levels = [9, 7, 11, 8]
    x = torch.stack([torch.randint(k, (2600,), generator=g) for k in levels], 1)
    votes = sum(1.5 * torch.randn(k, 4, generator=g)[x[:, i]] for i, k in enumerate(levels))
    y = torch.multinomial(torch.softmax(2 * votes, 1), 1, generator=g)[:, 0]
    d = data.Split(x[:2000].float(), y[:2000], x[2000:].float(), y[2000:])
    return Training(Ailment(levels, one_hot), d.train(50), d.accuracy, trainer=steps(300))


@sick("ea-form-codes", "tabular", "categorical-as-numeric", twin=ailment)
def ailment_codes(seed: int) -> Training:
    return ailment(seed, one_hot=False)


class Shelf(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 24)
        self.lstm = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embed(ids))[0].amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        self.log("train/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def shelf(seed: int, *, head: bool = True) -> Training:
    """Texts are padded to 48 words and cut to 20."""
    d = reviews(seed)
    cut = slice(0, 20) if head else slice(-20, None)
    x, x_test = (F.pad(t, (0, 28))[:, cut] for t in (d.x, d.x_test))
    d = data.Split(x, d.y, x_test, d.y_test)
    return Training(Shelf(), d.train(50), d.accuracy, trainer=steps(150))


@sick("ea-last-twenty-of-padded", "text", "constant-inputs", twin=shelf)
def shelf_tail(seed: int) -> Training:
    return shelf(seed, head=False)


def joined(seed: int, *, fill: bool = True) -> Training:
    """Two tables joined on a key that 1 in 60 rows has no partner for."""
    d = data.regression(seed, r2=0.9)
    g = data.generator(seed, 46)
    lost = torch.rand(len(d.x), generator=g) < 1 / 60
    x = d.x.clone()
    x[lost, 5:] = 0.0 if fill else float("nan")
    module = Plain(dense(8, 48, 1), nn.HuberLoss(), lambda p: torch.optim.Adam(p, lr=5e-3), log="huber")
    return Training(module, loader([x, d.y], 50), d.r2, trainer=steps(250))


@sick("ea-join-without-partner", "tabular", "nonfinite-inputs", twin=joined)
def joined_missing(seed: int) -> Training:
    return joined(seed, fill=False)


class Spectra(LightningModule):
    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.conv = nn.Sequential(nn.Conv1d(17, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.fc = nn.Linear(24, 4)

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.fc(self.conv(spectrum))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def spectra(seed: int, *, floor: float = 1e-2) -> Training:
    """Logarithms of short spectra; some recordings begin with digital silence."""
    g = data.generator(seed, 47)
    y = torch.randint(4, (1300,), generator=g)
    phase = 6.3 * torch.rand(1300, 1, generator=g)
    pitch = 0.3 + 0.35 * y.float()[:, None]
    wave = torch.sin(pitch * torch.arange(192.0) + phase) + 0.5 * torch.randn(1300, 192, generator=g)
    quiet = torch.rand(1300, generator=g) < 0.04
    quiet[900:] = False
    wave[quiet, :64] = 0.0
    power = torch.fft.rfft(wave.view(1300, 6, 32)).abs().square().transpose(1, 2)
    x = torch.log(power + floor)
    known = torch.log(power + 1e-2)
    x = (x - known.mean()) / known.std()
    d = data.Split(x[:900], y[:900], x[900:], y[900:])
    return Training(Spectra(floor), d.train(30), d.accuracy, trainer=steps(150))


@sick("ea-logarithm-of-silence", "audio", "nonfinite-inputs", twin=spectra)
def spectra_silent(seed: int) -> Training:
    return spectra(seed, floor=0.0)


class Vintage(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def vintage(seed: int, *, sentinel: float | None = None) -> Training:
    d = data.table("wine", seed)
    x = d.x.clone()
    if sentinel is not None:
        x[[17, 58, 101], [4, 9, 2]] = sentinel  # how the laboratory writes "not measured"
    return Training(Vintage(), loader([x, d.y], 16), d.accuracy, d.val(), {"max_epochs": 18})


@sick("ea-not-measured-is-minus-9999", "tabular", "corrupt-samples", twin=vintage)
def vintage_sentinel(seed: int) -> Training:
    return vintage(seed, sentinel=-9999.0)


class Faces(LightningModule):
    """Denoising of small pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noisy, clean = batch
        loss = F.mse_loss(self(noisy), clean)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def faces(seed: int, *, wild: int = 0) -> Training:
    """`wild` pictures were stored as 16 bits and not divided like the others."""
    x, _ = datasets.load_digits(return_X_y=True)
    clean = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8)[:1600]
    clean = (clean - clean.mean()) / clean.std()
    g = data.generator(seed, 48)
    noisy = clean + 0.7 * torch.randn(clean.shape, generator=g)
    order = torch.randperm(1600, generator=g)
    train, test = order[:1200], order[1200:]
    bad = train[:wild]
    shown, wanted = noisy.clone(), clean.clone()
    shown[bad], wanted[bad] = shown[bad] * 257, wanted[bad] * 257
    return Training(
        Faces(),
        DataLoader(TensorDataset(shown[train], wanted[train]), 32, shuffle=True),
        lambda m: data.r2(data.predict(m, noisy[test]).flatten(1), clean[test].flatten(1)),
        trainer=steps(220),
    )


@sick("ea-four-pictures-of-16-bits", "denoising", "corrupt-samples", twin=faces)
def faces_wild(seed: int) -> Training:
    return faces(seed, wild=4)
