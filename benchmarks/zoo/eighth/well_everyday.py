"""Everyday trainings with usual settings, as a tutorial or a colleague's repository would hold them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.eighth._common import (
    Encoder,
    Module,
    Plain,
    Series,
    Task,
    Tastes,
    beat_net,
    beats,
    commands,
    loader,
    marks,
    mask_net,
    minus,
    mlp,
    notes,
    overlap,
    picture_net,
    spots,
    visits,
    walks,
    yields,
)


@well("k-everyday-digits", "cnn")
def digits_usual(seed: int) -> Training:
    d = data.digits(seed).to_images()
    module = Task(picture_net(norm=True), nn.CrossEntropyLoss(), lr=2e-3)
    return Training(module, d.train(32), d.accuracy, d.val(), {"max_epochs": 6, "log_every_n_steps": 10})


@well("k-everyday-cancer", "mlp")
def cancer(seed: int) -> Training:
    d = data.table("breast_cancer", seed)
    net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1))
    loss = lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.float())  # noqa: E731
    score = lambda m: ((predict(m, d.x_test)[:, 0] > 0) == (d.y_test == 1)).float().mean().item()  # noqa: E731
    return Training(
        Task(net, loss, lr=3e-3), Module((d.x, d.y), (d.x_test, d.y_test), 24), score, trainer={"max_epochs": 10}
    )


@well("k-everyday-beats", "cnn1d")
def beats_usual(seed: int) -> Training:
    d = beats(seed)
    module = Task(beat_net(act=nn.GELU), F.cross_entropy, lr=3e-3, kind="AdamW", weight_decay=0.01)
    return Training(module, loader(d.x, d.y), d.accuracy, loader(d.x_test, d.y_test, shuffle=False), {"max_epochs": 6})


@well("k-everyday-forecast", "lstm")
def forecast(seed: int) -> Training:
    d = walks(seed)
    module = Task(Series(nn.LSTM, 1, 24, 1), F.mse_loss, lr=5e-3)
    settings = {"max_epochs": 8, "gradient_clip_val": 1.0}
    return Training(module, loader(d.x, d.y, size=40), d.r2, loader(d.x_test, d.y_test, shuffle=False), settings)


class Cosine(Task):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


@well("k-everyday-commands", "transformer")
def commands_usual(seed: int) -> Training:
    d = commands(seed)
    module = Cosine(Encoder(16, 4, drop=0.1), nn.CrossEntropyLoss(label_smoothing=0.1), lr=4e-3, kind="AdamW")
    return Training(module, Module((d.x, d.y), (d.x_test, d.y_test)), d.accuracy, trainer={"max_epochs": 7})


@well("k-everyday-text", "transformer")
def language(seed: int) -> Training:
    t = data.characters(seed, n=900, length=24)
    loss = lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())  # noqa: E731
    module = Cosine(Encoder(20, 20, dim=32, layers=2, causal=True), loss, lr=5e-3, kind="AdamW")
    score = minus(loss, t.test[:, :-1], t.test[:, 1:])
    settings = {"max_epochs": 7, "gradient_clip_val": 1.0}
    return Training(module, loader(t.train[:, :-1], t.train[:, 1:], size=30), score, trainer=settings)


@well("k-everyday-notes", "text")
def notes_usual(seed: int) -> Training:
    d = notes(seed)

    def collate(rows: list[Any]) -> Any:
        flat = torch.cat([r[0] for r in rows])
        starts = torch.arange(len(rows)) * len(rows[0][0])
        return flat, starts, torch.stack([r[1] for r in rows])

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.EmbeddingBag(40, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor, starts: Tensor | None = None) -> Tensor:
            return self.head(self.embed(x, starts))

    module = Task(Bag(), F.cross_entropy, lr=0.5, kind="SGD")
    return Training(module, loader(d.x, d.y, collate_fn=collate, size=20), d.accuracy, trainer={"max_epochs": 6})


class Vae(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)[:, :8])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        mean, log_var = self.down(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        rebuilt = F.mse_loss(self.up(z), x, reduction="sum") / len(x)
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
        self.log_dict({"rebuilt": rebuilt, "kl": kl})
        return rebuilt + 0.2 * kl

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 3e-3)


@well("k-everyday-vae", "vae")
def vae(seed: int) -> Training:
    d = data.digits(seed)
    score = lambda m: data.r2(predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(Vae(), loader(d.x, size=40), score, trainer={"max_epochs": 8})


class Gan(LightningModule):
    """Points on a ring from noise."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make, self.judge = mlp(4, 32, 32, 2), mlp(2, 32, 32, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.make(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (x,) = batch
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self.make(torch.randn(len(x), 4))
        ones, zeros = torch.ones(len(x), 1), torch.zeros(len(x), 1)
        bce = F.binary_cross_entropy_with_logits
        self.toggle_optimizer(second)
        judged = bce(self.judge(x), ones) + bce(self.judge(fake.detach()), zeros)
        second.zero_grad()
        self.manual_backward(judged)
        second.step()
        self.untoggle_optimizer(second)
        self.toggle_optimizer(first)
        made = bce(self.judge(fake), ones)
        first.zero_grad()
        self.manual_backward(made)
        first.step()
        self.untoggle_optimizer(first)
        self.log_dict({"made": made, "judged": judged})

    def configure_optimizers(self) -> Any:
        make = torch.optim.Adam(self.make.parameters(), 2e-3, betas=(0.5, 0.99))
        return [make, torch.optim.Adam(self.judge.parameters(), 2e-3, betas=(0.5, 0.99))], []


