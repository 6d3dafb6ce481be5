"""Well trainings whose steps, schedules, loaders or units look odd by design."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, digits, generator, predict, table
from benchmarks.zoo.sixth._common import (
    ClipNet,
    DeepSet,
    Factors,
    GraphNet,
    Learner,
    Recur,
    Rows,
    Words,
    baskets,
    clips,
    clouds,
    explains,
    flow,
    glyph_net,
    glyphs,
    harvest,
    hits,
    loader,
    mlp,
    networks,
    optim,
    overlap,
    per_place,
    recalls,
    riddles,
    spot_net,
    spots,
    stars,
    supervised,
    tags,
    turbines,
)

# --- steps ------------------------------------------------------------------------------------------------------------


class Sharpness(LightningModule):
    """Climbs a little, takes the gradient there, and steps from where it stood."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp(64, 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss)
        moves = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in self.net.parameters()]
        with torch.no_grad():
            for p, move in zip(self.net.parameters(), moves, strict=True):
                p.add_(move)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(x), y))
        with torch.no_grad():
            for p, move in zip(self.net.parameters(), moves, strict=True):
                p.sub_(move)
        optimizer.step()
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


@well("q-digits-up-then-down", "mlp")
def up_then_down(seed: int) -> Training:
    d = digits(seed)
    return Training(Sharpness(), d.train(32), d.accuracy, None, {"max_epochs": 6})


class Sign(torch.optim.Optimizer):
    """Steps by the sign of a running mean of the gradient."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(group["lr"] * (0.9 * mean + 0.1 * p.grad).sign())
                    mean.lerp_(p.grad, 0.01)
        return loss


@well("q-steps-by-sign-alone", "point set")
def by_sign(seed: int) -> Training:
    d = clouds(seed)
    module = Learner(DeepSet(), supervised(F.cross_entropy), lambda p: Sign(p, 1e-3), "ce")
    return Training(module, Rows(d), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


@well("q-one-row-at-a-time", "linear", note="a batch of one: the loss jumps over three orders from step to step")
def one_row(seed: int) -> Training:
    g = generator(seed, 160)
    x = torch.randn(1000, 5, generator=g)
    y = x @ torch.randn(5, 1, generator=g) + 0.3 * torch.randn(1000, 1, generator=g)
    module = Learner(nn.Linear(5, 1), supervised(F.mse_loss), optim("SGD", 0.02), "squared")
    settings = {"max_steps": 600, "log_every_n_steps": 1}
    return Training(module, loader(x[:700], y[:700], size=1), explains(x[700:], y[700:]), None, settings)


@well(
    "q-faint-columns-large-steps", "logistic", note="inputs of a fiftieth and a rate of three hundred, as they must be"
)
def faint(seed: int) -> Training:
    d = digits(seed)
    d = Split(0.05 * (d.x - d.x.mean(0)), d.y, 0.05 * (d.x_test - d.x.mean(0)), d.y_test)
    module = Learner(nn.Linear(64, 10, bias=False), supervised(F.cross_entropy), optim("SGD", 300.0), "xent")
    return Training(module, d.train(50), d.accuracy, d.val(), {"max_epochs": 16})


@well("q-tables-at-a-tenth", "recommender", note="Adam at 0.1, on tables alone")
def at_a_tenth(seed: int) -> Training:
    d = stars(seed)
    recipe = lambda p: [torch.optim.Adam(p, lr=0.1)]  # noqa: E731

    class Falling(Learner):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.6)]

    module = Falling(Factors(), supervised(F.mse_loss), recipe, "mse")
    return Training(module, loader(d.x, d.y, size=80), explains(d.x_test, d.y_test), None, {"max_epochs": 8})


@well("q-adds-four-clips-at-a-tenth", "lstm", note="nearly every step is clipped, and the rate expects it")
def adds_four(seed: int) -> Training:
    d = turbines(seed)
    module = Learner(Recur(nn.LSTM, 3, 24, 1), supervised(F.mse_loss), optim("SGD", 1.0, momentum=0.8), "mse")
    settings = {"max_epochs": 24, "accumulate_grad_batches": 4, "gradient_clip_val": 0.1}
    return Training(module, loader(d.x, d.y, size=14), explains(d.x_test, d.y_test), None, settings)


@well("q-mirror-in-sixteen-bits", "transformer")
def sixteen_bits(seed: int) -> Training:
    d = riddles(seed)
    module = Learner(Words(10, 10, 8), supervised(per_place), optim("AdamW", 5e-3), "xent")
    settings = {"max_epochs": 10, "precision": "bf16-mixed", "gradient_clip_val": 1.0}
    return Training(module, loader(d.x, d.y), hits(d.x_test, d.y_test), None, settings)


@well("q-twenty-whole-batches", "mlp", note="LBFGS over all rows, twenty steps")
def whole_batches(seed: int) -> Training:
    d = harvest(seed)
    module = Learner(mlp(6, 16, 1, act=nn.Tanh), supervised(F.mse_loss), lambda p: torch.optim.LBFGS(p, 0.5, 10), "mse")
    return Training(module, loader(d.x, d.y, size=800), explains(d.x_test, d.y_test), None, {"max_epochs": 20})


# --- schedules --------------------------------------------------------------------------------------------------------


class Plan(Learner):
    """A schedule over steps from a callable."""

    plan: Callable[..., Any]

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.plan(optimizer), "interval": "step", "frequency": 1},
        }


@well("q-two-drops-of-ten", "cnn")
def two_drops(seed: int) -> Training:
    d = glyphs(seed)
    module = Plan(glyph_net(), supervised(F.cross_entropy), optim("SGD", 0.1, momentum=0.9), "loss")
    module.plan = lambda o: lr_scheduler.MultiStepLR(o, [120, 200], 0.1)
    return Training(module, Rows(d, 28), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


@well("q-starts-anew-three-times", "graph", note="the rate jumps back up and the loss with it")
def anew(seed: int) -> Training:
    d = networks(seed)
    module = Plan(GraphNet(), supervised(F.mse_loss), optim("Adam", 1e-2), "mse")
    module.plan = lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 95, eta_min=1e-6)
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 15})


class TwoStages(LightningModule):
    """First the level, then at a harder target: the loss jumps where the second stage begins."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 48, 48, 2, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        error = (self(x) - y).square().mean(0)
        loss = error[0] if self.current_epoch < 5 else error[0] + 3 * error[1]
        self.log("stage_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("q-a-second-task-from-epoch-five", "neural ode")
def second_task(seed: int) -> Training:
    d = flow(seed)
    return Training(TwoStages(), loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 14})


