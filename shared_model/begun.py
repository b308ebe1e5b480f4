"""Whether the command has begun what stays when it is ended: its last words say so."""

from __future__ import annotations

_begun = False


def begin() -> None:
    """From now on something of the command's is there, and stays."""
    global _begun
    _begun = True


def begin_anew() -> None:
    """A command begins: nothing of it is there."""
    global _begun
    _begun = False


def is_begun() -> bool:
    """Whether something is there."""
    return _begun
