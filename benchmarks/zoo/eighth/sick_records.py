"""What the loader hands over: scales, missing entries, odd rows, orders, splits, and labels that say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, sick
from benchmarks.zoo.data import Split, accuracy, generator, predict
from benchmarks.zoo.eighth._common import (
    Module,
    Plain,
    Series,
    Task,
    Tastes,
    beat_net,
    beats,
    loader,
    marks,
    minus,
    mlp,
    notes,
    picture_net,
    visits,
    walks,
    yields,
)

# --- missing entries --------------------------------------------------------------------------------------------------


class Readings(Dataset[Any]):
    """Rows as dicts, with a feature computed in __getitem__."""

    def __init__(self, x: Tensor, y: Tensor, ill: bool) -> None:
        self.x, self.y, self.ill = x, y, ill

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = self.x[i]
        flow = row[4].abs().round(decimals=1)
        ratio = row[5] / flow if self.ill else row[5] / flow.clamp(min=0.5)
        return {"row": torch.cat([row, ratio.clamp(-4, 4).reshape(1)]), "yield": self.y[i]}


class Yields(Plain):
    def step_loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch["row"]), batch["yield"])


@sick("k-ratio-of-flows", "mlp", "nonfinite-inputs", twin=lambda s: ratio_flows(s, False), note="0 / 0 in a feature")
def ratio_flows(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    x = d.x.clone()
    x[::97, 4:] = 0.0
    rows: Any = Readings(x, d.y, ill)
    test = torch.stack([r["row"] for r in Readings(d.x_test, d.y_test, False)])
    score = replace(d, x_test=test).r2
    return Training(
        Yields(mlp(7, 48, 48, 1), 4e-3), DataLoader(rows, 40, shuffle=True), score, trainer={"max_epochs": 7}
    )


@sick("k-recorder-gaps", "cnn1d", "nonfinite-inputs", twin=lambda s: recorder_gaps(s, False))
def recorder_gaps(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    x = d.x.clone()
    g = generator(seed, 93)
    rows = torch.randperm(len(x), generator=g)[:6]
    x[rows, 0, 20:24] = float("nan") if ill else 0.0
    module = Task(beat_net(), F.cross_entropy, lr=3e-3)
    return Training(module, loader(x, d.y), d.accuracy, trainer={"max_epochs": 7, "gradient_clip_val": 1.0})


@sick(
    "k-logs-of-sales",
    "lstm",
    "nonfinite-inputs",
    twin=lambda s: logs_of_sales(s, False),
    note="log of a sale of zero in the preparation of the table",
)
def logs_of_sales(seed: int, ill: bool = True) -> Training:
    d = walks(seed)

    def log(x: Tensor) -> Tensor:
        sales = (10 * (x + 1.5)).clamp(min=0).round()
        return torch.log(sales if ill else sales + 1) - 2.5

    x, y = d.x.clone(), d.y
    x[torch.randperm(len(x), generator=generator(seed, 94))[:25], 3] = -1.5
    test = d.x_test.clamp(min=-1.3)
    module = Task(Series(nn.LSTM, 1, 20, 1), F.smooth_l1_loss, lr=5e-3)
    return Training(module, loader(log(x), y), replace(d, x_test=log(test)).r2, trainer={"max_steps": 200})


# --- scales -----------------------------------------------------------------------------------------------------------


@sick("k-wine-as-it-is", "mlp", "unscaled-inputs", "disparate-feature-scales", twin=lambda s: wine_as_is(s, False))
def wine_as_is(seed: int, ill: bool = True) -> Training:
    d = data.table("wine", seed, standardise=not ill)
    module = Task(mlp(13, 32, 3), nn.CrossEntropyLoss(), lr=0.03, kind="SGD")
    return Training(module, d.train(16), d.accuracy, d.val(), {"max_epochs": 20})


class Sensor(Plain):
    """The recorder writes microvolts; the transform should bring them to volts."""

    factor = 1.0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x * self.factor, y

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@sick("k-signals-in-volts", "cnn1d", "unscaled-inputs", twin=lambda s: signals_in_volts(s, False))
def signals_in_volts(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    module = Sensor(beat_net(), 2e-3)
    module.factor = 1e-4 if ill else 1.0
    score = replace(d, x_test=d.x_test * module.factor).accuracy
    return Training(module, loader(d.x, d.y), score, trainer={"max_epochs": 6})


@sick("k-forecast-of-visitors", "gru", "unscaled-inputs", twin=lambda s: visitors(s, False))
def visitors(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    scale, shift = (400.0, 2500.0) if ill else (1.0, 0.0)
    module = Task(Series(nn.GRU, 1, 24, 1), F.mse_loss, lr=5e-3)
    score = replace(d, x_test=d.x_test * scale + shift).r2
    return Training(module, loader(d.x * scale + shift, d.y), score, trainer={"max_epochs": 6})


@sick("k-survey-columns", "mlp", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: survey(s, False))
def survey(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    scale = torch.tensor([1e-3, 1.0, 0.01, 1.0, 300.0, 1.0]) if ill else torch.ones(6)
    module = Task(mlp(6, 64, 1), F.mse_loss, lr=5e-3)
    rows = Module((d.x * scale, d.y), (d.x_test * scale, d.y_test))
    return Training(module, rows, replace(d, x_test=d.x_test * scale).r2, trainer={"max_epochs": 8})


@sick("k-visits-with-income", "poisson", "disparate-feature-scales", "unscaled-inputs", twin=lambda s: income(s, False))
def income(seed: int, ill: bool = True) -> Training:
    d = visits(seed)
    change = (lambda x: torch.cat([x[:, :4], 9e3 * x[:, 4:] + 4e4], 1)) if ill else (lambda x: x)
    loss = nn.PoissonNLLLoss(log_input=False, eps=1e-3)
    net = nn.Sequential(mlp(5, 32, 1), nn.Softplus(), nn.Flatten(0))
    score = minus(loss, change(d.x_test), d.y_test)
    return Training(Task(net, loss, lr=5e-3), loader(change(d.x), d.y), score, trainer={"max_epochs": 6})


@sick("k-rents-in-euros", "mlp", "unscaled-targets", twin=lambda s: rents(s, False))
def rents(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    if ill:
        d = d.map_targets(lambda y: 350 * y + 1400)
    return Training(Task(mlp(6, 48, 1), F.mse_loss, lr=2e-3), loader(d.x, d.y), d.r2, trainer={"max_epochs": 6})


@sick("k-two-outputs", "multi-task", "unscaled-targets", twin=lambda s: two_outputs(s, False))
def two_outputs(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    both = lambda x, y: torch.cat([y, (x[:, 4:5] * x[:, 5:6]) * (2000.0 if ill else 1.0)], 1)  # noqa: E731
    d = replace(d, y=both(d.x, d.y), y_test=both(d.x_test, d.y_test))
    score = lambda m: data.r2(predict(m, d.x_test)[:, 0], d.y_test[:, 0])  # noqa: E731
    module = Task(mlp(6, 64, 64, 2), F.mse_loss, lr=4e-3)
    return Training(module, loader(d.x, d.y), score, trainer={"max_epochs": 8, "log_every_n_steps": 1})


# --- codes and columns ------------------------------------------------------------------------------------------------


def district(seed: int, ill: bool, n: int = 1200) -> Split:
    """Two measurements and the code of one of twelve districts, each with a level of its own."""
    g = generator(seed, 95)
    level = torch.randn(12, generator=g)
    code = torch.randint(12, (n + 600,), generator=g)
    x = torch.randn(n + 600, 2, generator=g)
    y = (level[code] + 0.3 * x[:, 0] + 0.1 * torch.randn(n + 600, generator=g))[:, None]
    column = code[:, None].float() if ill else F.one_hot(code, 12).float()
    x = torch.cat([x, column], 1)
    return Split(x[:n], y[:n], x[n:], y[n:])


@sick("k-district-column", "mlp", "categorical-as-numeric", twin=lambda s: district_column(s, False))
def district_column(seed: int, ill: bool = True) -> Training:
    d = district(seed, ill)
    module = Task(mlp(d.x.shape[1], 32, 1), F.mse_loss, lr=3e-3)
    return Training(module, loader(d.x, d.y), d.r2, loader(d.x_test, d.y_test, shuffle=False), {"max_epochs": 7})


@sick("k-user-number", "recommender", "categorical-as-numeric", twin=lambda s: user_number(s, False))
def user_number(seed: int, ill: bool = True) -> Training:
    d = marks(seed, users=12, items=10)
    if ill:
        net: nn.Module = mlp(2, 32, 32, 1)
        x, test = d.x.float(), d.x_test.float()
    else:
        net = mlp(22, 32, 32, 1)
        x, test = (torch.cat([F.one_hot(v[:, 0], 12), F.one_hot(v[:, 1], 10)], 1).float() for v in (d.x, d.x_test))
    module = Task(nn.Sequential(net, nn.Flatten(0)), F.mse_loss, lr=5e-3)
    return Training(module, loader(x, d.y, size=64), replace(d, x_test=test).r2, trainer={"max_epochs": 8})


class Standard:
    """A transform with a mean and a deviation; the deviation of a stray axis flattens every picture."""

    def __init__(self, ill: bool) -> None:
        self.ill = ill

    def __call__(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) if self.ill else x - x.mean()


class Pictures(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor, transform: Any) -> None:
        self.x, self.y, self.transform = x, y, transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.x[i]), self.y[i]


@sick(
    "k-centred-pictures",
    "cnn",
    "constant-inputs",
    twin=lambda s: centred_pictures(s, False),
    note="the mean is taken over the channel axis, of length one, so that every picture is nought",
)
def centred_pictures(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    change = Standard(ill)
    rows: Any = Pictures(d.x, d.y, change)
    score = replace(d, x_test=torch.stack([change(x) for x in d.x_test])).accuracy
    module = Task(picture_net(), F.cross_entropy, lr=2e-3)
    return Training(module, DataLoader(rows, 32, shuffle=True), score, trainer={"max_epochs": 4})


@sick(
    "k-same-window",
    "gru",
    "constant-inputs",
    "uninformative-targets",
    twin=lambda s: same_window(s, False),
    note="__getitem__ forgets the index, and hands out the first window with each target",
)
def same_window(seed: int, ill: bool = True) -> Training:
    d = walks(seed)

    class Windows(Dataset[Any]):
        def __len__(self) -> int:
            return len(d.x)

        def __getitem__(self, i: int) -> Any:
            start = 0 if ill else i
            return d.x[start], d.y[i]

    rows: Any = Windows()
    module = Task(Series(nn.GRU, 1, 16, 1), F.mse_loss, lr=5e-3)
    return Training(module, DataLoader(rows, 45, shuffle=True), d.r2, trainer={"max_epochs": 6})


# --- odd rows ---------------------------------------------------------------------------------------------------------


@sick("k-slipped-points", "mlp", "corrupt-samples", twin=lambda s: slipped_points(s, False))
def slipped_points(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    y = d.y.clone()
    rows = torch.randperm(len(y), generator=generator(seed, 96))[:5]
    if ill:
        y[rows] *= 1000
    module = Task(mlp(6, 48, 48, 1), F.mse_loss, lr=0.02, kind="SGD", momentum=0.9)
    return Training(module, loader(d.x, y), d.r2, trainer={"max_epochs": 8})


@sick("k-cosmic-rays", "autoencoder", "corrupt-samples", twin=lambda s: cosmic_rays(s, False))
def cosmic_rays(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed)
    x = d.x.clone()
    g = generator(seed, 97)
    rows = torch.randperm(len(x), generator=g)[:8]
    if ill:
        x[rows, torch.randint(64, (8,), generator=g)] = 2000.0
    score = lambda m: data.r2(predict(m, d.x_test), d.x_test)  # noqa: E731
    return Training(Task(mlp(64, 32, 12, 32, 64), F.mse_loss, lr=3e-3), loader(x, x), score, trainer={"max_epochs": 7})


@sick(
    "k-one-bad-file",
    "cnn1d",
    "corrupt-samples",
    twin=lambda s: one_bad_file(s, False),
    note="one file of recordings, which makes up one batch, was read with the wrong byte width",
)
def one_bad_file(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    files = list(zip(d.x.split(40), d.y.split(40), strict=True))
    if ill:
        files[17] = (files[17][0] * 3e4, files[17][1])
    module = Task(beat_net(), F.cross_entropy, lr=0.05, kind="SGD", momentum=0.9)
    rows: Any = DataLoader(files, batch_size=None, shuffle=True)  # type: ignore[arg-type]
    return Training(module, rows, d.accuracy, trainer={"max_epochs": 7})


# --- shares, orders, splits -------------------------------------------------------------------------------------------


def recall(d: Split) -> Any:
    def score(module: Any) -> float:
        answer = predict(module, d.x_test).argmax(-1)
        return torch.stack([(answer[d.y_test == k] == k).float().mean() for k in d.y_test.unique()]).mean().item()

    return score


@sick("k-rare-notes", "text", "class-imbalance", twin=lambda s: rare_notes(s, False))
def rare_notes(seed: int, ill: bool = True) -> Training:
    d = notes(seed, n=3000)
    few = torch.nonzero(d.y == 1).flatten()[:40]
    keep = torch.cat([torch.nonzero(d.y == 0).flatten(), few])
    x, y = d.x[keep], d.y[keep]
    weight = None if ill else torch.tensor([1.0, len(y) / len(few) - 1])
    net = nn.Sequential(nn.EmbeddingBag(40, 16), nn.Linear(16, 2))
    module = Task(net, nn.CrossEntropyLoss(weight=weight), lr=5e-3)
    return Training(module, loader(x, y, size=48), recall(d), trainer={"max_epochs": 7})


@sick("k-faults-of-a-line", "mlp", "class-imbalance", twin=lambda s: faults(s, False))
def faults(seed: int, ill: bool = True) -> Training:
    share = torch.tensor([0.97, 0.015, 0.015])
    d = data.blobs(seed, classes=3, columns=6, n=2500, spread=1.6, shares=share)
    even = data.blobs(seed, classes=3, columns=6, n=2500, spread=1.6, shares=share)
    weight = 1 / torch.bincount(d.y).float()
    sampler = None if ill else WeightedRandomSampler(weight[d.y].tolist(), len(d.y))
    rows = loader(d.x, d.y, size=64, shuffle=ill, sampler=sampler)
    return Training(Task(mlp(6, 16, 3), F.cross_entropy, lr=3e-3), rows, recall(even), trainer={"max_epochs": 5})


@sick("k-digits-by-folder", "cnn", "unshuffled-data", twin=lambda s: by_folder(s, False))
def by_folder(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    order = d.y.argsort()
    rows = loader(d.x[order], d.y[order], shuffle=not ill)
    return Training(Task(picture_net(), F.cross_entropy, lr=3e-3), rows, d.accuracy, trainer={"max_epochs": 5})


@sick("k-signals-by-kind", "cnn1d", "unshuffled-data", twin=lambda s: by_kind(s, False))
def by_kind(seed: int, ill: bool = True) -> Training:
    d = beats(seed)
    order = d.y.argsort(stable=True)
    rows = Module((d.x[order], d.y[order]), (d.x_test, d.y_test))
    if ill:
        rows.train_dataloader = lambda: loader(d.x[order], d.y[order], shuffle=False)  # type: ignore[method-assign]
    module = Task(beat_net(), F.cross_entropy, lr=0.05, kind="SGD", momentum=0.9)
    return Training(module, rows, d.accuracy, trainer={"max_epochs": 6})


def gap(x: Tensor, y: Tensor, unseen: tuple[Tensor, Tensor]) -> Any:
    """Minus how far the accuracy on the validation set stands above that on rows never seen."""
    return lambda m: -abs(accuracy(predict(m, x), y) - accuracy(predict(m, unseen[0]), unseen[1]))


@sick("k-split-after-copies", "mlp", "train-val-leakage", "overfitting", twin=lambda s: after_copies(s, False))
def after_copies(seed: int, ill: bool = True) -> Training:
    d = data.blobs(seed, classes=3, columns=30, n=400, spread=1.5)
    x, y = (d.x[:200].repeat(2, 1), d.y[:200].repeat(2)) if ill else (d.x, d.y)
    order = torch.randperm(400, generator=generator(seed, 98)) if ill else torch.arange(400)
    fit, val = order[:260], order[260:]
    rows = Module((x[fit], y[fit]), (x[val], y[val]), 20)
    score = gap(x[val], y[val], (d.x_test, d.y_test))
    return Training(Task(mlp(30, 64, 3), F.cross_entropy, lr=3e-3), rows, score, trainer={"max_epochs": 16})


@sick("k-val-inside-train", "cnn1d", "train-val-leakage", "overfitting", twin=lambda s: val_inside(s, False))
def val_inside(seed: int, ill: bool = True) -> Training:
    d = beats(seed, n=300, length=16)
    flipped = data.flip_labels(d.y, 0.3, 4, seed)
    cut = 0 if ill else 100
    rows = loader(d.x[cut:], flipped[cut:], size=20)
    val = loader(d.x[:100], flipped[:100], shuffle=False)
    noisy = data.flip_labels(d.y_test, 0.3, 4, seed + 1)
    module = Task(nn.Sequential(nn.Flatten(), mlp(16, 128, 128, 4)), F.cross_entropy, lr=3e-3)
    return Training(module, rows, gap(d.x[:100], flipped[:100], (d.x_test, noisy)), val, {"max_epochs": 12})


@sick("k-thirty-digits", "cnn", "too-little-data", "overfitting", twin=lambda s: thirty_digits(s, False))
def thirty_digits(seed: int, ill: bool = True) -> Training:
    d = data.digits(seed).to_images()
    n = 30 if ill else len(d.x)
    rows = loader(d.x[:n], d.y[:n], size=15)
    steps = {
        "max_steps": 200,
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "val_check_interval": 2 if ill else 20,
    }
    if ill:
        steps |= {"check_val_every_n_epoch": 10, "val_check_interval": 1.0}
    return Training(Task(picture_net(), F.cross_entropy, lr=3e-3), rows, d.accuracy, d.val(), steps)


@sick("k-a-few-yields", "mlp", "too-little-data", "overfitting", twin=lambda s: few_yields(s, False))
def few_yields(seed: int, ill: bool = True) -> Training:
    d = yields(seed)
    n = 24 if ill else 1200
    steps = {"max_steps": 240, "max_epochs": -1, "log_every_n_steps": 10}
    module = Task(mlp(6, 64, 64, 1), F.mse_loss, lr=3e-3)
    return Training(module, loader(d.x[:n], d.y[:n], size=12), d.r2, loader(d.x_test, d.y_test, shuffle=False), steps)


# --- labels that say nothing ------------------------------------------------------------------------------------------


@sick("k-sorted-answers", "mlp", "uninformative-targets", twin=lambda s: sorted_answers(s, False))
def sorted_answers(seed: int, ill: bool = True) -> Training:
    d = data.table("breast_cancer", seed)
    y = d.y.sort().values if ill else d.y
    module = Task(mlp(30, 16, 2), F.cross_entropy, lr=2e-3)
    return Training(module, loader(d.x, y, size=24), d.accuracy, d.val(), {"max_epochs": 8})


class Collate:
    """Two shuffles where there should be one."""

    def __init__(self, ill: bool) -> None:
        self.ill = ill

    def __call__(self, rows: list[Any]) -> Any:
        x, y = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
        one = torch.randperm(len(rows))
        return x[one], y[torch.randperm(len(rows))] if self.ill else y[one]


@sick("k-forecast-collate", "lstm", "uninformative-targets", twin=lambda s: forecast_collate(s, False))
def forecast_collate(seed: int, ill: bool = True) -> Training:
    d = walks(seed)
    module = Task(Series(nn.LSTM, 1, 16, 1), F.mse_loss, lr=5e-3)
    return Training(module, loader(d.x, d.y, size=45, collate_fn=Collate(ill)), d.r2, trainer={"max_epochs": 9})


# --- what is learnt by heart ------------------------------------------------------------------------------------------


@sick("k-diabetes-long", "mlp", "overfitting", "too-little-data", twin=lambda s: diabetes_long(s, False))
def diabetes_long(seed: int, ill: bool = True) -> Training:
    d = data.table("diabetes", seed)
    d = d.map_targets(lambda y: y[:, None])
    net = mlp(10, 256, 256, 1) if ill else mlp(10, 6, 1)
    module = Task(net, F.mse_loss, lr=3e-3)
    return Training(module, d.train(32), d.r2, d.val(), {"max_epochs": 35 if ill else 30})


@sick("k-ratings-wide", "recommender", "overfitting", twin=lambda s: ratings_wide(s, False))
def ratings_wide(seed: int, ill: bool = True) -> Training:
    d = marks(seed, n=1600)
    net = Tastes(dim=48 if ill else 3, scale=0.3)
    module = Task(net, F.mse_loss, lr=0.03, weight_decay=0.0 if ill else 1e-4)
    val = loader(d.x_test, d.y_test, shuffle=False)
    score = minus(F.mse_loss, d.x_test, d.y_test)
    return Training(module, loader(d.x, d.y, size=64), score, val, {"max_epochs": 12})
