"""Plain classifiers that end well: noisy, deep, heavily regularised, or at zero loss for most of the run."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, Regressor, mlp


@well("digits-unit-interval", "perceptron", "pixels in [0, 1], never standardised; accuracy about 0.97")
def digits_unit_interval(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Classifier(mlp(64, 128, 10), lr=3e-3), d.train(64), d.accuracy, d.val(), {"max_epochs": 30})


@well(
    "tiny-batches", "perceptron", "four samples a step: single losses swing by orders of magnitude; accuracy about 0.96"
)
def tiny_batches(seed: int) -> Training:
    d = data.digits(seed)
    model = Classifier(mlp(64, 64, 10), optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    return Training(model, d.train(4), d.accuracy, None, {"max_epochs": 7})


@well("zero-loss-for-long", "perceptron", "the loss is below 0.01 for most of the run; accuracy about 0.97")
def zero_loss_for_long(seed: int) -> Training:
    d = data.digits(seed)
    return Training(Classifier(mlp(64, 128, 64, 10), lr=2e-3), d.train(64), d.accuracy, d.val(), {"max_epochs": 70})


@well(
    "label-noise-floor",
    "perceptron",
    "40 % of the training labels drawn anew: loss stays near 1.2; clean accuracy 0.95",
)
def label_noise_floor(seed: int) -> Training:
    d = data.blobs(seed, classes=5, spread=4.0, n=6000)
    d = data.Split(d.x, data.flip_labels(d.y, 0.4, 5, seed), d.x_test, d.y_test)
    return Training(Classifier(mlp(10, 32, 5), lr=3e-3), d.train(64), d.accuracy, None, {"max_epochs": 12})


@well("overlapping-classes", "perceptron", "classes overlap, so the best loss is far from zero and is reached early")
def overlapping_classes(seed: int) -> Training:
    d = data.blobs(seed, classes=4, spread=1.2, n=6000)
    return Training(Classifier(mlp(10, 32, 4), lr=3e-3), d.train(128), d.accuracy, d.val(), {"max_epochs": 15})


@well("dropout-heavy", "perceptron", "training loss stays well above the validation loss; accuracy about 0.97")
def dropout_heavy(seed: int) -> Training:
    d = data.digits(seed)
    model = Classifier(mlp(64, 256, 256, 10, dropout=0.5))
    return Training(model, d.train(64), d.accuracy, d.val(), {"max_epochs": 30})


@well("adamw-decay", "perceptron", "weight decay 1e-2 in AdamW, its usual place; accuracy about 0.97")
def adamw_decay(seed: int) -> Training:
    d = data.digits(seed)
    model = Classifier(
        mlp(64, 96, 10, act=nn.GELU),
        optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3, weight_decay=1e-2),
    )
    return Training(model, d.train(32), d.accuracy, d.val(), {"max_epochs": 20})


@well("deep-relu", "perceptron", "12 hidden layers with He initialisation; accuracy about 0.95")
def deep_relu(seed: int) -> Training:
    d = data.digits(seed)
    net = mlp(64, *[96] * 12, 10)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return Training(Classifier(net, lr=5e-4), d.train(64), d.accuracy, d.val(), {"max_epochs": 25})


@well("tanh-moons", "perceptron", "small tanh net whose units end near their limits; accuracy about 0.99")
def tanh_moons(seed: int) -> Training:
    d = data.moons(seed)
    return Training(
        Classifier(mlp(2, 16, 16, 2, act=nn.Tanh), lr=1e-2), d.train(50), d.accuracy, d.val(), {"max_epochs": 30}
    )


@well(
    "momentum-overshoot",
    "perceptron",
    "heavy momentum swings for the first 200 steps, then settles; R2 about 0.9 of 0.95",
)
def momentum_overshoot(seed: int) -> Training:
    d = data.regression(seed, r2=0.95)
    model = Regressor(
        mlp(8, 64, 1, act=nn.Tanh), optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.99)
    )
    return Training(model, d.train(250), d.r2, d.val(), {"max_epochs": 150})


@well("layernorm-mlp", "perceptron", "LayerNorm, GELU, AdamW in bfloat16 mixed precision; accuracy about 0.97")
def layernorm_mlp(seed: int) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10))
    model = Classifier(net, optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3))
    return Training(model, d.train(64), d.accuracy, d.val(), {"max_epochs": 20, "precision": "bf16-mixed"})


@well(
    "batchnorm-mlp", "perceptron", "BatchNorm on 32 samples a batch, the incomplete last batch dropped; accuracy 0.97"
)
def batchnorm_mlp(seed: int) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return Training(Classifier(net), d.train(32, drop_last=True), d.accuracy, d.val(), {"max_epochs": 15})


@well(
    "sorted-by-difficulty",
    "perceptron",
    "the easiest samples first, the hardest last, every epoch; accuracy about 0.96",
)
def sorted_by_difficulty(seed: int) -> Training:
    d = data.digits(seed)
    centres = torch.stack([d.x[d.y == k].mean(0) for k in range(10)])
    distance = (d.x - centres[d.y]).square().sum(1)
    # within a stretch of like difficulty the order is random, so each batch still holds every class
    order = (distance + 0.3 * distance.std() * torch.randn(len(distance), generator=data.generator(seed, 9))).argsort()
    d = data.Split(d.x[order], d.y[order], d.x_test, d.y_test)
    return Training(
        Classifier(mlp(64, 96, 10), lr=2e-3), d.train(32, shuffle=False), d.accuracy, d.val(), {"max_epochs": 20}
    )
