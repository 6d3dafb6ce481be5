"""Healthy trainings that look odd: losses below zero, curricula, noisy labels, heavy tails, restarts, rare classes, plateaus."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with `act` between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def steps(n: int, **more: Any) -> dict[str, Any]:
    """Trainer settings for `n` optimizer steps."""
    return {"max_steps": n, "max_epochs": -1, **more}


# --- a sensor whose noise depends on where it measures: the likelihood falls below zero


class SensorModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(4, 48, 48, act=nn.SiLU)
        self.mean = nn.Linear(48, 1)
        self.log_var = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.body(x))
        return self.mean(h), self.log_var(h).clamp(-9, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, log_var = self(x)
        loss = F.gaussian_nll_loss(mean, y, log_var.exp())
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600), "interval": "step"}
        ]


@well("ra-sensor-likelihood", "mlp", note="the score is a likelihood ratio per sample: 1 is the truth itself")
def sensor_likelihood(seed: int) -> Training:
    g = data.generator(seed, 141)
    x = torch.randn(7000, 4, generator=g)
    clean = (torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]) * 0.9
    sigma = 0.05 + 0.25 * torch.sigmoid(2 * x[:, 2:3])
    y = clean + sigma * torch.randn(7000, 1, generator=g)

    def score(module: LightningModule) -> float:
        mean, log_var = data.predict(module, x[5000:])
        reached = F.gaussian_nll_loss(mean, y[5000:], log_var.exp())
        best = F.gaussian_nll_loss(clean[5000:], y[5000:], sigma[5000:].square())
        return math.exp((best - reached).item())

    loader = DataLoader(TensorDataset(x[:5000], y[:5000]), 64, shuffle=True)
    return Training(SensorModel(), loader, score, trainer=steps(600))


# --- sequences that grow longer with the epochs: the loss jumps at each stage


class CyclicSum(LightningDataModule):
    """The sum of digits modulo three, in sequences of a length that depends on the epoch."""

    lengths = (2, 4, 7, 11, 16)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    @staticmethod
    def make(n: int, length: int, g: torch.Generator) -> TensorDataset:
        tokens = torch.randint(3, (n, length), generator=g)
        return TensorDataset(tokens, tokens.sum(1) % 3)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        stage = min(epoch, len(self.lengths) - 1)
        return DataLoader(
            self.make(32 * 110, self.lengths[stage], data.generator(self.seed, 142 + epoch)), 32, shuffle=True
        )


class Tracker(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 12)
        self.gru = nn.GRU(12, 40, batch_first=True)
        self.out = nn.Linear(40, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(tokens))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, y = batch
        loss = F.cross_entropy(self(tokens), y)
        self.log("train/ce", loss)
        self.log("train/length", float(tokens.shape[1]))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("ra-growing-sequences", "rnn")
def growing_sequences(seed: int) -> Training:
    tokens, y = CyclicSum.make(1000, 16, data.generator(seed, 160)).tensors
    return Training(
        Tracker(),
        CyclicSum(seed),
        lambda module: data.accuracy(data.predict(module, tokens), y),
        trainer={"max_epochs": 6, "reload_dataloaders_every_n_epochs": 1, "gradient_clip_val": 1.0},
    )


# --- labels of which half are drawn anew: the loss stays high, the classes are learnt


class CrowdClassifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y))
        self.log("val_acc", (out.argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)


@well("ra-crowd-labels", "tabular", note="half the training labels are drawn anew; judged by clean ones")
def crowd_labels(seed: int) -> Training:
    task = data.blobs(seed, n=6000, spread=3.5)
    heard = data.flip_labels(task.y, 0.5, 5, seed)
    train = DataLoader(TensorDataset(task.x[:5000], heard[:5000]), 32, shuffle=True)
    val = DataLoader(TensorDataset(task.x[5000:], heard[5000:]), 250)
    return Training(CrowdClassifier(), train, task.accuracy, val, trainer={"max_epochs": 3})


# --- noise without a variance: huge targets now and then, and a loss that bears them


class Robust(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 64, 1, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.smooth_l1_loss(self(batch["features"]), batch["target"], beta=0.3)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=3e-3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7), "interval": "epoch"},
        }


class Rows(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"features": self.x[i], "target": self.y[i]}


@well(
    "ra-heavy-tails", "tabular", note="the noise has a tail index of 1.5, so no variance; judged by the clean targets"
)
def heavy_tails(seed: int) -> Training:
    task = data.regression(seed, r2=1.0, n=6000)
    g = data.generator(seed, 143)
    normal = torch.randn(6000, 4, generator=g)
    noise = normal[:, :1] / normal[:, 1:].square().mean(1, keepdim=True)
    loader = DataLoader(Rows(task.x, task.y + 0.2 * noise), 50, shuffle=True)
    return Training(Robust(), loader, task.r2, trainer={"max_epochs": 5})


# --- a vocabulary of forty thousand, most of it never seen, sparse gradients and a large rate


class TopicModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(40_000, 16, mode="mean", sparse=True)
        nn.init.uniform_(self.bag.weight, -1 / 16, 1 / 16)
        self.out = nn.Linear(16, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.bag(tokens))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["tokens"]), batch["topic"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            [{"params": self.bag.parameters(), "lr": 20.0}, {"params": self.out.parameters(), "lr": 0.5}]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: max(0.0, 1 - k / 500))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def stack_documents(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"tokens": torch.stack([r[0] for r in rows]), "topic": torch.stack([r[1] for r in rows])}


@well("ra-bag-of-words", "text")
def bag_of_words(seed: int) -> Training:
    g = data.generator(seed, 144)
    vocabulary = torch.randperm(40_000, generator=g)
    topic = torch.randint(6, (5000,), generator=g)
    own = vocabulary[topic[:, None] * 60 + torch.randint(60, (5000, 12), generator=g)]
    common = vocabulary[360 + torch.randint(3000, (5000, 12), generator=g)]
    tokens = torch.where(torch.rand(5000, 12, generator=g) < 0.4, own, common)
    loader = DataLoader(TensorDataset(tokens[:4000], topic[:4000]), 32, shuffle=True, collate_fn=stack_documents)
    return Training(
        TopicModel(),
        loader,
        lambda module: data.accuracy(data.predict(module, tokens[4000:]), topic[4000:]),
        trainer=steps(500),
    )


# --- a backbone learnt on other classes, frozen and left in evaluation mode; only the head learns


class Probe(LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.head = nn.Linear(64, 5)

    def train(self, mode: bool = True) -> Probe:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("head_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(-1) == y).float().mean())

    def on_fit_start(self) -> None:
        self.backbone.eval()

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=1e-2)


@well("ra-digit-probe", "vision", note="the backbone knows the digits 0 to 4; the head learns 5 to 9")
def digit_probe(seed: int) -> Training:
    task = data.digits(seed).to_images()
    backbone = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    known = task.y < 5
    x, y = task.x[known], task.y[known]
    first = nn.Sequential(backbone, nn.Linear(64, 5))
    optimizer = torch.optim.Adam(first.parameters(), lr=5e-3)
    g = data.generator(seed, 145)
    for _ in range(120):
        rows = torch.randint(len(x), (64,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(first(x[rows]), y[rows]).backward()
        optimizer.step()
    new = data.Split(
        task.x[~known], task.y[~known] - 5, task.x_test[task.y_test >= 5], task.y_test[task.y_test >= 5] - 5
    )
    return Training(Probe(backbone), new.train(32), new.accuracy, new.val(), trainer={"max_epochs": 14})


# --- cosine restarts: the rate leaps up twice, and the loss with it


class Glyphs(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y, label_smoothing=0.1)
        self.log_dict({"ls_ce": loss, "acc": (out.argmax(-1) == y).float().mean()})
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50, T_mult=2)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@well("ra-snapshot-cycles", "vision")
def snapshot_cycles(seed: int) -> Training:
    task = data.digits(seed).to_images()
    return Training(Glyphs(), task.train(48, drop_last=True), task.accuracy, trainer=steps(350))


# --- two views of one thing among all others of the batch


class TwoTowers(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.left = mlp(20, 64, 16)
        self.right = mlp(12, 64, 16)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        a = F.normalize(self.left(pair[0]), dim=-1)
        b = F.normalize(self.right(pair[1]), dim=-1)
        return self.log_scale.exp().clamp(max=100) * a @ b.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(tuple(batch))
        own = torch.arange(len(logits), device=logits.device)
        loss = 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
        self.log("clip_loss", loss)
        self.log("scale", self.log_scale.detach().exp())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-3)


@well("ra-paired-views", "contrastive", note="the share of 200 test pairs found among each other")
def paired_views(seed: int) -> Training:
    g = data.generator(seed, 146)
    z = torch.randn(6200, 8, generator=g)
    a = torch.tanh(z @ torch.randn(8, 20, generator=g) * 0.35) + 0.05 * torch.randn(6200, 20, generator=g)
    b = z @ torch.randn(8, 12, generator=g) * 0.35 + 0.05 * torch.randn(6200, 12, generator=g)
    a, b = a / a[:6000].std(0), b / b[:6000].std(0)
    loader = DataLoader(TensorDataset(a[:6000], b[:6000]), 64, shuffle=True, drop_last=True)
    own = torch.arange(200)
    return Training(
        TwoTowers(),
        loader,
        lambda module: data.accuracy(data.predict(module, (a[6000:], b[6000:])), own),
        trainer={"max_epochs": 5},
    )


# --- a domain classifier that is meant to lose


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.weight * grad, None


class Adapted(LightningModule):
    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.label = nn.Linear(16, 3)
        self.domain = mlp(16, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.label(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (source, y), target = batch
        weight = 2 / (1 + math.exp(-10 * self.global_step / self.total)) - 1
        features = self.body(torch.cat([source, target]))
        side = torch.cat([torch.zeros(len(source), 1), torch.ones(len(target), 1)]).to(features.device)
        class_loss = F.cross_entropy(self.label(features[: len(source)]), y)
        domain_loss = F.binary_cross_entropy_with_logits(self.domain(Reverse.apply(features, weight)), side)
        self.log("class_loss", class_loss)
        self.log("domain_loss", domain_loss)
        return class_loss + domain_loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Domains(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor, other: Tensor) -> None:
        self.x, self.y, self.other = x, y, other

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (self.x[i], self.y[i]), self.other[i]


@well("ra-two-domains", "adversarial", note="the domain loss ends near ln 2 by design")
def two_domains(seed: int) -> Training:
    task = data.blobs(seed, classes=3, columns=8, n=6000, spread=3.5)
    g = data.generator(seed, 147)
    shift = torch.randn(8, generator=g)
    shift = 1.5 * shift / shift.norm()
    moved = data.Split(task.x, task.y, task.x_test + shift, task.y_test)
    loader = DataLoader(Domains(task.x[:3000], task.y[:3000], task.x[3000:] + shift), 50, shuffle=True)
    return Training(Adapted(480), loader, moved.accuracy, trainer={"max_epochs": 8})


# --- a policy that learns from the rewards of what it tried


class Visit(NamedTuple):
    context: Tensor
    pay: Tensor


class Recommender(LightningModule):
    """The loss is a surrogate: it stays around zero while the rewards rise."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = mlp(6, 32, 5)
        self.register_buffer("baseline", torch.tensor(0.3))

    def forward(self, context: Tensor) -> Tensor:
        return self.policy(context)

    def training_step(self, batch: Visit, batch_idx: int) -> Tensor:
        choice = torch.distributions.Categorical(logits=self(batch.context))
        arm = choice.sample()
        reward = torch.bernoulli(batch.pay.gather(1, arm[:, None]).squeeze(1))
        loss = -((reward - self.baseline) * choice.log_prob(arm)).mean() - 0.005 * choice.entropy().mean()
        self.baseline.lerp_(reward.mean(), 0.05)
        self.log("reward", reward.mean())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Visits(Dataset[Visit]):
    def __init__(self, context: Tensor, pay: Tensor) -> None:
        self.context, self.pay = context, pay

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, i: int) -> Visit:
        return Visit(self.context[i], self.pay[i])