@well("q-slow-then-all-at-once", "matrix factorisation", note="from a start near a saddle: flat, then steps")
def all_at_once(seed: int) -> Training:
    g = generator(seed, 161)
    x = torch.randn(800, 8, generator=g)
    u, v = (torch.linalg.qr(torch.randn(8, 3, generator=g))[0] for _ in range(2))
    m = u @ torch.diag(torch.tensor([2.0, 1.4, 1.0])) @ v.T
    y = x @ m + 0.1 * torch.randn(800, 8, generator=g)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    for layer in net:
        nn.init.normal_(layer.weight, std=0.1)
    module = Learner(net, supervised(F.mse_loss), optim("SGD", 0.3, momentum=0.5), "mse")
    return Training(module, loader(x[:600], y[:600], size=60), explains(x[600:], y[600:]), None, {"max_epochs": 60})


@well("q-means-of-late-weights", "conv over time")
def late_weights(seed: int) -> Training:
    d = clips(seed)
    module = Learner(ClipNet(), supervised(F.cross_entropy), optim("SGD", 0.05, momentum=0.9), "xent")
    settings = {"max_epochs": 10, "callbacks": [StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=6)]}
    return Training(module, Rows(d, 28), hits(d.x_test, d.y_test), None, settings)


@well("q-thirty-steps-of-wine", "linear")
def thirty_steps(seed: int) -> Training:
    d = table("wine", seed)
    module = Learner(nn.Linear(13, 3), supervised(F.multi_margin_loss), optim("Adagrad", 0.2), "margin")
    return Training(module, d.train(16), d.accuracy, None, {"max_steps": 30})


