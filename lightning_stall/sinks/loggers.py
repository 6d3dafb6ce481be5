"""Numbers and findings on the loggers of the Trainer, whichever they are."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from lightning_stall.finding import SEVERITIES, Finding
from lightning_stall.report import render_finding
from lightning_stall.sinks.console import tell
from lightning_stall.sinks.tensorboard import clean_tag


class LoggerSink:
    """Writes numbers to every logger, and a finding as text to those that take text. Rank zero only.

    A logger that raises is warned about once and then left out, of numbers or of text, whichever it refused: an
    artifact store that is down shall not cost the curves.

    Args:
        loggers: `trainer.loggers`, of either Lightning package, or anything with `log_metrics(dict, step=int)`.
        axis: from a finding to its place on the step axis of the loggers. Lightning's own axis counts batches that
            stepped, from 0; by default the optimizer step of the finding is taken.
    """

    def __init__(self, loggers: Iterable[Any], axis: Callable[[Finding], int] = attrgetter("step")) -> None:
        self.loggers = list(loggers)
        self.axis = axis
        self.refused: set[tuple[int, str]] = set()

    @rank_zero_only
    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log `values` by tag at `step` of the loggers' axis; non-finite ones too, for loggers draw them."""
        if values:
            for index, logger in enumerate(self.loggers):
                # a dict for each: loggers add to what they are given
                self._try(index, "numbers", partial(_write_numbers, logger, dict(values), step))

    @rank_zero_only
    def __call__(self, finding: Finding) -> None:
        if not finding.speaks:
            return
        tag, step = clean_tag(f"stall/findings/{finding.code}"), self.axis(finding)
        self.numbers({tag: float(SEVERITIES.index(finding.severity))}, step)
        text = render_finding(finding)
        for index, logger in enumerate(self.loggers):
            self._try(index, "text", partial(_write_text, logger, f"{tag}/text", text, step))

    def _try(self, index: int, what: str, write: Callable[[], None]) -> None:
        if (index, what) in self.refused:
            return
        try:
            write()
        except Exception as error:  # any network, disk or version trouble of any logger
            self.refused.add((index, what))
            name = type(self.loggers[index]).__name__
            tell(f"{name} refused {what} of lightning_stall and gets no more of it in this run: {error!r}")


def _write_numbers(logger: Any, values: dict[str, float], step: int) -> None:
    logger.log_metrics(values, step=step)


def _write_text(logger: Any, tag: str, text: str, step: int) -> None:
    """Known by what they can do, never by class: the two Lightning packages have two copies of each."""
    if hasattr(logger, "log_text"):  # Weights & Biases: a table
        logger.log_text(tag, columns=["step", "finding"], data=[[str(step), text]], step=step)
        return
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_text"):  # TensorBoard renders Markdown: indented, it keeps our lines as they are
        experiment.add_text(tag, textwrap.indent(text, "    "), step)
    elif hasattr(experiment, "log_text") and hasattr(logger, "run_id"):  # MLflow: a file
        experiment.log_text(logger.run_id, text, f"{tag}/step_{step}.txt")
    elif hasattr(experiment, "log_text"):  # Comet
        experiment.log_text(text, step=step)
