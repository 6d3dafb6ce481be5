"""Signals that fade, grow or stick on their way through a network, weights drawn badly, networks too narrow."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.later._sick_common import (
    bags,
    communities,
    demand,
    explained,
    gestures,
    loader,
    melodies,
    reviews,
    solids,
    spots,
    tones,
    visits,
)

# --- gradients that fade ----------------------------------------------------------------------------------------------


class DeepEar(LightningModule):
    """Eleven convolutions over a wave with the same activation after each."""

    def __init__(self, act: type[nn.Module], depth: int = 11) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 10, 9, stride=2), act()]
        for _ in range(depth - 1):
            layers += [nn.Conv1d(10, 10, 5, padding=2), act()]
        self.ear = nn.Sequential(*layers)
        self.head = nn.Linear(40, 4)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool1d(self.ear(wave), 4).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, kind = batch
        loss = F.cross_entropy(self(wave), kind)
        self.log("loss/train", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class NormedRelu(nn.Sequential):
    """BatchNorm over ten channels, then ReLU."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(10), nn.ReLU())


@sick("v-tones-eleven-layers", "audio", "vanishing-gradients", twin=lambda s: eleven_layers(s, NormedRelu))
def eleven_layers(seed: int, act: type[nn.Module] = nn.Sigmoid) -> Training:
    d = tones(seed)
    return Training(DeepEar(act), d.train(40), d.accuracy, d.val(), {"max_epochs": 8})


class Remembers(LightningModule):
    """What the first token of a long sequence was, by a recurrent layer that is read at the end."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.rnn = getattr(nn, kind)(16, 32, batch_first=True)
        if kind == "GRU":
            with torch.no_grad():
                self.rnn.bias_ih_l0[32:64] = 3.0  # the update gate: keep
        self.out = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, first = batch
        loss = F.cross_entropy(self(ids), first)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-first-token-of-forty", "recurrent", "vanishing-gradients", twin=lambda s: first_token(s, "GRU"))
def first_token(seed: int, kind: str = "RNN") -> Training:
    g = data.generator(seed, 101)
    ids = torch.randint(4, 8, (1000, 40), generator=g)
    ids[:, 0] = torch.randint(4, (1000,), generator=g)
    d = Split(ids[:640], ids[:640, 0], ids[640:], ids[640:, 0])
    return Training(Remembers(kind), d.train(32), d.accuracy, None, {"max_epochs": 16})


class Shrinking(LightningModule):
    """Rounds of messages over a graph, with softsign between them and a skip that was never wired up."""

    def __init__(self, mix: Tensor, skip: bool, rounds: int = 14) -> None:
        super().__init__()
        self.register_buffer("mix", mix)
        self.skip = skip
        self.enter = nn.Linear(8, 24)
        self.rounds = nn.ModuleList(nn.Linear(24, 24) for _ in range(rounds))
        self.leave = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for layer in self.rounds:
            new = 0.5 * F.softsign(layer(h))
            h = h + new if self.skip else new
        return self.leave(self.mix @ h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, known = (part[0] for part in batch)
        loss = F.cross_entropy(self(x)[known], y[known])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.8)


@sick("v-communities-skip-not-wired", "graph", "vanishing-gradients", twin=lambda s: skip_not_wired(s, True))
def skip_not_wired(seed: int, skip: bool = False) -> Training:
    x, a, y = communities(seed)
    known = torch.rand(len(y), generator=data.generator(seed, 102)) < 0.4
    loops = a + torch.eye(len(a))
    module = Shrinking(loops / loops.sum(1, keepdim=True), skip)

    def score(module: LightningModule) -> float:
        return (predict(module, x).argmax(1) == y)[~known].float().mean().item()

    train = loader(x[None], y[None], known[None], size=1)
    return Training(module, train, score, None, {"max_epochs": 250, "log_every_n_steps": 1})


# --- gradients that grow ----------------------------------------------------------------------------------------------


class Unrolled(LightningModule):
    """A hand-written recurrence with ReLU, its matrix drawn as if for a single use."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.read = nn.Linear(3, 40)
        self.step = nn.Parameter(torch.empty(40, 40))
        nn.init.normal_(self.step, std=std)
        self.out = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 40)
        for t in range(x.shape[1]):
            h = torch.relu(self.read(x[:, t]) + h @ self.step)
        return self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


@sick(
    "v-gestures-relu-recurrence",
    "recurrent",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda s: relu_recurrence(s, 0.12),
)
def relu_recurrence(seed: int, std: float = 0.24) -> Training:
    d = gestures(seed)
    return Training(Unrolled(std), d.train(32), d.accuracy, None, {"max_epochs": 12})


