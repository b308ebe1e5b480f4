"""Packed sets read back slot by slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.batching import CLS, FIRST_DIAGNOSIS, MASK, PackedSets, TokenRows, code_tokens, pack
from shared_model.records import CodeSets


def contents(packed: PackedSets) -> list[list[int]]:
    """Each set's token rows in slot order, by the owner of every slot."""
    rows = packed.distinct[packed.token].flatten().tolist()
    sets: list[list[int]] = [[] for _ in range(len(packed.cls_slot))]
    for slot, owner in enumerate(packed.owner.flatten().tolist()):
        if owner >= 0:
            sets[owner].append(rows[slot])
    return sets


def check_layout(packed: PackedSets) -> None:
    """What every reader of a `PackedSets` relies on, in plain loops."""
    blocks, slots = packed.owner.shape
    owner, rows = packed.owner.flatten().tolist(), packed.distinct[packed.token].flatten().tolist()
    assert slots >= 64 and slots % 32 == 0
    assert packed.distinct.tolist() == sorted(set(packed.distinct.tolist()))
    for number, start in enumerate(packed.cls_slot.tolist()):
        assert owner[start] == number and rows[start] == CLS
        places = [slot for slot, own in enumerate(owner) if own == number]
        assert len({slot // slots for slot in places}) == 1, "a set lies in one block"
        assert places == list(range(start, start + len(places))), "a set's slots are adjacent, [CLS] first"
    for block, members in enumerate(packed.member.tolist()):
        inside = {own for own in owner[block * slots : (block + 1) * slots] if own >= 0}
        assert inside == {member for member in members if member >= 0}
    flat = packed.member.flatten().tolist()
    assert [flat[place] for place in packed.member_place.tolist()] == list(range(len(packed.cls_slot)))
    assert sum(member >= 0 for member in flat) == len(packed.cls_slot)
    assert packed.sees.shape == (blocks, slots, slots)


def test_token_rows_of_a_vocabulary_are_cls_mask_diagnoses_procedures_prompts() -> None:
    rows = TokenRows(diagnoses=5, procedures=7)
    assert (CLS, MASK, FIRST_DIAGNOSIS, rows.first_procedure, rows.first_prompt) == (0, 1, 2, 7, 14)


def test_code_tokens_of_procedures_start_at_their_first_row() -> None:
    assert code_tokens(CodeSets.of([[0, 6], [], [3]]), 7).lists() == [[7, 13], [], [10]]


def test_pack_of_two_parts_holds_cls_and_codes_of_each_set() -> None:
    packed = pack([CodeSets.of([[2, 4], [3]]), CodeSets.of([[9], []])])

    assert contents(packed) == [[0, 2, 4], [0, 3], [0, 9], [0]]
    assert packed.distinct.tolist() == [0, 2, 3, 4, 9]
    check_layout(packed)


def test_pack_with_prompts_gives_each_part_its_own() -> None:
    packed = pack(
        [CodeSets.of([[2, 4], [3]]), CodeSets.of([[9], []])], [torch.tensor([20, 21]), torch.tensor([22, 23])]
    )

    assert [sorted(rows) for rows in contents(packed)] == [
        [0, 2, 4, 20, 21],
        [0, 3, 20, 21],
        [0, 9, 22, 23],
        [0, 22, 23],
    ]
    assert packed.distinct[-4:].tolist() == [20, 21, 22, 23], "prompts end the distinct rows, in their order"
    check_layout(packed)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 130), min_size=1, max_size=12), min_size=1, max_size=2),
    prompts=st.integers(0, 3),
)
def test_pack_of_any_lengths_loses_and_mixes_nothing(parts: list[list[int]], prompts: int) -> None:
    """Lengths from 0 to 130 codes; every set has its own rows, so that a swap or a leak shows."""
    first = 2
    sets: list[list[list[int]]] = []
    for lengths in parts:
        sets.append([])
        for length in lengths:
            sets[-1].append(list(range(first, first + length)))
            first += length
    prompt_rows = [torch.arange(prompts) + first + part * prompts for part in range(len(parts))]

    packed = pack([CodeSets.of(part) for part in sets], prompt_rows)

    expected = [[CLS, *codes, *prompt_rows[part].tolist()] for part, of_part in enumerate(sets) for codes in of_part]
    assert [sorted(rows) for rows in contents(packed)] == [sorted(rows) for rows in expected]
    check_layout(packed)
    longest = max(map(len, expected))
    assert packed.owner.shape[1] == max(64, -(-longest // 32) * 32)


def test_sees_is_within_the_own_set_alone() -> None:
    packed = pack([CodeSets.of([[2, 4], [3], []])])
    owner = packed.owner[0].tolist()

    sees = packed.sees[0]

    assert len(packed.owner) == 1
    for query in range(64):
        for key in range(64):
            assert bool(sees[query, key]) == (owner[query] == owner[key])


def test_cls_sees_its_own_set_and_a_missing_member_sees_all() -> None:
    """30 and 31 codes fill a block of 64 with their [CLS]; 62 fill another, which has one member less."""
    packed = pack([CodeSets.of([list(range(2, 32)), list(range(2, 33)), list(range(2, 64))])])
    assert packed.member.shape == (2, 2)

    for block, members in enumerate(packed.member.tolist()):
        for place, member in enumerate(members):
            expected = [member < 0 or own == member for own in packed.owner[block].tolist()]
            assert packed.cls_sees[block, place].tolist() == expected


@pytest.mark.parametrize("longest, slots", [(0, 64), (63, 64), (64, 96), (95, 96), (96, 128), (101, 128)])
def test_pack_when_a_set_is_longer_than_a_block_widens_all_blocks(longest: int, slots: int) -> None:
    packed = pack([CodeSets.of([list(range(2, 2 + longest)), [5]])])
    assert packed.owner.shape[1] == slots
    check_layout(packed)


def test_pack_of_sets_of_usual_size_leaves_few_slots_empty() -> None:
    """64 records with 3.4 and 7.2 codes on average: at most 10% empty, where padding to 101 leaves 94%."""
    lengths = [[1, 1, 2, 2, 3, 4, 5, 9] * 8, [1, 2, 3, 4, 6, 8, 12, 22] * 8]
    packed = pack([CodeSets.of([list(range(2, 2 + n)) for n in part]) for part in lengths])
    assert float((packed.owner < 0).double().mean()) < 0.1


def test_pack_of_one_empty_set_is_cls_alone() -> None:
    packed = pack([CodeSets.of([[]])])
    assert contents(packed) == [[CLS]]
    assert packed.cls_slot.tolist() == [0]
