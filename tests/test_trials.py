"""Trials settle what they should, leave not a bit behind, keep to their budget, and decline with a word."""

from __future__ import annotations

import ast
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import lightning_stall
from lightning_stall import Finding, StallReport, stall_callbacks
from lightning_stall.diagnosis import diagnose
from lightning_stall.outcome import Outcome
from lightning_stall.testing import Classifier, blobs, healthy, mlp, watch
from lightning_stall.trials.batches import KEEP, InputScale, KeptBatches, find_target, shuffled, split
from lightning_stall.trials.records import Arm, Fit, Fits, Situation
from lightning_stall.trials.sandbox import DeclinedError, Sandbox, apart, why_not
from lightning_stall.trials.verdict import conclude

# ---------------------------------------------------------------------- verdicts, from plain floats


def fit(after: float, spread: float = 0.01, before: float = 1.0, losses: tuple[float, ...] = (), **arm: Any) -> Fit:
    judged = (after - spread, after, after + spread)
    return Fit(Arm(**arm), 50, 0.1, losses or (before, after), (before,) * 3, judged)


def situation(**known: Any) -> Situation:
    usual: dict[str, Any] = {"state": "never learned", "level": (0.99, 1.0, 1.01), "baseline": 1.0, "floor": 0.0}
    return Situation(**{**usual, "explained": 0.0, "rate": 1e-3, **known})


def by_heart(true: int, mixed: int) -> list[Fit]:
    """Three batches learnt by heart in so many steps, with their own targets and with shuffled ones."""
    out = []
    for i in range(3):
        out.append(fit(0.1, losses=(*([1.0] * true), 0.1), start="fresh", adam=1e-2, one=i))
        out.append(fit(0.1, losses=(*([1.0] * mixed), 0.1), start="fresh", adam=1e-2, one=i, shuffled=True))
    return out


STUCK = (fit(1.0), fit(1.0, factor=10.0), fit(2.0, factor=100.0), fit(1.0, factor=0.1))
LOST = tuple(fit(1.0, start="fresh", factor=f) for f in (1.0, 0.1, 0.01, 10.0, 100.0))
FLAT = (1.0, *([0.9] * 20))
SMALL = {"weights": 6, "targets": 32, "shown": 0.6}


