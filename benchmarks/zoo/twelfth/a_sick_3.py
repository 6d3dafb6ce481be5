"""Trainings whose layers or optimizers are at fault: starts, modes, axes, rates, decay, clips, gradients kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import (
    accuracy,
    blobs,
    characters,
    digits,
    moons,
    motifs,
    predict,
    r2,
    regression,
    table,
)
from benchmarks.zoo.twelfth.a_common import (
    Plain,
    adam,
    batches,
    discs,
    epochs,
    graphs,
    mlp,
    ratings,
    series,
    sgd,
    waves,
)


class Ensemble(LightningModule):
    """One hidden layer, its bias set by hand."""

    def __init__(self, low: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(10, 40)
        self.head = nn.Linear(40, 4)
        nn.init.xavier_uniform_(self.proj.weight)
        if low:
            nn.init.constant_(self.proj.bias, -6.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.proj(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def ensemble(seed: int, low: bool) -> Training:
    data = blobs(seed, classes=4, columns=10, n=2000, spread=3.0).standardised()
    return Training(Ensemble(low), data.train(50), data.accuracy, data.val(), epochs(6))


@sick("fa-bias-of-minus-six", "tabular", "dead-activations", "bad-initialization", twin=lambda s: ensemble(s, False))
def ensemble_low(seed: int) -> Training:
    return ensemble(seed, True)


class Reader(LightningModule):
    """The shape hidden in a sequence, from the last output of an LSTM."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=batch_first)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("acc/val", accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def reader(seed: int, batch_first: bool) -> Training:
    data = motifs(seed, length=20)
    return Training(Reader(batch_first), data.train(32), data.accuracy, data.val(), epochs(12))


@sick("fa-lstm-batch-second", "sequences", "batch-mixing", twin=lambda seed: reader(seed, True))
def reader_mixed(seed: int) -> Training:
    return reader(seed, False)


