"""Models that make data. Their losses are no measure of progress: adversarial, negative, or flat at a noise floor."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import mlp


def _energy_distance(a: Tensor, b: Tensor) -> float:
    """Twice the mean distance between the samples less those within each; 0 where both come from one distribution."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def _arc(seed: int, n: int) -> Tensor:
    """Points (n, 2) on a noisy arc of radius 1, three quarters of a circle."""
    g = data.generator(seed, 31)
    angle = 1.5 * math.pi * torch.rand(n, generator=g)
    radius = 1 + 0.1 * torch.randn(n, generator=g)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _points(seed: int, batch_size: int = 128) -> tuple[DataLoader[Any], Tensor]:
    x = _arc(seed, 5000)
    return DataLoader(TensorDataset(x[:4000]), batch_size, shuffle=True, drop_last=True), x[4000:]


class GAN(LightningModule):
    """The two-optimizer loop of Lightning's documentation, non-saturating loss, R1 penalty on the real samples."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.generator = mlp(latent, 64, 64, 2)
        self.discriminator = mlp(2, 64, 64, 1, act=nn.SiLU)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        real = batch[0]
        opt_g, opt_d = self.optimizers()
        ones, zeros = real.new_ones(len(real), 1), real.new_zeros(len(real), 1)

        self.toggle_optimizer(opt_g)
        fake = self(torch.randn(len(real), self.latent, device=self.device))
        g_loss = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.untoggle_optimizer(opt_g)

        self.toggle_optimizer(opt_d)
        real.requires_grad_()
        seen = self.discriminator(real)
        (slope,) = torch.autograd.grad(seen.sum(), real, create_graph=True)
        d_real = F.binary_cross_entropy_with_logits(seen, ones)
        d_fake = F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), zeros)
        d_loss = (d_real + d_fake) / 2 + 0.03 * slope.square().sum(1).mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self.untoggle_optimizer(opt_d)
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        g = torch.optim.Adam(self.generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
        d = torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
        return [g, d], []


def _sampled(test: Tensor, seed: int, latent: int = 4) -> Any:
    noise = torch.randn(1000, latent, generator=data.generator(seed, 32))
    return lambda m: -_energy_distance(data.predict(m, noise), test)


@well(
    "gan",
    "generative",
    "two optimizers by hand; both losses hover near ln 2 while samples improve; minus energy distance",
)
def gan(seed: int) -> Training:
    loader, test = _points(seed)
    return Training(GAN(), loader, _sampled(test, seed), None, {"max_epochs": 45})


class WGAN(LightningModule):
    """Wasserstein GAN with gradient penalty, five critic steps to one of the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = mlp(4, 64, 64, 2)
        self.critic = mlp(2, 64, 64, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        real = batch[0]
        opt_g, opt_c = self.optimizers()
        fake = self(torch.randn(len(real), 4)).detach()
        mix = torch.rand(len(real), 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        loss = self.critic(fake).mean() - self.critic(real).mean() + 2 * penalty
        opt_c.zero_grad()
        self.manual_backward(loss)
        opt_c.step()
        self.log("critic_loss", loss)
        if batch_idx % 5 == 4:
            self.toggle_optimizer(opt_g)
            g_loss = -self.critic(self(torch.randn(len(real), 4))).mean()
            opt_g.zero_grad()
            self.manual_backward(g_loss)
            opt_g.step()
            self.untoggle_optimizer(opt_g)
            self.log("g_loss", g_loss)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        g = torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.0, 0.9))
        c = torch.optim.Adam(self.critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
        return g, c


@well(
    "wgan",
    "generative",
    "the critic's loss is below zero early on and rises to zero as the samples improve; minus energy distance",
)
def wgan(seed: int) -> Training:
    loader, test = _points(seed)
    return Training(WGAN(), loader, _sampled(test, seed), None, {"max_epochs": 50})


class VAE(LightningModule):
    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = mlp(64, 128, 2 * latent)
        self.decoder = mlp(latent, 128, 64)

    def forward(self, x: Tensor) -> Tensor:
        """The evidence lower bound of each picture in nats, by one sample."""
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * (0.5 * log_var).exp()
        rec = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        kl = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1)
        return -(rec + kl)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = -self(batch[0]).mean()
        self.log("neg_elbo", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well(
    "vae",
    "generative",
    "pixel cross-entropy summed plus KL: starts at 44 nats, and the best is 23.7; the bound on the test pictures",
)
def vae(seed: int) -> Training:
    d = data.digits(seed)
    loader = DataLoader(TensorDataset(d.x), 64, shuffle=True)

    def score(m: LightningModule) -> float:
        torch.manual_seed(seed)
        return data.predict(m, d.x_test.repeat(5, 1)).mean().item()

    return Training(VAE(), loader, score, None, {"max_epochs": 60})


class Diffusion(LightningModule):
    """Predicts the noise in a point at a random time of 50; the loss is flat after the first epoch."""

    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        self.net = mlp(2 + 16, 96, 96, 2, act=nn.SiLU)
        beta = torch.linspace(1e-3, 0.2, steps)
        self.register_buffer("beta", beta)
        self.register_buffer("alpha_bar", torch.cumprod(1 - beta, 0))
        self.register_buffer("frequency", 2.0 ** torch.arange(8) * math.pi / 128)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None].float() * self.frequency
        return self.net(torch.cat([x, angle.sin(), angle.cos()], dim=1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        t = torch.randint(len(self.beta), (len(x),), device=x.device)
        noise = torch.randn_like(x)
        a = self.alpha_bar[t][:, None]
        loss = F.mse_loss(self(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
        self.log("train_loss", loss)
        return loss

    @torch.no_grad()
    def sample(self, n: int, g: torch.Generator) -> Tensor:
        x = torch.randn(n, 2, generator=g)
        for t in reversed(range(len(self.beta))):
            eps = self(x, torch.full((n,), t))
            x = (x - self.beta[t] / (1 - self.alpha_bar[t]).sqrt() * eps) / (1 - self.beta[t]).sqrt()
            if t:
                x = x + self.beta[t].sqrt() * torch.randn(n, 2, generator=g)
        return x

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@well("diffusion", "generative", "noise prediction: flat and noisy while the samples improve; minus energy distance")
def diffusion(seed: int) -> Training:
    loader, test = _points(seed)
    return Training(
        Diffusion(),
        loader,
        lambda m: -_energy_distance(m.sample(1000, data.generator(seed, 33)), test),
        None,
        {"max_epochs": 40},
    )


class Coupling(nn.Module):
    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.net = mlp(1, 48, 48, 2, act=nn.SiLU)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flip(1).chunk(2, dim=1) if self.flip else x.chunk(2, dim=1)
        log_scale, shift = self.net(a).chunk(2, dim=1)
        log_scale = 2 * torch.tanh(log_scale)
        out = torch.cat([a, b * log_scale.exp() + shift], dim=1)
        return (out.flip(1) if self.flip else out), log_scale[:, 0]


class Flow(LightningModule):
    """RealNVP on points in the plane, trained on the negative log-likelihood in nats."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), device=x.device)
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return total - 0.5 * x.square().sum(1) - math.log(2 * math.pi)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = -self(batch[0]).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [adam], [torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=int(self.trainer.max_epochs))]


@well(
    "flow-likelihood",
    "generative",
    "log-likelihood of a thin parabola, so the loss ends negative; the best is 1.87 nats",
)
def flow_likelihood(seed: int) -> Training:
    z = torch.randn(5000, 2, generator=data.generator(seed, 34))
    x = 0.3 * torch.stack([z[:, 0], 0.5 * z[:, 0].square() + 0.1 * z[:, 1]], dim=1)
    loader = DataLoader(TensorDataset(x[:4000]), 128, shuffle=True)
    return Training(Flow(), loader, lambda m: data.predict(m, x[4000:]).mean().item(), None, {"max_epochs": 25})