@pytest.mark.parametrize(
    ("known", "fits", "expected"),
    [
        ({}, [fit(1.0), fit(0.5, factor=10.0), *LOST], ["learning-rate-too-low"]),
        ({"state": "stalled"}, [fit(0.91), fit(0.88, factor=10.0), *LOST], []),  # hardly better than as it is
        ({"state": "stalled", "explained": 0.2}, [fit(0.94), fit(0.45, factor=10.0), *LOST], ["learning-rate-too-low"]),
        ({"state": "stalled", "gained": 0.9}, [fit(1.0), fit(0.5, factor=10.0)], []),
        ({"state": "stalled", "explained": 0.4}, [fit(1.0), fit(0.5, factor=10.0)], []),  # the rate has taught it much
        ({"state": "stalled", "level": (0.3, 0.3, 0.3)}, [fit(0.3), fit(0.22, factor=10.0)], []),  # it has learnt most
        ({}, [fit(0.5), fit(0.3, factor=10.0), *LOST], []),  # as it is, it learns
        ({}, [fit(0.85), fit(0.3, factor=10.0)], ["learning-rate-too-low"]),  # far too slowly
        ({"explained": 0.5}, [fit(0.85), fit(0.3, factor=10.0)], []),  # but it has learnt half
        ({"peak": 1.9}, [fit(1.0), fit(0.5, factor=10.0), *LOST], ["learning-rate-too-low"]),
        (
            {"state": "stalled", "gained": 0.3, "moved": 2e-4},  # it has found the level of its targets
            [fit(1.0), fit(0.5, factor=10.0), *LOST],
            ["learning-rate-too-low"],
        ),
        ({"state": "stalled", "gained": 0.3, "moved": 1e-2}, [fit(1.0), fit(0.5, factor=10.0), *LOST], []),
        ({"spoken": frozenset({"batchnorm-stale-statistics"})}, [*STUCK, fit(0.4, start="fresh")], []),
        ({}, [fit(1.0), fit(0.5, spread=0.5, factor=10.0), *LOST], []),  # the batches differ by more
        (
            {},
            [fit(1.0), fit(0.5, factor=10.0), fit(1.0, start="fresh"), fit(0.4, start="fresh", scaled=True)],
            ["learning-rate-too-low"],
        ),
        ({"state": "stalled"}, [fit(1.0), fit(0.6, factor=0.1), *LOST], ["learning-rate-too-high"]),
        ({}, [*STUCK, fit(1.0, start="fresh"), fit(0.4, start="fresh", factor=0.01)], ["learning-rate-too-high"]),
        ({}, [fit(1.0), fit(0.6, factor=10.0), fit(0.6, factor=0.1), fit(1.0, start="fresh")], []),  # no direction
        ({}, [*STUCK, fit(0.4, start="fresh")], ["bad-initialization"]),
        ({}, [*STUCK, fit(1.0, start="fresh"), fit(0.4, start="fresh", factor=10.0)], ["bad-initialization"]),
        ({"spoken": frozenset({"dead-activations"})}, [*STUCK, fit(0.4, start="fresh")], ["dead-activations"]),
        ({}, [*STUCK, fit(0.4, start="fresh"), fit(0.1, start="fresh", factor=0.1)], ["learning-rate-too-high"]),
        ({}, [*STUCK, fit(0.4, losses=(1.0, 0.4, 3.0), start="fresh")], []),  # it had it, and lost it again
        ({"explained": 0.5, "state": "stalled"}, [*STUCK, fit(0.4, start="fresh")], []),  # it had learnt something
        ({"state": "non-finite", "level": (), "finite_steps": 9}, [fit(0.4, start="fresh")], ["bad-initialization"]),
        ({"state": "non-finite", "level": (), "finite_steps": 2}, [fit(0.98, start="fresh")], ["bad-initialization"]),
        ({"state": "non-finite", "level": (), "finite_steps": 900}, [fit(0.4, start="fresh")], []),
        (
            {"peak": 50.0},
            [*STUCK, fit(0.4, start="fresh"), fit(9.0, start="fresh", factor=50.0)],
            ["learning-rate-too-high"],
        ),
        ({"peak": 50.0}, [fit(1.0), fit(0.4, factor=10.0), *LOST], []),  # it was higher once: not too low by itself
        ({}, [*STUCK, *LOST, fit(0.4, start="fresh", scaled=True)], ["unscaled-inputs"]),
        ({"uneven": True}, [*STUCK, *LOST, fit(0.4, start="fresh", scaled=True)], ["disparate-feature-scales"]),
        (
            {"uneven": True, "spoken": frozenset({"unscaled-inputs"})},
            [*STUCK, *LOST, fit(0.4, start="fresh", scaled=True)],
            ["unscaled-inputs"],
        ),
        ({}, [*STUCK, *LOST, fit(0.4, free=True)], ["excess-regularization"]),
        ({}, [*STUCK, *LOST, *by_heart(20, 21)], ["uninformative-targets"]),
        ({}, [*STUCK, *LOST, *by_heart(10, 30)], []),  # its own targets are fitted faster: they mean something
        ({"spoken": frozenset({"categorical-as-numeric"})}, [*STUCK, *LOST, *by_heart(20, 21)], []),
        ({"baseline": None}, [*STUCK, *LOST, *by_heart(20, 21)], []),
        (SMALL, [*STUCK, *LOST, fit(0.9, losses=FLAT, one=0)], ["insufficient-capacity"]),
        ({**SMALL, "weights": 6000}, [*STUCK, *LOST, fit(0.9, losses=FLAT, one=0)], []),
        (
            {**SMALL, "shown": 0.1},
            [*STUCK, *LOST, fit(0.9, losses=FLAT, one=0)],
            [],
        ),  # at the noise of its targets
        ({**SMALL, "shown": math.nan}, [*STUCK, *LOST, fit(0.9, losses=FLAT, one=0)], []),
        ({}, [], []),
    ],
)
def test_what_fits_settle(known: dict[str, Any], fits: list[Fit], expected: list[str]) -> None:
    assert [c.code for c in conclude(situation(**known), Fits(fits)) if c.weight > 0] == expected


