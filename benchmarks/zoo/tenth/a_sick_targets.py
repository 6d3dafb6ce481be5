"""Trainings whose targets are at fault: their units, outliers, shares, order, and whether they belong to the inputs."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, digits, generator, predict, r2
from benchmarks.zoo.tenth.a_common import (
    Bag,
    Conv,
    Gcn,
    Listener,
    Plain,
    Records,
    balanced_accuracy,
    community,
    loader,
    mlp,
    reviews,
    seasons,
    shapes,
    tones,
)

# ---- unscaled-targets


def returns(seed: int, unit: float) -> Training:
    """The next day's return from the last twelve, by a GRU; `unit` 1 leaves returns as shares of one."""
    g = generator(seed, 31)
    x = torch.randn(1900, 12, generator=g)
    y = 0.7 * x[:, -1] - 0.5 * x[:, -2] + 0.4 * torch.tanh(2 * x[:, -3]) + 0.3 * torch.randn(1900, generator=g)
    y = y / y.std() * 4e-4 * unit

    class Desk(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(1, 20, batch_first=True)
            self.read = nn.Linear(20, 1)

        def forward(self, past: Tensor) -> Tensor:
            return self.read(self.gru(past[..., None])[0][:, -1]).squeeze(-1)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
            loss = F.mse_loss(self(batch["past"]), batch["next"])
            return {"loss": loss}

        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            self.log("val_mae", F.l1_loss(self(batch["past"]), batch["next"]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=5e-3)

    return Training(
        Desk(),
        DataLoader(Records(past=x[:1300], next=y[:1300]), 32, shuffle=True),
        lambda m: r2(predict(m, x[1300:]), y[1300:]),
        DataLoader(Records(past=x[1300:], next=y[1300:]), 300),
        {"max_epochs": 7},
    )


@sick("ta-daily-returns", "time series", "unscaled-targets", twin=lambda seed: returns(seed, 1 / 4e-4))
def daily_returns(seed: int) -> Training:
    return returns(seed, 1.0)


def flats(seed: int, scaled: bool) -> Training:
    """Prices in the country's money from standardised columns."""
    g = generator(seed, 32)
    x = torch.randn(2400, 9, generator=g)
    y = x[:, 0] + 0.6 * x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + 0.25 * torch.randn(2400, generator=g)
    price = (310_000 + 85_000 * y)[:, None]
    target = (price - 310_000) / 110_000 if scaled else price
    module = Plain(mlp(9, 64, 32, 1), nn.L1Loss(), lambda p: torch.optim.Adam(p, lr=2e-3), log="mae", val="val_mae")
    return Training(
        module,
        loader(x[:1800], target[:1800], batch=48),
        lambda m: r2(predict(m, x[1800:]), target[1800:]),
        loader(x[1800:], target[1800:], batch=300, shuffle=False),
        {"max_epochs": 8},
    )


@sick("ta-flat-prices-mae", "tabular", "unscaled-targets", twin=lambda seed: flats(seed, True))
def flat_prices(seed: int) -> Training:
    return flats(seed, False)


def votes(seed: int, shares: bool) -> Training:
    """Digits that sixty annotators voted on; the votes are the soft target of cross-entropy."""
    data = digits(seed).to_images()
    g = generator(seed, 33)
    lean = 0.9 * F.one_hot(data.y, 10) + 0.01
    drawn = torch.multinomial(lean, 60, replacement=True, generator=g)
    count = F.one_hot(drawn, 10).sum(1).float()
    target = count / count.sum(1, keepdim=True) if shares else count
    module = Plain(
        Conv(10, size=8), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), log="ce"
    )
    return Training(
        module, loader(data.x, target, batch=32), lambda m: accuracy(predict(m, data.x_test), data.y_test),
        trainer={"max_epochs": 6},
    )  # fmt: skip


@sick("ta-annotator-votes", "images", "unscaled-targets", twin=lambda seed: votes(seed, True))
def annotator_votes(seed: int) -> Training:
    return votes(seed, False)


# ---- corrupt-samples


def gauges(seed: int, keep: bool) -> Training:
    """River levels: where the gauge gave none the file holds 9999, in one row of a hundred and fifty."""
    data = seasons(seed, n=1500, window=24)
    g = generator(seed, 34)
    gone = torch.randperm(1500, generator=g)[:10]
    y = data.y.clone()
    y[gone] = 9999.0
    rows = torch.ones(1500, dtype=torch.bool)
    if not keep:
        rows[gone] = False
    net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 1))
    module = Plain(net, nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=2e-3), log="train_loss", val="valid_loss")
    return Training(
        module,
        loader(data.x[rows], y[rows], batch=30),
        data.r2,
        data.val(),
        {"max_epochs": 7},
    )


