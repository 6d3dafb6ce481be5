"""`InputHealth` on tiny patients, each with its healthy twins, through real Trainers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_stall.callbacks.input_health import InputHealth
from lightning_stall.errors import MisconfigurationException
from lightning_stall.finding import Finding
from lightning_stall.measure.batches import fields, replace_tensors
from lightning_stall.measure.columns import FieldWatch
from lightning_stall.measure.hashes import row_hashes
from lightning_stall.measure.probe import signal
from lightning_stall.sinks.console import StallWarning

Loss = Callable[[Any, Any], Tensor]


class Model(LightningModule):
    """Any net, any loss over (input, target); SGD so that scales matter."""

    def __init__(self, net: nn.Module, loss: Loss = F.cross_entropy, lr: float = 0.05) -> None:
        super().__init__()
        self.net, self.loss, self.lr = net, loss, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Adam(Model):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(rows: int = 256, columns: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=numbers(seed))


def classes_of(x: Tensor) -> Tensor:
    return (x.flatten(1)[:, 0] > 0).long() + (x.flatten(1)[:, 1] > 0.5).long()


def values_of(x: Tensor) -> Tensor:
    return (x[:, :1] + torch.sin(x[:, 1:2])) / 1.3


def loader(*tensors: Tensor, batch_size: int = 16, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size, shuffle=shuffle)


def held_out(x: Tensor) -> DataLoader[Any]:
    return loader(x, classes_of(x.nan_to_num()), batch_size=32, shuffle=False)


def mlp(columns: int = 6, out: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, out))


def trainer_for(tmp_path: Path, callback: InputHealth, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[callback],
        log_every_n_steps=10,
        **{"max_epochs": 2, **settings},
    )


@pytest.fixture
def diagnose(tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """Fits and returns the gravest finding of each code; fails where the callback failed."""

    def run(
        module: LightningModule, train: Any, val: Any = None, callback: InputHealth | None = None, **settings: Any
    ) -> dict[str, Finding]:
        callback = callback or InputHealth()
        trainer = trainer_for(tmp_path, callback, **settings)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StallWarning)
            trainer.fit(module, train, val)
        assert callback.failed is None, callback.failed
        found: dict[str, Finding] = {}
        for finding in callback.hub.journal.findings:
            if finding.code not in found or finding.severity != "info":
                found[finding.code] = finding
        return found

    return run


# --- healthy trainings of every shape -----------------------------------------------------------------------------


class Modalities(LightningModule):
    """A dict batch: an image, a table with one-hot and binary columns, token ids; nested targets."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.text = nn.Linear(16, 8), nn.Linear(6, 8), nn.Embedding(9, 8)
        self.head = nn.Linear(24, 2)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        parts = [
            self.image(batch["image"].flatten(1)),
            self.table(batch["table"]),
            self.text(batch["ids"]).mean(1),
        ]
        return F.cross_entropy(self.head(torch.cat(parts, 1).relu()), batch["answer"]["kind"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> Any:
        g = numbers(i)
        kind = i % 2
        return {
            "image": torch.rand(1, 4, 4, generator=g) * (0.5 + 0.5 * kind),
            "table": F.one_hot(torch.tensor(i % 6), 6).float(),
            "ids": torch.randint(9, (5,), generator=g),
            "answer": {"kind": kind},
        }


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def test_silent_on_modalities(diagnose: Any) -> None:
    assert diagnose(Modalities(), DataLoader(Samples(), 16, shuffle=True)) == {}


@pytest.mark.parametrize(
    "x",
    [
        cloud(),
        torch.rand(256, 6, generator=numbers()),
        (cloud() > 0.8).float(),
        torch.poisson(torch.full((256, 6), 0.3), generator=numbers()),
        torch.cat([F.one_hot(torch.arange(256) % 4, 4).float(), cloud()[:, :2]], 1),
        cloud().exp() ** 1.5,
    ],
    ids=["normal", "unit interval", "binary", "sparse counts", "one-hot and numbers", "heavy tails"],
)
def test_silent_on_healthy_tables(diagnose: Any, x: Tensor) -> None:
    assert (
        diagnose(
            Model(mlp(), lr=0.01),
            loader(x, classes_of(cloud())),
            held_out(cloud(64, seed=5)),
        )
        == {}
    )


def test_silent_on_images_with_constant_pixels(diagnose: Any) -> None:
    images = torch.rand(256, 1, 6, 6, generator=numbers()) * (torch.arange(6) % 5 > 0)
    y = (images.mean((1, 2, 3)) > 0.33).long()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    assert diagnose(Model(net), loader(images, y)) == {}


def test_silent_on_tokens_and_named_tuples(diagnose: Any) -> None:
    ids = torch.randint(9, (256, 8), generator=numbers())
    net = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(64, 3))
    pairs = [Pair(row, row[0] % 3) for row in ids]
    assert diagnose(Model(net), DataLoader(pairs, 16, shuffle=True)) == {}


def test_silent_on_an_endless_stream_and_a_bare_tensor(diagnose: Any) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from (row for i in range(1000) for row in cloud(16, seed=i))

    class Autoencoder(Model):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch), batch)

    assert diagnose(Autoencoder(mlp(6, 6)), DataLoader(Stream(), 16), max_steps=40) == {}


