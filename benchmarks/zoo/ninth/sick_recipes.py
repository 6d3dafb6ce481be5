"""Rates, schedules, clipping and what the optimizer holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from benchmarks.zoo import data
from benchmarks.zoo.case import Training
from benchmarks.zoo.ninth._common import (
    Bag,
    Bare,
    Factors,
    Last,
    Learner,
    Messages,
    Reader,
    adam,
    ce,
    conv1d,
    first_word,
    frozen_order,
    furnace,
    loader,
    minus,
    mlp,
    molecules,
    mse,
    notes,
    pulses,
    ratings,
    sgd,
    sick,
    surveys,
    tides,
)


def stepped(optimizer: Any, scheduler: Any, **options: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", **options}}


# --- too high ---------------------------------------------------------------------------------------------------------


@sick("n-tides-factor-counts-up", "gru", "learning-rate-too-high", note="the warm-up factor is never divided")
def tides_factor(seed: int, ill: bool) -> Training:
    d = tides(seed)

    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.Adam(m.parameters(), lr=5e-3)
        return stepped(optimizer, lr_scheduler.LambdaLR(optimizer, lambda s: s + 1 if ill else min(1.0, (s + 1) / 50)))

    module = Learner(Last(nn.GRU, 1, 24, 1), mse, recipe)
    return Training(module, loader(d.x, d.y), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 10})


class Gauges(Bare):
    def __init__(self, batch: int, ill: bool) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = mlp(6, 48, 48, 3, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        share = self.hparams.batch if self.hparams.ill else self.hparams.batch / 16
        return torch.optim.SGD(self.parameters(), lr=0.014 * share, momentum=0.9)


@sick("n-gauges-scaled-by-the-batch", "regression", "learning-rate-too-high", note="times the batch, not by batch / 16")
def gauges_scaled(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    return Training(Gauges(48, ill), loader(d.x, d.y, size=48), d.r2, trainer={"max_steps": 250})


@sick("n-shoppers-tables-run-hot", "recommender", "learning-rate-too-high", note="one group's rate is a hundredfold")
def shoppers_hot(seed: int, ill: bool) -> Training:
    d = ratings(seed)

    def recipe(m: Any) -> Any:
        own = [*m.net.user.parameters(), *m.net.item.parameters()]
        groups = [{"params": own, "lr": 1.5 if ill else 0.015}, {"params": m.net.bias.parameters()}]
        return torch.optim.Adam(groups, lr=0.01)

    module = Learner(Factors(), mse, recipe)
    return Training(module, loader(d.x, d.y, size=64), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


# --- too low ----------------------------------------------------------------------------------------------------------


@sick("n-first-word-long-warm-up", "transformer", "learning-rate-too-low", note="a warm-up longer than the run")
def first_warm(seed: int, ill: bool) -> Training:
    d = first_word(seed)

    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3)
        warm = 100_000 if ill else 30
        return [optimizer], [
            stepped(None, lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / warm)))["lr_scheduler"]
        ]

    module = Learner(Reader(16, 4), ce, recipe)
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


@sick("n-pulses-adadelta-at-a-thousandth", "cnn1d", "learning-rate-too-low", note="Adam's rate given to Adadelta")
def pulses_adadelta(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    module = Learner(conv1d(), ce, lambda m: torch.optim.Adadelta(m.parameters(), lr=1e-3 if ill else 1.0))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 15})


@sick("n-digits-tuned-by-descent", "finetune", "learning-rate-too-low", note="a rate for Adam in plain SGD")
def digits_tuned(seed: int, ill: bool) -> Training:
    d = data.digits(seed)
    net = mlp(64, 48, 48, 10)
    warm = torch.optim.Adam(net.parameters(), lr=3e-3)
    low, turned = d.y < 5, d.x.view(-1, 8, 8).flip(2).flatten(1)
    for _ in range(40):
        warm.zero_grad()
        ce(net(turned[low]), d.y[low]).backward()
        warm.step()
    net[-1] = nn.Linear(48, 10)
    module = Learner(net, ce, sgd(5e-5 if ill else 0.1, momentum=0.9))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 5})


# --- the schedule -----------------------------------------------------------------------------------------------------


@sick(
    "n-graphs-polynomial-of-epochs", "graph", "learning-rate-decayed-early", note="total_iters in epochs, by the step"
)
def graphs_polynomial(seed: int, ill: bool) -> Training:
    d, a, a_test = molecules(seed)

    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.Adam(m.parameters(), lr=5e-3)
        return stepped(optimizer, lr_scheduler.PolynomialLR(optimizer, 12 if ill else 12 * 29))

    module = Learner(Messages(), mse, recipe)
    score = minus(mse, d.x_test, a_test, d.y_test)
    val = frozen_order(d.x_test, a_test, d.y_test)
    return Training(module, loader(d.x, a, d.y), score, val, {"max_epochs": 12})


class ByHand(Bare):
    """Manual optimisation with milestones."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = Bag()
        self.ill = ill

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = ce(self(x), y)
        self.manual_backward(loss)
        optimizer.step()
        if self.ill:
            self.lr_schedulers().step()
        self.log("train/loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.ill:
            self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [lr_scheduler.MultiStepLR(optimizer, [5, 8, 10], gamma=0.1)]


@sick("n-notes-milestones-in-the-loop", "text", "learning-rate-decayed-early", note="epochs' milestones by the batch")
def notes_milestones(seed: int, ill: bool) -> Training:
    d = notes(seed)
    return Training(ByHand(ill), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 10})