@sick("ta-gauge-9999", "time series", "corrupt-samples", twin=lambda seed: gauges(seed, False))
def gauge_9999(seed: int) -> Training:
    return gauges(seed, True)


def calls(seed: int, clean: bool) -> Training:
    """Bird calls; a loose contact put clicks of some thousand times the signal into eight of the recordings."""
    data = tones(seed, n=960, classes=4, noise=0.5)
    x = data.x.clone()
    g = generator(seed, 35)
    hit = torch.randperm(len(x), generator=g)[:8]
    if not clean:
        x[hit, 0, torch.randint(96, (8,), generator=g)] = 6e3 * torch.randn(8, generator=g).sign()

    class Calls(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.ears = Listener(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.ears(x)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.02)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    return Training(Calls(), loader(x, data.y, batch=16), data.accuracy, trainer={"max_epochs": 5})


@sick("ta-loose-contact-clicks", "audio", "corrupt-samples", twin=lambda seed: calls(seed, True))
def loose_contact(seed: int) -> Training:
    return calls(seed, False)


# ---- class-imbalance


def claims(seed: int, weighted: bool) -> Training:
    """Three claims in a hundred are false ones."""
    g = generator(seed, 36)
    y = (torch.rand(7000, generator=g) < 0.03).long()
    x = torch.randn(7000, 8, generator=g)
    x[:, :3] += 0.85 * y[:, None]
    x_train, y_train = x[:4000], y[:4000]
    sampler = None
    if weighted:
        weight = (1 / torch.bincount(y_train).float())[y_train]
        sampler = WeightedRandomSampler(weight.tolist(), 4000, generator=generator(seed, 37))
    train = DataLoader(TensorDataset(x_train, y_train), 64, shuffle=sampler is None, sampler=sampler)
    module = Plain(
        mlp(8, 16, 2), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=1e-3), log="train/loss", val="val/loss"
    )
    return Training(
        module,
        train,
        lambda m: balanced_accuracy(m, x[4000:], y[4000:]),
        loader(x[4000:5000], y[4000:5000], batch=250, shuffle=False),
        {"max_epochs": 4},
    )


@sick("ta-false-claims", "tabular", "class-imbalance", twin=lambda seed: claims(seed, True))
def false_claims(seed: int) -> Training:
    return claims(seed, False)


def cracks(seed: int, weight: float) -> Training:
    """Pixels of faint cracks, one in seventy, in noise."""
    g = generator(seed, 38)
    mask = torch.zeros(560, 20, 20)
    for i in range(560):
        r, c = torch.randint(14, (2,), generator=g).tolist()
        mask[i, r, c : c + 6] = 1
    x = (0.9 * mask + 0.5 * torch.randn(560, 20, 20, generator=g))[:, None]
    mask = mask[:, None]

    class Segmenter(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 10, 5, padding=2), nn.ReLU(), nn.Conv2d(10, 10, 5, padding=2), nn.ReLU(),
                nn.Conv2d(10, 1, 1),
            )  # fmt: skip
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            image, target = batch
            loss = F.binary_cross_entropy_with_logits(self(image), target, pos_weight=torch.tensor(self.weight))
            self.log("pixel_bce", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)

    def score(m: LightningModule) -> float:
        out = predict(m, x[400:]) > 0
        real = mask[400:] > 0
        return 0.5 * ((out & real).sum() / real.sum() + (~out & ~real).sum() / (~real).sum()).item()

    return Training(Segmenter(), loader(x[:400], mask[:400], batch=20), score, trainer={"max_epochs": 7})


