"""Loops of a user's own: streams, samplers, several batches at once, steps by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader
from sklearn.datasets import load_digits, make_classification
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict, split
from benchmarks.zoo.later._well_common import explained, hit_rate, loader, recall_mean, stack


class Chirps(IterableDataset[Any]):
    """Endless audio-like waves, drawn anew each time; the pitch is the target."""

    def __init__(self, seed: int) -> None:
        self.g = generator(seed, 641)

    def __iter__(self) -> Iterator[Any]:
        t = torch.arange(64.0)
        while True:
            pitch = 0.1 + 0.5 * torch.rand(1, generator=self.g)
            phase = 6.28 * torch.rand(1, generator=self.g)
            wave = torch.sin(pitch * t + phase) + 0.5 * torch.randn(64, generator=self.g)
            yield wave[None], (pitch - 0.35) / 0.144


class Pitch(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 16, 17, stride=4), nn.ReLU(), nn.Conv1d(16, 16, 5), nn.ReLU())
        self.fc = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, pitch = batch
        loss = F.huber_loss(self(wave), pitch)
        self.log("huber", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 300), "interval": "step"}]


@well("v-endless-chirps", "stream", "R2 of the pitch on fresh waves; max_steps alone ends the run")
def chirps(seed: int) -> Training:
    fresh = iter(Chirps(seed + 1000))
    rows = [next(fresh) for _ in range(500)]
    x, y = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    train = DataLoader(Chirps(seed), batch_size=32)
    return Training(Pitch(), train, explained(x, y), trainer={"max_steps": 300, "max_epochs": -1})


class Tickets(LightningModule):
    """Dict batches with words in them: the strings are looked up inside the model."""

    words = ("refund", "late", "broken", "thanks", "login", "password", "invoice", "hello")

    def __init__(self) -> None:
        super().__init__()
        self.table = {w: i for i, w in enumerate(self.words)}
        self.bag = nn.EmbeddingBag(len(self.words), 16)
        self.meta = nn.Linear(2, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        ids = torch.tensor([[self.table[w] for w in text.split()] for text in batch["text"]])
        return self.head(F.relu(self.bag(ids) + self.meta(batch["meta"])))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        loss = F.cross_entropy(self(batch), batch["queue"])
        self.log("loss", loss, batch_size=len(batch["text"]))
        return {"loss": loss, "keys": batch["key"]}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("v-words-in-the-batch", "text", "accuracy against 0.9: a tenth of the tickets went to a random queue")
def tickets(seed: int) -> Training:
    g = random.Random(seed)
    rows: list[Any] = []
    for i in range(1800):
        text = [g.choice(Tickets.words) for _ in range(4)]
        days = g.gauss(0, 1)
        points = [
            sum(w in ("refund", "invoice") for w in text),
            sum(w in ("login", "password") for w in text),
            0.7 + 0.6 * days + sum(w in ("late", "broken") for w in text),
        ]
        queue = max(range(3), key=lambda k: points[k]) if g.random() < 0.9 else g.randrange(3)
        meta = torch.tensor([days, g.gauss(0, 1)])
        rows.append({"key": f"T{i:04}", "text": " ".join(text), "meta": meta, "queue": queue})
    new = next(iter(DataLoader(rows[1200:], batch_size=600)))
    train = DataLoader(rows[:1200], batch_size=40, shuffle=True)
    return Training(Tickets(), train, hit_rate(new, new["queue"]), trainer={"max_epochs": 12})


@well("v-rare-rows-drawn-more", "tabular", "mean recall 0.9 with a sampler that evens out one row in twenty-five")
def drawn_more(seed: int) -> Training:
    x, y = make_classification(
        5000, 10, n_informative=6, weights=[0.96], class_sep=1.5, flip_y=0.0, n_clusters_per_class=1, random_state=seed
    )
    d = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.6).standardised()

    class Even(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            opt = torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=0.05)
            return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5)]

    share = 1 / torch.bincount(d.y).float()
    sampler = WeightedRandomSampler(share[d.y].tolist(), len(d.y))
    train = DataLoader(torch.utils.data.TensorDataset(d.x, d.y), batch_size=64, sampler=sampler, drop_last=True)
    score = lambda m: recall_mean(predict(m, d.x_test), d.y_test)  # noqa: E731
    return Training(Even(), train, score, d.val(), {"max_epochs": 5})


class Digits(LightningDataModule):
    """Digits with noise added by two workers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        x, y = load_digits(return_X_y=True)
        self.cut = split(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), seed)

    def train_dataloader(self) -> Any:
        noisy = lambda rows: (  # noqa: E731
            torch.stack([r[0] for r in rows]) + 0.1 * torch.randn(len(rows), 64),
            torch.stack([r[1] for r in rows]),
        )
        rows = torch.utils.data.TensorDataset(self.cut.x, self.cut.y)
        return DataLoader(rows, 64, True, num_workers=2, collate_fn=noisy, persistent_workers=True)

    def val_dataloader(self) -> Any:
        return self.cut.val()


