"""Every file that a command reads, damaged in every way: status 2 and one line, or an answer; never a traceback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hospital_client.partition import read_partition
from server.control import Control
from server.network import Network, status_table
from server.told import StatusFile
from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.file_forms import RunResultsBeside, read_form
from shared_model.files import read_json, write_json
from shared_model.fitting import FitFiles
from shared_model.records import read_dataset
from shared_model.run_directory import compare
from shared_model.training import _restore
from sim.cli import run as tempt
from sim.recommend import recommend, threshold_of
from sim.results import check_beside, table
from tests.sim import consortium, damage
from tests.sim.consortium import VOCABULARY, assigned
from tests.sim.damage import Damage

MODELS = "hospital-frequency,finetune-freeze"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a finished run of it, and the folder of a server that told something."""
    root = tmp_path_factory.mktemp("damaged")
    consortium.write_dataset(root / "dataset", consortium.make_dataset())
    assert tempt(simulate(root, "run")) == 0
    own = root / "server.server"
    (own / "flower").mkdir(parents=True)
    Control(own / "flower", "127.0.0.1:9", None).connect()
    write_json(own / "registered.json", {"8": {"node": "123", "key": "SHA256:x", "binding": "ab"}})
    told = StatusFile(own / "status.json")
    told.hospitals({8: {"node": 123, "records": 23, "last_round": 2, "missed": 0, "rejected": ["round 1: NaN"]}})
    told.say("round 2")
    told.ended(2, "an error")
    return root


def simulate(root: Path, out: str, *more: str) -> list[str]:
    places = ["--data", str(root / "dataset"), "--out", str(root / out)]
    quick = assigned({"tuning.epochs": "1", "pretraining.epochs": "1"})
    return ["simulate", "centralized", *places, "--models", MODELS, "--jobs", "1", *quick, *more]


def answer(root: Path, model: str) -> None:
    """What `tempt recommend` does."""
    recommend(root / "run", model, None, 8, [VOCABULARY.diagnoses[3]], [VOCABULARY.procedures[4]])
    threshold_of(root / "run")


def is_refused(call: Callable[[], Any], what: str) -> bool:
    """Whether it is the user's mistake, in one line that moves no cursor; anything else but an answer is a defect."""
    try:
        call()
    except TemptError as error:
        assert str(error).isprintable(), what
        return True
    except BaseException as error:
        raise AssertionError(f"{what}: a traceback, {error!r}") from error
    return False


def damaged(path: Path, ways: Callable[[bytes], Iterator[tuple[str, Damage]]]) -> Iterator[str]:
    """The file in each way; it is as it was between them and at the end."""
    content = path.read_bytes()
    for name, harm in [*damage.of_any_file(), *ways(content)]:
        try:
            harm(path)
            yield f"{path.name}, {name}"
        finally:
            restore(path, content)


def restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["run/config.json", "run/results.json", "run/vocabulary.json"])
def test_recommend_from_a_damaged_json_file_is_one_line(made: Path, file: str) -> None:
    ways = damaged(made / file, damage.of_json)
    refused = [is_refused(lambda: answer(made, "hospital-frequency"), what) for what in ways]
    assert sum(refused) > 25
    answer(made, "hospital-frequency")


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("hospital-frequency.safetensors", "hospital-frequency"),
        ("pretraining.safetensors", "finetune-freeze"),
        ("finetune-freeze/8.safetensors", "finetune-freeze"),
    ],
)
def test_recommend_from_a_damaged_checkpoint_is_one_line(made: Path, file: str, model: str) -> None:
    for what in damaged(made / "run" / "checkpoints" / "seed-42" / file, damage.of_checkpoint):
        assert is_refused(lambda: answer(made, model), what), what