@well("k-everyday-gan", "gan")
def gan(seed: int) -> Training:
    g = generator(seed, 111)
    x = torch.randn(1000, 2, generator=g) * 0.3 + torch.tensor([1.5, -1.0])
    z = torch.randn(500, 4, generator=g)
    score = lambda m: -(predict(m, z).mean(0) - x.mean(0)).norm().item()  # noqa: E731
    return Training(Gan(), loader(x, size=50, drop_last=True), score, trainer={"max_epochs": 12})


@well("k-everyday-ratings", "recommender")
def ratings(seed: int) -> Training:
    d = marks(seed)
    module = Task(Tastes(dim=4), F.mse_loss, lr=0.02, weight_decay=1e-5)
    score = minus(F.mse_loss, d.x_test, d.y_test)
    return Training(
        module, loader(d.x, d.y, size=64), score, loader(d.x_test, d.y_test, shuffle=False), {"max_epochs": 7}
    )


@well("k-everyday-spots", "segmentation")
def spots_usual(seed: int) -> Training:
    d = spots(seed)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.sigmoid()
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        return F.binary_cross_entropy_with_logits(z, y) + dice

    val = loader(d.x_test, d.y_test, shuffle=False)
    return Training(Task(mask_net(), loss, lr=4e-3), loader(d.x, d.y, size=16), overlap(d), val, {"max_epochs": 7})


class TwoHeads(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body, self.kind, self.parity = mlp(64, 48, 32), nn.Linear(32, 10), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(torch.relu(self.body(x)))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        h = torch.relu(self.body(batch["pixels"]))
        kind = F.cross_entropy(self.kind(h), batch["digit"])
        odd = F.binary_cross_entropy_with_logits(self.parity(h)[:, 0], (batch["digit"] % 2).float())
        return {"loss": kind + 0.5 * odd, "kind": kind.detach()}

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": self.body.parameters()},
            {"params": [*self.kind.parameters(), *self.parity.parameters()], "lr": 5e-3},
        ]
        return torch.optim.AdamW(groups, lr=2e-3)


@well("k-everyday-two-heads", "multi-task")
def two_heads(seed: int) -> Training:
    d = data.digits(seed)
    rows: Any = [{"pixels": x, "digit": y} for x, y in zip(d.x, d.y, strict=True)]
    return Training(TwoHeads(), DataLoader(rows, 32, shuffle=True), d.accuracy, trainer={"max_epochs": 6})


