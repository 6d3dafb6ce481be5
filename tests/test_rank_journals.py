"""Two ranks have one journal: what is taken back, and what waits for them to meet when a checkpoint is written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from twin_runs import ranks

HEAD = """
import warnings, logging, os, sys, torch
torch.set_num_threads(1); warnings.simplefilter("ignore"); logging.disable(logging.INFO)
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning_stall import *
from lightning_stall import StallCallback
from lightning_stall.testing import Classifier, blobs, mlp
seed_everything(0, verbose=False)
report = StallReport(table=False)
def fit(*callbacks, ckpt=None, n=100, net=None):
    Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=-1, max_steps=n, callbacks=[*callbacks, report],
        logger=False, log_every_n_steps=20, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=sys.argv[1]).fit(net or Classifier(mlp()), blobs(batch_size=16), ckpt_path=ckpt)
class Saves(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 50:
            trainer.save_checkpoint(os.path.join(sys.argv[1], "a.ckpt"))
def say(what):
    sys.stdout.write(f"SAID {what!r}\\n"); sys.stdout.flush()
"""


def said(program: str, folder: Path) -> list[object]:
    ended = ranks(HEAD + program, folder)
    assert [code for code, _ in ended] == [0, 0], ended[0][1][-2000:]
    return [ast.literal_eval(line[5:]) for _, text in ended for line in text.splitlines() if line.startswith("SAID ")]


@pytest.mark.slow
def test_all_ranks_have_the_same_journal_after_a_retraction(tmp_path: Path) -> None:
    first, second = said(
        """
class Local(StallCallback):
    codes = ("dead-activations",)
    def check(self):
        if self.hub.rank == 1:
            if self.hub.step == 20: self.tell("dead-activations", "seen at 20")
            if self.hub.step == 40: self.retract("dead-activations")
            if self.hub.step == 60: self.tell("dead-activations", "seen at 60")
fit(Local())
say([(f.code, f.step) for f in report.findings])
""",
        tmp_path,
    )
    assert first == second == [("dead-activations", 20), ("dead-activations", 60)]


@pytest.mark.slow
def test_what_waits_for_the_ranks_to_meet_is_in_the_checkpoint(tmp_path: Path) -> None:
    results = said(
        """
class Once(StallCallback):
    codes = ("dead-activations",)
    def check(self):
        if self.hub.step == 40: self.tell("dead-activations", "seen at 40", remedy="did something at step 40")
once = Once()
fit(once, Saves(), n=60)
whole = [(f.code, f.step) for f in report.findings]
fit(once, ckpt=os.path.join(sys.argv[1], "a.ckpt"), n=100)
say((whole, [(f.code, f.step) for f in report.findings], report.hub.curve.n))
""",
        tmp_path,
    )
    for whole, parts, losses in results:  # type: ignore[misc]
        assert whole == [("dead-activations", 40)]
        assert parts == whole
        assert losses == 100
