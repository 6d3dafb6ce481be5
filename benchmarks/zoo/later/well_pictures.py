"""Pictures: segmentation, pretext tasks, pairs, small batches, values between 0 and 1."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.later._well_common import hit_rate, loader


def pictures(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits (N, 1, 8, 8) between 0 and 1: 1400 to train on, 397 to judge by."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=generator(seed, 540))
    pixels = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
    labels = torch.tensor(y)[order]
    return pixels[:1400], labels[:1400], pixels[1400:], labels[1400:]


class Cells(LightningModule):
    """A small U-Net for a few bright cells: soft Dice plus cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        return self.last(torch.cat([a, self.up(b)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, mask = batch
        z = self(x)
        p = z.sigmoid()
        dice = 1 - (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
        bce = F.binary_cross_entropy_with_logits(z, mask)
        self.log_dict({"dice": dice.mean(), "bce": bce})
        return dice.mean() + bce

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=6e-3)


@well("v-cells-by-dice", "unet", "overlap of the masks, 0.97; few pixels are cell")
def cells(seed: int) -> Training:
    g = generator(seed, 541)
    n = 500
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    mask = torch.zeros(n, 16, 16)
    for _ in range(2):
        cy, cx = (2 + 12 * torch.rand(n, 1, 1, generator=g) for _ in range(2))
        mask = torch.maximum(mask, ((row - cy) ** 2 + (column - cx) ** 2 < 3.2).float())
    x = 0.35 * torch.randn(n, 16, 16, generator=g) + 1.2 * mask
    x, mask = x[:, None], mask[:, None]

    def score(m: Any) -> float:
        said = (predict(m, x[350:]) > 0).float()
        return (2 * (said * mask[350:]).sum() / (said.sum() + mask[350:].sum())).item()

    return Training(Cells(), loader(x[:350], mask[:350], size=10), score, trainer={"max_epochs": 8})


@well("v-four-at-a-time", "cnn", "accuracy with batches of four and GroupNorm, near 0.98; single losses jump about")
def four(seed: int) -> Training:
    x, y, x_new, y_new = pictures(seed)

    class Small(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 12, 3, padding=1),
                nn.GroupNorm(3, 12),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(12, 24, 3, padding=1),
                nn.GroupNorm(4, 24),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(384, 10),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            opt = torch.optim.Adam(self.parameters(), lr=2e-3)
            return {
                "optimizer": opt,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.PolynomialLR(opt, 800, 1.0),
                    "interval": "step",
                },
            }

    return Training(Small(), loader(x, y, size=4), hit_rate(x_new, y_new), trainer={"max_steps": 800})


class Turned(Dataset[Any]):
    """Digits turned by a quarter, half or three quarters; the turn is the label."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        k = int(torch.randint(4, (1,)))
        return torch.rot90(self.x[i], k, (1, 2)), k


class Pretext(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.Conv2d(16, 32, 3, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(32)
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.bn1(self.conv1(x)))
        h = F.hardswish(self.bn2(self.conv2(F.avg_pool2d(h, 2, stride=1))))
        return self.head(h.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, turn = batch
        z = self(x)
        self.log("acc", (z.argmax(1) == turn).float().mean(), on_step=False, on_epoch=True)
        return F.cross_entropy(z, turn, label_smoothing=0.1)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 16)]


@well(
    "v-which-way-up",
    "self-supervised",
    "accuracy of the turn; 0 and 1 look alike upside down, so never 1; smoothed labels",
)
def which_way(seed: int) -> Training:
    x, _, x_new, _ = pictures(seed)
    turned = torch.cat([torch.rot90(x_new, k, (2, 3)) for k in range(4)])
    label = torch.arange(4).repeat_interleave(len(x_new))
    model = Pretext()
    model(x[:8])
    train = DataLoader(Turned(x), batch_size=50, shuffle=True)
    return Training(model, train, hit_rate(turned, label), trainer={"max_epochs": 16})


class Twins(LightningModule):
    """A siamese net with the contrastive margin loss; pairs apart beyond the margin give no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (a, b), same = batch
        gap = F.pairwise_distance(self(a), self(b))
        loss = torch.where(same, gap**2, F.relu(2.0 - gap) ** 2).mean()
        self.log("contrast", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Pairs(Dataset[Any]):
    """Every other pair shows one digit twice."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.of = [torch.nonzero(y == k)[:, 0] for k in range(10)]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        k = int(self.y[i])
        same = bool(torch.rand(()) < 0.5)
        pool = self.of[k if same else (k + int(torch.randint(1, 10, ()))) % 10]
        return (self.x[i], self.x[pool[torch.randint(len(pool), ())]]), same


@well("v-pairs-of-digits", "siamese", "accuracy of the nearest class centre in the learnt space")
def pairs(seed: int) -> Training:
    x, y, x_new, y_new = pictures(seed)

    def score(m: Any) -> float:
        known, new = predict(m, x), predict(m, x_new)
        centres = torch.stack([known[y == k].mean(0) for k in range(10)])
        return (torch.cdist(new, centres).argmin(1) == y_new).float().mean().item()

    train = DataLoader(Pairs(x, y), batch_size=64, shuffle=True, drop_last=True)
    return Training(Twins(), train, score, trainer={"max_epochs": 20, "log_every_n_steps": 10})


class Patches(LightningModule):
    """A masked coder: half of sixteen patches are hidden and must be drawn from the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(80, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, patches: Tensor, hide: Tensor) -> Tensor:
        seen = patches.masked_fill(hide[..., None], 0.0)
        return self.net(torch.cat([seen.flatten(1), hide.float()], 1)).view_as(patches)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        patches = batch[0]
        hide = torch.rand(patches.shape[:2]).argsort(1) < 8
        loss = F.mse_loss(self(patches, hide)[hide], patches[hide])
        self.log("drawn", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=0.05, betas=(0.9, 0.95))
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-2, total_steps=600, pct_start=0.2)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well("v-half-the-patches", "self-supervised", "R2 of hidden patches over their mean; what is left cannot be guessed")
def patches(seed: int) -> Training:
    x, _, x_new, _ = pictures(seed)
    cut = lambda v: v.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(v), 16, 4)  # noqa: E731
    a, b = cut(x), cut(x_new)
    hide = torch.rand(len(b), 16, generator=generator(seed, 542)).argsort(1) < 8

    def score(m: Any) -> float:
        m.eval()
        with torch.no_grad():
            left = ((m(b, hide) - b)[hide] ** 2).mean()
        mean = a.mean(0).expand_as(b)
        return 1 - (left / ((mean - b)[hide] ** 2).mean()).item()

    return Training(Patches(), loader(a, size=64), score, trainer={"max_steps": 600})


class Keypoint(LightningModule):
    """Heat maps of one warm spot among 144 cold pixels: the loss starts at 0.02 since nearly all is nought."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch["image"]), batch["heat"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("v-heat-of-a-corner", "keypoints", "share of corners found within a pixel and a half")
def heat(seed: int) -> Training:
    g = generator(seed, 543)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    at = torch.randint(2, 8, (900, 2, 1, 1), generator=g).float()
    arm = 4
    cross = ((row == at[:, 0]) & (column >= at[:, 1]) & (column < at[:, 1] + arm)) | (
        (column == at[:, 1]) & (row >= at[:, 0]) & (row < at[:, 0] + arm)
    )
    image = (cross.float() + 0.3 * torch.randn(900, 12, 12, generator=g))[:, None]
    warm = torch.exp(-((row - at[:, 0]) ** 2 + (column - at[:, 1]) ** 2) / 2)[:, None]

    def score(m: Any) -> float:
        best = predict(m, image[700:]).flatten(1).argmax(1)
        said = torch.stack([best // 12, best % 12], 1).float()
        return ((said - at[700:, :, 0, 0]).norm(dim=1) < 1.5).float().mean().item()

    rows: Any = [{"image": image[i], "heat": warm[i]} for i in range(700)]
    return Training(Keypoint(), DataLoader(rows, batch_size=35, shuffle=True), score, trainer={"max_epochs": 10})


class CutMix(LightningModule):
    """Pieces of other pictures pasted in: the training loss stays high by design."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.point = nn.Conv2d(24, 48, 1)
        self.gate = nn.Sequential(nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 48), nn.Sigmoid())
        self.fc = nn.Linear(48 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn(self.depth(F.relu6(self.stem(x)))))
        h = self.point(h)
        h = h * self.gate(h.mean((2, 3)))[:, :, None, None]
        return self.fc(F.max_pool2d(F.relu(h), 2).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        other = torch.randperm(len(x))
        size = int(torch.randint(2, 6, ()))
        top, left = (int(torch.randint(0, 9 - size, ())) for _ in range(2))
        x = x.clone()
        x[:, :, top : top + size, left : left + size] = x[other][:, :, top : top + size, left : left + size]
        kept = 1 - size**2 / 64
        z = self(x)
        loss = kept * F.cross_entropy(z, y) + (1 - kept) * F.cross_entropy(z, y[other])
        self.log("cutmix", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        z = self(x)
        self.log_dict({"val_loss": F.cross_entropy(z, y), "val_acc": (z.argmax(1) == y).float().mean()})

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=1e-2)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 12)}


