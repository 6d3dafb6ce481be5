"""Trainings that look odd and are healthy, each odd in a way of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, generator, predict
from benchmarks.zoo.eighth._common import (
    Encoder,
    Plain,
    Series,
    Task,
    beat_net,
    beats,
    commands,
    loader,
    mlp,
    notes,
    overlap,
    picture_net,
    spots,
    walks,
    yields,
)


@well(
    "k-odd-loss-below-nought", "density", note="a log-likelihood of narrow densities: the loss is negative and falls on"
)
def below_nought(seed: int) -> Training:
    g = generator(seed, 121)
    x = torch.randn(1500, 3, generator=g)
    y = 0.02 * torch.sin(x[:, :1]) + 0.002 * torch.randn(1500, 1, generator=g)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return -torch.distributions.Normal(out[:, :1] / 50, (out[:, 1:] - 4).clamp(-7, 2).exp()).log_prob(y).mean()

    score = lambda m: -loss(predict(m, x[1000:]), y[1000:]).item()  # noqa: E731
    return Training(Task(mlp(3, 32, 2), loss, lr=5e-3), loader(x[:1000], y[:1000]), score, trainer={"max_epochs": 7})


@well("k-odd-large-decay", "transformer", note="AdamW decay of 1.0 at a small rate is an everyday pull of 0.003 a step")
def large_decay(seed: int) -> Training:
    d = commands(seed)
    module = Task(Encoder(16, 4), F.cross_entropy, lr=3e-3, kind="AdamW", weight_decay=1.0)
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 8})


@well("k-odd-rate-of-one", "text", note="Adadelta is made for a rate of 1")
def rate_of_one(seed: int) -> Training:
    d = notes(seed)
    net = nn.Sequential(nn.EmbeddingBag(40, 16), nn.Linear(16, 2))
    return Training(
        Task(net, F.cross_entropy, lr=1.0, kind="Adadelta"), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 7}
    )


@well("k-odd-always-clipped", "lstm", note="every step is clipped, and Adam does not care for the scale")
def always_clipped(seed: int) -> Training:
    d = walks(seed)
    module = Task(Series(nn.LSTM, 1, 24, 1), F.mse_loss, lr=5e-3)
    settings = {"max_epochs": 7, "gradient_clip_val": 0.05}
    return Training(module, loader(d.x, d.y), d.r2, loader(d.x_test, d.y_test, shuffle=False), settings)


@well(
    "k-odd-mostly-dark",
    "cnn",
    note="most units of a wide layer are silent by a sparsity penalty, and the answers are right",
)
def mostly_dark(seed: int) -> Training:
    d = data.digits(seed)

    class Sparse(Plain):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Linear(64, 256), nn.ReLU()), 3e-3)
            self.head = nn.Linear(256, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x))

        def step_loss(self, batch: Any) -> Tensor:
            x, y = batch
            h = self.net(x)
            self.log("active", (h > 0).float().mean())
            return F.cross_entropy(self.head(h), y) + 2e-3 * h.abs().sum(1).mean()

    return Training(Sparse(), d.train(32), d.accuracy, trainer={"max_epochs": 6})


@well("k-odd-rare-but-found", "mlp", note="a class of two in a hundred that the model finds")
def rare_found(seed: int) -> Training:
    share = torch.tensor([0.98, 0.02])
    d = data.blobs(seed, classes=2, columns=8, n=3000, spread=4.5, shares=share)

    def score(m: Any) -> float:
        answer = predict(m, d.x_test).argmax(1)
        return min(accuracy(F.one_hot(answer[d.y_test == k], 2).float(), d.y_test[d.y_test == k]) for k in (0, 1))

    return Training(Task(mlp(8, 24, 2), F.cross_entropy, lr=5e-3), d.train(48), score, d.val(), {"max_epochs": 5})


@well("k-odd-blank-columns", "cnn", note="pixels that never change: the borders of the digits, and two padded rows")
def blank_columns(seed: int) -> Training:
    d = data.digits(seed)
    pad = lambda x: F.pad(x.view(-1, 1, 8, 8), (0, 0, 0, 0))  # noqa: E731
    x, test = pad(d.x), pad(d.x_test)
    x[..., :1], test[..., :1] = 0.0, 0.0
    x[..., -1:], test[..., -1:] = 1.0, 1.0
    return Training(Task(picture_net(), F.cross_entropy, lr=2e-3), loader(x, d.y), replace(d, x_test=test).accuracy,
                    trainer={"max_epochs": 6})  # fmt: skip


@well("k-odd-sum-of-errors", "mlp", note="a summed loss in the hundreds with a rate to fit")
def sum_errors(seed: int) -> Training:
    d = yields(seed)
    module = Task(mlp(6, 48, 48, 1), nn.MSELoss(reduction="sum"), lr=4e-4, kind="SGD", momentum=0.8)
    return Training(module, loader(d.x, d.y, size=64), d.r2, trainer={"max_epochs": 12})


@well(
    "k-odd-frozen-features", "random-features", note="random features, frozen on purpose; only the readout is trained"
)
def frozen_features(seed: int) -> Training:
    d = beats(seed)
    net = nn.Sequential(nn.Conv1d(1, 96, 15), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.BatchNorm1d(96))
    net[0].requires_grad_(False)

    class Readout(Plain):
        def __init__(self) -> None:
            super().__init__(net, 0.01)
            self.readout = nn.Linear(96, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.net(x))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.readout.parameters(), self.lr)

    return Training(Readout(), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 6})


@well("k-odd-noisy-labels", "mlp", note="half of the labels are drawn anew: the loss stays high, the answers are right")
def noisy_labels(seed: int) -> Training:
    d = data.blobs(seed, classes=5, columns=10, n=4000, spread=4.0)
    y = data.flip_labels(d.y, 0.5, 5, seed)
    return Training(
        Task(mlp(10, 32, 5), F.cross_entropy, lr=3e-3), loader(d.x, y, size=64), d.accuracy, trainer={"max_epochs": 3}
    )


@well("k-odd-validation-below", "mlp", note="mixing and dropout make training harder than validation all along")
def validation_below(seed: int) -> Training:
    d = data.digits(seed)

    class Mixed(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            share = 0.5 + 0.5 * torch.rand(()).item()
            other = torch.randperm(len(x))
            z = self(share * x + (1 - share) * x[other])
            loss = share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, y[other])
            self.log("train/loss", loss)
            return loss

    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10))
    return Training(Mixed(net, F.cross_entropy, lr=3e-3), d.train(32), d.accuracy, d.val(), {"max_epochs": 7})


@well("k-odd-restarts", "cnn1d", note="warm restarts: the loss leaps at each")
def restarts(seed: int) -> Training:
    d = beats(seed)

    class Restarted(Task):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            rule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50, T_mult=2)
            return [optimizer], [{"scheduler": rule, "interval": "step"}]

    module = Restarted(beat_net(), F.cross_entropy, lr=0.08, kind="SGD", momentum=0.9)
    return Training(module, loader(d.x, d.y), d.accuracy, trainer={"max_steps": 340, "max_epochs": -1})


@well("k-odd-curriculum", "rnn", note="series grow longer and noisier with the epochs, so the loss climbs")
def curriculum(seed: int) -> Training:
    d = walks(seed)

    class Harder(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            x, y = batch
            noise = 0.04 * self.current_epoch
            return F.mse_loss(self(x + noise * torch.randn_like(x)), y)

    return Training(Harder(Series(nn.GRU, 1, 24, 1), 5e-3), loader(d.x, d.y), d.r2, trainer={"max_epochs": 9})


@well("k-odd-seven-rows", "mlp", note="a physics fit: few points, an equation to hold between them")
def physics(seed: int) -> Training:
    g = generator(seed, 122)
    at = torch.tensor([[0.0], [0.4], [1.0], [1.7], [2.2], [2.9], [3.1]])
    value = torch.exp(-0.5 * at) + 0.003 * torch.randn(7, 1, generator=g)

    class Decay(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            x, y = batch
            t = (3.2 * torch.rand(32, 1)).requires_grad_()
            u = self(t)
            slope = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
            return F.mse_loss(self(x), y) + (slope + 0.5 * u).square().mean()

    grid = torch.linspace(0, 3.2, 60)[:, None]
    score = lambda m: data.r2(predict(m, grid), torch.exp(-0.5 * grid))  # noqa: E731
    rows: Any = DataLoader([(at, value)] * 25, batch_size=None)  # type: ignore[arg-type]
    return Training(Decay(mlp(1, 24, 24, 1, act=nn.Tanh), 4e-3), rows, score, trainer={"max_epochs": 10})


@well(
    "k-odd-straight-line", "autoencoder", note="two linear layers with nothing between: a principal subspace is the aim"
)
def straight_line(seed: int) -> Training:
    d = data.digits(seed).standardised()
    net = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Linear(16, 64, bias=False))
    score = lambda m: data.r2(predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(Task(net, F.mse_loss, lr=5e-3), loader(d.x, d.x), score, trainer={"max_epochs": 6})


@well(
    "k-odd-bytes-normed-inside",
    "cnn",
    note="pixels from 0 to 255; the net's first layer is a batch norm that scales them",
)
def bytes_inside(seed: int) -> Training:
    d = data.digits(seed).to_images()
    net = nn.Sequential(nn.BatchNorm2d(1, affine=False), picture_net())
    score = replace(d, x_test=255 * d.x_test)
    module = Task(net, F.cross_entropy, lr=2e-3)
    return Training(module, loader(255 * d.x, d.y), score.accuracy, score.val(), {"max_epochs": 6})


@well("k-odd-none-for-easy", "mlp", note="training_step skips the batches that are already learnt")
def none_for_easy(seed: int) -> Training:
    d = data.digits(seed)

    class Skips(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(64, 48, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            return None if loss < 0.1 else loss

        def configure_optimizers(self) -> Any:
            return torch.optim.NAdam(self.parameters(), 3e-3)

    return Training(Skips(), d.train(32), d.accuracy, trainer={"max_epochs": 8})


@well("k-odd-rows-in-time", "gru", note="windows in the order of time, unshuffled, over a steady series")
def rows_in_time(seed: int) -> Training:
    g = generator(seed, 123)
    t = torch.arange(1500.0)
    wave = torch.sin(0.41 * t) + 0.5 * torch.sin(0.137 * t + 1) + 0.05 * torch.randn(1500, generator=g)

    class Windows(Dataset[Any]):
        def __init__(self, start: int, end: int) -> None:
            self.start, self.end = start, end

        def __len__(self) -> int:
            return self.end - self.start - 20

        def __getitem__(self, i: int) -> Any:
            i += self.start
            return wave[i : i + 20, None], wave[i + 20 : i + 21]

    last: Any = Windows(1100, 1500)
    x, y = (torch.stack(v) for v in zip(*(last[i] for i in range(len(last))), strict=True))
    fit: Any = Windows(0, 1100)
    module = Task(Series(nn.GRU, 1, 24, 1), F.mse_loss, lr=6e-3)
    score = lambda m: data.r2(predict(m, x), y)  # noqa: E731
    return Training(module, DataLoader(fit, 36, shuffle=False), score, DataLoader(last, 128), {"max_epochs": 8})


@well("k-odd-one-row-steps", "segmentation", note="one picture a batch, instance norm, gradients added over eight")
def one_row(seed: int) -> Training:
    d = spots(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(), nn.Conv2d(12, 1, 1),
    )  # fmt: skip
    module = Task(net, F.binary_cross_entropy_with_logits, lr=8e-3)
    settings = {"max_epochs": 3, "accumulate_grad_batches": 8}
    return Training(module, loader(d.x, d.y, size=1), overlap(d), trainer=settings)


@well("k-odd-hinge-at-nought", "mlp", note="a margin loss that is exactly nought for most batches in the end")
def hinge(seed: int) -> Training:
    d = data.blobs(seed, classes=3, columns=8, n=1500, spread=6.0)
    module = Task(mlp(8, 24, 3), nn.MultiMarginLoss(), lr=5e-3)
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 6, "log_every_n_steps": 1})


@well("k-odd-steps-by-sign", "cnn", note="signs of gradients as updates: equal sizes for every weight")
def signs(seed: int) -> Training:
    d = data.digits(seed).to_images()

    class Signed(Task):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.sign_()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=2e-3, momentum=0.5)
            rule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda n: 0.5 * (1 + math.cos(math.pi * min(n / 216, 1)))
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rule, "interval": "step"}}

    return Training(Signed(picture_net(), F.cross_entropy), d.train(32), d.accuracy, trainer={"max_epochs": 5})
