"""Trainings whose trouble lies in the net, its loss or its layers' state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, blobs, characters, digits, generator, moons, motifs, predict, regression, table
from benchmarks.zoo.seventh._common import (
    BagOfWords,
    LastStep,
    Model,
    Reader,
    adam,
    adamw,
    latent,
    loader,
    mlp,
    reviews,
    sales,
    scenes,
    sgd,
    small_cnn,
    unet,
    waves,
)


def on_digits(seed: int, net: nn.Module, optimizers: Callable[..., Any], size: int = 64, **trainer: Any) -> Training:
    d = digits(seed)
    module = Model(net, F.cross_entropy, optimizers)
    return Training(module, d.train(size), d.accuracy, d.val(), {"max_steps": 220, "max_epochs": -1, **trainer})


def on_pictures(seed: int, net: nn.Module, optimizers: Callable[..., Any], size: int = 64, **trainer: Any) -> Training:
    d = digits(seed).to_images()
    module = Model(net, nn.CrossEntropyLoss(), optimizers, log=False)
    return Training(module, d.train(size, drop_last=True), d.accuracy, d.val(), {"max_steps": 200, "max_epochs": -1,
                                                                                 **trainer})  # fmt: skip


def on_sales(seed: int, net: nn.Module, optimizers: Callable[..., Any], size: int = 50, **trainer: Any) -> Training:
    d = sales(seed)
    module = Model(net, F.mse_loss, optimizers)
    return Training(module, d.train(size, drop_last=True), d.r2, d.val(), {"max_epochs": 8, "log_every_n_steps": 10,
                                                                           **trainer})  # fmt: skip


# depth


class Stack(nn.Module):
    """Blocks one after another, their answers added to the stream where `skip` is set, times `weight`."""

    def __init__(
        self, columns: int, width: int, depth: int, out: int, act: str, skip: bool, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.inlet = nn.Linear(columns, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, out)
        self.act, self.skip, self.weight = getattr(torch, act), skip, weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            h = self.weight * self.act(block(x))
            x = x + h if self.skip else h
        return self.head(x)


@sick(
    "p-digits-deep-sigmoid",
    "mlp",
    "vanishing-gradients",
    twin=lambda s: on_digits(s, Stack(64, 48, 12, 10, "sigmoid", True), adam(2e-3)),
)
def digits_deep_sigmoid(seed: int) -> Training:
    return on_digits(seed, Stack(64, 48, 12, 10, "sigmoid", False), adam(2e-3))


@sick(
    "p-orders-deep-tanh",
    "regression",
    "vanishing-gradients",
    twin=lambda s: on_sales(s, Stack(10, 48, 11, 3, "tanh", True, 0.3), sgd(0.05, momentum=0.9)),
)
def orders_deep_tanh(seed: int) -> Training:
    return on_sales(seed, Stack(10, 48, 11, 3, "tanh", False), sgd(0.05, momentum=0.9))


def conv_stack(act: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 3, padding=1), act()]
    for _ in range(2):
        layers += [nn.Conv2d(12, 12, 3, padding=1), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))


@sick(
    "p-pictures-conv-stack",
    "cnn",
    "vanishing-gradients",
    twin=lambda s: on_pictures(s, conv_stack(nn.ReLU), adam(4e-3)),
)
def pictures_conv_stack(seed: int) -> Training:
    return on_pictures(seed, conv_stack(nn.Sigmoid), adam(4e-3))


def recurrent(seed: int, gain: float) -> Training:
    d = waves(seed, length=30)
    net = LastStep(nn.RNN(1, 24, nonlinearity="relu", batch_first=True), 3)
    with torch.no_grad():
        net.rnn.weight_hh_l0.copy_(gain * torch.eye(24))
    module = Model(net, F.mse_loss, sgd(0.01))
    return Training(module, d.train(30), d.r2, trainer={"max_epochs": 7, "log_every_n_steps": 1})


@sick("p-relu-rnn", "forecast", "exploding-gradients", "bad-initialization", twin=lambda s: recurrent(s, 0.6))
def relu_rnn(seed: int) -> Training:
    return recurrent(seed, 1.05)


@sick(
    "p-orders-residual-sum",
    "regression",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda s: on_sales(s, Stack(10, 48, 24, 3, "relu", True, 0.15), sgd(0.02)),
)
def orders_residual_sum(seed: int) -> Training:
    return on_sales(seed, Stack(10, 48, 24, 3, "relu", True, 0.5), sgd(0.02))


def residual_adam(seed: int, weight: float) -> Training:
    return on_sales(seed, Stack(10, 48, 24, 3, "relu", True, weight), adam(1e-3), log_every_n_steps=1)


@sick(
    "p-orders-residual-adam",
    "regression",
    "exploding-gradients",
    "bad-initialization",
    twin=lambda s: residual_adam(s, 0.15),
)
def orders_residual_adam(seed: int) -> Training:
    return residual_adam(seed, 1.2)


def gained(seed: int, gain: float) -> Training:
    net = mlp(10, 64, 64, 64, 64, 64, 64, 3)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data.mul_(gain)
    return on_sales(seed, net, adam(2e-3))


@sick("p-orders-gain", "regression", "exploding-gradients", "bad-initialization", twin=lambda s: gained(s, 0.8))
def orders_gain(seed: int) -> Training:
    return gained(seed, 1.6)


def counts(seed: int, clip: float | None) -> Training:
    g = generator(seed, 91)
    x = torch.randn(2000, 6, generator=g)
    rate = (x @ torch.tensor([0.9, -0.7, 0.5, 0.4, 0.0, 0.0]) + 1).exp()
    y = torch.poisson(rate, generator=g)[:, None]
    d = Split(x[:1500], y[:1500], x[1500:], y[1500:])
    module = Model(mlp(6, 32, 1), nn.PoissonNLLLoss(), sgd(0.02, momentum=0.9))
    trainer = {"max_steps": 250, "max_epochs": -1, "gradient_clip_val": clip, "log_every_n_steps": 1}
    return Training(module, d.train(25), lambda m: -module.criterion(predict(m, d.x_test), d.y_test).item(), d.val(),
                    trainer)  # fmt: skip


@sick("p-counts", "regression", "exploding-gradients", "learning-rate-too-high", twin=lambda s: counts(s, 1.0))
def counts_poisson(seed: int) -> Training:
    return counts(seed, None)


# operations


class Own(LightningModule):
    """A net whose loss is a method chosen by name."""

    def __init__(self, net: nn.Module, kind: str, lr: float) -> None:
        super().__init__()
        self.net, self.kind, self.lr = net, kind, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        loss = getattr(self, self.kind)(self(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def plain_log(self, out: Tensor, y: Tensor) -> Tensor:
        return -out.softmax(1).log().gather(1, y[:, None]).mean()

    def log_softmax(self, out: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(out.log_softmax(1), y)

    def margin(self, out: Tensor, y: Tensor) -> Tensor:
        other = out.roll(1, 0)
        gap = ((out - other) * (y != y.roll(1, 0))[:, None]).square().sum(1).sqrt()
        return self.pairs(gap, y)

    def safe_margin(self, out: Tensor, y: Tensor) -> Tensor:
        other = out.roll(1, 0)
        gap = (((out - other) * (y != y.roll(1, 0))[:, None]).square().sum(1) + 1e-6).sqrt()
        return self.pairs(gap, y)

    def pairs(self, gap: Tensor, y: Tensor) -> Tensor:
        return ((y != y.roll(1, 0)) * (3 - gap).relu()).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Cosine(nn.Module):
    """Logits are cosines over a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prototypes = mlp(64, 64, 32), nn.Parameter(torch.randn(10, 32))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=1) @ F.normalize(self.prototypes, dim=1).T / 0.003


