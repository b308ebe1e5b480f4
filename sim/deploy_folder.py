"""The folder that `docker-compose.yml` mounts: each hospital's own partition, the vocabulary, certificates and keys.

    python -m sim.deploy_folder deploy                                      # a made-up consortium's first hospitals
    python -m sim.deploy_folder deploy --data dataset --hospitals 5,7,9     # hospitals of `tempt prepare`'s

Hospitals of a real network prepare their own records, and nobody ever has them all.

    partitions/<id>/    a dataset directory that holds this hospital's records and no other's
    vocabulary/         the agreed vocabulary, for the server
    keys/               what `tempt server keys` makes

The folder itself is readable by its owner alone; what is in it, by the containers' user too, whose id is another one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hospital_client.partition import read_partition
from server.keys import make_keys
from shared_model.errors import TemptError
from shared_model.files import new_directory, write_json
from shared_model.lines import say, tell
from shared_model.records import write_records
from shared_model.vocabulary import read_vocabulary, write_vocabulary

HOSPITALS = (101, 102, 103)
"""Those of a made-up consortium that docker-compose.yml names if nothing else is said."""
_MARK = "deploy"
_HOSTS = ("front", "server")
_SIGNING_KEY = "ca.key"  # mounted nowhere


def make_folder(folder: Path, data: Path, hospitals: Sequence[int], *, force: bool = False) -> None:
    """Make the folder.

    Args:
        data: a dataset directory with these hospitals.
        force: replace an older folder, its keys too.

    Raises:
        TemptError: there is no such hospital or dataset, or the place is taken or can't be written to.
    """
    vocabulary = read_vocabulary(data / "vocabulary.json")
    partitions = [read_partition(data, hospital) for hospital in hospitals]
    with new_directory(folder, mark=_MARK, force=force) as place:
        (place / "vocabulary").mkdir()
        write_vocabulary(place / "vocabulary" / "vocabulary.json", vocabulary)
        for partition in partitions:
            own = place / "partitions" / str(partition.hospital)
            records = own / "hospitals" / str(partition.hospital)
            records.mkdir(parents=True)
            write_records(records / "records.parquet", partition.records)
            write_vocabulary(own / "vocabulary.json", vocabulary)
            write_json(own / "dataset.json", {"format": 1, "options": {"split_by_patient": partition.split_by_patient}})
        make_keys(place / "keys", _HOSTS, hospitals)
        for path in place.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o600 if path.name == _SIGNING_KEY else 0o644)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder and say what to type next."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.deploy_folder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="a dataset directory; without one, a consortium is made up")
    parser.add_argument("--hospitals", default=",".join(map(str, HOSPITALS)), help="three ids, with commas")
    parser.add_argument("--force", action="store_true", help="replace what was made there before, keys too")
    given = parser.parse_args(arguments)
    try:
        hospitals = _three(given.hospitals)
        if given.data is not None:
            make_folder(given.folder, given.data, hospitals, force=given.force)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                make_folder(given.folder, _made_up(Path(scratch)), hospitals, force=given.force)
    except TemptError as error:
        say(f"error: {error}")
        return error.status
    named = {"TEMPT_DEPLOY": str(given.folder.absolute())} if given.folder != Path("deploy") else {}
    named |= {f"HOSPITAL_{n}": str(h) for n, h in enumerate(hospitals, 1)} if tuple(hospitals) != HOSPITALS else {}
    words = [f"{name}={shlex.quote(value)}" for name, value in named.items()]
    tell(f"Wrote {given.folder} for hospitals {given.hospitals}. Next:", "")
    tell(*(f"    export {word}" for word in words), "    docker compose up --build --detach")
    return 0


def _three(text: str) -> list[int]:
    try:
        ids = [int(word) for word in text.split(",")]
    except ValueError:
        ids = []
    if len(ids) != 3 or min(ids) < 1 or len(set(ids)) < 3:
        raise TemptError(f"--hospitals {text}: expected three different whole numbers from 1 on, such as 5,7,9")
    return ids


def _made_up(scratch: Path) -> Path:
    from hospital_client.preparation import prepare
    from hospital_client.preparation_options import PreparationOptions
    from sim.synthetic_raw import synthesize

    synthesize(scratch / "raw", "small")
    prepare(scratch / "raw", scratch / "dataset", PreparationOptions(min_records=50))
    return scratch / "dataset"


if __name__ == "__main__":
    sys.exit(main())
