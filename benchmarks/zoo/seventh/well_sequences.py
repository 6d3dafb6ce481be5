"""Healthy runs on sequences, games, recommendations and in loops of their own."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import characters, generator, predict, r2
from benchmarks.zoo.seventh._common import (
    BagOfWords,
    Factors,
    LastStep,
    Model,
    Reader,
    adam,
    adamw,
    mlp,
    ratings,
    reviews,
    sgd,
    waves,
)


class Rivals(LightningModule):
    """A GAN whose losses wander while its samples approach the data."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = mlp(4, 32, 2), mlp(2, 32, 1, act=nn.SiLU)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (real,) = batch
        makes, judges = self.optimizers()  # type: ignore[misc]
        fake = self.generator(torch.randn(len(real), 4))
        doubt = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        judges.zero_grad()
        self.manual_backward(doubt)
        judges.step()
        cost = F.softplus(-self.critic(fake)).mean()
        makes.zero_grad()
        self.manual_backward(cost)
        makes.step()
        self.log_dict({"critic": doubt, "generator": cost}, prog_bar=True)
        return cost.detach()

    def configure_optimizers(self) -> Any:
        options: dict[str, Any] = {"lr": 2e-3, "betas": (0.5, 0.9)}
        return [torch.optim.Adam(self.generator.parameters(), **options),
                torch.optim.Adam(self.critic.parameters(), **options)]  # fmt: skip


@well("p-rivals", "gan", "the losses of a good GAN do not fall")
def rivals(seed: int) -> Training:
    x = torch.randn(1500, 2, generator=generator(seed, 96)) * 0.5 + torch.tensor([1.5, -1.0])
    z = torch.randn(500, 4, generator=generator(seed, 97))
    return Training(
        Rivals(), DataLoader(TensorDataset(x), batch_size=50, shuffle=True),
        lambda m: -(predict(m, z).mean(0) - x.mean(0)).norm().item(), trainer={"max_epochs": 10}
    )  # fmt: skip


