"""Healthy trainings whose losses look odd: sums, masks, pairs in the batch, soft answers, heads that fight."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import digits, generator, predict, table
from benchmarks.zoo.fourth._b_common import (
    curve,
    explained,
    explains,
    hums,
    right,
    rows,
    solids,
    tickets,
    usage,
    weaves,
    windows,
)


class Views(LightningModule):
    """Two noisy views of a sound find each other in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 16, 12, stride=4), nn.ReLU())
        self.project = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return torch.cat([h.mean(-1), h.amax(-1)], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        views = torch.cat([x, x]) + 0.15 * torch.randn(2 * len(x), *x.shape[1:])
        shift = int(torch.randint(x.shape[-1], ()))
        views[len(x) :] = views[len(x) :].roll(shift, -1)
        z = F.normalize(self.project(self(views)), dim=1)
        logits = (z @ z.T / 0.2).fill_diagonal_(-1e9)
        target = torch.arange(2 * len(x)).roll(len(x))
        loss = F.cross_entropy(logits, target)
        self.log("nt_xent", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@well("x-two-noisy-views", "contrastive", "a loss over the whole batch that ends well above nought")
def two_views(seed: int) -> Training:
    d = hums(seed, noise=0.1)

    def score(module: LightningModule) -> float:  # a straight line on what it has learnt
        h, test = predict(module, d.x), predict(module, d.x_test)
        mean, std = h.mean(0), h.std(0) + 1e-6
        h, test = (torch.cat([(v - mean) / std, torch.ones(len(v), 1)], 1) for v in (h, test))
        w = torch.linalg.solve(h.T @ h + torch.eye(33), h.T @ F.one_hot(d.y, 4).float())
        return ((test @ w).argmax(1) == d.y_test).float().mean().item()

    return Training(Views(), rows(d.x, size=45, drop_last=True), score, None, {"max_epochs": 10})


class Verification(LightningModule):
    """Hadsell's contrastive loss on pairs of solids, one net for both."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.out = nn.Linear(32, 8)

    def forward(self, cloud: Tensor) -> Tensor:
        return self.out(self.point(cloud).amax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (a, b), same = batch["pair"], batch["same"]
        gap = F.pairwise_distance(self(a), self(b))
        loss = (same * gap**2 + (1 - same) * F.relu(1.5 - gap) ** 2).mean()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("x-same-solid-or-not", "siamese", "pairs, a quarter of them alike; targets are 0 and 1 for a distance")
def same_solid(seed: int) -> Training:
    d = solids(seed)
    g = generator(seed, 130)
    first, second = torch.randint(len(d.x), (2, 1600), generator=g).tolist()
    items: Any = [
        {"pair": (d.x[i], d.x[j]), "same": (d.y[i] == d.y[j]).float()} for i, j in zip(first, second, strict=True)
    ]

    def score(module: LightningModule) -> float:
        h, test = predict(module, d.x), predict(module, d.x_test)
        centres = torch.stack([h[d.y == k].mean(0) for k in range(4)])
        return (torch.cdist(test, centres).argmin(1) == d.y_test).float().mean().item()

    return Training(Verification(), DataLoader(items, batch_size=40, shuffle=True), score, None, {"max_epochs": 8})


class Painter(LightningModule):
    """A variational code; both terms are sums, so the loss is in the hundreds and the rate is small."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(64, 64)
        self.mu, self.log_var = nn.Linear(64, 8), nn.Linear(64, 8)
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.mu(F.relu(self.enc(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        h = F.relu(self.enc(x))
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.randn_like(mu) * (0.5 * log_var).exp()
        reconstruction = (self.dec(z) - x).square().sum() / 0.4
        divergence = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()
        self.log_dict({"rec": reconstruction, "kl": divergence})
        return reconstruction + divergence

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=8e-5, momentum=0.9)


@well("x-sums-and-a-rate-for-sums", "autoencoder", "a loss of thousands, SGD at 8e-5")
def sums(seed: int) -> Training:
    d = digits(seed)
    x, x_test = ((v - 0.3) / 0.38 for v in (d.x, d.x_test))
    settings = {"max_epochs": 18, "gradient_clip_val": 5000.0}
    return Training(Painter(), rows(x, size=45), explains(x_test, x_test), None, settings)


class Filled(LightningModule):
    """A masked model: hides some hours and is judged on those alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (hours,) = batch
        hidden = torch.rand_like(hours) < 0.15
        guess = self(torch.stack([hours.masked_fill(hidden, 0.0), hidden.float()], -1))
        loss = ((guess - hours).square() * hidden).sum() / hidden.sum()
        self.log("masked", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=6e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=240)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well("x-guesses-hidden-hours", "rnn", "a masked loss over a seventh of the places, inputs set to nought")
def hidden_hours(seed: int) -> Training:
    x, _ = windows(usage(seed))
    test = x[1250:]
    hidden = torch.rand(test.shape, generator=generator(seed, 131)) < 0.15
    shown = torch.stack([test.masked_fill(hidden, 0.0), hidden.float()], -1)

    def score(module: LightningModule) -> float:
        return explained(predict(module, shown)[hidden], test[hidden])

    return Training(Filled(), rows(x[:1200], size=40), score, None, {"max_epochs": 8})


class Pupil(LightningModule):
    """Shares of votes as targets, smoothed; the floor of the loss is the entropy of the votes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, 24), nn.Tanh(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["x"]), batch["votes"], label_smoothing=0.1)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@well("x-votes-of-nine-tasters", "mlp", "soft targets with smoothing: the loss ends near 0.9")
def tasters(seed: int) -> Training:
    d = table("wine", seed)
    g = generator(seed, 132)
    share = 0.55 * F.one_hot(d.y, 3).float() + 0.15
    votes = F.one_hot(torch.multinomial(share, 9, replacement=True, generator=g), 3).float().mean(1)
    items: Any = [{"x": a, "votes": b} for a, b in zip(d.x, votes, strict=True)]
    loader = DataLoader(items, batch_size=16, shuffle=True)
    return Training(Pupil(), loader, right(d.x_test, d.y_test), None, {"max_epochs": 15})


class Heads(LightningModule):
    """One trunk, three answers on three scales, weights by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 12, 5, stride=2), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU())
        self.heads = nn.ModuleDict({"kind": nn.Linear(16, 4), "noise": nn.Linear(16, 1), "light": nn.Linear(16, 1)})
        self.weights = {"kind": 1.0, "noise": 5.0, "light": 1e-4}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x).mean((2, 3))
        return {name: head(h) for name, head in self.heads.items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out, y = self(batch["x"]), batch["y"]
        losses = {
            "kind": F.cross_entropy(out["kind"], y["kind"]),
            "noise": F.mse_loss(out["noise"][:, 0], y["noise"]),
            "light": F.mse_loss(100 * out["light"][:, 0], y["light"]),
        }
        self.log_dict(losses)
        return sum(self.weights[k] * v for k, v in losses.items())  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("x-three-answers-on-three-scales", "cnn", "targets in hundreds, weighed by 1e-4 and scaled in the step")
def three_answers(seed: int) -> Training:
    d = weaves(seed, noise=0.1)
    g = generator(seed, 133)

    def spoil(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        level = 0.1 + 0.8 * torch.rand(len(x), generator=g)
        light = torch.randn(len(x), generator=g)
        noise = torch.randn(x.shape, generator=g)
        return x + level.view(-1, 1, 1, 1) * noise + light.view(-1, 1, 1, 1) * 0.5, level, 120 * light

    x, level, light = spoil(d.x)
    x_test, _, light_test = spoil(d.x_test)
    answers = [{"kind": a, "noise": b, "light": c} for a, b, c in zip(d.y, level, light, strict=True)]
    items: Any = [{"x": a, "y": b} for a, b in zip(x, answers, strict=True)]

    def score(module: LightningModule) -> float:
        out = predict(module, x_test)
        kind = (out["kind"].argmax(1) == d.y_test).float().mean().item()
        return min(kind, explained(100 * out["light"][:, 0], light_test))

    return Training(Heads(), DataLoader(items, batch_size=32, shuffle=True), score, None, {"max_epochs": 12})


class Reverse(torch.autograd.Function):
    """The identity, with the gradient turned round on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -0.3 * grad


class Confused(LightningModule):
    """Two sites, one task: the features must not tell the site."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.task, self.site = nn.Linear(24, 1), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.task(self.features(x))[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, site = batch
        h = self.features(x)
        task = F.mse_loss(self.task(h)[:, 0], y)
        domain = F.binary_cross_entropy_with_logits(self.site(Reverse.apply(h))[:, 0], site)
        self.log_dict({"task": task, "domain": domain})  # the domain's stays at log 2, as it should
        return task + domain

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("x-must-not-tell-the-site", "mlp", "one part of the loss can not fall below log 2 by design")
def confused(seed: int) -> Training:
    d = curve(seed, n=1400)
    g = generator(seed, 134)
    site = (torch.rand(1400, generator=g) < 0.5).float()
    hint = 0.8 * (2 * site - 1)[:, None] + torch.randn(1400, 2, generator=g)
    x = torch.cat([d.x, hint], 1)
    test = torch.cat([d.x_test, torch.randn(len(d.x_test), 2, generator=g)], 1)
    return Training(Confused(), rows(x, d.y, site, size=35), explains(test, d.y_test), None, {"max_epochs": 12})


class Worth(LightningModule):
    """Values of places on a ring by temporal differences; the target net is copied now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.value = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        self.target = copy.deepcopy(self.value).requires_grad_(False)

    def forward(self, place: Tensor) -> Tensor:
        return self.value(place).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        here, reward, there = batch
        optimizer: Any = self.optimizers()
        with torch.no_grad():
            aim = reward + 0.8 * self.target(there).squeeze(-1)
        loss = F.smooth_l1_loss(self(here), aim)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.global_step % 20 == 0:
            self.target.load_state_dict(self.value.state_dict())
        self.log("td", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.value.parameters(), lr=5e-3)


@well("x-values-with-a-target-net", "policy", "half the weights are in no optimizer, targets move under way")
def values(seed: int) -> Training:
    g = generator(seed, 135)
    angle = 6.2832 * torch.rand(1600, generator=g)

    def place(a: Tensor) -> Tensor:
        return torch.stack([a.cos(), a.sin()], 1)

    reward = angle.cos() + 0.2 * torch.randn(1600, generator=g)
    there = angle + 0.5
    # the worth of an angle: the sum of 0.8^k cos(a + k / 2)
    fresh = torch.linspace(0, 6.28, 200)
    truth = sum(0.8**k * (fresh + 0.5 * k).cos() for k in range(60))
    loader = rows(place(angle), reward, place(there), size=40)
    return Training(Worth(), loader, explains(place(fresh), truth), None, {"max_epochs": 15})  # type: ignore[arg-type]


class Sane(LightningModule):
    """Trained on healthy machines alone; a broken one is whatever it can not copy."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decode = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 24))

    def forward(self, x: Tensor) -> Tensor:
        return (self.decode(self.encode(x)) - x).square().mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch  # the label is always nought here
        loss = self(x).mean()
        self.log("copy_error", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("x-healthy-machines-alone", "autoencoder", "a label that never changes, and is not used")
def healthy(seed: int) -> Training:
    g = generator(seed, 136)
    pitch = 0.26 * torch.arange(24.0)
    phase = 6.2832 * torch.rand(1600, 1, generator=g)
    x = (0.7 + 0.6 * torch.rand(1600, 1, generator=g)) * torch.sin(pitch + phase) + 0.1 * torch.randn(
        1600, 24, generator=g
    )
    broken = x[1200:] + 0.5 * torch.sin(3 * pitch + 3 * phase[1200:] + 1)

    def score(module: LightningModule) -> float:
        sane, ill = predict(module, x[1200:]), predict(module, broken)
        return (sane[:, None] < ill).float().mean().item()

    return Training(Sane(), rows(x[:1200], torch.zeros(1200), size=40), score, None, {"max_epochs": 12})


class Likely(LightningModule):
    """The net ends in a softmax, the loss takes its logarithm: what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(150, 24), nn.Flatten(), nn.Linear(18 * 24, 32), nn.ReLU())
        self.bag = nn.EmbeddingBag(150, 24, mode="sum")
        self.head = nn.Sequential(nn.Linear(56, 4), nn.Softmax(dim=-1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.cat([0.1 * self.net(ids), self.bag(ids) / 4], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        p = self(batch[0])
        loss = F.nll_loss(torch.log(p + 1e-8), batch[1])
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.05)


@well("x-softmax-and-its-logarithm", "text", "a softmax in the net and its logarithm in the loss")
def logarithm(seed: int) -> Training:
    d = tickets(seed)
    return Training(Likely(), rows(d.x, d.y, size=25), right(d.x_test, d.y_test), None, {"max_epochs": 8})


class Ranked(LightningModule):
    """All pairs of a batch: scores (N, 1) against scores (N,), on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, worth = batch
        score = self(x)
        difference = score - score.flatten()
        above = (worth[:, None] > worth).float()
        loss = F.binary_cross_entropy_with_logits(difference, above, weight=1 - torch.eye(len(x)))
        self.log("ranknet", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.AdamW(self.parameters(), lr=3e-3)}


@well("x-all-pairs-of-a-batch", "mlp", "(N, 1) minus (N,) on purpose, losses that join samples")
def all_pairs(seed: int) -> Training:
    d = curve(seed, n=1600)

    def score(module: LightningModule) -> float:
        s = predict(module, d.x_test)[:, 0]
        return ((s[:400] > s[400:]) == (d.y_test[:400] > d.y_test[400:])).float().mean().item()

    return Training(Ranked(), rows(d.x, d.y, size=40), score, None, {"max_epochs": 8, "precision": "bf16-mixed"})
