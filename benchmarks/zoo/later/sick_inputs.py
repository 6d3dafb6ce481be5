"""What is fed in: units, scales, gaps, codes and single bad samples."""

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
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.later._sick_common import (
    Records,
    bags,
    demand,
    explained,
    gestures,
    loader,
    ratings,
    solids,
    spots,
    tones,
    visits,
)

# --- inputs far from unit scale ---------------------------------------------------------------------------------------


class Coordinates(LightningModule):
    """Point clouds as a scanner writes them, on the grid of the survey."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.out = nn.Linear(48, 4)

    def forward(self, cloud: Tensor) -> Tensor:
        return self.out(self.point(cloud).amax(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["cloud"]), batch["kind"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-solids-on-a-survey-grid", "point cloud", "unscaled-inputs", twin=lambda s: survey_grid(s, 0.0))
def survey_grid(seed: int, origin: float = 1.0) -> Training:
    d = solids(seed)
    corner = origin * torch.tensor([412.0, 531.0, 96.0])
    train = DataLoader(Records(cloud=d.x + corner, kind=d.y), batch_size=32, shuffle=True)
    score = Split(d.x, d.y, d.x_test + corner, d.y_test).accuracy
    return Training(Coordinates(), train, score, None, {"max_epochs": 14})


class Samples(LightningModule):
    """Sixteen-bit samples, cast to float and given to convolutions."""

    def __init__(self, divide: float) -> None:
        super().__init__()
        self.divide = divide
        self.body = nn.Sequential(
            nn.Conv1d(1, 12, 9, stride=2), nn.ReLU(), nn.Conv1d(12, 24, 7, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4)
        )
        self.head = nn.Linear(96, 4)

    def forward(self, pcm: Tensor) -> Tensor:
        return self.head(self.body(pcm.float() / self.divide).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pcm, kind = batch
        loss = F.cross_entropy(self(pcm), kind)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


@sick("v-tones-sixteen-bits", "audio", "unscaled-inputs", twin=lambda s: sixteen_bits(s, 32768.0))
def sixteen_bits(seed: int, divide: float = 1.0) -> Training:
    d = tones(seed)

    def pcm(x: Tensor) -> Tensor:
        return (x.clamp(-2, 2) * 16000).to(torch.int16)

    d = Split(pcm(d.x), d.y, pcm(d.x_test), d.y_test)
    return Training(Samples(divide), d.train(32), d.accuracy, None, {"max_epochs": 8})


class Loads(LightningModule):
    """Demand as a share of a country's, so that every number is about a hundred-thousandth."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-demand-share-of-a-country", "time series", "unscaled-inputs", twin=lambda s: share_of_country(s, 1.0))
def share_of_country(seed: int, unit: float = 1e-5) -> Training:
    d = demand(seed)
    settings = {"max_epochs": 8, "gradient_clip_val": 1.0}
    return Training(Loads(), loader(unit * d.x, d.y, size=30), explained(unit * d.x_test, d.y_test), None, settings)


# --- columns of different scales --------------------------------------------------------------------------------------


class House(LightningModule):
    """Six columns, some in units of their own."""

    def __init__(self, rate: float = 0.02) -> None:
        super().__init__()
        self.rate = rate
        self.net = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.huber_loss(self(x), y)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick("v-visits-income-and-rates", "mlp", "disparate-feature-scales", twin=lambda s: income_and_rates(s, True))
def income_and_rates(seed: int, scaled: bool = False) -> Training:
    d = visits(seed).map_targets(lambda y: y.sqrt() - 1.6)
    unit = torch.ones(6) if scaled else torch.tensor([0.01, 0.02, 0.05, 0.05, 300.0, 1.0])
    train = loader(unit * d.x, d.y, size=40)
    return Training(House(), train, explained(unit * d.x_test, d.y_test), None, {"max_epochs": 10})


