"""One training for each of many causes, with losses, loops and schedules of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import accuracy, characters, digits, generator, motifs, predict, r2, regression


def batches(*tensors: Tensor, size: int = 32, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), size, **{"shuffle": True, **options})


def series(seed: int, n: int, length: int, ahead: int = 1) -> tuple[Tensor, Tensor]:
    """Windows of two superposed waves with noise, and the values that follow."""
    g = generator(seed, 301)
    t = torch.arange(float(length + ahead))
    phase, period = 6.28 * torch.rand(n, 2, generator=g), 6 + 10 * torch.rand(n, 2, generator=g)
    waves = torch.sin(t[None, None] * 6.28 / period[..., None] + phase[..., None]).sum(1)
    waves = waves + 0.05 * torch.randn(waves.shape, generator=g)
    return waves[:, :length], waves[:, length:]


class PatchTransformer(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y, label_smoothing=0.05)
        self.log_dict({"train/loss": loss, "train/acc": (logits.argmax(-1) == y).float().mean()}, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=0.01)


@sick("y-patches-of-digits", "transformer", "learning-rate-too-high", twin=lambda s: patches(s, 2e-3))
def patches(seed: int, lr: float = 0.2) -> Training:
    d = digits(seed).to_images()
    return Training(PatchTransformer(lr), d.train(64), d.accuracy, None, {"max_epochs": 10})


class Copyist(LightningModule):
    """Next characters by a small causal transformer, warmed up as in the paper."""

    def __init__(self, symbols: int, base: float) -> None:
        super().__init__()
        self.base, self.width = base, 32
        self.embed = nn.Embedding(symbols, 32)
        self.place = nn.Embedding(64, 32)
        self.block = nn.TransformerEncoderLayer(32, 2, 96, dropout=0.0, batch_first=True)
        self.out = nn.Linear(32, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        h = self.embed(ids) + self.place.weight[:length]
        return self.out(self.block(h, src_mask=mask, is_causal=True))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (ids,) = batch
        loss = F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        self.log("nll", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.base, betas=(0.9, 0.98), eps=1e-9)

        def noam(step: int) -> float:
            step += 1
            return self.width**-0.5 * min(step**-0.5, step * 60**-1.5)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, noam)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "name": "noam"}]


@sick("y-warmed-up-as-in-the-paper", "transformer", "learning-rate-too-low", twin=lambda s: copyist(s, 0.5))
def copyist(seed: int, base: float = 1e-3) -> Training:
    text = characters(seed, words=12, length=20, n=1500)

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(predict(module, text.test[:, :-1]).transpose(1, 2), text.test[:, 1:]).item()

    return Training(Copyist(text.symbols, base), batches(text.train, size=32), score, None, {"max_steps": 220})


class LoadForecast(LightningModule):
    """The next four values of a series; the rate falls when the epoch's error stops to improve."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 4)
        self.errors: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.unsqueeze(-1))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        past, future = batch
        loss = ((self(past) - future) ** 2).mean()
        self.errors.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("epoch_error", torch.stack(self.errors).mean())
        self.errors.clear()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.mode, factor=0.1, patience=0)  # type: ignore[arg-type]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "epoch_error"}}


@sick("y-four-values-ahead", "forecasting", "learning-rate-decayed-early", twin=lambda s: four_ahead(s, "min"))
def four_ahead(seed: int, mode: str = "max") -> Training:
    past, future = series(seed, 1100, 24, 4)
    return Training(
        LoadForecast(mode),
        batches(past[:640], future[:640], size=32),
        lambda m: r2(predict(m, past[640:]), future[640:]),
        None,
        {"max_epochs": 14},
    )


