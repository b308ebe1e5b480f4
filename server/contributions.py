"""What the server keeps of each hospital for an algorithm that asks for it: what `accept` returned, a file each time.

A resumption and a step back need it; one hospital's is in memory at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.federated_algorithm import Arrays
from shared_model.files import private_directory
from shared_model.fitting import FitFiles

_KEPT = 2  # exchanges of a hospital: its last, and the one before it for a step back


class Contributions:
    """Beside the files of a pretraining.

    Args:
        algorithm: its name, for errors.
    """

    def __init__(self, files: FitFiles, algorithm: str) -> None:
        self._files, self._algorithm = files, algorithm

    def of(self, hospital: int, serial: int) -> Arrays:
        """What a hospital has contributed up to an exchange.

        Raises:
            TemptError: it is lost or damaged.
        """
        path = self._there(hospital, serial)
        try:
            tensors, _ = checkpoint.load(path)
        except TemptError as error:
            raise TemptError(
                f"{error}; as {self._algorithm} can't do without it, delete {self._files.partial} too"
            ) from None
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def keep(self, hospital: int, serial: int, arrays: Arrays) -> None:
        private_directory(_folder(self._files))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        checkpoint.save(self._file(hospital, serial), tensors, {"exchange": serial}, durable=False)

    def check(self, kept: Mapping[int, Sequence[int]]) -> None:
        """Refuse to go on without what hospitals have contributed.

        Args:
            kept: the exchanges of which something was kept, by hospital.

        Raises:
            TemptError: a file is not there, as of a checkpoint of a release that kept none.
        """
        for hospital, serials in kept.items():
            if serials:
                self._there(hospital, serials[-1])

    def prune(self, kept: Mapping[int, Sequence[int]]) -> None:
        """Remove what neither a resumption nor a step back needs, once the checkpoint is written."""
        if not _folder(self._files).is_dir():
            return
        needed = {self._file(hospital, serial) for hospital, serials in kept.items() for serial in serials[-_KEPT:]}
        for path in _folder(self._files).iterdir():
            if path not in needed:
                path.unlink()

    def _there(self, hospital: int, serial: int) -> Path:
        path = self._file(hospital, serial)
        if not path.is_file():
            raise TemptError(
                f"{path}: what hospital {hospital} has contributed to {self._algorithm} is not there; delete "
                f"{self._files.partial} to begin again"
            )
        return path

    def _file(self, hospital: int, serial: int) -> Path:
        return _folder(self._files) / f"{hospital}.{serial}.safetensors"


def forget_contributions(files: FitFiles) -> None:
    """Remove what hospitals have contributed: rounds are over."""
    shutil.rmtree(_folder(files), ignore_errors=True)


def _folder(files: FitFiles) -> Path:
    return files.tensors.with_suffix(".controls")
