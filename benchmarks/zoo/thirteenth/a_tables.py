"""Sick trainings whose rows are wrong, too few, out of order, shared between the parts, or nearly all of one class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import generator, motifs, predict
from benchmarks.zoo.thirteenth.a_common import KeepBest, Tabular, balanced_accuracy, batches, explained, hit_rate, mlp


class PulseNet(nn.Module):
    """Two convolutions over a short recording."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 16, 7, padding=3)
        self.conv2 = nn.Conv1d(16, 16, 5, padding=2)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv1(x.transpose(1, 2)))
        return self.fc(F.relu(self.conv2(h)).amax(-1))


def recordings(seed: int, overflow: bool) -> Training:
    task = motifs(seed, n=1600)
    x = task.x.clone()
    if overflow:
        g = generator(seed, 120)
        rows = torch.cat([torch.tensor([300, 700]), torch.randint(1600, (6,), generator=g)])
        start = torch.randint(24, (len(rows),), generator=g)
        for row, first in zip(rows.tolist(), start.tolist(), strict=True):
            x[row, first : first + 4] = 32767.0
    module = Tabular(PulseNet(4), F.cross_entropy, lambda p: torch.optim.SGD(p, 0.03, momentum=0.9), name="loss")
    return Training(module, batches(x, task.y, size=32), task.accuracy, val=task.val(), trainer={"max_epochs": 8})


@sick("ga-converter-overflow-samples", "signal", "corrupt-samples", twin=lambda seed: recordings(seed, False))
def converter_overflow(seed: int) -> Training:
    return recordings(seed, True)


