"""Learning itself: rates, gradients, activations, penalties, statistics, capacity; sixteen sick trainings, seven well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick, well

# --- rented bicycles: a table with embeddings, one-cycle --------------------------------------------------------------


class Rentals(Dataset[dict[str, Tensor]]):
    """Hours of a bicycle hire: station, hour, weekday, three weather columns, and the log of the count."""

    def __init__(self, seed: int, n: int, offset: int = 0) -> None:
        g = data.generator(seed, 150)
        station_pull = 0.6 * torch.randn(20, generator=g)
        peak = torch.randn(20, generator=g)
        g = data.generator(seed, 151 + offset)
        self.station = torch.randint(20, (n,), generator=g)
        self.hour = torch.randint(24, (n,), generator=g)
        self.weekday = torch.randint(7, (n,), generator=g)
        self.weather = torch.randn(n, 3, generator=g)
        angle = 2 * math.pi * self.hour / 24
        work = (self.weekday < 5).float()
        signal = station_pull[self.station] + torch.sin(angle + peak[self.station]) * (0.4 + work)
        signal = signal + 0.5 * torch.tanh(self.weather[:, 0]) - 0.3 * self.weather[:, 1].clamp(min=0)
        self.log_count = signal + 0.3 * torch.randn(n, generator=g)

    def __len__(self) -> int:
        return len(self.station)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        codes = torch.stack([self.station[i], self.hour[i], self.weekday[i]])
        return {"codes": codes, "weather": self.weather[i], "log_count": self.log_count[i]}

    def whole(self) -> dict[str, Tensor]:
        codes = torch.stack([self.station, self.hour, self.weekday], dim=1)
        return {"codes": codes, "weather": self.weather, "log_count": self.log_count}


@dataclass
class RentalConfig:
    max_lr: float
    width: int = 64
    steps: int = 250
    weight_decay: float = 1e-2


class RentalNet(LightningModule):
    def __init__(self, config: RentalConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = nn.ModuleList([nn.Embedding(20, 8), nn.Embedding(24, 8), nn.Embedding(7, 4)])
        w = config.width
        self.trunk = nn.Sequential(nn.Linear(23, w), nn.GELU(), nn.Linear(w, w), nn.GELU(), nn.Linear(w, w), nn.GELU())
        self.out = nn.Linear(w, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = [table(batch["codes"][:, i]) for i, table in enumerate(self.tables)]
        return self.out(self.trunk(torch.cat([*parts, batch["weather"]], dim=1))).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.smooth_l1_loss(self(batch), batch["log_count"])
        self.log("train/huber", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/mae", F.l1_loss(self(batch), batch["log_count"]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        c = self.config
        opt = torch.optim.AdamW(self.parameters(), lr=c.max_lr, weight_decay=c.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(opt, c.max_lr, total_steps=c.steps, pct_start=0.3)
        return [opt], [{"scheduler": cycle, "interval": "step"}]


def rentals(seed: int, max_lr: float) -> Training:
    train, val = Rentals(seed, 3200), Rentals(seed, 800, offset=1)
    whole = val.whole()

    def explained(module: LightningModule) -> float:
        return data.r2(data.predict(module, whole), whole["log_count"])

    return Training(
        RentalNet(RentalConfig(max_lr=max_lr)),
        DataLoader(train, 64, shuffle=True),
        explained,
        DataLoader(val, 200),
        {"max_steps": 250},
    )


@sick(
    "ya-rentals-one-cycle",
    "tabular embeddings",
    "learning-rate-too-high",
    twin=lambda seed: rentals(seed, max_lr=0.02),
    note="a one-cycle peak of 0.25, from a recipe for SGD, given to AdamW",
)
def rentals_peak(seed: int) -> Training:
    return rentals(seed, max_lr=0.25)


# --- a tagger of tokens: GRU, padded batches --------------------------------------------------------------------------


def tagged(seed: int, n: int) -> list[tuple[Tensor, Tensor]]:
    """Sentences of 8 to 20 tokens out of 24; a tag of 6 depends on the token and on the kind of the one before."""
    g = data.generator(seed, 153)
    kind = torch.randint(3, (25,), generator=g)
    table = torch.randint(6, (25, 3), generator=g)
    rows = []
    for _ in range(n):
        length = int(torch.randint(8, 21, (1,), generator=g))
        ids = torch.randint(1, 25, (length,), generator=g)
        before = torch.cat([torch.zeros(1, dtype=torch.long), ids[:-1]])
        rows.append((ids, table[ids, kind[before]]))
    return rows


def pad(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([r[0] for r in rows], batch_first=True)
    tags = nn.utils.rnn.pad_sequence([r[1] for r in rows], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "labels": tags}


class TokenTagger(LightningModule):
    def __init__(self, lr: float = 2e-5, warmup: int = 20, total: int = 200) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(25, 32, padding_idx=0)
        self.gru = nn.GRU(32, 48, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.1)
        self.classifier = nn.Linear(96, 6)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.classifier(self.drop(self.gru(self.embed(input_ids))[0]))

    def shared_step(self, batch: dict[str, Tensor], stage: str) -> Tensor:
        logits = self(batch["input_ids"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        real = batch["labels"] >= 0
        self.log_dict(
            {f"{stage}_loss": loss, f"{stage}_acc": (logits.argmax(-1) == batch["labels"])[real].float().mean()}
        )
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.shared_step(batch, "val")

    def configure_optimizers(self) -> Any:
        hp = self.hparams
        optimizer = torch.optim.AdamW(self.parameters(), lr=hp["lr"], weight_decay=0.01)

        def linear(step: int) -> float:
            if step < hp["warmup"]:
                return (step + 1) / hp["warmup"]
            return max(0.05, (hp["total"] - step) / (hp["total"] - hp["warmup"]))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tagging(seed: int, lr: float) -> Training:
    rows = tagged(seed, 1250)
    test = pad(rows[1000:])

    def right(module: LightningModule) -> float:
        real = test["labels"] >= 0
        return (data.predict(module, test["input_ids"]).argmax(-1) == test["labels"])[real].float().mean().item()

    return Training(
        TokenTagger(lr=lr, total=260),
        DataLoader(rows[:1000], 32, shuffle=True, collate_fn=pad),
        right,
        DataLoader(rows[1000:], 64, collate_fn=pad),
        {"max_epochs": 8},
    )


@sick(
    "ya-tagger-from-scratch",
    "sequence tagging",
    "learning-rate-too-low",
    twin=lambda seed: tagging(seed, lr=5e-3),
    note="3e-5, the rate for fine-tuning BERT, on a GRU that starts from nothing",
)
def tagger_slow(seed: int) -> Training:
    return tagging(seed, lr=3e-5)


# --- a learned simulator, rolled out ----------------------------------------------------------------------------------


def orbits(seed: int, n: int, steps: int) -> Tensor:
    """Two coupled pendulums (n, steps + 1, 4): angles and speeds."""
    g = data.generator(seed, 154)
    x = 1.2 * torch.randn(n, 4, generator=g)
    track = [x]
    for _ in range(steps):
        for _ in range(4):
            angle, speed = x[:, :2], x[:, 2:]
            force = -torch.sin(angle) + 0.4 * (angle.flip(1) - angle) - 0.05 * speed
            speed = speed + 0.05 * force
            x = torch.cat([angle + 0.05 * speed, speed], dim=1)
        track.append(x)
    return torch.stack(track, dim=1)


class PendulumModel(LightningModule):
    def __init__(self, horizon: int, dt: float = 0.2, lr: float = 0.06) -> None:
        super().__init__()
        self.horizon, self.dt, self.lr = horizon, dt, lr
        self.change = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, start: Tensor) -> Tensor:
        x, out = start, []
        for _ in range(self.horizon):
            x = x + self.dt * self.change(x)
            out.append(x)
        return torch.stack(out, dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (track,) = batch
        loss = (self(track[:, 0]) - track[:, 1:]).pow(2).mean()
        self.log("rollout_mse", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def pendulums(seed: int, **trainer: Any) -> Training:
    tracks = orbits(seed, 1000, 30)
    train = DataLoader(TensorDataset(tracks[:800]), 32, shuffle=True, drop_last=True)

    def minus_error(module: LightningModule) -> float:
        error = (data.predict(module, tracks[800:, 0]) - tracks[800:, 1:]).pow(2).mean().item()
        return -min(error, 100.0) if math.isfinite(error) else -100.0

    return Training(PendulumModel(30), train, minus_error, trainer={"max_epochs": 10, **trainer})


@sick(
    "ya-pendulums-rollout",
    "learned simulator",
    "exploding-gradients",
    "learning-rate-too-high",
    twin=lambda seed: pendulums(seed, gradient_clip_val=0.5),
    note="thirty steps of an unrolled simulator are differentiated through, and nothing bounds the gradient",
)
def pendulums_free(seed: int) -> Training:
    return pendulums(seed)


# --- a deep stack over sensor windows ---------------------------------------------------------------------------------


class WindowStack(LightningModule):
    def __init__(self, make: type[nn.Module], depth: int = 9) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 16, 5, padding=2), make()]
        for i in range(depth):
            layers += [nn.Conv1d(16, 16, 3, padding=1), make()]
            if i in (2, 5):
                layers.append(nn.MaxPool1d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(16 * 8, 4)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.transpose(1, 2)).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log("val_loss", self.criterion(out, y))
        self.log("val_acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def windows(seed: int, make: type[nn.Module]) -> Training:
    parts = data.motifs(seed)
    return Training(WindowStack(make), parts.train(32), parts.accuracy, parts.val(), {"max_epochs": 10})


@sick(
    "ya-sensor-windows-ten-layers",
    "1d cnn",
    "vanishing-gradients",
    twin=lambda seed: windows(seed, nn.SiLU),
    note="ten convolutions, each followed by a sigmoid, and no shortcut or normalisation",
)
def windows_deep(seed: int) -> Training:
    return windows(seed, nn.Sigmoid)


# --- sets of points: weights filled by hand ---------------------------------------------------------------------------


def clouds(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Sets (n, 16, 3) of points, and two properties of each set."""
    g = data.generator(seed, 155)
    spread = 0.4 + 1.2 * torch.rand(n, 1, 3, generator=g)
    points = spread * torch.randn(n, 16, 3, generator=g) + 0.7 * torch.randn(n, 1, 3, generator=g)
    first = (points[:, :, 0] * points[:, :, 1]).mean(1) + points[:, :, 2].abs().mean(1)
    second = torch.sin(2 * points[:, :, 0]).mean(1) - points[:, :, 1].square().mean(1)
    y = torch.stack([first, second], dim=1)
    return points, (y - y.mean(0)) / y.std(0)


