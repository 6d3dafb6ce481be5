"""An observing run is bitwise the run without us, trials and all; a healthy run with remedies on is too."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from twin_runs import Made, Program, digest, ranks, run, state, twins

from lightning_stall import stall_callbacks
from lightning_stall.testing import Classifier, blobs, healthy, mlp


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws from all three global generators for every sample, so that any foreign draw shows."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        y = i % 3
        return torch.randn(1, 8, 8) + y + random.random() + np.random.rand(), torch.tensor(y)


class Muonlike(Optimizer):
    """Momentum made orthogonal, for matrices; a state and a step of its own, as users' optimizers have."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("m", torch.zeros_like(p))
                kept.mul_(0.9).add_(p.grad)
                flat = kept.reshape(len(kept), -1) if p.ndim > 1 else kept
                p.add_((F.normalize(flat.float(), dim=-1)).to(p.dtype).reshape(p.shape), alpha=-group["lr"])
        return loss


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "sgd fused": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 1e-2, max_iter=3),
    "muon": Muonlike,
}


class Net(LightningModule):
    """Convolution, BatchNorm, dropout: what a foreign draw, a foreign pass or a foreign rounding would change."""

    def __init__(self, optimizer: str = "adamw", remat: bool = False, manual: bool = False) -> None:
        super().__init__()
        self.optimizer, self.remat, self.automatic_optimization = optimizer, remat, not manual
        self.seen: list[str] = []  # batches, in order
        self.front = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=not remat))
        self.back = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.back[2].weight.dtype)
        h = checkpoint(self.front, x, use_reentrant=False) if self.remat else self.front(x)
        return self.back(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._note(batch)
        loss = F.cross_entropy(self(batch[0]).float(), batch[1])
        if not self.automatic_optimization:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
        return loss

    @torch.compiler.disable
    def _note(self, batch: Any) -> None:
        self.seen.append(digest(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0]).float(), batch[1]))

    def configure_optimizers(self) -> Any:
        make = OPTIMIZERS[self.optimizer]
        if not self.automatic_optimization:
            return [make(self.front.parameters()), make(self.back.parameters())]
        optimizer = make(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]


def half(device: str) -> MixedPrecision:
    return MixedPrecision("16-mixed", device, scaler=torch.amp.GradScaler(device, init_scale=2.0**14))  # type: ignore[attr-defined]


# what differs from the plain program: module, loader, Trainer
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    **{f"32 {name}": ({"optimizer": name}, {}, {}) for name in OPTIMIZERS},
    "32 sgd, half way": ({"optimizer": "sgd"}, {}, {"max_epochs": 5}),  # what dropout costs is asked at its end
    "bf16-mixed": ({}, {}, {"precision": "bf16-mixed"}),
    "bf16-true": ({"optimizer": "adam"}, {}, {"precision": "bf16-true"}),
    "16-mixed": ({}, {}, {"plugins": Made(lambda: half("cpu"))}),
    "16-mixed fused": ({"optimizer": "adamw fused"}, {}, {"plugins": Made(lambda: half("cpu"))}),
    "accumulation": ({}, {}, {"accumulate_grad_batches": 3}),
    "16-mixed accumulation": ({}, {}, {"plugins": Made(lambda: half("cpu")), "accumulate_grad_batches": 3}),
    "manual": ({"manual": True}, {}, {}),
    "manual bf16-mixed": ({"manual": True}, {}, {"precision": "bf16-mixed"}),
    "clip by norm": ({}, {}, {"gradient_clip_val": 0.1}),
    "clip by value": ({}, {}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "activation checkpointing": ({"remat": True}, {}, {}),
    "workers": ({}, {"num_workers": 2}, {}),
    "persistent workers": ({}, {"num_workers": 1, "persistent_workers": True}, {}),
}


def program(module: dict[str, Any], loader: dict[str, Any], settings: dict[str, Any]) -> Program:
    return Program(
        lambda: Net(**module),
        lambda: DataLoader(Augmented(), 16, shuffle=True, **loader),
        val=lambda: DataLoader(Augmented(), 50),
        settings={"max_epochs": 3, "log_every_n_steps": 5, "num_sanity_val_steps": 1, **settings},
    )


@pytest.mark.filterwarnings("ignore:.*is not supported on CPU", "ignore:.*User provided device_type")
@pytest.mark.parametrize("case", CASES)
def test_observing_changes_not_a_bit(case: str, tmp_path: Path) -> None:
    # GradientHealth keeps the last batch when its fit is over, and a worker's batch is an open file
    _, watched = twins(program(*CASES[case]), tmp_path, may_leave=("files",) if "workers" in case else ())
    assert watched.error is None
    assert watched.module.seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [1e-2, 1e-8])