def test_what_fits_refute() -> None:
    spoken = frozenset({"learning-rate-too-low", "learning-rate-too-high", "uninformative-targets"})
    said = conclude(situation(spoken=spoken), Fits([*STUCK, fit(0.4, start="fresh")]))
    assert {c.code for c in said if c.weight < 0} == spoken
    raised = conclude(situation(spoken=spoken), Fits([*STUCK, *LOST]))
    assert [c.code for c in raised] == ["learning-rate-too-low"]
    assert "speaks against learning-rate-too-low" in raised[0].summary


def test_a_conclusion_quotes_its_numbers() -> None:
    (said,) = conclude(situation(), Fits([fit(1.0), fit(0.5, factor=10.0), *LOST]))
    assert said.summary == (
        "Trial on a copy, 50 steps: rate x10, the weights as they are brings the loss on batches it was not fitted on to "
        "0.5; rate x1, the weights as they are: to 1; the run is at 1 there, 0.9 would be a gain. So the rate is too low."
    )
    assert "lr = 0.01" in said.advice
    assert said.evidence["trial"] == 0.5, "ten times too low is half a witness"
    assert said.evidence["control"] == 1.0
    (said,) = conclude(situation(), Fits([fit(1.0), fit(0.5, factor=100.0), *LOST]))
    assert said.evidence["trial"] == 1.0


@pytest.mark.parametrize("name", ["verdict.py", "records.py"])
def test_verdicts_know_no_torch(name: str) -> None:
    source = Path(lightning_stall.__file__).parent / "trials" / name
    names = {a.name for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.ImportFrom)}
    assert not [n for n in names if n.split(".")[0] in ("torch", "lightning")]


def test_the_diagnosis_weighs_trials() -> None:
    told = Finding("learning-rate-too-low", 100, 1, "warning", "", evidence={"strength": 0.5})
    other = Finding("vanishing-gradients", 100, 1, "warning", "", evidence={"strength": 0.2})

    def rank(*trials: float) -> list[tuple[str, float]]:
        notes = [Finding("learning-rate-too-low", 110, 2, "info", "", evidence={"trial": t}) for t in trials]
        return [(c.code, c.confidence) for c in diagnose([told, other, *notes], Outcome("stalled"))]

    plain, borne_out, refuted = rank()[0][1], rank(1.0), rank(-1.0)
    assert borne_out[0][1] > plain
    assert refuted[0][0] == "vanishing-gradients"
    assert refuted[1][1] < 0.5 * plain
    assert dict(rank(1.0, -1.0))["learning-rate-too-low"] == dict(rank())["learning-rate-too-low"]


# ---------------------------------------------------------------------- batches


def test_kept_batches_are_few_and_of_one_epoch() -> None:
    kept = KeptBatches()
    for i in range(40):
        kept.add((torch.zeros(4), torch.zeros(4)), i % 20, i // 20)
    assert len(kept.queue) == KEEP
    assert {k.epoch for k in kept.of_one_epoch()} == {1}
    fitted, judged = split(kept.of_one_epoch())
    assert len(fitted) + len(judged) == KEEP
    assert not {k.index for k in fitted} & {k.index for k in judged}
    kept.add(torch.zeros(2**25), 0, 2)  # 128 MiB: never kept
    assert len(kept.queue) == KEEP


def test_batches_written_into_are_copied() -> None:
    kept = KeptBatches()
    for i in range(3):
        batch = torch.ones(4)
        kept.add(batch, i, 0)
        batch.mul_(2)
    assert [k.batch.tolist() for k in kept.of_one_epoch()] == [[1.0] * 4] * 2  # all but the first


def test_targets_are_found_and_shuffled() -> None:
    batch = {"x": torch.randn(8, 3), "y": torch.arange(8)}
    where = find_target(batch, batch["y"].float())
    assert where == 1
    mixed = shuffled(batch, where, seed=1)
    assert sorted(mixed["y"].tolist()) == list(range(8))
    assert mixed["y"].tolist() != list(range(8))
    assert mixed["x"] is batch["x"]
    assert find_target((torch.zeros(2), torch.zeros(2)), torch.zeros(2)) is None  # either could be it


def test_inputs_are_standardised_by_column() -> None:
    x = torch.randn(64, 3) * torch.tensor([1e3, 1e4, 0.0]) + 5
    scale = InputScale.of([(x, torch.zeros(64))], 1)
    assert scale.off
    new, _ = scale.standardise((x, torch.zeros(64)))
    assert new.std(0, unbiased=False).tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-4)
    assert not InputScale.of([(torch.randn(64, 3), torch.zeros(64))], 1).off


