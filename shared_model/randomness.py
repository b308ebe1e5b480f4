"""Randomness that is a function of (seed, purpose, hospital, epoch), never of what ran before.

A resumed run, another order of hospitals or another number of processes therefore draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

WHOLE_CONSORTIUM = 0
"""Stands for the hospital where one place trains on every hospital's records."""


def generator(device: torch.device, seed: int, purpose: str, hospital: int, epoch: int = 0) -> torch.Generator:
    """A generator whose stream belongs to these four alone."""
    return torch.Generator(device).manual_seed(_number(seed, purpose, hospital, epoch))


@contextmanager
def global_stream(
    device: torch.device, seed: int, purpose: str, hospital: int | str = WHOLE_CONSORTIUM, epoch: int = 0
) -> Iterator[None]:
    """Torch's global generators give the stream of these four, and are afterwards as if nothing had been drawn.

    For what takes no generator of its own: torch's layers, when they are trained (`nn.Dropout`) or reset (`nn.LSTM`).
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_number(seed, purpose, hospital, epoch))
        yield


def _number(*parts: object) -> int:
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniform_of(
    seed: int, purpose: str, stay: Int[Tensor, " codes"], code: Int[Tensor, " codes"]
) -> Float[Tensor, " codes"]:
    """A number in [0, 1) for each (stay, code): the same in whichever hospital, order or batch it is asked for."""
    with np.errstate(over="ignore"):
        mixed = _mix(stay.cpu().numpy().astype(np.uint64) + np.uint64(_number(seed, purpose)))
        mixed = _mix(mixed + code.cpu().numpy().astype(np.uint64))
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53).to(stay.device)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64 bits that scatters."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


class Dropout:
    """Inverted dropout from a generator of its own.

    Four decisions come from one 64-bit draw: on a CPU this takes a fifth of the time of `torch.nn.functional.dropout`,
    which stands for a fifth of a training step there. A rate is met to 1/65536.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, x: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return x
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None, generator=self._generator)
        # 1 or 0, compared in place: on a CPU a bool of its own and its conversion take six times as long
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape).ge_(round(rate * 65536) - 32768)
        return x * kept.to(x.dtype).mul_(1 / (1 - rate))