def test_another_default_type(dtype: torch.dtype, rate: float, tmp_path: Path) -> None:
    """What we make is made in types of its own, whatever a program makes by default."""
    torch.set_default_dtype(dtype)
    try:
        made = Program(lambda: Classifier(mlp(batchnorm=True), rate), blobs, settings={"max_epochs": 8})
        twins(made, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_modules(precision: str, tmp_path: Path) -> None:
    made = program({}, {}, {"precision": precision, "max_epochs": 2})
    made.module = lambda: torch.compile(Net(), backend="aot_eager")  # type: ignore[assignment, return-value]
    torch._dynamo.reset()
    twins(made, tmp_path, may_leave=("put on",))


@pytest.mark.parametrize("kind", ["rate too low", "diverges", "random targets"])
def test_trials_change_not_a_bit(kind: str, tmp_path: Path) -> None:
    def module() -> LightningModule:
        net = nn.Sequential(*mlp(batchnorm=True), nn.Dropout(0.1))
        return Classifier(net, rate={"rate too low": 1e-7, "diverges": 50.0}.get(kind, 1e-2), optimizer="momentum")

    def loader() -> DataLoader[Any]:
        made = blobs(batch_size=16)
        if kind == "random targets":
            y = made.dataset.tensors[1]  # type: ignore[attr-defined]
            y.copy_(y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))])
        return made

    _, watched = twins(Program(module, loader, settings={"max_epochs": 6}), tmp_path)
    trials = watched.report._occasions.trials
    assert trials.made, trials.declined


def test_a_healthy_run_keeps_its_weights_with_remedies_on(make_trainer: Callable[..., Trainer]) -> None:
    """All but AutoClip and the loader's tuner, whose work is to change every run a little."""
    prints = []
    for watched in (False, True):
        seed_everything(1, verbose=False)
        module = healthy()
        left_out = ("AutoClip", "DataStarvationMonitor")
        callbacks = [c for c in stall_callbacks(auto_remedy=True) if type(c).__name__ not in left_out]
        trainer = make_trainer(callbacks if watched else [], max_epochs=10)
        trainer.fit(module, blobs())
        prints.append(state(trainer, module))
    assert prints[0] == prints[1]


# ---------------------------------------------------------------------- two processes

RANKS = """
import logging, os, sys, warnings
sys.path.insert(0, TESTS)
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from lightning.pytorch import Trainer, seed_everything
from lightning_stall import stall_callbacks
from test_neutrality import Net, Augmented, DataLoader, state

folder, kind, accelerator, precision, accumulate = sys.argv[1:]
seed_everything(3, verbose=False)
callbacks = stall_callbacks() if kind == "watched" else []
trainer = Trainer(
    accelerator=accelerator, devices=2, strategy="ddp", max_epochs=3, callbacks=callbacks, logger=False,
    log_every_n_steps=5, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    default_root_dir=folder, precision=precision, accumulate_grad_batches=int(accumulate),
)
module = Net()
trainer.fit(module, DataLoader(Augmented(), 8, shuffle=True), DataLoader(Augmented(), 8))
print("STATE", state(trainer, module), [c.failed for c in callbacks if c.failed], flush=True)
"""


def two_ranks(folder: Path, accelerator: str, precision: str, accumulate: int) -> None:
    ends = []
    script = RANKS.replace("TESTS", repr(str(Path(__file__).parent)))
    for kind in ("bare", "watched"):
        both = ranks(script, folder / kind, kind, accelerator, precision, str(accumulate))
        assert [code for code, _ in both] == [0, 0], both[0][1][-2000:] + both[1][1][-2000:]
        ends.append([next(line for line in text.splitlines() if line.startswith("STATE")) for _, text in both])
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "accumulate"), [("bf16-mixed", 2)])
def test_two_ranks(precision: str, accumulate: int, tmp_path: Path) -> None:
    two_ranks(tmp_path, "cpu", precision, accumulate)


# ---------------------------------------------------------------------- accelerators


@pytest.mark.gpu
@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("16-mixed")] + ["16-mixed", "16-mixed fused"])
def test_on_a_gpu(case: str, tmp_path: Path) -> None:
    module, loader, settings = CASES[case]
    settings = {k: v for k, v in settings.items() if k != "plugins"}
    if case.startswith("16-mixed"):
        settings["precision"] = "16-mixed"
    settings |= {"accelerator": "gpu", "deterministic": True}
    with _deterministic():
        # what CUDA's libraries open stays open: the first run of a process is not compared in this
        run(program(module, loader, settings), tmp_path / "first", [])
        twins(program(module, loader, settings), tmp_path, may_leave=("files", "threads"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("precision", "accumulate"), [("32-true", 1), ("16-mixed", 1), ("bf16-mixed", 2)])
def test_two_gpus(precision: str, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    two_ranks(tmp_path, "gpu", precision, accumulate)


class _deterministic:  # noqa: N801
    """Deterministic kernels for a while; two bare runs need not agree without them."""

    def __enter__(self) -> None:
        import os

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def __exit__(self, *args: Any) -> None:
        torch.use_deterministic_algorithms(False)
