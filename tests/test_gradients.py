"""Gradient norms against brute force in float64, for every kind of training that a single machine can run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from twin_runs import ranks

from lightning_stall.callback import StallCallback
from lightning_stall.callbacks.gradient_health import GradientHealth
from lightning_stall.measure.gradients import LONG, gradient_norms, stored, total_norm

# ---------------------------------------------------------------------- the measurement


def brute(grad: Tensor | None) -> float:
    """The norm in float64, straight from the definition."""
    if grad is None:
        return 0.0
    dense = grad.detach().to_dense() if grad.layout is not torch.strided else grad.detach()
    return float(dense.to(torch.complex128 if dense.is_complex() else torch.float64).abs().square().sum().sqrt())


def sparse(rows: list[int], shape: tuple[int, int]) -> Tensor:
    values = torch.randn(len(rows), shape[1], generator=torch.Generator().manual_seed(1))
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


G = torch.Generator().manual_seed(0)
KINDS: dict[str, list[Tensor | None]] = {
    "float32": [torch.randn(4, 5, generator=G), torch.randn(7, generator=G), torch.randn((), generator=G)],
    "bfloat16": [torch.randn(40, 50, generator=G).bfloat16(), torch.randn(700, generator=G).bfloat16()],
    "half": [torch.randn(40, 50, generator=G).half() * 1000, torch.randn(700, generator=G).half()],
    "float64": [torch.randn(40, 50, generator=G).double()],
    "complex": [torch.randn(4, 5, dtype=torch.complex64, generator=G)],
    "mixed": [
        torch.randn(40, generator=G).bfloat16(),
        torch.randn(7, generator=G),
        torch.randn(9, generator=G).double(),
    ],
    "none": [None, torch.randn(3, generator=G), None, torch.randn(5, generator=G)],
    "nothing": [None, None],
    "empty": [torch.zeros(0, 4), torch.randn(3, generator=G)],
    "strided": [torch.randn(6, 8, generator=G).t(), torch.randn(8, 8, generator=G)[::2]],
    "sparse": [sparse([1, 3], (5, 4)), torch.randn(3, generator=G)],
    "sparse with duplicates": [torch.randn(3, generator=G), sparse([1, 3, 1, 1], (5, 4))],
    "large": [
        torch.randn(3 * LONG + 17, generator=G),
        torch.randn(2 * LONG, generator=G),
        torch.randn(3, generator=G),
    ],
    "large bfloat16": [torch.randn(300_017, generator=G).bfloat16()],
}


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_exact(kind: str) -> None:
    norms = gradient_norms(KINDS[kind])
    expected = torch.tensor([brute(g) for g in KINDS[kind]])
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(total_norm(norms), expected.double().norm().float(), rtol=1e-6, atol=0)


def test_a_long_sum_keeps_its_digits() -> None:
    grad = torch.randn(8_000_000, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(float(gradient_norms([grad])[0]), brute(grad), rtol=1e-6, atol=0)
    assert abs(float(grad.norm()) / brute(grad) - 1) > 1e-5  # what a plain sum makes of it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("nothing",)])
def test_a_bad_value_shows_in_its_own_norm_alone(kind: str, value: float) -> None:
    grads = [None if g is None else g.clone() for g in KINDS[kind]]
    last = max(i for i, g in enumerate(grads) if g is not None)
    stored(grads[last]).reshape(-1)[0] = value  # type: ignore[arg-type]
    if not torch.isfinite(stored(grads[last])).all():  # type: ignore[arg-type]
        norms = gradient_norms(grads)
        assert [i for i, n in enumerate(norms.tolist()) if n != n or n == float("inf")] == [last]
        assert not torch.isfinite(total_norm(norms))


# ---------------------------------------------------------------------- in a fit


class Probe(StallCallback):
    """Keeps what the hub reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[tuple[dict[str, float], float]] = []

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        reading = self.hub.readings.gradients(optimizer)
        names, _ = self.hub.readings.named(optimizer)
        self.norms.append((dict(zip(names, reading.norms.tolist(), strict=True)), float(reading.total)))


