"""Losses that do not fit what they are given: the wrong one, the wrong sign, the wrong range, the wrong shape."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, generator, predict, r2
from benchmarks.zoo.fourteenth.b_common import (
    Fit,
    Logged,
    adam,
    batches,
    bursts,
    epochs,
    f1,
    graphs,
    mlp,
    seasons,
    sgd,
)

# --- photo tags: several apply at once


def tags(seed: int, exclusive: bool) -> Training:
    g = generator(seed, 1)
    x = torch.randn(2600, 16, generator=g)
    y = (x @ torch.randn(16, 12, generator=g) / 4 > 0.6).float()

    def loss(logits: Tensor, tag: Tensor) -> Tensor:
        return F.cross_entropy(logits, tag) if exclusive else F.binary_cross_entropy_with_logits(logits, tag)

    def score(module: LightningModule) -> float:
        return f1(predict(module, x[1800:]).sigmoid() > 0.5, y[1800:] > 0.5)

    model = Logged(mlp(16, 64, 12), loss, adam(5e-3))
    val = batches(x[1800:], y[1800:], size=256, shuffle=False)
    return Training(model, batches(x[:1800], y[:1800], size=64), score, val, epochs(9))


@sick("pa-photo-tags", "tabular", "wrong-loss-for-task", "unscaled-targets", twin=lambda s: tags(s, False))
def tags_exclusive(seed: int) -> Training:
    return tags(seed, True)


# --- a variational autoencoder


class Vae(LightningModule):
    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign
        self.enc = mlp(20, 48, 8)
        self.dec = mlp(4, 48, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x)[:, :4])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        likelihood = -0.5 * ((self.dec(z) - x) ** 2).sum(1) / 0.1
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
        elbo = (likelihood - kl).mean()
        self.log("elbo", elbo)
        return self.sign * elbo

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def vae(seed: int, sign: int) -> Training:
    g = generator(seed, 2)
    x = torch.tanh(torch.randn(2000, 3, generator=g) @ torch.randn(3, 20, generator=g))
    x = x + 0.05 * torch.randn(2000, 20, generator=g)
    return Training(
        Vae(sign), batches(x[:1500], size=50), lambda m: r2(predict(m, x[1500:]), x[1500:]), None, epochs(10)
    )


@sick("pa-elbo-returned", "vae", "wrong-loss-for-task", twin=lambda s: vae(s, -1))
def vae_sign(seed: int) -> Training:
    return vae(seed, 1)


# --- masks of small shapes, the loss summed over the pixels


def shapes(seed: int, n: int, side: int = 16) -> tuple[Tensor, Tensor]:
    g = generator(seed, 3)
    rows, cols = torch.arange(side).view(1, -1, 1), torch.arange(side).view(1, 1, -1)
    centre = torch.randint(4, side - 4, (n, 2, 1, 1), generator=g)
    radius = 2 + 2 * torch.rand(n, 1, 1, generator=g)
    mask = ((rows - centre[:, 0]) ** 2 + (cols - centre[:, 1]) ** 2 < radius**2).float()
    return (mask * 1.2 + 0.7 * torch.randn(n, side, side, generator=g))[:, None], mask[:, None]


def masks(seed: int, per_pixel: bool) -> Training:
    x, y = shapes(seed, 600)

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").flatten(1)
        return each.mean() if per_pixel else each.sum(1).mean()

    net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2))
    model = Fit(net, loss, sgd(0.3))
    return Training(
        model,
        batches(x[:400], y[:400], size=16),
        lambda m: f1(predict(m, x[400:]) > 0, y[400:] > 0),
        None,
        epochs(7),
    )


@sick("pa-masks-summed", "segmentation", "wrong-loss-for-task", "learning-rate-too-high", twin=lambda s: masks(s, True))
def masks_summed(seed: int) -> Training:
    return masks(seed, False)


# --- a mixture of experts whose votes are averaged


class Experts(LightningModule):
    def __init__(self, columns: int, classes: int, log: bool) -> None:
        super().__init__()
        self.take_log = log
        self.gate = nn.Linear(columns, 3)
        self.experts = nn.ModuleList(mlp(columns, 24, classes) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(1)
        votes = torch.stack([e(x).softmax(1) for e in self.experts], 1)
        return (share[:, :, None] * votes).sum(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        p = self(x)
        loss = F.nll_loss(torch.log(p + 1e-8), y) if self.take_log else F.cross_entropy(p, y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def experts(seed: int, log: bool) -> Training:
    cut = blobs(seed, classes=16, columns=16, n=2400, spread=4.0)
    return Training(Experts(16, 16, log), cut.train(48), cut.accuracy, None, epochs(5))


@sick("pa-experts-average", "mixture", "probabilities-as-logits", twin=lambda s: experts(s, True))
def experts_average(seed: int) -> Training:
    return experts(seed, False)


# --- sound events by the frame


class Frames(LightningModule):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 12, 7, padding=3), nn.ReLU(), nn.Conv1d(12, 12, 7, padding=3), nn.ReLU())
        self.top = nn.Conv1d(12, 1, 5, padding=2)
        self.last = last
        self.criterion = nn.BCEWithLogitsLoss()

    def forward(self, wave: Tensor) -> Tensor:
        return self.last(self.top(self.body(wave))).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.criterion(self(batch["wave"]), batch["active"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


class Clips(Dataset[dict[str, Tensor]]):
    def __init__(self, wave: Tensor, active: Tensor) -> None:
        self.wave, self.active = wave, active

    def __len__(self) -> int:
        return len(self.wave)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"wave": self.wave[i], "active": self.active[i]}


def events(seed: int, last: nn.Module) -> Training:
    x, y = bursts(seed, 900)
    return Training(
        Frames(last),
        DataLoader(Clips(x[:640], y[:640]), 32, shuffle=True),
        lambda m: f1(predict(m, x[640:]).sigmoid() > 0.5, y[640:] > 0.5),
        None,
        epochs(8),
    )


@sick("pa-sound-events", "audio", "probabilities-as-logits", twin=lambda s: events(s, nn.Identity()))
def events_sigmoid(seed: int) -> Training:
    return events(seed, nn.Sigmoid())


# --- forecasts of standardised series


def forecast(seed: int, last: list[nn.Module]) -> Training:
    x, y = seasons(seed, 3000)
    net = nn.Sequential(*mlp(24, 64, 64, 1), *last)
    model = Logged(net, F.mse_loss, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    val = batches(x[2200:], y[2200:], size=256, shuffle=False)
    return Training(
        model,
        batches(x[:2200], y[:2200], size=64),
        lambda m: r2(predict(m, x[2200:]), y[2200:]),
        val,
        epochs(9),
    )


@sick("pa-forecast-tanh", "time series", "output-range-mismatch", twin=lambda s: forecast(s, []))
def forecast_tanh(seed: int) -> Training:
    return forecast(seed, [nn.Tanh()])


# --- an autoencoder of images scaled to -1 and 1


class Coder(LightningModule):
    def __init__(self, final: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 20))
        self.decoder = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 64), final)

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image)).view_as(image)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        image, _ = batch
        loss = F.mse_loss(self(image), image)
        self.log("recon", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 3e-3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=300),
                "interval": "step",
            },
        }


def coder(seed: int, final: nn.Module) -> Training:
    cut = digits(seed).to_images()
    images, held = 2 * cut.x - 1, 2 * cut.x_test - 1
    return Training(
        Coder(final),
        batches(images, cut.y, size=64),
        lambda m: r2(predict(m, held).flatten(1), held.flatten(1)),
        None,
        epochs(12),
    )


@sick("pa-coder-sigmoid", "autoencoder", "output-range-mismatch", twin=lambda s: coder(s, nn.Tanh()))
def coder_sigmoid(seed: int) -> Training:
    return coder(seed, nn.Sigmoid())


# --- graphs, yes or no


class Graphs(LightningModule):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 24), nn.Linear(48, 24)
        self.head = nn.Linear(24, 1)
        self.gate = gate

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        links, x = batch
        own = F.relu(self.one(x))
        near = links @ own / (links.sum(-1, keepdim=True) + 1)
        both = F.relu(self.two(torch.cat([own, near], -1)))
        return self.gate(self.head(both.mean(1)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        links, x, y = batch
        p = self((links, x))
        loss = F.binary_cross_entropy(p, y.float().unsqueeze(1))
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def relations(seed: int, gate: nn.Module) -> Training:
    links, x, y = graphs(seed, 1600)

    def score(module: LightningModule) -> float:
        p = predict(module, (links[1200:], x[1200:])).squeeze(1)
        return ((p > 0.5).long() == y[1200:]).float().mean().item()

    train = batches(links[:1200], x[:1200], y[:1200], size=40)
    return Training(Graphs(gate), train, score, None, epochs(10))


@sick("pa-graph-softmax", "graph", "output-range-mismatch", twin=lambda s: relations(s, nn.Sigmoid()))
def relations_softmax(seed: int) -> Training:
    return relations(seed, nn.Softmax(dim=1))


# --- ratings from two embeddings


class Ratings(LightningModule):
    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.user, self.item = nn.Embedding(60, 8), nn.Embedding(40, 8)
        self.head = mlp(16, 32, 1)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        out = self.head(torch.cat([self.user(pair[0]), self.item(pair[1])], 1))
        return out.squeeze(1) if self.flat else out

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        miss = self((batch["user"], batch["item"])) - batch["stars"]
        huber = torch.where(miss.abs() < 1, 0.5 * miss**2, miss.abs() - 0.5)
        return huber.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


class Stars(Dataset[dict[str, Tensor]]):
    def __init__(self, user: Tensor, item: Tensor, stars: Tensor) -> None:
        self.columns = {"user": user, "item": item, "stars": stars}

    def __len__(self) -> int:
        return len(self.columns["stars"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {k: v[i] for k, v in self.columns.items()}


def ratings(seed: int, flat: bool) -> Training:
    g = generator(seed, 4)
    user, item = torch.randint(60, (3600,), generator=g), torch.randint(40, (3600,), generator=g)
    mean_user, mean_item = torch.randn(60, generator=g), torch.randn(40, generator=g)
    stars = 0.6 * (mean_user[user] + mean_item[item]) + 0.3 * torch.randn(3600, generator=g)
    stars = stars - stars.mean()
    return Training(
        Ratings(flat),
        DataLoader(Stars(user[:3000], item[:3000], stars[:3000]), 100, shuffle=True),
        lambda m: r2(predict(m, (user[3000:], item[3000:])), stars[3000:]),
        None,
        epochs(10),
    )


@sick("pa-stars-column", "recommender", "loss-shape-mismatch", twin=lambda s: ratings(s, True))
def ratings_column(seed: int) -> Training:
    return ratings(seed, False)


# --- denoising


class Clean(LightningModule):
    def __init__(self, drop_channel: bool) -> None:
        super().__init__()
        self.drop_channel = drop_channel
        self.net = nn.Sequential(nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 1, 9, padding=4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        noisy, clean = batch
        out = self(noisy)
        if self.drop_channel:
            out = out[:, 0]
        loss = F.smooth_l1_loss(out, clean)
        self.log("train/l1", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        noisy, clean = batch
        self.log("val/l1", F.smooth_l1_loss(self(noisy)[:, 0], clean))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.NAdam(self.parameters(), 4e-3)


def denoise(seed: int, drop_channel: bool) -> Training:
    x, _ = seasons(seed, 900, 32)
    noisy = (x + 0.6 * torch.randn(x.shape, generator=generator(seed, 5)))[:, None]
    return Training(
        Clean(drop_channel),
        batches(noisy[:700], x[:700], size=16),
        lambda m: r2(predict(m, noisy[700:])[:, 0], x[700:]),
        batches(noisy[700:], x[700:], size=100, shuffle=False),
        epochs(5),
    )


@sick("pa-denoise-channel", "signal", "loss-shape-mismatch", twin=lambda s: denoise(s, True))
def denoise_channel(seed: int) -> Training:
    return denoise(seed, False)
