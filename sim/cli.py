"""The `tempt` command's first lines: they hear Ctrl-C and SIGTERM, and only then import the rest, most of a second."""

from __future__ import annotations

import os
import sys

# On a shared machine busy-waiting threads take the cores from each other: 30 records/s became 870 without it. It must
# be said before torch is imported, so every import of it stands inside a function.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from sim import ending


def main() -> None:
    """Run the command and end the process with its exit status (see the README's list)."""
    ending.listen()
    from sim.command import main as whole

    status = whole(sys.argv[1:])
    ending.told(status)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run the command with these arguments; its exit status."""
    from sim.command import run as whole

    return whole(arguments)


if __name__ == "__main__":
    main()
