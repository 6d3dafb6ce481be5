"""Trainings whose trouble lies in how the weights are stepped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import blobs, digits, generator, motifs, predict, regression
from benchmarks.zoo.seventh._common import (
    BagOfWords,
    Factors,
    LastStep,
    Model,
    Reader,
    adam,
    adamw,
    iou,
    latent,
    mlp,
    ratings,
    reviews,
    sales,
    scenes,
    sgd,
    small_cnn,
    unet,
    waves,
)


def digit_rows(seed: int, optimizers: Callable[..., Any], net: nn.Module | None = None, **trainer: Any) -> Training:
    d = digits(seed)
    module = Model(net or mlp(64, 64, 10), F.cross_entropy, optimizers)
    return Training(module, d.train(64), d.accuracy, d.val(), {"max_epochs": 10, **trainer})


def digit_pictures(seed: int, optimizers: Callable[..., Any], **trainer: Any) -> Training:
    d = digits(seed).to_images()
    module = Model(small_cnn(10), nn.CrossEntropyLoss(), optimizers, log=False)
    return Training(module, d.train(64), d.accuracy, trainer={"max_steps": 200, **trainer})


def forecast(seed: int, optimizers: Callable[..., Any], **trainer: Any) -> Training:
    d = waves(seed)
    module = Model(LastStep(nn.GRU(1, 24, batch_first=True), 3), F.mse_loss, optimizers)
    return Training(module, d.train(32), d.r2, d.val(), {"max_epochs": 8, "log_every_n_steps": 10, **trainer})


def orders(seed: int, optimizers: Callable[..., Any], net: nn.Module | None = None, **trainer: Any) -> Training:
    d = sales(seed)
    module = Model(net or mlp(10, 64, 64, 3), F.mse_loss, optimizers)
    return Training(module, d.train(50), d.r2, d.val(), {"max_epochs": 8, "log_every_n_steps": 1, **trainer})


def opinions(seed: int, net: nn.Module, optimizers: Callable[..., Any], **trainer: Any) -> Training:
    d = reviews(seed)
    module = Model(net, F.cross_entropy, optimizers)
    return Training(module, d.train(40), d.accuracy, d.val(), {"max_epochs": 6, **trainer})


def outlines(seed: int, optimizers: Callable[..., Any], **trainer: Any) -> Training:
    d = scenes(seed)
    module = Model(unet(), F.binary_cross_entropy_with_logits, optimizers)
    return Training(module, d.train(20), lambda m: iou(m, d), d.val(50), {"max_steps": 200, **trainer})


@sick("p-digits-momentum", "mlp", "learning-rate-too-high", twin=lambda s: digit_rows(s, sgd(0.05, momentum=0.9)))
def digits_momentum(seed: int) -> Training:
    return digit_rows(seed, sgd(6.0, momentum=0.9))


@sick("p-forecast-gru", "forecast", "learning-rate-too-high", twin=lambda s: forecast(s, adam(5e-3)))
def forecast_gru(seed: int) -> Training:
    return forecast(seed, adam(0.4))


@sick("p-orders-three-outputs", "regression", "learning-rate-too-high", twin=lambda s: orders(s, adam(5e-3)))
def orders_three_outputs(seed: int) -> Training:
    return orders(seed, adam(0.3))


@sick("p-opinions-bag", "text", "learning-rate-too-low", twin=lambda s: opinions(s, BagOfWords(), adam(1e-2)))
def opinions_bag(seed: int) -> Training:
    return opinions(seed, BagOfWords(), adam(1e-6))


@sick("p-outlines-adam", "segmentation", "learning-rate-too-low", twin=lambda s: outlines(s, adam(5e-3)))
def outlines_adam(seed: int) -> Training:
    return outlines(seed, adam(2e-4))


@sick("p-digit-pictures-sgd", "cnn", "learning-rate-too-low", twin=lambda s: digit_pictures(s, sgd(0.05, momentum=0.9)))
def digit_pictures_sgd(seed: int) -> Training:
    return digit_pictures(seed, sgd(0.005, momentum=0.9))


def stepped(lr: float, interval: str) -> Callable[..., Any]:
    def make(parameters: Any) -> Any:
        optimizer = torch.optim.Adam(parameters, lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    return make


@sick(
    "p-forecast-steplr", "forecast", "learning-rate-decayed-early", twin=lambda s: forecast(s, stepped(5e-3, "epoch"))
)
def forecast_steplr(seed: int) -> Training:
    return forecast(seed, stepped(5e-3, "step"))


def ramp_down(lr: float, steps: int) -> Callable[..., Any]:
    def make(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: max(0.0, 1 - k / steps))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return make


@sick(
    "p-digit-pictures-ramp",
    "cnn",
    "learning-rate-decayed-early",
    twin=lambda s: digit_pictures(s, ramp_down(0.05, 200)),
)
def digit_pictures_ramp(seed: int) -> Training:
    return digit_pictures(seed, ramp_down(0.05, 45))


@sick("p-digits-clip-norm", "mlp", "clipping-too-tight", twin=lambda s: digit_rows(s, sgd(0.2), gradient_clip_val=5.0))
def digits_clip_norm(seed: int) -> Training:
    return digit_rows(seed, sgd(0.2), gradient_clip_val=1e-4)


def clipped_orders(seed: int, limit: float) -> Training:
    return orders(
        seed, sgd(0.05, momentum=0.9), gradient_clip_val=limit, gradient_clip_algorithm="value", log_every_n_steps=10
    )


@sick("p-orders-clip-value", "regression", "clipping-too-tight", twin=lambda s: clipped_orders(s, 1.0))
def orders_clip_value(seed: int) -> Training:
    return clipped_orders(seed, 3e-4)


def clipped_sequences(seed: int, limit: float) -> Training:
    d = motifs(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, -1)), nn.Flatten(2), nn.Conv1d(1, 16, 9), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip
    module = Model(net, F.cross_entropy, sgd(0.1, momentum=0.9))
    return Training(module, d.train(40), d.accuracy, d.val(), {"max_epochs": 10, "gradient_clip_val": limit})


@sick("p-motifs-clip-norm", "sequence", "clipping-too-tight", twin=lambda s: clipped_sequences(s, 10.0))
def motifs_clip_norm(seed: int) -> Training:
    return clipped_sequences(seed, 0.0025)


class ByHand(LightningModule):
    """Manual optimisation; `order` says what is called in which order."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], order: tuple[str, ...], lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.criterion, self.order, self.lr = net, loss, order, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = self.criterion(self(x), y)
        calls = {"clear": optimizer.zero_grad, "backward": lambda: self.manual_backward(loss), "step": optimizer.step}
        for name in self.order:
            calls[name]()
        self.log("loss", loss, prog_bar=True)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def by_hand_blobs(seed: int, order: tuple[str, ...]) -> Training:
    d = blobs(seed, n=1500)
    module = ByHand(mlp(10, 48, 5), F.cross_entropy, order, 0.1)
    return Training(module, d.train(50), d.accuracy, trainer={"max_epochs": 6})


