"""Sick trainings whose targets, samples or their order are ill: units, merges, sorting, leaks, rare classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.eleventh.a_common import (
    Network,
    Plain,
    balanced,
    dense,
    loader,
    ratings,
    reviews,
    steps,
)


class Price(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = dense(8, 64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def price(seed: int, *, dollars: bool = False) -> Training:
    d = data.regression(seed, r2=0.93)
    if dollars:
        d = d.map_targets(lambda y: 240_000 + 70_000 * y)
    return Training(Price(), d.train(64), d.r2, d.val(), steps(350))


@sick("ea-price-in-dollars", "tabular", "unscaled-targets", twin=price)
def price_dollars(seed: int) -> Training:
    return price(seed, dollars=True)


class Opinions(LightningModule):
    """Twenty people said which topic a text has; their votes are the target."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(80, 32, padding_idx=0)
        self.out = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, votes = batch
        loss = F.cross_entropy(self(ids), votes)
        self.log("vote_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def opinions(seed: int, *, shares: bool = True) -> Training:
    d = reviews(seed)
    g = data.generator(seed, 51)
    belief = 0.7 * F.one_hot(d.y, 4) + 0.075
    votes = F.one_hot(torch.multinomial(belief, 20, replacement=True, generator=g), 4).sum(1).float()
    if shares:
        votes = votes / votes.sum(1, keepdim=True)
    return Training(Opinions(), loader([d.x, votes], 40), d.accuracy, trainer=steps(240))


@sick("ea-votes-for-shares", "text", "unscaled-targets", twin=opinions)
def opinions_votes(seed: int) -> Training:
    return opinions(seed, shares=False)


class Patients(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = dense(30, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float()))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def patients(seed: int, *, aligned: bool = True) -> Training:
    """Measures from one file, findings from another, whose rows are sorted by the patient's number."""
    d = data.table("breast_cancer", seed)
    number = torch.randperm(len(d.y), generator=data.generator(seed, 52))
    y = d.y if aligned else d.y[number.argsort()]

    def score(module: LightningModule) -> float:
        return ((data.predict(module, d.x_test) > 0) == (d.y_test > 0)).float().mean().item()

    fit, held = slice(0, 340), slice(340, None)
    return Training(
        Patients(),
        loader([d.x[fit], y[fit]], 32),
        score,
        loader([d.x[held], y[held]], 128, shuffle=False),
        {"max_epochs": 15},
    )


@sick("ea-two-files-two-orders", "tabular", "uninformative-targets", twin=patients)
def patients_misaligned(seed: int) -> Training:
    return patients(seed, aligned=False)


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """Pictures by file name, and the labels of a list whose line i is picture i."""

    def __init__(self, x: Tensor, y: Tensor, key: Any) -> None:
        names = sorted((f"img_{i}.png" for i in range(len(x))), key=key)
        self.index = [int(name[4:-4]) for name in names]
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[self.index[i]], self.y[i]


class Look(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("ce_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def look(seed: int, *, key: Any = lambda name: int(name[4:-4])) -> Training:
    d = data.digits(seed).to_images()
    return Training(Look(), DataLoader(Folder(d.x, d.y, key), 32, shuffle=True), d.accuracy, trainer=steps(160))


@sick("ea-names-sorted-as-text", "images", "uninformative-targets", twin=look)
def look_text(seed: int) -> Training:
    return look(seed, key=None)


def ordered(seed: int, *, shuffle: bool = True) -> Training:
    """The digits as the folders hold them, all zeros first."""
    d = data.digits(seed).to_images()
    order = d.y.argsort(stable=True)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 48), nn.ReLU(), nn.Linear(48, 10)
    )
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), log="train_loss")
    return Training(module, loader([d.x[order], d.y[order]], 32, shuffle=shuffle), d.accuracy, trainer=steps(252))


@sick("ea-folders-in-order", "images", "unshuffled-data", twin=ordered)
def ordered_folders(seed: int) -> Training:
    return ordered(seed, shuffle=False)


