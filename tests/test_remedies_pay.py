"""With remedies on, ill-set runs end where well-set ones do, and healthy runs are bitwise what they would have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_stall import stall_callbacks
from lightning_stall.testing import Classifier, blobs, mlp, watch

EPOCHS = 40  # of 16 steps


def accuracy(module: Classifier) -> float:
    x, y = blobs(draw=1).dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return float((module.eval()(x).argmax(1) == y).float().mean())


class Set(Classifier):
    """A classifier with an optimizer, and a schedule, of its own."""

    def __init__(self, optimizer: Callable[[Any], torch.optim.Optimizer], schedule: Any = None) -> None:
        super().__init__(mlp(depth=3))
        self.make, self.schedule = optimizer, schedule

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: torch.optim.SGD(params, rate, momentum=0.9)


def adam(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: torch.optim.Adam(params, rate)


ILL: dict[str, tuple[Callable[[], Set], Callable[[], Set]]] = {
    "sgd x 30": (lambda: Set(sgd(1.5)), lambda: Set(sgd(0.05))),
    "adam at 1e-7": (lambda: Set(adam(1e-7)), lambda: Set(adam(1e-3))),
    "diverges at step 200": (
        lambda: Set(sgd(0.05), lambda step: 1.0 if step < 200 else 60.0),
        lambda: Set(sgd(0.05)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ILL)
def test_an_ill_set_run_ends_within_a_tenth_of_the_well_set_one(name: str, seed: int) -> None:
    ill, well = ILL[name]
    torch.manual_seed(seed)
    mended, right = ill(), well()
    family = stall_callbacks(auto_remedy=True)
    watch(mended, blobs(), *family[:-1], max_epochs=EPOCHS, seed=seed)
    watch(right, blobs(), max_epochs=EPOCHS, seed=seed)
    assert accuracy(mended) >= 0.9 * accuracy(right)


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x[:, None])
        return out


class Sequenced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.GRU(1, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.read(x[..., None])[0][:, -1])
        return out


HEALTHY: dict[str, Callable[[], Classifier]] = {
    "adam": lambda: Set(adam(1e-3)),
    "adam, high but fine": lambda: Set(adam(1e-2)),
    "sgd": lambda: Set(lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": lambda: Set(sgd(0.05)),
    "warm-up": lambda: Set(sgd(0.05), lambda step: min(1.0, (step + 1) / 50)),
    "to zero": lambda: Set(adam(3e-3), lambda step: max(0.0, 1 - step / (16 * EPOCHS))),
    "restarts": lambda: Set(adam(3e-3), lambda step: 1 - (step % 80) / 80),
    "batch norm": lambda: Classifier(Convolved(), rate=3e-3),
    "recurrent": lambda: Classifier(Sequenced(), rate=3e-3),
    "dropout": lambda: Classifier(
        nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4)), rate=3e-3
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_keeps_its_weights_bitwise(name: str) -> None:
    weights = []
    for callbacks in ([], stall_callbacks(auto_remedy=True)[:-1]):
        torch.manual_seed(0)
        module = HEALTHY[name]()
        ours = [c for c in callbacks if type(c).__name__ != "AutoClip"]  # which clips healthy runs as well: its rule
        report = watch(module, blobs(), *ours, max_epochs=EPOCHS)
        weights.append([p.detach().clone() for p in module.parameters()])
        assert report.causes == []
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