def test_silent_where_one_batch_is_overfitted_on_purpose(diagnose: Any) -> None:
    x = cloud(64)
    train = loader(x, torch.zeros(64, dtype=torch.long), shuffle=False)
    assert diagnose(Model(mlp()), train, overfit_batches=1, max_epochs=40) == {}


def test_silent_on_targets_made_in_the_step(diagnose: Any) -> None:
    """As a GAN's ones and zeros: they are no data."""

    class Discriminator(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self(batch[0])
            return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    assert diagnose(Discriminator(mlp(6, 1)), loader(cloud())) == {}


# --- nonfinite-inputs -------------------------------------------------------------------------------------------------


class Table(TensorDataset):
    feature_names = ("age", "height", "weight", "pulse", "income", "score")


def holed(row: int = 40, column: int = 2) -> Tensor:
    x = cloud()
    x[row, column] = torch.nan
    return x


def test_nan_in_an_input_names_batch_sample_and_column(diagnose: Any) -> None:
    data = Table(holed(), classes_of(cloud()))
    found = diagnose(Model(mlp()), DataLoader(data, 16))
    finding = found["nonfinite-inputs"]
    assert finding.severity == "critical"
    assert finding.step == 3
    assert finding.where == ("batch[0]: weight",)
    assert (
        "`batch[0]`, an input, holds NaN or Inf in weight in 1 sample (the first is sample 8) of batch 2 of epoch 0"
        in finding.summary
    )


def test_infinite_target_is_told_as_one(diagnose: Any) -> None:
    y = values_of(cloud())
    y[3] = torch.inf
    finding = diagnose(Model(mlp(6, 1), F.mse_loss), loader(cloud(), y, shuffle=False))["nonfinite-inputs"]
    assert "a target" in finding.summary
    assert finding.step == 1


def test_nan_that_the_step_handles_is_healthy(diagnose: Any) -> None:
    class Filling(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            known = ~y.isnan()
            return self.loss(self(x.nan_to_num())[known], y[known])

    y = values_of(cloud())
    y[::7] = torch.nan
    assert diagnose(Filling(mlp(6, 1), F.mse_loss), loader(holed(), y)) == {}


def test_a_run_broken_before_does_not_blame_the_batch(diagnose: Any) -> None:
    class Breaks(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(self(batch[0].nan_to_num()), batch[1])
            return loss * torch.nan if self.global_step == 1 else loss

    assert "nonfinite-inputs" not in diagnose(Breaks(mlp()), loader(holed(200), classes_of(cloud()), shuffle=False))


def test_nan_in_validation(diagnose: Any) -> None:
    found = diagnose(Model(mlp()), loader(cloud(), classes_of(cloud())), held_out(holed()))
    assert found["nonfinite-inputs"].severity == "warning"
    assert "validation batch" in found["nonfinite-inputs"].summary


def test_the_remedy_leaves_the_step_out_and_keeps_batchnorm(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    callback = InputHealth(auto_remedy=True)
    trainer = trainer_for(tmp_path, callback)
    with pytest.warns(StallWarning, match="left out each step"):
        trainer.fit(Model(net), loader(holed(), classes_of(cloud())))
    assert callback.skipped == 2  # once an epoch
    assert all(bool(v.isfinite().all()) for v in net.state_dict().values())


def test_without_the_remedy_the_run_is_bitwise_the_same(tmp_path: Path) -> None:
    def weights(callbacks: list[Any]) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
        trainer = trainer_for(tmp_path, InputHealth())
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, InputHealth)] + callbacks
        val = loader(cloud(32, seed=3), classes_of(cloud(32, seed=3)), shuffle=False)
        trainer.fit(Model(net), loader(cloud(), classes_of(cloud())), val)
        return [*net.state_dict().values(), torch.rand(3)]

    assert all(map(torch.equal, weights([]), weights([InputHealth()])))


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [300.0, 1e-4])
def test_unscaled_inputs(diagnose: Any, factor: float) -> None:
    finding = diagnose(Model(mlp(), lr=1e-7), loader(factor * cloud(), classes_of(cloud())))["unscaled-inputs"]
    assert finding.evidence["rms"] == pytest.approx(factor, rel=0.2)
    assert "    mean = torch.tensor([" in finding.advice
    assert "    x = (x - mean) / std" in finding.advice


def test_further_from_unit_scale_is_stronger_evidence(diagnose: Any) -> None:
    strengths = [
        diagnose(Model(mlp(), lr=1e-9), loader(f * cloud(), classes_of(cloud())))["unscaled-inputs"].evidence[
            "strength"
        ]
        for f in (50.0, 200.0, 1000.0)
    ]
    assert strengths == sorted(strengths)
    assert strengths[0] < 0.6 < strengths[-1] <= 0.9


def test_bytes_into_batchnorm_are_healthy(diagnose: Any) -> None:
    images = 255 * torch.rand(256, 1, 6, 6, generator=numbers())
    y = (images.mean((1, 2, 3)) > 127).long()
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    assert diagnose(Model(net), loader(images, y)) == {}


def test_bytes_scaled_in_the_step_are_healthy(diagnose: Any) -> None:
    class Scaling(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x / 255)

    images = 255 * torch.rand(256, 16, generator=numbers())
    assert diagnose(Scaling(mlp(16)), loader(images, classes_of(images / 255 - 0.5))) == {}


def test_disparate_columns_by_name(diagnose: Any) -> None:
    x = cloud() * torch.tensor([1.0, 1e-3, 1.0, 30.0, 1.0, 1.0])
    data = Table(x, classes_of(cloud()))
    finding = diagnose(Model(mlp()), DataLoader(data, 16, shuffle=True))["disparate-feature-scales"]
    assert finding.where == ("batch[0]: pulse", "batch[0]: height")
    assert finding.evidence["spread_ratio"] == pytest.approx(3e4, rel=0.5)


def test_an_outlier_does_not_make_columns_disparate(diagnose: Any) -> None:
    x = cloud()
    x[9, 1] = 1e5
    assert "disparate-feature-scales" not in diagnose(Model(mlp(), lr=1e-4), loader(x, classes_of(cloud())))


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss])
def test_unscaled_targets(diagnose: Any, loss: Loss) -> None:
    y = 2e4 + 5e3 * values_of(cloud())
    finding = diagnose(Model(mlp(6, 1), loss, lr=1e-6), loader(cloud(), y))["unscaled-targets"]
    assert finding.evidence["mean"] == pytest.approx(2e4, rel=0.1)
    assert "y_mean, y_std = " in finding.advice


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, lambda p, y: (p - (y - 2e4) / 5e3).square().mean()])
def test_targets_around_ten_or_scaled_in_the_step_are_healthy(diagnose: Any, loss: Loss) -> None:
    y = 12 + values_of(cloud()) if loss in (F.mse_loss, F.l1_loss) else 2e4 + 5e3 * values_of(cloud())
    assert diagnose(Model(mlp(6, 1), loss, lr=1e-3), loader(cloud(), y)) == {}