def written_out(seed: int, kind: str) -> Training:
    return Training(Own(Cosine(), kind, 1e-3), (d := digits(seed)).train(64), d.accuracy, trainer={"max_epochs": 8})


@sick("p-written-out", "mlp", "unstable-operation", "nonfinite-loss", twin=lambda s: written_out(s, "log_softmax"))
def written_out_log(seed: int) -> Training:
    return written_out(seed, "plain_log")


def distances(seed: int, kind: str) -> Training:
    d = blobs(seed, n=1500)
    far = d.x_test[:400], d.y_test[:400]

    def score(m: LightningModule) -> float:
        z = predict(m, far[0])
        centres = torch.stack([z[far[1] == k].mean(0) for k in range(5)])
        return torch.pdist(centres).min().item() if bool(z.isfinite().all()) else -1.0

    return Training(Own(mlp(10, 32, 4), kind, 2e-3), d.train(50), score, trainer={"max_epochs": 5})


@sick("p-distances", "metric", "nonfinite-gradients", "unstable-operation", twin=lambda s: distances(s, "safe_margin"))
def distances_root(seed: int) -> Training:
    return distances(seed, "margin")


class Whiten(nn.Module):
    """Each window to mean 0 and deviation 1."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + self.floor)


def windows(seed: int, floor: float) -> Training:
    d = waves(seed)
    x, y = d.x.clone(), d.y.clone()
    x[::200], y[::200] = 0.0, 0.0
    net = nn.Sequential(Whiten(floor), nn.Flatten(), mlp(20, 48, 3))
    return Training(Model(net, F.mse_loss, adam(5e-3)), loader(x, y, 30), d.r2, trainer={"max_epochs": 8})


@sick("p-flat-windows", "forecast", "unstable-operation", "nonfinite-loss", twin=lambda s: windows(s, 1e-3))
def flat_windows(seed: int) -> Training:
    return windows(seed, 0.0)


# the loss and the last layer


@sick(
    "p-digits-final-softmax",
    "mlp",
    "probabilities-as-logits",
    twin=lambda s: on_digits(s, mlp(64, 64, 10), sgd(0.2)),
)
def digits_final_softmax(seed: int) -> Training:
    return on_digits(seed, mlp(64, 64, 10).append(nn.Softmax(1)), sgd(0.2))


def masks(seed: int, net: nn.Module) -> Training:
    d = scenes(seed)
    module = Model(net, nn.BCEWithLogitsLoss(), adam(5e-3))
    return Training(
        module, d.train(20), lambda m: -F.mse_loss((predict(m, d.x_test)).sigmoid(), d.y_test).item(), d.val(50),
        {"max_epochs": 8}
    )  # fmt: skip


@sick("p-masks-sigmoid", "segmentation", "probabilities-as-logits", twin=lambda s: masks(s, unet()))
def masks_sigmoid(seed: int) -> Training:
    return masks(seed, unet().append(nn.Sigmoid()))


def one_target(seed: int, flat: bool, loss: Callable[..., Tensor], net: nn.Module, d: Split) -> Training:
    y = d.y[:, 0] if flat else d.y[:, :1]
    module = Model(net, loss, adam(5e-3))
    test = Split(d.x, d.y, d.x_test, d.y_test[:, :1])
    return Training(module, loader(d.x, y, 40), test.r2, trainer={"max_epochs": 6})


@sick(
    "p-one-target",
    "regression",
    "loss-shape-mismatch",
    twin=lambda s: one_target(s, False, F.mse_loss, mlp(8, 48, 1), regression(s, r2=0.9)),
)
def one_target_flat(seed: int) -> Training:
    return one_target(seed, True, F.mse_loss, mlp(8, 48, 1), regression(seed, r2=0.9))


def next_value(seed: int, flat: bool) -> Training:
    net = LastStep(nn.LSTM(1, 20, batch_first=True), 1)
    return one_target(seed, flat, nn.HuberLoss(), net, waves(seed))


@sick("p-next-value", "forecast", "loss-shape-mismatch", twin=lambda s: next_value(s, False))
def next_value_flat(seed: int) -> Training:
    return next_value(seed, True)


def yes_no(seed: int, loss: Callable[..., Tensor]) -> Training:
    d = table("breast_cancer", seed)
    module = Model(mlp(30, 16, 1), loss, adam(5e-3))

    def score(m: LightningModule) -> float:
        return ((predict(m, d.x_test)[:, 0] > 0).long() == d.y_test).float().mean().item()

    return Training(module, loader(d.x, d.y.float()[:, None], 16), score, trainer={"max_epochs": 6})


@sick("p-yes-no", "table", "wrong-loss-for-task", twin=lambda s: yes_no(s, F.binary_cross_entropy_with_logits))
def yes_no_entropy(seed: int) -> Training:
    return yes_no(seed, F.cross_entropy)


def class_numbers(seed: int, number: bool) -> Training:
    d = digits(seed).to_images()
    if not number:
        return Training(
            Model(small_cnn(10), F.cross_entropy, adam(3e-3)), d.train(50), d.accuracy, trainer={"max_epochs": 8}
        )
    module = Model(small_cnn(1), F.mse_loss, adam(3e-3))

    def score(m: LightningModule) -> float:
        return (predict(m, d.x_test)[:, 0].round() == d.y_test).float().mean().item()

    return Training(module, loader(d.x, d.y.float()[:, None], 50), score, trainer={"max_epochs": 8})


@sick("p-class-numbers", "cnn", "wrong-loss-for-task", twin=lambda s: class_numbers(s, False))
def class_numbers_squared(seed: int) -> Training:
    return class_numbers(seed, True)


def summed(seed: int, reduction: str) -> Training:
    d = sales(seed)
    module = Model(mlp(10, 48, 3), nn.MSELoss(reduction=reduction), sgd(0.1))
    return Training(module, d.train(100), d.r2, d.val(), {"max_epochs": 12})


@sick("p-orders-total", "regression", "wrong-loss-for-task", "learning-rate-too-high", twin=lambda s: summed(s, "mean"))
def orders_total(seed: int) -> Training:
    return summed(seed, "sum")


@sick(
    "p-orders-bounded",
    "regression",
    "output-range-mismatch",
    twin=lambda s: on_sales(s, mlp(10, 64, 64, 3), adam(4e-3)),
)
def orders_bounded(seed: int) -> Training:
    return on_sales(seed, mlp(10, 64, 64, 3).append(nn.Sigmoid()), adam(4e-3))


def reconstruct(seed: int, last: nn.Module, **parts: Any) -> Training:
    d = latent(seed)
    net = nn.Sequential(mlp(24, 48, parts.get("code", 4)), mlp(parts.get("code", 4), 48, 24), last)
    return Training(Model(net, F.mse_loss, adam(5e-3)), d.train(40), d.r2, trainer={"max_epochs": 8})


@sick("p-rebuild-rows", "autoencoder", "output-range-mismatch", twin=lambda s: reconstruct(s, nn.Identity()))
def rebuild_rows(seed: int) -> Training:
    return reconstruct(seed, nn.ReLU())


# what the net can express


@sick(
    "p-digits-funnel",
    "mlp",
    "insufficient-capacity",
    twin=lambda s: on_digits(s, mlp(64, 32, 16, 10, act=nn.Tanh), adam(1e-2), max_steps=300),
)
def digits_funnel(seed: int) -> Training:
    return on_digits(seed, mlp(64, 32, 1, 10, act=nn.Tanh), adam(1e-2), max_steps=300)


@sick("p-rebuild-code", "autoencoder", "insufficient-capacity", twin=lambda s: reconstruct(s, nn.Identity(), code=4))
def rebuild_code(seed: int) -> Training:
    return reconstruct(seed, nn.Identity(), code=1)


def crescents(seed: int, act: Callable[[], nn.Module]) -> Training:
    d = moons(seed)
    module = Model(mlp(2, 32, 32, 2, act=act), F.cross_entropy, adam(0.01))
    return Training(module, d.train(40), d.accuracy, d.val(), {"max_epochs": 10})


@sick("p-crescents", "mlp", "missing-nonlinearity", twin=lambda s: crescents(s, nn.ReLU))
def crescents_stack(seed: int) -> Training:
    return crescents(seed, nn.Identity)


@sick(
    "p-orders-four-layers",
    "regression",
    "missing-nonlinearity",
    twin=lambda s: on_sales(s, mlp(10, 64, 64, 64, 3), adam(4e-3)),
)
def orders_four_layers(seed: int) -> Training:
    layers = [m for m in mlp(10, 64, 64, 64, 3) if isinstance(m, nn.Linear)]
    return on_sales(seed, nn.Sequential(*layers), adam(4e-3))


def patients(seed: int, width: int, decay: float) -> Training:
    d = table("diabetes", seed).map_targets(lambda y: y[:, None])
    d = Split(d.x[:150], d.y[:150], d.x_test, d.y_test)
    module = Model(mlp(10, width, width, 1), F.mse_loss, adamw(4e-3, weight_decay=decay))
    return Training(module, d.train(30), d.r2, d.val(), {"max_epochs": 60, "log_every_n_steps": 5})


@sick("p-patients", "regression", "overfitting", "too-little-data", twin=lambda s: patients(s, 128, 8.0))
def patients_wide(seed: int) -> Training:
    return patients(seed, 128, 0.0)


def few_reviews(seed: int, epochs: int) -> Training:
    d = reviews(seed, n=300)
    module = Model(BagOfWords(dim=48), F.cross_entropy, adam(1e-2))

    def score(m: LightningModule) -> float:
        return -F.cross_entropy(predict(m, d.x_test), d.y_test).item()

    return Training(module, d.train(30), score, d.val(), {"max_epochs": epochs, "log_every_n_steps": 1})


@sick("p-few-reviews", "text", "overfitting", "too-little-data", twin=lambda s: few_reviews(s, 8))
def few_reviews_long(seed: int) -> Training:
    return few_reviews(seed, 50)


# units


def shifted(net: nn.Sequential, layer: int, bias: float, units: int | None = None) -> nn.Sequential:
    with torch.no_grad():
        net[layer].bias[:units] = bias  # type: ignore[index, operator]
    return net


@sick(
    "p-digits-quiet-units",
    "mlp",
    "dead-activations",
    "bad-initialization",
    twin=lambda s: on_digits(s, mlp(64, 64, 64, 10), adam(2e-3)),
)
def digits_quiet_units(seed: int) -> Training:
    return on_digits(seed, shifted(mlp(64, 64, 64, 10), 2, -6.0), adam(2e-3))


@sick(
    "p-pictures-quiet-units",
    "cnn",
    "dead-activations",
    "bad-initialization",
    twin=lambda s: on_pictures(s, small_cnn(10), adam(1e-3)),
)
def pictures_quiet_units(seed: int) -> Training:
    return on_pictures(seed, shifted(small_cnn(10), 3, -0.9, 14), adam(1e-3))


def stretched(net: nn.Sequential, layer: int, factor: float) -> nn.Sequential:
    with torch.no_grad():
        net[layer].weight.mul_(factor)  # type: ignore[operator]
    return net


def steep(seed: int, factor: float) -> Training:
    net = mlp(10, 48, 48, 3, act=nn.Tanh)
    return on_sales(seed, stretched(stretched(net, 0, factor), 2, factor), adam(4e-3))


@sick(
    "p-orders-steep-tanh",
    "regression",
    "saturated-activations",
    "bad-initialization",
    twin=lambda s: steep(s, 1.0),
)
def orders_steep_tanh(seed: int) -> Training:
    return steep(seed, 40.0)


def gated(seed: int, factor: float) -> Training:
    d = motifs(seed, classes=3)
    net = LastStep(nn.GRU(1, 24, batch_first=True), 3)
    with torch.no_grad():
        net.rnn.weight_ih_l0.mul_(factor)
        net.rnn.weight_hh_l0.mul_(factor)
    module = Model(net, F.cross_entropy, adam(0.01))
    return Training(module, d.train(40), d.accuracy, trainer={"max_epochs": 12})


@sick("p-motifs-gates", "sequence", "saturated-activations", "bad-initialization", twin=lambda s: gated(s, 1.0))
def motifs_gates(seed: int) -> Training:
    return gated(seed, 40.0)


def filled_with(net: nn.Module, make: Callable[[Tensor], Any]) -> nn.Module:
    for p in net.parameters():
        if p.dim() > 1:
            make(p)
    return net


@sick(
    "p-orders-equal",
    "regression",
    "bad-initialization",
    twin=lambda s: on_sales(s, mlp(10, 32, 32, 3), adam(5e-3)),
)
def orders_equal(seed: int) -> Training:
    return on_sales(seed, filled_with(mlp(10, 32, 32, 3), lambda p: nn.init.constant_(p, 0.05)), adam(5e-3))


@sick(
    "p-digits-normal",
    "mlp",
    "bad-initialization",
    twin=lambda s: on_digits(s, mlp(64, 128, 128, 10), adam(1e-3)),
)
def digits_normal(seed: int) -> Training:
    return on_digits(seed, filled_with(mlp(64, 128, 128, 10), lambda p: nn.init.normal_(p, std=1.0)), adam(1e-3))


# mixing and modes


class Across(nn.Module):
    """A recurrent layer whose two first axes are as `batch_first` says."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=batch_first)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Reshaped(nn.Module):
    """Mixes the features of a picture's rows; `view` turns the axes round without moving the data."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.view = view
        self.row = nn.Linear(8, 16)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 8, 8)
        rows = x.reshape(8, len(x), 8) if self.view else x.transpose(0, 1)
        h = self.row(rows).relu()
        return self.head(h.transpose(0, 1).flatten(1))


@sick("p-rows-first", "mlp", "batch-mixing", twin=lambda s: on_digits(s, Reshaped(False), adam(5e-3)))
def rows_first(seed: int) -> Training:
    return on_digits(seed, Reshaped(True), adam(5e-3))


def across(seed: int, batch_first: bool) -> Training:
    d = waves(seed)
    return Training(Model(Across(batch_first), F.mse_loss, adam(5e-3)), d.train(30), d.r2, trainer={"max_epochs": 7})


@sick("p-forecast-axes", "forecast", "batch-mixing", twin=lambda s: across(s, True))
def forecast_axes(seed: int) -> Training:
    return across(seed, False)


class Blend(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.a, self.b, self.always = nn.Linear(64, 64), nn.Linear(64, 10), always

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x).relu(), 0.8, training=self.always or self.training))


@sick("p-digits-blend", "mlp", "mode-mismatch", twin=lambda s: on_digits(s, Blend(False), adam(5e-3)))
def digits_blend(seed: int) -> Training:
    return on_digits(seed, Blend(True), adam(5e-3))


def normed(size: int = 10, momentum: float = 0.1) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, 48), nn.BatchNorm1d(48, momentum=momentum), nn.ReLU(),
        nn.Linear(48, 48), nn.BatchNorm1d(48, momentum=momentum), nn.ReLU(), nn.Linear(48, 3),
    )  # fmt: skip


class Paused(Model):
    """Draws a picture of its answers after each epoch, in evaluation mode."""

    back = True

    def on_train_epoch_start(self) -> None:
        self.net.eval()
        with torch.no_grad():
            self.preview = self.net(self.sample)
        if self.back:
            self.net.train()


def paused(seed: int, back: bool) -> Training:
    d = sales(seed)
    d = Split(8 * d.x + 30, d.y, 8 * d.x_test + 30, d.y_test)
    net = nn.Sequential(nn.BatchNorm1d(10), mlp(10, 48, 3))
    module = Paused(net, F.mse_loss, adam(5e-3))
    module.back, module.sample = back, d.x[:5]
    return Training(module, d.train(50), d.r2, trainer={"max_epochs": 8})


@sick("p-preview", "regression", "mode-mismatch", twin=lambda s: paused(s, True))
def preview(seed: int) -> Training:
    return paused(seed, False)


# batch statistics


@sick(
    "p-orders-pairs",
    "regression",
    "batchnorm-small-batch",
    twin=lambda s: on_sales(s, normed(), adam(2e-3), 50, max_steps=250, max_epochs=-1),
)
def orders_pairs(seed: int) -> Training:
    return on_sales(seed, normed(), adam(2e-3), 2, max_steps=250, max_epochs=-1)


def normed_pictures() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32),
        nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@sick(
    "p-pictures-threes",
    "cnn",
    "batchnorm-small-batch",
    twin=lambda s: on_pictures(s, normed_pictures(), adam(3e-3), 48, max_steps=200),
)
def pictures_threes(seed: int) -> Training:
    return on_pictures(seed, normed_pictures(), adam(3e-3), 3, accumulate_grad_batches=16, max_steps=200)


def normed_text(seed: int, size: int) -> Training:
    d = reviews(seed)
    net = nn.Sequential(nn.EmbeddingBag(60, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    module = Model(net, F.cross_entropy, adam(3e-3))
    trainer = {"max_steps": 200, "max_epochs": -1, "accumulate_grad_batches": 32 // size}
    return Training(module, d.train(size, drop_last=True), d.accuracy, d.val(), trainer)


@sick("p-opinions-quads", "text", "batchnorm-small-batch", twin=lambda s: normed_text(s, 32))
def opinions_quads(seed: int) -> Training:
    return normed_text(seed, 2)


def slow_statistics(seed: int, momentum: float) -> Training:
    d = sales(seed)
    d = Split(3 * d.x + 4, d.y, 3 * d.x_test + 4, d.y_test)
    module = Model(normed(10, momentum), F.mse_loss, adam(4e-3))
    return Training(module, d.train(50), d.r2, d.val(), {"max_epochs": 8})


@sick("p-orders-slow-average", "regression", "batchnorm-stale-statistics", twin=lambda s: slow_statistics(s, 0.1))
def orders_slow_average(seed: int) -> Training:
    return slow_statistics(seed, 3e-4)


def picture_statistics(seed: int, momentum: float) -> Training:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2),
        nn.BatchNorm2d(24, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
    return on_pictures(seed, net, adam(4e-3), 40, max_steps=150)


@sick("p-pictures-slow-average", "cnn", "batchnorm-stale-statistics", twin=lambda s: picture_statistics(s, 0.1))
def pictures_slow_average(seed: int) -> Training:
    return picture_statistics(seed, 2e-3)


# language


class Speller(LightningModule):
    """Next characters with a GRU; `lag` is how far the labels stand ahead of the inputs."""

    def __init__(self, lr: float, backbone: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.rnn = nn.GRU(24, 48, batch_first=True)
        self.head = nn.Linear(48, 20)
        self.lr, self.backbone = lr, backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        self.log("nll", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        if not self.backbone:
            for p in [*self.embedding.parameters(), *self.rnn.parameters()]:
                p.requires_grad = False
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def speller(seed: int, lr: float = 5e-3, backbone: bool = True) -> Training:
    text = characters(seed, length=24, n=1200)

    def score(m: LightningModule) -> float:
        return -F.cross_entropy(predict(m, text.test[:, :-1]).flatten(0, 1), text.test[:, 1:].flatten()).item()

    data = torch.utils.data.DataLoader(text.train, batch_size=40, shuffle=True)  # type: ignore[arg-type]
    return Training(Speller(lr, backbone), data, score, trainer={"max_epochs": 6, "log_every_n_steps": 10})


@sick("p-speller-frozen", "language", "parameters-not-optimized", twin=lambda s: speller(s))
def speller_frozen(seed: int) -> Training:
    return speller(seed, backbone=False)


@sick("p-speller-rate", "language", "learning-rate-too-high", twin=lambda s: speller(s))
def speller_rate(seed: int) -> Training:
    return speller(seed, lr=0.3)


@sick("p-reader-rate", "transformer", "learning-rate-too-low", twin=lambda s: read(s, 2e-3))
def reader_rate(seed: int) -> Training:
    return read(seed, 6e-5)


def read(seed: int, lr: float) -> Training:
    d = reviews(seed)
    module = Model(Reader(dropout=0.1), F.cross_entropy, adamw(lr))
    return Training(module, d.train(40), d.accuracy, d.val(), {"max_epochs": 6, "gradient_clip_val": 1.0})
