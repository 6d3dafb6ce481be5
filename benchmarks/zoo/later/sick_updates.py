"""What stands between a gradient and the weights: clipping, decay, gradients kept or lost, parameters left out."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.later._sick_common import (
    Records,
    bags,
    explained,
    gestures,
    loader,
    ratings,
    reviews,
    solids,
    spots,
    tones,
    visits,
)

# --- clipping ---------------------------------------------------------------------------------------------------------


class Sculptor(LightningModule):
    """A point network that clips with a hook of its own, each layer by itself."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.lift = nn.Linear(3, 48)
        self.mix = nn.Linear(48, 48)
        self.name_it = nn.Linear(96, 4)

    def forward(self, points: Tensor) -> Tensor:
        h = F.leaky_relu(self.mix(F.leaky_relu(self.lift(points))))
        return self.name_it(torch.cat([h.amax(1), h.mean(1)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        points, kind = batch
        loss = F.cross_entropy(self(points), kind)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        for layer in self.children():
            nn.utils.clip_grad_norm_(layer.parameters(), self.limit)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@sick("v-solids-clip-each-layer", "point cloud", "clipping-too-tight", twin=lambda s: clip_each_layer(s, 1.0))
def clip_each_layer(seed: int, limit: float = 2e-4) -> Training:
    d = solids(seed)
    return Training(Sculptor(limit), d.train(28), d.accuracy, d.val(), {"max_epochs": 10})


class Visitors(LightningModule):
    """Counts by a Poisson likelihood."""

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        self.decay = decay
        self.net = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).exp()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, count = batch
        loss = F.poisson_nll_loss(self.net(x), count, log_input=True)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.8, weight_decay=self.decay)


@sick("v-visits-clip-from-a-paper", "mlp", "clipping-too-tight", twin=lambda s: clip_from_a_paper(s, 5.0))
def clip_from_a_paper(seed: int, limit: float = 1e-3) -> Training:
    d = visits(seed)
    settings = {"max_epochs": 10, "gradient_clip_val": limit, "accumulate_grad_batches": 2}
    return Training(Visitors(), loader(d.x, d.y, size=24), explained(d.x_test, d.y_test), None, settings)


# --- regularisation ---------------------------------------------------------------------------------------------------


@sick("v-visits-decay-in-sgd", "mlp", "excess-regularization", twin=lambda s: decay_in_sgd(s, 1e-4))
def decay_in_sgd(seed: int, decay: float = 0.3) -> Training:
    d = visits(seed)
    return Training(Visitors(decay), loader(d.x, d.y, size=32), explained(d.x_test, d.y_test), None, {"max_epochs": 8})


class ByHand(LightningModule):
    """Ratings with the usual squared penalty, added by hand over all the tables."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.user = nn.Parameter(0.3 * torch.randn(60, 5))
        self.film = nn.Parameter(0.3 * torch.randn(50, 5))
        self.mean = nn.Parameter(torch.zeros(()))

    def forward(self, pair: Tensor) -> Tensor:
        return self.mean + torch.einsum("nk,nk->n", self.user[pair[:, 0]], self.film[pair[:, 1]])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair, stars = batch["pair"], batch["stars"]
        misfit = F.mse_loss(self(pair), stars)
        penalty = self.user.square().sum() + self.film.square().sum()
        self.log_dict({"misfit": misfit, "penalty": penalty})
        return misfit + self.weight * penalty

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.03)


@sick("v-ratings-penalty-by-hand", "recommender", "excess-regularization", twin=lambda s: penalty_by_hand(s, 1e-4))
def penalty_by_hand(seed: int, weight: float = 0.05) -> Training:
    d = ratings(seed)
    train = DataLoader(Records(pair=d.x, stars=d.y), batch_size=100, shuffle=True)
    return Training(ByHand(weight), train, explained(d.x_test, d.y_test), None, {"max_epochs": 14})


class Keeps(LightningModule):
    """Dropout as some frameworks count it: the share to keep."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(p),
            nn.Flatten(),
            nn.Linear(192, 64),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("v-digits-share-to-keep", "cnn", "excess-regularization", twin=lambda s: share_to_keep(s, 0.05))
def share_to_keep(seed: int, p: float = 0.95) -> Training:
    d = data.digits(seed).to_images()
    return Training(Keeps(p), d.train(32), d.accuracy, d.val(), {"max_epochs": 6})


class SplitDecay(LightningModule):
    """Weights with decay, biases without; the decay is that of a rate a thousand times smaller."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.words = nn.Embedding(60, 16)
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.words(ids))[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        loss = F.cross_entropy(self(ids), label)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        wide = [p for p in self.parameters() if p.ndim > 1]
        narrow = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": wide, "weight_decay": self.decay}, {"params": narrow, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=8e-3)


@sick("v-reviews-decay-groups", "recurrent", "excess-regularization", twin=lambda s: decay_groups(s, 0.01))
def decay_groups(seed: int, decay: float = 12.0) -> Training:
    d = reviews(seed)
    return Training(SplitDecay(decay), d.train(32), d.accuracy, d.val(), {"max_epochs": 8})


# --- gradients that stay ----------------------------------------------------------------------------------------------


class TwoOptimizers(LightningModule):
    """An encoder and a head, each with an optimizer of its own; one of them is cleared."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.both = both
        self.encoder = nn.Sequential(nn.Conv1d(3, 16, 5), nn.ReLU(), nn.Conv1d(16, 32, 5), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.mT).amax(2))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        slow, fast = self.optimizers()
        loss = F.cross_entropy(self(x), y)
        fast.zero_grad()
        if self.both:
            slow.zero_grad()
        self.manual_backward(loss)
        slow.step()
        fast.step()
        self.log("loss", loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        slow = torch.optim.SGD(self.encoder.parameters(), lr=0.05, momentum=0.9)
        return slow, torch.optim.Adam(self.head.parameters(), lr=3e-3)


@sick("v-gestures-clears-one-of-two", "cnn", "gradients-not-cleared", twin=lambda s: clears_one(s, True))
def clears_one(seed: int, both: bool = False) -> Training:
    d = gestures(seed)
    return Training(TwoOptimizers(both), d.train(32), d.accuracy, None, {"max_epochs": 10})


class OncePerEpoch(LightningModule):
    """Manual steps; `zero_grad` moved out of the loop, to the start of the epoch."""

    def __init__(self, every_step: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every_step = every_step
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(100, 48), nn.Tanh(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_epoch_start(self) -> None:
        self.optimizers().zero_grad()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, place = batch
        optimizer = self.optimizers()
        if self.every_step:
            optimizer.zero_grad()
        loss = F.smooth_l1_loss(self(x), place, beta=0.1)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=2.0, gradient_clip_algorithm="norm")
        optimizer.step()
        return {"loss": loss.detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3)


@sick("v-spots-cleared-each-epoch", "mlp", "gradients-not-cleared", twin=lambda s: cleared_each_epoch(s, True))
def cleared_each_epoch(seed: int, every_step: bool = False) -> Training:
    d = spots(seed)
    return Training(OncePerEpoch(every_step), d.train(16), explained(d.x_test, d.y_test), None, {"max_epochs": 5})


# --- parameters left out ----------------------------------------------------------------------------------------------


class Rounded(LightningModule):
    """A code rounded to integers on its way, with or without the gradient let through."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.through = through
        self.encode = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 12))
        self.decode = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        code = 4 * torch.tanh(self.encode(x))
        whole = code.round()
        if self.through:
            whole = code + (whole - code).detach()
        return self.decode(whole / 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        loss = F.mse_loss(self(x), x)
        self.log("rebuild", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick(
    "v-digits-rounded-code",
    "autoencoder",
    "parameters-not-optimized",
    "vanishing-gradients",
    twin=lambda s: rounded_code(s, True),
    note="the encoder's gradients are exactly zero: round has none",
)
def rounded_code(seed: int, through: bool = False) -> Training:
    d = data.digits(seed)
    return Training(Rounded(through), d.train(32), explained(d.x_test, d.x_test), None, {"max_epochs": 8})


class Branches(LightningModule):
    """A short filter and a long one side by side, kept in a plain dict (or a ModuleDict)."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        parts = {
            name: nn.Sequential(nn.Conv1d(1, 12, size, stride=2), nn.ReLU(), nn.Conv1d(12, 12, 5), nn.ReLU())
            for name, size in (("short", 5), ("long", 15))
        }
        self.branches: Any = nn.ModuleDict(parts) if registered else parts
        self.head = nn.Linear(24, 4)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(torch.cat([branch(wave).amax(2) for branch in self.branches.values()], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, kind = batch
        loss = F.nll_loss(self(wave).log_softmax(1), kind)
        self.log("nll", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("v-tones-two-branches", "audio", "parameters-not-optimized", twin=lambda s: two_branches(s, True))
def two_branches(seed: int, registered: bool = False) -> Training:
    d = tones(seed)
    return Training(Branches(registered), d.train(32), d.accuracy, None, {"max_epochs": 8, "gradient_clip_val": 1.0})


class Grown(LightningModule):
    """Rebuilds its embedding in a hook that runs after the optimizer was made."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.words = nn.Embedding(20, 16)
        self.score_them = nn.Sequential(nn.Linear(16, 1), nn.Softmax(dim=1))
        self.head = nn.Linear(16, 2)
        if not late:
            self.grow()

    def grow(self) -> None:
        """The vocabulary turned out larger than was thought."""
        self.words = nn.Embedding(60, 16)
        nn.init.normal_(self.words.weight, std=0.1)

    def on_train_start(self) -> None:
        if self.late:
            self.grow()

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        return self.head((self.score_them(h) * h).sum(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        return F.cross_entropy(self(ids), label)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


@sick("v-reviews-vocabulary-grown", "text", "parameters-not-optimized", twin=lambda s: vocabulary_grown(s, False))
def vocabulary_grown(seed: int, late: bool = True) -> Training:
    d = reviews(seed)
    return Training(Grown(late), d.train(25), d.accuracy, None, {"max_epochs": 8})


class Deep(LightningModule):
    """Sets: the members' network is called without gradients, to save memory."""

    def __init__(self, saving: bool) -> None:
        super().__init__()
        self.saving = saving
        self.member = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh())
        self.whole = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.saving):
            h = self.member(x).amax(1)
        return self.whole(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.huber_loss(self(x), y)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@sick("v-bags-saves-memory", "set", "parameters-not-optimized", twin=lambda s: saves_memory(s, False))
def saves_memory(seed: int, saving: bool = True) -> Training:
    d = bags(seed)
    return Training(Deep(saving), d.train(40), explained(d.x_test, d.y_test), d.val(), {"max_epochs": 12})


class Rewrapped(LightningModule):
    """Its loss comes from a helper of another project, which wants a plain number."""

    def __init__(self, wrap: bool) -> None:
        super().__init__()
        self.wrap = wrap
        self.net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def margin(self, x: Tensor, y: Tensor) -> Tensor:
        out = self(x)
        right = out.gather(1, y[:, None])
        return (1 + out - right).clamp(min=0).sum(1).mean() - 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.margin(x, y)
        if self.wrap:
            loss = torch.tensor(loss.item(), requires_grad=True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick(
    "v-digits-loss-from-a-number",
    "mlp",
    "parameters-not-optimized",
    "never-learned",
    twin=lambda s: loss_from_a_number(s, False),
    note="the loss is made anew as a tensor that requires a gradient, so no parameter ever gets one",
)
def loss_from_a_number(seed: int, wrap: bool = True) -> Training:
    d = data.digits(seed)
    return Training(Rewrapped(wrap), d.train(32), d.accuracy, d.val(), {"max_epochs": 6})
