"""Whatever happens to a run, it ends as it would have without us: same error, same weights, nothing of ours left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset
from twin_runs import QUIET, Program, Run, twins

from lightning_stall import stall_callbacks
from lightning_stall.replay import FINDINGS_FILE, read_run
from lightning_stall.testing import Classifier, blobs, mlp

BAD = {"nan": float("nan"), "inf": float("inf"), "1e30": 1e30}


def net(**settings: Any) -> Classifier:
    return Classifier(mlp(batchnorm=True, depth=1, width=8), **settings)


def few(**settings: Any) -> DataLoader[Any]:
    return blobs(samples=256, **settings)


def on_disk(run: Run) -> list[str]:
    """Codes in the file that the run left, which are those the report holds."""
    file = run.folder / FINDINGS_FILE
    codes = [f.code for f in read_run(file).findings] if file.exists() else []
    assert codes == [f.code for f in run.report.findings]
    assert (run.folder / "stall_report.md").exists()
    assert (run.folder / "stall_report.html").exists()
    return codes


class At(Callback):
    """Does something at one hook: the `count`-th time it is called."""

    def __init__(self, hook: str, what: Callable[[Any, Any], None], count: int = 6) -> None:
        self.what, self.count, self.calls = what, count, 0

        def called(trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
            self.calls += 1
            if self.calls == self.count:
                what(trainer, pl_module)

        setattr(self, hook, called)


# ---------------------------------------------------------------------- numbers that are none


def bad_input(value: float) -> Program:
    def corrupt(x: Tensor, batch_idx: int) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 3, value, x) if batch_idx == 3 else x

    return Program(lambda: net(corrupt=corrupt), few)


def bad_batch(value: float) -> Program:
    def loader() -> DataLoader[Any]:
        made = few()
        made.dataset.tensors[0][70, 2] = value  # type: ignore[attr-defined]
        return made

    return Program(net, loader)


def bad_weight(value: float) -> Program:
    def spoil(trainer: Any, module: Any) -> None:
        with torch.no_grad():
            next(module.parameters())[0, 0] = value

    return Program(net, few, before=lambda: [At("on_train_batch_start", spoil)])


def bad_loss(value: float) -> Program:
    class Module(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * value if batch_idx == 3 else loss

    return Program(lambda: Module(mlp(batchnorm=True)), few)


def bad_gradient(value: float) -> Program:
    class Module(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            h = self.net[0](batch[0])
            if batch_idx == 3:
                h.register_hook(lambda g: g * value)
            return F.cross_entropy(self.net[1:](h), batch[1])

    return Program(lambda: Module(mlp(batchnorm=True)), few)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", [bad_input, bad_batch, bad_weight, bad_loss, bad_gradient])
def test_bad_numbers(kind: Callable[[float], Program], value: str, tmp_path: Path) -> None:
    _, watched = twins(kind(BAD[value]), tmp_path)
    assert watched.error is None
    codes = on_disk(watched)
    if value != "1e30":
        assert {"nonfinite-loss", "nonfinite-gradients", "nonfinite-inputs"} & set(codes)


# ---------------------------------------------------------------------- the user's own errors, and Ctrl-C


class OwnError(Exception):
    """Raised by the user's code."""


def raises(trainer: Any, module: Any) -> None:
    raise OwnError("the user's own")