class Grapes(LightningModule):
    """Wine by its raw columns: proline in the hundreds next to a hue near one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(13, 24)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Cellar(LightningDataModule):
    """The bundled table, standardised or as it was measured."""

    def __init__(self, seed: int, scaled: bool) -> None:
        super().__init__()
        self.split = data.table("wine", seed, standardise=scaled)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.split.train(16)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.split.val()


@sick(
    "v-wine-from-the-bottle",
    "mlp",
    "disparate-feature-scales",
    "unscaled-inputs",
    twin=lambda s: from_the_bottle(s, True),
)
def from_the_bottle(seed: int, scaled: bool = False) -> Training:
    cellar = Cellar(seed, scaled)
    settings = {"max_epochs": 20, "log_every_n_steps": 1}
    return Training(Grapes(), cellar, cellar.split.accuracy, None, settings)


# --- codes as numbers -------------------------------------------------------------------------------------------------


class Stations(LightningModule):
    """Delay by station, hour and weather; the station is a code that a CSV turned into a float."""

    def __init__(self, one_hot: bool) -> None:
        super().__init__()
        self.one_hot = one_hot
        self.net = nn.Sequential(nn.Linear(26 if one_hot else 3, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.one_hot:
            x = torch.cat([F.one_hot(x[:, 0].long(), 24), x[:, 1:]], 1)
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@sick("v-delays-by-station", "mlp", "categorical-as-numeric", twin=lambda s: by_station(s, True))
def by_station(seed: int, one_hot: bool = False) -> Training:
    g = data.generator(seed, 111)
    station = torch.randint(24, (1600, 1), generator=g)
    rest = torch.randn(1600, 2, generator=g)
    y = torch.randn(24, generator=g)[station] + 0.3 * rest[:, :1] + 0.1 * torch.randn(1600, 1, generator=g)
    x = torch.cat([station.float(), rest], 1)
    score = explained(x[1100:], y[1100:])
    return Training(Stations(one_hot), loader(x[:1100], y[:1100]), score, None, {"max_epochs": 10})


class Pairs(LightningModule):
    """Ratings from the two ids, as two numbers or by tables."""

    def __init__(self, tables: bool) -> None:
        super().__init__()
        self.user, self.film = (nn.Embedding(60, 8), nn.Embedding(50, 8)) if tables else (None, None)
        if self.user is not None:
            nn.init.normal_(self.user.weight, std=0.3)
            nn.init.normal_(self.film.weight, std=0.3)
        self.net = nn.Sequential(nn.Linear(16 if tables else 2, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.out = nn.Linear(48, 1)

    def forward(self, pair: Tensor) -> Tensor:
        if self.user is not None:
            u, f = self.user(pair[:, 0].long()), self.film(pair[:, 1].long())
            return self.out(self.net(torch.cat([u, f], 1)))[:, 0] + (u * f).sum(1)
        return self.out(self.net(pair))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, stars = batch
        return F.mse_loss(self(pair), stars)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@sick("v-ratings-ids-as-columns", "recommender", "categorical-as-numeric", twin=lambda s: ids_as_columns(s, True))
def ids_as_columns(seed: int, tables: bool = False) -> Training:
    d = ratings(seed)
    score = explained(d.x_test.float(), d.y_test)
    return Training(Pairs(tables), loader(d.x.float(), d.y, size=64), score, None, {"max_epochs": 12})


# --- inputs that never change -----------------------------------------------------------------------------------------


class Frames(Dataset[tuple[Tensor, Tensor]]):
    """Reads into one buffer; or asks for the slot of the first frame each time."""

    def __init__(self, x: Tensor, y: Tensor, slot: bool) -> None:
        self.x, self.y, self.slot = x, y, slot

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i if self.slot else i // len(self.x)], self.y[i]


class Look(LightningModule):
    """Where the spot is, by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = F.mse_loss(self(x), place)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-spots-index-divided", "cnn", "constant-inputs", twin=lambda s: index_divided(s, True))
