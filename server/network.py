"""Who may take part in a deployment, who does, and what everybody may know of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.control import NAME, Control
from server.front import SCRATCH
from server.told import STATUS, read_status
from shared_model.errors import TemptError
from shared_model.file_forms import Form, Id, read_form
from shared_model.files import locked, private_directory, write_json
from shared_model.node_keys import binding, fingerprint, read_public
from shared_model.own_folder import FolderKind, check_folder
from shared_model.shipped_code import code_digest

_REGISTERED = "registered.json"
SERVER_FOLDER = FolderKind(
    "server",
    "`tempt server launch`",
    ("app", "flower", "logs", "told", _REGISTERED, "superlink.db", STATUS, "front.conf", "front.pid", *SCRATCH),
    ("flower/config.toml", f"[superlink.{NAME}]"),
    SCRATCH,
)


class _Key(Form):
    node: str
    key: str
    binding: str


_Keys = dict[Id, _Key]


class _Facts(Form):
    vocabulary: str | None


@dataclass(frozen=True)
class Network:
    """A deployment's folder beside its run directory, and the SuperLink that uses it."""

    own: Path
    control: Control

    @classmethod
    def of_run(cls, run: Path) -> Network:
        """The network of a run that `tempt server launch` has begun.

        Raises:
            TemptError: there is none, or other users could change it.
        """
        own = own_folder(run)
        if not (own / "flower" / "config.toml").is_file():
            raise TemptError(f"{own}: no server was launched with --out {run}; `tempt server launch` makes the folder")
        check_folder(own, SERVER_FOLDER)
        return cls(own, Control.of_home(own / "flower"))

    def registered(self) -> dict[str, dict[str, str]]:
        """Flower's number, the key's fingerprint and its binding of each registered hospital, by id."""
        path = self.own / _REGISTERED
        return read_form(path, _Keys, "put a copy of it back, or begin anew") if path.exists() else {}

    def register(self, public: Path, hospital: int, *, replace: bool = False) -> bool:
        """Bind a key to a hospital's id, the only name that the server believes; False if it is bound already.

        Args:
            replace: take the hospital's older key out.

        Raises:
            TemptError: the key is none, or another's, or the hospital has another one.
        """
        taken = f"{self.own}: another command registers a key there; wait for its end and try again"
        with locked(self.own / ".registering", taken):
            return self._register(public, hospital, replace=replace)

    def _register(self, public: Path, hospital: int, *, replace: bool) -> bool:
        key, known = read_public(public), self.registered()
        mark = fingerprint(key)
        whose = next((int(other) for other, found in known.items() if found["key"] == mark), None)
        if whose == hospital:
            return False
        if whose is not None:
            raise TemptError(f"{public}: this key is hospital {whose}'s; each hospital has a key of its own")
        older = known.get(str(hospital))
        if older is not None and not replace:
            raise TemptError(f"{public}: hospital {hospital} has another key; --replace takes that one out")
        if older is not None and older["node"] in self.control.nodes():
            self.control.unregister(older["node"])
        node = self.control.register(public, hospital)
        if node is None:
            # Flower took the key, and whoever asked for it was killed before it could write that down
            strange = self.control.nodes().keys() - {found["node"] for found in known.values()}
            if len(strange) != 1:
                raise TemptError(
                    f"{public}: Flower has this key, and {len(strange)} nodes that nobody here has written down; "
                    f"delete {self.own} and begin anew"
                )
            (node,) = strange
        write_json(
            self.own / _REGISTERED,
            known | {str(hospital): {"node": node, "key": mark, "binding": binding(hospital, key)}},
        )
        return True

    def publish(self, vocabulary: str | None) -> None:
        """Write what everybody may read, for `tempt hospital check`.

        Args:
            vocabulary: the agreed vocabulary's digest, where there is one.
        """
        known = self.registered().values()
        keys, bindings = (sorted(found[name] for found in known) for name in ("key", "binding"))
        versions = {name: importlib.metadata.version(name) for name in ("tempt", "flwr", "torch")}
        private_directory(facts_file(self.own).parent)
        content = {
            "versions": versions,
            "code": code_digest(),
            "vocabulary": vocabulary,
            "keys": keys,
            "bindings": bindings,
        }
        write_json(facts_file(self.own), content)

    def republish(self) -> None:
        """Write it anew with the keys that are registered now."""
        path = facts_file(self.own)
        if path.exists():
            self.publish(read_form(path, _Facts, "launch the server again, which writes it anew")["vocabulary"])

    def status(self) -> tuple[bool, dict[str, dict[str, Any]], list[str], dict[str, Any] | None]:
        """Whether the server answers, each hospital's part, the lines that the run has told, and how it has ended."""
        running = self.control.answers()
        online: dict[str, str] | None = None
        with suppress(TemptError):
            online = self.control.nodes() if running else None
        path = self.own / STATUS  # read last: a run that ends meanwhile has ended
        told: Mapping[str, Any] = read_status(path) if path.exists() else {"hospitals": {}, "lines": []}
        rows: dict[str, dict[str, Any]] = {}
        known = self.registered()
        for hospital in sorted(known.keys() | told["hospitals"].keys(), key=int):
            part = dict(told["hospitals"].get(hospital, {}))
            node = str(part.get("node") or known.get(hospital, {}).get("node", ""))
            rows[hospital] = part | {"state": "-" if online is None else online.get(node, "offline")}
        return running, rows, list(told["lines"]), told.get("ended")


def own_folder(run: Path) -> Path:
    """Where a run's server keeps its database, Flower's files and its logs: beside the run directory."""
    return run.parent / f"{run.name}.server"


def facts_file(own: Path) -> Path:
    """What everybody may read of a network."""
    return own / "told" / "facts.json"


def status_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each hospital's part, a line each."""
    lines = [f"{'Hospital':>9}  {'State':<13}{'Records':>8}{'Last round':>12}{'Missed':>8}{'Rejected':>10}"]
    for hospital, row in rows.items():
        numbers = [str(row.get(name, "-")) for name in ("records", "last_round", "missed")]
        rejected = row.get("rejected", [])
        line = f"{hospital:>9}  {row['state']:<13}{numbers[0]:>8}{numbers[1]:>12}{numbers[2]:>8}"
        lines.append(line + f"{len(rejected) if 'rejected' in row else '-':>10}")
        lines += [f"{'':>11}{why}" for why in rejected[-1:]]
    return lines
