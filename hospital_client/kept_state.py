"""What a hospital keeps between rounds, and takes back if the server did not take its update.

State of a round is written as pending. The server's next message says which of the hospital's updates it took last:
the pending state of that round becomes the hospital's, any other is forgotten. The one before it stays, for a server
that takes a step back: it leaves the last round's updates out after all.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.files import private_directory


class KeptState:
    """A hospital's state of one experiment, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept, self._pending = folder / "kept.safetensors", folder / "pending.safetensors"
        self._before = folder / "before.safetensors"

    def of_round(self, taken: int) -> dict[str, Tensor] | None:
        """The state after the update of round `taken` (0: none was taken), or None if there is none to go on with.

        A hospital that lost its disk, or whose files are damaged, therefore starts from nothing.
        """
        if _round_of(self._pending) == taken:
            if self._kept.exists():
                self._kept.replace(self._before)
            self._pending.replace(self._kept)
        self._pending.unlink(missing_ok=True)
        if _round_of(self._kept) != taken and _round_of(self._before) == taken:
            self._before.replace(self._kept)
        if _round_of(self._kept) == taken:
            return checkpoint.load(self._kept)[0]
        for path in (self._kept, self._before):
            path.unlink(missing_ok=True)
        return None

    def propose(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state of a round's update until the server says whether it took it."""
        private_directory(self._folder)
        checkpoint.save(self._pending, tensors, {"round": number}, durable=False)

    def forget(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _round_of(path: Path) -> int | None:
    """The round that a file is of, None if there is no sound one."""
    if not path.exists():
        return None
    try:
        return int(checkpoint.load(path)[1]["round"])
    except TemptError:
        return None
