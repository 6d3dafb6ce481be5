"""A run that stops anywhere and goes on from its checkpoint is the run that was never stopped, in what we know of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from twin_runs import QUIET, state

from lightning_stall import AutoClip, GradientHealth, OptimizerHealth, PlateauWatch, StallReport, stall_callbacks
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp

DATA = Path(__file__).parent / "data"
STEPS = 240


class Same:
    """The same few batches in every epoch, one after the other: where a loader stood does not matter to what follows."""

    def __init__(self, length: int = 24) -> None:
        self.length = length
        self.batch = next(iter(blobs(batch_size=32, shuffle=False)))

    def __iter__(self) -> Iterator[Any]:
        return (self.batch for _ in range(self.length))

    def __len__(self) -> int:
        return self.length


class Saves(Callback):
    """Behind all others: writes a checkpoint after so many micro-batches, and goes on."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.after, self.seen = path, after, 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.after:
            trainer.save_checkpoint(self.path)


def module(kind: str) -> Classifier:
    seed_everything(4, verbose=False)
    rate = {"plateau": 1e-6, "diverges": 12.0}.get(kind, 1e-2)
    return Classifier(mlp(), rate, "momentum" if kind == "diverges" else "adam")


def family(kind: str) -> list[Any]:
    watch = PlateauWatch(auto_remedy=True, factor=0.5, patience=20, cooldown=40, rollback=False)
    return [
        GradientHealth(),
        AutoClip(warmup=10, history=50),
        watch,
        # a rate known to be too low is not lowered further, and here the reduction is what is to go on
        OptimizerHealth(mute=["learning-rate-too-low"]),
        StallReport(table=False, trials=False),
    ]


def fit(kind: str, folder: Path, callbacks: list[Any], ckpt: Path | None = None, **settings: Any) -> Any:
    made = {**QUIET, "max_epochs": -1, "max_steps": STEPS, "log_every_n_steps": 10, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(callbacks=callbacks, default_root_dir=folder, **made)
        net = module(kind)
        trainer.fit(net, Same(), ckpt_path=ckpt)
    return trainer, net


def knowledge(callbacks: list[Any]) -> dict[str, Any]:
    """What we know at the end of a run."""
    hub = callbacks[0].hub
    return {
        "step": hub.step,
        "curve": hub.curve.state_dict(),
        "findings": [(f.code, f.step, f.severity, f.remedy) for f in hub.journal.findings],
        "outcome": hub.outcome,
        "causes": [(c.code, round(c.confidence, 6)) for c in callbacks[-1].causes],
        **{type(c).__name__: repr(c.state()) for c in callbacks},
    }


@pytest.mark.parametrize("after", [1, 7, 24, 49, 100, 133])
@pytest.mark.parametrize("kind", ["healthy", "plateau", "diverges"])
def test_it_goes_on_exactly(kind: str, after: int, tmp_path: Path) -> None:
    """In the middle of an epoch, at its end, in a plateau, in a cooldown."""
    whole = family(kind)
    trainer, net = fit(kind, tmp_path / "whole", [*whole, Saves(tmp_path / "a.ckpt", after)])
    parts = family(kind)
    again, same = fit(kind, tmp_path / "parts", parts, tmp_path / "a.ckpt")
    assert not [c.failed for c in parts if c.failed]
    one, other = knowledge(whole), knowledge(parts)
    for name in one:
        assert one[name] == other[name], name
    assert state(trainer, net) == state(again, same)
    if kind == "plateau":
        assert "reduced the learning rate" in str(one["findings"])


@pytest.mark.parametrize("after", [8, 13, 50])
def test_in_the_middle_of_an_accumulation_window(after: int, tmp_path: Path) -> None:
    """Lightning itself drops the gradients of a window that it stops in; what we know goes on from the last step."""
    whole, parts, window = family("healthy"), family("healthy"), {"accumulate_grad_batches": 3, "max_steps": 60}
    fit("healthy", tmp_path / "whole", [*whole, Saves(tmp_path / "a.ckpt", after)], **window)
    fit("healthy", tmp_path / "parts", parts, tmp_path / "a.ckpt", **window)
    assert not [c.failed for c in parts if c.failed]
    assert parts[0].hub.step == whole[0].hub.step
    assert abs(parts[0].hub.curve.n - whole[0].hub.curve.n) <= 1


def test_other_settings_and_other_company(tmp_path: Path) -> None:
    """Callbacks in another order, fewer, more, and set otherwise: the history is not lost."""
    whole = family("plateau")
    fit("plateau", tmp_path / "whole", [*whole, Saves(tmp_path / "a.ckpt", 133)])
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    watch = PlateauWatch(auto_remedy=True, factor=0.1, patience=50)
    others = [AutoClip(method="zscore", warmup=5), watch, GradientHealth(every_n_steps=3), *stall_callbacks()[4:]]
    fit("plateau", tmp_path / "parts", others, tmp_path / "a.ckpt")
    assert not [c.failed for c in others if c.failed]
    assert others[0].hub.curve.n == STEPS
    first = [f.code for f in whole[0].hub.journal.findings if f.step < 133]
    assert [f.code for f in others[0].hub.journal.findings][: len(first)] == first
    assert kept[watch.state_key]["own"]["scale"] >= watch.scale


def damaged(state: Any, how: str) -> Any:
    if how == "keys missing":
        return {}
    if how == "keys added":
        return {**state, "of a later version": [1, 2]}
    return dict.fromkeys(state, "another type")


@pytest.mark.parametrize("how", ["keys missing", "keys added", "other types"])
def test_a_state_of_another_version(how: str, tmp_path: Path) -> None:
    """It is read as far as it goes, or begins anew with a word; never an error, never a silent half."""
    fit("plateau", tmp_path / "whole", [*stall_callbacks(), Saves(tmp_path / "a.ckpt", 60)], max_steps=70)
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for kept in checkpoint["callbacks"].values():
        kept["own"] = damaged(kept["own"], how)
        if "shared" in kept:
            kept["shared"] = damaged(kept["shared"], how)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    family = stall_callbacks()
    trainer = Trainer(callbacks=family, default_root_dir=tmp_path, **{**QUIET, "max_epochs": -1, "max_steps": 90})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module("plateau"), Same(), ckpt_path=tmp_path / "a.ckpt")
    told = [str(w.message) for w in caught if issubclass(w.category, StallWarning) and "begin" in str(w.message)]
    assert not [c.failed for c in family if c.failed]
    assert bool(told) == (how != "keys added")
    assert trainer.global_step == 90
    assert family[0].hub.curve.n == (30 if told else 90)


