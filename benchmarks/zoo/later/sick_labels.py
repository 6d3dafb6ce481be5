"""Labels and samples: too rare, in order, misplaced, too few, seen before, learnt by heart."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.later._sick_common import (
    Records,
    bags,
    communities,
    demand,
    explained,
    gestures,
    loader,
    pick,
    recall,
    reviews,
    solids,
    spots,
    tones,
)

# --- one class outweighs ----------------------------------------------------------------------------------------------


def thinned(d: Split, keep: dict[int, int]) -> Split:
    """The training part with no more than so many rows of a class."""
    rows = torch.cat([(d.y == k).nonzero()[: keep.get(k), 0] for k in d.y.unique().tolist()])
    return Split(d.x[rows], d.y[rows], d.x_test, d.y_test)


class Alarm(LightningModule):
    """A burst among other sounds: rare in what was recorded."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 12, 11, stride=3), nn.ReLU(), nn.Conv1d(12, 16, 5), nn.ReLU())
        self.head = nn.Linear(16, 1)
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.body(wave).mean(2))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, label = batch
        out = self(wave)
        loss = F.binary_cross_entropy_with_logits(out, label.float(), pos_weight=self.weight)
        self.log_dict({"loss": loss, "accuracy": ((out > 0) == label).float().mean()})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        wave, label = batch
        self.log("val_accuracy", ((self(wave) > 0) == label).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("v-tones-alarm-bell", "audio", "class-imbalance", twin=lambda s: alarm_bell(s, 49.0))
def alarm_bell(seed: int, weight: float = 1.0) -> Training:
    d = tones(seed, n=3000)
    d = d.map_targets(lambda y: (y == 3).long())
    d = thinned(d, {1: 40})
    train = loader(d.x, d.y, size=50)
    score = recall(d.x_test, d.y_test, lambda out: (out > 0).long())
    return Training(Alarm(weight), train, score, d.val(), {"max_epochs": 6, "val_check_interval": 20})


class Stroked(LightningModule):
    """Five strokes of which one was drawn by nearly everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 24, batch_first=True)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0].mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["stroke"]), batch["sign"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@sick("v-gestures-mostly-circles", "recurrent", "class-imbalance", twin=lambda s: mostly_circles(s, True))
def mostly_circles(seed: int, weighted: bool = False) -> Training:
    d = gestures(seed, n=3600)
    noise = 0.9 * torch.randn(d.x.shape, generator=data.generator(seed, 121))
    d = thinned(Split(d.x + noise, d.y, d.x_test, d.y_test), {1: 8, 2: 8, 3: 8, 4: 8})
    rows = Records(stroke=d.x, sign=d.y)
    if weighted:
        share = (1 / d.y.bincount().float())[d.y]
        draw = WeightedRandomSampler(share.tolist(), len(d.y), generator=data.generator(seed, 122))
        train = DataLoader(rows, batch_size=32, sampler=draw)
    else:
        train = DataLoader(rows, batch_size=32, shuffle=True)
    return Training(Stroked(), train, recall(d.x_test, d.y_test, pick), None, {"max_epochs": 6})


class Defects(LightningModule):
    """Each pixel: part of the spot or not; a spot has few pixels."""

    def __init__(self, balance: float | None) -> None:
        super().__init__()
        self.balance = None if balance is None else torch.tensor(balance)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, mask = batch
        loss = F.binary_cross_entropy_with_logits(self(x), mask, pos_weight=self.balance)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("v-spots-mask-of-one-pixel", "segmentation", "class-imbalance", twin=lambda s: mask_of_one(s, 60.0))
def mask_of_one(seed: int, balance: float | None = None) -> Training:
    d = spots(seed)
    noise = [0.35 * torch.randn(x.shape, generator=data.generator(seed, 123)) for x in (d.x, d.x_test)]

    def mask(place: Tensor) -> Tensor:
        at = (9 * place).round().long()
        out = torch.zeros(len(place), 10, 10)
        out[torch.arange(len(place)), at[:, 0], at[:, 1]] = 1
        return out

    d = Split(d.x + noise[0], mask(d.y), d.x_test + noise[1], mask(d.y_test))
    score = recall(d.x_test, d.y_test.long(), lambda out: (out > 0).long())
    return Training(Defects(balance), d.train(32), score, None, {"max_epochs": 8})


# --- batches in order -------------------------------------------------------------------------------------------------


class Shelf(LightningDataModule):
    """Digits as an export sorted by label leaves them."""

    def __init__(self, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.digits, self.shuffle = data.digits(seed), shuffle

    def setup(self, stage: str) -> None:
        order = self.digits.y.argsort(stable=True)
        self.rows = TensorDataset(self.digits.x[order].view(-1, 1, 8, 8), self.digits.y[order])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=24, shuffle=self.shuffle)


class Reader(LightningModule):
    """Digits by convolutions with momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(-1, 1, 8, 8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


@sick("v-digits-off-the-shelf", "cnn", "unshuffled-data", twin=lambda s: off_the_shelf(s, True))
def off_the_shelf(seed: int, shuffle: bool = False) -> Training:
    shelf = Shelf(seed, shuffle)
    return Training(Reader(), shelf, shelf.digits.accuracy, None, {"max_epochs": 5})


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """The clouds of one folder, which are all of one kind."""

    def __init__(self, d: Split, kind: int) -> None:
        self.clouds = d.x[d.y == kind]
        self.kind = torch.tensor(kind)

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.clouds[i], self.kind


class Folders(LightningModule):
    """Points through a shared network, their maximum and mean."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.out = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(x)
        return self.out(torch.cat([h.amax(1), h.mean(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-solids-folder-after-folder", "point cloud", "unshuffled-data", twin=lambda s: folder_after(s, True))
def folder_after(seed: int, shuffle: bool = False) -> Training:
    d = solids(seed)
    train = DataLoader(ConcatDataset([Folder(d, k) for k in range(4)]), batch_size=25, shuffle=shuffle)
    return Training(Folders(), train, d.accuracy, d.val(), {"max_epochs": 8, "num_sanity_val_steps": 0})


# --- seen before ------------------------------------------------------------------------------------------------------


class Wide(LightningModule):
    """A wide network on blobs whose labels are partly wrong."""

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        self.decay = decay
        self.net = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log_dict({"val_loss": F.cross_entropy(out, y), "val_acc": (out.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=self.decay)


@sick(
    "v-blobs-jittered-before-the-cut",
    "mlp",
    "train-val-leakage",
    twin=lambda s: jittered(s, True),
    note="copies of the rows that are validated on stand in the training set; the score is how honest val_acc is",
)
def jittered(seed: int, apart: bool = False) -> Training:
    """A table where each row stands twice is cut at random (or cut by row first)."""
    d = data.blobs(seed, n=600, spread=1.2)
    if apart:
        first = torch.arange(450)
        taken, held = torch.cat([first, first]), torch.arange(450, 600)
    else:
        order = torch.randperm(1200, generator=data.generator(seed, 124)) % 600
        taken, held = order[:900], order[900:]
    x, y, told = d.x[taken], d.y[taken], (d.x[held], d.y[held])
    val = loader(*told, size=150, shuffle=False)

    def score(module: LightningModule) -> float:
        promised = data.accuracy(predict(module, told[0]), told[1])
        return -abs(promised - d.accuracy(module))

    return Training(Wide(), loader(x, y, size=45), score, val, {"max_epochs": 15})


# --- too few ----------------------------------------------------------------------------------------------------------


class Small(LightningModule):
    """Strokes by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(3, 32, 5), nn.ReLU(), nn.Conv1d(32, 32, 5), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(640, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x.mT))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-gestures-ten-drawings", "cnn", "too-little-data", "overfitting", twin=lambda s: ten_drawings(s, 800))
def ten_drawings(seed: int, rows: int = 10) -> Training:
    d = gestures(seed)
    x = d.x + 0.9 * torch.randn(d.x.shape, generator=data.generator(seed, 125))
    x_test = d.x_test + 0.9 * torch.randn(d.x_test.shape, generator=data.generator(seed, 126))
    train = loader(x[:rows], d.y[:rows], size=10)
    val = loader(x_test, d.y_test, size=250, shuffle=False)
    settings = {"max_steps": 200, "max_epochs": -1, "check_val_every_n_epoch": 20 if rows < 100 else 1}
    return Training(Small(), train, Split(x, d.y, x_test, d.y_test).accuracy, val, settings)


@sick("v-tones-sixteen-recordings", "audio", "too-little-data", "overfitting", twin=lambda s: recordings(s, 800))
def recordings(seed: int, rows: int = 16) -> Training:
    d = tones(seed)
    module = Recorded()
    train = DataLoader(TensorDataset(d.x[:rows], d.y[:rows]), batch_size=16, shuffle=True)
    settings = {"max_steps": 240, "max_epochs": -1, "log_every_n_steps": 5}
    return Training(module, train, d.accuracy, d.val() if rows > 100 else d.val(500), settings)


class Recorded(LightningModule):
    """Waves flattened into a plain network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 24, 13, stride=3), nn.Linear(24 * 28, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


# --- labels without a link to the inputs ------------------------------------------------------------------------------


class Opinions(LightningModule):
    """Words by a convolution over pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 24, padding_idx=0)
        self.pairs = nn.Conv1d(24, 32, 2)
        self.out = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(F.gelu(self.pairs(self.words(ids).mT)).mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-reviews-merged-on-the-wrong-key", "text", "uninformative-targets", twin=lambda s: wrong_key(s, True))
def wrong_key(seed: int, right: bool = False) -> Training:
    """Texts and labels are joined after one of the two was sorted by length."""
    d = reviews(seed, n=2400)
    y = d.y if right else d.y[(d.x > 0).sum(1).argsort(stable=True)]
    return Training(Opinions(), loader(d.x, y, size=32), d.accuracy, None, {"max_epochs": 4})


class Ahead(LightningModule):
    """One hour ahead by a dense network over the window."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Shuffled(Dataset[tuple[Tensor, Tensor]]):
    """Windows drawn through an index, targets (perhaps) not."""

    def __init__(self, d: Split, order: Tensor, both: bool) -> None:
        self.d, self.order, self.both = d, order, both

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        j = int(self.order[i])
        return self.d.x[j], self.d.y[j if self.both else i]


@sick("v-demand-index-on-one-side", "time series", "uninformative-targets", twin=lambda s: one_side(s, True))
def one_side(seed: int, both: bool = False) -> Training:
    d = demand(seed, n=1800)
    order = torch.randperm(len(d.x), generator=data.generator(seed, 127))
    train = DataLoader(Shuffled(d, order, both), batch_size=36, shuffle=True)
    return Training(Ahead(), train, explained(d.x_test, d.y_test), None, {"max_epochs": 6})


class Groups(LightningModule):
    """A linear layer before and after averaging over neighbours."""

    def __init__(self, mix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mix", mix)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.mix @ self.a(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, nodes = batch
        loss = F.cross_entropy(self(x[0])[nodes[0]], y[0][nodes[0]])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-communities-nodes-renumbered", "graph", "uninformative-targets", twin=lambda s: renumbered(s, True))
def renumbered(seed: int, too: bool = False) -> Training:
    """The library renumbers the nodes; the labels come from the file with the old numbers."""
    x, a, y = communities(seed, nodes=1200)
    g = data.generator(seed, 128)
    order = torch.randperm(len(y), generator=g)
    x, a, truth = x[order], a[order][:, order], y[order]
    labels = truth if too else y
    mix = a + torch.eye(len(a))
    module = Groups(mix / mix.sum(1, keepdim=True))
    nodes = torch.randperm(len(y), generator=g)
    train = loader(x[None], labels[None], nodes[None, :900], size=1)
    rest = nodes[900:]

    def score(module: LightningModule) -> float:
        return (predict(module, x).argmax(1) == truth)[rest].float().mean().item()

    return Training(module, train, score, None, {"max_epochs": 150, "log_every_n_steps": 10})


# --- learnt by heart --------------------------------------------------------------------------------------------------


class Flat(LightningModule):
    """A dense network over the flattened set."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-bags-sixty-epochs", "mlp", "overfitting", twin=lambda s: sixty_epochs(s, 3))
