"""The whole family where weights lie in parts, and where a step is compiled: it works, and says nothing of what is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from twin_runs import QUIET

from benchmarks.matrix import launched
from lightning_stall import StallCallback
from lightning_stall.measure.gradients import in_parts
from lightning_stall.testing import blobs, mlp


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "tensor parallel"])
def test_weights_in_parts(strategy: str) -> None:
    rows = launched(strategy, gpu=False, seconds=150)
    wrong = [r for r in rows if r["reads"] not in ("works", "declined", "not Lightning's")]
    assert not wrong
    assert sum(r["reads"] == "works" for r in rows) >= 10


def test_weights_of_one_process_are_whole() -> None:
    assert not in_parts(nn.Linear(2, 2), None)
    assert in_parts(nn.Linear(2, 2), 1.0)  # FSDP1: each part on one rank


class ByHand(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.automatic_optimization = mlp(), False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Compiles(StallCallback):
    """Whether our own code is compiled together with the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def before_backward(self, loss: Tensor) -> None:
        self.seen.append(("backward", torch.compiler.is_compiling()))

    def before_step(self, optimizer: Optimizer) -> None:
        self.seen.append(("step", torch.compiler.is_compiling()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's, of its own tracing
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_our_code_is_not_compiled_with_a_step_by_hand(tmp_path: Path) -> None:
    torch._dynamo.reset()
    watch = Compiles()
    module = torch.compile(ByHand(), backend="aot_eager")
    trainer = Trainer(callbacks=[watch], default_root_dir=tmp_path, **{**QUIET, "max_steps": 6, "max_epochs": 1})
    trainer.fit(module, blobs(batch_size=16))
    assert watch.failed is None
    assert [name for name, _ in watch.seen] == ["backward", "step"] * 6
    assert not any(compiling for _, compiling in watch.seen)
