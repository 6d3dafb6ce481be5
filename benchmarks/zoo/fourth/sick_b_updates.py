"""Trainings that go wrong in the update: rates per group, schedules, what is updated, what is cleared."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import digits, generator, predict, table
from benchmarks.zoo.fourth._b_common import (
    curve,
    explained,
    explains,
    hums,
    right,
    rows,
    tickets,
    usage,
    weaves,
    windows,
)


class Encoder(LightningModule):
    """A small transformer over words; rates grow or fall from layer to layer."""

    def __init__(self, lr: float, factor: float, layers: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(150, 32)
        self.place = nn.Parameter(0.02 * torch.randn(18, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        lr, factor = self.hparams.lr, self.hparams.factor
        groups: list[dict[str, Any]] = [{"params": [*self.embed.parameters(), self.place], "lr": lr}]
        for depth, layer in enumerate(self.layers, 1):
            groups.append({"params": layer.parameters(), "lr": lr * factor**depth})
        groups.append({"params": self.head.parameters(), "lr": lr * factor ** (len(self.layers) + 1)})
        return torch.optim.AdamW(groups, lr=lr, weight_decay=0.01)


@sick("x-rates-grow-with-depth", "transformer", "learning-rate-too-high", twin=lambda s: with_depth(s, 1.2))
def with_depth(seed: int, factor: float = 4.0) -> Training:
    d = tickets(seed, n=800)
    return Training(
        Encoder(1e-3, factor), rows(d.x, d.y, size=40), right(d.x_test, d.y_test), None,
        {"max_epochs": 8, "gradient_clip_val": 1.0},
    )  # fmt: skip


class Halves(LightningModule):
    """An autoencoder with an optimizer for each half, stepped by hand."""

    def __init__(self, rates: tuple[float, float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64))
        self.rates = rates

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        both: Any = self.optimizers()
        loss = F.mse_loss(self(batch[0]), batch[0])
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in both:
            optimizer.step()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.encoder.parameters(), lr=self.rates[0]),
            torch.optim.RMSprop(self.decoder.parameters(), lr=self.rates[1]),
        )


@sick("x-decoder-with-its-own-rate", "autoencoder", "learning-rate-too-high", twin=lambda s: own_rate(s, (2e-3, 1e-3)))
def own_rate(seed: int, rates: tuple[float, float] = (2e-3, 0.3)) -> Training:
    d = digits(seed)
    x, x_test = ((v - 0.3) / 0.38 for v in (d.x, d.x_test))
    return Training(Halves(rates), rows(x, size=45), explains(x_test, x_test), None, {"max_epochs": 10})


class Reader(LightningModule):
    """An LSTM over the rows of a digit, momentum and a few steps of warm-up."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.lstm = nn.LSTM(8, 40, batch_first=True)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 8, 8))[1][0][-1])

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        logits = self(batch[0])
        return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits.detach()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=15)
        return [optimizer], [{"scheduler": warm, "interval": "step"}]


@sick("x-momentum-and-a-rate-of-five", "rnn", "learning-rate-too-high", twin=lambda s: rate_of_five(s, 0.2))
def rate_of_five(seed: int, lr: float = 5.0) -> Training:
    d = digits(seed)
    return Training(Reader(lr), rows(d.x, d.y, size=40), right(d.x_test, d.y_test), None, {"max_epochs": 10})


class Cloth(LightningModule):
    """Convolutions; the schedule is a function handed to LambdaLR."""

    def __init__(self, rate: Any, lr: float = 2e-3) -> None:
        super().__init__()
        self.rate, self.lr = rate, lr
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@sick("x-lambda-gives-the-rate", "cnn", "learning-rate-too-low", twin=lambda s: gives_the_rate(s, 1.0))
def gives_the_rate(seed: int, base: float = 2e-3) -> Training:
    d = weaves(seed)

    def rate(step: int) -> float:
        return base * min(1.0, (step + 1) / 20) * 0.998**step

    return Training(Cloth(rate), rows(d.x, d.y, size=32), right(d.x_test, d.y_test), None, {"max_epochs": 12})


