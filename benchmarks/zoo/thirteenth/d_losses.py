"""What the loss is given: probabilities, shapes, the kind of loss and the range of the last layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth.d_common import Columns, LastState, SignalNet, Supervised, mlp, tones, waves


def tagged_sentences(seed: int, n: int, words: int = 40, length: int = 12, tags: int = 9) -> tuple[Tensor, Tensor]:
    """Word ids and their tags; a word that follows one of the first eight words carries another tag."""
    g = data.generator(seed, 410)
    home = torch.randint(tags, (words,), generator=g)
    after = torch.randint(tags, (words,), generator=g)
    ids = torch.randint(words, (n, length), generator=g)
    before = torch.cat([torch.full((n, 1), words - 1), ids[:, :-1]], 1)
    return ids, torch.where(before < 8, after[ids], home[ids])


class Tagger(LightningModule):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.conv = nn.Conv1d(16, 48, 3, padding=1)
        self.out = nn.Linear(48, 9)
        self.last = last

    def forward(self, ids: Tensor) -> Tensor:
        h = self.conv(self.embed(ids).transpose(1, 2)).relu().transpose(1, 2)
        return self.last(self.out(h))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        scores = self(batch["ids"])
        loss = F.cross_entropy(scores.flatten(0, 1), batch["tags"].flatten())
        self.log("loss/tags", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def tagging(seed: int, last: nn.Module) -> Training:
    ids, tags = tagged_sentences(seed, 1400)
    train = DataLoader(Columns(ids=ids[:1000], tags=tags[:1000]), 32, shuffle=True)
    return Training(
        Tagger(last),
        train,
        lambda m: data.accuracy(data.predict(m, ids[1000:]), tags[1000:]),
        trainer={"max_steps": 220},
    )


@sick(
    "ja-tagger-softmax-out",
    "tokens",
    "probabilities-as-logits",
    twin=lambda seed: tagging(seed, nn.Identity()),
)
def tagger_softmax(seed: int) -> Training:
    return tagging(seed, nn.Softmax(dim=-1))


def topics(seed: int) -> data.Split:
    """Rows of 20 columns with 12 labels each, of which one in eight is set."""
    g = data.generator(seed, 411)
    x = torch.randn(2400, 20, generator=g)
    weights = torch.randn(20, 12, generator=g) / 20**0.5
    score = x @ weights + 0.25 * torch.randn(2400, 12, generator=g)
    y = (score > score.quantile(0.875, dim=0)).float()
    return data.Split(x[:1800], y[:1800], x[1800:], y[1800:])


def f1(chosen: Tensor, y: Tensor) -> float:
    hit = (chosen & (y > 0.5)).sum().item()
    return 2 * hit / max(chosen.sum().item() + y.sum().item(), 1)


class KerasLike(nn.Module):
    """Dense(64, relu), Dense(64, relu), Dense(12, activation)."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.dense1 = nn.Linear(20, 64)
        self.dense2 = nn.Linear(64, 64)
        self.dense3 = nn.Linear(64, 12)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.dense2(torch.relu(self.dense1(x))))
        h = self.dense3(h)
        return h if self.activation is None else self.activation(h)


def labelling(seed: int, activation: Any) -> Training:
    cut = topics(seed)
    threshold = 0.0 if activation is None else 0.5
    return Training(
        Supervised(KerasLike(activation), nn.BCEWithLogitsLoss(), 1e-3, torch.optim.RMSprop),
        cut.train(64),
        lambda m: f1(data.predict(m, cut.x_test) > threshold, cut.y_test),
        cut.val(),
        {"max_epochs": 12, "num_sanity_val_steps": 0},
    )


@sick(
    "ja-topics-dense-sigmoid",
    "tabular",
    "probabilities-as-logits",
    twin=lambda seed: labelling(seed, None),
)
def topics_sigmoid(seed: int) -> Training:
    return labelling(seed, torch.sigmoid)