class Noisy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.mish(self.a(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("acc_val", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.RAdam(self.parameters(), lr=4e-2)


@well("v-noise-from-workers", "loader", "accuracy 0.96 and more, two workers")
def workers(seed: int) -> Training:
    module = Digits(seed)
    return Training(Noisy(), module, hit_rate(module.cut.x_test, module.cut.y_test), trainer={"max_epochs": 12})


class Patience(LightningModule):
    """Stopped when noise alone moves the validation loss; what it should learn is learnt by then."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("val_loss", patience=4, min_delta=1e-3)]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3, weight_decay=1e-4)


@well("v-stopped-by-patience", "regression", "R2 against 0.3 at best; ends by itself before the hundredth epoch")
def patience(seed: int) -> Training:
    g = generator(seed, 642)
    x = torch.randn(3500, 8, generator=g)
    clean = torch.tanh(x[:, 0] - x[:, 1]) + 0.4 * x[:, 2]
    y = 0.548 * clean / clean.std() + 0.837 * torch.randn(3500, generator=g)
    val = loader(x[1500:2000], y[1500:2000], size=250, shuffle=False)
    train = loader(x[:1500], y[:1500], size=50)
    return Training(Patience(), train, explained(x[2000:], y[2000:]), val, {"max_epochs": 24})


class TwoSources(LightningModule):
    """Two loaders at once, one a task, each with its own head and a learnt weight."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
        self.price, self.kind = nn.Linear(32, 1), nn.Linear(32, 3)
        self.log_noise = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.price(h)[:, 0], self.kind(h)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        (x1, price), (x2, kind) = batch["price"], batch["kind"]
        losses = torch.stack([F.mse_loss(self(x1)[0], price), F.cross_entropy(self(x2)[1], kind)])
        self.log_dict({"price": losses[0], "kind": losses[1]}, batch_size=len(x1))
        return (torch.exp(-self.log_noise) * losses + 0.5 * self.log_noise).sum()

    def configure_optimizers(self) -> Any:
        heads = [*self.trunk.parameters(), *self.price.parameters(), *self.kind.parameters()]
        return torch.optim.Adam([{"params": heads}, {"params": [self.log_noise], "lr": 1e-2}], lr=3e-3)


@well("v-two-sources-weighed", "multi-task", "mean of R2 (0.8 at best) and accuracy (about 0.75 at best)")
def two_sources(seed: int) -> Training:
    g = generator(seed, 643)
    x = torch.randn(5000, 10, generator=g)
    clean = x[:, 0] * x[:, 1] + x[:, 2]
    price = 0.894 * clean / clean.std() + 0.447 * torch.randn(5000, generator=g)
    points = torch.stack([x[:, 0] + x[:, 3], x[:, 1] - x[:, 3], 0.8 * x[:, 2]], 1)
    kind = (points + 0.7 * torch.randn(5000, 3, generator=g)).argmax(1)
    train = CombinedLoader(
        {"price": loader(x[:2000], price[:2000], size=50), "kind": loader(x[2000:3000], kind[2000:3000], size=50)},
        "max_size_cycle",
    )

    def score(m: Any) -> float:
        said, of_kind = predict(m, x[3000:])
        r2 = 1 - F.mse_loss(said, price[3000:]) / price[3000:].var()
        return 0.5 * (r2 + (of_kind.argmax(1) == kind[3000:]).float().mean()).item()

    return Training(TwoSources(), train, score, trainer={"max_epochs": 12})


class Turns(LightningModule):
    """Two tables of a product, each fitted in turn while the other rests, by hand and with two optimizers."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.left, self.right = nn.Embedding(rows, 3), nn.Embedding(columns, 3)
        nn.init.normal_(self.left.weight, std=0.3)
        nn.init.normal_(self.right.weight, std=0.3)

    def forward(self, at: Tensor) -> Tensor:
        return (self.left(at[:, 0]) * self.right(at[:, 1])).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        at, value = batch
        opt = self.optimizers()[batch_idx % 2]
        self.toggle_optimizer(opt)
        loss = F.mse_loss(self(at), value)
        opt.zero_grad()
        self.manual_backward(loss)
        opt.step()
        self.untoggle_optimizer(opt)
        return loss.detach()

    def on_train_epoch_end(self) -> None:
        for sched in self.lr_schedulers():
            sched.step()

    def configure_optimizers(self) -> Any:
        both = [torch.optim.Adam(t.parameters(), lr=5e-2) for t in (self.left, self.right)]
        return both, [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in both]


@well("v-tables-in-turn", "factorisation", "R2 of hidden entries, 0.9 at best")
def turns(seed: int) -> Training:
    g = generator(seed, 644)
    a, b = torch.randn(60, 3, generator=g), torch.randn(50, 3, generator=g)
    at = torch.cartesian_prod(torch.arange(60), torch.arange(50))[torch.randperm(3000, generator=g)]
    clean = (a[at[:, 0]] * b[at[:, 1]]).sum(1)
    value = clean / clean.std() + 0.33 * torch.randn(3000, generator=g)
    train = loader(at[:2400], value[:2400], size=80)
    return Training(Turns(60, 50), train, explained(at[2400:], value[2400:]), trainer={"max_epochs": 20})


class Half(LightningModule):
    """bf16-mixed with a growing number of batches a step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.05)
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("norm", torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


@well("v-more-batches-a-step-later", "mixed-precision", "accuracy 0.96; two, then four batches of sixteen a step")
def more_batches(seed: int) -> Training:
    x, y = load_digits(return_X_y=True)
    d = split(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), seed)
    grow = GradientAccumulationScheduler({0: 1, 2: 2, 5: 4})
    settings = {"max_epochs": 9, "precision": "bf16-mixed", "callbacks": [grow], "log_every_n_steps": 1}
    return Training(Half(), d.train(16), hit_rate(d.x_test, d.y_test), trainer=settings)


class Taken(LightningModule):
    """Starts from the weights and the optimizer's state of a run that had nearly ended."""

    def __init__(self, net: nn.Module, state: Any) -> None:
        super().__init__()
        self.net, self.state = net, state

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=2e-3, weight_decay=1e-4)
        opt.load_state_dict(self.state)
        return opt


@well(
    "v-taken-up-again",
    "resumed",
    "accuracy what the overlap of the clouds allows, from the first step on: the loss does not fall",
)
def taken(seed: int) -> Training:
    g = generator(seed, 645)
    y = torch.randint(4, (6000,), generator=g)
    x = torch.randn(6000, 8, generator=g) + 1.4 * F.one_hot(y, 8)
    net = stack(8, 32, 4)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
    for _ in range(8):
        for i in torch.randperm(4000, generator=g).split(64):
            opt.zero_grad()
            F.cross_entropy(net(x[i]), y[i]).backward()
            opt.step()
    opt.zero_grad()
    val = loader(x[4000:], y[4000:], size=500, shuffle=False)
    module = Taken(net, opt.state_dict())
    settings = {"max_epochs": 3, "limit_train_batches": 60, "num_sanity_val_steps": 0}
    return Training(module, loader(x[:4000], y[:4000], size=64), hit_rate(x[4000:], y[4000:]), val, settings)
