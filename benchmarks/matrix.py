"""Where the family works: strategy x precision x optimisation x logger x feature. `python -m benchmarks.matrix`.

Every cell fits twice, bare and with all callbacks (remedies on), and reads *works*, *declined* with the sentence that a
user gets, *not Lightning's* where the bare run is refused too, or *fails*. The program ends with 1 where a cell fails.
On the CPU: one process, DDP, ddp_spawn, ddp_notebook, FSDP2 and tensor parallel over gloo. `--gpu` takes CUDA devices
in their place (nccl where there are two), and adds FSDP1, 16-mixed as it is and DeepSpeed. `--only NAME` runs one strategy, `--json F` writes
the cells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import StallCallback, stall_callbacks

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
KINDS = ("automatic", "accumulation", "clipped", "fused", "manual", "LBFGS")
LOGGERS = ("none", "csv", "tensorboard")
FEATURES = ("plain", "activation checkpointing", "compiled", "resumed", "BatchNorm", "two workers")
# of several processes a smaller part: each axis against the plain value of the others
STRATEGIES = ("single", "ddp", "ddp_spawn", "ddp_notebook", "fsdp1", "fsdp2", "tensor parallel", "deepspeed")
LAUNCHED = ("ddp", "fsdp1", "fsdp2", "tensor parallel", "deepspeed")  # as two processes of ours
SECONDS = 240.0  # a strategy may take, unless told
# what may well be said of three short epochs, and of two ranks with two workers each on two cores
OF_THE_RUN = {"training-too-short", "too-many-workers", "data-starvation"}
Cell = tuple[str, str, str, str, str]


class Net(LightningModule):
    """Two layers, and whatever the cell asks for."""

    def __init__(self, strategy: str, kind: str, feature: str) -> None:
        super().__init__()
        self.strategy_name, self.kind, self.feature = strategy, kind, feature
        self.automatic_optimization = kind != "manual"
        norm = nn.BatchNorm1d(16) if feature == "BatchNorm" else nn.Identity()
        self.first, self.norm, self.last = nn.Linear(8, 16), norm, nn.Linear(16, 4)

    def configure_model(self) -> None:
        if self.strategy_name not in ("fsdp2", "tensor parallel") or self.device_mesh is None:
            return
        if self.strategy_name == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for part in (self.first, self.last):
                fully_shard(part, mesh=mesh)
            fully_shard(self, mesh=mesh)
        else:
            from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

            plan = {"first": ColwiseParallel(), "last": RowwiseParallel()}
            parallelize_module(self, self.device_mesh["tensor_parallel"], plan)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.first.weight.dtype)
        if self.feature == "activation checkpointing":
            h = checkpoint(lambda v: self.norm(self.first(v)).relu(), x, use_reentrant=False)
        else:
            h = self.norm(self.first(x)).relu()
        return self.last(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]).float(), batch[1])
        if self.feature != "compiled":  # dynamo cannot follow Lightning into it
            self.log("loss", loss)
        if self.kind == "manual":
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        if self.kind == "LBFGS":
            return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=2)
        return torch.optim.AdamW(self.parameters(), 1e-2, fused=True if self.kind == "fused" else None)


def cells(strategy: str) -> Iterator[Cell]:
    """All of them for one process; for several, each axis against the plain value of the others."""
    if strategy == "single":
        for precision, kind, logger, feature in itertools.product(PRECISIONS, KINDS, LOGGERS, FEATURES):
            slow = feature in ("compiled", "two workers", "resumed")
            if not slow or (logger == "csv" and (precision == "32-true" or kind == "automatic")):
                yield strategy, precision, kind, logger, feature
        return
    spawned = strategy in ("ddp_spawn", "ddp_notebook")
    plain = ("32-true", "automatic", "csv", "plain")
    axes = (PRECISIONS, KINDS, LOGGERS, FEATURES)
    seen = {plain}
    yield (strategy, *plain)
    for i, axis in enumerate(axes):
        for value in axis[:2] if spawned and i != 0 else () if spawned else axis:
            cell = (*plain[:i], value, *plain[i + 1 :])
            if cell not in seen:
                seen.add(cell)
                yield (strategy, *cell)  # type: ignore[misc]


def loader(workers: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :4].argmax(1)), 8, num_workers=workers)


def strategy_of(name: str, gpu: bool) -> tuple[Any, int]:
    """What Trainer takes for it, and how many devices."""
    if name == "fsdp1":
        from lightning.pytorch.strategies import FSDPStrategy

        return FSDPStrategy(), 2
    if name in ("fsdp2", "tensor parallel"):
        from lightning.pytorch.strategies import ModelParallelStrategy

        return ModelParallelStrategy(*((2, 1) if name == "fsdp2" else (1, 2))), 2
    if name == "deepspeed":
        return "deepspeed_stage_2", 2
    return ("auto", 1) if name == "single" else (name, 2)


def fit(cell: Cell, folder: str, callbacks: list[Any], gpu: bool) -> str:
    """Fit one cell; "" or what went wrong."""
    strategy, precision, kind, logger, feature = cell
    settings: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed" and not gpu:  # Lightning has no scaler on the CPU: as it would be
        if strategy in ("fsdp2", "tensor parallel"):
            return "not simulated on the CPU"
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[attr-defined]
        settings = {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}
    if kind == "accumulation":
        settings["accumulate_grad_batches"] = 2
    if kind == "clipped":
        settings["gradient_clip_val"] = 0.5
    seed_everything(0, verbose=False)
    try:
        how, devices = strategy_of(strategy, gpu)
        module: Any = Net(strategy, kind, feature)
        if feature == "compiled":
            torch._dynamo.reset()
            module = torch.compile(module, backend="inductor" if gpu else "aot_eager")
        made: dict[str, Any] = {
            "accelerator": "gpu" if gpu else "cpu",
            "devices": devices,
            "strategy": how,
            "logger": {"none": False, "csv": CSVLogger(folder), "tensorboard": TensorBoardLogger(folder)}[logger],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "log_every_n_steps": 4,
            "max_epochs": 2,
            **settings,
        }
        trainer = Trainer(callbacks=callbacks, **made)
        trainer.fit(module, loader(2 if feature == "two workers" else 0))
        if feature == "resumed":
            path = os.path.join(folder, "a.ckpt")
            trainer.save_checkpoint(path)
            again = Trainer(callbacks=callbacks, **{**made, "max_epochs": 3, "strategy": strategy_of(strategy, gpu)[0]})
            again.fit(Net(strategy, kind, feature), loader(0), ckpt_path=path)
            trainer = again
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    failed = [f"{type(c).__name__}: {c.failed.splitlines()[-1]}" for c in callbacks if c.failed]
    return f"OURS {'; '.join(failed)}"[:300] if failed else ""


def measure(cell: Cell, gpu: bool, shared: str | None = None) -> tuple[str, str]:
    """What the cell reads, and the sentence to it. Ranks are given one folder to share."""
    with tempfile.TemporaryDirectory() as own:
        folder = own if shared is None else os.path.join(shared, "-".join(cell).replace(" ", "_"))
        bare = fit(cell, os.path.join(folder, "bare"), [], gpu)
        ours: list[Any] = list(stall_callbacks(auto_remedy=True))
        watched = fit(cell, os.path.join(folder, "watched"), ours, gpu)
        findings = [f for c in ours[-1:] if isinstance(c, StallCallback) for f in getattr(c, "findings", ())]
        told = [f.summary for f in findings]
        alarms = sorted({f.code for f in findings if f.severity != "info"} - OF_THE_RUN)
    if bare:
        return "not Lightning's", bare
    if "take AutoClip out" in watched or "MisconfigurationException" in watched:
        return "declined", watched
    if watched:
        return "fails", watched
    if alarms:  # the module is healthy
        return "false alarm", ", ".join(alarms)
    said = next((text for text in told if "not observable" in text or "cannot" in text), "")
    return ("declined", said) if said else ("works", "")


# ---------------------------------------------------------------------- several processes


def launched(strategy: str, gpu: bool, seconds: float) -> list[dict[str, str]]:
    """All cells of a strategy, in two processes that go through them together."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "cells.jsonl")
        command = [sys.executable, "-m", "benchmarks.matrix", "--rank-of", strategy, "--json", file]
        command += ["--gpu"] if gpu else []
        processes = [
            subprocess.Popen(
                command,
                env={**common, "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        error = ""
        try:
            error = processes[0].communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            error = f"nothing more in {seconds:.0f} s"
        finally:
            for p in processes:
                p.kill()
                p.communicate()
        lines = Path(file).read_text().splitlines() if os.path.exists(file) else []
    done = [json.loads(line) for line in lines]
    rest = list(cells(strategy))[len(done) :]
    last = (error.strip().splitlines() or ["ended"])[-1][:300]
    return done + [row(cell, "fails", last) for cell in rest]


def row(cell: Cell, reads: str, sentence: str) -> dict[str, str]:
    names = ("strategy", "precision", "optimisation", "logger", "feature")
    return {**dict(zip(names, cell, strict=True)), "reads": reads, "sentence": sentence}


def as_rank(strategy: str, gpu: bool, file: str) -> None:
    """One of the two processes; rank zero writes a line a cell."""
    for cell in cells(strategy):
        reads, sentence = measure(cell, gpu, os.path.dirname(file))
        if os.environ["LOCAL_RANK"] == "0":
            with open(file, "a") as out:
                out.write(json.dumps(row(cell, reads, sentence)) + "\n")


def table(rows: list[dict[str, str]]) -> None:
    """A line a strategy and precision, then every cell that does not work, with its sentence."""
    marks = ("works", "declined", "not Lightning's", "false alarm", "fails")
    print(f"\n{'strategy':16} {'precision':11} " + " ".join(f"{m:>16}" for m in marks))
    groups: dict[tuple[str, str], Counter[str]] = {}
    for r in rows:
        groups.setdefault((r["strategy"], r["precision"]), Counter())[r["reads"]] += 1
    for (strategy, precision), count in groups.items():
        print(f"{strategy:16} {precision:11} " + " ".join(f"{count[m] or '':>16}" for m in marks))
    said: dict[tuple[str, str, str], list[str]] = {}
    for r in rows:
        if r["reads"] != "works":
            where = f"{r['precision']}, {r['optimisation']}, {r['logger']}, {r['feature']}"
            said.setdefault((r["strategy"], r["reads"], r["sentence"]), []).append(where)
    for (strategy, reads, sentence), places in said.items():
        print(f"\n{strategy}: {reads} in {len(places)} (as in: {places[0]})\n    {sentence}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="on CUDA devices, two where there are")
    parser.add_argument("--only", choices=STRATEGIES, help="one strategy")
    parser.add_argument("--json", metavar="F", help="write the cells to this file")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="a strategy may take; the rest is left out")
    parser.add_argument("--rank-of", choices=STRATEGIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.rank_of:
        as_rank(arguments.rank_of, arguments.gpu, arguments.json)
        return 0
    rows: list[dict[str, str]] = []
    for strategy in [arguments.only] if arguments.only else STRATEGIES:
        begun = time.perf_counter()
        two = torch.cuda.device_count() >= 2
        if strategy != "single" and arguments.gpu and not two:
            continue
        if strategy in ("fsdp1", "deepspeed") and not arguments.gpu:
            continue  # they need a GPU
        if strategy == "ddp_spawn" and arguments.gpu and torch.cuda.is_initialized():
            print("ddp_spawn: give it a process of its own, with --only ddp_spawn")
        if strategy in LAUNCHED:
            rows += launched(strategy, arguments.gpu, arguments.seconds)
        else:
            with _quiet():
                for cell in cells(strategy):
                    if time.perf_counter() - begun > arguments.seconds:
                        break
                    rows.append(row(cell, *measure(cell, arguments.gpu)))
        print(f"{strategy}: {time.perf_counter() - begun:.0f} s", flush=True)
    table(rows)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)
    return int(any(r["reads"] in ("fails", "false alarm") for r in rows))


class _quiet:  # noqa: N801
    """Without the tables that reports print."""

    def __enter__(self) -> None:
        self.out = sys.stdout
        sys.stdout = open(os.devnull, "w")

    def __exit__(self, *args: Any) -> None:
        sys.stdout.close()
        sys.stdout = self.out


if __name__ == "__main__":
    sys.exit(main())
