"""A checkpoint of two ranks goes on with one, and one of a single process with two: what was known is still known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from twin_runs import ranks

STEPS, AT, AMID = 160, 80, 93  # optimizer steps in all; checkpoints at a check, and between two

PROGRAM = """
import json, os, sys, warnings, logging
import torch
torch.set_num_threads(1)
logging.disable(logging.INFO)
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning_stall import stall_callbacks
from lightning_stall.testing import Classifier, blobs, mlp

folder, world, kept, written = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

class Saves(Callback):
    "Behind all others."
    def on_train_batch_end(self, trainer, module, *rest):
        for at in (AT, AMID):
            if written and trainer.global_step == at:
                trainer.save_checkpoint(os.path.join(folder, f"{written}-{at}.ckpt"))
                states = {type(c).__name__: repr(c.state()) for c in trainer.callbacks if hasattr(c, "state")}
                kinds[str(at)] = states

class Looks(Callback):
    "What is there before the first step."
    def on_train_start(self, trainer, module):
        hub = family[0].hub
        begun.update(
            step=hub.step, n=hub.curve.n, scale=watch.scale, rate=hub.rate.factor,
            findings=[[f.code, f.step, f.severity] for f in hub.journal.findings],
        )

kinds, begun = {}, {}
rank = int(os.environ.get("LOCAL_RANK", "0"))
seed_everything(0, verbose=False)
family = stall_callbacks(auto_remedy=True)
family[-1].table = False
(watch,) = [c for c in family if type(c).__name__ == "PlateauWatch"]
watch.rollback = False
(clip,) = [c for c in family if type(c).__name__ == "AutoClip"]
module = Classifier(mlp(batchnorm=True), rate=30.0, optimizer="momentum")
told = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=-1, max_steps=STEPS,
        callbacks=[*family, Looks(), Saves()], logger=False, log_every_n_steps=20, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=os.path.join(folder, written or "on"),
    )
    trainer.fit(module, blobs(batch_size=16), ckpt_path=kept or None)
hub = family[0].hub
out = {
    "begun": begun, "states": kinds, "step": hub.step, "n": hub.curve.n, "means": hub.curve.means,
    "findings": [[f.code, f.step, f.severity] for f in hub.journal.findings], "scale": watch.scale,
    "outcome": hub.outcome.state, "causes": [c.code for c in family[-1].causes],
    "failed": {type(c).__name__: c.failed for c in family if c.failed},
    "anew": [str(w.message) for w in caught if "begin" in str(w.message) and "anew" in str(w.message)],
    "norms": [w.rule.seen for w in clip._watched.values()],
    "weights": torch.cat([p.detach().flatten() for p in module.parameters()]).double().sum().item(),
}
with open(os.path.join(folder, f"{'of' if written else 'on'}{world}-{os.path.basename(kept)}-rank{rank}.json"), "w") as f:
    json.dump(out, f)
"""
