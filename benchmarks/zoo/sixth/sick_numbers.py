"""Growth, gaps and outliers: numbers that leave their range."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, generator, predict
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
    concordance,
    explains,
    harvest,
    hits,
    lifetimes,
    loader,
    mlp,
    networks,
    optim,
    overlap,
    per_place,
    records,
    riddles,
    spot_net,
    spots,
    stars,
    supervised,
    tags,
    turbines,
)

# --- growth -----------------------------------------------------------------------------------------------------------


@sick("q-relu-over-forty-steps", "rnn", "exploding-gradients", "bad-initialization", twin=lambda s: forty_steps(s, 1.0))
def forty_steps(seed: int, clip: float | None = None) -> Training:
    d = turbines(seed, length=40)
    net = Recur(nn.RNN, 3, 24, 1, nonlinearity="relu")
    with torch.no_grad():
        net.body.weight_hh_l0.copy_(1.15 * torch.eye(24))
        net.body.weight_ih_l0.mul_(0.3)
    module = Learner(net, supervised(F.mse_loss), optim("SGD", 0.01, momentum=0.8), "mse")
    settings: dict[str, Any] = {"max_epochs": 14, "gradient_clip_val": clip}
    return Training(module, loader(d.x, d.y), explains(d.x_test, d.y_test), None, settings)


class Growth(LightningModule):
    """Multiplies a population by a learned factor, year after year, and compares the log of where it ends."""

    def __init__(self, years: int = 12) -> None:
        super().__init__()
        self.rate = mlp(6, 32, 1, act=nn.Tanh)
        self.years = years

    def forward(self, x: Tensor) -> Tensor:
        grown, pull = torch.zeros(len(x), 1), self.rate(x)
        for _ in range(self.years):
            grown = grown + 0.15 * pull * (1 + grown.square())
        return grown

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = (self(x) - y).square().mean()
        self.log("error", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


@sick(
    "q-twelve-years-of-growth",
    "unrolled dynamics",
    "exploding-gradients",
    "learning-rate-too-high",
    twin=lambda s: twelve_years(s, 1.0),
)
def twelve_years(seed: int, clip: float | None = None) -> Training:
    d = harvest(seed)
    settings: dict[str, Any] = {"max_epochs": 20, "gradient_clip_val": clip}
    return Training(Growth(), loader(d.x, d.y), explains(d.x_test, d.y_test), None, settings)


class Tower(nn.Module):
    """Sixteen residual blocks without normalisation."""

    def __init__(self, width: int = 32, blocks: int = 16) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(mlp(width, width, width) for _ in range(blocks))
        for block in self.blocks:
            nn.init.kaiming_normal_(block[0].weight)
            nn.init.kaiming_normal_(block[2].weight, a=1.3)
        nn.init.zeros_(self.end.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for block in self.blocks:
            h = h + block(h)
        return self.end(h)


@sick(
    "q-sixteen-bare-blocks",
    "residual mlp",
    "exploding-gradients",
    "learning-rate-too-high",
    "bad-initialization",
    twin=lambda s: bare_blocks(s, 1.0),
)
def bare_blocks(seed: int, clip: float | None = None) -> Training:
    d = harvest(seed, 800, 0.1)
    module = Learner(Tower(), supervised(F.mse_loss), optim("SGD", 0.05, momentum=0.9), "mse")
    settings: dict[str, Any] = {"max_epochs": 20, "gradient_clip_val": clip}
    return Training(module, loader(d.x, d.y, size=40), explains(d.x_test, d.y_test), None, settings)


# --- a loss that is no number -----------------------------------------------------------------------------------------


class Surveyed(LightningModule):
    """Six answers a row, of which only those marked as given count."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.net = mlp(12, 32, 6)
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        given = batch["given"]
        each = F.binary_cross_entropy_with_logits(self(batch["row"]), batch["answers"], reduction="none")
        loss = (each * given).sum() / given.sum().clamp(min=self.least)
        self.log("survey_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("q-answers-left-open", "multi-label", "nonfinite-loss", "unstable-operation", twin=lambda s: left_open(s, 1.0))
def left_open(seed: int, least: float = 0.0) -> Training:
    d = tags(seed)
    given = (torch.rand(d.y.shape, generator=generator(seed, 90)) < 0.12).float()
    score = lambda m: ((predict(m, d.x_test) > 0).float() == d.y_test).float().mean().item()  # noqa: E731
    train = records(4, row=d.x, answers=d.y, given=given)
    return Training(Surveyed(least), train, score, None, {"max_steps": 450})


def weibull(out: Tensor, y: Tensor, shift: float) -> Tensor:
    """Minus the log-likelihood of times, some of them censored."""
    time, seen = y.unbind(1)
    scale, shape = out[:, 0], F.softplus(out[:, 1]) + 0.1
    ratio = torch.log(time + shift) - scale
    return (torch.exp(shape * ratio) - seen * (torch.log(shape) + (shape - 1) * ratio - scale)).mean()


@sick("q-some-end-at-once", "survival", "nonfinite-loss", "corrupt-samples", twin=lambda s: at_once(s, 1e-2))
def at_once(seed: int, shift: float = 0.0) -> Training:
    d = lifetimes(seed)
    y = d.y.clone()
    y[torch.randperm(len(y), generator=generator(seed, 91))[:6]] = torch.tensor([0.0, 1.0])
    module = Learner(mlp(5, 24, 2), supervised(lambda o, t: weibull(o, t, shift)), optim("Adam", 4e-3), "weibull")
    score = lambda m: concordance(-predict(m, d.x_test)[:, 0], d.y_test)  # noqa: E731
    return Training(module, loader(d.x, y, size=20), score, None, {"max_epochs": 9, "gradient_clip_val": 5.0})


def uncorrelated(out: Tensor, y: Tensor, floor: float) -> Tensor:
    """One minus the correlation within the session, and how far its levels lie apart."""
    a, b = out - out.mean(), y - y.mean()
    scale = ((a * a).mean() * (b * b).mean() + floor).sqrt()
    return 1 - (a * b).mean() / scale + 0.1 * (out.mean() - y.mean()).square()


class Sessions(Dataset[Any]):
    """Recordings of sixteen rows; in a few of them the subject never moved."""

    def __init__(self, d: Split, still: Tensor) -> None:
        self.x, self.y = d.x.view(-1, 16, 6), d.y.view(-1, 16, 1).clone()
        self.y[still] = 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


@sick("q-sessions-of-sixteen", "regression", "nonfinite-loss", "unstable-operation", twin=lambda s: sessions(s, 1e-4))
def sessions(seed: int, floor: float = 0.0) -> Training:
    d = harvest(seed)
    still = torch.randperm(50, generator=generator(seed, 92))[:3]
    module = Learner(
        mlp(6, 32, 1, act=nn.Tanh), supervised(lambda o, t: uncorrelated(o, t, floor)), optim("Adam", 1e-2)
    )
    train = DataLoader(Sessions(d, still), batch_size=None, shuffle=True)
    return Training(module, train, explains(d.x_test, d.y_test), None, {"max_epochs": 8, "log_every_n_steps": 10})


# --- a gradient that is no number -------------------------------------------------------------------------------------


def turned(out: Tensor, y: Tensor, margin: float) -> Tensor:
    """The mean angle between two directions."""
    cosine = (F.normalize(out, dim=-1) * y).sum(-1)
    return torch.acos(cosine.clamp(-1 + margin, 1 - margin)).mean()


@sick("q-angle-to-the-truth", "pose", "nonfinite-gradients", "unstable-operation", twin=lambda s: angle(s, 1e-5))
def angle(seed: int, margin: float = 0.0) -> Training:
    g = generator(seed, 93)
    x = torch.randn(1000, 4, generator=g)
    y = F.normalize(torch.stack([x[:, 0] + x[:, 1] * x[:, 2], x[:, 3] + 0.5 * x[:, 0].square()], 1), dim=-1)
    module = Learner(mlp(4, 64, 2), supervised(lambda o, t: turned(o, t, margin)), optim("Adam", 3e-3), "angle")

    def score(m: LightningModule) -> float:
        return F.cosine_similarity(predict(m, x[700:]), y[700:]).mean().item()

    return Training(module, loader(x[:700], y[:700], size=25), score, None, {"max_epochs": 14})


@sick(
    "q-mean-and-spread-of-a-clip",
    "audio",
    "nonfinite-gradients",
    "unstable-operation",
    twin=lambda s: mean_and_spread(s, 1e-4),
)
def mean_and_spread(seed: int, floor: float = 0.0) -> Training:
    d = clips(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=generator(seed, 94))[:7]] = 0.0
    module = Learner(ClipNet(floor=floor), supervised(F.cross_entropy), optim("AdamW", 4e-3), "xent")
    val = loader(d.x_test, d.y_test, size=100, shuffle=False)
    return Training(module, loader(x, d.y, size=20), hits(d.x_test, d.y_test), val, {"max_epochs": 8})


