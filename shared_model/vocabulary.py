"""The agreement on codes: position <-> code for diagnoses, procedures and medications, and its digest.

Diagnoses are eICU's `icd9code` strings, procedures its `treatmentstring`s, medications its integer HICL numbers.
Every side of a federation holds the same vocabulary; two sides compare `digest` before any training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from shared_model.errors import TemptError, printable
from shared_model.files import check_file, read_json, write_json

Modality = Literal["diagnoses", "procedures", "medications"]
_Code = TypeVar("_Code", int, str)


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
            diagnoses=_of_type(str, content, "diagnoses"),
            procedures=_of_type(str, content, "procedures"),
            medications=_of_type(int, content, "medications"),
            medication_names=_of_type(str, content, "medication_names", again=True),
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
            TemptError: the vocabulary lacks the code; the message names the nearest that it has, if one is near.
        """
        positions = self._positions[modality]
        found = positions.get(code.strip())
        if found is None:
            near = _nearest(code.strip(), positions)
            hint = f"; the nearest is '{printable(near)}'" if near is not None else ""
            raise TemptError(f"{modality}: the vocabulary has no code '{printable(code)}'{hint}")
        return found


def _nearest(code: str, known: Iterable[str]) -> str | None:
    """The same in other letters (A, a), else the shortest that has this text in it, else one that is spelled alike."""
    folded = {name.casefold(): name for name in known}
    found = code.casefold()
    if len(found) > 2 and (longer := [text for text in folded if found in text]):
        return folded[min(longer, key=len)]
    near = get_close_matches(found, folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def _of_type(kind: type[_Code], content: Mapping[str, Any], name: str, *, again: bool = False) -> tuple[_Code, ...]:
    """Codes from a file or a message: texts, or whole numbers of 64 bits; each of them once unless they may come again.

    Raises:
        TypeError, ValueError: they are no list, or one of them is something else, such as 2812.5 or an infinity.
    """
    codes = content[name]
    if not isinstance(codes, Sequence) or isinstance(codes, str):
        raise TypeError(f"expected lists of codes, found {type(codes).__name__}")
    for code in codes:
        if type(code) is not kind or (isinstance(code, int) and not -(2**63) <= code < 2**63):
            expected = "a text" if kind is str else "a whole number of at most 64 bits"
            raise ValueError(f"found the code {printable(repr(code), 40)}, expected {expected}")
        if isinstance(code, str):
            code.encode()  # half of a surrogate pair, which JSON can hold, is a ValueError here
    if not again and len(set(codes)) < len(codes):
        raise ValueError(f"{name} has a code twice")
    return tuple(codes)


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
    check_file(path, "expected the vocabulary that `tempt prepare` writes; name a directory that has it")
    content = read_json(path, "make the directory anew, or put back the file that `tempt prepare` wrote")
    try:
        return Vocabulary.of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise TemptError(f"{path}: not a vocabulary ({error}); put back the file that `tempt prepare` wrote") from None
