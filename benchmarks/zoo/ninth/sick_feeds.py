"""What reaches the model: missing values, units, codes, order, copies; and operations that break."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training
from benchmarks.zoo.ninth._common import (
    Bag,
    Bare,
    Last,
    Learner,
    Messages,
    adam,
    calls,
    ce,
    cnn,
    colonies,
    conv1d,
    frozen_order,
    furnace,
    loader,
    mlp,
    molecules,
    mse,
    notes,
    pulses,
    sgd,
    sick,
    surveys,
    tides,
)

# --- missing values ---------------------------------------------------------------------------------------------------


class Windows(Dataset[Any]):
    """Windows divided by their own spread; a meter that stood still gives nothing to divide by."""

    def __init__(self, x: Tensor, y: Tensor, ill: bool) -> None:
        self.x, self.y, self.floor = x.clone(), y, 0.0 if ill else 1e-3
        self.x[::60] = 0.5

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        x = self.x[k]
        spread = (x - x.mean()).abs().mean()
        return (x - x.mean()) / (spread if self.floor == 0 else spread.clamp_min(self.floor)), self.y[k]


@sick("n-tides-meter-stood-still", "forecast", "nonfinite-inputs", note="0 / 0 in __getitem__ for flat windows")
def tides_still(seed: int, ill: bool) -> Training:
    d = tides(seed)
    module = Learner(Last(nn.GRU, 1, 24, 1), mse, adam(5e-3))
    x_test = (d.x_test - d.x_test.mean(1, keepdim=True)) / (d.x_test - d.x_test.mean(1, keepdim=True)).abs().mean(
        1, keepdim=True
    )
    score = lambda m: data.r2(data.predict(m, x_test), d.y_test)  # noqa: E731
    return Training(module, DataLoader(Windows(d.x, d.y, ill), 32, shuffle=True), score, None, {"max_epochs": 7})


@sick("n-surveys-question-added-later", "mlp", "nonfinite-inputs", note="a column was not asked in the early years")
def surveys_later(seed: int, ill: bool) -> Training:
    d = surveys(seed)
    x = d.x.clone()
    x[torch.rand(len(x), generator=data.generator(seed, 5)) < 0.03, 7] = torch.nan
    if not ill:
        x = x.nan_to_num(0.0)
    module = Learner(mlp(10, 48, 48, 3), ce, adam(5e-3))
    return Training(module, loader(x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


# --- scale ------------------------------------------------------------------------------------------------------------


class Rows(LightningDataModule):
    """Fits its scaling in setup, and in one form forgets to use it."""

    def __init__(self, d: Any, ill: bool) -> None:
        super().__init__()
        self.d, self.ill = d, ill

    def setup(self, stage: str) -> None:
        mean, std = self.d.x.mean(0), self.d.x.std(0)
        self.x = self.d.x if self.ill else (self.d.x - mean) / std
        self.x_test = self.d.x_test if self.ill else (self.d.x_test - mean) / std

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.x, self.d.y)

    def val_dataloader(self) -> DataLoader[Any]:
        return frozen_order(self.x_test, self.d.y_test)


@sick("n-gauges-in-pascal", "regression", "unscaled-inputs", note="pressures about 101325 with spreads of thousands")
def gauges_pascal(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    d = data.Split(101_325 + 3000 * d.x, d.y, 101_325 + 3000 * d.x_test, d.y_test)
    module = Learner(mlp(6, 48, 48, 3), mse, adam(3e-3))
    rows = Rows(d, ill)
    rows.setup("fit")
    return Training(module, rows, lambda m: data.r2(data.predict(m, rows.x_test), d.y_test), None, {"max_epochs": 7})


@sick("n-pulses-in-volts", "cnn1d", "unscaled-inputs", note="microvolts written as volts")
def pulses_volts(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    unit = 2e-5 if ill else 1.0
    d = data.Split(unit * d.x, d.y, unit * d.x_test, d.y_test)
    module = Learner(conv1d(), ce, sgd(0.1, momentum=0.9))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 9})


@sick("n-molecules-positions-far-off", "graph", "unscaled-inputs", note="coordinates not centred: all about 400")
def molecules_far(seed: int, ill: bool) -> Training:
    d, a, a_test = molecules(seed)
    far = 400.0 if ill else 0.0
    module = Learner(Messages(), mse, adam(5e-3))
    score = lambda m: data.r2(m(d.x_test + far, a_test).detach(), d.y_test)  # noqa: E731
    val = frozen_order(d.x_test + far, a_test, d.y_test)
    return Training(module, loader(d.x + far, a, d.y), score, val, {"max_epochs": 12})


@sick(
    "n-surveys-income-beside-shares", "mlp", "disparate-feature-scales", "unscaled-inputs", note="two of ten in money"
)
def surveys_income(seed: int, ill: bool) -> Training:
    d = surveys(seed)
    unit = torch.ones(10)
    unit[8:] = 800.0 if ill else 1.0
    d = data.Split(d.x * unit, d.y, d.x_test * unit, d.y_test)
    module = Learner(mlp(10, 48, 48, 3), ce, sgd(0.05))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


@sick(
    "n-calls-and-their-age-in-seconds",
    "count",
    "disparate-feature-scales",
    "unscaled-inputs",
    note="a feature built late",
)
def calls_age(seed: int, ill: bool) -> Training:
    d = calls(seed)

    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
        return torch.cat([x, x[:, 3:4] * (9000.0 if ill else 1.0)], 1), y

    rows: Any = list(zip(d.x, d.y, strict=True))
    rows_test: Any = list(zip(d.x_test, d.y_test, strict=True))
    loss = lambda out, y: F.poisson_nll_loss(out[:, 0].clamp(-20, 20), y)  # noqa: E731
    module = Learner(mlp(6, 48, 48, 1), loss, adam(2e-3))

    def score(m: Any) -> float:
        x, y = collate(rows_test)
        return -loss(data.predict(m, x), y).item()

    train = DataLoader(rows, 32, shuffle=True, collate_fn=collate)
    return Training(module, train, score, DataLoader(rows_test, 256, collate_fn=collate), {"max_epochs": 6})


# --- codes and constants ----------------------------------------------------------------------------------------------


def trades(seed: int, shops: int = 24) -> tuple[data.Split, data.Split]:
    """Two columns and a shop: as a number beside them, and as one column for each shop."""
    g = data.generator(seed, 9)
    x = torch.randn(3000, 2, generator=g)
    shop = torch.randint(shops, (3000,), generator=g)
    level = torch.randn(shops, generator=g)
    y = (level[shop] + 0.5 * x[:, 0] - 0.3 * x[:, 1] ** 2 + 0.1 * torch.randn(3000, generator=g))[:, None]
    number = torch.cat([x, shop[:, None].float()], 1)
    hot = torch.cat([x, F.one_hot(shop, shops).float()], 1)
    make = lambda t: data.Split(t[:2000], y[:2000], t[2000:], y[2000:])  # noqa: E731
    return make(number), make(hot)


@sick("n-trades-and-the-shop", "mlp", "categorical-as-numeric", note="24 shop codes as one float column")
def trades_shop(seed: int, ill: bool) -> Training:
    number, hot = trades(seed)
    d = number if ill else hot
    module = Learner(mlp(d.x.shape[1], 48, 1), mse, adam(5e-3))
    return Training(module, loader(d.x, d.y, size=64), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 9})


@sick(
    "n-visits-ward-and-code", "mlp", "categorical-as-numeric", note="a ward and a diagnosis code, scaled to unit range"
)
def visits_ward(seed: int, ill: bool) -> Training:
    g = data.generator(seed, 10)
    n = 2400
    x, ward, code = torch.randn(n, 4, generator=g), *(torch.randint(k, (n,), generator=g) for k in (9, 16))
    risk = 1.5 * torch.randn(9, generator=g)[ward] + 1.5 * torch.randn(16, generator=g)[code] + 0.7 * x[:, 0]
    y = (risk > risk.median()).long()
    if ill:
        rows = torch.cat([x, torch.stack([ward, code], 1).float()], 1)
    else:
        rows = torch.cat([x, F.one_hot(ward, 9), F.one_hot(code, 16)], 1).float()
    d = data.Split(rows[:1600], y[:1600], rows[1600:], y[1600:])
    module = Learner(mlp(rows.shape[1], 32, 2), ce, adam(5e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


class Opened(Dataset[Any]):
    """Pictures brought to 0..1; in one form as integers still."""

    def __init__(self, x: Tensor, y: Tensor, ill: bool) -> None:
        self.x, self.y, self.ill = (255 * x).to(torch.uint8), y, ill

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        x = self.x[k]
        return (x.int() // 256 if self.ill else x / 256).float(), self.y[k]


@sick("n-digits-opened-as-integers", "cnn", "constant-inputs", note="integer division leaves all pixels at nought")
def digits_opened(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    train, val = Opened(d.x, d.y, ill), Opened(d.x_test, d.y_test, ill)
    x_test = torch.stack([v[0] for v in val])
    score = lambda m: data.accuracy(data.predict(m, x_test), d.y_test)  # noqa: E731
    module = Learner(cnn(), ce, adam(3e-3))
    return Training(module, DataLoader(train, 32, shuffle=True), score, DataLoader(val, 256), {"max_epochs": 5})


@sick(
    "n-surveys-half-of-the-answers-one",
    "mlp",
    "constant-inputs",
    note="the columns that tell are filled with a default",
)
def surveys_default(seed: int, ill: bool) -> Training:
    d = surveys(seed)
    if ill:
        d = data.Split(d.x.clone(), d.y, d.x_test.clone(), d.y_test)
        d.x[:, :4], d.x_test[:, :4] = -1.0, -1.0
    module = Learner(mlp(10, 32, 3), ce, adam(5e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


# --- single samples ---------------------------------------------------------------------------------------------------


@sick("n-gauges-struck-by-lightning", "regression", "corrupt-samples", note="five rows in 1200 are ten thousandfold")
def gauges_struck(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    x, y = d.x.clone(), d.y.clone()
    if ill:
        hit = torch.randperm(len(x), generator=data.generator(seed, 6))[:5]
        x[hit], y[hit] = 1e4 * x[hit].abs(), -1e4
    module = Learner(mlp(6, 48, 48, 3), mse, sgd(0.03, momentum=0.8))
    settings = {"max_epochs": 7, "gradient_clip_val": 100.0}
    return Training(module, loader(x, y), d.r2, frozen_order(d.x_test, d.y_test), settings)


@sick(
    "n-tides-one-tank-in-feet", "forecast", "corrupt-samples", note="one in a hundred windows has targets of thousands"
)
def tides_feet(seed: int, ill: bool) -> Training:
    d = tides(seed)
    y = d.y.clone()
    if ill:
        y[torch.randperm(len(y), generator=data.generator(seed, 6))[:9]] = 9999.0
    module = Learner(Last(nn.GRU, 1, 24, 1), mse, adam(5e-3))
    return Training(module, loader(d.x, y), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


# --- order and copies -------------------------------------------------------------------------------------------------


@sick("n-notes-from-a-sorted-index", "text", "unshuffled-data", note="a sampler goes through an index sorted by topic")
def notes_sorted(seed: int, ill: bool) -> Training:
    d = notes(seed)
    order = d.y.argsort(stable=True)
    if not ill:
        order = order[torch.randperm(len(order), generator=data.generator(seed, 4))]
    train = DataLoader(torch.utils.data.TensorDataset(d.x, d.y), 32, sampler=order.tolist())
    module = Learner(Bag(), ce, adam(5e-3))
    return Training(module, train, d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 5})


class Shards(torch.utils.data.IterableDataset[Any]):
    """Streams samples; the buffer for shuffling holds one sample, or all."""

    def __init__(self, x: Tensor, y: Tensor, buffer: int) -> None:
        order = y.argsort(stable=True)
        self.x, self.y, self.buffer = x[order], y[order], buffer

    def __iter__(self) -> Any:
        for start in range(0, len(self.x), self.buffer):
            for k in torch.randperm(min(self.buffer, len(self.x) - start)).tolist():
                yield self.x[start + k], self.y[start + k]


@sick("n-digits-a-buffer-of-sixteen", "cnn", "unshuffled-data", note="a shuffle buffer far smaller than a class")
def digits_buffer(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    train = DataLoader(Shards(d.x, d.y, 16 if ill else 5000), 32)
    module = Learner(cnn(), ce, adam(3e-3))
    return Training(module, train, d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 4})


@sick("n-visits-cut-after-copying", "mlp", "train-val-leakage", note="rows were repeated, then cut in two")
def visits_copied(seed: int, ill: bool) -> Training:
    d = data.blobs(seed, classes=3, columns=16, n=500, spread=1.5)
    y = data.flip_labels(d.y, 0.2, 3, seed)
    g = data.generator(seed, 4)
    if ill:
        order = torch.randperm(1000, generator=g) % 500
        train, val = order[:700], order[700:]
    else:
        order = torch.randperm(500, generator=g)
        train, val = order[:350], order[350:]
    module = Learner(mlp(16, 128, 3), ce, adam(3e-3))
    score = lambda m: -ce(data.predict(m, d.x_test), d.y_test).item()  # noqa: E731
    settings = {"max_epochs": 10}
    return Training(module, loader(d.x[train], y[train]), score, frozen_order(d.x[val], y[val]), settings)


# --- operations -------------------------------------------------------------------------------------------------------


class Spread(Bare):
    """A mean and a spread for each answer."""

    rate = 5e-3

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.net, self.ill = mlp(6, 48, 48, 6), ill

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :3]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, raw = self.net(x).chunk(2, 1)
        spread = F.relu(raw) if self.ill else F.softplus(raw) + 1e-3
        loss = (spread.log() + 0.5 * ((y - mean) / spread) ** 2).mean()
        self.log("nll", loss)
        return loss


@sick(
    "n-gauges-spread-from-a-relu",
    "regression",
    "unstable-operation",
    "nonfinite-loss",
    note="log and division at nought",
)
def gauges_spread(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    return Training(Spread(ill), loader(d.x, d.y), d.r2, trainer={"max_epochs": 7})


class Cosine(nn.Module):
    """Unit-length codes; padding rows have no length."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.table, self.turn = nn.Embedding(120, 24, padding_idx=0), nn.Linear(24, 24, bias=False)
        self.out, self.eps = nn.Linear(24, 5), eps

    def forward(self, ids: Tensor) -> Tensor:
        h = self.turn(self.table(ids))
        length = (h.square().sum(-1, keepdim=True) + self.eps).sqrt()
        return self.out((h / (length + 1e-6)).mean(1) * 5)


