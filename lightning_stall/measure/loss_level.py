"""Which loss a run trains, and the level that a constant predictor reaches on it: read off the losses themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_stall.measure.by_hand import MATCHED, LossNotes
from lightning_stall.measure.loss_match import LossMatch, Records
from lightning_stall.measure.loss_sums import SumLabels, addends
from lightning_stall.measure.losses import Labels, recognise, recognise_pairs


class LossLevel:
    """Looks at some losses before their backward pass.

    Args:
        noted: whether what the training step subtracts is noted; in compiled code it cannot be.
    """

    def __init__(self, noted: bool) -> None:
        self.labels: Labels | SumLabels = Labels()
        self.match = LossMatch()
        self.notes = LossNotes(Records()) if noted else None

    @property
    def penalty(self) -> float:
        """What the size of weights adds to the loss at present, where that is known."""
        return self.labels.penalty if isinstance(self.labels, SumLabels) else 0.0

    def noting(self, step: Callable[..., Any], wanted: Callable[[], bool]) -> Callable[..., Any]:
        """The training step, which notes what the loss is made of where that is wanted."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            notes = self.notes
            if notes is None or not wanted():
                return step(*args, **kwargs)
            if notes.records is not None:
                notes.records.clear()
            with notes:
                return step(*args, **kwargs)

        return noted

    def look(
        self,
        loss: Tensor,
        value: Callable[[], float] | None,
        settled: bool,
        number: Callable[[], float] | None = None,
    ) -> None:
        """Take the labels of this loss.

        Args:
            loss: of one micro-batch, with its graph.
            value: gives the loss as it was meant, undivided and unscaled, with a wait; None where none may be made.
            settled: what is to be noted has been by now.
            number: the same as `value`, where it costs no wait, whether or not this is a check.
        """
        try:
            self._compare(loss, value or number)
            self._look(loss, value)
        except Exception:  # targets of a kind that is none of ours: nothing is said of a level
            self.labels.usable = False
        if settled and not self.labels.noted:
            self.notes = None  # nothing to note, or nothing that could be

    def _compare(self, loss: Tensor, number: Callable[[], float] | None) -> None:
        """Whether a loss of no known graph is, number for number, a known one; from then on it is read as that."""
        records = self.notes.records if self.notes is not None else None
        if self.notes is None or records is None or loss.is_complex():
            return
        if not self.match.found and (recognise(loss) is not None or addends(loss) is not None):
            self.notes.records = None  # the graph tells what it is
            return
        pair = self.match.update(records, number)
        node: Any = loss.grad_fn
        if pair is not None and node is not None:
            node.metadata[MATCHED] = pair
        records.clear()
        if self.match.hopeless:
            self.notes.records = None
            self.labels.usable = self.labels.usable and not self.match.found  # it was one by chance

    def _look(self, loss: Tensor, value: Callable[[], float] | None) -> None:
        seen = recognise(loss) if isinstance(self.labels, Labels) else None
        found = addends(loss) if seen is None else None
        if seen is None and found is None and isinstance(self.labels, Labels):
            seen = recognise_pairs(loss)
        if found is not None and self.labels.kind is None:
            self.labels = SumLabels()
        elif found is not None and isinstance(self.labels, Labels):
            self.labels.usable = False  # it has become a sum
        labels = self.labels
        wanted = value is not None and not labels.calibrated
        if isinstance(labels, SumLabels):
            labels.update(found)
            if value is not None and wanted:
                labels.calibrate(found, value())
        elif seen is not None:
            labels.update(seen)
            if value is not None and wanted:
                labels.calibrate(seen, value())