def test_soft_targets_must_sum_to_one(diagnose: Any) -> None:
    soft = torch.rand(256, 3, generator=numbers())
    finding = diagnose(Model(mlp(), lr=1e-4), loader(cloud(), 1000 * soft))["unscaled-targets"]
    assert finding.severity == "warning"
    assert finding.step == 1
    assert "must sum to 1" in finding.summary
    assert diagnose(Model(mlp()), loader(cloud(), soft / soft.sum(1, keepdim=True))) == {}


# --- columns ----------------------------------------------------------------------------------------------------------


def coded(effect: Tensor) -> tuple[Tensor, Tensor]:
    code = torch.randint(len(effect), (512,), generator=numbers())
    y = effect[code][:, None] + 0.1 * cloud(512, 1)
    return torch.cat([code[:, None].float(), cloud(512, 5, seed=2)], 1), y


def test_categories_as_numbers(diagnose: Any) -> None:
    x, y = coded(torch.tensor([1.6, -1.2, 0.4, -0.3, 1.1, -1.7, 0.8, -0.9]))
    finding = diagnose(Model(mlp(6, 1), F.mse_loss, lr=1e-3), loader(x, y))["categorical-as-numeric"]
    assert finding.where == ("batch[0]: column 0",)
    assert finding.evidence["as_categories"] > 0.9 > 0.5 > finding.evidence["as_curve"]


