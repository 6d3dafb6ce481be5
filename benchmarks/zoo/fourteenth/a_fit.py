"""Models held back, models that memorise, and runs that stop before they are done."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, flip_labels, generator, predict
from benchmarks.zoo.fourteenth.a_common import bags, batches, glyphs, ratings, reviews, tones, waves

# --- words in a bag, with the decay of another framework ------------------------------------------------------------


class WordBag(LightningModule):
    def __init__(self, optimizer_options: dict[str, float]) -> None:
        super().__init__()
        self.options = optimizer_options
        self.embedding = nn.EmbeddingBag(120, 16, mode="mean")
        self.dense_1 = nn.Linear(16, 24)
        self.dense_2 = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense_2(torch.relu(self.dense_1(self.embedding(ids))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        logits = self(ids)
        loss = F.cross_entropy(logits, label)
        self.log("accuracy", (logits.argmax(1) == label).float().mean())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3, **self.options)


def word_bag(seed: int, **options: float) -> Training:
    cut = reviews(seed)
    return Training(WordBag(options), cut.train(25), cut.accuracy, None, {"max_epochs": 8})


@sick("na-reviews-decay-as-weight-decay", "text", "excess-regularization", twin=lambda s: word_bag(s))
def words_decay(seed: int) -> Training:
    return word_bag(seed, weight_decay=0.1)


class WindowNet(LightningModule):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(24, 64),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(64, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.huber_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_huber", F.huber_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def keep(seed: int, probability: float) -> Training:
    cut = waves(seed, n=1200)
    return Training(WindowNet(probability), cut.train(32), cut.r2, cut.val(), {"max_epochs": 10})


@sick("na-forecast-keep-probability", "time-series", "excess-regularization", twin=lambda s: keep(s, 0.05))
def forecast_keep(seed: int) -> Training:
    return keep(seed, 0.95)


# --- too narrow -----------------------------------------------------------------------------------------------------


def channels(base: int, multiplier: float) -> int:
    return max(1, int(base * multiplier))


class SlimGlyphs(LightningModule):
    def __init__(self, multiplier: float) -> None:
        super().__init__()
        c1, c2 = channels(12, multiplier), channels(20, multiplier)
        self.features = nn.Sequential(
            nn.Conv2d(1, c1, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.LeakyReLU(0.1),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(c2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


def slim(seed: int, multiplier: float) -> Training:
    cut = glyphs(seed)
    return Training(SlimGlyphs(multiplier), cut.train(32), cut.accuracy, None, {"max_epochs": 10})


@sick("na-glyphs-width-multiplier", "images", "insufficient-capacity", twin=lambda s: slim(s, 1.0))
def glyphs_slim(seed: int) -> Training:
    return slim(seed, 0.05)


class Factors(LightningModule):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(60, rank), nn.Embedding(50, rank)
        self.user_bias, self.item_bias = nn.Embedding(60, 1), nn.Embedding(50, 1)
        for table, std in ((self.user, 0.3), (self.item, 0.3), (self.user_bias, 0.01), (self.item_bias, 0.01)):
            nn.init.normal_(table.weight, std=std)

    def forward(self, pairs: Tensor) -> Tensor:
        u, i = pairs[:, 0], pairs[:, 1]
        return (self.user(u) * self.item(i)).sum(1) + (self.user_bias(u) + self.item_bias(i)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, stars = batch
        loss = F.mse_loss(self(pairs), stars)
        self.log("rmse", loss.sqrt())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def factors(seed: int, rank: int) -> Training:
    cut = ratings(seed)
    return Training(Factors(rank), cut.train(50), cut.r2, None, {"max_epochs": 12})


@sick("na-ratings-rank-one", "recommender", "insufficient-capacity", twin=lambda s: factors(s, 4))
def ratings_rank(seed: int) -> Training:
    return factors(seed, 1)


# --- nothing between the layers -------------------------------------------------------------------------------------

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class ConfiguredNet(LightningModule):
    def __init__(self, activation: str) -> None:
        super().__init__()
        act = ACTIVATIONS.get(activation, nn.Identity)
        self.net = nn.Sequential(nn.Linear(6, 40), act(), nn.Linear(40, 40), act(), nn.Linear(40, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def configured(seed: int, activation: str) -> Training:
    g = generator(seed, 33)
    x = torch.randn(2000, 6, generator=g)
    product = x[:, 0] * x[:, 1] + 0.8 * x[:, 2] * x[:, 3]
    y = torch.bucketize(product, torch.tensor([-0.45, 0.45]))

    def score(module: LightningModule) -> float:
        return (predict(module, x[1400:]).argmax(1) == y[1400:]).float().mean().item()

    return Training(
        ConfiguredNet(activation),
        batches(x[:1400], y[:1400], size=40),
        score,
        batches(x[1400:], y[1400:], size=300, shuffle=False),
        {"max_epochs": 10},
    )


@sick("na-products-activation-lookup", "tabular", "missing-nonlinearity", twin=lambda s: configured(s, "relu"))
def products_lookup(seed: int) -> Training:
    return configured(seed, "ReLU")


class PointSet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, 32), nn.Linear(32, 32)
        self.fc3, self.fc4 = nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, points: Tensor) -> Tensor:
        h = F.relu(self.fc1(points))
        h = F.relu(self.fc2(h)).mean(1)
        return self.fc4(F.relu(self.fc3(h)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        points, spread = batch
        return F.mse_loss(self(points), spread)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class PointSetNet(PointSet):
    def forward(self, points: Tensor) -> Tensor:
        h = self.fc1(points)
        F.relu(h)
        h = self.fc2(h)
        F.relu(h)
        h = self.fc3(h.mean(1))
        F.relu(h)
        return self.fc4(h)


def point_sets(seed: int, model: type[PointSet]) -> Training:
    cut = bags(seed)
    return Training(model(), cut.train(32), cut.r2, None, {"max_epochs": 20})


@sick("na-sets-relu-result-unused", "sets", "missing-nonlinearity", twin=lambda s: point_sets(s, PointSet))
def sets_unused(seed: int) -> Training:
    return point_sets(seed, PointSetNet)


# --- memorising -----------------------------------------------------------------------------------------------------


class Clips(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor, shift: bool) -> None:
        self.x, self.y, self.shift = x, y, shift

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        clip = self.x[i]
        if self.shift:
            clip = torch.roll(clip, int(torch.randint(64, ())), -1) + 0.3 * torch.randn_like(clip)
        return clip, self.y[i]


class ClipMlp(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.out = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def clips(seed: int, shift: bool) -> Training:
    cut = tones(seed, n=180, noise=1.2)
    loader = DataLoader(Clips(cut.x, cut.y, shift), 36, shuffle=True)
    return Training(ClipMlp(), loader, cut.accuracy, cut.val(250), {"max_epochs": 50})


@sick("na-tones-augmentation-off", "audio", "overfitting", "too-little-data", twin=lambda s: clips(s, True))
def tones_plain(seed: int) -> Training:
    return clips(seed, False)


class WideTable(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("valid_ce", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def wide(seed: int, patience: int | None) -> Training:
    cut = blobs(seed, n=640, spread=2.5)
    noisy = flip_labels(cut.y, 0.3, 5, seed)
    noisy_test = flip_labels(cut.y_test, 0.3, 5, seed + 1)
    callbacks = [] if patience is None else [EarlyStopping("valid_ce", patience=patience)]
    return Training(
        WideTable(),
        batches(cut.x, noisy, size=32),
        cut.accuracy,
        DataLoader(TensorDataset(cut.x_test, noisy_test), 500),
        {"max_epochs": 40, "callbacks": callbacks},
    )


@sick("na-noisy-table-forty-epochs", "tabular", "overfitting", twin=lambda s: wide(s, 2))
def wide_long(seed: int) -> Training:
    return wide(seed, None)


class ShapeNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16 * 16, 48), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("loss/val", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def shares(seed: int, train_share: float) -> Training:
    cut = glyphs(seed, n=900)
    count = round(train_share * 900)
    train, val = random_split(TensorDataset(cut.x, cut.y), [count, 900 - count], torch.Generator().manual_seed(seed))
    settings = {"max_steps": 240, "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 40}
    return Training(ShapeNet(), DataLoader(train, 16, shuffle=True), cut.accuracy, DataLoader(val, 128), settings)


@sick("na-glyphs-split-swapped", "images", "too-little-data", "overfitting", twin=lambda s: shares(s, 0.9))
def glyphs_swapped(seed: int) -> Training:
    return shares(seed, 0.05)


class ReviewRnn(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(120, 24)
        self.rnn = nn.GRU(24, 24, batch_first=True)
        self.label = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.label(self.rnn(self.tokens(ids))[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y)
        self.log("step_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, y = batch
        self.log("val_loss", F.cross_entropy(self(ids), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def few_batches(seed: int, **flags: Any) -> Training:
    cut = reviews(seed, n=2400)
    loader = cut.train(40)
    return Training(ReviewRnn(), loader, cut.accuracy, cut.val(200), {"max_steps": 180, "max_epochs": -1, **flags})


@sick("na-reviews-debug-flag-left", "text", "too-little-data", "overfitting", twin=lambda s: few_batches(s))
def reviews_debug(seed: int) -> Training:
    return few_batches(seed, overfit_batches=2, check_val_every_n_epoch=10)


# --- stopped early --------------------------------------------------------------------------------------------------


class DigitVae(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def elbo(self, x: Tensor, noise: bool) -> Tensor:
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if noise else mu
        likelihood = F.binary_cross_entropy_with_logits(self.dec(z), x, reduction="none").sum(1)
        divergence = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
        return -(likelihood + divergence).mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.elbo(x, noise=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        elbo = self.elbo(batch[0], noise=True)
        self.log("elbo", elbo)
        return -elbo

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def vae(seed: int, **limit: int) -> Training:
    cut = digits(seed)
    return Training(DigitVae(), batches(cut.x, size=64), lambda m: predict(m, cut.x_test).item(), None, {**limit})


@sick("na-vae-epochs-as-steps", "vae", "training-too-short", twin=lambda s: vae(s, max_epochs=60))
def vae_short(seed: int) -> Training:
    return vae(seed, max_epochs=-1, max_steps=60)


class VisitNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, visits = batch
        loss = F.poisson_nll_loss(self(x), visits)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.5)


def visits(seed: int, accumulate: int) -> Training:
    g = generator(seed, 34)
    x = torch.randn(3600, 8, generator=g)
    level = torch.sin(1.5 * x[:, 0]) + 0.6 * x[:, 1] * x[:, 2].clamp(-2, 2)
    y = torch.poisson(level.clamp(-3, 2).exp(), generator=g)

    def score(module: LightningModule) -> float:
        return -F.poisson_nll_loss(predict(module, x[2800:]), y[2800:]).item()

    return Training(
        VisitNet(),
        batches(x[:2800], y[:2800], size=10),
        score,
        None,
        {"max_epochs": 5, "accumulate_grad_batches": accumulate},
    )


@sick("na-visits-accumulated-to-few-steps", "counts", "training-too-short", twin=lambda s: visits(s, 1))
def visits_few(seed: int) -> Training:
    return visits(seed, 20)
