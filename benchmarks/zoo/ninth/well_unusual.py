"""Healthy trainings that look odd, each in its own way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.ninth._common import (
    Bag,
    Bare,
    Factors,
    Last,
    Learner,
    adam,
    adamw,
    ce,
    cnn,
    conv1d,
    first_word,
    flows,
    frozen_order,
    furnace,
    loader,
    mlp,
    mse,
    notes,
    pulses,
    ratings,
    sgd,
    surveys,
    tides,
)
from benchmarks.zoo.ninth.well_usual import fit


@well("n-gauges-loss-scaled-down", "regression", note="the loss is scaled by 1e-4, Adam does not mind")
def tiny_loss(seed: int) -> Training:
    d = furnace(seed)
    return fit(mlp(6, 48, 48, 3), d, lambda o, y: 1e-4 * mse(o, y), adam(5e-3), d.r2, max_epochs=6)


@well(
    "n-gauges-thousandfold-loss-clipped", "regression", note="a loss of thousands, every step clipped to norm 1, Adam"
)
def huge_loss(seed: int) -> Training:
    d = furnace(seed)
    loss = lambda o, y: 1000 * (o - y).square().sum(1).mean()  # noqa: E731
    return fit(mlp(6, 48, 48, 3), d, loss, adam(5e-3), d.r2, max_epochs=6, gradient_clip_val=1.0)


@well("n-digits-signs-of-gradients", "mlp", note="each weight moves by its gradient's sign")
def signs(seed: int) -> Training:
    class Signs(Learner):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad = p.grad.sign()

    d = data.digits(seed)
    module = Signs(mlp(64, 48, 10), ce, sgd(1e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 6})


@well("n-ring-density-below-nought", "flow", note="the loss is negative: points concentrated on a small scale")
def density(seed: int) -> Training:
    x, test = 0.1 * flows(seed), 0.1 * flows(seed + 50)

    class Mixture(Bare):
        rate = 1e-2

        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log_std = nn.Parameter(0.1 * torch.randn(24, 2)), nn.Parameter(torch.full((24,), -2.0))
            self.share = nn.Parameter(torch.zeros(24))

        def forward(self, x: Tensor) -> Tensor:
            square = (x[:, None] - self.mean).square().sum(-1) * torch.exp(-2 * self.log_std)
            return torch.logsumexp(self.share.log_softmax(0) - 0.5 * square - 2 * self.log_std - 1.8379, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return -self(batch[0]).mean()

    return Training(
        Mixture(), loader(x, size=64), lambda m: data.predict(m, test).mean().item(), trainer={"max_epochs": 9}
    )


@well("n-surveys-wide-inputs-normed-inside", "mlp", note="raw columns of thousands go into a batch norm first")
def normed_inside(seed: int) -> Training:
    d = surveys(seed)
    unit = 10.0 ** torch.arange(-2.0, 8.0)
    d = data.Split(d.x * unit + unit, d.y, d.x_test * unit + unit, d.y_test)
    return fit(nn.Sequential(nn.BatchNorm1d(10), *mlp(10, 64, 64, 3)), d, ce, adam(5e-3), max_epochs=7)


class Teacher(Bare):
    """Learns from a larger net's answers, which are kept in the module and never change."""

    rate = 3e-3

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = mlp(64, 24, 10), teacher.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    def on_train_epoch_start(self) -> None:
        self.teacher.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        target = (self.teacher(x) / 2).softmax(-1)
        return F.kl_div((self(x) / 2).log_softmax(-1), target, reduction="batchmean") * 4


@well("n-digits-student-without-labels", "distillation", note="most parameters are frozen and in evaluation mode")
def student(seed: int) -> Training:
    d = data.digits(seed)
    teacher = mlp(64, 128, 128, 10)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        ce(teacher(d.x), d.y).backward()
        optimizer.step()
    return Training(Teacher(nn.Sequential(teacher, nn.Dropout(0.2))), loader(d.x), d.accuracy, None, {"max_epochs": 7})


@well("n-notes-few-rows-touched", "text", note="a table of 20000 rows of which few get gradients")
def sparse_table(seed: int) -> Training:
    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.out = nn.EmbeddingBag(20_000, 16), nn.Linear(16, 5)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.bag(ids))

    return fit(Big(), notes(seed), ce, adam(1e-2), max_epochs=6)


