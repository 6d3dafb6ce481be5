"""Losses, gradients and operations that leave the finite numbers."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, digits, friedman, messages, r2, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, mlp

# --- the loss itself


class DemandModel(LightningModule):
    """Forecasts demand and is judged by its percentage error."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.net = Recurrent(nn.GRU(1, 24, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        mape = ((y - self(x)).abs() / y.abs().clamp(min=self.floor)).mean()
        self.log("mape", mape)
        return mape

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _demand(seed: int, floor: float) -> Training:
    torch.manual_seed(seed)
    whole = waves()
    # a shop that is closed sells nothing: negative values become exact zeros
    split = Split(whole.x.relu(), whole.y.relu(), whole.test_x.relu(), whole.test_y.relu())
    return Training(DemandModel(floor), split.train(32), r2(split), None, {"max_epochs": 20})


@sick("demand-mape", "rnn", "nonfinite-loss", "unstable-operation", twin=lambda seed: _demand(seed, 0.5))
def demand_mape(seed: int) -> Training:
    return _demand(seed, 0.0)


class MeanAndSpread(LightningModule):
    """Predicts a mean and a standard deviation; Gaussian negative log-likelihood."""

    def __init__(self, spread: nn.Module) -> None:
        super().__init__()
        self.body = mlp(10, 64, 64, 2)
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, :1]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        mean, raw = self.body(x).chunk(2, dim=1)
        sigma = self.spread(raw)
        loss = (torch.log(sigma) + 0.5 * ((y - mean) / sigma) ** 2).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Floored(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x) + 0.05


def _spread(seed: int, spread: nn.Module) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    return Training(MeanAndSpread(spread), split.train(32), r2(split), None, {"max_epochs": 25})


@sick(
    "friedman-gaussian-nll", "regression", "nonfinite-loss", "unstable-operation", twin=lambda s: _spread(s, Floored())
)
def friedman_gaussian_nll(seed: int) -> Training:
    return _spread(seed, nn.ReLU())


# --- finite loss, gradients that are not


class PairModel(LightningModule):
    """Contrastive embedding: every pair of a batch, same class near, other classes a margin apart."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.embed = mlp(64, 64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        z = self.embed(x)
        distance = ((z[:, None] - z[None]).square().sum(-1) + self.epsilon).sqrt()
        same = (y[:, None] == y[None]).float()
        pairs = same * distance.square() + (1 - same) * F.relu(1 - distance).square()
        loss = pairs.mean() + F.cross_entropy(self.head(z), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _pairs(seed: int, epsilon: float) -> Training:
    torch.manual_seed(seed)
    split = digits()
    return Training(PairModel(epsilon), split.train(64), accuracy(split), None, {"max_epochs": 15})


@sick("digits-pair-distance", "mlp", "nonfinite-gradients", "unstable-operation", twin=lambda seed: _pairs(seed, 1e-8))
def digits_pair_distance(seed: int) -> Training:
    return _pairs(seed, 0.0)


class RootModel(LightningModule):
    """Trains on the error of the square roots, as counts ask for, with negative predictions counted as zero."""

    def __init__(self, guarded: bool) -> None:
        super().__init__()
        self.guarded = guarded
        self.net = mlp(10, 64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def root(self, value: Tensor) -> Tensor:
        if self.guarded:
            return value.clamp(min=1e-3).sqrt()
        return torch.where(value > 0, value.sqrt(), torch.zeros_like(value))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        guess = self(x)
        loss = F.mse_loss(self.root(guess), y.sqrt()) + 0.1 * F.mse_loss(guess, y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _roots(seed: int, guarded: bool) -> Training:
    torch.manual_seed(seed)
    whole = friedman()
    split = Split(whole.x, (whole.y + 2).relu(), whole.test_x, (whole.test_y + 2).relu())
    return Training(RootModel(guarded), split.train(32), r2(split), None, {"max_epochs": 25})


@sick(
    "friedman-root-error",
    "regression",
    "nonfinite-gradients",
    "unstable-operation",
    twin=lambda seed: _roots(seed, True),
)
def friedman_root_error(seed: int) -> Training:
    return _roots(seed, False)


# --- modules that break on finite inputs


class BatchScale(nn.Module):
    """Standardises every pixel over the batch."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + self.epsilon)


def _pixels(seed: int, epsilon: float) -> Training:
    torch.manual_seed(seed)
    split = digits()
    net = nn.Sequential(BatchScale(epsilon), *mlp(64, 64, 10))
    return Training(Classifier(net), split.train(64), accuracy(split), split.val(), {"max_epochs": 12})


@sick("digits-pixel-scale", "mlp", "unstable-operation", twin=lambda seed: _pixels(seed, 0.1))
def digits_pixel_scale(seed: int) -> Training:
    return _pixels(seed, 0.0)


class Reader(nn.Module):
    """Self-attention over the words of a message; padding is masked out."""

    def __init__(self, words: int = 24, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h, padding = self.embed(tokens.long()), tokens == 0
        scores = self.query(h) @ self.key(h).transpose(1, 2) / h.shape[-1] ** 0.5
        weights = self.softmax(scores.masked_fill(padding[:, None], float("-inf")))
        return self.head((h + weights @ self.value(h)).mean(1))


def _reader(seed: int, empty: int) -> Training:
    torch.manual_seed(seed)
    split = messages()
    x = split.x.clone()
    x[torch.arange(empty) * 150 + 7] = 0  # messages of which nothing was left after cleaning
    return Training(
        Classifier(Reader()), split.with_train(x, split.y).train(32), accuracy(split), None, {"max_epochs": 12}
    )


@sick("messages-attention-mask", "transformer", "unstable-operation", twin=lambda seed: _reader(seed, 0))
def messages_attention_mask(seed: int) -> Training:
    return _reader(seed, 6)


class OwnSoftmax(nn.Module):
    """Cosine logits at a temperature, made into probabilities."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, cosine: Tensor) -> Tensor:
        e = torch.exp(cosine / self.temperature)
        return e / e.sum(1, keepdim=True)


class Prototypes(LightningModule):
    """Classifies by the cosine to one learnt prototype a class."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32)
        )
        self.prototypes = nn.Parameter(torch.randn(10, 32))
        self.probabilities = OwnSoftmax(temperature)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embed(x), dim=1) @ F.normalize(self.prototypes, dim=1).T

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = -self.probabilities(self(x)).gather(1, y[:, None]).log().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _prototypes(seed: int, temperature: float) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(1, 8, 8)
    return Training(Prototypes(temperature), split.train(64), accuracy(split), None, {"max_epochs": 15})


@sick("digits-prototype-softmax", "cnn", "unstable-operation", twin=lambda seed: _prototypes(seed, 0.1))
def digits_prototype_softmax(seed: int) -> Training:
    return _prototypes(seed, 0.002)
