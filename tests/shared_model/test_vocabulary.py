"""Positions, digest and file of a vocabulary."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_model.errors import TemptError
from shared_model.vocabulary import Vocabulary, read_vocabulary, write_vocabulary

VOCABULARY = Vocabulary(
    diagnoses=("401.9, I10", "486, J18.9", "518.81, J96.00"),
    procedures=("pulmonary|ventilation|mechanical", "renal|dialysis|hemodialysis"),
    medications=(1694, 2812, 37442),
    medication_names=("ASPIRIN", "METOPROLOL", "INSULIN"),
)


def test_position_of_a_code_is_its_place_in_its_own_list() -> None:
    assert VOCABULARY.position("diagnoses", "486, J18.9") == 1
    assert VOCABULARY.position("diagnoses", "  401.9, I10 ") == 0
    assert VOCABULARY.position("procedures", "renal|dialysis|hemodialysis") == 1
    assert VOCABULARY.position("medications", "37442") == 2


def test_position_of_an_unknown_code_names_the_nearest() -> None:
    with pytest.raises(TemptError) as error:
        VOCABULARY.position("diagnoses", "518.81, J96.0")
    assert str(error.value) == (
        "diagnoses: the vocabulary has no code '518.81, J96.0'; the nearest is '518.81, J96.00'"
    )
    with pytest.raises(TemptError, match="the nearest is 'renal"):
        VOCABULARY.position("procedures", "renal|dialysis")


@pytest.mark.parametrize(
    ("code", "near"),
    [("RENAL|Dialysis|hemodialysis", "renal|dialysis|hemodialysis"), ("hemodialysis", "renal|dialysis|hemodialysis")],
)
def test_position_of_a_code_in_other_letters_or_of_a_part_of_one_names_it(code: str, near: str) -> None:
    with pytest.raises(TemptError, match=f"the nearest is '{re.escape(near)}'"):
        VOCABULARY.position("procedures", code)


def test_position_of_a_code_that_none_is_near_names_none() -> None:
    with pytest.raises(TemptError) as error:
        VOCABULARY.position("procedures", "xyz")
    assert str(error.value) == "procedures: the vocabulary has no code 'xyz'"


def test_position_in_an_empty_list_is_an_error_without_a_nearest() -> None:
    with pytest.raises(TemptError) as error:
        Vocabulary((), (), (), ()).position("diagnoses", "486")
    assert str(error.value) == "diagnoses: the vocabulary has no code '486'"


def test_digest_of_the_three_lists_is_sha_256_of_their_json() -> None:
    small = Vocabulary(("a",), ("b", "c"), (1,), ("M",))
    assert small.digest == hashlib.sha256(b'[["a"],["b","c"],[1]]').hexdigest()
    assert replace(small, medication_names=("other",)).digest == small.digest


def test_digest_changes_with_order_and_with_the_list_that_holds_a_code() -> None:
    digests = [
        Vocabulary(("a", "b"), ("c",), (1,), ("M",)).digest,
        Vocabulary(("b", "a"), ("c",), (1,), ("M",)).digest,
        Vocabulary(("a",), ("b", "c"), (1,), ("M",)).digest,
        Vocabulary(("a", "b"), ("c",), (2,), ("M",)).digest,
        Vocabulary(("a,b",), ("c",), (1,), ("M",)).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_vocabulary_with_names_of_another_number_is_refused() -> None:
    with pytest.raises(ValueError, match="3 medications but 1 names"):
        replace(VOCABULARY, medication_names=("ASPIRIN",))


words = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=5, unique=True).map(tuple)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    diagnoses=words,
    procedures=words,
    medications=st.dictionaries(st.integers(0, 10**6), st.text(max_size=5), max_size=5),
)
def test_vocabulary_written_and_read_is_equal(
    diagnoses: tuple[str, ...], procedures: tuple[str, ...], medications: dict[int, str], tmp_path: Path
) -> None:
    expected = Vocabulary(diagnoses, procedures, tuple(medications), tuple(medications.values()))
    write_vocabulary(tmp_path / "vocabulary.json", expected)
    found = read_vocabulary(tmp_path / "vocabulary.json")
    assert found == expected
    assert found.digest == expected.digest


@pytest.mark.parametrize(
    "content, found",
    [
        ({"diagnoses": [], "procedures": [], "medications": []}, "medication_names"),
        ({"diagnoses": [], "procedures": [], "medications": ["x"], "medication_names": ["X"]}, "'x'"),
        ({"diagnoses": [], "procedures": [], "medications": [1], "medication_names": []}, "1 medications but 0 names"),
        ({"diagnoses": None, "procedures": [], "medications": [], "medication_names": []}, "NoneType"),
    ],
)
def test_read_vocabulary_of_something_else_is_one_line_that_says_why(
    content: dict[str, object], found: str, tmp_path: Path
) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TemptError) as error:
        read_vocabulary(path)
    assert str(error.value).startswith(f"{path}: not a vocabulary (")
    assert found in str(error.value) and "\n" not in str(error.value)


def test_read_vocabulary_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(TemptError) as error:
        read_vocabulary(tmp_path / "vocabulary.json")
    assert str(error.value).startswith(f"{tmp_path / 'vocabulary.json'}: no such file; expected the vocabulary that")


@pytest.mark.parametrize(
    ("name", "codes", "found"),
    [
        ("medications", "[Infinity]", "can't be read as JSON: Infinity is no number of JSON"),
        ("medications", "[-Infinity]", "can't be read as JSON: -Infinity is no number of JSON"),
        ("medications", "[NaN]", "can't be read as JSON: NaN is no number of JSON"),
        ("medications", "[1e400]", "can't be read as JSON: 1e400 is no number of JSON"),
        ("medications", "[2812.5]", "found the code 2812.5, expected a whole number of at most 64 bits"),
        ("medications", "[true]", "found the code True, expected a whole number of at most 64 bits"),
        ("medications", "[null]", "found the code None, expected a whole number of at most 64 bits"),
        ("medications", "[[1]]", "found the code [1], expected a whole number of at most 64 bits"),
        ("medications", '["1e5"]', "found the code '1e5', expected a whole number of at most 64 bits"),
        ("medications", "[9223372036854775808]", "found the code 9223372036854775808, expected a whole number"),
        ("medications", f"[{'9' * 4000}]", f"found the code {'9' * 40}, expected a whole number"),
        ("medications", "7", "expected lists of codes, found int"),
        ("diagnoses", "[null]", "found the code None, expected a text"),
        ("procedures", "[3]", "found the code 3, expected a text"),
        ("procedures", '"a|b"', "expected lists of codes, found str"),
        ("procedures", '["\\ud800"]', "'utf-8' codec can't encode character '\\ud800'"),
        ("medication_names", "[1e400]", "can't be read as JSON: 1e400 is no number of JSON"),
    ],
)
def test_vocabulary_file_with_what_is_no_code_is_refused(tmp_path: Path, name: str, codes: str, found: str) -> None:
    path = tmp_path / "vocabulary.json"
    content = {"diagnoses": '["a"]', "procedures": '["b"]', "medications": "[1]", "medication_names": '["M"]'}
    path.write_text("{" + ", ".join(f'"{key}": {value}' for key, value in (content | {name: codes}).items()) + "}")
    with pytest.raises(TemptError) as error:
        read_vocabulary(path)
    told = str(error.value).removeprefix(f"{path}: ").removeprefix("not a vocabulary (")
    assert told.startswith(found)


def test_vocabulary_file_with_the_largest_and_smallest_medications_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    codes = f"{-(2**63)}, -0, {2**63 - 1}"
    path.write_text(
        f'{{"diagnoses": [], "procedures": [], "medications": [{codes}], "medication_names": ["", "", ""]}}'
    )
    assert read_vocabulary(path).medications == (-(2**63), 0, 2**63 - 1)