class Twin(LightningModule):
    """Keeps the norms of its own gradients in float64, right after the callbacks have read them."""

    def __init__(self, make: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.make = make or (lambda p: torch.optim.AdamW(p, lr=0.01))
        self.expected: list[tuple[dict[str, float], float]] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.net(x).squeeze(-1), y)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch[0].to(self.net[0].weight.dtype), batch[1])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        scaler = self.trainer.precision_plugin.scaler if hasattr(self.trainer.precision_plugin, "scaler") else None
        scale = 1.0
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scale = scaler.get_scale()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        norms = {
            n.replace("_orig_mod.", ""): brute(p.grad) / scale
            for n, p in self.named_parameters()
            if id(p) in held and p.requires_grad
        }
        self.expected.append((norms, sum(v * v for v in norms.values()) ** 0.5))

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def data(batch: int = 8, steps: int = 6) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps * batch, 6, generator=generator)
    y = x @ torch.arange(6.0) + torch.randn(len(x), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch)


def fit(folder: Path, module: Any, *callbacks: Any, **settings: Any) -> Probe:
    probe = Probe()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[GradientHealth(), *callbacks, probe],
        **{"max_epochs": 1, **settings},
    )
    trainer.fit(module, data())
    assert not any(c.failed for c in trainer.callbacks if hasattr(c, "failed"))
    return probe


def compare(probe: Probe, module: Any, steps: int = 6) -> None:
    assert len(probe.norms) == len(module.expected) == steps
    for (norms, total), (expected, whole) in zip(probe.norms, module.expected, strict=True):
        assert norms.keys() == expected.keys()
        assert total == pytest.approx(whole, rel=1e-6)
        for name, norm in norms.items():
            assert norm == pytest.approx(expected[name], rel=1e-6), name


PRECISIONS: dict[str, dict[str, Any]] = {
    "32-true": {"precision": "32-true"},
    "64-true": {"precision": "64-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "16-mixed": {
        "plugins": lambda: [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]
    },
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_precisions(tmp_path: Path, precision: str, fused: bool, accumulate: int) -> None:
    module = Twin(lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused))
    settings = {k: v() if callable(v) else v for k, v in PRECISIONS[precision].items()}
    probe = fit(tmp_path, module, accumulate_grad_batches=accumulate, **settings)
    compare(probe, module, 6 // accumulate)


def test_against_a_float64_twin_of_the_whole_model(tmp_path: Path) -> None:
    module = Twin(lambda p: torch.optim.SGD(p, lr=0.0))
    twin = copy.deepcopy(module.net).double()
    probe = fit(tmp_path, module)
    for (norms, total), (x, y) in zip(probe.norms, data(), strict=True):
        twin.zero_grad()
        nn.functional.mse_loss(twin(x.double()).squeeze(-1), y.double()).backward()
        expected = {f"net.{n}": brute(p.grad) for n, p in twin.named_parameters()}
        assert norms == pytest.approx(expected, rel=1e-5)
        assert total == pytest.approx(sum(v * v for v in expected.values()) ** 0.5, rel=1e-6)


def test_lbfgs_is_read_at_each_closure(tmp_path: Path) -> None:
    module = Twin(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3))
    probe = fit(tmp_path, module)
    assert len(probe.norms) > 6
    compare(probe, module, len(probe.norms))


class Hand(Twin):
    """Two optimizers, stepped by hand, with gradients of both present at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(6, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        x, y = batch
        first, second = self.optimizers()
        for optimizer, net in ((first, self.net), (second, self.other), (first, self.net)):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(net(x).squeeze(-1), y))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.01), torch.optim.Adam(self.other.parameters(), fused=True)


def test_manual_optimisation_with_two_optimizers(tmp_path: Path) -> None:
    module = Hand()
    compare(fit(tmp_path, module), module, 18)


class Odd(Twin):
    """Sparse, tied, frozen and never used parameters, one of several types."""

    def __init__(self) -> None:
        super().__init__(lambda p: torch.optim.SGD(list(p), lr=0.01))
        self.words = nn.Embedding(10, 6, sparse=True)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(6, 6)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        words = self.words(torch.arange(8) % 3 + batch_idx)
        return self.loss(self.frozen(self.second(self.first(x + words))), y)


def test_odd_parameters(tmp_path: Path) -> None:
    module = Odd()
    probe = fit(tmp_path, module)
    compare(probe, module)
    names = set(probe.norms[0][0])
    assert "frozen.weight" not in names
    assert "second.weight" not in names  # it is first.weight
    assert probe.norms[0][0]["unused.weight"] == 0.0
    assert probe.norms[0][0]["words.weight"] > 0.0


class Recomputed(Twin):
    """Activation checkpointing around the net."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        out = checkpoint(self.net, x.requires_grad_(), use_reentrant=False)
        return nn.functional.mse_loss(out.squeeze(-1), y)  # type: ignore[union-attr]


