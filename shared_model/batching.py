"""A batch of code sets as a few dense blocks: the sets lie end to end in blocks of 64 slots, nothing is padded to 101.

Linear layers and attention share the layout; a mask by owner keeps sets from seeing each other. On eICU's sizes 4% of
the slots stay empty, where padding every set to 101 leaves 94% empty.

Rows of the token table: [CLS], [MASK], E_d, E_p (Section 3.2.1), then prompts (Section 3.4).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shared_model.records import CodeSets

CLS = 0
MASK = 1
FIRST_DIAGNOSIS = 2

_SLOTS = 64
_SLOT_STEP = 32


@dataclass(frozen=True)
class TokenRows:
    """Where each kind of token stands in the token table."""

    diagnoses: int
    procedures: int

    @property
    def first_procedure(self) -> int:
        return FIRST_DIAGNOSIS + self.diagnoses

    @property
    def first_prompt(self) -> int:
        return self.first_procedure + self.procedures


@dataclass(frozen=True)
class PackedSets:
    """Sets of tokens in blocks.

    Attributes:
        distinct: the rows of the token table that occur, ascending.
        token: for each slot its place in `distinct`; empty slots hold some token that nothing reads.
        owner: for each slot its set, -1 where empty.
        cls_slot: each set's [CLS], as block * slots + slot.
        member: the sets of each block, -1 beyond their number.
        member_place: where each set stands in `member`, flat.
    """

    distinct: Int[Tensor, " distinct"]
    token: Int[Tensor, "blocks slots"]
    owner: Int[Tensor, "blocks slots"]
    cls_slot: Int[Tensor, " sets"]
    member: Int[Tensor, "blocks members"]
    member_place: Int[Tensor, " sets"]

    @property
    def sees(self) -> Bool[Tensor, "blocks slots slots"]:
        """Which slot attends to which: those of its own set."""
        return self.owner[:, :, None] == self.owner[:, None, :]

    @property
    def cls_sees(self) -> Bool[Tensor, "blocks members slots"]:
        """Which slot each [CLS] attends to; a missing member sees all, so that its softmax is finite."""
        own = self.owner[:, None, :] == self.member[:, :, None]
        return own | (self.member < 0)[:, :, None]


def code_tokens(sets: CodeSets, first_row: int) -> CodeSets:
    """Codes of one modality as rows of the token table."""
    return CodeSets(sets.codes + first_row, sets.offsets)


def pack(parts: list[CodeSets], prompts: list[Int[Tensor, " prompts"]] | None = None) -> PackedSets:
    """Lay the sets of every part end to end in blocks, each behind its [CLS] and its part's prompts.

    Args:
        parts: rows of the token table, one part a modality.
        prompts: rows of the prompts that each part's sets begin with.
    """
    device = parts[0].codes.device
    heads = [
        torch.cat([torch.tensor([CLS], device=device), prompts[part]])
        if prompts
        else torch.tensor([CLS], device=device)
        for part in range(len(parts))
    ]
    lengths = torch.cat([part.lengths + len(head) for part, head in zip(parts, heads, strict=True)])
    rows = torch.cat([_with_heads(part, head) for part, head in zip(parts, heads, strict=True)])
    slots, blocks, starts, members = _assign(lengths.tolist())

    start = torch.tensor(starts, dtype=torch.int64, device=device)  # sets; block * slots + slot
    owner = torch.repeat_interleave(lengths, output_size=len(rows))  # tokens; the set of each
    first = lengths.cumsum(0) - lengths  # sets; each one's first token
    slot = (start - first)[owner] + torch.arange(len(rows), device=device)  # tokens

    distinct, place = torch.unique(rows, return_inverse=True)
    token = torch.zeros(blocks * slots, dtype=torch.int64, device=device)
    token[slot] = place
    owners = torch.full((blocks * slots,), -1, dtype=torch.int64, device=device)
    owners[slot] = owner

    block = torch.div(start, slots, rounding_mode="floor")  # sets
    width = max(members, default=1)
    order = torch.argsort(block, stable=True)
    counts = torch.tensor(members, dtype=torch.int64, device=device)  # blocks
    rank = torch.arange(len(order), device=device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)  # sets
    member_place = torch.empty_like(start)
    member_place[order] = block[order] * width + rank
    member = torch.full((blocks * width,), -1, dtype=torch.int64, device=device)
    member[member_place] = torch.arange(len(start), device=device)
    return PackedSets(
        distinct=distinct,
        token=token.view(blocks, slots),
        owner=owners.view(blocks, slots),
        cls_slot=start,
        member=member.view(blocks, width),
        member_place=member_place,
    )


def _with_heads(part: CodeSets, head: Int[Tensor, " head"]) -> Int[Tensor, " tokens"]:
    """The part's tokens with `head` before each set."""
    tokens = torch.empty(len(part.codes) + len(head) * len(part), dtype=torch.int64, device=part.codes.device)
    owner = torch.repeat_interleave(part.lengths, output_size=len(part.codes))
    place = torch.arange(len(part.codes), device=part.codes.device) + (owner + 1) * len(head)
    tokens[place] = part.codes
    first = part.offsets[:-1] + torch.arange(len(part), device=part.codes.device) * len(head)
    tokens[first[:, None] + torch.arange(len(head), device=part.codes.device)] = head
    return tokens


def _assign(lengths: list[int]) -> tuple[int, int, list[int], list[int]]:
    """Longest first, each set goes to the block with the most room left: full blocks of about equally many sets.

    Equal numbers matter to the last layer, whose [CLS] queries are padded to the most that a block has. This is a heap
    operation a set, 60 microseconds for a batch whose step takes 40 milliseconds.

    Returns:
        slots of a block, blocks, each set's start (block * slots + slot), each block's number of sets.
    """
    slots = max(_SLOTS, -(-max(lengths, default=0) // _SLOT_STEP) * _SLOT_STEP)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    blocks = -(-sum(lengths) // slots)
    while True:
        starts, members = [0] * len(lengths), [0] * blocks
        used = [(0, block) for block in range(blocks)]
        for i in order:
            filled, block = used[0]
            if filled + lengths[i] > slots:
                break
            starts[i] = block * slots + filled
            members[block] += 1
            heapq.heapreplace(used, (filled + lengths[i], block))
        else:
            return slots, blocks, starts, members
        blocks += 1
