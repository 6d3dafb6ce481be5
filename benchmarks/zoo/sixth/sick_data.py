"""Units, codes, shares, orders and splits of the data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, digits, generator, predict, r2
from benchmarks.zoo.sixth._common import (
    DeepSet,
    GraphNet,
    Learner,
    Recur,
    Rows,
    Words,
    clips,
    clouds,
    concordance,
    cox,
    explains,
    flow,
    glyph_net,
    glyphs,
    grades,
    harvest,
    hits,
    lifetimes,
    loader,
    mlp,
    networks,
    optim,
    recalls,
    supervised,
    tags,
    turbines,
)

# --- units of the inputs ----------------------------------------------------------------------------------------------


@sick("q-admitted-on-day", "survival", "unscaled-inputs", "disparate-feature-scales", twin=lambda s: admitted(s, True))
def admitted(seed: int, scaled: bool = False) -> Training:
    d = lifetimes(seed)
    shift, unit = torch.tensor([19200.0, 18900.0, 17800.0, 19900.0, 18200.0]), 300.0
    change = (lambda x: x) if scaled else (lambda x: unit * x + shift)
    module = Learner(mlp(5, 24, 1, act=nn.Tanh), supervised(cox), optim("SGD", 0.05, momentum=0.9), "cox")
    score = lambda m: concordance(predict(m, change(d.x_test))[:, 0], d.y_test)  # noqa: E731
    return Training(module, loader(change(d.x), d.y, size=40), score, None, {"max_epochs": 10})


@sick("q-strain-of-a-beam", "conv over time", "unscaled-inputs", twin=lambda s: strain(s, 1.0))
def strain(seed: int, unit: float = 2e-6) -> Training:
    d = clips(seed)
    net = nn.Sequential(nn.Conv1d(1, 12, 7), nn.ReLU(), nn.Conv1d(12, 12, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    net.extend([nn.Flatten(), nn.Linear(12, 3)])
    module = Learner(net, supervised(F.cross_entropy), optim("SGD", 0.1, momentum=0.9), "xent")
    d = Split(unit * d.x, d.y, unit * d.x_test, d.y_test)
    return Training(module, Rows(d, 35), hits(d.x_test, d.y_test), None, {"max_epochs": 14})


@sick("q-six-gauges-of-a-field", "mlp", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: gauges(s, True))
def gauges(seed: int, scaled: bool = False) -> Training:
    d = harvest(seed)
    unit = torch.ones(6) if scaled else torch.tensor([0.002, 0.05, 1.0, 0.01, 250.0, 900.0])
    d = Split(unit * d.x, d.y, unit * d.x_test, d.y_test)
    module = Learner(mlp(6, 32, 1), supervised(F.huber_loss), optim("Adam", 1e-2), "huber")
    return Training(module, Rows(d), explains(d.x_test, d.y_test), None, {"max_epochs": 12})


@sick(
    "q-speed-heat-and-pressure", "gru", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: pressure(s, True)
)
def pressure(seed: int, scaled: bool = False) -> Training:
    d = turbines(seed)
    unit = torch.ones(3) if scaled else torch.tensor([0.02, 1.0, 4000.0])
    module = Learner(Recur(nn.GRU, 3, 20, 1), supervised(F.mse_loss), optim("Adam", 5e-3))
    score = explains(unit * d.x_test, d.y_test)
    return Training(module, loader(unit * d.x, d.y), score, None, {"max_epochs": 10})


# --- codes ------------------------------------------------------------------------------------------------------------


@sick("q-soil-of-a-field", "linear", "categorical-as-numeric", twin=lambda s: soil(s, True))
def soil(seed: int, told_apart: bool = False) -> Training:
    g = generator(seed, 110)
    kind = torch.randint(9, (1300,), generator=g)
    x = torch.randn(1300, 3, generator=g)
    effect = torch.tensor([1.5, -1.2, 0.9, -1.6, 1.3, -0.2, -1.4, 1.6, -0.9])
    y = (0.4 * x[:, 0] - 0.3 * x[:, 1] + effect[kind] + 0.2 * torch.randn(1300, generator=g))[:, None]
    code = F.one_hot(kind, 9).float() if told_apart else kind.float()[:, None]
    x = torch.cat([x, code], 1)
    module = Learner(nn.Linear(x.shape[1], 1), supervised(F.mse_loss), optim("Adam", 2e-2), "mse")
    return Training(module, loader(x[:800], y[:800]), explains(x[800:], y[800:]), None, {"max_epochs": 12})


class Plays(LightningModule):
    """The next play of a game from four counts and the formation."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(columns, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["state"]), batch["play"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("q-next-play-by-formation", "mlp", "categorical-as-numeric", twin=lambda s: formation(s, True))
