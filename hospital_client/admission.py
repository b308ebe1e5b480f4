"""What a server asks of a deployed hospital, held against the hospital's policy and counted before any work.

Counts stand in `asked.json` in the hospital's folder and go over all experiments, whose names a server makes up. A
request that came before is answered again at no cost: after a kill both sides repeat what was under way, bit by bit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hospital_client import policy as policies
from hospital_client.policy import Policy, Refused, read_policy
from shared_model.algorithms import algorithm
from shared_model.errors import TemptError, printable
from shared_model.federated_algorithm import Algorithm
from shared_model.files import locked, private_directory, read_json, write_json
from shared_model.messages import OfSeed, Pretrain, Request, Tune

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, RecordDict

FILE = "asked.json"
_COUNTED = {Pretrain: ("rounds", "most_rounds"), Tune: ("tunings", "most_tunings")}
_FREE = ("limit",)  # what may differ between a request and its repetition


class Counts(NamedTuple):
    """What was answered so far: different seeds, and digests of different requests."""

    seeds: list[int]
    rounds: list[str]
    tunings: list[str]


def admit(folder: Path, policy: Policy, request: Request, content: RecordDict) -> int | None:
    """Let a request in, or refuse it.

    Args:
        content: all of the message that the request is of.

    Returns:
        its number among the different ones of its kind, from 1; None where they are not counted.

    Raises:
        Refused: the policy does not allow it; nothing was counted then.
        TemptError: the counts are damaged, or the folder can't be written to.
    """
    if not isinstance(request, OfSeed):
        return None
    policy.check_settings(request.settings)
    if isinstance(request, Pretrain):
        found = algorithm(request.algorithm)
        policy.check_round({**asked_numbers(request, found), "local_epochs": request.epochs})
        if found.tells_sums and not policy.unmasked_sums:
            raise Refused(f"unmasked_sums is false, and the strategy {request.algorithm} asks for sums of gradients")
    return _count(folder, policy, request, content)


def asked_numbers(request: Pretrain, of: Algorithm) -> dict[str, float]:
    """The numbers of a message, which are those that its algorithm declares.

    Raises:
        ValueError: one is missing, or there is another one.
    """
    if strange := sorted(request.asked.keys() ^ of.asks.keys()):
        raise ValueError(f"the number '{printable(strange[0], 40)}' is asked or declared, expected both")
    return dict(request.asked)


def counts_of(folder: Path) -> Counts:
    """What a hospital was asked so far.

    Raises:
        TemptError: the file is damaged.
    """
    path = folder / FILE
    content = read_json(path) if path.exists() else {}
    found = Counts(*(content.get(name, []) for name in Counts._fields))
    for kind, values in zip((int, str, str), found, strict=True):
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise TemptError(f"{path}: holds no counts of requests; delete it to count anew")
    return found


def summary(folder: Path) -> str:
    """A hospital's policy on one line: how much of it was used, and what of the accepted settings is not the default.

    Raises:
        TemptError: the policy or the counts are damaged.
    """
    policy, counts, path = read_policy(folder), counts_of(folder), folder / policies.FILE
    used = {"most_rounds": len(counts.rounds), "most_seeds": len(counts.seeds), "most_tunings": len(counts.tunings)}
    found = []
    for name, value in policy:
        if isinstance(value, bool):
            found.append(f"{name} {'on' if value else 'off'}")
        elif isinstance(value, int):
            found.append(f"{name} {value}" + (f" ({used[name]} answered)" if name in used else ""))
    changed = [key for key in policy.changed() if "." in key.partition(" ")[0]]
    settings = f"the default settings but for {', '.join(changed)}" if changed else "the default settings"
    where = path if path.exists() else f"{path}, which launch will write"
    return f"{where}: {', '.join(found)}; accepted: {settings}"


def _count(folder: Path, policy: Policy, request: OfSeed, content: RecordDict) -> int | None:
    path, seed = folder / FILE, request.seed
    private_directory(folder)
    with locked(folder / ".asked", f"{path}: another message is at work with it"):
        counts, number = counts_of(folder), None
        if seed not in counts.seeds:
            _check("most_seeds", policy.most_seeds, counts.seeds)
            counts.seeds.append(seed)
        if type(request) in _COUNTED:
            name, most = _COUNTED[type(request)]
            known, digest = cast(list[str], getattr(counts, name)), _digest(content)
            if digest not in known:
                _check(most, cast(int, getattr(policy, most)), known)
                known.append(digest)
            number = known.index(digest) + 1
        write_json(path, counts._asdict())
    return number


def _check(name: str, most: int, answered: list[Any]) -> None:
    if len(answered) >= most:
        raise Refused(f"{name} is {most}, and so many were answered")


def _digest(content: RecordDict) -> str:
    """SHA-256 of all that an answer depends on."""
    digest = hashlib.sha256()
    for name, record in sorted(content.array_records.items()):
        for key in sorted(record):
            array = record[key]
            digest.update(json.dumps([name, key, array.dtype, list(array.shape), len(array.data)]).encode())
            digest.update(array.data)
    for name, config in sorted(content.config_records.items()):
        digest.update(json.dumps([name, _asked(config)], sort_keys=True).encode())
    return digest.hexdigest()


def _asked(config: ConfigRecord) -> dict[str, Any]:
    return {key: repr(value) for key, value in config.items() if key not in _FREE}
