"""Nine trainings ill in their data or their loss: tags, pointers, spectra, brain waves, couriers, pumps, records, photographs, shards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick

# --- tags of words: a recurrent tagger, padded with nothing, 8 tags ---------------------------------------------------


class Tagger(LightningModule):
    """A two-way GRU that gives each word of a sentence a tag."""

    def __init__(self, words: int, tags: int, normalise: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 24)
        self.context = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(48, tags)
        self.normalise = normalise
        self.criterion = nn.NLLLoss()

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.context(self.words(ids))
        scores = self.tags(states)
        return F.log_softmax(scores, -1) if self.normalise else scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        ids, tags = batch
        return self.criterion(self(ids).flatten(0, 1), tags.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def tagging(seed: int, normalise: bool) -> Training:
    g = data.generator(seed, 141)
    ids = torch.randint(0, 40, (1400, 14), generator=g)
    home = torch.randint(0, 8, (40,), generator=g)
    other = (home + torch.randint(1, 8, (40,), generator=g)) % 8
    before = torch.cat([torch.zeros(1400, 1, dtype=torch.int64), ids[:, :-1]], 1)
    tags = torch.where((ids < 16) & (before % 2 == 1), other[ids], home[ids])
    cut = data.Split(ids[:1000], tags[:1000], ids[1000:], tags[1000:])
    return Training(Tagger(40, 8, normalise), cut.train(32), cut.accuracy, trainer={"max_steps": 250, "max_epochs": -1})


@sick("pa-tagger-nll", "sequence", "wrong-loss-for-task", twin=lambda seed: tagging(seed, True))
def tagger_nll(seed: int) -> Training:
    return tagging(seed, False)


# --- which of thirty candidates a query means: the attention weights are the answer ----------------------------------


class Pointer(nn.Module):
    """Attention from one query over a list; gives the weights."""

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(columns, width)
        self.key = nn.Linear(columns, width)

    def forward(self, query: Tensor, items: Tensor) -> Tensor:
        scores = (self.key(items) @ self.query(query)[:, :, None]).squeeze(-1)
        return torch.softmax(scores / math.sqrt(self.key.out_features), dim=-1)


class Lookup(LightningModule):
    """Learns to point at the item that a query was made from."""

    def __init__(self, log: bool) -> None:
        super().__init__()
        self.pointer = Pointer(8, 16)
        self.take_log = log

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.pointer(batch["query"], batch["items"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        weights = self(batch)
        if self.take_log:
            loss = F.nll_loss(torch.log(weights + 1e-9), batch["which"])
        else:
            loss = F.cross_entropy(weights, batch["which"])
        self.log("pointing", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


class Rows(Dataset[dict[str, Tensor]]):
    """Named columns of equal length, row by row."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def lookup(seed: int, log: bool) -> Training:
    g = data.generator(seed, 142)
    items = math.sqrt(8) * F.normalize(torch.randn(2400, 30, 8, generator=g), dim=-1)
    which = torch.randint(0, 30, (2400,), generator=g)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
    query = items[torch.arange(2400), which] @ turn + 0.2 * torch.randn(2400, 8, generator=g)
    train = DataLoader(Rows(query=query[:2000], items=items[:2000], which=which[:2000]), 64, shuffle=True)
    test = {"query": query[2000:], "items": items[2000:]}
    return Training(
        Lookup(log),
        train,
        lambda m: data.accuracy(data.predict(m, test), which[2000:]),
        trainer={"max_epochs": 6},
    )


@sick("pa-pointer-weights", "attention", "probabilities-as-logits", twin=lambda seed: lookup(seed, True))
def pointer_weights(seed: int) -> Training:
    return lookup(seed, False)


# --- a concentration from a spectrum, between the limits that the table's summary shows ------------------------------


