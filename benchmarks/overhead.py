"""What the whole family costs, beside bare Lightning in the same run: `python -m benchmarks.overhead`.

Six parts, each with its aim: (a) an MLP of 1 ms on the CPU, 20 %, of which ten empty callbacks take some 13 % in
Lightning's own dispatch; (b) a CNN of 5 ms on the CPU, 4 %; (e) two ranks of DDP over gloo; *memory* beside a model of
1,000 parameters in names, 1 MiB; *flat*, the cost of a step from the first thousands to the last of a long run;
*members*, by how many callbacks there are; *ranks*, traffic and state at 4,096 ranks and 10,000 parameters, worked out
and simulated. `--gpu` adds (c) GPT-2 124M at 16 x 1024, 0.7 %, and 2 x 256, 6 %, (d) a ResNet-50, 0.7 %, and the waits
for the device between checks, 0. Paired: each round fits all variants one after the other, and a cost is the median
over rounds of its step over the bare one; of trainings that take turns, (a) and (b), the mean counts, checks included. `--steps N` is the length of the flat part; `--json F` writes the numbers.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gradients import Clock, Gpt, Mlp, fit, now, waits
from benchmarks.turns import keep_memory, taking_turns
from lightning_stall import (
    ActivationHealth,
    BatchNormBatchSizeGuard,
    DataStarvationMonitor,
    InputHealth,
    LossCheck,
    StallCallback,
    StallReport,
    stall_callbacks,
)
from lightning_stall.hub import Hub

FIRST = 34  # the optimizer step after our last early check
AIMS = {"a": 0.20, "b": 0.04, "c large": 0.007, "c small": 0.06, "d": 0.007, "e": 0.01}


def family() -> list[Any]:
    return stall_callbacks()


def groups() -> dict[str, Callable[[], list[Any]]]:
    """Two parts of the family that are often used by themselves."""
    return {
        "BatchNorm and input pipeline": lambda: [BatchNormBatchSizeGuard(), DataStarvationMonitor()],
        "inputs, loss, activations": lambda: [InputHealth(), LossCheck(), ActivationHealth()],
    }


def empty() -> list[Callback]:
    """Ten callbacks that do nothing: what Lightning's own dispatch takes."""
    hooks = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step")

    class Empty(Callback):
        pass

    for hook in (*hooks, "on_train_batch_end"):
        setattr(Empty, hook, lambda self, *args, **kwargs: None)
    return [Empty() for _ in range(10)]


class Cnn(LightningModule):
    """Three convolutions with BatchNorm; about five milliseconds a step on one core."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, out in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(wide, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Bottleneck(nn.Module):
    """One block of a ResNet-50."""

    def __init__(self, wide: int, inner: int, stride: int) -> None:
        super().__init__()
        out = 4 * inner
        self.body = nn.Sequential(
            nn.Conv2d(wide, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(True),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(True),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = wide == out and stride == 1
        self.skip: nn.Module = nn.Identity()
        if not same:
            self.skip = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class ResNet(LightningModule):
    """ResNet-50 in plain torch."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)]
        layers.append(nn.MaxPool2d(3, 2, 1))
        wide = 64
        for inner, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(depth):
                layers.append(Bottleneck(wide, inner, stride if i == 0 else 1))
                wide = 4 * inner
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


# ---------------------------------------------------------------------- a step


