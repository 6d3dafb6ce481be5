"""What reaches the optimizer, and in which mode: eight trainings with their mended twins."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.thirteenth import b_common as common


class HeadFirst(BaseFinetuning):
    """Holds the backbone still until an epoch comes."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == self.epoch:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=3e-3, initial_denom_lr=1.0)


class PitchModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=4), nn.ReLU(), nn.Conv1d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val/ce", F.cross_entropy(logits, y))
        self.log("val/acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=3e-3)


def pitch(seed: int, epoch: int) -> Training:
    cut = common.waves(seed, noise=0.6)
    settings = {"max_epochs": 12, "callbacks": [HeadFirst(epoch)]}
    return Training(PitchModel(), cut.train(32), cut.accuracy, cut.val(), settings)


@sick(
    "ha-unfreeze-after-the-end",
    "audio",
    "parameters-not-optimized",
    twin=lambda seed: pitch(seed, 1),
    note="a backbone that starts at random is held still until epoch 20 of a run of 12",
)
def pitch_frozen(seed: int) -> Training:
    return pitch(seed, 20)


class TopicOrder(LightningModule):
    """A GRU over words, read in two halves whose state is handed on."""

    def __init__(self, cut_at_reader: bool) -> None:
        super().__init__()
        self.cut_at_reader = cut_at_reader
        self.words = nn.Embedding(60, 12)
        self.reader = nn.GRU(12, 12, batch_first=True)
        self.judge = nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        first, second = ids.chunk(2, 1)
        a, state = self.reader(self.words(first))
        b, _ = self.reader(self.words(second), state.detach())
        seen = torch.cat([a, b], 1)
        if self.cut_at_reader:
            seen = seen.detach()
        return self.judge(seen.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, topic = batch
        loss = F.nll_loss(F.log_softmax(self(ids), -1), topic)
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=4e-3)


def order(seed: int, cut_at_reader: bool) -> Training:
    cut = common.sentences(seed)
    return Training(TopicOrder(cut_at_reader), cut.train(30), cut.accuracy, trainer={"max_epochs": 10})


@sick(
    "ha-states-detached-with-carry",
    "text",
    "parameters-not-optimized",
    twin=lambda seed: order(seed, False),
    note="besides the state that is carried on, the states that are read out are detached as well",
)
def order_detached(seed: int) -> Training:
    return order(seed, True)


class Denoiser(LightningModule):
    """Windows of a series with gaps to the whole windows, through layers kept in a sequence."""

    def __init__(self, container: Any) -> None:
        super().__init__()
        self.first = nn.Linear(24, 12)
        self.middle = container([nn.Linear(12, 12) for _ in range(5)])
        self.last = nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for layer in self.middle:
            h = torch.tanh(layer(h))
        return self.last(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torn, whole = batch
        return F.mse_loss(self(torn), whole)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def denoise(seed: int, container: Any) -> Training:
    whole = common.load_curve(seed)
    g = data.generator(seed, 51)
    keep, keep_test = (torch.rand(t.shape, generator=g) > 0.2 for t in (whole.x, whole.x_test))
    cut = data.Split(whole.x * keep, whole.x, whole.x_test * keep_test, whole.x_test)
    return Training(Denoiser(container), cut.train(48), cut.r2, trainer={"max_epochs": 14})


@sick(
    "ha-denoiser-plain-list",
    "autoencoder",
    "parameters-not-optimized",
    twin=lambda seed: denoise(seed, nn.ModuleList),
    note="the middle layers are in a plain list, so parameters() does not hold them",
)
def denoise_list(seed: int) -> Training:
    return denoise(seed, list)


class Twins(LightningModule):
    """Metric learning with manual optimisation: rows of one class near each other, of two apart."""

    def __init__(self, clear_each: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clear_each = clear_each
        self.net = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_epoch_start(self) -> None:
        if not self.clear_each:
            self.optimizers().zero_grad()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        opt = self.optimizers()
        if self.clear_each:
            opt.zero_grad()
        z = self(x)
        gap = (z[:, None] - z[None]).square().sum(-1).add(1e-6).sqrt()
        same = (y[:, None] == y[None]).float()
        loss = (same * gap.square() + (1 - same) * F.relu(2 - gap).square()).mean()
        self.manual_backward(loss)
        opt.step()
        self.log("contrastive", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def nearest(cut: data.Split, module: LightningModule) -> float:
    """Accuracy of the nearest of the training classes' mean places."""
    z, z_test = data.predict(module, cut.x), data.predict(module, cut.x_test)
    distance = torch.cdist(z_test, z).topk(9, largest=False).indices
    votes = F.one_hot(cut.y[distance], 3).sum(1)
    return data.accuracy(votes, cut.y_test)


def twins(seed: int, clear_each: bool) -> Training:
    cut = common.rings(seed)
    return Training(Twins(clear_each), cut.train(30), lambda m: nearest(cut, m), trainer={"max_epochs": 15})


@sick(
    "ha-contrastive-cleared-each-epoch",
    "metric-learning",
    "gradients-not-cleared",
    twin=lambda seed: twins(seed, True),
    note="zero_grad stands in on_train_epoch_start: within an epoch the gradients pile up",
)
def twins_piled(seed: int) -> Training:
    return twins(seed, False)


class TwoTasks(LightningModule):
    """A figure's kind and where its weight lies, by two optimizers over one pass."""

    def __init__(self, clear_last: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clear_last = clear_last
        self.trunk = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU())
        self.kind = nn.Linear(16, 4)
        self.spot = nn.Linear(16 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self.trunk(x).amax((2, 3)))

    def training_step(self, batch: tuple[Tensor, tuple[Tensor, Tensor]], batch_idx: int) -> None:
        x, (kind, spot) = batch
        maps = self.trunk(x)
        loss_kind = F.cross_entropy(self.kind(maps.amax((2, 3))), kind)
        loss_spot = F.mse_loss(self.spot(maps.flatten(1)), spot)
        body, heads = self.optimizers()
        if self.clear_last:
            self.manual_backward(loss_kind + 0.5 * loss_spot)
            body.zero_grad()
        else:
            body.zero_grad()
            heads.zero_grad()
            self.manual_backward(loss_kind + 0.5 * loss_spot)
        body.step()
        heads.step()
        if self.clear_last:
            heads.zero_grad()
        self.log_dict({"kind": loss_kind, "spot": loss_spot}, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        body = torch.optim.Adam(self.trunk.parameters(), lr=3e-3)
        heads = torch.optim.Adam([*self.kind.parameters(), *self.spot.parameters()], lr=3e-3)
        return [body, heads]


def two_tasks(seed: int, clear_last: bool) -> Training:
    drawn = common.pictures(seed)
    cut = drawn.kinds
    mask = drawn.masks.y[:, 0]
    grid = (torch.arange(12.0) - 5.5) / 3.5
    total = mask.sum((1, 2))
    spot = torch.stack([(mask.sum(2) * grid).sum(1) / total, (mask.sum(1) * grid).sum(1) / total], 1)
    rows = [(x, (k, s)) for x, k, s in zip(cut.x, cut.y, spot, strict=True)]
    return Training(TwoTasks(clear_last), DataLoader(rows, 32, shuffle=True), cut.accuracy, trainer={"max_epochs": 10})


@sick(
    "ha-trunk-cleared-before-step",
    "multi-task",
    "gradients-not-cleared",
    "parameters-not-optimized",
    twin=lambda seed: two_tasks(seed, False),
    note="of two optimizers one is cleared after its step, the other between backward and step",
)
def two_tasks_cleared(seed: int) -> Training:
    return two_tasks(seed, True)


class NoisyTable(LightningModule):
    """A regressor with dropout by function."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.a = nn.Linear(4, 96)
        self.b = nn.Linear(96, 96)
        self.c = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> Tensor:
        on = True if self.always else self.training
        h = F.dropout(F.relu(self.a(x)), 0.5, training=on)
        h = F.dropout(F.relu(self.b(h)), 0.5, training=on)
        return self.c(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def noisy(seed: int, always: bool) -> Training:
    cut = data.regression(seed, r2=0.95, n=1500, columns=4)
    return Training(NoisyTable(always), cut.train(64), cut.r2, cut.val(), {"max_epochs": 14})


@sick(
    "ha-functional-dropout-always",
    "tabular",
    "mode-mismatch",
    twin=lambda seed: noisy(seed, False),
    note="F.dropout without training=self.training drops in evaluation too",
)
def noisy_always(seed: int) -> Training:
    return noisy(seed, True)


class Ledger(LightningModule):
    """A convolutional classifier that writes example outputs at the start of every epoch."""

    def __init__(self, example: Tensor, back: bool) -> None:
        super().__init__()
        self.example = example
        self.back = back
        layers: list[nn.Module] = []
        for inp, out in ((1, 12), *[(12, 12)] * 5, (12, 16), (16, 16)):
            layers += [nn.Conv2d(inp, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x).amax((2, 3)))

    def on_train_epoch_start(self) -> None:
        self.eval()
        with torch.no_grad():
            shown = self(self.example).softmax(-1)
        if self.back:
            self.train()
        self.log("example_confidence", shown.amax(1).mean())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.8)


def ledger(seed: int, back: bool) -> Training:
    cut = common.pictures(seed, noise=0.6).kinds
    return Training(Ledger(cut.x_test[:8], back), cut.train(40), cut.accuracy, trainer={"max_epochs": 12})


@sick(
    "ha-eval-for-examples-stays",
    "image",
    "mode-mismatch",
    twin=lambda seed: ledger(seed, True),
    note="self.eval() for a look at some outputs at the start of an epoch, and no self.train() after it",
)
def ledger_eval(seed: int) -> Training:
    return ledger(seed, False)


class ShopForecast(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x[..., None])[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss/train", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def shop(seed: int, clip: float) -> Training:
    cut = common.load_curve(seed)
    rows = TensorDataset(cut.x, cut.y)
    return Training(
        ShopForecast(),
        DataLoader(rows, 50, shuffle=True),
        cut.r2,
        trainer={"max_epochs": 12, "gradient_clip_val": clip, "gradient_clip_algorithm": "norm"},
    )


@sick(
    "ha-lstm-clip-1e-3",
    "time-series",
    "clipping-too-tight",
    twin=lambda seed: shop(seed, 1.0),
    note="the norm is clipped to 0.001, a figure taken for a rate",
)
def shop_clip(seed: int) -> Training:
    return shop(seed, 1e-3)
