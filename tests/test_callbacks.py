"""The contract, over every public callback: arguments, pickles, checkpoints, manners, both packages, every odd Trainer."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner

import lightning_stall
from lightning_stall import StallCallback, StallReport, stall_callbacks
from lightning_stall.callback import guarded
from lightning_stall.catalogue import CATALOGUE
from lightning_stall.errors import MisconfigurationException
from lightning_stall.family import FAMILY
from lightning_stall.hub import Hub, due
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, healthy, mlp, nan_batch, watch

CLASSES = [getattr(lightning_stall, name) for _, name in FAMILY]
each = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)


def hooks_left(module: torch.nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, name)) for m in module.modules() for name in names)


@each
def test_codes_are_the_catalogues(cls: type[StallCallback]) -> None:
    assert set(cls.codes) <= set(CATALOGUE)
    if cls is not StallReport:
        assert cls.codes


@each
def test_pickles_and_copies_before_and_after_a_fit(cls: type[StallCallback]) -> None:
    callback = cls()
    pickle.loads(pickle.dumps(callback))
    watch(healthy(), blobs(), *([] if cls is StallReport else [callback]), max_epochs=1)
    again = pickle.loads(pickle.dumps(callback))
    assert again.state_key == callback.state_key
    copy.deepcopy(callback)


@each
@pytest.mark.parametrize(
    ("argument", "value", "way_out"),
    [
        ("every_n_steps", 0, "at least 1"),
        ("mute", ("loss-plateu",), "loss-plateau"),
        ("mute", "loss-plateau", "tuple"),
    ],
)
def test_a_wrong_argument_shows_value_and_way_out(cls: Any, argument: str, value: Any, way_out: str) -> None:
    from lightning.fabric.utilities.exceptions import MisconfigurationException as Lightnings
    from pytorch_lightning.utilities.exceptions import MisconfigurationException as Pytorchs

    for kind in (MisconfigurationException, Lightnings, Pytorchs):
        with pytest.raises(kind, match=way_out) as caught:
            cls(**{argument: value})
        assert (repr(value) if argument != "mute" else "loss-plat") in str(caught.value)


@each
def test_arguments_are_plain_and_typed(cls: type[StallCallback]) -> None:
    for name, parameter in inspect.signature(cls).parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert parameter.default is not inspect.Parameter.empty, name


@each
def test_state_goes_through_a_real_checkpoint(cls: Any, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    callback = cls()
    trainer = make_trainer([callback], max_epochs=2)
    trainer.fit(healthy(), blobs())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"][callback.state_key]
    again = cls()
    second = make_trainer([again], max_epochs=3)
    second.fit(healthy(), blobs(), ckpt_path=tmp_path / "a.ckpt")
    assert again.failed is None
    assert again.hub.curve.n == 48
    assert set(again.state_dict()["own"]) == set(state["own"])


@each
def test_leaves_nothing_behind(cls: Any, make_trainer: Callable[..., Trainer]) -> None:
    callback, module = cls(), Classifier(mlp(batchnorm=True))
    trainer = make_trainer([callback], max_epochs=1)
    before = hooks_left(module)
    trainer.fit(module, blobs(), blobs(shuffle=False, draw=1))
    assert callback.failed is None
    assert hooks_left(module) == before
    optimizer = trainer.optimizers[0]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for owner in (trainer.strategy, trainer.fit_loop.epoch_loop):
        assert not {"training_step", "batch_to_device", "_on_before_fetch", "_on_after_fetch"} & set(vars(owner))


@each
def test_leaves_nothing_behind_after_an_exception(cls: Any, make_trainer: Callable[..., Trainer]) -> None:
    class Dies(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 5:
                raise ArithmeticError("the user's own")
            return super().training_step(batch, batch_idx)

    module = Dies(mlp(batchnorm=True))
    trainer = make_trainer([cls()])
    with pytest.raises(ArithmeticError, match="the user's own"):
        trainer.fit(module, blobs())
    assert hooks_left(module) == 0
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert "_on_before_fetch" not in vars(trainer.fit_loop.epoch_loop)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_works_in_both_packages(package: str, tmp_path: Path) -> None:
    import importlib

    lib = importlib.import_module(package)
    lib.seed_everything(0, verbose=False)

    class Module(lib.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-7)

    callbacks = stall_callbacks()
    report = callbacks[-1]
    assert isinstance(report, StallReport)
    for callback in callbacks:
        assert isinstance(callback, lib.Callback)
    trainer = lib.Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        max_epochs=15,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.warns(StallWarning):
        trainer.fit(Module(), blobs())
    assert [c.failed for c in callbacks] == [None] * len(callbacks)
    assert report.causes[0].code == "learning-rate-too-low"
    assert (tmp_path / "stall_report.md").exists()
    assert (tmp_path / "stall_findings.jsonl").exists()


ODD: dict[str, dict[str, Any]] = {
    "no logger": {},
    "fast_dev_run": {"fast_dev_run": True},
    "sanity check": {"num_sanity_val_steps": 2},
    "overfit_batches": {"overfit_batches": 2, "max_epochs": 5},
    "no training batches": {"limit_train_batches": 0},
    "one step": {"max_steps": 1},
    "logging never": {"log_every_n_steps": 0},
    "barebones": {"barebones": True},
    "a deadline": {"max_time": {"seconds": 1}, "max_epochs": 20},
}


@pytest.mark.filterwarnings(
    "ignore:.*overfit.*", "ignore:.*barebones.*", "ignore:You are trying to `self.log", "ignore:.*shuffl"
)
@pytest.mark.parametrize("name", ODD)
def test_odd_trainers_work_without_a_word(make_trainer: Callable[..., Trainer], name: str) -> None:
    callbacks = stall_callbacks()
    settings = ODD[name]
    if name == "barebones":
        settings = {**settings, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None}
        settings["enable_model_summary"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error", StallWarning)
        make_trainer(callbacks, **settings).fit(healthy(), blobs(), blobs(shuffle=False, draw=1))
    assert [c.failed for c in callbacks] == [None] * len(callbacks)
    assert callbacks[-1].causes == []  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*total length of `CombinedLoader`", "ignore:Total length of")
def test_an_empty_loader_is_nobodys_fault(make_trainer: Callable[..., Trainer]) -> None:
    callbacks = stall_callbacks()
    empty = torch.utils.data.TensorDataset(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    make_trainer(callbacks).fit(healthy(), torch.utils.data.DataLoader(empty, 4))
    assert [c.failed for c in callbacks] == [None] * len(callbacks)


def test_the_tuner_goes_before_and_leaves_nothing(make_trainer: Callable[..., Trainer]) -> None:
    callbacks = stall_callbacks()
    module = healthy()
    trainer = make_trainer(callbacks, max_epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Tuner(trainer).lr_find(module, blobs(), attr_name="rate", num_training=20)
    assert hooks_left(module) == 0
    trainer.fit(module, blobs())
    assert [c.failed for c in callbacks] == [None] * len(callbacks)
    assert callbacks[0].hub.readings.measured == 32


class Faulty(StallCallback):
    """Fails in the verb it is told to."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb = verb
        self.verbs = frozenset({verb})

    def __getattribute__(self, name: str) -> Any:
        if name in ("before_batch", "before_step", "observe", "check", "finish", "conclude") and name == self.verb:
            return self.explode
        return super().__getattribute__(name)

    def explode(self, *args: Any) -> None:
        raise StopIteration("would end the epoch in silence, were it to escape")