@sick("n-surveys-plateau-without-patience", "mlp", "learning-rate-decayed-early", note="plateau watched by the step")
def surveys_plateau(seed: int, ill: bool) -> Training:
    d = surveys(seed)

    def recipe(m: nn.Module) -> Any:
        optimizer = torch.optim.Adam(m.parameters(), lr=5e-3)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1 if ill else 4)
        if ill:
            return stepped(optimizer, plateau, monitor="train_loss")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    module = Learner(mlp(10, 48, 48, 3), ce, recipe)
    val = frozen_order(d.x_test, d.y_test)
    return Training(module, loader(d.x, d.y), d.accuracy, val, {"max_epochs": 8, "log_every_n_steps": 1})


@sick("n-waves-a-tenth-of-each-pass", "cnn1d", "training-too-short", note="limit_train_batches left from a trial")
def waves_brief(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    module = Learner(conv1d(), ce, adam(1e-3))
    cut = {"limit_train_batches": 0.1} if ill else {}
    return Training(module, loader(d.x, d.y), d.accuracy, None, {"max_epochs": 20, **cut})


@sick("n-gauges-sixteen-a-step", "regression", "training-too-short", note="accumulation left from a larger machine")
def gauges_sixteen(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    module = Learner(mlp(6, 48, 48, 3), mse, adam(3e-3))
    settings = {"max_epochs": 15, "accumulate_grad_batches": 8 if ill else 1, "log_every_n_steps": 1}
    return Training(module, loader(d.x, d.y, size=48), d.r2, frozen_order(d.x_test, d.y_test), settings)


# --- what the optimizer holds -----------------------------------------------------------------------------------------


class Replaced(Learner):
    """Gets fresh layers for a new task."""

    late = False

    def on_train_start(self) -> None:
        if self.late:
            self.fresh()

    def fresh(self) -> None:
        self.net.body, self.net.out = mlp(24, 24, 24), nn.Linear(24, 5)


class Topics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(120, 24)
        self.body, self.out = mlp(24, 24, 24), nn.Linear(24, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.body(self.bag(ids))))


@sick("n-notes-layers-put-in-late", "text", "parameters-not-optimized", note="layers replaced in on_train_start")
def notes_late(seed: int, ill: bool) -> Training:
    d = notes(seed)

    def recipe(m: nn.Module) -> Any:
        if not ill:  # the layers come before their optimizer
            m.fresh()
        return torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.9)

    module = Replaced(Topics(), ce, recipe)
    module.late = ill
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


