"""Losses that do not fit what they are given: shapes, probabilities, ranges, the wrong axis."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import predict
from benchmarks.zoo.later._sick_common import (
    Records,
    bags,
    communities,
    demand,
    explained,
    loader,
    melodies,
    recall,
    reviews,
    solids,
    spots,
    tones,
    visits,
)

# --- probabilities where logits are asked for -------------------------------------------------------------------------


class Votes(LightningModule):
    """Averages the softmax of the points of a cloud (or their scores), and hands that to cross-entropy."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.point = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.vote = nn.Linear(96, 4)

    def forward(self, points: Tensor) -> Tensor:
        h = self.point(points)
        h = torch.cat([h, h.amax(1, keepdim=True).expand_as(h)], 2)
        scores = self.vote(h)
        return scores.softmax(-1).mean(1) if self.soft else scores.mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        points, kind = batch
        loss = F.cross_entropy(self(points), kind)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@sick("v-solids-points-vote", "point cloud", "probabilities-as-logits", twin=lambda s: points_vote(s, False))
def points_vote(seed: int, soft: bool = True) -> Training:
    d = solids(seed)
    return Training(Votes(soft), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


class Marks(LightningModule):
    """Marks each node of a graph with the groups it touches: several labels a node."""

    def __init__(self, mix: Tensor, positive: Tensor, squash: bool) -> None:
        super().__init__()
        self.register_buffer("mix", mix)
        self.squash = squash
        self.hidden, self.out = nn.Linear(8, 32), nn.Linear(32, 4)
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=positive)

    def forward(self, x: Tensor) -> Tensor:
        h = self.out(self.mix @ F.elu(self.mix @ self.hidden(x)))
        return torch.sigmoid(h) if self.squash else h

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = batch
        loss = self.criterion(self(x[0]), labels[0])
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@sick("v-communities-many-labels", "graph", "probabilities-as-logits", twin=lambda s: many_labels(s, False))
def many_labels(seed: int, squash: bool = True) -> Training:
    x, a, y = communities(seed)
    labels = F.one_hot(y, 4).float()
    labels = torch.maximum(labels, (F.one_hot((y + 1) % 4, 4) * (x[:, :1] > 0.3)).float())
    mix = a + torch.eye(len(a))
    module = Marks(mix / mix.sum(1, keepdim=True), torch.full((4,), 2.0), squash)
    settings = {"max_epochs": 200, "log_every_n_steps": 20}

    def score(module: LightningModule) -> float:
        return ((predict(module, x).sigmoid() > 0.5) == (labels > 0)).float().mean().item()

    return Training(module, loader(x[None], labels[None], size=1), score, None, settings)