@pytest.mark.parametrize("verb", ["before_batch", "before_step", "observe", "check", "finish", "conclude"])
def test_a_failure_of_ours_never_ends_the_training(make_trainer: Callable[..., Trainer], verb: str) -> None:
    faulty, keeps = Faulty(verb), StallReport(table=False)
    trainer = make_trainer([faulty, keeps], max_epochs=2)
    with pytest.warns(StallWarning, match="Faulty failed and is switched off") as caught:
        trainer.fit(healthy(), blobs())
    assert trainer.global_step == 32
    assert len([w for w in caught if issubclass(w.category, StallWarning)]) == 1
    assert keeps.failed is None
    assert keeps.hub.curve.n == 32


def test_a_fault_of_the_hub_itself_ends_our_watch_and_nothing_else(make_trainer: Callable[..., Trainer]) -> None:
    callbacks = stall_callbacks()

    class Breaks(StallCallback):
        def before_batch(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                del self.hub.readings.optimizers

    trainer = make_trainer([Breaks(), *callbacks], max_epochs=2)
    with pytest.warns(StallWarning):
        trainer.fit(healthy(), blobs())
    assert trainer.global_step == 32


def test_warnings_as_errors_do_not_end_the_training(make_trainer: Callable[..., Trainer]) -> None:
    module = nan_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error", StallWarning)
        trainer = make_trainer(stall_callbacks(), max_epochs=2)
        trainer.fit(module, blobs())
    assert trainer.global_step == 32


def test_mute_silences_exactly_this_code() -> None:
    loud = watch(nan_batch(), blobs(), *stall_callbacks()[:-1])
    muted = watch(nan_batch(), blobs(), *stall_callbacks(mute=("nonfinite-loss",))[:-1])
    codes = {f.code for f in loud.findings}
    assert "nonfinite-loss" in codes
    assert {f.code for f in muted.findings} == codes - {"nonfinite-loss"}


def test_checks_fall_where_they_should() -> None:
    assert [s for s in range(1, 160) if due(s, 50)] == [1, 2, 4, 8, 16, 32, 50, 100, 150]


def test_the_hub_dies_with_its_trainer(make_trainer: Callable[..., Trainer]) -> None:
    import gc
    import weakref

    trainer = make_trainer(stall_callbacks())
    trainer.fit(healthy(), blobs())
    assert Hub.of(trainer) is None, "after the fit only the callbacks hold it"
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


def test_a_hook_without_a_verb_may_be_guarded(make_trainer: Callable[..., Trainer]) -> None:
    class Mine(StallCallback):
        seen = 0

        @guarded
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *rest: Any) -> None:
            self.seen += 1
            raise RuntimeError("ours")

    mine = Mine()
    with pytest.warns(StallWarning, match="Mine failed"):
        make_trainer([mine], max_epochs=2, num_sanity_val_steps=1).fit(healthy(), blobs(), blobs(shuffle=False, draw=1))
    assert mine.seen == 1, "not in the sanity check, and not after it failed"