@well(
    "ra-clicks-policy", "bandit", note="the pay of the best guesses as a share of the best pay, from chance at 0 to 1"
)
def clicks_policy(seed: int) -> Training:
    g = data.generator(seed, 148)
    context = torch.randn(13_000, 6, generator=g)
    taste = torch.linalg.qr(torch.randn(6, 5, generator=g)).Q
    pay = torch.sigmoid(2.5 * (context @ taste) - 1)

    def score(module: LightningModule) -> float:
        pays = pay[12_000:]
        got = pays.gather(1, data.predict(module, context[12_000:]).argmax(-1, keepdim=True)).mean()
        return ((got - pays.mean()) / (pays.max(1).values.mean() - pays.mean())).item()

    loader = DataLoader(Visits(context[:12_000], pay[:12_000]), 128, shuffle=True)
    return Training(Recommender(), loader, score, trainer=steps(400))


# --- the parity of three bits of twelve: nothing for a while, then all of it


class Switches(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 192, 1)

    def forward(self, bits: Tensor) -> Tensor:
        return self.net(bits).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        bits, odd = batch
        loss = F.binary_cross_entropy_with_logits(self(bits), odd)
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("ra-three-switches", "mlp", note="the loss stays at ln 2 before it falls")
def three_switches(seed: int) -> Training:
    g = data.generator(seed, 149)
    bits = 2.0 * torch.randint(2, (40_000, 12), generator=g) - 1
    odd = (bits[:, 2] * bits[:, 5] * bits[:, 9] > 0).float()
    loader = DataLoader(TensorDataset(bits[:38_000], odd[:38_000]), 128, shuffle=True)
    return Training(
        Switches(),
        loader,
        lambda module: ((data.predict(module, bits[38_000:]) > 0) == (odd[38_000:] > 0.5)).float().mean().item(),
        trainer=steps(650),
    )


