"""Ways in which a file can be damaged or edited by hand, the same in every run of the tests."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

Damage = Callable[[Path], None]
ESCAPE = "\x1b[2J\u202e\u200b\r\n\udcff"
_OTHERS: tuple[Any, ...] = (None, True, "3", -1, 1.5, 10**30, 10**400, [], {}, [[None]], {"1": {"2": 3}}, ESCAPE)


def replaced_by(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


def of_any_file() -> Iterator[tuple[str, Damage]]:
    """Emptied, cut, overwritten, or no file at all."""
    yield "empty", replaced_by(b"")
    yield "zeros", lambda path: path.write_bytes(bytes(path.stat().st_size)) and None
    for part in (3, 2):
        yield f"a {part}th", lambda path, part=part: os.truncate(path, path.stat().st_size // part)  # type: ignore[misc]
    yield "a byte less", lambda path: os.truncate(path, path.stat().st_size - 1)
    yield "noise", replaced_by(random.Random(1).randbytes(999))
    yield "a web page", replaced_by(b"<!DOCTYPE html><title>404</title>")

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def loop(path: Path) -> None:
        path.unlink()
        path.symlink_to(path.name)

    yield "a folder", folder
    yield "a pipe", pipe
    yield "a link to itself", loop


def of_json(content: bytes) -> Iterator[tuple[str, Damage]]:
    """Texts that are no JSON or another's; then each place of the content as two other things in turn, and gone."""
    text = content.decode().strip()
    inside = text[:-1].rstrip() + ("," if len(text) > 2 else "")
    for name, other in {
        "deep lists": "[" * 10_000 + "]" * 10_000,
        "deep objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
        "deep inside": inside + '"deep": ' + "[" * 10_000 + "]" * 10_000 + "}",
        "NaN": inside + '"more": NaN}',
        "infinity": inside + '"more": -Infinity}',
        "beyond all floats": inside + '"more": 1e999}',
        "5,000 digits": inside + f'"more": {"9" * 5000}}}',
        "a name twice": inside + '"more": 1, "more": 2}',
        "a list": f"[{text}]",
        "a number": "3",
        "null": "null",
        "a text": '"x"',
        "a byte order mark": "\ufeff" + text,
        "more behind": text + text,
    }.items():
        yield name, replaced_by(other.encode())
    yield "Latin-1", replaced_by(text.encode().replace(b'"', b'"\xe9', 1))
    yield "UTF-16", replaced_by(text.encode("utf-16"))
    whole = json.loads(text)
    for number, place in enumerate(_places(whole)):
        for other in (_OTHERS[number % len(_OTHERS)], _OTHERS[(number + 5) % len(_OTHERS)], KeyError):
            changed = _changed(whole, place, other)
            words = "gone" if other is KeyError else repr(other)[:30]
            yield f"{'.'.join(map(str, place))}: {words}", replaced_by(json.dumps(changed).encode())


def _places(whole: Any) -> list[tuple[Any, ...]]:
    """One place of each kind: of a list its first element, of an object of numbered names the first."""
    found: list[tuple[Any, ...]] = []
    seen = set()

    def visit(node: Any, place: tuple[Any, ...], kind: tuple[Any, ...]) -> None:
        if kind in seen:
            return
        seen.add(kind)
        if place:
            found.append(place)
        if isinstance(node, dict):
            for name, below in node.items():
                visit(below, (*place, name), (*kind, "#" if name.isdecimal() else name))
        elif isinstance(node, list):
            for number, below in enumerate(node[:1]):
                visit(below, (*place, number), (*kind, "[]"))

    visit(whole, (), ())
    return found


def _changed(whole: Any, place: tuple[Any, ...], other: Any) -> Any:
    changed = copy.deepcopy(whole)
    node = changed
    for step in place[:-1]:
        node = node[step]
    if other is KeyError:
        del node[place[-1]]
    else:
        node[place[-1]] = other
    return changed


def of_checkpoint(content: bytes) -> Iterator[tuple[str, Damage]]:
    """Another note, another type of the numbers, another header."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    tensors = load(content)
    note = json.loads(header["__metadata__"]["tempt"])
    notes = {
        **{f"note {other}": other for other in ("3", "null", "[]", '"x"', "true", "{}", "[" * 10_000, "NaN", "")},
        "an about of another type": json.dumps(note | {"about": 3}),
        "no about": json.dumps(note | {"about": None}),
        "a digest of another type": json.dumps(note | {"digest": [1]}),
        "a deep about": json.dumps(note | {"about": "[" * 10_000}),
        "half a character": json.dumps(note | {"about": "\udcff"}),
    }
    for name, text in notes.items():
        yield name, replaced_by(save(tensors, metadata={"tempt": text}))
    yield "no note", replaced_by(save(tensors))
    for dtype in (torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.float8_e4m3fn):
        other = {tensor_name: tensor.to(dtype) for tensor_name, tensor in tensors.items()}
        yield f"{dtype}", replaced_by(save(other, metadata=header["__metadata__"]))
    for name, dtype in (("F4", "F4"), ("a type of its own", "I3"), ("no type", None)):
        changed = copy.deepcopy(header)
        for tensor_name in tensors:
            changed[tensor_name]["dtype"] = dtype
        yield name, replaced_by(_with_header(changed, content[8 + size :]))
    yield "a header of 2^60 bytes", replaced_by((2**60).to_bytes(8, "little") + content[8:])
    yield "a deep header", replaced_by(_with_header_text('{"a":' * 10_000, content[8 + size :]))


def _with_header(header: Any, rest: bytes) -> bytes:
    return _with_header_text(json.dumps(header), rest)


def _with_header_text(text: str, rest: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + rest
