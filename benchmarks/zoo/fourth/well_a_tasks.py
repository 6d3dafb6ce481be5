"""Trainings whose curves look odd and are right: games, rivals, codes, rankings, late starts and noise floors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.fourth._a_common import (
    bodies,
    explained,
    hits,
    loader,
    records,
)

# --- a corridor by Q-learning -------------------------------------------------------------------------------------


class Corridor(LightningModule):
    """Eight rooms in a row and a prize in the last; the squared error grows as the values spread."""

    rooms = 8

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Sequential(nn.Linear(self.rooms, 32), nn.ReLU(), nn.Linear(32, 2))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def forward(self, rooms: Tensor) -> Tensor:
        return self.q(F.one_hot(rooms, self.rooms).float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        room, action, after, reward, done = batch
        with torch.no_grad():
            future = self.target(F.one_hot(after, self.rooms).float()).amax(1)
        value = self(room).gather(1, action[:, None])[:, 0]
        loss = F.smooth_l1_loss(value, reward + 0.9 * future * (1 - done))
        self.log("td", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step % 10 == 0:
            self.target.load_state_dict(self.q.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.q.parameters(), lr=5e-3)


@well("w-corridor-of-eight-rooms", "q-learning")
def corridor(seed: int) -> Training:
    g = data.generator(seed, 450)
    room = torch.randint(7, (2000,), generator=g)
    action = torch.randint(2, (2000,), generator=g)
    after = (room + 2 * action - 1).clamp(0, 7)
    done = (after == 7).float()

    def score(module: LightningModule) -> float:
        true = 0.9 ** torch.arange(6.0, -1, -1)
        return -(data.predict(module, torch.arange(7)).amax(1) - true).abs().max().item()

    return Training(Corridor(), loader(room, action, after, done, done, size=50), score, trainer={"max_epochs": 12})


# --- chances of an arm given a context, clipped policy updates ------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Contexts without end."""

    def __init__(self, seed: int, rows: int) -> None:
        self.g, self.rows = data.generator(seed, 451), rows

    def __iter__(self) -> Any:
        while True:
            yield torch.randn(self.rows, 6, generator=self.g)


class Policy(LightningModule):
    """Draws an arm, sees a noisy reward, and pushes by the advantage; the loss hovers about nought."""

    def __init__(self, arms: Tensor) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        self.critic = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        self.register_buffer("arms", arms)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(x)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        chances = torch.distributions.Categorical(logits=self(x))
        arm = chances.sample()
        reward = torch.tanh(x @ self.arms)[torch.arange(len(x)), arm] + 0.3 * torch.randn(len(x))
        value = self.critic(x)[:, 0]
        advantage = (reward - value).detach()
        actor = -(chances.log_prob(arm) * advantage).mean()
        critic = F.mse_loss(value, reward)
        self.log_dict({"actor": actor, "critic": critic, "reward": reward.mean()})
        return actor + 0.5 * critic - 0.01 * chances.entropy().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@well("w-arms-by-advantage", "actor-critic")
def arms(seed: int) -> Training:
    weights = torch.randn(6, 4, generator=data.generator(seed, 452))
    x = torch.randn(1000, 6, generator=data.generator(seed, 453))
    module = Policy(weights)
    return Training(
        module,
        DataLoader(Stream(seed, 64), batch_size=None),
        hits(x, (x @ weights).argmax(1)),
        trainer={"max_steps": 500, "gradient_clip_val": 0.5, "max_epochs": -1},
    )


# --- rivals by hinge losses ---------------------------------------------------------------------------------------


