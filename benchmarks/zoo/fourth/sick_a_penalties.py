"""How strongly a fit is held back, how long it lasts, and on how little it feeds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.datasets import make_classification, make_regression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.fourth._a_common import (
    beats,
    bodies,
    bowl,
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

# --- held back ----------------------------------------------------------------------------------------------------


class Waves(LightningModule):
    """A small ConvNet for waves; whole channels are dropped, as in the segmentation code it came from."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 7, padding=3)
        self.drop1 = nn.Dropout1d(drop)
        self.deep = nn.Conv1d(16, 24, 5, stride=2, padding=2)
        self.drop2 = nn.Dropout1d(drop)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(F.relu(self.stem(x)))
        x = self.drop2(F.relu(self.deep(x)))
        return self.out(x.amax(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["wave"]), batch["label"])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch["wave"]), batch["label"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@sick("w-beats-whole-channels", "cnn", "excess-regularization", twin=lambda s: beats_channels(s, 0.05))
def beats_channels(seed: int, drop: float = 0.92) -> Training:
    d = beats(seed)
    val = records(250, False, wave=d.x_test, label=d.y_test)
    return Training(
        Waves(drop),
        records(45, wave=d.x, label=d.y),
        minus(F.cross_entropy, d.x_test, d.y_test),
        val,
        {"max_epochs": 14},
    )


class Hills(LightningModule):
    """A surface over a cube. The gradient of a penalty on the weights' sizes is added before the step."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.layers = nn.ModuleDict({"in": nn.Linear(4, 64), "mid": nn.Linear(64, 64), "out": nn.Linear(64, 1)})

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.layers["in"](x))
        return self.layers["out"](F.gelu(self.layers["mid"](h)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for name, p in self.named_parameters():
            if name.endswith("weight"):
                p.grad.add_(p.detach().sign(), alpha=self.strength)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.parameters(), lr=4e-3)]


@sick("w-bowl-sparse-weights", "mlp", "excess-regularization", twin=lambda s: bowl_sparse(s, 1e-6))
def bowl_sparse(seed: int, strength: float = 0.05) -> Training:
    d = bowl(seed)
    return Training(
        Hills(strength), loader(d.x, d.y, size=45), explained(d.x_test, d.y_test), trainer={"max_epochs": 15}
    )


class Groups(LightningModule):
    """Words tied at both ends; matrices are decayed and vectors are not."""

    def __init__(self, settings: tuple[float, float]) -> None:
        super().__init__()
        self.rate, self.decay = settings
        self.embedding = nn.Embedding(16, 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.project = nn.Linear(48, 24)

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(self.project(self.lstm(self.embedding(rows))[0]), self.embedding.weight)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (rows,) = batch
        return F.cross_entropy(self(rows[:, :-1]).transpose(1, 2), rows[:, 1:])

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim == 1]
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.decay}, {"params": vectors, "weight_decay": 0.0}], lr=self.rate
        )


@sick("w-verses-decay-of-matrices", "lstm", "excess-regularization", twin=lambda s: verses_decay(s, 0.01))
def verses_decay(seed: int, decay: float = 12.0) -> Training:
    train, test, _ = verses(seed, 1400)

    def score(module: LightningModule) -> float:
        return -F.cross_entropy(data.predict(module, test[:, :-1]).transpose(1, 2), test[:, 1:]).item()

    return Training(Groups((8e-3, decay)), loader(train, size=35), score, trainer={"max_epochs": 8})


class Striped(LightningModule):
    """Stripes, RMSprop with its decay."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ELU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ELU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        logits = self(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits.detach()}

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3, weight_decay=self.decay)


@sick("w-gratings-rmsprop-decay", "cnn", "excess-regularization", twin=lambda s: gratings_decay(s, 1e-5))
def gratings_decay(seed: int, decay: float = 1.0) -> Training:
    d = gratings(seed)
    return Training(Striped(decay), loader(d.x, d.y, size=32), hits(d.x_test, d.y_test), trainer={"max_epochs": 10})


# --- by heart -----------------------------------------------------------------------------------------------------