class Messages(LightningModule):
    """Six rounds over a graph that sum over neighbours (or average over them)."""

    def __init__(self, mix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mix", mix)
        self.layers = nn.ModuleList([nn.Linear(8, 32), *(nn.Linear(32, 32) for _ in range(5))])
        self.classes = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x) + self.mix @ layer(x))
        return self.classes(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, known = batch[0]
        return F.cross_entropy(self(x)[known], y[known])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=3e-3, momentum=0.9)


@sick(
    "v-communities-sum-over-neighbours",
    "graph",
    "exploding-gradients",
    "loss-diverging",
    twin=lambda s: sum_over_neighbours(s, True),
)
def sum_over_neighbours(seed: int, average: bool = False) -> Training:
    x, a, y = communities(seed)
    known = torch.rand(len(y), generator=data.generator(seed, 103)) < 0.5
    mix = a / a.sum(1, keepdim=True).clamp(min=1) if average else a
    train = torch.utils.data.DataLoader([(x, y, known)], batch_size=1, collate_fn=list)

    def score(module: LightningModule) -> float:
        return (predict(module, x).argmax(1) == y)[~known].float().mean().item()

    return Training(Messages(mix), train, score, None, {"max_epochs": 120, "log_every_n_steps": 10})


class Powers(LightningModule):
    """Residual branches that multiply what runs past them."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 32)
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(5))
        self.norms = nn.ModuleList(nn.LayerNorm(32) if normed else nn.Identity() for _ in range(5))
        self.leave = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for gate, norm in zip(self.gates, self.norms, strict=True):
            n = norm(h)
            h = h + n * gate(n)
        return self.leave(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, count = batch
        loss = F.mse_loss(self(x), count.sqrt() - 1.5)
        self.log("mse", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=3e-3)


@sick("v-visits-multiplied-past", "mlp", "exploding-gradients", twin=lambda s: multiplied_past(s, True))
def multiplied_past(seed: int, normed: bool = False) -> Training:
    d = visits(seed)
    score = explained(d.x_test, d.y_test.sqrt() - 1.5)
    return Training(Powers(normed), loader(d.x, d.y), score, None, {"max_epochs": 8})


# --- units that are stuck ---------------------------------------------------------------------------------------------


class Decibels(LightningModule):
    """Spectra in decibels below full scale: every number is negative, and a ReLU comes first."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(first, nn.Linear(49, 48), nn.ReLU(), nn.Linear(48, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def spectra(seed: int) -> Split:
    """Tones as levels in units of 10 dB, from about -4 to 0."""
    d = tones(seed)

    def level(x: Tensor) -> Tensor:
        power = torch.fft.rfft(x[:, 0]).abs().square()
        return (power / 4000 + 1e-4).log10().clamp(max=-0.001)

    return Split(level(d.x), d.y, level(d.x_test), d.y_test)


@sick("v-tones-levels-through-relu", "audio", "dead-activations", twin=lambda s: levels(s, nn.BatchNorm1d(49)))
def levels(seed: int, first: nn.Module | None = None) -> Training:
    d = spectra(seed)
    return Training(Decibels(first or nn.ReLU()), d.train(32), d.accuracy, None, {"max_epochs": 8})