class Bandit(LightningModule):
    """Policy gradient: an arm for each context, rewards are noisy, the loss has no floor to fall to."""

    def __init__(self, best: Tensor) -> None:
        super().__init__()
        self.net = mlp(6, 32, 4)
        self.register_buffer("best", best)
        self.mean = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        policy = torch.distributions.Categorical(logits=self(x))
        arm = policy.sample()
        reward = (arm == (x @ self.best).argmax(1)).float() + 0.3 * torch.randn(len(x))
        self.mean = 0.95 * self.mean + 0.05 * reward.mean().item()
        self.log("reward", reward.mean(), prog_bar=True)
        return -(policy.log_prob(arm) * (reward - self.mean)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well("p-bandit", "policy", "the surrogate loss is noise around zero while the reward rises")
def bandit(seed: int) -> Training:
    g = generator(seed, 98)
    best, x = torch.randn(6, 4, generator=g), torch.randn(6000, 6, generator=g)
    return Training(
        Bandit(best), DataLoader(TensorDataset(x[:5000]), batch_size=100, shuffle=True),
        lambda m: (predict(m, x[5000:]).argmax(1) == (x[5000:] @ best).argmax(1)).float().mean().item(),
        trainer={"max_epochs": 6, "log_every_n_steps": 10},
    )  # fmt: skip


class Sparse(LightningModule):
    """Embeddings with sparse gradients: a batch touches few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.words = nn.EmbeddingBag(60, 16, sparse=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        return {"loss": loss.detach()}

    def configure_optimizers(self) -> Any:
        return [torch.optim.SparseAdam(list(self.words.parameters()), lr=0.01),
                torch.optim.Adam(self.head.parameters(), lr=0.01)]  # fmt: skip


@well("p-sparse-words", "text")
def sparse_words(seed: int) -> Training:
    d = reviews(seed)
    return Training(Sparse(), d.train(40), d.accuracy, trainer={"max_epochs": 5})


class Tied(LightningModule):
    """A language model whose outlet is its inlet."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 48)
        self.rnn = nn.GRU(48, 48, batch_first=True)
        self.outlet = nn.Linear(48, 20)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.outlet.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(self.rnn(self.embedding(x))[0])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:])
        self.log("perplexity", loss.exp(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=6e-3)


@well("p-tied-letters", "language", "the same matrix reads and writes")
def tied_letters(seed: int) -> Training:
    text = characters(seed, length=24, n=1200)

    def score(m: LightningModule) -> float:
        return -F.cross_entropy(predict(m, text.test[:, :-1]).transpose(1, 2), text.test[:, 1:]).item()

    data: Any = text.train
    return Training(Tied(), DataLoader(data, batch_size=40, shuffle=True), score,
                    trainer={"max_epochs": 6, "gradient_clip_val": 1.0})  # fmt: skip


class Turns(LightningModule):
    """Users are stepped at every batch, items at every third."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = Factors()

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        users, items = self.optimizers()  # type: ignore[misc]
        loss = F.mse_loss(self(ids), y)
        self.manual_backward(loss)
        users.step()
        users.zero_grad()
        if batch_idx % 3 == 2:
            items.step()
            items.zero_grad()
        self.log("train_mse", loss)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        own = [*self.net.users.parameters(), self.net.offset]
        return torch.optim.Adam(own, lr=0.02), torch.optim.Adam(self.net.items.parameters(), lr=0.02)


@well("p-factors-in-turns", "recommender", "one optimizer skips two batches of three and keeps their gradients")
def factors_in_turns(seed: int) -> Training:
    d = ratings(seed)
    return Training(Turns(), d.train(64), d.r2, trainer={"max_epochs": 8})


@well("p-next-hours", "forecast", "windows in the order of time")
def next_hours(seed: int) -> Training:
    g = generator(seed, 99)
    hours = torch.arange(1800.0)
    load = (hours / 3.8).sin() + 0.5 * (hours / 26.7).sin() + 0.1 * torch.randn(1800, generator=g)
    w = load.unfold(0, 25, 1)
    x, y = w[:, :24, None], w[:, 24:]
    train = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=32, shuffle=False)
    module = Model(LastStep(nn.GRU(1, 20, batch_first=True), 1), F.mse_loss, adam(5e-3))
    return Training(module, train, lambda m: r2(predict(m, x[1450:]), y[1450:]), trainer={"max_epochs": 5})


@well("p-reader-warmup", "transformer", "softmax in the attention, clipped, warmed up")
def reader_warmup(seed: int) -> Training:
    d = reviews(seed)

    def make(parameters: Any) -> Any:
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=180)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]

    module = Model(Reader(dropout=0.1), F.cross_entropy, make)
    return Training(module, d.train(40), d.accuracy, d.val(), {"max_epochs": 6, "gradient_clip_val": 0.5})


@well("p-lstm-forget-bias", "forecast", "gates that stay open, and a small learning rate on top of momentum")
def lstm_forget_bias(seed: int) -> Training:
    d = waves(seed, length=24)
    net = LastStep(nn.LSTM(1, 24, batch_first=True), 3)
    with torch.no_grad():
        net.rnn.bias_ih_l0[24:48] = 2.0
    return Training(Model(net, F.smooth_l1_loss, adamw(5e-3)), d.train(32), d.r2, d.val(),
                    {"max_epochs": 8, "log_every_n_steps": 50})  # fmt: skip


@well("p-words-plain-descent", "text", "embeddings need a rate of several units under plain descent")
def words_plain_descent(seed: int) -> Training:
    d = reviews(seed)
    return Training(Model(BagOfWords(), F.cross_entropy, sgd(2.0)), d.train(40), d.accuracy, d.val(), {"max_epochs": 6})


class Ranked(LightningModule):
    """Pairs of a liked and a drawn item; the loss begins at log 2 by right."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Factors()

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        other = torch.stack([batch["ids"][:, 0], batch["drawn"]], 1)
        margin = self(batch["ids"]) - self(other)
        return {"loss": -F.logsigmoid(margin).mean() + 1e-4 * self.net.items.weight.square().sum()}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


@well("p-liked-items", "recommender", "ranking of pairs")
def liked_items(seed: int) -> Training:
    d = ratings(seed, n=5000)
    liked = d.x[d.y > 0.4]
    drawn = torch.randint(40, (len(liked),), generator=generator(seed, 100))
    data: Any = [{"ids": a, "drawn": b} for a, b in zip(liked, drawn, strict=True)]

    def score(m: LightningModule) -> float:
        out = predict(m, d.x_test)
        good, bad = out[d.y_test > 0.4], out[d.y_test < -0.4]
        return (good[:, None] > bad).float().mean().item()

    return Training(Ranked(), DataLoader(data, batch_size=32, shuffle=True), score, trainer={"max_epochs": 8})