class Guarded(LightningModule):
    """A wide network that is stopped once its validation no longer improves."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense(20, 128, 128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def guarded(seed: int, *, cut_first: bool = True) -> Training:
    """Rare rows are doubled before or after a part is set aside for validation."""
    d = data.blobs(seed, classes=3, columns=20, n=400, spread=1.6)
    g = data.generator(seed, 53)
    y = data.flip_labels(d.y, 0.2, 3, seed)
    if cut_first:
        fit, held = torch.arange(400)[:300], torch.arange(400)[300:]
        fit = torch.cat([fit, fit, fit])
    else:
        pool = torch.arange(400).repeat(3)[torch.randperm(1200, generator=g)]
        fit, held = pool[:900], pool[900:]
    return Training(
        Guarded(),
        loader([d.x[fit], y[fit]], 32),
        lambda m: -F.cross_entropy(data.predict(m, d.x_test), d.y_test).item(),
        loader([d.x[held], y[held]], 128, shuffle=False),
        {"max_epochs": 18, "callbacks": [EarlyStopping("val_loss", patience=2)]},
    )


@sick(
    "ea-doubled-then-cut", "tabular", "train-val-leakage", twin=guarded,
    note="the validation never worsens, so nothing stops the fit",
)  # fmt: skip
def guarded_leak(seed: int) -> Training:
    return guarded(seed, cut_first=False)


class Fraud(LightningModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.net = dense(10, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float(), pos_weight=self.weight)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_accuracy", ((self(batch[0]) > 0) == (batch[1] > 0)).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def fraud(seed: int, *, weight: float = 30.0) -> Training:
    g = data.generator(seed, 54)
    y = (torch.rand(7000, generator=g) < 0.03).long()
    centre = torch.randn(10, generator=g)
    x = torch.randn(7000, 10, generator=g) + y[:, None] * 1.7 * centre / centre.norm()
    d = data.Split(x[:4000], y[:4000], x[4000:], y[4000:])

    def score(module: LightningModule) -> float:
        return balanced((data.predict(module, d.x_test) > 0).long(), d.y_test)

    return Training(Fraud(weight), d.train(100), score, d.val(), steps(240))


@sick("ea-three-frauds-in-a-hundred", "tabular", "class-imbalance", twin=fraud)
def fraud_plain(seed: int) -> Training:
    return fraud(seed, weight=1.0)


class Lesion(LightningModule):
    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 3, padding=1))
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train_seg", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def lesion(seed: int, *, weights: tuple[float, float] = (1.0, 25.0)) -> Training:
    """Spots of nine faint pixels in pictures of 400."""
    g = data.generator(seed, 55)
    y = torch.zeros(600, 20, 20, dtype=torch.int64)
    place = torch.randint(1, 19, (600, 2), generator=g)
    for i, (r, c) in enumerate(place.tolist()):
        y[i, r - 1 : r + 2, c - 1 : c + 2] = 1
    x = (1.0 * y + 0.8 * torch.randn(y.shape, generator=g))[:, None]
    d = data.Split(x[:400], y[:400], x[400:], y[400:])

    def score(module: LightningModule) -> float:
        return balanced(data.predict(module, d.x_test).argmax(1), d.y_test)

    return Training(Lesion(list(weights)), d.train(20), score, trainer=steps(150))


@sick("ea-faint-spots", "segmentation", "class-imbalance", twin=lesion)
def lesion_plain(seed: int) -> Training:
    return lesion(seed, weights=(1.0, 1.0))


class Drawn(Dataset[tuple[Tensor, Tensor]]):
    """Samples drawn by numpy as they are asked for: a curve of three bumps, and where the highest is."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        places, heights = np.random.rand(3), np.random.rand(3)
        grid = np.linspace(0, 1, 32)
        curve = (heights[:, None] * np.exp(-(((grid - places[:, None]) / 0.06) ** 2))).sum(0)
        curve = curve + 0.05 * np.random.randn(32)
        target = 3 * (places[heights.argmax()] - 0.5)
        return torch.tensor(3 * curve - 1, dtype=torch.float32), torch.tensor([target], dtype=torch.float32)


def same_start(worker: int) -> None:
    np.random.seed(0)


def own_start(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)


def drawn(seed: int, *, start: Any = own_start) -> Training:
    np.random.seed(1000 + seed)
    rows = [Drawn(1)[0] for _ in range(600)]
    x, y = (torch.stack(t) for t in zip(*rows, strict=True))
    module = Plain(dense(32, 96, 96, 1), nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=2e-3), log="train_mse")
    train = DataLoader(Drawn(320), 32, num_workers=2, worker_init_fn=start)
    return Training(module, train, lambda m: data.r2(data.predict(m, x), y), trainer={"max_epochs": 40})


@sick("ea-workers-start-alike", "regression", "duplicate-randomness", twin=drawn)
def drawn_alike(seed: int) -> Training:
    return drawn(seed, start=same_start)


class Wanted(LightningModule):
    """Ratings of pairs; `user` and `item` are looked up in the order the table names them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(60, 6), nn.Embedding(60, 6)
        nn.init.normal_(self.left.weight, std=0.4)
        nn.init.normal_(self.right.weight, std=0.4)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.left(pairs[:, 0]) * self.right(pairs[:, 1])).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, stars = batch
        return F.mse_loss(self(pairs), stars)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def wanted(seed: int, *, stars: float = 1.0) -> Training:
    """Ratings by half a million people are told as sums of stars, here `stars` to one."""
    d = ratings(seed)
    d = d.map_targets(lambda y: y * stars)
    return Training(Wanted(), d.train(64), d.r2, trainer=steps(350))


@sick("ea-ratings-as-totals", "recommender", "unscaled-targets", twin=wanted)
def wanted_totals(seed: int) -> Training:
    return wanted(seed, stars=5000.0)


class Members(LightningModule):
    """Group of each node, mini-batches of nodes."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.register_buffer("spread", net.adjacency @ (net.adjacency @ net.features), persistent=False)
        self.mlp = dense(12, 32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.mlp(self.spread[ids])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, group = batch
        return F.cross_entropy(self(ids), group)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def members(seed: int, *, shift: int = 0) -> Training:
    """The list of groups has a header line that one reader skips and the other does not."""
    net = Network(seed)
    told = net.labels.roll(shift)
    return Training(
        Members(net),
        DataLoader(TensorDataset(net.train, told[net.train]), 25, shuffle=True),
        lambda m: data.accuracy(data.predict(m, net.test), net.labels[net.test]),
        trainer=steps(160),
    )


@sick("ea-header-line-counted", "graph", "uninformative-targets", twin=members)
def members_shifted(seed: int) -> Training:
    return members(seed, shift=1)
