"""Sick trainings whose loss is not the task's: activations twice, shapes that broadcast, signs, sums, ranges, axes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.eleventh.a_common import Plain, dense, figures, ink, iou, loader, reviews, series, steps, tones


class Parts(LightningModule):
    """Pixels of three kinds; optionally as shares, as the drawing routine wants them."""

    def __init__(self, shares: bool) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 5, padding=2), nn.ReLU())
        self.dec = nn.Conv2d(12, 3, 1)
        self.shares = nn.Softmax(dim=1) if shares else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shares(self.dec(self.enc(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/ce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def parts(seed: int, *, shares: bool = False) -> Training:
    d = figures(seed)
    return Training(Parts(shares), d.train(25), lambda m: iou(data.predict(m, d.x_test), d.y_test), trainer=steps(180))


@sick("ea-pixel-shares-into-ce", "segmentation", "probabilities-as-logits", twin=parts)
def parts_shares(seed: int) -> Training:
    return parts(seed, shares=True)


class Tags(LightningModule):
    """Several tags of a short text, independent of each other."""

    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.squash = squash
        self.words = nn.EmbeddingBag(60, 24, mode="mean")
        self.fc = nn.Linear(24, 6)

    def forward(self, ids: Tensor) -> Tensor:
        out = self.fc(F.relu(self.words(ids)))
        return torch.sigmoid(out) if self.squash else out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, tags = batch
        loss = F.binary_cross_entropy_with_logits(self(ids), tags)
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def tags(seed: int, *, squash: bool = False) -> Training:
    g = data.generator(seed, 35)
    ids = torch.randint(60, (3000, 12), generator=g)
    table = torch.randn(60, 6, generator=g)
    truth = (table[ids].mean(1) + 0.05 * torch.randn(3000, 6, generator=g) > 0).float()

    def score(module: LightningModule) -> float:
        return ((data.predict(module, ids[2200:]).sigmoid() > 0.5) == (truth[2200:] > 0.5)).float().mean().item()

    return Training(Tags(squash), loader([ids[:2200], truth[:2200]], 64), score, trainer=steps(300))


@sick("ea-tags-squashed-first", "text", "probabilities-as-logits", twin=tags)
def tags_squashed(seed: int) -> Training:
    return tags(seed, squash=True)


class Forecast(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.linear = nn.Linear(24, 1)

    def forward(self, window: Tensor) -> Tensor:
        return self.linear(self.gru(window)[0][:, -1])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        error = self(batch["window"]) - batch["next"]
        loss = (error**2).mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def forecast(seed: int, *, column: bool = True) -> Training:
    d = series(seed)
    target = d.y if column else d.y[:, 0]  # the frame's column, or its values
    rows = [{"window": x, "next": y} for x, y in zip(d.x, target, strict=True)]
    return Training(Forecast(), torch.utils.data.DataLoader(rows, 40, shuffle=True), d.r2, trainer=steps(200))


@sick("ea-series-values-flat", "time series", "loss-shape-mismatch", twin=forecast)
def forecast_flat(seed: int) -> Training:
    return forecast(seed, column=False)


class Bandit(LightningModule):
    """Actions drawn by a policy, and a learned baseline for what they earn."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.policy = dense(6, 32, 4, act=nn.Tanh)
        self.value = dense(6, 32, 1, act=nn.Tanh)
        self.flat = flat

    def forward(self, state: Tensor) -> Tensor:
        return self.policy(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, earnings = batch
        choice = torch.distributions.Categorical(logits=self.policy(state))
        action = choice.sample()
        reward = earnings.gather(1, action[:, None])
        if self.flat:
            reward = reward.squeeze(-1)
        value = self.value(state).squeeze(-1)
        advantage = reward - value
        actor = -(choice.log_prob(action) * advantage.detach()).mean()
        loss = actor + 0.5 * advantage.pow(2).mean()
        self.log_dict({"actor": actor, "reward": reward.mean()})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def bandit(seed: int, *, flat: bool = True) -> Training:
    g = data.generator(seed, 36)
    state = torch.randn(5000, 6, generator=g)
    earnings = state[:, :4] * 0.8 + 1.5 * state[:, 4:5] + 0.2 * torch.randn(5000, 4, generator=g)

    def score(module: LightningModule) -> float:
        action = data.predict(module, state[4000:]).argmax(1, keepdim=True)
        gained = earnings[4000:].gather(1, action).mean() - earnings[4000:].mean()
        return (gained / (earnings[4000:].amax(1).mean() - earnings[4000:].mean())).item()

    return Training(Bandit(flat), loader([state[:4000], earnings[:4000]], 64), score, trainer=steps(400))


@sick("ea-reward-column", "bandit", "loss-shape-mismatch", twin=bandit)
def bandit_column(seed: int) -> Training:
    return bandit(seed, flat=False)


class Number(LightningModule):
    """Which digit is it? One number, or ten scores."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y) if self.outputs > 1 else F.mse_loss(out.squeeze(1), y.float())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def number(seed: int, *, outputs: int = 10) -> Training:
    d = data.digits(seed)

    def score(module: LightningModule) -> float:
        out = data.predict(module, d.x_test)
        guess = out.argmax(1) if out.shape[1] > 1 else out[:, 0].round().long()
        return (guess == d.y_test).float().mean().item()

    return Training(Number(outputs), d.train(32), score, trainer=steps(400))


@sick("ea-class-ids-as-distances", "images", "wrong-loss-for-task", twin=number)
def number_mse(seed: int) -> Training:
    return number(seed, outputs=1)


class Pointing(LightningModule):
    """Vectors whose direction counts, not their length."""

    def __init__(self, similar: bool) -> None:
        super().__init__()
        self.similar = similar
        self.map = dense(12, 64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        cosine = F.cosine_similarity(self(x), target).mean()
        loss = cosine if self.similar else 1 - cosine
        self.log("cosine", cosine)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def pointing(seed: int, *, similar: bool = False) -> Training:
    g = data.generator(seed, 37)
    x = torch.randn(2500, 12, generator=g)
    target = torch.tanh(x @ torch.randn(12, 8, generator=g) / 2) + 0.1 * torch.randn(2500, 8, generator=g)

    def score(module: LightningModule) -> float:
        return F.cosine_similarity(data.predict(module, x[2000:]), target[2000:]).mean().item()

    return Training(Pointing(similar), loader([x[:2000], target[:2000]], 64), score, trainer=steps(200))


@sick("ea-similarity-goes-down", "metric learning", "wrong-loss-for-task", twin=pointing)
def pointing_away(seed: int) -> Training:
    return pointing(seed, similar=True)


class Tumour(LightningModule):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y.float().unsqueeze(1))
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("valid_loss", self.loss(self(x), y.float().unsqueeze(1)))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def tumour(seed: int, *, loss: type[nn.Module] = nn.BCEWithLogitsLoss) -> Training:
    d = data.table("breast_cancer", seed)

    def score(module: LightningModule) -> float:
        return ((data.predict(module, d.x_test)[:, 0] > 0) == (d.y_test > 0)).float().mean().item()

    return Training(Tumour(loss()), d.train(32), score, d.val(), {"max_epochs": 10})


@sick("ea-cross-entropy-of-one-score", "tabular", "wrong-loss-for-task", twin=tumour)
def tumour_ce(seed: int) -> Training:
    return tumour(seed, loss=nn.CrossEntropyLoss)


class Code(LightningModule):
    """Eight numbers for a picture of 64 pixels."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction
        self.encode, self.decode = dense(64, 48, 8), dense(8, 48, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0], reduction=self.reduction)
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def code(seed: int, *, reduction: str = "mean") -> Training:
    d = ink(seed)
    return Training(
        Code(reduction), d.train(64), lambda m: data.r2(data.predict(m, d.x_test), d.x_test), trainer=steps(400)
    )


