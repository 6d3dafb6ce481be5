"""The demo: the right cause for each of the five, and silence on the healthy one, on two seeds."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lightning_stall.demo import PATIENTS, Patient, load_digits, run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patient", "seed"),
    # a slow disk is as slow with any seed, and takes ten seconds each time
    [pytest.param(p, s, id=f"{p.name}-{s}") for p in PATIENTS for s in range(1 if p.name == "slow-disk" else 2)],
)
def test_the_first_cause_is_right(patient: Patient, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observed = run(patient, load_digits(), seed, False, None)
    causes = [c.code for c in observed.report.causes]
    assert [m.failed for m in observed.report.hub.members] == [None] * len(observed.report.hub.members)
    if not patient.right:
        assert causes == []
        assert not [f for f in observed.report.findings if f.speaks]
    else:
        assert causes[0] in patient.right
        assert "raises" not in patient.story or observed.error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["broken-file", "too-fast", "one-left-over", "outliers"])
def test_the_remedy_pays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    patient = next(p for p in PATIENTS if p.name == name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare, mended = (run(patient, load_digits(), 0, remedy, None) for remedy in (False, True))
    assert mended.accuracy > bare.accuracy + 0.01
    assert mended.error is None
    if name != "outliers":  # clipping is logged at every step, and told at none
        assert any(f.remedy for f in mended.report.findings)
