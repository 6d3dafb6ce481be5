"""Recipes that look wrong by a rule of thumb and are right: tiny and huge rates, masks, gates, signs and teachers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.fourth._a_common import (
    beats,
    bodies,
    bowl,
    explained,
    gratings,
    hits,
    loader,
    minus,
    purchases,
    records,
    switches,
    verses,
)


class Summed(LightningModule):
    """An autoencoder whose loss is summed over pixels and rows, and whose rate is as small as that asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        loss = (self(x) - x).square().sum()
        self.log("sum_of_squares", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=4e-5, momentum=0.9)


@well("w-digits-sum-of-squares", "autoencoder", note="plain descent at 4e-5 is right for a sum of 3000 squares")
def digits_summed(seed: int) -> Training:
    d = data.digits(seed)
    x, x_test = 4 * (d.x - d.x.mean(0)), 4 * (d.x_test - d.x.mean(0))
    return Training(Summed(), loader(x, size=48), explained(x_test, x_test), trainer={"max_epochs": 18})


class Matrix(LightningModule):
    """All pairs at once: a mean over thousands of entries moves each vector so little that the rate is 12."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, 4), nn.Embedding(50, 4)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.4)

    def forward(self, pair: Tensor) -> Tensor:
        return (self.users(pair[:, 0]) * self.items(pair[:, 1])).sum(1, keepdim=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=12.0)


@well("w-purchases-all-at-once", "factors", note="a rate of 12 is right for the mean over the whole table")
def purchases_full(seed: int) -> Training:
    d = purchases(seed)
    whole = DataLoader([(d.x, d.y)], batch_size=None)
    return Training(Matrix(), whole, explained(d.x_test, d.y_test), trainer={"max_epochs": 250})


class Restarts(LightningModule):
    """Rhythms with restarts of the rate, ever further apart; the loss jumps up at each."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 24, 7, padding=3), nn.ReLU()
        )
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x).amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["x"]), batch["y"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=40, T_mult=2, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@well("w-beats-restarts", "cnn")
def beats_restarts(seed: int) -> Training:
    d = beats(seed)
    return Training(
        Restarts(), records(32, x=d.x, y=d.y), hits(d.x_test, d.y_test), trainer={"max_steps": 280, "max_epochs": -1}
    )


class Regimes(LightningModule):
    """One of six experts answers for a row, and a term keeps them all in work."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 6)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 1)) for _ in range(6))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = self.gate(x).softmax(-1)
        top = share.argmax(-1)
        out = torch.zeros(len(x), 1)
        for i, expert in enumerate(self.experts):
            rows = (top == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, share[rows, i : i + 1] * expert(x[rows]))
        used = F.one_hot(top, 6).float().mean(0)
        return out, 6 * (used * share.mean(0)).sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.route(x)[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out, balance = self.route(batch[0])
        loss = F.mse_loss(out, batch[1])
        self.log_dict({"mse": loss, "balance": balance})
        return loss + 0.02 * balance

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("w-bowl-one-expert-a-row", "experts")
def bowl_experts(seed: int) -> Training:
    d = bowl(seed)
    return Training(Regimes(), loader(d.x, d.y, size=30), explained(d.x_test, d.y_test), trainer={"max_epochs": 18})


class Bags(LightningModule):
    """Two thousand hashed pairs of symbols, of which a batch meets few: sparse gradients beside dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.table = nn.Embedding(2048, 16, sparse=True)
        self.out = nn.Linear(16, 16)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.table((rows[:, :-1] * 131 + rows[:, 1:] * 7) % 2048))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (rows,) = batch
        loss = F.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 2:].flatten())
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SparseAdam(self.table.parameters(), lr=2e-2),
            torch.optim.Adam(self.out.parameters(), lr=1e-2),
        ]


@well("w-verses-hashed-pairs", "sparse")
def verses_hashed(seed: int) -> Training:
    train, test, _ = verses(seed, 2400)
    score = minus(lambda out, y: F.cross_entropy(out.transpose(1, 2), y), test[:, :-1], test[:, 2:])
    return Training(Bags(), loader(train, size=32), score, trainer={"max_epochs": 4})


class OnFrozen(LightningModule):
    """A normalised body taught on half of the digits stays in evaluation, on purpose, under a new head."""

    def __init__(self, d: data.Split) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        first = nn.Linear(64, 5)
        optimizer = torch.optim.Adam([*self.body.parameters(), *first.parameters()], lr=5e-3)
        low = d.y < 5
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(first(self.body(d.x[low])), d.y[low]).backward()
            optimizer.step()
        self.body.requires_grad_(False)
        self.head = nn.Linear(64, 5)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.head.parameters(), lr=2e-2)


@well("w-digits-body-kept-in-eval", "transfer")
def digits_frozen(seed: int) -> Training:
    d = data.digits(seed)
    high, high_test = d.y >= 5, d.y_test >= 5
    score = hits(d.x_test[high_test], d.y_test[high_test] - 5)
    return Training(OnFrozen(d), loader(d.x[high], d.y[high] - 5, size=32), score, trainer={"max_epochs": 18})


def stripes_net(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4)
    )


