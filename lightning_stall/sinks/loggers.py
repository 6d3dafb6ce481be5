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

    @property
    def takes_pictures(self) -> bool:
        """Whether any logger shows pictures; asked before one is drawn."""
        return any(_picture_of(logger) is not None for logger in self.loggers)

    @rank_zero_only
    def picture(self, tag: str, pixels: Any, step: int) -> None:
        """Show `pixels`, (height, width, 3) uint8, on the loggers that take pictures."""
        for index, logger in enumerate(self.loggers):
            write = _picture_of(logger)
            if write is not None:
                self._try(index, "pictures", partial(write, tag, pixels, step))

    @rank_zero_only
    def report(self, tag: str, markdown: str, linked: str, step: int) -> None:
        """Show a page of Markdown; `linked` is the same with addresses that TensorBoard's own pages answer to."""
        for index, logger in enumerate(self.loggers):
            self._try(index, "text", partial(_write_text, logger, tag, markdown, step, linked))

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


def _write_text(logger: Any, tag: str, text: str, step: int, markdown: str = "") -> None:
    """Known by what they can do, never by class: the two Lightning packages have two copies of each."""
    if hasattr(logger, "log_text"):  # Weights & Biases: a table
        logger.log_text(tag, columns=["step", "finding"], data=[[str(step), text]], step=step)
        return
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_text"):  # TensorBoard renders Markdown: indented, it keeps our lines as they are
        experiment.add_text(tag, markdown or textwrap.indent(text, "    "), step)
    elif hasattr(experiment, "log_text") and hasattr(logger, "run_id"):  # MLflow: a file
        experiment.log_text(logger.run_id, text, f"{tag}.md" if markdown else f"{tag}/step_{step}.txt")
    elif hasattr(experiment, "log_text"):  # Comet
        experiment.log_text(text, step=step)
    elif hasattr(experiment, "__setitem__"):  # Neptune: a field of the run
        experiment[tag if markdown else f"{tag}/step_{step}"] = text


def _picture_of(logger: Any) -> Callable[[str, Any, int], None] | None:
    """How this logger takes a picture, by what it can do; None where it takes none, or cannot be opened."""
    if hasattr(logger, "log_image"):  # Weights & Biases
        return lambda tag, pixels, step: logger.log_image(tag, images=[pixels], step=step)
    try:
        experiment: Any = getattr(logger, "experiment", None)
    except Exception:  # what cannot be opened has been told of already
        return None
    if hasattr(experiment, "add_image"):  # TensorBoard
        return lambda tag, pixels, step: experiment.add_image(tag, pixels, step, dataformats="HWC")
    if hasattr(experiment, "log_image") and hasattr(logger, "run_id"):  # MLflow: a file
        return lambda tag, pixels, step: experiment.log_image(logger.run_id, pixels, f"{tag}.png")
    if hasattr(experiment, "log_image"):  # Comet
        return lambda tag, pixels, step: experiment.log_image(pixels, name=tag, step=step)
    return None