@sick("p-manual-blobs", "mlp", "gradients-not-cleared", twin=lambda s: by_hand_blobs(s, ("clear", "backward", "step")))
def manual_blobs(seed: int) -> Training:
    return by_hand_blobs(seed, ("backward", "clear", "step"))


def by_hand_sales(seed: int, order: tuple[str, ...]) -> Training:
    d = sales(seed)
    module = ByHand(mlp(10, 64, 64, 3), F.smooth_l1_loss, order, 0.1)
    return Training(module, d.train(50), d.r2, trainer={"max_steps": 300, "log_every_n_steps": 1})


@sick(
    "p-manual-orders",
    "regression",
    "gradients-not-cleared",
    twin=lambda s: by_hand_sales(s, ("clear", "backward", "step")),
)
def manual_orders(seed: int) -> Training:
    return by_hand_sales(seed, ("backward", "step"))


class Compressor(LightningModule):
    """An autoencoder; `parts` names what the optimizer is given."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = mlp(24, 48, 4)
        self.decoder = mlp(4, 48, 24)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, _ = batch
        loss = F.mse_loss(self(x), x)
        self.log_dict({"train/reconstruction": loss})
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for name in self.parts for p in getattr(self, name).parameters()], lr=5e-3)


def compressor(seed: int, *parts: str) -> Training:
    d = latent(seed)
    return Training(Compressor(parts), d.train(48), d.r2, trainer={"max_epochs": 10})


@sick("p-compressor", "autoencoder", "parameters-not-optimized", twin=lambda s: compressor(s, "encoder", "decoder"))
def compressor_decoder(seed: int) -> Training:
    return compressor(seed, "decoder")


class Listed(nn.Module):
    """A net whose blocks live in a list."""

    def __init__(self, container: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.blocks = container([nn.Linear(10, 12), nn.Linear(12, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x)


@sick(
    "p-orders-blocks",
    "regression",
    "parameters-not-optimized",
    twin=lambda s: orders(s, adam(0.01), Listed(nn.ModuleList)),
)
def orders_blocks(seed: int) -> Training:
    return orders(seed, adam(0.01), Listed(list))


class Adversaries(LightningModule):
    """A GAN of two columns; `owner` names the net of the first optimizer."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = mlp(4, 32, 2)
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.owner = owner

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self.generator(torch.randn(len(real), 4))
        cost = F.softplus(-self.critic(fake)).mean()
        first.zero_grad()
        self.manual_backward(cost)
        first.step()
        second.zero_grad()
        doubt = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        self.manual_backward(doubt)
        second.step()
        self.log_dict({"g": cost, "d": doubt})

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(getattr(self, self.owner).parameters(), lr=2e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=2e-3, betas=(0.5, 0.9)),
        )


