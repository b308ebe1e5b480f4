from __future__ import annotations

import tomllib

import pytest

from shared_model.errors import TemptError
from shared_model.toml_value import toml_value


@pytest.mark.parametrize("value", ["/data/🏥/a run", 'a "b" \\ c', "\x7f\x01\t\n", "é", 5, 0.5, True, ""], ids=ascii)
def test_value_when_read_as_toml_is_the_same(value: str | int | float | bool) -> None:
    """JSON writes a character beyond the basic plane as two halves, which TOML refuses: the SuperNode never started."""
    assert tomllib.loads(f"name = {toml_value(value)}")["name"] == value


def test_path_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(TemptError, match=r"a\\udcff.*has bytes that are no UTF-8"):
        toml_value("/data/a\udcff")
