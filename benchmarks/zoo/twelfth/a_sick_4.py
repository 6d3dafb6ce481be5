"""Trainings with gradients that vanish, grow or are undefined, batch statistics at fault, and loaders that wait."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, digits, generator, moons, predict, r2, regression, table
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, epochs, mlp, series, sgd, waves


def tower(seed: int, act: type[nn.Module]) -> Training:
    data = blobs(seed, classes=4, columns=12, n=2400, spread=3.0)
    net = mlp(12, *[32] * 9, 4, act=act)
    if act is nn.ReLU:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.02), log_as="loss")
    return Training(module, data.train(40), data.accuracy, data.val(), epochs(6))


@sick("fa-nine-sigmoid-layers", "tabular", "vanishing-gradients", twin=lambda seed: tower(seed, nn.ReLU))
def tower_sigmoid(seed: int) -> Training:
    return tower(seed, nn.Sigmoid)


class Recall(LightningModule):
    """The first symbol of a sequence, asked for at its end."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 16)
        self.rnn = nn.GRU(16, 32, batch_first=True) if cell == "gru" else nn.RNN(16, 32, batch_first=True)
        if cell == "gru":
            with torch.no_grad():
                self.rnn.bias_hh_l0[32:64] = 2.0
        self.out = nn.Linear(32, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0][:, -1])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"]), batch["first"])
        self.log("recall_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def recall(seed: int, cell: str) -> Training:
    ids = torch.randint(6, (1800, 40), generator=generator(seed, 140))
    rows = [{"ids": a, "first": a[0]} for a in ids[:1500]]
    loader = DataLoader(rows, 32, shuffle=True)  # type: ignore[arg-type]
    test = ids[1500:]
    score = lambda m: accuracy(predict(m, test), test[:, 0])  # noqa: E731
    return Training(Recall(cell), loader, score, trainer=epochs(8))


@sick("fa-first-of-forty-symbols", "sequences", "vanishing-gradients", twin=lambda seed: recall(seed, "gru"))
def recall_plain(seed: int) -> Training:
    return recall(seed, "rnn")


class Summing(nn.Module):
    """Blocks that add their output to their input."""

    def __init__(self, depth: int, branch: float) -> None:
        super().__init__()
        self.first = nn.Linear(8, 48)
        self.blocks = nn.ModuleList(nn.Linear(48, 48) for _ in range(depth))
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight)
        self.last = nn.Linear(48, 1)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + self.branch * F.relu(block(x))
        return self.last(x)


def summing(seed: int, branch: float) -> Training:
    data = regression(seed, r2=0.9)
    net = Plain(Summing(10, branch), nn.MSELoss(), sgd(0.01, 0.9), log_as="mse")
    return Training(net, data.train(50), data.r2, data.val(), epochs(10))


@sick(
    "fa-ten-unscaled-branches",
    "tabular",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda seed: summing(seed, 0.3),
)
def summing_unscaled(seed: int) -> Training:
    return summing(seed, 1.0)


