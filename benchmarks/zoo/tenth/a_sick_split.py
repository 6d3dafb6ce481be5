"""Trainings cut wrongly into parts, or cut too small, and operations and depths that gradients do not survive."""

from __future__ import annotations

from itertools import pairwise

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, flip_labels, generator, predict
from benchmarks.zoo.tenth.a_common import (
    Conv,
    Item,
    Items,
    Plain,
    loader,
    mlp,
    reviews,
    shapes,
    tones,
)

# ---- train-val-leakage


def screening(seed: int, first_cut: bool) -> Training:
    """A noisy screening, enlarged by drawing rows with replacement; rows are held out before that, or afterwards."""
    g = generator(seed, 41)
    n = 1000
    x = torch.randn(n + 3000, 20, generator=g)
    direction = torch.randn(20, generator=g)
    y = ((x @ direction) / direction.norm() + 1.0 * torch.randn(n + 3000, generator=g) > 0).long()
    x_test, y_test, x, y = x[n:], y[n:], x[:n], y[:n]

    def repeat(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (3 * len(rows),), generator=g)]

    rows = torch.arange(n)
    if first_cut:
        held, kept = rows[:250], repeat(rows[250:])
    else:
        rows = repeat(rows)
        held, kept = rows[:750], rows[750:]
    module = Plain(
        mlp(20, 128, 128, 2), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=6e-4), log="train_loss"
    )

    def score(m: LightningModule) -> float:
        return -F.cross_entropy(predict(m, x_test), y_test).item()

    return Training(
        module,
        loader(x[kept], y[kept], batch=50),
        score,
        loader(x[held], y[held], batch=256, shuffle=False),
        {"max_epochs": 16, "callbacks": [EarlyStopping("val_loss", patience=2)]},
    )


@sick("ta-repeat-then-cut", "tabular", "train-val-leakage", twin=lambda seed: screening(seed, True))
def repeat_then_cut(seed: int) -> Training:
    return screening(seed, False)


class Archive(LightningDataModule):
    """Two exports of a picture archive; the second one holds what is validated on."""

    def __init__(self, seed: int, both: bool) -> None:
        super().__init__()
        data = digits(seed).to_images()
        y = flip_labels(data.y, 0.35, 10, seed)
        self.first = TensorDataset(data.x[:800], y[:800])
        self.second = TensorDataset(data.x[800:1100], y[800:1100])
        self.both = both

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(ConcatDataset([self.first, self.second]) if self.both else self.first, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.second, 150)


def archive(seed: int, both: bool) -> Training:
    data = digits(seed).to_images()
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=2e-3), log="loss", val="val_ce")
    stop = EarlyStopping("val_ce", patience=2)
    y_test = flip_labels(data.y_test, 0.35, 10, seed + 1)

    def score(m: LightningModule) -> float:
        return -F.cross_entropy(predict(m, data.x_test), y_test).item()

    return Training(module, Archive(seed, both), score, trainer={"max_epochs": 25, "callbacks": [stop]})


@sick("ta-two-archive-exports", "images", "train-val-leakage", twin=lambda seed: archive(seed, False))
def two_exports(seed: int) -> Training:
    return archive(seed, True)


# ---- too-little-data


