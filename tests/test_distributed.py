"""Two real processes with gloo: one ill rank, one finding on both, the same rate on both, nobody left waiting."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from twin_runs import ranks

PROGRAM = """
import json, os, sys, warnings, logging
import torch
from torch.utils.data import DataLoader, DistributedSampler
torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning_stall import GradientHealth, OptimizerHealth, PlateauWatch, StallReport, StallCallback
from lightning_stall.testing import Classifier, blobs, mlp

class Breaks(StallCallback):
    "Fails on one rank only, in the middle of the run."
    def step_end(self, outputs, batch, batch_idx):
        if self.hub.rank == 1 and self.hub.step == 10:
            raise RuntimeError("on one rank")

class Drifts(Callback):
    "One rank changes a weight behind everybody's back."
    def on_train_batch_end(self, trainer, module, *rest):
        if trainer.global_rank == 1 and trainer.global_step == 30:
            with torch.no_grad():
                next(module.parameters()).add_(0.01)

class Poisons(Callback):
    "A slope that is no number, on one rank and in one batch; the loss is as ever, and no operation shows it."
    def on_train_start(self, trainer, module):
        def spoil(layer, args, out):
            if trainer.global_rank == 1 and trainer.global_step == 3 and out.requires_grad:
                out.register_hook(lambda slope: slope * float("nan"))
        next(m for m in module.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(spoil)

def corrupt(x, batch_idx):
    return CORRUPT

rank = int(os.environ["LOCAL_RANK"])
seed_everything(0, verbose=False)
report, plateau = StallReport(table=False), PlateauWatch(auto_remedy=True, factor=0.25)
callbacks = [GradientHealth(auto_remedy=True), plateau, *EXTRA, report]
module = Classifier(mlp(), rate=RATE, optimizer="sgd", corrupt=corrupt)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=12, callbacks=callbacks, logger=False, log_every_n_steps=20,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
)
trainer.fit(module, blobs(batch_size=16))
weights = torch.cat([p.detach().flatten() for p in module.parameters()])
out = {
    "findings": [[f.code, f.step, f.severity, f.remedy, list(f.where)] for f in report.findings],
    "scale": plateau.scale, "outcome": report.outcome, "causes": [c.code for c in report.causes],
    "weights": weights.double().sum().item(), "finite": bool(weights.isfinite().all()),
    "failed": [type(c).__name__ for c in callbacks if getattr(c, "failed", None)], "loss": report.hub.curve.means,
    "mastered": report.hub.mastered,
}
with open(os.path.join(sys.argv[1], f"rank{rank}.json"), "w") as f:
    json.dump(out, f)
"""


def two_ranks(folder: Path, corrupt: str, rate: float = 0.1, extra: str = "[]") -> list[dict[str, Any]]:
    """Runs the program on both ranks and returns what each wrote."""
    program = PROGRAM.replace("CORRUPT", corrupt).replace("RATE", str(rate)).replace("EXTRA", extra)
    ended = ranks(textwrap.dedent(program), folder, timeout=150)
    assert [code for code, _ in ended] == [0, 0], "\n".join(log[-3000:] for _, log in ended)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name in ("findings", "scale", "outcome", "causes", "loss", "failed"):
        assert first[name] == second[name], name
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-9)


@pytest.mark.slow
def test_one_ill_rank_ends_with_one_finding(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "x * float('nan') if batch_idx == 3 and rank == 1 else x")
    same(first, second)
    assert first["finite"], "the step was left out on both ranks"
    told = [f for f in first["findings"] if f[2] != "info"]
    codes = [f[0] for f in told]
    assert all(f[3] for f in told if codes.count(f[0]) > 1), "told once, but for what was mended again"
    assert "nonfinite-loss" in codes
    assert any("rank 1" in place for place in told[codes.index("nonfinite-loss")][4])


@pytest.mark.slow
def test_the_rank_whose_batch_spoilt_the_gradient_of_all_is_named(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "x", extra="[Poisons()]")
    same(first, second)
    assert first["finite"], "the step was left out on both ranks"
    (places,) = [f[4] for f in first["findings"] if f[0] == "nonfinite-gradients" and f[2] == "critical"]
    assert places[0].startswith("rank 1: "), places


@pytest.mark.slow
def test_the_rate_is_the_same_on_both_ranks(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "x", rate=60.0)
    same(first, second)
    assert first["scale"] < 1.0
    assert "loss-diverging" in str(first["findings"]) or "loss-oscillating" in str(first["findings"])


@pytest.mark.slow
def test_a_failure_on_one_rank_switches_the_callback_off_on_both(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "x", extra="[Breaks()]")
    same(first, second)
    assert first["failed"] == ["Breaks"]
    assert first["causes"] == []


@pytest.mark.slow
def test_replicas_that_hold_different_weights_are_told(tmp_path: Path) -> None:
    for result in two_ranks(tmp_path, "x", extra="[OptimizerHealth(auto_remedy=True), Drifts()]"):
        first = next(f for f in result["findings"] if f[0] == "replicas-diverged")
        assert first[1] <= 60
        assert first[2] == "critical"
        assert first[3] == f"stopped the run at step {first[1]}"
        assert result["causes"][0] == "replicas-diverged"
        assert result["failed"] == []


@pytest.mark.slow
def test_replicas_that_hold_the_same_weights_are_not(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "x", extra="[OptimizerHealth()]")
    same(first, second)
    assert "replicas-diverged" not in [f[0] for f in first["findings"]]
    assert first["mastered"] == second["mastered"] > 0.5, "what both ranks' predictions get right is known to both"
