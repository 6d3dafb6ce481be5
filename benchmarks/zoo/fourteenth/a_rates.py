"""Step sizes gone wrong: rates, warm-ups, schedules and clips."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, digits, generator, predict, r2
from benchmarks.zoo.fourteenth.a_common import batches, discs, glyphs, iou, reviews, tones, waves

# --- segmentation from a configuration file -------------------------------------------------------------------------


class DiscSegmenter(LightningModule):
    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        width = cfg["width"]
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 1, 1),
        )
        self.cfg = cfg

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, mask = batch
        loss = F.binary_cross_entropy_with_logits(self(image), mask)
        self.log("train/bce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, mask = batch
        self.log("val/bce", F.binary_cross_entropy_with_logits(self(image), mask), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), **self.cfg["optim"])


def segment(seed: int, rate: float) -> Training:
    cut = discs(seed)
    cfg = {"width": 10, "optim": {"lr": rate, "betas": (0.9, 0.999)}}
    return Training(
        DiscSegmenter(cfg),
        cut.train(16),
        lambda m: iou(predict(m, cut.x_test), cut.y_test),
        cut.val(64),
        {"max_epochs": 10},
    )


@sick("na-segment-config-rate", "segmentation", "learning-rate-too-high", twin=lambda s: segment(s, 3e-3))
def segment_hot(seed: int) -> Training:
    return segment(seed, 1.0)


# --- digits, rate scaled with the batch -----------------------------------------------------------------------------


class DigitNet(LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.l1 = nn.Linear(64, 48)
        self.l2 = nn.Linear(48, 48)
        self.l3 = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.l1(x))
        x = torch.relu(self.l2(x))
        return self.l3(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        loss = nn.CrossEntropyLoss()(logits, y)
        return {"loss": loss, "hits": (logits.argmax(1) == y).sum()}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def scaled(seed: int, reference: int) -> Training:
    cut = digits(seed)
    size = 128
    return Training(DigitNet(0.1 * size / reference), cut.train(size), cut.accuracy, None, {"max_epochs": 20})


@sick("na-digits-linear-scaling", "images", "learning-rate-too-high", twin=lambda s: scaled(s, 128))
def digits_scaled(seed: int) -> Training:
    return scaled(seed, 4)


# --- tones, warm-up counted in the wrong unit -----------------------------------------------------------------------


class ToneModule(LightningModule):
    def __init__(self, warmup: int, lr: float = 3e-3) -> None:
        super().__init__()
        self.warmup, self.lr = warmup, lr
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=2), nn.GELU(), nn.Conv1d(16, 24, 7, stride=2), nn.GELU(), nn.AdaptiveMaxPool1d(1)
        )
        self.classifier = nn.Linear(24, 4)

    def forward(self, wav: Tensor) -> Tensor:
        return self.classifier(self.features(wav).flatten(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["wav"]), batch["label"])
        self.log("loss", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Recordings(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"wav": self.x[i], "label": self.y[i]}


def warmup(seed: int, steps: int) -> Training:
    cut = tones(seed)
    loader = DataLoader(Recordings(cut.x, cut.y), 32, shuffle=True)
    return Training(ToneModule(steps), loader, cut.accuracy, None, {"max_epochs": 12})


@sick("na-tones-warmup-in-samples", "audio", "learning-rate-too-low", twin=lambda s: warmup(s, 20))
def tones_warmup(seed: int) -> Training:
    return warmup(seed, 20 * 640)


# --- a small transformer with a recipe for a pretrained one ---------------------------------------------------------


class ReviewData(LightningDataModule):
    def __init__(self, cut: Split) -> None:
        super().__init__()
        self.cut = cut

    def train_dataloader(self) -> Any:
        return self.cut.train(32)

    def val_dataloader(self) -> Any:
        return self.cut.val(200)


class ReviewTransformer(LightningModule):
    def __init__(self, lr: float, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(120, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.block(self.embed(ids)).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, y = batch
        out = self(ids)
        self.log_dict({"val_loss": F.cross_entropy(out, y), "val_acc": (out.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)


def fine_tuning(seed: int, rate: float) -> Training:
    cut = reviews(seed, n=2400)
    data = ReviewData(cut)
    return Training(
        ReviewTransformer(rate), data.train_dataloader(), cut.accuracy, data.val_dataloader(), {"max_epochs": 3}
    )


@sick("na-reviews-pretrained-recipe", "text", "learning-rate-too-low", twin=lambda s: fine_tuning(s, 3e-3))
def reviews_recipe(seed: int) -> Training:
    return fine_tuning(seed, 2e-5)


# --- forecasting, decay stepped at the wrong interval ---------------------------------------------------------------


class Forecaster(LightningModule):
    def __init__(self, interval: str) -> None:
        super().__init__()
        self.interval = interval
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, window: Tensor) -> Tensor:
        _, state = self.rnn(window)
        return self.head(state[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        window, target = batch
        return F.mse_loss(self(window), target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        window, target = batch
        self.log("val_mse", F.mse_loss(self(window), target))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        decay = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return [optimizer], [{"scheduler": decay, "interval": self.interval}]


def forecast(seed: int, interval: str) -> Training:
    cut = waves(seed)
    return Training(Forecaster(interval), cut.train(32), cut.r2, cut.val(), {"max_epochs": 10})


@sick("na-forecast-decay-per-step", "time-series", "learning-rate-decayed-early", twin=lambda s: forecast(s, "epoch"))
def forecast_decay(seed: int) -> Training:
    return forecast(seed, "step")


# --- autoencoder, manual optimisation, polynomial decay -------------------------------------------------------------


class Compressor(LightningModule):
    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.horizon = horizon
        self.enc = nn.Sequential(nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 12))
        self.dec = nn.Sequential(nn.Linear(12, 48), nn.ELU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        opt, sch = self.optimizers(), self.lr_schedulers()
        loss = ((self(x) - x) ** 2).mean()
        opt.zero_grad()
        self.manual_backward(loss)
        opt.step()
        sch.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        opt = torch.optim.RMSprop(self.parameters(), lr=2e-3)
        return [opt], [lr_scheduler.PolynomialLR(opt, total_iters=self.horizon, power=1.0)]


def compress(seed: int, epochs: int, horizon: int) -> Training:
    cut = digits(seed)
    return Training(
        Compressor(horizon),
        batches(cut.x, size=64, drop_last=True),
        lambda m: r2(predict(m, cut.x_test), cut.x_test),
        None,
        {"max_epochs": epochs},
    )


@sick(
    "na-autoencoder-horizon-in-epochs",
    "autoencoder",
    "learning-rate-decayed-early",
    twin=lambda s: compress(s, 18, 18 * 21),
)
def compress_short(seed: int) -> Training:
    return compress(seed, 18, 18)


# --- two tasks at once, a plateau scheduler that looks the wrong way ------------------------------------------------


class TwoHeads(LightningModule):
    def __init__(self, direction: str) -> None:
        super().__init__()
        self.direction = direction
        self.trunk = nn.Sequential(nn.Linear(10, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.kind = nn.Linear(48, 2)
        self.size = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.kind(h), self.size(h).squeeze(1)

    def both(self, batch: dict[str, Any]) -> Tensor:
        kind, size = self(batch["x"])
        return F.cross_entropy(kind, batch["y"]["kind"]) + F.smooth_l1_loss(size, batch["y"]["size"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.both(batch)
        self.log("train_total", loss, batch_size=len(batch["x"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val_total", self.both(batch), batch_size=len(batch["x"]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=4e-3)
        plateau = lr_scheduler.ReduceLROnPlateau(opt, mode=self.direction, factor=0.2, patience=1, cooldown=0)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": plateau, "monitor": "val_total"}}


class Records(Dataset[Any]):
    def __init__(self, x: Tensor, kind: Tensor, size: Tensor) -> None:
        self.x, self.kind, self.size = x, kind, size

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "y": {"kind": self.kind[i], "size": self.size[i]}}


def two_heads(seed: int, direction: str) -> Training:
    g = generator(seed, 31)
    x = torch.randn(1600, 10, generator=g)
    kind = ((x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3]) > 0).long()
    size = torch.sin(2 * x[:, 4]) + 0.7 * x[:, 5] * x[:, 6]
    size = size / size.std()
    train = DataLoader(Records(x[:1000], kind[:1000], size[:1000]), 25, shuffle=True)
    val = DataLoader(Records(x[1000:], kind[1000:], size[1000:]), 300)

    def score(module: LightningModule) -> float:
        logits, value = predict(module, x[1000:])
        hit = (logits.argmax(1) == kind[1000:]).float().mean().item()
        return 0.5 * hit + 0.5 * r2(value, size[1000:])

    return Training(TwoHeads(direction), train, score, val, {"max_epochs": 16})


@sick("na-two-heads-plateau-mode", "multi-task", "learning-rate-decayed-early", twin=lambda s: two_heads(s, "min"))
def two_heads_mode(seed: int) -> Training:
    return two_heads(seed, "max")


# --- clips ----------------------------------------------------------------------------------------------------------


class GlyphConv(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()
        )
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("glyph_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def clipped_glyphs(seed: int, limit: float) -> Training:
    cut = glyphs(seed)
    settings = {"max_epochs": 10, "gradient_clip_val": limit, "gradient_clip_algorithm": "norm"}
    return Training(GlyphConv(), cut.train(32), cut.accuracy, None, settings)


@sick("na-glyphs-clip-thousandth", "images", "clipping-too-tight", twin=lambda s: clipped_glyphs(s, 5.0))
def glyphs_clip(seed: int) -> Training:
    return clipped_glyphs(seed, 1e-3)


class PairRanker(LightningModule):
    def __init__(self, bound: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bound = bound
        self.utility = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.utility(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        better, worse = batch
        opt = self.optimizers()
        opt.zero_grad()
        loss = F.softplus(self(worse) - self(better)).mean()
        self.manual_backward(loss)
        nn.utils.clip_grad_value_(self.parameters(), self.bound)
        opt.step()
        self.log("pair_loss", loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.8)


def rank_pairs(seed: int, bound: float) -> Training:
    g = generator(seed, 32)
    x = torch.randn(2600, 8, generator=g)
    worth = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2]) + 0.5 * x[:, 3]
    a, b = x[:2000:2], x[1:2000:2]
    first = (worth[:2000:2] > worth[1:2000:2])[:, None]
    better, worse = torch.where(first, a, b), torch.where(first, b, a)

    def score(module: LightningModule) -> float:
        value = predict(module, x[2000:])
        left, right = value[:300], value[300:]
        return ((left > right) == (worth[2000:2300] > worth[2300:])).float().mean().item()

    return Training(PairRanker(bound), batches(better, worse, size=50), score, None, {"max_epochs": 30})


@sick("na-ranking-clip-by-value", "ranking", "clipping-too-tight", twin=lambda s: rank_pairs(s, 1.0))
def ranking_clip(seed: int) -> Training:
    return rank_pairs(seed, 1e-4)
