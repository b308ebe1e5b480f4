"""A run's directory: made in one step, held by one process at a time, gone on with only by the same options."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shared_model.errors import TemptError
from shared_model.file_forms import ComparedConfig, read_form
from shared_model.files import check_place, locked, new_directory, remove_leftovers, write_json, write_text

CONFIG = "config.json"
VOCABULARY = "vocabulary.json"
DATASET = "dataset"
CODE = "code"  # in a run's config: a digest of each file of the code that it was begun with

_README = """This directory was made from patients' records. It holds models fitted to them, the records themselves
where it has a folder `dataset`, and with --save-scores what each patient was given and recommended. Only those who
may read the records may read it; its mode is 0700.
"""
# What may differ between a run and its resumption without changing a bit of its results.
_INCIDENTAL = ("command", "versions", "data", CODE)
# What a run has by the way it was asked for; any other field that it lacks is newer than it.
_OPEN = ("agreement.", "federation.options.", "federation.most_records")
# Of the versions only this one may change bits.
_DECISIVE = "torch"


def create(directory: Path, fill: Callable[[Path], Mapping[str, Any]], *, force: bool) -> None:
    """Make a run directory that is there whole or not at all.

    Args:
        fill: puts what the run needs into the directory it is given, and returns the run's config.
        force: replace an older run.

    Raises:
        TemptError: the place is taken or can't be written to; nothing was changed there.
    """
    check_place(directory, mark=CONFIG, force=force)
    with ExitStack() as stack:
        if (directory / CONFIG).is_file():
            stack.enter_context(held(directory))  # nobody works on the run that is to be replaced, until it is
        beside = stack.enter_context(new_directory(directory, mark=CONFIG, force=force))
        config = fill(beside)
        write_json(beside / CONFIG, config)
        write_text(beside / "README.txt", _README)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a run directory for this process alone, free of what a killed process had begun to write.

    Raises:
        TemptError: there is no run, or another process holds it.
    """
    if not (directory / CONFIG).is_file():
        raise TemptError(f"{directory}: has no {CONFIG}; there is no run to resume, leave --resume out to begin one")
    taken = f"{directory}: another process is at work on this run; wait for it or end it"
    with locked(directory / ".lock", taken):
        remove_leftovers(directory)
        yield


def seed_folder(run: Path, seed: int) -> Path:
    """Where a run keeps the models of a seed; of a hospital's own folder with all that an answer from them needs."""
    return run / "checkpoints" / f"seed-{seed}"


def compare(directory: Path, config: Mapping[str, Any]) -> None:
    """Compare a run's config with that of a command that is to resume it.

    Raises:
        TemptError: they differ; the first difference is named with both values, or of the code the file.
    """
    path, run = directory / CONFIG, config_of(directory)
    if CODE in config and CODE not in run:
        raise TemptError(
            f"{path}: the run was begun by an earlier version, which did not keep what its code was; go on with it in "
            "that version, or begin another run with another --out"
        )
    _compare_options(path, _comparable(run), _comparable(config))
    _compare_code(path, run.get(CODE, {}), config.get(CODE, {}))


def compare_finished(directory: Path, config: Mapping[str, Any]) -> None:
    """Compare a finished run's config with that of a command that asks for it again: its options, as nothing is run.

    What an earlier version did not keep is not compared.

    Raises:
        TemptError: they differ; the first difference is named with both values.
    """
    path = directory / CONFIG
    old, new = _comparable(config_of(directory)), _comparable(config)
    of_both = {name: value for name, value in old.items() if not name.startswith(_OPEN)}
    of_both |= {name: value for name, value in new.items() if name in old or name.startswith(_OPEN)}
    _compare_options(path, old, of_both)


def config_of(directory: Path) -> dict[str, Any]:
    """What a run was begun with.

    Raises:
        TemptError: the file is missing, damaged or of another form.
    """
    return read_form(directory / CONFIG, ComparedConfig, "begin another run with another --out")


def _compare_options(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise TemptError(
                f"{path}: the run has {name}={old.get(name)}, this command {new.get(name)}; "
                "resume with the same options, or begin another run with another --out"
            )


def _compare_code(path: Path, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    differ = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if differ:
        first = differ[0]
        how = "is new" if first not in old else "is gone" if first not in new else "differs"
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise TemptError(
            f"{path}: the run was begun with other code: {first} {how}{more}; go on with the code of then, or begin "
            "another run with another --out"
        )


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _INCIDENTAL}
    if isinstance(config.get("models"), list):
        kept["models"] = sorted(map(str, config["models"]))  # their order is that of the table's rows
    versions = config.get("versions")
    if isinstance(versions, Mapping):
        kept["versions"] = {_DECISIVE: versions.get(_DECISIVE)}
    return _flat(kept)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("tempt", "torch", "numpy", "pandas", "flwr", "ray"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
