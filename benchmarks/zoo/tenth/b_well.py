"""Healthy trainings as introductions write them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import (
    Split,
    accuracy,
    characters,
    digits,
    generator,
    moons,
    motifs,
    predict,
    regression,
    table,
)
from benchmarks.zoo.tenth.b_common import (
    Classifier,
    Logged,
    adam,
    adamw,
    dense,
    iou,
    molecules,
    r2_on,
    ratings,
    seasons,
    sgd,
    shapes,
    tagging,
    tones,
    topics,
)


class DigitImages(LightningDataModule):
    """Digits as images, a part of the training set kept for validation."""

    def __init__(self, seed: int, batch_size: int = 64) -> None:
        super().__init__()
        self.seed, self.batch_size = seed, batch_size
        self.task = digits(seed).to_images()

    def setup(self, stage: str) -> None:
        whole = TensorDataset(self.task.x, self.task.y)
        self.fit_part, self.val_part = random_split(whole, [0.9, 0.1], generator(self.seed, 260))

    def train_dataloader(self) -> Any:
        return DataLoader(self.fit_part, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val_part, self.batch_size)


class LitDigits(LightningModule):
    """The convolutional network of the first tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.dropout = nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(32 * 4, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        return F.log_softmax(self.fc2(x), 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.nll_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log("val_loss", F.nll_loss(out, y))
        self.log("val_acc", accuracy(out, y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("tb-everyday-digits-convnet", "images")
def digits_convnet(seed: int) -> Training:
    data = DigitImages(seed)
    return Training(LitDigits(), data, data.task.accuracy, trainer={"max_epochs": 15})


@well("tb-everyday-digits-step-schedule", "images")
def digits_step(seed: int) -> Training:
    task = digits(seed)

    def optimizer(parameters: Any) -> Any:
        opt = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.StepLR(opt, 5, 0.3)}

    return Training(
        Classifier(dense(64, 64, 10), optimizer), task.train(64), task.accuracy, task.val(), {"max_epochs": 15}
    )


@well("tb-everyday-iris-softmax", "tabular")
def iris_softmax(seed: int) -> Training:
    task = table("iris", seed)
    return Training(Classifier(nn.Linear(4, 3), sgd(0.2)), task.train(16), task.accuracy, trainer={"max_epochs": 30})


@well("tb-everyday-wine-dropout", "tabular")
def wine_dropout(seed: int) -> Training:
    task = table("wine", seed)
    net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    return Training(Classifier(net, adam(3e-3)), task.train(16), task.accuracy, task.val(), {"max_epochs": 15})


@well("tb-everyday-tumour-logistic", "tabular")
def tumour_logistic(seed: int) -> Training:
    task = table("breast_cancer", seed)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out.squeeze(1), y.float())

    def score(fitted: LightningModule) -> float:
        return ((predict(fitted, task.x_test)[:, 0] > 0).long() == task.y_test).float().mean().item()

    module = Logged(nn.Linear(30, 1), loss, adamw(1e-2, weight_decay=0.01))
    return Training(module, task.train(32), score, task.val(), {"max_epochs": 15})


@well("tb-everyday-diabetes-least-squares", "tabular")
def diabetes(seed: int) -> Training:
    task = table("diabetes", seed).map_targets(lambda y: y[:, None])
    return Training(
        Logged(nn.Linear(10, 1), nn.MSELoss(), sgd(0.03)), task.train(32), task.r2, task.val(), {"max_epochs": 20}
    )


class LitForecast(LightningModule):
    """An LSTM, the last state, one value ahead."""

    def __init__(self, hidden: int = 32, lr: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.linear(out[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=3)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


@well("tb-everyday-season-lstm", "series")
def season_lstm(seed: int) -> Training:
    task = seasons(seed)
    return Training(LitForecast(), task.train(32), task.r2, task.val(), {"max_epochs": 10})


class LitText(LightningModule):
    """Characters with a GRU, clipped."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 24)
        self.gru = nn.GRU(24, 64, batch_first=True)
        self.out = nn.Linear(64, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(ids))[0])

    def training_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.log("loss", loss)
        self.log("perplexity", loss.exp())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("tb-everyday-characters-gru", "text")
def characters_gru(seed: int) -> Training:
    text = characters(seed)

    def score(fitted: LightningModule) -> float:
        out = predict(fitted, text.test[:, :-1])
        return text.floor - F.cross_entropy(out.flatten(0, 1), text.test[:, 1:].flatten()).item()

    loader = DataLoader(text.train, 40, shuffle=True)
    return Training(LitText(text.symbols), loader, score, trainer={"max_epochs": 6, "gradient_clip_val": 1.0})


class LitVAE(LightningModule):
    """A variational autoencoder of digits: Bernoulli pixels, the loss summed over pixels and averaged over images."""

    def __init__(self, code: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mu, self.log_var = nn.Linear(64, code), nn.Linear(64, code)
        self.decoder = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.mu(self.encoder(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        hidden = self.encoder(x)
        mu, log_var = self.mu(hidden), self.log_var(hidden)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") / len(x)
        kl = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1).mean()
        self.log_dict({"recon_loss": recon, "kl_loss": kl, "elbo": -(recon + kl)})
        return recon + kl

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("tb-everyday-digits-vae", "autoencoder")
def digits_vae(seed: int) -> Training:
    task = digits(seed)
    loader = DataLoader(TensorDataset(task.x), 64, shuffle=True)
    return Training(LitVAE(), loader, lambda m: r2_on(m, task.x_test, task.x_test), trainer={"max_epochs": 25})


class LitDenoise(LightningModule):
    """Adds noise to images and learns to take it out."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        clean, _ = batch
        loss = F.mse_loss(self(clean + 0.2 * torch.randn_like(clean)), clean)
        self.log("train_mse", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@well("tb-everyday-digits-denoising", "autoencoder")
def digits_denoising(seed: int) -> Training:
    task = digits(seed).to_images()
    noisy = task.x_test + 0.2 * torch.randn(task.x_test.shape, generator=generator(seed, 261))
    return Training(LitDenoise(), task.train(32), lambda m: r2_on(m, noisy, task.x_test), trainer={"max_epochs": 12})


class LitGAN(LightningModule):
    """A generator of points against a discriminator, by manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = dense(4, 32, 32, 2)
        self.discriminator = dense(2, 32, 32, 1, act=lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        score_real, score_fake = self.discriminator(real), self.discriminator(fake.detach())
        loss_d = F.softplus(-score_real).mean() + F.softplus(score_fake).mean()
        opt_d.zero_grad()
        self.manual_backward(loss_d)
        opt_d.step()
        loss_g = F.softplus(-self.discriminator(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()
        self.log_dict({"g_loss": loss_g, "d_loss": loss_d}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=5e-4, betas=(0.0, 0.9)),
            torch.optim.Adam(self.discriminator.parameters(), lr=5e-3, betas=(0.0, 0.9)),
        ]


@well("tb-everyday-gan-of-points", "gan")
def gan_points(seed: int) -> Training:
    g = generator(seed, 262)
    real = torch.randn(2560, 2, generator=g) @ torch.tensor([[0.9, 0.5], [0.0, 0.5]]) + torch.tensor([0.8, -0.6])
    z = torch.randn(2000, 4, generator=g)

    def score(fitted: LightningModule) -> float:
        """One minus the distance of means and covariances from the true ones."""
        fake = predict(fitted, z)
        mean = (fake.mean(0) - real.mean(0)).abs().max()
        return 1 - torch.maximum(mean, (fake.T.cov() - real.T.cov()).abs().max()).item()

    loader = DataLoader(TensorDataset(real), 64, shuffle=True)
    return Training(LitGAN(), loader, score, trainer={"max_epochs": 15})


class LitTransformer(LightningModule):
    """An encoder over embedded tokens with positions; one-cycle schedule over the run."""

    def __init__(self, symbols: int, tags: int, length: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(symbols, 32), nn.Embedding(length, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, tags)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]).transpose(1, 2), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits.transpose(1, 2), batch[1]))
        self.log("val_acc", accuracy(logits, batch[1]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(opt, 5e-3, total_steps=steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@well("tb-everyday-tagging-transformer", "text")
def tagging_transformer(seed: int) -> Training:
    task = tagging(seed, n=2000)
    module = LitTransformer(40, 12, 14)

    def score(fitted: LightningModule) -> float:
        return accuracy(predict(fitted, task.x_test), task.y_test)

    return Training(module, task.train(32), score, task.val(), {"max_epochs": 8, "gradient_clip_val": 1.0})


class LitFactors(LightningModule):
    """Embeddings of users and items, their product and biases."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        nn.init.normal_(self.user.weight, std=0.3)
        nn.init.normal_(self.item.weight, std=0.3)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.user(pairs[:, 0]) * self.item(pairs[:, 1])).sum(1) + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_rmse", loss.sqrt())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_rmse", F.mse_loss(self(batch[0]), batch[1]).sqrt())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-4)


@well("tb-everyday-ratings-factors", "recommender")
def ratings_factors(seed: int) -> Training:
    task = ratings(seed, rank=3, noise=0.3, share=0.8)
    return Training(LitFactors(80, 60, 3), task.train(64), task.r2, task.val(), {"max_epochs": 12})


class LitUNet(LightningModule):
    """Two levels with a skip; cross-entropy plus Dice."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1 = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.enc2 = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.dec = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.up(self.enc2(F.max_pool2d(a, 2)))
        return self.dec(torch.cat([a, b], 1))

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        p = logits.sigmoid()
        dice = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, mask) + dice

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val/loss", self.loss(logits, batch[1]))
        self.log("val/iou", iou(logits.sigmoid(), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@well("tb-everyday-discs-unet", "segmentation")
def discs_unet(seed: int) -> Training:
    task = shapes(seed)

    def score(fitted: LightningModule) -> float:
        return iou(predict(fitted, task.x_test).sigmoid(), task.y_test)

    return Training(LitUNet(), task.train(16), score, task.val(50), {"max_epochs": 5})


class Triplets(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Anchor, another of its class, one of another class; all drawn beforehand."""

    def __init__(self, x: Tensor, y: Tensor, seed: int) -> None:
        g = generator(seed, 263)
        draws = torch.rand(len(x), 2, generator=g)
        members = [torch.nonzero(y == c)[:, 0] for c in range(int(y.max()) + 1)]
        others = [torch.nonzero(y != c)[:, 0] for c in range(int(y.max()) + 1)]
        same = [members[c][int(d * len(members[c]))] for c, d in zip(y.tolist(), draws[:, 0].tolist(), strict=True)]
        apart = [others[c][int(d * len(others[c]))] for c, d in zip(y.tolist(), draws[:, 1].tolist(), strict=True)]
        self.rows = (x, x[torch.stack(same)], x[torch.stack(apart)])

    def __len__(self) -> int:
        return len(self.rows[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = self.rows
        return a[index], b[index], c[index]


class LitMetric(LightningModule):
    """An embedding trained by triplets."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = dense(64, 64, 16)
        self.criterion = nn.TripletMarginLoss(margin=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, p, n = batch
        loss = self.criterion(self(a), self(p), self(n))
        self.log("triplet", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@well("tb-everyday-digits-triplets", "metric")
def digits_triplets(seed: int) -> Training:
    task = digits(seed)

    def score(fitted: LightningModule) -> float:
        """Accuracy of the nearest neighbour among the training images."""
        near = torch.cdist(predict(fitted, task.x_test), predict(fitted, task.x)).argmin(1)
        return (task.y[near] == task.y_test).float().mean().item()

    loader = DataLoader(Triplets(task.x, task.y, seed), 64, shuffle=True)
    return Training(LitMetric(), loader, score, trainer={"max_epochs": 10})


@well("tb-everyday-multi-label", "tabular")
def multi_label(seed: int) -> Training:
    g = generator(seed, 264)
    x = torch.randn(2600, 12, generator=g)
    w = torch.randn(12, 5, generator=g) / math.sqrt(12)
    logit = 3 * (x @ w) + 1.5 * torch.tanh(x[:, :5] * x[:, 1:6])
    y = (torch.rand(2600, 5, generator=g) < logit.sigmoid()).float()
    task = Split(x[:2000], y[:2000], x[2000:], y[2000:])

    def score(fitted: LightningModule) -> float:
        return ((predict(fitted, task.x_test) > 0) == (task.y_test > 0.5)).float().mean().item()

    module = Logged(dense(12, 24, 5), nn.BCEWithLogitsLoss(), adam(3e-3, weight_decay=1e-4))
    return Training(module, task.train(64), score, task.val(), {"max_epochs": 10})


class LitGCN(LightningModule):
    """A graph convolution over small molecules; dict batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 32), nn.Linear(36, 32)
        self.head = dense(32, 32, 1)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        adjacency, feature = graph
        hidden = F.relu(self.first(adjacency @ feature))
        return self.head(F.relu(self.second(torch.cat([hidden, feature], -1))).mean(1)).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self((batch["adj"], batch["x"])), batch["y"])
        self.log("train_mse", loss, batch_size=len(batch["y"]))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("tb-everyday-molecules-gcn", "graph")
def molecules_gcn(seed: int) -> Training:
    adjacency, feature, y = molecules(seed)
    rows = [{"adj": a, "x": f, "y": t} for a, f, t in zip(adjacency[:800], feature[:800], y[:800], strict=True)]

    def score(fitted: LightningModule) -> float:
        return r2_on(fitted, (adjacency[800:], feature[800:]), y[800:])

    return Training(LitGCN(), DataLoader(rows, 32, shuffle=True), score, trainer={"max_epochs": 15})


class LitNews(LightningModule):
    """The bag of embeddings of the text tutorial, with plain SGD and a decaying rate."""

    def __init__(self, symbols: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(symbols, 32)
        self.fc = nn.Linear(32, classes)
        self.embedding.weight.data.uniform_(-0.5, 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.embedding(tokens))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.log("train_acc", accuracy(logits, batch[1]), prog_bar=True)
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=3.0)
        return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)]