def test_activation_checkpointing(tmp_path: Path) -> None:
    module, plain = Recomputed(), Twin()
    probe = fit(tmp_path, module)
    compare(probe, module)
    assert probe.norms == fit(tmp_path, plain).norms


def test_compiled(tmp_path: Path) -> None:
    torch._dynamo.reset()
    module = Twin()
    probe = fit(tmp_path, torch.compile(module, backend="aot_eager"))
    compare(probe, module)
    torch._dynamo.reset()


def test_compiled_part_keeps_its_name(tmp_path: Path) -> None:
    torch._dynamo.reset()
    module = Twin()
    module.net = torch.compile(module.net, backend="aot_eager")  # type: ignore[assignment]
    module.training_step = lambda batch, batch_idx: module.loss(*batch)  # type: ignore[method-assign, assignment]
    probe = fit(tmp_path, module)
    compare(probe, module)
    assert set(probe.norms[0][0]) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    torch._dynamo.reset()


class InBackward(Twin):
    """Each parameter is updated, and its gradient freed, as soon as the backward pass has made it."""

    def configure_optimizers(self) -> None:
        for p in self.parameters():
            optimizer = torch.optim.SGD([p], lr=0.01)

            def update(_: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            p.register_post_accumulate_grad_hook(update)


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_optimizer_in_backward_is_not_observable(tmp_path: Path) -> None:
    probe = fit(tmp_path, InBackward())
    findings = probe.hub.journal.findings
    assert [(f.severity, "not observable" in f.summary) for f in findings] == [("info", True)]


# ---------------------------------------------------------------------- two and four ranks

PROGRAM = """
import json, os, sys, warnings, logging
import torch
from torch import nn
torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning_stall import AutoClip, GradientHealth, StallCallback

kind, _, nccl = sys.argv[2].partition(" on ")
rank = int(os.environ["LOCAL_RANK"])
world = int(os.environ["WORLD_SIZE"])

class Probe(StallCallback):
    norms = []
    def before_step(self, optimizer):
        r = self.hub.readings.gradients(optimizer)
        names, _ = self.hub.readings.named(optimizer)
        self.norms.append([dict(zip(names, r.norms.tolist())), float(r.total)])

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 8)
        self.head, self.unused = nn.Linear(8, 1), nn.Linear(3, 3)
    def forward(self, x):
        return self.head(torch.tanh(self.down(torch.tanh(self.up(x))))).squeeze(-1)
    def configure_model(self):
        if kind not in ("fsdp2", "tp", "2d", "fsdp2-fused"):
            return
        from torch.distributed._composable.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
        mesh = self.device_mesh
        if kind in ("tp", "2d"):  # the head and the unused layer stay plain tensors under tp
            parallelize_module(self, mesh["tensor_parallel"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if kind != "tp":
            for part in (self.up, self.down):
                fully_shard(part, mesh=mesh["data_parallel"])
            fully_shard(self, mesh=mesh["data_parallel"])
    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)
    def configure_optimizers(self):
        if kind == "fsdp2-fused":
            return torch.optim.AdamW(self.parameters(), lr=1e-12, fused=True)
        return torch.optim.SGD(self.parameters(), lr=1e-12, foreach=False)  # tp mixes plain tensors and DTensors

g = torch.Generator().manual_seed(1)
x = torch.randn(64, 6, generator=g)
y = x @ torch.arange(6.0)
y[::3] += 5
data = torch.utils.data.TensorDataset(x, y)
# each data-parallel rank sees the rows that the twin sees too: 8 a step in all
class Rows(torch.utils.data.Sampler):
    def __init__(self, part, parts):
        self.rows = [i for s in range(8) for i in range(8 * s, 8 * s + 8) if i % parts == part]
    def __iter__(self):
        return iter(self.rows)
    def __len__(self):
        return len(self.rows)

data_parallel = {"tp": 1, "2d": 2}.get(kind, world)
part = {"tp": 0, "2d": rank // 2}.get(kind, rank)
loader = torch.utils.data.DataLoader(data, batch_size=8 // data_parallel, sampler=Rows(part, data_parallel))
if kind == "ddp":
    strategy = "ddp_find_unused_parameters_true"
elif kind == "fsdp1":
    strategy = FSDPStrategy(auto_wrap_policy={nn.Linear})
else:
    strategy = ModelParallelStrategy(
        data_parallel_size=data_parallel, tensor_parallel_size=world // data_parallel,
        process_group_backend=nccl or "gloo")
module = Net()
after = []
def used(optimizer, args, kwargs):
    full = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    grads = [full(p.grad) for p in module.parameters() if p.grad is not None]
    square = torch.cat([v.detach().flatten() for v in grads]).square().sum()
    if kind == "fsdp1":  # a rank sees its own part
        torch.distributed.all_reduce(square)
    after.append(float(square.sqrt()))
class Hook(Callback):
    def on_train_start(self, trainer, module):
        trainer.optimizers[0].register_step_post_hook(used)

probe, clip = Probe(), AutoClip(warmup=2)
trainer = Trainer(
    accelerator="gpu" if nccl else "cpu", devices=world, strategy=strategy, max_epochs=1, use_distributed_sampler=False, logger=False,
    callbacks=[GradientHealth(), clip, probe, Hook()], default_root_dir=sys.argv[1], enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, loader)
result = {
    "norms": probe.norms, "after": after, "limits": [list(p) for w in clip._watched.values() for p in w.pairs()],
    "failed": [str(c.failed) for c in (probe, clip) if c.failed],
}
with open(os.path.join(sys.argv[1], f"{rank}.json"), "w") as file:
    json.dump(result, file)
"""


def read(folder: Path, kind: str, world: int) -> list[dict[str, Any]]:
    """What each rank of `PROGRAM` wrote."""
    ended = ranks(PROGRAM, folder, kind, world=world, timeout=120)
    assert [code for code, _ in ended] == [0] * world, "\n".join(log[-3000:] for _, log in ended)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def whole_run() -> list[dict[str, float]]:
    """The gradients of the same model on the same rows, in float64 and one process."""
    torch.manual_seed(0)
    up, down, head = (nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 1))
    parts = {"up": up.double(), "down": down.double(), "head": head.double()}
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator)
    y = x @ torch.arange(6.0)
    y[::3] += 5
    out = []
    for s in range(8):
        rows = slice(8 * s, 8 * s + 8)
        for part in parts.values():
            part.zero_grad()
        answer = head(torch.tanh(down(torch.tanh(up(x[rows].double()))))).squeeze(-1)
        nn.functional.mse_loss(answer, y[rows].double()).backward()
        out.append({f"{n}.{m}": brute(p.grad) for n, part in parts.items() for m, p in part.named_parameters()})
    return out


