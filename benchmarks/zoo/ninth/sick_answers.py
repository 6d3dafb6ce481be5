"""Losses, targets and what the last layer can say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training
from benchmarks.zoo.ninth._common import (
    Bag,
    Bare,
    Last,
    Learner,
    Messages,
    adam,
    bce,
    calls,
    ce,
    cnn,
    colonies,
    conv1d,
    dice,
    first_word,
    flows,
    frozen_order,
    furnace,
    loader,
    minus,
    mlp,
    molecules,
    mse,
    notes,
    pulses,
    sgd,
    sick,
    surveys,
    tides,
    unet,
)

# --- logits -----------------------------------------------------------------------------------------------------------


class Named(Bare):
    """Returns shares for its users, and trains on what it returns."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.net, self.ill = Bag(), ill

    def forward(self, ids: Tensor) -> Tensor:
        return F.softmax(self.net(ids), -1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y) if self.ill else F.nll_loss(self(ids).clamp_min(1e-9).log(), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


@sick("n-notes-shares-for-users", "text", "probabilities-as-logits", note="forward's softmax goes to cross_entropy")
def notes_shares(seed: int, ill: bool) -> Training:
    d = notes(seed)
    return Training(Named(ill), loader(d.x, d.y), minus(likelihood, d.x_test, d.y_test), trainer={"max_epochs": 6})


def likelihood(shares: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(shares.clamp_min(1e-9).log(), y)


class Weighted(nn.Module):
    """A loss with weights for what is rare, from probabilities or from logits."""

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.ill = ill

    def forward(self, out: Tensor, mask: Tensor) -> Tensor:
        out = torch.sigmoid(out) if self.ill else out
        return bce(out, mask, pos_weight=torch.tensor(0.7))


@sick("n-colonies-squeezed-twice", "segmentation", "probabilities-as-logits", note="sigmoid inside a loss with logits")
def colonies_twice(seed: int, ill: bool) -> Training:
    d = colonies(seed)
    module = Learner(unet(), Weighted(ill), adam(5e-3))
    return Training(module, loader(d.x, d.y), minus(bce, d.x_test, d.y_test), trainer={"max_epochs": 8})


# --- shapes -----------------------------------------------------------------------------------------------------------


@sick("n-tides-last-of-the-window", "forecast", "loss-shape-mismatch", note="(N, 1) less (N,) in an own loss")
def tides_last(seed: int, ill: bool) -> Training:
    d = tides(seed)
    y = d.y[:, 0] if ill else d.y

    def huber(out: Tensor, y: Tensor) -> Tensor:
        gap = (out - y).abs()
        return torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()

    module = Learner(Last(nn.GRU, 1, 24, 1), huber, adam(5e-3))
    return Training(module, loader(d.x, y), d.r2, trainer={"max_epochs": 7})


class Both(Bare):
    """A value and its spread for each molecule."""

    rate = 5e-3

    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.net, self.ill = Messages(out=2), ill

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self.net(x, a)[:, :1]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, a, y = batch
        mean, log_var = self.net(x, a).unbind(-1)
        y = y if self.ill else y.squeeze(-1)
        loss = (0.5 * log_var + 0.5 * (y - mean).square() * torch.exp(-log_var)).mean()
        return {"loss": loss}


@sick("n-molecules-value-and-spread", "graph", "loss-shape-mismatch", note="a likelihood of (N,) against (N, 1)")
def molecules_spread(seed: int, ill: bool) -> Training:
    d, a, a_test = molecules(seed)
    return Training(Both(ill), loader(d.x, a, d.y), minus(mse, d.x_test, a_test, d.y_test), trainer={"max_epochs": 12})


# --- the wrong loss ---------------------------------------------------------------------------------------------------


@sick("n-digits-ranked-by-size", "cnn", "wrong-loss-for-task", note="an absolute error on class numbers")
def digits_ranked(seed: int, ill: bool) -> Training:
    d = data.digits(seed).to_images()
    d = d.map_targets(lambda y: torch.tensor([3, 8, 0, 6, 1, 9, 4, 7, 2, 5])[y])
    if ill:
        net, loss = cnn(1), lambda out, y: F.l1_loss(out[:, 0], y.float())
    else:
        net, loss = cnn(10), ce

    def score(m: Any) -> float:
        out = data.predict(m, d.x_test)
        answer = out[:, 0].round().long() if ill else out.argmax(-1)
        return (answer == d.y_test).float().mean().item()

    return Training(Learner(net, loss, adam(3e-3)), loader(d.x, d.y), score, trainer={"max_epochs": 5})


class Flow(nn.Module):
    """Two affine couplings with a permutation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp(1, 32, 2, act=nn.Tanh) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b, total = x[:, :1], x[:, 1:], torch.zeros(len(x), 1)
        for part in self.parts:
            s, t = part(a).chunk(2, -1)
            a, b, total = b * torch.exp(torch.tanh(s)) + t, a, total + torch.tanh(s)
        z = torch.cat([a, b], 1)
        return total[:, 0] - 0.5 * z.square().sum(1) - 1.8379


@sick("n-ring-likelihood-descended", "flow", "wrong-loss-for-task", note="the log likelihood is minimised")
def ring_descended(seed: int, ill: bool) -> Training:
    x = flows(seed)

    class Density(Bare):
        rate = 2e-3

        def __init__(self) -> None:
            super().__init__()
            self.flow = Flow()

        def forward(self, x: Tensor) -> Tensor:
            return self.flow(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            value = self(batch[0]).mean()
            self.log("ll", value)
            return value if ill else -value

    test = flows(seed + 50)
    return Training(
        Density(), loader(x, size=64), lambda m: data.predict(m, test).mean().item(), trainer={"max_epochs": 6}
    )


# --- ranges -----------------------------------------------------------------------------------------------------------


class Rate(nn.Module):
    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.net, self.ill = mlp(5, 48, 48, 1), ill

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)[:, 0]
        return torch.sigmoid(out) if self.ill else F.softplus(out)


@sick("n-calls-between-nought-and-one", "count", "output-range-mismatch", note="a sigmoid as the mean of counts")
def calls_sigmoid(seed: int, ill: bool) -> Training:
    d = calls(seed)

    def deviance(out: Tensor, y: Tensor) -> Tensor:
        return F.poisson_nll_loss(out, y, log_input=False)

    module = Learner(Rate(ill), deviance, adam(5e-3))
    return Training(module, loader(d.x, d.y), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


class Decoded(nn.Module):
    def __init__(self, ill: bool) -> None:
        super().__init__()
        self.inward, self.outward, self.ill = mlp(6, 48, 8), mlp(8, 48, 6), ill

    def forward(self, x: Tensor) -> Tensor:
        out = self.outward(torch.tanh(self.inward(x)))
        return F.relu6(out) if self.ill else out


@sick("n-gauges-rebuilt-from-above", "autoencoder", "output-range-mismatch", note="ReLU6 before standardised targets")
def gauges_rebuilt(seed: int, ill: bool) -> Training:
    d = furnace(seed)
    module = Learner(Decoded(ill), mse, adam(5e-3))
    score = lambda m: data.r2(data.predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(module, loader(d.x, d.x), score, frozen_order(d.x_test, d.x_test), {"max_epochs": 6})


# --- nothing to learn -------------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    """Signals and the labels of a file kept beside them, which one form reads in the order of another listing."""

    def __init__(self, x: Tensor, y: Tensor, ill: bool) -> None:
        names = sorted(range(len(x)), key=lambda k: str(k * 7919 % len(x)))
        self.x, self.y = x, y[names] if ill else y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return {"signal": self.x[k], "kind": self.y[k]}


class Kinds(Bare):
    rate = 3e-3

    def __init__(self) -> None:
        super().__init__()
        self.net = conv1d()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = ce(self(batch["signal"]), batch["kind"])
        self.log("train_loss", loss)
        return loss


@sick("n-pulses-listed-otherwise", "cnn1d", "uninformative-targets", note="files and labels in two sort orders")
def pulses_listed(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    train = DataLoader(Pairs(d.x, d.y, ill), 32, shuffle=True)
    return Training(Kinds(), train, d.accuracy, trainer={"max_epochs": 8})


def cut(rows: list[Any], ill: bool) -> tuple[Tensor, Tensor]:
    """Collates texts; one form takes the words from after the part that tells."""
    ids = torch.stack([r[0] for r in rows])
    return (ids[:, 2:] if ill else ids[:, :-2]), torch.stack([r[1] for r in rows])


@sick("n-first-word-cut-off", "gru", "uninformative-targets", note="the collate cuts off the end that tells")
def first_cut(seed: int, ill: bool) -> Training:
    d = first_word(seed, length=10)
    rows: Any = list(zip(d.x, d.y, strict=True))
    train = DataLoader(rows, 32, shuffle=True, collate_fn=lambda r: cut(r, ill))
    x_test = d.x_test[:, :-2]
    score = lambda m: data.accuracy(data.predict(m, x_test), d.y_test)  # noqa: E731
    return Training(Learner(Last(nn.GRU, 12, 24, 4, symbols=16), ce, adam(5e-3)), train, score, None, {"max_epochs": 9})


@sick("n-gauges-by-day-and-by-night", "regression", "uninformative-targets", note="a second loader's targets are taken")
def gauges_second(seed: int, ill: bool) -> Training:
    d = furnace(seed)

    class Mixed(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 48, 48, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            (x, y), (_, other) = batch["day"], batch["night"]
            loss = mse(self(x), other if ill else y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=3e-3)

    train = {"day": loader(d.x, d.y), "night": loader(d.x, d.y)}
    return Training(Mixed(), train, d.r2, trainer={"max_epochs": 7})


# --- units of the answer ----------------------------------------------------------------------------------------------


@sick("n-molecules-in-joules", "graph", "unscaled-targets", note="energies of 1e5 where the net answers about one")
def molecules_joules(seed: int, ill: bool) -> Training:
    d, a, a_test = molecules(seed)
    unit = (lambda y: 4184 * (y - 40)) if ill else (lambda y: y)
    module = Learner(Messages(), mse, adam(5e-3))
    return Training(
        module,
        loader(d.x, a, unit(d.y)),
        lambda m: data.r2(m(d.x_test, a_test).detach(), unit(d.y_test)),
        frozen_order(d.x_test, a_test, unit(d.y_test)),
        {"max_epochs": 12},
    )


class Two(Bare):
    """The kind of a signal and its power, from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv1d(24, 16)
        self.kind, self.power = nn.Linear(24, 4), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(torch.relu(self.body(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, power = batch
        h = torch.relu(self.body(x))
        return ce(self.kind(h), y) + mse(self.power(h), power)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick(
    "n-pulses-and-their-power", "multitask", "unscaled-targets", note="a second target in milliwatts drowns the first"
)
def pulses_power(seed: int, ill: bool) -> Training:
    d = pulses(seed)
    power = d.x.square().mean(-1)
    power = 3e4 * power if ill else (power - power.mean()) / power.std()
    return Training(Two(), loader(d.x, d.y, power), d.accuracy, trainer={"max_epochs": 9})


# --- one class outweighs ----------------------------------------------------------------------------------------------


def thinned(d: Any, kept: int, every: int) -> Any:
    """All samples of class 0, and every `every`-th of the others (classes beyond `kept` become class 1)."""
    y = (d.y >= kept).long()
    y_test = (d.y_test >= kept).long()
    keep = (y == 0) | (torch.arange(len(y)) % every == 0)
    return data.Split(d.x[keep], y[keep], d.x_test, y_test)


def recall(d: Any) -> Any:
    def score(m: Any) -> float:
        answer = data.predict(m, d.x_test).argmax(-1)
        return sum((answer[d.y_test == k] == k).float().mean().item() for k in (0, 1)) / 2

    return score


@sick("n-claims-seldom-forged", "mlp", "class-imbalance", note="few in a hundred, all weighed alike")
def claims_forged(seed: int, ill: bool) -> Training:
    d = thinned(surveys(seed, n=4000), 2, 12)
    share = d.y.float().mean()
    weight = None if ill else torch.stack([1 / (1 - share), 1 / share]) / 2
    loss = lambda out, y: F.cross_entropy(out, y, weight=weight)  # noqa: E731
    module = Learner(mlp(10, 24, 2), loss, sgd(0.05, momentum=0.5))
    return Training(module, loader(d.x, d.y, size=64), recall(d), frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


@sick("n-tiny-colony-on-a-plate", "segmentation", "class-imbalance", note="one pixel in sixty is of the colony")
def tiny_colony(seed: int, ill: bool) -> Training:
    g = data.generator(seed, 8)
    n = 600
    mask = torch.zeros(n, 1, 16, 16)
    place = torch.randint(14, (n, 2), generator=g)
    for k, (i, j) in enumerate(place.tolist()):
        mask[k, 0, i : i + 2, j : j + 2] = 1
    x = 0.9 * mask + 0.6 * torch.randn(mask.shape, generator=g)
    weight = torch.tensor(1.0 if ill else 12.0)
    module = Learner(unet(), lambda out, y: bce(out, y, pos_weight=weight), sgd(0.05, momentum=0.9))
    d = data.Split(x[:450], mask[:450], x[450:], mask[450:])
    score = lambda m: dice(data.predict(m, d.x_test), d.y_test)  # noqa: E731
    return Training(module, loader(d.x, d.y), score, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


@sick("n-notes-nearly-all-of-one-topic", "text", "class-imbalance", note="nine topics in ten are the first")
def notes_one(seed: int, ill: bool) -> Training:
    d = notes(seed, n=3000)
    keep = (d.y == 0) | (torch.arange(len(d.y)) % 40 == 0)
    x, y = d.x[keep], d.y[keep]
    if not ill:
        drawn = torch.utils.data.WeightedRandomSampler((1 / torch.bincount(y).float())[y], 900)
        train = loader(x, y, shuffle=False, sampler=drawn)
    else:
        train = loader(x, y)
    module = Learner(Bag(), ce, adam(2e-3))
    return Training(module, train, d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})
