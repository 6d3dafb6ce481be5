"""BatchNormBatchSizeGuard against real loaders, sick and well, and its measurements against brute force."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from lightning_stall.callbacks.batchnorm_guard import SMALL, STALE, BatchNormBatchSizeGuard
from lightning_stall.errors import MisconfigurationException
from lightning_stall.measure.batch_sizes import LoaderPlan, ways_out
from lightning_stall.measure.batchnorm_modes import RunningGap, losses_both_ways
from lightning_stall.sinks import StallWarning

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_epochs": 2,
}


class Net(LightningModule):
    """Tells classes that a line divides; what it keeps and counts must not change by being watched."""

    def __init__(self, net: nn.Module, lr: float = 1e-2) -> None:
        super().__init__()
        self.net, self.lr, self.steps, self.kept, self.validated = net, lr, 0, [], 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, dict):
            batch = [torch.cat(parts) for parts in zip(*batch.values(), strict=True)]
        x, y = batch
        self.steps += 1
        self.kept.append(batch_idx)
        loss = nn.functional.cross_entropy(self.net(x).flatten(1), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += 1
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]).flatten(1), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def flat(width: int = 8, **kw: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width, **kw), nn.ReLU(), nn.Linear(width, 2))


def rows(n: int) -> TensorDataset:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0)) + 1
    return TensorDataset(x, (x[:, 0] > 1).long())


def images(n: int) -> TensorDataset:
    return TensorDataset(torch.randn(n, 1, 8, 8), torch.randint(0, 2, (n,)))


def loader(data: Any, size: int = 16, **kw: Any) -> DataLoader:
    return DataLoader(data, size, **{"shuffle": True, **kw})


def fit(path: Path, net: nn.Module, train: Any, guard: BatchNormBatchSizeGuard, val: Any = None, **kw: Any) -> Trainer:
    """Trains, lets every StallWarning pass, and gives the trainer."""
    seed_everything(0, verbose=False)
    module = net if isinstance(net, LightningModule) or hasattr(net, "_orig_mod") else Net(net)
    trainer = Trainer(**{**QUIET, "default_root_dir": path, "callbacks": [guard], **kw})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StallWarning)
        warnings.filterwarnings("ignore", "Found .* in eval mode")
        trainer.fit(module, train, val)
    assert guard.failed is None, guard.failed
    return trainer


def said(guard: BatchNormBatchSizeGuard) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in guard.hub.journal.findings]


# ---------------------------------------------------------------------------------------------- the batch that raises


class Stream(IterableDataset):
    def __init__(self, n: int) -> None:
        self.data = rows(n)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.data[i] for i in range(len(self.data))])


RAISING = {
    "last batch": (lambda: loader(rows(65)), {}, 4),
    "listed batches": (lambda: DataLoader(rows(9), batch_sampler=[[0, 1, 2, 3], [4], [5, 6, 7, 8]]), {}, 1),
    "own batch sampler": (
        lambda: DataLoader(rows(65), batch_sampler=BatchSampler(RandomSampler(rows(65)), 16, False)),
        {},
        4,
    ),
    "accumulating": (lambda: loader(rows(65)), {"accumulate_grad_batches": 4, "max_steps": 2}, 4),
    "one of two apart": (lambda: {"a": loader(rows(80)), "b": loader(rows(33))}, {}, 2),
}


@pytest.mark.parametrize("name", RAISING)
def test_foretells_the_batch_that_raises_before_the_first_step(tmp_path: Path, name: str) -> None:
    make, settings_, index = RAISING[name]
    guard = BatchNormBatchSizeGuard()

    class Apart(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            parts = batch.values() if isinstance(batch, dict) else [batch]
            return sum(super(Apart, self).training_step(part, batch_idx) for part in parts)

    module = Apart(flat())
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        fit(tmp_path, module, make(), guard, **settings_)
    (finding,) = guard.hub.journal.findings
    assert (finding.code, finding.severity, finding.step) == (SMALL, "critical", 1)
    assert finding.evidence["batch_idx"] == index
    assert finding.evidence["values"] == 1
    assert finding.where == ("net.1",)


def test_the_words_and_the_two_ways_out(tmp_path: Path) -> None:
    guard = BatchNormBatchSizeGuard()
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        fit(tmp_path, flat(), loader(rows(65)), guard)
    (finding,) = guard.hub.journal.findings
    assert finding.summary == (
        "Batch 4, the last of epoch 0, will hold 1 sample (65 in batches of 16): `net.1` will get 1 value per channel "
        'there, and PyTorch raises "Expected more than 1 value per channel when training"; 2 values would pass; 8 '
        "would do."
    )
    assert "drop_last=True" in finding.advice
    assert "batch_size=17" in finding.advice  # 65 = 3 * 17 + 14


SILENT = {
    "dropped": (lambda: loader(rows(65), drop_last=True), {}),
    "limited": (lambda: loader(rows(65)), {"limit_train_batches": 4}),
    "ended before": (lambda: loader(rows(65)), {"max_steps": 4}),
    "two left over": (lambda: loader(rows(66)), {}),
    "overfitting a batch": (lambda: loader(rows(65)), {"overfit_batches": 2}),
    "fast dev run": (lambda: loader(rows(65)), {"fast_dev_run": True}),
    "shorter of two": (lambda: CombinedLoader({"a": loader(rows(65)), "b": loader(rows(32))}, "min_size"), {}),
    "joined to another": (lambda: CombinedLoader({"a": loader(rows(65)), "b": loader(rows(80))}), {}),
    "iterable": (lambda: DataLoader(Stream(64), 16), {}),
}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
def test_sleeps_where_no_batch_raises(tmp_path: Path, name: str) -> None:
    make, settings_ = SILENT[name]
    guard = BatchNormBatchSizeGuard()
    fit(tmp_path, flat(), make(), guard, **settings_)
    assert said(guard) == []


def test_one_image_is_enough_where_it_is_wide(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    guard = BatchNormBatchSizeGuard()
    fit(tmp_path, net, loader(images(17), 4), guard)
    assert said(guard) == []
    assert guard.seen.values[0] == [144, 144, 144, 144]


def test_a_stream_is_told_at_its_batch_and_an_error_is_explained(tmp_path: Path) -> None:
    guard = BatchNormBatchSizeGuard()
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        fit(tmp_path, flat(), DataLoader(Stream(33), 16), guard)
    (finding,) = guard.hub.journal.findings
    assert (finding.severity, finding.step, finding.evidence["batch_idx"]) == ("critical", 3, 2)
    guard = BatchNormBatchSizeGuard()
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        fit(tmp_path, flat(), loader(rows(3), 1), guard)
    (finding,) = guard.hub.journal.findings
    assert finding.where == ("net.1",)
    assert finding.severity == "critical"


# ---------------------------------------------------------------------------------------------- remedies


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


@pytest.mark.parametrize("make", [flat, Recomputed])
@pytest.mark.parametrize("data", [lambda: loader(rows(65)), lambda: DataLoader(Stream(65), 16)])
def test_running_statistics_spare_the_batch(tmp_path: Path, make: Any, data: Any) -> None:
    guard = BatchNormBatchSizeGuard(auto_remedy=True)
    trainer = fit(tmp_path, make(), data(), guard)
    assert trainer.global_step == 10
    assert guard.remedied == 2
    assert all(m.training for m in trainer.lightning_module.modules())
    assert guard.hub.journal.findings[-1].remedy == (
        "normalised this batch, and any like it, by the running statistics"
    )
    assert not any(m._forward_pre_hooks for m in trainer.lightning_module.modules())


def test_drop_batch_ends_each_epoch_earlier_and_still_validates(tmp_path: Path) -> None:
    guard = BatchNormBatchSizeGuard(auto_remedy=True, remedy="drop-batch")
    train = loader(rows(65))
    trainer = fit(tmp_path, flat(), train, guard, loader(rows(16), shuffle=False), num_sanity_val_steps=0)
    assert trainer.global_step == 8
    assert guard.hub.journal.findings[0].remedy == "ended each epoch before batch 4"
    assert trainer.lightning_module.validated == 2
    assert "setup_data" not in vars(trainer.fit_loop)


def test_group_norm_takes_the_place_before_the_optimizer_is_made(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32, eps=1e-3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 1, 8, 8))
    scale = net[1].weight
    guard = BatchNormBatchSizeGuard(auto_remedy=True, remedy="group-norm")
    trainer = fit(tmp_path, net, loader(images(32), 2), guard)
    norm = trainer.lightning_module.net[1]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.eps) == (4, 1e-3)
    assert norm.weight is scale
    assert any(p is scale for p in trainer.optimizers[0].param_groups[0]["params"])
    assert said(guard) == [(SMALL, "info")]


def test_sync_on_one_device_says_why_it_does_nothing(tmp_path: Path) -> None:
    guard = BatchNormBatchSizeGuard(auto_remedy=True, remedy="sync")
    fit(tmp_path, flat(), loader(rows(64)), guard)
    assert [f.summary for f in guard.hub.journal.findings] == [
        "SyncBatchNorm needs several accelerators; this run has 1 (cpu): the layers stay."
    ]


# ---------------------------------------------------------------------------------------------- few values


def test_two_values_are_told_at_once_and_four_only_once_the_outcome_is_bad(tmp_path: Path) -> None:
    guard = BatchNormBatchSizeGuard()
    fit(tmp_path, flat(), loader(rows(32), 2), guard, accumulate_grad_batches=2)
    assert said(guard) == [(SMALL, "warning")]
    assert "`accumulate_grad_batches=2` does not help" in guard.hub.journal.findings[0].advice
    guard = BatchNormBatchSizeGuard()
    fit(tmp_path, flat(), loader(rows(64), 4), guard)
    assert said(guard) == [(SMALL, "info")]
    guard = BatchNormBatchSizeGuard(min_values=4)
    fit(tmp_path, flat(), loader(rows(64), 4), guard)
    assert said(guard) == []


@pytest.mark.parametrize("value", [1, 2.5, True])
def test_wrong_arguments_say_the_way_out(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="give a whole number of at least 2"):
        BatchNormBatchSizeGuard(min_values=value)
    with pytest.raises(MisconfigurationException, match="'running-statistics', 'drop-batch'"):
        BatchNormBatchSizeGuard(remedy="drop")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- evaluation


def stale_run(path: Path, **kw: Any) -> tuple[BatchNormBatchSizeGuard, Net]:
    guard = BatchNormBatchSizeGuard(every_n_steps=10, **kw)
    module = Net(flat(16, momentum=0.001))
    fit(path, module, loader(rows(256), 32), guard, loader(rows(64), 32, shuffle=False), max_epochs=10)
    return guard, module


def test_averages_that_cannot_follow_are_told_and_mended(tmp_path: Path) -> None:
    guard, module = stale_run(tmp_path)
    (finding,) = guard.hub.journal.findings
    assert (finding.code, finding.severity, finding.where) == (STALE, "warning", ("net.1",))
    assert finding.evidence["loss_by_running"] > 2 * finding.evidence["loss_by_batch"]
    assert "momentum 0.001" in finding.summary
    assert module.steps == 80  # probes ran on a copy
    guard, mended = stale_run(tmp_path, auto_remedy=True, remedy="re-estimate")
    assert [f.severity for f in guard.hub.journal.findings] == ["info"]
    x, y = rows(256).tensors
    before, after = (nn.functional.cross_entropy(m.eval().net(x), y).item() for m in (module, mended))
    assert after < 0.7 * before


def test_frozen_statistics_that_fit_are_well(tmp_path: Path) -> None:
    module = Net(flat(16))
    fit(tmp_path, module, loader(rows(256), 32), BatchNormBatchSizeGuard(), max_epochs=6)
    guard = BatchNormBatchSizeGuard()
    module.net[1].eval()
    fit(tmp_path, module, loader(rows(256), 32), guard)
    assert said(guard) == []
    assert guard.seen.frozen
    module = Net(flat(16))
    module.net[0].weight.data.mul_(20)
    module.net[1].eval()
    guard = BatchNormBatchSizeGuard()
    fit(tmp_path, module, loader(rows(256), 32), guard)
    assert said(guard) == [(STALE, "info")]


OTHERS = {
    "untracked": lambda: flat(track_running_stats=False),
    "sequences": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 2)
    ),
    "cumulative": lambda: flat(momentum=None),
    "no affine": lambda: flat(affine=False),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", OTHERS)
def test_kinds_of_layer_that_are_well(tmp_path: Path, name: str, precision: Any) -> None:
    guard = BatchNormBatchSizeGuard()
    fit(tmp_path, OTHERS[name](), loader(rows(128)), guard, max_epochs=4, precision=precision)
    assert said(guard) == []
    assert guard.seen.values[0][-1] == (64 if name == "sequences" else 16)


def test_lazy_layers_are_watched_and_the_state_survives_a_checkpoint(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.LazyBatchNorm1d(), nn.Linear(8, 2))
    net(torch.zeros(4, 6))
    guard = BatchNormBatchSizeGuard(auto_remedy=True)
    trainer = fit(tmp_path, net, loader(rows(33)), guard)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    again = BatchNormBatchSizeGuard(auto_remedy=True)
    fit_on = Trainer(**{**QUIET, "max_epochs": 3, "default_root_dir": tmp_path, "callbacks": [again]})
    fit_on.fit(Net(net), loader(rows(33)), ckpt_path=tmp_path / "c.ckpt")
    assert (guard.remedied, again.remedied) == (2, 3)


# ---------------------------------------------------------------------------------------------- what it must not do


def test_an_observing_run_is_bitwise_the_run_without(tmp_path: Path) -> None:
    def run(guards: list[Any]) -> tuple[list[Tensor], Any]:
        seed_everything(3, verbose=False)
        module = Net(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=1e-3), nn.Dropout(0.3), nn.Linear(8, 2)))
        trainer = Trainer(**{**QUIET, "max_epochs": 8, "default_root_dir": tmp_path, "callbacks": guards})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StallWarning)
            trainer.fit(module, loader(rows(130), 32), loader(rows(32), shuffle=False))
        left = [torch.get_rng_state(), torch.tensor(random.random()), torch.tensor(module.kept)]
        return [*module.state_dict().values(), *left], guards

    without, _ = run([])
    watched, (guard,) = run([BatchNormBatchSizeGuard(every_n_steps=2)])
    assert guard.apart.probes
    assert all(torch.equal(a, b) for a, b in zip(without, watched, strict=True))


@pytest.mark.slow
def test_a_compiled_model_is_seen_in_one_graph(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    class Plain(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    torch._dynamo.reset()
    counters.clear()
    guard = BatchNormBatchSizeGuard(every_n_steps=1)
    module: Any = torch.compile(Plain(flat()), backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, module, loader(rows(65), drop_last=True), guard)
    assert guard.seen.values[0] == [16] * 5
    assert guard.seen.gaps[0]
    assert counters["stats"]["unique_graphs"] == 1


TWO_RANKS = """
import sys, warnings, torch
sys.path.insert(0, sys.argv[2])
from tests.test_batchnorm_guard import *
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    for size, n in ((2, 32), (4, 34)):
        guard = BatchNormBatchSizeGuard(auto_remedy=n == 34, min_values=4)
        more = {"devices": 2, "strategy": "ddp", "default_root_dir": sys.argv[1], "callbacks": [guard]}
        Trainer(**{**QUIET, **more}).fit(Net(flat()), loader(rows(n), size))
        if guard.hub.rank == 0:
            for f in guard.hub.journal.findings:
                print("SAID", f.code, f.severity, f.evidence.get("batch_idx"), "sync_batchnorm" in f.advice, f.remedy)
