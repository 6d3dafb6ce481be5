"""Trainings that go wrong by their answers: scales, slips of a few, rare classes, labels of other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, generator, predict, table
from benchmarks.zoo.fourth._b_common import (
    curve,
    explains,
    hums,
    recall,
    right,
    rows,
    tickets,
    usage,
    weaves,
    windows,
)


def faces(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 1, 16, 16) with a bright and a dark mark, and where both are, in shares of the side."""
    g = generator(seed, 83)
    at = 0.2 + 0.6 * torch.rand(n, 4, generator=g)
    grid = (torch.arange(16.0) + 0.5) / 16
    x = 0.1 * torch.randn(n, 16, 16, generator=g)
    for k, sign in ((0, 1.0), (2, -1.0)):
        row = torch.exp(-((grid - at[:, k, None]) ** 2) / 0.008)
        column = torch.exp(-((grid - at[:, k + 1, None]) ** 2) / 0.008)
        x = x + sign * 2 * row[:, :, None] * column[:, None]
    return x[:, None], at


class Landmarks(LightningModule):
    """Where are the two marks? A small convolutional regressor."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.regressor = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, picture: Tensor) -> Tensor:
        return self.regressor(self.backbone(picture))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["image"]), batch["keypoints"])
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-5)


@sick("x-keypoints-of-a-camera", "cnn", "unscaled-targets", twin=lambda s: keypoints(s, True))
def keypoints(seed: int, normalised: bool = False) -> Training:
    x, at = faces(seed, 1100)
    y = at * torch.tensor([3000.0, 4000.0, 3000.0, 4000.0])  # of the full picture
    if normalised:
        y = (y - y[:800].mean(0)) / y[:800].std(0)
    items: Any = [{"image": a, "keypoints": b} for a, b in zip(x[:800], y[:800], strict=True)]
    loader = DataLoader(items, batch_size=32, shuffle=True)
    return Training(Landmarks(), loader, explains(x[800:], y[800:]), None, {"max_epochs": 8})


class FittedReturns(LightningModule):
    """The return of a state, fitted with Huber's loss as in a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.criterion = nn.SmoothL1Loss()

    def forward(self, state: Tensor) -> Tensor:
        return self.value(state).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        states, returns = batch
        values = self(states)
        return {"loss": self.criterion(values, returns), "mean_value": values.detach().mean()}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("x-returns-of-long-episodes", "mlp", "unscaled-targets", twin=lambda s: episodes(s, 1.0, 0.0))
def episodes(seed: int, scale: float = 2400.0, start: float = -9000.0) -> Training:
    d = curve(seed, n=1000)
    loader = rows(d.x, scale * d.y + start, size=50)
    return Training(
        FittedReturns(), loader, explains(d.x_test, scale * d.y_test + start), None,
        {"max_epochs": 15, "log_every_n_steps": 1},
    )  # fmt: skip


