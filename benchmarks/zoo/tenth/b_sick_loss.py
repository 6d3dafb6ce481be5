"""Sick trainings whose loss, last layer or targets do not fit each other."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, digits, generator, predict, table
from benchmarks.zoo.tenth.b_common import (
    Logged,
    Plain,
    adam,
    dense,
    iou,
    molecules,
    r2_on,
    seasons,
    sgd,
    shapes,
    tagging,
)


class Tagger(LightningModule):
    """Part-of-speech style tagging, ported from Keras: the output layer carries its activation."""

    def __init__(self, symbols: int, tags: int, activation: str | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 24)
        self.encoder = nn.GRU(24, 32, batch_first=True, bidirectional=True)
        self.output = nn.Linear(64, tags)
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        scores = self.output(self.encoder(self.embed(tokens))[0])
        return scores.softmax(-1) if self.activation == "softmax" else scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, tags = batch
        loss = F.cross_entropy(self(tokens).flatten(0, 1), tags.flatten())
        self.log("tag_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


def tagger(seed: int, activation: str | None) -> Training:
    task = tagging(seed)
    module = Tagger(40, 12, activation)

    def score(fitted: LightningModule) -> float:
        return accuracy(predict(fitted, task.x_test), task.y_test)

    return Training(module, task.train(32), score, trainer={"max_epochs": 7})


@sick("tb-tagger-softmax-head", "text", "probabilities-as-logits", twin=lambda seed: tagger(seed, None))
def tagger_softmax(seed: int) -> Training:
    return tagger(seed, "softmax")


class Segmenter(LightningModule):
    """A small encoder and decoder for masks, trained with a hand-written focal loss."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.middle = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(24, 12, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(13, 1, 1), last)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.cat([self.up(self.middle(self.down(image))), image], 1))

    def focal(self, output: Tensor, mask: Tensor) -> Tensor:
        plain = F.binary_cross_entropy_with_logits(output, mask, reduction="none")
        weight = (1 - torch.exp(-plain)) ** 2
        return (weight * plain).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.focal(self(batch["image"]), batch["mask"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        output = self(batch["image"])
        self.log("val/focal", self.focal(output, batch["mask"]))
        self.log("val/iou", iou(output.sigmoid(), batch["mask"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


class Images(torch.utils.data.Dataset):
    """Images with masks, as dicts."""

    def __init__(self, image: Tensor, mask: Tensor) -> None:
        self.image, self.mask = image, mask

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.image[index], "mask": self.mask[index]}


def segmenter(seed: int, last: nn.Module) -> Training:
    task = shapes(seed)
    train = DataLoader(Images(task.x, task.y), 16, shuffle=True)
    val = DataLoader(Images(task.x_test, task.y_test), 64)

    def score(fitted: LightningModule) -> float:
        return iou(predict(fitted, task.x_test).sigmoid(), task.y_test)

    return Training(Segmenter(last), train, score, val, {"max_epochs": 5})


@sick(
    "tb-focal-on-sigmoid-masks",
    "segmentation",
    "probabilities-as-logits",
    twin=lambda seed: segmenter(seed, nn.Identity()),
)
def focal_on_sigmoid(seed: int) -> Training:
    return segmenter(seed, nn.Sigmoid())


class GraphNet(LightningModule):
    """Two rounds of message passing and a sum over the nodes; mean absolute error by hand."""

    def __init__(self, kinds: int, flat: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(kinds, 32), nn.Linear(64, 32)
        self.own = nn.Linear(kinds, 32)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        self.flat = flat

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        adjacency, feature = graph
        hidden = F.relu(self.first(adjacency @ feature))
        hidden = F.relu(self.second(torch.cat([hidden, self.own(feature)], -1)))
        out = self.head(hidden.mean(1))
        return out.squeeze(-1) if self.flat else out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        adjacency, feature, target = batch
        error = (self((adjacency, feature)) - target).abs().mean()
        self.log("mae", error)
        return error

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def graph_energy(seed: int, flat: bool) -> Training:
    adjacency, feature, y = molecules(seed)
    train = DataLoader(TensorDataset(adjacency[:800], feature[:800], y[:800]), 32, shuffle=True)

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, (adjacency[800:], feature[800:]), y[800:])

    return Training(GraphNet(4, flat), train, score, trainer={"max_epochs": 12})


@sick("tb-graph-energy-column-minus-row", "graph", "loss-shape-mismatch", twin=lambda seed: graph_energy(seed, True))
def graph_energy_broadcast(seed: int) -> Training:
    return graph_energy(seed, False)


class Denoiser(LightningModule):
    """Dilated convolutions that clean a signal; a smooth L1-like penalty written out."""

    def __init__(self, channel: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(16, 16, 5, padding=4, dilation=2),
            nn.GELU(),
            nn.Conv1d(16, 1, 5, padding=2),
        )
        self.channel = channel

    def forward(self, signal: Tensor) -> Tensor:
        return self.body(signal[:, None])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        clean = batch["clean"]
        if self.channel:
            clean = clean[:, None]
        loss = torch.sqrt((self(batch["noisy"]) - clean) ** 2 + 1e-4).mean()
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


def denoiser(seed: int, channel: bool) -> Training:
    g = generator(seed, 220)
    time = torch.arange(64).float()
    rate = 0.02 + 0.06 * torch.rand(900, 1, generator=g)
    clean = torch.sin(6.28 * (rate * time + torch.rand(900, 1, generator=g))) * 1.3
    noisy = clean + 0.6 * torch.randn(900, 64, generator=g)
    rows = [{"noisy": a, "clean": b} for a, b in zip(noisy[:700], clean[:700], strict=True)]

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, noisy[700:], clean[700:])

    return Training(Denoiser(channel), DataLoader(rows, 20, shuffle=True), score, trainer={"max_epochs": 6})


@sick("tb-denoiser-lost-channel-axis", "audio", "loss-shape-mismatch", twin=lambda seed: denoiser(seed, True))
def denoiser_broadcast(seed: int) -> Training:
    return denoiser(seed, False)


def one_logit(seed: int, loss: Any) -> Training:
    task = table("breast_cancer", seed)

    def score(fitted: LightningModule) -> float:
        return ((predict(fitted, task.x_test)[:, 0] > 0).long() == task.y_test).float().mean().item()

    module = Logged(dense(30, 16, 1), loss, adam(3e-3))
    return Training(module, task.train(16), score, task.val(), {"max_epochs": 6})


@sick(
    "tb-tumour-one-logit-cross-entropy",
    "tabular",
    "wrong-loss-for-task",
    twin=lambda seed: one_logit(seed, lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.float())),
)
def one_logit_cross_entropy(seed: int) -> Training:
    return one_logit(seed, lambda out, y: F.cross_entropy(out, y.float().unsqueeze(1)))


def distance_map(seed: int, reduction: str) -> Training:
    """Images to a smooth map: the image blurred and squashed."""
    task = shapes(seed, n=600)

    def smooth(mask: Tensor) -> Tensor:
        wide = F.avg_pool2d(mask, 5, 1, 2, count_include_pad=False)
        return (wide - 0.15) / 0.18

    task = task.map_targets(smooth)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 1, 3, padding=1),
    )
    module = Logged(net, nn.MSELoss(reduction=reduction), sgd(0.03, 0.9))

    def score(fitted: LightningModule) -> float:
        return max(r2_on(fitted, task.x_test, task.y_test), -1.0)

    return Training(module, task.train(32), score, task.val(), {"max_epochs": 6})


