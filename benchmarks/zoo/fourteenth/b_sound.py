"""Trainings that are right and look odd: losses below zero, ceilings, plateaus, rare classes, steps of unusual size."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, blobs, digits, flip_labels, generator, motifs, predict, r2, regression, table
from benchmarks.zoo.fourteenth.b_common import Fit, Logged, adam, batches, epochs, mlp, recalls, sgd

# --- below zero


class Density(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 48, 48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        mean, log_var = self.net(x).chunk(2, 1)
        nll = F.gaussian_nll_loss(mean, y, log_var.exp())
        self.log("nll", nll)
        return nll

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


@well("pa-density-below-zero", "tabular")
def density(seed: int) -> Training:
    cut = regression(seed, r2=0.99, n=3000, columns=6)
    return Training(Density(), cut.train(50), cut.r2, None, epochs(8))


@well("pa-poisson-counts", "tabular", "the loss of a Poisson model is below zero where counts are large")
def poisson(seed: int) -> Training:
    g = generator(seed, 41)
    x = torch.randn(2400, 6, generator=g)
    rate = (1.5 + x @ torch.randn(6, 1, generator=g) * 0.35).clamp(max=4.5).exp()
    y = torch.poisson(rate, generator=g)
    model = Fit(mlp(6, 32, 1), nn.PoissonNLLLoss(), adam(5e-3))
    return Training(
        model,
        batches(x[:1800], y[:1800], size=60),
        lambda m: r2(predict(m, x[1800:]), rate[1800:].log()),
        None,
        epochs(8),
    )


# --- a curriculum: the stages grow harder, and the loss rises with each


class Stages(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        g = generator(seed, 42)
        self.y = torch.randint(4, (3000,), generator=g)
        centre = 2.5 * torch.linalg.qr(torch.randn(8, 4, generator=g)).Q.T
        self.noise = torch.randn(3000, 8, generator=g)
        self.x = centre[self.y]

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        rows = slice(500 * (epoch % 5), 500 * (epoch % 5) + 500)
        spread = (0.2, 0.5, 0.8, 1.0, 1.0, 1.0)[min(epoch, 5)]
        return DataLoader(TensorDataset(self.x[rows] + spread * self.noise[rows], self.y[rows]), 20, shuffle=True)


class Staged(Fit):
    """Holds its data, as a notebook would."""

    def __init__(self, data: Stages) -> None:
        super().__init__(mlp(8, 32, 4), F.cross_entropy, sgd(0.05))
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        self.data.trainer = self.trainer
        return self.data.train_dataloader()


@well("pa-curriculum-of-noise", "tabular")
def curriculum(seed: int) -> Training:
    data = Stages(seed)
    held = data.x[2500:] + data.noise[2500:]
    return Training(
        Staged(data),
        None,
        lambda m: accuracy(predict(m, held), data.y[2500:]),
        None,
        epochs(8, reload_dataloaders_every_n_epochs=1),
    )


# --- labels, half of them drawn anew: the loss can not fall far, the model is right all the same


@well("pa-half-the-labels-drawn", "tabular")
def half_labels(seed: int) -> Training:
    cut = blobs(seed, classes=4, columns=8, n=4000, spread=3.5)
    y = flip_labels(cut.y, 0.5, 4, seed)
    model = Logged(mlp(8, 16, 4), F.cross_entropy, adam(5e-3))
    return Training(model, batches(cut.x, y, size=100), cut.accuracy, cut.val(), epochs(6))


# --- errors with heavy tails


@well("pa-student-t-errors", "tabular")
def heavy_tails(seed: int) -> Training:
    cut = regression(seed, r2=0.999, n=2400, columns=6)
    g = generator(seed, 43)
    chi = torch.randn(2400, 2, generator=g).square().sum(1, keepdim=True)
    y = cut.y + 0.3 * torch.randn(2400, 1, generator=g) / (chi / 2).sqrt()
    model = Fit(mlp(6, 48, 24, 1), nn.HuberLoss(delta=0.5), lambda p: torch.optim.AdamW(p, 4e-3))
    return Training(model, batches(cut.x, y, size=48), cut.r2, None, epochs(8))


# --- a large vocabulary of which each batch touches little


class Bag(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20_000, 8, mode="mean", sparse=True)
        self.out = nn.Linear(8, 2)
        self.automatic_optimization = False

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SparseAdam(list(self.bag.parameters()), 2e-2),
            torch.optim.Adam(self.out.parameters(), 1e-2),
        ]


@well("pa-large-vocabulary", "text")
def vocabulary(seed: int) -> Training:
    g = generator(seed, 44)
    y = torch.randint(2, (2400,), generator=g)
    common = torch.randint(2000, (2400, 12), generator=g)
    side = torch.randint(300, (2400, 8), generator=g) + 2000 + 300 * y[:, None]
    ids = torch.cat([common, side], 1) * 7 % 20_000
    return Training(
        Bag(), batches(ids[:2000], y[:2000], size=50), lambda m: accuracy(predict(m, ids[2000:]), y[2000:]), None,
        epochs(4),
    )  # fmt: skip


# --- features that stay as they are


class Head(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.MaxPool2d(2))
        for p in self.backbone.parameters():
            p.requires_grad = False
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x).flatten(1)
        return self.head(10 * features)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/ce", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/acc", accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), 3e-3)


@well("pa-fixed-features", "images")
def fixed_features(seed: int) -> Training:
    cut = digits(seed).to_images()
    return Training(Head(), cut.train(32), cut.accuracy, cut.val(), epochs(6))


# --- warm restarts


class Restarts(Fit):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.2, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=60)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well("pa-three-restarts", "images")
def restarts(seed: int) -> Training:
    cut = digits(seed)
    model = Restarts(mlp(64, 48, 10), F.cross_entropy, sgd(0.2))
    return Training(model, cut.train(32), cut.accuracy, None, {"max_steps": 240, "max_epochs": -1})


# --- two views of a sample


class Views(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        left, right = (self(x + 0.35 * torch.randn_like(x)) for _ in range(2))
        sims = left @ right.T / 0.2
        own = torch.arange(len(x), device=x.device)
        loss = (F.cross_entropy(sims, own) + F.cross_entropy(sims.T, own)) / 2
        self.log("nce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


@well("pa-two-views", "contrastive")
def views(seed: int) -> Training:
    cut = blobs(seed, classes=6, columns=16, n=2560, spread=4.0)

    def score(module: LightningModule) -> float:
        known, asked = predict(module, cut.x), predict(module, cut.x_test)
        near = (asked @ known.T).topk(15, 1).indices
        return (cut.y[near].mode(1).values == cut.y_test).float().mean().item()

    return Training(Views(), batches(cut.x, size=128, drop_last=True), score, None, epochs(10))


# --- two players


class Players(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker = mlp(4, 32, 2, act=nn.Tanh)
        self.judge = mlp(2, 32, 32, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (real,) = batch
        maker, judge = self.optimizers()  # type: ignore[misc]
        made = self(torch.randn(len(real), 4, device=real.device))
        seen, dreamt = self.judge(real), self.judge(made.detach())
        loss_judge = F.softplus(-seen).mean() + F.softplus(dreamt).mean()
        judge.zero_grad()
        self.manual_backward(loss_judge)
        judge.step()
        loss_maker = F.softplus(-self.judge(made)).mean()
        maker.zero_grad()
        self.manual_backward(loss_maker)
        maker.step()
        self.log_dict({"d": loss_judge.detach(), "g": loss_maker.detach()})
        return loss_maker

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.maker.parameters(), 2e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.judge.parameters(), 2e-3, betas=(0.5, 0.9)),
        ]


@well("pa-two-players", "gan")
def players(seed: int) -> Training:
    g = generator(seed, 45)
    mix = torch.tensor([[0.9, 0.5], [0.0, 0.6]])
    shift = torch.tensor([1.5, -1.0])
    real = torch.randn(3200, 2, generator=g) @ mix + shift
    z = torch.randn(2000, 4, generator=g)

    def score(module: LightningModule) -> float:
        made = predict(module, z)
        return 1 - (made.mean(0) - shift).norm().item() / 2 - (made.std(0) - real.std(0)).norm().item() / 2

    return Training(Players(), batches(real, size=64), score, None, epochs(16))


# --- rewards instead of labels


class Bandit(LightningModule):
    def __init__(self, best: Tensor) -> None:
        super().__init__()
        self.policy = mlp(6, 32, 4)
        self.best = best
        self.baseline = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (state,) = batch
        choice = torch.distributions.Categorical(logits=self(state))
        action = choice.sample()
        reward = (action == (state @ self.best).argmax(1)).float() + 0.3 * torch.randn(len(state))
        advantage = reward - self.baseline
        self.baseline = 0.9 * self.baseline + 0.1 * reward.mean().item()
        self.log("reward", reward.mean())
        return -(choice.log_prob(action) * advantage).mean() - 0.01 * choice.entropy().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


@well("pa-bandit-with-baseline", "policy gradient")
def bandit(seed: int) -> Training:
    g = generator(seed, 46)
    state, best = torch.randn(4000, 6, generator=g), torch.randn(6, 4, generator=g)
    return Training(
        Bandit(best),
        batches(state[:3200], size=64),
        lambda m: accuracy(predict(m, state[3200:]), (state[3200:] @ best).argmax(1)),
        None,
        epochs(8),
    )


# --- the product of three signs: nothing for long, then all at once


@well("pa-three-signs", "tabular")
def signs(seed: int) -> Training:
    g = generator(seed, 47)
    x = torch.randint(2, (4000, 10), generator=g).float() * 2 - 1
    y = (x[:, 1] * x[:, 4] * x[:, 7] > 0).long()
    model = Fit(mlp(10, 64, 2), F.cross_entropy, adam(3e-3))
    return Training(
        model,
        batches(x[:3000], y[:3000], size=60),
        lambda m: accuracy(predict(m, x[3000:]), y[3000:]),
        None,
        epochs(10),
    )


# --- one in fifty, learnt all the same


@well("pa-one-in-fifty", "tabular")
def one_in_fifty(seed: int) -> Training:
    cut = blobs(seed, classes=2, columns=6, n=5000, spread=4.5, shares=torch.tensor([0.98, 0.02]))
    model = Logged(mlp(6, 16, 2), F.cross_entropy, adam(3e-3))
    return Training(
        model,
        cut.train(64),
        lambda m: recalls(predict(m, cut.x_test).argmax(1), cut.y_test),
        cut.val(),
        epochs(5),
    )


# --- forty flowers


@well("pa-forty-flowers", "tabular")
def forty_flowers(seed: int) -> Training:
    cut = table("iris", seed)
    model = Fit(nn.Linear(4, 3), F.cross_entropy, adam(3e-2, weight_decay=1e-4))
    return Training(model, batches(cut.x[:40], cut.y[:40], size=8), cut.accuracy, None, epochs(40))


# --- a large step on rows of length one


@well("pa-step-of-twenty", "text")
def step_of_twenty(seed: int) -> Training:
    g = generator(seed, 48)
    y = torch.randint(5, (2200,), generator=g)
    rate = 0.02 + 0.25 * (torch.rand(5, 200, generator=g) < 0.08)
    x = F.normalize(torch.poisson(rate[y], generator=g).clamp(max=3), dim=1)
    model = Fit(nn.Linear(200, 5), F.cross_entropy, sgd(20.0, momentum=0.0))
    return Training(
        model, batches(x[:1600], y[:1600], size=40), lambda m: accuracy(predict(m, x[1600:]), y[1600:]), None, epochs(4)
    )


# --- a small step from weights that are nearly right


class Tuned(LightningModule):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 1)
        with torch.no_grad():
            self.lin.weight.copy_(weight.T)
            self.lin.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-4)


@well("pa-tuned-a-little", "tabular", "starts near the best there is; the loss stays at the variance of the noise")
def tuned(seed: int) -> Training:
    g = generator(seed, 49)
    x, weight = torch.randn(3000, 8, generator=g), torch.randn(8, 1, generator=g)
    y = x @ weight + 1.0 * torch.randn(3000, 1, generator=g)
    start = weight + 0.04 * torch.randn(8, 1, generator=g)
    return Training(
        Tuned(start),
        batches(x[:2000], y[:2000], size=50),
        lambda m: r2(predict(m, x[2000:]), (x @ weight)[2000:]),
        batches(x[2000:], y[2000:], size=500, shuffle=False),
        epochs(6),
    )


# --- tables that come in their own units, behind a normalising layer


@well("pa-own-units-behind-norm", "tabular")
def own_units(seed: int) -> Training:
    cut = table("wine", seed, standardise=False)
    net = nn.Sequential(nn.BatchNorm1d(13), *mlp(13, 24, 3))
    model = Logged(net, F.cross_entropy, adam(1e-2))
    return Training(model, cut.train(19, drop_last=True), cut.accuracy, cut.val(), epochs(20))


# --- read in the order of the file, which is none


@well("pa-file-order", "sequence")
def file_order(seed: int) -> Training:
    cut = motifs(seed, n=1600)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 24, 9, padding=4)
            self.out = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.conv(x.transpose(1, 2))).amax(-1))

    return Training(
        Fit(Net(), F.cross_entropy, adam(1e-2)), cut.train(32, shuffle=False), cut.accuracy, None, epochs(6)
    )


# --- doses in five steps, where the number means what it says, and columns that are nearly always zero


@well("pa-doses-and-flags", "tabular")
def doses(seed: int) -> Training:
    g = generator(seed, 50)
    dose = torch.randint(5, (2400, 1), generator=g).float()
    flags = (torch.rand(2400, 30, generator=g) < 0.03).float()
    z = torch.randn(2400, 4, generator=g)
    y = 0.6 * dose - 1.2 + z[:, :1] - 0.5 * z[:, 1:2].abs() + flags @ torch.randn(30, 1, generator=g)
    y = y + 0.3 * torch.randn(2400, 1, generator=g)
    x = torch.cat([dose, flags, z], 1)
    model = Logged(mlp(35, 48, 1), F.mse_loss, adam(4e-3))
    return Training(
        model,
        batches(x[:1900], y[:1900], size=48),
        lambda m: r2(predict(m, x[1900:]), y[1900:]),
        batches(x[1900:], y[1900:], size=250, shuffle=False),
        epochs(9),
    )


# --- stars from one to five, as numbers


class Taste(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.who, self.what = nn.Embedding(80, 6), nn.Embedding(50, 6)
        self.bias_who, self.bias_what = nn.Embedding(80, 1), nn.Embedding(50, 1)
        for part in (self.who, self.what, self.bias_who, self.bias_what):
            nn.init.normal_(part.weight, std=0.1)
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        u, i = pair
        return self.mean + (self.bias_who(u) + self.bias_what(i)).squeeze(1) + (self.who(u) * self.what(i)).sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self((batch["who"], batch["what"])), batch["stars"])
        self.log("rmse", loss.detach().sqrt())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2, weight_decay=1e-4)


@well("pa-stars-as-numbers", "recommender")
def stars(seed: int) -> Training:
    g = generator(seed, 51)
    u, i = torch.randint(80, (5000,), generator=g), torch.randint(50, (5000,), generator=g)
    worth = 0.8 * torch.randn(80, generator=g)[u] + 0.8 * torch.randn(50, generator=g)[i]
    given = (3.2 + worth + 0.4 * torch.randn(5000, generator=g)).round().clamp(1, 5)
    rows = [{"who": a, "what": b, "stars": c} for a, b, c in zip(u[:4200], i[:4200], given[:4200], strict=True)]
    return Training(
        Taste(),
        DataLoader(rows, 100, shuffle=True),  # type: ignore[arg-type]
        lambda m: r2(predict(m, (u[4200:], i[4200:])), given[4200:]),
        None,
        epochs(8),
    )


# --- marks of an inverse problem: an autoencoder that keeps a fifth, by design


@well("pa-narrow-coder", "autoencoder", "five of twenty directions carry nine tenths; a code of five can do no better")
def narrow(seed: int) -> Training:
    g = generator(seed, 52)
    base = torch.linalg.qr(torch.randn(20, 20, generator=g)).Q
    spread = torch.cat([torch.full((5,), math.sqrt(3.6)), torch.full((15,), math.sqrt(2 / 15))])
    x = (torch.randn(2400, 20, generator=g) * spread) @ base.T
    model = Fit(nn.Sequential(nn.Linear(20, 5), nn.Linear(5, 20)), F.mse_loss, adam(1e-2))
    return Training(
        model, batches(x[:1800], x[:1800], size=60), lambda m: r2(predict(m, x[1800:]), x[1800:]), None, epochs(8)
    )
