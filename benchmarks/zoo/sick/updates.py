"""Parameters that never move although they should, and gradients that are kept or thrown away at the wrong moment."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.sick._data import Split, accuracy, cancer, digits, friedman, messages, r2, reconstruction, waves
from benchmarks.zoo.sick._modules import Classifier, Recurrent, Regressor, RowTransformer, adam, mlp, sgd

# --- not optimised


class TwoPart(LightningModule):
    """A body and a head; Adam over what `configure_optimizers` names."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.body = nn.Sequential(*mlp(10, 48, 48, 48, 16), nn.ReLU())
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        part = self if self.whole else self.head
        return torch.optim.Adam(part.parameters(), lr=3e-3)


def _two_part(seed: int, whole: bool) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    return Training(TwoPart(whole), split.train(32), r2(split), None, {"max_epochs": 20})


@sick("friedman-head-in-optimizer", "regression", "parameters-not-optimized", twin=lambda seed: _two_part(seed, True))
def friedman_head(seed: int) -> Training:
    return _two_part(seed, False)


class Normed(Classifier):
    """A classifier whose linear layers are weight-normalised before the optimizer is built or as training starts."""

    def __init__(self, net: nn.Sequential, early: bool) -> None:
        super().__init__(net, adam(1e-3))
        self.early = early

    def normalise(self) -> None:
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                weight_norm(layer)

    def configure_model(self) -> None:
        if self.early:
            self.normalise()

    def on_train_start(self) -> None:
        if not self.early:
            self.normalise()


def _normed(seed: int, early: bool) -> Training:
    torch.manual_seed(seed)
    split = digits()
    return Training(
        Normed(mlp(64, 64, 64, 10), early), split.train(32), accuracy(split), split.val(), {"max_epochs": 12}
    )


@sick(
    "digits-weight-norm-late",
    "mlp",
    "parameters-not-optimized",
    twin=lambda seed: _normed(seed, True),
    note="weight_norm replaces the weights after the optimizer was built",
)
def digits_weight_norm(seed: int) -> Training:
    return _normed(seed, False)


class Codec(LightningModule):
    """An autoencoder whose encoder is meant to come from an earlier run."""

    def __init__(self, freeze: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*mlp(30, 48, 48, 8), nn.Tanh())
        self.decoder = mlp(8, 48, 30)
        if freeze:
            for parameter in self.encoder.parameters():
                parameter.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=3e-3)


def _codec(seed: int, freeze: bool) -> Training:
    torch.manual_seed(seed)
    split = cancer()
    return Training(Codec(freeze), split.train(32), reconstruction(split), None, {"max_epochs": 60})


@sick(
    "cancer-frozen-encoder",
    "autoencoder",
    "parameters-not-optimized",
    twin=lambda seed: _codec(seed, False),
    note="frozen as if it were pretrained; its weights are random",
)
def cancer_frozen_encoder(seed: int) -> Training:
    return _codec(seed, True)


class Features(nn.Module):
    """Encoder and head; the encoder's gradient is cut where `tune` is off."""

    def __init__(self, encoder: nn.Module, head: nn.Module, tune: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.tune = encoder, head, tune

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
            h = self.encoder(x)
        return self.head(h)


def _features(seed: int, tune: bool) -> Training:
    torch.manual_seed(seed)
    split = digits().shaped(8, 8)
    encoder = RowTransformer(width=16, depth=2)
    encoder.head = nn.Linear(16, 6)
    net = Features(encoder, nn.Linear(6, 10), tune)
    return Training(Classifier(net, adam(2e-3)), split.train(32), accuracy(split), split.val(), {"max_epochs": 12})


@sick("digits-no-grad-encoder", "transformer", "parameters-not-optimized", twin=lambda seed: _features(seed, True))
def digits_no_grad_encoder(seed: int) -> Training:
    return _features(seed, False)


class Detached(nn.Module):
    """Mean of word embeddings, then a dense head."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.detach = detach
        self.words = nn.EmbeddingBag(24, 4, padding_idx=0)
        self.head = mlp(4, 16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens.long())
        return self.head(h.detach() if self.detach else h)


def _detached(seed: int, detach: bool) -> Training:
    torch.manual_seed(seed)
    split = messages()
    return Training(
        Classifier(Detached(detach), adam(5e-3)), split.train(32), accuracy(split), None, {"max_epochs": 15}
    )


@sick("messages-detached-words", "text", "parameters-not-optimized", twin=lambda seed: _detached(seed, False))
def messages_detached(seed: int) -> Training:
    return _detached(seed, True)


class Stack(nn.Module):
    """Dense layers kept in a list."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        layers = [nn.Linear(10, 24), *(nn.Linear(24, 24) for _ in range(3))]
        self.layers: Any = nn.ModuleList(layers) if registered else layers
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.out(x)


def _stack(seed: int, registered: bool) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    return Training(
        Regressor(Stack(registered), adam(3e-3)), split.train(32), r2(split), split.val(), {"max_epochs": 20}
    )


@sick("friedman-layers-in-a-list", "regression", "parameters-not-optimized", twin=lambda seed: _stack(seed, True))
def friedman_layers(seed: int) -> Training:
    return _stack(seed, False)


# --- kept or cleared at the wrong moment


class Manual(LightningModule):
    """Drives its optimizer by hand; `clear` says when gradients are zeroed: "before" backward, "after" it, or None."""

    def __init__(self, net: nn.Module, lr: float, clear: str | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.lr, self.clear = net, lr, clear

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y) if y.is_floating_point() else F.cross_entropy(self(x), y)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        if self.clear == "before":
            optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        if self.clear == "after":
            optimizer.zero_grad()
        optimizer.step()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def _manual(seed: int, split: Split, net: nn.Module, clear: str | None, score: Any) -> Training:
    return Training(Manual(net, 0.05, clear), split.train(32), score, None, {"max_epochs": 20})


def _manual_digits(seed: int, clear: str | None) -> Training:
    torch.manual_seed(seed)
    split = digits()
    return _manual(seed, split, mlp(64, 64, 10), clear, accuracy(split))


@sick("digits-manual-no-zero", "mlp", "gradients-not-cleared", twin=lambda seed: _manual_digits(seed, "before"))
def digits_manual(seed: int) -> Training:
    return _manual_digits(seed, None)


def _manual_waves(seed: int, clear: str | None) -> Training:
    torch.manual_seed(seed)
    split = waves()
    return _manual(seed, split, Recurrent(nn.GRU(1, 32, batch_first=True), 1), clear, r2(split))


@sick("waves-manual-zero-then-step", "rnn", "gradients-not-cleared", twin=lambda seed: _manual_waves(seed, "before"))
def waves_manual(seed: int) -> Training:
    return _manual_waves(seed, "after")


class Accumulating(Regressor):
    """Means to add up four batches and overrides the clearing of gradients to do so."""

    def __init__(self, net: nn.Module, every: int | None) -> None:
        super().__init__(net, sgd(0.1))
        self.every = every

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if self.every and batch_idx % self.every == 0:
            optimizer.zero_grad()


def _accumulating(seed: int, every: int | None) -> Training:
    torch.manual_seed(seed)
    split = friedman()
    return Training(
        Accumulating(mlp(10, 64, 64, 1), every), split.train(32), r2(split), split.val(), {"max_epochs": 20}
    )


@sick("friedman-own-zero-grad", "regression", "gradients-not-cleared", twin=lambda seed: _accumulating(seed, 1))
def friedman_own_zero_grad(seed: int) -> Training:
    return _accumulating(seed, None)