class Rivals(LightningModule):
    """Noise to pairs of numbers on a parabola, against a critic; both losses hover."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make = nn.Sequential(
            nn.Linear(4, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 2)
        )
        self.judge = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.make(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        maker, judge = self.optimizers()
        fake = self(torch.randn(len(real), 4))
        loss = F.relu(1 - self.judge(real)).mean() + F.relu(1 + self.judge(fake.detach())).mean()
        judge.zero_grad()
        self.manual_backward(loss)
        judge.step()
        against = -self.judge(fake).mean()
        maker.zero_grad()
        self.manual_backward(against)
        maker.step()
        self.log_dict({"judge": loss, "maker": against})

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.make.parameters(), lr=1e-3, betas=(0.0, 0.9)),
            torch.optim.Adam(self.judge.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        )


@well("w-parabola-by-rivals", "gan")
def parabola(seed: int) -> Training:
    g = data.generator(seed, 454)
    a = torch.randn(2000, 1, generator=g)
    rows = torch.cat([a, 0.7 * a**2 - 0.7 + 0.1 * torch.randn(2000, 1, generator=g)], 1)

    def score(module: LightningModule) -> float:
        made = data.predict(module, torch.randn(2000, 4, generator=data.generator(seed, 455)))
        return -(torch.cdist(made, rows).amin(1).mean() + torch.cdist(rows, made).amin(1).mean()).item()

    return Training(Rivals(), loader(rows, size=100), score, trainer={"max_epochs": 20})


# --- codes with the divergence turned up slowly -------------------------------------------------------------------


class Ink(LightningModule):
    """Digits by six Gaussian numbers; the weight of the divergence climbs, and the loss with it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
        self.up = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)[:, :6])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        mean, log_var = self.down(x).chunk(2, 1)
        out = self.up(mean + (0.5 * log_var).exp() * torch.randn_like(mean))
        weight = min(1.0, self.global_step / 250)
        divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        loss = 0.5 * (out - x.flatten(1)).square().sum(1).mean() / 0.3 + weight * divergence
        self.log_dict({"elbo": loss, "kl": divergence, "beta": weight})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("w-digits-divergence-climbs", "vae")
def digits_vae(seed: int) -> Training:
    d = data.digits(seed)
    x, x_test = 3 * d.x, 3 * d.x_test
    return Training(Ink(), loader(x, size=45), explained(x_test, x_test), trainer={"max_epochs": 16})


# --- ever longer rows ---------------------------------------------------------------------------------------------


