"""What reaches the weights: which parameters are held, when gradients are cleared, and how they are clipped."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    arrivals,
    attractor,
    beats,
    bodies,
    bowl,
    explained,
    gratings,
    hits,
    loader,
    minus,
    molecules,
    purchases,
    records,
    switches,
)

# --- which parameters ---------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """A random picture of the pixels that stays as it is, and a classifier on top of it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 256), nn.ReLU())
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Transfer(LightningModule):
    """A frozen body and a new head for ten classes."""

    def __init__(self, optimizer_first: bool) -> None:
        super().__init__()
        self.model = Backbone(classes=1000)
        self.model.features.requires_grad_(False)
        if optimizer_first:
            self.optimizer = self.make_optimizer()
        self.model.classifier = nn.Linear(256, 10)
        if not optimizer_first:
            self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=3e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer


@sick("w-digits-head-replaced", "transfer", "parameters-not-optimized", twin=lambda s: digits_replaced(s, False))
def digits_replaced(seed: int, optimizer_first: bool = True) -> Training:
    d = data.digits(seed)
    return Training(Transfer(optimizer_first), d.train(40), hits(d.x_test, d.y_test), trainer={"max_epochs": 8})


class Taste(LightningModule):
    """Users and items as vectors; `data` was to keep the lookup off the graph while debugging."""

    def __init__(self, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        self.users = nn.Embedding(60, 8)
        self.items = nn.Embedding(50, 8)
        self.mix = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def look_up(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        return table.weight.data[ids] if self.raw else table.weight[ids]

    def forward(self, pairs: Tensor) -> Tensor:
        u, i = self.look_up(self.users, pairs[:, 0]), self.look_up(self.items, pairs[:, 1])
        return (u * i).sum(1, keepdim=True) + self.mix(torch.cat([u, i], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, liked = batch
        loss = F.mse_loss(self(pairs), liked)
        self.log("rmse", loss.sqrt())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_rmse", F.mse_loss(self(batch[0]), batch[1]).sqrt())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


@sick("w-purchases-weight-data", "factors", "parameters-not-optimized", twin=lambda s: purchases_data(s, False))
def purchases_data(seed: int, raw: bool = True) -> Training:
    d = purchases(seed)
    return Training(
        Taste(raw),
        loader(d.x, d.y, size=100),
        explained(d.x_test, d.y_test),
        d.val(),
        {"max_epochs": 10, "log_every_n_steps": 10},
    )


class Rhythms(LightningModule):
    """Three blocks; the first was to be frozen, picked by the letters of its name."""

    def __init__(self, frozen: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 12, 5, padding=2)
        self.conv10 = nn.Conv1d(12, 16, 5, stride=2, padding=2)
        self.conv11 = nn.Conv1d(16, 16, 5, stride=2, padding=2)
        self.conv1_out = nn.Linear(16, 3)
        for name, parameter in self.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad = False
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv11(F.relu(self.conv10(F.relu(self.conv1(x))))))
        return self.scale * self.conv1_out(h.amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch["wave"])
        return {"loss": F.cross_entropy(logits, batch["rhythm"])}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=8e-3)


@sick("w-beats-frozen-by-name", "cnn", "parameters-not-optimized", twin=lambda s: beats_by_name(s, "conv1."))
def beats_by_name(seed: int, frozen: str = "conv1") -> Training:
    d = beats(seed)
    return Training(
        Rhythms(frozen), records(45, wave=d.x, rhythm=d.y), hits(d.x_test, d.y_test), trainer={"max_epochs": 14}
    )


# --- when gradients are cleared -----------------------------------------------------------------------------------


class TwoHeads(LightningModule):
    """A body and a head with an optimizer each, by hand."""

    def __init__(self, clear: tuple[str, ...]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clear = clear
        self.body = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        for part in self.clear:
            getattr(self, part).zero_grad()
        loss = (self(x) - y).pow(2).mean()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.body.parameters(), lr=0.08),
            torch.optim.SGD(self.head.parameters(), lr=0.08),
        ]


@sick("w-bowl-optimizer-each", "mlp", "gradients-not-cleared", twin=lambda s: bowl_each(s, ("head", "body")))
def bowl_each(seed: int, clear: tuple[str, ...] = ("head",)) -> Training:
    d = bowl(seed)
    return Training(
        TwoHeads(clear),
        loader(d.x, d.y, size=36),
        explained(d.x_test, d.y_test),
        trainer={"max_steps": 450, "max_epochs": 30},
    )


class Watched(LightningModule):
    """Writes the gradient norm before each step, then tidies up."""

    def __init__(self, tidy: bool) -> None:
        super().__init__()
        self.tidy = tidy
        self.embed = nn.Embedding(5, 16)
        self.rnn = nn.LSTM(16, 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norm = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
        self.log("grad_norm", norm)
        if self.tidy:
            optimizer.zero_grad(set_to_none=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("w-switches-logs-then-tidies", "lstm", "gradients-not-cleared", twin=lambda s: switches_tidy(s, False))
def switches_tidy(seed: int, tidy: bool = True) -> Training:
    d = switches(seed)
    return Training(Watched(tidy), loader(d.x, d.y, size=30), hits(d.x_test, d.y_test), trainer={"max_epochs": 8})


class Accumulating(LightningModule):
    """Four small batches a step, all by hand; `every` counts the batches between two clearings."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every = every
        self.conv = nn.Sequential(nn.Conv2d(1, 10, 5, padding=2), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten())
        self.dense = nn.Linear(90, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.conv(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
        if (batch_idx + 1) % self.every == 0:
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


@sick("w-gratings-four-by-hand", "cnn", "gradients-not-cleared", twin=lambda s: gratings_four(s, 4))
def gratings_four(seed: int, every: int = 400) -> Training:
    d = gratings(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Accumulating(every), loader(d.x, d.y, size=8), score, trainer={"max_epochs": 10})


# --- how they are clipped -----------------------------------------------------------------------------------------


class Adaptive(LightningModule):
    """Adaptive clipping: a gradient may be no longer than a share of its weight."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.embed = nn.Embedding(3, 32)
        self.inner = nn.Linear(32, 32)
        self.outer = nn.Linear(32, 32)
        self.readout = nn.Linear(32, 1)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        kind, adjacency = graph
        h = self.embed(kind)
        h = F.relu(self.inner(h) + adjacency @ h)
        h = F.relu(self.outer(h) - 0.5 * adjacency @ h)
        return self.readout(h).mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[:2]), batch[2])
        self.log("loss", loss)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                allowed = self.share * parameter.detach().norm().clamp(min=1e-3)
                norm = parameter.grad.norm().clamp(min=1e-12)
                parameter.grad.mul_((allowed / norm).clamp(max=1.0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("w-molecules-adaptive-clip", "graph", "clipping-too-tight", twin=lambda s: molecules_agc(s, 0.3))
def molecules_agc(seed: int, share: float = 1e-4) -> Training:
    kind, adjacency, y = molecules(seed, 1000)
    return Training(
        Adaptive(share),
        loader(kind[:700], adjacency[:700], y[:700], size=35),
        explained((kind[700:], adjacency[700:]), y[700:]),
        trainer={"max_epochs": 16},
    )


class PerSample(LightningModule):
    """Private training without the noise: the gradient of each record is clipped before the mean."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.net = nn.Sequential(nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def of_one(self, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(self.net, weights, (x[None],)), y[None])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        weights = {k: v.detach() for k, v in self.net.named_parameters()}
        self.each = torch.func.vmap(torch.func.grad(self.of_one), (None, 0, 0))(weights, x, y)
        return F.cross_entropy(self(x), y)

    def on_after_backward(self) -> None:
        norms = sum(g.flatten(1).square().sum(1) for g in self.each.values()).sqrt()
        factor = (self.bound / norms).clamp(max=1.0)
        for name, parameter in self.net.named_parameters():
            parameter.grad = torch.einsum("n,n...->...", factor, self.each[name]) / len(factor)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


@sick("w-cells-private", "mlp", "clipping-too-tight", twin=lambda s: cells_private(s, 1.0))
def cells_private(seed: int, bound: float = 1e-3) -> Training:
    d = data.table("breast_cancer", seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(PerSample(bound), d.train(32), score, d.val(), {"max_epochs": 12, "limit_val_batches": 0})


class Sums(LightningModule):
    """The loss is a sum over the batch, and the clip was chosen for a mean by somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, count = batch
        log_rate = self(x)
        loss = (log_rate.exp() - count * log_rate).sum()
        self.log("nll", loss / len(x))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_nll", F.poisson_nll_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.5)}


@sick("w-arrivals-summed", "mlp", "clipping-too-tight", twin=lambda s: arrivals_summed(s, 100.0))
def arrivals_summed(seed: int, clip: float = 0.1) -> Training:
    d = arrivals(seed)
    score = minus(F.poisson_nll_loss, d.x_test, d.y_test)
    options = {"max_epochs": 12, "gradient_clip_val": clip, "check_val_every_n_epoch": 3}
    return Training(Sums(), loader(d.x, d.y, size=32), score, d.val(), options)


class Walker(LightningModule):
    """Reads six states and tells one five steps on; clipped by hand under manual optimisation."""

    def __init__(self, clip: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clip = clip
        self.cell = nn.GRUCell(3, 32)
        self.out = nn.Linear(32, 3)

    def forward(self, window: Tensor) -> Tensor:
        h = window.new_zeros(len(window), 32)
        for t in range(window.shape[1]):
            h = self.cell(window[:, t], h)
        return window[:, -1] + self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        window, following = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = F.mse_loss(self(window), following)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="value")
        optimizer.step()
        self.log("mse", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("w-attractor-clipped-by-value", "gru", "clipping-too-tight", twin=lambda s: attractor_value(s, 1.0))
def attractor_value(seed: int, clip: float = 2e-5) -> Training:
    path = attractor(seed)
    x, y = path[:-5].unfold(0, 6, 1).transpose(1, 2), path[10:]
    x = x[: len(y)]

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            error = (module(x[900:]) - y[900:]).square().mean() / (x[900:, -1] - y[900:]).square().mean()
        return 1 - error.item()

    return Training(Walker(clip), loader(x[:900], y[:900], size=30), score, trainer={"max_epochs": 10})


class Bodies(LightningModule):
    """Every tensor is clipped on its own, inside the closure."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm
        self.phi = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32))
        self.rho = nn.Sequential(nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        def closure() -> Any:
            loss = optimizer_closure()
            for parameter in self.parameters():
                nn.utils.clip_grad_norm_([parameter], self.norm)
            return loss

        optimizer.step(closure=closure)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("w-bodies-clips-in-the-closure", "pointnet", "clipping-too-tight", twin=lambda s: bodies_closure(s, 1.0))
def bodies_closure(seed: int, norm: float = 2e-4) -> Training:
    d = bodies(seed)
    return Training(Bodies(norm), loader(d.x, d.y, size=28), hits(d.x_test, d.y_test), trainer={"max_epochs": 14})
