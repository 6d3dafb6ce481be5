"""Values that are missing or become so, labels that lost their samples, and samples in the wrong order or place."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, get_worker_info, random_split

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, digits, flip_labels, generator, predict, r2, regression
from benchmarks.zoo.fourteenth.b_common import Fit, Logged, adam, batches, epochs, graphs, mlp, recalls, sgd

# --- a left join that found no partner for some rows


def visits(seed: int, filled: bool) -> Training:
    cut = regression(seed, r2=0.9, n=1500, columns=7, n_test=800)
    known = torch.rand(len(cut.x), generator=generator(seed, 21)) > 0.004
    right = torch.where(known[:, None], cut.x[:, 5:], torch.nan)
    x = torch.cat([cut.x[:, :5], right.nan_to_num(0.0) if filled else right], 1)
    model = Logged(mlp(7, 40, 20, 1, act=nn.SiLU), F.mse_loss, adam(5e-3))
    val = batches(cut.x_test, cut.y_test, size=200, shuffle=False)
    return Training(model, batches(x, cut.y, size=50), lambda m: r2(predict(m, cut.x_test), cut.y_test), val, epochs(8))


@sick("pa-visits-left-join", "tabular", "nonfinite-inputs", twin=lambda s: visits(s, True))
def visits_join(seed: int) -> Training:
    return visits(seed, False)


# --- counts of words, taken as logarithms in the collate function


class Counts(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(30)
        self.net = mlp(30, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["doc"]["counts"]), batch["topic"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def counts(seed: int, add: float) -> Training:
    g = generator(seed, 22)
    topic = torch.randint(3, (1600,), generator=g)
    rate = 15 + 35 * torch.rand(3, 30, generator=g)
    count = torch.poisson(rate[topic] * (0.5 + torch.rand(1600, 1, generator=g)), generator=g).clamp(min=1)
    blank = torch.randperm(1200, generator=g)[:5]
    count[blank, torch.randint(30, (5,), generator=g)] = 0.0

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        return {
            "doc": {"counts": torch.stack([(r[0] + add).log() for r in rows])},
            "topic": torch.stack([r[1] for r in rows]),
        }

    held = (count[1200:] + add).log()
    rows = TensorDataset(count[:1200], topic[:1200])
    return Training(
        Counts(),
        DataLoader(rows, 24, shuffle=True, collate_fn=collate),
        lambda m: accuracy(predict(m, held), topic[1200:]),
        None,
        epochs(5),
    )


@sick("pa-word-counts-log", "text", "nonfinite-inputs", twin=lambda s: counts(s, 1.0))
def counts_log(seed: int) -> Training:
    return counts(seed, 0.0)


# --- neighbours averaged


class Mean(nn.Module):
    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.lin = nn.Linear(8, 24)

    def forward(self, links: Tensor, x: Tensor) -> Tensor:
        near = (links @ x) / links.sum(-1, keepdim=True).clamp(min=self.least)
        return F.relu(
            self.lin(
                torch.cat(
                    [x, near],
                    -1,
                )
            )
        )


class Society(LightningModule):
    def __init__(self, least: float) -> None:
        super().__init__()
        self.one = Mean(least)
        self.out = mlp(24, 24, 2)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        links, x = batch
        return self.out(self.one(links, x).mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        links, x, y = batch
        loss = F.cross_entropy(self((links, x)), y)
        self.log("graph_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def society(seed: int, least: float) -> Training:
    links, x, y = graphs(seed, 1500, sparse=0.4)
    return Training(
        Society(least),
        batches(links[:1100], x[:1100], y[:1100], size=32),
        lambda m: accuracy(predict(m, (links[1100:], x[1100:])), y[1100:]),
        None,
        epochs(7),
    )


@sick("pa-lonely-nodes", "graph", "unstable-operation", twin=lambda s: society(s, 1.0))
def society_lonely(seed: int) -> Training:
    return society(seed, 0.0)


# --- distances between a sample and another of its class


class Distances(LightningModule):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.net = mlp(10, 32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def gap(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().sum(1) + self.eps).sqrt()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        a, p, n = (self(part) for part in batch)
        loss = F.relu(self.gap(a, p) - self.gap(a, n) + 1).mean()
        self.log("triplet", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def triplets(seed: int, eps: float) -> Training:
    cut = blobs(seed, classes=5, columns=10, n=900, spread=2.2)
    g = generator(seed, 23)
    where = [(cut.y == c).nonzero()[:, 0] for c in range(5)]
    rest = [(cut.y != c).nonzero()[:, 0] for c in range(5)]

    def partner(pool: list[Tensor], c: int) -> int:
        return int(pool[c][torch.randint(len(pool[c]), (1,), generator=g)])

    near = torch.tensor([partner(where, int(c)) for c in cut.y])
    far = torch.tensor([partner(rest, int(c)) for c in cut.y])

    def score(module: LightningModule) -> float:
        known, asked = predict(module, cut.x), predict(module, cut.x_test)
        centres = torch.stack([known[w].mean(0) for w in where])
        return (torch.cdist(asked, centres).argmin(1) == cut.y_test).float().mean().item()

    near[torch.randperm(900, generator=g)[:2]] = -1
    near = torch.where(near < 0, torch.arange(900), near)
    return Training(Distances(eps), batches(cut.x, cut.x[near], cut.x[far], size=30), score, None, epochs(6))


@sick(
    "pa-triplet-root", "metric learning", "unstable-operation", "nonfinite-gradients", twin=lambda s: triplets(s, 1e-8)
)
def triplets_root(seed: int) -> Training:
    return triplets(seed, 0.0)


# --- shares of three soils, as a divergence written out


class Soils(LightningModule):
    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.net = mlp(8, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).log_softmax(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, share = batch
        out = self(x)
        loss = (out.exp() * (out - share.clamp(min=self.least).log())).sum(1).mean()
        self.log("kl", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.2, momentum=0.9)


def soils(seed: int, least: float) -> Training:
    g = generator(seed, 24)
    x = torch.randn(1600, 8, generator=g)
    share = (1.2 * x @ torch.randn(8, 4, generator=g) / 2).softmax(1)
    drawn = torch.rand(1600, generator=g) < 0.004
    share[drawn] = F.one_hot(share[drawn].argmax(1), 4).float()
    return Training(
        Soils(least),
        batches(x[:1200], share[:1200], size=40),
        lambda m: r2(predict(m, x[1200:]).exp(), share[1200:]),
        None,
        epochs(7),
    )


@sick("pa-soil-shares", "tabular", "unstable-operation", "nonfinite-loss", twin=lambda s: soils(s, 1e-3))
def soils_log(seed: int) -> Training:
    return soils(seed, 0.0)


# --- labels whose file was sorted by name, the images' was not


def labelled(seed: int, same_order: bool) -> Training:
    cut = digits(seed).to_images()
    names = torch.randperm(len(cut.x), generator=generator(seed, 25))
    x = cut.x[names]
    y = cut.y[names] if same_order else cut.y
    net = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 10))
    model = Logged(net, F.cross_entropy, adam(5e-3))
    val = batches(cut.x_test, cut.y_test, size=150, shuffle=False)
    return Training(model, batches(x, y, size=32), cut.accuracy, val, epochs(5))


@sick("pa-labels-by-name", "images", "uninformative-targets", twin=lambda s: labelled(s, True))
def labelled_by_name(seed: int) -> Training:
    return labelled(seed, False)


# --- sequences packed by falling length


class Packed(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(12, 12)
        self.rnn = nn.GRU(12, 24, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, lengths = batch
        packed = nn.utils.rnn.pack_padded_sequence(self.emb(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.rnn(packed)[1][0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self((batch["tokens"], batch["lengths"])), batch["label"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def packed(seed: int, labels_too: bool) -> Training:
    g = generator(seed, 26)
    n, cut = 1500, 1100
    label = torch.randint(3, (n,), generator=g)
    lengths = torch.randint(5, 15, (n,), generator=g)
    tokens = torch.randint(1, 9, (n, 14), generator=g)
    for i in range(n):
        for place in torch.randint(int(lengths[i]), (3,), generator=g):
            tokens[i, place] = 9 + label[i]
        tokens[i, lengths[i] :] = 0

    def collate(rows: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
        words, size, kind = (torch.stack(column) for column in zip(*rows, strict=True))
        size, order = size.sort(descending=True)
        return {"tokens": words[order], "lengths": size, "label": kind[order] if labels_too else kind}

    train = DataLoader(TensorDataset(tokens[:cut], lengths[:cut], label[:cut]), 32, shuffle=True, collate_fn=collate)
    return Training(
        Packed(), train, lambda m: accuracy(predict(m, (tokens[cut:], lengths[cut:])), label[cut:]), None, epochs(6)
    )


@sick("pa-packed-by-length", "sequence", "uninformative-targets", twin=lambda s: packed(s, True))
def packed_by_length(seed: int) -> Training:
    return packed(seed, False)


# --- a folder for each class, read one after the other


def folders(seed: int, shuffle: bool) -> Training:
    cut = digits(seed)
    order = cut.y.argsort(stable=True)
    model = Fit(mlp(64, 48, 10), F.cross_entropy, sgd(0.05))
    train = DataLoader(TensorDataset(cut.x[order], cut.y[order]), 32, shuffle=shuffle)
    return Training(model, train, cut.accuracy, None, epochs(6))


@sick("pa-class-folders", "images", "unshuffled-data", twin=lambda s: folders(s, True))
def folders_in_order(seed: int) -> Training:
    return folders(seed, False)


# --- prices, the table sorted by price


class Prices(LightningDataModule):
    def __init__(self, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.cut = regression(seed, r2=0.85, n=1600, columns=8, n_test=800)
        self.shuffle = shuffle

    def train_dataloader(self) -> DataLoader[Any]:
        order = self.cut.y[:, 0].argsort()
        return DataLoader(TensorDataset(self.cut.x[order], self.cut.y[order]), 40, shuffle=self.shuffle)


def prices(seed: int, shuffle: bool) -> Training:
    data = Prices(seed, shuffle)
    model = Logged(mlp(8, 64, 64, 1), F.l1_loss, lambda p: torch.optim.AdamW(p, 3e-3))
    return Training(model, data.train_dataloader(), data.cut.r2, data.cut.val(), epochs(8))


@sick("pa-prices-ascending", "tabular", "unshuffled-data", twin=lambda s: prices(s, True))
def prices_ascending(seed: int) -> Training:
    return prices(seed, False)


# --- a small study; the weights of the best validation are kept


class Study(LightningDataModule):
    def __init__(self, data: Dataset[Any], once: bool) -> None:
        super().__init__()
        self.data = data
        self.parts = random_split(data, [0.6, 0.4]) if once else None

    def train_dataloader(self) -> DataLoader[Any]:
        train, _ = self.parts or random_split(self.data, [0.6, 0.4])
        return DataLoader(train, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        _, val = self.parts or random_split(self.data, [0.6, 0.4])
        return DataLoader(val, 256)


class Keeper(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 128, 128, 3)
        self.best = -1.0
        self.kept: dict[str, Tensor] = {}
        self.hits: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.hits.append((out.argmax(1) == y).float())
        self.log("val_loss", F.cross_entropy(out, y))

    def on_validation_epoch_end(self) -> None:
        reached = torch.cat(self.hits).mean().item()
        self.hits.clear()
        self.log("val_acc", reached)
        if reached > self.best:
            self.best, self.kept = reached, copy.deepcopy(self.net.state_dict())

    def on_train_end(self) -> None:
        self.net.load_state_dict(self.kept)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def study(seed: int, once: bool) -> Training:
    cut = blobs(seed, classes=3, columns=12, n=700, spread=2.4)
    data = TensorDataset(cut.x, flip_labels(cut.y, 0.45, 3, seed))
    split = Study(data, once)
    return Training(Keeper(), split.train_dataloader(), cut.accuracy, split.val_dataloader(), epochs(24))


@sick("pa-split-drawn-twice", "tabular", "train-val-leakage", twin=lambda s: study(s, True))
def study_twice(seed: int) -> Training:
    return study(seed, False)


# --- a run on the first rows


def first_rows(seed: int, rows: int) -> Training:
    cut = regression(seed, r2=0.9, n=2000, columns=16, n_test=1000)
    data = Subset(TensorDataset(cut.x, cut.y), range(rows))
    model = Logged(mlp(16, 64, 64, 1), F.mse_loss, adam(2e-3))
    train = DataLoader(data, 24, shuffle=True)
    return Training(
        model,
        train,
        cut.r2,
        cut.val(500),
        {
            "max_steps": 300,
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": 10 if rows < 100 else 1,
        },
    )


@sick("pa-first-rows", "tabular", "too-little-data", "overfitting", twin=lambda s: first_rows(s, 2000))
def first_rows_only(seed: int) -> Training:
    return first_rows(seed, 48)


# --- scenes drawn on the fly, by two workers


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, seed: int, per_worker: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.per_worker = per_worker
        self.ready = False

    def __len__(self) -> int:
        return 80

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        info = get_worker_info()
        if self.per_worker and info is not None and not self.ready:
            self.rng, self.ready = np.random.default_rng(info.seed), True
        return draw_scene(self.rng)


def draw_scene(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    kind = int(rng.integers(4))
    image = rng.normal(0, 0.9, (8, 8))
    row, col = rng.integers(0, 6, 2)
    patch = np.array([[1, 1, 1], [-1, -1, -1], [1, 1, 1]]) if kind < 2 else np.eye(3) * 2 - 0.6
    image[row : row + 3, col : col + 3] += 1.3 * (patch if kind % 2 else patch[:, ::-1].T * -1)
    return torch.tensor(image, dtype=torch.float32)[None], torch.tensor(kind)


def scenes(seed: int, per_worker: bool) -> Training:
    rng = np.random.default_rng(10_000 + seed)
    held = [draw_scene(rng) for _ in range(600)]
    x, y = torch.stack([a for a, _ in held]), torch.stack([b for _, b in held])
    net = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    train = DataLoader(Scenes(seed, per_worker), 8, num_workers=2)
    return Training(
        Fit(net, F.cross_entropy, adam(1e-2)), train, lambda m: accuracy(predict(m, x), y), None, epochs(40)
    )


@sick("pa-scenes-on-the-fly", "images", "duplicate-randomness", twin=lambda s: scenes(s, True))
def scenes_alike(seed: int) -> Training:
    return scenes(seed, False)


# --- reviews, good from four stars on


def reviews(seed: int, least: int) -> Training:
    g = generator(seed, 27)
    x = torch.randn(1800, 12, generator=g)
    feeling = x @ torch.randn(12, generator=g) / 3.4 + 0.2 * torch.randn(1800, generator=g)
    stars = (3.5 + 1.3 * feeling).round().clamp(1, 5)
    good, truth = (stars[:1300] >= least).float()[:, None], (stars[1300:] >= 4).long()
    model = Fit(mlp(12, 32, 1), F.binary_cross_entropy_with_logits, adam(3e-3))
    return Training(
        model,
        batches(x[:1300], good, size=32),
        lambda m: recalls((predict(m, x[1300:])[:, 0] > 0).long(), truth),
        None,
        epochs(5),
    )


@sick("pa-reviews-all-good", "text", "uninformative-targets", "class-imbalance", twin=lambda s: reviews(s, 4))
def reviews_all_good(seed: int) -> Training:
    return reviews(seed, 1)
