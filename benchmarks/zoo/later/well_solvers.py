"""Nets with solvers, derivatives or fixed points inside, and fits of known laws."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, moons
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, stack


class Spiral(LightningModule):
    """A vector field, followed by ten steps of Euler's rule from observed starts."""

    def __init__(self) -> None:
        super().__init__()
        self.field = stack(2, 48, 2, act=nn.Tanh)

    def forward(self, start: Tensor) -> Tensor:
        path = [start]
        for _ in range(10):
            path.append(path[-1] + 0.1 * self.field(path[-1]))
        return torch.stack(path[1:], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        start, path = batch
        loss = (self(start) - path).abs().mean()
        self.log("l1", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=3e-2)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 5, gamma=0.4)]


@well("v-euler-along-a-spiral", "neural-ode", "R2 of clean paths from new starts; the loss stays at the noise of 0.04")
def spiral(seed: int) -> Training:
    g = generator(seed, 601)
    start = 2 * torch.randn(1200, 2, generator=g)
    turn = torch.tensor([[-0.3, 2.0], [-2.0, -0.3]])
    paths = torch.stack([start @ torch.linalg.matrix_exp(0.1 * k * turn.T) for k in range(1, 11)], 1)
    paths[..., 0] += 0.2 * torch.sin(paths[..., 1])
    noisy = paths + 0.05 * torch.randn(1200, 10, 2, generator=g)
    start = start + torch.stack([0.2 * torch.sin(start[:, 1]), torch.zeros(1200)], 1)
    train = loader(start[:800], noisy[:800], size=40)
    return Training(Spiral(), train, explained(start[800:], paths[800:]), trainer={"max_epochs": 14})


class Settled(LightningModule):
    """A layer that is its own fixed point: forty damped rounds without gradients, one with them."""

    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.Linear(2, 32)
        self.cell = nn.Linear(32, 32)
        self.read = nn.Linear(32, 2)
        nn.init.orthogonal_(self.cell.weight, gain=0.7)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inject(x)
        with torch.no_grad():
            z = torch.zeros_like(u)
            for _ in range(12):
                z = 0.5 * z + 0.5 * torch.tanh(self.cell(z) + u)
        for _ in range(2):
            z = torch.tanh(self.cell(z) + u)
        return self.read(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=1e-3)


@well("v-settled-layer", "equilibrium", "accuracy on two moons, 0.99")
def settled(seed: int) -> Training:
    d = moons(seed, n=1000, noise=0.12)
    return Training(Settled(), d.train(50), hit_rate(d.x_test, d.y_test), trainer={"max_epochs": 14})


class Rod(LightningModule):
    """The heat equation as a loss: second derivatives by autograd, no data inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, xt: Tensor) -> Tensor:
        return self.net(2 * xt - 1)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inside = batch["inside"].requires_grad_()
        u = self(inside)
        (first,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), inside, create_graph=True)
        law = (first[:, 1] - 0.1 * second[:, 0]).square().mean()
        x = batch["edge"]
        begin = (self(torch.stack([x, torch.zeros_like(x)], 1)) - torch.sin(math.pi * x)).square().mean()
        ends = sum(self(torch.stack([torch.full_like(x, e), x], 1)).square().mean() for e in (0.0, 1.0))
        self.log_dict({"law": law, "begin": begin, "ends": ends}, prog_bar=True)
        return law + 10 * (begin + ends)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(opt, 0.993), "interval": "step"}]


@well("v-heat-in-a-rod", "physics", "R2 of the known solution")
def rod(seed: int) -> Training:
    g = generator(seed, 602)
    points = [{"inside": torch.rand(128, 2, generator=g), "edge": torch.rand(48, generator=g)} for _ in range(50)]
    grid = torch.cartesian_prod(torch.linspace(0, 1, 20), torch.linspace(0, 1, 20))
    truth = torch.sin(math.pi * grid[:, 0]) * torch.exp(-0.1 * math.pi**2 * grid[:, 1])
    train = torch.utils.data.DataLoader(points, batch_size=None, shuffle=True)
    return Training(Rod(), train, explained(grid, truth), trainer={"max_epochs": 10})


class Bumps(LightningModule):
    """Forty bumps with learnt centres and widths; each sees a few rows only, so gradients are small."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres.clone())
        self.log_width = nn.Parameter(torch.zeros(len(centres)))
        self.weights = nn.Linear(len(centres), 1)

    def forward(self, x: Tensor) -> Tensor:
        d = torch.cdist(x, self.centres) / self.log_width.exp()
        return self.weights(torch.exp(-0.5 * d**2))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            [{"params": [self.centres, self.log_width], "lr": 1e-2}, {"params": self.weights.parameters(), "lr": 3e-2}]
        )


