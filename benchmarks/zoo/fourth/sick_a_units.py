"""Units and shapes of nets: what they put out, what lies between them, and how many there are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    attractor,
    beats,
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
    verses,
)

# --- silent -------------------------------------------------------------------------------------------------------


class Screening(LightningModule):
    """Convolutions with the bias of a detector's paper, for its last layer or for all of them."""

    def __init__(self, everywhere: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and (everywhere or module is self.out):
                nn.init.constant_(module.bias, -4.6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x))
        return self.out(x).amax((2, 3))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        loss = F.binary_cross_entropy_with_logits(logits, F.one_hot(batch["kind"], 4).float())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@sick(
    "w-gratings-bias-of-the-paper", "cnn", "dead-activations", "bad-initialization",
    twin=lambda s: gratings_bias(s, False),
)  # fmt: skip
def gratings_bias(seed: int, everywhere: bool = True) -> Training:
    d = gratings(seed)
    return Training(
        Screening(everywhere), records(40, image=d.x, kind=d.y), hits(d.x_test, d.y_test), trainer={"max_epochs": 12}
    )


class Shifted(LightningModule):
    """A classifier of waves that subtracts the largest feature, as one does for a softmax."""

    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.shift = shift
        self.first = nn.Conv1d(1, 16, 7, stride=2, padding=3)
        self.second = nn.Conv1d(16, 24, 5, stride=2, padding=2)
        self.out = nn.Linear(24, 3)

    def stable(self, h: Tensor) -> Tensor:
        return h - h.amax(dim=1, keepdim=True).detach() if self.shift else h

    def forward(self, wave: Tensor) -> Tensor:
        h = F.relu(self.first(wave))
        h = F.relu(self.stable(self.second(h)))
        return self.out(h.amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, label = batch
        return F.cross_entropy(self(wave), label)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        wave, label = batch
        self.log("val_acc", (self(wave).argmax(1) == label).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=8e-3)


@sick("w-beats-largest-subtracted", "cnn", "dead-activations", twin=lambda s: beats_shift(s, False))
def beats_shift(seed: int, shift: bool = True) -> Training:
    d = beats(seed)
    return Training(Shifted(shift), loader(d.x, d.y, size=45), hits(d.x_test, d.y_test), d.val(), {"max_epochs": 14})


class Normed(LightningModule):
    """Blocks of linear, BatchNorm, ReLU; BatchNorm's shift comes from the caller."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        widths = [4, 48, 48, 48]
        blocks: list[nn.Module] = []
        for a, b in pairwise(widths):
            norm = nn.BatchNorm1d(b)
            nn.init.constant_(norm.bias, shift)
            blocks += [nn.Linear(a, b, bias=False), norm, nn.ReLU()]
        self.net = nn.Sequential(*blocks, nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.huber_loss(self(x), y)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, nesterov=True)


@sick("w-bowl-norm-with-a-shift", "mlp", "dead-activations", "bad-initialization", twin=lambda s: bowl_shift(s, 0.0))
def bowl_shift(seed: int, shift: float = -6.0) -> Training:
    d = bowl(seed)
    return Training(Normed(shift), loader(d.x, d.y, size=45), explained(d.x_test, d.y_test), trainer={"max_epochs": 15})


# --- at their limits ----------------------------------------------------------------------------------------------


class Hashes(LightningModule):
    """Digits to nearly binary codes of sixteen bits and back; `tau` says how nearly."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.encode = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.decode = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x) / self.tau))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        loss = F.mse_loss(self(x), x)
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("w-digits-hash-codes", "autoencoder", "saturated-activations", twin=lambda s: digits_hashes(s, 1.0))
def digits_hashes(seed: int, tau: float = 3e-4) -> Training:
    d = data.digits(seed)
    return Training(Hashes(tau), d.train(45), explained(d.x_test, d.x_test), trainer={"max_epochs": 15})


class Memory(LightningModule):
    """A minimal gated unit by hand over ids; its weights drawn with a chosen deviation."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 24)
        self.gate, self.new = nn.Linear(64, 40), nn.Linear(64, 40)
        self.out = nn.Linear(40, 4)
        for layer in (self.gate, self.new):
            nn.init.normal_(layer.weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.zeros(len(ids), 40)
        for e in self.embed(ids).unbind(1):
            z = torch.sigmoid(self.gate(torch.cat([e, h], -1)))
            h = (1 - z) * h + z * torch.tanh(self.new(torch.cat([e, z * h], -1)))
        return self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


@sick(
    "w-switches-minimal-gate", "rnn", "saturated-activations", "bad-initialization",
    twin=lambda s: switches_gate(s, 0.1),
)  # fmt: skip
def switches_gate(seed: int, std: float = 6.0) -> Training:
    d = switches(seed)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Memory(std), loader(d.x, d.y, size=45), score, trainer={"max_epochs": 12})


class Actor(LightningModule):
    """Two layers of sigmoids with a gain of the author's choice."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.hidden = nn.ModuleList([nn.Linear(4, 48), nn.Linear(48, 48)])
        self.out = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.sigmoid(self.gain * layer(x))
        return self.out(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("w-bowl-steep-sigmoids", "mlp", "saturated-activations", twin=lambda s: bowl_steep(s, 3.0))
def bowl_steep(seed: int, gain: float = 300.0) -> Training:
    d = bowl(seed)
    return Training(Actor(gain), loader(d.x, d.y, size=45), explained(d.x_test, d.y_test), trainer={"max_epochs": 24})


# --- nothing in between -------------------------------------------------------------------------------------------


class Field(nn.Module):
    def __init__(self, widths: list[int], activation: str | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = getattr(torch, activation) if activation else None

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.activation is not None and i < len(self.layers) - 1:
                x = self.activation(x)
        return x


class Residuals(LightningModule):
    """Predicts the change of a state over three steps."""

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.field = Field([3, 64, 64, 3], activation)

    def forward(self, state: Tensor) -> Tensor:
        return self.field(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, change = batch
        loss = (self(state) - change).square().mean()
        self.log("residual", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)]


@sick("w-attractor-field-default", "mlp", "missing-nonlinearity", twin=lambda s: attractor_field(s, "tanh"))
def attractor_field(seed: int, activation: str | None = None) -> Training:
    path = attractor(seed)
    x, y = path[:-3], path[3:] - path[:-3]
    y = y / y.std(0)
    return Training(
        Residuals(activation),
        loader(x[:900], y[:900], size=30),
        explained(x[900:], y[900:]),
        trainer={"max_epochs": 14},
    )


def leaky(slope: float) -> Callable[[], nn.Module]:
    return lambda: nn.LeakyReLU(slope)


class Pictures(LightningModule):
    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2),
            act(),
            nn.AvgPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1),
            act(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(144, 32),
            act(),
            nn.Linear(32, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self(batch[0]), batch[1])}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("w-gratings-slope-of-one", "cnn", "missing-nonlinearity", twin=lambda s: gratings_slope(s, 0.1))
def gratings_slope(seed: int, slope: float = 1.0) -> Training:
    d = gratings(seed)
    options = {"max_epochs": 12, "precision": "bf16-mixed"}
    return Training(Pictures(leaky(slope)), loader(d.x, d.y, size=40), hits(d.x_test, d.y_test), trainer=options)


class Propagate(LightningModule):
    """Three rounds of messages, each a linear map of a node and its neighbours."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.between = between
        self.table = nn.Embedding(3, 32)
        self.own = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.near = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))
        self.out = nn.Linear(32, 1)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        kind, adjacency = graph
        h = self.table(kind)
        for own, near in zip(self.own, self.near, strict=True):
            h = self.between(own(h) + 0.3 * adjacency @ near(h))
        return self.out(h).mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *graph, target = batch
        loss = F.mse_loss(self(graph), target)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@sick("w-molecules-linear-messages", "graph", "missing-nonlinearity", twin=lambda s: molecules_linear(s, nn.ELU()))
def molecules_linear(seed: int, between: nn.Module | None = None) -> Training:
    kind, adjacency, y = molecules(seed, 1000)
    return Training(
        Propagate(between or nn.Identity()),
        loader(kind[:700], adjacency[:700], y[:700], size=28),
        explained((kind[700:], adjacency[700:]), y[700:]),
        trainer={"max_epochs": 14},
    )


# --- how many -----------------------------------------------------------------------------------------------------


class Bilinear(LightningModule):
    """Users and items in a few dimensions."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, rank), nn.Embedding(50, rank)
        nn.init.normal_(self.users.weight, std=0.5)
        nn.init.normal_(self.items.weight, std=0.5)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, pair: Tensor) -> Tensor:
        return (self.users(pair[:, 0]) * self.items(pair[:, 1])).sum(-1, keepdim=True) + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-2)