"""


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(textwrap.dedent(TWO_RANKS))
    home = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(home)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
    assert said[0] == f"SAID {SMALL} warning None True None", done.stderr[-2000:]
    # 34 rows on two ranks are 17 each: batches of 4, 4, 4, 4 and 1
    assert said[1] == f"SAID {SMALL} warning 4.0 False None"
    assert "running statistics" in said[-1]


# ---------------------------------------------------------------------------------------------- against brute force


@given(n=st.integers(1, 60), size=st.integers(1, 12), drop=st.booleans(), shuffle=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_plan_is_what_the_loader_gives(n: int, size: int, drop: bool, shuffle: bool) -> None:
    train = DataLoader(TensorDataset(torch.arange(n)), size, drop_last=drop, shuffle=shuffle)
    plan = LoaderPlan.of(train)
    assert plan is not None
    sizes = [len(batch[0]) for batch in train]
    assert plan.batches == len(sizes)
    assert plan.odd == tuple((i, s) for i, s in enumerate(sizes) if s < size)
    for line in ways_out(plan).splitlines():
        if "batch_size=" in line and "drop_last" not in line:
            better = int(line.split("batch_size=")[1].split(",")[0])
            assert n % better != 1


@pytest.mark.parametrize("momentum", [0.1, 0.01, None, 0.9])
@pytest.mark.parametrize("uses", [1, 2])
def test_batch_statistics_are_read_off_the_running_ones(momentum: float | None, uses: int) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum)
    for _ in range(5):
        layer(torch.randn(8, 3, 4, 4))
    x = torch.randn(8, 3, 4, 4) * torch.tensor([0.5, 1, 2]).view(1, 3, 1, 1) + 1
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    running = RunningGap([layer])
    running.take()
    for _ in range(uses):  # a checkpointed block updates twice
        layer(x)
    distance, spread = running.read()[0]
    own_var, own_mean = torch.var_mean(x, (0, 2, 3))
    expected = ((own_mean - mean).square() / (torch.maximum(own_var, var) + layer.eps)).mean().sqrt()
    assert distance == pytest.approx(expected.item(), rel=1e-3)
    assert spread == pytest.approx((own_var / var).log().abs().mean().item(), rel=1e-3)


def test_losses_both_ways_leave_no_trace() -> None:
    module = Net(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)))
    batch = rows(16).tensors
    module.net[0].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    flags, rng = [m.training for m in module.modules()], torch.get_rng_state()
    pair = losses_both_ways(module, lambda twin: twin.training_step(batch, 0))
    assert pair is not None
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert (flags, module.steps, module.kept) == ([m.training for m in module.modules()], 0, [])
    assert torch.equal(rng, torch.get_rng_state())
    reference = module.net.eval()
    with torch.no_grad():
        assert pair[1] == pytest.approx(nn.functional.cross_entropy(reference(batch[0]), batch[1]).item())
        reference[1].train()
        assert pair[0] == pytest.approx(nn.functional.cross_entropy(reference(batch[0]), batch[1]).item())
    assert not math.isclose(*pair)
