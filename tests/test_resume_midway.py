"""Checkpoints written in the middle of something, and gone on with by other settings or other company.

That a run which goes on is exactly the run that never stopped is `test_resume.py`'s; here it is made sure that the
checkpoint does fall into an accumulation window, a cooldown or a plateau, and what else may have changed since.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from test_resume import STEPS, Same, Saves, family, fit, knowledge
from torch import Tensor
from twin_runs import QUIET

from lightning_stall import AutoClip, GradientHealth, PlateauWatch, StallReport, stall_callbacks
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp

AT = 80  # optimizer steps
LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")


def own(ckpt: Path, name: str) -> dict[str, Any]:
    """What a checkpoint holds of the callback of this class."""
    callbacks = torch.load(ckpt, weights_only=True)["callbacks"]
    state: dict[str, Any] = next(kept["own"] for key, kept in callbacks.items() if key.startswith(name))
    return state


def told_in(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if issubclass(w.category, StallWarning)]


def go_on(module: Any, callbacks: list[Any], folder: Path, ckpt: Path, **settings: Any) -> list[str]:
    """Fit from a checkpoint; what our package said in warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(
            callbacks=callbacks,
            default_root_dir=folder,
            **{**QUIET, "max_epochs": -1, "max_steps": STEPS, "log_every_n_steps": 10, **settings},
        )
        trainer.fit(module, Same(), ckpt_path=ckpt)
    return told_in(caught)


def well(batchnorm: bool = False) -> Classifier:
    seed_everything(4, verbose=False)
    return Classifier(mlp(batchnorm=batchnorm), 1e-3)


# ---------------------------------------------------------------------- in the middle of something


@pytest.mark.parametrize("after", [50, 52, 53])  # 49 to 51 are a window: one and two of three batches, and the next's
def test_amid_an_accumulation_window(after: int, tmp_path: Path) -> None:
    """Lightning drops the part of a window that it stops in; the loss of its other part is a loss like any other."""
    window = {"accumulate_grad_batches": 3, "max_steps": 40, "log_every_n_steps": 5}
    whole = stall_callbacks(auto_remedy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            callbacks=[*whole, Saves(tmp_path / "a.ckpt", after)],
            default_root_dir=tmp_path / "whole",
            **{**QUIET, "max_epochs": -1, **window},
        ).fit(well(batchnorm=True), Same())
    parts = stall_callbacks(auto_remedy=True)
    told = go_on(well(batchnorm=True), list(parts), tmp_path / "parts", tmp_path / "a.ckpt", **window)
    assert not [c.failed for c in parts if c.failed]
    assert told == []
    one, other = whole[0].hub.curve, parts[0].hub.curve
    assert parts[0].hub.step == whole[0].hub.step == 40
    assert one.width == other.width == 1
    stopped = after // 3
    assert other.means[:stopped] == one.means[:stopped]
    assert other.means[stopped] == pytest.approx(one.means[stopped], rel=0.1), "not a third, not three times"
    assert all(b <= a * 1.05 for a, b in zip(other.means, other.means[1:], strict=False)), "it falls on evenly"


@pytest.mark.parametrize("rollback", [False, True])
def test_amid_a_cooldown(rollback: bool, tmp_path: Path) -> None:
    """A reduction from before the checkpoint is waited out, judged and followed by the next when it would have been."""

    def company() -> list[Any]:
        made = family("plateau")
        made[2] = PlateauWatch(auto_remedy=True, factor=0.5, patience=20, cooldown=40, rollback=rollback)
        return made

    at, whole = 115, company()
    fit("plateau", tmp_path / "whole", [*whole, Saves(tmp_path / "a.ckpt", at)])
    kept = own(tmp_path / "a.ckpt", "PlateauWatch")
    assert 0 < kept["changed_at"] <= at < kept["rests_until"], "the checkpoint is in a cooldown"
    assert kept["scale"] == 0.5
    parts = company()
    fit("plateau", tmp_path / "parts", parts, tmp_path / "a.ckpt")
    one, other = knowledge(whole), knowledge(parts)
    for name in one:
        assert one[name] == other[name], name
    reduced = [f.step for f in parts[0].hub.journal.findings if f.remedy]
    assert reduced[:2] == [kept["changed_at"], kept["rests_until"]], "it rests as long as it would have, and no longer"


