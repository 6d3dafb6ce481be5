"""What reaches the optimizer and what does not, and what passes between the samples of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, generator, motifs, predict, regression
from benchmarks.zoo.fourteenth.a_common import batches, graph, ratings, waves

# --- out of the optimizer's reach -----------------------------------------------------------------------------------


class RatingModel(LightningModule):
    def __init__(self, resize_at_start: bool) -> None:
        super().__init__()
        self.resize_at_start = resize_at_start
        self.users, self.items = self.tables()
        self.user_mean, self.item_mean = nn.Embedding(60, 1), nn.Embedding(50, 1)
        nn.init.zeros_(self.user_mean.weight)
        nn.init.zeros_(self.item_mean.weight)

    def tables(self) -> tuple[nn.Embedding, nn.Embedding]:
        users, items = nn.Embedding(60, 4), nn.Embedding(50, 4)
        nn.init.normal_(users.weight, std=0.3)
        nn.init.normal_(items.weight, std=0.3)
        return users, items

    def on_fit_start(self) -> None:
        if self.resize_at_start:  # the vocabulary is known only now
            self.users, self.items = self.tables()

    def forward(self, pairs: Tensor) -> Tensor:
        u, i = pairs.unbind(1)
        return (self.users(u) * self.items(i)).sum(1) + self.user_mean(u)[:, 0] + self.item_mean(i)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, stars = batch
        loss = F.mse_loss(self(pairs), stars)
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-2, weight_decay=1e-3)


def recommend(seed: int, resize_at_start: bool) -> Training:
    cut = ratings(seed)
    return Training(RatingModel(resize_at_start), cut.train(50), cut.r2, None, {"max_epochs": 12})


@sick("na-ratings-tables-resized", "recommender", "parameters-not-optimized", twin=lambda s: recommend(s, False))
def ratings_resized(seed: int) -> Training:
    return recommend(seed, True)


class GraphNet(LightningModule):
    def __init__(self, adjacency: Tensor, registered: bool) -> None:
        super().__init__()
        loops = adjacency + torch.eye(len(adjacency))
        self.register_buffer("hat", loops / loops.sum(1, keepdim=True))
        weights = [nn.Parameter(torch.randn(12, 5) / 12**0.5), nn.Parameter(torch.randn(5, 5) / 5**0.5)]
        self.weights = nn.ParameterList(weights) if registered else weights
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.hat @ x @ self.weights[0])
        h = torch.relu(h @ self.weights[1])
        return self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, mask = (part[0] for part in batch)
        loss = F.cross_entropy(self(x)[mask], y[mask])
        self.log("loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2, weight_decay=2e-3)


def nodes(seed: int, registered: bool) -> Training:
    x, adjacency, y, mask = graph(seed)
    loader = DataLoader(TensorDataset(x[None], y[None], mask[None]), 1)

    def score(module: LightningModule) -> float:
        return (predict(module, x).argmax(1) == y)[~mask].float().mean().item()

    return Training(GraphNet(adjacency, registered), loader, score, None, {"max_epochs": 200})


@sick("na-graph-list-of-weights", "graph", "parameters-not-optimized", twin=lambda s: nodes(s, True))
def graph_list(seed: int) -> Training:
    return nodes(seed, False)


# --- gradients kept or thrown away ----------------------------------------------------------------------------------


class Siamese(LightningModule):
    def __init__(self, clear_first: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clear_first = clear_first
        self.embed = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        left, right, same = batch
        distance = (self(left) - self(right)).pow(2).sum(1).add(1e-6).sqrt()
        loss = torch.where(same, distance**2, F.relu(2.0 - distance) ** 2).mean()
        opt = self.optimizers()
        if self.clear_first:
            opt.zero_grad()
            self.manual_backward(loss)
        else:
            self.manual_backward(loss)
            opt.zero_grad()
        opt.step()
        self.log("contrastive", loss.detach())
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def siamese(seed: int, clear_first: bool) -> Training:
    cut = digits(seed)
    g = generator(seed, 35)
    left = torch.randint(len(cut.x), (4000,), generator=g)
    other = torch.randint(len(cut.x), (4000, 10), generator=g)
    match = cut.y[other] == cut.y[left][:, None]
    wanted = torch.rand(4000, generator=g) < 0.4
    pick = torch.where(wanted, match.float().argmax(1), (~match).float().argmax(1))
    right = other[torch.arange(4000), pick]
    same = cut.y[left] == cut.y[right]

    def score(module: LightningModule) -> float:
        known, new = predict(module, cut.x), predict(module, cut.x_test)
        centres = torch.stack([known[cut.y == k].mean(0) for k in range(10)])
        return (torch.cdist(new, centres).argmin(1) == cut.y_test).float().mean().item()

    loader = batches(cut.x[left], cut.x[right], same, size=64)
    return Training(Siamese(clear_first), loader, score, None, {"max_epochs": 5})


@sick("na-siamese-cleared-before-step", "metric-learning", "gradients-not-cleared", twin=lambda s: siamese(s, True))
def siamese_cleared(seed: int) -> Training:
    return siamese(seed, False)


class CountNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        rate = self(batch["features"]).clamp(max=6)
        loss = (rate.exp() - batch["orders"] * rate).mean()
        self.log("poisson", loss, batch_size=len(rate))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class OrderNet(CountNet):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if batch_idx == 0:
            optimizer.zero_grad()


def orders(seed: int, model: type[CountNet]) -> Training:
    g = generator(seed, 36)
    x = torch.randn(2400, 6, generator=g)
    level = 0.8 * torch.sin(1.5 * x[:, 0]) + 0.5 * x[:, 1] + 0.4 * x[:, 2] * x[:, 3]
    y = torch.poisson(level.clamp(-3, 2).exp(), generator=g)
    rows = [{"features": a, "orders": b} for a, b in zip(x[:1600], y[:1600], strict=True)]

    def score(module: LightningModule) -> float:
        rate = predict(module, x[1600:]).clamp(-20, 6)
        return -(rate.exp() - y[1600:] * rate).mean().item()

    return Training(model(), DataLoader(rows, 32, shuffle=True), score, None, {"max_epochs": 8})


@sick("na-orders-cleared-once-an-epoch", "counts", "gradients-not-cleared", twin=lambda s: orders(s, CountNet))
def orders_kept(seed: int) -> Training:
    return orders(seed, OrderNet)


# --- batch statistics -----------------------------------------------------------------------------------------------


class NormedDigits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU()
        )
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def last_one(seed: int, drop_last: bool) -> Training:
    cut = digits(seed)
    x, y = cut.x[: 64 * 15 + 1], cut.y[: 64 * 15 + 1]
    return Training(NormedDigits(), batches(x, y, size=64, drop_last=drop_last), cut.accuracy, None, {"max_epochs": 8})


@sick(
    "na-digits-remainder-of-one",
    "images",
    "batchnorm-small-batch",
    twin=lambda s: last_one(s, True),
    note="the last batch of an epoch holds one sample and raises",
)
def digits_remainder(seed: int) -> Training:
    return last_one(seed, False)


class NormedRegressor(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 48), nn.BatchNorm1d(48), nn.SiLU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.SiLU()
        )
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("tr_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("va_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def accumulated(seed: int, size: int) -> Training:
    cut = regression(seed, r2=0.9, n=1600)
    settings = {"max_epochs": 4, "accumulate_grad_batches": 32 // size}
    return Training(NormedRegressor(), cut.train(size), cut.r2, cut.val(500), settings)


@sick("na-pairs-accumulated-with-batchnorm", "tabular", "batchnorm-small-batch", twin=lambda s: accumulated(s, 32))
def accumulated_pairs(seed: int) -> Training:
    return accumulated(seed, 2)


class NormedForecaster(LightningModule):
    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in ((24, 48), (48, 48), (48, 32)):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b, first, second)]
        self.net = nn.Sequential(*layers, nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def normed(seed: int, first: float, second: float) -> Training:
    cut = waves(seed)
    return Training(NormedForecaster(first, second), cut.train(32), cut.r2, cut.val(), {"max_epochs": 8})


@sick(
    "na-forecast-norm-arguments-swapped",
    "time-series",
    "batchnorm-stale-statistics",
    twin=lambda s: normed(s, 1e-5, 0.1),
)
def forecast_swapped(seed: int) -> Training:
    return normed(seed, 0.1, 1e-5)


# --- modes ----------------------------------------------------------------------------------------------------------


class DropRegressor(LightningModule):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 1)

    def drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.4) if self.always else F.dropout(h, 0.4, training=self.training)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.gelu(self.a(x)))
        h = self.drop(F.gelu(self.b(h)))
        return self.c(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def functional(seed: int, always: bool) -> Training:
    cut = regression(seed, r2=0.9, n=1600)
    return Training(DropRegressor(always), cut.train(32), cut.r2, cut.val(500), {"max_epochs": 8})


@sick("na-functional-dropout-default", "tabular", "mode-mismatch", twin=lambda s: functional(s, False))
def functional_default(seed: int) -> Training:
    return functional(seed, True)


class ProbedNet(LightningModule):
    def __init__(self, restore: bool) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(7):
            blocks += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        self.eval()  # one sample is enough to learn the width
        with torch.no_grad():
            width = self.blocks(torch.zeros(1, 64)).shape[1]
        if restore:
            self.train()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("xent", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def probed(seed: int, restore: bool) -> Training:
    cut = digits(seed)
    return Training(ProbedNet(restore), cut.train(64, drop_last=True), cut.accuracy, None, {"max_epochs": 12})


@sick("na-digits-probed-in-eval", "images", "mode-mismatch", twin=lambda s: probed(s, True))
def digits_probed(seed: int) -> Training:
    return probed(seed, False)


# --- samples that see each other ------------------------------------------------------------------------------------


class MotifReader(LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, **options)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out.mean(dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def read_motifs(seed: int, **options: Any) -> Training:
    cut = motifs(seed, n=960)
    return Training(MotifReader(**options), cut.train(32), cut.accuracy, cut.val(400), {"max_epochs": 8})


@sick("na-motifs-time-first", "sequences", "batch-mixing", twin=lambda s: read_motifs(s, batch_first=True))
def motifs_time_first(seed: int) -> Training:
    return read_motifs(seed)


class Experts(LightningModule):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.router = nn.Linear(10, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(self.axis)
        return sum(share[:, [k]] * expert(x) for k, expert in enumerate(self.experts))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("mix_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def experts(seed: int, axis: int) -> Training:
    cut = blobs(seed, n=1600, spread=3.0)

    def score(module: LightningModule) -> float:
        single = torch.cat([predict(module, row[None]) for row in cut.x_test[:300]])
        return -F.cross_entropy(single, cut.y_test[:300]).item()

    return Training(Experts(axis), cut.train(40), score, None, {"max_epochs": 6})


@sick("na-experts-routed-over-the-batch", "tabular", "batch-mixing", twin=lambda s: experts(s, 1))
def experts_routed(seed: int) -> Training:
    return experts(seed, 0)