def adversaries(seed: int, owner: str) -> Training:
    x = torch.randn(1500, 2, generator=generator(seed, 78)) * 0.5 + torch.tensor([2.0, -1.0])
    z = torch.randn(500, 4, generator=generator(seed, 79))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=50, shuffle=True)
    return Training(
        Adversaries(owner),
        data,
        lambda m: -(predict(m, z).mean(0) - x.mean(0)).norm().item(),
        trainer={"max_epochs": 8},
    )


@sick("p-gan-two-optimizers", "gan", "parameters-not-optimized", twin=lambda s: adversaries(s, "generator"))
def gan_two_optimizers(seed: int) -> Training:
    return adversaries(seed, "critic")


def decayed(seed: int, decay: float) -> Training:
    return opinions(seed, Reader(), adamw(2e-3, weight_decay=decay))


@sick("p-opinions-adamw", "transformer", "excess-regularization", twin=lambda s: decayed(s, 0.01))
def opinions_adamw(seed: int) -> Training:
    return decayed(seed, 25.0)


def thinned(seed: int, p: float) -> Training:
    net = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 3)
    )
    return orders(seed, adam(3e-3), net, max_epochs=10)


@sick("p-orders-thinned", "regression", "excess-regularization", twin=lambda s: thinned(s, 0.05))
def orders_thinned(seed: int) -> Training:
    return thinned(seed, 0.85)


class Variational(LightningModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.weight = mlp(24, 48, 8), mlp(4, 48, 24), weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[:, :4])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        mean, spread = self.encoder(x).chunk(2, 1)
        z = mean + (0.5 * spread).exp() * torch.randn_like(mean)
        reconstruction = (self.decoder(z) - x).square().sum(1).mean()
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
        self.log_dict({"rec": reconstruction, "kl": divergence})
        return reconstruction + self.weight * divergence

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def variational(seed: int, weight: float) -> Training:
    d = latent(seed)
    return Training(Variational(weight), d.train(48), d.r2, trainer={"max_epochs": 10})