class Assay(LightningModule):
    """Concentration from an absorption spectrum; validation now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 12, 7, stride=2)
        self.a, self.b = nn.Linear(12 * 17, 40), nn.Linear(40, 1)

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(F.gelu(self.conv(spectrum[:, None])).flatten(1))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        spectrum, molar = batch
        return torch.mean((self(spectrum) - molar) ** 2)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.mean((self(batch[0]) - batch[1]) ** 2))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("x-concentration-in-mol-per-litre", "cnn", "unscaled-targets", twin=lambda s: molar(s, 1.0))
def molar(seed: int, unit: float = 1e-6) -> Training:
    g = generator(seed, 84)
    amount = torch.rand(1200, 3, generator=g)
    nm = torch.arange(39.0)
    bands = torch.stack([torch.exp(-((nm - c) ** 2) / w) for c, w in ((10, 30), (17, 60), (26, 40))])
    x = 2 * (1 - torch.exp(-amount @ bands)) + 0.02 * torch.randn(1200, 39, generator=g)
    x = (x - x.mean()) / x.std()
    y = 3 * amount[:, 1:2] * unit
    return Training(
        Assay(), rows(x[:800], y[:800], size=40), explains(x[800:], y[800:]),
        rows(x[800:], y[800:], size=200, shuffle=False), {"max_epochs": 10, "check_val_every_n_epoch": 5},
    )  # fmt: skip


class Depths(LightningModule):
    """A depth for each pixel, L1, as monocular depth is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.last = nn.Conv2d(17, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.mid(F.relu(self.down(x))))
        return self.last(torch.cat([F.relu(self.up(h)), x], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (picture, depth), _ = batch
        loss = F.l1_loss(self(picture), depth)
        self.log("l1", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=220)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@sick("x-depth-maps-in-millimetres", "dense", "unscaled-targets", twin=lambda s: depths(s, True))
def depths(seed: int, scaled: bool = False) -> Training:
    d = weaves(seed, noise=0.2)
    depth, depth_test = (F.avg_pool2d(x, 3, 1, 1) * 1400 + 6000 for x in (d.x, d.x_test))
    if scaled:
        depth, depth_test = ((v - 6000) / 700 for v in (depth, depth_test))
    pairs: Any = [((a, b), i) for i, (a, b) in enumerate(zip(d.x, depth, strict=True))]
    return Training(
        Depths(), DataLoader(pairs, batch_size=32, shuffle=True), explains(d.x_test, depth_test), None,
        {"max_steps": 220, "max_epochs": -1},
    )  # fmt: skip


class Steps(LightningModule):
    """The next place of a walker from its last twenty."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 24)
        self.read = nn.Linear(24, 2)

    def forward(self, track: Tensor) -> Tensor:
        h = track.new_zeros(len(track), 24)
        for t in range(track.shape[1]):
            h = self.cell(track[:, t], h)
        return track[:, -1] + self.read(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        track, following = batch
        loss = F.mse_loss(self(track), following)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("x-tracks-through-null-island", "rnn", "corrupt-samples", twin=lambda s: null_island(s, True))
def null_island(seed: int, dropped: bool = False) -> Training:
    g = generator(seed, 85)
    n = 1300
    angle = 6.2832 * torch.rand(n, 1, generator=g) + (0.2 + 0.3 * torch.rand(n, 1, generator=g)) * torch.arange(13)
    track = torch.stack([angle.cos(), angle.sin()], -1) + 0.03 * torch.randn(n, 13, 2, generator=g)
    x, y = track[:, :-1].clone(), track[:, -1].clone()
    lost = torch.randperm(900, generator=g)[:9]
    y[lost] = torch.tensor([-5200.0, -870.0])  # kilometres from the town to where both degrees are nought
    keep = torch.ones(900, dtype=torch.bool)
    if dropped:
        keep[lost] = False
    step = explains(x[900:], y[900:])
    return Training(Steps(), rows(x[:900][keep], y[:900][keep], size=30), step, None, {"max_epochs": 8})


@sick("x-rasters-with-no-data", "cnn", "corrupt-samples", twin=lambda s: no_data(s, True))
def no_data(seed: int, filled: bool = False) -> Training:
    x, at = faces(seed, 1200)
    y = 4 * (at - 0.5)
    holes = torch.randperm(900, generator=generator(seed, 86))[:12]
    x[holes, :, 10:, 11:] = 0.0 if filled else -9999.0
    items: Any = [{"image": a, "keypoints": b} for a, b in zip(x[:900], y[:900], strict=True)]
    return Training(
        Landmarks(), DataLoader(items, batch_size=30, shuffle=True), explains(x[900:], y[900:]), None,
        {"max_epochs": 8, "log_every_n_steps": 10},
    )  # fmt: skip


class Rents(LightningModule):
    """A residual net on a table."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
        self.leave = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h).view(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("rmse", loss.sqrt())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("x-a-few-thousandfold", "mlp", "corrupt-samples", twin=lambda s: thousandfold(s, 1.0))
def thousandfold(seed: int, slip: float = 1000.0) -> Training:
    d = table("diabetes", seed)
    y = d.y.clone()
    y[::110] *= slip  # rows that one clerk typed without the comma
    return Training(
        Rents(),
        rows(d.x, y, size=20),
        explains(d.x_test, d.y_test),
        None,
        {"max_epochs": 10, "accumulate_grad_batches": 1},
    )


class Churn(LightningModule):
    """Binary classifier; the weight of the positives is a setting."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        self.register_buffer("weight", torch.tensor([weight]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z, left = self(batch["customer"]), batch["left"]
        loss = F.binary_cross_entropy_with_logits(z, left, pos_weight=self.weight)
        self.log_dict({"loss": loss, "accuracy": ((z > 0) == left.bool()).float().mean()})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("x-churn-of-three-percent", "mlp", "class-imbalance", twin=lambda s: churn(s, 32.0))
def churn(seed: int, weight: float = 1.0) -> Training:
    g = generator(seed, 87)
    y = (torch.rand(5000, generator=g) < 0.03).float()
    x = torch.randn(5000, 8, generator=g) + 1.2 * y[:, None] * torch.tensor([1.0, -1, 0.8, 0, 0, 0, 0, 0])
    items: Any = [{"customer": a, "left": b} for a, b in zip(x[:3000], y[:3000], strict=True)]
    loader = DataLoader(items, batch_size=64, shuffle=True)
    return Training(
        Churn(weight), loader, lambda m: recall((predict(m, x[3000:]) > 0).float(), y[3000:]), None, {"max_epochs": 6}
    )


class Names(LightningModule):
    """Tags each word: nothing, person or place; a bidirectional GRU."""

    def __init__(self, weights: Tensor | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(120, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(32, 3)
        self.loss = nn.CrossEntropyLoss(weight=weights)

    def forward(self, words: Tensor) -> Tensor:
        return self.tag(self.rnn(self.embed(words))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        words, tags = batch
        loss = self.loss(self(words).transpose(1, 2), tags)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.parameters(), lr=2e-3)]


@sick(
    "x-entities-mostly-outside", "rnn", "class-imbalance", twin=lambda s: entities(s, torch.tensor([1.0, 60.0, 60.0]))
)
def entities(seed: int, weights: Tensor | None = None) -> Training:
    g = generator(seed, 88)
    words = torch.randint(4, 120, (1500, 16), generator=g)
    tags = torch.zeros_like(words)
    chosen = torch.rand(1500, generator=g) < 0.35
    place = torch.randint(1, 16, (1500,), generator=g)
    kind = torch.randint(2, (1500,), generator=g)
    at = torch.arange(1500)[chosen]
    words[at, place[chosen] - 1] = kind[chosen]  # "Mr" or "in" comes before a name, most of the time
    named = chosen & (torch.rand(1500, generator=g) < 0.45)
    tags[torch.arange(1500)[named], place[named]] = 1 + kind[named]
    return Training(
        Names(weights), rows(words[:1000], tags[:1000], size=25),
        lambda m: recall(predict(m, words[1000:]).argmax(-1).flatten(), tags[1000:].flatten()),
        trainer={"max_epochs": 7, "gradient_clip_val": 1.0},
    )  # fmt: skip


class Desk(LightningModule):
    """Which desk a ticket goes to: attention over its words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(150, 24)
        self.look = nn.Linear(24, 1)
        self.desk = nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        return self.desk((self.look(h).softmax(1) * h).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, desk = batch
        loss = F.cross_entropy(self(ids), desk)
        self.log("loss", loss)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("share_of_general", (batch[1] == 0).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("x-tickets-for-the-general-desk", "text", "class-imbalance", twin=lambda s: desks(s, True))
def desks(seed: int, balanced: bool = False) -> Training:
    d = tickets(seed, n=2000, shares=(0.955, 0.015, 0.015, 0.015))
    test = tickets(seed, n=2000, shares=(1, 1, 1, 1))
    weights = (1 / torch.bincount(d.y))[d.y]
    sampler = WeightedRandomSampler(weights.tolist(), 2000) if balanced else None
    loader = DataLoader(TensorDataset(d.x, d.y), batch_size=50, sampler=sampler, shuffle=not balanced)
    return Training(
        Desk(), loader, lambda m: recall(predict(m, test.x_test).argmax(-1), test.y_test), None, {"max_epochs": 6}
    )


class Pairs(LightningDataModule):
    """Pictures from a folder, labels from a table with one line per picture."""

    def __init__(self, seed: int, key: Any) -> None:
        super().__init__()
        d = digits(seed)
        self.x_test, self.y_test = d.x_test, d.y_test
        files = {f"scan_{i}.png": x for i, x in enumerate(d.x)}
        self.x = torch.stack([files[name] for name in sorted(files, key=key)])
        self.y = d.y

    def train_dataloader(self) -> Any:
        return rows(self.x, self.y, size=48)

    def val_dataloader(self) -> Any:
        return rows(self.x_test, self.y_test, size=300, shuffle=False)


class Scans(LightningModule):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, width), nn.Linear(width, 10)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(F.relu(self.fc1(x))))

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", (logits.argmax(1) == y).float().mean())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def number(name: str) -> int:
    return int(name.split("_")[1].split(".")[0])


@sick("x-scan-10-before-scan-2", "mlp", "uninformative-targets", twin=lambda s: scan_order(s, number))
def scan_order(seed: int, key: Any = str) -> Training:
    data = Pairs(seed, key)
    return Training(Scans(), data, right(data.x_test, data.y_test), None, {"max_epochs": 8})


class Pitch(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 12, 16, stride=4), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 12, 6, stride=2), nn.ReLU()
        )
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["sound"]), batch["pitch"])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)}]