def sixty_epochs(seed: int, epochs: int = 60) -> Training:
    d = bags(seed, n=240)
    noisy = d.y + 0.8 * torch.randn(d.y.shape, generator=data.generator(seed, 129))
    train, val = loader(d.x, noisy, size=32), loader(d.x_test, d.y_test, size=500, shuffle=False)
    return Training(Flat(192), train, explained(d.x_test, d.y_test), val, {"max_epochs": epochs})


class Memory(LightningModule):
    """Reviews by a free vector for each place and word, trained to the last error."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 48)
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(drop), nn.Linear(960, 96), nn.ReLU(), nn.Linear(96, 2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(self.words(ids))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, label = batch
        self.log("val/loss", F.cross_entropy(self(ids), label))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-reviews-by-heart", "text", "overfitting", twin=lambda s: by_heart(s, True))
def by_heart(seed: int, pooled: bool = False) -> Training:
    d = reviews(seed, n=400)
    flipped = data.flip_labels(d.y, 0.2, 2, seed)
    module: LightningModule = Pooled() if pooled else Memory(0.0)

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(predict(module, d.x_test), d.y_test).item()

    return Training(module, loader(d.x, flipped, size=32), score, d.val(), {"max_epochs": 16})


class Pooled(Memory):
    """The same words, averaged over the places, with dropout."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(48, 2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(self.words(ids).mean(1))


class Plain(LightningModule):
    """One hidden layer of a given width."""

    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.net = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log_dict({"val_loss": F.mse_loss(out, y), "val_mae": F.l1_loss(out, y)}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=self.decay)


@sick("v-diabetes-wide-net", "mlp", "overfitting", twin=lambda s: wide_net(s, 8, 10))
def wide_net(seed: int, width: int = 400, epochs: int = 60) -> Training:
    d = data.table("diabetes", seed).map_targets(lambda y: y[:, None])
    settings = {"max_epochs": epochs, "check_val_every_n_epoch": 2}
    return Training(Plain(width, 0.0), d.train(32), explained(d.x_test, d.y_test), d.val(), settings)