class Rivals(Bare):
    """Two nets against each other; neither loss goes down for long."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make, self.judge = mlp(4, 48, 48, 2), mlp(2, 48, 48, 1, act=lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor) -> Tensor:
        return self.make(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (x,) = batch
        maker, judge = self.optimizers()
        fake = self.make(torch.randn(len(x), 4))
        self.toggle_optimizer(judge)
        loss = F.softplus(-self.judge(x)).mean() + F.softplus(self.judge(fake.detach())).mean()
        judge.zero_grad()
        self.manual_backward(loss)
        judge.step()
        self.untoggle_optimizer(judge)
        self.toggle_optimizer(maker)
        cheat = F.softplus(-self.judge(fake)).mean()
        maker.zero_grad()
        self.manual_backward(cheat)
        maker.step()
        self.untoggle_optimizer(maker)
        self.log_dict({"judge": loss, "maker": cheat})

    def configure_optimizers(self) -> Any:
        options: dict[str, Any] = {"lr": 2e-3, "betas": (0.5, 0.99)}
        return torch.optim.Adam(self.make.parameters(), **options), torch.optim.Adam(self.judge.parameters(), **options)


@well("n-ring-made-by-rivals", "gan", note="adversarial losses hover about a constant")
def rivals(seed: int) -> Training:
    x = flows(seed)
    z = torch.randn(800, 4, generator=data.generator(seed, 3))

    def score(m: Any) -> float:
        return -abs(data.predict(m, z).norm(dim=1).mean().item() - x.norm(dim=1).mean().item())

    return Training(Rivals(), loader(x, size=64, drop_last=True), score, trainer={"max_epochs": 9})


class Bandit(Bare):
    """Chooses one of five arms for a state and learns from the reward alone; the loss means nothing by itself."""

    rate = 1e-2

    def __init__(self, arms: Tensor) -> None:
        super().__init__()
        self.net, self.arms, self.base = mlp(6, 32, 5), arms, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        chance = torch.distributions.Categorical(logits=self(x))
        arm = chance.sample()
        reward = (x @ self.arms).gather(1, arm[:, None])[:, 0]
        gain = reward - self.base
        self.base = 0.9 * self.base + 0.1 * reward.mean().item()
        self.log("reward", reward.mean(), prog_bar=True)
        return -(chance.log_prob(arm) * gain).mean() - 0.01 * chance.entropy().mean()


@well("n-arms-chosen-by-state", "bandit", note="a policy gradient: the loss is noise around nought")
def arms_chosen(seed: int) -> Training:
    g = data.generator(seed, 12)
    arms, x, test = (torch.randn(k, m, generator=g) for k, m in ((6, 5), (2000, 6), (1000, 6)))

    def score(m: Any) -> float:
        return (test @ arms).gather(1, data.predict(m, test).argmax(1, keepdim=True)).mean().item()

    return Training(Bandit(arms), loader(x, size=64), score, trainer={"max_epochs": 7})


@well("n-pulses-hard-to-see", "cnn1d", note="training inputs are noised and masked hard, the loss stays up")
def augmented(seed: int) -> Training:
    class Hard(Learner):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            keep = (torch.rand_like(x) > 0.3).float()
            loss = ce(self(x * keep + 0.4 * torch.randn_like(x)), y)
            self.log("train_loss", loss)
            return loss

    d = pulses(seed)
    module = Hard(conv1d(width=16), ce, adam(4e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


@well("n-blobs-sorted-within-but-balanced", "mlp", note="each batch is sorted by class, and holds all of them")
def sorted_batches(seed: int) -> Training:
    d = data.blobs(seed, n=1500)

    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        rows = sorted(rows, key=lambda r: int(r[1]))
        return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])

    rows: Any = list(zip(d.x, d.y, strict=True))
    train = DataLoader(rows, 32, shuffle=True, collate_fn=collate)
    return Training(Learner(mlp(10, 32, 5), ce, adam(4e-3)), train, d.accuracy, d.val(), {"max_epochs": 4})


@well("n-tides-in-order-of-time", "forecast", note="not shuffled, as neighbours in the file are independent windows")
def in_order(seed: int) -> Training:
    d = tides(seed)
    module = Learner(Last(nn.LSTM, 1, 24, 1), mse, adam(1e-2))
    return Training(module, loader(d.x, d.y, shuffle=False), d.r2, frozen_order(d.x_test, d.y_test), {"max_epochs": 8})


class Endless(IterableDataset[Any]):
    """Batches of equations made up as they are asked for: no sample is seen twice."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Any:
        g = torch.Generator().manual_seed(self.seed)
        while True:
            x = torch.rand(64, 3, generator=g) * 2 - 1
            yield x, (x[:, :1] * x[:, 1:2] - x[:, 2:].square())