class Growing(LightningModule):
    """Running sums of signs, over rows that grow by four each epoch; the loss leaps at each."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        length = min(24, 4 + 4 * (self.current_epoch // 2))
        x, y = (t[:, :length] for t in batch)
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("w-sums-ever-longer", "curriculum")
def growing(seed: int) -> Training:
    g = data.generator(seed, 456)
    x = torch.randn(1300, 24, 1, generator=g)
    y = x.cumsum(1) / 2
    return Training(
        Growing(), loader(x[:900], y[:900], size=36), explained(x[900:], y[900:]), trainer={"max_epochs": 16}
    )


# --- an order, not a number ---------------------------------------------------------------------------------------


class Listwise(LightningModule):
    """Lists of ten with grades; the chances of coming first are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)[..., 0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = -(batch["grades"].softmax(-1) * self(batch["features"]).log_softmax(-1)).sum(-1).mean()
        self.log("listnet", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


@well("w-lists-of-ten", "ranking", note="the loss cannot fall under the entropy of the grades")
def lists(seed: int) -> Training:
    g = data.generator(seed, 457)
    x = torch.randn(1200, 10, 8, generator=g)
    w = torch.randn(8, generator=g)
    grade = 1.5 * (x @ w) / w.norm() + torch.sin(2 * x[..., 0]) + 0.5 * torch.randn(1200, 10, generator=g)
    x_test, truth = x[800:], grade[800:].argsort(-1).argsort(-1).float()

    def score(module: LightningModule) -> float:
        ranks = data.predict(module, x_test).argsort(-1).argsort(-1).float()
        return 1 - 6 * (ranks - truth).square().sum(-1).mean().item() / (10 * 99)

    return Training(Listwise(), records(40, features=x[:800], grades=grade[:800]), score, trainer={"max_epochs": 15})


# --- nothing, nothing, and then all of it --------------------------------------------------------------------------


class Repeat(LightningModule):
    """The second half of a row repeats the first; half of the loss can never fall, the rest waits for the heads."""

    def __init__(self, length: int = 12, symbols: int = 8) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(symbols, 48), nn.Parameter(0.5 * torch.randn(length, 48))
        layer = nn.TransformerEncoderLayer(48, 2, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(48, symbols)

    def forward(self, rows: Tensor) -> Tensor:
        n = rows.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        return self.out(self.blocks(self.token(rows) + self.place[:n], mask=mask, is_causal=True))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (rows,) = batch
        loss = F.cross_entropy(self(rows[:, :-1]).transpose(1, 2), rows[:, 1:])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("w-rows-said-twice", "transformer", note="half of the symbols are chance")
def said_twice(seed: int) -> Training:
    half = torch.randint(8, (2400, 6), generator=data.generator(seed, 458))
    rows = torch.cat([half, half], 1)
    test = rows[2000:]

    def score(module: LightningModule) -> float:
        return (data.predict(module, test[:, :-1])[:, 5:].argmax(-1) == test[:, 6:]).float().mean().item()

    return Training(Repeat(), loader(rows[:2000], size=40), score, trainer={"max_epochs": 8, "gradient_clip_val": 1.0})


# --- what can be told of tomorrow ---------------------------------------------------------------------------------


class Returns(LightningModule):
    """Daily changes that follow the last three days a little."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)


@well("w-changes-from-day-to-day", "forecast", note="a tenth of the variance can be told, no more")
def returns(seed: int) -> Training:
    g = data.generator(seed, 459)
    r = torch.randn(6010, generator=g)
    for t in range(3, len(r)):
        r[t] += 0.25 * r[t - 1] - 0.15 * r[t - 2] + 0.12 * r[t - 3]
    x, y = r[:-1].unfold(0, 10, 1), r[10:, None]
    val = loader(x[4500:], y[4500:], size=500, shuffle=False)
    return Training(
        Returns(), loader(x[:4500], y[:4500], size=90), explained(x[4500:], y[4500:]), val, {"max_epochs": 6}
    )


# --- two views of one body ----------------------------------------------------------------------------------------


class Views(LightningModule):
    """Two halves of the points of one body shall find each other in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.project = nn.Linear(96, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.cat([h.mean(1), h.amax(1)], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        order = torch.randperm(x.shape[1])
        one, two = (F.normalize(self.project(self(x[:, part])), dim=-1) for part in order.chunk(2))
        alike = one @ two.T / 0.1
        target = torch.arange(len(x))
        loss = 0.5 * (F.cross_entropy(alike, target) + F.cross_entropy(alike.T, target))
        self.log("nce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


@well("w-bodies-halves-meet", "contrastive")
def halves_meet(seed: int) -> Training:
    d = bodies(seed, points=32)

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            order = torch.arange(32)
            a, b = (F.normalize(module.project(module(d.x_test[:60, p])), dim=-1) for p in (order[:16], order[16:]))
        return ((a @ b.T).argsort(1, descending=True)[:, :5] == torch.arange(60)[:, None]).any(1).float().mean().item()

    return Training(Views(), loader(d.x, size=50, drop_last=True), score, trainer={"max_epochs": 18})


# --- one row at a time --------------------------------------------------------------------------------------------


class OneByOne(LightningModule):
    """Descent on single rows, its rate falling as the root of time; the loss of a row says little."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x)[:, 0], y.float())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + step / 50) ** -0.5)
        return [optimizer], [{"scheduler": decay, "interval": "step"}]


@well("w-cells-one-by-one", "mlp")
def cells_single(seed: int) -> Training:
    d = data.table("breast_cancer", seed)

    def score(module: LightningModule) -> float:
        return ((data.predict(module, d.x_test)[:, 0] > 0) == (d.y_test == 1)).float().mean().item()

    return Training(OneByOne(), loader(d.x, d.y, size=1), score, trainer={"max_steps": 800, "max_epochs": 5})
