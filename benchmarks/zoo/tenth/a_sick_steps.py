"""Trainings whose optimizer steps are at fault: parameters left out, gradients kept or lost, clipped to nothing."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, digits, generator, motifs, predict, r2
from benchmarks.zoo.tenth.a_common import Bag, Conv, Plain, Records, loader, mlp, reviews, seasons, shapes

# ---- parameters-not-optimized


class Residual(nn.Module):
    """One layer and the way around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Stack(LightningModule):
    """An entry, four residual blocks, an exit."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.entry = nn.Linear(2, 8)
        self.blocks = kind([Residual(8) for _ in range(4)])
        self.exit = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.entry(x)
        for block in self.blocks:
            h = block(h)
        return self.exit(h)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def spirals(seed: int, kind: type) -> Training:
    """Two spirals of one and a half turns."""
    g = generator(seed, 51)
    y = torch.randint(2, (2000,), generator=g)
    t = torch.rand(2000, generator=g)
    angle = 9.4 * t + 3.1416 * y
    x = (0.2 + t)[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.03 * torch.randn(2000, 2, generator=g)
    x = x / x.std()
    return Training(
        Stack(kind),
        loader(x[:1200], y[:1200], batch=40),
        lambda m: accuracy(predict(m, x[1200:]), y[1200:]),
        trainer={"max_epochs": 14},
    )


@sick("ta-blocks-in-a-list", "tabular", "parameters-not-optimized", twin=lambda seed: spirals(seed, nn.ModuleList))
def blocks_in_a_list(seed: int) -> Training:
    return spirals(seed, list)


class Denoiser(LightningModule):
    """An encoder and a decoder that take noise out of signals."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 6))
        self.decoder = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 64))
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["noisy"]), batch["clean"])
        self.log("denoise_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": getattr(self, part).parameters()} for part in self.parts]
        return torch.optim.Adam(groups, lr=5e-3)


def denoise(seed: int, *parts: str) -> Training:
    g = generator(seed, 52)
    t = torch.arange(64) / 64
    phase = 6.2832 * torch.rand(1500, 2, generator=g)
    clean = torch.sin(6.2832 * 2 * t + phase[:, :1]) + torch.sin(6.2832 * 5 * t + phase[:, 1:])
    noisy = clean + 0.4 * torch.randn(1500, 64, generator=g)
    train = DataLoader(Records(noisy=noisy[:1100], clean=clean[:1100]), 32, shuffle=True)
    return Training(
        Denoiser(parts), train, lambda m: r2(predict(m, noisy[1100:]), clean[1100:]), trainer={"max_epochs": 9}
    )


@sick(
    "ta-decoder-group-only",
    "autoencoders",
    "parameters-not-optimized",
    twin=lambda seed: denoise(seed, "encoder", "decoder"),
)
def decoder_group(seed: int) -> Training:
    return denoise(seed, "decoder")