def test_two_fits_of_one_trainer(make_trainer: Callable[..., Trainer]) -> None:
    callbacks = stall_callbacks()
    trainer = make_trainer(callbacks, max_epochs=1)
    module = healthy()
    trainer.fit(module, blobs())
    first = callbacks[0].hub
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, blobs())
    assert callbacks[0].hub is not first
    assert [c.failed for c in callbacks] == [None] * len(callbacks)


def test_lightning_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    config = tmp_path / "config.yaml"
    paths = "\n".join(
        f"    - {{class_path: lightning_stall.{c.__name__}, init_args: {{every_n_steps: 7}}}}" for c in CLASSES
    )
    config.write_text(
        f"trainer:\n  fast_dev_run: true\n  accelerator: cpu\n  enable_progress_bar: false\n"
        f"  default_root_dir: {tmp_path}\n  callbacks:\n{paths}\n"
        "    - {class_path: lightning_stall.PlateauWatch, init_args: {monitor: val_x, auto_remedy: true, factor: 0.25}}\n"
    )
    monkeypatch.setattr("sys.argv", ["any", "fit", "--config", str(config)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(BoringModel, save_config_callback=None)
    ours = [c for c in cli.trainer.callbacks if isinstance(c, StallCallback)]
    assert [type(c) for c in ours] == [*CLASSES, lightning_stall.PlateauWatch]
    assert {c.every_n_steps for c in ours[:-1]} == {7}
    assert (ours[-1].factor, ours[-1].auto_remedy) == (0.25, True)  # type: ignore[attr-defined]


def test_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_stall.plugin import callbacks_from_environment

    monkeypatch.delenv("LIGHTNING_STALL", raising=False)
    assert callbacks_from_environment() == []
    monkeypatch.setenv("LIGHTNING_STALL", "observe")
    assert not callbacks_from_environment()[0].auto_remedy
    monkeypatch.setenv("LIGHTNING_STALL", "remedy")
    assert callbacks_from_environment()[0].auto_remedy
    monkeypatch.setenv("LIGHTNING_STALL", "yes please")
    with pytest.raises(MisconfigurationException, match=r"'yes please'.*observe"):
        callbacks_from_environment()
