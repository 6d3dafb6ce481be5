"""Optimizers and schedules that are seldom the first choice, each well set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_classification, make_friedman1
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, generator, split
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, stack


class Plain(LightningModule):
    """A net, a loss and whatever rule the user hands in."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], rule: Callable[[Any], Any], name: str = "loss"):
        super().__init__()
        self.net, self.loss, self.rule, self.name = net, loss, rule, name

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.log(self.name, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(f"val_{self.name}", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.rule(self)


def friedman(seed: int, n: int = 1500, noise: float = 1.0) -> Split:
    """Friedman's first function, standardised, targets (N,); R2 0.96 at best."""
    x, y = make_friedman1(2 * n, noise=noise, random_state=seed)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), seed, 0.5)
    mean, std = d.y.mean(), d.y.std()
    return d.standardised().map_targets(lambda t: (t - mean) / std)


class Flat(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 0]


@well("v-rprop-on-all-rows", "full-batch", "R2 near 0.93 with one batch an epoch; each weight has its own step")
def rprop(seed: int) -> Training:
    d = friedman(seed)
    rule = lambda m: torch.optim.Rprop(m.parameters(), lr=1e-3, step_sizes=(1e-6, 0.1))  # noqa: E731
    module = Plain(Flat(*stack(10, 24, 1, act=nn.Tanh)), F.mse_loss, rule)
    train = loader(d.x, d.y, size=len(d.y))
    return Training(module, train, explained(d.x_test, d.y_test), trainer={"max_epochs": 200, "log_every_n_steps": 1})


@well(
    "v-adagrad-on-rare-words",
    "bag-of-words",
    "accuracy near logistic regression's; most columns are nought in most rows",
)
def rare_words(seed: int) -> Training:
    g = generator(seed, 621)
    share = 1 / torch.arange(1.0, 401)
    y = torch.randint(4, (3000,), generator=g)
    topic = share * torch.exp(1.0 * torch.randn(4, 400, generator=g))
    words = torch.multinomial(topic[y], 30, replacement=True, generator=g)
    x = torch.zeros(3000, 400).scatter_add_(1, words, torch.ones(3000, 30)).log1p()
    rule = lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1)  # noqa: E731
    module = Plain(nn.Linear(400, 4), F.cross_entropy, rule)
    return Training(
        module, loader(x[:2000], y[:2000], size=100), hit_rate(x[2000:], y[2000:]), trainer={"max_epochs": 10}
    )


@well("v-rmsprop-centred", "mlp", "R2 near 0.94, with momentum inside RMSprop and a halving every other epoch")
def rmsprop(seed: int) -> Training:
    d = friedman(seed)

    def rule(m: LightningModule) -> Any:
        opt = torch.optim.RMSprop(m.parameters(), lr=6e-3, centered=True, momentum=0.5)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 6, 0.4)]

    module = Plain(Flat(*stack(10, 64, 1, act=nn.SiLU)), F.mse_loss, rule, "mse")
    return Training(module, d.train(50), explained(d.x_test, d.y_test), d.val(), {"max_epochs": 20})


@well("v-momentum-099-on-digits", "mlp", "accuracy 0.96; the loss rings in the first steps, then dies down")
def heavy_ball(seed: int) -> Training:
    x, y = load_digits(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32) / 16 - 0.3, torch.tensor(y), seed)
    rule = lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.99, nesterov=True)  # noqa: E731
    module = Plain(stack(64, 64, 10), F.cross_entropy, rule, "nll")
    return Training(module, d.train(64), hit_rate(d.x_test, d.y_test), d.val(), {"max_epochs": 15})


@well("v-adadelta-without-a-rate", "mlp", "accuracy on wine-like clouds with the rule's own rate of one")
def adadelta(seed: int) -> Training:
    x, y = make_classification(2500, 12, n_informative=8, n_classes=3, class_sep=1.6, random_state=seed)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.6).standardised()
    rule = lambda m: torch.optim.Adadelta(m.parameters())  # noqa: E731
    module = Plain(stack(12, 64, 3), F.cross_entropy, rule)
    return Training(module, d.train(50), hit_rate(d.x_test, d.y_test), d.val(), {"max_epochs": 14})


class SignMomentum(torch.optim.Optimizer):
    """Steps of one size in the direction of a running mean's sign, with decay beside it."""

    def __init__(self, params: Iterable[Any], lr: float, beta: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(mean.sign(), alpha=-group["lr"])
        return loss


@well("v-sign-of-the-mean", "custom-optimizer", "accuracy on digits 0.97; a rate of 5e-3 falling to nought")
def sign_momentum(seed: int) -> Training:
    x, y = load_digits(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), seed)

    def rule(m: LightningModule) -> Any:
        opt = SignMomentum(m.parameters(), lr=5e-3, weight_decay=0.3)
        sched = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, 300)
        return [opt], [{"scheduler": sched, "interval": "step"}]

    module = Plain(stack(64, 96, 10, act=nn.GELU), F.cross_entropy, rule)
    return Training(module, d.train(64, drop_last=True), hit_rate(d.x_test, d.y_test), d.val(), {"max_steps": 300})