class Distilled(LightningModule):
    """Learns the opinions of several annotators; the divergence is written out."""

    def __init__(self, guard: float) -> None:
        super().__init__()
        self.net = mlp(12, 32, 4)
        self.guard = guard

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        share = batch["votes"] / batch["votes"].sum(1, keepdim=True)
        guess = F.softmax(self(batch["x"]), dim=1)
        loss = (share * torch.log((share + self.guard) / (guess + self.guard))).sum(1).mean()
        self.log("kl", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def distilled(seed: int, guard: float) -> Training:
    data = blobs(seed, classes=4, columns=12, n=1600, spread=3.0)
    g = generator(seed, 141)
    belief = 0.94 * F.one_hot(data.y, 4) + 0.015
    votes = F.one_hot(torch.multinomial(belief, 3, replacement=True, generator=g), 4).sum(1).float()
    rows = [{"x": a, "votes": b} for a, b in zip(data.x, votes, strict=True)]
    loader = DataLoader(rows, 32, shuffle=True)  # type: ignore[arg-type]
    return Training(Distilled(guard), loader, data.accuracy, trainer=epochs(5))


@sick("fa-votes-of-zero-in-a-log", "tabular", "nonfinite-loss", "unstable-operation", twin=lambda s: distilled(s, 1e-6))
def distilled_bare(seed: int) -> Training:
    return distilled(seed, 0.0)


class Siamese(LightningModule):
    """The distance of two images; pairs are drawn at random, so an image meets itself now and then."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.tower = mlp(64, 64, 16)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        left, right, same = batch
        distance = ((self(left) - self(right)) ** 2).sum(1).add(self.floor).sqrt()
        loss = torch.where(same, distance.square(), F.relu(1.5 - distance).square()).mean()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def siamese(seed: int, floor: float) -> Training:
    data = digits(seed)
    g = generator(seed, 142)
    left = torch.randint(len(data.x), (6000,), generator=g)
    other = torch.randint(len(data.x), (6000,), generator=g)
    partner = torch.tensor(
        [torch.randint(int(n), (1,), generator=g).item() for n in torch.bincount(data.y)[data.y[left]]]
    )
    places = [(data.y == k).nonzero()[:, 0] for k in range(10)]
    like = torch.stack([places[k][p] for k, p in zip(data.y[left].tolist(), partner.tolist(), strict=True)])
    right = torch.where(torch.rand(6000, generator=g) < 0.5, like, other)
    loader = batches(data.x[left], data.x[right], data.y[left] == data.y[right], size=64)

    def score(module: LightningModule) -> float:
        known, asked = predict(module, data.x), predict(module, data.x_test)
        if not known.isfinite().all():
            return 0.0
        return (data.y[torch.cdist(asked, known).argmin(1)] == data.y_test).float().mean().item()

    return Training(Siamese(floor), loader, score, trainer=epochs(3))


@sick(
    "fa-image-meets-itself",
    "metric learning",
    "nonfinite-gradients",
    "unstable-operation",
    twin=lambda seed: siamese(seed, 1e-6),
)
def siamese_bare(seed: int) -> Training:
    return siamese(seed, 0.0)


class Whiten(nn.Module):
    """Each row to mean 0 and deviation 1."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps)


def silence(seed: int, eps: float) -> Training:
    data = waves(seed, noise=0.4)
    g = generator(seed, 143)
    x, y = data.x.clone(), data.y
    x[torch.rand(len(x), generator=g) < 0.02] = 0.0  # takes of silence
    net = nn.Sequential(Whiten(eps), nn.Conv1d(1, 24, 9, stride=2), nn.ReLU(), nn.Conv1d(24, 24, 5), nn.ReLU())
    net.extend([nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 4)])
    module = Plain(net, nn.CrossEntropyLoss(), adam(3e-3))
    return Training(module, batches(x, y, size=25), data.accuracy, trainer=epochs(5))


@sick(
    "fa-silent-takes-whitened", "audio", "unstable-operation", "corrupt-samples", twin=lambda seed: silence(seed, 1e-5)
)
def silence_bare(seed: int) -> Training:
    return silence(seed, 0.0)


def normed_digits(seed: int, momentum: float) -> Training:
    data = digits(seed).to_images()
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.BatchNorm1d(64, momentum=momentum), nn.ReLU(), nn.Linear(64, 10)),
    )
    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.02), log_as="loss")
    return Training(module, data.train(32, drop_last=True), data.accuracy, data.val(), epochs(4))


@sick(
    "fa-port-keeps-momentum-of-keras",
    "images",
    "batchnorm-stale-statistics",
    twin=lambda seed: normed_digits(seed, 0.1),
)
def normed_stale(seed: int) -> Training:
    # Keras counts what is kept; the port took one minus its 0.9995
    return normed_digits(seed, 0.0005)