@sick("ta-crack-pixels", "segmentation", "class-imbalance", twin=lambda seed: cracks(seed, 40.0))
def crack_pixels(seed: int) -> Training:
    return cracks(seed, 1.0)


# ---- unshuffled-data


class Folders(LightningDataModule):
    """Images listed folder by folder, one class a folder."""

    def __init__(self, seed: int, mixed: bool) -> None:
        super().__init__()
        data, _ = shapes(seed, n=900)
        self.parts = [TensorDataset(data.x[data.y == k], data.y[data.y == k]) for k in range(4)]
        self.held = TensorDataset(data.x_test, data.y_test)
        self.mixed = mixed

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(ConcatDataset(self.parts), 25, shuffle=self.mixed)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.held, 200)


def folders(seed: int, mixed: bool) -> Training:
    data, _ = shapes(seed, n=900)
    module = Plain(Conv(4), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=4e-3), log="loss", val="val_loss")
    return Training(module, Folders(seed, mixed), data.accuracy, trainer={"max_epochs": 7})


@sick("ta-folder-by-folder", "images", "unshuffled-data", twin=lambda seed: folders(seed, True))
def folder_by_folder(seed: int) -> Training:
    return folders(seed, False)


def essays(seed: int, mixed: bool) -> Training:
    """Essays graded 0 to 1 (standardised), read from a file sorted by grade."""
    g = generator(seed, 39)
    vocab = 80
    worth = torch.randn(vocab, generator=g)
    ids = torch.randint(1, vocab, (2000, 16), generator=g)
    grade = worth[ids].mean(1) + 0.05 * torch.randn(2000, generator=g)
    grade = ((grade - grade.mean()) / grade.std())[:, None]
    x, y, x_test, y_test = ids[:1400], grade[:1400], ids[1400:], grade[1400:]
    order = y[:, 0].argsort()
    module = Plain(Bag(vocab, 1), nn.SmoothL1Loss(), lambda p: torch.optim.Adam(p, lr=1e-2), log="huber")
    train = loader(x[order], y[order], batch=20, shuffle=mixed)
    return Training(module, train, lambda m: r2(predict(m, x_test), y_test), trainer={"max_epochs": 5})


@sick("ta-essays-by-grade", "text", "unshuffled-data", twin=lambda seed: essays(seed, True))
def essays_by_grade(seed: int) -> Training:
    return essays(seed, False)


# ---- uninformative-targets


def tickets(seed: int, aligned: bool) -> Training:
    """Ticket texts and their queues come from two exports; one of them was sorted before they were put side by side."""
    data = reviews(seed, n=1600)
    y = data.y
    if not aligned:
        length = (data.x > 0).sum(1)
        y = data.y[length.argsort(stable=True)]
    module = Plain(Bag(60, 3), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=5e-3), log="nll", val=None)
    return Training(module, loader(data.x, y, batch=40), data.accuracy, trainer={"max_epochs": 6})


@sick("ta-two-exports-one-sorted", "text", "uninformative-targets", twin=lambda seed: tickets(seed, True))
def two_exports(seed: int) -> Training:
    return tickets(seed, False)


def papers(seed: int, aligned: bool) -> Training:
    """Node labels drawn up under another numbering of the nodes than the edges are."""
    graph = community(seed, nodes=600)
    rest = torch.ones(600, dtype=torch.bool)
    rest[graph.known] = False
    test = rest.nonzero()[:, 0]
    label = graph.y if aligned else graph.y[torch.randperm(600, generator=generator(seed, 40))]
    train = loader(graph.known, label[graph.known], batch=50)

    def score(m: LightningModule) -> float:
        return accuracy(predict(m, test), graph.y[test])

    return Training(Gcn(graph.adjacency, graph.x, log="node_loss"), train, score, trainer={"max_epochs": 25})


@sick("ta-node-numbering", "graphs", "uninformative-targets", twin=lambda seed: papers(seed, True))
def node_numbering(seed: int) -> Training:
    return papers(seed, False)
