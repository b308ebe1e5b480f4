"""What a hospital keeps between rounds, and takes back if the server did not take its update.

State of a round is written as pending. The server's next message says which of the hospital's updates it took last:
the pending state of that round becomes the hospital's, any other is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shared_model import checkpoint


class KeptState:
    """A hospital's state of one experiment, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._kept, self._pending = folder / "kept.safetensors", folder / "pending.safetensors"

    def of_round(self, taken: int) -> dict[str, Tensor] | None:
        """The state after the update of round `taken` (0: none was taken), or None if there is none to go on with.

        A hospital that lost its disk, or that another experiment's files came to, therefore starts from nothing.
        """
        if self._pending.exists():
            _, about = checkpoint.load(self._pending)
            if about["round"] == taken:
                self._pending.replace(self._kept)
            else:
                self._pending.unlink()
        if not self._kept.exists():
            return None
        tensors, about = checkpoint.load(self._kept)
        if about["round"] == taken:
            return tensors
        self._kept.unlink()
        return None

    def propose(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state of a round's update until the server says whether it took it."""
        self._pending.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        checkpoint.save(self._pending, tensors, {"round": number}, durable=False)
