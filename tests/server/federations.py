"""What tests of federations have in common."""

from __future__ import annotations

from pathlib import Path

from server.federation import Federation
from server.federation_settings import FederationSettings
from server.validation import Arrays
from shared_model.records import Dataset
from shared_model.settings import Settings


def initial_tensors(settings: Settings, dataset: Dataset, seed: int) -> Arrays:
    """The tensors that a federation begins with."""
    federation = Federation(Path(), dataset.vocabulary, settings, FederationSettings(), (), False, 1, 1)
    return federation.initial(seed)


class Clock:
    """Time that passes only where the server sleeps, so that no test depends on seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