@sick(
    "tb-density-map-summed-squares",
    "images",
    "wrong-loss-for-task",
    "learning-rate-too-high",
    twin=lambda seed: distance_map(seed, "mean"),
)
def density_map_sum(seed: int) -> Training:
    return distance_map(seed, "sum")


class Forecaster(LightningModule):
    """One step ahead with an LSTM, brought over from a Keras notebook."""

    def __init__(self, output_activation: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.dense = nn.Linear(24, 1)
        self.output_activation = output_activation

    def forward(self, window: Tensor) -> Tensor:
        return self.output_activation(self.dense(self.lstm(window)[0][:, -1]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        window, target = batch
        loss = F.huber_loss(self(window), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        window, target = batch
        self.log("val_mae", F.l1_loss(self(window), target))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def forecaster(seed: int, activation: Any) -> Training:
    task = seasons(seed)
    return Training(Forecaster(activation), task.train(32), task.r2, task.val(), {"max_epochs": 8})


@sick(
    "tb-season-forecast-relu-output",
    "series",
    "output-range-mismatch",
    twin=lambda seed: forecaster(seed, nn.Identity()),
)
def forecast_relu(seed: int) -> Training:
    return forecaster(seed, nn.ReLU())


class Autoencoder(LightningModule):
    """Digits through a narrow code and back."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 48), nn.ELU(), nn.Linear(48, 64), last)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decoder(self.encoder(pixels))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (pixels,) = batch
        loss = F.mse_loss(self(pixels), pixels)
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=3e-3)


def autoencoder(seed: int, last: nn.Module) -> Training:
    task = digits(seed)
    mean, std = task.x.mean(), task.x.std()
    train, test = (task.x - mean) / std, (task.x_test - mean) / std

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, test, test)

    loader = DataLoader(TensorDataset(train), 64, shuffle=True)
    return Training(Autoencoder(last), loader, score, trainer={"max_epochs": 15})


@sick(
    "tb-digit-codes-sigmoid-decoder",
    "autoencoder",
    "output-range-mismatch",
    twin=lambda seed: autoencoder(seed, nn.Identity()),
)
def autoencoder_sigmoid(seed: int) -> Training:
    return autoencoder(seed, nn.Sigmoid())


class Bandit(LightningModule):
    """A contextual bandit: the policy draws an arm, the advantage weighs its log-likelihood."""

    def __init__(self, arms: int, normalise: bool, best: Tensor) -> None:
        super().__init__()
        self.policy = dense(6, 32, arms, act=nn.Tanh)
        self.normalise = normalise
        self.register_buffer("payoff", best)

    def forward(self, context: Tensor) -> Tensor:
        scores = self.policy(context)
        return scores.softmax(-1) if self.normalise else scores

    def reward(self, context: Tensor, arm: Tensor) -> Tensor:
        return ((context @ self.payoff).argmax(-1) == arm).float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (context,) = batch
        choice = torch.distributions.Categorical(logits=self(context))
        arm = choice.sample()
        reward = self.reward(context, arm)
        self.log("reward", reward.mean())
        return -((reward - reward.mean()) * choice.log_prob(arm)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def bandit(seed: int, normalise: bool) -> Training:
    g = generator(seed, 221)
    context, payoff = torch.randn(3000, 6, generator=g), torch.randn(6, 5, generator=g)
    module = Bandit(5, normalise, payoff)

    def score(fitted: LightningModule) -> float:
        """Mean reward of the stochastic policy, in closed form."""
        share = predict(fitted, context[2400:]).softmax(-1)
        arm = (context[2400:] @ payoff).argmax(-1)
        return share.gather(1, arm[:, None]).mean().item()

    loader = DataLoader(TensorDataset(context[:2400]), 64, shuffle=True)
    return Training(module, loader, score, trainer={"max_epochs": 8})


@sick("tb-bandit-policy-of-softmax", "bandit", "probabilities-as-logits", twin=lambda seed: bandit(seed, False))
def bandit_softmax(seed: int) -> Training:
    return bandit(seed, True)


def digit_ids(seed: int, nominal: bool) -> Training:
    """Ten digits, classes in no order, told from pixels by a small convolutional network."""
    task = digits(seed).to_images()
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 16, 32),
        nn.SiLU(),
        nn.Linear(32, 10 if nominal else 1),
    )

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) if nominal else F.mse_loss(out[:, 0], y.float())

    def score(fitted: LightningModule) -> float:
        out = predict(fitted, task.x_test)
        guess = out.argmax(1) if nominal else out[:, 0].round().long()
        return (guess == task.y_test).float().mean().item()

    return Training(Plain(net, loss, adam(2e-3)), task.train(32), score, trainer={"max_epochs": 6})


@sick("tb-digit-ids-squared-error", "images", "wrong-loss-for-task", twin=lambda seed: digit_ids(seed, True))
def digit_ids_mse(seed: int) -> Training:
    return digit_ids(seed, False)