@pytest.mark.parametrize("effect", [torch.arange(8) / 4 - 1, (torch.arange(8) / 3.5 - 1).square()])
def test_ratings_and_counts_are_healthy(diagnose: Any, effect: Tensor) -> None:
    x, y = coded(effect)
    assert diagnose(Model(mlp(6, 1), F.mse_loss, lr=1e-3), loader(x, y)) == {}


def test_inputs_that_never_change(diagnose: Any) -> None:
    finding = diagnose(Model(mlp()), loader(torch.zeros(256, 6), classes_of(cloud())))["constant-inputs"]
    assert finding.severity == "warning"
    assert finding.step == 8
    assert "every entry is 0" in finding.summary


class TwoInputs(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net[0](batch[0]) + self.net[1](batch[1]), batch[2])


def test_one_of_two_inputs_that_is_zero_waits_for_a_bad_outcome(diagnose: Any) -> None:
    net = nn.ModuleList([mlp(), mlp()])
    data = loader(cloud(), torch.zeros(256, 6), classes_of(cloud()))
    finding = diagnose(TwoInputs(net), data)["constant-inputs"]
    assert finding.severity == "info"
    assert finding.where == ("batch[1]",)


class Masked(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0] * batch[1]), batch[2])


def test_a_mask_of_ones_is_healthy(diagnose: Any) -> None:
    assert diagnose(Masked(mlp()), loader(cloud(), torch.ones(256, 6), classes_of(cloud()))) == {}


# --- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["input", "target"])
def test_corrupt_samples(diagnose: Any, where: str) -> None:
    x, y = cloud(512), values_of(cloud(512))
    (x if where == "input" else y)[[300, 420]] *= 1e5
    found = diagnose(Model(mlp(6, 1), F.mse_loss, lr=1e-9), loader(x, y, shuffle=False), max_epochs=1)
    finding = found["corrupt-samples"]
    assert finding.severity == "warning"
    assert {place.partition(": ")[2] for place in finding.where} == {
        "batch 18 of epoch 0, sample 12",
        "batch 26 of epoch 0, sample 4",
    } or all("batch 18" in p or "batch 26" in p for p in finding.where)


def test_an_outlier_that_hurts_nothing_is_not_told(diagnose: Any) -> None:
    class Clipping(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.clamp(-5, 5))

    x = cloud(512)
    x[300] *= 1e5
    assert "corrupt-samples" not in diagnose(Clipping(mlp()), loader(x, classes_of(cloud(512)), shuffle=False))


# --- classes and their order ------------------------------------------------------------------------------------------


def rare(share: float) -> tuple[Tensor, Tensor]:
    y = (torch.rand(2048, generator=numbers()) < share).long()
    return cloud(2048) + 0.1 * y[:, None], y


def test_class_imbalance(diagnose: Any) -> None:
    x, y = rare(0.02)
    finding = diagnose(Model(mlp(6, 2)), loader(x, y, batch_size=64), max_epochs=6)["class-imbalance"]
    assert finding.evidence["predicted_share"] == 1.0
    assert "weight=torch.tensor([" in finding.advice


