"""Models that make samples or codes: flows, critics, denoisers, coders."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits, make_moons
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator
from benchmarks.zoo.later._well_common import explained, loader, stack


def crescents(seed: int, n: int = 3000) -> Tensor:
    """Two crescents, standardised."""
    x, _ = make_moons(n, noise=0.06, random_state=seed)
    points = torch.tensor(x, dtype=torch.float32)
    return (points - points.mean(0)) / points.std(0)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Nought where both clouds follow one law; 0.01 is near, 0.3 is far."""
    cross, own_a, own_b = (torch.cdist(u, v).mean() for u, v in ((a, b), (a, a), (b, b)))
    return (2 * cross - own_a - own_b).item()


class Coupled(LightningModule):
    """A flow of affine couplings, started at the identity."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.nets = nn.ModuleList(stack(1, 32, 32, 2) for _ in range(layers))
        for net in self.nets:
            nn.init.zeros_(net[-1].weight)
            nn.init.zeros_(net[-1].bias)

    def log_prob(self, x: Tensor) -> Tensor:
        a, b = x[:, :1], x[:, 1:]
        volume = torch.zeros(len(x))
        for net in self.nets:
            scale, shift = net(a).chunk(2, 1)
            scale = torch.tanh(scale) * 1.5
            a, b = b * scale.exp() + shift, a
            volume = volume + scale[:, 0]
        return -0.5 * (a**2 + b**2)[:, 0] - math.log(2 * math.pi) + volume

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = -self.log_prob(batch[0]).mean()
        self.log("bits", loss / math.log(2))
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=5e-3)
        sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 400)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well("v-banana-by-couplings", "flow", "mean log likelihood on new points above that of the truth; 0 is perfect")
def coupled(seed: int) -> Training:
    g = generator(seed, 560)
    a, b = torch.randn(5000, 1, generator=g), 0.4 * torch.randn(5000, 1, generator=g)
    points = torch.cat([a, 0.7 * a**2 - 0.7 + b], 1)
    truth = (-0.5 * (a**2 + (b / 0.4) ** 2) - math.log(0.8 * math.pi))[4000:].mean().item()
    x, new = points[:4000], points[4000:]

    def score(m: Any) -> float:
        with torch.no_grad():
            return m.log_prob(new).mean().item() - truth

    return Training(Coupled(), loader(x, size=128), score, trainer={"max_steps": 400, "gradient_clip_val": 5.0})


class Wasserstein(LightningModule):
    """A critic held to unit slope by a penalty on its gradient; three critic steps to one of the maker."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.critic = stack(2, 48, 48, 2), stack(2, 48, 48, 1, act=lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def slope(self, real: Tensor, fake: Tensor) -> Tensor:
        t = torch.rand(len(real), 1)
        between = (t * real + (1 - t) * fake).requires_grad_()
        (grad,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return ((grad.norm(dim=1) - 1) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        critic_opt, maker_opt = self.optimizers()  # type: ignore[misc]
        for _ in range(3):
            fake = self(torch.randn(len(real), 2)).detach()
            loss = self.critic(fake).mean() - self.critic(real).mean() + 2 * self.slope(real, fake)
            critic_opt.zero_grad()
            self.manual_backward(loss)
            critic_opt.step()
        self.toggle_optimizer(maker_opt)
        maker_loss = -self.critic(self(torch.randn(len(real), 2))).mean()
        maker_opt.zero_grad()
        self.manual_backward(maker_loss)
        maker_opt.step()
        self.untoggle_optimizer(maker_opt)
        self.log_dict({"critic": loss, "maker": maker_loss})

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.critic.parameters(), lr=4e-3, betas=(0.0, 0.9)),
            torch.optim.Adam(self.maker.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        )


@well("v-critic-of-unit-slope", "gan", "minus the energy distance to three clouds; 0.02 and less, 0.6 at the start")
def wasserstein(seed: int) -> Training:
    g = generator(seed, 561)
    centres = torch.tensor([[1.2, 0.0], [-0.8, 1.0], [-0.6, -1.1]])
    draw = lambda n: centres[torch.randint(3, (n,), generator=g)] + 0.2 * torch.randn(n, 2, generator=g)  # noqa: E731
    x, new, z = draw(2560), draw(800), torch.randn(800, 2, generator=g)

    def score(m: Any) -> float:
        with torch.no_grad():
            return -energy_distance(m(z), new)

    return Training(Wasserstein(), loader(x, size=128), score, trainer={"max_epochs": 10})


class Energy(LightningModule):
    """Sliced score matching of an energy: the loss is an expectation that sinks far below nought."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -slope

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        v = torch.randn_like(x)
        (bend,) = torch.autograd.grad((slope * v).sum(), x, create_graph=True)
        loss = (0.5 * slope.square().sum(1) - (bend * v).sum(1)).mean()
        self.log("ssm", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.02, 400), "interval": "step"}]


@well("v-slope-of-the-density", "score-matching", "R2 of the slope of the log density of two clouds")
def energy(seed: int) -> Training:
    g = generator(seed, 562)
    means, std = torch.tensor([[1.0, 0.3], [-1.0, -0.3]]), 0.6
    draw = lambda n: means[torch.randint(2, (n,), generator=g)] + std * torch.randn(n, 2, generator=g)  # noqa: E731
    x, new = draw(8000), draw(1000)
    weight = (-((new[:, None] - means) ** 2).sum(-1) / (2 * std**2)).softmax(-1)
    truth = (weight[..., None] * (means - new[:, None])).sum(1) / std**2
    return Training(Energy(), loader(x, size=256), explained(new, truth), trainer={"max_steps": 400})


class Noise(LightningModule):
    """A denoiser that guesses the noise at fifty strengths; the loss stays near its floor with great jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = stack(2 + 8, 96, 96, 2, act=nn.SiLU)
        self.register_buffer("kept", torch.cos(torch.linspace(0.02, 1.5, 50)) ** 2)
        self.register_buffer("pitch", torch.tensor([1.0, 2.0, 4.0, 8.0]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] / 50 * self.pitch
        return self.net(torch.cat([x, phase.sin(), phase.cos()], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        t, noise = torch.randint(50, (len(x),)), torch.randn_like(x)
        kept = self.kept[t, None]
        return F.mse_loss(self(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)

    @torch.no_grad()
    def sample(self, x: Tensor) -> Tensor:
        for t in range(49, -1, -1):
            kept, before = self.kept[t], self.kept[t - 1] if t > 0 else torch.tensor(1.0)
            noise = self(x, torch.full((len(x),), t))
            clean = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
            x = before.sqrt() * clean.clamp(-3, 3) + (1 - before).sqrt() * noise
        return x

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 700), "interval": "step"}]


@well(
    "v-crescents-from-noise", "diffusion", "minus the energy distance of samples; 0.01 and less, 0.09 for a normal law"
)
def noise(seed: int) -> Training:
    x, new = crescents(seed), crescents(seed + 100, 1000)
    start = torch.randn(1000, 2, generator=generator(seed, 563))
    score = lambda m: -energy_distance(m.sample(start), new)  # noqa: E731
    settings = {"max_steps": 700, "gradient_clip_val": 1.0}
    return Training(Noise(), loader(x, size=200, drop_last=True), score, trainer=settings)


class Transport(LightningModule):
    """Flow matching: the regression target is a random difference, so the floor is far above nought."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(
            nn.Linear(3, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 2)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        end = batch[0]
        begin, t = torch.randn_like(end), torch.rand(len(end), 1)
        guess = self.field(torch.cat([(1 - t) * begin + t * end, t], 1))
        loss = (guess - (end - begin)).pow(2).sum(1).mean()
        self.log("match", loss, on_step=True, on_epoch=True)
        return loss

    @torch.no_grad()
    def sample(self, x: Tensor) -> Tensor:
        for i in range(40):
            x = x + self.field(torch.cat([x, torch.full((len(x), 1), (i + 0.5) / 40)], 1)) / 40
        return x

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


@well("v-straight-paths", "flow-matching", "minus the energy distance of samples; 0.01 and less")
def transport(seed: int) -> Training:
    g = generator(seed, 564)
    angle = 2 * math.pi * torch.rand(4000, 1, generator=g)
    ring = torch.cat([angle.cos(), angle.sin()], 1) * (1.3 + 0.05 * torch.randn(4000, 1, generator=g))
    start = torch.randn(1000, 2, generator=g)
    score = lambda m: -energy_distance(m.sample(start), ring[3000:])  # noqa: E731
    return Training(Transport(), loader(ring[:3000], size=150), score, trainer={"max_epochs": 25})


class Warmed(LightningModule):
    """A variational coder whose divergence term is phased in: the loss rises in the middle by design."""

    def __init__(self, pixels: int = 64, code: int = 6) -> None:
        super().__init__()
        self.enc, self.dec = stack(pixels, 128, 2 * code), stack(code, 128, pixels)

    def parts(self, x: Tensor, sample: bool = True) -> tuple[Tensor, Tensor]:
        mean, log_var = self.enc(x).chunk(2, 1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean) if sample else mean
        drawn = F.binary_cross_entropy_with_logits(self.dec(z), x, reduction="none").sum(1)
        return drawn.mean(), 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(1).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        drawn, kl = self.parts(batch[0])
        beta = min(1.0, self.global_step / 300)
        self.log_dict({"drawn": drawn, "kl": kl, "beta": beta})
        return drawn + beta * kl

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("v-phased-in-divergence", "vae", "minus the bound on new digits, nats; 33 per picture without a code")
def warmed(seed: int) -> Training:
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    x = x[torch.randperm(len(x), generator=generator(seed, 565))]

    def score(m: Any) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return -sum(m.parts(x[1400:])).item()

    return Training(Warmed(), loader(x[:1400], size=64), score, trainer={"max_epochs": 30})


class Straight(torch.autograd.Function):
    """Nearest code forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.cdist(z, book).argmin(-1)
        ctx.mark_non_differentiable(index)
        return book[index], index

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        return grad, None


class Quantised(LightningModule):
    """A coder with a book of 32 codes per part, moved by running means and not by any optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = stack(64, 96, 32), stack(32, 96, 64)
        self.register_buffer("book", torch.randn(32, 8))
        self.register_buffer("count", torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        z = self.enc(x).view(-1, 8)
        return self.dec(Straight.apply(z, self.book)[0].view(-1, 32))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        z = self.enc(x).view(-1, 8)
        code, index = Straight.apply(z, self.book)
        with torch.no_grad():
            hot = F.one_hot(index, 32).float()
            self.count.lerp_(hot.sum(0), 0.05)
            near = hot.T @ z.detach() / hot.sum(0).clamp_min(1)[:, None]
            rate = 0.05 * (hot.sum(0) > 0).float() / self.count.clamp_min(0.05) * hot.sum(0)
            self.book.lerp_(near, rate.clamp_max(1.0)[:, None].expand_as(near))
            idle = self.count < 0.3
            if idle.any():
                self.book[idle] = z[torch.randint(len(z), (int(idle.sum()),))]
                self.count[idle] = 1.0
        drawn = F.mse_loss(self.dec(code.view(-1, 32)), x)
        commit = F.mse_loss(z, code.detach())
        self.log_dict({"drawn": drawn, "commit": commit})
        return drawn + 0.02 * commit

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("v-book-of-codes", "vq", "R2 of new digits from four codes of five bits; four principal parts get 0.49")
def quantised(seed: int) -> Training:
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    x = x[torch.randperm(len(x), generator=generator(seed, 566))]
    x = (x - x[:1400].mean()) / x[:1400].std()
    return Training(Quantised(), loader(x[:1400], size=64), explained(x[1400:], x[1400:]), trainer={"max_epochs": 25})


class KeptFew(LightningModule):
    """An overcomplete coder that keeps eight of 128 units: the others are nought by design."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(32))
        self.enc = nn.Linear(32, 128)
        self.dec = nn.Linear(128, 32, bias=False)
        with torch.no_grad():
            self.dec.weight.copy_(self.enc.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enc(x - self.bias).relu()
        top = h.topk(8, -1)
        return self.dec(torch.zeros_like(h).scatter(-1, top.indices, top.values)) + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("v-eight-of-128-units", "sparse-coder", "R2 of mixtures of four of 48 directions in 32 dimensions")
def kept_few(seed: int) -> Training:
    g = generator(seed, 567)
    atoms = F.normalize(torch.randn(48, 32, generator=g), dim=1)
    used = torch.rand(9000, 48, generator=g).argsort(1) < 4
    x = 2 * (used * (0.5 + torch.rand(9000, 48, generator=g))) @ atoms
    return Training(KeptFew(), loader(x[:8000], size=128), explained(x[8000:], x[8000:]), trainer={"max_epochs": 8})


class MaskedLinear(nn.Linear):
    def __init__(self, a: int, b: int, allow: Tensor) -> None:
        super().__init__(a, b)
        self.register_buffer("allow", allow.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.allow, self.bias)


class Bits(LightningModule):
    """Black and white pixels, each told from those before it by masked weights (many weights have no gradient)."""

    def __init__(self, n: int = 64, width: int = 256) -> None:
        super().__init__()
        order, unit = torch.arange(n), torch.arange(width) % (n - 1)
        self.first = MaskedLinear(n, width, order[None] <= unit[:, None])
        self.second = MaskedLinear(width, n, unit[None] < order[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())

    def loss(self, x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(x), x, reduction="none").sum(1).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch[0])
        self.log("nats", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_nats", self.loss(batch[0]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 12)]


@well("v-pixel-after-pixel", "autoregressive", "minus nats of a new picture; 27 for independent pixels")
def bits(seed: int) -> Training:
    x = (torch.tensor(load_digits().data, dtype=torch.float32) > 7).float()
    x = x[torch.randperm(len(x), generator=generator(seed, 568))]

    def score(m: Any) -> float:
        with torch.no_grad():
            return -m.loss(x[1400:]).item()

    val = loader(x[1400:], size=400, shuffle=False)
    return Training(Bits(), loader(x[:1400], size=50), score, val, {"max_epochs": 12})
