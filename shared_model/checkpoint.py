"""Tensors and what belongs to them in one safetensors file, written beside and renamed; never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from shared_model.errors import TemptError
from shared_model.files import check_file, parsed, replacing

_NOTE = "tempt"
_Kind = TypeVar("_Kind")


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write tensors with JSON beside them into one file, replacing an older one in one step."""
    content = _each_in_its_own_memory(tensors)
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
    if not path.exists():
        raise TemptError(f"{path}: no such checkpoint; go on with its run, which makes it")
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            noted = file.metadata() or {}
            if _NOTE not in noted:
                raise ValueError("it lacks the note that every checkpoint of TEMPT has")
            note = _of_type(dict, parsed(noted[_NOTE]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = _of_type(str, note.get("about"))
        if note.get("digest") != _digest(tensors, text):
            raise ValueError("its content is not what was written")
        about = _of_type(dict, parsed(text))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise TemptError(f"{path}: damaged checkpoint ({error}); delete it to compute it again") from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}, about


def _of_type(kind: type[_Kind], found: object) -> _Kind:
    if not isinstance(found, kind):
        raise ValueError(f"a note of it is {type(found).__name__}, expected {kind.__name__}")
    return found


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a module its tensors.

    Raises:
        TemptError: a tensor is missing, unknown, or of another shape; the message names each.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TemptError(
            f"{path}: not a checkpoint of these settings: {reason}; delete it to compute it again"
        ) from None


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: equal digests mean the same tensors."""
    return _digest({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, "")


def _each_in_its_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; safetensors takes none that shares memory with another, as tied weights do."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in taken else own
        taken.add(place)
    return found


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # bytes: NumPy has no bfloat16
    return digest.hexdigest()
