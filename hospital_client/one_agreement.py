"""A hospital with raw tables answers for one agreement, and keeps in its folder which.

Under a cut or a vocabulary of one code, the number of records is how many stays have that code; two numbers under
lists that differ by a rare code tell of the few stays that have it, and counts at every minimum are exact counts. So
an agreement is one minimum, one cut and one vocabulary of that cut, and there is one number of records in it. The
first that is asked for is the hospital's, whoever asks again and however it was answered, until the hospital's
operator deletes the file.

    counts of <minimum>    a digest of the counts that were told
    cut, codes             its sizes, digest and limits; what it names
    remaining, records     a digest of what remains under the cut; the number of records that was told
    vocabulary             its sizes and digest
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared_model.errors import TemptError
from shared_model.files import locked, private_directory, read_json, write_json
from shared_model.vocabulary import digest_of

_FILE = "agreement.json"
_COUNTS = "counts of "
_NAMES = {"codes": "cut", "remaining": "cut, or from other tables", "records": "number of records"}
_LISTS = ("diagnoses", "procedures", "medications")


class Cut(NamedTuple):
    """The codes that a hospital was asked about, and the limits: stays of a code, and records of a hospital."""

    diagnoses: list[str]
    procedures: list[str]
    medications: list[int]
    minimum: int
    min_records: int

    @property
    def digest(self) -> str:
        """Equal digests mean the same codes and limits."""
        return digest_of(self.diagnoses, self.procedures, self.medications, [self.minimum, self.min_records])


def cut_of(codes: Mapping[str, Any], minimum: int, min_records: int) -> Cut:
    """The cut that a message or the file holds."""
    return Cut(**{name: list(codes[name]) for name in _LISTS}, minimum=minimum, min_records=min_records)


def sizes_and_digest(codes: Mapping[str, Any]) -> dict[str, Any]:
    """What the hospital keeps of the cut or the vocabulary that a message holds, and writes into its ledger."""
    lists: dict[str, Sequence[str] | Sequence[int]] = {name: list(codes[name]) for name in _LISTS}
    return {name: len(codes) for name, codes in lists.items()} | {"digest": digest_of(*lists.values())}


def hold_counts(folder: Path, minimum: int, digest: str) -> None:
    """Keep the counts as those that the hospital tells."""
    _hold(folder, {f"{_COUNTS}{minimum}": {"digest": digest}}, minimum=minimum)


def hold_cut(folder: Path, cut: Cut) -> None:
    """Keep the cut as the one that the hospital answers for."""
    codes = {name: list(getattr(cut, name)) for name in _LISTS}
    limits = {"minimum_count": cut.minimum, "min_records": cut.min_records}
    _hold(folder, {"cut": sizes_and_digest(codes) | limits, "codes": codes}, minimum=cut.minimum)


def hold_remaining(folder: Path, records: int, digest: str) -> None:
    """Keep what remains under the cut as what the hospital tells."""
    _hold(folder, {"remaining": {"digest": digest}, "records": {"records": records}})


def hold_vocabulary(folder: Path, codes: Mapping[str, Any]) -> Cut | None:
    """Keep the vocabulary as the one that the hospital answers for; the cut that it is of, if there was one.

    After counts without a cut, which the hospital may have missed, the vocabulary stands for it: else the number of
    records under a code that few stays have would tell, beside the counts, how many these are.
    """
    kept = _hold(folder, {"vocabulary": sizes_and_digest(codes)}, codes=codes)
    if "codes" not in kept:
        minima = _minima(kept)
        return cut_of(codes, max(minima), 1) if minima else None
    return cut_of(kept["codes"], int(kept["cut"]["minimum_count"]), int(kept["cut"]["min_records"]))


def hold_records(folder: Path, records: int) -> None:
    """Keep the number of records as the one that the hospital tells."""
    _hold(folder, {"records": {"records": records}})


def check_kept(folder: Path) -> None:
    """Refuse a damaged file before a hospital is launched with it.

    Raises:
        TemptError: the file is damaged.
    """
    if (folder / _FILE).exists():
        _read(folder / _FILE)


def check_vocabulary(folder: Path, digest: str) -> None:
    """Refuse what stands on another vocabulary than the agreed one.

    Raises:
        TemptError: the vocabulary is another one, or none was agreed on.
    """
    path = folder / _FILE
    kept = _read(path) if path.exists() else {}
    if kept.get("vocabulary", {}).get("digest") != digest:
        raise TemptError(
            f"the hospital has not agreed to this vocabulary, or no longer, as {path} says; begin another run"
        )


def _hold(
    folder: Path, asked: Mapping[str, Any], *, minimum: int | None = None, codes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Keep what is asked for, or told, if it belongs to what is kept; all that is kept then.

    Args:
        folder: the hospital's own.
        asked: each is kept once.
        minimum: that it is asked for with.
        codes: of a vocabulary.

    Raises:
        TemptError: another one is kept, the file is damaged, or another message is at work with it.
    """
    path = folder / _FILE
    private_directory(folder)
    with locked(folder / ".agreement", f"{path}: another message is at work with it"):
        kept = _read(path) if path.exists() else {}
        for what, content in asked.items():
            if what in kept and kept[what] != content:
                raise _other(path, _NAMES.get(what, what))
        new = {what: content for what, content in asked.items() if what not in kept}
        if why := _contradiction(kept, new, minimum, codes):
            raise _other(path, why)
        if new:
            write_json(path, kept | new)
        return kept | new


def _contradiction(
    kept: Mapping[str, Any], new: Mapping[str, Any], minimum: int | None, codes: Mapping[str, Any] | None
) -> str | None:
    """What of the kept agreement is another than what would be added to it; None if they are of one."""
    minima = _minima(kept)
    if not minima and "cut" in kept:
        minima = {kept["cut"]["minimum_count"]}
    if minimum is not None and minima and minimum not in minima:
        return "minimum count"
    if not minima and minimum is not None and "vocabulary" in kept:
        return "vocabulary, which was given"
    if "cut" in new and "vocabulary" in kept:
        return "vocabulary, before this cut"
    is_older = "cut" in kept and "codes" not in kept
    if is_older and ("codes" in new or "vocabulary" in new):
        return "cut, to a server of an earlier version"
    if "vocabulary" in new and codes is not None and not _is_of(codes, kept.get("codes", codes)):
        return "cut, which this vocabulary is not of"
    return None


def _minima(kept: Mapping[str, Any]) -> set[int]:
    """The minimum counts that counts were told with."""
    return {int(what.removeprefix(_COUNTS)) for what in kept if what.startswith(_COUNTS)}


def _is_of(codes: Mapping[str, Any], cut: Mapping[str, Any]) -> bool:
    """Whether a vocabulary names nothing that a cut lacks."""
    return all(set(codes[name]) <= set(cut[name]) for name in _LISTS)


def _other(path: Path, what: str) -> TemptError:
    return TemptError(f"the hospital has answered for another {what}; delete {path} to allow a new agreement")


def _read(path: Path) -> dict[str, Any]:
    """The file's content.

    Raises:
        TemptError: it is damaged.
    """
    kept = read_json(path)
    try:
        whole = all(isinstance(content, dict) for content in kept.values())
        _ = [int(what.removeprefix(_COUNTS)) for what in kept if what.startswith(_COUNTS)]
        if "cut" in kept:
            _ = [int(kept["cut"][name]) for name in ("minimum_count", "min_records")]
        if "codes" in kept:
            whole &= "cut" in kept and sizes_and_digest(kept["codes"]).items() <= kept["cut"].items()
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise TemptError(f"{path}: is damaged; delete it to allow a new agreement")
    return kept
