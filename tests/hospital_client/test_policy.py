"""`policy.toml`: written once, read strictly, shown by `check`, and as wide as the README's commands need."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path

import pytest

from hospital_client import launch
from hospital_client.launch import HospitalPlace
from hospital_client.policy import FILE, Policy, Refused, keep_policy, read_policy
from shared_model import adaptation
from shared_model.errors import TemptError
from shared_model.settings import PRESETS, Settings, resolve
from sim.cli import run as tempt
from tests.hospital_client.policies import write_policy
from tests.sim import consortium
from tests.sim.consortium import ROOT

BOUND = ("encoder", "pretraining", "tuning", "evaluation")


@pytest.fixture
def place(tmp_path: Path) -> HospitalPlace:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    return HospitalPlace("127.0.0.1:9", data, 8, tmp_path / "state", None, None)


def test_first_launch_writes_the_defaults_with_a_comment_a_key_for_its_owner_alone(tmp_path: Path) -> None:
    assert keep_policy(tmp_path) == read_policy(tmp_path) == Policy()
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"[a-z_]+ = ", line)]
    assert all(lines[number - 1].startswith("# ") for number in keys)
    tables = [name for name in Policy.model_fields if not isinstance(getattr(Policy(), name), (int, bool))]
    assert len(keys) == len(Policy.model_fields) - len(tables) + sum(
        len(type(getattr(Policy(), name)).model_fields) for name in tables
    )


def test_launch_keeps_an_edited_policy_and_an_old_state_folder_gets_one(
    place: HospitalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_keep_running", lambda *_: None)
    (place.state / "egress").mkdir(parents=True)  # of the release before
    launch.launch(place, lambda line: None)
    assert read_policy(place.state) == Policy()
    for text in ("most_seeds = 1\n", ""):
        (place.state / FILE).write_text(text)
        launch.launch(place, lambda line: None)
        assert (place.state / FILE).read_text() == text


MISTAKES = {
    "least_validaton_records = 3": "key 'least_validaton_records'; did you mean 'least_validation_records'?",
    "[pretraining]\nlearning_rat = [0, 1]": "key 'pretraining.learning_rat'; did you mean 'pretraining.learning_rate'?",
    "[evaluation]\nleast_test_records = 3": "key 'evaluation.least_test_records'; did you mean 'least_test_records'?",
    "[pretrainig]\nc = 1": "there is no key 'pretrainig'",
    "least_test_records = 0": "least_test_records is 0, expected greater than or equal to 1",
    "least_test_records = true": "least_test_records is True, expected a valid integer",
    "most_rounds = 2.5": "most_rounds is 2.5, expected a valid integer",
    'medication_counts = "off"': "medication_counts is off, expected a valid boolean",
    "unmasked_sums = 1": "unmasked_sums is 1, expected a valid boolean",
    "[encoder]\nc = [300, 1]": "encoder.c is [300, 1], expected [least, most], two numbers in this order",
    "[encoder]\nc = [300]": "expected [least, most], two numbers in this order",
    "[encoder]\nc = 300": "expected [least, most], two numbers in this order",
    "[encoder]\nc = [nan, inf]": "expected [least, most], two numbers in this order",
    '[encoder]\nactivation = "relu"': 'expected a list of words, such as ["relu"]',
    "[tuning]\nselection = []": "tuning.selection is []",
    f"most_rounds = {'9' * 400}": "most_rounds is 9",
    "encoder = 3": "encoder is 3, expected a table, [encoder]",
    "most_seeds": "can't be read as TOML",
    "a = " + "[" * 5000: "nested too deep",
    'x = "\x1b[2J"': "can't be read as TOML",
    '"\\u001b[2J" = 1': "there is no key '\\x1b[2J'",
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_damaged_policy_ends_launch_and_check_with_one_line_and_status_2(
    place: HospitalPlace, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = write_policy(place.state, text)
    options = ["--superlink", place.superlink, "--partition", str(place.partition), "--hospital-id", "8", "--insecure"]
    assert tempt(["hospital", "launch", *options, "--state", str(state)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert line.startswith(f"error: {state / FILE}: ") and MISTAKES[text] in line, line
    assert [path.name for path in state.iterdir()] == [FILE] and (state / FILE).read_text() == text
    assert tempt(["hospital", "check", *options, "--state", str(state)]) == 2
    assert MISTAKES[text] in "".join(line for line in capsys.readouterr().out.splitlines() if "WRONG  policy" in line)


def test_what_is_no_file_and_no_text_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(TemptError, match="is no file"):
        read_policy(tmp_path)
    (tmp_path / FILE).rmdir()
    (tmp_path / FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(TemptError, match="is no file"):
        keep_policy(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(TemptError, match="can't be read as TOML"):
        read_policy(tmp_path)


def test_check_shows_the_policy_and_writes_nothing(place: HospitalPlace, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(state: Path) -> str:
        options = ["--partition", str(place.partition), "--hospital-id", "8", "--insecure", "--state", str(state)]
        tempt(["hospital", "check", "--superlink", place.superlink, *options])
        return next(line for line in capsys.readouterr().out.splitlines() if line[7:14] == "policy ")

    line = shown(place.state)
    assert "which launch will write: most_rounds 600 (0 answered), most_seeds 5 (0 answered)" in line
    assert "medication_counts off, unmasked_sums off" in line and line.endswith("accepted: the default settings")
    assert not place.state.exists()
    state = write_policy(place.state, "unmasked_sums = true\n[encoder]\nc = [300, 300]\n")
    line = shown(state)
    assert "unmasked_sums on" in line and line.endswith(
        "accepted: the default settings but for encoder.c = [300.0, 300.0]"
    )
    assert [path.name for path in state.iterdir()] == [FILE]


def test_every_setting_that_hospitals_use_is_bound() -> None:
    for stage in BOUND:
        assert set(type(getattr(Policy(), stage)).model_fields) == set(type(getattr(Settings(), stage)).model_fields)


@pytest.mark.parametrize("preset", PRESETS)
def test_default_policy_accepts_the_presets_with_one_epoch(preset: str) -> None:
    Policy().check_settings(resolve(preset, {}))
    short = {f"{stage}.{name}": value for stage in ("pretraining", "tuning") for name, value in
             (("epochs", "1"), ("least_steps", "0"), ("patience", "1"))}  # fmt: skip
    Policy().check_settings(resolve(preset, short))
    Policy().check_settings(consortium.settings())


def test_default_policy_accepts_every_command_of_the_documents_that_starts_a_server() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/operating.md")]
    lines = [line for text in texts for line in text.splitlines() if "tempt server launch -" in line]
    assert len(lines) > 2
    for line in lines:
        words = shlex.split(line.partition("tempt server launch")[2].replace("`", " "), comments=True)
        sets = dict(words[i + 1].split("=") for i, word in enumerate(words) if word == "--set")
        Policy().check_settings(resolve("paper", sets))
        assert "--strategy" not in words


TRAPS = {
    "encoder.c": "1024", "encoder.layers": "24", "encoder.heads": "20", "encoder.longest_set": "1",
    "encoder.dropout": "0", "encoder.attention_dropout": "0", "pretraining.learning_rate": "1",
    "pretraining.batch_size": "65536", "pretraining.epochs": "100000", "pretraining.patience": "100000",
    "pretraining.least_steps": "100000", "pretraining.temperature": "1e-30", "pretraining.contrastive_weight": "1e9",
    "pretraining.mask_fraction": "0.99999999", "pretraining.mask_token_fraction": "0",
    "pretraining.random_code_fraction": "1", "tuning.learning_rate": "5e-324", "tuning.batch_size": "1",
    "tuning.epochs": "100000", "tuning.patience": "100000", "tuning.least_steps": "100000",
    "tuning.head_dropout": "0.99", "tuning.prompts_per_modality": "100", "tuning.selection": "common",
    "evaluation.threshold": "0",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_default_policy_refuses_a_trap_by_its_name(name: str) -> None:
    more = {"encoder.c": "20"} if name == "encoder.heads" else {}
    more |= {"pretraining.mask_token_fraction": "0"} if name == "pretraining.random_code_fraction" else {}
    with pytest.raises(Refused, match=re.escape(f"{name} is ")):
        Policy().check_settings(resolve("paper", more | {name: TRAPS[name]}))


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ({"few-8": {"most": 13}}, "few-8.most is 13, accepted 2 alone"),
        ({"few-8": {"least": 2}}, "few-8.least is 2, accepted none"),
        ({"few-8": {"most": True}}, "few-8.most is true, accepted 2 alone"),
        ({"few-9": {"most": 2}}, "few-9 is no method with settings of its own here"),
        ({"few-9": {}}, "few-9 is no method with settings of its own here"),
        ({"frequency": {"x": 0}}, "frequency is no method with settings of its own here"),
    ],
)
def test_settings_of_a_methods_own_are_accepted_at_their_defaults_alone(
    monkeypatch: pytest.MonkeyPatch, stage: dict[str, dict[str, int]], why: str
) -> None:
    here = ROOT / "tests" / "sim" / "new_pretrainings" / "adaptation"
    monkeypatch.setattr(adaptation, "__path__", [*adaptation.__path__, str(here)])
    adaptation.adaptations.cache_clear()
    try:
        Policy().check_settings(Settings.model_validate({"few-8": {"most": 2}}))
        with pytest.raises(Refused) as refused:
            Policy().check_settings(Settings.model_validate(stage))
        assert str(refused.value) == f"refused by policy: {why}"
    finally:
        monkeypatch.undo()
        adaptation.adaptations.cache_clear()


def test_many_traps_at_once_are_all_named_to_the_server_in_few_words() -> None:
    names = [name for name in TRAPS if name.startswith("encoder") and name != "encoder.heads"]
    with pytest.raises(Refused) as refused:
        Policy().check_settings(resolve("paper", {name: TRAPS[name] for name in names}))
    assert str(refused.value).startswith(
        "refused by policy: encoder.c is 1024, accepted 1 to 300; also encoder.layers, "
    )
    assert all(name in str(refused.value) for name in names) and len(str(refused.value)) < 190


def test_narrowed_words_and_numbers_are_refused_and_all_are_named(tmp_path: Path) -> None:
    write_policy(tmp_path, '[encoder]\nactivation = ["relu"]\n[evaluation]\nthreshold = [0.3, 0.3]\n')
    policy = read_policy(tmp_path)
    policy.check_settings(resolve("paper", {}))
    with pytest.raises(Refused) as refused:
        policy.check_settings(resolve("released", {"evaluation.threshold": "0.4"}))
    assert str(refused.value) == (
        "refused by policy: encoder.activation is gelu, accepted relu; evaluation.threshold is 0.4, accepted 0.3 to 0.3"
    )


@pytest.mark.parametrize(
    "line", ['[encoder]\nactivation = ["Relu"]', '[tuning]\nselection = ["common"]', "[encoder]\ninitialization = []"]
)
def test_a_word_that_no_setting_has_was_accepted(tmp_path: Path, line: str) -> None:
    (tmp_path / FILE).write_text(line)
    with pytest.raises(TemptError, match=f"{FILE}: "):
        read_policy(tmp_path)
