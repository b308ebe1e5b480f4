"""Tensors and what belongs to them in one safetensors file, written beside and renamed; never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from shared_model.errors import TemptError
from shared_model.files import replacing

_NOTE = "tempt"


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write tensors with JSON beside them into one file, replacing an older one in one step."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about, allow_nan=False)
    # One entry: safetensors writes several in an order of chance, and equal content should be equal bytes.
    note = json.dumps({"about": text, "digest": _digest(content, text)})
    with replacing(path, durable=durable) as beside:
        beside.write_bytes(serialized(content, metadata={_NOTE: note}))  # save_file tells a full disk as a defect


def load(path: Path, device: torch.device | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint and what was written beside them.

    Raises:
        TemptError: the file is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})[_NOTE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if note["digest"] != _digest(tensors, note["about"]):
            raise ValueError("its content is not what was written")
        about = json.loads(note["about"])
    except FileNotFoundError:
        raise TemptError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TemptError(f"{path}: damaged checkpoint ({error}); delete it to compute it again") from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}, about


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a module its tensors.

    Raises:
        TemptError: a tensor is missing, unknown, or of another shape; the message names each.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TemptError(f"{path}: not a checkpoint of these settings: {reason}") from None


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: equal digests mean the same tensors."""
    return _digest({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, "")


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).numpy().tobytes())
    return digest.hexdigest()