class Contrast(Plain):
    """Two noisy views of each picture must find each other in the batch."""

    def step_loss(self, batch: Any) -> Tensor:
        (x,) = batch
        a, b = (F.normalize(self(x + 0.15 * torch.randn_like(x)), dim=1) for _ in range(2))
        logits = a @ b.T / 0.2
        label = torch.arange(len(x))
        return (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2


@well("k-everyday-views", "contrastive")
def views(seed: int) -> Training:
    d = data.digits(seed)

    def score(m: Any) -> float:
        near = torch.cdist(predict(m, d.x_test), predict(m, d.x)).argmin(1)
        return (d.y[near] == d.y_test).float().mean().item()

    return Training(
        Contrast(mlp(64, 64, 24), 2e-3), loader(d.x, size=64, drop_last=True), score, trainer={"max_epochs": 7}
    )


@well("k-everyday-triplets", "metric-learning")
def triplets(seed: int) -> Training:
    d = data.digits(seed)

    class Triplets(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(d.x)

        def __getitem__(self, i: int) -> Any:
            same = torch.nonzero(d.y == d.y[i]).flatten()
            other = torch.nonzero(d.y != d.y[i]).flatten()
            return d.x[i], d.x[same[torch.randint(len(same), ())]], d.x[other[torch.randint(len(other), ())]]

    class Metric(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            return F.triplet_margin_loss(*(self(x) for x in batch), margin=1.0)

    def score(m: Any) -> float:
        near = torch.cdist(predict(m, d.x_test), predict(m, d.x)).argmin(1)
        return (d.y[near] == d.y_test).float().mean().item()

    rows: Any = DataLoader(Triplets(), 40, shuffle=True)
    return Training(Metric(mlp(64, 48, 12), 2e-3), rows, score, trainer={"max_epochs": 4})


@well("k-everyday-counts", "poisson")
def counts(seed: int) -> Training:
    d = visits(seed)
    loss = nn.PoissonNLLLoss()
    module = Task(nn.Sequential(mlp(5, 32, 1), nn.Flatten(0)), loss, lr=4e-3)
    return Training(module, loader(d.x, d.y), minus(loss, d.x_test, d.y_test), trainer={"max_epochs": 7})


@well("k-everyday-diabetes", "mlp")
def diabetes(seed: int) -> Training:
    d = data.table("diabetes", seed).map_targets(lambda y: y[:, None])
    module = Task(mlp(10, 16, 1), nn.HuberLoss(), lr=2e-3, weight_decay=1e-3)
    stop = EarlyStopping("val/loss", patience=6)
    return Training(module, d.train(16), d.r2, d.val(), {"max_epochs": 14, "callbacks": [stop]})


@well("k-everyday-mixture", "mixture-density")
def mixture(seed: int) -> Training:
    g = generator(seed, 112)
    x = 2 * torch.rand(1500, 1, generator=g) - 1
    side = (torch.rand(1500, 1, generator=g) < 0.5).float() * 2 - 1
    y = side * (0.3 + x.square()) + 0.05 * torch.randn(1500, 1, generator=g)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        share, mean, log_dev = out.chunk(3, 1)
        density = torch.distributions.Normal(mean, log_dev.clamp(-4, 2).exp()).log_prob(y)
        return -torch.logsumexp(share.log_softmax(1) + density, 1).mean()

    score = minus(loss, x[1000:], y[1000:])
    return Training(
        Task(mlp(1, 32, 9, act=nn.Tanh), loss, lr=0.01), loader(x[:1000], y[:1000]), score, trainer={"max_epochs": 8}
    )


class Coupling(nn.Module):
    """One affine coupling layer; half of the columns are kept."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.net, self.flip = mlp(1, 24, 2, act=nn.Tanh), flip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        scale = torch.tanh(scale)
        out = torch.cat([a, b * scale.exp() + shift], 1)
        return (out.flip(1) if self.flip else out), scale[:, 0]


class Flow(Plain):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for layer in self.net.children():
            x, change = layer(x)
            total = total + change
        return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1) + total

    def step_loss(self, batch: Any) -> Tensor:
        return -self(batch[0]).mean()


@well("k-everyday-flow", "flow")
def flow(seed: int) -> Training:
    d = data.moons(seed)
    net = nn.Sequential(*(Coupling(bool(k % 2)) for k in range(6)))
    score = lambda m: predict(m, d.x_test).mean().item()  # noqa: E731
    return Training(Flow(net, 4e-3), loader(d.x, size=50), score, trainer={"max_epochs": 10})


@well("k-everyday-distilled", "distillation")
def distilled(seed: int) -> Training:
    d = data.digits(seed)
    teacher = mlp(64, 128, 10)
    optimizer = torch.optim.Adam(teacher.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(teacher(d.x), d.y).backward()
        optimizer.step()
    teacher.requires_grad_(False).eval()

    class Student(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            x, y = batch
            z = self(x)
            soft = F.kl_div((z / 3).log_softmax(1), (teacher(x) / 3).softmax(1), reduction="batchmean") * 9
            return 0.7 * soft + 0.3 * F.cross_entropy(z, y)

    return Training(Student(mlp(64, 24, 10), 4e-3), d.train(32), d.accuracy, trainer={"max_epochs": 6})


@well("k-everyday-denoiser", "denoising")
def denoiser(seed: int) -> Training:
    d = data.digits(seed).to_images()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )
    noise = torch.randn(d.x_test.shape, generator=generator(seed, 113))

    class Clean(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            (x,) = batch
            return F.l1_loss(self(x + 0.3 * torch.randn_like(x)), x)

    score = lambda m: -F.l1_loss(predict(m, d.x_test + 0.3 * noise), d.x_test).item()  # noqa: E731
    return Training(Clean(net, 3e-3), loader(d.x, size=48), score, trainer={"max_epochs": 5})


@well("k-everyday-ordinal", "ordinal")
def ordinal(seed: int) -> Training:
    d = yields(seed)
    grade = lambda y: torch.bucketize(y.flatten(), torch.tensor([-1.0, 0.0, 1.0]))  # noqa: E731
    levels = torch.arange(3)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, (y[:, None] > levels).float())

    score = lambda m: ((predict(m, d.x_test) > 0).sum(1) == grade(d.y_test)).float().mean().item()  # noqa: E731
    return Training(Task(mlp(6, 48, 48, 3), loss, lr=4e-3), loader(d.x, grade(d.y)), score, trainer={"max_epochs": 8})


class Bandit(LightningModule):
    """A policy over four arms by context, rewarded at once; a running baseline."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.policy, self.base = mlp(5, 24, 4), 0.0
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        choice = torch.distributions.Categorical(logits=self.policy(x))
        arm = choice.sample()
        reward = (x @ self.table).gather(1, arm[:, None])[:, 0] + 0.1 * torch.randn(len(x))
        advantage = reward - self.base
        self.base += 0.05 * (reward.mean().item() - self.base)
        self.log("reward", reward.mean(), prog_bar=True)
        return -(choice.log_prob(arm) * advantage).mean() - 0.01 * choice.entropy().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


@well("k-everyday-bandit", "policy-gradient")
def bandit(seed: int) -> Training:
    g = generator(seed, 114)
    table, x = torch.randn(5, 4, generator=g), torch.randn(2500, 5, generator=g)
    score = lambda m: ((predict(m, x[2000:]).argmax(1)) == (x[2000:] @ table).argmax(1)).float().mean().item()  # noqa: E731
    return Training(Bandit(table), loader(x[:2000], size=50), score, trainer={"max_epochs": 6})


@well("k-everyday-graph", "graph")
def graph(seed: int) -> Training:
    """Two convolutions over a fixed graph of four communities; the whole graph is the batch."""
    g = generator(seed, 115)
    y = torch.randint(4, (160,), generator=g)
    edge = (torch.rand(160, 160, generator=g) < torch.where(y[:, None] == y, 0.12, 0.015)).float()
    edge = ((edge + edge.T) > 0).float() + torch.eye(160)
    spread = edge / edge.sum(1, keepdim=True)
    x = F.one_hot(y, 4).float() + 1.2 * torch.randn(160, 4, generator=g)
    seen = torch.rand(160, generator=g) < 0.5

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return spread @ self.two(torch.relu(spread @ self.one(x)))

    class Nodes(Plain):
        def step_loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0])[seen], y[seen])

    score = lambda m: data.accuracy(predict(m, x)[~seen], y[~seen])  # noqa: E731
    rows: Any = DataLoader([(x,)] * 10, batch_size=None)  # type: ignore[arg-type]
    return Training(Nodes(Graph(), 0.01), rows, score, trainer={"max_epochs": 12, "log_every_n_steps": 10})