class Relational(LightningModule):
    """Node classes from neighbours along three kinds of edges, one weight matrix a kind."""

    def __init__(self, everything: bool) -> None:
        super().__init__()
        self.everything = everything
        self.first = nn.Parameter(torch.randn(3, 6, 16) * 0.02)
        self.second = nn.Parameter(torch.randn(3, 16, 16) * 0.02)
        self.loop = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, graph: Any) -> Tensor:
        x, a = graph
        h = torch.relu(torch.einsum("brij,bjf,rfo->bio", a, x, self.first) + self.loop(x))
        h = h + torch.einsum("brij,bjf,rfo->bio", a, h, self.second)
        return self.head(self.norm(h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *graph, label = batch
        loss = F.cross_entropy(self(graph).flatten(0, 1), label.flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        free = [p for p in self.parameters() if p.ndim < 2]
        decayed = [p for p in self.parameters() if (p.ndim >= 2 if self.everything else p.ndim == 2)]
        groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-2)


@sick("y-three-kinds-of-edges", "graph", "parameters-not-optimized", twin=lambda s: edges(s, True))
def edges(seed: int, everything: bool = False) -> Training:
    g = generator(seed, 302)
    x = torch.randn(500, 12, 6, generator=g)
    a = (torch.rand(500, 3, 12, 12, generator=g) < 0.2).float()
    a = a / a.sum(-1, keepdim=True).clamp(min=1)
    mix = torch.randn(3, 6, 4, generator=g)
    label = torch.einsum("brij,bjf,rfo->bio", a, x, mix).argmax(-1)
    test = (x[400:], a[400:])
    return Training(
        Relational(everything),
        batches(x[:400], a[:400], label[:400], size=25),
        lambda m: accuracy(predict(m, test), label[400:]),
        None,
        {"max_epochs": 15, "log_every_n_steps": 5},
    )


class TwoStage(LightningModule):
    """An autoencoder and a classifier on its code, each with its optimizer."""

    def __init__(self, clear_both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clear_both = clear_both
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.decoder = nn.Linear(16, 64)
        self.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        opt_ae, opt_cls = self.optimizers()
        z = self.encoder(x)
        rec = F.mse_loss(self.decoder(z), x)
        opt_ae.zero_grad()
        self.manual_backward(rec)
        opt_ae.step()
        cls = F.cross_entropy(self.classifier(z.detach()), y)
        (opt_cls if self.clear_both else opt_ae).zero_grad()
        self.manual_backward(cls)
        opt_cls.step()
        self.log_dict({"rec": rec, "cls": cls})

    def configure_optimizers(self) -> Any:
        ae = torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], lr=2e-3)
        return ae, torch.optim.SGD(self.classifier.parameters(), lr=0.1)


@sick("y-classifier-on-a-code", "autoencoder", "gradients-not-cleared", twin=lambda s: on_code(s, True))
def on_code(seed: int, clear_both: bool = False) -> Training:
    d = digits(seed)
    return Training(TwoStage(clear_both), d.train(48), d.accuracy, None, {"max_epochs": 14})


class Seasonal(LightningModule):
    """Dilated convolutions over the past; every tensor's gradient is held to a norm."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.convs = nn.ModuleList([nn.Conv1d(c, 24, 3, dilation=k) for c, k in ((1, 1), (24, 2), (24, 4))])
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, None]
        for conv in self.convs:
            h = F.gelu(conv(h))
        return self.head(h.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        past, future = batch["past"], batch["future"]
        loss = F.smooth_l1_loss(self(past), future)
        self.log("train_smape", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for p in self.parameters():
            nn.utils.clip_grad_norm_(p, self.limit)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Windows(Dataset[dict[str, Tensor]]):
    def __init__(self, past: Tensor, future: Tensor) -> None:
        self.past, self.future = past, future

    def __len__(self) -> int:
        return len(self.past)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"past": self.past[i], "future": self.future[i]}


@sick("y-dilated-over-the-past", "forecasting", "clipping-too-tight", twin=lambda s: dilated(s, 1.0))
def dilated(seed: int, limit: float = 1e-3) -> Training:
    past, future = series(seed, 1400, 24, 4)
    loader: Any = DataLoader(Windows(past[:1000], future[:1000]), 40, shuffle=True)
    return Training(
        Seasonal(limit), loader, lambda m: r2(predict(m, past[1000:]), future[1000:]), None, {"max_epochs": 12}
    )


class Sparse(LightningModule):
    """Regression with a hand-written squared error and a penalty on the size of all weights."""

    def __init__(self, columns: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.net = nn.Sequential(nn.Linear(columns, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        error = (self(x) - y).pow(2).mean()
        size = torch.stack([p.abs().sum() for n, p in self.named_parameters() if n.endswith("weight")]).sum()
        self.log("error", error)
        self.log("size", size)
        return error + self.alpha * size

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


@sick("y-error-and-size", "mlp", "excess-regularization", twin=lambda s: error_and_size(s, 1e-5))
def error_and_size(seed: int, alpha: float = 0.06) -> Training:
    d = regression(seed, r2=0.9, n=1200)
    return Training(Sparse(8, alpha), d.train(40), d.r2, None, {"max_epochs": 12})


class Walk(LightningModule):
    """A plain recurrence written out, reads the steps of a walk in the plane and tells how far across it went."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(2, 32)
        self.across = nn.Linear(32, 32, bias=False)
        nn.init.orthogonal_(self.across.weight, gain=1.1)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for step in self.inward(x).unbind(1):
            h = F.leaky_relu(step + self.across(h), 0.8)
        return self.out(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@sick("y-end-of-a-walk", "rnn", "exploding-gradients", twin=lambda s: walk(s, {"gradient_clip_val": 0.5}))
def walk(seed: int, extra: dict[str, Any] | None = None) -> Training:
    g = generator(seed, 303)
    x = torch.randn(1200, 30, 2, generator=g)
    y = (x[..., 0] - x[..., 1]).sum(1, keepdim=True) / 60**0.5
    return Training(
        Walk(),
        batches(x[:900], y[:900], size=30),
        lambda m: r2(torch.nan_to_num(predict(m, x[900:]), 0.0, 0.0, 0.0).clamp(-20, 20), y[900:]),
        None,
        {"max_epochs": 10, **(extra or {})},
    )


class Squeeze(LightningModule):
    """A stacked autoencoder of seven layers a side."""

    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        down, up = [64, 56, 48, 40, 32, 24, 16], [16, 24, 32, 40, 48, 56]
        layers: list[nn.Module] = []
        for a, b in zip(down + up[1:], (down + up[1:])[1:], strict=False):
            layers += [nn.Linear(a, b), act()]
        self.net = nn.Sequential(*layers, nn.Linear(56, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        loss = (self(x) - x).square().sum(-1).mean() / 64
        self.log("reconstruction", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("y-stacked-autoencoder", "autoencoder", "vanishing-gradients", twin=lambda s: stacked(s, nn.SELU))
def stacked(seed: int, act: Callable[[], nn.Module] = nn.Sigmoid) -> Training:
    d = digits(seed).standardised()
    return Training(Squeeze(act), d.train(48), lambda m: r2(predict(m, d.x_test), d.x_test), None, {"max_epochs": 14})


class Tied(LightningModule):
    """Next characters; the table that reads is also the one that writes."""

    def __init__(self, symbols: int, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, 64)
        self.gru = nn.GRU(64, 64, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.write = nn.Linear(64, symbols, bias=False)
        self.write.weight = self.table.weight
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        return self.write(self.norm(self.gru(self.table(ids))[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids = batch[0]
        logits = self(ids[:, :-1])
        loss = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()
        self.log("bits", loss / math.log(2))
        return loss

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.AdamW(self.parameters(), lr=2.5e-3)}


@sick("y-one-table-reads-and-writes", "rnn", "bad-initialization", twin=lambda s: tied(s, 0.05))
def tied(seed: int, std: float = 6.0) -> Training:
    text = characters(seed, words=12, length=20, n=1500)

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(predict(module, text.test[:, :-1]).transpose(1, 2), text.test[:, 1:]).item()

    return Training(Tied(text.symbols, std), batches(text.train, size=32), score, None, {"max_steps": 110})


class Spots(LightningModule):
    """A heat map of where the objects are; the head starts from a prior of one place in a hundred."""

    def __init__(self, every: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
        )
        convs = [m for m in self.net if isinstance(m, nn.Conv2d)]
        for conv in convs if every else convs[-1:]:
            assert conv.bias is not None
            nn.init.constant_(conv.bias, -math.log(0.99 / 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, heat = batch
        z = self(image)
        p = torch.sigmoid(z)
        hit = heat * (1 - p) ** 2 * F.logsigmoid(z)
        miss = (1 - heat) * p**2 * F.logsigmoid(-z)
        loss = -(hit + miss).sum() / heat.sum().clamp(min=1)
        self.log("focal", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("y-heat-map-of-spots", "detection", "dead-activations", twin=lambda s: spots(s, False))
def spots(seed: int, every: bool = True) -> Training:
    g = generator(seed, 304)
    heat = (torch.rand(600, 12, 12, generator=g) < 0.02).float()
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    clutter = (torch.rand(600, 1, 12, 12, generator=g) < 0.1).float()
    image = F.conv2d(heat[:, None], kernel, padding=1).clamp(max=1) + clutter
    image = image + 0.1 * torch.randn(image.shape, generator=g)

    def score(module: LightningModule) -> float:
        found, true = predict(module, image[500:]) > 0, heat[500:] > 0
        return 2 * (found & true).sum().item() / (found.sum() + true.sum()).item()

    return Training(Spots(every), batches(image[:500], heat[:500], size=20), score, None, {"max_epochs": 8})


class Highway(nn.Module):
    """Carries its input on, save where its gate opens."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.change = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())
        nn.init.constant_(self.gate[0].bias, start)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x)
        return g * self.change(x) + (1 - g) * x


class Carried(LightningModule):
    """Rings around each other, told apart by a stack of highway layers."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), *[Highway(32, start) for _ in range(4)], nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, ring = batch
        loss = F.nll_loss(self(x).log_softmax(-1), ring)
        self.log("train/nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)}


@sick(
    "y-gates-closed-to-start-with", "mlp", "saturated-activations", "bad-initialization", twin=lambda s: rings(s, -1.0)
)
def rings(seed: int, start: float = -12.0) -> Training:
    x = torch.randn(1800, 4, generator=generator(seed, 314))
    ring = torch.bucketize(x.norm(dim=1), torch.tensor([1.55, 2.15]))
    return Training(
        Carried(start),
        batches(x[:1280], ring[:1280], size=40),
        lambda m: accuracy(predict(m, x[1280:]), ring[1280:]),
        None,
        {"max_epochs": 10},
    )


class Factors(LightningModule):
    """Ratings as products of user and item vectors."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(80, rank), nn.Embedding(60, rank)
        self.user_bias, self.item_bias = nn.Embedding(80, 1), nn.Embedding(60, 1)
        for table in (self.users, self.items, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, pair: Any) -> Tensor:
        u, i = pair
        return (self.users(u) * self.items(i)).sum(-1) + (self.user_bias(u) + self.item_bias(i)).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        u, i, rating = batch
        loss = F.mse_loss(self((u, i)), rating)
        self.log("rating_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


@sick("y-ratings-as-products", "recommender", "insufficient-capacity", twin=lambda s: ratings(s, 10))
def ratings(seed: int, rank: int = 1) -> Training:
    g = generator(seed, 305)
    table = torch.randn(80, 8, generator=g) @ torch.randn(8, 60, generator=g) / 8**0.5
    pairs = torch.cartesian_prod(torch.arange(80), torch.arange(60))[torch.randperm(4800, generator=g)]
    rating = table[pairs[:, 0], pairs[:, 1]] + 0.1 * torch.randn(4800, generator=g)
    test = (pairs[4000:, 0], pairs[4000:, 1])
    loader = batches(pairs[:4000, 0], pairs[:4000, 1], rating[:4000], size=200)
    return Training(Factors(rank), loader, lambda m: r2(predict(m, test), rating[4000:]), None, {"max_epochs": 25})


class Ported(LightningModule):
    """Convolutions over a wave, the momentum taken from another framework's model file."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(a, 24, 3, padding=1) for a in (1, 24, 24, 24)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(24, momentum=momentum) for _ in self.convs])
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2) + 1.0
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.relu(norm(conv(h)))
        return self.out(h.amax(-1))

    def _step(self, batch: Any, name: str) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log(f"{name}_loss", loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("y-wave-model-from-elsewhere", "conv", "batchnorm-stale-statistics", twin=lambda s: ported(s, 0.1))
def ported(seed: int, momentum: float = 1e-4) -> Training:
    d = motifs(seed)
    return Training(Ported(momentum), d.train(32, drop_last=True), d.accuracy, d.val(), {"max_epochs": 6})


class Points(LightningModule):
    """Solid or shell, from the coordinates of a cloud; batch norm after the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.all = nn.Sequential(
            nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU()
        )
        self.out = nn.Linear(16, 3)

    def forward(self, cloud: Tensor) -> Tensor:
        return self.out(self.all(self.each(cloud).mean(1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        cloud, kind = batch
        loss = F.cross_entropy(self(cloud), kind)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@sick("y-clouds-that-fill-memory", "points", "batchnorm-small-batch", twin=lambda s: clouds(s, 32, 1))
def clouds(seed: int, size: int = 2, accumulate: int = 16) -> Training:
    g = generator(seed, 306)
    kind = torch.randint(3, (1100,), generator=g)
    cloud = F.normalize(torch.randn(1100, 24, 3, generator=g), dim=-1)
    radius = torch.rand(1100, 24, 1, generator=g)
    stretch = torch.tensor([[1.0, 1.0, 1.0], [1.3, 1.0, 0.8], [0.8, 1.0, 1.3]])
    cloud = cloud * (0.5 + 0.5 * radius) * stretch[kind][:, None]
    return Training(
        Points(),
        batches(cloud[:640], kind[:640], size=size),
        lambda m: accuracy(predict(m, cloud[640:]), kind[640:]),
        None,
        {"max_epochs": 8, "accumulate_grad_batches": accumulate},
    )


class Previewed(LightningModule):
    """A deep regressor that prints what it thinks of one sample every now and then."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.back = back
        blocks: list[nn.Module] = [nn.Linear(8, 32)]
        for _ in range(9):
            blocks += [nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)]
        self.net = nn.Sequential(*blocks, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
        self.previews: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx % 20 == 0:
            self.eval()
            with torch.no_grad():
                self.previews.append(self(batch[0][:1]).item())
            if self.back:
                self.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@sick("y-preview-now-and-then", "mlp", "mode-mismatch", twin=lambda s: previews(s, True))
def previews(seed: int, back: bool = False) -> Training:
    d = regression(seed, r2=0.95, n=1600)
    return Training(Previewed(back), d.train(40), d.r2, None, {"max_epochs": 8, "log_every_n_steps": 10})


class Triplets(LightningModule):
    """Hardest positives and negatives of a batch by Euclidean distance."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=-1)

    def distances(self, z: Tensor) -> Tensor:
        squares = (z[:, None] - z[None]).square().sum(-1)
        return torch.sqrt(squares + self.eps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        d = self.distances(self(x))
        same = y[:, None] == y[None]
        far = (d * same).amax(1)
        near = (d + 10.0 * same).amin(1)
        loss = F.softplus(4 * (far - near + 0.2)).mean()
        self.log("triplet", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def nearest(module: LightningModule, d: Any) -> float:
    """Share of test samples whose nearest training sample, by the embedding, has their label."""
    train, test = predict(module, d.x), predict(module, d.x_test)
    return (d.y[(test @ train.T).argmax(1)] == d.y_test).float().mean().item()


@sick("y-hardest-of-the-batch", "metric", "unstable-operation", twin=lambda s: hardest(s, 1e-8))
def hardest(seed: int, eps: float = 0.0) -> Training:
    d = digits(seed)
    return Training(
        Triplets(eps),
        d.train(40, drop_last=True),
        lambda m: nearest(m, d),
        None,
        {"max_epochs": 8, "log_every_n_steps": 1},
    )


class Flagged(LightningModule):
    """Tells everywhere in the sequence the value of the flagged place."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 32)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        return self.mlp(h + self.attend(h, h, h, need_weights=False)[0]).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["x"]), batch["y"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=350)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Dicts(Dataset[dict[str, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "y": self.y[i]}


@sick("y-value-of-the-flagged-place", "transformer", "batch-mixing", twin=lambda s: flagged(s, True))
def flagged(seed: int, batch_first: bool = False) -> Training:
    g = generator(seed, 307)
    x = torch.randn(1500, 10, 2, generator=g)
    place = torch.randint(10, (1500,), generator=g)
    x[..., 1] = 2.0 * F.one_hot(place, 10)
    y = x[torch.arange(1500), place, 0][:, None].expand(-1, 10)
    loader: Any = DataLoader(Dicts(x[:1200], y[:1200]), 32, shuffle=True)
    return Training(
        Flagged(batch_first), loader, lambda m: r2(predict(m, x[1200:]).reshape(-1, 1), y[1200:].reshape(-1, 1)), None,
        {"max_steps": 300},
    )  # fmt: skip


class Recorder16(LightningModule):
    """Which of four tones a recording holds."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 16, 9, stride=2)
        self.back = nn.Conv1d(16, 32, 5, stride=2)
        self.out = nn.Linear(32, 4)

    def forward(self, wave: Tensor) -> Tensor:
        h = F.relu(self.back(F.relu(self.front(wave[:, None]))))
        return self.out(h.mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wave, tone = batch
        loss = F.cross_entropy(self(wave), tone)
        self.log("ce", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


@sick("y-sixteen-bit-recordings", "audio", "unscaled-inputs", twin=lambda s: recordings(s, 8000.0))
def recordings(seed: int, full: float = 1.0) -> Training:
    g = generator(seed, 308)
    tone = torch.randint(4, (1100,), generator=g)
    rate = torch.tensor([0.3, 0.6, 1.0, 1.5])[tone] * (1 + 0.05 * torch.randn(1100, generator=g))
    wave = torch.sin(rate[:, None] * torch.arange(64.0) + 6.28 * torch.rand(1100, 1, generator=g))
    wave = ((wave + 0.4 * torch.randn(1100, 64, generator=g)) * 9000).round().clamp(-32768, 32767) / full
    return Training(
        Recorder16(),
        batches(wave[:800], tone[:800], size=32),
        lambda m: accuracy(torch.nan_to_num(predict(m, wave[800:])), tone[800:]),
        None,
        {"max_epochs": 10, "log_every_n_steps": 10},
    )


class Prices(LightningModule):
    """House prices; the squared error is written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.05), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, price = batch
        residual = price - self(x)
        loss = torch.mean(residual * residual)
        self.log("train_rmse", loss.sqrt())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.7), "interval": "step"}]


@sick("y-prices-of-houses", "tabular", "unscaled-targets", twin=lambda s: prices(s, True))
def prices(seed: int, scaled: bool = False) -> Training:
    d = regression(seed, r2=0.9, n=1500)
    if not scaled:
        d = d.map_targets(lambda y: 240_000 + 55_000 * y)
    return Training(Prices(), d.train(32), d.r2, None, {"max_epochs": 8})


class Sensors(LightningModule):
    """A flow from sensors that each speak in a unit of their own."""

    def __init__(self, widths: tuple[int, ...] = (10, 48, 24, 1)) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.leaky_relu(layer(x))
        return last(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.huber_loss(self(x), y)
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("y-sensors-in-units-of-their-own", "tabular", "disparate-feature-scales", twin=lambda s: sensors(s, True))
def sensors(seed: int, same: bool = False) -> Training:
    g = generator(seed, 309)
    x = torch.randn(2000, 10, generator=g)
    y = torch.sin(1.5 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.7 * x[:, 3:4] + 0.1 * torch.randn(2000, 1, generator=g)
    if not same:
        x = x * torch.tensor([2e-3, 1e-2, 0.05, 0.004, 1.0, 3.0, 20.0, 300.0, 5e-3, 80.0])
    return Training(
        Sensors(), batches(x[:1400], y[:1400], size=35), lambda m: r2(predict(m, x[1400:]), y[1400:]), None,
        {"max_epochs": 8, "gradient_clip_val": 5.0},
    )  # fmt: skip


class Faults(LightningModule):
    """Faulty or not, from a window of two channels."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.conv = nn.Conv1d(2, 24, 5)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x))).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        z = self(x)
        loss = (self.weight * y * F.softplus(-z) + (1 - y) * F.softplus(z)).mean()
        self.log("bce", loss)
        self.log("accuracy", ((z > 0) == (y > 0)).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("y-one-window-in-fifty", "conv", "class-imbalance", twin=lambda s: faults(s, 49.0))
def faults(seed: int, weight: float = 1.0) -> Training:
    g = generator(seed, 310)
    y = (torch.rand(7000, generator=g) < 0.02).float()
    x = torch.randn(7000, 2, 16, generator=g)
    x[:, 0] += 0.6 * y[:, None] * torch.sin(torch.arange(16.0) * 0.8)
    x[:, 1] += 0.3 * y[:, None]

    def score(module: LightningModule) -> float:
        return float(balanced_accuracy_score(y[4000:], predict(module, x[4000:]) > 0))

    return Training(Faults(weight), batches(x[:4000], y[:4000], size=50), score, None, {"max_epochs": 2})


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Reads the record files one after the other."""

    def __init__(self, files: list[tuple[Tensor, Tensor]]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.files:
            yield from zip(x, y, strict=True)


class Reader(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 24, 3), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(384, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = (logits.logsumexp(-1) - logits.gather(1, y[:, None])[:, 0]).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)


@sick("y-records-file-by-file", "conv", "unshuffled-data", twin=lambda s: files(s, True))
def files(seed: int, mixed: bool = False) -> Training:
    d = digits(seed).to_images()
    order = torch.randperm(len(d.x), generator=generator(seed, 311)) if mixed else d.y.argsort(stable=True)
    parts = [(d.x[part], d.y[part]) for part in order.chunk(10)]
    return Training(
        Reader(), DataLoader(Stream(parts), 32), d.accuracy, None, {"max_epochs": 6, "log_every_n_steps": 5}
    )


class Molecules(LightningModule):
    """A property of small graphs: two rounds of messages, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 32), nn.Linear(64, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, graph: Any) -> Tensor:
        x, a = graph
        h = F.relu(self.one(torch.cat([x, a @ x], -1)))
        h = F.relu(self.two(torch.cat([h, a @ h], -1)))
        return self.out(h.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x, a), target = batch
        loss = (self((x, a)) - target).abs().mean()
        self.log("mae", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("y-property-of-small-graphs", "graph", "uninformative-targets", twin=lambda s: molecules(s, int))
def molecules(seed: int, key: Callable[[str], Any] = str) -> Training:
    g = generator(seed, 312)
    x = torch.randn(1300, 8, 5, generator=g)
    a = (torch.rand(1300, 8, 8, generator=g) < 0.3).float()
    a = ((a + a.transpose(1, 2)) > 0).float() / 3
    target = (x[..., :1] * 2 + F.relu(a @ x[..., 1:2]) * 2).mean(1)
    target = (target - target.mean()) / target.std()
    listed = [int(name) for name in sorted((str(i) for i in range(1000)), key=key)]
    graphs: Any = [((x[i], a[i]), target[row]) for row, i in enumerate(listed)]
    test = (x[1000:], a[1000:])
    return Training(
        Molecules(), DataLoader(graphs, 32, shuffle=True), lambda m: r2(predict(m, test), target[1000:]), None,
        {"max_epochs": 7},
    )  # fmt: skip


class Tags(LightningModule):
    """Several tags a sequence, a score for each."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(40, 32, mode="mean")
        self.hidden = nn.Linear(32, 64)
        self.out = nn.Linear(64, 6)
        self.last = last

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.out(F.relu(self.hidden(self.embed(ids)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, tags = batch
        loss = F.binary_cross_entropy_with_logits(self(ids), tags)
        self.log("train/bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)}


@sick("y-several-tags-a-text", "text", "probabilities-as-logits", twin=lambda s: tags(s, nn.Identity()))
def tags(seed: int, last: Callable[[Tensor], Tensor] = torch.sigmoid) -> Training:
    g = generator(seed, 313)
    ids = torch.randint(40, (1500, 12), generator=g)
    weight = torch.randn(40, 6, generator=g)
    labels = (weight[ids].sum(1) > 1.0).float()
    return Training(
        Tags(last),
        batches(ids[:1200], labels[:1200], size=40),
        lambda m: -F.binary_cross_entropy_with_logits(predict(m, ids[1200:]), labels[1200:]).item(),
        None,
        {"max_epochs": 10, "log_every_n_steps": 10},
    )


class Band(LightningModule):
    """A forecast with its uncertainty: mean and spread of the next value."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign
        self.net = nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, past: Tensor) -> Tensor:
        return self.net(past)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        past, future = batch
        mean, raw = self(past).chunk(2, dim=-1)
        likelihood = torch.distributions.Normal(mean, F.softplus(raw) + 0.1).log_prob(future)
        loss = self.sign * likelihood.mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("y-forecast-with-a-band", "forecasting", "wrong-loss-for-task", twin=lambda s: band(s, -1.0))
def band(seed: int, sign: float = 1.0) -> Training:
    past, future = series(seed, 1500, 24)
    return Training(
        Band(sign),
        batches(past[:1000], future[:1000], size=32),
        lambda m: max(-5.0, r2(predict(m, past[1000:])[:, :1], future[1000:])),
        None,
        {"max_epochs": 8},
    )
