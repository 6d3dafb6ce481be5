"""Well trainings whose losses look odd by design."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import accuracy, generator, predict, r2
from benchmarks.zoo.sixth._common import (
    DeepSet,
    Learner,
    Mixture,
    Recur,
    Rows,
    Words,
    branches,
    clips,
    clouds,
    concordance,
    cox,
    explains,
    flow,
    glyph_net,
    glyphs,
    harvest,
    hits,
    lifetimes,
    loader,
    mixture_nll,
    mlp,
    optim,
    recalls,
    records,
    riddles,
    supervised,
    tags,
    turbines,
)


class Forger(LightningModule):
    """A generator of one number against a judge, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = mlp(2, 32, 1), mlp(1, 32, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        make, judge = self.optimizers()
        fake = self(torch.randn(len(real), 2))
        verdict = F.softplus(-self.judge(real)).mean() + F.softplus(self.judge(fake.detach())).mean()
        judge.zero_grad()
        self.manual_backward(verdict)
        judge.step()
        fooled = F.softplus(-self.judge(fake)).mean()
        make.zero_grad()
        self.manual_backward(fooled)
        make.step()
        self.log_dict({"judge": verdict, "maker": fooled})

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(p.parameters(), lr=4e-3, betas=(0.5, 0.9)) for p in (self.maker, self.judge)]


@well("q-waiting-times-forged", "gan")
def forged(seed: int) -> Training:
    g = generator(seed, 140)
    real = torch.log(0.2 - torch.log(torch.rand(900, 1, generator=g).clamp(min=1e-6)))
    real = (real - real.mean()) / real.std()
    z = torch.randn(600, 2, generator=g)
    levels = torch.linspace(0.05, 0.95, 19)
    truth = real.quantile(levels)
    score = lambda m: -(predict(m, z).quantile(levels) - truth).abs().mean().item()  # noqa: E731
    return Training(Forger(), loader(real, size=60), score, None, {"max_epochs": 20})


class Coder(LightningModule):
    """A variational code whose divergence is weighed more from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = mlp(16, 32, 6), mlp(3, 32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).chunk(2, -1)[0])

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        (x,) = batch
        centre, width = self.down(x).chunk(2, -1)
        rebuilt = self.up(centre + width.exp() * torch.randn_like(centre))
        error = 8 * (rebuilt - x).square().sum(-1).mean()
        divergence = 0.5 * (centre.square() + (2 * width).exp() - 2 * width - 1).sum(-1).mean()
        share = min(1.0, self.global_step / 200)
        self.log_dict({"error": error, "kl": divergence, "share": share})
        return {"loss": error + 3 * share * divergence}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("q-code-dearer-by-the-step", "vae")
def dearer(seed: int) -> Training:
    g = generator(seed, 141)
    z = torch.randn(900, 3, generator=g)
    x = torch.tanh(z @ torch.randn(3, 16, generator=g)) + 0.1 * torch.randn(900, 16, generator=g)
    return Training(Coder(), loader(x[:600], size=30), explains(x[600:], x[600:]), None, {"max_epochs": 14})


class Pairs(LightningModule):
    """Two views of the same thing among the others of the batch, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(12, 32, 8), mlp(6, 32, 8)
        self.heat = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.left(x[:, :12]), dim=-1), F.normalize(self.right(x[:, 12:]), dim=-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        a, b = self(x)
        logits, own = self.heat.exp() * a @ b.T, torch.arange(len(x))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        self.log_dict({"clip": loss, "heat": self.heat.detach()})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.01)


@well("q-captions-find-their-picture", "contrastive")
def captions(seed: int) -> Training:
    g = generator(seed, 142)
    z = torch.randn(1100, 4, generator=g)
    views = [(z @ torch.randn(4, k, generator=g)).tanh() + 0.1 * torch.randn(1100, k, generator=g) for k in (12, 6)]
    x = torch.cat(views, 1)

    def score(m: LightningModule) -> float:
        a, b = predict(m, x[800:])
        return ((a @ b.T).argsort(descending=True)[:, :10] == torch.arange(300)[:, None]).any(1).float().mean().item()

    return Training(Pairs(), loader(x[:800], size=40), score, None, {"max_epochs": 12})