class Flat(Classifier):
    """A validation loss that never moves, logged once an epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(1.0))


@pytest.mark.parametrize("at", [52, 60, 72, 80])
def test_amid_a_plateau_of_a_monitored_value(at: int, tmp_path: Path) -> None:
    """The patience used up so far counts, though the metric is not logged again before the epoch is over."""

    def run(folder: str, ckpt: Path | None, *extra: Any) -> tuple[PlateauWatch, list[tuple[int, str]]]:
        seed_everything(4, verbose=False)
        watch = PlateauWatch(monitor="val_loss", auto_remedy=True, patience=60, rollback=False)
        report = StallReport(table=False, trials=False)
        settings = {**QUIET, "max_epochs": -1, "max_steps": 180, "log_every_n_steps": 10}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(callbacks=[watch, report, *extra], default_root_dir=tmp_path / folder, **settings)
            trainer.fit(Flat(mlp(), 1e-2), Same(), blobs(batch_size=128), ckpt_path=ckpt)
        assert watch.failed is None
        return watch, [(f.step, f.remedy) for f in report.findings if f.remedy]

    one, reduced = run("whole", None, Saves(tmp_path / "a.ckpt", at))
    kept = own(tmp_path / "a.ckpt", "PlateauWatch")
    assert kept["plateau"]["since"] > 0, "the checkpoint is in a plateau"
    assert reduced[0][0] > at
    other, again = run("parts", tmp_path / "a.ckpt")
    assert again == reduced
    assert other.scale == one.scale
    assert other.plateau.state_dict() == one.plateau.state_dict()


# ---------------------------------------------------------------------- other settings


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the whole family at step 133 of a run whose rate is too low, reduced once by PlateauWatch."""
    folder = tmp_path_factory.mktemp("ill")
    fit("plateau", folder, [*family("plateau"), Saves(folder / "a.ckpt", 133)], max_steps=140)
    assert own(folder / "a.ckpt", "PlateauWatch")["scale"] < 1.0
    return folder / "a.ckpt"


def slow() -> Classifier:
    seed_everything(4, verbose=False)
    return Classifier(mlp(), 1e-6)


@pytest.mark.parametrize(
    ("history", "percentile"), [(20, 10.0), (50, 90.0), (1000, 10.0)], ids=["shorter", "other share", "longer"]
)
def test_another_history_of_autoclip(history: int, percentile: float, ill: Path, tmp_path: Path) -> None:
    """The newest norms that fit in are kept, and the rule goes on at once."""
    norms = own(ill, "AutoClip")["rules"][0]
    clip = AutoClip(warmup=10, history=history, percentile=percentile)
    told = go_on(slow(), [clip, StallReport(table=False, trials=False)], tmp_path, ill, max_steps=134)
    (watched,) = clip._watched.values()
    assert clip.failed is None
    assert not [t for t in told if "AutoClip" in t]
    assert watched.rule.seen == 134
    kept = [*watched.rule.recent, *watched.rule.fresh]  # type: ignore[union-attr]
    entered = len(norms) - 3 - int(norms[2])
    assert len(watched.rule.recent) <= history  # type: ignore[union-attr]
    assert len(kept) >= min(history, entered)
    before = kept[:-1]
    assert before == norms.tolist()[-len(before) :], "the newest, in their order"
    assert 0 < watched.rule.limit < 10 * max(before)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["percentile", "zscore"])
def test_another_method_of_autoclip_begins_anew_with_a_word(method: Any, ill: Path, tmp_path: Path) -> None:
    clip = AutoClip(method=method, warmup=10)
    told = [t for t in go_on(slow(), [clip], tmp_path, ill, max_steps=145) if "AutoClip" in t]
    (watched,) = clip._watched.values()
    assert clip.failed is None
    if method == "percentile":
        assert told == []
        assert watched.rule.seen == 145
        return
    (word,) = told
    assert "'percentile'" in word
    assert "'zscore'" in word
    assert "learns anew" in word
    assert watched.rule.seen == 145 - 133
    assert 0.0 < watched.rule.mean < torch.inf  # type: ignore[union-attr]


def test_other_settings_of_plateau_watch_keep_the_reduction(ill: Path, tmp_path: Path) -> None:
    """Patience, factor and cooldown are settings: what they led to so far is kept, what follows goes by the new ones."""
    scale = own(ill, "PlateauWatch")["scale"]
    watch = PlateauWatch(auto_remedy=True, factor=0.1, patience=1000, cooldown=7, min_lr=1e-12)
    told = go_on(
        slow(), [GradientHealth(), watch, StallReport(table=False, trials=False)], tmp_path, ill, max_steps=150
    )
    assert watch.failed is None
    assert not [t for t in told if "anew" in t]
    assert watch.scale <= scale
    assert watch.hub.curve.n == 150


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 3},
        {"log_every_n_steps": 7},
        {"log_every_n_steps": 0},
        {"gradient_clip_val": 0.5},
        {"max_steps": 134},
        {"max_steps": -1, "max_epochs": 8},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_other_settings_of_the_trainer(settings: dict[str, Any], ill: Path, tmp_path: Path) -> None:
    callbacks = stall_callbacks(auto_remedy=True)
    callbacks[-1].trials = False  # type: ignore[attr-defined]
    go_on(slow(), list(callbacks), tmp_path, ill, **{"max_steps": 170, **settings})
    assert not [c.failed for c in callbacks if c.failed]
    assert callbacks[0].hub.step >= 134
    assert callbacks[0].hub.curve.n >= 134, "the losses from before are still there"


