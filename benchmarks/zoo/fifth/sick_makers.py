"""Autoencoders, variational ones, distances between pairs, and losses and layers written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator, motifs
from benchmarks.zoo.fifth._common import dots, held, houses, levelled, mlp, pairs, plants, r2_of, recalls, right


def rows(x: Tensor, size: int = 32) -> Any:
    """Batches that are the tensor alone."""
    data: Any = x
    return DataLoader(data, size, shuffle=True)


class Codec(LightningModule):
    """Encodes and decodes; batches are tensors."""

    def __init__(self, code: int, last: nn.Module | None = None, lr: float = 3e-3) -> None:
        super().__init__()
        self.encoder = mlp(64, 64, code)
        self.decoder = nn.Sequential(*mlp(code, 64, 64), last or nn.Identity())
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch), batch)
        self.log("reconstruction", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def even(d: Split) -> Split:
    """Every pixel to mean 0 and deviation 1."""
    d = d.standardised()
    return replace(d, y=d.x, y_test=d.x_test)


@sick("z-dots-through-one-number", "autoencoder", "insufficient-capacity", twin=lambda s: narrow(s, 8))
def narrow(seed: int, code: int = 1) -> Training:
    d = even(dots(seed))
    return Training(Codec(code), rows(d.x), r2_of(d), None, {"max_epochs": 14})


@sick("z-dots-between-nought-and-one", "autoencoder", "output-range-mismatch", twin=lambda s: between(s, False))
def between(seed: int, squash: bool = True) -> Training:
    """A sigmoid ends the decoder, as in many examples, but these pixels were standardised."""
    d = even(dots(seed))
    return Training(Codec(8, nn.Sigmoid() if squash else None), rows(d.x), r2_of(d), None, {"max_epochs": 10})


class Variational(LightningModule):
    """A variational autoencoder; `sign` is what the bound is multiplied by before it is returned as the loss."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.sign = mlp(64, 64, 12), mlp(6, 64, 64), sign

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[:, :6])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        mu, logvar = self.encoder(batch).chunk(2, 1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        likelihood = -(self.decoder(z) - batch).pow(2).sum(1) / (2 * 0.1)
        kl = 0.5 * (mu.pow(2) + logvar.exp() - logvar - 1).sum(1)
        elbo = (likelihood - kl).mean()
        self.log("elbo", elbo)
        return self.sign * elbo

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("z-dots-elbo", "vae", "wrong-loss-for-task", twin=lambda s: bound(s, -1.0))
def bound(seed: int, sign: float = 1.0) -> Training:
    d = dots(seed)
    settings = {"max_epochs": 8, "gradient_clip_val": 1.0}
    return Training(Variational(sign), rows(d.x), r2_of(d), None, settings)


# --- by hand ----------------------------------------------------------------------------------------------------------


class Fit(LightningModule):
    """A net and a loss method to override."""

    def __init__(self, net: nn.Module, lr: float = 5e-3) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer}


class LogCounts(nn.Module):
    """Logarithms of counts, as the first layer."""

    def __init__(self, add: float) -> None:
        super().__init__()
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x + self.add)


def counts(seed: int) -> Split:
    """Counts of twelve events for each row; some are nought in a few rows."""
    d = plants(seed)

    def count(x: Tensor) -> Tensor:
        return torch.exp(0.6 * x + 1.6).round()

    return replace(d, x=count(d.x), x_test=count(d.x_test))


@sick("z-counts-in-logarithms", "mlp", "unstable-operation", twin=lambda s: logarithms(s, 1.0))
def logarithms(seed: int, add: float = 0.0) -> Training:
    d = counts(seed)
    net = nn.Sequential(LogCounts(add), mlp(12, 32, 3))
    return Training(Fit(net), pairs(d.x, d.y), right(d), None, {"max_epochs": 6})


