"""Numbers that no machine or message holds, for every option that takes one: one line and status 2, at once."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from shared_model.settings import Settings, resolve
from tests.sim.command import Capture, mistake
from tests.sim.test_verbs import VERBS, complete

NUMBERS = [
    (path, parameter.name, isinstance(parameter.type, click.types.FloatParamType))
    for path, verb in VERBS.items()
    for parameter in verb.params
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
]


@pytest.mark.parametrize(("path", "name", "is_float"), NUMBERS, ids=lambda of: of if isinstance(of, str) else "")
def test_number_that_nothing_holds_is_one_line(
    path: tuple[str, ...], name: str, is_float: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    option = f"--{name.replace('_', '-')}"
    for value in ("nan", "inf", "-inf", "1e999") if is_float else ("1" + "0" * 30, "-1" + "0" * 30, "9" * 5000):
        line = mistake(capsys, complete(path, {name: value}))
        assert option in line, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synth", "raw", "--records", str(10**12)], "--records 1000000000000; expected at most 1000000 records"),
        (["synth", "raw", "--hospitals", "10000", "--records", str(10**12)], "expected at most 1000000 records"),
        (["synth", "raw", "--hospitals", "10000", "--profile", "paper"], "expected at most 1000000 records"),
        (["simulate", "centralized", "--jobs", str(10**9)], "1<=x<=10000"),
        (["simulate", "local", "--threads", str(10**9), "--jobs", "2"], "1<=x<=10000"),
        (["simulate", "federated", "--rounds", str(10**9)], "--rounds=1000000000: "),
        (["simulate", "federated", "--local-epochs", str(10**9)], "--local-epochs=1000000000: "),
        (["simulate", "federated", "--largest-update", "1e300"], "--largest-update=1e+300: "),
        (["server", "launch", "--insecure", "--out", "r", "--hospitals", str(10**9)], "1<=x<=10000"),
        (
            ["server", "launch", "--insecure", "--out", "r", "--hospitals", "1", "--timeout", "1e300"],
            "--timeout=1e+300: Input should be less than or equal to 604800",
        ),
        (["server", "launch", "--insecure", "--out", "r", "--hospitals", "1", "--rounds", str(10**9)], "--rounds=1"),
    ],
    ids=lambda of: " ".join(of)[:60] if isinstance(of, list) else "",
)
def test_number_that_is_senseless_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A billion threads or rounds began and were waited for."""
    monkeypatch.chdir(tmp_path)
    assert words in mistake(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_setting_that_is_a_number_has_bounds() -> None:
    """`least_steps` of a billion never ended; a temperature of 1e300 is 0 times its scores."""
    for stage, of in Settings.model_fields.items():
        for name, field in of.default.__class__.model_fields.items():
            if field.annotation in (int, float):
                for value in ("1e300", "1" + "0" * 30, "-1", "nan", "inf"):
                    with pytest.raises(Exception, match=f"{stage}.{name}=") as error:
                        resolve("paper", {f"{stage}.{name}": value})
                    assert type(error.value).__name__ == "TemptError"