@well("v-forty-bumps", "rbf", "R2 of a smooth surface of two columns, half of it noise: 0.5 at best")
def bumps(seed: int) -> Training:
    g = generator(seed, 603)
    x = torch.randn(3000, 2, generator=g)
    clean = torch.sin(1.5 * x[:, 0]) * torch.cos(1.5 * x[:, 1])
    y = clean / clean.std() * 0.707 + 0.707 * torch.randn(3000, generator=g)
    train = loader(x[:2000], y[:2000], size=100)
    return Training(Bumps(x[:40]), train, explained(x[2000:], y[2000:]), trainer={"max_epochs": 12})


class RidgeInside(LightningModule):
    """Features whose last layer is solved in closed form on half of the batch and judged on the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh())
        self.log_ridge = nn.Parameter(torch.tensor(-2.0))

    def solve(self, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        a = F.pad(self.features(x), (0, 1), value=1.0)
        gram = a.transpose(1, 2) @ a + self.log_ridge.exp() * torch.eye(a.shape[-1])
        w = torch.linalg.solve(gram, a.transpose(1, 2) @ y)
        return F.pad(self.features(new), (0, 1), value=1.0) @ w

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self.solve(x[:, :8], y[:, :8], x[:, 8:]), y[:, 8:])
        self.log("query", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("v-sines-from-eight-points", "meta", "R2 on the rest of new sines after eight points")
def sines(seed: int) -> Training:
    g = generator(seed, 604)
    x = 6 * torch.rand(4000, 20, 1, generator=g) - 3
    height, phase = 0.5 + torch.rand(4000, 1, 1, generator=g), 3 * torch.rand(4000, 1, 1, generator=g)
    y = height * torch.sin(x + phase) + 0.05 * torch.randn(4000, 20, 1, generator=g)

    def score(m: Any) -> float:
        with torch.no_grad():
            out = m.solve(x[3600:, :8], y[3600:, :8], x[3600:, 8:])
        return 1 - ((out - y[3600:, 8:]) ** 2).mean().item() / y[3600:, 8:].var().item()

    return Training(RidgeInside(), loader(x[:3600], y[:3600], size=40), score, trainer={"max_epochs": 3})


class Sign(torch.autograd.Function):
    """The sign forward; backward as if it were a line within -1 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Binary(LightningModule):
    """Weights and activations of the middle layer are -1 or 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Linear(20, 128), nn.BatchNorm1d(128)
        self.middle, self.norm2 = nn.Parameter(0.1 * torch.randn(128, 128)), nn.BatchNorm1d(128)
        self.last = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = Sign.apply(self.norm1(self.first(x)))
        h = self.norm2(F.linear(h, Sign.apply(self.middle)) / 11)
        return self.last(F.hardtanh(h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            self.middle.clamp_(-1, 1)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)]


@well(
    "v-weights-of-one-bit",
    "binary-net",
    "accuracy on clouds of five classes; a linear rule reaches what the noise allows",
)
def one_bit(seed: int) -> Training:
    g = generator(seed, 605)
    y = torch.randint(5, (4000,), generator=g)
    x = 0.8 * torch.randn(5, 20, generator=g)[y] + torch.randn(4000, 20, generator=g)
    return Training(
        Binary(), loader(x[:3000], y[:3000], size=100), hit_rate(x[3000:], y[3000:]), trainer={"max_epochs": 8}
    )


class Sines(LightningModule):
    """Sine layers that draw a picture from coordinates; all weights of the inner layers are tiny by design."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)])
        with torch.no_grad():
            self.layers[0].weight.uniform_(-0.5, 0.5)
            for layer in self.layers[1:]:
                layer.weight.uniform_(-math.sqrt(6 / 64) / 15, math.sqrt(6 / 64) / 15)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(15 * layer(x))
        return self.layers[-1](x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        self.log("psnr", -10 * loss.log10())
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=1e-3)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 400), "interval": "step"}]


