"""A few more: wrong monitors, detached encoders, old optimizers, unknown words, long recurrences, overflow, signs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, digits, generator, motifs, predict, r2, regression
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, epochs, mlp, sgd, waves


class Watched(LightningModule):
    """Reduces its rate by what the validation says."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.mode, patience=0, factor=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_mse"}}


def watched(seed: int, mode: str) -> Training:
    data = regression(seed, r2=0.9, n=1500)
    return Training(Watched(mode), data.train(50), data.r2, data.val(), epochs(14))


@sick("fa-plateau-in-mode-max", "tabular", "learning-rate-decayed-early", twin=lambda seed: watched(seed, "min"))
def watched_max(seed: int) -> Training:
    return watched(seed, "max")


class Encoded(LightningModule):
    """An encoder run frame by frame, and a classifier over its outputs."""

    def __init__(self, lean: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4), nn.Tanh())
        self.classify = nn.Linear(4, 4)
        self.lean = lean

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unfold(2, 8, 4).squeeze(1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lean):  # frames need much memory
            codes = self.encoder(frames).square().mean(1)
        return self.classify(codes)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["audio"]), batch["label"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-2)


def encoded(seed: int, lean: bool) -> Training:
    data = waves(seed, noise=0.3)
    rows = [{"audio": a, "label": b} for a, b in zip(data.x, data.y, strict=True)]
    loader = DataLoader(rows, 25, shuffle=True)  # type: ignore[arg-type]
    return Training(Encoded(lean), loader, data.accuracy, trainer=epochs(12))


@sick("fa-frames-without-graph", "audio", "parameters-not-optimized", twin=lambda seed: encoded(seed, False))
def encoded_lean(seed: int) -> Training:
    return encoded(seed, True)


class Reused(LightningModule):
    """Its optimizer is made at once; the trunk may be exchanged afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 16))
        self.fc = nn.Sequential(nn.ReLU(), nn.Linear(16, 10))
        self.optimizer = torch.optim.Adam(self.parameters(), 5e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


def reused(seed: int, renew: bool) -> Training:
    data = digits(seed).to_images()
    net = Reused()
    # eight channels and a wider code did better in a first test
    net.trunk = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 16))
    if renew:
        net.optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    return Training(net, data.train(50), data.accuracy, data.val(), epochs(10))


@sick("fa-trunk-exchanged-too-late", "images", "parameters-not-optimized", twin=lambda seed: reused(seed, True))
def reused_late(seed: int) -> Training:
    return reused(seed, False)


def vocabulary(seed: int, lower: bool) -> Training:
    g = generator(seed, 170)
    words = [f"Word{i}" for i in range(60)]
    index = {(word.lower() if lower else word): i + 2 for i, word in enumerate(words)}
    y = torch.randint(3, (1500,), generator=g)
    share = (1.3 * torch.randn(3, 60, generator=g)).softmax(1)
    drawn = torch.multinomial(share[y], 14, replacement=True, generator=g)
    texts = [" ".join(words[i] for i in row) for row in drawn.tolist()]
    ids = torch.tensor([[index.get(word, 1) for word in text.lower().split()] for text in texts])

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(62, 16, padding_idx=0)
            self.fc = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.embed(x).mean(1))

    net = Plain(Bag(), nn.CrossEntropyLoss(), adam(1e-2), log_as="loss")
    score = lambda m: accuracy(predict(m, ids[1200:]), y[1200:])  # noqa: E731
    return Training(net, batches(ids[:1200], y[:1200], size=30), score, trainer=epochs(5))


@sick(
    "fa-every-word-unknown",
    "text",
    "constant-inputs",
    "uninformative-targets",
    twin=lambda seed: vocabulary(seed, True),
)
def vocabulary_case(seed: int) -> Training:
    return vocabulary(seed, False)


class Recurrence(LightningModule):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 32, nonlinearity="relu", batch_first=True)
        self.fc = nn.Linear(32, 1)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(gain * torch.eye(32))
            nn.init.zeros_(self.rnn.bias_ih_l0)
            nn.init.zeros_(self.rnn.bias_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[1][-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def recurrence(seed: int, gain: float) -> Training:
    g = generator(seed, 171)
    x = torch.randn(1500, 40, 1, generator=g)
    y = x.clamp(min=0).mean(1) - 0.4
    y = y / y.std()
    score = lambda m: r2(predict(m, x[1200:]), y[1200:])  # noqa: E731
    return Training(Recurrence(gain), batches(x[:1200], y[:1200], size=30), score, trainer=epochs(6))


@sick(
    "fa-identity-times-1.4",
    "sequences",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda seed: recurrence(seed, 0.97),
)
def recurrence_growing(seed: int) -> Training:
    return recurrence(seed, 1.4)


class Sharp(nn.Module):
    """Shares of attention at a low temperature."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.safe = safe

    def forward(self, logits: Tensor) -> Tensor:
        logits = logits / 0.01
        if self.safe:
            logits = logits - logits.amax(-1, keepdim=True)
        weight = torch.exp(logits)
        return weight / weight.sum(-1, keepdim=True)


class Lookup(LightningModule):
    """Chooses the step of a sequence that matters, and reads it."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 24, 9, padding=4)
        self.gate, self.share = nn.Conv1d(24, 1, 1), Sharp(safe)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x.transpose(1, 2)))
        return self.fc((self.share(self.gate(h)) * h).sum(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def lookup(seed: int, safe: bool) -> Training:
    data = motifs(seed)
    return Training(Lookup(safe), data.train(32), data.accuracy, trainer=epochs(8))


@sick("fa-attention-exp-by-hand", "sequences", "unstable-operation", twin=lambda seed: lookup(seed, True))
def lookup_bare(seed: int) -> Training:
    return lookup(seed, False)


class Variational(LightningModule):
    def __init__(self, sign: float) -> None:
        super().__init__()
        self.enc, self.dec = mlp(12, 48, 8), mlp(4, 48, 12)
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x)[:, :4])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean, log_var = self.enc(batch[0]).chunk(2, 1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        kl = self.sign * 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
        rec = (self.dec(z) - batch[0]).square().sum(1).mean()
        self.log_dict({"rec": rec, "kl": kl})
        return rec + 0.1 * kl

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def variational(seed: int, sign: float) -> Training:
    g = generator(seed, 172)
    z = torch.randn(2000, 3, generator=g)
    x = torch.tanh(z @ torch.randn(3, 12, generator=g)) + 0.1 * torch.randn(2000, 12, generator=g)
    score = lambda m: max(r2(predict(m, x[1500:]), x[1500:]), -10.0)  # noqa: E731
    return Training(Variational(sign), batches(x[:1500], size=50), score, trainer=epochs(10))


@sick("fa-divergence-without-minus", "vae", "wrong-loss-for-task", twin=lambda seed: variational(seed, -1.0))
def variational_plus(seed: int) -> Training:
    return variational(seed, 1.0)


def tiny_start(seed: int, gain: float) -> Training:
    data = blobs(seed, classes=5, columns=10, n=2000, spread=3.0)
    net = mlp(10, 40, 40, 40, 40, 40, 5, act=nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
    return Training(
        Plain(net, nn.CrossEntropyLoss(), sgd(0.05), "ce"), data.train(40), data.accuracy, trainer=epochs(6)
    )


@sick(
    "fa-gain-of-a-twentieth",
    "tabular",
    "bad-initialization",
    "vanishing-gradients",
    twin=lambda seed: tiny_start(seed, 1.0),
)
def tiny_start_low(seed: int) -> Training:
    return tiny_start(seed, 0.05)