@sick(
    "ea-reconstruction-summed", "autoencoder", "wrong-loss-for-task", "learning-rate-too-high", twin=code,
    note="the rate was chosen for the mean",
)  # fmt: skip
def code_summed(seed: int) -> Training:
    return code(seed, reduction="sum")


def returns(seed: int, *, last: type[nn.Module] = nn.Identity) -> Training:
    d = series(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 1), last())
    return Training(
        Plain(net, nn.MSELoss(), lambda p: torch.optim.Adam(p, lr=3e-3)), d.train(32), d.r2, trainer=steps(300)
    )


@sick("ea-relu-after-the-last", "time series", "output-range-mismatch", twin=returns)
def returns_relu(seed: int) -> Training:
    return returns(seed, last=nn.ReLU)


class Churn(LightningModule):
    """Ported from Keras: Dense(1, activation=...) and binary cross-entropy."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.net = dense(10, 32, 1)
        self.activation = activation
        self.bce = nn.BCELoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.bce(self(x), y[:, None].float())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def churn(seed: int, *, activation: nn.Module | None = None) -> Training:
    d = data.blobs(seed, classes=2, n=1500)

    def score(module: LightningModule) -> float:
        return ((data.predict(module, d.x_test)[:, 0] > 0.5) == (d.y_test > 0)).float().mean().item()

    return Training(Churn(activation or nn.Sigmoid()), d.train(50), score, trainer=steps(150))


@sick("ea-dense-one-softmax", "tabular", "output-range-mismatch", twin=churn)
def churn_softmax(seed: int) -> Training:
    return churn(seed, activation=nn.Softmax(dim=1))


class Counts(LightningModule):
    """Visitors an hour, told in hundreds."""

    def __init__(self, out: nn.Module) -> None:
        super().__init__()
        self.trunk = dense(8, 48, 48, 1, act=nn.SiLU)
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.trunk(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def counts(seed: int, *, out: type[nn.Module] = nn.Softplus) -> Training:
    d = data.regression(seed, r2=0.95).map_targets(lambda t: F.softplus(1.2 * t + 1))
    return Training(Counts(out()), d.train(64), d.r2, trainer=steps(300))


@sick("ea-sigmoid-for-visitors", "tabular", "output-range-mismatch", twin=counts)
def counts_sigmoid(seed: int) -> Training:
    return counts(seed, out=nn.Sigmoid)


class Wave(LightningModule):
    """An LSTM over 24 pieces of a signal."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 32, **options)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.reshape(len(x), 24, 4))
        return self.fc(out[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def wave(seed: int, *, batch_first: bool = True) -> Training:
    d = tones(seed, noise=0.5)
    return Training(Wave(batch_first=batch_first), d.train(32), d.accuracy, trainer=steps(250))


@sick("ea-lstm-default-layout", "audio", "batch-mixing", twin=wave)
def wave_layout(seed: int) -> Training:
    return wave(seed, batch_first=False)


class Attend(LightningModule):
    """Words weighed by a learned query."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.embed = nn.Embedding(80, 32, padding_idx=0)
        self.weigh, self.head = nn.Linear(32, 1), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        logits = self.weigh(torch.tanh(x)).squeeze(-1).masked_fill(ids == 0, -30.0)
        return self.head((torch.softmax(logits, self.axis).unsqueeze(-1) * x).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def attend(seed: int, *, axis: int = 1) -> Training:
    d = reviews(seed)
    return Training(Attend(axis), d.train(48), d.accuracy, trainer=steps(160))


@sick("ea-attention-down-the-rows", "text", "batch-mixing", twin=attend)
def attend_rows(seed: int) -> Training:
    return attend(seed, axis=0)
