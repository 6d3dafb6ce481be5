"""A checkpoint of two ranks goes on with one process, and one of a single process with two: what was known still is."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from twin_runs import QUIET, ranks

from lightning_stall import stall_callbacks
from lightning_stall.sinks import StallWarning
from lightning_stall.testing import Classifier, blobs, mlp

STEPS, AT, BETWEEN = 160, 80, 93  # optimizer steps in all; checkpoints at a check, and between two
EVERY = 20  # optimizer steps between checks
KEPT = {AT: "at", BETWEEN: "between"}


class Saves(Callback):
    """Behind all others: writes a checkpoint at each of these steps, and goes on."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if self.folder is not None and trainer.global_step in KEPT:
            trainer.save_checkpoint(self.folder / f"{KEPT[trainer.global_step]}.ckpt")


class Begins(Callback):
    """Behind all others: what is known before the first step."""

    def __init__(self, family: list[Any]) -> None:
        self.family, self.known = family, dict[str, Any]()

    def on_train_start(self, *args: Any) -> None:
        self.known = known(self.family)


def by_name(family: list[Any], name: str) -> Any:
    return next(c for c in family if type(c).__name__ == name)


def known(family: list[Any]) -> dict[str, Any]:
    """What we know of a run, in values that JSON keeps."""
    hub, watch, clip = family[0].hub, by_name(family, "PlateauWatch"), by_name(family, "AutoClip")
    norms = [int(saved[0]) for saved in clip.state()["rules"].values()]
    return {
        "losses": hub.curve.n,
        "level": hub.curve.level(20) if hub.curve.n else None,
        "findings": [[f.code, f.step, f.severity, f.remedy] for f in hub.journal.findings],
        "told": dict(hub.journal.told),
        "outcome": hub.outcome.state,
        "scale": watch.scale,
        "rate": hub.rate.factor,
        "norms": norms,
        "spikes": len(by_name(family, "GradientHealth").recent),
    }


def train(folder: Path, world: int, kept: Path | None = None, saves: bool = False) -> dict[str, Any]:
    """Fit by a rate that is far too high, so that much is found and done; what was known, before and after."""
    seed_everything(0, verbose=False)
    family: list[Any] = list(stall_callbacks(auto_remedy=True))
    family[-1].table = False
    by_name(family, "PlateauWatch").rollback = False  # the weights that it would go back to are not in a checkpoint
    begins = Begins(family)
    module = Classifier(mlp(batchnorm=True), rate=30.0, optimizer="momentum")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(
            callbacks=[*family, begins, Saves(folder if saves else None)],
            strategy="ddp" if world > 1 else "auto",
            default_root_dir=folder / ("first" if saves else "again"),
            **{**QUIET, "devices": world, "max_epochs": -1, "max_steps": STEPS, "log_every_n_steps": EVERY},
        )
        trainer.fit(module, blobs(batch_size=16), ckpt_path=kept)
    return {
        "begun": begins.known,
        "ended": known(family),
        "step": family[0].hub.step,
        "failed": {type(c).__name__: c.failed for c in family if c.failed},
        "anew": [str(w.message) for w in caught if issubclass(w.category, StallWarning) and "anew" in str(w.message)],
        "weights": sum(p.detach().double().sum().item() for p in module.parameters()),
    }


def of_two(folder: Path, kept: Path) -> dict[str, Any]:
    """What each of two ranks does: a run that writes checkpoints, then one that goes on with a single process's."""
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    done = {"whole": train(folder, 2, saves=True), "on": train(folder, 2, kept)}
    (folder / f"rank{rank}.json").write_text(json.dumps(done))
    return done