class Spectrometer(LightningModule):
    """Convolutions over a spectrum; the answer lies between `low` and `high`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 12, 5, stride=2), nn.ReLU(), nn.Conv1d(12, 12, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(12 * 9, 32), nn.ReLU(), nn.Linear(32, 1))
        self.low, self.high = low, high

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(self.head(self.body(spectrum)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        spectrum, amount = batch
        loss = F.mse_loss(self(spectrum), amount)
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        spectrum, amount = batch
        self.log("val/mse", F.mse_loss(self(spectrum), amount))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-4)


def spectra(seed: int, limits: tuple[float, float], margin: float) -> Training:
    g = data.generator(seed, 143)
    amounts = torch.rand(2000, 3, generator=g)
    axis = torch.arange(48.0)
    peaks = torch.stack([torch.exp(-0.5 * ((axis - at) / 3) ** 2) for at in (12.0, 19.0, 33.0)])
    x = amounts @ peaks + 0.03 * torch.randn(2000, 48, generator=g)
    x = (x - x.mean()) / x.std()
    y = amounts[:, :1] * (1 + amounts[:, 2:]) - 0.5 * amounts[:, 1:2]
    y = (y - y.mean()) / y.std()
    cut = data.Split(x[:1500, None], y[:1500], x[1500:, None], y[1500:])
    low, high = torch.quantile(cut.y, torch.tensor(limits)).tolist()
    return Training(
        Spectrometer(low - margin, high + margin), cut.train(50), cut.r2, cut.val(), trainer={"max_epochs": 10}
    )


@sick("pa-spectrum-quartiles", "signal", "output-range-mismatch", twin=lambda seed: spectra(seed, (0.0, 1.0), 0.3))
def spectrum_quartiles(seed: int) -> Training:
    return spectra(seed, (0.25, 0.75), 0.0)


# --- three rhythms in four electrodes, as the recorder's file gives them, in volts -----------------------------------


class Rhythm(LightningModule):
    """Convolutions over time and a mean of the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(4, 16, 9, stride=2),
            nn.ELU(),
            nn.Conv1d(16, 24, 5, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(24, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)}


def rhythms(seed: int, unit: float) -> Training:
    """`unit`: how many of the file's units are one volt."""
    g = data.generator(seed, 144)
    y = torch.randint(0, 3, (1500,), generator=g)
    pace = torch.tensor([4.0, 9.0, 15.0])[y][:, None, None]
    phase = 2 * math.pi * torch.rand(1500, 4, 1, generator=g)
    time = torch.linspace(0, 1, 64)
    wave = torch.sin(2 * math.pi * pace * time + phase)
    volts = 1e-5 * (wave + 0.7 * torch.randn(1500, 4, 64, generator=g))
    cut = data.split(volts * unit, y, seed)
    return Training(Rhythm(), cut.train(45), cut.accuracy, trainer={"max_epochs": 12})


@sick("pa-electrodes-volts", "signal", "unscaled-inputs", twin=lambda seed: rhythms(seed, 1e5))
def electrodes_volts(seed: int) -> Training:
    return rhythms(seed, 1.0)


# --- how long a courier takes: the difference of two time stamps -----------------------------------------------------


