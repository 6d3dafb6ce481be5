"""What comes in and what is asked for: scales, codes, constants, damaged rows, patches cut in the wrong order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth.d_common import Columns, LastState, SignalNet, Supervised, mlp, tones, waves


class PatchMixer(nn.Module):
    """Cuts 8x8 images into sixteen 2x2 patches, embeds them with their place, and mixes them."""

    def __init__(self, order: tuple[int, int, int]) -> None:
        super().__init__()
        self.order = order
        self.embed = nn.Linear(4, 16)
        self.place = nn.Parameter(torch.zeros(16, 16))
        self.across = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(images, kernel_size=2, stride=2)  # (N, 4, 16)
        tokens = patches.permute(self.order).reshape(len(images), 16, 4)
        h = self.embed(tokens) + self.place
        h = h + self.across(h.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(h).flatten(1))


def patches(seed: int, order: tuple[int, int, int]) -> Training:
    cut = data.digits(seed).to_images()

    def score(module: LightningModule) -> float:
        parts = [data.predict(module, x) for x in cut.x_test.split(50)]
        return data.accuracy(torch.cat(parts), cut.y_test)

    return Training(
        Supervised(PatchMixer(order), F.cross_entropy, 3e-3),
        cut.train(50, drop_last=True),
        score,
        cut.val(50),
        {"max_epochs": 10},
    )


@sick("ja-patches-places-first", "images", "batch-mixing", twin=lambda seed: patches(seed, (0, 2, 1)))
def patches_places_first(seed: int) -> Training:
    return patches(seed, (2, 0, 1))


def recordings(seed: int, full_scale: float) -> Training:
    cut = tones(seed)

    def as_pcm(x: Tensor) -> Tensor:
        return (x * 6000).round().clamp(-32768, 32767).to(torch.int16)

    x, x_test = as_pcm(cut.x).float() / full_scale, as_pcm(cut.x_test).float() / full_scale
    module = Supervised(SignalNet(6, 24), nn.CrossEntropyLoss(), 5e-3)
    return Training(
        module,
        DataLoader(TensorDataset(x, cut.y), 24, shuffle=True),
        lambda m: data.accuracy(data.predict(m, x_test), cut.y_test),
        trainer={"max_steps": 240},
    )


@sick("ja-pcm-divided-by-2-31", "signals", "unscaled-inputs", twin=lambda seed: recordings(seed, 2.0**13))
def pcm_int32(seed: int) -> Training:
    return recordings(seed, 2.0**31)


class Stations(LightningDataModule):
    """Soil samples at map coordinates in metres (easting, northing) with a measured value."""

    def __init__(self, seed: int, metres: bool) -> None:
        super().__init__()
        g = data.generator(seed, 421)
        place = torch.randn(2000, 2, generator=g)
        value = torch.sin(1.5 * place[:, :1]) + 0.7 * place[:, 1:] * place[:, :1].tanh()
        value = (value - value.mean()) / value.std() + 0.2 * torch.randn(2000, 1, generator=g)
        if metres:
            place = place * 1800 + torch.tensor([487_000.0, 503_500.0])
        self.cut = data.Split(place[:1500], value[:1500], place[1500:], value[1500:])

    def train_dataloader(self) -> DataLoader[Any]:
        return self.cut.train(64)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.cut.val()


def stations(seed: int, metres: bool) -> Training:
    held = Stations(seed, metres)
    module = Supervised(mlp(2, 64, 64, 1, activation=nn.Tanh), nn.MSELoss(), 5e-3, torch.optim.AdamW)
    return Training(module, held, held.cut.r2, trainer={"max_epochs": 14})


@sick("ja-soil-eastings-metres", "geography", "unscaled-inputs", twin=lambda seed: stations(seed, False))
def soil_metres(seed: int) -> Training:
    return stations(seed, True)


class Ranker(LightningModule):
    """Scores documents; of a pair the first is the one that was clicked."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = mlp(6, 32, 1)

    def forward(self, document: Tensor) -> Tensor:
        return self.scorer(document)[..., 0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        margin = self(batch["clicked"]) - self(batch["skipped"])
        loss = F.softplus(-margin).mean()
        self.log_dict({"pairwise": loss, "ordered": (margin > 0).float().mean()})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def ranking(seed: int, joined: bool) -> Training:
    g = data.generator(seed, 422)
    documents = torch.randn(4400, 6, generator=g)
    worth = documents @ torch.tensor([1.5, -1.0, 1.0, 0.2, 0.2, 0.1]) + 0.8 * documents[:, 0].sin()
    worth = worth + 0.2 * torch.randn(4400, generator=g)
    if joined:  # click rate, bounce rate and link share are fractions; the others are a text score, days and words
        documents = documents * torch.tensor([0.01, 0.02, 0.003, 9.0, 40.0, 200.0])
    first, second = documents[:2200], documents[2200:]
    better = (worth[:2200] > worth[2200:])[:, None]
    clicked, skipped = torch.where(better, first, second), torch.where(better, second, first)

    def score(module: LightningModule) -> float:
        ahead = data.predict(module, clicked[1700:]) > data.predict(module, skipped[1700:])
        return ahead.float().mean().item()

    train = DataLoader(Columns(clicked=clicked[:1700], skipped=skipped[:1700]), 64, shuffle=True)
    return Training(Ranker(), train, score, trainer={"max_steps": 250})


@sick("ja-ranker-joined-units", "ranking", "disparate-feature-scales", twin=lambda seed: ranking(seed, False))
def ranker_joined(seed: int) -> Training:
    return ranking(seed, True)


def rentals(seed: int, one_hot: bool) -> Training:
    """Bicycles hired by temperature, rain, wind, hour and station; the station decides which way the weather acts."""
    g = data.generator(seed, 423)
    weather = torch.randn(2000, 4, generator=g)
    station = torch.randint(9, (2000,), generator=g)
    level = 1.4 * torch.randn(9, generator=g)
    slope = torch.randn(9, generator=g)
    y = level[station] + slope[station] * weather[:, 0] + 0.5 * weather[:, 1] - 0.3 * weather[:, 2]
    y = (y - y.mean()) / y.std() + 0.2 * torch.randn(2000, generator=g)
    columns = F.one_hot(station, 9).float() if one_hot else station[:, None].float()
    x = torch.cat([weather, columns], 1)
    cut = data.Split(x[:1500], y[:1500, None], x[1500:], y[1500:, None])
    module = Supervised(mlp(x.shape[1], 48, 1), F.mse_loss, 1e-2)
    return Training(module, cut.train(64), cut.r2, cut.val(), {"max_epochs": 14})


@sick("ja-rentals-station-number", "tabular", "categorical-as-numeric", twin=lambda seed: rentals(seed, True))
def rentals_number(seed: int) -> Training:
    return rentals(seed, False)


class Reviews(LightningModule):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(words, 24, mode="mean")
        self.head = mlp(24, 32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        logits = self(batch["text"]["input_ids"])
        loss = F.cross_entropy(logits, batch["stars"])
        self.log("train/acc", (logits.argmax(-1) == batch["stars"]).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def reviews(seed: int, lower: bool) -> Training:
    """Made-up reviews of 14 words in small letters; `vocabulary` knows them as the tokenizer was fitted."""
    g = data.generator(seed, 424)
    stars = torch.randint(3, (1400,), generator=g)
    common = torch.randint(0, 60, (1400, 14), generator=g)
    telling = 60 + 10 * stars[:, None] + torch.randint(0, 10, (1400, 14), generator=g)
    drawn = torch.where(torch.rand(1400, 14, generator=g) < 0.25, telling, common)
    spelled = [f"Word{k}" for k in range(90)]
    vocabulary = {(word.lower() if lower else word): k + 1 for k, word in enumerate(spelled)}
    texts = [[spelled[k].lower() for k in row] for row in drawn.tolist()]
    ids = torch.tensor([[vocabulary.get(word, 0) for word in text] for text in texts])
    rows = [{"text": {"input_ids": ids[i]}, "stars": stars[i]} for i in range(1000)]
    return Training(
        Reviews(91),
        DataLoader(rows, 40, shuffle=True),  # type: ignore[arg-type]
        lambda m: data.accuracy(data.predict(m, ids[1000:]), stars[1000:]),
        trainer={"max_epochs": 8},
    )


@sick("ja-reviews-capital-vocabulary", "text", "constant-inputs", twin=lambda seed: reviews(seed, True))
def reviews_capital(seed: int) -> Training:
    return reviews(seed, False)


def demand(seed: int, watts: bool) -> Training:
    cut = waves(seed)
    if watts:
        cut = cut.map_targets(lambda y: 41_000 + 6_500 * y)
    cut = cut.map_targets(lambda y: y[:, None])
    module = Supervised(LastState(1, 1), nn.HuberLoss(), 1e-2)
    return Training(module, cut.train(40), cut.r2, cut.val(), {"max_epochs": 8, "gradient_clip_val": 5.0})


@sick("ja-demand-in-watts", "series", "unscaled-targets", twin=lambda seed: demand(seed, False))
def demand_watts(seed: int) -> Training:
    return demand(seed, True)


def ballots(seed: int, shares: bool) -> Training:
    """Pictures judged by 60 people each; the target is how many chose each of ten digits, or their share."""
    cut = data.digits(seed)
    g = data.generator(seed, 425)
    belief = 0.9 * F.one_hot(cut.y, 10).float() + 0.01
    votes = torch.stack([torch.multinomial(p, 60, True, generator=g).bincount(minlength=10) for p in belief]).float()
    target = votes / 60 if shares else votes
    module = Supervised(mlp(64, 64, 10), nn.CrossEntropyLoss(), 0.2, torch.optim.SGD, momentum=0.9)
    train = DataLoader(TensorDataset(cut.x, target), 32, shuffle=True)
    return Training(module, train, cut.accuracy, trainer={"max_epochs": 6})


@sick("ja-ballots-counted", "images", "unscaled-targets", twin=lambda seed: ballots(seed, True))
def ballots_counted(seed: int) -> Training:
    return ballots(seed, False)


class Weights(LightningModule):
    """Body measures to the weights of three organs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, 48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        measures, organs = batch
        losses = F.mse_loss(self(measures), organs, reduction="none").mean(0)
        self.log_dict({f"organ_{k}": value for k, value in enumerate(losses)})
        return losses.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def organs(seed: int, merged: bool) -> Training:
    g = data.generator(seed, 426)
    x = torch.randn(2000, 8, generator=g)
    y = torch.tanh(x @ torch.randn(8, 3, generator=g) / 2)
    y = (y - y.mean(0)) / y.std(0) + 0.15 * torch.randn(2000, 3, generator=g)
    train = y[:1500].clone()
    if merged:  # one clinic wrote grams, the others kilograms
        train[torch.randperm(1500, generator=g)[:12]] *= 1000
    return Training(
        Weights(),
        DataLoader(TensorDataset(x[:1500], train), 32, shuffle=True),
        lambda m: data.r2(data.predict(m, x[1500:]), y[1500:]),
        trainer={"max_epochs": 6},
    )


@sick("ja-organs-one-clinic-grams", "tabular", "corrupt-samples", twin=lambda seed: organs(seed, False))
def organs_grams(seed: int) -> Training:
    return organs(seed, True)