# ---------------------------------------------------------------------- the copy


class Odd(LightningModule):
    """All that makes copying hard: hooks, metrics, a tensor with a graph, a generator, logging, a data set."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
        self.accuracy = MulticlassAccuracy(4)
        self.noise = torch.Generator().manual_seed(3)
        self.data = blobs().dataset
        self.seen: list[float] = []
        self.kept: Tensor | None = None
        self.net[0].register_forward_hook(self._saw)

    def _saw(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen.append(float(output.detach().sum()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x + 0.1 * torch.randn(x.shape, generator=self.noise))
        loss = F.cross_entropy(out, y)
        self.kept = out
        self.accuracy(out, y)
        self.log("loss", loss)
        self.logger.log_metrics({"loss": 1.0}) if self.logger else None
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-9)


class Probe(Callback):
    """Runs something once, after the last batch."""

    def __init__(self, what: Callable[[Trainer, LightningModule, Any], None], at: int = 10) -> None:
        self.what, self.at, self.done = what, at, False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            self.what(trainer, pl_module, batch)
            self.done = True


def digest(trainer: Trainer, module: LightningModule) -> str:
    """Weights, gradients, buffers, optimizer state, metrics and generators, to the bit."""
    parts = [*module.state_dict().values(), torch.get_rng_state()]
    parts += [p.grad for p in module.parameters() if p.grad is not None]
    parts += [v for s in trainer.optimizers[0].state.values() for v in s.values() if isinstance(v, Tensor)]
    if isinstance(module, Odd):
        parts += [module.noise.get_state(), torch.tensor(module.seen), module.kept, module.accuracy.tp]
    return hashlib.sha256(b"".join(p.detach().double().numpy().tobytes() for p in parts)).hexdigest()


def test_the_copy_leaves_not_a_bit_behind(make_trainer: Callable[..., Trainer]) -> None:
    def look(trainer: Trainer, module: LightningModule, batch: Any) -> None:
        before, logged = digest(trainer, module), dict(trainer.callback_metrics)

        def use() -> None:
            box = Sandbox(trainer, module, rate=10.0)
            assert box.optimizer.param_groups[0]["lr"] == pytest.approx(1e-8)
            assert box.optimizer.state
            box.forget()
            box.free()
            for _ in range(3):
                box.loss(batch, 0).backward()
                box.clip()
                box.optimizer.step()
            assert len(box.module.seen) == len(module.seen) + 3  # type: ignore[attr-defined,arg-type]
            assert box.module.data is module.data
            assert box.module.trainer.global_step == trainer.global_step
            box.module.trainer.should_stop = True
            torch.randn(3)

        assert apart(module, use) is None
        assert digest(trainer, module) == before
        assert trainer.callback_metrics == logged
        assert not trainer.should_stop

    seed_everything(0, verbose=False)
    probe = Probe(look)
    make_trainer([probe, *stall_callbacks()]).fit(Odd(), blobs())
    assert probe.done


def test_our_hooks_do_not_run_on_the_copy(make_trainer: Callable[..., Trainer]) -> None:
    def look(trainer: Trainer, module: LightningModule, batch: Any) -> None:
        hooks = [h for m in module.modules() for h in m._forward_hooks.values()]
        box = Sandbox(trainer, module)
        left = [h for m in box.module.modules() for h in m._forward_hooks.values()]
        ours = [h for h in hooks if str(getattr(h, "__module__", "")).startswith("lightning_stall")]
        assert ours
        assert len(left) == len(hooks) - len(ours)

    probe = Probe(look, at=16)  # a check: hooks that live from check to check are in
    callbacks = stall_callbacks()
    module = Odd()
    module.net[2].register_forward_hook(ours)
    make_trainer([probe, *callbacks]).fit(module, blobs())
    assert probe.done


def ours(*args: Any) -> None:
    """A hook that says it is one of the package's."""