def paired(
    title: str,
    make: Callable[[], LightningModule],
    batch: Any,
    count: int,
    rounds: int,
    variants: dict[str, Callable[[], list[Any]]],
    host: bool = False,
    aim: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Milliseconds a step by variant, "bare" first, and each one's cost over it."""
    took: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants)
        for name in names[:1] + (names[1:] if number % 2 else names[:0:-1]):
            clock = Clock(FIRST, FIRST + count, host)
            ours = variants[name]()
            fit(make(), batch, FIRST + count, [*ours, clock], **settings)
            failed = [c for c in ours if isinstance(c, StallCallback) and c.failed]
            if failed:
                raise RuntimeError(f"{type(failed[0]).__name__} failed: {failed[0].failed}")
            took[name].append(clock.a_step())
    out: dict[str, Any] = {}
    print(f"\n{title}; {rounds} rounds of {count} steps, medians" + (f"; to reach: {aim:.1%}" if aim else ""))
    for name, values in took.items():
        costs = [a / b - 1 for a, b in zip(values, took["bare"], strict=True)]
        out[name] = {"ms": statistics.median(values) * 1e3, "over_bare": statistics.median(costs), "rounds": costs}
        print(
            f"  {name:24} {out[name]['ms']:9.3f} ms  {out[name]['over_bare']:+8.2%}  ({min(costs):+.2%} to {max(costs):+.2%})"
        )
    return out


# ---------------------------------------------------------------------- memory, length, number


class Many(LightningModule):
    """`names` parameters of four numbers each."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(2, 2)) for _ in range(names))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.stack(list(self.parts)).square().mean() + 0 * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Weigh(Callback):
    """Bytes that Python and torch hold for us, from after the first batch to the last."""

    def __init__(self) -> None:
        self.first = self.last = 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        if step in (2, 120):
            gc.collect()
            ours = [t for t in tracemalloc.take_snapshot().statistics("filename") if "lightning_stall" in str(t)]
            size = sum(t.size for t in ours)
            self.first, self.last = (size, self.last) if step == 2 else (self.first, size)


def memory(names: int = 1000) -> dict[str, float]:
    """MiB that the family's own lines hold after 120 steps, and the size of its checkpoint."""
    scale, ours = Weigh(), family()
    tracemalloc.start()
    fit(Many(names), torch.ones(2, 2), 130, [*ours, scale], accelerator="cpu")
    tracemalloc.stop()
    kept = len(pickle.dumps([c.state_dict() for c in ours]))
    out = {"MiB": scale.last / 2**20, "checkpoint_MiB": kept / 2**20}
    print(f"\nMemory beside {names} parameters in names: {out['MiB']:.2f} MiB; to reach: 1")
    print(f"  in a checkpoint {out['checkpoint_MiB']:.2f} MiB")
    return out


class Pieces(Callback):
    """Time of each thousand steps."""

    def __init__(self, every: int) -> None:
        self.every, self.marks = every, list[float]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop._batches_that_stepped % self.every == 0:
            self.marks.append(now(pl_module.device))


