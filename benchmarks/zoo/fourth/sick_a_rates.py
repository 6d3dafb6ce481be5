"""Rates of learning: from configs, rules of thumb, warm-ups and schedulers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    arrivals,
    attractor,
    beats,
    bodies,
    explained,
    gratings,
    hits,
    loader,
    minus,
    molecules,
    records,
    switches,
    verses,
)

# --- a rule of thumb for large batches ----------------------------------------------------------------------------


class Rhythm(LightningModule):
    def __init__(self, batch_size: int, base_batch: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1 = nn.Conv1d(1, 16, 7, padding=3)
        self.conv2 = nn.Conv1d(16, 24, 7, stride=2, padding=3)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x))
        return self.fc(x.amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        signal, rhythm = batch
        loss = F.cross_entropy(self(signal), rhythm)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        signal, rhythm = batch
        self.log("val/acc", (self(signal).argmax(1) == rhythm).float().mean())

    def configure_optimizers(self) -> Any:
        # linear scaling rule
        lr = 0.1 * self.hparams.batch_size / self.hparams.base_batch
        return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9)


@sick("w-beats-linear-scaling", "cnn", "learning-rate-too-high", twin=lambda s: beats_scaling(s, 256))
def beats_scaling(seed: int, base_batch: int = 1) -> Training:
    d = beats(seed)
    return Training(
        Rhythm(48, base_batch),
        loader(d.x, d.y, size=48),
        hits(d.x_test, d.y_test),
        d.val(),
        {"max_epochs": 14, "log_every_n_steps": 5},
    )


# --- one rate for each part ---------------------------------------------------------------------------------------


class PointNet(LightningModule):
    """Points, a shared net, the largest over the points, a head; the head may learn faster."""

    def __init__(self, head_factor: float) -> None:
        super().__init__()
        self.head_factor = head_factor
        self.local = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.local(points).max(dim=1).values)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        logits = self(batch["points"])
        loss = F.cross_entropy(logits, batch["body"])
        return {"loss": loss, "accuracy": (logits.argmax(-1) == batch["body"]).float().mean()}

    def configure_optimizers(self) -> Any:
        lr = 2e-3
        groups = [
            {"params": self.local.parameters(), "lr": lr},
            {"params": self.head.parameters(), "lr": lr * self.head_factor},
        ]
        return torch.optim.Adam(groups)


@sick("w-bodies-head-a-thousandfold", "pointnet", "learning-rate-too-high", twin=lambda s: bodies_head(s, 1.0))
def bodies_head(seed: int, factor: float = 1000.0) -> Training:
    d = bodies(seed)
    batches = records(35, points=d.x, body=d.y)
    return Training(PointNet(factor), batches, hits(d.x_test, d.y_test), trainer={"max_epochs": 15})


# --- a transformer with the rate of a small net --------------------------------------------------------------------


class LastSwitch(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.tokens = nn.Embedding(5, 32)
        self.places = nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.out(self.encoder(h)[:, -1])

    def training_step(self, batch: Any, _: int) -> Tensor:
        ids, label = batch
        logits = self(ids)
        loss = nn.CrossEntropyLoss()(logits, label)
        self.log("loss", loss, prog_bar=True)
        self.log("acc", (logits.argmax(1) == label).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr, betas=(0.9, 0.98))


@sick("w-switches-adam-0.05", "transformer", "learning-rate-too-high", twin=lambda s: switches_adam(s, 1e-3))
def switches_adam(seed: int, lr: float = 0.05) -> Training:
    d = switches(seed)
    return Training(
        LastSwitch(lr),
        loader(d.x, d.y, size=45),
        hits(d.x_test, d.y_test),
        trainer={"max_epochs": 12, "gradient_clip_val": 1.0},
    )


# --- too low ------------------------------------------------------------------------------------------------------


class BondCount(LightningModule):
    """Messages along the bonds, then a sum over the atoms. The rate comes from a config."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(3, 24)
        self.message = nn.ModuleList(nn.Linear(48, 24) for _ in range(2))
        self.readout = nn.Sequential(nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1))

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        kind, adjacency = graph
        h = self.embed(kind)
        for layer in self.message:
            h = h + F.silu(layer(torch.cat([h, adjacency @ h], -1)))
        return self.readout(h).sum(1) / 3

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        kind, adjacency, target = batch
        loss = F.l1_loss(self((kind, adjacency)), target)
        self.log("mae", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        lr = float(self.config["lr"])
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=float(self.config["wd"]))


@sick("w-molecules-rate-from-yaml", "graph", "learning-rate-too-low", twin=lambda s: molecules_yaml(s, "3e-3"))
def molecules_yaml(seed: int, lr: str = "3e-7") -> Training:
    kind, adjacency, y = molecules(seed, 1000)
    module = BondCount({"lr": lr, "wd": "1e-4"})
    batches = loader(kind[:700], adjacency[:700], y[:700], size=28)
    return Training(module, batches, explained((kind[700:], adjacency[700:]), y[700:]), trainer={"max_epochs": 12})