ours.__module__ = "lightning_stall.measure.probe"


def test_a_failing_copy_is_declined_and_puts_random_numbers_back() -> None:
    net, state = mlp(), torch.get_rng_state()

    def fails() -> None:
        torch.randn(3)
        raise ValueError("no")

    assert "ValueError: no" in str(apart(net, fails))
    assert torch.equal(torch.get_rng_state(), state)


class ByHand(Classifier):
    def __init__(self, **settings: Any) -> None:
        super().__init__(mlp(), **settings)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        self.optimizers().step()
        return loss


class OwnStep(Classifier):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class Lbfgs(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), 1e-3)


class Closure(Classifier):
    """Keeps a function that holds a part of it, and would still act on the real one."""

    def __init__(self) -> None:
        super().__init__(mlp())
        net = self.net
        self.call = lambda x: net(x)


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (ByHand(), "by hand"),
        (OwnStep(mlp()), "optimizer_step"),
        (Lbfgs(mlp()), "LBFGS"),
        (Closure(), "holds a module"),
    ],
)
def test_declined_with_a_word(make_trainer: Callable[..., Trainer], module: LightningModule, word: str) -> None:
    said: list[str] = []

    def look(trainer: Trainer, module: LightningModule, batch: Any) -> None:
        try:
            said.append(why_not(trainer, module) or "")
            Sandbox(trainer, module)
        except DeclinedError as declined:
            said.append(str(declined))

    make_trainer([Probe(look, at=2)], max_steps=2).fit(module, blobs())
    assert word in " ".join(said)


def test_compiled_modules_are_declined() -> None:
    class Strategy:
        pass

    module = Classifier(mlp())
    module.net.compile(backend="eager")
    strategy = type("SingleDeviceStrategy", (), {})()
    trainer: Any = type("T", (), {"strategy": strategy, "world_size": 1, "optimizers": [module.configure_optimizers()]})
    assert why_not(trainer, module) == "the module is compiled"


# ---------------------------------------------------------------------- whole runs


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws from the global generator for every sample, so that any foreign draw shows."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return torch.randn(8) + i % 4, torch.tensor(i % 4)


