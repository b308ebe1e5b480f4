"""SCAFFOLD at the server (Karimireddy et al., ICML 2020): c, which is the mean of the hospitals' c_i over records.

A hospital tells how far its c_i has moved, and whether it moved from 0 because it kept none (a lost disk, a damaged
file). Then what it had contributed before must go, which neither side could know from c alone. So the server keeps what
each hospital's c_i is to it: one file a hospital and round, for a resumption and a step back, of which one is in memory
at a time. It could add these up from what it was told anyway.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from server.validation import Arrays
from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.files import private_directory
from shared_model.fitting import FitFiles

_KEPT = 2  # rounds of a hospital: its last, and the one before it for a step back


class ControlVariates:
    """c and the hospitals' c_i.

    Args:
        like: the shared tensors; empty for a strategy without control variates.
        files: beside them the hospitals' stand; a strategy without control variates needs none.
    """

    def __init__(self, like: Arrays, files: FitFiles | None) -> None:
        self.c: Arrays = {name: np.zeros_like(array) for name, array in like.items()}
        self._next: dict[str, NDArray[np.float64]] = {}
        self._files = files

    def begin(self) -> None:
        """A round's movements are taken from here on."""
        self._next = {name: array.astype(np.float64) for name, array in self.c.items()}

    def take(self, hospital: int, number: int, moved: Arrays, share: float, *, since: int, is_new: bool) -> None:
        """Take what a hospital tells in round `number`.

        Args:
            share: the hospital's, of all records.
            since: the last round whose movement was taken from it, 0 for none.
            is_new: it moved from 0.

        Raises:
            TemptError: what it had contributed is lost or damaged.
        """
        before = self._contributed(hospital, since) if since else None
        for name, array in moved.items():
            step = array.astype(np.float64)
            if is_new and before is not None:
                step -= before[name]
            self._next[name] += step * share  # c moves by the hospital's share of all records
        now = moved if is_new or before is None else {name: before[name] + array for name, array in moved.items()}
        private_directory(self._folder)
        tensors = {name: torch.from_numpy(array) for name, array in now.items()}
        checkpoint.save(self._file(hospital, number), tensors, {"round": number}, durable=False)

    def finish(self) -> None:
        """The round's movements become c."""
        self.c = {name: array.astype(np.float32) for name, array in self._next.items()}

    def check(self, taken: Mapping[int, Sequence[int]]) -> None:
        """Refuse to go on without what hospitals have contributed.

        Args:
            taken: the rounds whose movement was taken, by hospital.

        Raises:
            TemptError: a file is not there, as of a checkpoint of a release that kept none.
        """
        for hospital, rounds in taken.items():
            if self.c and rounds and not self._file(hospital, rounds[-1]).is_file():
                raise TemptError(
                    f"{self._file(hospital, rounds[-1])}: what hospital {hospital} has contributed to scaffold is not "
                    f"there; delete {self._partial} to begin again"
                )

    def prune(self, taken: Mapping[int, Sequence[int]]) -> None:
        """Remove what neither a resumption nor a step back needs, once the checkpoint is written."""
        if not self.c or not self._folder.is_dir():
            return
        needed = {self._file(hospital, number) for hospital, rounds in taken.items() for number in rounds[-_KEPT:]}
        for path in self._folder.iterdir():
            if path not in needed:
                path.unlink()

    def _contributed(self, hospital: int, number: int) -> Arrays:
        try:
            tensors, _ = checkpoint.load(self._file(hospital, number))
        except TemptError as error:
            raise TemptError(f"{error}; as scaffold can't do without it, delete {self._partial} too") from None
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    @property
    def _folder(self) -> Path:
        assert self._files is not None
        return _folder(self._files)

    @property
    def _partial(self) -> Path:
        assert self._files is not None
        return self._files.partial

    def _file(self, hospital: int, number: int) -> Path:
        return self._folder / f"{hospital}.{number}.safetensors"


def forget_contributions(files: FitFiles) -> None:
    """Remove what hospitals have contributed: rounds are over."""
    shutil.rmtree(_folder(files), ignore_errors=True)


def _folder(files: FitFiles) -> Path:
    return files.tensors.with_suffix(".controls")
