"""A hospital whose training hangs in round 2 without an end: first on the path of its processes, in a test."""

from __future__ import annotations

import time
from typing import Any

from tests.server.after_import import AfterImport


def change(module: Any) -> None:
    """Training of the second epoch sleeps; Flower's heartbeats go on, so only a watchdog ends it."""
    begin = module.LocalPretraining.begin

    def hangs(self: Any, shared: Any, work: Any, *more: Any) -> Any:
        if work.first_epoch == 2:
            time.sleep(10**6)
        return begin(self, shared, work, *more)

    module.LocalPretraining.begin = hangs


AfterImport("hospital_client.local_pretraining", change)