class RowNorm(nn.Module):
    """Each row to mean 0 and deviation 1."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + self.eps)


@sick("z-rows-levelled-inside", "mlp", "unstable-operation", twin=lambda s: inside(s, 1e-5))
def inside(seed: int, eps: float = 0.0) -> Training:
    """A few rows of the table hold the same number in every column."""
    d = plants(seed, gap=1.3)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=generator(seed, 91))[:6]] = 0.5
    net = nn.Sequential(RowNorm(eps), mlp(12, 32, 3))
    return Training(Fit(net), pairs(x, d.y), right(d), None, {"max_epochs": 6})


class HandEntropy(Fit):
    """Cross-entropy of two classes as the textbook writes it."""

    eps = 0.0

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(out[:, 0])
        p = p.clamp(self.eps, 1 - self.eps) if self.eps else p
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


@sick("z-kinds-by-the-textbook", "mlp", "nonfinite-loss", "unstable-operation", twin=lambda s: textbook(s, 1e-6))
def textbook(seed: int, eps: float = 0.0) -> Training:
    """The two kinds lie far apart, so the answers soon are 0 and 1 to the last digit."""
    d = plants(seed, gap=2.2).map_targets(lambda t: (t == 0).float())
    module = HandEntropy(mlp(12, 48, 1), lr=2e-2)
    module.eps = eps
    decide = recalls(d.map_targets(lambda t: t.long()), lambda z: (z[:, 0] > 0).long())
    return Training(module, pairs(d.x, d.y), decide, None, {"max_epochs": 8, "log_every_n_steps": 10})


class Spread(Fit):
    """A price and its spread, by a Gaussian likelihood; the spread may be cut off at nought."""

    soft = False

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mu, raw = self.net(x).chunk(2, 1)
        sigma = F.softplus(raw) + 1e-2 if self.soft else F.relu(raw)
        loss = (torch.log(sigma) + (y - mu) ** 2 / (2 * sigma**2)).mean()
        self.log("nll", loss)
        return loss


@sick("z-homes-with-a-spread", "mlp", "nonfinite-loss", "unstable-operation", twin=lambda s: spread(s, True))
def spread(seed: int, soft: bool = False) -> Training:
    d = levelled(houses(seed).standardised())
    net = mlp(6, 48, 2)
    with torch.no_grad():
        net[-1].bias[1] = 1.5
    module = Spread(net)
    module.soft = soft
    return Training(module, pairs(d.x, d.y), r2_of(d), None, {"max_epochs": 10})


class Amplitude(nn.Module):
    """The amplitudes of learned pairs of waves."""

    def __init__(self, columns: int, waves: int, eps: float) -> None:
        super().__init__()
        self.real = nn.Linear(columns, waves, bias=False)
        self.imaginary = nn.Linear(columns, waves, bias=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.real(x) ** 2 + self.imaginary(x) ** 2 + self.eps)


@sick("z-calls-by-amplitude", "mlp", "nonfinite-gradients", "unstable-operation", twin=lambda s: calls(s, 1e-6))
def calls(seed: int, eps: float = 0.0) -> Training:
    """A few of the recordings are silent throughout."""
    d = motifs(seed).map_targets(lambda t: t // 2)
    x, x_test = d.x.squeeze(2).clone(), d.x_test.squeeze(2)
    x[torch.randperm(len(x), generator=generator(seed, 92))[:12]] = 0
    net = nn.Sequential(Amplitude(32, 32, eps), mlp(32, 48, 2))
    score = right(Split(x, d.y, x_test, d.y_test))
    return Training(Fit(net), pairs(x, d.y), score, None, {"max_epochs": 8, "log_every_n_steps": 1})


class Pairwise(LightningModule):
    """Draws pairs of one kind together and pushes others apart; distances by a root."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.net, self.eps = mlp(12, 32, 8), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = self(x)
        square = (h[:, None] - h[None]).pow(2).sum(-1)
        distance = torch.sqrt(square + self.eps)
        same = (y[:, None] == y[None]).float()
        loss = (same * distance + (1 - same) * F.relu(2 - distance)).mean()
        self.log("pairs", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("z-kinds-drawn-together", "metric", "nonfinite-gradients", "unstable-operation", twin=lambda s: together(s, 1e-8))
def together(seed: int, eps: float = 0.0) -> Training:
    d = plants(seed)

    def score(module: LightningModule) -> float:
        """Share of test rows whose nearest training row is of their kind."""
        module.eval()
        with torch.no_grad():
            nearest = torch.cdist(module(d.x_test), module(d.x)).argmin(1)
        return (d.y[nearest] == d.y_test).float().mean().item()

    return Training(Pairwise(eps), pairs(d.x, d.y), score, None, {"max_epochs": 6})


class Gates(Fit):
    """Cross-entropy, with the accuracy of held-out rows."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


@sick("z-kinds-wide-sigmoids", "mlp", "saturated-activations", "bad-initialization", twin=lambda s: wide(s, False))
def wide(seed: int, far: bool = True) -> Training:
    """Sigmoid layers whose weights were drawn with a deviation of eight."""
    d = plants(seed)
    net = mlp(12, 16, 16, 16, 3, act=nn.Sigmoid)
    if far:
        for layer in list(net)[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=8.0)
    return Training(Gates(net, 2e-2), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 10})