class Arrival(LightningModule):
    """Embeddings of courier and district beside three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.courier = nn.Embedding(25, 6)
        self.district = nn.Embedding(12, 6)
        self.net = nn.Sequential(nn.Linear(15, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, order: dict[str, Tensor]) -> Tensor:
        known = [self.courier(order["courier"]), self.district(order["district"]), order["numbers"]]
        return self.net(torch.cat(known, -1)).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.smooth_l1_loss(self(batch), batch["duration"])
        self.log("huber", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-3)


def arrivals(seed: int, scale: bool) -> Training:
    g = data.generator(seed, 145)
    n = 2600
    courier = torch.randint(0, 25, (n,), generator=g)
    district = torch.randint(0, 12, (n,), generator=g)
    numbers = torch.randn(n, 3, generator=g)
    speed, far = torch.randn(25, generator=g), torch.randn(12, generator=g)
    hidden = numbers[:, 0] + 0.5 * numbers[:, 1].abs() + 0.6 * speed[courier] + 0.7 * far[district]
    picked = 3600 * 24 * torch.rand(n, generator=g)
    arrived = picked + 2700 + 500 * hidden + 120 * torch.randn(n, generator=g)
    duration = arrived - picked
    if scale:
        duration = (duration - duration[:2000].mean()) / duration[:2000].std()
    columns = {"courier": courier, "district": district, "numbers": numbers, "duration": duration}
    train = Rows(**{name: column[:2000] for name, column in columns.items()})
    test = {name: column[2000:] for name, column in columns.items()}
    return Training(
        Arrival(),
        DataLoader(train, 64, shuffle=True),
        lambda m: data.r2(data.predict(m, test), test["duration"]),
        trainer={"max_epochs": 10},
    )


@sick("pa-courier-seconds", "tabular", "unscaled-targets", twin=lambda seed: arrivals(seed, True))
def courier_seconds(seed: int) -> Training:
    return arrivals(seed, False)


# --- what is wrong with a pump: six readings and the number of its maker ---------------------------------------------


class Workshop(LightningDataModule):
    """Readings with the maker's number beside them, or spread over one column a maker."""

    def __init__(self, seed: int, spread: bool, makers: int = 16) -> None:
        super().__init__()
        g = data.generator(seed, 146)
        maker = torch.randint(0, makers, (3200,), generator=g)
        readings = torch.randn(3200, 6, generator=g)
        weak = 3.0 * F.one_hot(torch.randint(0, 4, (makers,), generator=g), 4)
        scores = weak[maker] + readings @ torch.randn(6, 4, generator=g) * 0.7
        y = (scores + 0.3 * torch.randn(3200, 4, generator=g)).argmax(-1)
        column = F.one_hot(maker, makers).float() if spread else maker.float()[:, None]
        x = torch.cat([readings, column], -1)
        self.cut = data.Split(x[:2400], y[:2400], x[2400:], y[2400:])

    def train_dataloader(self) -> DataLoader[Any]:
        return self.cut.train(48)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.cut.val()


