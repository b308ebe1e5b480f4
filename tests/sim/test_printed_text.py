"""What comes from outside is printed escaped, by every verb: nothing of it moves the cursor, hides or turns around."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from server.control import Control
from server.told import StatusFile
from shared_model.errors import TemptError, printable, unknown
from shared_model.files import read_json, write_json
from shared_model.vocabulary import Vocabulary, read_vocabulary
from sim.cli import run as tempt
from sim.display import Display
from tests.sim import consortium
from tests.sim.consortium import assigned

# a colour, a cleared screen, text turned around, nothing, half a character, a line's end, a bell, C1's CSI
NASTY = "\x1b[31mred\x1b[2J\u202e\u200b\udcff\r\n\x07\x9b1m"
ESCAPED = r"\x1b[31mred\x1b[2J\u202e\u200b\udcff\r\n\x07\x9b1m"


def assert_clean(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NASTY, ESCAPED),
        ("Überweisung 薬 😀 «x» 401.9", "Überweisung 薬 😀 «x» 401.9"),
        ("a\u2028b\u2029c\x85d\tz", r"a\u2028b\u2029c\x85d\tz"),
        (r"C:\new\x1b", r"C:\new\x1b"),
        (None, "None"),
        ("", ""),
    ],
)
def test_printable_of_a_text_is_itself_or_escaped(text: object, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected  # a line may go through it twice
    assert printable(text, 5) == expected[:5]


def test_error_of_any_text_is_one_clean_line() -> None:
    assert str(TemptError(f"{NASTY}: two\nlines")).isprintable()
    assert str(TemptError("two\nlines")) == "two lines"
    assert str(unknown("preset", NASTY, ["paper", f"pa{NASTY}"])).isprintable()


def test_code_that_is_not_in_the_vocabulary_and_the_nearest_are_escaped() -> None:
    vocabulary = Vocabulary((f"401.9{NASTY[:-7]}",), ("p",), (1,), ("x",))
    with pytest.raises(TemptError) as caught:
        vocabulary.position("diagnoses", f"401{NASTY}")
    words = str(caught.value)
    assert words.isprintable() and f"no code '401{ESCAPED}'; the nearest is '401.9\\x1b[31mred" in words


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("printed")
    consortium.write_dataset(root / "dataset", consortium.make_dataset())
    assert tempt(simulate(root, "run")) == 0
    path = root / "run" / "vocabulary.json"
    content = read_json(path)
    content["diagnoses"][3] = f"103{NASTY.replace(chr(0xDCFF), '')}"
    content["medication_names"] = [f"DRUG {i}\u202e\x1b[2J" for i in range(consortium.MEDICATIONS)]
    path.write_text(json.dumps(content))
    config = read_json(root / "run" / "config.json")
    config["dataset"]["vocabulary"] = read_vocabulary(path).digest
    (root / "run" / "config.json").write_text(json.dumps(config))
    return root


def simulate(root: Path, out: str, *more: str) -> list[str]:
    places = ["--data", str(root / "dataset"), "--out", str(root / out)]
    return ["simulate", "centralized", *places, "--models", "frequency", "--jobs", "1", *assigned(), *more]


def test_every_verb_prints_no_control_character_of_what_is_typed_or_read(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of options, arguments, paths, files, and what hospitals told."""
    monkeypatch.setattr(Control, "answers", lambda self: False)
    place = f"{made}/{NASTY}"
    own = Path(f"{made}/told.server")
    (own / "flower").mkdir(parents=True)
    Control(own / "flower", "127.0.0.1:9", None).connect()
    told = StatusFile(own / "status.json")
    told.hospitals({8: {"node": 1, "records": 2, "last_round": 0, "missed": 0, "rejected": [f"round 1: {NASTY}"]}})
    told.say(NASTY)
    told.ended(2, NASTY)
    whole = NASTY.replace("\udcff", "")  # the readers of tables and tensors take no half a character in a path
    strange = made / f"strange{whole}"
    shutil.copytree(made / "dataset", strange)
    patient = ["--hospital", "8", "--procedure", consortium.VOCABULARY.procedures[4]]
    answer = ["recommend", str(made / "run"), "--model", "frequency", *patient, "--diagnosis"]
    here = ["--hospital-id", "8", "--state", place, "--insecure", "--superlink", "127.0.0.1:9"]
    for arguments, status in (
        ([*answer, f"103{NASTY}"], 2),
        ([*answer, consortium.VOCABULARY.diagnoses[4]], 0),
        (["recommend", place, *patient, "--diagnosis", "x"], 2),
        (["recommend", str(made / "run"), "--model", NASTY, *patient, "--diagnosis", "x"], 2),
        (["synth", str(made / "raw"), "--profile", NASTY], 2),
        (["prepare", place, str(made / "other")], 2),
        (simulate(made, NASTY, "--models", NASTY), 2),
        (simulate(made, "other", "--set", f"tuning.{NASTY}=1"), 2),
        (simulate(made, "other", "--seeds", NASTY), 2),
        (simulate(made, "other", "--preset", NASTY), 2),
        ([*simulate(made, f"run{whole}"), "--data", str(strange)], 0),
        (["simulate", "federated", "--beside", place, "--data", str(made / "dataset"), "--out", str(made / "x")], 2),
        (["simulate", "federated", "--strategy", NASTY], 2),
        (["hospital", "check", *here, "--partition", place], 2),
        (["hospital", "launch", "--partition", place, *here[:-1], NASTY], 2),
        (["server", "status", str(made / "told")], 0),
        (["server", "status", place], 2),
        (["server", "register", place, place, "--hospital-id", "1"], 2),
        (["server", "keys", str(made / "keys"), "--hospitals", NASTY, "--hosts", NASTY], 2),
        (["server", "launch", "--insecure", "--out", str(made / "net"), "--models", NASTY], 2),
        ([f"--{NASTY}"], 2),
        ([NASTY], 2),
    ):  # fmt: skip
        capsys.readouterr()
        assert tempt(arguments) == status, arguments
        captured = capsys.readouterr()
        assert_clean(captured.out + captured.err)
        assert captured.out + captured.err


def test_progress_prints_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.say(f"preparing {NASTY}")
        display.begin(1, 0)
        display.epoch(NASTY, {"epoch": 1, "score": None, "loss": 0.5})
        display.advance(NASTY)
    found = capsys.readouterr().err
    assert_clean(found)
    assert ESCAPED in found


def test_path_that_is_no_text_can_be_written_into_a_config(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"data": "/data/\udcff", "name": "ü"})
    assert read_json(tmp_path / "config.json") == {"data": "/data/\udcff", "name": "ü"}