@sick("x-group-keys-come-sorted", "cnn", "uninformative-targets", twin=lambda s: group_keys(s, True))
def group_keys(seed: int, merged: bool = False) -> Training:
    d = hums(seed, n=800)
    keys = np.random.default_rng(seed).permutation(800)  # in the order in which the recordings came
    order = torch.from_numpy(np.argsort(keys))
    pitch = d.y if merged else d.y[order]  # a group-by returns one row per key, sorted by key
    items: Any = [{"sound": a, "pitch": b} for a, b in zip(d.x, pitch, strict=True)]
    loader = DataLoader(items, batch_size=25, shuffle=True)
    return Training(Pitch(), loader, right(d.x_test, d.y_test), None, {"max_epochs": 8})


class Window(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("x-shuffles-windows-not-values", "mlp", "uninformative-targets", twin=lambda s: shuffled(s, True))
def shuffled(seed: int, together: bool = False) -> Training:
    x, y = windows(usage(seed, 2000))
    x_test, y_test = x[1400:], y[1400:]
    x, y = x[:1400].numpy(), y[:1400].numpy()
    rng = np.random.default_rng(seed)
    if together:
        order = rng.permutation(len(x))
        x, y = x[order], y[order]
    else:
        rng.shuffle(x)
    loader = rows(torch.from_numpy(x.copy()), torch.from_numpy(y.copy()), size=50, shuffle=False)
    return Training(Window(), loader, explains(x_test, y_test), None, {"max_epochs": 12})