@well("tb-everyday-news-embedding-bag", "text")
def news_bag(seed: int) -> Training:
    task = topics(seed, n=2500)
    return Training(
        LitNews(300, 6), task.train(16), task.accuracy, task.val(), {"max_epochs": 5, "gradient_clip_val": 1.0}
    )


class Residual(nn.Module):
    """Two normalised convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, width, 5, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2, bias=False),
            nn.BatchNorm1d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


@well("tb-everyday-tones-resnet-cosine", "audio")
def tones_resnet(seed: int) -> Training:
    task = tones(seed, n=1200, noise=0.8)
    net = nn.Sequential(
        nn.Conv1d(1, 16, 7, 4, 3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        Residual(16),
        Residual(16),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )

    def optimizer(parameters: Any) -> Any:
        opt = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)}

    return Training(Classifier(net, optimizer), task.train(40), task.accuracy, task.val(), {"max_epochs": 8})


@well("tb-everyday-moons-early-stopping", "tabular")
def moons_early(seed: int) -> Training:
    task = moons(seed)
    module = Classifier(dense(2, 32, 32, 2, act=nn.Tanh), adam(5e-3))
    trainer = {"max_epochs": 20, "callbacks": [EarlyStopping("val_loss", patience=5)]}
    return Training(module, task.train(32), task.accuracy, task.val(), trainer)


@well("tb-everyday-table-huber-adagrad", "tabular")
def table_huber(seed: int) -> Training:
    task = regression(seed, r2=0.9)
    module = Logged(dense(8, 64, 64, 1, act=nn.SiLU), nn.SmoothL1Loss(), lambda p: torch.optim.Adagrad(p, lr=0.03))
    return Training(module, task.train(50), task.r2, task.val(), {"max_epochs": 12})


@well("tb-everyday-motifs-accumulated", "sequences")
def motifs_accumulated(seed: int) -> Training:
    task = motifs(seed, n=1600)
    net = nn.Sequential(
        nn.Flatten(1),
        nn.Unflatten(1, (1, 32)),
        nn.Conv1d(1, 32, 7, padding=3),
        nn.ReLU(),
        nn.Conv1d(32, 32, 7, padding=3),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    module = Classifier(net, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    return Training(module, task.train(8), task.accuracy, task.val(), {"max_epochs": 6, "accumulate_grad_batches": 4})