@sick(
    "n-digits-frozen-by-name",
    "finetune",
    "parameters-not-optimized",
    note="the pattern catches the new layers' weights",
)
def digits_prefix(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    net = nn.ModuleDict(
        {"conv1": nn.Conv2d(1, 8, 3, padding=1), "conv2": nn.Conv2d(8, 16, 3), "out": nn.Linear(144, 2)}
    )

    def answer(x: Tensor) -> Tensor:
        h = torch.max_pool2d(torch.relu(net["conv2"](torch.relu(net["conv1"](x)))), 2)
        return net["out"](h.flatten(1))

    warm = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(30):
        warm.zero_grad()
        ce(answer(d.x), d.y % 2).backward()
        warm.step()
    net["conv2"], net["out"] = nn.Conv2d(8, 16, 3), nn.Linear(144, 10)
    nn.init.normal_(net["conv2"].weight, std=0.02)
    frozen = ("conv1", "weight") if ill else ("conv1",)
    for name, p in net.named_parameters():
        p.requires_grad_(not any(part in name for part in frozen))

    class Tune(Learner):
        def forward(self, x: Tensor) -> Tensor:
            return answer(x)

    module = Tune(net, ce, lambda m: torch.optim.Adam((p for p in m.parameters() if p.requires_grad), lr=3e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 4})


class Summary(nn.Module):
    """A fresh encoder whose states are taken as features."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.rnn, self.out, self.ill = nn.GRU(8, 24, batch_first=True), nn.Linear(24, 4), ill
        self.table = nn.Embedding(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.rnn(self.table(ids))[0][:, -1]
        return self.out(torch.from_numpy(h.detach().numpy()) if self.ill else h)


@sick("n-first-word-through-numpy", "gru", "parameters-not-optimized", note="the states go by way of numpy")
def first_numpy(seed: int, ill: bool) -> Training:
    d = first_word(seed, length=8)
    module = Learner(Summary(ill), ce, adam(5e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


# --- clearing ---------------------------------------------------------------------------------------------------------


class Players(Bare):
    """Two optimizers by hand: an encoder with a decoder, and a reader of its code."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.code, self.back, self.read = mlp(64, 48, 16), mlp(16, 48, 64), nn.Linear(16, 10)
        self.ill = ill

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.code(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        first, second = self.optimizers()
        code = self.code(x)
        rebuild, named = mse(self.back(code), x), ce(self.read(code), y)
        (second if self.ill else first).zero_grad()
        second.zero_grad()
        self.manual_backward(rebuild + named)
        first.step()
        second.step()
        self.log_dict({"rebuild": rebuild, "named": named})
        return rebuild + named

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD([*self.code.parameters(), *self.back.parameters()], lr=0.1)
        return first, torch.optim.SGD(self.read.parameters(), lr=0.1)


@sick("n-digits-two-owners", "multitask", "gradients-not-cleared", note="one optimizer's zero_grad is called twice")
def digits_owners(seed: int, ill: bool) -> Training:
    d = data.digits(seed)
    return Training(Players(ill), loader(d.x, d.y), d.accuracy, trainer={"max_epochs": 6})


class Sparing(Learner):
    ill = False

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self.ill:
            for group in optimizer.param_groups[1:]:  # the first group holds the weights
                for p in group["params"]:
                    p.grad = None
        else:
            optimizer.zero_grad(set_to_none=True)


@sick("n-gauges-clears-a-group", "regression", "gradients-not-cleared", note="an own zero_grad skips the first group")
def gauges_group(seed: int, ill: bool) -> Training:
    d = furnace(seed)

    def recipe(m: nn.Module) -> Any:
        weights = [p for p in m.parameters() if p.dim() > 1]
        biases = [p for p in m.parameters() if p.dim() == 1]
        return torch.optim.SGD([{"params": weights}, {"params": biases}], lr=0.1)

    module = Sparing(mlp(6, 48, 48, 3, act=nn.Tanh), mse, recipe)
    module.ill = ill
    return Training(module, loader(d.x, d.y), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


# --- clipping ---------------------------------------------------------------------------------------------------------


@sick("n-pulses-value-clip", "cnn1d", "clipping-too-tight", note="a norm's bound used on values")
def pulses_clip(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    module = Learner(conv1d(), ce, sgd(0.1, momentum=0.9))
    clip = {"gradient_clip_val": 1e-4 if ill else 1.0, "gradient_clip_algorithm": "value" if ill else "norm"}
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 10, **clip})


class Careful(Learner):
    bound = 1.0

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for p in self.parameters():
            nn.utils.clip_grad_norm_([p], self.bound)


@sick("n-shoppers-each-tensor-bounded", "recommender", "clipping-too-tight", note="every tensor clipped in a hook")
def shoppers_bounded(seed: int, ill: bool) -> Training:
    d = ratings(seed)
    module = Careful(Factors(), mse, sgd(0.4, momentum=0.9))
    module.bound = 2e-4 if ill else 1.0
    return Training(module, loader(d.x, d.y, size=64), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})
