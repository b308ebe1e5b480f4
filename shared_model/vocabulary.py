"""The agreement on codes: position <-> code for diagnoses, procedures and medications, and its digest.

Diagnoses are eICU's `icd9code` strings, procedures its `treatmentstring`s, medications its integer HICL numbers.
Every side of a federation holds the same vocabulary; two sides compare `digest` before any training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from shared_model.errors import TemptError, printable
from shared_model.files import read_json, write_json

_Code = TypeVar("_Code", str, int)
Modality = Literal["diagnoses", "procedures", "medications"]


@dataclass(frozen=True)
class Vocabulary:
    """The codes of a consortium in their agreed order: D_U, P_U and M_U of Section 2.

    Attributes:
        diagnoses: every diagnosis code, ascending by code point.
        procedures: the most frequent procedures, ascending by code point.
        medications: the most frequent medications (HICL numbers), ascending.
        medication_names: the most frequent drug name of each medication; not part of the digest.
    """

    diagnoses: tuple[str, ...]
    procedures: tuple[str, ...]
    medications: tuple[int, ...]
    medication_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.medication_names) != len(self.medications):
            raise ValueError(f"{len(self.medications)} medications but {len(self.medication_names)} names")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the three code lists: equal digests mean that a position is the same code on both sides."""
        return digest_of(self.diagnoses, self.procedures, self.medications)

    def content(self) -> dict[str, list[str] | list[int]]:
        """The lists by name, for a file or a message."""
        return {
            "diagnoses": list(self.diagnoses),
            "procedures": list(self.procedures),
            "medications": list(self.medications),
            "medication_names": list(self.medication_names),
        }

    @staticmethod
    def of(content: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary of such lists.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        return Vocabulary(
            diagnoses=_texts(content, "diagnoses"),
            procedures=_texts(content, "procedures"),
            medications=_numbers(content, "medications"),
            medication_names=_texts(content, "medication_names", again=True),
        )

    @cached_property
    def _positions(self) -> dict[str, dict[str, int]]:
        return {
            modality: {str(code): position for position, code in enumerate(getattr(self, modality))}
            for modality in ("diagnoses", "procedures", "medications")
        }

    def position(self, modality: Modality, code: str) -> int:
        """Where a code stands in its list.

        Raises:
            TemptError: the vocabulary lacks the code; the message names the nearest that it has.
        """
        positions = self._positions[modality]
        found = positions.get(code.strip())
        if found is None:
            near = get_close_matches(code, positions, n=1, cutoff=0.0)
            hint = f"; the nearest is '{printable(near[0])}'" if near else ""
            raise TemptError(f"{modality}: the vocabulary has no code '{printable(code)}'{hint}")
        return found


def _texts(content: Mapping[str, Any], name: str, *, again: bool = False) -> tuple[str, ...]:
    """A list of texts, each of them once unless they may come again."""
    found = content[name]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise TypeError(f"{name} is no list of texts")
    for text in found:
        text.encode()  # half a character is no text
    return _each_once(found, name) if not again else tuple(found)


def _numbers(content: Mapping[str, Any], name: str) -> tuple[int, ...]:
    found = content[name]
    if not isinstance(found, list) or not all(type(code) is int and abs(code) < 2**63 for code in found):
        raise TypeError(f"{name} is no list of integers")
    return _each_once(found, name)


def _each_once(found: list[_Code], name: str) -> tuple[_Code, ...]:
    if len(set(found)) < len(found):
        raise ValueError(f"{name} has a code twice")
    return tuple(found)


def digest_of(*lists: Sequence[str] | Sequence[int]) -> str:
    """SHA-256 of lists of codes."""
    return hashlib.sha256(json.dumps(lists, separators=(",", ":")).encode()).hexdigest()


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write `vocabulary.json`, replacing an older one in one step."""
    write_json(path, vocabulary.content())


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a dataset or run directory.

    Raises:
        TemptError: the file is missing, is no JSON, or lacks a list.
    """
    content = read_json(path)
    try:
        return Vocabulary.of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise TemptError(f"{path}: not a vocabulary ({error}); expected the file that `tempt prepare` writes") from None
