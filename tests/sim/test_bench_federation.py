"""The federation's bench ends both ways in the same tensors, and says so if it does not; no seconds are asserted."""

from __future__ import annotations

import re

import pytest

from shared_model.algorithms.fedavg import Mean
from sim import bench_federation


@pytest.mark.slow
def test_quick_bench_prints_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_federation.main(["--quick"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"inprocess +3 +20( +[\d.]+){2} +-?\d+%( +-?\d+){3}", row)
    assert len(row) <= 80


@pytest.mark.slow
def test_bench_whose_ways_differ_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = Mean.arrays
    monkeypatch.setattr(Mean, "arrays", lambda mean: {name: array + 1 for name, array in arrays(mean).items()})
    monkeypatch.setattr(bench_federation, "_LARGEST_DIFFERENCE", 0.5)
    assert bench_federation.main(["--quick"]) == 1
    assert "differ" in capsys.readouterr().err