# ---------------------------------------------------------------------- other company


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints at step 80 of a run that learns: under nobody, under two of the family, under all."""
    folder = tmp_path_factory.mktemp("healthy")
    companies = {
        "none": [],
        "few": [PlateauWatch(), StallReport(table=False, trials=False)],
        "all": stall_callbacks(),
    }
    for name, company in companies.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer(
                callbacks=[*company, Saves(folder / f"{name}.ckpt", AT)],
                default_root_dir=folder,
                **{**QUIET, "max_epochs": -1, "max_steps": AT + 1, "log_every_n_steps": 10},
            ).fit(well(batchnorm=True), Same())
    return folder


@pytest.mark.parametrize("remedies", [False, True])
@pytest.mark.parametrize("before", ["none", "few", "all"])
def test_who_joins_a_well_run_midway_is_silent(before: str, remedies: bool, healthy: Path, tmp_path: Path) -> None:
    """What a callback takes for the start of the run is its middle: no first loss, no first gradient, no warm-up."""
    callbacks = stall_callbacks(auto_remedy=remedies)
    told = go_on(well(batchnorm=True), list(callbacks), tmp_path, healthy / f"{before}.ckpt")
    assert told == []
    assert not [c.failed for c in callbacks if c.failed]
    assert not [f for f in callbacks[0].hub.journal.findings if f.speaks]
    assert callbacks[-1].outcome in ("learning", "converged")  # type: ignore[attr-defined]
    assert callbacks[0].hub.curve.n == (STEPS if before == "all" else STEPS - AT if before == "none" else STEPS)


@pytest.mark.parametrize("without", range(len(stall_callbacks())))
def test_any_one_may_be_taken_away(
    without: int, healthy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss curve and the findings go on; without the first, which keeps them for all, they begin anew with a word."""
    callbacks = list(stall_callbacks())
    gone = callbacks.pop(without)
    for name in LOGGERS:
        caplog.set_level(logging.INFO, logger=name)
    told = go_on(well(batchnorm=True), list(callbacks), tmp_path, healthy / "all.ckpt", max_steps=140)
    assert told == []
    assert not [c.failed for c in callbacks if c.failed]
    hub = callbacks[0].hub
    begins = "what it says of the run begins here" in caplog.text
    assert hub.curve.n == (140 - AT if begins else 140)
    assert begins == (without == 0), type(gone).__name__
    assert not [f for f in hub.journal.findings if f.speaks]


@pytest.mark.parametrize("reverse", [False, True])
def test_another_order_and_one_twice(reverse: bool, ill: Path, tmp_path: Path) -> None:
    """Who comes first drives the others; the one that did before has the history."""
    callbacks: list[Any] = [PlateauWatch(monitor="val_loss"), *family("plateau")]
    if reverse:
        callbacks.reverse()
    told = go_on(slow(), callbacks, tmp_path, ill, max_steps=150)
    assert not [c.failed for c in callbacks if c.failed]
    assert not [t for t in told if "anew" in t]
    assert callbacks[0].hub.curve.n == 150
    assert [f.code for f in callbacks[0].hub.journal.findings if f.step <= 133], "findings from before are still known"


class Short(Classifier):
    """Another network than the one that the checkpoint was made with, in width."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.state_dict()
        checkpoint["optimizer_states"] = []
        checkpoint["lr_schedulers"] = []


class Wide:
    """Batches of another size and spread."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from blobs(samples=24 * 48, batch_size=48, seed=3)

    def __len__(self) -> int:
        return 24


def test_another_network_and_other_data(ill: Path, tmp_path: Path) -> None:
    """Fine-tuning from somebody's checkpoint with our state in it: names and sizes are others, and nothing fails."""
    seed_everything(5, verbose=False)
    callbacks = stall_callbacks(auto_remedy=True)
    callbacks[-1].trials = False  # type: ignore[attr-defined]
    net = Short(mlp(width=7, depth=1, batchnorm=True), 1e-2)
    settings = {**QUIET, "max_epochs": -1, "max_steps": 170, "log_every_n_steps": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **settings)
        net.strict_loading = False
        trainer.fit(net, Wide(), ckpt_path=ill)
    assert not [c.failed for c in callbacks if c.failed]
    assert callbacks[0].hub.step == 170