def index_divided(seed: int, slot: bool = False) -> Training:
    d = spots(seed)
    train = DataLoader(Frames(d.x, d.y, slot), batch_size=32, shuffle=True)
    return Training(Look(), train, explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Normed(LightningModule):
    """Normalises over the feature axis, which has one entry, before a recurrent layer."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x - x.mean(self.axis, keepdim=True), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-demand-centred-over-features", "time series", "constant-inputs", twin=lambda s: centred(s, 1))
def centred(seed: int, axis: int = 2) -> Training:
    d = demand(seed)

    def score(module: LightningModule) -> float:
        return data.r2(predict(module, d.x_test - d.x_test.mean(axis, keepdim=True)), d.y_test)

    return Training(Normed(axis), d.train(30), score, None, {"max_epochs": 8})


# --- targets far from unit scale --------------------------------------------------------------------------------------


@sick("v-visits-a-year", "mlp", "unscaled-targets", twin=lambda s: a_year(s, 1.0))
def a_year(seed: int, unit: float = 365.0 * 24) -> Training:
    d = visits(seed).map_targets(lambda y: unit * (y.sqrt() - 1.6))
    return Training(House(), loader(d.x, d.y, size=40), explained(d.x_test, d.y_test), None, {"max_epochs": 10})


class Worth(LightningModule):
    """The worth of a set, in the currency's smallest unit, with an offset of a hundred thousand."""

    def __init__(self) -> None:
        super().__init__()
        self.member = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32))
        self.top = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.member(x)
        return self.top(torch.cat([h.amax(1), h.mean(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.l1_loss(self(x), y)
        self.log("mae", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mae", F.l1_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-bags-worth-in-cents", "set", "unscaled-targets", twin=lambda s: worth_in_cents(s, 1.0, 0.0))
def worth_in_cents(seed: int, unit: float = 20_000.0, base: float = 100_000.0) -> Training:
    d = bags(seed).map_targets(lambda y: unit * y + base)
    settings = {"max_epochs": 8, "val_check_interval": 0.5}
    return Training(Worth(), d.train(32), explained(d.x_test, d.y_test), d.val(), settings)


# --- gaps -------------------------------------------------------------------------------------------------------------


class Strokes(LightningModule):
    """Strokes by a small LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, batch_first=True)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (stroke, _), sign = batch
        loss = F.cross_entropy(self(stroke), sign)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def nested(x: Tensor, y: Tensor) -> DataLoader[Any]:
    """Batches ((stroke, length), sign)."""
    rows: Any = [((x[i], torch.tensor(x.shape[1])), y[i]) for i in range(len(x))]
    return DataLoader(rows, batch_size=32, shuffle=True)


@sick("v-gestures-pen-lifted", "recurrent", "nonfinite-inputs", twin=lambda s: pen_lifted(s, 0.0))
def pen_lifted(seed: int, gap: float = float("nan")) -> Training:
    d = gestures(seed)
    g = data.generator(seed, 112)
    rows, start = torch.randperm(len(d.x), generator=g)[:40], torch.randint(20, (40,), generator=g)
    x = d.x.clone()
    for row, t in zip(rows.tolist(), start.tolist(), strict=True):
        x[row, t : t + 4, :2] = gap
    return Training(Strokes(), nested(x, d.y), d.accuracy, None, {"max_epochs": 8})


class Diabetes(LightningModule):
    """The bundled table with a ratio of two columns, one of which is sometimes zero."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(columns), nn.Linear(columns, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-diabetes-ratio-of-columns", "mlp", "nonfinite-inputs", twin=lambda s: ratio_of_columns(s, 0.5))
def ratio_of_columns(seed: int, floor: float = 0.0) -> Training:
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]
    days = torch.randint(0, 60, (len(x), 1), generator=data.generator(seed, 113)).float()
    ratio = x[:, 2:3] / days.clamp(min=floor)
    d = data.split(torch.cat([x, ratio], 1), (y - 152) / 77, seed)
    finite = d.x_test.isfinite().all(1)
    train = d.train(32, drop_last=True)
    score = explained(d.x_test[finite], d.y_test[finite])
    return Training(Diabetes(11), train, score, None, {"max_epochs": 25})


# --- single bad samples -----------------------------------------------------------------------------------------------


class Readings(LightningModule):
    """A table of readings, least squares, plain descent."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 40), nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.silu(self.a(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = ((self(x) - y) ** 2).mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


@sick("v-readings-comma-lost", "mlp", "corrupt-samples", twin=lambda s: comma_lost(s, 1.0))
def comma_lost(seed: int, factor: float = 1000.0) -> Training:
    """In five rows the decimal comma was lost, so all their columns are a thousand times too large."""
    x, y, *_ = datasets.make_regression(1500, 10, n_informative=6, noise=10.0, random_state=seed)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]
    y = (y - y.mean()) / y.std()
    bad = torch.randperm(1000, generator=data.generator(seed, 114))[:5]
    x[bad] *= factor
    return Training(Readings(), loader(x[:1000], y[:1000]), explained(x[1000:], y[1000:]), None, {"max_epochs": 8})


@sick("v-demand-meter-resets", "time series", "corrupt-samples", twin=lambda s: meter_resets(s, 0.0))
def meter_resets(seed: int, spike: float = -4.0e4) -> Training:
    """A meter that starts anew writes one absurd hour, which then stands in a few targets."""
    d = demand(seed)
    y = d.y.clone()
    y[torch.randperm(len(y), generator=data.generator(seed, 115))[:6]] += spike
    return Training(Loads(), loader(d.x, y, size=30), explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Noted(LightningModule):
    """Spots by a residual network; one shard of pictures was decoded with the wrong byte order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.point = nn.Linear(800, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.point((h + self.block(h)).relu().flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = F.mse_loss(self(x), place)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("v-spots-byte-order", "cnn", "corrupt-samples", twin=lambda s: byte_order(s, 0))
def byte_order(seed: int, pictures: int = 8) -> Training:
    d = spots(seed)
    x = d.x.clone()
    rows = torch.randperm(len(x), generator=data.generator(seed, 116))[:pictures]
    x[rows] = 3000 * torch.rand(pictures, 1, 10, 10, generator=data.generator(seed, 117))
    train = DataLoader(TensorDataset(x, d.y), batch_size=32, shuffle=True)
    return Training(Noted(), train, explained(d.x_test, d.y_test), None, {"max_epochs": 8})