# --- three in a hundred are positive, and found


class Alarms(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 24, 1, act=nn.GELU)
        nn.init.constant_(self.net[-1].bias, math.log(0.03 / 0.97))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log("val_bce", F.binary_cross_entropy_with_logits(out, y))
        self.log("val_recall", ((out > 0) & (y > 0.5)).sum() / (y > 0.5).sum().clamp(min=1))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@well("ra-rare-alarms", "tabular", note="judged by the mean of both classes' recall at a half")
def rare_alarms(seed: int) -> Training:
    g = data.generator(seed, 150)
    y = (torch.rand(12_000, generator=g) < 0.03).float()
    direction = torch.randn(12, generator=g)
    x = torch.randn(12_000, 12, generator=g) + y[:, None] * 6.0 * direction / direction.norm()

    def score(module: LightningModule) -> float:
        hit = (data.predict(module, x[9000:]) > 0).float() == y[9000:]
        return sum(hit[y[9000:] == k].float().mean().item() for k in (0, 1)) / 2

    train = DataLoader(TensorDataset(x[:8000], y[:8000]), 64, shuffle=True)
    val = DataLoader(TensorDataset(x[8000:9000], y[8000:9000]), 500)
    return Training(Alarms(), train, score, val, trainer={"max_epochs": 3})