def test_recommend_from_another_models_checkpoint_is_one_line(made: Path) -> None:
    folder = made / "run" / "checkpoints" / "seed-42"
    files = [folder / "hospital-frequency.safetensors", folder / "finetune-freeze" / "8.safetensors"]
    contents = [path.read_bytes() for path in files]
    try:
        for path, content in zip(files, contents[::-1], strict=True):
            path.write_bytes(content)
        for model in ("hospital-frequency", "finetune-freeze"):
            assert is_refused(lambda model=model: answer(made, model), model)  # type: ignore[misc]
    finally:
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)


def test_resumption_with_a_damaged_config_is_one_line(made: Path) -> None:
    path = made / "run" / "config.json"
    config = read_json(path)
    refused = [is_refused(lambda: compare(path.parent, config), what) for what in damaged(path, damage.of_json)]
    assert sum(refused) > 100


@pytest.mark.parametrize("name", ["deep lists", "a list", "a pipe", "a folder", "half", "noise"])
def test_command_that_meets_a_damaged_file_ends_with_status_2_and_one_line(
    made: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line: answers, resumption, beside, a dataset, a server."""
    patient = ["--hospital", "8", "--diagnosis", VOCABULARY.diagnoses[3], "--procedure", VOCABULARY.procedures[4]]
    fit = "run/checkpoints/seed-42/hospital-frequency"
    for file, arguments in (
        ("run/results.json", ["recommend", str(made / "run"), "--model", "hospital-frequency", *patient]),
        (f"{fit}.safetensors", ["recommend", str(made / "run"), "--model", "hospital-frequency", *patient]),
        (f"{fit}.json", simulate(made, "run", "--resume")),
        ("dataset/vocabulary.json", simulate(made, "other")),
        ("dataset/hospitals/8/records.parquet", simulate(made, "other")),
        ("server.server/status.json", ["server", "status", str(made / "server")]),
        ("server.server/registered.json", ["server", "status", str(made / "server")]),
    ):
        path = made / file
        whole = path.read_bytes()
        harm = dict([*damage.of_any_file(), *damage.of_json(b"{}")])["a 2th" if name == "half" else name]
        try:
            harm(path)
            capsys.readouterr()
            assert tempt(arguments) == 2, file
            (line,) = [line for line in capsys.readouterr().err.split("\n") if line and not line.startswith("[")]
            assert line.startswith("error: ") and line.isprintable() and path.name in line, line
        finally:
            restore(path, whole)
    assert not (made / "other").exists()


@pytest.mark.parametrize("file", ["pretraining.json", "hospital-frequency.json"])
def test_result_of_a_fit_in_another_form_is_refused(made: Path, file: str) -> None:
    """As a resumption and a federation read it."""
    path = made / "run" / "checkpoints" / "seed-42" / file
    files = FitFiles(path.with_suffix(".safetensors"), path, path.with_suffix(".partial"))
    refused = 0
    for what in damaged(path, damage.of_json):
        try:
            files.read()
        except TemptError as error:
            refused += 1
            assert str(error).isprintable(), what
    assert refused > 30


def test_results_beside_in_another_form_are_one_line(made: Path) -> None:
    """The table is made of them at the end of a run, which must not end in a traceback after hours."""
    path = made / "run" / "results.json"
    content = read_form(path, RunResultsBeside, "")
    for what in damaged(path, damage.of_json):
        try:
            other = read_form(path, RunResultsBeside, "not the results of a run")
            check_beside({path.parent: other}, content["dataset"]["split_digests"])
        except TemptError as error:
            assert str(error).isprintable(), what
            continue
        assert table(content, [other]), what


@pytest.mark.parametrize("file", ["dataset.json", "vocabulary.json"])
def test_dataset_with_a_damaged_json_file_is_one_line(made: Path, file: str) -> None:
    ways = damaged(made / "dataset" / file, damage.of_json)
    refused = [
        is_refused(lambda: (read_dataset(made / "dataset"), read_partition(made / "dataset", 8)), w) for w in ways
    ]
    assert sum(refused) > 25


def of_parquet(content: bytes) -> Iterator[tuple[str, Damage]]:
    """Bytes changed all over; other columns, other types, empty values."""
    for place in range(0, len(content), max(1, len(content) // 150)):
        changed = bytearray(content)
        changed[place] ^= 0x5A
        yield f"byte {place}", damage.replaced_by(bytes(changed))
    ids, sets = pa.array([1, 2], pa.int64()), pa.array([[0], [1]], pa.list_(pa.int32()))
    columns: dict[str, Any] = {"patientunitstayid": ids, "patient": pa.array([0, 1], pa.int32())}
    columns |= {name: sets for name in ("diagnoses", "procedures", "medications")}
    others = {
        "no columns": {},
        "texts": columns | {"patientunitstayid": pa.array(["a", "b"])},
        "fractions": columns | {"patient": pa.array([0.5, np.nan])},
        "values": columns | {"diagnoses": ids},
        "no set": columns | {"procedures": pa.array([[1], None], pa.list_(pa.int32()))},
        "no code": columns | {"procedures": pa.array([[1], [None]], pa.list_(pa.int32()))},
        "no stay": columns | {"patientunitstayid": pa.array([None, 1], pa.int64())},
        "a code below 0": columns | {"medications": pa.array([[-1], [2]], pa.list_(pa.int32()))},
        "a code beyond": columns | {"medications": pa.array([[0], [2**31 - 1]], pa.list_(pa.int32()))},
        "texts in sets": columns | {"medications": pa.array([["a"], ["\x1b[2J"]])},
        "large numbers": columns | {"medications": pa.array([[2**63 - 1], [0]], pa.list_(pa.int64()))},
        "columns twice": columns,
    }
    for name, those in others.items():
        table = pa.table(those) if those else pa.table({"a": [1]})
        if name == "columns twice":
            table = table.append_column("patient", columns["patient"])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        yield name, damage.replaced_by(sink.getvalue().to_pybytes())


def test_damaged_records_are_one_line(made: Path) -> None:
    path = made / "dataset" / "hospitals" / "8" / "records.parquet"
    ways = damaged(path, of_parquet)
    refused = [is_refused(lambda: read_partition(made / "dataset", 8).split(42), what) for what in ways]
    assert sum(refused) > 50


@pytest.mark.parametrize("file", ["registered.json", "status.json", "flower/config.toml"])
def test_status_of_a_server_with_a_damaged_file_is_one_line(
    made: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Control, "answers", lambda self: False)

    def look() -> None:
        _, rows, lines, ended = Network.of_run(made / "server").status()
        assert (
            status_table(rows) and isinstance(lines, list) and (ended is None or ended["status"] >= 0 or ended["error"])
        )

    look()
    ways = damage.of_json if file.endswith(".json") else lambda content: iter(())
    refused = [is_refused(look, what) for what in damaged(made / "server.server" / file, ways)]
    assert sum(refused) > 7


@pytest.mark.parametrize(
    "about",
    [{}, {"epoch": "3"}, {"epoch": 3, "history": {}}, {"epoch": 1, "history": [3]}, {"epochs": 3}],
    ids=str,
)
def test_unfinished_fit_whose_notes_are_of_another_form_is_one_line(tmp_path: Path, about: Any) -> None:
    """Sound by its digest: what wrote it is another program, or version."""
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    checkpoint.save(tmp_path / "partial", {f"now.{name}": p for name, p in module.named_parameters()}, about)
    assert is_refused(lambda: _restore(tmp_path / "partial", module, optimizer), str(about))


def test_unreadable_file_is_one_line(made: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    shutil.copytree(made / "run", tmp_path / "run")
    refused = set()
    for path in [path for path in (tmp_path / "run").rglob("*") if path.is_file()]:
        path.chmod(0)
        if is_refused(lambda: answer(tmp_path, "finetune-freeze"), str(path)):
            refused.add(path.name)
        path.chmod(0o600)
    assert {"config.json", "vocabulary.json", "results.json", "8.json", "8.safetensors"} <= refused
