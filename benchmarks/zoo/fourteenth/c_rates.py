"""Rates, gradients, activations, initial weights and penalties: nine trainings of nine different tasks, with their twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of several tensors under names."""

    def __init__(self, **fields: Tensor) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.fields.items()}


# --- discs in noisy pictures: a segmentation ported from TensorFlow ---------------------------------------------------


def discs(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 20, 20) with two textured discs each, and their masks."""
    g = data.generator(seed, 141)
    axis = torch.arange(20.0)
    centre = 4 + 12 * torch.rand(n, 2, 2, generator=g)
    radius = 2.5 + 2 * torch.rand(n, 2, generator=g)
    dy = axis[None, None, :, None] - centre[:, :, 0, None, None]
    dx = axis[None, None, None, :] - centre[:, :, 1, None, None]
    mask = ((dy.square() + dx.square()) < radius.square()[:, :, None, None]).any(1, keepdim=True).float()
    picture = 1.2 * mask - 0.4 + 0.8 * torch.randn(n, 1, 20, 20, generator=g)
    return picture, mask


class DiscSegmenter(LightningModule):
    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.SiLU(), nn.Conv2d(12, 12, 3, padding=1), nn.SiLU()
        )
        self.bridge = nn.Sequential(nn.Conv2d(12, 12, 3, padding=2, dilation=2), nn.SiLU())
        self.out = nn.Conv2d(24, 1, 1)

    def forward(self, picture: Tensor) -> Tensor:
        skip = self.encoder(picture)
        return self.out(torch.cat([skip, self.bridge(skip)], dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        picture, mask = batch
        loss = F.binary_cross_entropy_with_logits(self(picture), mask)
        self.log("seg/bce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        picture, mask = batch
        self.log("val_bce", F.binary_cross_entropy_with_logits(self(picture), mask))

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.learning_rate, alpha=0.9, momentum=0.9)


def segment_discs(seed: int, learning_rate: float) -> Training:
    picture, mask = discs(seed, 760)
    train = DataLoader(TensorDataset(picture[:600], mask[:600]), 20, shuffle=True)
    val = DataLoader(TensorDataset(picture[600:], mask[600:]), 80)

    def overlap(module: LightningModule) -> float:
        found = data.predict(module, picture[600:]) > 0
        truth = mask[600:] > 0
        return ((found & truth).sum() / (found | truth).sum().clamp(min=1)).item()

    return Training(DiscSegmenter(learning_rate), train, overlap, val, {"max_epochs": 6})


@sick(
    "na-discs-rmsprop-rate-of-the-paper",
    "segmentation",
    "learning-rate-too-high",
    twin=lambda seed: segment_discs(seed, learning_rate=0.0005),
    note="0.045 is the rate of a TensorFlow recipe whose epsilon is 1.0; here epsilon is 1e-8",
)
def discs_paper_rate(seed: int) -> Training:
    return segment_discs(seed, learning_rate=0.045)


# --- characters: a small transformer with a warm-up -------------------------------------------------------------------


class CharModel(LightningModule):
    def __init__(self, symbols: int, length: int, ramp: Callable[[int], float]) -> None:
        super().__init__()
        self.ramp = ramp
        self.tok = nn.Embedding(symbols, 32)
        self.pos = nn.Parameter(0.02 * torch.randn(length, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, symbols)
        self.register_buffer("mask", torch.triu(torch.full((length, length), -torch.inf), diagonal=1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.tok(ids) + self.pos, src_mask=self.mask)))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        (ids,) = batch
        loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("nll", loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.ramp)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def write_words(seed: int, ramp: Callable[[int], float]) -> Training:
    text = data.characters(seed, length=24, n=1600)
    train = DataLoader(TensorDataset(text.train), 32, shuffle=True)

    def minus_nll(module: LightningModule) -> float:
        logits = data.predict(module, text.test[:, :-1])
        return -F.cross_entropy(logits.flatten(0, 1), text.test[:, 1:].flatten()).item()

    return Training(CharModel(text.symbols, 24, ramp), train, minus_nll, trainer={"max_epochs": 5})


@sick(
    "na-char-transformer-ramp-not-divided",
    "language model",
    "learning-rate-too-high",
    twin=lambda seed: write_words(seed, lambda step: min(step + 1, 40) / 40),
    note="the factor of the warm-up counts to 40 where it should go to 1",
)
def char_ramp(seed: int) -> Training:
    return write_words(seed, lambda step: float(min(step + 1, 40)))


# --- search results in lists of ten: pairwise ranking -----------------------------------------------------------------


class PairRanker(LightningModule):
    def __init__(self, warmup_steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.scorer = nn.Sequential(nn.Linear(14, 32), nn.ELU(), nn.Linear(32, 16), nn.ELU(), nn.Linear(16, 1))

    def forward(self, documents: Tensor) -> Tensor:
        return self.scorer(documents).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        score = self(batch["documents"])
        ahead = batch["grade"][:, :, None] > batch["grade"][:, None, :]
        margin = score[:, :, None] - score[:, None, :]
        return F.softplus(-margin[ahead]).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        warmup = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1e-3, total_iters=self.hparams["warmup_steps"]
        )
        return [optimizer], [{"scheduler": warmup, "interval": "step"}]


def rank_results(seed: int, warmup_steps: int) -> Training:
    g = data.generator(seed, 142)
    documents = torch.randn(900, 10, 14, generator=g)
    taste = torch.randn(14, 2, generator=g) / math.sqrt(14)
    hidden = documents @ taste
    worth = hidden[..., 0] + hidden[..., 1].square() + 0.2 * torch.randn(900, 10, generator=g)
    grade = torch.bucketize(worth, torch.tensor([0.0, 1.0, 2.0]))
    train = DataLoader(Rows(documents=documents[:600], grade=grade[:600]), 16, shuffle=True)

    def right_pairs(module: LightningModule) -> float:
        score = data.predict(module, documents[600:])
        ahead = grade[600:, :, None] > grade[600:, None, :]
        return (score[:, :, None] > score[:, None, :])[ahead].float().mean().item()

    return Training(PairRanker(warmup_steps), train, right_pairs, trainer={"max_steps": 260})


@sick(
    "na-ranknet-warmup-of-200000-steps",
    "ranking",
    "learning-rate-too-low",
    twin=lambda seed: rank_results(seed, warmup_steps=20),
    note="the warm-up is that of a run a thousand times as long; all 260 steps stand at its foot",
)
def rank_long_warmup(seed: int) -> Training:
    return rank_results(seed, warmup_steps=200_000)


# --- the adding problem: a recurrence written by hand, optimised by hand ----------------------------------------------


class Adder(LightningModule):
    def __init__(self, max_norm: float | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.max_norm = max_norm
        self.inp = nn.Linear(2, 40)
        self.rec = nn.Linear(40, 40, bias=False)
        self.out = nn.Linear(40, 1)
        nn.init.eye_(self.rec.weight)
        nn.init.zeros_(self.inp.bias)

    def forward(self, series: Tensor) -> Tensor:
        drive = self.inp(series)
        state = torch.zeros_like(drive[:, 0])
        for t in range(series.shape[1]):
            state = torch.relu(drive[:, t] + self.rec(state))
        return self.out(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        series, total = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = F.mse_loss(self(series), total)
        self.manual_backward(loss)
        if self.max_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.max_norm, gradient_clip_algorithm="norm")
        optimizer.step()
        self.log("mse", loss)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.003, momentum=0.9)


def add_marked(seed: int, max_norm: float | None) -> Training:
    g = data.generator(seed, 143)
    n, length = 2000, 40
    value = 2 * torch.rand(n, length, generator=g) - 1
    mark = torch.zeros(n, length)
    place = torch.rand(n, length, generator=g).topk(4, dim=1).indices
    mark.scatter_(1, place, 1.0)
    total = (value * mark).sum(1, keepdim=True)
    series = torch.stack([value, mark], dim=-1)
    train = DataLoader(TensorDataset(series[:1600], total[:1600]), 32, shuffle=True)

    def explained(module: LightningModule) -> float:
        return data.r2(data.predict(module, series[1600:]), total[1600:])

    return Training(Adder(max_norm), train, explained, trainer={"max_epochs": 6})


@sick(
    "na-adding-recurrence-clip-lost-in-port",
    "sequence regression",
    "exploding-gradients",
    twin=lambda seed: add_marked(seed, max_norm=5.0),
    note="the Trainer's clipping had no part in the move to manual optimisation",
)
def add_unclipped(seed: int) -> Training:
    return add_marked(seed, max_norm=None)


# --- motifs in noise: a stack of dilated convolutions -----------------------------------------------------------------


class WaveStack(LightningModule):
    def __init__(self, residual: bool, classes: int = 4) -> None:
        super().__init__()
        self.residual = residual
        self.stem = nn.Conv1d(1, 16, 5, padding=2)
        self.layers = nn.ModuleList(
            nn.Conv1d(16, 16, 3, padding=2 ** (i % 3), dilation=2 ** (i % 3)) for i in range(14)
        )
        self.head = nn.Linear(16, classes)

    def forward(self, wave: Tensor) -> Tensor:
        x = torch.tanh(self.stem(wave.transpose(1, 2)))
        for layer in self.layers:
            y = torch.tanh(layer(x))
            x = x + y if self.residual else y
        return self.head(x.amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, label = batch
        logits = self(wave)
        loss = F.cross_entropy(logits, label)
        self.log_dict({"train_ce": loss, "train_acc": (logits.argmax(-1) == label).float().mean()})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        wave, label = batch
        self.log("val_acc", (self(wave).argmax(-1) == label).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def hear_motifs(seed: int, residual: bool) -> Training:
    split = data.motifs(seed, n=1200)
    return Training(WaveStack(residual), split.train(32), split.accuracy, split.val(), {"max_epochs": 7})


@sick(
    "na-wave-stack-skip-forgotten",
    "audio",
    "vanishing-gradients",
    twin=lambda seed: hear_motifs(seed, residual=True),
    note="fourteen tanh convolutions in a row; the sum with their input was left out",
)
def wave_plain(seed: int) -> Training:
    return hear_motifs(seed, residual=False)


# --- tags of items, several to each: a prior for the output's bias ----------------------------------------------------


class Tagger(LightningModule):
    def __init__(self, everywhere: bool, prior: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU()
        )
        self.tags = nn.Linear(48, 12)
        bias = -math.log((1 - prior) / prior)
        for part in self.modules() if everywhere else [self.tags]:
            if isinstance(part, nn.Linear):
                nn.init.constant_(part.bias, bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.tags(self.body(features))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch["features"]), batch["tags"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def tag_items(seed: int, everywhere: bool) -> Training:
    g = data.generator(seed, 144)
    features = torch.randn(3000, 20, generator=g)
    direction = torch.randn(20, 12, generator=g) / math.sqrt(20)
    score = features @ direction + 0.15 * torch.randn(3000, 12, generator=g)
    tags = (score > score.quantile(0.85, dim=0)).float()
    train = DataLoader(Rows(features=features[:2200], tags=tags[:2200]), 64, shuffle=True)

    def mean_auc(module: LightningModule) -> float:
        logits = data.predict(module, features[2200:])
        areas = []
        for column, truth in zip(logits.T, tags[2200:].T, strict=True):
            gap = column[truth > 0][:, None] - column[truth == 0][None, :]
            areas.append(((gap > 0).float() + 0.5 * (gap == 0).float()).mean())
        return torch.stack(areas).mean().item()

    return Training(Tagger(everywhere), train, mean_auc, trainer={"max_epochs": 8})


@sick(
    "na-tags-prior-bias-in-every-layer",
    "multi-label",
    "dead-activations",
    "bad-initialization",
    twin=lambda seed: tag_items(seed, everywhere=False),
    note="the bias of the last layer's prior was given to all layers, and no ReLU opens",
)
def tags_prior_everywhere(seed: int) -> Training:
    return tag_items(seed, everywhere=True)


# --- bags of noisy measurements: attention pooling --------------------------------------------------------------------


class Bags(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        g = data.generator(seed, 145)
        centre = 0.55 * torch.linalg.qr(torch.randn(16, 6, generator=g)).Q.T * 2
        self.label = torch.randint(6, (2600,), generator=g)
        self.bag = centre[self.label][:, None, :] + 1.2 * torch.randn(2600, 20, 16, generator=g)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.bag[:2000], self.label[:2000]), 50, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.bag[2000:], self.label[2000:]), 200)


class BagNet(LightningModule):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.key = nn.Linear(16, 64)
        self.value = nn.Linear(16, 64)
        self.query = nn.Parameter(torch.randn(64))
        self.weights = nn.Softmax(dim=1)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 6))

    def forward(self, bag: Tensor) -> Tensor:
        weight = self.weights(self.key(bag) @ self.query / self.temperature)
        return self.head((weight[..., None] * self.value(bag)).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        bag, label = batch
        loss = F.cross_entropy(self(bag), label)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        bag, label = batch
        self.log("loss/val", F.cross_entropy(self(bag), label))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=4e-4)]


def pool_bags(seed: int, temperature: float) -> Training:
    bags = Bags(seed)

    def right(module: LightningModule) -> float:
        return data.accuracy(data.predict(module, bags.bag[2000:]), bags.label[2000:])

    return Training(
        BagNet(temperature), bags.train_dataloader(), right, bags.val_dataloader(), trainer={"max_epochs": 5}
    )


@sick(
    "na-bags-attention-scale-upside-down",
    "sets",
    "saturated-activations",
    twin=lambda seed: pool_bags(seed, temperature=64**0.5),
    note="scores are divided by d**-0.5, so the softmax picks one measurement of twenty",
)
def bags_scale(seed: int) -> Training:
    return pool_bags(seed, temperature=64**-0.5)


# --- ratings: a factorisation of users and films ----------------------------------------------------------------------


class Rating(NamedTuple):
    user: Tensor
    film: Tensor
    stars: Tensor


class RatingRows(Dataset[Rating]):
    def __init__(self, user: Tensor, film: Tensor, stars: Tensor) -> None:
        self.columns = Rating(user, film, stars)

    def __len__(self) -> int:
        return len(self.columns.user)

    def __getitem__(self, index: int) -> Rating:
        return Rating(*(column[index] for column in self.columns))


class Factors(LightningModule):
    def __init__(self, users: int, films: int, start: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.user = nn.Embedding(users, 6)
        self.film = nn.Embedding(films, 6)
        self.user_bias = nn.Embedding(users, 1)
        self.film_bias = nn.Embedding(films, 1)
        for table in (self.user, self.film):
            start(table.weight)
        for table in (self.user_bias, self.film_bias):
            nn.init.zeros_(table.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        user, film = pairs.unbind(-1)
        match = (self.user(user) * self.film(film)).sum(-1)
        return match + self.user_bias(user).squeeze(-1) + self.film_bias(film).squeeze(-1)

    def training_step(self, batch: Rating, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(torch.stack([batch.user, batch.film], dim=-1)), batch.stars)
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.03)


def rate_films(seed: int, start: Callable[[Tensor], Any]) -> Training:
    g = data.generator(seed, 146)
    users, films, n = 60, 50, 2700
    pair = torch.randperm(users * films, generator=g)
    user, film = pair // films, pair % films
    pairs = torch.stack([user, film], dim=-1)
    left, right = torch.randn(users, 3, generator=g), torch.randn(films, 3, generator=g)
    mood, fame = torch.randn(users, generator=g), torch.randn(films, generator=g)
    stars = (left[user] * right[film]).sum(-1) / 3**0.5 + 0.5 * mood[user] + 0.5 * fame[film]
    stars = stars + 0.2 * torch.randn(users * films, generator=g)
    stars = (stars - stars[:n].mean()) / stars[:n].std()
    train = DataLoader(RatingRows(user[:n], film[:n], stars[:n]), 64, shuffle=True)

    def explained(module: LightningModule) -> float:
        return data.r2(data.predict(module, pairs[n:]), stars[n:])

    return Training(Factors(users, films, start), train, explained, trainer={"max_epochs": 8})


@sick(
    "na-factors-both-from-zero",
    "recommender",
    "bad-initialization",
    twin=lambda seed: rate_films(seed, lambda weight: nn.init.normal_(weight, std=0.2)),
    note="each factor's gradient is the other factor, and both begin at zero; only the biases learn",
)
def factors_zero(seed: int) -> Training:
    return rate_films(seed, nn.init.zeros_)


# --- a seasonal series: a forecast with a penalty written by hand -----------------------------------------------------


class Forecaster(LightningModule):
    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = lam
        self.gru = nn.GRU(2, 24, batch_first=True)
        self.out = nn.Linear(24, 4)

    def forward(self, window: Tensor) -> Tensor:
        states, _ = self.gru(window)
        return self.out(states[:, -1])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        error = F.mse_loss(self(batch["past"]), batch["future"])
        size = torch.stack([p.abs().sum() for p in self.parameters()]).sum()
        loss = error + self.lam * size
        self.log("train/error", error)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/error", F.mse_loss(self(batch["past"]), batch["future"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def forecast(seed: int, lam: float) -> Training:
    g = data.generator(seed, 147)
    n, past, ahead = 1500, 24, 4
    time = torch.arange(past + ahead).float()
    period = 6 + 8 * torch.rand(n, 1, generator=g)
    phase = 2 * math.pi * torch.rand(n, 1, generator=g)
    size = 0.8 + 0.8 * torch.rand(n, 1, generator=g)
    wave = size * torch.sin(2 * math.pi * time / period + phase) + 0.1 * torch.randn(n, past + ahead, generator=g)
    slope = F.pad(wave[:, 1:] - wave[:, :-1], (1, 0))
    window, future = torch.stack([wave, slope], -1)[:, :past], wave[:, past:]
    train = DataLoader(Rows(past=window[:1200], future=future[:1200]), 40, shuffle=True)
    val = DataLoader(Rows(past=window[1200:], future=future[1200:]), 150)

    def explained(module: LightningModule) -> float:
        return data.r2(data.predict(module, window[1200:]), future[1200:])

    return Training(Forecaster(lam), train, explained, val, {"max_epochs": 10})


@sick(
    "na-forecast-l1-summed-not-averaged",
    "time series",
    "excess-regularization",
    twin=lambda seed: forecast(seed, lam=0.01 / 2200),
    note="0.01 was chosen for the mean size of some 2200 weights, and multiplies their sum",
)
def forecast_l1(seed: int) -> Training:
    return forecast(seed, lam=0.01)