@well("k-everyday-tuned", "fine-tuning")
def tuned(seed: int) -> Training:
    d = data.digits(seed).to_images()
    body = picture_net(norm=True)
    optimizer = torch.optim.Adam(body.parameters(), 3e-3)
    for k in range(30):
        rows = slice(32 * k, 32 * k + 32)
        optimizer.zero_grad()
        F.cross_entropy(body(d.x[rows]), d.y[rows] // 2).backward()
        optimizer.step()
    body[-1] = nn.Linear(256, 10)

    class Tune(Plain):
        def configure_optimizers(self) -> Any:
            head = {"params": self.net[-1].parameters(), "lr": 5e-3}
            return torch.optim.AdamW([{"params": self.net[:-1].parameters(), "lr": 5e-4}, head])

    return Training(Tune(body), d.train(32), d.accuracy, trainer={"max_epochs": 4})


@well("k-everyday-sixteen-bits", "gru")
def sixteen(seed: int) -> Training:
    d = walks(seed)
    module = Task(Series(nn.GRU, 1, 32, 1, num_layers=2, dropout=0.1), F.mse_loss, lr=4e-3)
    settings = {"max_epochs": 5, "precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    return Training(module, loader(d.x, d.y, size=12), d.r2, trainer=settings)


@well("k-everyday-plateau-rule", "mlp")
def plateau_rule(seed: int) -> Training:
    d = yields(seed)

    class Ruled(Task):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), 5e-3)
            rule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rule, "monitor": "val/loss"}}

    module = Ruled(mlp(6, 64, 64, 1), F.mse_loss)
    val = loader(d.x_test, d.y_test, shuffle=False)
    return Training(module, loader(d.x, d.y, size=40), d.r2, val, {"max_epochs": 12, "log_every_n_steps": 1})