class SetRegressor(LightningModule):
    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.per_point = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.per_set = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.by_hand = by_hand
        self.apply(self._fill)

    def _fill(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if self.by_hand:
                nn.init.constant_(module.weight, 0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, points: Tensor) -> Tensor:
        return self.per_set(self.per_point(points).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        points, y = batch
        loss = F.mse_loss(self(points), y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def sets(seed: int, by_hand: bool) -> Training:
    points, y = clouds(seed, 2400)

    def explained(module: LightningModule) -> float:
        return data.r2(data.predict(module, points[2000:]), y[2000:])

    train = DataLoader(TensorDataset(points[:2000], y[:2000]), 50, shuffle=True)
    return Training(SetRegressor(by_hand), train, explained, trainer={"max_epochs": 10})


@sick(
    "ya-point-sets",
    "deep sets",
    "bad-initialization",
    twin=lambda seed: sets(seed, by_hand=False),
    note="every weight is set to 0.02 'so that runs can be repeated': all units of a layer stay the same unit",
)
def sets_constant(seed: int) -> Training:
    return sets(seed, by_hand=True)


# --- a detector on a grid ---------------------------------------------------------------------------------------------


def squares(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (n, 1, 24, 24) with two bright squares; for a 6 x 6 grid, which cells hold one, and where in the cell."""
    g = data.generator(seed, 156)
    picture = 0.4 * torch.randn(n, 1, 24, 24, generator=g)
    cell, offset = torch.zeros(n, 6, 6), torch.zeros(n, 2, 6, 6)
    place = 2 + 20 * torch.rand(n, 2, 2, generator=g)
    axis = torch.arange(24.0) + 0.5
    rows = torch.arange(n)
    for k in range(2):
        y, x = place[:, k, 0], place[:, k, 1]
        near = ((axis[None, :, None] - y[:, None, None]).abs() < 2) & ((axis[None, None] - x[:, None, None]).abs() < 2)
        picture[:, 0] += 1.0 * near
        i, j = (y / 4).long(), (x / 4).long()
        cell[rows, i, j] = 1.0
        offset[rows, 0, i, j] = y / 4 - i - 0.5
        offset[rows, 1, i, j] = x / 4 - j - 0.5
    return picture, cell, offset


class GridDetector(LightningModule):
    def __init__(self, prior: float, whole_head: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.score = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 1, 1)
        )
        self.shift = nn.Conv2d(32, 2, 3, 1, 1)
        start = -math.log((1 - prior) / prior)
        for module in self.score.modules() if whole_head else [self.score[-1]]:
            if isinstance(module, nn.Conv2d):
                nn.init.constant_(module.bias, start)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.backbone(picture)
        return self.score(shared).squeeze(1), self.shift(shared)

    def losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        picture, target = batch["image"], batch["target"]
        logit, shift = self(picture)
        p = torch.sigmoid(logit)
        ce = F.binary_cross_entropy_with_logits(logit, target["cell"], reduction="none")
        pt = p * target["cell"] + (1 - p) * (1 - target["cell"])
        weight = 0.25 * target["cell"] + 0.75 * (1 - target["cell"])
        count = target["cell"].sum().clamp(min=1)
        focal = (weight * (1 - pt) ** 2 * ce).sum() / count
        box = (F.smooth_l1_loss(shift, target["offset"], reduction="none") * target["cell"][:, None]).sum() / count
        return focal, box

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        focal, box = self.losses(batch)
        self.log_dict({"loss/focal": focal, "loss/box": box})
        return focal + box

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        focal, box = self.losses(batch)
        self.log_dict({"val/focal": focal, "val/box": box})

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-4)


def nested(rows: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
    picture, cell, offset = (torch.stack(part) for part in zip(*rows, strict=True))
    return {"image": picture, "target": {"cell": cell, "offset": offset}}


def detect(seed: int, whole_head: bool) -> Training:
    picture, cell, offset = squares(seed, 1100)
    table = TensorDataset(picture, cell, offset)
    train = DataLoader(torch.utils.data.Subset(table, range(900)), 30, shuffle=True, collate_fn=nested)
    val = DataLoader(torch.utils.data.Subset(table, range(900, 1100)), 100, collate_fn=nested)

    def found(module: LightningModule) -> float:
        """Share of the marked cells that are among the best of their picture."""
        logit, _ = data.predict(module, picture[900:])
        best = torch.zeros(200, 36).scatter_(1, logit.flatten(1).topk(2, dim=1).indices, 1.0)
        truth = cell[900:].flatten(1)
        return ((best * truth).sum() / truth.sum()).item()

    return Training(GridDetector(0.01, whole_head), train, found, val, {"max_epochs": 6})


@sick(
    "ya-grid-detector-prior",
    "detection",
    "dead-activations",
    "bad-initialization",
    twin=lambda seed: detect(seed, whole_head=False),
    note="the focal loss's prior bias of -4.6 goes to every convolution of the head, not to the last one alone",
)
def detect_prior(seed: int) -> Training:
    return detect(seed, whole_head=True)


# --- short codes for retrieval ----------------------------------------------------------------------------------------


class ShortCodes(LightningModule):
    def __init__(self, sharpness: float, bits: int = 10) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.encoder = nn.Sequential(
            nn.Linear(64, 96), nn.GELU(), nn.Linear(96, bits), nn.LayerNorm(bits, elementwise_affine=False)
        )
        self.squash = nn.Tanh()
        self.classes = nn.Linear(bits, 10)

    def forward(self, x: Tensor) -> Tensor:
        code = self.squash(self.sharpness * self.encoder(x))
        return self.classes(code)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


def codes(seed: int, sharpness: float) -> Training:
    digits = data.digits(seed)
    return Training(ShortCodes(sharpness), digits.train(45), digits.accuracy, digits.val(), {"max_epochs": 12})


@sick(
    "ya-short-codes",
    "hashing",
    "saturated-activations",
    twin=lambda seed: codes(seed, sharpness=1.0),
    note="tanh(70 h) from the first step, to have codes of plus and minus one; the paper starts at 1 and raises it",
)
def codes_sharp(seed: int) -> Training:
    return codes(seed, sharpness=70.0)


# --- patches of pictures, mixed ---------------------------------------------------------------------------------------


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.n2(x))


class PatchMixer(LightningModule):
    def __init__(self, optimizer: str, weight_decay: float) -> None:
        super().__init__()
        self.optimizer_name, self.weight_decay = optimizer, weight_decay
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.05)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/top1", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        make = getattr(torch.optim, self.optimizer_name)
        return make(self.parameters(), lr=2e-3, weight_decay=self.weight_decay)


def mixer(seed: int, optimizer: str, weight_decay: float) -> Training:
    digits = data.digits(seed).to_images()
    return Training(
        PatchMixer(optimizer, weight_decay), digits.train(64), digits.accuracy, digits.val(), {"max_epochs": 12}
    )


@sick(
    "ya-patch-mixer-adam",
    "mixer",
    "excess-regularization",
    twin=lambda seed: mixer(seed, "AdamW", 0.05),
    note="weight_decay=0.05, meant for AdamW, given to Adam, where it is an L2 gradient",
)
def mixer_adam(seed: int) -> Training:
    return mixer(seed, "Adam", 0.05)


# --- buildings: two loads at once -------------------------------------------------------------------------------------


class LoadsData(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        g = data.generator(seed, 157)
        x = torch.randn(2600, 8, generator=g)
        heat = x[:, 0] * torch.sigmoid(2 * x[:, 1]) + torch.sin(2 * x[:, 2]) + 0.5 * x[:, 3]
        cool = -x[:, 0] + torch.cos(1.5 * x[:, 4]) * x[:, 5] + 0.3 * x[:, 6].abs()
        both = torch.stack([heat, cool], dim=1)
        both = (both - both.mean(0)) / both.std(0) + 0.2 * torch.randn(2600, 2, generator=g)
        self.x, self.both = x, both

    def _set(self, part: slice) -> TensorDataset:
        return TensorDataset(self.x[part], self.both[part, 0], self.both[part, 1])

    @staticmethod
    def _collate(rows: Any) -> Any:
        x, heat, cool = (torch.stack(c) for c in zip(*rows, strict=True))
        return x, {"heating": heat, "cooling": cool}

    def train_dataloader(self) -> Any:
        return DataLoader(self._set(slice(0, 2000)), 40, shuffle=True, collate_fn=self._collate)

    def val_dataloader(self) -> Any:
        return DataLoader(self._set(slice(2000, 2600)), 200, collate_fn=self._collate)


class LoadsModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(8, 64), nn.Mish(), nn.Linear(64, 64), nn.Mish())
        self.heads = nn.ModuleDict({"heating": nn.Linear(64, 1), "cooling": nn.Linear(64, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.shared(x)
        return {name: head(h).squeeze(-1) for name, head in self.heads.items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        out = self(x)
        losses = {name: F.mse_loss(out[name], target[name]) for name in out}
        self.log_dict({f"mse_{name}": value for name, value in losses.items()})
        return sum(losses.values())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, target = batch
        out = self(x)
        for name in out:
            self.log(f"val_mae_{name}", (out[name] - target[name]).abs().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, nesterov=True)


def loads(seed: int, clip: float) -> Training:
    module = LoadsData(seed)

    def explained(net: LightningModule) -> float:
        out = data.predict(net, module.x[2000:])
        return data.r2(torch.stack([out["heating"], out["cooling"]], dim=1), module.both[2000:])

    return Training(LoadsModel(), module, explained, trainer={"max_epochs": 8, "gradient_clip_val": clip})


@sick(
    "ya-building-loads-clip",
    "multi-task",
    "clipping-too-tight",
    twin=lambda seed: loads(seed, clip=5.0),
    note="every gradient is clipped to a norm of 0.005; they are near 1",
)
def loads_clip(seed: int) -> Training:
    return loads(seed, clip=0.005)


# --- a graph whose nodes are labelled ---------------------------------------------------------------------------------


def wired(seed: int, graphs: int, nodes: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs: adjacency (n, nodes, nodes), features (n, nodes, 6), and a label of 4 made of a node's and its kin's."""
    g = data.generator(seed, 158)
    edge = (torch.rand(graphs, nodes, nodes, generator=g) < 0.12).float().triu(1)
    adjacency = edge + edge.transpose(1, 2)
    x = torch.randn(graphs, nodes, 6, generator=g)
    degree = adjacency.sum(2, keepdim=True).clamp(min=1)
    near = adjacency @ torch.relu(x) / degree
    far = adjacency @ near / degree
    scores = torch.stack(
        [x[..., 0] * 1.2, 2 * near[..., 1] - 0.7 + x[..., 2], 4 * far[..., 3] - 1.6, -x[..., 0] + x[..., 4] * 0.8],
        dim=-1,
    )
    return adjacency, x, scores.argmax(-1)


class Propagate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.kin = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        mean = adjacency @ x / adjacency.sum(-1, keepdim=True).clamp(min=1)
        return F.relu(self.own(x) + self.kin(mean))


class NodeLabels(LightningModule):
    def __init__(self, depth: int, listed: bool) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 32)
        steps = [Propagate(32) for _ in range(depth)]
        self.steps = nn.ModuleList(steps) if listed else steps
        self.out = nn.Linear(32, 4)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        adjacency, x = batch
        h = self.inp(x)
        for step in self.steps:
            h = step(h, adjacency)
        return self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        graph, y = batch
        loss = F.cross_entropy(self(graph).transpose(1, 2), y)
        self.log("train_nll", loss, batch_size=len(y))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        graph, y = batch
        self.log("val_acc", (self(graph).argmax(-1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def as_graphs(rows: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    adjacency, x, y = (torch.stack(c) for c in zip(*rows, strict=True))
    return (adjacency, x), y


def graphs(seed: int, listed: bool) -> Training:
    adjacency, x, y = wired(seed, 760)
    table = TensorDataset(adjacency, x, y)
    train = DataLoader(torch.utils.data.Subset(table, range(560)), 16, shuffle=True, collate_fn=as_graphs)
    val = DataLoader(torch.utils.data.Subset(table, range(560, 760)), 50, collate_fn=as_graphs)

    def right(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, (adjacency[560:], x[560:])), y[560:])

    return Training(NodeLabels(4, listed), train, right, val, {"max_epochs": 8})


@sick(
    "ya-node-labels-list",
    "graph",
    "parameters-not-optimized",
    twin=lambda seed: graphs(seed, listed=True),
    note="the layers of the graph stand in a plain Python list, so parameters() does not hold them",
)
def graphs_list(seed: int) -> Training:
    return graphs(seed, listed=False)


# --- a forecast with a stepwise rate ----------------------------------------------------------------------------------


class TrafficData(LightningDataModule):
    def __init__(self, seed: int, past: int = 30, ahead: int = 6) -> None:
        super().__init__()
        g = data.generator(seed, 159)
        t = torch.arange(1800.0)
        series = torch.sin(2 * math.pi * t / 24) + 0.6 * torch.sin(2 * math.pi * t / 7 + 1) * torch.sin(
            2 * math.pi * t / 90
        )
        noise = torch.zeros(1800)
        for i in range(1, 1800):
            noise[i] = 0.7 * noise[i - 1] + 0.15 * torch.randn((), generator=g)
        cut = (series + noise).unfold(0, past + ahead, 1)
        self.past, self.future = cut[:, :past, None], cut[:, past:]

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.past[:1300], self.future[:1300]), 32, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.past[1340:], self.future[1340:]), 128)


class Forecaster(LightningModule):
    def __init__(self, interval: str) -> None:
        super().__init__()
        self.interval = interval
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.proj = nn.Linear(32, 6)

    def forward(self, past: Tensor) -> Tensor:
        _, (h, _) = self.lstm(past)
        return self.proj(h[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        past, future = batch
        loss = F.l1_loss(self(past), future)
        self.log("train_mae", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        past, future = batch
        self.log("val_mae", F.l1_loss(self(past), future))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.NAdam(self.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


def traffic(seed: int, interval: str) -> Training:
    module = TrafficData(seed)

    def explained(net: LightningModule) -> float:
        return data.r2(data.predict(net, module.past[1340:]), module.future[1340:])

    return Training(Forecaster(interval), module, explained, trainer={"max_epochs": 10})


@sick(
    "ya-traffic-forecast-steps",
    "forecasting",
    "learning-rate-decayed-early",
    twin=lambda seed: traffic(seed, "epoch"),
    note="StepLR(4, 0.5), counted in epochs, is stepped at every batch",
)
def traffic_steps(seed: int) -> Training:
    return traffic(seed, "step")


# --- pictures cleaned, with two optimizers by hand --------------------------------------------------------------------


class Cleaner(LightningModule):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.both = both
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ELU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ELU())
        self.up = nn.Sequential(nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.ELU(), nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        return self.up(self.down(noisy))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        noisy, clean = batch
        opt_down, opt_up = self.optimizers()
        loss = F.mse_loss(self(noisy), clean)
        opt_up.zero_grad()
        if self.both:
            opt_down.zero_grad()
        self.manual_backward(loss)
        opt_down.step()
        opt_up.step()
        self.log("loss", loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.down.parameters(), lr=0.2, momentum=0.9),
            torch.optim.Adam(self.up.parameters(), lr=2e-3),
        )


def cleaning(seed: int, both: bool) -> Training:
    digits = data.digits(seed).to_images()
    g = data.generator(seed, 160)
    clean = F.interpolate(torch.cat([digits.x, digits.x_test]), size=16, mode="bilinear") * 2 - 1
    noisy = clean + 0.8 * torch.randn(clean.shape, generator=g)
    n = len(digits.x)

    def explained(module: LightningModule) -> float:
        error = (data.predict(module, noisy[n:]) - clean[n:]).square().mean() / clean[n:].var()
        return 1 - min(error.item(), 10.0) if torch.isfinite(error) else -9.0

    train = DataLoader(TensorDataset(noisy[:n], clean[:n]), 32, shuffle=True)
    return Training(Cleaner(both), train, explained, trainer={"max_epochs": 5})


@sick(
    "ya-clean-pictures-two-optimizers",
    "manual optimisation",
    "gradients-not-cleared",
    twin=lambda seed: cleaning(seed, both=True),
    note="of two optimizers stepped by hand only one has its gradients cleared",
)
def cleaning_one(seed: int) -> Training:
    return cleaning(seed, both=False)


# --- pairs of samples -------------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    """Two samples, of the same class half of the time, and whether they are."""

    def __init__(self, x: Tensor, y: Tensor, seed: int) -> None:
        self.x, self.y = x, y
        g = data.generator(seed, 161)
        self.order = torch.randint(len(x), (len(x),), generator=g)
        self.pick = torch.rand(len(x), generator=g)
        self.members = [torch.nonzero(y == c)[:, 0] for c in range(int(y.max()) + 1)]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        j = int(self.order[i])
        if self.pick[i] < 0.5:
            kin = self.members[int(self.y[i])]
            j = int(kin[int(self.pick[i] * 2 * len(kin))])
        return {"left": self.x[i], "right": self.x[j], "same": (self.y[i] == self.y[j]).float()}


class PairModel(LightningModule):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embed = nn.Sequential(
            nn.Linear(16, 64), nn.LeakyReLU(0.1), nn.Linear(64, 64), nn.LeakyReLU(0.1), nn.Linear(64, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        difference = self(batch["left"]) - self(batch["right"])
        distance = torch.sqrt(difference.pow(2).sum(1) + self.eps)
        pull = batch["same"] * distance.pow(2)
        push = (1 - batch["same"]) * F.relu(2.0 - distance).pow(2)
        loss = (pull + push).mean()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def pairs(seed: int, eps: float) -> Training:
    blobs = data.blobs(seed, classes=12, columns=16, n=2000, spread=3.0)

    def nearest(module: LightningModule) -> float:
        z, z_test = data.predict(module, blobs.x), data.predict(module, blobs.x_test)
        centres = torch.stack([z[blobs.y == c].mean(0) for c in range(12)])
        return (torch.cdist(z_test, centres).argmin(1) == blobs.y_test).float().mean().item()

    train = DataLoader(Pairs(blobs.x, blobs.y, seed), 40, shuffle=True)
    return Training(PairModel(eps), train, nearest, trainer={"max_epochs": 6})


@sick(
    "ya-pairs-distance",
    "metric learning",
    "unstable-operation",
    "nonfinite-gradients",
    twin=lambda seed: pairs(seed, eps=1e-6),
    note="the root of a squared distance that is nought when a sample is paired with itself: its gradient is not a number",
)
def pairs_root(seed: int) -> Training:
    return pairs(seed, eps=0.0)


# --- textures: normalisation ported from another framework ------------------------------------------------------------


def textures(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 16, 16) of stripes in six directions and noise."""
    g = data.generator(seed, 162)
    y = torch.randint(6, (n,), generator=g)
    angle = y * math.pi / 6 + 0.12 * torch.randn(n, generator=g)
    axis = torch.arange(16.0)
    wave = axis[None, :, None] * torch.sin(angle)[:, None, None] + axis[None, None] * torch.cos(angle)[:, None, None]
    phase = 2 * math.pi * torch.rand(n, 1, 1, generator=g)
    picture = torch.sin(1.3 * wave + phase) + torch.randn(n, 16, 16, generator=g)
    return (0.5 + 0.15 * picture).clamp(0, 1)[:, None], y


class TextureNet(LightningModule):
    def __init__(self, momentum: float) -> None:
        super().__init__()

        def stage(i: int, o: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(i, o, 3, stride, 1, bias=False),
                nn.BatchNorm2d(o, momentum=momentum),
                nn.ReLU(inplace=True),
            ]

        self.net = nn.Sequential(
            *stage(1, 12, 1),
            *stage(12, 16, 2),
            *stage(16, 24, 1),
            *stage(24, 24, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log_dict({"train_loss": loss, "train_acc": (logits.argmax(1) == y).float().mean()}, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log_dict({"val_loss": F.cross_entropy(logits, y), "val_acc": (logits.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def stripes(seed: int, momentum: float) -> Training:
    x, y = textures(seed, 1500)
    train = DataLoader(TensorDataset(x[:1200], y[:1200]), 40, shuffle=True)
    val = DataLoader(TensorDataset(x[1200:], y[1200:]), 100)

    def right(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, x[1200:]), y[1200:])

    return Training(TextureNet(momentum), train, right, val, {"max_epochs": 5})


@sick(
    "ya-stripes-keras-momentum",
    "cnn",
    "batchnorm-stale-statistics",
    twin=lambda seed: stripes(seed, momentum=0.1),
    note="BatchNorm's momentum of 0.001 is Keras's 0.999: in 150 steps the running statistics hardly leave 0 and 1",
)
def stripes_momentum(seed: int) -> Training:
    return stripes(seed, momentum=0.001)


# --- an assay with few wells ------------------------------------------------------------------------------------------


class AssayNet(LightningModule):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(columns, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch["x"], batch["y"]
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch["x"]), batch["y"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Wells(Dataset[dict[str, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "y": self.y[i]}


def assay(seed: int, n: int, epochs: int) -> Training:
    task = data.regression(seed, r2=0.8, n=4000, columns=12)
    train = DataLoader(Wells(task.x[:n], task.y[:n]), 16, shuffle=True)
    val = DataLoader(Wells(task.x_test[:500], task.y_test[:500]), 250)
    return Training(AssayNet(12), train, task.r2, val, {"max_epochs": epochs})


@sick(
    "ya-assay-few-wells",
    "regression",
    "overfitting",
    "too-little-data",
    twin=lambda seed: assay(seed, n=4000, epochs=1),
    note="130 000 weights and 64 rows, gone over 80 times",
)
def assay_few(seed: int) -> Training:
    return assay(seed, n=64, epochs=80)


# --- vibrations: what stands between the layers -----------------------------------------------------------------------


class VibrationNet(LightningModule):
    def __init__(self, bend: bool) -> None:
        super().__init__()
        self.bend = bend
        sizes = [1, 24, 32, 32, 32]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, 5, padding=2) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) for o in sizes[1:])
        self.pool = nn.AvgPool1d(2)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = norm(conv(h))
            if self.bend:
                h = F.hardswish(h)
            h = self.pool(h)
        return self.head(h.mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=2e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


def vibrations(seed: int, bend: bool) -> Training:
    g = data.generator(seed, 163)
    n = 1600
    y = torch.randint(3, (n,), generator=g)
    t = torch.arange(64.0)
    pitch = torch.tensor([0.35, 0.6, 0.95])[y] + 0.04 * torch.randn(n, generator=g)
    phase = 2 * math.pi * torch.rand(n, generator=g)
    x = (torch.sin(pitch[:, None] * t + phase[:, None]) + 0.8 * torch.randn(n, 64, generator=g))[:, None]
    train = DataLoader(TensorDataset(x[:1200], y[:1200]), 32, shuffle=True)
    val = DataLoader(TensorDataset(x[1200:], y[1200:]), 100)

    def right(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, x[1200:]), y[1200:])

    return Training(VibrationNet(bend), train, right, val, {"max_epochs": 6})


@sick(
    "ya-vibrations-norm-only",
    "1d cnn",
    "missing-nonlinearity",
    twin=lambda seed: vibrations(seed, bend=True),
    note="convolution, BatchNorm, average pool, four times over, and no activation anywhere",
)
def vibrations_straight(seed: int) -> Training:
    return vibrations(seed, bend=False)


# ======================================================================================================================
# well
# ======================================================================================================================


# --- a diffusion of points in the plane -------------------------------------------------------------------------------


class PlaneDiffusion(LightningModule):
    """Predicts the noise; the loss stays near a level of its own from the first hundred steps on."""

    def __init__(self, steps: int = 40) -> None:
        super().__init__()
        self.steps = steps
        beta = torch.linspace(1e-3, 0.2, steps)
        self.register_buffer("beta", beta)
        self.register_buffer("kept", torch.cumprod(1 - beta, dim=0))
        self.time = nn.Embedding(steps, 32)
        self.point = nn.Linear(2, 32)
        self.net = nn.Sequential(
            nn.SiLU(), nn.Linear(32, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(self.point(x) + self.time(t))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        t = torch.randint(self.steps, (len(x),), device=self.device)
        noise = torch.randn_like(x)
        kept = self.kept[t, None]
        loss = F.mse_loss(self(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)
        self.log("eps_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, betas=(0.9, 0.99))

    @torch.no_grad()
    def draw(self, n: int, g: torch.Generator) -> Tensor:
        x = torch.randn(n, 2, generator=g)
        for t in reversed(range(self.steps)):
            noise = self(x, torch.full((n,), t))
            x = (x - self.beta[t] / (1 - self.kept[t]).sqrt() * noise) / (1 - self.beta[t]).sqrt()
            if t:
                x = x + self.beta[t].sqrt() * torch.randn(n, 2, generator=g)
        return x


@well(
    "ya-plane-diffusion", "diffusion", note="the loss of the noise is noisy and soon flat; score: minus energy distance"
)
def diffusion(seed: int) -> Training:
    moons = data.moons(seed, n=3000)

    def closeness(module: LightningModule) -> float:
        drawn = module.draw(500, data.generator(seed, 164))
        real = moons.x_test[:500]
        return -(
            2 * torch.cdist(drawn, real).mean() - torch.cdist(drawn, drawn).mean() - torch.cdist(real, real).mean()
        ).item()

    train = DataLoader(TensorDataset(moons.x), 100, shuffle=True, drop_last=True)
    return Training(PlaneDiffusion(), train, closeness, trainer={"max_epochs": 20})


# --- a policy that learns from its rewards ----------------------------------------------------------------------------


class Offers(Dataset[Tensor]):
    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: int) -> Tensor:
        return self.states[i]


class OfferPolicy(LightningModule):
    """Policy gradient for a contextual bandit, with a learned baseline and a bonus for entropy."""

    def __init__(self, payoff: Tensor) -> None:
        super().__init__()
        self.register_buffer("payoff", payoff)
        self.actor = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 5))
        self.critic = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 1))

    def forward(self, state: Tensor) -> Tensor:
        return self.actor(state)

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.tanh((state @ self.payoff)[torch.arange(len(state)), action])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        policy = torch.distributions.Categorical(logits=self.actor(batch))
        action = policy.sample()
        reward = self.reward(batch, action) + 0.3 * torch.randn(len(batch))
        value = self.critic(batch).squeeze(1)
        advantage = (reward - value).detach()
        policy_loss = -(policy.log_prob(action) * advantage).mean()
        self.log_dict({"reward": reward.mean(), "entropy": policy.entropy().mean(), "policy_loss": policy_loss})
        return policy_loss + 0.5 * F.mse_loss(value, reward) - 0.01 * policy.entropy().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_reward", self.reward(batch, self.actor(batch).argmax(1)).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            [{"params": self.actor.parameters(), "lr": 5e-3}, {"params": self.critic.parameters(), "lr": 1e-2}]
        )


@well("ya-offer-policy", "policy gradient", note="the loss goes its own way round nought while the reward rises")
def offers(seed: int) -> Training:
    g = data.generator(seed, 165)
    states = torch.randn(4000, 6, generator=g)
    policy = OfferPolicy(torch.randn(6, 5, generator=g) * 0.6)

    def mean_reward(module: LightningModule) -> float:
        return module.reward(states[3200:], data.predict(module, states[3200:]).argmax(1)).mean().item()

    return Training(
        policy,
        DataLoader(Offers(states[:3200]), 80, shuffle=True),
        mean_reward,
        DataLoader(Offers(states[3200:]), 400),
        {"max_epochs": 8},
    )


# --- a flow, its likelihood summed over the columns -------------------------------------------------------------------


class Coupling(nn.Module):
    def __init__(self, columns: int, turn: bool) -> None:
        super().__init__()
        self.turn, self.half = turn, columns // 2
        self.net = nn.Sequential(nn.Linear(self.half, 32), nn.ReLU(), nn.Linear(32, 2 * self.half))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.half], x[:, self.half :]
        if self.turn:
            a, b = b, a
        scale, shift = self.net(a).chunk(2, dim=1)
        scale = torch.tanh(scale)
        b = b * scale.exp() + shift
        return torch.cat([b, a] if self.turn else [a, b], dim=1), scale.sum(1)


class ColumnFlow(LightningModule):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(columns))
        self.parts = nn.ModuleList(Coupling(columns, bool(i % 2)) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        z, log_det = x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))
        for part in self.parts:
            z, more = part(z)
            log_det = log_det + more
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1) + log_det

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = -self(batch[0]).mean()
        self.log("nll", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_nll", -self(batch[0]).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adamax(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=4)]


@well(
    "ya-column-flow",
    "normalising flow",
    note="the loss passes below nought and the last layers start at nought; warm restarts",
)
def flow(seed: int) -> Training:
    g = data.generator(seed, 166)
    z = torch.randn(2600, 4, generator=g)
    a = 0.5 * z[:, :1]
    x = torch.cat(
        [a, a.square() * 2 - 0.5 + 0.12 * z[:, 1:2], torch.sin(3 * a) * 0.5 + 0.1 * z[:, 2:3], 0.3 * z[:, 3:]], dim=1
    )
    x = torch.cat([x, 0.2 * torch.randn(2600, 2, generator=g) + x[:, :2] * x[:, 2:3]], dim=1)

    def likelihood(module: LightningModule) -> float:
        return data.predict(module, x[2000:]).mean().item()

    train = DataLoader(TensorDataset(x[:2000]), 80, shuffle=True)
    return Training(ColumnFlow(6), train, likelihood, DataLoader(TensorDataset(x[2000:]), 200), {"max_epochs": 12})


# --- wines, all of them in each step ----------------------------------------------------------------------------------


class WineNet(LightningModule):
    """A small table, full batches, and L-BFGS with a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(13, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(torch.tanh(self.l1(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        penalty = self.l1.weight.square().sum() + self.l2.weight.square().sum()
        loss = F.cross_entropy(self(x), y) + 5e-3 * penalty
        self.log("objective", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.02, max_iter=4, history_size=10)


@well(
    "ya-wine-full-batch",
    "tabular",
    note="133 rows, one batch an epoch, L-BFGS, a penalty written by hand; soon at its minimum",
)
def wine(seed: int) -> Training:
    table = data.table("wine", seed)
    return Training(WineNet(), table.train(len(table.x)), table.accuracy, trainer={"max_epochs": 100})


# --- a frozen encoder under a new head --------------------------------------------------------------------------------


def pretrained(seed: int) -> nn.Sequential:
    """An encoder of digits 0 to 4, trained here for a moment."""
    digits = data.digits(seed)
    keep = digits.y < 5
    x, y = digits.x[keep], digits.y[keep]
    encoder = nn.Sequential(
        nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64), nn.BatchNorm1d(64), nn.ReLU()
    )
    whole = nn.Sequential(encoder, nn.Linear(64, 5))
    optimizer = torch.optim.Adam(whole.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        optimizer.step()
    return encoder


class NewHead(LightningModule):
    def __init__(self, encoder: nn.Sequential) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Linear(64, 5)

    def on_train_epoch_start(self) -> None:
        self.encoder.eval()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(x)
        return self.head(features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.head.parameters(), lr=0.3, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=26)]


@well(
    "ya-new-head", "transfer", note="the encoder is frozen and in evaluation mode on purpose; the rate ends at nought"
)
def new_head(seed: int) -> Training:
    digits = data.digits(seed)
    train, test = digits.y >= 5, digits.y_test >= 5
    x, y, x_test, y_test = digits.x[train], digits.y[train] - 5, digits.x_test[test], digits.y_test[test] - 5

    def right(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, x_test), y_test)

    loader = DataLoader(TensorDataset(x, y), 32, shuffle=True)
    val = DataLoader(TensorDataset(x_test, y_test), 128)
    return Training(NewHead(pretrained(seed)), loader, right, val, {"max_epochs": 26})


# --- a small GAN ------------------------------------------------------------------------------------------------------


class RingGan(LightningModule):
    """Two losses that hold each other in balance."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker = nn.Sequential(
            nn.Linear(4, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 2)
        )
        self.judge = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        opt_judge, opt_maker = self.optimizers()
        fake = self.maker(torch.randn(len(real), 4))
        points = torch.cat([real, fake.detach()]).requires_grad_()
        logits = self.judge(points)
        (slope,) = torch.autograd.grad(logits[: len(real)].sum(), points, create_graph=True)
        judge_loss = F.softplus(-logits[: len(real)]).mean() + F.softplus(logits[len(real) :]).mean()
        judge_loss = judge_loss + 0.1 * slope[: len(real)].square().sum(1).mean()
        opt_judge.zero_grad()
        self.manual_backward(judge_loss)
        opt_judge.step()

        self.toggle_optimizer(opt_maker)
        maker_loss = F.softplus(-self.judge(fake)).mean()
        opt_maker.zero_grad()
        self.manual_backward(maker_loss)
        opt_maker.step()
        self.untoggle_optimizer(opt_maker)
        self.log_dict({"judge": judge_loss, "maker": maker_loss}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.judge.parameters(), lr=3e-3, betas=(0.5, 0.99)),
            torch.optim.Adam(self.maker.parameters(), lr=3e-3, betas=(0.5, 0.99)),
        )


@well(
    "ya-ring-gan",
    "gan",
    note="manual optimisation; neither loss falls for long; score: minus energy distance to the ring",
)
def ring(seed: int) -> Training:
    g = data.generator(seed, 167)
    angle = 2 * math.pi * torch.rand(6500, generator=g)
    points = torch.stack([angle.cos(), angle.sin()], dim=1) * 1.2 + 0.1 * torch.randn(6500, 2, generator=g)

    def closeness(module: LightningModule) -> float:
        drawn, real = data.predict(module, torch.randn(500, 4, generator=data.generator(seed, 168))), points[6000:]
        return -(
            2 * torch.cdist(drawn, real).mean() - torch.cdist(drawn, drawn).mean() - torch.cdist(real, real).mean()
        ).item()

    train = DataLoader(TensorDataset(points[:6000]), 100, shuffle=True)
    return Training(RingGan(), train, closeness, trainer={"max_epochs": 5})


# --- sums of digits, longer from stage to stage -----------------------------------------------------------------------


class RisingSums(Dataset[tuple[Tensor, Tensor]]):
    """Digits to be summed modulo 7; the sequences grow longer from one stage to the next."""

    def __init__(self, seed: int, n: int, lengths: tuple[int, ...], per_stage: int) -> None:
        self.seed, self.n, self.lengths, self.per_stage = seed, n, lengths, per_stage
        self.epoch = 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        length = self.lengths[min(self.epoch // self.per_stage, len(self.lengths) - 1)]
        g = data.generator(self.seed, 169 + self.epoch * self.n + i)
        digits = torch.randint(7, (length,), generator=g)
        return digits, digits.cumsum(0) % 7


class RunningSum(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 24)
        self.cell = nn.GRU(24, 64, batch_first=True)
        self.read = nn.Linear(64, 7)

    def forward(self, digits: Tensor) -> Tensor:
        return self.read(self.cell(self.embed(digits))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        digits, sums = batch
        loss = F.cross_entropy(self(digits).flatten(0, 1), sums.flatten())
        self.log("train_ce", loss)
        self.log("length", float(digits.shape[1]))
        return loss

    def on_train_epoch_end(self) -> None:
        self.trainer.train_dataloader.dataset.epoch = self.current_epoch + 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        digits, sums = batch
        self.log("val_acc_last", (self(digits)[:, -1].argmax(-1) == sums[:, -1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well(
    "ya-rising-sums",
    "curriculum",
    note="the loss leaps at each stage as the sequences grow; gradients are clipped at 1",
)
def rising(seed: int) -> Training:
    train = RisingSums(seed, 1000, (2, 3, 5, 8), per_stage=3)
    test = RisingSums(seed + 10_000, 400, (8,), 1)

    def right(module: LightningModule) -> float:
        digits = torch.stack([test[i][0] for i in range(400)])
        sums = torch.stack([test[i][1] for i in range(400)])
        return data.accuracy(data.predict(module, digits), sums)

    return Training(
        RunningSum(),
        DataLoader(train, 25, shuffle=True),
        right,
        DataLoader(test, 100),
        {"max_epochs": 12, "gradient_clip_val": 1.0},
    )
