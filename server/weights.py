"""As how many records a hospital counts: what it says of itself, which nobody else can see, up to a bound.

A mean over records gives all weight to whoever tells the largest number. So in a deployment no hospital counts for more
than a share of all, or for more than the number of records that the operator vouches for (`--most-records`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from server.exchange import Hospital

LARGEST_SHARE = 0.49
"""Of all records, that one hospital counts for without a word of the operator.

Just under half: whoever weighs as much as all others together decides alone, and hospitals that are merely large are
rarely so large. Of two hospitals a bound would leave nothing but equal weights, so there is none.
"""
_FEW = 10  # validation or test records, that always count
_KINDS = {"train": "training", "validation": "validation", "test": "test"}


def counted(
    hospitals: Sequence[Hospital], most_records: int | None, largest_share: float | None
) -> dict[int, Hospital]:
    """Each hospital with the numbers of records that it counts with.

    Args:
        most_records: that one hospital counts with; then no share bounds it.
        largest_share: of all training records; None where the server knows what hospitals hold.
    """
    told = [h.train for h in hospitals]
    most = most_records
    if most is None:
        if largest_share is None:
            return {h.hospital: h for h in hospitals}
        most = most_of(told, largest_share)
    return {h.hospital: _within(h, max(told, default=0) if most is None else most) for h in hospitals}


def _within(hospital: Hospital, most: int) -> Hospital:
    """A hospital with no more training records than that, and others in their proportion."""
    train = min(hospital.train, most)
    # The split makes an eighth of each kind; twice that, and small numbers, are within what whole records make of it
    # One that has too few training records for its own policy tells none, and the largest that count stand for them.
    others = max(_FEW, (train or most) // 4)
    return replace(hospital, train=train, validation=min(hospital.validation, others), test=min(hospital.test, others))


def _can_be_bounded(told: Collection[int], share: float) -> bool:
    """Whether each can have no more than a share: not where hospitals x share is below 1."""
    return sum(records > 0 for records in told) * share >= 1


def most_of(told: Collection[int], share: float) -> int | None:
    """The records that a hospital counts with at most, so that none has more than a share of what all count with.

    None if nobody has more, or if no bound can make it true.
    """
    if not _can_be_bounded(told, share):
        return None
    sizes = sorted((records for records in told if records), reverse=True)
    for larger, size in enumerate(sizes):
        # `larger` hospitals count with the bound, the others as they say: bound = share (larger bound + others)
        # rounded up a little: 49 of 51, though 0.49 / 0.51 * 51 is below
        bound = share * sum(sizes[larger:]) / (1 - larger * share) * (1 + 1e-12)
        if size <= bound:
            return int(bound) if larger else None
    raise AssertionError("the smallest hospital's records are within the bound")


def bounded(told: Sequence[Hospital], counts: Mapping[int, Hospital]) -> dict[str, dict[str, dict[str, int]]]:
    """The hospitals that count with fewer records than they tell: by id and kind, how many each."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for hospital in told:
        for kind in _KINDS:
            says, counts_as = getattr(hospital, kind), getattr(counts[hospital.hospital], kind)
            if counts_as < says:
                found.setdefault(str(hospital.hospital), {})[kind] = {"told": says, "counted": counts_as}
    return found


def in_words(
    found: Mapping[str, Mapping[str, Mapping[str, int]]], most_records: int | None, largest_share: float | None
) -> list[str]:
    """A line for each hospital that is bounded."""
    why = (
        f"one hospital's most are --most-records {most_records:,}"
        if most_records is not None
        else f"no hospital counts for more than {largest_share or 1:.0%} of all without --most-records"
    )
    lines = []
    for hospital, kinds in found.items():
        numbers = ", ".join(
            f"{_KINDS[kind]} records {of['told']:,}, counted {of['counted']:,}" for kind, of in kinds.items()
        )
        lines.append(f"hospital {hospital} tells more than it counts for: {numbers}; {why}")
    return lines