def formation(seed: int, told_apart: bool = False) -> Training:
    g = generator(seed, 111)
    kind = torch.randint(16, (1400,), generator=g)
    favours = (torch.arange(16) * 7 % 16 % 2 * 2 - 1).float()
    state = torch.randn(1400, 4, generator=g)
    y = (1.6 * favours[kind] + 0.5 * state[:, 0] + 0.3 * torch.randn(1400, generator=g) > 0).long()
    code = F.one_hot(kind, 16).float() if told_apart else kind.float()[:, None]
    x = torch.cat([state, code], 1)
    rows: Any = [{"state": a, "play": b} for a, b in zip(x[:900], y[:900], strict=True)]
    train = DataLoader(rows, batch_size=30, shuffle=True)
    return Training(Plays(x.shape[1]), train, hits(x[900:], y[900:]), None, {"max_epochs": 10})


# --- always the same --------------------------------------------------------------------------------------------------


class Windows(Dataset[Any]):
    """Windows cut out of one long record; the answer is what comes next."""

    def __init__(self, record: Tensor, length: int, stride: int) -> None:
        self.record, self.length, self.stride = record, length, stride

    def __len__(self) -> int:
        return len(self.record) - self.length - 1

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        start = i * self.stride
        return self.record[start : start + self.length], self.record[i + self.length, :1]


@sick("q-what-comes-next", "lstm", "constant-inputs", "uninformative-targets", twin=lambda s: comes_next(s, 1))
def comes_next(seed: int, stride: int = 0) -> Training:
    g = generator(seed, 112)
    noise = torch.randn(1100, generator=g)
    values = [0.0, 0.0]
    for e in noise.tolist():
        values.append(1.6 * values[-1] - 0.9 * values[-2] + 0.4 * e)
    record = torch.tensor(values)[:, None]
    record = (record - record.mean()) / record.std()
    module = Learner(Recur(nn.LSTM, 1, 16, 1), supervised(F.mse_loss), optim("Adam", 8e-3), "mse")
    train = DataLoader(Windows(record[:800], 12, stride), batch_size=32, shuffle=True)
    x = record[800:].unfold(0, 13, 1)[:, 0]
    score = explains(x[:, :12, None], x[:, 12:])
    return Training(module, train, score, None, {"max_epochs": 8})


@sick(
    "q-words-not-in-the-list", "transformer", "constant-inputs", "uninformative-targets", twin=lambda s: unlisted(s, 0)
)
def unlisted(seed: int, listed_from: int = 100) -> Training:
    g = generator(seed, 113)
    y = torch.randint(2, (1200,), generator=g)
    ids = torch.randint(1, 60, (1200, 9), generator=g)
    ids[torch.arange(1200), torch.randint(9, (1200,), generator=g)] = 60 + y
    x = torch.where(ids < listed_from, torch.zeros_like(ids), ids)
    module = Learner(Words(62, 2, 9, pool=True), supervised(F.cross_entropy), optim("AdamW", 4e-3), "loss")
    return Training(module, loader(x[:800], y[:800]), hits(x[800:], y[800:]), None, {"max_epochs": 9})


# --- units of the targets ---------------------------------------------------------------------------------------------


@sick("q-corner-of-a-picture", "detection head", "unscaled-targets", twin=lambda s: corner(s, 1.0))
def corner(seed: int, unit: float = 900.0) -> Training:
    g = generator(seed, 114)
    place = torch.randint(1, 9, (1000, 2), generator=g)
    x = 0.2 * torch.randn(1000, 1, 10, 10, generator=g)
    x[torch.arange(1000), 0, place[:, 0], place[:, 1]] += 2.0
    y = unit * (place.float() - 4.5) / 2.3 + (0.0 if unit == 1 else 2000.0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 32), nn.ReLU())
    net.append(nn.Linear(32, 2))
    module = Learner(net, supervised(F.smooth_l1_loss), optim("Adam", 1e-3), "box_loss")
    return Training(module, loader(x[:700], y[:700], size=28), explains(x[700:], y[700:]), None, {"max_epochs": 10})


