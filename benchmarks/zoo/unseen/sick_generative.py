"""A GAN, a VAE, a writer and a bandit that are ill, and a task that gives gradients nothing to hold on to."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, predict
from benchmarks.zoo.unseen._common import Fit, adam, batches, dense, dicts, held_out


class Spiral(LightningModule):
    """A GAN for two points; the generator's own loss looks at samples that were detached for the critic."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = dense(4, 48, 2), dense(2, 48, 48, 1, act=lambda: nn.LeakyReLU(0.2))
        self.detached = detached

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real = batch["point"]
        for_generator, for_critic = self.optimizers()  # type: ignore[misc,union-attr]
        fake = self(torch.randn(len(real), 4))
        critic_loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        for_critic.zero_grad()
        self.manual_backward(critic_loss)
        for_critic.step()
        generator_loss = F.softplus(-self.critic(fake.detach() if self.detached else fake)).mean()
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.log_dict({"loss/generator": generator_loss, "loss/critic": critic_loss})

    def configure_optimizers(self) -> Any:
        adams = [
            torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9))
            for net, lr in ((self.generator, 1e-3), (self.critic, 3e-3))
        ]
        return adams, []


@sick("u-generator-sees-detached-fakes", "gan", "parameters-not-optimized", twin=lambda s: fakes(s, False))
def fakes(seed: int, detached: bool = True) -> Training:
    g = data.generator(seed, 101)
    points = torch.randn(1200, 2, generator=g) * 0.3 + torch.tensor([3.0, -2.0])
    z = torch.randn(400, 4, generator=g)
    score = lambda m: -(predict(m, z).mean(0) - points.mean(0)).norm().item()  # noqa: E731
    return Training(Spiral(detached), dicts(60, point=points), score, trainer={"max_epochs": 25})


class Codes(LightningModule):
    """A VAE: the mean over pixels beside a divergence summed over the code."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.beta = dense(64, 96, 12), dense(6, 96, 64), beta

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[:, :6])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        fit = F.mse_loss(self.decoder(z), x)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        self.log_dict({"fit": fit, "kl": kl})
        return fit + self.beta * kl

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@sick("u-divergence-outweighs-pictures", "vae", "excess-regularization", twin=lambda s: codes(s, 5e-4))
def codes(seed: int, beta: float = 1.0) -> Training:
    d = data.digits(seed)
    score = Split(d.x, d.x, d.x_test, d.x_test).r2
    return Training(Codes(beta), d.train(64), score, trainer={"max_epochs": 20})


class Copyist(LightningModule):
    """Sequence to sequence with attention: shifts each letter by three."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.source, self.target = nn.Embedding(10, 32), nn.Embedding(11, 32)
        self.place = nn.Parameter(0.3 * torch.randn(8, 32))
        self.net = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = (x + 3) % 10
        begun = torch.cat([torch.full_like(y[:, :1], 10), y[:, :-1]], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        h = self.net(self.source(x) + self.place, self.target(begun) + self.place, tgt_mask=mask, tgt_is_causal=True)
        return self.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        (x,) = batch
        loss = F.cross_entropy(self(x).transpose(1, 2), (x + 3) % 10)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


@sick("u-copyist-at-a-fifth", "seq2seq", "learning-rate-too-high", twin=lambda s: copyist(s, 3e-3))
def copyist(seed: int, lr: float = 0.2) -> Training:
    x = torch.randint(10, (1500, 8), generator=data.generator(seed, 102))
    train: Any = DataLoader(TensorDataset(x[:1200]), 40, shuffle=True)
    score = lambda m: (predict(m, x[1200:]).argmax(-1) == (x[1200:] + 3) % 10).float().mean().item()  # noqa: E731
    return Training(Copyist(lr), train, score, trainer={"max_epochs": 8, "gradient_clip_val": 1.0})


@sick("u-copyist-barely-moves", "seq2seq", "learning-rate-too-low", twin=lambda s: copyist(s, 3e-3))
def copyist_slow(seed: int) -> Training:
    return copyist(seed, 5e-7)


@sick(
    "u-parity-of-twelve-bits",
    "mlp",
    "never-learned",
    "uninformative-targets",
    "insufficient-capacity",
    note="the labels follow from the inputs, but no gradient says how: from the run alone they look like noise",
    twin=lambda s: parity(s, 2),
)
def parity(seed: int, bits: int = 12) -> Training:
    x = torch.randint(2, (6000, 24), generator=data.generator(seed, 103)).float() * 2 - 1
    d = data.split(x, (x[:, :bits].prod(1) > 0).long(), seed)
    module = Fit(dense(24, 32, 2), F.cross_entropy, adam(5e-3))
    return Training(module, batches(d.x, d.y, 64), d.accuracy, held_out(d.x_test, d.y_test), {"max_epochs": 6})


# --- brief runs -------------------------------------------------------------------------------------------------------


@sick("u-thirty-steps-at-forty", "mlp", "learning-rate-too-high", twin=lambda s: thirty_steps(s, 0.1))
def thirty_steps(seed: int, lr: float = 40.0) -> Training:
    d = data.table("wine", seed)
    module = Fit(dense(13, 16, 3), F.cross_entropy, lambda p: torch.optim.SGD(p, lr))
    return Training(module, d.train(16), d.accuracy, None, {"max_steps": 36})


@sick("u-thirty-steps-of-softmax", "mlp", "probabilities-as-logits", twin=lambda s: thirty_soft(s, nn.Identity()))
def thirty_soft(seed: int, last: nn.Module | None = None) -> Training:
    d = data.digits(seed)
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10), last or nn.Softmax(dim=-1))
    return Training(Fit(net, nn.CrossEntropyLoss(), adam(1e-2)), d.train(40), d.accuracy, None, {"max_steps": 34})


@sick("u-forty-steps-unscaled-diabetes", "linear", "unscaled-targets", twin=lambda s: forty(s, True))
def forty(seed: int, standardise: bool = False) -> Training:
    d = data.table("diabetes", seed)
    y, y_test = d.y.reshape(-1, 1), d.y_test.reshape(-1, 1)
    if not standardise:
        y, y_test = 152 + 77 * y, 152 + 77 * y_test
    module = Fit(nn.Linear(10, 1), F.mse_loss, adam(0.05))
    return Training(module, batches(d.x, y, 40), Split(d.x, y, d.x_test, y_test).r2, None, {"max_epochs": 5})
