"""StallReport: the findings of a run and the causes they point to, while it runs and after."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning_stall.callback import StallCallback
from lightning_stall.diagnosis import diagnose
from lightning_stall.finding import Cause, Finding
from lightning_stall.journal import Sink
from lightning_stall.report import render_html, render_markdown, rich_table
from lightning_stall.sinks.console import tell


class StallReport(StallCallback):
    """Ranks the causes of a stall. Writes `stall_report.md` into the log directory and prints a table at the end.

    It measures nothing but the training loss; put it behind the callbacks whose findings it is to weigh. `findings` and
    `causes` hold during and after `fit`.

    Args:
        table: print a table at the end, where there is something to say.
        html: write `stall_report.html` too.
        sinks: callables that take each `Finding` as it is told, on rank zero.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes that are never named as a cause.
    """

    last_word = True

    def __init__(
        self,
        *,
        table: bool = True,
        html: bool = False,
        sinks: Sequence[Sink] = (),
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, mute=mute)
        self.table = table
        self.html = html
        self.sinks = tuple(sinks)

    @property
    def findings(self) -> list[Finding]:
        """Everything seen so far, in order; empty before `fit`."""
        return list(self._hub.journal.findings) if self._hub is not None else []

    @property
    def causes(self) -> list[Cause]:
        """Why the run stalls, most likely first; empty where it is well or nothing is known."""
        if self._hub is None:
            return []
        findings = [f for f in self._hub.journal.findings if f.code not in self.mute]
        return diagnose(findings, self._hub.outcome)

    @property
    def outcome(self) -> str:
        """How the run fares: "too early", "learning", "converged", "stalled", "never learned", ..."""
        return self._hub.outcome.state if self._hub is not None else "too early"

    def begin(self) -> None:
        if self.hub.trainer.is_global_zero:
            self.hub.journal.sinks.extend(self.sinks)

    def conclude(self) -> None:
        hub = self.hub
        if not hub.trainer.is_global_zero:
            return
        findings, causes = self.findings, self.causes
        if hub.file is not None:
            hub.file.end(hub.outcome)
        if hub.log_dir is not None:
            self._write("stall_report.md", render_markdown(findings, causes, self.outcome, self._facts()))
            if self.html:
                self._write("stall_report.html", render_html(findings, causes, self.outcome, self._facts()))
        if self.table and (causes or any(f.speaks for f in findings)):
            from rich.console import Console  # slow to import, and most runs are well

            Console().print(rich_table(findings, causes, self.outcome))

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(str(self.hub.log_dir), name)
        try:
            from lightning.fabric.utilities.cloud_io import get_filesystem

            files = get_filesystem(path)
            files.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with files.open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            tell(f"{path} could not be written: {error}. The findings stand in the console.")

    def _facts(self) -> dict[str, str]:
        hub = self.hub
        facts: dict[str, Any] = {
            "optimizer steps": hub.step,
            "epochs begun": hub.epoch + 1,
            "ranks": hub.world_size,
            "parameters in optimizers": sum(
                p.numel() for o in hub.readings.optimizers for g in o.param_groups for p in g["params"]
            ),
            "watched by": ", ".join(type(m).__name__ for m in hub.members),
        }
        facts |= {name: f"{value:.4g}" for name, value in hub.outcome.evidence.items()}
        return {k: str(v) for k, v in facts.items()}
