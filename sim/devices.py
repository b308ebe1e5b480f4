"""The device that a run computes on."""

from __future__ import annotations

import torch

from shared_model.errors import TemptError


def pick_device(name: str) -> str:
    """A device that this machine has: "cpu", "cuda" or "cuda:N".

    Raises:
        TemptError: no such device is known, or this machine lacks it.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if (
        kind not in ("cpu", "cuda")
        or (number and not (number.isascii() and number.isdigit()))
        or (kind == "cpu" and number)
    ):
        raise TemptError(f"unknown device '{name}'. Known: auto, cpu, cuda, cuda:N")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= found:
            raise TemptError(
                f"--device {name}: this machine has {found} CUDA devices that torch can use; try --device cpu"
            )
    return name