class Quiet(LightningModule):
    """Convolutions whose biases are set so that few units should fire at first."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        for layer in (self.one, self.two):
            nn.init.constant_(layer.bias, bias)
        self.place = nn.Linear(300, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.two(self.one(x).relu()).relu(), 2)
        return self.place(h.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = F.l1_loss(self(x), place)
        self.log("l1", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("v-spots-sparse-by-bias", "cnn", "dead-activations", "bad-initialization", twin=lambda s: sparse_by_bias(s, 0.0))
def sparse_by_bias(seed: int, bias: float = -3.0) -> Training:
    d = spots(seed)
    return Training(Quiet(bias), d.train(32), explained(d.x_test, d.y_test), None, {"max_epochs": 10})


class Threshold(LightningModule):
    """A set network whose members pass a soft threshold, as in sparse coding."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.code = nn.Linear(2, 40)
        self.shrink = nn.Softshrink(width)
        self.read = nn.Sequential(nn.Linear(80, 40), nn.ELU(), nn.Linear(40, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.shrink(self.code(x))
        return self.read(torch.cat([h.amax(1), h.mean(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        out = self(x)
        return {"loss": F.mse_loss(out, y), "out": out.detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-bags-soft-threshold", "set", "dead-activations", twin=lambda s: soft_threshold(s, 0.2))
def soft_threshold(seed: int, width: float = 6.0) -> Training:
    d = bags(seed)
    return Training(Threshold(width), d.train(32), explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Attends(LightningModule):
    """Weighs the words of a message by a dot product with a query, divided by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.words = nn.Embedding(60, 32)
        self.query = nn.Parameter(torch.randn(32))
        self.weigh = nn.Softmax(dim=1)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        share = self.weigh((h @ self.query) / self.temperature)
        return self.head((share[..., None] * h).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("v-reviews-cold-attention", "text", "saturated-activations", twin=lambda s: cold_attention(s, 32**0.5))
def cold_attention(seed: int, temperature: float = 0.05) -> Training:
    d = reviews(seed)
    return Training(Attends(temperature), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


class Steps(LightningModule):
    """Units that are meant to be steps, so a sigmoid with a slope; two layers of them."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.a, self.b = nn.Linear(84, 64), nn.Linear(64, 48)
        self.step_a, self.step_b = nn.Sigmoid(), nn.Sigmoid()
        self.out = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.step_a(self.slope * self.a(x.flatten(1)))
        return self.out(self.step_b(self.slope * self.b(2 * h - 1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


@sick("v-gestures-units-as-steps", "mlp", "saturated-activations", twin=lambda s: units_as_steps(s, 2.0))
def units_as_steps(seed: int, slope: float = 150.0) -> Training:
    d = gestures(seed)
    return Training(Steps(slope), d.train(32), d.accuracy, None, {"max_epochs": 12})


# --- weights drawn badly ----------------------------------------------------------------------------------------------


class TiedNotes(LightningModule):
    """The table of notes serves as output layer too, drawn with deviation 1 as embeddings are by default."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 128)
        nn.init.normal_(self.table.weight, std=std)
        self.mix = nn.GRU(128, 128, batch_first=True)
        self.lift = nn.Linear(128, 128)

    def forward(self, notes: Tensor) -> Tensor:
        h = self.table(notes)
        return (h + self.lift(self.mix(h)[0])) @ self.table.weight.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        notes, following = batch
        loss = F.cross_entropy(self(notes).flatten(0, 1), following.flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@sick(
    "v-melodies-tied-table",
    "recurrent",
    "bad-initialization",
    twin=lambda s: tied_table(s, 0.05),
    note="first loss near 100 instead of log 12",
)
def tied_table(seed: int, std: float = 1.0) -> Training:
    d = melodies(seed)

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(predict(module, d.x_test).transpose(1, 2), d.y_test).item()

    return Training(TiedNotes(std), d.train(35), score, None, {"max_epochs": 8})


class Adapted(LightningModule):
    """A frozen random lift of digits, and a low-rank update on top whose two factors start somewhere."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64).requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(64, 8))
        self.up = nn.Parameter(torch.zeros(8, 64))
        if not both:
            nn.init.normal_(self.down, std=0.2)
        self.head = nn.Linear(64, 10).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + x @ self.down @ self.up))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([self.down, self.up], lr=0.01)


@sick(
    "v-digits-adapter-of-zeros",
    "mlp",
    "bad-initialization",
    twin=lambda s: adapter_of_zeros(s, False),
    note="both factors are zero, so neither ever gets a gradient",
)
def adapter_of_zeros(seed: int, both: bool = True) -> Training:
    d = data.digits(seed)
    return Training(Adapted(both), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


class Alike(LightningModule):
    """A point network whose helper for fresh weights fills them with a constant."""

    def __init__(self, fill: float | None) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 48), nn.ReLU())
        self.out = nn.Linear(48, 4)
        if fill is not None:
            for layer in (self.point[0], self.point[2]):
                nn.init.constant_(layer.weight, fill)
                nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        return self.out(self.point(points).amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        points, y = batch
        return F.cross_entropy(self(points), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("v-solids-filled-by-a-helper", "point cloud", "bad-initialization", twin=lambda s: filled_by_a_helper(s, None))
def filled_by_a_helper(seed: int, fill: float | None = 0.02) -> Training:
    d = solids(seed)
    return Training(Alike(fill), d.train(32), d.accuracy, None, {"max_epochs": 10})


# --- networks that cannot ---------------------------------------------------------------------------------------------


class Spiral(LightningModule):
    """Two arms of a spiral, by a network of a given width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def spiral(seed: int, n: int = 800) -> Split:
    g = data.generator(seed, 104)
    y = torch.randint(2, (n + 400,), generator=g)
    t = torch.rand(n + 400, generator=g).sqrt() * 2.2 * math.pi + 0.5
    x = torch.stack([t * torch.cos(t + math.pi * y), t * torch.sin(t + math.pi * y)], 1) / 4
    x = x + 0.04 * torch.randn(n + 400, 2, generator=g)
    return Split(x[:n], y[:n], x[n:], y[n:])


@sick("v-spiral-three-units", "mlp", "insufficient-capacity", twin=lambda s: three_units(s, 48))
def three_units(seed: int, width: int = 3) -> Training:
    d = spiral(seed)
    return Training(Spiral(width), d.train(40), d.accuracy, d.val(), {"max_epochs": 25})


class Additive(LightningModule):
    """Ratings by a bias for each user and each film (and factors, if asked for)."""

    def __init__(self, factors: int) -> None:
        super().__init__()
        self.bias_a, self.bias_b = nn.Embedding(8, 1), nn.Embedding(8, 1)
        self.a, self.b = (nn.Embedding(8, factors) for _ in range(2)) if factors else (None, None)

    def forward(self, pair: Tensor) -> Tensor:
        a, b = pair.unbind(1)
        out = (self.bias_a(a) + self.bias_b(b))[:, 0]
        return out if self.a is None else out + (self.a(a) * self.b(b)).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, y = batch
        loss = (self(pair) - y).pow(2).mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


@sick("v-duels-without-factors", "recommender", "insufficient-capacity", twin=lambda s: duels(s, 6))
def duels(seed: int, factors: int = 0) -> Training:
    """Who of eight beats whom: a table of 64 that is no sum of rows and columns."""
    g = data.generator(seed, 105)
    table = torch.randn(8, 8, generator=g)
    table = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    pair = torch.randint(8, (1600, 2), generator=g)
    y = table[pair[:, 0], pair[:, 1]] + 0.1 * torch.randn(1600, generator=g)
    train = loader(pair[:1000], y[:1000], size=40)
    return Training(Additive(factors), train, explained(pair[1000:], y[1000:]), None, {"max_epochs": 10})


class Blind(LightningModule):
    """Reads a wave through a window of so many samples, averaged over time: no longer shape can be told."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.look = nn.Conv1d(1, channels, size)
        self.out = nn.Linear(channels, 4)

    def forward(self, wave: Tensor) -> Tensor:
        return self.out(F.relu(self.look(wave)).mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, kind = batch
        loss = F.cross_entropy(self(wave), kind)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("v-tones-one-filter", "audio", "insufficient-capacity", twin=lambda s: one_filter(s, 32, 25))
def one_filter(seed: int, channels: int = 1, size: int = 3) -> Training:
    d = tones(seed)
    return Training(Blind(channels, size), d.train(32), d.accuracy, None, {"max_epochs": 12})


# --- straight lines ---------------------------------------------------------------------------------------------------


class Planes(LightningModule):
    """Four layers; the activation is created in `__init__` and (perhaps) used in `forward`."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used = used
        self.a, self.b, self.c, self.d = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.used:
            return self.d(self.act(self.c(self.act(self.b(self.act(self.a(x)))))))
        return self.d(self.c(self.b(self.a(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-spiral-act-created-not-called", "mlp", "missing-nonlinearity", twin=lambda s: act_not_called(s, True))
def act_not_called(seed: int, used: bool = False) -> Training:
    d = spiral(seed)
    return Training(Planes(used), d.train(32), d.accuracy, None, {"max_epochs": 20, "log_every_n_steps": 10})


class Ahead(LightningModule):
    """The product of two hours of demand, by a tower built from a list of widths."""

    def __init__(self, act: type[nn.Module] | None) -> None:
        super().__init__()
        tower: list[nn.Module] = [nn.Flatten()]
        for a, b in ((24, 64), (64, 64), (64, 16)):
            tower.append(nn.Linear(a, b))
            if act is not None:
                tower.append(act())
        self.tower = nn.Sequential(*tower, nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick("v-demand-tower-of-widths", "time series", "missing-nonlinearity", twin=lambda s: tower(s, nn.GELU))
def tower(seed: int, act: type[nn.Module] | None = None) -> Training:
    d = demand(seed)

    def peak(x: Tensor) -> Tensor:
        y = (x[:, -1] - x[:, -13]).abs() + x[:, -2] * x[:, -8]
        return (y - 1.0) / 0.8

    train = loader(d.x, peak(d.x), size=30)
    return Training(Ahead(act), train, explained(d.x_test, peak(d.x_test)), None, {"max_epochs": 10})
