"""What reading and clipping gradients costs, ours beside the others, in one run: `python -m benchmarks.gradients`.

Two tables. *Reading*: milliseconds for the gradients of a model as raw tensors, beside the floor, which is the time to
read their bytes once at the machine's copy bandwidth. *Step*: a whole Lightning step bare and with each callback: the
variants take turns within one run (`benchmarks.turns`), or, where the GPU is busy all the time, every round fits all
of them one after the other, and a variant's cost is the median over rounds of its step over the bare one's. `--gpu` takes a GPT-2 of 124M parameters (bf16-mixed, fused AdamW); `--json F` writes the
numbers to a file. Ends within four minutes on an H200. On the CPU time is that of the processor, on one thread, which
other programs on the machine disturb least; on a GPU it is the clock's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.turns import keep_memory, taking_turns
from lightning_stall import AutoClip, GradientHealth
from lightning_stall.measure.clipping import PercentileOnDevice, PercentileOnHost
from lightning_stall.measure.gradients import gradient_norms, total_norm

DEADLINE = 225.0  # seconds; what has not begun by then is left out
Shapes = list[tuple[int, ...]]

# ---------------------------------------------------------------------- models


def gpt_shapes(layers: int, width: int, vocabulary: int = 50304, context: int = 1024) -> Shapes:
    """Parameter shapes of a GPT-2 with a tied head."""
    shapes: Shapes = [(vocabulary, width), (context, width)]
    for _ in range(layers):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*shapes, (width,), (width,)]


class Block(nn.Module):
    """One layer of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.attend(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, width)
        x = x + self.merge(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(LightningModule):
    """GPT-2, 124M parameters by default, in plain torch."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50304) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.words.weight
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x, y = batch[:, :-1], batch[:, 1:]
        hidden = self.blocks(self.words(x) + self.places.weight[: x.shape[1]])
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), y.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


class Mlp(LightningModule):
    """Three layers; about a millisecond a step on one core."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 10), nn.Flatten()
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


# ---------------------------------------------------------------------- reading


def now(device: torch.device) -> float:
    """Seconds, by the clock that suits the device."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def seconds(what: Callable[[], Any], device: torch.device, least: float = 0.25) -> float:
    """Seconds a call, the best of five batches of calls."""
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        what()
    sync()
    start = now(device)
    what()
    sync()
    calls = max(1, math.ceil(least / 5 / max(now(device) - start, 1e-7)))
    best = math.inf
    for _ in range(5):
        start = now(device)
        for _ in range(calls):
            what()
        sync()
        best = min(best, (now(device) - start) / calls)
    return best


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def reading(title: str, shapes: Shapes, device: torch.device) -> dict[str, Any]:
    """Milliseconds to read or clip such gradients, by tool."""
    holder = nn.Module()
    for i, shape in enumerate(shapes):
        holder.register_parameter(f"p{i}", nn.Parameter(torch.empty(shape, device=device)))
    params = list(holder.parameters())
    for p in params:
        p.grad = torch.randn_like(p).mul_(1e-4)
    size = sum(p.numel() * p.element_size() for p in params)
    host = device.type == "cpu"
    rule: Any = PercentileOnHost(1000, 10, 10) if host else PercentileOnDevice(1000, 10, 10, device)
    for _ in range(1000):
        rule.update(1.0 if host else torch.ones((), device=device))

    def ours() -> Tensor:
        return total_norm(gradient_norms([p.grad for p in params]))

    def ours_limit() -> Any:
        total = ours()
        number: Any = total.item() if host else total
        limit = rule.update(number)
        return limit / number if host else (limit / number).clamp(max=1.0).reciprocal()

    def ours_clip() -> None:
        total = ours()
        number: Any = total.item() if host else total
        limit = rule.update(number)
        factor = min(limit / number, 1.0) if host else (limit / number).clamp(max=1.0)
        if not host or factor < 1.0:
            torch._foreach_mul_([p.grad for p in params if p.grad is not None], factor)

    rows: dict[str, Callable[[], Any]] = {
        "ours: all norms": ours,
        "ours: norms and limit (AutoClip, fused)": ours_limit,
        "ours: norms, limit, clip (AutoClip)": ours_clip,
        "torch clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(params, 1e9),
        "Lightning grad_norm": lambda: grad_norm(holder, 2),
        "a .item() a parameter": lambda: sum(p.grad.norm().item() ** 2 for p in params if p.grad is not None) ** 0.5,
        **peers(holder),
    }
    floor = size / bandwidth(device)
    out: dict[str, Any] = {"bytes": size, "tensors": len(params), "floor": floor * 1e3}
    print(f"\nReading: {title}, {len(params)} tensors, {size / 2**20:.4g} MiB, milliseconds")
    print(f"  {'floor':42} {floor * 1e3:9.4f}")
    for name, what in rows.items():
        try:
            took = seconds(what, device)
        except Exception as error:  # a peer that fails must not end the table
            print(f"  {name:42} {type(error).__name__}: {error}")
            continue
        out[name] = took * 1e3
        print(f"  {name:42} {took * 1e3:9.4f}  {took / floor:8.2f} x floor")
    return out


def peers(module: nn.Module) -> dict[str, Callable[[], Any]]:
    """Other packages' clippers, where they are installed."""
    found: dict[str, Callable[[], Any]] = {}
    with contextlib.suppress(Exception):
        zclip = importlib.import_module("zclip").ZClip()
        found["zclip"] = lambda: zclip.step(module)
    with contextlib.suppress(Exception):
        clipper = importlib.import_module("autoclip.torch").QuantileClip(module.parameters(), quantile=0.1)
        found["autoclip"] = lambda: clipper.step()
    return found


# ---------------------------------------------------------------------- whole steps


class Clock(Callback):
    """Times the steps from `first` on; on a GPU the device is waited for at both ends alone.

    With `host`, a GPU's step is the median of what the host took for each: exact where the host is the slower of the
    two, and far less disturbed by it than a mean.
    """

    def __init__(self, first: int, last: int, host: bool = False) -> None:
        self.first, self.last, self.host, self.times = first, last, host, list[float]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        gpu = pl_module.device.type == "cuda"
        if gpu and not self.host and step not in (self.first, self.last):
            return
        if gpu and not self.host:
            torch.cuda.synchronize()
        if step >= self.first:
            self.times.append(now(pl_module.device))

    def a_step(self) -> float:
        """Seconds: the median where each step is timed, else the mean."""
        times = self.times
        if len(times) == 2:
            return (times[1] - times[0]) / (self.last - self.first)
        return statistics.median(b - a for a, b in itertools.pairwise(times))


class TorchClip(Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(pl_module.parameters(), 1.0)


class LightningNorm(Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pl_module.log_dict(grad_norm(pl_module, 2))


class ItemLoop(Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        sum(p.grad.norm().item() ** 2 for p in pl_module.parameters() if p.grad is not None)


class Peer(Callback):
    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.run = peers(pl_module)[self.name]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.run()


class NoWaits(Callback):
    """Makes every wait for the device an error from the `first` step on. Put it in front of the others."""

    def __init__(self, first: int) -> None:
        self.first, self.guarded = first, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop._batches_that_stepped + 1 >= self.first:
            torch.cuda.set_sync_debug_mode("error")
            self.guarded += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def variants() -> dict[str, Callable[[], list[Callback]]]:
    return {
        "bare": list,
        "GradientHealth": lambda: [GradientHealth()],
        "AutoClip": lambda: [AutoClip()],
        "GradientHealth + AutoClip": lambda: [GradientHealth(), AutoClip()],
        "torch clip_grad_norm_": lambda: [TorchClip()],
        "grad_norm + log_dict": lambda: [LightningNorm()],
        "a .item() a parameter": lambda: [ItemLoop()],
        **{name: lambda name=name: [Peer(name)] for name in peers(nn.Linear(1, 1))},  # type: ignore[misc]
    }


class Repeat:
    """A loader that gives one batch again and again, and costs nothing."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self.times = batch, times

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self.batch, self.times)

    def __len__(self) -> int:
        return self.times


def fit(module: LightningModule, batch: Any, steps: int, callbacks: Sequence[Callback], **settings: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            max_epochs=1,
            callbacks=list(callbacks),
            **{"log_every_n_steps": 50, **settings},
        )
        trainer.fit(module, Repeat(batch, steps))


def steps(
    title: str,
    make: Callable[[], LightningModule],
    batch: Any,
    count: int,
    rounds: int,
    until: float,
    host: bool = False,
    only: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Milliseconds a step, and each variant's cost over the bare step, as medians over rounds."""
    first = 34  # after our last early check
    took: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for number in range(rounds):
        names = [(n, v) for n, v in variants().items() if not only or n in only]
        for name, callbacks in names[:1] + names[1 + number % 2 :] + names[1 : 1 + number % 2]:
            if time.perf_counter() > until:
                break
            clock = Clock(first, first + count, host)
            try:
                fit(make(), batch, first + count, [*callbacks(), clock], **settings)
            except Exception as error:
                print(f"  {name:42} {type(error).__name__}: {error}")
                continue
            took.setdefault(name, []).append(clock.a_step())
            if name != "bare" and len(took["bare"]) == number + 1:
                costs.setdefault(name, []).append(took[name][-1] / took["bare"][number] - 1)
    out: dict[str, Any] = {}
    print(f"\nStep: {title}; {rounds} rounds of {count} steps, medians")
    for name, values in took.items():
        out[name] = {"ms": statistics.median(values) * 1e3}
        line = f"  {name:42} {out[name]['ms']:9.3f} ms"
        if name in costs:
            out[name]["over_bare"] = statistics.median(costs[name])
            low, high = min(costs[name]), max(costs[name])
            line += f"  {out[name]['over_bare']:+8.2%}   ({low:+.2%} to {high:+.2%})"
        print(line)
    return out


def waits(make: Callable[[], LightningModule], batch: Any, ours: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """Whether 30 steps between checks pass under these callbacks with every wait for the device made an error."""
    guard = NoWaits(34)
    try:
        fit(make(), batch, 64, [guard, *ours], log_every_n_steps=10_000, **settings)
        failed = [f"{type(c).__name__}: {str(c.failed).strip().splitlines()[-1]}" for c in ours if c.failed]
    except Exception as error:
        failed = [f"{type(error).__name__}: {error}"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print(f"\nWaits for the device in {guard.guarded} steps between checks: {failed or 'none'}")
    return {"guarded_steps": guard.guarded, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="GPT-2 on the first CUDA device, after the CPU part")
    parser.add_argument("--json", metavar="F", help="write the numbers to this file")
    arguments = parser.parse_args()
    keep_memory("benchmarks.gradients")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    begun = time.perf_counter()
    out: dict[str, Any] = {"torch": torch.__version__}
    cpu = torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mlp: Shapes = [(192, 64), (192,), (192, 192), (192,), (10, 192), (10,)]
    out["cpu"] = {"reading": {"mlp": reading("an MLP on the CPU", mlp, cpu)}}
    if not arguments.gpu:
        out["cpu"]["reading"]["gpt"] = reading("a GPT of 4 layers on the CPU", gpt_shapes(4, 256, 8192, 256), cpu)
    x = torch.randn(96, 64), torch.randint(0, 10, (96,))
    rounds = 100 if arguments.gpu else 400
    out["cpu"]["step"] = taking_turns("MLP on the CPU", fit, Mlp, x, rounds, variants(), aim=0.15, accelerator="cpu")
    torch.set_num_threads(threads)
    if arguments.gpu:
        device = torch.device("cuda", 0)
        torch.set_float32_matmul_precision("high")
        out["device"] = torch.cuda.get_device_name(0)
        settings: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
        small = torch.randint(0, 50257, (2, 257), device=device)
        large = torch.randint(0, 50257, (16, 1025), device=device)
        gpu: dict[str, Any] = {"reading": {}, "step": {}}
        out["gpu"] = gpu
        gpu["waits"] = waits(Gpt, small, [GradientHealth(), AutoClip()], **settings)
        gpu["reading"]["124M"] = reading("GPT-2 124M, float32", gpt_shapes(12, 768), device)
        gpu["reading"]["1.5B"] = reading("GPT-2 1.5B, float32", gpt_shapes(48, 1600), device)
        torch.cuda.empty_cache()
        until = begun + DEADLINE
        gpu["step"]["2x256"] = taking_turns(
            "GPT-2 124M, batch 2 x 256", fit, Gpt, small, 60, variants(), aim=0.05, **settings
        )
        gpu["step"]["16x1024"] = steps("GPT-2 124M, batch 16 x 1024", Gpt, large, 20, 3, until, **settings)
    out["seconds"] = time.perf_counter() - begun
    print(f"\n{out['seconds']:.0f} s in all, torch {torch.__version__}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(out, file, indent=1)


if __name__ == "__main__":
    main()
