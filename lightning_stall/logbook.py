"""Where the numbers of a check go: the loggers, `trainer.callback_metrics`, and the history that the report draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lightning_stall.history import LAYERS, History, fold
from lightning_stall.sinks import LoggerSink, heatmap, in_order, write_layout

MOST_SERIES = 64  # series of one group, such as gradient norms by layer, above which loggers get none of it
FIRST_PICTURE = 8  # checks before the first heat map; then it is drawn anew whenever their number has doubled

# Numbers that are the same on every rank by the way they are made. Of several ranks only these are published: a
# callback that stops or saves by a number which differs from rank to rank would hang the job.
SAME_EVERYWHERE = ("stall/loss/", "stall/outcome/", "stall/rate/", "stall/gradients/")


class Logbook:
    """Of one fit. `history` and `loggers` are there on every rank; only rank zero writes.

    Args:
        trainer: of either Lightning package.
    """

    def __init__(self, trainer: Any) -> None:
        self.history = History()
        self.loggers = LoggerSink(trainer.loggers, axis=lambda finding: max(finding.step - 1, 0))
        self.most_series = MOST_SERIES
        self.logs = bool(trainer.log_every_n_steps) and trainer.is_global_zero
        self._laid_out = False
        self._drawn_at = 0  # checks at the last heat map

    def write(
        self, trainer: Any, step: int, numbers: Mapping[str, float], panels: Callable[[], Mapping[str, Sequence[str]]]
    ) -> None:
        """Take the numbers of a check at optimizer `step`; called on every rank, and never waits for the device."""
        self.history.add(step, numbers)
        few = fold(numbers, self.most_series)
        public = few if trainer.world_size == 1 else {k: v for k, v in few.items() if k.startswith(SAME_EVERYWHERE)}
        trainer.callback_metrics.update(
            {tag: torch.tensor(value, dtype=torch.float32) for tag, value in public.items()}
        )
        if not self.logs:
            return
        if not self._laid_out:
            self._laid_out = True
            write_layout(self.loggers.loggers, in_order(panels()))
        self.loggers.numbers(few, step - 1)  # Lightning's own axis begins at 0
        if self.history.seen >= max(FIRST_PICTURE, 2 * self._drawn_at):
            self.draw(step)

    def draw(self, step: int) -> None:
        """Give the loggers that take pictures the heat map of gradient norms, layers over steps."""
        if not self.logs or self.history.seen == self._drawn_at:
            return
        self._drawn_at = self.history.seen
        layers = {t[len(LAYERS) :]: v for t, v in self.history.series.items() if t.startswith(LAYERS)}
        if self.loggers.takes_pictures and len(layers) > 1:
            picture = heatmap(self.history.steps, layers)
            if picture is not None:
                self.loggers.picture("stall/gradients/heat_map", picture, max(step - 1, 0))