@pytest.mark.parametrize("extra", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_a_stalled_run_is_bitwise_the_same_with_trials(
    make_trainer: Callable[..., Trainer], extra: dict[str, Any]
) -> None:
    prints = []
    for trials in (False, True):
        seed_everything(1, verbose=False)
        module = Odd()
        callbacks = stall_callbacks(trials=trials, mute=("learning-rate-too-low", "never-learned", "dead-activations"))
        callbacks[-1].trial_seconds = 5.0  # type: ignore[attr-defined]
        trainer = make_trainer(callbacks, max_steps=130, max_epochs=-1, gradient_clip_val=1.0, **extra)
        trainer.fit(module, DataLoader(Augmented(), 16, shuffle=True))
        report = callbacks[-1]
        assert isinstance(report, StallReport)
        assert (report._occasions is not None and report._occasions.trials.made >= 2) is trials
        prints.append(digest(trainer, module))
    assert prints[0] == prints[1]


def noisy(classes: int = 4) -> DataLoader[Any]:
    """Labels that have nothing to do with the inputs."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(640, 8, generator=random)
    return DataLoader(TensorDataset(x, torch.randint(classes, (640,), generator=random)), 32, shuffle=True)


def rings() -> DataLoader[Any]:
    random = torch.Generator().manual_seed(0)
    y = torch.randint(2, (640,), generator=random)
    angle = 2 * math.pi * torch.rand(640, generator=random)
    x = (1 + y[:, None]) * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(640, 2, generator=random)
    return DataLoader(TensorDataset(x, y), 32, shuffle=True)


def all_alike() -> Classifier:
    module = Classifier(mlp(depth=3), rate=1e-2)
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def far_off() -> DataLoader[Any]:
    x, y = blobs().dataset.tensors  # type: ignore[attr-defined]
    return DataLoader(TensorDataset(1e-4 * x, y), 32, shuffle=True)


class Decayed(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=30.0)


SICK: dict[str, tuple[Callable[[], LightningModule], Callable[[], DataLoader[Any]], str]] = {
    "slow": (lambda: Classifier(mlp(), rate=1e-7), blobs, "learning-rate-too-low"),
    "fast": (lambda: Classifier(mlp(depth=4), rate=1.0), blobs, "learning-rate-too-high"),
    "noise": (lambda: Classifier(mlp(width=128), rate=1e-3), noisy, "uninformative-targets"),
    "small": (lambda: Classifier(nn.Linear(2, 2), rate=1e-2), rings, "insufficient-capacity"),
    "zeros": (all_alike, blobs, "bad-initialization"),
    "tiny inputs": (lambda: Classifier(mlp(), rate=0.1, optimizer="sgd"), far_off, "unscaled-inputs"),
    "decay": (lambda: Decayed(mlp()), blobs, "excess-regularization"),
}


@pytest.mark.parametrize("name", SICK)
@pytest.mark.filterwarnings("ignore::lightning_stall.sinks.console.StallWarning")
def test_a_report_alone_finds_it_by_trial(name: str, make_trainer: Callable[..., Trainer]) -> None:
    module, loader, code = SICK[name]
    seed_everything(0, verbose=False)
    report = StallReport(table=False, trial_seconds=20.0)  # a busy machine must not decide what is found
    make_trainer([report], max_epochs=10).fit(module(), loader())
    assert report.causes, report.outcome
    assert report.causes[0].code == code, [(c.code, c.summary) for c in report.causes]


@pytest.mark.parametrize("trials", [True, False])
def test_a_healthy_run_makes_none(trials: bool, make_trainer: Callable[..., Trainer]) -> None:
    callbacks = stall_callbacks(trials=trials)
    make_trainer(callbacks, max_epochs=10).fit(healthy(), blobs())
    report = callbacks[-1]
    assert isinstance(report, StallReport)
    assert report.causes == []
    if report._occasions is not None:
        assert report._occasions.trials.made == 0
        assert not report._occasions.trials.kept.queue


class Slow(Classifier):
    """Waits in each step from the 100th on: so long that trials of a second are not worth beginning."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step >= 99:
            time.sleep(0.03)
        return super().training_step(batch, batch_idx)


def test_the_budget_holds() -> None:
    report = watch(Slow(mlp(), rate=1e-9), blobs(), max_steps=102, max_epochs=-1)
    assert report._occasions is not None
    trials = report._occasions.trials
    assert trials.declined is not None
    assert "too long for the 4 s allowed" in trials.declined
    assert trials.made == 0
    assert 0 < trials.spent < 4.5
    assert "trials" in report._facts()


def test_the_clock_stops_a_fit_in_its_middle() -> None:
    class Worse(Slow):
        """Looks quick when it is timed, and is not."""

        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.calls += 1
            if self.calls > 160:  # the copies count on from the run's 100
                time.sleep(0.05)
            return Classifier.training_step(self, batch, batch_idx)

    report = watch(Worse(mlp(), rate=1e-9), blobs(), max_steps=105, max_epochs=-1)
    assert report._occasions is not None
    assert report._occasions.trials.spent < 4.5


@pytest.mark.parametrize(("rate", "expected"), [(1e-5, 100.0), (1e-2, None), (3.0, None)])
def test_a_better_rate_is_tried_on_a_copy(
    make_trainer: Callable[..., Trainer], rate: float, expected: float | None
) -> None:
    found: list[float | None] = []

    def look(trainer: Trainer, module: LightningModule, batch: Any) -> None:
        before = digest(trainer, module)
        found.append(report.hub.trials.better_rate((0.1, 100.0)))
        assert digest(trainer, module) == before

    report = StallReport(table=False)
    seed_everything(0, verbose=False)
    make_trainer([report, Probe(look, at=16)], max_steps=16, max_epochs=-1).fit(healthy(rate=rate), blobs())
    assert found == [expected]


@pytest.mark.alone
def test_keeping_a_batch_costs_microseconds() -> None:
    kept, batch = KeptBatches(), (torch.zeros(32, 64), torch.zeros(32))
    start = time.perf_counter()
    for i in range(2000):
        kept.add(batch, i, 0)
    assert (time.perf_counter() - start) / 2000 < 1e-4  # 10 µs on an idle machine