@well("q-goes-on-from-a-good-state", "mlp", note="the first loss is already the last")
def goes_on(seed: int) -> Training:
    d = harvest(seed)
    net = mlp(6, 32, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        F.mse_loss(net(d.x), d.y).backward()
        optimizer.step()
    module = Learner(net, supervised(F.mse_loss), optim("AdamW", 2e-5), "tuned_mse")
    return Training(module, Rows(d), explains(d.x_test, d.y_test), None, {"max_epochs": 5})


# --- units that are shut or still -------------------------------------------------------------------------------------


class Highway(nn.Module):
    """Eight layers behind gates that begin nearly shut."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, width), nn.Linear(width, 1)
        self.change = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.sigmoid = nn.Sigmoid()
        for gate in self.gate:
            nn.init.constant_(gate.bias, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for change, gate in zip(self.change, self.gate, strict=True):
            open_ = self.sigmoid(gate(h))
            h = open_ * torch.tanh(change(h)) + (1 - open_) * h
        return self.end(h)


@well("q-eight-gates-nearly-shut", "highway")
def nearly_shut(seed: int) -> Training:
    d = harvest(seed)
    module = Learner(Highway(), supervised(F.smooth_l1_loss), optim("Adam", 6e-3), "huber")
    return Training(module, Rows(d), explains(d.x_test, d.y_test), None, {"max_epochs": 14})


@well("q-few-units-for-each-row", "mlp", note="a bar of one above every unit: nine in ten are off, none for all rows")
def few_units(seed: int) -> Training:
    d = harvest(seed)
    net = mlp(6, 256, 1)
    nn.init.normal_(net[0].weight, std=0.5)
    nn.init.constant_(net[0].bias, -1.2)
    module = Learner(net, supervised(F.mse_loss), optim("Adam", 5e-3), "mse")
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 16})


class Sieve(nn.Module):
    """A sigmoid for each word of a basket: most are let through or held back for good."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.keep = nn.Embedding(31, 16), nn.Embedding(31, 1)
        self.sigmoid, self.head = nn.Sigmoid(), nn.Linear(16, 3)
        with torch.no_grad():
            self.keep.weight.fill_(6.0)[0] = -20.0

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.sigmoid(self.keep(ids))
        return self.head((weight * self.table(ids)).sum(1) / weight.sum(1).clamp(min=1e-3))


@well("q-kept-or-held-back", "attention")
def held_back(seed: int) -> Training:
    d = baskets(seed)
    module = Learner(Sieve(), supervised(F.cross_entropy), optim("Adam", 1e-2), "ce")
    return Training(module, loader(d.x, d.y, size=45), hits(d.x_test, d.y_test), None, {"max_epochs": 9})


class Tuned(LightningModule):
    """A trained body, frozen with its statistics and in evaluation mode, under a new head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body.requires_grad_(False), nn.Linear(32, 2)

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), (y < 2).long())
        self.log("head_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=2e-2)


@well("q-new-head-on-old-statistics", "cnn")
def new_head(seed: int) -> Training:
    d = glyphs(seed)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU()
    )
    body.extend([nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.ReLU()])
    whole = nn.Sequential(body, nn.Linear(32, 4))
    optimizer = torch.optim.Adam(whole.parameters(), lr=5e-3)
    for i in range(120):
        rows = slice(i % 7 * 100, i % 7 * 100 + 100)
        optimizer.zero_grad()
        F.cross_entropy(whole(d.x[rows]), d.y[rows]).backward()
        optimizer.step()
    score = hits(d.x_test, (d.y_test < 2).long())
    return Training(Tuned(body.eval()), loader(d.x, d.y), score, None, {"max_epochs": 5})


@well("q-one-disc-at-a-time", "segmentation", note="a batch of one with norms over groups of channels")
def one_disc(seed: int) -> Training:
    d = spots(seed)
    module = Learner(
        spot_net(8, lambda c: nn.GroupNorm(2, c)), supervised(F.binary_cross_entropy_with_logits), optim("Adam", 2e-3)
    )
    return Training(module, loader(d.x, d.y, size=1), overlap(d.x_test, d.y_test), None, {"max_epochs": 1})


# --- loaders and logs -------------------------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    """Rows made as they are asked for."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in itertools.count():
            g = generator(self.seed + i, 162)
            x = torch.randn(40, 3, generator=g)
            yield x, (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:].abs()


class Silent(LightningModule):
    """Logs nothing, validates never."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(3, 48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("q-rows-without-an-end", "mlp")
def without_end(seed: int) -> Training:
    g = generator(seed, 163)
    x = torch.randn(500, 3, generator=g)
    y = (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:].abs()
    train = DataLoader(Endless(seed), batch_size=None)
    settings = {"max_steps": 300, "limit_val_batches": 0}
    return Training(Silent(), train, explains(x, y), None, settings)


class Both(LightningModule):
    """Named pictures, and others that only have to look the same when shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.net = glyph_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, y = batch["named"]
        (u,) = batch["others"]
        named = F.cross_entropy(self(x), y)
        with torch.no_grad():
            truth = self(u).softmax(-1)
        same = -(truth * self(u + 0.1 * torch.randn_like(u)).log_softmax(-1)).sum(-1).mean()
        loss = named + min(1.0, self.global_step / 100) * 0.3 * same
        self.log_dict({"named": named, "same": same})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


@well("q-named-and-nameless-pictures", "semi-supervised")
def nameless(seed: int) -> Training:
    d = glyphs(seed)
    both = {"named": loader(d.x[:250], d.y[:250], size=25), "others": loader(d.x[250:], size=25)}
    return Training(Both(), both, hits(d.x_test, d.y_test), None, {"max_epochs": 14})


@well("q-drawn-and-put-back", "graph", note="a sampler with replacement: a row may come twice in a batch")
def put_back(seed: int) -> Training:
    d = networks(seed)
    rows = TensorDataset(d.x, d.y)
    train = DataLoader(rows, batch_size=30, sampler=RandomSampler(rows, replacement=True, num_samples=600))
    module = Learner(GraphNet(24), supervised(F.l1_loss), optim("Adam", 4e-3), "mae")
    return Training(module, train, explains(d.x_test, d.y_test), None, {"max_epochs": 12, "log_every_n_steps": 50})


@well("q-rare-tag-drawn-as-often", "mlp")
def as_often(seed: int) -> Training:
    d = tags(seed, 2000)
    rare = lambda x: ((x[:, 0] + 0.6 * x[:, 1] * x[:, 2]) > 2.0).long()  # noqa: E731
    y, y_test = rare(d.x), rare(d.x_test)
    weight = (len(y) / torch.bincount(y, minlength=2).clamp(min=1))[y]
    sampler = WeightedRandomSampler(weight.tolist(), 1500)
    train = DataLoader(TensorDataset(d.x, y), batch_size=50, sampler=sampler)
    module = Learner(mlp(12, 24, 2), supervised(F.cross_entropy), optim("Adam", 3e-3, weight_decay=1e-4), "ce")
    score = lambda m: recalls(predict(m, d.x_test).argmax(1), y_test)  # noqa: E731
    return Training(module, train, score, None, {"max_epochs": 6})


@well("q-many-hot-columns", "tabular", note="forty columns of noughts and ones, most of them nought")
def many_hot(seed: int) -> Training:
    d = baskets(seed)
    hot, hot_test = (F.one_hot(x, 31).amax(1)[:, 1:].float() for x in (d.x, d.x_test))
    module = Learner(mlp(30, 24, 3), supervised(F.cross_entropy), optim("Adam", 5e-3), "ce")
    return Training(module, loader(hot, d.y), hits(hot_test, d.y_test), None, {"max_epochs": 7})


class Packed(LightningModule):
    """Reads baskets of differing length, packed; most of each tensor is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(31, 12, padding_idx=0), nn.GRU(12, 20, batch_first=True)
        self.head = nn.Linear(20, 3)

    def forward(self, ids: Tensor) -> Tensor:
        length = (ids > 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.table(ids), length, batch_first=True, enforce_sorted=False)
        return self.head(self.body(packed)[1][0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y)
        self.log("xent", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, y = batch
        self.log("val_acc", (self(ids).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well("q-mostly-filled-up", "gru")
def filled_up(seed: int) -> Training:
    d = baskets(seed)
    x, x_test = (F.pad(x, (0, 14)) for x in (d.x, d.x_test))
    val = loader(x_test, d.y_test, size=200, shuffle=False)
    settings = {"max_epochs": 7, "val_check_interval": 0.5}
    return Training(Packed(), loader(x, d.y, size=30), hits(x_test, d.y_test), val, settings)


@well("q-pixels-in-a-fixed-order", "cnn", note="no shuffling, over rows that stand in no order")
def fixed_order(seed: int) -> Training:
    d = glyphs(seed)
    module = Learner(glyph_net(), supervised(F.cross_entropy), optim("RMSprop", 2e-3), "ce")
    return Training(module, Rows(d, 28, shuffle=False), hits(d.x_test, d.y_test), None, {"max_epochs": 9})


@well("q-frozen-words-free-head", "transformer", note="nine in ten of the parameters are meant to stay")
def free_head(seed: int) -> Training:
    d = baskets(seed)
    net = Words(31, 3, 10, dim=32, pool=True)
    net.block.requires_grad_(False)
    net.place.requires_grad_(False)
    recipe = lambda _: torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=5e-3)  # noqa: E731
    module = Learner(net, supervised(F.cross_entropy), recipe, "ce")
    return Training(module, loader(d.x, d.y, size=45), hits(d.x_test, d.y_test), None, {"max_epochs": 8})