class Chain(LightningModule):
    """The next symbol from the ones before, by a GRU, with the warm-up of a large model."""

    def __init__(self, warmup_steps: int) -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        self.embedding = nn.Embedding(16, 24)
        self.gru = nn.GRU(24, 64, batch_first=True)
        self.decoder = nn.Linear(64, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.gru(self.embedding(ids))[0])

    def step(self, rows: Tensor) -> Tensor:
        return F.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch[0])
        self.log("train_ppl", loss.exp())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        warmup = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps))
        return [optimizer], [{"scheduler": warmup, "interval": "step", "frequency": 1}]


@sick("w-verses-warm-up-of-a-large-model", "gru", "learning-rate-too-low", twin=lambda s: verses_warmup(s, 40))
def verses_warmup(seed: int, steps: int = 200_000) -> Training:
    train, test, _ = verses(seed, 1500)

    def score(module: Any) -> float:
        with torch.no_grad():
            return -module.step(test).item()

    val = loader(test, size=300, shuffle=False)
    return Training(Chain(steps), loader(train, size=35), score, val, {"max_epochs": 8, "val_check_interval": 0.5})


class Counter(LightningModule):
    """Counts from measurements; plain descent with the number that served Adam well."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.a, self.b, self.c = nn.Linear(6, 40), nn.Linear(40, 40), nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.poisson_nll_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@sick("w-arrivals-from-adam-to-sgd", "mlp", "learning-rate-too-low", twin=lambda s: arrivals_sgd(s, 0.1))
def arrivals_sgd(seed: int, lr: float = 1e-4) -> Training:
    d = arrivals(seed)
    score = minus(F.poisson_nll_loss, d.x_test, d.y_test)
    return Training(Counter(lr), loader(d.x, d.y, size=40), score, trainer={"max_epochs": 16})


# --- gone early ---------------------------------------------------------------------------------------------------


class Stripes(LightningModule):
    """Optimised by hand; the scheduler is stepped where the author remembered to."""

    def __init__(self, each_batch: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.each_batch = each_batch
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()
        )
        self.classify = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = F.cross_entropy(self(x), y, label_smoothing=0.05)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.each_batch:
            self.lr_schedulers().step()
        self.log("loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.each_batch:
            self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [StepLR(optimizer, step_size=5, gamma=0.2)]


@sick("w-gratings-step-by-hand", "cnn", "learning-rate-decayed-early", twin=lambda s: gratings_steps(s, False))
def gratings_steps(seed: int, each_batch: bool = True) -> Training:
    d = gratings(seed, noise=0.8)
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Stripes(each_batch), loader(d.x, d.y, size=32), score, trainer={"max_epochs": 10})


class Lorenz(LightningDataModule):
    def __init__(self, path: Tensor, ahead: int = 3) -> None:
        super().__init__()
        self.x, self.y = path[:-ahead], path[ahead:]

    def train_dataloader(self) -> Any:
        return loader(self.x[:900], self.y[:900], size=30)

    def val_dataloader(self) -> Any:
        return loader(self.x[900:], self.y[900:], size=100, shuffle=False)


class Forecast(LightningModule):
    def __init__(self, mode: Any) -> None:
        super().__init__()
        self.mode = mode
        self.net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, state: Tensor) -> Tensor:
        return state + self.net(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        scheduler = ReduceLROnPlateau(optimizer, mode=self.mode, factor=0.1, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_mse"}}


@sick("w-attractor-watches-for-a-maximum", "mlp", "learning-rate-decayed-early", twin=lambda s: lorenz_max(s, "min"))
def lorenz_max(seed: int, mode: str = "max") -> Training:
    path = attractor(seed)
    x, y = path[900:-3], path[903:]

    def score(module: LightningModule) -> float:
        error = (data.predict(module, x) - y).square().mean() / (x - y).square().mean()
        return -error.log10().item()

    return Training(Forecast(mode), Lorenz(path), score, trainer={"max_epochs": 18, "num_sanity_val_steps": 0})


class OwnDecay(LightningModule):
    """Ink strokes; the rate is lowered in the author's own hook."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(48), nn.GELU(), nn.LazyLinear(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self(batch[0]).log_softmax(-1).gather(1, batch[1][:, None]).mean()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] *= self.keep

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.8)


@sick("w-digits-own-decay-hook", "mlp", "learning-rate-decayed-early", twin=lambda s: digits_less(s, 0.998))
def digits_less(seed: int, keep: float = 0.9) -> Training:
    d = data.digits(seed)
    module = OwnDecay(keep)
    module(d.x[:2])
    return Training(module, d.train(48), hits(d.x_test, d.y_test), trainer={"max_epochs": 12})