class Echo(LightningModule):
    """Foretells what a slow copy of itself says of another view; no negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 8))
        self.guess = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
        self.slow = copy.deepcopy(self.body).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        a, b = (x + 0.3 * torch.randn_like(x) for _ in range(2))
        with torch.no_grad():
            truth = F.normalize(self.slow(b), dim=-1)
        return -(F.normalize(self.guess(self.body(a)), dim=-1) * truth).sum(-1).mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for p, q in zip(self.slow.parameters(), self.body.parameters(), strict=True):
            p.data.lerp_(q.data, 0.05)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("q-echo-of-a-slow-copy", "self-supervised")
def echo(seed: int) -> Training:
    g = generator(seed, 143)
    centre = 1.5 * torch.randn(4, 16, generator=g)
    y = torch.randint(4, (1000,), generator=g)
    x = centre[y] + torch.randn(1000, 16, generator=g)

    def score(m: LightningModule) -> float:
        h = F.normalize(predict(m, x), dim=-1)
        return (y[:700][(h[700:] @ h[:700].T).argmax(1)] == y[700:]).float().mean().item()

    return Training(Echo(), loader(x[:700], size=50), score, None, {"max_epochs": 12})


class Chooser(LightningModule):
    """Chooses one of four offers and learns from what it earned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 24, 4, act=nn.Tanh)
        self.register_buffer("usual", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, best = batch
        policy = torch.distributions.Categorical(logits=self(x))
        choice = policy.sample()
        earned = (choice == best).float() * (torch.rand(len(x)) < 0.8)
        loss = -(policy.log_prob(choice) * (earned - self.usual)).mean() - 0.01 * policy.entropy().mean()
        self.usual.lerp_(earned.mean(), 0.05)
        self.log("earned", earned.mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("q-one-of-four-offers", "bandit")
def offers(seed: int) -> Training:
    g = generator(seed, 144)
    x = torch.randn(1600, 6, generator=g)
    best = (x @ torch.randn(6, 4, generator=g)).argmax(1)
    return Training(
        Chooser(), loader(x[:1200], best[:1200], size=48), hits(x[1200:], best[1200:]), None, {"max_epochs": 12}
    )


class Values(LightningModule):
    """Values of a row of cells with one reward at its end, by temporal differences from a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Embedding(9, 2)
        self.target = copy.deepcopy(self.value).requires_grad_(False)
        for table in (self.value, self.target):
            nn.init.zeros_(table.weight)

    def forward(self, cell: Tensor) -> Tensor:
        return self.value(cell)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        cell, move = (b.long() for b in batch)
        after = (cell + 2 * move - 1).clamp(min=0)
        end = after == 9
        with torch.no_grad():
            worth = torch.where(end, torch.ones(len(cell)), 0.9 * self.target(after.clamp(max=8)).amax(1))
        loss = F.mse_loss(self(cell).gather(1, move[:, None])[:, 0], worth)
        if self.global_step % 20 == 0:
            self.target.load_state_dict(self.value.state_dict())
        self.log("td", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.03)


@well("q-reward-behind-nine-cells", "reinforcement")
def nine_cells(seed: int) -> Training:
    g = generator(seed, 145)
    cell, move = torch.randint(9, (1000,), generator=g), torch.randint(2, (1000,), generator=g)
    truth = 0.9 ** torch.arange(8, -1, -1.0)
    score = lambda m: -(predict(m, torch.arange(9))[:, 1] - truth).abs().mean().item()  # noqa: E731
    return Training(Values(), loader(cell, move, size=40), score, None, {"max_epochs": 16})


@well("q-errors-of-a-millionth", "mlp", note="the loss is of order 1e-6 by its unit; Adam does not see the unit")
def millionth(seed: int) -> Training:
    d = harvest(seed)
    module = Learner(mlp(6, 32, 1), supervised(lambda o, y: 1e-6 * F.mse_loss(o, y)), None, "mse")
    module.recipe = optim("Adam", 1e-2, eps=1e-16)
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, {"max_epochs": 18})


@well("q-summed-over-all-pixels", "autoencoder", note="sums of squares in grey levels: a loss of millions")
def all_pixels(seed: int) -> Training:
    d = glyphs(seed)
    x, x_test = (25 * v.flatten(1) for v in (d.x, d.x_test))
    net = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 100))

    def rebuild(net: nn.Module, batch: Any) -> Tensor:
        return (25 * net(batch[0] / 25) - batch[0]).square().sum()

    module = Learner(net, rebuild, optim("Adam", 4e-3), "sum_of_squares")
    score = lambda m: r2(predict(m, x_test / 25), x_test / 25)  # noqa: E731
    return Training(module, loader(x, size=35), score, None, {"max_epochs": 24})


@well("q-claims-rare-and-large", "tabular", note="nine in ten are nought, a few are thousands, and all are true")
def claims(seed: int) -> Training:
    d = harvest(seed, 2400)
    g = generator(seed, 146)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        hit = torch.rand(y.shape, generator=g) < 0.12
        return hit * torch.exp(4 + 1.2 * y + 0.3 * torch.randn(y.shape, generator=g))

    y, y_test = cost(d.x, d.y), cost(d.x_test, d.y_test)

    def hurdle(out: Tensor, y: Tensor) -> Tensor:
        paid = (y > 0).float()
        size = (out[:, 1:] + 4 - torch.log(y.clamp(min=1))).square()
        return (F.binary_cross_entropy_with_logits(out[:, :1], paid) + paid * size).mean()

    module = Learner(mlp(6, 24, 2), supervised(hurdle), optim("Adam", 1e-2), "hurdle")
    paid = y_test[:, 0] > 0
    score = lambda m: r2(predict(m, d.x_test)[paid, 1] + 4, y_test[paid, 0].log())  # noqa: E731
    return Training(module, loader(d.x, y, size=60), score, None, {"max_epochs": 12})


class Asinh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.asinh(x)


@well("q-wild-columns-tamed-inside", "mlp", note="inputs with tails as heavy as a t of two; the first layer bends them")
def wild(seed: int) -> Training:
    d = harvest(seed)
    x, x_test = torch.sinh(1.6 * d.x), torch.sinh(1.6 * d.x_test)
    module = Learner(nn.Sequential(Asinh(), mlp(6, 32, 1)), supervised(F.mse_loss), optim("Adam", 1e-2), "mse")
    return Training(module, loader(x, d.y), explains(x_test, d.y_test), None, {"max_epochs": 18})


class Band(LightningModule):
    """Three quantiles that cannot cross."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 32, 3, act=nn.SiLU)
        self.register_buffer("levels", torch.tensor([0.1, 0.5, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        low, *gaps = self.net(x).split(1, -1)
        return torch.cat([low, low + F.softplus(gaps[0]), low + F.softplus(gaps[0]) + F.softplus(gaps[1])], -1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        miss = batch["yield"] - self(batch["field"])
        loss = torch.maximum(self.levels * miss, (self.levels - 1) * miss).mean()
        self.log("pinball", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("q-three-quantiles-in-a-row", "quantile regression")
def three_quantiles(seed: int) -> Training:
    d = harvest(seed, 1600, 0.3)
    score = lambda m: r2(predict(m, d.x_test)[:, 1], d.y_test)  # noqa: E731
    return Training(Band(), records(field=d.x, **{"yield": d.y}), score, None, {"max_epochs": 10})


@well("q-one-tag-in-forty-by-focus", "multi-label")
def by_focus(seed: int) -> Training:
    d = tags(seed, 1500)
    change = lambda x, y: ((x @ torch.ones(12) / 12**0.5 + 0.5 * x[:, 0]) > 2.1).float()[:, None]  # noqa: E731
    y, y_test = change(d.x, d.y), change(d.x_test, d.y_test)

    def focal(out: Tensor, y: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(out, y, reduction="none")
        return ((0.9 * y + 0.1 * (1 - y)) * (1 - torch.exp(-each)).square() * each).mean()

    module = Learner(mlp(12, 24, 1), supervised(focal), optim("Adam", 5e-3), "focal")
    score = lambda m: recalls((predict(m, d.x_test) > 0).float(), y_test)  # noqa: E731
    return Training(module, loader(d.x, y, size=50), score, None, {"max_epochs": 10})


@well("q-half-the-answers-missing", "multi-task", note="targets hold NaN where nothing was measured, and a mask for it")
def half_missing(seed: int) -> Training:
    d = flow(seed)
    y = d.y.clone()
    y[torch.rand(y.shape, generator=generator(seed, 147)) < 0.5] = float("nan")

    def measured(out: Tensor, y: Tensor) -> Tensor:
        known = ~y.isnan()
        return F.mse_loss(out[known], y[known])

    module = Learner(mlp(2, 48, 48, 2, act=nn.Tanh), supervised(measured), optim("Adam", 5e-3), "mse")
    return Training(module, loader(d.x, y), explains(d.x_test, d.y_test), None, {"max_epochs": 12})


class Ranker(LightningModule):
    """Of two rows the better one by a margin; most pairs are soon beyond it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        (a, b), (u, v) = self(x).chunk(2), y[:, 0].chunk(2)
        loss = F.margin_ranking_loss(a, b, torch.sign(u - v), margin=0.1)
        self.log("margin", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9, nesterov=True)


@well("q-beyond-the-margin", "ranking")
def beyond_margin(seed: int) -> Training:
    d = harvest(seed)
    order = d.y_test[:, 0].argsort().argsort().float()
    score = lambda m: r2(predict(m, d.x_test).argsort().argsort().float(), order)  # noqa: E731
    return Training(Ranker(), loader(d.x, d.y, size=40), score, None, {"max_epochs": 24})


class Gaps(LightningModule):
    """Hides a third of the words and foretells them from the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Words(11, 10, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (ids,) = batch
        hidden = torch.rand(ids.shape) < 0.3
        hidden[:, 0] = True
        loss = F.cross_entropy(self(ids.masked_fill(hidden, 10))[hidden], ids[hidden])
        self.log("mlm", loss, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


@well("q-words-hidden-from-it", "masked prediction")
def hidden_words(seed: int) -> Training:
    d = riddles(seed, length=4)
    ids = torch.cat([d.x, d.y], 1)
    test = torch.cat([d.x_test, d.y_test], 1)
    asked = test.clone()
    asked[:, 0] = 10
    score = lambda m: accuracy(predict(m, asked)[:, 0], test[:, 0])  # noqa: E731
    return Training(Gaps(), loader(ids), score, None, {"max_epochs": 16})


class Pupil(LightningModule):
    """Learns the soft answers of a teacher that was trained before."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.net = glyph_net(4, 4)
        self.teacher = teacher.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        with torch.no_grad():
            truth = (self.teacher(x) / 3).softmax(-1)
        loss = 9 * F.kl_div((self(x) / 3).log_softmax(-1), truth, reduction="batchmean")
        self.log("kd", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=8e-3)


@well("q-answers-three-degrees-warm", "distillation")
def three_degrees(seed: int) -> Training:
    d = glyphs(seed)
    teacher = glyph_net()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(teacher(d.x[:350]), d.y[:350]).backward()
        optimizer.step()
    return Training(Pupil(teacher), loader(d.x, d.y), hits(d.x_test, d.y_test), None, {"max_epochs": 9})


class Uncertain(LightningModule):
    """A heteroscedastic mixture whose likelihood falls far below nought."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mixture(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = mixture_nll(self(x), y / 40) - 1.0
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@well("q-narrow-branches", "mixture density")
def narrow(seed: int) -> Training:
    d = branches(seed)
    score = lambda m: -mixture_nll(predict(m, d.x_test), d.y_test / 40).item()  # noqa: E731
    return Training(Uncertain(), loader(d.x, d.y), score, None, {"max_epochs": 10})


@well("q-who-of-forty-ends-first", "survival")
def of_forty(seed: int) -> Training:
    d = lifetimes(seed)
    module = Learner(mlp(5, 16, 1, act=nn.Tanh), supervised(cox), optim("Adam", 5e-3), "")
    score = lambda m: concordance(predict(m, d.x_test)[:, 0], d.y_test)  # noqa: E731
    return Training(module, loader(d.x, d.y, size=40), score, None, {"max_epochs": 6})


class Margin(Learner):
    """A hinge on labels of minus one and one; most rows are soon free of it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.relu(1 - (2 * y - 1) * self(x)).square().mean() + 1e-4 * self.net[0].weight.square().sum()
        self.log_dict({"hinge": loss, "free": ((2 * y - 1) * self(x) > 1).float().mean()})
        return loss


@well("q-six-margins", "multi-label")
def six_margins(seed: int) -> Training:
    d = tags(seed)
    module = Margin(mlp(12, 48, 6), supervised(F.mse_loss), optim("SGD", 0.1, momentum=0.9))
    score = lambda m: ((predict(m, d.x_test) > 0).float() == d.y_test).float().mean().item()  # noqa: E731
    return Training(module, loader(d.x, d.y), score, None, {"max_epochs": 10})


class Diffuser(LightningModule):
    """Foretells the noise in folded points; the loss cannot come near nought."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 64, 64, 2, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        t = torch.rand(len(x), 1)
        noise = torch.randn_like(x)
        mixed = (1 - t).sqrt() * x + t.sqrt() * noise
        loss = F.mse_loss(self(torch.cat([mixed, t], 1)), noise)
        self.log("eps", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 300), "interval": "step"}
        ]


@well("q-noise-in-folded-points", "diffusion")
def folded_points(seed: int) -> Training:
    d = branches(seed)
    x, test = torch.cat([d.x, d.y], 1), torch.cat([d.x_test, d.y_test], 1)
    g = generator(seed, 148)
    noise = torch.randn(test.shape, generator=g)
    asked = torch.cat([0.5**0.5 * (test + noise), torch.full((len(test), 1), 0.5)], 1)
    return Training(Diffuser(), loader(x, size=45), explains(asked, noise), None, {"max_epochs": 16})


class Deaf(LightningModule):
    """Tells the kind of a sound and must not tell how loud it was: a second head whose gradient is turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 12, 7), nn.ReLU(), nn.Conv1d(12, 12, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
        )
        self.kind, self.loud = nn.Linear(12, 3), mlp(12, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = self.body(x)
        turned = h.detach() * 1.2 - 0.2 * h
        kind = F.cross_entropy(self.kind(h), y)
        loud = F.mse_loss(self.loud(turned)[:, 0], x.std(-1)[:, 0])
        self.log_dict({"kind": kind, "loud": loud})
        return kind + loud

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("q-kind-but-not-loudness", "adversarial")
def not_loudness(seed: int) -> Training:
    d = clips(seed)
    return Training(Deaf(), Rows(d, 28), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


@well("q-next-step-of-a-drift", "gru", note="half of the variance of the answer cannot be known")
def drift(seed: int) -> Training:
    d = turbines(seed, 1400)
    g = generator(seed, 149)
    noisy = d.map_targets(lambda y: y + torch.randn(y.shape, generator=g))
    module = Learner(Recur(nn.GRU, 3, 12, 1), supervised(F.huber_loss), optim("Adam", 4e-3), "huber")
    return Training(module, Rows(noisy), explains(d.x_test, d.y_test), None, {"max_epochs": 8})


@well("q-mirror-but-one-in-five-blurred", "transformer", note="labels smoothed by a fifth: a floor far above nought")
def blurred(seed: int) -> Training:
    d = riddles(seed)
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), label_smoothing=0.2)  # noqa: E731
    module = Learner(Words(10, 10, 8), supervised(loss), optim("Adam", 5e-3), "smoothed")
    val = loader(d.x_test, d.y_test, size=100, shuffle=False)
    return Training(module, loader(d.x, d.y), hits(d.x_test, d.y_test), val, {"max_epochs": 12})


@well(
    "q-clouds-in-the-circle", "metric learning", note="a centre for each kind; the loss settles at the spread in a kind"
)
def circle(seed: int) -> Training:
    d = clouds(seed)
    goal = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.0, 2.094, 4.189)])
    module = Learner(
        DeepSet(out=2), supervised(lambda o, y: (o - goal[y]).norm(dim=-1).mean()), optim("Adam", 4e-3), "pull"
    )
    score = lambda m: accuracy(predict(m, d.x_test) @ goal.T, d.y_test)  # noqa: E731
    return Training(module, loader(d.x, d.y), score, None, {"max_epochs": 9})