class PriceModel(LightningModule):
    """Price of a flat, by its size, its age and its quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.quarter = nn.Embedding(6, 4)
        self.net = mlp(8, 32, 1)

    def forward(self, batch: list[Tensor]) -> Tensor:
        return self.net(torch.cat([batch[0], self.quarter(batch[1])], 1)).squeeze(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = (self(batch) - batch[2]).square().mean()
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def flats(seed: int, cents: bool) -> Training:
    g = generator(seed, 121)
    n = 2000
    numbers = torch.randn(n, 4, generator=g)
    quarter = torch.randint(6, (n,), generator=g)
    level = torch.linspace(-0.8, 0.8, 6)[torch.randperm(6, generator=g)]
    price = 1.5 + 0.7 * numbers[:, 0] - 0.4 * numbers[:, 1].abs() + level[quarter] + 0.2 * torch.randn(n, generator=g)
    cut = 1500
    train_price = price[:cut].clone()
    if cents:
        train_price[torch.randperm(cut, generator=g)[:10]] *= 100
    return Training(
        PriceModel(),
        batches(numbers[:cut], quarter[:cut], train_price, size=32),
        explained([numbers[cut:], quarter[cut:]], price[cut:]),
        trainer={"max_epochs": 8},
    )


@sick("ga-few-prices-in-cents", "tabular", "corrupt-samples", twin=lambda seed: flats(seed, False))
def few_in_cents(seed: int) -> Training:
    return flats(seed, True)


class DefectMap(LightningModule):
    """Marks the pixels of a surface that are scratched."""

    def __init__(self, pos_weight: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        self.register_buffer("pos_weight", torch.tensor(pos_weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, mask = batch
        loss = F.binary_cross_entropy_with_logits(self(image), mask, pos_weight=self.pos_weight)
        self.log("bce", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image, mask = batch
        self.log("val_pixel_acc", ((self(image) > 0) == (mask > 0.5)).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def surfaces(seed: int, pos_weight: float) -> Training:
    g = generator(seed, 122)
    n, side = 480, 20
    seeds = (torch.rand(n, 1, side, side, generator=g) < 0.0025).float()
    mask = F.max_pool2d(seeds, (1, 5), 1, (0, 2))
    image = 1.2 * mask + torch.randn(n, 1, side, side, generator=g)
    cut = 360

    def score(module: LightningModule) -> float:
        marked = predict(module, image[cut:]) > 0
        return balanced_accuracy(marked.flatten().long(), mask[cut:].flatten().long())

    return Training(
        DefectMap(pos_weight),
        batches(image[:cut], mask[:cut], size=12),
        score,
        val=batches(image[cut:], mask[cut:], size=60, shuffle=False),
        trainer={"max_epochs": 8},
    )


@sick("ga-scratches-one-pixel-in-a-hundred", "segmentation", "class-imbalance", twin=lambda seed: surfaces(seed, 70.0))
def scratches(seed: int) -> Training:
    return surfaces(seed, 1.0)


class Tickets(LightningDataModule):
    """Words of support tickets and the team that each went to."""

    def __init__(self, seed: int, weighted: bool) -> None:
        super().__init__()
        g = generator(seed, 123)
        n, teams = 7000, 4
        share = torch.tensor([0.955, 0.015, 0.015, 0.015])
        team = torch.multinomial(share, n, replacement=True, generator=g)
        team[6000:] = torch.randint(teams, (1000,), generator=g)
        own = torch.randint(10, (n, 12), generator=g) + 10 * team[:, None]
        words = torch.where(torch.rand(n, 12, generator=g) < 0.28, own, torch.randint(60, (n, 12), generator=g))
        self.train_set = TensorDataset(words[:6000], team[:6000])
        self.words, self.team = words[6000:], team[6000:]
        self.weighted = weighted

    def train_dataloader(self) -> DataLoader[Any]:
        if not self.weighted:
            return DataLoader(self.train_set, 50, shuffle=True)
        team = self.train_set.tensors[1]
        weight = (1 / torch.bincount(team).float())[team]
        return DataLoader(self.train_set, 50, sampler=WeightedRandomSampler(weight.tolist(), len(team)))


def tickets(seed: int, weighted: bool) -> Training:
    data = Tickets(seed, weighted)
    net = nn.Sequential(nn.EmbeddingBag(60, 16), nn.Linear(16, 4))
    module = Tabular(net, F.cross_entropy, lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=1e-2), name="ticket_loss")

    def score(m: LightningModule) -> float:
        return balanced_accuracy(predict(m, data.words).argmax(1), data.team)

    return Training(module, data, score, trainer={"max_epochs": 3})


@sick("ga-tickets-mostly-first-line", "text", "class-imbalance", twin=lambda seed: tickets(seed, True))
def first_line(seed: int) -> Training:
    return tickets(seed, False)


class Keywords(LightningDataModule):
    """One dataset a folder, joined; each folder holds one spoken word."""

    def __init__(self, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.task = motifs(seed, n=1600)
        self.shuffle = shuffle

    def setup(self, stage: str) -> None:
        folders = [TensorDataset(self.task.x[self.task.y == k], self.task.y[self.task.y == k]) for k in range(4)]
        self.words: Dataset[Any] = ConcatDataset(folders)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.words, batch_size=16, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.task.val()


def keywords(seed: int, shuffle: bool) -> Training:
    data = Keywords(seed, shuffle)
    module = Tabular(PulseNet(4), F.cross_entropy, lambda p: torch.optim.Adam(p, lr=3e-3), name="kws")
    return Training(module, data, data.task.accuracy, trainer={"max_epochs": 4})


@sick("ga-folders-joined-in-order", "audio", "unshuffled-data", twin=lambda seed: keywords(seed, True))
def folders_joined(seed: int) -> Training:
    return keywords(seed, False)


class Reviews(Dataset[tuple[Tensor, Tensor]]):
    """Token lists of many lengths."""

    def __init__(self, texts: list[Tensor], labels: Tensor) -> None:
        self.texts, self.labels = texts, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.texts[i], self.labels[i]


def pad_reviews(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return nn.utils.rnn.pad_sequence([r[0] for r in rows], batch_first=True), torch.stack([r[1] for r in rows])


class LengthBatches:
    """Batches of texts of like length, so that little padding is needed."""

    def __init__(self, lengths: list[int], size: int, generator: torch.Generator | None) -> None:
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        self.batches = [order[i : i + size] for i in range(0, len(order), size)]
        self.order, self.size, self.generator = order, size, generator

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        if self.generator is None:
            yield from self.batches
            return
        shuffled = torch.randperm(len(self.order), generator=self.generator).tolist()
        for i in range(0, len(shuffled), self.size):
            yield shuffled[i : i + self.size]


class ReviewNet(LightningModule):
    """Mean of word vectors, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(90, 24, padding_idx=0)
        self.fc = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, text: Tensor) -> Tensor:
        present = (text > 0).float()[..., None]
        return self.fc((self.words(text) * present).sum(1) / present.sum(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("review_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def reviews(seed: int, mixed: bool) -> Training:
    g = generator(seed, 124)
    n = 1600
    label = torch.randint(4, (n,), generator=g)
    length = 6 + 6 * label + torch.randint(8, (n,), generator=g)
    test_length = torch.randint(6, 30, (n,), generator=g)
    texts = []
    for i in range(n):
        size = int(length[i] if i < 1200 else test_length[i])
        own = torch.randint(20, (size,), generator=g) + 1 + 20 * label[i]
        texts.append(torch.where(torch.rand(size, generator=g) < 0.33, own, torch.randint(1, 90, (size,), generator=g)))
    sampler = LengthBatches([len(t) for t in texts[:1200]], 16, generator(seed, 125) if mixed else None)
    train = DataLoader(Reviews(texts[:1200], label[:1200]), batch_sampler=sampler, collate_fn=pad_reviews)
    test = nn.utils.rnn.pad_sequence(texts[1200:], batch_first=True)
    return Training(ReviewNet(), train, hit_rate(test, label[1200:]), trainer={"max_epochs": 4})


@sick("ga-bucketed-by-length-in-order", "text", "unshuffled-data", twin=lambda seed: reviews(seed, True))
def bucketed_in_order(seed: int) -> Training:
    return reviews(seed, False)


def visits(seed: int, by_patient: bool) -> Training:
    """Patients merged with their visits, which repeats each patient's row."""
    g = generator(seed, 126)
    patients = 160
    x = torch.randn(patients + 1000, 12, generator=g)
    chance = torch.sigmoid(1.6 * x[:, 0] - 1.2 * x[:, 1])
    y = (torch.rand(patients + 1000, generator=g) < chance).long()
    count = torch.randint(3, 7, (patients,), generator=g)
    patient = torch.arange(patients).repeat_interleave(count)
    if by_patient:
        train_rows, val_rows = patient[patient < 120], patient[patient >= 120]
    else:
        order = torch.randperm(len(patient), generator=g)
        cut = int(0.75 * len(patient))
        train_rows, val_rows = patient[order[:cut]], patient[order[cut:]]
    module = Tabular(mlp(12, 128, 128, 2), F.cross_entropy, lambda p: torch.optim.Adam(p, 2e-3), name="loss")

    def score(m: LightningModule) -> float:
        return -F.cross_entropy(predict(m, x[patients:]), y[patients:]).item()

    return Training(
        module,
        batches(x[train_rows], y[train_rows], size=32),
        score,
        val=batches(x[val_rows], y[val_rows], size=256, shuffle=False),
        trainer={"max_epochs": 25, "callbacks": [KeepBest("val_loss")]},
    )


@sick("ga-split-after-visit-merge", "tabular", "train-val-leakage", twin=lambda seed: visits(seed, True))
def visit_merge(seed: int) -> Training:
    return visits(seed, False)


class Spectra(LightningDataModule):
    """Spectra of alloys; each loader makes its part of the split when it is asked for."""

    def __init__(self, x: Tensor, y: Tensor, train_seed: int, val_seed: int) -> None:
        super().__init__()
        self.whole = TensorDataset(x, y)
        self.train_seed, self.val_seed = train_seed, val_seed

    def train_dataloader(self) -> DataLoader[Any]:
        part, _ = random_split(self.whole, [0.8, 0.2], torch.Generator().manual_seed(self.train_seed))
        return DataLoader(part, 20, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        _, part = random_split(self.whole, [0.8, 0.2], torch.Generator().manual_seed(self.val_seed))
        return DataLoader(part, 64)


class AlloyNet(LightningModule):
    """Hardness from a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(24, 128, 128, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def alloys(seed: int, val_seed: int) -> Training:
    g = generator(seed, 127)
    n = 300
    x = torch.randn(n + 1000, 24, generator=g)
    weight = torch.randn(24, generator=g)
    y = x @ weight / weight.norm() + 1.1 * torch.randn(n + 1000, generator=g)
    data = Spectra(x[:n], y[:n], 7, val_seed)
    return Training(
        AlloyNet(), data, explained(x[n:], y[n:]), trainer={"max_epochs": 40, "callbacks": [KeepBest("val/mse")]}
    )


@sick("ga-split-drawn-twice", "spectra", "train-val-leakage", twin=lambda seed: alloys(seed, 7))
def split_drawn_twice(seed: int) -> Training:
    return alloys(seed, 8)


class TextureNet(LightningModule):
    """Kinds of woven cloth from small patches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten()
        )
        self.fc = nn.Linear(24 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def cloth(seed: int, stream: int, n: int) -> tuple[Tensor, Tensor]:
    """Patches of five weaves at random offsets, with noise, and the weave of each."""
    g = generator(seed, stream)
    y = torch.randint(5, (n,), generator=g)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.tensor([[0.6, 0.6], [1.2, 0.4], [0.4, 1.2], [1.6, 1.6], [0.9, -0.9]])[y]
    phase = 6.28 * torch.rand(n, 2, 1, 1, generator=g)
    x = torch.sin(waves[:, 0, None, None] * row + waves[:, 1, None, None] * column + phase[:, 0])
    return (x + 0.7 * torch.randn(n, 12, 12, generator=g))[:, None], y


def cloth_subset(seed: int, by_batches: bool) -> Training:
    x, y = cloth(seed, 128, 1400)
    whole = TensorDataset(x[:900], y[:900])
    loader = DataLoader(whole, 50, shuffle=True)
    part = Subset(whole, range(len(loader) if by_batches else len(whole)))
    epochs = 200 if by_batches else 11
    return Training(
        TextureNet(),
        DataLoader(part, 50, shuffle=True),
        hit_rate(x[900:], y[900:]),
        val=batches(x[900:1100], y[900:1100], size=100, shuffle=False),
        trainer={"max_epochs": epochs, "check_val_every_n_epoch": 20 if by_batches else 1},
    )


@sick(
    "ga-subset-of-len-loader", "images", "too-little-data", "overfitting", twin=lambda seed: cloth_subset(seed, False)
)
def len_loader(seed: int) -> Training:
    return cloth_subset(seed, True)


def joined(seed: int, keep: int) -> Training:
    """Soil samples joined with the laboratory's table; `keep` rows are found in both."""
    g = generator(seed, 129)
    x = torch.randn(2000, 10, generator=g)
    y = x[:, 0] + torch.sin(1.5 * x[:, 1]) + 0.5 * x[:, 2] * x[:, 3] + 0.2 * torch.randn(2000, generator=g)
    y = (y - y.mean()) / y.std()
    module = Tabular(
        mlp(10, 48, 1), lambda p, t: F.mse_loss(p.squeeze(-1), t), lambda p: torch.optim.Adam(p, 5e-3), name="mse"
    )
    steps = 280
    return Training(
        module,
        batches(x[:keep], y[:keep], size=32),
        explained(x[1500:], y[1500:]),
        val=batches(x[1200:1500], y[1200:1500], size=300, shuffle=False),
        trainer={"max_steps": steps, "max_epochs": -1, "check_val_every_n_epoch": 1 if keep > 100 else 14},
    )


@sick("ga-inner-join-left-few", "tabular", "too-little-data", "overfitting", twin=lambda seed: joined(seed, 1200))
def inner_join(seed: int) -> Training:
    return joined(seed, 22)


def sorted_files(seed: int, numeric: bool) -> Training:
    """Images read in the order of their file names, labels from a table in the order of their numbers."""
    x, y = cloth(seed, 130, 1400)
    names = [f"patch_{i}.png" for i in range(900)]
    order = [int(name[6:-4]) for name in (names if numeric else sorted(names))]
    return Training(
        TextureNet(),
        batches(x[torch.tensor(order)], y[:900], size=25),
        hit_rate(x[900:], y[900:]),
        val=batches(x[900:1100], y[900:1100], size=100, shuffle=False),
        trainer={"max_epochs": 7},
    )


@sick("ga-names-sorted-as-text", "images", "uninformative-targets", twin=lambda seed: sorted_files(seed, True))
def names_sorted(seed: int) -> Training:
    return sorted_files(seed, False)


class Collate:
    """Longest text first, as packing asks."""

    def __init__(self, labels_too: bool) -> None:
        self.labels_too = labels_too

    def __call__(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        labels = torch.stack([label for _, label in rows])
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        texts = [rows[i][0] for i in order]
        return {
            "text": nn.utils.rnn.pad_sequence(texts, batch_first=True),
            "length": torch.tensor([len(t) for t in texts]),
            "label": labels[order] if self.labels_too else labels,
        }


class PackedGRU(LightningModule):
    """A recurrence over packed texts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(batch["text"]), batch["length"].cpu(), batch_first=True)
        return self.head(self.gru(packed)[1][-1])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        out = self(batch)
        self.log("acc", (out.argmax(-1) == batch["label"]).float().mean(), prog_bar=True)
        return F.cross_entropy(out, batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def packed(seed: int, labels_too: bool) -> Training:
    g = generator(seed, 131)
    n = 1200
    label = torch.randint(3, (n,), generator=g)
    length = torch.randint(4, 15, (n,), generator=g).tolist()
    texts = []
    for i in range(n):
        own = torch.randint(12, (length[i],), generator=g) + 1 + 16 * label[i]
        noise = torch.randint(1, 50, (length[i],), generator=g)
        texts.append(torch.where(torch.rand(length[i], generator=g) < 0.5, own, noise))
    train = DataLoader(Reviews(texts[:900], label[:900]), 32, shuffle=True, collate_fn=Collate(labels_too))
    test = Collate(True)([(texts[i], label[i]) for i in range(900, n)])
    return Training(PackedGRU(), train, hit_rate(test, test["label"]), trainer={"max_epochs": 6})


@sick("ga-sorted-for-packing-labels-not", "text", "uninformative-targets", twin=lambda seed: packed(seed, True))
def labels_not_sorted(seed: int) -> Training:
    return packed(seed, False)