class NextNote(LightningModule):
    """A causal transformer over notes; `forward` ends in whatever its last layer is."""

    def __init__(self, ready: bool) -> None:
        super().__init__()
        self.ready = ready
        self.embed = nn.Embedding(12, 32)
        self.place = nn.Parameter(0.1 * torch.randn(20, 32))
        self.block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(32, 12)
        self.last = nn.Softmax(dim=-1) if ready else nn.Identity()
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, notes: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(notes.shape[1])
        h = self.block(self.embed(notes) + self.place, src_mask=mask, is_causal=True)
        return self.last(self.out(h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        notes, following = batch
        loss = self.criterion(self(notes).transpose(1, 2), following)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@sick("v-melodies-last-layer", "transformer", "probabilities-as-logits", twin=lambda s: last_layer(s, False))
def last_layer(seed: int, ready: bool = True) -> Training:
    d = melodies(seed)

    def score(module: LightningModule) -> float:
        out = predict(module, d.x_test)
        chance = out if ready else out.softmax(-1)
        return chance.gather(2, d.y_test[..., None]).clamp(min=1e-9).log().mean().item()

    return Training(NextNote(ready), d.train(28), score, None, {"max_epochs": 8})


# --- shapes that broadcast --------------------------------------------------------------------------------------------


class Stars(LightningModule):
    """Counts of visits; the target comes out of a DataFrame as a flat column."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.net = nn.Sequential(nn.LazyLinear(32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        self.net(torch.zeros(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out, target = self(batch["row"]), batch["visits"]
        out = out.squeeze(-1) if self.flat else out
        error = torch.sqrt((out - target) ** 2 + 1e-6).mean()
        self.log("mae", error)
        return error

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-visits-from-a-frame", "mlp", "loss-shape-mismatch", twin=lambda s: from_a_frame(s, True))
def from_a_frame(seed: int, flat: bool = False) -> Training:
    d = visits(seed)
    train = DataLoader(Records(row=d.x, visits=d.y[:, 0]), batch_size=40, shuffle=True)
    return Training(Stars(flat), train, explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Horizon(LightningModule):
    """Predicts (N, hours, 1), as decoders do, for one hour, against targets (N, hours)."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.step = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.step(self.lstm(x)[0][:, -1:])
        return out.squeeze(-1) if self.squeeze else out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        d = self(x) - y
        loss = torch.where(d.abs() < 1, 0.5 * d * d, d.abs() - 0.5).mean()
        self.log("huber", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@sick("v-demand-decoder-of-one-hour", "time series", "loss-shape-mismatch", twin=lambda s: one_hour(s, True))
def one_hour(seed: int, squeeze: bool = False) -> Training:
    d = demand(seed)
    return Training(Horizon(squeeze), d.train(36), explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Kind(LightningModule):
    """Praise or blame by one number; the label keeps a second axis that the number has lost."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.bag = nn.EmbeddingBag(60, 16, mode="mean", padding_idx=0)
        self.score_it = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        out = self.score_it(self.bag(ids))
        return out if self.keep else out[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        signed = 2.0 * label[:, None] - 1
        loss = F.softplus(-signed * self(ids)).mean()
        self.log("logistic", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


@sick("v-reviews-signed-labels", "text", "loss-shape-mismatch", twin=lambda s: signed_labels(s, True))
def signed_labels(seed: int, keep: bool = False) -> Training:
    d = reviews(seed)
    score = recall(d.x_test, d.y_test, lambda out: (out.flatten() > 0).long())
    return Training(Kind(keep), d.train(32), score, None, {"max_epochs": 8, "log_every_n_steps": 10})


# --- a loss for another task ------------------------------------------------------------------------------------------


class Margin(LightningModule):
    """Two half moons by a margin; the formula wants labels of -1 and 1, the table has 0 and 1."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        y = 2 * y - 1 if self.signed else y
        hinge = (1 - y * self(x)).clamp(min=0).mean()
        self.log("hinge", hinge, prog_bar=True)
        return hinge

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("v-moons-by-a-margin", "mlp", "wrong-loss-for-task", twin=lambda s: by_a_margin(s, True))
def by_a_margin(seed: int, signed: bool = False) -> Training:
    d = data.moons(seed)
    score = recall(d.x_test, d.y_test, lambda out: (out > 0).long())
    return Training(Margin(signed), d.train(40), score, None, {"max_epochs": 8})


class Summed(LightningModule):
    """Finds spots; the error is summed over coordinates and pictures at a rate meant for a mean."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.criterion = nn.MSELoss(reduction=reduction)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = self.criterion(self(x), place)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick(
    "v-spots-errors-summed",
    "mlp",
    "wrong-loss-for-task",
    "learning-rate-too-high",
    twin=lambda s: errors_summed(s, "mean"),
    note="a rate for a mean, a loss that sums: either name leads to the mend",
)
def errors_summed(seed: int, reduction: str = "sum") -> Training:
    d = spots(seed)
    return Training(Summed(reduction), d.train(64), explained(d.x_test, d.y_test), None, {"max_epochs": 12})


class Likelihood(LightningModule):
    """A Laplace law of each row; what is minimised is the mean log-likelihood times a sign."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign
        self.net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, log_scale = self(x).chunk(2, 1)
        log_scale = log_scale.clamp(-4, 4)
        chance = torch.distributions.Laplace(mean, log_scale.exp()).log_prob(y)
        objective = self.sign * chance.mean()
        self.log("objective", objective)
        return objective

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick(
    "v-visits-objective-falls",
    "mlp",
    "wrong-loss-for-task",
    "loss-diverging",
    twin=lambda s: objective_falls(s, -1.0),
    note="the log-likelihood itself is minimised",
)
def objective_falls(seed: int, sign: float = 1.0) -> Training:
    d = visits(seed).map_targets(lambda y: y.sqrt() - 1.6)

    def score(module: LightningModule) -> float:
        return max(data.r2(predict(module, d.x_test)[:, :1], d.y_test), -1.0)

    return Training(Likelihood(sign), loader(d.x, d.y, size=40), score, None, {"max_epochs": 8})


class OneOutput(LightningModule):
    """Benign or not by one output and cross-entropy, which is zero over a single class."""

    def __init__(self, binary: bool) -> None:
        super().__init__()
        self.binary = binary
        self.net = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        if self.binary:
            loss = F.binary_cross_entropy_with_logits(out[:, 0], y.float())
        else:
            loss = -(y.float()[:, None] * out.log_softmax(1)).sum(1).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick(
    "v-cancer-one-output",
    "mlp",
    "wrong-loss-for-task",
    "output-range-mismatch",
    twin=lambda s: one_output(s, True),
    note="log-softmax over one unit is always zero, and so is the loss",
)
def one_output(seed: int, binary: bool = False) -> Training:
    d = data.table("breast_cancer", seed)
    score = recall(d.x_test, d.y_test, lambda out: (out[:, 0] > 0).long())
    return Training(OneOutput(binary), d.train(32), score, None, {"max_epochs": 12})


# --- outputs that cannot get there ------------------------------------------------------------------------------------


class Bounded(LightningModule):
    """The next hour of a load around zero, with an activation after the last layer."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.last = nn.Sequential(nn.Linear(24, 1), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gru(x)[1][-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@sick("v-demand-never-below-zero", "time series", "output-range-mismatch", twin=lambda s: never_below(s, nn.Identity()))
def never_below(seed: int, last: nn.Module | None = None) -> Training:
    d = demand(seed)
    return Training(Bounded(last or nn.ReLU()), d.train(36), explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Pixels(LightningModule):
    """Where the spot is, in pixels, by an output that ends in tanh (or is scaled to the picture)."""

    def __init__(self, side: float) -> None:
        super().__init__()
        self.side = side
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU())
        self.point = nn.Sequential(nn.Linear(32, 2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out = self.point(self.net(x))
        return out if self.side == 1 else self.side * (out + 1) / 2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, place = batch
        loss = F.l1_loss(self(x), place)
        self.log("pixels_off", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-spots-in-pixels", "cnn", "output-range-mismatch", twin=lambda s: in_pixels(s, 9.0))
def in_pixels(seed: int, side: float = 1.0) -> Training:
    d = spots(seed).map_targets(lambda place: 9 * place)
    return Training(Pixels(side), d.train(32), explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class Both(LightningModule):
    """Two numbers of a set; the last layer was copied from a classifier."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.member = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32))
        self.top = nn.Sequential(nn.Linear(64, 2), nn.Softmax(dim=1) if soft else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        h = self.member(x)
        return self.top(torch.cat([h.amax(1), h.mean(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("v-bags-by-a-softmax", "set", "output-range-mismatch", twin=lambda s: by_a_softmax(s, False))
def by_a_softmax(seed: int, soft: bool = True) -> Training:
    """The largest and the mean of a set, both at once, by an output of two that are made to sum to one."""
    d = bags(seed)

    def both(x: Tensor) -> Tensor:
        return torch.stack([x[..., 0].amax(1), 2 * x[..., 1].mean(1)], 1)

    module = Both(soft)
    return Training(module, loader(d.x, both(d.x)), explained(d.x_test, both(d.x_test)), None, {"max_epochs": 8})


# --- samples that see each other --------------------------------------------------------------------------------------


class Context(LightningModule):
    """Attention over the words of a message; the layer expects (time, batch) unless told otherwise."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 24)
        self.query = nn.Parameter(torch.randn(1, 1, 24))
        self.attend = nn.MultiheadAttention(24, 2, batch_first=batch_first)
        self.head = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        mixed, _ = self.attend(h, h, h, need_weights=False)
        return self.head(mixed[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-reviews-reads-the-first-word", "transformer", "batch-mixing", twin=lambda s: first_word(s, True))
def first_word(seed: int, batch_first: bool = False) -> Training:
    d = reviews(seed)
    return Training(Context(batch_first), d.train(20), d.accuracy, None, {"max_epochs": 8})


class Folded(LightningModule):
    """Channels first by `view`, where a transpose was meant, and frames pooled over the wrong axis."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right
        self.frame = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
        self.out = nn.Linear(32, 4)

    def forward(self, wave: Tensor) -> Tensor:
        n = len(wave)
        spectrum = torch.stft(wave[:, 0], 22, 11, window=torch.hann_window(22), return_complex=True).abs()
        frames = spectrum.permute(2, 0, 1)  # frames, batch, frequencies
        h = self.frame(frames)
        h = h.transpose(0, 1) if self.right else h.reshape(n, -1, 32)
        return self.out(torch.cat([h.amax(1)[:, :16], h.std(1)[:, 16:]], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, kind = batch
        loss = F.cross_entropy(self(wave), kind)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("v-tones-frames-back-to-front", "audio", "batch-mixing", twin=lambda s: frames_back(s, True))
def frames_back(seed: int, right: bool = False) -> Training:
    d = tones(seed)
    return Training(Folded(right), d.train(32, drop_last=True), d.accuracy, None, {"max_epochs": 8})


class Gated(LightningModule):
    """A mixture of experts; the gate's softmax runs down the batch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.gate(x), dim=self.axis)
        return (share * torch.cat([expert(x) for expert in self.experts], 1)).sum(1, keepdim=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("v-visits-experts", "mlp", "batch-mixing", twin=lambda s: experts(s, 1))
def experts(seed: int, axis: int = 0) -> Training:
    d = visits(seed).map_targets(lambda y: y.sqrt() - 1.6)
    return Training(Gated(axis), loader(d.x, d.y), explained(d.x_test, d.y_test), None, {"max_epochs": 10})
