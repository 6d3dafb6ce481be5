"""Losses of unknown scale: whether a model minds whose targets it is given, asked of a copy on real trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import StallReport, stall_callbacks
from lightning_stall.outcome import Outcome, paired
from lightning_stall.sinks import StallWarning
from lightning_stall.trials.pairing import Pairing

ROWS = 512


def table() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 6, generator=g)
    return x, (x[:, :1] - x[:, 1:2] * x[:, 2:3]) + 0.1 * torch.randn(ROWS, 1, generator=g)


class Own(LightningModule):
    """A regression by a loss of the user's own, given as a function of (prediction, target)."""

    def __init__(self, loss: Any, rate: float = 3e-3, penalty: float = 0.0, decay: float = 0.0) -> None:
        super().__init__()
        self.loss, self.rate, self.penalty, self.decay = loss, rate, penalty, decay
        self.net = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        size = sum(p.square().sum() for p in self.parameters())
        loss = self.loss(self(x), y)
        return loss + self.penalty * size if self.penalty else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=self.decay)


def fit(module: LightningModule, tmp_path: Path, x: Tensor, y: Tensor, epochs: int = 12, **report: Any) -> StallReport:
    callbacks = stall_callbacks(**report)
    callbacks[-1].table = False
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=20,
    )
    torch.manual_seed(0)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True))
    assert [c.failed for c in callbacks] == [None] * len(callbacks)
    report_of: StallReport = callbacks[-1]
    return report_of


def squares(p: Tensor, y: Tensor) -> Tensor:
    return (p - y).pow(2).sum() / len(p)


def cauchy(p: Tensor, y: Tensor) -> Tensor:
    return torch.log1p((p - y).square()).mean()


def cosh(p: Tensor, y: Tensor) -> Tensor:
    return torch.log(torch.cosh(p - y)).mean()


def likelihood(p: Tensor, y: Tensor) -> Tensor:
    return -torch.distributions.Laplace(p, 1.0).log_prob(y).mean()


@pytest.mark.parametrize("loss", [cauchy, cosh, likelihood])
def test_a_model_that_learns_by_a_loss_of_its_own_is_left_in_peace(loss: Any, tmp_path: Path) -> None:
    report = fit(Own(loss), tmp_path, *table())
    assert report.hub.baseline is None, "the scale of this loss is not known"
    assert report.outcome in ("learning", "converged")
    assert report.causes == []


@pytest.mark.parametrize("loss", [cosh, likelihood])
def test_targets_that_mean_nothing_are_never_learnt(loss: Any, tmp_path: Path) -> None:
    x, y = table()
    with pytest.warns(StallWarning):
        report = fit(Own(loss), tmp_path, x, 3.0 + y[torch.randperm(ROWS)], epochs=10)
    assert report.outcome == "never learned"
    assert report.hub.outcome.evidence["paired"] == 0.0


def test_each_prediction_against_each_target(tmp_path: Path) -> None:
    x, y = table()
    with pytest.warns(StallWarning):
        report = fit(Own(lambda p, y: F.softplus(-torch.sign(y) * p).mean()), tmp_path, x, y[:, 0])
    assert report.causes[0].code == "loss-shape-mismatch"
    (told,) = [f for f in report.findings if f.code == "loss-shape-mismatch" and f.speaks]
    assert "(32,)" in told.summary
    assert "(32, 1)" in told.summary


def test_a_likelihood_that_is_minimised(tmp_path: Path) -> None:
    with pytest.warns(StallWarning):
        report = fit(Own(lambda p, y: -likelihood(p, y), rate=3e-2), tmp_path, *table())
    assert report.causes[0].code == "wrong-loss-for-task"


def test_a_penalty_in_the_loss_that_wears_the_weights_away(tmp_path: Path) -> None:
    with pytest.warns(StallWarning):
        report = fit(Own(squares, rate=1e-2, penalty=1.0), tmp_path, *table())
    assert report.causes[0].code == "excess-regularization"
    assert fit(Own(squares, rate=1e-2, penalty=1e-4), tmp_path, *table()).causes == []


class Rebuild(Own):
    """Nothing in a batch is a target: what is rebuilt is what goes in."""

    def __init__(self) -> None:
        super().__init__(None)
        self.net = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        return (self(x) - x).abs().pow(1.5).mean()


def test_without_targets_nothing_is_asked(tmp_path: Path) -> None:
    report = fit(Rebuild(), tmp_path, *table())
    assert report.hub.outcome.evidence.get("paired") is None
    assert report.causes == []


def test_without_trials_nothing_is_asked(tmp_path: Path) -> None:
    x, y = table()
    report = fit(Own(cosh), tmp_path, x, 3.0 + y[torch.randperm(ROWS)], trials=False)
    assert "paired" not in report.hub.outcome.evidence


@pytest.mark.parametrize(
    ("found", "learnt"),
    [
        (Pairing(own=1.0, others=2.0, error=0.05, samples=256), True),
        (Pairing(own=1.0, others=1.001, error=0.05, samples=256), False),
        (Pairing(own=1.0, others=1.08, error=0.01, samples=256), None),  # a little: it may have begun
        (Pairing(own=1.0, others=2.0, error=0.05, samples=32), None),
        (Pairing(own=-5.0, others=-2.0, error=0.1, samples=256), True),
    ],
)
def test_what_the_numbers_say(found: Pairing, learnt: bool | None) -> None:
    assert found.learnt is learnt


def test_a_loss_around_zero_is_left_alone() -> None:
    policy = Outcome("converged", 100, {"level": 0.01, "noise": 0.05})
    assert paired(policy, learnt=False, exact=False) is policy
    assert paired(policy, learnt=False, exact=True).state == "never learned"
    learning = Outcome("learning", 100, {"level": 1.0, "noise": 0.05})
    assert paired(learning, learnt=False, exact=True) is learning


def test_a_model_that_minds_a_little_is_waited_for() -> None:
    flat = Outcome("never learned", 100, {"level": 1.0, "noise": 0.05})
    assert paired(flat, learnt=None, exact=False, asked=True).state == "too early"
    assert paired(flat, learnt=None, exact=False, asked=False) is flat