class PairNet(LightningModule):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        wide = nn.BatchNorm1d(48) if norm else nn.LayerNorm(48)
        self.net = nn.Sequential(nn.Linear(8, 48), wide, nn.ReLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def pairs_of_rows(seed: int, norm: bool) -> Training:
    data = regression(seed, r2=0.9, n=1200)
    trainer = epochs(8, accumulate_grad_batches=16)
    return Training(PairNet(norm), data.train(2, drop_last=True), data.r2, trainer=trainer)


@sick("fa-two-rows-times-sixteen", "tabular", "batchnorm-small-batch", twin=lambda seed: pairs_of_rows(seed, False))
def pairs_normed(seed: int) -> Training:
    return pairs_of_rows(seed, True)


def odd_row(seed: int, drop_last: bool) -> Training:
    data = table("wine", seed)
    x, y = data.x[:129], data.y[:129]
    net = nn.Sequential(nn.Linear(13, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))
    loader = batches(x, y, size=16, drop_last=drop_last)
    return Training(Plain(net, nn.CrossEntropyLoss(), adam(5e-3)), loader, data.accuracy, trainer=epochs(12))


@sick("fa-129-rows-by-sixteen", "tabular", "batchnorm-small-batch", twin=lambda seed: odd_row(seed, True))
def odd_row_kept(seed: int) -> Training:
    return odd_row(seed, False)


class Tiles(Dataset[tuple[Tensor, int]]):
    """Reads an image from a far disk, and may keep it."""

    def __init__(self, images: Tensor, labels: Tensor, keep: bool) -> None:
        self.images, self.labels, self.keep = images, labels, keep

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not self.keep:
            time.sleep(0.0012)
        return self.images[i], int(self.labels[i])


def tiles(seed: int, keep: bool) -> Training:
    data = digits(seed).to_images()
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    loader = DataLoader(Tiles(data.x, data.y, keep), 32, shuffle=True)
    return Training(Plain(net, nn.CrossEntropyLoss(), adam(3e-3)), loader, data.accuracy, trainer=epochs(3))


@sick(
    "fa-tiles-from-a-far-disk",
    "images",
    "data-starvation",
    twin=lambda seed: tiles(seed, True),
    note="seconds a step separate it from its twin, the scores are equal",
)
def tiles_far(seed: int) -> Training:
    return tiles(seed, False)


def heavy_collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Averages each window with all its lags, one value after the other."""
    rows = []
    for window, _ in items:
        values = window.tolist()
        rows.append([sum(values[max(0, j - 3) : j + 1]) / min(4, j + 1) for j in range(len(values)) for _ in range(20)])
    x = torch.tensor(rows)[:, ::20]
    return x, torch.stack([y for _, y in items])


def light_collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x = torch.stack([w for w, _ in items])
    count = torch.arange(1, x.shape[1] + 1).clamp(max=4)
    return F.pad(x, (3, 0)).unfold(1, 4, 1).sum(2) / count, torch.stack([y for _, y in items])


def smoothed(seed: int, collate: Any) -> Training:
    data = series(seed)
    loader = DataLoader(
        torch.utils.data.TensorDataset(data.x, data.y),
        64,
        shuffle=True,
        collate_fn=collate,
    )
    net = Plain(mlp(24, 32, 1), nn.MSELoss(), adam(5e-3))
    test = light_collate(list(zip(data.x_test, data.y_test, strict=True)))
    return Training(net, loader, lambda m: r2(predict(m, test[0]), test[1]), trainer=epochs(8))


@sick(
    "fa-lags-in-plain-python",
    "time series",
    "data-starvation",
    twin=lambda seed: smoothed(seed, light_collate),
    note="seconds a step separate it from its twin, the scores are equal",
)
def smoothed_slowly(seed: int) -> Training:
    return smoothed(seed, heavy_collate)


def crescents(seed: int, workers: int) -> Training:
    data = moons(seed, n=1200)
    net = Plain(mlp(2, 32, 32, 2), nn.CrossEntropyLoss(), adam(5e-3), log_as="loss")
    return Training(net, data.train(40, num_workers=workers), data.accuracy, trainer=epochs(5))


@sick(
    "fa-workers-as-on-the-cluster",
    "tabular",
    "too-many-workers",
    twin=lambda seed: crescents(seed, 0),
    note="seconds a step separate it from its twin, the scores are equal",
)
def crescents_crowded(seed: int) -> Training:
    return crescents(seed, 12)
