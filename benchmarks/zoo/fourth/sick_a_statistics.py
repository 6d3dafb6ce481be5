"""Normalisation by the batch and by its history, and what differs between training and judging."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    beats,
    bodies,
    bowl,
    explained,
    gratings,
    hits,
    loader,
    minus,
    records,
    switches,
)

# --- few at a time ------------------------------------------------------------------------------------------------


class Pooled(LightningModule):
    """Points pooled to a row, then a normalised head; large inputs, so two at a time and steps of many batches."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 48))
        self.head = nn.Sequential(
            nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.local(x)
        return self.head(torch.cat([h.amax(1), h.mean(1)], -1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["points"]), batch["body"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("w-bodies-two-and-sixteen", "pointnet", "batchnorm-small-batch", twin=lambda s: bodies_two(s, 32, 1))
def bodies_two(seed: int, size: int = 2, accumulate: int = 16) -> Training:
    d = bodies(seed, 640)
    options = {"max_epochs": 8, "accumulate_grad_batches": accumulate}
    return Training(
        Pooled(), records(size, points=d.x, body=d.y), minus(F.cross_entropy, d.x_test, d.y_test), trainer=options
    )


class Ghost(nn.Module):
    """BatchNorm over chunks of the batch, as a regulariser."""

    def __init__(self, width: int, chunk: int) -> None:
        super().__init__()
        self.norm, self.chunk = nn.BatchNorm1d(width), chunk

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(x)
        return torch.cat([self.norm(part) for part in x.split(self.chunk)])


class Tabular(LightningModule):
    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 64),
            Ghost(64, chunk),
            nn.ReLU(),
            nn.Linear(64, 64),
            Ghost(64, chunk),
            nn.ReLU(),
            nn.Linear(64, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@sick("w-bowl-ghosts", "mlp", "batchnorm-small-batch", twin=lambda s: bowl_ghosts(s, 32))
def bowl_ghosts(seed: int, chunk: int = 2) -> Training:
    d = bowl(seed, 896)
    return Training(
        Tabular(chunk), loader(d.x, d.y, size=64), explained(d.x_test, d.y_test), d.val(), {"max_epochs": 24}
    )


class Squeeze(LightningModule):
    """Pictures squeezed to one value a channel before they are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 5, padding=2)
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)]
        for width in (24, 32, 32):
            layers += [nn.Conv2d(width, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        self.squeeze = nn.Sequential(*layers)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.squeeze(F.relu(self.conv(x))).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": F.cross_entropy(self(x), y)}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


@sick("w-gratings-two-a-device", "cnn", "batchnorm-small-batch", twin=lambda s: gratings_pairs(s, 30))
def gratings_pairs(seed: int, size: int = 2) -> Training:
    d = gratings(seed, 600, noise=0.9)
    options = {"max_epochs": 10, "accumulate_grad_batches": 30 // size}
    return Training(Squeeze(), loader(d.x, d.y, size=size), minus(F.cross_entropy, d.x_test, d.y_test), trainer=options)


# --- history ------------------------------------------------------------------------------------------------------


class Rhythm(LightningModule):
    """Amplitudes of an amplifier in, three rhythms out."""

    def __init__(self, **norm: Any) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(1, 16, 7, padding=3), nn.BatchNorm1d(16, **norm)
        self.conv2, self.norm2 = nn.Conv1d(16, 24, 5, stride=2, padding=2), nn.BatchNorm1d(24, **norm)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = F.relu(self.norm2(self.conv2(h)))
        return self.out(h.amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("w-beats-momentum-zero", "cnn", "batchnorm-stale-statistics", twin=lambda s: beats_momentum(s, 0.1))
def beats_momentum(seed: int, momentum: float = 0.0) -> Training:
    d = beats(seed)
    x, x_test = 3 * d.x + 4, 3 * d.x_test + 4
    val = loader(x_test, d.y_test, size=250, shuffle=False)
    score = minus(F.cross_entropy, x_test, d.y_test)
    return Training(Rhythm(momentum=momentum), loader(x, d.y, size=45), score, val, {"max_epochs": 10})


class OwnNorm(nn.BatchNorm1d):
    """BatchNorm with `decay` as in another framework: the share of the old statistics that is kept."""

    def __init__(self, width: int, decay: float) -> None:
        super().__init__(width, momentum=1 - decay)


class TwoSites(LightningModule):
    """Measurements of two sites with offsets of their own, in turn; only the second is judged."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.first, self.norm, self.second = nn.Linear(30, 48), nn.BatchNorm1d(48), nn.Linear(48, 2)
        self.norm_other = nn.BatchNorm1d(48)

    def forward(self, x: Tensor, site: int = 1) -> Tensor:
        norm = self.norm_other if self.apart and site == 0 else self.norm
        return self.second(F.relu(norm(self.first(x))))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = [F.cross_entropy(self(x, site), y) for site, (x, y) in enumerate(batch.values())]
        self.log("loss", sum(losses))
        return sum(losses)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("w-cells-of-two-clinics", "mlp", "batchnorm-stale-statistics", twin=lambda s: cells_clinics(s, True))
def cells_clinics(seed: int, apart: bool = False) -> Training:
    d = data.table("breast_cancer", seed)
    g = data.generator(seed, 440)
    shift = 20 * torch.randn(30, generator=g)
    half = len(d.x) // 2
    loaders = {
        "old": loader(d.x[:half] + shift, d.y[:half], size=30),
        "new": loader(d.x[half:], d.y[half:], size=30),
    }
    return Training(TwoSites(apart), loaders, minus(F.cross_entropy, d.x_test, d.y_test), trainer={"max_epochs": 30})


class Ported(LightningModule):
    """Ported layer by layer; the decay of the statistics came with the numbers of the other framework."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 48), nn.Linear(48, 48), nn.Linear(48, 1)
        self.na, self.nb = OwnNorm(48, decay), OwnNorm(48, decay)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.silu(self.nb(self.b(F.silu(self.na(self.a(x)))))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.smooth_l1_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.smooth_l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=2e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 6)}


@sick("w-bowl-ported-norm", "mlp", "batchnorm-stale-statistics", twin=lambda s: bowl_ported(s, 0.95))
def bowl_ported(seed: int, decay: float = 0.9999) -> Training:
    d = bowl(seed)
    return Training(
        Ported(decay), loader(d.x, d.y, size=30), explained(d.x_test, d.y_test), d.val(), {"max_epochs": 10}
    )


# --- modes --------------------------------------------------------------------------------------------------------


def from_hub(seed: int) -> nn.Sequential:
    """A body as a hub returns it: ready for inference."""
    blocks: list[nn.Module] = []
    for i in range(8):
        blocks += [nn.Conv2d(1 if i == 0 else 12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*blocks).eval()


class FineTuned(LightningModule):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).amax((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("w-gratings-body-from-a-hub", "cnn", "mode-mismatch", twin=lambda s: gratings_hub(s, True))
def gratings_hub(seed: int, train: bool = False) -> Training:
    d = gratings(seed)
    body = from_hub(seed).train(train)
    return Training(FineTuned(body), loader(d.x, d.y, size=40), hits(d.x_test, d.y_test), trainer={"max_epochs": 8})


class WordDrop(nn.Module):
    """Replaces ids by the blank at random."""

    def __init__(self, share: float, flipped: bool) -> None:
        super().__init__()
        self.share, self.flipped = share, flipped

    def forward(self, ids: Tensor) -> Tensor:
        if self.training != self.flipped:
            return ids.masked_fill(torch.rand(ids.shape) < self.share, 0)
        return ids


class Words(LightningModule):
    def __init__(self, flipped: bool) -> None:
        super().__init__()
        self.drop = WordDrop(0.3, flipped)
        self.embed = nn.Embedding(5, 24)
        self.gru = nn.GRU(24, 40, batch_first=True)
        self.out = nn.Linear(40, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(self.drop(ids)))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("w-switches-drops-words", "gru", "mode-mismatch", twin=lambda s: switches_drop(s, False))
def switches_drop(seed: int, flipped: bool = True) -> Training:
    d = switches(seed)
    return Training(Words(flipped), loader(d.x, d.y, size=30), hits(d.x_test, d.y_test), d.val(), {"max_epochs": 10})


class Stubborn(LightningModule):
    """Samples at prediction time for error bars, so `train` is overridden."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.net = nn.Sequential(
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.6),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.6),
            nn.Linear(64, 10),
        )

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self.always:
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log_dict({"val_loss": F.cross_entropy(logits, y), "val_acc": (logits.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("w-digits-error-bars", "mlp", "mode-mismatch", twin=lambda s: digits_bars(s, False))
def digits_bars(seed: int, always: bool = True) -> Training:
    d = data.digits(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Stubborn(always), d.train(45), score, d.val(), {"max_epochs": 14})