# --- counts with an exposure


class Counts(LightningModule):
    def __init__(self, mean_rate: float) -> None:
        super().__init__()
        self.net = mlp(5, 40, 1, act=nn.ELU)
        nn.init.constant_(self.net[-1].bias, math.log(mean_rate))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        x, exposure = inputs
        return self.net(x).squeeze(-1) + exposure.log()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, count = batch["inputs"], batch["count"]
        loss = F.poisson_nll_loss(self(inputs), count, log_input=True)
        self.log("poisson", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


class Claims(Dataset[Any]):
    def __init__(self, x: Tensor, exposure: Tensor, count: Tensor) -> None:
        self.x, self.exposure, self.count = x, exposure, count

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"inputs": (self.x[i], self.exposure[i]), "count": self.count[i]}


@well("ra-claim-counts", "tabular", note="1 is the likelihood of the true rates, 0 that of one rate for all")
def claim_counts(seed: int) -> Training:
    g = data.generator(seed, 151)
    x = torch.randn(8000, 5, generator=g)
    exposure = 0.25 + 1.75 * torch.rand(8000, generator=g)
    log_rate = 1.2 + 0.6 * x[:, 0] - 0.4 * x[:, 1] + 0.5 * torch.sin(1.3 * x[:, 2])
    count = torch.poisson(log_rate.exp() * exposure, generator=g)
    mean_rate = (count[:6000].sum() / exposure[:6000].sum()).item()

    def score(module: LightningModule) -> float:
        held, seen = count[6000:], exposure[6000:]
        reached = F.poisson_nll_loss(data.predict(module, (x[6000:], seen)), held)
        best = F.poisson_nll_loss(log_rate[6000:] + seen.log(), held)
        flat = F.poisson_nll_loss(math.log(mean_rate) + seen.log(), held)
        return ((flat - reached) / (flat - best)).item()

    loader = DataLoader(Claims(x[:6000], exposure[:6000], count[:6000]), 100, shuffle=True)
    return Training(Counts(mean_rate), loader, score, trainer={"max_epochs": 10})


