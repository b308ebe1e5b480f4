"""Flower's SuperExec as the server runs it: it tells that it has asked for work, its sign of life."""

from __future__ import annotations

import sys
from pathlib import Path

from server import guarded_flower
from server.control import program
from shared_model.signs_of_life import run_alone, tell


def command(signs: Path) -> list[str]:
    """What runs it.

    Args:
        signs: the file that it touches.
    """
    return [sys.executable, "-P", "-m", __name__, str(signs), program("flower-superexec")]


def main() -> None:
    """Run it with its own arguments after the file of its signs."""
    from flwr.supercore.runtime import RuntimeHttpClient

    signs = Path(sys.argv[1])
    sys.argv = sys.argv[2:]
    tell(RuntimeHttpClient, "AcquireTask", signs)
    run_alone(guarded_flower.superexec)


if __name__ == "__main__":
    main()
