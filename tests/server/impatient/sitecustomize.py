"""Processes that wait for signs of life as long as a test can: first on the path of a network's processes."""

from __future__ import annotations

from typing import Any

from tests.server.after_import import AfterImport


def flower(module: Any) -> None:
    """A heartbeat every 6 seconds, after 24 without one the server counts a hospital as away: a third of Flower's."""
    module.HEARTBEAT_DEFAULT_INTERVAL = 12


def ours(module: Any) -> None:
    """A third, too."""
    module.LIMIT = 20.0


AfterImport("flwr.common.constant", flower)
AfterImport("shared_model.signs_of_life", ours)