class Matcher(LightningModule):
    """Compares a basket with three learned directions by cosine."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(31, 16, mode="sum", padding_idx=0)
        self.turn = nn.Linear(16, 16, bias=False)
        self.kinds = nn.Parameter(torch.randn(3, 16))
        self.floor = floor

    def forward(self, ids: Tensor) -> Tensor:
        h = self.turn(self.table(ids))
        size = (h.square().sum(-1, keepdim=True) + self.floor).sqrt() + 1e-8
        return 6 * (h / size) @ F.normalize(self.kinds, dim=-1).T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y, label_smoothing=0.05)
        self.log("match", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            [
                {"params": self.table.parameters(), "lr": 2e-2},
                {"params": [self.kinds, *self.turn.parameters()], "lr": 1e-2},
            ]
        )


@sick(
    "q-matched-by-direction",
    "embedding bag",
    "nonfinite-gradients",
    "unstable-operation",
    twin=lambda s: by_direction(s, 1e-6),
)
def by_direction(seed: int, floor: float = 0.0) -> Training:
    d = baskets(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=generator(seed, 95))[:8]] = 0
    return Training(Matcher(floor), loader(x, d.y, size=30), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


# --- an operation that leaves the numbers -----------------------------------------------------------------------------


class RelativeChange(nn.Module):
    """From levels to changes from step to step."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 1:] - x[:, :-1]) / x[:, :-1].clamp(min=self.floor)


