"""Trainings whose parts are joined wrongly: optimizer groups, cleared gradients, modes, normalisation, clipping, sizes, masks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick

# --- motifs in a sequence, a recurrent classifier, weight decay by parameter groups


class MotifReader(LightningModule):
    def __init__(self, decayed: tuple[str, ...], plain: tuple[str, ...]) -> None:
        super().__init__()
        self.decayed, self.plain = decayed, plain
        self.project = nn.Linear(1, 8)
        self.rnn = nn.GRU(8, 24, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.project(x))
        return self.head(self.norm(states[:, -1]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        named = list(self.named_parameters())
        decay = [p for n, p in named if n.rsplit(".", 1)[-1].startswith(self.decayed)]
        rest = [p for n, p in named if n.rsplit(".", 1)[-1].startswith(self.plain)]
        return torch.optim.AdamW(
            [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}], lr=8e-3
        )


class ExactMotifReader(MotifReader):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        named = list(self.named_parameters())
        decay = [p for n, p in named if n.endswith(".weight")]
        rest = [p for n, p in named if n.endswith(".bias")]
        return torch.optim.AdamW(
            [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}], lr=8e-3
        )


def motif_groups(seed: int, exact: bool) -> Training:
    task = data.motifs(seed)
    kind = ExactMotifReader if exact else MotifReader
    return Training(kind(("weight",), ("bias",)), task.train(32), task.accuracy, trainer={"max_steps": 350})


@sick(
    "sa-gru-names-missed-by-groups",
    "sequence",
    "parameters-not-optimized",
    twin=lambda seed: motif_groups(seed, exact=False),
)
def gru_outside_groups(seed: int) -> Training:
    return motif_groups(seed, exact=True)


# --- autoencoder of digits, one optimizer for each half


class TwoHalves(LightningModule):
    def __init__(self, clear_both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clear_both = clear_both
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x, _) = batch
        opt_e, opt_d = self.optimizers()
        loss = F.mse_loss(self(x), x)
        self.manual_backward(loss)
        opt_e.step()
        opt_d.step()
        opt_d.zero_grad()
        if self.clear_both:
            opt_e.zero_grad()
        else:
            opt_d.zero_grad()
        self.log("recon", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.encoder.parameters(), lr=3e-3),
            torch.optim.Adam(self.decoder.parameters(), lr=3e-3),
        ]


def halves(seed: int, clear_both: bool) -> Training:
    task = data.digits(seed)

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, task.x_test), task.x_test)

    return Training(TwoHalves(clear_both), task.train(64), score, trainer={"max_epochs": 15})


@sick(
    "sa-autoencoder-clears-one-half-twice",
    "autoencoder",
    "gradients-not-cleared",
    twin=lambda seed: halves(seed, clear_both=True),
)
def clears_one_half(seed: int) -> Training:
    return halves(seed, clear_both=False)


# --- pitch of a short sound, convolutions with normalisation, momentum in another library's convention


def sounds(seed: int, n: int = 1600) -> data.Split:
    g = data.generator(seed, 141)
    y = torch.randint(6, (n,), generator=g)
    time = torch.arange(64) / 64
    pitch = 3.0 + 2.0 * y + 0.3 * torch.randn(n, generator=g)
    phase = 2 * math.pi * torch.rand(n, generator=g)
    loud = 0.8 + 0.8 * torch.rand(n, generator=g)
    wave = loud[:, None] * torch.sin(2 * math.pi * pitch[:, None] * time + phase[:, None])
    x = (wave + 0.3 * torch.randn(n, 64, generator=g))[:, None]
    return data.split(x, y, seed)


class PitchNet(LightningModule):
    def __init__(self, keep: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, width in ((1, 16, 9), (16, 24, 5), (24, 24, 5), (24, 24, 3)):
            layers += [
                nn.Conv1d(before, after, width, stride=1 if before == 1 else 2, padding=width // 2, bias=False),
                nn.BatchNorm1d(after, momentum=1 - keep, eps=1e-3),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(-1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["wave"]), batch["pitch"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(batch["wave"])
        self.log_dict(
            {
                "val_loss": F.cross_entropy(logits, batch["pitch"]),
                "val_acc": data.accuracy(logits, batch["pitch"]),
            }
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def pitch(seed: int, keep: float) -> Training:
    task = sounds(seed)
    train = [{"wave": x, "pitch": y} for x, y in zip(task.x, task.y, strict=True)]
    val = [{"wave": x, "pitch": y} for x, y in zip(task.x_test, task.y_test, strict=True)]
    return Training(
        PitchNet(keep),
        DataLoader(train, 40, shuffle=True),  # type: ignore[arg-type]
        task.accuracy,
        DataLoader(val, 200),  # type: ignore[arg-type]
        trainer={"max_epochs": 8},
    )


@sick(
    "sa-pitch-keeps-9999-of-statistics",
    "audio",
    "batchnorm-stale-statistics",
    twin=lambda seed: pitch(seed, keep=0.9),
)
def pitch_slow_statistics(seed: int) -> Training:
    return pitch(seed, keep=0.9999)


# --- segmentation with a pooled context branch


class Scene(NamedTuple):
    image: Tensor
    mask: Tensor


def scenes(seed: int, n: int = 700) -> data.Split:
    """Bright blobs are the object on a scene of positive tint, dark ones on a scene of negative tint."""
    g = data.generator(seed, 142)
    tint = torch.randn(n, 1, 1, 1, generator=g)
    texture = F.avg_pool2d(torch.randn(n, 1, 14, 14, generator=g), 3, 1) * 3
    image = torch.cat([texture, tint + 3.0 * torch.randn(n, 1, 12, 12, generator=g)], 1)
    mask = ((texture * tint.sign()) > 0.3).float()
    return data.split(image, mask, seed)


class ContextNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU())
        self.context = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.fuse = nn.Sequential(nn.Conv2d(24, 24, 1), nn.ReLU(), nn.Conv2d(24, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.context(x).expand(-1, -1, *x.shape[-2:])
        return self.fuse(torch.cat([self.local(x), wide], 1))

    def training_step(self, batch: Scene, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch.image), batch.mask)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def segment(seed: int, batch: int, accumulate: int) -> Training:
    task = scenes(seed)
    rows = [Scene(x, y) for x, y in zip(task.x, task.y, strict=True)]

    def score(module: LightningModule) -> float:
        return ((data.predict(module, task.x_test) > 0) == (task.y_test > 0.5)).float().mean().item()

    return Training(
        ContextNet(),
        DataLoader(rows, batch, shuffle=True, drop_last=True),  # type: ignore[arg-type]
        score,
        trainer={"max_steps": 220, "max_epochs": -1, "accumulate_grad_batches": accumulate},
    )


@sick(
    "sa-context-branch-of-two-scenes",
    "segmentation",
    "batchnorm-small-batch",
    twin=lambda seed: segment(seed, batch=16, accumulate=1),
)
def segment_two(seed: int) -> Training:
    return segment(seed, batch=2, accumulate=8)


# --- regression with an input normaliser that is kept fixed


class FixedScaler(LightningModule):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.scaler = nn.BatchNorm1d(x.shape[1], affine=False)
        self.scaler.running_mean.copy_(x.mean(0))
        self.scaler.running_var.copy_(x.var(0))
        self.body = nn.Sequential(
            nn.Linear(x.shape[1], 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 96), nn.ReLU(), nn.Dropout(0.3)
        )
        self.out = nn.Linear(96, 1)
        self.scaler.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.scaler(x)))

    def train(self, mode: bool = True) -> FixedScaler:
        super().train(mode)
        self.scaler.eval()
        return self

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.smooth_l1_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_huber", F.smooth_l1_loss(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5)]


class FixedScalerKept(FixedScaler):
    def train(self, mode: bool = True) -> FixedScaler:
        super().train()
        self.scaler.eval()
        return self


def scaled(seed: int, kind: type[FixedScaler]) -> Training:
    task = data.regression(seed, r2=0.97, n=1600, columns=6)
    return Training(kind(task.x), task.train(64), task.r2, task.val(), trainer={"max_epochs": 14})


@sick(
    "sa-train-override-drops-its-argument",
    "tabular",
    "mode-mismatch",
    twin=lambda seed: scaled(seed, FixedScaler),
)
def train_without_argument(seed: int) -> Training:
    return scaled(seed, FixedScalerKept)


# --- characters of made-up words, plain gradient descent with clipping divided by the window


class CharacterModel(LightningModule):
    def __init__(self, symbols: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.embed = nn.Embedding(symbols, 16)
        self.rnn = nn.GRU(16, 48, batch_first=True)
        self.out = nn.Linear(48, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (ids,) = batch
        loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("nats", loss)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), self.limit)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def words(seed: int, limit: float) -> Training:
    text = data.characters(seed)

    def score(module: LightningModule) -> float:
        logits = data.predict(module, text.test[:, :-1])
        return -F.cross_entropy(logits.flatten(0, 1), text.test[:, 1:].flatten()).item()

    loader = DataLoader(TensorDataset(text.train), 32, shuffle=True)
    return Training(CharacterModel(text.symbols, limit), loader, score, trainer={"max_steps": 240, "max_epochs": -1})


@sick(
    "sa-characters-limit-over-window",
    "text",
    "clipping-too-tight",
    twin=lambda seed: words(seed, limit=2.0),
)
def words_limit_over_window(seed: int) -> Training:
    return words(seed, limit=0.1 / 32)


# --- ratings, factors of users and items


class Factors(LightningModule):
    def __init__(self, users: int, items: int, rank: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.user = nn.Embedding(users, rank)
        self.item = nn.Embedding(items, rank)
        nn.init.normal_(self.user.weight, std=0.1)
        nn.init.normal_(self.item.weight, std=0.1)

    def forward(self, pair: Tensor) -> Tensor:
        return (self.user(pair[:, 0]) * self.item(pair[:, 1])).sum(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, rating = batch
        loss = F.mse_loss(self(pair), rating)
        self.log("train_mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pair, rating = batch
        self.log("val_mse", F.mse_loss(self(pair), rating))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-2, weight_decay=self.decay)


def ratings(seed: int, rank: int, decay: float, epochs: int) -> Training:
    g = data.generator(seed, 143)
    users, items, n = 120, 80, 4800
    u = torch.randn(users, 3, generator=g) / 3**0.25
    v = torch.randn(items, 3, generator=g) / 3**0.25
    cells = torch.randperm(users * items, generator=g)[:n]
    pair = torch.stack([cells // items, cells % items], 1)
    rating = (u[pair[:, 0]] * v[pair[:, 1]]).sum(-1) + 0.8 * torch.randn(n, generator=g)
    task = data.split(pair, rating, seed)
    return Training(
        Factors(users, items, rank, decay), task.train(128), task.r2, task.val(400), trainer={"max_epochs": epochs}
    )


@sick(
    "sa-ratings-rank-64",
    "recommender",
    "overfitting",
    twin=lambda seed: ratings(seed, rank=4, decay=0.3, epochs=14),
)
def ratings_wide(seed: int) -> Training:
    return ratings(seed, rank=64, decay=0.0, epochs=14)


# --- a picture as a function of its coordinates


class Picture(LightningModule):
    def __init__(self, multiplier: float) -> None:
        super().__init__()
        width = max(2, int(64 * multiplier))
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, where: Tensor) -> Tensor:
        return self.net(where)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self(batch["at"]), batch["grey"])}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=600)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def picture(seed: int, multiplier: float) -> Training:
    g = data.generator(seed, 144)
    at = 2 * torch.rand(4000, 2, generator=g) - 1
    tilt = 0.5 + 0.3 * torch.rand(1, generator=g)
    x, y = 1.7 * at[:, :1], 1.7 * at[:, 1:]
    grey = torch.sin(2.5 * x + tilt * y) * torch.cos(2.5 * y) + 0.5 * torch.sin(3 * (x**2 + y**2).sqrt())
    grey = (grey - grey.mean()) / grey.std()
    task = data.split(1.7 * at, grey, seed)
    rows = [{"at": a, "grey": b} for a, b in zip(task.x, task.y, strict=True)]
    loader = DataLoader(rows, 100, shuffle=True)  # type: ignore[arg-type]
    return Training(Picture(multiplier), loader, task.r2, trainer={"max_steps": 600, "max_epochs": -1})


@sick(
    "sa-picture-width-multiplier",
    "coordinates",
    "insufficient-capacity",
    twin=lambda seed: picture(seed, multiplier=1.0),
)
def picture_narrow(seed: int) -> Training:
    return picture(seed, multiplier=0.05)


# --- sets of points of different sizes, pooled by attention under a mask


class MaskedPool(nn.Module):
    def __init__(self, width: int, guard: bool) -> None:
        super().__init__()
        self.guard = guard
        self.rank = nn.Linear(width, 1)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        weight = self.rank(x).squeeze(-1).masked_fill(~present, -1e9 if self.guard else -torch.inf).softmax(-1)
        if self.guard:
            weight = weight * present
        return (weight[..., None] * x).sum(1)


class SetModel(LightningModule):
    def __init__(self, guard: bool) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.pool = MaskedPool(32, guard)
        self.out = nn.Linear(32, 1)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, count = batch
        present = torch.arange(points.shape[1]) < count[:, None]
        return self.out(self.pool(self.point(points), present)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        bag, y = batch
        loss = F.mse_loss(self(bag), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


def point_sets(seed: int, guard: bool) -> Training:
    g = data.generator(seed, 145)
    n, most = 1500, 6
    count = torch.randint(1, most + 1, (n,), generator=g)
    count[torch.rand(n, generator=g) < 0.004] = 0
    points = torch.randn(n, most, 3, generator=g)
    present = torch.arange(most) < count[:, None]
    points = points * present[..., None]
    value = (torch.sin(1.5 * points[..., 0]) + 0.5 * points[..., 1]) * present
    y = value.sum(1) / count.clamp(min=1)
    y = y / y.std() + 0.1 * torch.randn(n, generator=g)
    rows = [((p, c), t) for p, c, t in zip(points[:1200], count[:1200], y[:1200], strict=True)]

    def score(module: LightningModule) -> float:
        return data.r2(data.predict(module, (points[1200:], count[1200:])), y[1200:])

    return Training(
        SetModel(guard),
        DataLoader(rows, 32, shuffle=True),  # type: ignore[arg-type]
        score,
        trainer={"max_epochs": 10},
    )


@sick(
    "sa-empty-set-under-the-mask",
    "sets",
    "unstable-operation",
    twin=lambda seed: point_sets(seed, guard=True),
)
def empty_set(seed: int) -> Training:
    return point_sets(seed, guard=False)
