"""What a hospital keeps between exchanges, and takes back if the server did not take its answer.

State of an exchange is written as pending. The server's next message says which of the hospital's answers it took last:
the pending state of that one becomes the hospital's, any other is forgotten. The one before it stays, for a server that
takes a step back: it leaves the last answers out after all. Exchanges are numbered over all rounds, from 1 on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.files import private_directory


class KeptState:
    """A hospital's state of one experiment, in a folder of its own.

    Args:
        algorithm: whose state it is; that of another one is none to go on with.
    """

    def __init__(self, folder: Path, algorithm: str) -> None:
        self._folder, self._algorithm = folder, algorithm
        self._kept, self._pending = folder / "kept.safetensors", folder / "pending.safetensors"
        self._before = folder / "before.safetensors"

    def restore_after(self, accepted: int, device: torch.device) -> dict[str, Tensor] | None:
        """The state after the answer of exchange `accepted`, or None if there is none to go on with.

        A hospital that lost its disk, or whose files are damaged, therefore starts from nothing. What it has of other
        exchanges stays until it answers twice more, as a message may name a wrong one, but not where none was accepted:
        that is another run's.

        Args:
            accepted: the last exchange of which the server took an answer; 0 for none.
        """
        if self._exchange_of(self._pending) == accepted:
            if self._kept.exists():
                self._kept.replace(self._before)
            self._pending.replace(self._kept)
        if self._exchange_of(self._kept) != accepted and self._exchange_of(self._before) == accepted:
            self._before.replace(self._kept)
        if self._exchange_of(self._kept) == accepted:
            self._pending.unlink(missing_ok=True)
            return checkpoint.load(self._kept, device)[0]
        if not accepted:
            self.forget()
        return None

    def stage(self, serial: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state of an exchange's answer until the server says whether it took it."""
        private_directory(self._folder)
        about = {"exchange": serial, "algorithm": self._algorithm}
        checkpoint.save(self._pending, tensors, about, durable=False)

    def forget(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exchange_of(self, path: Path) -> int | None:
        """The exchange that a file is of, None if there is no sound one of this algorithm."""
        if not path.exists():
            return None
        try:
            about = checkpoint.load(path)[1]
            return int(about["exchange"]) if about["algorithm"] == self._algorithm else None
        except (TemptError, KeyError):
            return None