@sick("q-sales-from-week-to-week", "gru", "unstable-operation", twin=lambda s: week_to_week(s, 1.0))
def week_to_week(seed: int, floor: float = 0.0) -> Training:
    d = turbines(seed)
    sales = [torch.poisson(10 * torch.exp(0.6 * x), generator=generator(seed, 96)) for x in (d.x, d.x_test)]
    net = nn.Sequential(RelativeChange(floor), Recur(nn.GRU, 3, 24, 1))
    module = Learner(net, supervised(F.mse_loss), optim("Adam", 5e-3))
    score = explains(sales[1], d.y_test)
    return Training(module, loader(sales[0], d.y), score, None, {"max_epochs": 12, "gradient_clip_val": 1.0})


class Attended(nn.Module):
    """Weighs the words of a basket by attention; padding gets no weight."""

    def __init__(self, forbidden: float) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 16, padding_idx=0)
        self.weigh = nn.Linear(16, 1)
        self.head = nn.Linear(16, 3)
        self.forbidden = forbidden

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        weight = self.weigh(h)[..., 0].masked_fill(ids == 0, self.forbidden).softmax(-1)
        return self.head((weight[..., None] * h).sum(1))


@sick("q-weighed-words-of-a-basket", "attention", "unstable-operation", twin=lambda s: weighed_words(s, -1e4))
def weighed_words(seed: int, forbidden: float = -math.inf) -> Training:
    d = baskets(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=generator(seed, 97))[:12]] = 0
    module = Learner(Attended(forbidden), supervised(F.cross_entropy), optim("Adam", 1e-2), "train_loss")
    return Training(module, loader(x, d.y, size=45), hits(d.x_test, d.y_test), None, {"max_epochs": 10})