def flat(steps: int) -> dict[str, Any]:
    """Cost of a step over a long run: the median piece of its first fifth, and of its last."""
    every = max(100, steps // 50)
    x = torch.randn(96, 64), torch.randint(0, 10, (96,))
    marks = {}
    for name, callbacks in (("bare", list), ("family", family)):
        pieces = Pieces(every)
        fit(Mlp(), x, steps, [*callbacks(), pieces], accelerator="cpu")
        marks[name] = [(b - a) / every for a, b in zip(pieces.marks, pieces.marks[1:], strict=False)]
    fifth = max(1, len(marks["bare"]) // 5)
    out: dict[str, Any] = {"steps": steps}
    print(f"\nA run of {steps} steps, ms a step in its first and last fifth")
    for name, values in marks.items():
        out[name] = [statistics.median(values[:fifth]) * 1e3, statistics.median(values[-fifth:]) * 1e3]
        print(f"  {name:24} {out[name][0]:9.3f} {out[name][1]:9.3f}")
    out["added"] = [out["family"][i] - out["bare"][i] for i in (0, 1)]
    print(f"  {'added':24} {out['added'][0]:9.3f} {out['added'][1]:9.3f}")
    return out


def members(rounds: int) -> dict[str, Any]:
    """What one callback more costs, from one to all ten."""
    x = torch.randn(96, 64), torch.randint(0, 10, (96,))
    variants: dict[str, Callable[[], list[Any]]] = {"bare": list}
    for count in (1, 3, 5, 10):
        variants[f"{count} of the family"] = lambda count=count: family()[:count]  # type: ignore[misc]
    return paired("By how many there are, MLP on the CPU", Mlp, x, 200, rounds, variants, accelerator="cpu")


# ---------------------------------------------------------------------- ranks


def ranks(count: int = 4096, names: int = 10_000, every: int = 50) -> dict[str, Any]:
    """Traffic of a check at so many ranks, by the rows that a hub really fills, and how long they take to be read."""
    seen: dict[str, int] = {}

    class Row(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            hub = Hub.of(trainer)
            if hub is not None and not seen:
                shared = sum(len(m.shares) for m in hub.members)
                seen["numbers"] = 4 + max(16, *(m.every for m in hub.members)) + 1 + shared
                seen["shared"] = shared

    ours = family()
    for callback in ours:
        callback.every_n_steps = every
    fit(Many(names), torch.ones(2, 2), 2, [*ours, Row()], accelerator="cpu")
    sent = 4 * seen["numbers"]  # float32
    rows = torch.randn(count, seen["numbers"], dtype=torch.float64)
    start = time.perf_counter()
    rows[:, 4 : 4 + every].mean(0).tolist()
    for i in range(seen["shared"]):
        rows[:, -1 - i].tolist()
    read = time.perf_counter() - start
    out = {"ranks": count, "bytes_sent": sent, "bytes_received": sent * count, "ms_to_read": read * 1e3}
    print(
        f"\nOne check at {count} ranks with {names} parameters in names: each sends {sent} bytes, once every {every} steps,"
    )
    print(
        f"  whatever the number of parameters; it receives {sent * count / 2**20:.2f} MiB and reads them in {read * 1e3:.1f} ms"
    )
    state = fit_state(names)
    out |= {"state_MiB": state / 2**20}
    print(f"  state in a checkpoint {state / 2**20:.2f} MiB, written by one rank")
    return out


def fit_state(names: int) -> int:
    """Bytes that a checkpoint keeps of us after forty steps."""
    ours = family()
    fit(Many(names), torch.ones(2, 2), 40, ours, accelerator="cpu")
    return len(pickle.dumps([c.state_dict() for c in ours]))


def two_ranks(gpu: bool, rounds: int) -> dict[str, Any]:
    """Part (e): the CNN, or GPT-2, under DDP on two ranks; what rank zero measured."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    command = [sys.executable, "-m", "benchmarks.overhead", "--rank", str(rounds), *(["--gpu"] if gpu else [])]
    pair = [
        subprocess.Popen(
            command,
            env={**common, "LOCAL_RANK": str(r)},
            stdout=subprocess.DEVNULL if r else subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    try:
        printed = pair[0].communicate(timeout=400)[0]
    finally:
        for p in pair:
            p.kill()
    lines = printed.splitlines()
    print("\n".join(line for line in lines if not line.startswith(("JSON", "lightning_stall"))))
    found = [line for line in lines if line.startswith("JSON ")]
    return json.loads(found[-1][5:]) if found else {"failed": True}


def as_rank(gpu: bool, rounds: int) -> None:
    variants: dict[str, Callable[[], list[Any]]] = {"bare": list, "family": family}
    torch.manual_seed(0)
    if gpu:
        torch.set_float32_matmul_precision("high")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        tokens = torch.randint(0, 50257, (16, 1025), device=device)
        title, make, batch, count = "(e) GPT-2 124M, two ranks of nccl", Gpt, tokens, 40
        settings: dict[str, Any] = {"accelerator": "gpu", "precision": "bf16-mixed"}
    else:
        batch = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))  # type: ignore[assignment]
        title, make, count = "(e) CNN, two ranks of gloo on the CPU", Cnn, 200  # type: ignore[assignment]
        settings = {"accelerator": "cpu"}
    out = paired(title, make, batch, count, rounds, variants, aim=AIMS["e"], strategy="ddp", devices=2, **settings)
    if os.environ["LOCAL_RANK"] == "0":
        print("JSON " + json.dumps(out))


# ---------------------------------------------------------------------- an accelerator


def on_gpu(rounds: int) -> dict[str, Any]:
    device = torch.device("cuda", 0)
    torch.set_float32_matmul_precision("high")
    variants: dict[str, Callable[[], list[Any]]] = {"bare": list, "family": family}
    bf16: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    small = torch.randint(0, 50257, (2, 257), device=device)
    large = torch.randint(0, 50257, (16, 1025), device=device)
    images = torch.randn(128, 3, 224, 224, device=device), torch.randint(0, 1000, (128,), device=device)
    out: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "waits": waits(Gpt, small, family(), **bf16)}
    title = "(c) GPT-2 124M, batch {}"
    out["c large"] = paired(title.format("16 x 1024"), Gpt, large, 40, rounds, variants, aim=AIMS["c large"], **bf16)
    out["c small"] = paired(
        title.format("2 x 256"), Gpt, small, 100, 2 * rounds, variants, True, AIMS["c small"], **bf16
    )
    out["d"] = paired("(d) ResNet-50, batch 128", ResNet, images, 40, rounds, variants, aim=AIMS["d"], **bf16)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="(c), (d) and (e) on CUDA devices, after the CPU part")
    parser.add_argument("--steps", type=int, default=5_000, help="length of the flat part; 100000 for the whole of it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", default="a,b,memory,flat,members,ranks,e", help="which, with commas between them")
    parser.add_argument("--json", metavar="F", help="write the numbers to this file")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_memory("benchmarks.overhead")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    StallReport.conclude = lambda self: None  # type: ignore[method-assign]  # tables would stand between ours
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.rank:
        as_rank(arguments.gpu, arguments.rank)
        return
    begun, rounds = time.perf_counter(), arguments.rounds
    parts = arguments.parts.split(",")
    x = torch.randn(96, 64), torch.randint(0, 10, (96,))
    images = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    variants: dict[str, Callable[[], list[Any]]] = {"bare": list, "ten empty callbacks": empty, "family": family}
    on_cpu: dict[str, Any] = {"accelerator": "cpu"}
    work: dict[str, Callable[[], Any]] = {
        "a": lambda: taking_turns("(a) MLP on the CPU", fit, Mlp, x, 40 * rounds, variants, aim=AIMS["a"], **on_cpu),
        "b": lambda: taking_turns(
            "(b) CNN on the CPU", fit, Cnn, images, 20 * rounds, {**variants, **groups()}, aim=AIMS["b"], **on_cpu
        ),
        "memory": memory,
        "flat": lambda: flat(arguments.steps),
        "members": lambda: members(max(3, rounds // 2)),
        "ranks": ranks,
        "e": lambda: two_ranks(False, max(3, rounds // 2)),
    }
    out: dict[str, Any] = {"torch": torch.__version__}
    for name in parts:
        if name in work:
            out[name] = work[name]()
    if arguments.gpu:
        torch.set_num_threads(threads)
        out["gpu"] = on_gpu(max(3, rounds // 2))
        if torch.cuda.device_count() >= 2:
            out["gpu"]["e"] = two_ranks(True, 3)
    out["seconds"] = time.perf_counter() - begun
    costs = {
        name: part["family"].get("mean_over_bare", part["family"]["over_bare"])
        for name, part in {**out, **out.get("gpu", {})}.items()
        if name in AIMS and isinstance(part, dict) and "family" in part
    }
    reached = {name: cost <= AIMS[name] for name, cost in costs.items() if math.isfinite(cost)}
    print(
        f"\n{out['seconds']:.0f} s in all; reached: {', '.join(k for k, ok in reached.items() if ok) or 'none'}", end=""
    )
    print(f"; missed: {', '.join(k for k, ok in reached.items() if not ok) or 'none'}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(out, file, indent=1)


if __name__ == "__main__":
    main()