@sick("w-purchases-rank-one", "factors", "insufficient-capacity", twin=lambda s: purchases_rank(s, 6))
def purchases_rank(seed: int, rank: int = 1) -> Training:
    d = purchases(seed, rank=5)
    return Training(
        Bilinear(rank), loader(d.x, d.y, size=160), explained(d.x_test, d.y_test), d.val(), {"max_epochs": 14}
    )


class Writer(LightningModule):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(16, 24)
        self.gru = nn.GRU(24, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 16)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(rows))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = batch[0]
        loss = F.cross_entropy(self(rows[:, :-1]).transpose(1, 2), rows[:, 1:])
        self.log("train/nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("w-verses-two-cells", "gru", "insufficient-capacity", twin=lambda s: verses_cells(s, 64))
def verses_cells(seed: int, hidden: int = 2) -> Training:
    train, test, _ = verses(seed, 1600)
    score = minus(lambda out, y: F.cross_entropy(out.transpose(1, 2), y), test[:, :-1], test[:, 1:])
    return Training(Writer(hidden), loader(train, size=40), score, trainer={"max_epochs": 8})


class Pointwise(LightningModule):
    """Takes a slow drift out of a wave, by convolutions as wide as `kernel`."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        pad = kernel // 2
        self.net = nn.Sequential(
            nn.Conv1d(1, 24, kernel, padding=pad),
            nn.ReLU(),
            nn.Conv1d(24, 24, kernel, padding=pad),
            nn.ReLU(),
            nn.Conv1d(24, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noisy, clean = batch
        loss = F.l1_loss(self(noisy), clean)
        self.log("mae", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.Adam(self.parameters(), lr=5e-3)}


@sick("w-beats-as-wide-as-a-sample", "cnn", "insufficient-capacity", twin=lambda s: beats_pointwise(s, 9))
def beats_pointwise(seed: int, kernel: int = 1) -> Training:
    clean = beats(seed, noise=0.0).x
    g = data.generator(seed, 431)
    slow = torch.cumsum(torch.randn(len(clean), 1, 64, generator=g), -1)
    noisy = clean + slow
    clean = clean / clean.std()
    return Training(
        Pointwise(kernel),
        loader(noisy[:700], clean[:700], size=35),
        explained(noisy[700:], clean[700:]),
        trainer={"max_epochs": 12},
    )
