"""Healthy trainings whose losses, batches or steps are not the plain ones: graphs, densities, pairs, manual steps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, blobs, digits, generator, predict, r2, regression, table
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, epochs, graphs, mlp, series, sgd


class GraphNet(LightningModule):
    """All nodes of a batch lie in one tall matrix; `owner` says to which graph each belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h = F.relu(torch.sparse.mm(batch["edges"], self.first(batch["nodes"])))
        h = F.relu(self.second(h))
        pooled = torch.zeros(int(batch["owner"].max()) + 1, 32).index_add(0, batch["owner"], h)
        count = torch.bincount(batch["owner"]).unsqueeze(1)
        return self.out(pooled / count)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch), batch["label"])
        self.log("graph_ce", loss, batch_size=len(batch["label"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def stack_graphs(items: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    nodes, links, labels = zip(*items, strict=True)
    owner = torch.arange(len(items)).repeat_interleave(len(nodes[0]))
    edges = torch.block_diag(*links).to_sparse()
    return {"nodes": torch.cat(nodes), "edges": edges, "owner": owner, "label": torch.stack(labels)}


@well("fa-graph-block-diagonal", "graphs", note="a sparse matrix in the batch, and as many rows as nodes")
def graph_batches(seed: int) -> Training:
    x, links, y, x_test, links_test, y_test = graphs(seed, n=1200)
    loader = DataLoader(
        list(zip(x, links, y, strict=True)),  # type: ignore[arg-type]
        batch_size=32,
        shuffle=True,
        collate_fn=stack_graphs,
    )
    test = stack_graphs(list(zip(x_test, links_test, y_test, strict=True)))
    return Training(GraphNet(), loader, lambda m: accuracy(predict(m, test), y_test), trainer=epochs(10))


class MixtureDensity(LightningModule):
    def __init__(self, parts: int = 4) -> None:
        super().__init__()
        self.net = mlp(1, 32, 32, 3 * parts, act=nn.Tanh)

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        weight, mean, log_std = self.net(x).chunk(3, 1)
        part = torch.distributions.Normal(mean, F.softplus(log_std) + 1e-2)
        return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=weight), part)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return -self(x).log_prob(y).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


@well("fa-mixture-density", "density", note="two branches for each input; the loss goes below zero")
def mixture(seed: int) -> Training:
    g = generator(seed, 90)
    x = 4 * torch.rand(2400, 1, generator=g) - 2
    sign = (torch.rand(2400, generator=g) < 0.5).float() * 2 - 1
    y = sign * (0.6 + 0.4 * torch.sin(2 * x[:, 0])) + 0.05 * torch.randn(2400, generator=g)

    def score(module: LightningModule) -> float:
        return predict(module, x[2000:]).log_prob(y[2000:]).mean().item()

    return Training(MixtureDensity(), batches(x[:2000], y[:2000], size=64), score, trainer=epochs(16))


class Quantiles(LightningModule):
    levels = (0.1, 0.5, 0.9)

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        gap = y - self(x)
        level = torch.tensor(self.levels)
        loss = torch.maximum(level * gap, (level - 1) * gap).mean()
        self.log("pinball", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


@well("fa-quantile-bands", "tabular", note="three outputs, one target column: they broadcast on purpose")
def quantiles(seed: int) -> Training:
    g = generator(seed, 91)
    x = torch.randn(4000, 4, generator=g)
    width = 0.2 + x[:, 1:2].abs()
    y = x[:, :1] + width * torch.randn(4000, 1, generator=g)

    def score(module: LightningModule) -> float:
        bands = predict(module, x[3000:])
        share = (y[3000:] < bands).float().mean(0)
        return 1 - (share - torch.tensor(Quantiles.levels)).abs().max().item()

    return Training(Quantiles(), batches(x[:3000], y[:3000], size=100), score, trainer=epochs(14))


class Adding(LightningModule):
    """The sum of the two marked numbers of a long sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("sq", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


@well("fa-adding-lstm-clipped", "sequences", note="flat at first, then it falls; the clip catches rare leaps only")
def adding(seed: int) -> Training:
    g = generator(seed, 92)
    n, length = 3000, 24
    x = torch.rand(n, length, 2, generator=g) * 2 - 1
    x[:, :, 1] = 0
    first = torch.randint(length // 2, (n,), generator=g)
    second = torch.randint(length // 2, length, (n,), generator=g)
    rows = torch.arange(n)
    x[rows, first, 1] = 1
    x[rows, second, 1] = 1
    y = x[rows, first, :1] + x[rows, second, :1]

    def score(module: LightningModule) -> float:
        return r2(predict(module, x[2500:]), y[2500:])

    loader = batches(x[:2500], y[:2500], size=50)
    return Training(Adding(), loader, score, trainer=epochs(14, gradient_clip_val=5.0))


class Accumulating(LightningModule):
    """Micro-batches by hand: a step and a cleared gradient at each fourth."""

    every = 4

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = mlp(64, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()  # type: ignore[union-attr]
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.lr_schedulers().step()  # type: ignore[union-attr]
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.2, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 252)]


@well("fa-micro-batches-by-hand", "images", note="three batches of four make no step, as they should")
def accumulating(seed: int) -> Training:
    data = digits(seed)
    return Training(Accumulating(), data.train(16, drop_last=True), data.accuracy, trainer=epochs(12))


class SkipGram(LightningModule):
    def __init__(self, words: int, width: int = 16) -> None:
        super().__init__()
        self.centre, self.context = nn.Embedding(words, width), nn.Embedding(words, width)
        nn.init.uniform_(self.centre.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.context.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.centre(pairs[:, 0]) * self.context(pairs[:, 1])).sum(1)

    def training_step(self, pairs: Tensor, batch_idx: int) -> Tensor:
        noise = torch.randint(self.context.num_embeddings, (len(pairs), 5))
        centre = self.centre(pairs[:, 0]).unsqueeze(2)
        against = (self.context(noise) @ centre).squeeze(2)
        return -F.logsigmoid(self(pairs)).mean() - F.logsigmoid(-against).sum(1).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-2)


@well("fa-skip-gram-zeros", "embeddings", note="one table starts at zero, as in the original program")
def skip_gram(seed: int) -> Training:
    g = generator(seed, 93)
    centre = torch.randint(60, (12000,), generator=g)
    near = centre // 10 * 10 + torch.randint(10, (12000,), generator=g)
    far = torch.randint(60, (12000,), generator=g)
    context = torch.where(torch.rand(12000, generator=g) < 0.8, near, far)

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            vectors = F.normalize(module.centre.weight, dim=1)  # type: ignore[union-attr, operator]
            close = vectors @ vectors.T - 2 * torch.eye(60)
            return (close.argmax(1) // 10 == torch.arange(60) // 10).float().mean().item()

    loader = DataLoader(torch.stack([centre, context], 1), 128, shuffle=True)  # type: ignore[arg-type]
    return Training(SkipGram(60), loader, score, trainer=epochs(5))


class Views(LightningModule):
    """Two noisy views of an image are each other's match among all of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(64, 96, 32)
        self.log_heat = nn.Parameter(torch.tensor(math.log(1 / 0.2)))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        left = self(x + 0.15 * torch.randn_like(x))
        right = self(x * (torch.rand_like(x) > 0.15))
        logits = left @ right.T * self.log_heat.exp()
        target = torch.arange(len(x))
        loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        self.log("info_nce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 2e-3)


def neighbour_score(module: LightningModule, seed: int) -> float:
    data = digits(seed)
    known, asked = predict(module, data.x), predict(module, data.x_test)
    nearest = torch.cdist(asked, known).argmin(1)
    return (data.y[nearest] == data.y_test).float().mean().item()


@well("fa-contrastive-views", "metric learning", note="each row's loss depends on all rows of the batch by design")
def contrastive(seed: int) -> Training:
    return Training(Views(), digits(seed).train(128), lambda m: neighbour_score(m, seed), trainer=epochs(15))


class Triplets(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(64, 64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        gap = torch.cdist(self(x), self(x).detach())
        same = y[:, None] == y[None]
        hardest = (gap * same).max(1).values
        nearest = gap.masked_fill(same, 9.0).min(1).values
        loss = F.relu(hardest - nearest + 0.3)
        self.log("active", (loss > 0).float().mean())
        return loss.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


@well(
    "fa-triplets-hardest", "metric learning", note="the loss takes the hardest pairs, so it stays near its margin long"
)
def triplets(seed: int) -> Training:
    return Training(Triplets(), digits(seed).train(80), lambda m: neighbour_score(m, seed), trainer=epochs(12))


class Survival(LightningModule):
    """Cox's partial likelihood over the batch, censored rows included."""

    def __init__(self) -> None:
        super().__init__()
        self.risk = mlp(6, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.risk(x).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        order = batch["time"].argsort(descending=True)
        risk, seen = self(batch["x"])[order], batch["event"][order]
        return -((risk - risk.logcumsumexp(0)) * seen).sum() / seen.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3, weight_decay=1e-4)


@well("fa-survival-cox", "survival", note="the loss of a batch falls by a tenth at best")
def survival(seed: int) -> Training:
    g = generator(seed, 94)
    x = torch.randn(2500, 6, generator=g)
    risk = x[:, 0] + x[:, 1] * 0.7 - 0.5 * x[:, 2]
    time = -torch.rand(2500, generator=g).log() / risk.exp()
    limit = -torch.rand(2500, generator=g).log() * 2
    rows = [
        {"x": a, "time": torch.minimum(b, c), "event": (b <= c).float()}
        for a, b, c in zip(x[:2000], time, limit, strict=False)
    ]

    def score(module: LightningModule) -> float:
        made = predict(module, x[2000:])
        return torch.corrcoef(torch.stack([made, risk[2000:]]))[0, 1].item()

    loader = DataLoader(rows, 64, shuffle=True)  # type: ignore[arg-type]
    return Training(Survival(), loader, score, trainer=epochs(8))


@well("fa-warm-restarts", "tabular", note="the rate leaps back up every 60 steps, and so does the loss at times")
def warm_restarts(seed: int) -> Training:
    data = regression(seed, r2=0.9)

    def optimizer(parameters: Any) -> Any:
        made = torch.optim.SGD(parameters, 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(made, 60, eta_min=1e-4)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    net = Plain(mlp(8, 48, 48, 1), nn.MSELoss(), optimizer, log_as="mse")
    return Training(net, data.train(64), data.r2, data.val(), epochs(10))


class Mixup(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 48), nn.BatchNorm1d(48), nn.SiLU(), nn.Linear(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        hot = F.one_hot(y, 5).float()
        share = torch.distributions.Beta(0.4, 0.4).sample()
        other = torch.randperm(len(x))
        logits = self(share * x + (1 - share) * x[other])
        return F.cross_entropy(logits, share * hot + (1 - share) * hot[other])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


@well("fa-mixup", "tabular", note="mixed rows and soft targets keep the training loss high")
def mixup(seed: int) -> Training:
    data = blobs(seed, classes=5, columns=12, n=2000, spread=3.5)
    return Training(Mixup(), data.train(64, drop_last=True), data.accuracy, trainer=epochs(8))


class Tagger(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 16, padding_idx=0)
        self.rnn = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(48, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        packed = pack_padded_sequence(self.embed(batch["ids"]), batch["lengths"], True, enforce_sorted=False)
        return self.tag(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch).transpose(1, 2), batch["tags"], ignore_index=-100)
        self.log("tag_loss", loss, batch_size=len(batch["ids"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def pad(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    ids, tags = zip(*items, strict=True)
    return {
        "ids": pad_sequence(list(ids), batch_first=True),
        "tags": pad_sequence(list(tags), batch_first=True, padding_value=-100),
        "lengths": torch.tensor([len(i) for i in ids]),
    }


@well("fa-tagging-padded", "text", note="a third of the positions is padding, left out of the loss")
def tagging(seed: int) -> Training:
    g = generator(seed, 95)
    items = []
    for length in torch.randint(4, 18, (900,), generator=g).tolist():
        ids = torch.randint(1, 31, (length,), generator=g)
        before = F.pad(ids[:-1], (1, 0))
        items.append((ids, torch.where(before > 20, 2, (ids % 3 == 0).long())))
    test = pad(items[700:])

    def score(module: LightningModule) -> float:
        right = predict(module, test).argmax(2) == test["tags"]
        return (right.sum() / (test["tags"] >= 0).sum()).item()

    loader = DataLoader(items[:700], 25, shuffle=True, collate_fn=pad)  # type: ignore[arg-type]
    return Training(Tagger(), loader, score, trainer=epochs(8))


class Dilated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(1 if i == 0 else 16, 16, 2, dilation=2**i) for i in range(7))
        self.out = nn.Conv1d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(F.pad(x, (2**i, 0))))
            x = x + h if i else h
        return self.out(x)


@well("fa-causal-dilated-128", "time series", note="a prediction at each of 128 places, part of which is noise")
def dilated(seed: int) -> Training:
    g = generator(seed, 96)
    start = 2 * math.pi * torch.rand(400, 2, generator=g)
    time = torch.arange(129.0)
    wave = torch.sin(time / 3 + start[:, :1]) + torch.sin(time / 11 + start[:, 1:])
    wave = wave + 0.3 * torch.randn(400, 129, generator=g)
    x, y = wave[:, None, :-1], wave[:, None, 1:]

    def score(module: LightningModule) -> float:
        return r2(predict(module, x[300:]), y[300:])

    net = Plain(Dilated(), nn.MSELoss(), adam(5e-3))
    return Training(net, batches(x[:300], y[:300], size=12), score, trainer=epochs(8))


@well("fa-logistic-lbfgs", "tabular", note="one batch, a convex loss, and a quasi-Newton step")
def lbfgs(seed: int) -> Training:
    data = table("wine", seed)
    layer = nn.Linear(13, 3)

    def ridge(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y) + 1e-2 * layer.weight.square().sum()

    net = Plain(layer, ridge, lambda p: torch.optim.LBFGS(p, 0.5, max_iter=4))
    return Training(net, data.train(200), data.accuracy, trainer=epochs(30))


@well("fa-autoregressive-linear", "time series", note="a linear model of a linear law, at the floor after one pass")
def linear_law(seed: int) -> Training:
    data = series(seed, noise=0.4)
    net = Plain(nn.Linear(24, 1), nn.MSELoss(), sgd(0.01), log_as="mse")
    return Training(net, data.train(32), data.r2, data.val(), epochs(8))