@well("v-averaged-at-the-end", "mlp", "R2 of noisy rows, 0.5 at best, with weights averaged over the last third")
def averaged(seed: int) -> Training:
    g = generator(seed, 622)
    x = torch.randn(3000, 6, generator=g)
    clean = x[:, 0] + torch.sin(2 * x[:, 1]) + 0.5 * x[:, 2] ** 2
    y = (clean - clean.mean()) / clean.std() * 0.707 + 0.707 * torch.randn(3000, generator=g)
    rule = lambda m: torch.optim.Adam(m.parameters(), lr=1.5e-2)  # noqa: E731
    module = Plain(Flat(*stack(6, 32, 1)), F.mse_loss, rule)
    average = StochasticWeightAveraging(swa_lrs=8e-3, swa_epoch_start=0.65, annealing_epochs=2)
    settings = {"max_epochs": 14, "callbacks": [average]}
    return Training(module, loader(x[:2000], y[:2000], size=80), explained(x[2000:], y[2000:]), trainer=settings)


@well("v-newton-like-logistic", "lbfgs", "accuracy on breast cancer 0.97; few steps, each with a line search")
def newton(seed: int) -> Training:
    x, y = load_breast_cancer(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed).standardised()

    class Logistic(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(30, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1]) + 0.005 * self.w.square().sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=3, line_search_fn="strong_wolfe")

    score = hit_rate(d.x_test, d.y_test)
    return Training(Logistic(), loader(d.x, d.y, size=len(d.y)), score, trainer={"max_epochs": 40})


class Sharpness(LightningModule):
    """A step up, then a step down from there: two backward passes a batch, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        opt, parameters = self.optimizers(), list(self.parameters())
        opt.zero_grad()
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss)
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12
            moves = [0.05 * p.grad / norm for p in parameters]
            for p, move in zip(parameters, moves, strict=True):
                p.add_(move)
        opt.zero_grad()
        self.manual_backward(F.cross_entropy(self(x), y))
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move)
        opt.step()
        self.log("loss", loss)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@well(
    "v-up-then-down", "manual", "accuracy on wine, as logistic regression; the loss is near nought for most of the run"
)
def sharpness(seed: int) -> Training:
    x, y = load_wine(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.6).standardised()
    return Training(Sharpness(), d.train(20), hit_rate(d.x_test, d.y_test), trainer={"max_epochs": 20})


@well(
    "v-restarts-that-lengthen",
    "schedule",
    "R2 near 0.94; the rate returns to its top twice and the loss jumps each time",
)
def lengthen(seed: int) -> Training:
    d = friedman(seed)

    def rule(m: LightningModule) -> Any:
        opt = torch.optim.AdamW(m.parameters(), lr=1.5e-2, weight_decay=0.05)
        sched = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=60, T_mult=2)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}

    module = Plain(Flat(*stack(10, 48, 48, 1)), F.smooth_l1_loss, rule)
    return Training(module, d.train(50), explained(d.x_test, d.y_test), d.val(), {"max_steps": 420})


@well("v-triangles-of-rate", "schedule", "accuracy on half-mixed clouds, what the noise allows; a cyclic rate")
def triangles(seed: int) -> Training:
    g = generator(seed, 623)
    y = torch.randint(3, (4000,), generator=g)
    x = torch.randn(4000, 8, generator=g) + 1.3 * F.one_hot(y, 8)

    def rule(m: LightningModule) -> Any:
        opt = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
        sched = torch.optim.lr_scheduler.CyclicLR(opt, 0.001, 0.05, step_size_up=40, mode="triangular2")
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}

    module = Plain(stack(8, 24, 3, act=nn.ELU), F.cross_entropy, rule)
    return Training(
        module, loader(x[:2400], y[:2400], size=60), hit_rate(x[2400:], y[2400:]), trainer={"max_epochs": 8}
    )


class Late(LightningModule):
    """A warm-up from nought written into the optimizer's step; the first steps change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 32),
            nn.LayerNorm(32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.LayerNorm(32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.2e-2, betas=(0.9, 0.99), weight_decay=0.03)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        t = self.trainer.global_step
        share = min(1.0, (t / 80) ** 2) if t < 250 else max(0.0, 1 - (t - 250) / 170)
        for group in optimizer.param_groups:
            group["lr"] = 1.2e-2 * share
        optimizer.step(closure=optimizer_closure)


@well("v-square-warm-up-by-hook", "schedule", "R2 near 0.94; nothing logged")
def late(seed: int) -> Training:
    d = friedman(seed)
    return Training(Late(), d.train(50), explained(d.x_test, d.y_test), trainer={"max_steps": 420})


class ByLayer(LightningModule):
    """A net fitted to one task, tuned to its neighbour with smaller rates for lower layers."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("tune", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        layers = [m for m in self.body if isinstance(m, nn.Linear)]
        groups = [{"params": m.parameters(), "lr": 8e-3 * 0.3 ** (2 - i)} for i, m in enumerate(layers)]
        return torch.optim.AdamW([*groups, {"params": self.head.parameters(), "lr": 1e-2}])


@well(
    "v-slower-below",
    "fine-tuning",
    "accuracy on digits 5..9 after a body learnt on 0..4; the lowest layer moves at 7e-4",
)
def slower_below(seed: int) -> Training:
    x, y = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(x, dtype=torch.float32) / 8 - 0.6, torch.tensor(y)
    low = labels < 5
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    first = nn.Sequential(body, nn.Linear(64, 5))
    opt = torch.optim.Adam(first.parameters(), lr=3e-3)
    for _ in range(60):
        opt.zero_grad()
        F.cross_entropy(first(pixels[low]), labels[low]).backward()
        opt.step()
    d = split(pixels[~low], labels[~low] - 5, seed, 0.6)
    return Training(ByLayer(body), d.train(32), hit_rate(d.x_test, d.y_test), d.val(), {"max_epochs": 14})