# --- gaps in the data -------------------------------------------------------------------------------------------------


@sick("q-nodes-in-log-units", "graph", "nonfinite-inputs", twin=lambda s: log_units(s, 1e-3))
def log_units(seed: int, least: float = 0.0) -> Training:
    d = networks(seed)
    raw = 10 ** d.x[..., -1]
    hole = torch.randperm(len(raw), generator=generator(seed, 98))[:5]
    raw[hole, 2] = 0.0
    x = d.x.clone()
    x[..., -1] = torch.log10(raw.clamp(min=least))
    module = Learner(GraphNet(), supervised(F.mse_loss), optim("Adam", 3e-3), "train_mse")
    return Training(module, loader(x, d.y, size=20), explains(d.x_test, d.y_test), None, {"max_epochs": 12})


class Levelled(Dataset[Any]):
    """Sounds, each brought to mean 0 and deviation 1 as it is read."""

    def __init__(self, x: Tensor, y: Tensor, floor: float) -> None:
        self.x, self.y, self.floor = x, y, floor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x = self.x[i]
        return {"sound": (x - x.mean()) / (x.std() + self.floor), "label": self.y[i]}


class Listener(LightningModule):
    """Names the pitch of a sound."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ClipNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["sound"]), batch["label"])
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("loss/val", F.cross_entropy(self(batch["sound"]), batch["label"]))

    def configure_optimizers(self) -> Any:
        return [torch.optim.NAdam(self.parameters(), lr=4e-3)]


@sick("q-each-sound-levelled", "audio", "nonfinite-inputs", twin=lambda s: sound_levelled(s, 1e-6))
def sound_levelled(seed: int, floor: float = 0.0) -> Training:
    d = clips(seed)
    x = d.x.clone()
    x[torch.randperm(len(x), generator=generator(seed, 99))[:6]] = 0.0
    train = DataLoader(Levelled(x, d.y, floor), batch_size=20, shuffle=True)
    val = DataLoader(Levelled(d.x_test, d.y_test, 1e-6), batch_size=100)
    level = (d.x_test - d.x_test.mean(-1, keepdim=True)) / d.x_test.std(-1, keepdim=True)
    return Training(Listener(), train, hits(level, d.y_test), val, {"max_epochs": 8})


class TwoTower(nn.Module):
    """Ids and two columns about the user against an item."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = Factors()
        self.side = mlp(2, 16, 1)

    def forward(self, pairs: Tensor, about: Tensor) -> Tensor:
        return self.factors(pairs) + self.side(about)[:, 0]