class Attention(LightningModule):
    """Weights the nodes of a graph by attention before they are summed."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.lift, self.gate, self.out = nn.Linear(6, 32), nn.Linear(32, 1), nn.Linear(32, 2)
        self.axis = axis

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h = F.relu(batch["links"] @ self.lift(batch["nodes"]))
        weight = F.softmax(4 * self.gate(h), dim=self.axis)
        return self.out((weight * h).sum(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch), batch["y"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def attention(seed: int, axis: int) -> Training:
    x, links, y, x_test, links_test, y_test = graphs(seed, n=900)
    rows = [{"nodes": a, "links": b, "y": c} for a, b, c in zip(x, links, y, strict=True)]
    test = {"nodes": x_test, "links": links_test}
    loader = DataLoader(rows, 24, shuffle=True)  # type: ignore[arg-type]
    return Training(Attention(axis), loader, lambda m: accuracy(predict(m, test), y_test), trainer=epochs(8))


@sick("fa-attention-over-the-batch", "graphs", "batch-mixing", twin=lambda seed: attention(seed, 1))
def attention_batch(seed: int) -> Training:
    return attention(seed, 0)


class Sketch(LightningModule):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(256, 64), nn.Linear(64, 10)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, 0.5) if self.always else F.dropout(x, 0.5, self.training)
        return self.fc2(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_ce", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def sketch(seed: int, always: bool) -> Training:
    data = digits(seed).to_images()
    return Training(Sketch(always), data.train(64), data.accuracy, data.val(), epochs(10))


@sick("fa-functional-dropout", "images", "mode-mismatch", twin=lambda seed: sketch(seed, False))
def sketch_always(seed: int) -> Training:
    return sketch(seed, True)


def start(seed: int, spread: float | None) -> Training:
    data = digits(seed)
    net = mlp(64, 96, 96, 10)
    for layer in net:
        if isinstance(layer, nn.Linear) and spread is not None:
            nn.init.normal_(layer.weight, 0.0, spread)
            nn.init.zeros_(layer.bias)
    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.03), log_as="loss")
    return Training(module, data.train(32), data.accuracy, data.val(), epochs(7))


@sick("fa-randn-weights", "images", "bad-initialization", twin=lambda seed: start(seed, None))
def start_wide(seed: int) -> Training:
    return start(seed, 1.5)


class Alike(LightningModule):
    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.net = mlp(2, 32, 32, 2, act=nn.Tanh)
        if constant:
            self.net.apply(self.fill)

    @staticmethod
    def fill(layer: nn.Module) -> None:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self(batch[0]), batch[1])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), 3e-3)


def alike(seed: int, constant: bool) -> Training:
    data = moons(seed)
    return Training(Alike(constant), data.train(20), data.accuracy, trainer=epochs(6))


@sick("fa-all-weights-a-tenth", "tabular", "bad-initialization", twin=lambda seed: alike(seed, False))
def alike_constant(seed: int) -> Training:
    return alike(seed, True)


def decayed(seed: int, decay: float) -> Training:
    pairs, y, pairs_test, y_test = ratings(seed)

    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(80, 4), nn.Embedding(60, 4)
            nn.init.normal_(self.user.weight, std=0.4)
            nn.init.normal_(self.item.weight, std=0.4)

        def forward(self, both: Tensor) -> Tensor:
            return (self.user(both[:, 0]) * self.item(both[:, 1])).sum(1)

    net = Plain(Dot(), nn.MSELoss(), lambda p: torch.optim.Adam(p, 2e-2, weight_decay=decay), log_as="mse")
    return Training(net, batches(pairs, y, size=64), lambda m: r2(predict(m, pairs_test), y_test), trainer=epochs(8))


@sick("fa-factors-decay-of-a-fifth", "recommender", "excess-regularization", twin=lambda seed: decayed(seed, 1e-5))
def decayed_much(seed: int) -> Training:
    return decayed(seed, 0.2)


def dropped(seed: int, p: float) -> Training:
    data = waves(seed, noise=0.4)
    net = nn.Sequential(
        *(nn.Conv1d(1, 24, 9, stride=2), nn.ReLU(), nn.Dropout(p), nn.Conv1d(24, 24, 5, stride=2), nn.ReLU()),
        *(nn.Dropout(p), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Dropout(p), nn.Linear(24, 4)),
    )
    return Training(Plain(net, nn.CrossEntropyLoss(), adam(3e-3)), data.train(30), data.accuracy, trainer=epochs(5))


@sick("fa-keep-probability-as-rate", "audio", "excess-regularization", twin=lambda seed: dropped(seed, 0.05))
def dropped_much(seed: int) -> Training:
    return dropped(seed, 0.95)


class Language(LightningModule):
    def __init__(self, symbols: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(symbols, 24)
        self.rnn = nn.GRU(24, 48, batch_first=True)
        self.proj = nn.Linear(48, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.proj(self.rnn(self.embed(ids))[0])

    def training_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


def language(seed: int, lr: float) -> Training:
    text = characters(seed, n=1200)

    def score(module: LightningModule) -> float:
        out = predict(module, text.test[:, :-1])
        return -F.cross_entropy(out.transpose(1, 2), text.test[:, 1:]).item()

    loader = DataLoader(text.train, 40, shuffle=True)  # type: ignore[arg-type]
    return Training(Language(text.symbols, lr), loader, score, trainer=epochs(6))


@sick("fa-gru-adam-at-a-half", "text", "learning-rate-too-high", twin=lambda seed: language(seed, 5e-3))
def language_fast(seed: int) -> Training:
    return language(seed, 0.5)


def tabular_rate(seed: int, rate: float) -> Training:
    data = table("breast_cancer", seed)
    data = data.map_targets(lambda y: y.float()[:, None])
    net = Plain(mlp(30, 32, 1), nn.BCEWithLogitsLoss(), sgd(rate, 0.9), log_as="logloss")

    def score(module: LightningModule) -> float:
        return -min(F.binary_cross_entropy_with_logits(predict(module, data.x_test), data.y_test).item(), 1e3)

    return Training(net, data.train(16), score, data.val(), epochs(6))


@sick("fa-sgd-at-a-half", "tabular", "learning-rate-too-high", twin=lambda seed: tabular_rate(seed, 0.01))
def tabular_fast(seed: int) -> Training:
    return tabular_rate(seed, 0.5)


def crawl(seed: int, rate: float) -> Training:
    data = discs(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))
    )

    def score(module: LightningModule) -> float:
        return ((predict(module, data.x_test) > 0) == (data.y_test > 0)).float().mean().item()

    module = Plain(net, nn.BCEWithLogitsLoss(), lambda p: torch.optim.AdamW(p, lr=rate), log_as="bce")
    return Training(module, data.train(16), score, trainer=epochs(6))


@sick("fa-segment-at-2e-6", "segmentation", "learning-rate-too-low", twin=lambda seed: crawl(seed, 3e-3))
def crawl_slow(seed: int) -> Training:
    return crawl(seed, 2e-6)


class Stepped(LightningModule):
    def __init__(self, interval: str) -> None:
        super().__init__()
        self.net = mlp(8, 64, 64, 1)
        self.interval = interval

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


def stepped(seed: int, interval: str) -> Training:
    data = regression(seed, r2=0.9)
    return Training(Stepped(interval), data.train(64), data.r2, data.val(), epochs(12))


@sick("fa-halved-every-four-steps", "tabular", "learning-rate-decayed-early", twin=lambda seed: stepped(seed, "epoch"))
def stepped_often(seed: int) -> Training:
    return stepped(seed, "step")


class Blocks(LightningModule):
    """The blocks stand in a plain list."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(3)]
        self.blocks: Any = nn.ModuleList(blocks) if listed else blocks
        self.squeeze = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.squeeze(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def blocks(seed: int, listed: bool) -> Training:
    data = series(seed, noise=0.1)
    data = data.map_targets(lambda y: (2 * y).sin() * 1.5)
    return Training(Blocks(listed), data.train(40), data.r2, data.val(), epochs(10))


@sick("fa-blocks-in-a-list", "time series", "parameters-not-optimized", twin=lambda seed: blocks(seed, True))
def blocks_listed(seed: int) -> Training:
    return blocks(seed, False)


class Manual(LightningModule):
    def __init__(self, clear: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp(10, 48, 48, 5)
        self.clear = clear

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        if self.clear:
            optimizer.zero_grad()  # type: ignore[union-attr]
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.03, momentum=0.9)


def manual(seed: int, clear: bool) -> Training:
    data = blobs(seed, classes=5, columns=10, n=2500)
    return Training(Manual(clear), data.train(50), data.accuracy, trainer=epochs(6))


@sick("fa-manual-never-cleared", "tabular", "gradients-not-cleared", twin=lambda seed: manual(seed, True))
def manual_kept(seed: int) -> Training:
    return manual(seed, False)


def clipped(seed: int, norm: float) -> Training:
    data = motifs(seed, length=24)
    net = nn.Sequential(
        *(nn.Flatten(1), nn.Unflatten(1, (1, 24)), nn.Conv1d(1, 24, 7), nn.ReLU(), nn.Conv1d(24, 24, 5), nn.ReLU()),
        *(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 4)),
    )
    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.05), log_as="loss")
    return Training(module, data.train(32), data.accuracy, data.val(), epochs(8, gradient_clip_val=norm))


@sick("fa-clip-of-a-thousandth", "sequences", "clipping-too-tight", twin=lambda seed: clipped(seed, 5.0))
def clipped_tight(seed: int) -> Training:
    return clipped(seed, 1e-3)
