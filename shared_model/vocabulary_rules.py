"""Which codes a vocabulary has: the rules of `tempt prepare`, and of hospitals that agree on one from their counts.

Both call the same functions, so that an agreement in which every code is named (`minimum_count` 1) gives the vocabulary
that `tempt prepare` makes of the same hospitals together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from shared_model.comma_lists import LARGEST

Positions = NDArray[np.int64]

MINIMUM_COUNT = 5
"""Of a hospital's stays, below which a code is not named; a server and each hospital may ask for another."""
MOST_CODES = 20_000
"""Codes of a kind that a hospital may name in an agreement, and diagnoses that all hospitals together may name."""
MOST_CHARACTERS = 200
"""Of a code or a drug name in an agreement; the longest of the open eICU demo has 147."""


class VocabularyRules(BaseModel, frozen=True, extra="forbid"):
    """What is cut; the defaults are the paper's (Section 4.1.1)."""

    min_records: int = Field(400, ge=1, le=LARGEST, description="hospitals with fewer records are left out")
    top_medications: int = Field(300, ge=1, le=LARGEST, description="the most frequent medications that are kept")
    top_procedures: int = Field(1000, ge=1, le=LARGEST, description="the most frequent procedures that are kept")


class AgreementRules(VocabularyRules, frozen=True, extra="forbid"):
    """What hospitals that agree on a vocabulary cut, and what they name at all."""

    minimum_count: int = Field(
        MINIMUM_COUNT, ge=1, le=LARGEST, description="a code that fewer of a hospital's stays have is not named"
    )


def most_frequent(frequency: Positions, count: int) -> NDArray[np.bool_]:
    """Which of the codes, in ascending order, are kept; of equally frequent ones the smaller come first.

    >>> most_frequent(np.array([1, 2, 2]), 1).tolist()
    [False, True, False]
    """
    kept = np.zeros(len(frequency), dtype=bool)
    kept[np.argsort(-frequency, kind="stable")[:count]] = True
    return kept


def most_frequent_names(code: Positions, name: Positions, count: Positions) -> tuple[Positions, Positions]:
    """Each code with its most frequent name, ties: the smallest.

    Args:
        code, name: a pair each, as positions in ascending order of codes and of names.
        count: how often the pair occurs.
    """
    order = np.lexsort((name, -count, code))
    first = order[np.unique(code[order], return_index=True)[1]]
    return code[first], name[first]


def names_of_most_hospitals(code: Positions, name: Positions) -> tuple[Positions, Positions]:
    """Each code with the name that most hospitals have for it, ties: the smallest.

    Args:
        code, name: of each hospital its codes, once each, with its own most frequent name.
    """
    pairs, hospitals = np.unique(np.stack([code, name]), axis=1, return_counts=True)
    return most_frequent_names(pairs[0], pairs[1], hospitals)


def is_code(text: object) -> bool:
    r"""Whether it is what hospitals may tell each other as a code or a drug name: one line, to be read by people.

    >>> is_code("401.9, I10"), is_code("aspirin\n"), is_code("\x1b[2J")
    (True, False, False)
    """
    return isinstance(text, str) and 0 < len(text) <= MOST_CHARACTERS and text == text.strip() and text.isprintable()


def nameless(medication: int) -> str:
    """What stands for the name of a medication that never has one."""
    return f"HICL {medication}"