class Rater(LightningModule):
    """Foretells ratings from ids and what the profile says."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TwoTower()

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return self.model(*inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, about, rating = batch
        loss = F.mse_loss(self((pairs, about)), rating)
        self.log("rating_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


@sick("q-profile-beside-the-ids", "recommender", "nonfinite-inputs", twin=lambda s: beside_ids(s, 0.0))
def beside_ids(seed: int, unknown: float = float("nan")) -> Training:
    d = stars(seed)
    g = generator(seed, 100)
    profile = torch.randn(60, 2, generator=g)
    bonus = lambda p: profile[p[:, 0], 0].tanh()  # noqa: E731
    about = profile[d.x[:, 0]].clone()
    about[torch.randperm(len(about), generator=g)[:12], 1] = unknown
    train = loader(d.x, about, d.y + bonus(d.x), size=60)
    score = explains((d.x_test, profile[d.x_test[:, 0]]), d.y_test + bonus(d.x_test))
    return Training(Rater(), train, score, None, {"max_epochs": 8})


# --- a few that are off -----------------------------------------------------------------------------------------------


@sick("q-ratings-with-no-stop", "recommender", "corrupt-samples", twin=lambda s: no_stop(s, 1.0))
def no_stop(seed: int, factor: float = 1e4) -> Training:
    d = stars(seed)
    y = d.y.clone()
    y[torch.randperm(len(y), generator=generator(seed, 101))[:7]] *= factor
    module = Learner(Factors(), supervised(F.mse_loss), optim("SGD", 0.3, momentum=0.9), "mse")
    train = loader(d.x, y, size=48)
    return Training(module, train, explains(d.x_test, d.y_test), None, {"max_epochs": 8, "gradient_clip_val": None})


@sick("q-returns-behind-the-sensor", "point set", "corrupt-samples", twin=lambda s: behind_sensor(s, 1.0))
def behind_sensor(seed: int, factor: float = 2e4) -> Training:
    d = clouds(seed)
    x = d.x.clone()
    stray = torch.randperm(len(x), generator=generator(seed, 102))[:6]
    x[stray, 3] *= factor
    module = Learner(DeepSet(), supervised(F.cross_entropy), optim("SGD", 0.02, momentum=0.9), "ce")
    return Training(
        module, Rows(Split(x, d.y, d.x_test, d.y_test), 28), hits(d.x_test, d.y_test), None, {"max_epochs": 14}
    )


@sick("q-turbines-out-of-service", "lstm", "corrupt-samples", twin=lambda s: out_of_service(s, None))
def out_of_service(seed: int, flag: float | None = -99999.0) -> Training:
    d = turbines(seed)
    y = d.y.clone()
    if flag is not None:
        y[torch.randperm(len(y), generator=generator(seed, 103))[:6]] = flag
    module = Learner(Recur(nn.LSTM, 3, 24, 1), supervised(F.mse_loss), optim("RMSprop", 3e-3), "loss")
    train = loader(d.x, y, size=28)
    return Training(module, train, explains(d.x_test, d.y_test), None, {"max_epochs": 14, "log_every_n_steps": 5})


# --- limits on the gradient -------------------------------------------------------------------------------------------


@sick("q-spectra-by-descent", "autoencoder", "clipping-too-tight", twin=lambda s: by_descent(s, 5.0))
def by_descent(seed: int, clip: float = 5e-4) -> Training:
    g = generator(seed, 104)
    z = torch.randn(1000, 3, generator=g)
    x = torch.tanh(z @ torch.randn(3, 24, generator=g)) + 0.05 * torch.randn(1000, 24, generator=g)
    net = nn.Sequential(nn.Linear(24, 32), nn.ELU(), nn.Linear(32, 3), nn.Linear(3, 32), nn.ELU(), nn.Linear(32, 24))
    module = Learner(net, lambda n, b: F.mse_loss(n(b[0]), b[0]), optim("SGD", 0.5, momentum=0.9), "rebuild")
    settings = {"max_epochs": 12, "gradient_clip_val": clip}
    return Training(module, loader(x[:700], size=28), explains(x[700:], x[700:]), None, settings)


class Tagger(LightningModule):
    """Tags every place; takes its steps by hand and limits the norm before each."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.limit = limit
        self.net = Words(10, 10, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        optimizer = self.optimizers()
        loss = per_place(self(ids), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), self.limit)
        optimizer.step()
        self.log("tagging", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


@sick("q-tags-stepped-by-hand", "transformer", "clipping-too-tight", twin=lambda s: stepped_by_hand(s, 2.0))
def stepped_by_hand(seed: int, limit: float = 1e-3) -> Training:
    d = riddles(seed)
    return Training(Tagger(limit), loader(d.x, d.y), hits(d.x_test, d.y_test), None, {"max_epochs": 12})


@sick("q-discs-value-by-value", "segmentation", "clipping-too-tight", twin=lambda s: value_by_value(s, 0.5))
def value_by_value(seed: int, clip: float = 1e-5) -> Training:
    d = spots(seed)
    module = Learner(spot_net(), supervised(F.binary_cross_entropy_with_logits), optim("SGD", 0.2, momentum=0.9), "bce")
    settings = {"max_epochs": 10, "gradient_clip_val": clip, "gradient_clip_algorithm": "value"}
    return Training(module, Rows(d, 20), overlap(d.x_test, d.y_test), None, settings)
