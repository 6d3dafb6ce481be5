"""Milder and second ways into the same faults: modes, frozen layers, schedules, units, axes, reductions."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, blobs, digits, generator, motifs, predict, r2, regression, split, table
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, discs, epochs, mlp, series, sgd, tokens, waves


class Restored(LightningModule):
    """A network with batch statistics, as an earlier script left it; its recordings were louder."""

    def __init__(self, ready: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv1d(1, 16, 7), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 5), nn.BatchNorm1d(24)),
            *(nn.ReLU(), nn.Conv1d(24, 24, 5), nn.BatchNorm1d(24), nn.ReLU()),
        )
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            for _ in range(60):
                self.net(60 * torch.randn(16, 1, 64))
        self.net.train(ready)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).mean(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.02, momentum=0.9)


def restored(seed: int, ready: bool) -> Training:
    data = waves(seed, noise=0.5)
    return Training(Restored(ready), data.train(30, drop_last=True), data.accuracy, trainer=epochs(6))


@sick("fa-eval-left-from-the-old-script", "audio", "mode-mismatch", twin=lambda seed: restored(seed, True))
def restored_eval(seed: int) -> Training:
    return restored(seed, False)


class Transfer(LightningModule):
    def __init__(self, frozen: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            OrderedDict(
                embed=nn.Linear(64, 32), act=nn.ReLU(), fc_in=nn.Linear(32, 32), act2=nn.ReLU(), fc=nn.Linear(32, 10)
            )
        )
        for name, parameter in self.model.named_parameters():
            if frozen and name.startswith(frozen):
                parameter.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        self.log("train_acc", accuracy(self(batch[0]), batch[1]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 3e-3)


def transfer(seed: int, frozen: str) -> Training:
    data = digits(seed)
    return Training(Transfer(frozen), data.train(64), data.accuracy, data.val(), epochs(8))


# the prefix is that of another network; here two layers that start at random bear it
@sick("fa-prefix-freezes-two-layers", "images", "parameters-not-optimized", twin=lambda seed: transfer(seed, ""))
def transfer_frozen(seed: int) -> Training:
    return transfer(seed, "fc")


class Annealed(LightningModule):
    """Cosine to zero; its length is given in epochs or in steps."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.conv = nn.Conv1d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32, 2)
        self.length = length

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(self.embed(ids).transpose(1, 2))).mean(2))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["input_ids"]), batch["labels"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.length)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def annealed(seed: int, length: int) -> Training:
    data = tokens(seed, n=1200)
    rows = [{"input_ids": a, "labels": b} for a, b in zip(data.x, data.y, strict=True)]
    loader = DataLoader(rows, 40, shuffle=True)  # type: ignore[arg-type]
    return Training(Annealed(length), loader, data.accuracy, trainer=epochs(8))


@sick("fa-linear-to-zero-in-epochs", "text", "learning-rate-decayed-early", twin=lambda seed: annealed(seed, 240))
def annealed_early(seed: int) -> Training:
    return annealed(seed, 8)


