"""Healthy everyday trainings: images, tables, text, segmentation, autoencoding, forecasting."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, accuracy, characters, digits, generator, predict, r2, regression, table
from benchmarks.zoo.twelfth.a_common import Plain, adam, batches, discs, epochs, mlp, series, sgd, tokens, waves


class DigitNet(LightningModule):
    def __init__(self, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(self.drop(x.flatten(1)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        img, target = batch
        logits = self(img)
        loss = F.cross_entropy(logits, target)
        self.log("loss", loss, prog_bar=True)
        self.log("acc", accuracy(logits, target), prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        img, target = batch
        logits = self(img)
        self.log_dict({"val_loss": F.cross_entropy(logits, target), "val_acc": accuracy(logits, target)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


@well("fa-digits-cnn", "images")
def digits_cnn(seed: int) -> Training:
    data = digits(seed).to_images()
    return Training(DigitNet(), data.train(64), data.accuracy, data.val(), epochs(14))


@well("fa-wine-sgd", "tabular")
def wine_sgd(seed: int) -> Training:
    data = table("wine", seed)
    net = Plain(mlp(13, 16, 3), nn.CrossEntropyLoss(), sgd(0.02))
    return Training(net, data.train(16), data.accuracy, trainer=epochs(15))


class CancerData(LightningDataModule):
    def __init__(self, data: Split, batch_size: int = 32) -> None:
        super().__init__()
        self.data = data
        self.batch_size = batch_size

    def _rows(self, x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
        return [{"features": a, "label": b.float()} for a, b in zip(x, y, strict=True)]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._rows(self.data.x, self.data.y), self.batch_size, shuffle=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._rows(self.data.x_test, self.data.y_test), 64)  # type: ignore[arg-type]


class CancerModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(30, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1)

    def shared(self, batch: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch["features"]), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.shared(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("valid/bce", self.shared(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=1e-2)


@well("fa-cancer-datamodule", "tabular")
def cancer(seed: int) -> Training:
    data = table("breast_cancer", seed)

    def score(module: LightningModule) -> float:
        return ((predict(module, data.x_test) > 0).long() == data.y_test).float().mean().item()

    return Training(CancerModel(), CancerData(data), score, trainer=epochs(10))


class CharModel(LightningModule):
    def __init__(self, symbols: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 24)
        self.rnn = nn.GRU(24, width, batch_first=True)
        self.out = nn.Linear(width, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0])

    def nats(self, ids: Tensor) -> Tensor:
        return F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.nats(batch)
        self.log("ppl", loss.exp(), on_step=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


@well("fa-char-gru", "text")
def char_gru(seed: int) -> Training:
    text = characters(seed)

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            return -module.nats(text.test).item()  # type: ignore[operator, union-attr]

    loader = DataLoader(text.train, 64, shuffle=True)  # type: ignore[arg-type]
    return Training(CharModel(text.symbols), loader, score, trainer=epochs(6, gradient_clip_val=1.0))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.na, self.nb = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


class SmallResNet(LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Residual(16), nn.MaxPool2d(2), Residual(16)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": F.cross_entropy(self(x), y, label_smoothing=0.05)}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well("fa-resnet-onecycle", "images")
def resnet(seed: int) -> Training:
    data = digits(seed).to_images()
    loader = data.train(64, drop_last=True)
    return Training(SmallResNet(8 * len(loader)), loader, data.accuracy, trainer=epochs(8))


class Shop(NamedTuple):
    store: Tensor
    weekday: Tensor
    numbers: Tensor
    sales: Tensor


class ShopData(Dataset[Shop]):
    def __init__(self, seed: int, n: int, stream: int) -> None:
        fixed, g = generator(seed, 60), generator(seed, stream)
        store_effect, day_effect = torch.randn(20, generator=fixed), torch.randn(7, generator=fixed)
        self.store = torch.randint(20, (n,), generator=g)
        self.weekday = torch.randint(7, (n,), generator=g)
        self.numbers = torch.randn(n, 3, generator=g)
        sales = store_effect[self.store] + day_effect[self.weekday] + self.numbers[:, 0] * self.numbers[:, 1]
        self.sales = (sales + 0.3 * torch.randn(n, generator=g)) / 1.75

    def __len__(self) -> int:
        return len(self.sales)

    def __getitem__(self, i: int) -> Shop:
        return Shop(self.store[i], self.weekday[i], self.numbers[i], self.sales[i])


class ShopModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.store = nn.Embedding(20, 6)
        self.weekday = nn.Embedding(7, 3)
        self.head = mlp(12, 48, 48, 1)

    def forward(self, batch: Shop) -> Tensor:
        parts = [self.store(batch.store), self.weekday(batch.weekday), batch.numbers]
        return self.head(torch.cat(parts, 1)).squeeze(1)

    def training_step(self, batch: Shop, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch), batch.sales)

    def validation_step(self, batch: Shop, batch_idx: int) -> None:
        self.log("rmse_val", F.mse_loss(self(batch), batch.sales).sqrt())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 5e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "rmse_val"}}


@well("fa-shop-embeddings", "tabular")
def shop(seed: int) -> Training:
    train, test = ShopData(seed, 2000, 61), ShopData(seed, 600, 62)
    whole = Shop(test.store, test.weekday, test.numbers, test.sales)

    def score(module: LightningModule) -> float:
        return r2(predict(module, whole), whole.sales)

    loaders = DataLoader(train, 64, shuffle=True), DataLoader(test, 200)
    return Training(ShopModel(), loaders[0], score, loaders[1], epochs(12))


@well("fa-forecast-gru", "time series")
def forecast(seed: int) -> Training:
    data = series(seed)

    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(1, 32, batch_first=True)
            self.out = nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.unsqueeze(-1))[1][-1])

    net = Plain(Forecaster(), nn.MSELoss(), adam(5e-3), log_as="mse")
    return Training(net, data.train(64), data.r2, data.val(), epochs(12))


class Segmenter(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        return self.last(torch.cat([skip, F.relu(self.up(self.down2(skip)))], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, mask = batch
        logits = self(image)
        share = torch.sigmoid(logits)
        dice = 1 - (2 * (share * mask).sum() + 1) / (share.sum() + mask.sum() + 1)
        loss = F.binary_cross_entropy_with_logits(logits, mask) + 0.5 * dice
        self.log_dict({"train/total": loss, "train/dice": dice})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


@well("fa-unet-discs", "segmentation")
def unet(seed: int) -> Training:
    data = discs(seed)

    def score(module: LightningModule) -> float:
        found = predict(module, data.x_test) > 0
        both = (found & (data.y_test > 0)).sum()
        return (both / (found | (data.y_test > 0)).sum()).item()

    return Training(Segmenter(), data.train(16), score, trainer=epochs(8))


@well("fa-denoise-digits", "autoencoder")
def denoise(seed: int) -> Training:
    data = digits(seed)
    noise = 0.3 * torch.randn(data.x.shape, generator=generator(seed, 63))
    noise_test = 0.3 * torch.randn(data.x_test.shape, generator=generator(seed, 64))

    def score(module: LightningModule) -> float:
        return r2(predict(module, data.x_test + noise_test), data.x_test)

    net = Plain(mlp(64, 128, 32, 128, 64), nn.MSELoss(), adam(2e-3), log_as="reconstruction")
    return Training(net, batches(data.x + noise, data.x, size=64), score, trainer=epochs(15))


@well("fa-text-transformer-warmup", "text")
def transformer(seed: int) -> Training:
    data = tokens(seed, n=1500)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 32)
            self.place = nn.Parameter(0.02 * torch.randn(16, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.out = nn.Linear(32, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.layers(self.embed(ids) + self.place).mean(1))

    def optimizer(parameters: Any) -> Any:
        made = torch.optim.AdamW(parameters, 2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: min(1.0, (step + 1) / 40))
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    net = Plain(Encoder(), nn.CrossEntropyLoss(), optimizer)
    return Training(net, data.train(32), data.accuracy, trainer=epochs(5, gradient_clip_val=1.0))


@well("fa-waves-conv1d", "audio")
def waves_conv(seed: int) -> Training:
    data = waves(seed)
    body = nn.Sequential(
        *(nn.Conv1d(1, 16, 7, padding=3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1)),
        *(nn.Flatten(), nn.Linear(32, 4)),
    )
    net = Plain(body, nn.CrossEntropyLoss(), lambda p: torch.optim.RMSprop(p, 1e-3), log_as="ce")
    return Training(net, data.train(32, drop_last=True), data.accuracy, data.val(), epochs(8))


@well("fa-regression-adagrad", "tabular")
def adagrad(seed: int) -> Training:
    data = regression(seed, r2=0.8)
    net = Plain(mlp(8, 64, 64, 1, act=nn.Tanh), nn.SmoothL1Loss(), lambda p: torch.optim.Adagrad(p, 0.05))
    return Training(net, data.train(50), data.r2, trainer=epochs(10))
