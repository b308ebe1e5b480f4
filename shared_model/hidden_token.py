"""A task's token handed to its process without a trace on the command line, which every user of a machine may read.

Flower's SuperExec starts a ServerApp or ClientApp with `--token TOKEN`, and whoever has the token speaks for that task.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

_OPTION = "--token"


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`, with the token of `--token TOKEN` in a file without a name that only the process inherits."""
    if any(word.startswith(f"{_OPTION}=") for word in command):
        raise ValueError(f"{_OPTION}=...: expected the token as a word of its own, which can be hidden")
    if _OPTION not in command:
        return subprocess.Popen(command, **options)
    at = list(command).index(_OPTION)
    with tempfile.TemporaryFile() as file:  # readable for its owner alone even while it has a name
        file.write(command[at + 1].encode())
        file.seek(0)  # with it all is written; and opening /dev/fd goes on from here where it is no new file
        hidden = [*command[:at], f"{_OPTION}-file", f"/dev/fd/{file.fileno()}", *command[at + 2 :]]
        return subprocess.Popen(hidden, pass_fds=(file.fileno(),), **options)
