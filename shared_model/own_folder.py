"""A folder that a command begins and goes on with: marked as its own, and safe from other users.

What stands there already under a name that the command writes, and that the command did not make, is somebody's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_model import begun
from shared_model.errors import TemptError
from shared_model.files import MARK, private_directory, write_text
from shared_model.ownership import check_own


@dataclass(frozen=True)
class FolderKind:
    """A kind of such a folder.

    Attributes:
        mark: stands in its `.tempt`.
        maker: the command, in words.
        names: what the command writes, replaces or removes there.
        sign: a file, and words in it, by which a folder is known that a release without marks has made.
        scratch: of these names, whose content is another user's by right.
    """

    mark: str
    maker: str
    names: Sequence[str]
    sign: tuple[str, str]
    scratch: Sequence[str] = ()


def check_folder(folder: Path, kind: FolderKind) -> None:
    """Refuse a folder that other users could change, or that holds what the command did not make; nothing is written.

    Raises:
        TemptError: others could change it, or it holds something else.
    """
    check_own(folder, apart=kind.scratch)
    mark = _text(folder / MARK)
    if mark == kind.mark or (mark is None and kind.sign[1] in (_text(folder / kind.sign[0]) or "")):
        return
    if mark is not None:
        raise TemptError(f"{folder}: is a folder of another kind ({mark}); name one that is new or empty")
    taken = next((name for name in kind.names if _is_something(folder / name)), None)
    if taken is not None:
        raise TemptError(
            f"{folder}: has a {taken} that {kind.maker} did not make, as there is no {MARK}; nothing was changed, "
            "name another folder or move it away"
        )


def claim(folder: Path, kind: FolderKind) -> None:
    """Make a folder with its mark, or go on with one.

    Raises:
        TemptError: `check_folder` refuses it.
    """
    check_folder(folder, kind)
    begun.begin()
    private_directory(folder)
    check_folder(folder, kind)  # somebody may have been quicker
    if not (folder / MARK).exists():
        write_text(folder / MARK, kind.mark)


def _is_something(path: Path) -> bool:
    """Whether it is there, and more than an empty folder: where a volume is mounted, the folder is made before."""
    return os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
