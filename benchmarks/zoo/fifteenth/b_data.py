"""What the loader gives and what the loss makes of it: sixteen trainings with their twins, and seven sound ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, random_split

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick, well


class Records(Dataset[dict[str, Tensor]]):
    """Samples as dicts of the given tensors."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {k: v[i] for k, v in self.columns.items()}


def mean_recall(predicted: Tensor, y: Tensor, classes: int) -> float:
    return sum((predicted[y == k] == k).float().mean().item() for k in range(classes)) / classes


# --- a magnetometer beside a road: which kind of vehicle passes -------------------------------------------------------


def passages(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Three axes of the field in tesla, 64 samples a passage: (n, 3, 64), and one of four kinds of vehicle."""
    g = data.generator(seed, 1501)
    kind = torch.randint(4, (n,), generator=g)
    t = torch.linspace(-1, 1, 64)
    width = torch.tensor([0.10, 0.18, 0.30, 0.30])[kind, None] * (0.9 + 0.2 * torch.rand(n, 1, generator=g))
    centre = 0.5 * torch.rand(n, 1, generator=g) - 0.25
    bump = torch.exp(-((t - centre) / width).square())
    dip = (t - centre) / width * bump
    gain = torch.tensor([[1.0, 0.4, 0.6], [0.8, 0.9, 0.2], [0.7, 0.5, 0.9], [0.7, -0.5, 0.9]])[kind]
    field = gain[:, :, None] * torch.stack([bump, dip, bump], 1) + 0.35 * torch.randn(n, 3, 64, generator=g)
    return 2e-6 * field, kind


class RoadNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 16, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(4),
            nn.Flatten(),
            nn.Linear(128, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=0.05)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log_dict({"val/loss": F.cross_entropy(out, y), "val/acc": (out.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def road(seed: int, unit: float) -> Training:
    x, y = passages(seed, 2000)
    x = x / unit
    train = DataLoader(TensorDataset(x[:1280], y[:1280]), 32, shuffle=True)
    val = DataLoader(TensorDataset(x[1280:1600], y[1280:1600]), 160)

    def score(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, x[1600:]), y[1600:])

    return Training(RoadNet(), train, score, val, {"max_epochs": 6})


@sick(
    "yb-road-magnetometer",
    "1d cnn",
    "unscaled-inputs",
    twin=lambda seed: road(seed, 1e-6),
    note="the field is given in tesla, a millionth of what the network can use",
)
def road_tesla(seed: int) -> Training:
    return road(seed, 1.0)


# --- company accounts: which of three ratings -------------------------------------------------------------------------


@dataclass
class RatingConfig:
    columns: int = 7
    width: int = 48
    classes: int = 3
    lr: float = 1e-3
    epochs: int = 8
    batch_size: int = 50


def accounts(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Sales and debt in thousands, staff, margin, current ratio, share of exports, age: raw columns, and a rating."""
    g = data.generator(seed, 1502)
    z = torch.randn(n, 7, generator=g)
    risk = 1.2 * z[:, 3] - 1.2 * z[:, 4] * torch.sign(z[:, 5]) + 0.5 * z[:, 0] + 0.3 * torch.randn(n, generator=g)
    rating = torch.bucketize(risk, torch.tensor([-0.8, 0.8]))
    scale = torch.tensor([40_000.0, 9_000.0, 60.0, 0.04, 0.3, 0.1, 11.0])
    centre = torch.tensor([120_000.0, 30_000.0, 210.0, 0.07, 1.4, 0.35, 38.0])
    return z * scale + centre, rating


class RatingModel(LightningModule):
    def __init__(self, cfg: RatingConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.inp = nn.Linear(cfg.columns, cfg.width)
        self.mid = nn.Linear(cfg.width, cfg.width)
        self.out = nn.Linear(cfg.width, cfg.classes)

    def forward(self, accounts: Tensor) -> Tensor:
        h = F.gelu(self.inp(accounts))
        return self.out(h + F.gelu(self.mid(h)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["accounts"]), batch["rating"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.cfg.lr)


def ratings(seed: int, prepare: Callable[[Tensor], Tensor]) -> Training:
    cfg = RatingConfig()
    x, y = accounts(seed, 3000)
    x = prepare(x)
    train = DataLoader(Records(accounts=x[:2000], rating=y[:2000]), cfg.batch_size, shuffle=True)

    def score(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, x[2000:]), y[2000:])

    return Training(RatingModel(cfg), train, score, trainer={"max_epochs": cfg.epochs})


@sick(
    "yb-company-ratings",
    "tabular",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda seed: ratings(seed, lambda x: (x - x[:2000].mean(0)) / x[:2000].std(0)),
    note="columns as they stand in the accounts: sales of 120 000 beside a margin of 0.07",
)
def ratings_raw(seed: int) -> Training:
    return ratings(seed, lambda x: x)


# --- a building's heat over the next six hours ------------------------------------------------------------------------


class HeatData(LightningDataModule):
    """Windows of a day of weather and load; the load of the six hours after it, in `unit` watts above `base`."""

    def __init__(self, seed: int, base: float, unit: float) -> None:
        super().__init__()
        g = data.generator(seed, 1503)
        hours = 6000
        t = torch.arange(hours) / 24
        slow = torch.randn(hours // 48 + 2, generator=g).repeat_interleave(48)[:hours]
        slow = F.avg_pool1d(slow[None, None], 49, 1, 24, count_include_pad=False)[0, 0]
        outside = torch.sin(2 * math.pi * (t - 0.4)) + 1.5 * slow
        sun = torch.sin(2 * math.pi * (t - 0.25)).clamp(min=0) * torch.rand(hours, generator=g)
        watts = 24_000 - 6_000 * outside - 4_000 * sun + 900 * torch.randn(hours, generator=g)
        clock = torch.stack([torch.sin(2 * math.pi * t), torch.cos(2 * math.pi * t)], 1)
        table = torch.cat([outside[:, None], sun[:, None], ((watts - 24_000) / 8_000)[:, None], clock], 1)
        starts = torch.arange(0, hours - 30, 3)
        x = torch.stack([table[s : s + 24] for s in starts])
        y = torch.stack([(watts[s + 24 : s + 30] - base) / unit for s in starts])
        cut = int(0.8 * len(x))
        self.train_part, self.test_part = TensorDataset(x[:cut], y[:cut]), TensorDataset(x[cut + 10 :], y[cut + 10 :])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_part, batch_size=40, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test_part, batch_size=200)


class HeatForecaster(LightningModule):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 6)
        self.criterion = nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        return self.fc(h[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", self.criterion(self(x), y))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 4, 0.5)]


def heat(seed: int, base: float, unit: float) -> Training:
    module = HeatData(seed, base, unit)
    x, y = module.test_part.tensors

    def score(model: LightningModule) -> float:
        return data.r2(data.predict(model, x), y)

    return Training(HeatForecaster(), module, score, trainer={"max_epochs": 8})


@sick(
    "yb-heat-forecast",
    "forecasting",
    "unscaled-targets",
    twin=lambda seed: heat(seed, 24_000.0, 8_000.0),
    note="the load to forecast is left in watts, about 24 000; the inputs are scaled",
)
def heat_watts(seed: int) -> Training:
    return heat(seed, 0.0, 1.0)


# --- days a parcel takes: carrier, depot, distance, weight ------------------------------------------------------------


def parcels(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Columns carrier (0 to 13), depot (0 to 10), log distance, log weight; standardised delivery time."""
    g = data.generator(seed, 1504)
    carrier, depot = torch.randint(14, (n,), generator=g), torch.randint(11, (n,), generator=g)
    plain = torch.randn(n, 2, generator=g)
    quality = torch.randn(14, generator=g)
    effect = 1.2 * quality[carrier] + 0.9 * torch.randn(11, generator=g)[depot]
    days = effect + 0.5 * plain[:, 0] * (1 + 0.5 * quality[carrier]) + 0.2 * plain[:, 1].square()
    days = days + 0.4 * torch.randn(n, generator=g)
    days = (days - days.mean()) / days.std()
    return torch.stack([carrier.float(), depot.float(), plain[:, 0], plain[:, 1]], 1), days[:, None]


class ParcelNet(LightningModule):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(columns, 32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, days = batch
        loss = F.l1_loss(self(x), days)
        self.log("mae", loss)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, days = batch
        self.log("val_mae", F.l1_loss(self(x), days))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def delivery(seed: int, prepare: Callable[[Tensor], Tensor]) -> Training:
    x, y = parcels(seed, 4000)
    x = prepare(x)
    train = DataLoader(TensorDataset(x[:2560], y[:2560]), 64, shuffle=True)
    val = DataLoader(TensorDataset(x[2560:3000], y[2560:3000]), 220)

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, x[3000:]), y[3000:])

    return Training(ParcelNet(x.shape[1]), train, score, val, {"max_epochs": 10})


def spell_out(x: Tensor) -> Tensor:
    return torch.cat([F.one_hot(x[:, 0].long(), 14), F.one_hot(x[:, 1].long(), 11), x[:, 2:]], 1).float()


@sick(
    "yb-parcel-days",
    "tabular",
    "categorical-as-numeric",
    twin=lambda seed: delivery(seed, spell_out),
    note="the numbers of carrier and depot go in as quantities",
)
def delivery_codes(seed: int) -> Training:
    return delivery(seed, lambda x: x)


# --- breaths: a belt's one channel, four patterns ---------------------------------------------------------------------


class BeltWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows (time, channel), each brought to mean 0 and deviation 1 along `dim`."""

    def __init__(self, x: Tensor, y: Tensor, dim: int) -> None:
        self.x, self.y, self.dim = x, y, dim

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        window = self.x[i]
        mean = window.mean(self.dim, keepdim=True)
        std = window.std(self.dim, keepdim=True, unbiased=False)
        return (window - mean) / (std + 1e-6), self.y[i]


class BreathClassifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 24, 5, padding=2)
        self.lstm = nn.LSTM(24, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        out, _ = self.lstm(h)
        return self.head(out.amax(1))

    def _shared(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", (logits.argmax(-1) == y).float().mean())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._shared(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._shared(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=4e-3)


def breaths(seed: int, dim: int) -> Training:
    task = data.motifs(seed, n=1200, length=32)
    train = DataLoader(BeltWindows(5 + 3 * task.x, task.y, dim), 30, shuffle=True)
    held_out = BeltWindows(5 + 3 * task.x_test, task.y_test, dim)

    def score(module: LightningModule) -> float:
        x, y = next(iter(DataLoader(held_out, len(held_out))))
        return data.accuracy(data.predict(module, x), y)

    return Training(BreathClassifier(), train, score, DataLoader(held_out, 200), {"max_epochs": 6})


@sick(
    "yb-breath-windows",
    "recurrent",
    "constant-inputs",
    twin=lambda seed: breaths(seed, dim=0),
    note="each window is standardised over its one channel instead of over time, which leaves zeros",
)
def breaths_over_channels(seed: int) -> Training:
    return breaths(seed, dim=-1)


# --- heart beats: a denoising autoencoder -----------------------------------------------------------------------------


def beats(seed: int, n: int) -> Tensor:
    """Heart beats of 48 samples, about unit scale, of varied shape and with some noise."""
    g = data.generator(seed, 1506)
    t = torch.linspace(-1, 1, 48)
    u = torch.rand(n, 6, 1, generator=g)
    spike = (2 + 2 * u[:, 0]) * torch.exp(-((t - 0.2 * u[:, 1] + 0.1) / 0.06).square())
    after = (0.5 + u[:, 2]) * torch.exp(-((t - 0.5 - 0.2 * u[:, 3]) / 0.18).square())
    before = (0.2 + 0.6 * u[:, 4]) * torch.exp(-((t + 0.45 + 0.2 * u[:, 5]) / 0.1).square())
    return spike + after + before - 0.6 + 0.08 * torch.randn(n, 48, generator=g)


class BeatCoder(LightningModule):
    def __init__(self, code: int = 8, noise: float = 0.2) -> None:
        super().__init__()
        self.noise = noise
        self.enc = nn.Sequential(nn.Linear(48, 64), nn.LeakyReLU(0.1), nn.Linear(64, code))
        self.dec = nn.Sequential(nn.Linear(code, 64), nn.LeakyReLU(0.1), nn.Linear(64, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = F.mse_loss(self(x + self.noise * torch.randn_like(x)), x)
        self.log("rec", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def code_beats(seed: int, clean: bool) -> Training:
    x = beats(seed, 2500)
    train, held_out = x[:2000].clone(), x[2000:]
    g = data.generator(seed, 1507)
    loose = torch.randperm(2000, generator=g)[:12]  # a loose electrode: the amplifier runs into its rails
    train[loose] = 2500 * torch.sign(torch.randn(12, 48, generator=g))
    if clean:
        train = train[train.abs().amax(1) < 20]

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, held_out), held_out)

    return Training(BeatCoder(), DataLoader(TensorDataset(train), 50, shuffle=True), score, trainer={"max_epochs": 10})


@sick(
    "yb-beat-autoencoder",
    "autoencoder",
    "corrupt-samples",
    twin=lambda seed: code_beats(seed, clean=True),
    note="twelve of two thousand beats were taken with a loose electrode and swing between plus and minus 2500",
)
def beats_loose(seed: int) -> Training:
    return code_beats(seed, clean=False)


# --- pump logs: normal, leaking, cavitating ---------------------------------------------------------------------------


def pumps(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Twelve readings of five sensors, and the state of the pump: 95 in 100 are normal."""
    g = data.generator(seed, 1508)
    state = torch.multinomial(torch.tensor([0.95, 0.025, 0.025]), n, replacement=True, generator=g)
    shift = torch.zeros(3, 5)
    shift[1, :3], shift[2, 2:] = 0.36, -0.36
    return shift[state][:, None] + torch.randn(n, 12, 5, generator=g), state


class PumpMonitor(LightningModule):
    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 24)
        self.query = nn.Parameter(torch.randn(1, 1, 24) * 0.1)
        self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
        self.loss = nn.CrossEntropyLoss(weight)

    def forward(self, readings: Tensor) -> Tensor:
        h = self.embed(readings)
        pooled, _ = self.attention(self.query.expand(len(h), -1, -1), h, h, need_weights=False)
        return self.head(pooled[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch["readings"]), batch["state"])
        self.log("pump/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self(batch["readings"])
        self.log("pump/val_loss", self.loss(out, batch["state"]))
        self.log("pump/val_acc", (out.argmax(-1) == batch["state"]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


def monitor(seed: int, weight: Tensor | None) -> Training:
    x, y = pumps(seed, 8000)
    train = DataLoader(Records(readings=x[:4000], state=y[:4000]), 64, shuffle=True)
    val = DataLoader(Records(readings=x[4000:5000], state=y[4000:5000]), 250)

    def score(module: LightningModule) -> float:
        return mean_recall(data.predict(module, x[5000:]).argmax(-1), y[5000:], 3)

    return Training(PumpMonitor(weight), train, score, val, {"max_epochs": 5})


@sick(
    "yb-pump-states",
    "attention pooling",
    "class-imbalance",
    twin=lambda seed: monitor(seed, torch.tensor([0.35, 13.3, 13.3])),
    note="95 in 100 pumps are normal, and every pump is called normal",
)
def pumps_plain(seed: int) -> Training:
    return monitor(seed, None)


# --- digits read from folders, a folder a class -----------------------------------------------------------------------


class FolderCNN(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(24 * 16, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9, nesterov=True)


def folders(seed: int, shuffle: bool) -> Training:
    task = data.digits(seed).to_images()
    order = task.y.argsort(stable=True)
    train = DataLoader(TensorDataset(task.x[order], task.y[order]), 32, shuffle=shuffle)
    return Training(FolderCNN(lr=0.02), train, task.accuracy, trainer={"max_epochs": 6})


@sick(
    "yb-digit-folders",
    "cnn",
    "unshuffled-data",
    twin=lambda seed: folders(seed, shuffle=True),
    note="the folders are read one after the other, a class each, and the loader does not shuffle",
)
def folders_in_order(seed: int) -> Training:
    return folders(seed, shuffle=False)


# --- clinic patients: back within a month? ----------------------------------------------------------------------------


def patients(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Twenty-four standardised findings and whether the patient came back; no model is right more than 8 times in 10."""
    g = data.generator(seed, 1510)
    x = torch.randn(n, 24, generator=g)
    logit = 1.6 * x[:, 0] - 1.4 * x[:, 1] + 1.2 * x[:, 2] * x[:, 3]
    return x, (torch.rand(n, generator=g) < torch.sigmoid(logit)).float()


class ClinicData(LightningDataModule):
    """The rows of `table`, cut at random into four parts to train on and one to stop by."""

    def __init__(self, table: TensorDataset, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.train_set, self.val_set = random_split(table, [0.8, 0.2], generator=g)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_set, batch_size=256)


class ReturnModel(LightningModule):
    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y))
        self.log("val_acc", ((logits > 0) == (y > 0.5)).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1.5e-3)


def clinic(seed: int, visits: int) -> Training:
    """`visits` rows a patient: the findings of the first visit, joined to the list of all visits."""
    x, y = patients(seed, 2800)
    known = torch.arange(800).repeat(visits)
    source = ClinicData(TensorDataset(x[known], y[known]), seed)
    stop = EarlyStopping("val_loss", patience=3)

    def score(module: LightningModule) -> float:
        return -F.binary_cross_entropy_with_logits(data.predict(module, x[800:]), y[800:]).item()

    return Training(
        ReturnModel(), source, score, trainer={"max_epochs": 24 // visits if visits > 1 else 30, "callbacks": [stop]}
    )


@sick(
    "yb-clinic-returns",
    "tabular",
    "train-val-leakage",
    twin=lambda seed: clinic(seed, visits=1),
    note="a join on visits left each patient three times in the table, which is cut at random after it",
)
def clinic_joined(seed: int) -> Training:
    return clinic(seed, visits=3)


# --- glyphs: three strokes in noise, doubled by a jittered copy -------------------------------------------------------


def glyphs(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 14, 14) of one of six glyphs of three strokes, moved about, in noise."""
    g = data.generator(seed, 1511)
    shapes = torch.zeros(6, 8, 8)
    for k, (row, column, slant) in enumerate([(0, 0, 1), (0, 7, 0), (3, 0, -1), (3, 4, 1), (7, 0, 0), (7, 7, -1)]):
        shapes[k, row], shapes[k, :, column] = 1.0, 1.0
        if slant:
            shapes[k] = torch.maximum(shapes[k], torch.eye(8) if slant > 0 else torch.eye(8).flip(0))
    kind = torch.randint(6, (n,), generator=g)
    place = torch.randint(7, (n, 2), generator=g)
    x = 0.5 * torch.randn(n, 1, 14, 14, generator=g)
    for i in range(n):
        r, c = place[i].tolist()
        x[i, 0, r : r + 8, c : c + 8] += shapes[kind[i]]
    return x, kind


class GlyphNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.SiLU())
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).amax((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log_dict({"loss/train": loss, "top1/train": (logits.argmax(1) == y).float().mean()})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log_dict({"loss/val": F.cross_entropy(logits, y), "top1/val": (logits.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        plan = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": opt, "lr_scheduler": {"scheduler": plan, "interval": "step"}}


def read_glyphs(seed: int, double: Callable[[Tensor], Tensor]) -> Training:
    x, y = glyphs(seed, 1800)
    g = data.generator(seed, 1512)
    shown = x[:1000]
    jittered = torch.roll(shown, 1, -1) + 0.1 * torch.randn(shown.shape, generator=g)
    train = DataLoader(TensorDataset(torch.cat([shown, jittered]), double(y[:1000])), 25, shuffle=True)
    val = DataLoader(TensorDataset(x[1000:1300], y[1000:1300]), 100)

    def score(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, x[1300:]), y[1300:])

    return Training(GlyphNet(), train, score, val, {"max_epochs": 4, "accumulate_grad_batches": 2})


@sick(
    "yb-glyphs-doubled",
    "cnn",
    "uninformative-targets",
    twin=lambda seed: read_glyphs(seed, lambda y: y.repeat(2)),
    note="the pictures are doubled end to end, their labels one by one, so that labels stand beside other pictures",
)
def glyphs_misaligned(seed: int) -> Training:
    return read_glyphs(seed, lambda y: y.repeat_interleave(2))


# --- the same address twice? a network on pairs -----------------------------------------------------------------------


def pairs(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two descriptions of 12 numbers each, and whether they are of one thing."""
    g = data.generator(seed, 1513)
    one = torch.randn(n, 12, generator=g)
    other = torch.randn(n, 12, generator=g)
    same = torch.randint(2, (n,), generator=g)
    close = one + 0.9 * torch.randn(n, 12, generator=g)
    return one, torch.where(same[:, None] > 0, close, other), same.float()[:, None]


class PairMatcher(LightningModule):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss
        self.tower = nn.Sequential(nn.Linear(12, 32), nn.ELU(), nn.Linear(32, 32))
        self.decide = nn.Sequential(nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 1))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        a, b = self.tower(pair[0]), self.tower(pair[1])
        return self.decide(torch.cat([(a - b).abs(), a * b], -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *pair, same = batch
        loss = self.loss(self(pair), same)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        *pair, same = batch
        out = self(pair)
        self.log("val_loss", self.loss(out, same))
        self.log("val_acc", ((out > 0).float() == same).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.02)


def match(seed: int, loss: Callable[[Tensor, Tensor], Tensor]) -> Training:
    one, other, same = pairs(seed, 3500)
    train = DataLoader(TensorDataset(one[:2000], other[:2000], same[:2000]), 40, shuffle=True)
    val = DataLoader(TensorDataset(one[2000:2500], other[2000:2500], same[2000:2500]), 250)

    def score(module: LightningModule) -> float:
        out = data.predict(module, (one[2500:], other[2500:]))
        return ((out > 0).float() == same[2500:]).float().mean().item()

    return Training(PairMatcher(loss), train, score, val, {"max_epochs": 6})


@sick(
    "yb-address-pairs",
    "siamese",
    "wrong-loss-for-task",
    "output-range-mismatch",
    twin=lambda seed: match(seed, nn.BCEWithLogitsLoss()),
    note="cross-entropy over one output: the softmax of one unit is always 1",
)
def match_one_unit(seed: int) -> Training:
    return match(seed, nn.CrossEntropyLoss())


# --- words spelt backwards: an encoder and a decoder ------------------------------------------------------------------


def spellings(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Words of nine letters out of 48, and the same words backwards."""
    g = data.generator(seed, 1514)
    source = torch.randint(1, 49, (n, 9), generator=g)
    return source, source.flip(1)


class Speller(LightningModule):
    """Letters 1 to 48; 0 starts the answer."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.letters = nn.Embedding(49, 32)
        self.encoder = nn.GRU(32, 64, batch_first=True)
        self.decoder = nn.GRU(32, 64, batch_first=True)
        self.readout = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 49), last)

    def forward(self, words: tuple[Tensor, Tensor]) -> Tensor:
        source, answer = words
        memory, state = self.encoder(self.letters(source))
        begun = F.pad(answer[:, :-1], (1, 0))
        out, _ = self.decoder(self.letters(begun), state)
        weight = torch.softmax(out @ memory.transpose(1, 2) / 8, -1)
        return self.readout(torch.cat([out, weight @ memory], -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch)
        loss = F.cross_entropy(out.flatten(0, 1), batch[1].flatten())
        self.log("ce", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3, betas=(0.9, 0.98))


def spell(seed: int, last: Callable[[], nn.Module]) -> Training:
    source, answer = spellings(seed, 4600)
    train = DataLoader(TensorDataset(source[:4000], answer[:4000]), 64, shuffle=True)

    def score(module: LightningModule) -> float:
        out = data.predict(module, (source[4200:], answer[4200:]))
        return (out.argmax(-1) == answer[4200:]).float().mean().item()

    return Training(Speller(last()), train, score, trainer={"max_epochs": 6, "gradient_clip_val": 1.0})


@sick(
    "yb-speller",
    "seq2seq",
    "probabilities-as-logits",
    twin=lambda seed: spell(seed, nn.Identity),
    note="the readout ends in a softmax, and cross-entropy makes another one",
)
def spell_softmax(seed: int) -> Training:
    return spell(seed, lambda: nn.Softmax(dim=-1))


# --- the pitch of a note from its spectrogram: a transformer on frames ------------------------------------------------


def notes(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Eight frames of 32 bands, and the pitch of the note in them, standardised."""
    g = data.generator(seed, 1515)
    pitch = torch.rand(n, generator=g)
    bands = torch.arange(32.0)
    vibrato = 0.6 * torch.randn(n, 8, 1, generator=g)
    first = (3 + 9 * pitch)[:, None, None] + vibrato
    loud = torch.rand(n, 8, 1, generator=g)
    frames = sum(torch.exp(-((bands - k * first) / 1.2).square()) / k for k in (1, 2, 3))
    frames = 2 * loud * frames + 0.3 * torch.randn(n, 8, 32, generator=g)
    return frames, (pitch - 0.5) / 0.29


class PitchFormer(LightningModule):
    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.proj = nn.Linear(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.05, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.to_pitch = nn.Linear(32, 1)

    def forward(self, frames: Tensor) -> Tensor:
        pitch = self.to_pitch(self.encoder(self.proj(frames)).mean(1))
        return pitch.squeeze(-1) if self.squeeze else pitch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.huber_loss(self(batch["frames"]), batch["pitch"], delta=0.5)
        self.log("train/huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.trainer.max_epochs or 1)]


def pitch(seed: int, squeeze: bool) -> Training:
    frames, target = notes(seed, 2000)
    train = DataLoader(Records(frames=frames[:1500], pitch=target[:1500]), 32, shuffle=True, drop_last=True)

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, frames[1500:]).flatten(), target[1500:])

    return Training(PitchFormer(squeeze), train, score, trainer={"max_epochs": 5})


@sick(
    "yb-note-pitch",
    "transformer",
    "loss-shape-mismatch",
    twin=lambda seed: pitch(seed, squeeze=True),
    note="a pitch of (batch, 1) is held against a target of (batch,)",
)
def pitch_column(seed: int) -> Training:
    return pitch(seed, squeeze=False)


# --- which way a signal turned last: event streams --------------------------------------------------------------------


def streams(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Streams of 16 events with 6 numbers; the class is told by two marked events and by their order."""
    g = data.generator(seed, 1516)
    x = 0.5 * torch.randn(n, 16, 6, generator=g)
    y = torch.randint(4, (n,), generator=g)
    place = torch.rand(n, 13, generator=g).argsort(1)[:, :2].sort(1).values
    rows = torch.arange(n)
    x[rows, place[:, 0], y // 2] += 2.5
    x[rows, place[:, 1], 2 + y % 2] += 2.5
    return x, y


class StreamReader(LightningModule):
    """Reads a stream event by event; the state after the last one decides."""

    def __init__(self, **layout: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lift = nn.Linear(6, 24)
        self.rnn = nn.GRU(24, 40, **layout)
        self.head = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(torch.tanh(self.lift(x)))
        return self.head(states[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        opt = self.optimizers()
        loss = F.cross_entropy(self(x), y)
        opt.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        opt.step()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def read_streams(seed: int, **layout: Any) -> Training:
    x, y = streams(seed, 2800)
    train = DataLoader(TensorDataset(x[:2000], y[:2000]), 40, shuffle=True)
    val = DataLoader(TensorDataset(x[2000:2200], y[2000:2200]), 40)

    def score(module: LightningModule) -> float:
        out = torch.cat([data.predict(module, part) for part in x[2200:].split(40)])
        return data.accuracy(out, y[2200:])

    return Training(StreamReader(**layout), train, score, val, {"max_epochs": 8})


@sick(
    "yb-event-streams",
    "recurrent",
    "batch-mixing",
    twin=lambda seed: read_streams(seed, batch_first=True),
    note="batches are (batch, time, feature), and the GRU takes its first axis for time",
)
def streams_time_first(seed: int) -> Training:
    return read_streams(seed)


# --- small graphs: which of three rules made the features of the nodes ------------------------------------------------


def graphs(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Node features (n, 12, 5), normalised adjacency (n, 12, 12), and which of three rules made the features."""
    g = data.generator(seed, 1517)
    y = torch.randint(3, (n,), generator=g)
    link = (torch.rand(n, 12, 12, generator=g) < 0.25).float().triu(1)
    link = link + link.transpose(1, 2) + torch.eye(12)
    adjacency = link / link.sum(-1, keepdim=True)
    noise = torch.randn(n, 12, 5, generator=g)
    smooth = 1.8 * adjacency @ noise
    nodes = torch.where((y == 1)[:, None, None], smooth, noise)
    nodes[:, :, 0] += 0.55 * (y == 2)[:, None]
    return nodes, adjacency, y


class GraphNet(LightningModule):
    def __init__(self, drop: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.drop = drop
        self.first = nn.Linear(10, 20)
        self.second = nn.Linear(40, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        nodes, adjacency = graph
        h = F.relu(self.first(torch.cat([nodes, adjacency @ nodes], -1)))
        h = self.drop(h, self.training)
        h = F.relu(self.second(torch.cat([h, adjacency @ h], -1)))
        h = self.drop(h.mean(1), self.training)
        return self.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        graph, y = batch
        loss = F.cross_entropy(self(graph), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        graph, y = batch
        logits = self(graph)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3, weight_decay=1e-5)


class GraphSet(Dataset[Any]):
    def __init__(self, nodes: Tensor, adjacency: Tensor, y: Tensor) -> None:
        self.nodes, self.adjacency, self.y = nodes, adjacency, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return (self.nodes[i], self.adjacency[i]), self.y[i]


def rules(seed: int, drop: Callable[[Tensor, bool], Tensor]) -> Training:
    nodes, adjacency, y = graphs(seed, 2800)
    train = DataLoader(GraphSet(nodes[:1600], adjacency[:1600], y[:1600]), 32, shuffle=True)
    val = DataLoader(GraphSet(nodes[1600:2000], adjacency[1600:2000], y[1600:2000]), 200)

    def score(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, (nodes[2000:], adjacency[2000:])), y[2000:])

    return Training(GraphNet(drop), train, score, val, {"max_epochs": 8})


@sick(
    "yb-graph-rules",
    "graph",
    "mode-mismatch",
    twin=lambda seed: rules(seed, lambda h, training: F.dropout(h, 0.6, training=training)),
    note="F.dropout is called without the module's mode, so that it drops in evaluation too",
)
def rules_always(seed: int) -> Training:
    return rules(seed, lambda h, training: F.dropout(h, 0.6))


# --- catchments: flood class and peak from weather and rain -----------------------------------------------------------


def catchments(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six weather columns, rain in mm of three days, one of three flood classes, and the standardised peak."""
    g = data.generator(seed, 1518)
    met = torch.randn(n, 6, generator=g)
    rain = torch.exp(0.9 * torch.randn(n, 3, generator=g) + 0.8)
    dry = torch.randperm(n, generator=g)[: n // 250]
    rain[dry, 1] = 0.0
    wet = torch.log1p(rain)
    level = 1.5 * (wet - wet.mean(0)).sum(1) + met[:, 0] + 0.7 * met[:, 1] * met[:, 2]
    level = (level - level.mean()) / level.std()
    peak = level + 0.3 * torch.randn(n, generator=g)
    return met, rain, torch.bucketize(level, torch.tensor([-0.45, 0.45])), peak[:, None]


class FloodData(LightningDataModule):
    def __init__(self, seed: int, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        met, rain, flood, peak = catchments(seed, 3000)
        rain = transform(rain)
        self.parts = [
            Records(met=met[a:b], rain=rain[a:b], flood=flood[a:b], peak=peak[a:b])
            for a, b in ((0, 2000), (2000, 3000))
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts[0], 40, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts[1], 500)


class FloodNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rain = nn.Sequential(nn.Linear(3, 16), nn.Mish())
        self.met = nn.Sequential(nn.Linear(6, 16), nn.Mish())
        self.trunk = nn.Sequential(nn.Linear(32, 32), nn.Mish())
        self.flood, self.peak = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        h = self.trunk(torch.cat([self.rain(batch["rain"]), self.met(batch["met"])], -1))
        return self.flood(h), self.peak(h)

    def step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        flood, peak = self(batch)
        return F.cross_entropy(flood, batch["flood"]), F.smooth_l1_loss(peak, batch["peak"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        flood, peak = self.step(batch)
        self.log_dict({"flood": flood, "peak": peak})
        return flood + 0.5 * peak

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        flood, peak = self.step(batch)
        self.log_dict({"val_flood": flood, "val_peak": peak})

    def configure_optimizers(self) -> Any:
        return torch.optim.RAdam(self.parameters(), lr=3e-3)


def floods(seed: int, transform: Callable[[Tensor], Tensor]) -> Training:
    source = FloodData(seed, transform)
    test = source.parts[1].columns

    def score(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, test)[0], test["flood"])

    return Training(FloodNet(), source, score, trainer={"max_epochs": 8})


@sick(
    "yb-flood-classes",
    "multi-task",
    "nonfinite-inputs",
    twin=lambda seed: floods(seed, torch.log1p),
    note="the logarithm of the rain of a dry day is minus infinity; one day in 250 is dry",
)
def floods_log(seed: int) -> Training:
    return floods(seed, torch.log)


# --- well: months until a machine fails, many still running -----------------------------------------------------------


class HazardModel(LightningModule):
    """Cox's partial likelihood: within a batch, each failure is held against all that ran at least as long."""

    def __init__(self) -> None:
        super().__init__()
        self.risk = nn.Sequential(nn.Linear(9, 32), nn.SELU(), nn.Linear(32, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.risk(x).squeeze(-1)

    def partial_likelihood(self, batch: dict[str, Tensor]) -> Tensor:
        order = batch["months"].argsort(descending=True)
        risk, failed = self(batch["x"])[order], batch["failed"][order]
        return -((risk - risk.logcumsumexp(0)) * failed).sum() / failed.sum().clamp(min=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.partial_likelihood(batch)
        self.log("cox", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_cox", self.partial_likelihood(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@well("yb-machine-lifetimes", "survival", note="the loss ties the samples of a batch to each other, by design")
def lifetimes(seed: int) -> Training:
    g = data.generator(seed, 1521)
    x = torch.randn(3000, 9, generator=g)
    risk = 0.9 * x[:, 0] - 0.8 * x[:, 1] + 0.7 * x[:, 2].abs()
    months = 20 * (-torch.rand(3000, generator=g).clamp(min=1e-6).log() * torch.exp(-risk)).pow(0.7)
    watched = 40 * torch.rand(3000, generator=g)
    rows = {"x": x, "months": torch.minimum(months, watched), "failed": (months <= watched).float()}
    parts = [Records(**{k: v[a:b] for k, v in rows.items()}) for a, b in ((0, 2000), (2000, 3000))]

    def concordance(module: LightningModule) -> float:
        found, truth = data.predict(module, x[2000:]), months[2000:]
        earlier = truth[:, None] < truth[None]
        return (found[:, None] > found[None])[earlier].float().mean().item()

    return Training(
        HazardModel(),
        DataLoader(parts[0], 100, shuffle=True, drop_last=True),
        concordance,
        DataLoader(parts[1], 500),
        {"max_epochs": 10},
    )


# --- well: sounds and captions in one space ---------------------------------------------------------------------------


class TwoTowers(LightningModule):
    """Both towers have an optimizer of their own; the right caption is picked among those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sound = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 16))
        self.words = nn.EmbeddingBag(80, 64, mode="mean")
        self.caption = nn.Sequential(nn.ReLU(), nn.Linear(64, 16))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        sound = F.normalize(self.sound(pair[0]), dim=-1)
        caption = F.normalize(self.caption(self.words(pair[1])), dim=-1)
        return self.log_scale.exp() * sound @ caption.T

    def training_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch)
        right = torch.arange(len(logits), device=logits.device)
        loss = 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right))
        optimizers: Any = self.optimizers()
        for opt in optimizers:
            opt.zero_grad()
        self.manual_backward(loss)
        for opt in optimizers:
            opt.step()
        self.log("nce", loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        caption = [*self.words.parameters(), *self.caption.parameters()]
        return [
            torch.optim.Adam([*self.sound.parameters(), self.log_scale], lr=4e-3),
            torch.optim.Adam(caption, lr=4e-3),
        ]


@well("yb-sounds-and-captions", "contrastive", note="InfoNCE over the batch, two optimizers, no validation")
def captions(seed: int) -> Training:
    g = data.generator(seed, 1522)
    words = torch.randint(80, (4200, 6), generator=g)
    meaning = torch.randn(80, 30, generator=g)
    sound = meaning[words].mean(1) * 2 + 0.5 * torch.randn(4200, 30, generator=g)
    train = DataLoader(TensorDataset(sound[:4000], words[:4000]), 80, shuffle=True)

    def recall(module: LightningModule) -> float:
        logits = data.predict(module, (sound[4000:], words[4000:]))
        return data.accuracy(logits, torch.arange(200))

    return Training(TwoTowers(), train, recall, trainer={"max_epochs": 6})


# --- well: short notes as counts of words -----------------------------------------------------------------------------


class NoteTopics(LightningModule):
    def __init__(self, vocabulary: int, topics: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.hidden = nn.Linear(vocabulary, 32)
        self.topics = nn.Linear(32, topics)

    def forward(self, counts: Tensor) -> Tensor:
        return self.topics(F.relu(self.hidden(self.drop(counts))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        counts, topic = batch
        loss = F.cross_entropy(self(counts), topic)
        self.log("train/ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        counts, topic = batch
        logits = self(counts)
        self.log("val/ce", F.cross_entropy(logits, topic))
        self.log("val/hit", (logits.argmax(1) == topic).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


@well("yb-note-topics", "bag of words", note="500 columns of small whole numbers, nearly all zero, some never used")
def topics(seed: int) -> Training:
    g = data.generator(seed, 1523)
    share = 1 / torch.arange(1.0, 501)
    share = share[torch.randperm(500, generator=g)]
    share[torch.randperm(500, generator=g)[:40]] = 0.0  # words of the lexicon that these notes never use
    taste = torch.exp(1.3 * torch.randn(6, 500, generator=g)) * share
    topic = torch.randint(6, (3000,), generator=g)
    drawn = torch.multinomial(taste[topic], 18, replacement=True, generator=g)
    counts = torch.zeros(3000, 500).scatter_add_(1, drawn, torch.ones(drawn.shape))
    task = data.Split(counts[:2200], topic[:2200], counts[2200:], topic[2200:])
    return Training(
        NoteTopics(500, 6), task.train(40), task.accuracy, task.val(200), {"max_epochs": 6, "precision": "bf16-mixed"}
    )


# --- well: sums of short sequences, easy ones first -------------------------------------------------------------------


class ShortFirst(Sampler[int]):
    """In the early epochs only the shorter sequences, shuffled; by and by all of them."""

    def __init__(self, lengths: Tensor, epochs: int) -> None:
        self.order, self.epochs, self.epoch = lengths.argsort(), epochs, 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        share = min(1.0, 0.4 + 0.6 * self.epoch / self.epochs)
        self.epoch += 1
        pool = self.order[: int(share * len(self.order))]
        return iter(pool[torch.randint(len(pool), (len(self.order),))].tolist())


class Adder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 48, batch_first=True)
        self.out = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.out(states[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, total = batch
        loss = F.mse_loss(self(x), total)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, total = batch
        self.log("val_mse", F.mse_loss(self(x), total))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("yb-adding-short-first", "curriculum", note="short sequences first, so that the batches get harder over time")
def adding(seed: int) -> Training:
    g = data.generator(seed, 1524)
    lengths = torch.randint(4, 17, (3000,), generator=g)
    begun = (torch.arange(16) >= 16 - lengths[:, None]).float()  # the empty places are at the front
    values = torch.randn(3000, 16, generator=g) * begun
    marks = (torch.rand(3000, 16, generator=g) < 0.25).float() * begun
    total = (values * marks).sum(1, keepdim=True) / 1.6
    x = torch.stack([values, marks], -1)
    train = DataLoader(TensorDataset(x[:2400], total[:2400]), 48, sampler=ShortFirst(lengths[:2400], 6))
    val = DataLoader(TensorDataset(x[2400:], total[2400:]), 200)

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, x[2400:]), total[2400:])

    return Training(Adder(), train, score, val, {"max_epochs": 10})


# --- well: rare faults that stand out ---------------------------------------------------------------------------------


class FaultFinder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 12, 5, stride=2), nn.Hardswish(), nn.Conv1d(12, 24, 5, stride=2), nn.Hardswish()
        )
        self.fc = nn.Linear(24, 1)
        nn.init.constant_(self.fc.bias, math.log(0.05 / 0.95))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x).amax(-1)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, fault = batch
        logit = self(x)
        plain = F.binary_cross_entropy_with_logits(logit, fault, reduction="none")
        loss = ((1 - torch.exp(-plain)) ** 2 * plain).sum() / fault.sum().clamp(min=1)
        self.log("focal", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=2e-3)
        ramp = torch.optim.lr_scheduler.LinearLR(opt, 0.1, 1.0, 40)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}


@well("yb-rare-faults", "1d cnn", note="5 in 100 are faults; a focal loss over the number of faults, first logit at -3")
def faults(seed: int) -> Training:
    g = data.generator(seed, 1525)
    fault = (torch.rand(6000, generator=g) < 0.05).float()
    x = 0.6 * torch.randn(6000, 2, 40, generator=g)
    place = torch.randint(32, (6000,), generator=g)
    ring = 2.0 * torch.sin(torch.arange(8.0) * 1.6)
    at = (place[:, None] + torch.arange(8)).clamp(max=39)
    x[:, 0].scatter_add_(1, at, fault[:, None] * ring)
    x[:, 1].scatter_add_(1, at, fault[:, None] * -ring)
    train = DataLoader(TensorDataset(x[:4000], fault[:4000]), 80, shuffle=True)

    def score(module: LightningModule) -> float:
        return mean_recall((data.predict(module, x[4000:]) > 0).long(), fault[4000:].long(), 2)

    return Training(FaultFinder(), train, score, trainer={"max_epochs": 6})


# --- well: a reservoir that is left as it was drawn -------------------------------------------------------------------


class Reservoir(nn.Module):
    """A random recurrent network with dropout and normalisation, fitted beforehand and never trained."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.drive = nn.Linear(inputs, units)
        self.turn = nn.Linear(units, units, bias=False)
        nn.init.orthogonal_(self.turn.weight, gain=0.9)
        self.norm, self.drop = nn.BatchNorm1d(units, affine=False), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.turn.in_features)
        for now in x.unbind(1):
            h = 0.5 * h + 0.5 * torch.tanh(self.drive(now) + self.turn(h))
        return self.drop(self.norm(h))


class EchoForecaster(LightningModule):
    def __init__(self, reservoir: Reservoir) -> None:
        super().__init__()
        self.reservoir = reservoir.eval().requires_grad_(False)
        self.readout = nn.Sequential(nn.Linear(120, 32), nn.GELU(), nn.Linear(32, 1))

    def train(self, mode: bool = True) -> EchoForecaster:
        super().train(mode)
        self.reservoir.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.reservoir(x)
        return self.readout(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.readout.parameters(), lr=4e-3)


@well("yb-echo-forecast", "reservoir", note="a frozen recurrent part kept in evaluation mode; the readout learns")
def echo(seed: int) -> Training:
    g = data.generator(seed, 1526)
    series = [1.2 + 0.1 * torch.rand((), generator=g).item()] * 18
    for _ in range(9000):  # Mackey and Glass, four small steps a sample
        late = series[-18]
        series.append(series[-1] + 0.25 * 4 * (0.2 * late / (1 + late**10) - 0.1 * series[-1]))
    wave = torch.tensor(series[1000:])[::2]
    wave = (wave - wave.mean()) / wave.std() + 0.05 * torch.randn(len(wave), generator=g)
    windows = wave.unfold(0, 28, 2)
    x, y = windows[:, :24, None], windows[:, 27:]
    cut = int(0.75 * len(x))
    reservoir = Reservoir(1, 120)
    with torch.no_grad():
        for _ in range(30):
            reservoir(x[:cut][torch.randint(cut, (100,), generator=g)])  # settles the statistics of the norm
    train = DataLoader(TensorDataset(x[:cut], y[:cut]), 32, shuffle=True)

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, x[cut + 14 :]), y[cut + 14 :])

    val = DataLoader(TensorDataset(x[cut + 14 :], y[cut + 14 :]), 200)
    return Training(EchoForecaster(reservoir), train, score, val, {"max_epochs": 6})


# --- well: guests of a canteen ----------------------------------------------------------------------------------------


class GuestCounts(LightningModule):
    """The logarithm of the expected number of guests; starts at the mean of the counts."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.Softplus(), nn.Linear(24, 24), nn.Softplus(), nn.Linear(24, 1))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.constant_(self.net[-1].bias, math.log(mean))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, guests = batch
        loss = F.poisson_nll_loss(self(x), guests)
        self.log("nll", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, guests = batch
        rate = self(x)
        self.log_dict({"val_nll": F.poisson_nll_loss(rate, guests), "val_mae": F.l1_loss(rate.exp(), guests)})

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=3e-3)


@well("yb-canteen-guests", "poisson", note="counts up to hundreds, a loss far below zero, ratings of 1 to 5 as numbers")
def guests(seed: int) -> Training:
    g = data.generator(seed, 1527)
    stars = torch.randint(1, 6, (3200, 2), generator=g).float()  # how the menu and the weather are rated, in order
    plain = torch.randn(3200, 4, generator=g)
    log_rate = 3.6 + 0.25 * (stars[:, 0] - 3) - 0.15 * (stars[:, 1] - 3) + 0.3 * plain[:, 0] * torch.tanh(plain[:, 1])
    count = torch.poisson(log_rate.exp(), generator=g)[:, None]
    x = torch.cat([stars, plain], 1)
    task = data.Split(x[:2400], count[:2400], x[2400:], count[2400:])

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, task.x_test).exp(), task.y_test)

    return Training(GuestCounts(count[:2400].mean().item()), task.train(48), score, task.val(200), {"max_epochs": 10})
