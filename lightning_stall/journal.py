"""The journal of one fit: every finding, once, in order, handed to the sinks; held back until it may speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_stall.finding import SEVERITIES, Finding, Severity

Sink = Callable[[Finding], None]

MADE_HERE = "made_on_this_rank"  # evidence of what every rank sees: 1 on the rank that it comes from, 0 on the others


@dataclass
class Journal:
    """Findings of a fit. A code that holds is told once; it speaks again only after it went away, or got worse.

    One that keeps going and coming is told the 1st, 2nd, 4th, 8th ... time, and written down as "info" in between.
    A statistical finding is written down as "info" and told with its own severity only once the outcome is bad.
    """

    sinks: list[Sink] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)  # code -> severity, while the code holds
    held: dict[str, tuple[Finding, Severity]] = field(default_factory=dict)  # waiting for a bad outcome
    times: dict[str, int] = field(default_factory=dict)  # code -> how often it was fit to be told

    def submit(self, finding: Finding, statistical: bool = False, outcome_bad: bool = False) -> Finding | None:
        """Take a finding; returns it as it was written down, or None where it is no news."""
        if statistical and not outcome_bad and finding.speaks:
            if self.told.get(finding.code) == finding.severity and finding.remedy is None:
                return None  # it has spoken before there was a verdict, and still holds
            self.held[finding.code] = (finding, finding.severity)
            finding = replace(finding, severity="info")
        known = self.told.get(finding.code)
        worse = known is not None and SEVERITIES.index(finding.severity) > SEVERITIES.index(known)
        if known is not None and not worse and finding.remedy is None:
            return None
        told = finding.severity
        if finding.speaks:
            self.held.pop(finding.code, None)
            times = self.times[finding.code] = self.times.get(finding.code, 0) + 1
            if times & (times - 1) and not worse:
                finding = replace(finding, severity="info")
        self._write(finding)
        self.told[finding.code] = told
        return finding

    def retract(self, code: str) -> None:
        """The code no longer holds: it may speak again, and is not told later for what was."""
        self.told.pop(code, None)
        self.held.pop(code, None)

    def known(self) -> list[Finding]:
        """What was told, and what is held back and would be told as soon as the outcome is bad."""
        return [*(f for f in self.findings if f.speaks), *(f for f, _ in self.held.values())]

    def promote(
        self,
        step: int,
        epoch: int,
        least: float = 0.0,
        meant: bool = True,
        only: Callable[[Finding], bool] = lambda finding: True,
    ) -> list[Finding]:
        """The outcome is bad: tell what was held back, dated now, with the evidence it had.

        Args:
            step, epoch: now.
            least: strength (`strength` in the evidence) that a finding must have, at least.
            meant: whether also what somebody may have meant so (`meant` in the evidence) is told.
            only: those of which this is true.
        """
        strong = [c for c, (f, _) in self.held.items() if not least or f.evidence.get("strength", 0.0) >= least]
        strong = [c for c in strong if only(self.held[c][0])]
        strong = [c for c in strong if meant or not self.held[c][0].evidence.get("meant")]
        spoken = [replace(self.held[c][0], step=step, epoch=epoch, severity=self.held[c][1]) for c in strong]
        for code in strong:
            del self.held[code]
        for finding in spoken:
            self._write(finding)
        return spoken

    def _write(self, finding: Finding) -> None:
        self.told[finding.code] = finding.severity
        self.note(finding)

    def note(self, finding: Finding) -> None:
        """Write a finding down beside what its code has said: what it says for or against it is for the diagnosis."""
        self.findings.append(finding)
        for sink in self.sinks:
            sink(finding)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: findings so far and which of them hold."""
        return {
            "findings": [f.to_dict() for f in self.findings],
            "told": dict(self.told),
            "times": dict(self.times),
            "held": {code: (f.to_dict(), severity) for code, (f, severity) in self.held.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.findings[:] = [Finding.from_dict(f) for f in state["findings"]]
        self.told, self.times = dict(state["told"]), dict(state["times"])
        self.held = {code: (Finding.from_dict(f), severity) for code, (f, severity) in state["held"].items()}


def merge(by_rank: Sequence[Sequence[tuple[Finding, bool]]]) -> list[tuple[Finding, bool]]:
    """One list for all ranks from what each saw alone: one finding a code, its places marked with their ranks.

    What all ranks see once it is summed, as a gradient, is marked with those whose evidence says that they made it.

    Args:
        by_rank: for each rank, (finding, whether it is statistical) in the order seen.
    """
    merged: dict[str, tuple[Finding, bool, list[int]]] = {}
    made = {f.code for findings in by_rank for f, _ in findings if f.evidence.get(MADE_HERE) == 1.0}
    for rank, findings in enumerate(by_rank):
        for finding, statistical in findings:
            if finding.code in made and finding.evidence.get(MADE_HERE) == 0.0:
                continue
            if finding.code not in merged:
                merged[finding.code] = (finding, statistical, [rank])
                continue
            first, _, ranks = merged[finding.code]
            if rank not in ranks:
                ranks.append(rank)
            if finding.step < first.step:
                merged[finding.code] = (finding, statistical, [rank, *[r for r in ranks if r != rank]])
    out = []
    for finding, statistical, ranks in merged.values():
        if len(ranks) < len(by_rank):
            listed = ", ".join(str(r) for r in sorted(ranks)[:8])
            which = f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}"
            places = tuple(f"{which}: {place}" for place in finding.where) or (which,)
            finding = replace(finding, where=places, summary=f"{finding.summary} (seen on {which} only)")
        out.append((finding, statistical))
    return sorted(out, key=lambda pair: pair[0].step)