def test_imbalance_that_is_weighted_or_learnt_is_healthy(diagnose: Any) -> None:
    x, y = rare(0.05)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 20.0]))
    assert "class-imbalance" not in diagnose(Model(mlp(6, 2), weighted), loader(x, y, batch_size=64))
    far = x + 4.0 * y[:, None]
    assert "class-imbalance" not in diagnose(Model(mlp(6, 2), lr=0.5), loader(far, y, batch_size=64), max_epochs=4)


def test_sorted_labels(diagnose: Any) -> None:
    x = cloud(512)
    y = classes_of(x)
    order = y.argsort(stable=True)
    finding = diagnose(Model(mlp()), loader(x[order], y[order], shuffle=False), max_epochs=1)["unshuffled-data"]
    assert finding.severity == "warning"
    assert finding.evidence["grouping"] > 0.9


@pytest.mark.parametrize("kind", ["shuffled", "random order", "by difficulty"])
def test_other_orders_are_healthy(diagnose: Any, kind: str) -> None:
    x = cloud(512)
    y = classes_of(x)
    if kind == "by difficulty":
        order = x.square().sum(1).argsort()
        x, y = x[order], y[order]
    elif kind == "shuffled":
        order = y.argsort()
        x, y = x[order], y[order]
    assert diagnose(Model(mlp()), loader(x, y, shuffle=kind == "shuffled")) == {}


def test_all_of_one_class(diagnose: Any) -> None:
    y = (0.9 * torch.rand(256, generator=numbers())).long()
    finding = diagnose(Model(mlp()), loader(cloud(), y))["uninformative-targets"]
    assert finding.severity == "warning"
    assert "are of class 0, of 3 the model knows" in finding.summary


def test_sorted_classes_are_not_one_class(diagnose: Any) -> None:
    x = cloud(2048)
    y = (torch.arange(2048) > 1500).long()
    x[:, 0] += 2 * y
    assert "uninformative-targets" not in diagnose(Model(mlp()), loader(x, y, shuffle=False), max_epochs=1)


def test_targets_without_any_bond(diagnose: Any) -> None:
    x = cloud(2048)
    y = classes_of(x)
    data = loader(x, y[torch.randperm(2048, generator=numbers())], batch_size=32)
    finding = diagnose(Model(mlp()), data, max_epochs=5)["uninformative-targets"]
    assert finding.severity == "warning"  # the outcome is bad, and it was told
    assert finding.evidence["signal"] < 2.5


def test_a_rate_too_low_is_not_taken_for_targets_without_a_bond(diagnose: Any) -> None:
    x = cloud(2048)
    found = diagnose(Model(mlp(), lr=1e-6), loader(x, classes_of(x), batch_size=32), max_epochs=5)
    assert "uninformative-targets" not in found


# --- the two sets -----------------------------------------------------------------------------------------------------


def test_leakage(diagnose: Any) -> None:
    x = cloud()
    found = diagnose(Model(mlp()), loader(x, classes_of(x)), held_out(x[100:164]))
    finding = found["train-val-leakage"]
    assert finding.evidence["leaked"] == 64
    assert finding.evidence["share"] == 1.0


@pytest.mark.parametrize(
    "draw",
    [lambda n, s: (cloud(n, 6, s) > 0).float(), lambda n, s: torch.poisson(cloud(n, 6, s).exp(), generator=numbers(s))],
)
def test_copies_by_nature_are_no_leak(diagnose: Any, draw: Callable[[int, int], Tensor]) -> None:
    x, val = draw(256, 0), draw(128, 1)
    found = diagnose(Model(mlp(), lr=1e-3), loader(x, classes_of(x)), held_out(val))
    assert "train-val-leakage" not in found


def test_too_little_data(diagnose: Any) -> None:
    x, val = cloud(12), cloud(64, seed=1)
    data = loader(x, classes_of(x), batch_size=6)
    finding = diagnose(Model(mlp(), lr=0.5), data, held_out(val), max_epochs=120)["too-little-data"]
    assert finding.severity == "warning"
    assert finding.evidence["samples"] == 12


def test_a_single_sample_is_noted(diagnose: Any) -> None:
    found = diagnose(Model(mlp()), loader(cloud(1), classes_of(cloud(1))), max_steps=1)
    assert found["too-little-data"].severity == "info"