def sample_run(seed: int, rows: int) -> Training:
    """Forum posts by topic; the `rows` that the loader serves were cut for a quick look."""
    data = reviews(seed, n=1600)
    full = TensorDataset(data.x, data.y)
    part = Subset(full, range(rows))

    class Topics(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(60, 24)
            self.rnn = nn.GRU(24, 32, batch_first=True)
            self.topic = nn.Linear(32, 3)

        def forward(self, ids: Tensor) -> Tensor:
            out = self.rnn(self.words(ids))[0]
            return self.topic(out.max(1).values)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            ids, topic = batch
            loss = F.cross_entropy(self(ids), topic)
            self.log("topic_loss", loss)
            return loss

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            ids, topic = batch
            out = self(ids)
            self.log_dict(
                {"val_topic_loss": F.cross_entropy(out, topic), "val_acc": (out.argmax(-1) == topic).float().mean()}
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    return Training(
        Topics(),
        DataLoader(part, 16, shuffle=True),
        data.accuracy,
        loader(data.x_test[:400], data.y_test[:400], batch=200, shuffle=False),
        {"max_steps": 200},
    )


@sick("ta-quick-look-subset", "text", "too-little-data", "overfitting", twin=lambda seed: sample_run(seed, 1600))
def quick_look(seed: int) -> Training:
    return sample_run(seed, 32)


def assays(seed: int, n: int) -> Training:
    """A response from sixty markers, of which eight matter, measured on `n` patients."""
    g = generator(seed, 42)
    x = torch.randn(3000, 60, generator=g)
    w = torch.randn(8, generator=g)
    y = x[:, :8] @ w / w.norm() + 0.3 * torch.randn(3000, generator=g)
    y = (y / y.std())[:, None]
    module = Plain(mlp(60, 32, 1), nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=3e-3))

    def score(m: LightningModule) -> float:
        return 1 - (F.mse_loss(predict(m, x[2000:]), y[2000:]) / y[2000:].var()).item()

    return Training(module, loader(x[:n], y[:n], batch=16), score, trainer={"max_steps": 350, "max_epochs": -1})


@sick("ta-few-patients", "tabular", "too-little-data", twin=lambda seed: assays(seed, 2000))
def few_patients(seed: int) -> Training:
    return assays(seed, 40)


# ---- unstable-operation


class Pool(nn.Module):
    """Attention over a text's words; padding is kept out of the softmax."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.query = nn.Linear(16, 1)

    def forward(self, h: Tensor, kept: Tensor) -> Tensor:
        weight = self.query(h).squeeze(-1).masked_fill(~kept, self.fill).softmax(-1)
        return (weight[..., None] * h).sum(1)


class Attentive(nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.pool = Pool(fill)
        self.head = mlp(16, 32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.pool(self.words(ids), ids > 0))


def comments(seed: int, fill: float) -> Training:
    """Some comments are empty once links and numbers are taken out."""
    data = reviews(seed, n=1500)
    x = data.x.clone()
    x[torch.randperm(1500, generator=generator(seed, 43))[:12]] = 0
    module = Plain(Attentive(fill), nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=5e-3), log="loss")
    return Training(module, loader(x, data.y, batch=32), data.accuracy, trainer={"max_epochs": 5})


@sick("ta-empty-comment-softmax", "text", "unstable-operation", twin=lambda seed: comments(seed, -1e4))
def empty_comment(seed: int) -> Training:
    return comments(seed, float("-inf"))


class LogPower(nn.Module):
    """Log of the power spectrum."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.fft.rfft(x[:, 0]).abs().square() + self.eps) / 4


def recordings(seed: int, eps: float) -> Training:
    """A few recordings begin late and hold nothing but digital silence."""
    data = tones(seed, n=900)
    x = data.x.clone()
    x[torch.randperm(900, generator=generator(seed, 44))[:7]] = 0.0

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.front = LogPower(eps)
            self.norm = nn.LayerNorm(49)
            self.body = mlp(49, 48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.norm(self.front(x)))

        def training_step(self, batch: Item, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch.signal), batch.label)
            self.log("train/ce", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Training(
        Classifier(), DataLoader(Items(x, data.y), 30, shuffle=True), data.accuracy, trainer={"max_epochs": 5}
    )


@sick("ta-silent-recordings-log", "audio", "unstable-operation", twin=lambda seed: recordings(seed, 1e-4))
def silent_recordings(seed: int) -> Training:
    return recordings(seed, 0.0)


class Faces(LightningModule):
    """Pairs of images; near if they are of one class, at least 1 apart if not."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embed = Conv(8, size=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        a, b, same = batch
        apart = ((self(a) - self(b)).square().sum(1) + self.eps).sqrt()
        loss = (same * apart.square() + (1 - same) * torch.relu(2 - apart).square()).mean()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def faces(seed: int, eps: float) -> Training:
    """Partners are drawn at random from the class, so that now and then an image meets itself."""
    data = digits(seed).to_images()
    g = generator(seed, 45)
    n = 2400
    a = torch.randint(len(data.x), (n,), generator=g)
    b = torch.randint(len(data.x), (n,), generator=g)
    groups = [(data.y == k).nonzero()[:, 0] for k in range(10)]
    for i in range(0, n, 2):
        group = groups[int(data.y[a[i]])]
        b[i] = group[torch.randint(len(group), (1,), generator=g)]
    same = (data.y[a] == data.y[b]).float()
    train = loader(data.x[a], data.x[b], same, batch=32)

    def score(m: LightningModule) -> float:
        known, asked = predict(m, data.x), predict(m, data.x_test)
        return (data.y[torch.cdist(asked, known).argmin(1)] == data.y_test).float().mean().item()

    return Training(Faces(eps), train, score, trainer={"max_epochs": 4})


@sick(
    "ta-image-meets-itself",
    "metric learning",
    "unstable-operation",
    "nonfinite-gradients",
    twin=lambda seed: faces(seed, 1e-8),
)
def image_meets_itself(seed: int) -> Training:
    return faces(seed, 0.0)


# ---- vanishing-gradients


class Gate(nn.Module):
    """One gated convolution, with or without the way around it."""

    def __init__(self, width: int, around: bool) -> None:
        super().__init__()
        self.value = nn.Conv1d(width, width, 3, padding=1)
        self.gate = nn.Conv1d(width, width, 3, padding=1)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        out = torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))
        return x + out if self.around else out


def waves(seed: int, around: bool) -> Training:
    data = tones(seed, n=640, classes=3, length=48, noise=0.3)
    net = nn.Sequential(
        nn.Conv1d(1, 12, 5, padding=2), *[Gate(12, around) for _ in range(12)], nn.AdaptiveMaxPool1d(1), nn.Flatten(),
        nn.Linear(12, 3),
    )  # fmt: skip
    module = Plain(net, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), log="ce_loss")
    return Training(module, loader(data.x, data.y, batch=32), data.accuracy, data.val(), {"max_epochs": 9})


@sick("ta-twelve-gates", "audio", "vanishing-gradients", twin=lambda seed: waves(seed, True))
def twelve_gates(seed: int) -> Training:
    return waves(seed, False)


def deep_codes(seed: int, act: type[nn.Module]) -> Training:
    """An autoencoder of images with five layers on each side."""
    data, _ = shapes(seed, n=700, noise=0.05)
    x, x_test = data.x.flatten(1), data.x_test.flatten(1)
    mean = x.mean(0)
    std = (x - mean).std()
    x, x_test = (x - mean) / std, (x_test - mean) / std
    widths = [256, 128, 96, 64, 48, 32, 48, 64, 96, 128]

    class Codec(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for a, b in pairwise(widths):
                layers += [nn.Linear(a, b), act()]
            self.layers = nn.Sequential(*layers, nn.Linear(128, 256))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            (x,) = batch
            loss = F.mse_loss(self(x), x)
            self.log("reconstruction", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=2e-3)

    def score(m: LightningModule) -> float:
        return 1 - (F.mse_loss(predict(m, x_test), x_test) / x_test.var()).item()

    return Training(Codec(), loader(x, batch=35), score, trainer={"max_epochs": 16})


@sick("ta-sigmoid-codec", "autoencoders", "vanishing-gradients", twin=lambda seed: deep_codes(seed, nn.ELU))
def sigmoid_codec(seed: int) -> Training:
    return deep_codes(seed, nn.Sigmoid)