@well("v-cut-and-paste", "cnn", "accuracy about 0.98 with a training loss near 1")
def cutmix(seed: int) -> Training:
    x, y, x_new, y_new = pictures(seed)
    val = loader(x_new, y_new, size=200, shuffle=False)
    return Training(CutMix(), loader(x, y, size=50), hit_rate(x_new, y_new), val, {"max_epochs": 12})


class Tokens(LightningModule):
    """A transformer over eight rows of pixels with a class token; warm-up from nought, then a cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 48)
        self.cls = nn.Parameter(torch.zeros(1, 1, 48))
        self.pos = nn.Parameter(torch.randn(1, 9, 48) * 0.02)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.1, batch_first=True, norm_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(48)
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.cls.expand(len(x), -1, -1), self.proj(x.squeeze(1))], 1) + self.pos
        return self.out(self.norm(self.enc(h)[:, 0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.05)
        warm = torch.optim.lr_scheduler.LinearLR(opt, 1e-3, 1.0, total_iters=60)
        cool = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 320)
        both = torch.optim.lr_scheduler.SequentialLR(opt, [warm, cool], [60])
        return {"optimizer": opt, "lr_scheduler": {"scheduler": both, "interval": "step", "frequency": 1}}


@well("v-rows-as-tokens", "vit", "accuracy about 0.96")
def rows_as_tokens(seed: int) -> Training:
    x, y, x_new, y_new = pictures(seed)
    settings = {"max_steps": 380, "gradient_clip_val": 1.0, "log_every_n_steps": 10}
    return Training(Tokens(), loader(x, y, size=64), hit_rate(x_new, y_new), trainer=settings)
