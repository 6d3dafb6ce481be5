"""Two runs of one program, bare and watched, and all that may differ between them: the helper of several test files."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from lightning_stall import StallCallback, stall_callbacks
from lightning_stall.sinks import StallWarning

_MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGALRM)


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 3,
}


# where a worker dies it is chance which of these the main process meets
PIPES = (RuntimeError, OSError, EOFError, ConnectionResetError, BrokenPipeError, ConnectionRefusedError)


_once: set[str] = set()


@dataclass
class Program:
    """A training as a user has it: everything made anew for each run, from one seed."""

    module: Callable[[], LightningModule]
    loader: Callable[[], Any]
    before: Callable[[], list[Callback]] = list  # the user's callbacks, in front of ours
    after: Callable[[], list[Callback]] = list  # and behind
    val: Callable[[], Any] = lambda: None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """How one run ended, and what it left in the process."""

    error: BaseException | None
    weights: str
    progress: tuple[int, int]  # optimizer steps, epochs
    left: dict[str, Any]
    warnings: list[Any]
    callbacks: list[Any]
    trainer: Trainer
    module: LightningModule
    folder: Path

    @property
    def ours(self) -> list[StallCallback]:
        return [c for c in self.callbacks if isinstance(c, StallCallback)]

    @property
    def report(self) -> Any:
        return self.ours[-1]

    @property
    def failed(self) -> list[str]:
        """Callbacks of ours that switched themselves off, with why."""
        return [f"{type(c).__name__}: {c.failed}" for c in self.ours if c.failed]

    @property
    def end(self) -> dict[str, Any]:
        """What must be the same in both runs."""
        said = re.sub(r"\d+", "#", str(self.error).splitlines()[0]) if str(self.error) else ""  # a pid is in some
        return {"error": type(self.error), "said": said, "progress": self.progress, "weights": self.weights}


def digest(values: Any) -> str:
    """Tensors to the bit, in whatever they are nested; other values by their text. A NaN equals a NaN of its bits."""
    out = hashlib.sha256()
    for leaf in _leaves(values):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous().reshape(-1)
            out.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            out.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        else:
            out.update(repr(leaf).encode())
    return out.hexdigest()


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        for key in values:
            yield key if isinstance(key, str | int) else type(key).__name__
            yield from _leaves(values[key])
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value)
    else:
        yield values.to_local() if hasattr(values, "to_local") else values


def state(trainer: Any, module: Any) -> str:
    """Weights, buffers, optimizer state, rates and generators, to the bit."""
    optimizers = [[list(o.state.values()), [_settings(g) for g in o.param_groups]] for o in trainer.optimizers]
    device = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    generators = [torch.get_rng_state(), random.getstate(), str(np.random.get_state()), *device]
    return digest([dict(module.state_dict()), optimizers, generators, getattr(module, "seen", None)])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def traces(trainer: Any, module: Any, loader: Any) -> dict[str, Any]:
    """What a run may leave behind: threads, children, signals, files, hooks, and methods put on instances."""
    loops = trainer.fit_loop
    owners = {
        "trainer": trainer,
        "strategy": trainer.strategy,
        "precision": trainer.precision_plugin,
        "fit_loop": loops,
        "epoch_loop": loops.epoch_loop,
        "val_loop": loops.epoch_loop.val_loop,
        "automatic": loops.epoch_loop.automatic_optimization,
        "manual": loops.epoch_loop.manual_optimization,
        "loader": loader,
        "dataset": getattr(loader, "dataset", None),
        **{f"module {name}": m for name, m in module.named_modules()},
        **{f"optimizer {i}": o for i, o in enumerate(trainer.optimizers or ())},
        **{f"scheduler {i}": s.scheduler for i, s in enumerate(trainer.lr_scheduler_configs or ())},
    }
    params = list(module.parameters())
    return {
        "threads": sorted(t.name for t in threading.enumerate()),
        "children": len(multiprocessing.active_children()),
        "signals": [_named(h) for h in map(signal.getsignal, _SIGNALS)],
        "files": _files(),
        "module hooks": {n: sum(len(getattr(m, n)) for m in module.modules()) for n in _MODULE_HOOKS},
        "tensor hooks": sum(len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in params),
        "optimizer hooks": [len(getattr(o, n)) for o in trainer.optimizers or () for n in _OPTIMIZER_HOOKS],
        "global hooks": [len(getattr(torch.nn.modules.module, n)) for n in dir(torch.nn.modules.module) if _hooks(n)],
        "put on": {name: sorted(k for k, v in _vars(o).items() if _method(v)) for name, o in owners.items()},
        "marks": [n for o in trainer.optimizers or () for n in ("grad_scale", "found_inf") if hasattr(o, n)],
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "flags": [m.training for m in module.modules()] + [p.requires_grad for p in params],
        "grad mode": torch.is_grad_enabled(),
    }


def _named(handler: Any) -> str:
    return str(getattr(handler, "__qualname__", type(handler).__name__ if callable(handler) else handler))


def _hooks(name: str) -> bool:
    return name.startswith("_global_") and name.endswith("_hooks")


def _vars(owner: Any) -> dict[str, Any]:
    return vars(owner) if hasattr(owner, "__dict__") else {}


def _method(value: Any) -> bool:
    return callable(value) and not isinstance(value, type | torch.nn.Module)


def _files() -> list[str]:
    """Open files of this process, by what they are; sockets and pipes by number only."""
    kinds = []
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            kinds.append(target if target.startswith("/") else target.partition(":")[0])
    return sorted(f"{count} {kind}" for kind, count in Counter(kinds).items())


def run(program: Program, folder: Path, ours: Sequence[Any], seed: int = 1) -> Run:
    """Fit, and look at what is left once the dust has settled."""
    folder.mkdir(parents=True, exist_ok=True)
    known = set(threading.enumerate())
    seed_everything(seed, verbose=False)
    loader, module = program.loader(), program.module()
    callbacks = [*program.before(), *ours, *program.after()]
    settings = {
        **QUIET,
        "default_root_dir": folder,
        **{name: value() if isinstance(value, Made) else value for name, value in program.settings.items()},
    }
    error: BaseException | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(callbacks=callbacks, **settings)
        try:
            trainer.fit(module, loader, program.val())
        except BaseException as raised:  # Ctrl-C and SystemExit are ends like others
            error = raised
    if error is not None:
        error.__traceback__ = error.__context__ = error.__cause__ = None  # or it would hold frames, and so files
    deadline = time.monotonic() + 3
    while set(threading.enumerate()) - known and time.monotonic() < deadline:
        time.sleep(0.02)
    return Run(
        error,
        state(trainer, module),
        (trainer.global_step, trainer.current_epoch),
        traces(trainer, module, loader),
        list(caught),
        callbacks,
        trainer,
        module,
        folder,
    )


class Made:
    """A setting that each run must make for itself, such as a logger."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __call__(self) -> Any:
        return self.make()


