"""StallReport: the findings of a run and the causes they point to, while it runs and after."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from lightning_stall.callback import StallCallback
from lightning_stall.diagnosis import diagnose
from lightning_stall.errors import require
from lightning_stall.finding import Cause, Finding
from lightning_stall.journal import Sink
from lightning_stall.logbook import MOST_SERIES
from lightning_stall.report import NOTHING, render_fragment, render_html, render_markdown, rich_table
from lightning_stall.sinks import clean_tag, themes
from lightning_stall.sinks.console import tell
from lightning_stall.trials.occasion import Occasions
from lightning_stall.trials.plan import Trials


class StallReport(StallCallback):
    """Ranks the causes of a stall. Writes `stall_report.md` and `.html` into the log directory, and prints a table.

    It measures nothing but the training loss; put it behind the callbacks whose findings it is to weigh. `findings` and
    `causes` hold during and after `fit`. In a notebook it shows itself as a page.

    Where a run fares badly and nothing certain explains it, short trials on a copy of the model (other rates, a fresh
    initialisation, standardised inputs, no decay or dropout, shuffled targets) say which cause holds. The training is
    bitwise the same with and without them. Several ranks, optimisation by hand and compiled modules are not tried.

    Logs: `stall/findings/told` (how many so far), and the report as text, `stall/report`.

    Args:
        table: print a table at the end, or one line where there is nothing to report.
        html: write `stall_report.html` beside it: one file with the curves drawn, which needs no network.
        verbose: show the outcome in the progress bar.
        max_series: series of one group, such as the gradient norms by layer, above which loggers get none of the group;
            the report and the heat map show them all the same.
        sinks: callables that take each `Finding` as it is told, on rank zero.
        trials: make trials.
        trial_share: of the fit's wall time so far that the trials of one occasion may take; never over a minute.
        trial_seconds: seconds that they may take in any case.
        every_n_steps: optimizer steps between checks; None takes the Trainer's `log_every_n_steps`.
        mute: codes that are never named as a cause.

    >>> from lightning_stall import GradientHealth
    >>> from lightning_stall.testing import blobs, nan_batch, watch
    >>> report = watch(nan_batch(), blobs(), GradientHealth())  # makes a StallReport, fits and returns it
    >>> report.outcome, report.findings[0].code
    ('non-finite', 'nonfinite-loss')
    """

    last_word = True

    def __init__(
        self,
        *,
        table: bool = True,
        html: bool = True,
        verbose: bool = False,
        max_series: int = MOST_SERIES,
        sinks: Sequence[Sink] = (),
        trials: bool = True,
        trial_share: float = 0.02,
        trial_seconds: float = 4.0,
        every_n_steps: int | None = None,
        mute: Sequence[str] = (),
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, mute=mute)
        self.table = table
        require(max_series >= 0, "max_series", max_series, "give a number of series, 0 for none")
        self.html = html
        self.verbose = verbose
        self.max_series = max_series
        self.sinks = tuple(sinks)
        require(isinstance(trials, bool), "trials", trials, "give True or False")
        require(0 <= trial_share <= 1, "trial_share", trial_share, "give a share from 0 to 1, such as 0.02")
        require(trial_seconds >= 0, "trial_seconds", trial_seconds, "give seconds of at least 0, such as 4.0")
        self.trials = trials
        self.trial_share = trial_share
        self.trial_seconds = trial_seconds
        self._occasions: Occasions | None = None
        self._tried: dict[str, int] = {}  # when trials were made before a restart

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
        self.hub.logbook.most_series = self.max_series
        if self.hub.trainer.is_global_zero:
            self.hub.journal.sinks.extend(self.sinks)
        tried, self._tried = self._tried if self.hub.step else {}, {}
        if self.trials:
            self.hub.trials = Trials(self.hub, self.trial_share, self.trial_seconds)
            self._occasions = Occasions(self.hub.trials, self.tell)
            self._occasions.load_state(tried)

    def before_batch(self, batch: Any, batch_idx: int) -> None:
        if self._occasions is not None:
            self._occasions.trials.keep(batch, batch_idx)

    def judged(self) -> None:
        if self._occasions is not None:
            self._occasions.judged()

    def finish(self) -> None:
        if self._occasions is not None:
            self._occasions.finish()

    def detach(self) -> None:
        self.hub.trials = None
        if self._occasions is not None:
            self._occasions.trials.kept.clear()

    def state(self) -> dict[str, Any]:
        return dict(self._tried if self._occasions is None else self._occasions.state())

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._tried = dict(state)

    def check(self) -> None:
        if self.verbose:
            self.hub.trainer.progress_bar_metrics["outcome"] = self.outcome

    def numbers(self) -> Mapping[str, float]:
        return {"stall/findings/told": float(sum(f.speaks for f in self.hub.journal.findings))}

    def panels(self) -> Mapping[str, Sequence[str]]:
        return {themes.FINDINGS: ["stall/findings/.*"]}

    def conclude(self) -> None:
        hub = self.hub
        if not hub.trainer.is_global_zero:
            return
        findings, causes = self.findings, self.causes
        if hub.file is not None:
            hub.file.end(hub.outcome, hub.curves())
        facts = self._facts()
        text = render_markdown(findings, causes, self.outcome, facts)
        if hub.log_dir is not None:
            self._write("stall_report.md", text)
            if self.html:
                self._write("stall_report.html", render_html(findings, causes, self.outcome, facts, hub.curves()))
        if hub.logbook.logs:
            linked = render_markdown(findings, causes, self.outcome, facts, link=self._address)
            hub.logbook.loggers.report("stall/report", text, linked, max(hub.step - 1, 0))
        if self.table and (causes or any(f.speaks for f in findings)):
            from rich.console import Console  # slow to import, and most runs are well

            Console().print(rich_table(findings, causes, self.outcome))
        elif self.table:
            print(NOTHING)

    def _repr_html_(self) -> str:
        """The report as a notebook shows it, during a fit or after."""
        if self._hub is None:
            return "<p>No fit yet.</p>"
        return render_fragment(self.findings, self.causes, self.outcome, self._facts(), self._hub.curves())

    def _address(self, place: str) -> str:
        """Where TensorBoard shows the curves of a module or parameter, relative to its own address; "" for none."""
        name = clean_tag(place)
        layers = {tag.rpartition("/")[2] for tag in self.hub.logbook.history.series}
        known = [layer for layer in layers if name == layer or name.startswith(f"{layer}.")]
        return f"?tagFilter={quote('/' + re.escape(max(known, key=len)) + '$')}#timeseries" if known else ""

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(str(self.hub.log_dir), name)
        try:
            from lightning.fabric.utilities.cloud_io import get_filesystem

            files = get_filesystem(path)
            files.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with files.open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except Exception as error:  # remote file systems raise classes of their own; the other files are still to come
            tell(f"{path} could not be written: {error!r}. The findings stand in the console.")

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
        facts |= self._occasions.facts() if self._occasions is not None else {}
        facts |= {name: f"{value:.4g}" for name, value in hub.outcome.evidence.items()}
        return {k: str(v) for k, v in facts.items()}
