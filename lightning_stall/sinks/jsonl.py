"""Findings on disk, one JSON object a line, so that a run can be judged again after it died."""

from __future__ import annotations

import json
import math
import os
from datetime import datetime, timezone
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lightning_stall.finding import Finding
from lightning_stall.history import Curves
from lightning_stall.outcome import Outcome
from lightning_stall.replay import FINDINGS_FILE
from lightning_stall.sinks.console import tell


class JsonlSink:
    """Appends every finding to `stall_findings.jsonl`; nothing is created before the first one.

    The file is opened and closed for each finding: they are rare, a killed run loses none, and the sink holds nothing
    that cannot be pickled. Where it cannot write it says so once, goes on, and tries again at the next finding.

    Args:
        directory: a local directory or whatever else Lightning can log to (`s3://...`); created where it is missing.
        resumed: the run goes on from a checkpoint, so what stands in the file belongs to it.
    """

    def __init__(self, directory: str | os.PathLike[str], resumed: bool = False) -> None:
        self.directory = os.fspath(directory)
        self.begun = resumed
        self.complained = False

    @property
    def path(self) -> str:
        """The file written to."""
        return os.path.join(self.directory, FINDINGS_FILE)

    @rank_zero_only
    def __call__(self, finding: Finding) -> None:
        self._write(to_json(finding))

    @rank_zero_only
    def end(self, outcome: Outcome, curves: Curves | None = None) -> None:
        """Write down how the run fared and its curves, so that it can be judged and drawn again from the file alone."""
        if curves is not None:
            self._write(json.dumps({"curves": curves.to_dict()}, allow_nan=False))
        numbers = {name: _strict(value) for name, value in outcome.evidence.items()}
        self._write(json.dumps({"outcome": outcome.state, "step": outcome.step, "evidence": numbers}, allow_nan=False))

    def _write(self, line: str) -> None:
        lines = [line] if self.begun else [json.dumps({"run": str(datetime.now(timezone.utc))}), line]
        try:
            self._append("".join(f"{text}\n" for text in lines).encode())
            self.begun = True
        except Exception as error:  # remote file systems raise classes of their own
            if not self.complained:
                self.complained = True
                tell(f"Findings are not kept in {self.path!r}: {error!r}. The run goes on; the console has them all.")

    def _append(self, line: bytes) -> None:
        files = get_filesystem(self.directory)
        files.makedirs(self.directory, exist_ok=True)
        if files.exists(self.path) and files.size(self.path):
            with files.open(self.path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a run killed while writing left half a line: do not lose this one too
                    line = b"\n" + line
        with files.open(self.path, "ab") as file:
            file.write(line)


def to_json(finding: Finding) -> str:
    """One line of strict JSON: a number that JSON has no word for becomes the string "nan", "inf" or "-inf"."""
    data = finding.to_dict()
    data["evidence"] = {name: _strict(value) for name, value in finding.evidence.items()}
    return json.dumps(data, allow_nan=False)


def _strict(value: Any) -> float | str:
    number = float(value)  # NumPy and tensor scalars become plain
    return number if math.isfinite(number) else str(number)