class Forecaster(LightningModule):
    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.net = LastState(1, 1)
        self.flat = flat

    def forward(self, window: Tensor) -> Tensor:
        out = self.net(window)
        return out.squeeze(-1) if self.flat else out

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.smooth_l1_loss(self(batch["window"]), batch["ahead"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/huber", F.smooth_l1_loss(self(batch["window"]), batch["ahead"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def forecast(seed: int, flat: bool) -> Training:
    cut = waves(seed)
    return Training(
        Forecaster(flat),
        DataLoader(Columns(window=cut.x, ahead=cut.y), 50, shuffle=True),
        cut.r2,
        DataLoader(Columns(window=cut.x_test, ahead=cut.y_test), 50),
        {"max_epochs": 10},
    )


@sick(
    "ja-forecast-column-out",
    "series",
    "loss-shape-mismatch",
    twin=lambda seed: forecast(seed, True),
)
def forecast_column(seed: int) -> Training:
    return forecast(seed, False)


class MeanAndSpread(LightningModule):
    """Predicts a normal distribution; the likelihood is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.mean = nn.Linear(64, 1)
        self.log_var = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.mean(h), self.log_var(h).clamp(-6, 6)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x, _), y = batch
        mean, log_var = self(x)
        nll = 0.5 * (log_var + (y - mean) ** 2 * torch.exp(-log_var))
        self.log("nll", nll.mean(), prog_bar=True)
        return nll.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def likelihood(seed: int, flat: bool) -> Training:
    cut = data.regression(seed, r2=0.9, n=1600)
    y = cut.y[:, 0] if flat else cut.y
    rows = [((cut.x[i], torch.tensor(i)), y[i]) for i in range(len(y))]
    return Training(
        MeanAndSpread(),
        DataLoader(rows, 32, shuffle=True),
        lambda m: data.r2(data.predict(m, cut.x_test)[0], cut.y_test),
        trainer={"max_steps": 300},
    )


@sick(
    "ja-normal-likelihood-rows",
    "tabular",
    "loss-shape-mismatch",
    twin=lambda seed: likelihood(seed, False),
)
def likelihood_rows(seed: int) -> Training:
    return likelihood(seed, True)


class Policy(LightningModule):
    """A contextual bandit: one action a context, its payoff against the mean payoff of the batch."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.actor = mlp(10, 48, 5, activation=nn.Tanh)
        self.sign = sign

    def forward(self, context: Tensor) -> Tensor:
        return self.actor(context)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        context, payoffs = batch
        policy = torch.distributions.Categorical(logits=self(context))
        action = policy.sample()
        payoff = payoffs.gather(1, action[:, None])[:, 0]
        self.log("payoff", payoff.mean())
        return self.sign * (policy.log_prob(action) * (payoff - payoff.mean())).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def bandit(seed: int, sign: float) -> Training:
    cut = data.blobs(seed, spread=3.0)
    g = data.generator(seed, 412)
    payoffs = F.one_hot(cut.y, 5).float() + 0.1 * torch.randn(len(cut.y), 5, generator=g)
    return Training(
        Policy(sign),
        DataLoader(TensorDataset(cut.x, payoffs), 128, shuffle=True),
        cut.accuracy,
        trainer={"max_steps": 260},
    )


@sick("ja-bandit-policy-sign", "bandit", "wrong-loss-for-task", twin=lambda seed: bandit(seed, -1.0))
def bandit_sign(seed: int) -> Training:
    return bandit(seed, 1.0)


def pitch_l1(out: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(out[:, 0], y.float())


def pitch(seed: int, outputs: int) -> Training:
    g = data.generator(seed, 413)
    cut = tones(seed)
    order = torch.randperm(6, generator=g)
    cut = cut.map_targets(lambda y: order[y])

    def score(module: LightningModule) -> float:
        out = data.predict(module, cut.x_test)
        chosen = out[:, 0].round().long() if outputs == 1 else out.argmax(-1)
        return (chosen == cut.y_test).float().mean().item()

    loss = pitch_l1 if outputs == 1 else F.cross_entropy
    return Training(Supervised(SignalNet(outputs), loss, 5e-3), cut.train(32), score, cut.val(), {"max_epochs": 8})


@sick("ja-tones-one-output-l1", "signals", "wrong-loss-for-task", twin=lambda seed: pitch(seed, 6))
def tones_l1(seed: int) -> Training:
    return pitch(seed, 1)


class Compressor(LightningModule):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = mlp(16, 48, 4, activation=nn.ELU)
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("reconstruction", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)]


def compress(seed: int, *last: nn.Module) -> Training:
    g = data.generator(seed, 414)
    latent = torch.randn(1600, 3, generator=g)
    x = torch.tanh(latent @ torch.randn(3, 24, generator=g)) @ torch.randn(24, 16, generator=g)
    x = (x - x.mean(0)) / x.std(0) + 0.1 * torch.randn(1600, 16, generator=g)
    decoder = nn.Sequential(nn.Linear(4, 48), nn.ELU(), nn.Linear(48, 16), *last)
    return Training(
        Compressor(decoder),
        DataLoader(TensorDataset(x[:1200]), 80, shuffle=True),
        lambda m: data.r2(data.predict(m, x[1200:]), x[1200:]),
        trainer={"max_epochs": 25},
    )


@sick("ja-autoencoder-sigmoid-decoder", "autoencoder", "output-range-mismatch", twin=lambda seed: compress(seed))
def autoencoder_sigmoid(seed: int) -> Training:
    return compress(seed, nn.Sigmoid())
