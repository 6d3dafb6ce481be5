"""Numbers that stop being numbers: masks of nothing, silent frames, batches without a target."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth.d_common import Columns, mlp


class Pooling(nn.Module):
    """Attention over the filled places of a basket."""

    def __init__(self, width: int, keep_first: bool) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.keep_first = keep_first

    def forward(self, h: Tensor, ids: Tensor) -> Tensor:
        empty = ids == 0
        if self.keep_first:
            empty = torch.cat([torch.zeros_like(empty[:, :1]), empty[:, 1:]], 1)
        weights = self.score(h)[..., 0].masked_fill(empty, float("-inf")).softmax(-1)
        return (weights[..., None] * h).sum(1)


class Baskets(LightningModule):
    def __init__(self, keep_first: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(60, 24, padding_idx=0)
        self.pool = Pooling(24, keep_first)
        self.head = mlp(24, 32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.pool(self.items(ids), ids))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"]), batch["segment"])
        self.log("train/ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


def baskets(seed: int, keep_first: bool) -> Training:
    """Baskets of up to ten items; one visit in a hundred and fifty buys nothing."""
    g = data.generator(seed, 440)
    segment = torch.randint(4, (1500,), generator=g)
    common = torch.randint(1, 20, (1500, 10), generator=g)
    typical = 20 + 10 * segment[:, None] + torch.randint(0, 10, (1500, 10), generator=g)
    ids = torch.where(torch.rand(1500, 10, generator=g) < 0.4, typical, common)
    count = torch.randint(3, 11, (1500, 1), generator=g)
    count[torch.rand(1500, 1, generator=g) < 1 / 150] = 0
    ids = ids * (torch.arange(10) < count)
    return Training(
        Baskets(keep_first),
        DataLoader(Columns(ids=ids[:1000], segment=segment[:1000]), 32, shuffle=True),
        lambda m: data.accuracy(data.predict(m, ids[1000:]), segment[1000:]),
        trainer={"max_epochs": 6},
    )


@sick("ja-baskets-nothing-bought", "sets", "unstable-operation", twin=lambda seed: baskets(seed, True))
def baskets_nothing(seed: int) -> Training:
    return baskets(seed, False)


class Clip(NamedTuple):
    spectrum: Tensor
    label: Tensor


class SoundNet(LightningModule):
    """Log spectra (N, frames, bins) through a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(17, 24, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.head(self.rnn(spectrum)[0].mean(1))

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch.spectrum), batch.label)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def log_spectra(seed: int, floor: float) -> tuple[Tensor, Tensor]:
    """Clips of 8 frames of 32 samples; in one of forty the microphone was muted for a frame."""
    g = data.generator(seed, 441)
    label = torch.randint(4, (1000,), generator=g)
    time = torch.arange(256) / 256
    sound = torch.sin(2 * torch.pi * (20 + 20 * label[:, None]) * time + 6 * torch.rand(1000, 1, generator=g))
    frames = (sound + 0.8 * torch.randn(1000, 256, generator=g)).view(1000, 8, 32)
    muted = torch.rand(1000, generator=g) < 0.025
    frames[muted, 5] = 0.0
    spectrum = torch.log(torch.fft.rfft(frames).abs().square() + floor)
    usual = spectrum[~muted]
    return (spectrum - usual.mean((0, 1))) / usual.std((0, 1)), label


def sounds(seed: int, floor: float) -> Training:
    spectrum, label = log_spectra(seed, floor)
    judged, truth = spectrum[700:], label[700:]
    judged, truth = judged[judged.isfinite().all(-1).all(-1)], truth[judged.isfinite().all(-1).all(-1)]
    rows = [Clip(spectrum[k], label[k]) for k in range(700)]
    return Training(
        SoundNet(),
        DataLoader(rows, 20, shuffle=True),  # type: ignore[arg-type]
        lambda m: data.accuracy(data.predict(m, judged), truth),
        trainer={"max_epochs": 5},
    )


@sick("ja-spectra-muted-frames", "signals", "nonfinite-inputs", twin=lambda seed: sounds(seed, 0.1))
def spectra_muted(seed: int) -> Training:
    return sounds(seed, 0.0)


class MaskedSymbols(LightningModule):
    """Fills in hidden symbols of short texts; with `at_least` so many are hidden in every text."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(22, 24)
        self.mix = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 20)
        self.at_least = at_least

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.mix(self.embed(ids))[0])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        hidden = torch.rand(batch.shape) < 0.03
        if self.at_least:
            hidden[torch.arange(len(batch)), torch.randint(batch.shape[1], (len(batch),))] = True
        logits = self(batch.masked_fill(hidden, 21))
        each = F.cross_entropy(logits.transpose(1, 2), batch, reduction="none")
        loss = (each * hidden).sum() / hidden.sum()
        self.log("mlm", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def masked(seed: int, at_least: int) -> Training:
    text = data.characters(seed, words=8, length=15, n=1600)
    middle = text.test.clone()
    middle[:, 8] = 21

    def score(module: LightningModule) -> float:
        logits: Any = data.predict(module, middle)[:, 8]
        return float("nan") if logits.isnan().any() else data.accuracy(logits, text.test[:, 8])

    return Training(
        MaskedSymbols(at_least),
        DataLoader(text.train, 8, shuffle=True),  # type: ignore[arg-type]
        score,
        trainer={"max_steps": 400, "max_epochs": 2},
    )


@sick(
    "ja-masked-none-hidden",
    "text",
    "nonfinite-loss",
    "unstable-operation",
    twin=lambda seed: masked(seed, 1),
)
def masked_none(seed: int) -> Training:
    return masked(seed, 0)
