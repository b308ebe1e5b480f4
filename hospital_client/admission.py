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
from shared_model.errors import TemptError
from shared_model.federated_algorithm import ASKED, Algorithm
from shared_model.files import locked, private_directory, read_json, write_json
from shared_model.settings import Settings

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, RecordDict

FILE = "asked.json"
_COUNTED = {"pretrain": ("rounds", "most_rounds"), "tune": ("tunings", "most_tunings")}
_FREE = ("limit",)  # what may differ between a request and its repetition


class Counts(NamedTuple):
    """What was answered so far: different seeds, and digests of different requests."""

    seeds: list[int]
    rounds: list[str]
    tunings: list[str]


def admit(folder: Path, policy: Policy, kind: str, content: RecordDict, settings: Settings | None) -> int | None:
    """Let a request in, or refuse it.

    Args:
        settings: that it names, if it names some.

    Returns:
        its number among the different ones of its kind, from 1; None where they are not counted.

    Raises:
        Refused: the policy does not allow it; nothing was counted then.
        TemptError: the counts are damaged, or the folder can't be written to.
    """
    config = content.config_records["config"]
    if settings is not None:
        policy.check_settings(settings)
    if kind == "pretrain":
        name = str(config["algorithm"])
        found = algorithm(name)
        policy.check_round({"local_epochs": int(cast(int, config["epochs"])), **asked_numbers(config, found)})
        if found.tells_sums and not policy.unmasked_sums:
            raise Refused(f"unmasked_sums is false, and the strategy {name} asks for sums of gradients")
    if kind not in ("hello", *_COUNTED):
        return None
    return _count(folder, policy, kind, int(cast(int, config["seed"])), content)


def asked_numbers(config: ConfigRecord, of: Algorithm) -> dict[str, float]:
    """The numbers of a message that its algorithm declares."""
    return {name: float(cast(float, config[f"{ASKED}{name}"])) for name in of.asks}


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


def _count(folder: Path, policy: Policy, kind: str, seed: int, content: RecordDict) -> int | None:
    path = folder / FILE
    private_directory(folder)
    with locked(folder / ".asked", f"{path}: another message is at work with it"):
        counts, number = counts_of(folder), None
        if seed not in counts.seeds:
            _check("most_seeds", policy.most_seeds, counts.seeds)
            counts.seeds.append(seed)
        if kind in _COUNTED:
            name, most = _COUNTED[kind]
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
