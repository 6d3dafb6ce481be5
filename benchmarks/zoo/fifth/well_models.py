"""Well trainings of models whose losses do not fall like others': pairs, rivals, teachers, rewards, several tasks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, generator, predict
from benchmarks.zoo.fifth._common import (
    Recurrent,
    Score,
    dots,
    held,
    houses,
    levelled,
    marks,
    mlp,
    notes,
    pairs,
    plants,
    r2_of,
    right,
    tame,
)


def encoder(out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, out),
    )


def neighbours(d: Split) -> Score:
    """Share of test rows whose nearest training row, as the module sees them, is of their class."""

    def score(module: LightningModule) -> float:
        nearest = torch.cdist(predict(module, d.x_test), predict(module, d.x)).argmin(1)
        return (d.y[nearest] == d.y_test).float().mean().item()

    return score


# --- rivals -----------------------------------------------------------------------------------------------------------


class Rivals(LightningModule):
    """A generator of points on a bent heap and its critic; two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.critic = mlp(4, 32, 32, 2), mlp(2, 48, 48, 1, act=lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self(torch.randn(len(batch), 4))
        self.toggle_optimizer(second)
        loss_d = F.softplus(-self.critic(batch)).mean() + F.softplus(self.critic(fake.detach())).mean()
        second.zero_grad()
        self.manual_backward(loss_d)
        second.step()
        self.untoggle_optimizer(second)
        self.toggle_optimizer(first)
        loss_g = F.softplus(-self.critic(fake)).mean()
        first.zero_grad()
        self.manual_backward(loss_g)
        first.step()
        self.untoggle_optimizer(first)
        self.log_dict({"loss_d": loss_d, "loss_g": loss_g}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        made = torch.optim.Adam(self.maker.parameters(), 2e-3, betas=(0.5, 0.9))
        return [made, torch.optim.Adam(self.critic.parameters(), 8e-3, betas=(0.5, 0.9))]


@well("z-bent-heap-by-rivals", "gan", note="both losses stay where they are")
def rivals(seed: int) -> Training:
    g = generator(seed, 111)
    x = torch.randn(1500, 2, generator=g) * torch.tensor([1.0, 0.3]) + torch.tensor([0.6, -0.5])
    x[:, 1] += 0.4 * x[:, 0] ** 2

    def score(module: LightningModule) -> float:
        made = predict(module, torch.randn(800, 4, generator=generator(seed, 112)))
        return tame(-(made.mean(0) - x.mean(0)).norm().item() - (made.std(0) - x.std(0)).norm().item())

    data_: Any = x
    return Training(Rivals(), DataLoader(data_, 100, shuffle=True), score, None, {"max_epochs": 20})


# --- pairs and threes -------------------------------------------------------------------------------------------------


class Views(LightningModule):
    """Two noisy views of a picture find each other in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = encoder(32), nn.Sequential(nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=1)

    def view(self, x: Tensor) -> Tensor:
        shift = torch.randint(-2, 3, (2,)).tolist()
        return torch.roll(x, shift, (2, 3)) + 0.2 * torch.randn_like(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = (F.normalize(self.head(self.body(self.view(batch[0]))), dim=1) for _ in range(2))
        logits = a @ b.T / 0.2
        target = torch.arange(len(a))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        self.log("contrast", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("z-two-views-of-a-stroke", "contrastive")
def views(seed: int) -> Training:
    d = marks(seed, noise=0.15)
    return Training(Views(), pairs(d.x, d.y, 64, drop_last=True), neighbours(d), None, {"max_epochs": 12})


class Threes(LightningModule):
    """Anchor, friend and stranger; soon most triples cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 48, 8)
        self.loss = nn.TripletMarginLoss(margin=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, y = batch
        h = self(x)
        same = (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool)
        friend = torch.multinomial(same.float() + 1e-9, 1)[:, 0]
        stranger = torch.multinomial((y[:, None] != y[None]).float() + 1e-9, 1)[:, 0]
        loss = self.loss(h, h[friend], h[stranger])
        self.log("triplet", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@well("z-friend-and-stranger", "metric")
def threes(seed: int) -> Training:
    d = plants(seed, gap=1.3)
    return Training(Threes(), pairs(d.x, d.y, 40), neighbours(d), None, {"max_epochs": 8})


class Bound(LightningModule):
    """A variational autoencoder of pictures between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, 96, 8), mlp(4, 96, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decode(self.encode(x)[:, :4]))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        mu, logvar = self.encode(batch).chunk(2, 1)
        logits = self.decode(mu + torch.randn_like(mu) * (0.5 * logvar).exp())
        fit = F.binary_cross_entropy_with_logits(logits, batch, reduction="none").sum(1).mean()
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        self.log_dict({"fit": fit, "kl": kl})
        return fit + min(1.0, self.global_step / 100) * kl

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("z-dots-with-a-bound", "vae", note="the entropy of grey pixels keeps the loss far from nought")
def bound(seed: int) -> Training:
    d = dots(seed)
    data_: Any = d.x

    def score(module: LightningModule) -> float:
        out = predict(module, d.x_test)
        return 1 - ((out - d.x_test) ** 2).mean().item() / d.x_test.var(0).mean().item()

    return Training(Bound(), DataLoader(data_, 32, shuffle=True), score, None, {"max_epochs": 9})


# --- rewards ----------------------------------------------------------------------------------------------------------


class Chooser(LightningModule):
    """Chooses one of three for each row and is told only whether that was right; a moving mean is the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 48, 3)
        self.register_buffer("baseline", torch.tensor(0.33))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        policy = torch.distributions.Categorical(logits=self(x))
        action = policy.sample()
        reward = (action == y).float()
        loss = -((reward - self.baseline) * policy.log_prob(action)).mean() - 0.01 * policy.entropy().mean()
        self.baseline.lerp_(reward.mean(), 0.05)
        self.log("reward", reward.mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("z-told-only-right-or-wrong", "policy", note="the loss swings around nought while the reward climbs")
def chooser(seed: int) -> Training:
    d = plants(seed, gap=1.2)
    return Training(Chooser(), pairs(d.x, d.y, 40), right(d), None, {"max_epochs": 12})


# --- bodies and teachers ----------------------------------------------------------------------------------------------


class OnTop(LightningModule):
    """A head on a body that was trained before and rests in evaluation mode."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body.eval().requires_grad_(False)
        self.head = nn.Linear(width, 2)

    def train(self, mode: bool = True) -> OnTop:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return self.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=1e-2)


def taught(net: nn.Module, d: Split, steps: int = 150) -> nn.Module:
    """The net after some plain steps on these data."""
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(steps):
        i = torch.randint(len(d.x), (50,))
        loss = F.cross_entropy(net(d.x[i]), d.y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@well("z-round-or-straight-on-top", "cnn", note="all but the head is frozen on purpose")
def on_top(seed: int) -> Training:
    d = marks(seed)
    body = nn.Sequential(encoder(32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
    body = taught(body, d)[:-1]  # type: ignore[index]
    d = d.map_targets(lambda t: (t >= 2).long())
    return Training(OnTop(body, 32), pairs(d.x, d.y), right(d), held(d), {"max_epochs": 5})


class MeanTeacher(LightningModule):
    """Forty labels, many rows without; a slow copy of the net teaches it on the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 48, 3)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, y = batch["known"]
        other = batch["other"][0]
        supervised = F.cross_entropy(self.net(x), y)
        target = self.teacher(other + 0.1 * torch.randn_like(other)).softmax(1)
        consistency = F.mse_loss(self.net(other + 0.1 * torch.randn_like(other)).softmax(1), target)
        self.log_dict({"supervised": supervised, "consistency": consistency})
        return supervised + min(5.0, self.global_step / 20) * consistency

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.05)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=3e-3)