class Diagnosis(LightningModule):
    """A perceptron with one skip."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.first = nn.Linear(columns, 40)
        self.second = nn.Linear(40, 40)
        self.last = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return self.last(h + F.relu(self.second(h)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        out = self(batch[0])
        self.log_dict({"val_loss": F.cross_entropy(out, batch[1]), "val_acc": data.accuracy(out, batch[1])})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def pumps(seed: int, spread: bool) -> Training:
    module = Workshop(seed, spread)
    return Training(
        Diagnosis(module.cut.x.shape[1]), module, module.cut.accuracy, trainer={"max_epochs": 8, "deterministic": True}
    )


@sick("pa-pump-makers", "tabular", "categorical-as-numeric", twin=lambda seed: pumps(seed, True))
def pump_makers(seed: int) -> Training:
    return pumps(seed, False)


# --- two lists of people: which records are the same person ----------------------------------------------------------


class Matcher(LightningModule):
    """Judges a pair of records by their differences and products; two optimizer calls by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        left, right = pair
        return self.net(torch.cat([(left - right).abs(), left * right], -1)).squeeze(-1)

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor], batch_idx: int) -> Tensor:
        pair, same = batch
        optimizer = self.optimizers()
        loss = F.binary_cross_entropy_with_logits(self(pair), same)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Pairs(Dataset[tuple[tuple[Tensor, Tensor], Tensor]]):
    """Each left record with its right one, and with `others` right records of other people."""

    def __init__(self, left: Tensor, right: Tensor, others: int, g: torch.Generator) -> None:
        n = len(left)
        here = torch.arange(n)
        shift = torch.randint(1, n, (others, n), generator=g)
        self.i = here.repeat(1 + others)
        self.j = torch.cat([here, ((here + shift) % n).flatten()])
        self.left, self.right = left, right

    def __len__(self) -> int:
        return len(self.i)

    def __getitem__(self, k: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        i, j = self.i[k], self.j[k]
        return (self.left[i], self.right[j]), (i == j).float()


def records(seed: int, others: int) -> Training:
    g = data.generator(seed, 147)
    person = torch.randn(2000, 8, generator=g)
    left = person + 0.5 * torch.randn(2000, 8, generator=g)
    right = person + 0.5 * torch.randn(2000, 8, generator=g)
    train = Pairs(left[:1400], right[:1400], others, g)
    a, b = left[1400:], right[1400:]

    def balanced(module: LightningModule) -> float:
        hit = data.predict(module, (a, b)) > 0
        wrong = data.predict(module, (a, b.roll(1, 0))) > 0
        return 0.5 * (hit.float().mean() + 1 - wrong.float().mean()).item()

    return Training(
        Matcher(),
        DataLoader(train, 128, shuffle=True),
        balanced,
        trainer={"max_steps": 240, "max_epochs": -1},
    )


@sick("pa-records-cross-join", "metric", "class-imbalance", twin=lambda seed: records(seed, 1))
def records_cross_join(seed: int) -> Training:
    return records(seed, 40)


# --- where the bright spot is: a few photographs were written by a machine of the other byte order -------------------


class Finder(LightningModule):
    """Convolutions and a linear map to a point in the unit square."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.point = nn.Sequential(nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, image: Tensor) -> Tensor:
        return self.point(self.eyes(image))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["image"]), batch["point"])
        self.log("distance", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def photographs(seed: int, native: bool) -> Training:
    g = data.generator(seed, 148)
    n = 1800
    point = 2 * torch.rand(n, 2, generator=g) - 1
    axis = torch.linspace(-1, 1, 12)
    far = (axis[None, :, None] - point[:, 0, None, None]) ** 2 + (axis[None, None, :] - point[:, 1, None, None]) ** 2
    light = 200 * torch.exp(-far / 0.08) + 25 * torch.rand(n, 12, 12, generator=g)
    stored = light.round().to(torch.int64)  # unsigned, 32 bits in the file
    if not native:
        foreign = torch.randperm(1500, generator=g)[:8]
        stored[foreign] = stored[foreign] << 24  # all values lie in the lowest of the four bytes
    image = (stored.float() / 255)[:, None]
    train = DataLoader(Rows(image=image[:1500], point=point[:1500]), 30, shuffle=True)
    return Training(
        Finder(),
        train,
        lambda m: data.r2(data.predict(m, image[1500:]), point[1500:]),
        trainer={"max_epochs": 6},
    )


@sick("pa-byte-order", "images", "corrupt-samples", twin=lambda seed: photographs(seed, True))
def byte_order(seed: int) -> Training:
    return photographs(seed, False)


# --- what a message is about: one shard a subject, read one after another --------------------------------------------


class Shards(IterableDataset[tuple[Tensor, Tensor]]):
    """Streams shards; `mix` draws the next row from all that is left of any of them."""

    def __init__(self, shards: list[TensorDataset], mix: bool, seed: int) -> None:
        self.shards, self.mix = shards, mix
        self.g = data.generator(seed, 1490)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        places = [(s, r) for s, shard in enumerate(self.shards) for r in range(len(shard))]
        if self.mix:
            places = [places[k] for k in torch.randperm(len(places), generator=self.g).tolist()]
        for shard, row in places:
            yield self.shards[shard][row]


class Subject(LightningModule):
    """A mean of word vectors and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(200, 24, mode="mean")
        self.head = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 5))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        ids, subject = batch
        loss = F.cross_entropy(self(ids), subject)
        self.log("xent", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def messages(seed: int, mix: bool) -> Training:
    g = data.generator(seed, 149)
    subject = torch.arange(5).repeat_interleave(500)
    usual = torch.softmax(0.8 * torch.randn(5, 200, generator=g), -1)
    ids = torch.multinomial(usual[subject], 20, replacement=True, generator=g)
    kept = [torch.nonzero(subject == s).flatten() for s in range(5)]
    shards = [TensorDataset(ids[rows[:400]], subject[rows[:400]]) for rows in kept]
    test = torch.cat([rows[400:] for rows in kept])
    return Training(
        Subject(),
        DataLoader(Shards(shards, mix, seed), batch_size=25),
        lambda m: data.accuracy(data.predict(m, ids[test]), subject[test]),
        trainer={"max_epochs": 4},
    )


@sick("pa-subject-shards", "text", "unshuffled-data", twin=lambda seed: messages(seed, True))
def subject_shards(seed: int) -> Training:
    return messages(seed, False)