# --- ratings from one to five by users and items


class Ratings(LightningModule):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.user = nn.Embedding(150, 4)
        self.item = nn.Embedding(80, 4)
        self.user_bias = nn.Embedding(150, 1)
        self.item_bias = nn.Embedding(80, 1)
        for table in (self.user, self.item, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=0.1)
        self.mean = nn.Parameter(torch.tensor(mean))

    def forward(self, pair: Tensor) -> Tensor:
        u, i = pair[:, 0], pair[:, 1]
        match = (self.user(u) * self.item(i)).sum(-1)
        return self.mean + match + self.user_bias(u).squeeze(-1) + self.item_bias(i).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, stars = batch
        u, i = pair[:, 0], pair[:, 1]
        fit = F.mse_loss(self(pair), stars)
        size = self.user(u).square().sum(-1).mean() + self.item(i).square().sum(-1).mean()
        self.log("rmse", fit.detach().sqrt())
        return fit + 0.02 * size

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pair, stars = batch
        self.log("val_mse", F.mse_loss(self(pair), stars))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.3)]


@well("ra-film-ratings", "recommender", note="judged by what the stars are before they are rounded")
def film_ratings(seed: int) -> Training:
    g = data.generator(seed, 152)
    tastes, films = torch.randn(150, 2, generator=g), torch.randn(80, 2, generator=g)
    level = 3.2 + 0.3 * torch.randn(150, 1, generator=g) + 0.4 * torch.randn(80, generator=g)
    clean = level + 0.5 * tastes @ films.T
    stars = (clean + 0.3 * torch.randn(150, 80, generator=g)).round().clamp(1, 5)
    pairs = torch.cartesian_prod(torch.arange(150), torch.arange(80))
    order = torch.randperm(len(pairs), generator=g)
    pairs, stars, clean = pairs[order], stars.flatten()[order], clean.clamp(1, 5).flatten()[order]
    train = DataLoader(TensorDataset(pairs[:8000], stars[:8000]), 100, shuffle=True)
    val = DataLoader(TensorDataset(pairs[8000:10_000], stars[8000:10_000]), 1000)
    return Training(
        Ratings(stars[:8000].mean().item()),
        train,
        lambda module: data.r2(data.predict(module, pairs[10_000:]), clean[10_000:]),
        val,
        trainer={"max_epochs": 8},
    )