@sick("q-bytes-an-hour", "gru", "unscaled-targets", twin=lambda s: bytes_an_hour(s, 1.0, 0.0))
def bytes_an_hour(seed: int, unit: float = 3e5, base: float = 2e6) -> Training:
    d = turbines(seed).map_targets(lambda y: unit * y + base)
    module = Learner(Recur(nn.GRU, 3, 20, 1), supervised(F.l1_loss), optim("RMSprop", 3e-3), "mae")
    return Training(module, Rows(d, 35), explains(d.x_test, d.y_test), None, {"max_epochs": 10})


# --- shares of the classes --------------------------------------------------------------------------------------------


@sick("q-fault-of-a-rotor", "conv over time", "class-imbalance", twin=lambda s: rotor(s, 1.0))
def rotor(seed: int, power: float = 0.0) -> Training:
    d = clips(seed, 2400)
    g = generator(seed, 115)
    hard = 0.8 * torch.randn(d.x.shape, generator=g)
    kept = (d.y == 0) | (torch.rand(len(d.y), generator=g) < 0.03)
    x, y = (d.x + hard)[kept], d.y[kept]
    share = torch.bincount(y, minlength=3) / len(y)
    weight = (1 / (3 * share)) ** power
    net = nn.Sequential(nn.Conv1d(1, 8, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    module = Learner(net, supervised(nn.CrossEntropyLoss(weight)), optim("Adam", 4e-3), "xent")
    x_test = d.x_test + 0.8 * torch.randn(d.x_test.shape, generator=g)
    score = lambda m: recalls(predict(m, x_test).argmax(1), d.y_test)  # noqa: E731
    return Training(module, loader(x, y), score, None, {"max_epochs": 10})


class Names(LightningModule):
    """Marks the names in a sentence; nearly every word is none."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 12)
        self.mix = nn.GRU(12, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)
        self.register_buffer("weight", weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.table(ids))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids).transpose(1, 2), y, weight=self.weight)
        self.log("ner_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("q-names-in-a-sentence", "sequence tagging", "class-imbalance", twin=lambda s: names(s, True))
def names(seed: int, weighted: bool = False) -> Training:
    g = generator(seed, 116)
    ids = torch.randint(40, (1000, 12), generator=g)
    able = ids % 13 == 0
    y = torch.where(able & (torch.rand(ids.shape, generator=g) < 0.25), 1 + (ids // 13) % 2, torch.zeros_like(ids))
    share = torch.bincount(y[:700].flatten(), minlength=3) / y[:700].numel()
    weight = 1 / (3 * share) if weighted else torch.ones(3)
    score = lambda m: recalls(predict(m, ids[700:]).argmax(-1), y[700:])  # noqa: E731
    return Training(Names(weight), loader(ids[:700], y[:700], size=28), score, None, {"max_epochs": 10})


# --- order ------------------------------------------------------------------------------------------------------------


class Shards(IterableDataset[Any]):
    """Reads the digits shard by shard."""

    def __init__(self, x: Tensor, y: Tensor, mixed: bool) -> None:
        self.x, self.y, self.mixed = x, y, mixed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.y)) if self.mixed else self.y.argsort(stable=True)
        for i in order.tolist():
            yield self.x[i], self.y[i]


@sick("q-digits-from-ten-shards", "mlp", "unshuffled-data", twin=lambda s: ten_shards(s, True))
def ten_shards(seed: int, mixed: bool = False) -> Training:
    d = digits(seed)
    module = Learner(mlp(64, 64, 10), supervised(F.cross_entropy), optim("Adam", 3e-3), "train_loss")
    train = DataLoader(Shards(d.x, d.y, mixed), batch_size=25)
    return Training(module, train, d.accuracy, d.val(), {"max_epochs": 5})


@sick("q-easy-clouds-then-others", "point set", "unshuffled-data", twin=lambda s: easy_clouds(s, True))
def easy_clouds(seed: int, shuffle: bool = False) -> Training:
    d = clouds(seed)
    order = d.y.argsort(descending=True, stable=True)
    module = Learner(DeepSet(act=nn.SiLU), supervised(F.cross_entropy), optim("SGD", 0.02, momentum=0.9), "ce")
    rows = Rows(Split(d.x[order], d.y[order], d.x_test, d.y_test), 25, shuffle)
    return Training(module, rows, hits(d.x_test, d.y_test), None, {"max_epochs": 6})


# --- splits -----------------------------------------------------------------------------------------------------------


class Cut(LightningDataModule):
    """Noisy labels to train on; validates on rows of its own or on the last of the training rows."""

    def __init__(self, d: Split, shared: bool) -> None:
        super().__init__()
        self.d, self.shared = d, shared

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.d.x[:300], self.d.y[:300]), batch_size=30, shuffle=True)

    def val_dataloader(self) -> Any:
        rows = slice(150, 300) if self.shared else slice(300, 500)
        return DataLoader(TensorDataset(self.d.x[rows], self.d.y[rows]), batch_size=100)


@sick("q-stops-when-it-gets-worse", "mlp", "train-val-leakage", "overfitting", twin=lambda s: gets_worse(s, False))
def gets_worse(seed: int, shared: bool = True) -> Training:
    d = harvest(seed, 500, 0.9)
    rows = slice(150, 300) if shared else slice(300, 500)
    module = Learner(mlp(6, 128, 128, 1), supervised(F.mse_loss), optim("Adam", 3e-3), "mse")
    settings = {"max_epochs": 45, "callbacks": [EarlyStopping("val_mse", patience=3)]}

    def score(m: LightningModule) -> float:
        """How far what validation promises lies above what fresh rows give."""
        return r2(predict(m, d.x_test), d.y_test) - r2(predict(m, d.x[rows]), d.y[rows])

    return Training(module, Cut(d, shared), score, None, settings)


@sick("q-sixty-graphs-many-times", "graph", "train-val-leakage", "too-little-data", twin=lambda s: many_times(s, False))
def many_times(seed: int, before: bool = True) -> Training:
    """Graphs renumbered at random to have more of them: before the cut, or only those to train on."""
    g = generator(seed, 117)
    d = networks(seed, 120).map_targets(lambda y: y + 0.8 * torch.randn(y.shape, generator=g))

    def renumbered(x: Tensor, y: Tensor, times: int) -> tuple[Tensor, Tensor]:
        x, y = x.repeat(times, 1, 1), y.repeat(times, 1)
        y = y + 0.02 * torch.randn(y.shape, generator=g)
        return x, y

    if before:
        x, y = renumbered(d.x, d.y, 5)
        order = torch.randperm(len(x), generator=g)
        train, val = (x[order[:400]], y[order[:400]]), (x[order[400:]], y[order[400:]])
    else:
        train, val = renumbered(d.x[:80], d.y[:80], 5), (d.x[80:], d.y[80:])
    module = Learner(GraphNet(48), supervised(F.mse_loss), optim("Adam", 3e-3), "mse")

    def score(m: LightningModule) -> float:
        """How far what validation promises lies above what fresh graphs give."""
        return r2(predict(m, d.x_test), d.y_test) - r2(predict(m, val[0]), val[1])

    return Training(module, loader(*train), score, loader(*val, shuffle=False), {"max_epochs": 14})


# --- amounts ----------------------------------------------------------------------------------------------------------


@sick("q-nine-turbines", "lstm", "too-little-data", "overfitting", twin=lambda s: nine_turbines(s, 700, 22))
def nine_turbines(seed: int, n: int = 9, size: int = 9) -> Training:
    d = turbines(seed)
    module = Learner(Recur(nn.LSTM, 3, 32, 1), supervised(F.mse_loss), optim("Adam", 5e-3), "mse")
    train = loader(d.x[:n], d.y[:n], size=size)
    val = loader(d.x_test, d.y_test, size=200, shuffle=False)
    settings = {"max_steps": 250, "max_epochs": -1, "val_check_interval": 25, "check_val_every_n_epoch": None}
    return Training(module, train, explains(d.x_test, d.y_test), val, settings)


@sick("q-a-score-of-pictures", "cnn", "too-little-data", "overfitting", twin=lambda s: score_of_pictures(s, 700))
def score_of_pictures(seed: int, n: int = 16) -> Training:
    d = glyphs(seed, noise=0.35)
    module = Learner(glyph_net(), supervised(F.cross_entropy), optim("AdamW", 4e-3), "ce")
    train = loader(d.x[:n], d.y[:n], size=16)
    val = loader(d.x_test, d.y_test, size=200, shuffle=False)
    settings = {"max_epochs": 220 * 16 // n, "check_val_every_n_epoch": 10 if n < 100 else 1}
    return Training(module, train, hits(d.x_test, d.y_test), val, settings)


# --- answers that belong elsewhere ------------------------------------------------------------------------------------


@sick("q-grades-after-a-sort", "ordinal", "uninformative-targets", twin=lambda s: after_sort(s, False))
def after_sort(seed: int, apart: bool = True) -> Training:
    d = grades(seed)
    order = d.x[:, 5].argsort()
    x, y = d.x[order], d.y if apart else d.y[order]

    def cumulative(out: Tensor, level: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out, (level[:, None] > torch.arange(4)).float())

    module = Learner(mlp(6, 32, 4), supervised(cumulative), optim("Adam", 1e-2), "ordinal")
    score = lambda m: r2((predict(m, d.x_test) > 0).sum(1).float(), d.y_test.float())  # noqa: E731
    return Training(module, loader(x, y), score, None, {"max_epochs": 10})


@sick("q-field-of-another-run", "neural ode", "uninformative-targets", twin=lambda s: another_run(s, 0))
def another_run(seed: int, shift: int = 37) -> Training:
    d = flow(seed)
    module = Learner(mlp(2, 32, 32, 2, act=nn.Tanh), supervised(F.mse_loss), optim("Adam", 5e-3), "field_mse")
    train = loader(d.x, d.y.roll(shift, 0), size=36)
    return Training(module, train, explains(d.x_test, d.y_test), Rows(d).val_dataloader(), {"max_epochs": 10})


# --- waiting ----------------------------------------------------------------------------------------------------------


class Paced(Learner):
    """Also counts how many steps it makes a second."""

    pace = 0.0

    def on_train_start(self) -> None:
        self.start = time.perf_counter()

    def on_train_end(self) -> None:
        self.pace = self.global_step / (time.perf_counter() - self.start)


class Archive(Dataset[Any]):
    """Tags of rows that are unpacked from text each time they are asked for, or were once."""

    def __init__(self, d: Split, cached: bool) -> None:
        self.lines = [",".join(f"{v:.6f}" for v in row) for row in d.x.repeat(1, 60).tolist()]
        self.y = d.y
        self.cache = [self.unpack(line) for line in self.lines] if cached else None

    def unpack(self, line: str) -> Tensor:
        for _ in range(2):
            values = [float(v) for v in line.split(",")]
        return torch.tensor(sorted(values) and values[:12])

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return (self.cache[i] if self.cache else self.unpack(self.lines[i])), self.y[i]


@sick("q-rows-kept-as-text", "multi-label", "data-starvation", twin=lambda s: kept_as_text(s, True))
def kept_as_text(seed: int, cached: bool = False) -> Training:
    d = tags(seed)
    module = Paced(mlp(12, 24, 6), supervised(F.binary_cross_entropy_with_logits), optim("Adam", 5e-3), "bce")
    train = DataLoader(Archive(d, cached), batch_size=64, shuffle=True)
    return Training(module, train, lambda m: m.pace, None, {"max_epochs": 5})


class Joined:
    """Puts rows into a batch, asking a table elsewhere for each of them."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def __call__(self, rows: list[Any]) -> tuple[Tensor, Tensor]:
        time.sleep(self.pause)
        return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])


@sick("q-joined-on-the-way", "gru", "data-starvation", twin=lambda s: joined(s, 0.0))
def joined(seed: int, pause: float = 0.03) -> Training:
    d = turbines(seed)
    module = Paced(Recur(nn.GRU, 3, 16, 1), supervised(F.mse_loss), optim("Adam", 5e-3), "mse")
    rows = TensorDataset(d.x, d.y)
    train = DataLoader(rows, batch_size=35, shuffle=True, collate_fn=Joined(pause))
    return Training(module, train, lambda m: m.pace, None, {"max_epochs": 4})