class Loads(LightningModule):
    """Two GRU layers trained by hand, with clipping, gathered over four micro-batches."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.gru = nn.GRU(1, 20, num_layers=2, batch_first=True)
        self.fc = nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x.unsqueeze(-1))[0][:, -1]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.manual_backward(loss / 2)
        if batch_idx % 2 == 1:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@sick("x-rate-divided-by-everything", "rnn", "learning-rate-too-low", twin=lambda s: divided(s, 1))
def divided(seed: int, by: int = 32 * 2 * 20) -> Training:
    x, y = windows(usage(seed))
    return Training(
        Loads(8e-3 / by), rows(x[:1200], y[:1200], size=20), explains(x[1200:], y[1200:]), None, {"max_epochs": 6}
    )


class Warm(LightningModule):
    """A transformer whose warm-up length comes from a paper."""

    def __init__(self, warmup: int) -> None:
        super().__init__()
        self.warmup = warmup
        self.embed = nn.Embedding(150, 24)
        block = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids)).mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["input_ids"]), batch["labels"])
        self.log("train_loss", loss)
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        step = self.trainer.global_step + 1
        for group in optimizer.param_groups:
            group["lr"] = 24**-0.5 * min(step**-0.5, step * self.warmup**-1.5)
        optimizer.step(closure=closure)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9)


@sick("x-noam-for-a-hundred-thousand", "transformer", "learning-rate-too-low", twin=lambda s: noam(s, 400))
def noam(seed: int, warmup: int = 40000) -> Training:
    d = tickets(seed, n=800)
    items: Any = [{"input_ids": a, "labels": b} for a, b in zip(d.x, d.y, strict=True)]
    loader = DataLoader(items, batch_size=32, shuffle=True)
    return Training(Warm(warmup), loader, right(d.x_test, d.y_test), None, {"max_epochs": 8})


class Watched(LightningModule):
    """Cuts the rate when the validation loss stands still."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.mode, factor=0.1, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


@sick("x-plateau-of-the-highest-loss", "mlp", "learning-rate-decayed-early", twin=lambda s: highest(s, "min"))
def highest(seed: int, mode: str = "max") -> Training:
    d = curve(seed, noise=0.1)
    return Training(
        Watched(mode), rows(d.x, d.y, size=50), explains(d.x_test, d.y_test),
        rows(d.x_test, d.y_test, size=200, shuffle=False), {"max_epochs": 18},
    )  # fmt: skip


class Stepped(LightningModule):
    """Manual optimisation; the schedule is stepped at the end of a batch, or of an epoch."""

    def __init__(self, each_batch: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.each_batch = each_batch
        self.conv = nn.Sequential(nn.Conv1d(1, 12, 12, stride=4), nn.ReLU(), nn.Conv1d(12, 12, 5), nn.ReLU())
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        optimizer.step()
        if self.each_batch:
            self.lr_schedulers().step()  # type: ignore[union-attr]
        self.log("loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.each_batch:
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)]


@sick("x-halved-every-four", "cnn", "learning-rate-decayed-early", twin=lambda s: halved(s, False))
def halved(seed: int, each_batch: bool = True) -> Training:
    d = hums(seed, noise=0.3)
    return Training(Stepped(each_batch), rows(d.x, d.y, size=36), right(d.x_test, d.y_test), None, {"max_epochs": 12})


class Chained(LightningModule):
    """Warm-up, then a straight line to nought."""

    def __init__(self, accumulate: int, counted: bool) -> None:
        super().__init__()
        self.accumulate, self.counted = accumulate, counted
        self.rnn = nn.GRU(8, 40, batch_first=True)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(-1, 8, 8))[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log_dict({"loss": loss})
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3)
        epochs = self.trainer.max_epochs or 1
        total = (
            int(self.trainer.estimated_stepping_batches) if self.counted else 3 * epochs
        )  # three steps an epoch once
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=6)
        fall = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=total - 6, power=1.0)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], milestones=[6])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": both, "interval": "step"}}


@sick("x-line-to-nought-of-an-older-set", "rnn", "learning-rate-decayed-early", twin=lambda s: older_set(s, True))
def older_set(seed: int, counted: bool = False) -> Training:
    d = digits(seed)
    return Training(
        Chained(2, counted), rows(d.x, d.y, size=20), right(d.x_test, d.y_test), None,
        {"max_epochs": 9, "accumulate_grad_batches": 2},
    )  # fmt: skip