@well("v-picture-of-sines", "implicit-field", "R2 at pixels between those seen")
def picture(seed: int) -> Training:
    g = generator(seed, 606)
    at = 2 * torch.rand(4000, 2, generator=g) - 1
    waves, phase = 5 * torch.randn(6, 2, generator=g), 6 * torch.rand(6, generator=g)
    y = torch.sin(at @ waves.T + phase).mean(1) / 0.3
    return Training(
        Sines(), loader(at[:3000], y[:3000], size=256), explained(at[3000:], y[3000:]), trainer={"max_steps": 400}
    )


class Pendulum(LightningModule):
    """Learns an energy whose slopes give the motion: gradients of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = stack(2, 48, 48, 1, act=nn.Softplus)

    def forward(self, state: Tensor) -> Tensor:
        with torch.enable_grad():
            state = state.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-2, total_steps=360)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well("v-energy-of-a-pendulum", "physics", "R2 of the clean motion; a tenth of what is trained on is noise")
def pendulum(seed: int) -> Training:
    g = generator(seed, 607)
    state = (2 * torch.rand(3000, 2, generator=g) - 1) * torch.tensor([3.0, 2.0])
    motion = torch.stack([state[:, 1], -1.5 * torch.sin(state[:, 0])], 1)
    noisy = motion + 0.35 * torch.randn(3000, 2, generator=g)
    train = loader(state[:2400], noisy[:2400], size=80)
    return Training(Pendulum(), train, explained(state[2400:], motion[2400:]), trainer={"max_epochs": 12})


class Springs(LightningModule):
    """Three numbers of a damped spring, found from one noisy record; the whole model has three weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.damping, self.height = (nn.Parameter(torch.tensor(v)) for v in (2.4, 0.2, 0.5))

    def forward(self, t: Tensor) -> Tensor:
        return self.height * torch.exp(-self.damping * t) * torch.cos(self.rate * t)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        t, y = batch
        self.log_dict({"rate": self.rate, "damping": self.damping})
        return F.mse_loss(self(t), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


@well("v-three-numbers-of-a-spring", "physics", "R2 of the clean record; noise of a third remains in the loss")
def springs(seed: int) -> Training:
    g = generator(seed, 608)
    t = 6 * torch.rand(400, generator=g)
    clean = 1.3 * torch.exp(-0.35 * t) * torch.cos(2.9 * t)
    y = clean + 0.3 * torch.randn(400, generator=g)
    return Training(Springs(), loader(t, y, size=50), explained(t, clean), trainer={"max_epochs": 25})


class Waves(LightningModule):
    """Fixed random waves under a linear layer: a kernel machine by gradient steps, buffers that never learn."""

    def __init__(self, columns: int, count: int = 200) -> None:
        super().__init__()
        self.register_buffer("w", 0.35 * torch.randn(columns, count))
        self.register_buffer("b", 2 * math.pi * torch.rand(count))
        self.linear = nn.Linear(count, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(math.sqrt(2 / len(self.b)) * torch.cos(x @ self.w + self.b))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.95, weight_decay=1e-3)


@well("v-kernel-of-random-waves", "kernel", "R2 against 0.4 at best; as kernel ridge regression")
def waves(seed: int) -> Training:
    g = generator(seed, 609)
    x = torch.randn(3500, 5, generator=g)
    clean = torch.tanh(x[:, 0] + x[:, 1]) + 0.5 * x[:, 2] * x[:, 3]
    y = 0.632 * clean / clean.std() + 0.775 * torch.randn(3500, generator=g)
    val = loader(x[2500:], y[2500:], size=500, shuffle=False)
    return Training(
        Waves(5), loader(x[:2500], y[:2500], size=50), explained(x[2500:], y[2500:]), val, {"max_epochs": 8}
    )