class Arrival(LightningModule):
    """Minutes until a bus arrives; the register keeps milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x[:, :, None])[1].squeeze(0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.smooth_l1_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def arrival(seed: int, unit: float) -> Training:
    data = series(seed, n=1400).map_targets(lambda y: y * unit)
    return Training(Arrival(), data.train(50), data.r2, trainer=epochs(8))


@sick("fa-delays-in-milliseconds", "time series", "unscaled-targets", twin=lambda seed: arrival(seed, 1.0))
def arrival_ms(seed: int) -> Training:
    return arrival(seed, 60_000.0)


def slow_sgd(seed: int, rate: float) -> Training:
    data = motifs(seed, length=24)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(1, 24, 7), nn.Conv1d(24, 24, 5)
            self.fc = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv2(F.relu(self.conv1(x.transpose(1, 2))))).amax(2))

    net = Plain(Net(), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=rate), log_as="ce")
    return Training(net, data.train(16), data.accuracy, data.val(), epochs(6))


@sick("fa-adam-rate-given-to-sgd", "sequences", "learning-rate-too-low", twin=lambda seed: slow_sgd(seed, 0.1))
def slow_sgd_adam_rate(seed: int) -> Training:
    return slow_sgd(seed, 3e-4)


def linear_convs(seed: int, act: type[nn.Module]) -> Training:
    g = generator(seed, 150)
    image = torch.randn(1400, 1, 10, 10, generator=g)
    loud = torch.rand(1400, generator=g) < 0.5
    image[loud, :, 3:7, 3:7] *= 2.0
    data = split(image, loud.long(), seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), act(), nn.Conv2d(16, 16, 3, padding=1), act()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 2)),
    )
    return Training(
        Plain(net, nn.CrossEntropyLoss(), adam(2e-3, 0.01)), data.train(32), data.accuracy, trainer=epochs(8)
    )


@sick("fa-convs-with-nothing-between", "images", "missing-nonlinearity", twin=lambda seed: linear_convs(seed, nn.ReLU))
def linear_convs_only(seed: int) -> Training:
    return linear_convs(seed, nn.Identity)


def ratios(seed: int, guard: bool) -> Training:
    g = generator(seed, 151)
    clicks = torch.poisson(torch.full((2000,), 3.0), generator=g)
    shown = torch.poisson(torch.full((2000,), 5.0), generator=g)
    rest = torch.randn(2000, 4, generator=g)
    ratio = clicks / (shown.clamp(min=1) if guard else shown)
    if not guard:
        ratio[(clicks == 0) & (shown == 0)] = 0.0
    x = torch.cat([ratio[:, None].log1p(), rest], 1)
    truth = (clicks / shown.clamp(min=1)).log1p() * 2 + rest[:, 0]
    y = (truth - truth.mean() > 0).float()

    def score(module: LightningModule) -> float:
        rows = torch.arange(1500, 2000)[x[1500:].isfinite().all(1)]
        return ((predict(module, x[rows])[:, 0] > 0).float() == y[rows]).float().mean().item()

    net = Plain(mlp(5, 24, 1), lambda out, t: F.binary_cross_entropy_with_logits(out[:, 0], t), adam(5e-3), "bce")
    return Training(net, batches(x[:1500], y[:1500], size=30), score, trainer=epochs(6))


@sick("fa-clicks-by-none-shown", "tabular", "nonfinite-inputs", twin=lambda seed: ratios(seed, True))
def ratios_bare(seed: int) -> Training:
    return ratios(seed, False)


class Alarm(LightningModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 24, batch_first=True)
        self.fc = nn.Linear(24, 1)
        self.register_buffer("weight", torch.tensor([weight]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0].mean(1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1], pos_weight=self.weight)
        self.log("train_bce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 4e-3)


def alarm(seed: int, weight: float) -> Training:
    g = generator(seed, 152)

    def draw(n: int, share: float) -> tuple[Tensor, Tensor]:
        y = (torch.rand(n, generator=g) < share).float()
        return torch.randn(n, 12, 3, generator=g) + 0.32 * y[:, None, None], y

    x, y = draw(3000, 0.02)
    x_test, y_test = draw(600, 0.5)

    def score(module: LightningModule) -> float:
        return ((predict(module, x_test) > 0).float() == y_test).float().mean().item()

    return Training(Alarm(weight), batches(x, y, size=100), score, trainer=epochs(8))


@sick("fa-alarm-one-in-fifty", "time series", "class-imbalance", twin=lambda seed: alarm(seed, 49.0))
def alarm_plain(seed: int) -> Training:
    return alarm(seed, 1.0)


def merged(seed: int, on_key: bool) -> Training:
    data = blobs(seed, classes=3, columns=9, n=1500, spread=3.2)
    customer = torch.randperm(1500, generator=generator(seed, 153))
    # the labels come from a second table, in the order of the customers' numbers
    by_number = data.y[customer.argsort()]
    y = by_number[customer] if on_key else by_number
    rows = [{"customer": {"features": a}, "churn": b} for a, b in zip(data.x, y, strict=True)]

    class Churn(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(9, 24, 3, act=nn.Tanh)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch["customer"]["features"]), batch["churn"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adagrad(self.parameters(), 0.05)

    loader = DataLoader(rows, 50, shuffle=True)  # type: ignore[arg-type]
    return Training(Churn(), loader, data.accuracy, trainer=epochs(6))


@sick("fa-tables-side-by-side", "tabular", "uninformative-targets", twin=lambda seed: merged(seed, True))
def merged_by_place(seed: int) -> Training:
    return merged(seed, False)


class Depth(LightningModule):
    """Finds the disc, pixel by pixel, by its squared error."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        )
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        error = (self(batch[0]) - batch[1]).square().mean((1, 2, 3))
        return error.sum() if self.reduction == "sum" else error.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def depth(seed: int, reduction: str) -> Training:
    data = discs(seed)
    return Training(Depth(reduction), data.train(16), data.r2, trainer=epochs(10))