class Adapted(LightningModule):
    """A small net gets a new last block; the optimizer is made when the module is."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
        self.top = nn.Sequential(nn.Linear(32, 4), nn.Tanh(), nn.Linear(4, 10))
        if late:
            self.extend()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        if not late:
            self.extend()

    def extend(self) -> None:
        self.body = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 48), nn.Tanh())
        self.top = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer


@sick("x-optimizer-made-in-init", "mlp", "parameters-not-optimized", twin=lambda s: in_init(s, True))
def in_init(seed: int, late: bool = False) -> Training:
    d = digits(seed)
    return Training(Adapted(late), rows(d.x, d.y, size=32), right(d.x_test, d.y_test), None, {"max_epochs": 8})


class Vectors(LightningModule):
    """Word vectors handed in as a table, then a narrow classifier."""

    def __init__(self, table: Tensor, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(table, **options)
        self.fc = nn.Linear(table.shape[1], 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.embed(ids).mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"]), batch["y"], label_smoothing=0.05)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


@sick("x-vectors-drawn-not-loaded", "text", "parameters-not-optimized", twin=lambda s: drawn(s, freeze=False))
def drawn(seed: int, **options: Any) -> Training:
    d = tickets(seed)
    vectors = torch.randn(150, 6, generator=generator(seed, 110))
    items: Any = [{"ids": a, "y": b} for a, b in zip(d.x, d.y, strict=True)]
    return Training(
        Vectors(vectors, **options), DataLoader(items, batch_size=32, shuffle=True), right(d.x_test, d.y_test), None,
        {"max_epochs": 7, "precision": "32-true"},
    )  # fmt: skip


class Seasons(LightningModule):
    """Sums of waves whose pitches are learnt; `hold` keeps the tensors."""

    def __init__(self, hold: Any) -> None:
        super().__init__()
        g = generator(3, 111)
        self.waves = hold(0.8 * torch.randn(2, 24, generator=g), 0.8 * torch.randn(24, 12, generator=g))
        self.mix = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(x @ self.waves[0])
        return self.mix(torch.tanh(h @ self.waves[1] / 5)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def plain(*tensors: Tensor) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors]


def registered(*tensors: Tensor) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(t) for t in tensors)


@sick("x-waves-in-a-plain-list", "mlp", "parameters-not-optimized", twin=lambda s: plain_list(s, registered))
def plain_list(seed: int, hold: Any = plain) -> Training:
    g = generator(seed, 112)
    x = 4 * torch.rand(1800, 2, generator=g) - 2
    y = torch.sin(3 * x[:, 0]) * torch.cos(2.5 * x[:, 1]) + 0.05 * torch.randn(1800, generator=g)
    y = y / 0.5
    return Training(
        Seasons(hold), rows(x[:1200], y[:1200], size=40), explains(x[1200:], y[1200:]), None,
        {"max_epochs": 14, "log_every_n_steps": 10},
    )  # fmt: skip


class ActorCritic(LightningModule):
    """A critic learns what a move is worth, an actor climbs it; each has its optimizer."""

    def __init__(self, clean: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.actor = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 1))
        self.clean = clean

    def forward(self, state: Tensor) -> Tensor:
        return self.actor(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, move, reward = batch
        for_actor, for_critic = self.optimizers()  # type: ignore[misc]
        value = self.critic(torch.cat([state, move], 1))
        critic_loss = F.mse_loss(value, reward)
        if self.clean:
            for_critic.zero_grad()
        self.manual_backward(critic_loss)
        for_critic.step()
        actor_loss = -8 * self.critic(torch.cat([state, self.actor(state)], 1)).mean()
        for_actor.zero_grad()
        self.manual_backward(actor_loss)
        for_actor.step()
        self.log_dict({"critic": critic_loss, "actor": actor_loss})
        return critic_loss.detach()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=2e-3),
            torch.optim.SGD(self.critic.parameters(), lr=0.05, momentum=0.5),
        ]


@sick("x-actor-climbs-its-critic", "policy", "gradients-not-cleared", twin=lambda s: climbs(s, True))
def climbs(seed: int, clean: bool = False) -> Training:
    g = generator(seed, 113)
    state, move = torch.randn(1500, 3, generator=g), 2 * torch.rand(1500, 1, generator=g) - 1
    best = torch.tanh(state[:, :1] - 0.5 * state[:, 1:2])
    reward = 1 - (move - best).square() + 0.1 * torch.randn(1500, 1, generator=g)
    fresh = torch.randn(500, 3, generator=g)

    def score(module: LightningModule) -> float:
        return explained(predict(module, fresh), torch.tanh(fresh[:, :1] - 0.5 * fresh[:, 1:2]))

    return Training(ActorCritic(clean), rows(state, move, reward, size=50), score, None, {"max_epochs": 12})


class Truncated(LightningModule):
    """Back-propagation through a long wave in pieces, each with a step of its own."""

    def __init__(self, clean: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rnn = nn.RNN(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        self.clean = clean

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.unsqueeze(-1))[0]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        hidden, total = None, torch.zeros(())
        for x, y in zip(batch[0].split(12, 1), batch[1].split(12, 1), strict=True):
            h, hidden = self.rnn(x.unsqueeze(-1), hidden)
            hidden = hidden.detach()
            loss = F.mse_loss(self.out(h).squeeze(-1), y)
            if self.clean:
                optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            total = total + loss.detach() / 3
        self.log("loss", total)
        return total

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("x-pieces-of-a-long-wave", "rnn", "gradients-not-cleared", twin=lambda s: pieces(s, True))
def pieces(seed: int, clean: bool = False) -> Training:
    cut = usage(seed, 1800).unfold(0, 37, 2)
    x, y = cut[:, :-1].contiguous(), cut[:, 1:].contiguous()
    return Training(
        Truncated(clean), rows(x[:640], y[:640], size=32), explains(x[660:], y[660:]), None, {"max_epochs": 6}
    )


class Tumours(LightningModule):
    """A net for a table, with a hook that makes sure that no old gradients are about."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class BeforeTheStep(Tumours):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        optimizer.zero_grad()


class AfterTheBatch(Tumours):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()  # type: ignore[union-attr]


@sick("x-tumours-with-a-tidy-hook", "mlp", "gradients-not-cleared", twin=lambda s: tidy_hook(s, AfterTheBatch))
def tidy_hook(seed: int, kind: Any = BeforeTheStep) -> Training:
    d = table("breast_cancer", seed)
    return Training(kind(), rows(d.x, d.y, size=20), right(d.x_test, d.y_test), None, {"max_epochs": 8})