@well("n-products-without-end", "regression", note="no length, no epochs, no validation; loaded whole batches")
def endless(seed: int) -> Training:
    x, y = next(iter(Endless(seed + 9999)))
    module = Learner(mlp(3, 48, 48, 1, act=nn.SiLU), mse, adam(5e-3))
    train = DataLoader(Endless(seed), batch_size=None)
    score = lambda m: data.r2(data.predict(m, x), y)  # noqa: E731
    return Training(module, train, score, None, {"max_steps": 250, "log_every_n_steps": 50})


@well("n-shoppers-large-decay-on-tables", "recommender", note="a decay of 0.3 that AdamW multiplies by a rate of 0.02")
def decayed(seed: int) -> Training:
    d = ratings(seed)
    return fit(Factors(), d, mse, adamw(0.02, weight_decay=0.3), d.r2, size=64, max_epochs=7)


@well("n-digits-three-in-four-units-off", "mlp", note="a wide ReLU layer with a bias below nought: sparse by design")
def sparse_units(seed: int) -> Training:
    d = data.digits(seed)
    net = mlp(64, 256, 10)
    nn.init.constant_(net[0].bias, -0.4)
    nn.init.normal_(net[0].weight, std=0.15)
    return fit(net, d, ce, adam(3e-3), max_epochs=5)


@well("n-first-word-hard-gates", "gru", note="the forget gates start wide open")
def hard_gates(seed: int) -> Training:
    net = Last(nn.LSTM, 12, 32, 4, symbols=16)
    with torch.no_grad():
        net.rnn.bias_ih_l0[32:64] = 4.0  # the forget gate starts open
    return fit(net, first_word(seed, length=16), ce, adam(1e-2), max_epochs=8)


@well("n-digits-head-from-nought", "cnn", note="the last layer starts with zeros, so that the first loss is log 10")
def zero_head(seed: int) -> Training:
    net = cnn()
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return fit(net, data.digits(seed).to_images(), ce, adam(3e-3), max_epochs=5)


@well("n-gauges-line-by-lines", "regression", note="linear layers alone, and the truth is linear")
def lines(seed: int) -> Training:
    g = data.generator(seed, 13)
    x = torch.randn(1500, 6, generator=g)
    y = x @ torch.randn(6, 2, generator=g) + 0.1 * torch.randn(1500, 2, generator=g)
    d = data.Split(x[:1000], y[:1000], x[1000:], y[1000:])
    return fit(mlp(6, 6, 2, act=nn.Identity), d, mse, adam(1e-2), d.r2, max_epochs=6)


class Views(Bare):
    """Two noisy views of a digit are each other's match among the batch: samples meet in the loss by design."""

    rate = 3e-3

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(64, 64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        a, b = (self(x + 0.15 * torch.randn_like(x)) for _ in range(2))
        logits = a @ b.T / 0.2
        y = torch.arange(len(x))
        loss = (ce(logits, y) + ce(logits.T, y)) / 2
        self.log("contrast", loss)
        return loss


@well("n-digits-views-that-match", "contrastive", note="the loss of a sample depends on its batch")
def views(seed: int) -> Training:
    d = data.digits(seed)

    def score(m: Any) -> float:
        near = torch.cdist(data.predict(m, d.x_test), data.predict(m, d.x)).argmin(1)
        return (d.y[near] == d.y_test).float().mean().item()

    return Training(Views(), loader(d.x, size=64, drop_last=True), score, trainer={"max_epochs": 8})


class Halves(Learner):
    """Steps on every other batch only; training_step returns nothing for the rest."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch[1].float().mean() > 5.0:
            return None
        return super().training_step(batch, batch_idx)


@well("n-digits-some-batches-passed-over", "mlp", note="training_step returns None for some batches")
def passed_over(seed: int) -> Training:
    d = data.digits(seed)
    module = Halves(mlp(64, 64, 10), ce, adam(3e-3))
    return Training(module, loader(d.x, d.y), d.accuracy, frozen_order(d.x_test, d.y_test), {"max_epochs": 7})


@well("n-notes-accumulated-in-half-precision", "text", note="few steps of large effective batches, bf16, a clip")
def accumulated(seed: int) -> Training:
    d = notes(seed)
    settings = {"max_epochs": 12, "accumulate_grad_batches": 3, "precision": "bf16-mixed", "gradient_clip_val": 0.5}
    return fit(Bag(), d, ce, adam(1e-2), size=32, **settings)