@well("z-forty-labels-and-a-teacher", "mlp")
def mean_teacher(seed: int) -> Training:
    d = plants(seed, gap=1.8)
    train = {"known": pairs(d.x[:40], d.y[:40], 20), "other": pairs(d.x[40:], d.y[40:], 40)}
    return Training(MeanTeacher(), train, right(d), None, {"max_steps": 220})


class Pupil(LightningModule):
    """Learns the softened answers of a larger net."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.net, self.teacher = mlp(12, 16, 3), teacher.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        own = self(x)
        with torch.no_grad():
            answer = (self.teacher(x) / 3).softmax(1)
        soft = F.kl_div((own / 3).log_softmax(1), answer, reduction="batchmean") * 9
        loss = 0.7 * soft + 0.3 * F.cross_entropy(own, y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=5e-3)


@well("z-answers-of-a-larger-net", "mlp")
def pupil(seed: int) -> Training:
    d = plants(seed)
    return Training(Pupil(taught(mlp(12, 96, 3), d)), pairs(d.x, d.y), right(d), None, {"max_epochs": 7})


# --- several tasks, texts ---------------------------------------------------------------------------------------------


class Several(LightningModule):
    """A price, and whether the home is old, from one body; the losses have weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(6, 64, 32), nn.ReLU())
        self.price, self.old = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.price(self.body(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        h = self.body(batch["x"])
        price = F.mse_loss(self.price(h), batch["price"])
        old = F.binary_cross_entropy_with_logits(self.old(h).squeeze(1), batch["old"])
        self.log_dict({"price": price, "old": old})
        return price + 0.3 * old

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters(), "lr": 3e-3}, {"params": self.price.parameters(), "lr": 1e-2}]
        return torch.optim.Adam([*groups, {"params": self.old.parameters(), "lr": 1e-2}])


@well("z-price-and-age-of-homes", "multi-task")
def several(seed: int) -> Training:
    d = levelled(houses(seed).standardised())
    rows: Any = [{"x": x, "price": y, "old": (x[2] + 0.5 * x[0] > 0).float()} for x, y in zip(d.x, d.y, strict=True)]
    return Training(Several(), DataLoader(rows, 32, shuffle=True), r2_of(d), None, {"max_epochs": 7})


class Reader(LightningModule):
    """Topics of texts."""

    def __init__(self, net: nn.Module, warm: int = 0, lr: float = 5e-3) -> None:
        super().__init__()
        self.net, self.warm, self.lr = net, warm, lr

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)
        if not self.warm:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: min((k + 1) / self.warm, (self.warm / (k + 1)) ** 0.5)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 1}]


@well("z-topics-read-by-an-lstm", "lstm", note="flat for the first epochs")
def lstm(seed: int) -> Training:
    d = notes(seed, n=1500)
    net = nn.Sequential(nn.Embedding(120, 24), Recurrent(nn.LSTM, 24, 32, 4, bidirectional=False))
    module = Reader(net, lr=1e-2)
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 8, "gradient_clip_val": 1.0})


class Attention(nn.Module):
    """A pre-norm transformer, pooled by its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(120, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(ids)).mean(1))


@well("z-topics-warmed-up", "transformer")
def warmed(seed: int) -> Training:
    d = notes(seed)
    module = Reader(Attention(), warm=80, lr=4e-3)
    return Training(module, pairs(d.x, d.y), right(d), held(d), {"max_epochs": 7, "val_check_interval": 16})
