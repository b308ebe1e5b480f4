"""A hospital with raw tables answers for one cut and one vocabulary, and keeps in its folder which.

Under a cut or a vocabulary of one code, the number of records that remain is how many stays have that code; a server
that may ask for many could count whatever it guesses. So the first one that is asked for is the hospital's, whoever
asks again and however it was answered, until the hospital's operator deletes the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_model.errors import TemptError
from shared_model.files import locked, private_directory, read_json, write_json
from shared_model.vocabulary import digest_of

_FILE = "agreement.json"


def sizes_and_digest(codes: Mapping[str, Any]) -> dict[str, Any]:
    """What the hospital keeps of the cut or the vocabulary that a message holds, and writes into its ledger."""
    lists: dict[str, Sequence[str] | Sequence[int]] = {
        name: list(codes[name]) for name in ("diagnoses", "procedures", "medications")
    }
    return {name: len(codes) for name, codes in lists.items()} | {"digest": digest_of(*lists.values())}


def hold(folder: Path, what: str, asked: Mapping[str, Any]) -> None:
    """Keep what is asked for as the one that the hospital answers for.

    Args:
        folder: the hospital's own.
        what: is kept once.

    Raises:
        TemptError: another one is kept, the file is damaged, or another message is at work with it.
    """
    path = folder / _FILE
    private_directory(folder)
    with locked(folder / ".agreement", f"{path}: another message is at work with it"):
        kept = read_json(path) if path.exists() else {}
        if what not in kept:
            write_json(path, kept | {what: dict(asked)})
        elif kept[what] != asked:
            raise TemptError(f"the hospital has answered for another {what}; delete {path} to allow a new agreement")