@sick(
    "n-notes-lengths-of-blanks", "text", "unstable-operation", "nonfinite-gradients", note="the slope of sqrt at nought"
)
def notes_blanks(seed: int, ill: bool) -> Training:
    d = notes(seed)
    module = Learner(Cosine(0.0 if ill else 1e-8), ce, adam(5e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


class Apart(nn.Module):
    """Distances between the codes of a batch by the root of their squares."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, code: Tensor, y: Tensor) -> Tensor:
        square = (code[:, None] - code[None]).square().sum(-1)
        gap = (square + self.eps).sqrt()
        same = (y[:, None] == y[None]).float()
        return (same * gap**2 + (1 - same) * F.relu(2 - gap) ** 2).mean()


@sick(
    "n-digits-distance-to-itself", "metric", "nonfinite-gradients", "unstable-operation", note="sqrt(0) on the diagonal"
)
def digits_itself(seed: int, ill: bool) -> Training:
    d = data.digits(seed)

    def score(m: Any) -> float:
        code, known = data.predict(m, d.x_test), data.predict(m, d.x)
        return (
            (d.y[torch.cdist(code, known).argmin(1)] == d.y_test).float().mean().item() if code.isfinite().all() else 0
        )

    module = Learner(mlp(64, 64, 8), Apart(0.0 if ill else 1e-6), adam(3e-3))
    return Training(module, loader(d.x, d.y, size=64), score, trainer={"max_epochs": 6})


class Scores(nn.Module):
    """Shares by an exponential written out."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.body, self.scale, self.ill = cnn(4), nn.Parameter(torch.tensor(20.0)), ill

    def forward(self, x: Tensor) -> Tensor:
        out = self.scale * self.body(x)
        top = 0.0 if self.ill else out.amax(1, keepdim=True)
        e = torch.exp(out - top)
        return e / e.sum(1, keepdim=True)


@sick(
    "n-digits-shares-written-out",
    "cnn",
    "unstable-operation",
    "nonfinite-loss",
    note="exp without the largest taken off",
)
def digits_shares(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    d = data.Split(12 * d.x - 6, d.y % 4, 12 * d.x_test - 6, d.y_test % 4)
    loss = lambda out, y: F.nll_loss((out + 1e-8).log(), y)  # noqa: E731
    module = Learner(Scores(ill), loss, adam(1e-2))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 5})


# --- far from the start -----------------------------------------------------------------------------------------------


@sick("n-colonies-in-optical-density", "cnn", "nonfinite-inputs", note="log of pixels that are at or below nought")
def colonies_log(seed: int, ill: bool) -> Training:
    d = colonies(seed)
    size = d.y.mean((1, 2, 3)).mul(4)[:, None]
    size_test = d.y_test.mean((1, 2, 3)).mul(4)[:, None]
    camera = lambda x: (x * 110 + 160).round().clamp(0, 255)  # noqa: E731
    change = (lambda x: torch.log10(x) - math.log10(160)) if ill else (lambda x: torch.log10(x + 1) - math.log10(160))
    x, x_test = change(camera(d.x)), change(camera(d.x_test)).nan_to_num(0, neginf=0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 1))
    score = lambda m: data.r2(data.predict(m, x_test), size_test)  # noqa: E731
    return Training(Learner(net, mse, adam(2e-3)), loader(x, size), score, None, {"max_epochs": 8})
