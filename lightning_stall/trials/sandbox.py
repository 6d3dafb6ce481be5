"""A copy of the training, apart from it: what is done to the copy leaves no trace in the run.

The copy has weights, buffers, optimizer state and hooks of its own, logs nothing, and sees the Trainer through a view
that takes what is written to it. Random numbers are put back. What cannot be copied safely is declined, with the word
why. Outside the module's reach (a global counter, a file) a user's training step can still act; nothing holds it there.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_stall.measure.gradients import is_dtensor
from lightning_stall.remedies_start import draw_anew

SEED = 2_147_483_629  # of every fit, so that all draw the same dropout masks
STEPS_OF_THEIR_OWN = ("optimizer_step", "optimizer_zero_grad", "backward")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SINGLE = ("SingleDevice", "DDP")  # strategies whose module is whole on each rank
COPIES = 5  # times the weights that a trial needs room for: weights, gradients, two moments, and some to work in

_T = TypeVar("_T")


class DeclinedError(Exception):
    """This training cannot be tried on a copy; the message says why."""


def why_not(trainer: Any, module: Any) -> str | None:
    """Why no trial may be made in this training; None where it may."""
    strategy = type(trainer.strategy).__name__
    own = next((m for m in STEPS_OF_THEIR_OWN if _overridden(module, m)), None)
    if not module.automatic_optimization:
        return "the module optimises by hand"
    if trainer.world_size > 1:
        return "several ranks train together"
    if not strategy.startswith(SINGLE):
        return f"{strategy} spreads the weights"
    if len(trainer.optimizers) != 1:
        return "there is not exactly one optimizer"
    if isinstance(getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0]), torch.optim.LBFGS):
        return "LBFGS makes many evaluations a step"
    if own is not None:
        return f"the module has an {own} of its own"
    if any(is_dtensor(p) or p.is_meta for p in module.parameters()):
        return "the weights are spread over devices"
    compiled = getattr(module, "_compiler_ctx", None) is not None
    if compiled or any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in module.modules()):
        return "the module is compiled"
    return _no_room(module)


def _overridden(module: Any, name: str) -> bool:
    method = getattr(type(module), name, None)
    return method is not None and not method.__module__.startswith(("lightning.", "pytorch_lightning."))


def _no_room(module: nn.Module) -> str | None:
    params = list(module.parameters())
    if not params or params[0].device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(params[0].device)
    need = COPIES * sum(p.nbytes for p in params)
    return f"{need >> 20} MiB are needed for a copy, {free >> 20} are free" if need > free / 2 else None


# ---------------------------------------------------------------------- the copy


class TrainerView:
    """The Trainer as the copy sees it: reads go through, writes stay here, and there is no logger."""

    def __init__(self, trainer: Any, optimizers: list[Optimizer]) -> None:
        self.__dict__.update(
            _behind=trainer, optimizers=optimizers, logger=None, loggers=[], should_stop=False, lr_scheduler_configs=[]
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_behind"], name)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _no_optimizers(*args: Any, **kwargs: Any) -> Any:
    raise DeclinedError("the training step asks for its optimizers")


class Sandbox:
    """One copy of module and optimizer, at `rate` times the optimizer's own.

    Raises:
        DeclinedError: where they cannot be copied.
    """

    def __init__(self, trainer: Any, module: Any, rate: float = 1.0) -> None:
        self.trainer = trainer
        try:
            memo = _Memo(module)
            self.module = copy.deepcopy(module, memo.table)
            memo.fill()
            self.optimizer: Optimizer = copy.deepcopy(trainer.optimizers[0], memo.table)
        except DeclinedError:
            raise
        except Exception as error:
            raise DeclinedError(f"the module cannot be copied ({type(error).__name__}: {error})"[:200]) from error
        self._shut_in()
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * rate
        self._check()

    def _shut_in(self) -> None:
        cls = type(self.module)
        silent: dict[str, Any] = dict.fromkeys(("log", "log_dict", "print"), _nothing)
        silent |= dict.fromkeys(("optimizers", "lr_schedulers"), _no_optimizers)
        for name in [n for n in self.module.__dict__ if n in silent]:
            del self.module.__dict__[name]
        self.module.__class__ = type(cls.__name__, (cls,), {**silent, "__module__": cls.__module__})
        view = TrainerView(self.trainer, [self.optimizer])
        for child in self.module.modules():
            if "_trainer" in child.__dict__:
                child.__dict__["_trainer"] = view

    def _check(self) -> None:
        """No weight of the run may be held by the copy: a module may copy itself in a way of its own."""
        real = {p.data_ptr() for p in self.trainer.lightning_module.parameters() if p.numel()}
        held = [p for g in self.optimizer.param_groups for p in g["params"]]
        mine = {id(p): p for p in self.module.parameters()}
        if any(p.data_ptr() in real for p in (*mine.values(), *held) if p.numel()):
            raise DeclinedError("a copy of the module shares weights with it")
        if any(id(p) not in mine for p in held):
            raise DeclinedError("the optimizer holds weights that are not the module's")

    # ------------------------------------------------------------------ what a trial may change

    def forget(self) -> None:
        """Start anew: weights as the layers' own initialisation draws them, the optimizer without a past."""
        drawn = {p for module in draw_anew(self.module.modules()) for p in module.parameters(recurse=False)}
        with torch.no_grad():
            for p in self.module.parameters():
                if p not in drawn and p.is_floating_point() and not bool(p.isfinite().all()):
                    p.normal_(0.0, 0.02)
            for _, b in self.module.named_buffers():
                if b.is_floating_point() and not bool(b.isfinite().all()):
                    b.zero_()
        self.optimizer.state.clear()

    def free(self) -> None:
        """Take weight decay and dropout out."""
        for group in self.optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        for child in self.module.modules():
            if isinstance(child, nn.modules.dropout._DropoutNd):
                child.p = 0.0
            elif isinstance(child, nn.RNNBase | nn.MultiheadAttention):
                child.dropout = 0.0

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Without dropout: what it adds to a loss is not what a model has learnt."""
        layers = [m for m in self.module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
        for layer in layers:
            layer.training = False
        try:
            yield
        finally:
            for layer in layers:
                layer.training = True

    def plain_adam(self, rate: float) -> None:
        """Exchange the optimizer."""
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.optimizer = torch.optim.Adam(params, lr=rate)

    # ------------------------------------------------------------------ how it is used

    def loss(self, batch: Any, index: int) -> Tensor:
        """`training_step` on the copy, under the run's precision."""
        arguments = self.trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, index)
        with self.trainer.precision_plugin.train_step_context():
            output = self.module.training_step(*arguments.values())
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise DeclinedError("the training step gives no loss to differentiate")
        return loss

    def clip(self) -> None:
        """Clip the gradients as the run does."""
        trainer = self.trainer
        self.module.configure_gradient_clipping(
            self.optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )


def apart(module: nn.Module, what: Callable[[], _T]) -> _T | DeclinedError:
    """Do this apart from the run: random numbers and the module's gradients are put back after it.

    Any failure of the copy comes back as a `DeclinedError`.
    """
    grads = [(p, p.grad) for p in module.parameters()]
    for p, _ in grads:
        p.grad = None
    try:
        # isolate_rng puts nothing back after an exception, so none may pass it
        with isolate_rng(), torch.enable_grad():
            try:
                return what()
            except DeclinedError as declined:
                return declined
            except Exception as error:
                return DeclinedError(f"the copy failed ({type(error).__name__}: {error})"[:200])
    finally:
        for p, grad in grads:
            p.grad = grad


# ---------------------------------------------------------------------- what the copy must not take along


class _Memo:
    """What `copy.deepcopy` is to take as copied already, and the hooks to fill in after it.

    Hooks of ours are left out, data sets and the Trainer's parts are shared by reference, and tensors in the middle of a
    graph become plain ones.

    Raises:
        DeclinedError: where a function kept in the module holds the module itself, and would go on acting on it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.table: dict[int, Any] = {}
        self.hooks: list[tuple[OrderedDict[int, Any], Any]] = []
        for child in module.modules():
            for name in HOOKS:
                hooks = child.__dict__.get(name)
                if hooks:
                    for hook in hooks.values():
                        self._look(hook, 0)
                    kept: OrderedDict[int, Any] = OrderedDict()
                    self.table[id(hooks)] = kept
                    self.hooks.append((kept, hooks))
            # what a module leaves out of its own state (torchmetrics its wrapped methods), it makes anew
            state = child.__getstate__() if hasattr(type(child), "__getstate__") else child.__dict__
            for name, value in (state if isinstance(state, dict) else child.__dict__).items():
                if name not in HOOKS:
                    self._look(value, 4)

    def fill(self) -> None:
        for kept, hooks in self.hooks:
            kept.update({key: copy.deepcopy(h, self.table) for key, h in hooks.items() if not _ours(h)})

    def _look(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if value.grad_fn is not None:
                self.table[id(value)] = value.detach().clone()
        elif isinstance(value, torch.Generator):
            self.table[id(value)] = value.clone_state()
        elif isinstance(value, FunctionType):
            held = [_content(cell) for cell in value.__closure__ or ()]
            if not _ours(value) and any(isinstance(h, nn.Module | nn.Parameter) for h in held):
                raise DeclinedError(f"`{value.__qualname__}`, kept in the module, holds a module and cannot be copied")
        elif isinstance(value, Dataset | DataLoader | Sampler) or _of_lightning(value):
            self.table[id(value)] = value
        elif depth and isinstance(value, list | tuple | set | dict) and len(value) < 10_000:
            for item in value.values() if isinstance(value, dict) else value:
                self._look(item, depth - 1)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _ours(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith("lightning_stall.")


def _of_lightning(value: Any) -> bool:
    """Trainers, data modules, callbacks and loggers; by name, since there are two Lightning packages."""
    names = {"Trainer", "LightningDataModule", "Callback", "Logger"}
    return not isinstance(value, nn.Module) and any(c.__name__ in names for c in type(value).__mro__)