ON_GPUS = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "world"),
    [
        ("ddp", 2),
        ("fsdp2", 2),
        ("fsdp2-fused", 2),
        ("tp", 2),
        ("2d", 4),
        *(pytest.param(f"{k} on nccl", 2, marks=ON_GPUS) for k in ("ddp", "fsdp1", "fsdp2", "fsdp2-fused", "tp")),
    ],
)
def test_ranks_read_the_norms_of_the_whole(tmp_path: Path, kind: str, world: int) -> None:
    results, expected = read(tmp_path, kind, world), whole_run()
    for result in results:
        assert result["failed"] == []
        assert len(result["norms"]) == 8
        for (norms, total), twin in zip(result["norms"], expected, strict=True):
            assert {n: v for n, v in norms.items() if v} == pytest.approx(twin, rel=1e-5)
            assert total == pytest.approx(sum(v * v for v in twin.values()) ** 0.5, rel=1e-6)
        if not kind.startswith("fsdp2-fused"):  # a fused kernel on the CPU leaves the gradients as they were
            for (total, limit), after in zip(result["limits"], result["after"], strict=True):
                assert after == pytest.approx(min(total, limit), rel=1e-4)
    assert all(r["norms"] == results[0]["norms"] for r in results)
    assert all(r["limits"] == results[0]["limits"] for r in results)