# --- standardize ------------------------------------------------------------------------------------------------------


def test_standardize_fits_and_stays_in_the_checkpoint(tmp_path: Path) -> None:
    x, y = 500 + 200 * cloud(), classes_of(cloud())
    callback = InputHealth(auto_remedy=True, standardize=True)
    trainer = trainer_for(tmp_path, callback, max_epochs=20)
    model = Adam(mlp(), lr=0.02)
    with pytest.warns(StallWarning, match="standardised"):
        trainer.fit(model, loader(x, y))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    (result,) = trainer.test(model, loader(x, y, shuffle=False), verbose=False)
    assert result["test_loss"] < 0.5
    assert F.cross_entropy(model(x), y) < 0.5, "the module by itself takes the data as they are"
    assert bool((x == 500 + 200 * cloud()).all())  # the data themselves are untouched

    fresh = InputHealth(auto_remedy=True, standardize=True)
    again = trainer_for(tmp_path, fresh)
    other = Model(mlp())
    (result,) = again.test(other, loader(x, y, shuffle=False), ckpt_path=path, verbose=False, weights_only=True)
    assert result["test_loss"] < 0.5
    assert F.cross_entropy(other(x), y) < 0.5
    assert "test_step" not in vars(again.strategy)


def test_arguments() -> None:
    with pytest.raises(MisconfigurationException, match="auto_remedy=True"):
        InputHealth(standardize=True)
    with pytest.raises(MisconfigurationException, match="standardize"):
        InputHealth(auto_remedy=True, standardize=1)  # type: ignore[arg-type]


# --- measurements against plain code ----------------------------------------------------------------------------------


def test_moments_are_those_of_the_data() -> None:
    x = 5 + 3 * cloud(300)
    watch = FieldWatch()
    for part in x.split(64):
        watch.update(part, keep_rows=True)
    moments = watch.read()
    assert moments is not None
    torch.testing.assert_close(torch.tensor(moments.mean), x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(moments.std), x.std(0, correction=0), rtol=1e-4, atol=1e-4)
    assert moments.rms == pytest.approx(float(x.square().mean().sqrt()), rel=0.1)
    assert moments.changes
    assert not moments.single_value
    mean, std = watch.statistics() or (None, None)
    assert ((x - mean) / std).std(0, correction=0).tolist() == pytest.approx([1.0] * 6, rel=1e-4)


def test_equal_samples_have_equal_numbers_and_others_do_not() -> None:
    x = cloud(4000)
    order = torch.randperm(4000, generator=numbers(3))
    assert torch.equal(row_hashes([x])[order], row_hashes([x[order]]))
    assert len(row_hashes([x]).unique()) == 4000
    assert len(row_hashes([x.nextafter(torch.tensor(9.0))]).unique()) == 4000
    assert not torch.isin(row_hashes([x]), row_hashes([x.nextafter(torch.tensor(9.0))])).any()
    assert not row_hashes([(x > 0).float()]).any()


def test_a_bond_is_found_where_there_is_one() -> None:
    x = cloud(400)
    ring = (x.square().sum(1) > 5).long()[:, None].float()
    found = [signal(x, y, categorical) for y, categorical in ((values_of(x), False), (ring, True))]
    assert all(s is not None and s.best > 4 for s in found)
    shuffled = torch.randperm(400, generator=numbers(1))
    assert all(abs(s.best) < 3 for s in [signal(x, ring[shuffled], True)] if s is not None)
    assert signal(x, torch.ones(400, 1), False) is None


def test_fields_of_any_nesting() -> None:
    batch = {
        "a": [torch.ones(2), (torch.ones(2, 3),)],
        "b": Pair(torch.ones(2), torch.ones(2, dtype=torch.long)),
        "c": "text",
    }
    assert [f.name for f in fields(batch)] == ["batch['a'][0]", "batch['a'][1][0]", "batch['b'].x", "batch['b'].y"]
    doubled = replace_tensors(batch, {"batch['a'][1][0]": lambda t: 2 * t, "batch['b'].x": lambda t: 3 * t})
    assert doubled["a"][1][0].sum() == 12
    assert doubled["b"].x.sum() == 6
    assert batch["b"].x.sum() == 2  # type: ignore[attr-defined]