SCRIPT = """
import logging, sys
from pathlib import Path
logging.disable(logging.INFO)
from test_other_ranks import of_two
of_two(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name: a run of one process; of two; each gone on with by the other kind, from a check and from between two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    whole = train(one, 1, saves=True)
    ended = ranks(SCRIPT, two, str(one / "at.ckpt"), timeout=150)
    assert [code for code, _ in ended] == [0, 0], "\n".join(log[-3000:] for _, log in ended)
    first, second = (json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return {
        "one": whole,
        "two": first["whole"],
        "one to two": first["on"],
        "the other rank": second["on"],
        "two to one": train(two, 1, two / "at.ckpt"),
        "two to one, between": train(two, 1, two / "between.ckpt"),
        "kept of one": torch.load(one / "at.ckpt", weights_only=True)["callbacks"],
        "kept of two": torch.load(two / "at.ckpt", weights_only=True)["callbacks"],
    }


def findings_until(run: dict[str, Any], step: int) -> list[Any]:
    return [f for f in json.loads(json.dumps(run["ended"]["findings"])) if f[1] <= step]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "before"), [("two to one", "two"), ("one to two", "one")])
def test_what_was_known_goes_on(runs: dict[str, Any], name: str, before: str) -> None:
    run, begun = runs[name], runs[name]["begun"]
    assert run["failed"] == {}
    assert run["anew"] == [], "nothing was lost, so nothing is told of it"
    assert begun["losses"] == AT
    assert begun["norms"] == [AT], "what gradients were usual is still known"
    assert begun["spikes"] > 1
    assert begun["scale"] < 1.0
    assert begun["rate"] == begun["scale"], "and is what the steps are made with, from the first on"
    assert begun["outcome"] != "too early"
    shared = next(kept["shared"] for kept in runs[f"kept of {before}"].values() if "shared" in kept)
    journal, waited = shared["journal"], {f["code"] for f, _ in shared["pending"]}
    assert set(begun["told"]) == {*journal["told"], *waited}, "what holds is not told twice"
    assert [f[0] for f in begun["findings"]][: len(journal["findings"])] == [f["code"] for f in journal["findings"]]
    # what a check finds, several ranks write down together at their next one
    agreed = AT if before == "one" else AT - EVERY
    old = findings_until(runs[before], agreed)
    assert old, "the test needs findings from before"
    assert findings_until(run, agreed) == old


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two to one", "one to two"])
def test_the_run_goes_on_to_its_end(runs: dict[str, Any], name: str) -> None:
    run = runs[name]
    assert run["step"] == STEPS
    assert run["ended"]["losses"] == STEPS, "each step counts once, whoever made it"
    assert run["ended"]["norms"] == [STEPS]
    assert run["ended"]["scale"] <= run["begun"]["scale"]
    assert torch.isfinite(torch.tensor(run["weights"]))


@pytest.mark.slow
def test_both_ranks_go_on_alike(runs: dict[str, Any]) -> None:
    first, second = runs["one to two"], runs["the other rank"]
    assert first["begun"] == second["begun"]
    for name in ("losses", "level", "outcome", "scale", "rate", "norms"):
        assert first["ended"][name] == second["ended"][name], name
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-9)
    assert second["failed"] == {}


@pytest.mark.slow
def test_a_checkpoint_between_two_meetings_of_the_ranks(runs: dict[str, Any]) -> None:
    """At least what the ranks had agreed on at their last check is known; no step is counted twice."""
    run = runs["two to one, between"]
    assert run["failed"] == {}
    assert AT <= run["begun"]["losses"] <= BETWEEN
    assert run["begun"]["norms"] == [BETWEEN], "gradients are the same on both ranks"
    assert STEPS - (BETWEEN - AT) <= run["ended"]["losses"] <= STEPS
    assert findings_until(run, AT - EVERY) == findings_until(runs["two"], AT - EVERY)
    assert run["step"] == STEPS


@pytest.mark.slow
def test_a_state_of_either_kind_has_the_same_shape(runs: dict[str, Any]) -> None:
    """Nothing in a checkpoint is kept by rank, or knows how many there were."""
    one, two = runs["kept of one"], runs["kept of two"]
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].keys() == two[name].keys(), name
        assert one[name]["own"].keys() == two[name]["own"].keys(), name