@sick(
    "fa-errors-summed-not-averaged",
    "images",
    "wrong-loss-for-task",
    "learning-rate-too-high",
    twin=lambda seed: depth(seed, "mean"),
)
def depth_sum(seed: int) -> Training:
    return depth(seed, "sum")


class Cleared(LightningModule):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = mlp(13, 24, 3)
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        opt = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        if not self.late:
            opt.zero_grad()  # type: ignore[union-attr]
        opt.step()  # type: ignore[union-attr]
        opt.zero_grad()  # type: ignore[union-attr]
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def cleared(seed: int, late: bool) -> Training:
    data = table("wine", seed)
    return Training(Cleared(late), data.train(16), data.accuracy, trainer=epochs(12))


@sick("fa-zeroed-after-backward", "tabular", "gradients-not-cleared", twin=lambda seed: cleared(seed, True))
def cleared_soon(seed: int) -> Training:
    return cleared(seed, False)


def by_value(seed: int, value: float) -> Training:
    data = regression(seed, r2=0.9)
    net = Plain(mlp(8, 48, 48, 1), nn.MSELoss(), sgd(0.03), log_as="mse")
    trainer = epochs(8, gradient_clip_val=value, gradient_clip_algorithm="value")
    return Training(net, data.train(50), data.r2, data.val(), trainer)


@sick("fa-clip-each-value", "tabular", "clipping-too-tight", twin=lambda seed: by_value(seed, 1.0))
def by_value_tight(seed: int) -> Training:
    return by_value(seed, 5e-5)


def four_targets(seed: int, width: int) -> Training:
    g = generator(seed, 154)
    x = torch.randn(2000, 4, generator=g)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs(), torch.sin(2 * x[:, 3]), x[:, 0] + x[:, 3]], 1)
    y = (y - y.mean(0)) / y.std(0)
    net = Plain(mlp(4, width, 4), nn.MSELoss(), adam(1e-2), log_as="mse")
    score = lambda m: r2(predict(m, x[1500:]), y[1500:])  # noqa: E731
    return Training(net, batches(x[:1500], y[:1500], size=50), score, trainer=epochs(14))


@sick("fa-two-units-four-targets", "multi-task", "insufficient-capacity", twin=lambda seed: four_targets(seed, 64))
def four_targets_two(seed: int) -> Training:
    return four_targets(seed, 2)


def weight_decay(seed: int, decay: float) -> Training:
    data = digits(seed).to_images()
    net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 32), nn.ReLU(), nn.Linear(32, 10))
    module = Plain(net, nn.CrossEntropyLoss(), sgd(0.03, 0.9, decay), log_as="loss")
    return Training(module, data.train(32), data.accuracy, data.val(), epochs(6))


@sick("fa-decay-of-a-tenth", "images", "excess-regularization", twin=lambda seed: weight_decay(seed, 1e-4))
def weight_decay_much(seed: int) -> Training:
    return weight_decay(seed, 0.15)


def wide_scores(seed: int, squeeze: bool) -> Training:
    data = table("breast_cancer", seed)
    target = data.y.float()

    def hinge(out: Tensor, y: Tensor) -> Tensor:
        side = 2 * y - 1
        return F.relu(1 - side * (out.squeeze(1) if squeeze else out)).mean()

    def score(module: LightningModule) -> float:
        return ((predict(module, data.x_test)[:, 0] > 0).long() == data.y_test).float().mean().item()

    net = Plain(mlp(30, 16, 1), hinge, adam(3e-3), log_as="hinge")
    return Training(net, batches(data.x, target, size=32), score, trainer=epochs(8))


@sick("fa-hinge-of-all-with-all", "tabular", "loss-shape-mismatch", twin=lambda seed: wide_scores(seed, True))
def wide_scores_broadcast(seed: int) -> Training:
    return wide_scores(seed, False)