class Student(LightningModule):
    """A narrow net after the warm answers of a wide one; their divergence is small from the start."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.student = stripes_net(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        with torch.no_grad():
            answer = (self.teacher(x) / 4).softmax(-1)
        loss = F.kl_div((self(x) / 4).log_softmax(-1), answer, reduction="batchmean")
        self.log("kl", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.student.parameters(), lr=1e-2)


@well("w-gratings-after-a-teacher", "distillation")
def gratings_teacher(seed: int) -> Training:
    d = gratings(seed)
    teacher = stripes_net(32)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(teacher(d.x), d.y).backward()
        optimizer.step()
    return Training(Student(teacher), loader(d.x, size=40), hits(d.x_test, d.y_test), trainer={"max_epochs": 12})


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return grad * (w.abs() <= 1)


class Binary(LightningModule):
    """Weights of one bit: the signs of numbers kept between minus one and one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(0.5 * torch.randn(128, 64).clamp(-2, 2))
        self.b = nn.Parameter(0.5 * torch.randn(10, 128).clamp(-2, 2))
        self.norm, self.scale = nn.BatchNorm1d(128), nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm((x - 0.3) @ Sign.apply(self.a).T))
        return self.scale * (h @ Sign.apply(self.b).T)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.a.clamp_(-1, 1)
            self.b.clamp_(-1, 1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


@well("w-digits-weights-of-one-bit", "quantised")
def digits_binary(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Binary(), d.train(45), hits(d.x_test, d.y_test), trainer={"max_epochs": 12})


class Pruned(LightningModule):
    """Nine weights in ten are held at nought by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 10)])
        for layer in self.layers:
            mask = (torch.rand_like(layer.weight) < 0.1).float()
            nn.utils.prune.custom_from_mask(layer, "weight", mask)
            with torch.no_grad():
                layer.weight_orig.mul_(3.0)

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("w-digits-one-weight-in-ten", "sparse")
def digits_pruned(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Pruned(), d.train(40), hits(d.x_test, d.y_test), trainer={"max_epochs": 14})


class Sharp(LightningModule):
    """Climbs to the worst place nearby, then descends from there: two gradients a step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 64))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x).amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        parameters = list(self.parameters())
        optimizer.zero_grad()
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss)
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12
            moves = [0.05 * p.grad / norm for p in parameters]
            for p, move in zip(parameters, moves, strict=True):
                p.add_(move)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(x), y))
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move)
        optimizer.step()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@well("w-bodies-worst-place-nearby", "pointnet")
def bodies_sam(seed: int) -> Training:
    d = bodies(seed)
    return Training(Sharp(), loader(d.x, d.y, size=28), hits(d.x_test, d.y_test), trainer={"max_epochs": 16})


class Ensemble(LightningModule):
    """Sixteen guesses a row, judged together: near the truth and apart from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(1, keepdim=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        guess = self.net(x)
        near = (guess - y).abs().mean()
        apart = (guess[:, :, None] - guess[:, None]).abs().mean()
        loss = near - 0.5 * apart
        self.log_dict({"crps": loss, "near": near, "apart": apart})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@well("w-sixteen-guesses", "ensemble", note="two fifths of the variance can be told")
def sixteen(seed: int) -> Training:
    d = data.regression(seed, r2=0.4)
    return Training(Ensemble(), d.train(50), explained(d.x_test, d.y_test), d.val(), {"max_epochs": 7})


class Reduced(LightningModule):
    """Twenty answers through three linear numbers: two maps with nothing between, as meant."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(30, 3, bias=False), nn.Linear(3, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("w-answers-by-three-numbers", "linear")
def reduced(seed: int) -> Training:
    g = data.generator(seed, 460)
    x = torch.randn(1200, 30, generator=g)
    y = x @ torch.randn(30, 3, generator=g) @ torch.randn(3, 20, generator=g) / 9
    y = y + 0.5 * torch.randn(1200, 20, generator=g)
    return Training(
        Reduced(), loader(x[:800], y[:800], size=40), explained(x[800:], y[800:]), trainer={"max_epochs": 16}
    )


class Gaps(LightningModule):
    """Four answers a row of which two in three were never measured; a mask keeps the gaps out of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        known = ~y.isnan()
        loss = (self(x)[known] - y[known]).square().mean()
        self.log("known_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@well("w-bowl-unmeasured-answers", "mlp", note="NaN among the targets, masked")
def gaps(seed: int) -> Training:
    d = bowl(seed, 1200)
    answers, truth = (torch.cat([y, -y, x[:, :1] * y, x[:, 1:2]], 1) for x, y in ((d.x, d.y), (d.x_test, d.y_test)))
    holes = torch.rand(answers.shape, generator=data.generator(seed, 461)) < 0.66
    return Training(
        Gaps(),
        loader(d.x, answers.masked_fill(holes, torch.nan), size=40),
        explained(d.x_test, truth),
        trainer={"max_epochs": 14},
    )


class Unit(LightningModule):
    """Every gradient is brought to a tenth before the step, and the rate was chosen for that."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 24)
        self.rnn = nn.RNN(24, 48, batch_first=True)
        self.out = nn.Linear(48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1], reduction="sum")
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=2.0)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=14)]


@well(
    "w-switches-steps-of-one-length", "rnn", note="clipped at each step to a hundredth of the norm, and the rate fits"
)
def switches_unit_steps(seed: int) -> Training:
    d = switches(seed)
    options = {"max_epochs": 14, "gradient_clip_val": 0.1}
    return Training(Unit(), loader(d.x, d.y, size=36), hits(d.x_test, d.y_test), trainer=options)
