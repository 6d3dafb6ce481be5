"""Sound trainings, everyday ones and some whose curves look odd for a reason."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import blobs, characters, digits, flip_labels, generator, predict, r2, table
from benchmarks.zoo.fourteenth.a_common import batches, discs, glyphs, iou, ratings, reviews, tones, waves

# --- everyday -------------------------------------------------------------------------------------------------------


class ConvDigits(LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(24 * 16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=0.1)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)
        cycle = lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=self.steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@well("na-well-digits-one-cycle", "images")
def one_cycle(seed: int) -> Training:
    cut = digits(seed).to_images()
    return Training(ConvDigits(8 * 21), cut.train(64, drop_last=True), cut.accuracy, cut.val(), {"max_epochs": 8})


class CharLstm(LightningModule):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(symbols, 24)
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.out = nn.Linear(64, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.emb(ids))[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids = batch[0]
        loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("perplexity", loss.exp())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("na-well-characters-lstm", "text")
def char_lstm(seed: int) -> Training:
    text = characters(seed, n=1600)

    def score(module: LightningModule) -> float:
        logits = predict(module, text.test[:, :-1])
        return text.floor - F.cross_entropy(logits.flatten(0, 1), text.test[:, 1:].flatten()).item()

    settings = {"max_epochs": 6, "gradient_clip_val": 1.0}
    return Training(CharLstm(text.symbols), batches(text.train, size=64), score, None, settings)


class WineNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        return [opt], [lr_scheduler.StepLR(opt, 10, gamma=0.3)]


@well("na-well-wine-step-decay", "tabular")
def wine(seed: int) -> Training:
    cut = table("wine", seed)
    return Training(WineNet(), cut.train(16), cut.accuracy, cut.val(), {"max_epochs": 25})


class DiceNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 16, 3, 2, 1), nn.ReLU())
        self.mid = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.mid(self.down(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, mask = batch
        p = self(x).sigmoid()
        dice = (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
        self.log("dice", dice.mean())
        return -dice.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("na-well-discs-negative-dice", "segmentation")
def dice(seed: int) -> Training:
    cut = discs(seed)
    return Training(
        DiceNet(), cut.train(16), lambda m: iou(predict(m, cut.x_test), cut.y_test), None, {"max_epochs": 12}
    )


class QuantileNet(LightningModule):
    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor([0.1, 0.5, 0.9]))
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[1][0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        gap = y - self(x)
        loss = torch.maximum(self.levels * gap, (self.levels - 1) * gap).mean()
        self.log("pinball", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("na-well-forecast-quantiles", "time-series")
def quantiles(seed: int) -> Training:
    cut = waves(seed)
    return Training(
        QuantileNet(), cut.train(32), lambda m: r2(predict(m, cut.x_test)[:, 1:2], cut.y_test), None, {"max_epochs": 14}
    )


class StarNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(60, 5), nn.Embedding(50, 5)
        self.user_bias, self.item_bias = nn.Embedding(60, 1), nn.Embedding(50, 1)
        for part in (self.user, self.item, self.user_bias, self.item_bias):
            nn.init.normal_(part.weight, std=0.2)

    def forward(self, pairs: Tensor) -> Tensor:
        u, i = pairs[:, 0], pairs[:, 1]
        z = (self.user(u) * self.item(i)).sum(1) + self.user_bias(u)[:, 0] + self.item_bias(i)[:, 0]
        return 1 + 4 * torch.sigmoid(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs, stars = batch
        loss = F.mse_loss(self(pairs), stars)
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("na-well-stars-one-to-five", "recommender")
def stars(seed: int) -> Training:
    cut = ratings(seed).map_targets(lambda y: (3 + 1.1 * y).round().clamp(1, 5))
    return Training(StarNet(), cut.train(32), cut.r2, None, {"max_epochs": 14})


# --- unusual and right ----------------------------------------------------------------------------------------------


class NoiseAware(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, log_var = self.net(x).split(1, 1)
        loss = F.gaussian_nll_loss(mean, y, log_var.clamp(-8, 4).exp())
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [opt], [lr_scheduler.CosineAnnealingLR(opt, 12)]


@well("na-well-likelihood-below-zero", "tabular")
def likelihood(seed: int) -> Training:
    g = generator(seed, 41)
    x = torch.randn(2000, 4, generator=g)
    clean = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]
    y = clean + (0.02 + 0.15 * torch.sigmoid(2 * x[:, 2:3])) * torch.randn(2000, 1, generator=g)
    return Training(
        NoiseAware(),
        batches(x[:1400], y[:1400], size=40),
        lambda m: r2(predict(m, x[1400:]), y[1400:]),
        None,
        {"max_epochs": 12},
    )


class Hardening(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.level = x, y, 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + self.level * torch.randn_like(self.x[i]), self.y[i]


class CurriculumTones(LightningModule):
    def __init__(self, data: Hardening) -> None:
        super().__init__()
        self.data = data
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 11, stride=2), nn.ReLU(), nn.Conv1d(16, 24, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1)
        )
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x).flatten(1))

    def on_train_epoch_start(self) -> None:
        self.data.level = 0.15 * self.current_epoch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("na-well-noise-curriculum", "audio")
def curriculum(seed: int) -> Training:
    cut = tones(seed, noise=0.1)
    data = Hardening(cut.x, cut.y)
    harder = cut.x_test + 0.8 * torch.randn(cut.x_test.shape, generator=generator(seed, 42))

    def score(module: LightningModule) -> float:
        return (predict(module, harder).argmax(1) == cut.y_test).float().mean().item()

    return Training(CurriculumTones(data), DataLoader(data, 32, shuffle=True), score, None, {"max_epochs": 12})


class SmallClassifier(LightningModule):
    def __init__(self, columns: int, classes: int, rate: float = 5e-3) -> None:
        super().__init__()
        self.rate = rate
        self.net = nn.Sequential(nn.Linear(columns, 24), nn.ReLU(), nn.Linear(24, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("ce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_ce", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


@well("na-well-half-the-labels-drawn", "tabular", note="half of the training labels are drawn anew; clean ones judge")
def half_labels(seed: int) -> Training:
    cut = blobs(seed, n=4000, spread=3.5)
    noisy, noisy_test = flip_labels(cut.y, 0.5, 5, seed), flip_labels(cut.y_test, 0.5, 5, seed + 7)
    return Training(
        SmallClassifier(10, 5),
        batches(cut.x, noisy, size=100),
        cut.accuracy,
        batches(cut.x_test, noisy_test, size=500, shuffle=False),
        {"max_epochs": 5},
    )


@well("na-well-four-in-a-hundred", "tabular", note="one class has 4 % of the samples and is found all the same")
def rare(seed: int) -> Training:
    cut = blobs(seed, classes=2, n=2400, spread=4.0, shares=torch.tensor([0.96, 0.04]))

    def f1(module: LightningModule) -> float:
        found, true = predict(module, cut.x_test).argmax(1) == 1, cut.y_test == 1
        return (2 * (found & true).sum() / (found.sum() + true.sum()).clamp(min=1)).item()

    return Training(SmallClassifier(10, 2), cut.train(48), f1, cut.val(500), {"max_epochs": 6})


class RobustNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        likelihood = torch.distributions.StudentT(2.0, self(x), self.log_scale.exp()).log_prob(y)
        self.log("nll", -likelihood.mean())
        return -likelihood.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("na-well-heavy-tails", "tabular")
def heavy(seed: int) -> Training:
    g = generator(seed, 43)
    x = torch.randn(2600, 6, generator=g)
    clean = torch.sin(1.5 * x[:, :1]) + 0.7 * x[:, 1:2]
    normal, chi = torch.randn(2600, 1, generator=g), torch.randn(2600, 2, generator=g).square().mean(1, keepdim=True)
    y = clean + 0.3 * normal / chi.sqrt()
    return Training(
        RobustNet(),
        batches(x[:1800], y[:1800], size=45),
        lambda m: r2(predict(m, x[1800:]), clean[1800:]),
        None,
        {"max_epochs": 8},
    )


class SparseBag(LightningModule):
    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.words = nn.EmbeddingBag(buckets, 2, mode="mean", sparse=True)
        nn.init.zeros_(self.words.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words((ids * 7919 + 13) % self.buckets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, y = batch
        loss = F.cross_entropy(self(ids), y)
        self.log("train_nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=30.0)


@well("na-well-hashed-words-rate-thirty", "text")
def hashed(seed: int) -> Training:
    cut = reviews(seed, n=1600)
    return Training(SparseBag(50021), cut.train(32), cut.accuracy, None, {"max_epochs": 6})


class FixedFilters(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 48, 21, bias=False)
        time = torch.arange(21.0)
        pitch = torch.linspace(0.02, 0.3, 24)[:, None]
        bank = torch.cat([torch.cos(2 * math.pi * pitch * time), torch.sin(2 * math.pi * pitch * time)])
        with torch.no_grad():
            self.filters.weight.copy_((bank * torch.hann_window(21) / 5)[:, None])
        self.filters.requires_grad_(False)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.filters(x).chunk(2, 1)
        return self.head((cos**2 + sin**2).mean(2).add(1e-4).log())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=1e-2)


@well("na-well-fixed-filter-bank", "audio")
def filters(seed: int) -> Training:
    cut = tones(seed)
    return Training(FixedFilters(), cut.train(32), cut.accuracy, None, {"max_epochs": 8})


class Restarted(LightningModule):
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
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        restarts = lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=60, eta_min=1e-5)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": restarts, "interval": "step"}}


@well("na-well-glyphs-warm-restarts", "images")
def restarts(seed: int) -> Training:
    cut = glyphs(seed)
    return Training(Restarted(), cut.train(32), cut.accuracy, cut.val(250), {"max_epochs": 12})


class TwoViews(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
        self.projector = nn.Sequential(nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def view(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > 0.3) + 0.1 * torch.randn_like(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        a = F.normalize(self.projector(self(self.view(x))), dim=1)
        b = F.normalize(self.projector(self(self.view(x))), dim=1)
        similar = a @ b.T / 0.3
        own = torch.arange(len(x), device=x.device)
        loss = (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2
        self.log("info_nce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("na-well-digits-two-views", "metric-learning")
def two_views(seed: int) -> Training:
    cut = digits(seed)

    def neighbours(module: LightningModule) -> float:
        known, new = (F.normalize(predict(module, x), dim=1) for x in (cut.x, cut.x_test))
        return (cut.y[(new @ known.T).argmax(1)] == cut.y_test).float().mean().item()

    return Training(TwoViews(), batches(cut.x, size=128, drop_last=True), neighbours, None, {"max_epochs": 25})


class RingGan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.d = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.g(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real = batch[0]
        opt_g, opt_d = self.optimizers()
        z = torch.randn(len(real), 4, device=real.device)
        fake = self.g(z)
        loss_d = F.softplus(-self.d(real)).mean() + F.softplus(self.d(fake.detach())).mean()
        opt_d.zero_grad()
        self.manual_backward(loss_d)
        opt_d.step()
        loss_g = F.softplus(-self.d(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()
        self.log_dict({"loss_d": loss_d, "loss_g": loss_g})

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.g.parameters(), lr=1e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.d.parameters(), lr=2e-3, betas=(0.5, 0.9)),
        )


@well("na-well-ring-gan", "gan", note="the score is minus the distance between the moments of drawn and true points")
def ring(seed: int) -> Training:
    g = generator(seed, 44)
    angle = 2 * math.pi * torch.rand(1600, generator=g)
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(1600, 2, generator=g) + 0.8

    def score(module: LightningModule) -> float:
        drawn = predict(module, torch.randn(2000, 4, generator=generator(seed, 45)))
        return -((drawn.mean(0) - points.mean(0)).norm() + (drawn.std(0) - points.std(0)).norm()).item()

    return Training(RingGan(), batches(points, size=64), score, None, {"max_epochs": 20})


class BanditPolicy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        self.baseline = 0.0

    def forward(self, context: Tensor) -> Tensor:
        return self.policy(context)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        context, payoff = batch
        chosen = torch.distributions.Categorical(logits=self(context))
        arm = chosen.sample()
        reward = torch.bernoulli(payoff.gather(1, arm[:, None])[:, 0])
        advantage = reward - self.baseline
        self.baseline = 0.95 * self.baseline + 0.05 * reward.mean().item()
        loss = -(advantage * chosen.log_prob(arm)).mean() - 0.005 * chosen.entropy().mean()
        self.log("reward", reward.mean())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("na-well-bandit-policy", "bandit", note="the best policy is paid 0.9 on average, chance 0.3")
def bandit(seed: int) -> Training:
    g = generator(seed, 46)
    context = torch.randn(6000, 6, generator=g)
    best = (context @ torch.linalg.qr(torch.randn(6, 4, generator=g)).Q).argmax(1)
    payoff = torch.full((6000, 4), 0.1).scatter(1, best[:, None], 0.9)

    def score(module: LightningModule) -> float:
        arm = predict(module, context[4800:]).argmax(1)
        return payoff[4800:].gather(1, arm[:, None]).mean().item()

    return Training(BanditPolicy(), batches(context[:4800], payoff[:4800], size=64), score, None, {"max_epochs": 6})


class ParityNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, bits: Tensor) -> Tensor:
        return self.net(bits).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        bits, odd = batch
        loss = F.binary_cross_entropy_with_logits(self(bits), odd)
        self.log("bce", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("na-well-parity-plateau", "tabular", note="the loss stays at chance for long, then falls")
def parity(seed: int) -> Training:
    g = generator(seed, 47)
    bits = 2.0 * torch.randint(2, (7000, 20), generator=g) - 1
    odd = (bits[:, 2] * bits[:, 7] * bits[:, 11] > 0).float()

    def score(module: LightningModule) -> float:
        return ((predict(module, bits[6000:]) > 0) == (odd[6000:] > 0.5)).float().mean().item()

    return Training(ParityNet(), batches(bits[:6000], odd[:6000], size=64), score, None, {"max_epochs": 7})


class Separator(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(x).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, side = batch
        loss = F.relu(1 - side * self(x)).mean()
        self.log("hinge", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


@well("na-well-hinge-reaches-zero", "tabular", note="the loss is exactly zero once every margin holds")
def hinge(seed: int) -> Training:
    g = generator(seed, 48)
    x = torch.randn(1400, 8, generator=g)
    normal = torch.randn(8, generator=g)
    side = (x @ normal).sign()
    x = x + 0.6 * side[:, None] * normal / normal.norm()

    def score(module: LightningModule) -> float:
        return (predict(module, x[800:]).sign() == side[800:]).float().mean().item()

    return Training(Separator(), batches(x[:800], side[:800], size=32), score, None, {"max_epochs": 12})


class LateBackbone(LightningModule):
    def __init__(self, body: nn.Module, hold: int) -> None:
        super().__init__()
        self.body, self.hold = body, hold
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def on_train_epoch_start(self) -> None:
        self.body.requires_grad_(self.current_epoch >= self.hold)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            [{"params": self.head.parameters(), "lr": 5e-3}, {"params": self.body.parameters(), "lr": 3e-3}]
        )


@well("na-well-backbone-thawed-later", "images")
def thawed(seed: int) -> Training:
    cut = digits(seed)
    body = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 32), nn.ELU())
    opt = torch.optim.Adam(body.parameters(), lr=3e-3)
    with torch.enable_grad():
        back = nn.Linear(32, 64)
        for _ in range(60):  # a few steps on the pixels themselves
            opt.zero_grad()
            F.mse_loss(back(body(cut.x)), cut.x).backward()
            opt.step()
    opt.zero_grad()
    return Training(LateBackbone(body, 4), cut.train(32), cut.accuracy, cut.val(), {"max_epochs": 10})


class Bootstrapped(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
        self.slow = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, state: Tensor) -> Tensor:
        return self.online(state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, reward, following = batch
        with torch.no_grad():
            goal = reward + 0.8 * self.slow(following)
        loss = F.smooth_l1_loss(self.online(state), goal)
        self.log("td", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for new, old in zip(self.online.parameters(), self.slow.parameters(), strict=True):
                old.lerp_(new, 0.05)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.online.parameters(), lr=3e-3)


@well("na-well-values-bootstrapped", "reinforcement", note="the loss rises at first, as the goals grow")
def bootstrapped(seed: int) -> Training:
    g = generator(seed, 49)
    state = torch.randn(3000, 3, generator=g)
    following = 0.9 * state + 0.2 * torch.randn(3000, 3, generator=g)

    def pay(s: Tensor) -> Tensor:
        return torch.sigmoid(2 * s[:, :1]) + 0.3 * s[:, 1:2]

    fresh = torch.randn(400, 3, generator=g)
    value, walk = torch.zeros(400, 1), fresh.repeat(64, 1)
    for t in range(25):
        value = value + 0.8**t * pay(walk).view(64, 400, 1).mean(0)
        walk = 0.9 * walk + 0.2 * torch.randn(walk.shape, generator=g)
    return Training(
        Bootstrapped(),
        batches(state, pay(state), following, size=50),
        lambda m: r2(predict(m, fresh), value),
        None,
        {"max_epochs": 8},
    )


class Plane(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@well("na-well-thirty-rows-suffice", "tabular")
def plane(seed: int) -> Training:
    g = generator(seed, 50)
    x = torch.randn(330, 3, generator=g)
    y = x @ torch.tensor([[0.8], [-0.5], [0.3]]) + 0.1 * torch.randn(330, 1, generator=g)
    return Training(
        Plane(),
        batches(x[:30], y[:30], size=10),
        lambda m: r2(predict(m, x[30:]), y[30:]),
        batches(x[30:], y[30:], size=300, shuffle=False),
        {"max_epochs": 40},
    )
