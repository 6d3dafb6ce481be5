"""Random modules, batches and Trainers: each run ends as it would without us, to the bit, and nothing of ours fails.

`STALL_FUZZ=2000 python -m pytest tests/test_fuzz.py` takes as many examples; by default there are few.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from twin_runs import Program, twins

from lightning_stall import stall_callbacks

EXAMPLES = int(os.environ.get("STALL_FUZZ", "25"))

Loss = Callable[[Tensor, Tensor], Any]


class Squeeze(nn.Module):
    """Through a sequence, and back to rows."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.inner: nn.Module
        if kind == "lstm":
            self.inner = nn.LSTM(width, width, batch_first=True)
        elif kind == "attention":
            self.inner = nn.MultiheadAttention(width, 1, batch_first=True)
        else:
            self.inner = nn.Conv1d(1, 2, 3, padding=1)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "lstm":
            return self.inner(x[:, None])[0][:, -1]
        if self.kind == "attention":
            return self.inner(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return self.inner(x[:, None]).mean(1)


class Reshaping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T.contiguous().view(x.shape[1], -1).T


class Branches(nn.Module):
    """Uses one of its branches, by chance of the batch: the others get no gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[int(x.detach().nan_to_num().abs().sum() * 10) % 3](x)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda w: nn.Linear(w, w),
    "wide": lambda w: nn.Sequential(nn.Linear(w, 40), nn.ReLU(), nn.Linear(40, w)),
    "one": lambda w: nn.Sequential(nn.Linear(w, 1), nn.Linear(1, w)),
    "relu": lambda w: nn.ReLU(),
    "relu in place": lambda w: nn.ReLU(inplace=True),
    "sigmoid": lambda w: nn.Sigmoid(),
    "tanh": lambda w: nn.Tanh(),
    "softmax": lambda w: nn.Softmax(dim=-1),
    "softmax over samples": lambda w: nn.Softmax(dim=0),
    "gelu": lambda w: nn.GELU(),
    "dropout": lambda w: nn.Dropout(0.5),
    "batchnorm": lambda w: nn.BatchNorm1d(w),
    "batchnorm plain": lambda w: nn.BatchNorm1d(w, affine=False, track_running_stats=False),
    "layernorm": lambda w: nn.LayerNorm(w),
    "lstm": lambda w: Squeeze(w, "lstm"),
    "attention": lambda w: Squeeze(w, "attention"),
    "conv": lambda w: Squeeze(w, "conv"),
    "reshape": lambda w: Reshaping(),
    "branches": Branches,
    "frozen": lambda w: nn.Linear(w, w).requires_grad_(False),
    "dead": lambda w: _filled(nn.Linear(w, w), -100.0),
    "zero": lambda w: _filled(nn.Linear(w, w), 0.0),
    "huge": lambda w: _filled(nn.Linear(w, w), 1e30),
    "weight norm": lambda w: torch.nn.utils.parametrizations.weight_norm(nn.Linear(w, w)),
    "bilinear": lambda w: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(w, w, bias=False)),
    "empty": lambda w: nn.Sequential(),
}


def _filled(layer: nn.Linear, value: float) -> nn.Linear:
    nn.init.constant_(layer.weight, value)
    return layer


LOSSES: dict[str, Loss] = {
    "cross entropy": lambda o, y: F.cross_entropy(o, y),
    "nll of probabilities": lambda o, y: F.nll_loss(o, y),
    "mse": lambda o, y: F.mse_loss(o[:, 0], y.float()),
    "mse broadcast": lambda o, y: (o[:, :1] - y.float()).square().mean(),
    "bce": lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], (y > 0).float()),
    "sum": lambda o, y: o.sum(),
    "minus": lambda o, y: -F.cross_entropy(o, y),
    "log of it": lambda o, y: o.log().mean(),
    "root": lambda o, y: o.sqrt().mean(),
    "zero": lambda o, y: o.sum() * 0,
    "dict": lambda o, y: {"loss": F.cross_entropy(o, y), "o": o},
    "cosine": lambda o, y: F.cosine_embedding_loss(o, o.roll(1, 0), torch.ones(len(o))),
    "kl": lambda o, y: F.kl_div(o.softmax(-1), o.detach().softmax(-1), reduction="batchmean"),
    "smooth": lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2, weight=torch.arange(1.0, o.shape[1] + 1)),
    "argmax": lambda o, y: o.argmax(-1).float().mean(),
    "one by one": lambda o, y: torch.stack(
        [F.cross_entropy(a[None], b[None]) for a, b in zip(o, y, strict=True)]
    ).sum(),
}

OPTIMIZERS: dict[str, Callable[[Any, float], Any]] = {
    "sgd": lambda p, r: torch.optim.SGD(p, r),
    "momentum": lambda p, r: torch.optim.SGD(p, r, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p, r: torch.optim.Adam(p, r),
    "adamw fused": lambda p, r: torch.optim.AdamW(p, r, fused=True),
    "rmsprop": lambda p, r: torch.optim.RMSprop(p, r, centered=True),
    "tensor rate": lambda p, r: torch.optim.Adam(p, torch.tensor(r), foreach=False),
    "lbfgs": lambda p, r: torch.optim.LBFGS(p, r, max_iter=2),
}

SHAPES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"x": x, "labels": y, "note": ["a"] * len(x)},
    "nested": lambda x, y: {"in": {"x": x}, "y": y, "none": None},
    "record": lambda x, y: Record(x, y),
}


@dataclass
class Record:
    x: Tensor
    y: Tensor


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Record):
        return batch.x, batch.y
    if isinstance(batch, dict):
        return (batch["x"], batch["labels"]) if "x" in batch else (batch["in"]["x"], batch["y"])
    return batch[0], batch[1]


class Random(LightningModule):
    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self.plan = plan
        self.automatic_optimization = not plan["manual"]
        w = plan["width"]
        self.net = nn.Sequential(*[LAYERS[name](w) for name in plan["layers"]], nn.Linear(w, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = unpack(batch)
        if self.plan["returns_none"] and batch_idx % 3 == 1:
            return None
        loss = LOSSES[self.plan["loss"]](self.net(x), y)
        if self.plan["logs"]:
            self.log("loss", loss["loss"] if isinstance(loss, dict) else loss, batch_size=len(x))
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss["loss"] if isinstance(loss, dict) else loss)
        if batch_idx % 2:
            optimizer.step()  # type: ignore[union-attr]
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = unpack(batch)
        self.log("val_loss", F.cross_entropy(self.net(x), y), batch_size=len(x))

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.plan["optimizer"]](self.parameters(), self.plan["rate"])


class Loader:
    """Batches that are ready; Lightning takes a plain list for a list of loaders."""

    def __init__(self, made: list[Any]) -> None:
        self.made = made

    def __iter__(self) -> Iterator[Any]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def batches(plan: dict[str, Any]) -> Loader:
    """A loader of the plan's batches, made from its own seed."""
    generator = torch.Generator().manual_seed(plan["seed"])
    made = []
    for i in range(plan["batches"]):
        rows = plan["rows"] if i + 1 < plan["batches"] else plan["last_rows"]
        x = torch.randn(rows, plan["width"], generator=generator) * plan["scale"] + plan["shift"]
        if plan["spoilt"] is not None and i == 1 and rows:
            x[0, 0] = plan["spoilt"]
        y = torch.randint(plan["classes"], (rows,), generator=generator)
        made.append(SHAPES[plan["shape"]](x, y))
    return Loader(made)


AUTOMATIC = ("gradient_clip_val", "accumulate_grad_batches")  # not with manual optimisation, says Lightning

plans = st.fixed_dictionaries(
    {
        "width": st.sampled_from([4, 7]),
        "layers": st.lists(st.sampled_from(list(LAYERS)), max_size=5),
        "loss": st.sampled_from(list(LOSSES)),
        "optimizer": st.sampled_from(list(OPTIMIZERS)),
        "rate": st.sampled_from([0.0, 1e-9, 1e-3, 1e-1, 1e4]),
        "manual": st.booleans(),
        "logs": st.booleans(),
        "returns_none": st.sampled_from([False, False, False, True]),
        "shape": st.sampled_from(list(SHAPES)),
        "seed": st.integers(0, 5),
        "batches": st.sampled_from([7, 3, 12, 10, 5, 2, 1, 0]),
        "rows": st.sampled_from([16, 5, 2, 1]),
        "last_rows": st.sampled_from([16, 3, 1, 0]),
        "scale": st.sampled_from([1.0, 1.0, 1.0, 1e3, 0.0, 1e-20, 1e30]),
        "shift": st.sampled_from([0.0, 0.0, 100.0]),
        "classes": st.sampled_from([1, 2, 4]),
        "spoilt": st.sampled_from([None, None, None, None, float("nan"), float("inf"), -1e30]),
        "validates": st.booleans(),
    }
)
trainers = st.fixed_dictionaries(
    {
        "max_epochs": st.sampled_from([3, 2, 15, 4, 15, 1, 30, 0]),
        "log_every_n_steps": st.sampled_from([0, 1, 7]),
        "accumulate_grad_batches": st.sampled_from([1, 1, 2, 5]),
        "gradient_clip_val": st.sampled_from([None, None, 0.5]),
        "precision": st.sampled_from(["32-true", "32-true", "bf16-mixed", "64-true"]),
        "num_sanity_val_steps": st.sampled_from([0, 1]),
        "limit_train_batches": st.sampled_from([*[1.0] * 8, 0.5, 1, 0]),
        "val_check_interval": st.sampled_from([None, 1.0, 0.5]),
        "overfit_batches": st.sampled_from([0.0, 0.0, 1]),
        "fast_dev_run": st.sampled_from([*[False] * 9, True]),
        "detect_anomaly": st.sampled_from([*[False] * 9, True]),
        "inference_mode": st.booleans(),
    }
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(3600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 100,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if EXAMPLES < 100 else [Phase.generate],
    report_multiple_bugs=False,
)
@given(plan=plans, trainer=trainers, remedies=st.sampled_from([False, False, True]))
def test_no_fault_of_ours_escapes(plan: dict[str, Any], trainer: dict[str, Any], remedies: bool) -> None:
    program = Program(
        lambda: Random(plan),
        lambda: batches(plan),
        val=lambda: batches(plan) if plan["validates"] else None,
        settings={k: v for k, v in trainer.items() if v is not None and not (plan["manual"] and k in AUTOMATIC)},
    )
    with tempfile.TemporaryDirectory() as folder:
        if remedies:
            with_remedies(program, Path(folder))
        else:
            twins(program, Path(folder), may_warn=True)


def with_remedies(program: Program, folder: Path) -> None:
    """A remedy may change weights, and with them how it ends; but no error may be ours and nothing may stay."""
    from twin_runs import run

    bare, watched = run(program, folder / "bare", []), run(program, folder / "watched", stall_callbacks(True))
    assert not watched.failed, "\n".join(watched.failed)
    if bare.error is None:
        assert watched.error is None
    if watched.error is not None:
        assert type(watched.error) is type(bare.error)
    for name, value in bare.left.items():
        if name != "flags":
            assert watched.left[name] == value, (name, value, watched.left[name])