@pytest.mark.parametrize("name", sorted(p.name for p in DATA.glob("*.ckpt")))
def test_checkpoints_of_versions_that_were(name: str, tmp_path: Path) -> None:
    """Files written by versions of this package, kept as they were: what they hold goes on."""
    family = stall_callbacks()
    trainer = Trainer(callbacks=family, default_root_dir=tmp_path, **{**QUIET, "max_epochs": -1, "max_steps": 170})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module("plateau"), Same(), ckpt_path=DATA / name)
    assert not [c.failed for c in family if c.failed]
    assert family[0].hub.curve.n == 170
    assert [f.code for f in family[0].hub.journal.findings if f.step <= 150], "findings from before are still known"


def test_a_checkpoint_made_without_us(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit("healthy", tmp_path, [Saves(tmp_path / "a.ckpt", 30)], max_steps=40)
    family = stall_callbacks()
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        caplog.set_level("INFO", logger=name)  # which other tests may have quietened
    with caplog.at_level("INFO"):
        fit("healthy", tmp_path, family, tmp_path / "a.ckpt", max_steps=60)
    assert not [c.failed for c in family if c.failed]
    assert family[0].hub.curve.n == 30
    assert "begins here" in caplog.text


def test_a_second_fit_of_one_trainer_goes_on(tmp_path: Path) -> None:
    family = stall_callbacks()
    trainer, net = fit("healthy", tmp_path, family, max_steps=50)
    trainer.fit_loop.epoch_loop.max_steps = 80
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(net, Same())
    assert family[0].hub.curve.n == 80
    assert not [c.failed for c in family if c.failed]


if __name__ == "__main__":  # writes the checkpoint of this version
    import sys
    import tempfile

    from lightning_stall.version import __version__

    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        fit("plateau", Path(scratch), [*stall_callbacks(), Saves(DATA / f"{__version__}.ckpt", 150)], max_steps=155)
    sys.exit(0)
