"""Metric and embedding losses that end well: zero on many batches, bound to the batch size, sparse, or negative."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import mlp


def _neighbours(d: data.Split) -> Any:
    """Accuracy of the nearest training sample's class, by cosine in the learnt space."""

    def score(m: LightningModule) -> float:
        a = F.normalize(data.predict(m, d.x_test), dim=1)
        b = F.normalize(data.predict(m, d.x), dim=1)
        return (d.y[(a @ b.T).argmax(1)] == d.y_test).float().mean().item()

    return score


class Triplets(Dataset[Any]):
    """An anchor, another of its class, one of another class; drawn anew at each visit."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.members = [torch.nonzero(y == k).flatten() for k in range(int(y.max()) + 1)]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        k = int(self.y[i])
        other = (k + 1 + int(torch.randint(len(self.members) - 1, ()))) % len(self.members)
        positive, negative = (m[torch.randint(len(m), ())] for m in (self.members[k], self.members[other]))
        return self.x[i], self.x[positive], self.x[negative]


class TripletNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(64, 64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.triplet_margin_loss(*(self(x) for x in batch), margin=0.3)
        self.log("triplet", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well(
    "triplet",
    "representation",
    "the loss is exactly 0 on nearly half of the later batches, and so are the gradients; neighbours 0.97",
)
def triplet(seed: int) -> Training:
    d = data.digits(seed)
    return Training(
        TripletNet(), DataLoader(Triplets(d.x, d.y), 16, shuffle=True), _neighbours(d), None, {"max_epochs": 15}
    )


class SimCLR(LightningModule):
    """InfoNCE on two noisy shifts of each picture; the loss starts at ln(2N - 1) and has a high floor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(384, 48),
        )
        self.project = mlp(48, 48, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    @staticmethod
    def augment(x: Tensor) -> Tensor:
        dx, dy = torch.randint(-1, 2, (2,)).tolist()
        strength = 0.7 + 0.6 * torch.rand(len(x), 1, 1, 1)
        return strength * x.roll((dx, dy), dims=(2, 3)) + 0.1 * torch.randn_like(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        z = torch.cat([self.project(self(self.augment(x))) for _ in range(2)])
        z = F.normalize(z, dim=1)
        sim = z @ z.T / 0.2
        sim.fill_diagonal_(float("-inf"))
        loss = F.cross_entropy(sim, torch.arange(len(z), device=z.device).roll(len(x)))
        self.log("info_nce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well(
    "info-nce",
    "representation",
    "contrastive loss over a batch, flat above 1 nat for most of the run; neighbours about 0.97",
)
def info_nce(seed: int) -> Training:
    d = data.digits(seed).to_images()
    loader = DataLoader(TensorDataset(d.x), 64, shuffle=True, drop_last=True)
    return Training(SimCLR(), loader, _neighbours(d), None, {"max_epochs": 18})


class BYOL(LightningModule):
    """Predicts the average net's view of another augmentation; the loss is minus a cosine, from 0 down to -1."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 48))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(48, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        a, b = (batch[0] + 0.15 * torch.randn_like(batch[0]) for _ in range(2))
        with torch.no_grad():
            ta, tb = self.target(a), self.target(b)
        cos = F.cosine_similarity
        loss = -(cos(self.predictor(self(a)), tb).mean() + cos(self.predictor(self(b)), ta).mean()) / 2
        self.log("byol", loss)
        return loss

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 0.02)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([*self.online.parameters(), *self.predictor.parameters()], lr=2e-3)


@well(
    "byol-negative",
    "representation",
    "minus a cosine, at -0.95 within a few epochs and flat there; neighbours about 0.96",
)
def byol_negative(seed: int) -> Training:
    d = data.digits(seed)
    loader = DataLoader(TensorDataset(d.x), 64, shuffle=True, drop_last=True)
    return Training(BYOL(), loader, _neighbours(d), None, {"max_epochs": 30})


class Factors(LightningModule):
    """Matrix factorisation with sparse gradients: most rows get none in a step."""

    def __init__(self, users: int, items: int, dim: int = 4) -> None:
        super().__init__()
        self.users = nn.Embedding(users, dim, sparse=True)
        self.items = nn.Embedding(items, dim, sparse=True)
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.items.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pairs, rating = batch
        loss = F.mse_loss(self(pairs), rating)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SparseAdam(list(self.parameters()), lr=1e-2)


@well("sparse-factors", "representation", "SparseAdam on embeddings; R2 about 0.88 of 0.9")
def sparse_factors(seed: int) -> Training:
    g = data.generator(seed, 61)
    u, v = torch.randn(200, 3, generator=g), torch.randn(150, 3, generator=g)
    pairs = torch.stack([torch.randint(200, (14000,), generator=g), torch.randint(150, (14000,), generator=g)], dim=1)
    rating = (u[pairs[:, 0]] * v[pairs[:, 1]]).sum(1) / 3**0.5 + 0.33 * torch.randn(14000, generator=g)
    d = data.split(pairs, rating / rating.std(), seed)
    return Training(Factors(200, 150), d.train(128), d.r2, None, {"max_epochs": 14})


class SkipGram(LightningModule):
    """Words near each other get near vectors; five random words a pair push away."""

    def __init__(self, words: int, dim: int = 16) -> None:
        super().__init__()
        self.centre = nn.Embedding(words, dim)
        self.context = nn.Embedding(words, dim)
        nn.init.uniform_(self.centre.weight, -0.5 / dim, 0.5 / dim)
        nn.init.zeros_(self.context.weight)

    def forward(self, word: Tensor) -> Tensor:
        return self.centre(word)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        word, near = batch
        far = torch.randint(self.context.num_embeddings, (len(word), 5), device=word.device)
        h = self(word)
        good = (h * self.context(near)).sum(1)
        bad = torch.einsum("nd,nkd->nk", h, self.context(far))
        loss = -F.logsigmoid(good).mean() - F.logsigmoid(-bad).sum(1).mean()
        self.log("sgns", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well(
    "skip-gram",
    "representation",
    "negative sampling: from 6 ln 2 to a high floor; neighbours share their topic, about 1.0",
)
def skip_gram(seed: int) -> Training:
    g = data.generator(seed, 62)
    topics, each = 10, 20
    topic = torch.randint(topics, (24000,), generator=g)
    pairs = topic[:, None] * each + torch.randint(each, (24000, 2), generator=g)
    stray = torch.rand(24000, generator=g) < 0.2
    pairs[stray, 1] = torch.randint(topics * each, (int(stray.sum()),), generator=g)

    def score(m: LightningModule) -> float:
        z = F.normalize(data.predict(m, torch.arange(topics * each)), dim=1)
        sim = (z @ z.T).fill_diagonal_(-2.0)
        return (sim.argmax(1) // each == torch.arange(topics * each) // each).float().mean().item()

    loader = DataLoader(TensorDataset(pairs[:, 0], pairs[:, 1]), 256, shuffle=True)
    return Training(SkipGram(topics * each), loader, score, None, {"max_epochs": 12})