@sick("p-variational-rows", "vae", "excess-regularization", twin=lambda s: variational(s, 0.3))
def variational_rows(seed: int) -> Training:
    return variational(seed, 6.0)


@sick("p-factors-brief", "recommender", "training-too-short", twin=lambda s: recommend(s, 600))
def factors_brief(seed: int) -> Training:
    return recommend(seed, 80)


def recommend(seed: int, steps: int) -> Training:
    d = ratings(seed)
    return Training(
        Model(Factors(), F.mse_loss, adam(8e-3)), d.train(64), d.r2, d.val(), {"max_steps": steps, "max_epochs": -1}
    )


def straight(seed: int, lr: float) -> Training:
    d = regression(seed, r2=0.8)
    module = Model(nn.Linear(8, 1), nn.MSELoss(), sgd(lr))
    return Training(module, d.train(100), d.r2, d.val(), {"max_epochs": 10, "log_every_n_steps": 1})


@sick("p-straight-line", "regression", "learning-rate-too-high", "loss-diverging", twin=lambda s: straight(s, 0.05))
def straight_line(seed: int) -> Training:
    return straight(seed, 0.9)


def swing(seed: int, lr: float) -> Training:
    d = digits(seed)
    module = Model(mlp(64, 32, 32, 10, act=nn.Tanh), F.cross_entropy, sgd(lr))
    return Training(module, d.train(16), d.accuracy, trainer={"max_steps": 250})


@sick("p-tanh-swing", "mlp", "learning-rate-too-high", "loss-oscillating", twin=lambda s: swing(s, 0.1))
def tanh_swing(seed: int) -> Training:
    return swing(seed, 3.0)


def settle(seed: int, cosine: bool) -> Training:
    def make(parameters: Any) -> Any:
        optimizer = torch.optim.Adam(parameters, lr=0.05)
        if not cosine:
            return optimizer
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    d = sales(seed)
    return Training(
        Model(mlp(10, 64, 64, 3), F.mse_loss, make), d.train(8), d.r2, trainer={"max_steps": 400, "max_epochs": -1}
    )


@sick("p-orders-constant-rate", "regression", "loss-plateau", "learning-rate-too-high", twin=lambda s: settle(s, True))
def orders_constant_rate(seed: int) -> Training:
    return settle(seed, False)


class Contrast(LightningModule):
    """Two noisy views of each row must find each other in the batch."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.net, self.lr = mlp(24, 64, 16), lr

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        a, b = (self(x + 0.4 * torch.randn_like(x)) for _ in range(2))
        loss = F.cross_entropy(a @ b.T / 0.2, torch.arange(len(x)))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def contrast(seed: int, lr: float) -> Training:
    d = latent(seed)
    x, noise = d.x_test[:64], 0.4 * torch.randn(2, 64, 24, generator=generator(seed, 80))

    def score(module: LightningModule) -> float:
        a, b = predict(module, x + noise[0]), predict(module, x + noise[1])
        return -F.cross_entropy(a @ b.T / 0.2, torch.arange(64)).item()

    return Training(Contrast(lr), d.train(64, drop_last=True), score, trainer={"max_epochs": 10})


@sick("p-contrast-views", "self-supervised", "learning-rate-too-low", twin=lambda s: contrast(s, 3e-3))
def contrast_views(seed: int) -> Training:
    return contrast(seed, 1e-5)


def zeroed(seed: int, zero: bool) -> Training:
    net = mlp(10, 32, 32, 5)
    if zero:
        for p in net.parameters():
            nn.init.zeros_(p)
    d = blobs(seed, n=1500)
    return Training(Model(net, F.cross_entropy, sgd(0.1)), d.train(32), d.accuracy, trainer={"max_epochs": 4})


@sick("p-blobs-reset", "mlp", "bad-initialization", "never-learned", twin=lambda s: zeroed(s, False))
def blobs_reset(seed: int) -> Training:
    return zeroed(seed, True)