class Tuned(LightningModule):
    """A head is trained first; from `thaw` on, the convolutions below it too."""

    def __init__(self, thaw: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(12, 4)
        self.thaw = thaw
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.thaw:
            self.backbone.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("ce", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


def tuned(seed: int, thaw: int) -> Training:
    data, _ = shapes(seed, n=800)
    x = (data.x - 0.2) / 0.25
    x_test = (data.x_test - 0.2) / 0.25
    return Training(
        Tuned(thaw),
        loader(x, data.y, batch=32),
        lambda m: accuracy(predict(m, x_test), data.y_test),
        trainer={"max_epochs": 12},
    )


@sick("ta-never-thawed", "images", "parameters-not-optimized", twin=lambda seed: tuned(seed, 1))
def never_thawed(seed: int) -> Training:
    return tuned(seed, 20)  # the thaw was planned for a longer run


# ---- gradients-not-cleared


class Hand(LightningModule):
    """Manual optimisation; `order` says what is done, and when."""

    def __init__(self, net: nn.Module, rate: float, order: tuple[str, ...]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.rate, self.order = net, rate, order

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = self.loss(batch)
        for action in self.order:
            if action == "clear":
                optimizer.zero_grad()
            elif action == "back":
                self.manual_backward(loss)
            else:
                optimizer.step()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=self.rate, momentum=0.9)


def topics(seed: int, *order: str) -> Training:
    data = reviews(seed, n=1600)
    module = Hand(Bag(60, 3), 0.1, order)
    return Training(module, loader(data.x, data.y, batch=32), data.accuracy, trainer={"max_epochs": 8})


@sick(
    "ta-topics-no-zero-grad",
    "text",
    "gradients-not-cleared",
    twin=lambda seed: topics(seed, "clear", "back", "step"),
)
def topics_kept(seed: int) -> Training:
    return topics(seed, "back", "step")


class Ahead(Hand):
    """The next value of a series, by the same hand-written step."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.huber_loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=self.rate)


def ahead(seed: int, *order: str) -> Training:
    data = seasons(seed, n=1400)
    module = Ahead(mlp(24, 48, 1, act=nn.Tanh), 3e-3, order)
    return Training(module, loader(data.x, data.y, batch=35), data.r2, trainer={"max_epochs": 7})


@sick(
    "ta-cleared-before-the-step",
    "time series",
    "gradients-not-cleared",
    twin=lambda seed: ahead(seed, "back", "step", "clear"),
)
def cleared_before(seed: int) -> Training:
    return ahead(seed, "back", "clear", "step")


class Rare(LightningModule):
    """Automatic optimisation; gradients are cleared in the hook, each `every` batches."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.net = Conv(10, size=8)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/ce", loss)
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if batch_idx % self.every == 0:
            optimizer.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def rare(seed: int, every: int) -> Training:
    data = digits(seed).to_images()
    return Training(Rare(every), loader(data.x, data.y, batch=32), data.accuracy, trainer={"max_epochs": 7})


@sick("ta-cleared-once-an-epoch", "images", "gradients-not-cleared", twin=lambda seed: rare(seed, 1))
def cleared_rarely(seed: int) -> Training:
    return rare(seed, 42)


# ---- clipping-too-tight


def wards(seed: int, clip: float) -> Training:
    """Length of stay on a ward from its records, by SGD under a gradient norm."""
    g = generator(seed, 53)
    x = torch.randn(2600, 10, generator=g)
    y = x[:, 0] - x[:, 1] + 0.8 * x[:, 2] * x[:, 3] + 0.6 * x[:, 4].abs() + 0.2 * torch.randn(2600, generator=g)
    y = ((y - y.mean()) / y.std())[:, None]
    module = Plain(
        mlp(10, 64, 64, 1), nn.MSELoss(), lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9), log="mse", val="val_mse"
    )
    return Training(
        module,
        loader(x[:1800], y[:1800], batch=32),
        lambda m: r2(predict(m, x[1800:]), y[1800:]),
        loader(x[1800:], y[1800:], batch=400, shuffle=False),
        {"max_epochs": 8, "gradient_clip_val": clip},
    )


@sick("ta-norm-of-a-hundredth", "tabular", "clipping-too-tight", twin=lambda seed: wards(seed, 10.0))
def norm_of_a_hundredth(seed: int) -> Training:
    return wards(seed, 0.01)


class Shouts(LightningModule):
    """Short sounds by class; gradients are bounded in the hook that Lightning has for it."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 4)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0].max(1).values)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=self.bound, gradient_clip_algorithm="value")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def shouts(seed: int, bound: float) -> Training:
    data = motifs(seed, n=1000)
    return Training(Shouts(bound), loader(data.x, data.y, batch=25), data.accuracy, trainer={"max_epochs": 9})


@sick("ta-value-in-the-hook", "audio", "clipping-too-tight", twin=lambda seed: shouts(seed, 0.5))
def value_in_the_hook(seed: int) -> Training:
    return shouts(seed, 1e-5)


class Painter(LightningModule):
    """Masks of shapes; the norm is cut by hand before the optimizer steps."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1)
        )
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, mask = batch
        out = self(x)
        loss = F.binary_cross_entropy_with_logits(out, mask)
        self.log("bce", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), self.most)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def painter(seed: int, most: float) -> Training:
    _, data = shapes(seed, n=480)
    x, x_test = (data.x - 0.2) / 0.25, (data.x_test - 0.2) / 0.25

    def score(m: LightningModule) -> float:
        out, real = predict(m, x_test) > 0, data.y_test > 0
        return ((out & real).sum() / (out | real).sum()).item()

    return Training(Painter(most), loader(x, data.y, batch=24), score, trainer={"max_epochs": 9})


@sick("ta-mask-norm-by-hand", "segmentation", "clipping-too-tight", twin=lambda seed: painter(seed, 5.0))
def mask_norm(seed: int) -> Training:
    return painter(seed, 5e-3)