class Genes(LightningModule):
    """Few patients, many measurements."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(200, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss/train", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss/val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("w-genes-hundred-epochs", "mlp", "overfitting", "too-little-data", twin=lambda s: genes(s, True))
def genes(seed: int, patience: bool = False) -> Training:
    x, y = make_classification(
        700, 200, n_informative=6, n_redundant=0, n_clusters_per_class=1, flip_y=0.4, class_sep=2.0, random_state=seed
    )
    d = data.split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), seed, 0.2)
    stop = [EarlyStopping("loss/val", patience=2)] if patience else []
    score = minus(F.cross_entropy, d.x_test, d.y_test)
    return Training(Genes(), d.train(20), score, d.val(), {"max_epochs": 100, "callbacks": stop})


class Sensors(LightningDataModule):
    """Ninety readings of forty sensors, and many more to check by."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        x, y = make_regression(590, 40, n_informative=8, noise=150.0, random_state=seed)
        x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]
        y = (y - y[:90].mean()) / y[:90].std()
        self.train, self.test = TensorDataset(x[:90], y[:90]), TensorDataset(x[90:], y[90:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=15, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.test, batch_size=250)


class Calibrate(LightningModule):
    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(40, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=self.hparams.decay)


@sick("w-sensors-wide-tanh", "mlp", "overfitting", "too-little-data", twin=lambda s: sensors(s, 30.0))
def sensors(seed: int, decay: float = 0.0) -> Training:
    readings = Sensors(seed)
    x, y = readings.test.tensors
    return Training(Calibrate(128, decay), readings, explained(x, y), trainer={"max_epochs": 60})


class Verse(LightningModule):
    """The next symbol from the three before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 32)
        self.hidden = nn.Linear(3 * 32, 256)
        self.out = nn.Linear(256, 16)

    def forward(self, rows: Tensor) -> Tensor:
        e = self.embed(rows).unfold(1, 3, 1).flatten(2)
        return self.out(F.relu(self.hidden(e)))

    def loss(self, rows: Tensor) -> Tensor:
        return F.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 3:].flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch[0])
        self.log("train_nll", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_nll", self.loss(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@sick("w-verses-sixty-rows", "mlp", "overfitting", "too-little-data", twin=lambda s: verses_rows(s, 1600, 1))
def verses_rows(seed: int, rows: int = 60, epochs: int = 30) -> Training:
    train, test, _ = verses(seed, 1600)

    def score(module: Any) -> float:
        module.eval()
        with torch.no_grad():
            return -module.loss(test).item()

    batches = loader(train[:rows], size=6)
    return Training(Verse(), batches, score, loader(test, size=300, shuffle=False), {"max_epochs": epochs})


# --- not long enough ----------------------------------------------------------------------------------------------


class Bodies(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.points(x)
        return self.head(torch.cat([h.amax(1), h.mean(1)], -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@sick("w-bodies-a-tenth-of-the-batches", "pointnet", "training-too-short", twin=lambda s: bodies_share(s, 1.0))
def bodies_share(seed: int, share: float = 0.1) -> Training:
    d = bodies(seed)
    options = {"max_epochs": 18, "limit_train_batches": share, "log_every_n_steps": 1}
    return Training(Bodies(), loader(d.x, d.y, size=23), hits(d.x_test, d.y_test), trainer=options)


class Bonds(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.node = nn.Embedding(3, 16)
        self.edge = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        kind, adjacency = graph
        h = self.node(kind)
        n = h.shape[1]
        pair = torch.cat([h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1)], -1)
        return (self.edge(pair)[..., 0] * adjacency).sum((1, 2))[:, None] - 4.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[:2]), batch[2])
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@sick("w-molecules-max-steps-45", "graph", "training-too-short", twin=lambda s: molecules_steps(s, 700))
def molecules_steps(seed: int, steps: int = 45) -> Training:
    kind, adjacency, y = molecules(seed, 1000)
    batches = loader(kind[:700], adjacency[:700], y[:700], size=20)
    options = {"max_steps": steps, "max_epochs": -1}
    return Training(Bonds(), batches, explained((kind[700:], adjacency[700:]), y[700:]), trainer=options)


class Recall(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 16)
        self.rnn = nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[1][0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@sick("w-switches-two-epochs", "gru", "training-too-short", twin=lambda s: switches_epochs(s, 10))
def switches_epochs(seed: int, epochs: int = 2) -> Training:
    d = switches(seed)
    options = {"max_epochs": epochs, "accumulate_grad_batches": 2}
    return Training(Recall(), loader(d.x, d.y, size=16), minus(F.cross_entropy, d.x_test, d.y_test), trainer=options)