def twins(
    program: Program,
    folder: Path,
    ours: Callable[[], Sequence[Any]] = stall_callbacks,
    may_fail: bool = False,
    may_leave: Sequence[str] = (),
    may_warn: bool = False,
    same_words: bool = True,
) -> tuple[Run, Run]:
    """Run it bare and watched; the watched run must end as the bare one, with nothing of ours left or failed."""
    if "warm" not in _once:  # what a first fit opens stays open
        _once.add("warm")
        run(Program(_warm_up, lambda: [torch.ones(2, 2)] * 2), folder / "warm", [])
    bare = run(program, folder / "bare", [])
    watched = run(program, folder / "watched", ours())
    apart = {} if same_words else {"said": "", "error": bare.error is None or type(watched.error) in PIPES}
    assert {**watched.end, **apart} == {**bare.end, **apart}
    for name, value in bare.left.items():
        if name in may_leave:
            continue
        left = watched.left[name]
        if name == "files":  # what an earlier run still held may be closed by now
            left, value = sorted(set(left) - set(value)), []
        assert left == value, (name, value, left)
    if not may_fail:
        assert not watched.failed, "\n".join(watched.failed)
    if not may_warn:
        usual = {(w.category, _plain(w, bare)) for w in bare.warnings}
        new = [w for w in watched.warnings if (w.category, _plain(w, watched)) not in usual]
        foreign = [str(w.message) for w in new if not issubclass(w.category, StallWarning)]
        assert not foreign, foreign
    return bare, watched


def _plain(warning: Any, of: Run) -> str:
    return str(warning.message).replace(str(of.folder), "").split("\n")[0]


def _warm_up() -> LightningModule:
    from lightning_stall.testing import Classifier

    class Tiny(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch).mean()

    return Tiny(torch.nn.Linear(2, 1))


# A worker thread of torch's process groups that wakes while the interpreter is taken down aborts the process, once in some
# hundred runs, long after the training is over. The tests ask about the training, so its process ends at once.
LEAVE = """
import os, sys
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


def ranks(script: str, folder: Path, *arguments: str, world: int = 2, timeout: float = 100) -> list[tuple[int, str]]:
    """Run a program as the ranks of one job; the exit code and output of each. `arguments` follow the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(script + LEAVE)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(folder / "train.py"), str(folder), *arguments],
            env={**common, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        printed = [p.communicate(timeout=timeout)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, text) for p, text in zip(processes, printed, strict=True)]