def presses_ctrl_c(trainer: Any, module: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def leaves(trainer: Any, module: Any) -> None:
    raise SystemExit(3)


def stops_iteration(trainer: Any, module: Any) -> None:
    raise StopIteration  # Lightning takes it for the end of the epoch


HOOKS = {
    "setup": 1,
    "on_fit_start": 1,
    "on_train_start": 1,
    "on_train_epoch_start": 2,
    "on_train_batch_start": 6,
    "on_before_zero_grad": 6,
    "on_before_backward": 6,
    "on_after_backward": 6,
    "on_before_optimizer_step": 6,
    "on_train_batch_end": 6,
    "on_validation_start": 1,
    "on_validation_batch_end": 1,
    "on_validation_end": 1,
    "on_train_epoch_end": 1,
    "on_train_end": 1,
    "teardown": 1,
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_of_the_user_raises(hook: str, place: str, tmp_path: Path) -> None:
    program = Program(net, few, val=lambda: few(draw=1, shuffle=False))
    setattr(program, place, lambda: [At(hook, raises, HOOKS[hook])])
    _, watched = twins(program, tmp_path)
    assert type(watched.error) is OwnError
    if hook not in ("setup", "on_fit_start", "on_train_start"):
        on_disk(watched)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler: what a shell starts behind its back is deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.alone
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_epoch_end"])
@pytest.mark.parametrize("what", [presses_ctrl_c, leaves, stops_iteration])
def test_ctrl_c_and_other_ends(what: Callable[[Any, Any], None], hook: str, place: str, tmp_path: Path) -> None:
    program = Program(net, few)
    setattr(program, place, lambda: [At(hook, what, HOOKS[hook])])
    _, watched = twins(program, tmp_path)
    if what is presses_ctrl_c:
        assert isinstance(watched.error, SystemExit | KeyboardInterrupt)
    on_disk(watched)


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_users_own_exception_handler_raises(place: str, tmp_path: Path) -> None:
    """Lightning then calls nobody behind it, and no teardown."""

    def program(trainer: Any, module: Any) -> None:
        raise OwnError("second")

    made = Program(net, few)
    both: Callable[[], list[Callback]] = lambda: [  # noqa: E731
        At("on_train_batch_end", raises),
        At("on_exception", program, 1),
    ]
    setattr(made, place, both)
    _, watched = twins(made, tmp_path, may_leave=("module hooks", "optimizer hooks", "put on"))
    assert not [t.name for t in threading.enumerate() if t.name.startswith("lightning-stall")]
    again = Trainer(callbacks=stall_callbacks(), **{**QUIET, "default_root_dir": tmp_path})
    again.fit(watched.module, few())  # whoever goes on gets rid of what could not be taken out then
    assert not sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in watched.module.modules())


# ---------------------------------------------------------------------- losses of every kind


def returns(make: Callable[[Tensor], Any], at: int = -1) -> Callable[[], LightningModule]:
    """A module whose training step returns `make(loss)`, at one batch or at all."""

    class Module(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            return make(loss) if at < 0 or batch_idx == at else loss

    return lambda: Module(mlp(depth=1, width=8))


LOSSES: dict[str, Callable[[Tensor], Any]] = {
    "integer": lambda x: x.long(),
    "Python number": lambda x: float(x),
    "complex": lambda x: torch.complex(x, x),
    "detached": lambda x: x.detach(),
    "None": lambda x: None,
    "dict": lambda x: {"loss": x, "extra": [1, "a"]},
    "dict without loss": lambda x: {"total": x},
    "dict of None": lambda x: {"loss": None},
    "one element": lambda x: x[None],
    "several elements": lambda x: torch.stack([x, x]),
    "no elements": lambda x: x.new_zeros(0, requires_grad=True),
    "half": lambda x: x.half(),
    "double": lambda x: x.double(),
    "leaf": lambda x: torch.ones((), requires_grad=True),
    "constant of weights": lambda x: x * 0 + 1,
    "negative": lambda x: -x,
    "string": lambda x: "loss",
    "list": lambda x: [x],
}


@pytest.mark.parametrize("at", [-1, 2])
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_of_every_kind(kind: str, at: int, tmp_path: Path) -> None:
    twins(Program(returns(LOSSES[kind], at), few, settings={"max_epochs": 1}), tmp_path)


# ---------------------------------------------------------------------- batches of every kind


@dataclass
class Sample:
    x: Tensor
    note: Any = None


class Odd:
    """A batch of a class that answers to everything in its own way."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __getattr__(self, name: str) -> Any:
        raise OwnError(f"no {name} here") if not name.startswith("_") else AttributeError(name)

    def __len__(self) -> int:
        raise OwnError("no length")

    def __eq__(self, other: object) -> bool:
        raise OwnError("no comparison")

    def __bool__(self) -> bool:
        raise OwnError("no truth")

    __hash__ = None  # type: ignore[assignment]


X = torch.linspace(-1, 1, 32).reshape(8, 4)
BATCHES: dict[str, Callable[[], Any]] = {
    "strings": lambda: ["a", "b"],
    "None": lambda: None,
    "number": lambda: 3,
    "empty list": list,
    "empty dict": dict,
    "nested": lambda: {"a": [X, (X, {"b": X, 3: "text"})], ("t", 1): None},
    "dataclass": lambda: Sample(X, note=object()),
    "custom class": lambda: Odd(X),
    "generator": lambda: (X for _ in range(2)),
    "bytes": lambda: b"abc",
    "zero rows": lambda: (X[:0], X[:0, 0].long()),
    "scalars": lambda: (torch.tensor(1.0), torch.tensor(2)),
    "bool": lambda: X > 0,
    "uint8": lambda: (X * 10).to(torch.uint8),
    "half": lambda: X.half(),
    "complex": lambda: torch.complex(X, X),
    "sparse": lambda: X.to_sparse(),
    "csr": lambda: X.to_sparse_csr(),
    "nested tensor": lambda: torch.nested.nested_tensor([X[0], X[1, :2]]),
    "quantized": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(8, 4, device="meta"),
    "needs grad": lambda: X.clone().requires_grad_(),
    "expanded": lambda: X[:1].expand(8, 4),
    "inference": lambda: _inference(X),
    "numpy": lambda: X.numpy(),
    "deep": lambda: _deep(X, 40),
    "itself": lambda: _circle(),
    "many": lambda: [X[0]] * 500,
}


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * 1


def _deep(x: Any, depth: int) -> Any:
    return x if depth == 0 else [_deep(x, depth - 1)]


def _circle() -> Any:
    held: list[Any] = [X]
    return Sample(X, note=[Odd(X), held])


class OwnLoss(LightningModule):
    """Reads nothing of its batch, so that any batch will do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(torch.ones(3, 4) * (batch_idx + 1)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(torch.ones(3, 4)).mean(), batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Batches:
    """An iterable of ready batches."""

    def __init__(self, make: Callable[[], Any], count: int = 6) -> None:
        self.make, self.count = make, count

    def __iter__(self) -> Iterator[Any]:
        return (self.make() for _ in range(self.count))

    def __len__(self) -> int:
        return self.count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_every_kind(kind: str, tmp_path: Path) -> None:
    loader = lambda: Batches(BATCHES[kind])  # noqa: E731
    twins(Program(OwnLoss, loader, val=loader, settings={"max_epochs": 2}), tmp_path)


# ---------------------------------------------------------------------- loaders


class Stream(IterableDataset[Any]):
    """Without a length; `lengths` says how many samples each pass has, for ever where it is None."""

    def __init__(self, lengths: list[int | None]) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[Any]:
        length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
        i = 0
        while length is None or i < length:
            yield torch.randn(8), i % 4
            i += 1


class Grows(Dataset[Any]):
    """Longer by five batches at every epoch."""

    def __init__(self, step: int) -> None:
        self.step, self.size = step, 64

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Any:
        if i == 0:
            self.size += self.step
        return torch.randn(8), i % 4


class Dies(Dataset[Any]):
    """Raises, or kills the worker it runs in, at one sample."""

    def __init__(self, kill: bool) -> None:
        self.kill = kill

    def __len__(self) -> int:
        return 128

    def __getitem__(self, i: int) -> Any:
        if i == 70:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OwnError("a broken sample")
        return torch.randn(8), i % 4


LOADERS: dict[str, Callable[[], Any]] = {
    "empty": lambda: DataLoader(Stream([0]), 8),
    "infinite": lambda: DataLoader(Stream([None]), 8),
    "changes length": lambda: DataLoader(Stream([64, 8, 200]), 8),
    "empty later": lambda: DataLoader(Stream([64, 0, 64]), 8),
    "dataset grows": lambda: DataLoader(Grows(40), 8),
    "dataset shrinks": lambda: DataLoader(Grows(-24), 8),
    "raises": lambda: DataLoader(Dies(kill=False), 8),
    "raises in a worker": lambda: DataLoader(Dies(kill=False), 8, num_workers=1),
    "worker killed": lambda: DataLoader(Dies(kill=True), 8, num_workers=2),
    "list of batches": lambda: list(few()),
    "dict of loaders": lambda: {"a": few(), "b": few(draw=1)},
    "generator": lambda: (batch for batch in few()),
    "single sample": lambda: blobs(samples=1),
}


class TakesAny(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)


# GradientHealth keeps the last batch when its fit is over, and a worker's batch is an open file
_KEPT = ("raises in a worker", "worker killed")


@pytest.mark.alone
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LOADERS)
def test_loaders_of_every_kind(kind: str, tmp_path: Path) -> None:
    settings = {"max_epochs": 3, "max_steps": 40, "reload_dataloaders_every_n_epochs": int("dataset" in kind)}
    made = Program(lambda: TakesAny(mlp(depth=1)), LOADERS[kind], settings=settings)
    keeps = ("files",) if kind in _KEPT else ()
    _, watched = twins(made, tmp_path, may_leave=keeps, same_words=kind != "worker killed")
    if kind in ("raises", "raises in a worker", "worker killed"):
        assert watched.error is not None
        assert (watched.folder / "stall_report.md").exists()


# ---------------------------------------------------------------------- modules that change


def changes(what: Callable[[Any, Any], None], optimizer: str = "sgd", hook: str = "on_train_batch_start") -> Program:
    return Program(lambda: net(optimizer=optimizer), few, before=lambda: [At(hook, what)])


def wider(trainer: Any, module: Any) -> None:
    """The hidden layer grows in place: the same parameters, of another shape."""
    first, norm, last = module.net[0], module.net[1], module.net[3]
    with torch.no_grad():
        first.weight.data = torch.cat([first.weight.data, first.weight.data[:3]])
        first.bias.data = torch.cat([first.bias.data, first.bias.data[:3]])
        last.weight.data = torch.cat([last.weight.data, last.weight.data[:, :3]], 1)
        for name in ("weight", "bias"):
            value = getattr(norm, name)
            value.data = torch.cat([value.data, value.data[:3]])
        for name in ("running_mean", "running_var"):
            setattr(norm, name, torch.cat([getattr(norm, name), getattr(norm, name)[:3]]))
    for p in module.parameters():
        p.grad = None


def wider_amid_step(trainer: Any, module: Any) -> None:
    p = module.net[3].weight
    p.data = torch.cat([p.data, p.data[:1]])
    p.grad = torch.cat([p.grad, p.grad[:1]])
    module.net[3].bias.data = torch.cat([module.net[3].bias.data, module.net[3].bias.data[:1]])
    module.net[3].bias.grad = torch.cat([module.net[3].bias.grad, module.net[3].bias.grad[:1]])


def replaced(trainer: Any, module: Any) -> None:
    """A new last layer, and a new optimizer for all."""
    module.net[3] = nn.Linear(8, 4)
    trainer.strategy.optimizers = [torch.optim.Adam(module.parameters(), 1e-3)]


def orphaned(trainer: Any, module: Any) -> None:
    module.net[3] = nn.Linear(8, 4)


def added(trainer: Any, module: Any) -> None:
    module.extra = nn.Linear(4, 4)
    module.net.append(module.extra)
    trainer.optimizers[0].add_param_group({"params": list(module.extra.parameters())})


def removed(trainer: Any, module: Any) -> None:
    module.net = nn.Sequential(*[m for m in module.net if not isinstance(m, nn.BatchNorm1d)])


def frozen(trainer: Any, module: Any) -> None:
    module.net[0].requires_grad_(False)
    module.net[1].eval()


def all_frozen(trainer: Any, module: Any) -> None:
    module.requires_grad_(False)


def emptied(trainer: Any, module: Any) -> None:
    trainer.optimizers[0].param_groups[0]["params"].clear()


def retyped(trainer: Any, module: Any) -> None:
    module.net.double()
    module.corrupt = lambda x, i: x.double()


def hooked(trainer: Any, module: Any) -> None:
    module.net[0].register_forward_hook(lambda m, i, o: o * 1.0)


CHANGES = [wider, replaced, orphaned, added, removed, frozen, all_frozen, emptied, retyped, hooked]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("what", CHANGES, ids=lambda c: c.__name__)
def test_modules_that_change_while_training(what: Callable[[Any, Any], None], optimizer: str, tmp_path: Path) -> None:
    twins(changes(what, optimizer), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_a_layer_that_grows_amid_a_step(hook: str, tmp_path: Path) -> None:
    twins(changes(wider_amid_step, hook=hook), tmp_path)
