"""Who hears how a run goes on: nobody, unless another is given; the command's is `sim/display.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Listener:
    """Hears how a run goes on, and does nothing; whoever wants to know overrides what they want to hear."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def begin(self, total: int, done: int) -> None:
        """Start to count fits."""

    def epoch(self, label: str, row: Mapping[str, Any]) -> None:
        """An epoch of a fit ended."""

    def advance(self, label: str) -> None:
        """A fit is done."""
