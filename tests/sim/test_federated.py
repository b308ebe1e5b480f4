"""`tempt simulate federated`: its laws, the same bits whoever does the work, and what strategies do to the tensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_model import checkpoint
from shared_model.files import read_json
from sim.cli import run as tempt
from tests.sim import consortium
from tests.sim.command import mistake
from tests.sim.consortium import assert_same, assigned, fingerprint

ONE = "21"  # a hospital that is the whole federation in some tests


def arguments(mode: str, data: Path, out: Path, *more: str, epochs: int = 2, patience: int = 10) -> list[str]:
    fixed = ["--models", "finetune-freeze,tempt", "--seeds", "42", "--jobs", "1"]
    sets = assigned({"pretraining.epochs": str(epochs), "pretraining.patience": str(patience)})
    return ["simulate", mode, "--data", str(data), "--out", str(out), *fixed, *sets, *more]


def encoder(run: Path, seed: int = 42) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / f"seed-{seed}" / "pretraining.safetensors")[0]


def apart(one: Path, other: Path) -> float:
    """The largest difference of two runs' shared tensors."""
    first, second = encoder(one), encoder(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def told(run: Path) -> list[tuple[Any, ...]]:
    """What the history tells of each round or epoch."""
    rows = read_json(run / "checkpoints/seed-42/pretraining.json")["history"]
    return [(row["epoch"], row["step"], row["loss"], row["score"], row["best"]) for row in rows]


@pytest.fixture(scope="module")
def federated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("federated") / "run"
    assert tempt(arguments("federated", data, out, "--save-scores")) == 0
    return out


# ------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_one_hospital_with_its_optimizer_kept_is_the_centralized_run_bit_for_bit(
    data: Path, tmp_path: Path, strategy: str
) -> None:
    federation = ["--local-optimizer", "keep", "--strategy", strategy]
    federation += ["--strategy-option", "proximal_mu=0"] if strategy == "fedprox" else []
    assert tempt(arguments("centralized", data, tmp_path / "c", "--hospitals", ONE, epochs=8, patience=2)) == 0
    more = ["--hospitals", ONE, *federation]
    assert tempt(arguments("federated", data, tmp_path / "f", *more, epochs=8, patience=2)) == 0
    assert apart(tmp_path / "c", tmp_path / "f") == 0
    one, other = (read_json(tmp_path / run / "results.json")["models"] for run in "cf")
    for model in ("finetune-freeze", "tempt"):
        assert one[model]["summary"] == other[model]["summary"]
    assert told(tmp_path / "c") == told(tmp_path / "f")


def test_without_the_kept_optimizer_it_is_not(data: Path, tmp_path: Path) -> None:
    """So that the law above could fail."""
    for mode in ("centralized", "federated"):
        assert tempt(arguments(mode, data, tmp_path / mode[0], "--hospitals", ONE, epochs=5)) == 0
    one, other = told(tmp_path / "c"), told(tmp_path / "f")
    assert one[:2] == other[:2] and one[2] != other[2], "Adam's first step needs no moments"


def test_fedprox_without_its_term_is_fedavg_and_with_it_stays_nearer(
    data: Path, federated: Path, tmp_path: Path
) -> None:
    moved = {}
    for name, mu in (("none", "0"), ("much", "100")):
        more = ["--strategy", "fedprox", "--strategy-option", f"proximal_mu={mu}"]
        assert tempt(arguments("federated", data, tmp_path / name, *more)) == 0
        moved[name] = apart(federated, tmp_path / name)
    assert moved["none"] == 0 < moved["much"]


def test_fedavgm_without_momentum_and_rate_one_is_fedavg(data: Path, federated: Path, tmp_path: Path) -> None:
    assert tempt(arguments("federated", data, tmp_path / "run", "--strategy", "fedavgm")) == 0
    assert apart(federated, tmp_path / "run") < 1e-6


def test_first_round_is_the_mean_of_what_each_hospital_learns_alone_weighted_by_records(
    data: Path, tmp_path: Path
) -> None:
    """The oracle: each hospital's local run of one epoch starts from its own weights, so they are made here."""
    from shared_model.batching import TokenRows
    from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask
    from shared_model.training import run_epoch
    from tests.server.federations import initial_tensors

    settings, dataset = consortium.settings(), consortium.make_dataset()
    assert tempt(arguments("federated", data, tmp_path / "run", "--rounds", "1")) == 0
    rows = TokenRows(consortium.DIAGNOSES, consortium.PROCEDURES)
    total, weight = {}, 0  # type: ignore[var-annotated]
    for hospital in consortium.SIZES:
        network = PretrainingNetwork(settings.encoder, rows, torch.Generator().manual_seed(1))
        with torch.no_grad():
            for name, array in initial_tensors(settings, dataset, 42).items():
                dict(network.named_parameters())[name].copy_(torch.from_numpy(array))
        train = dataset.split(42).of_hospital(hospital).train
        task = PretrainingTask(network, train, train, settings.pretraining, seed=42)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.pretraining.learning_rate, fused=True)
        run_epoch(task, optimizer, 16, 42, "pretraining", hospital, 1, torch.device("cpu"))
        weight += len(train)
        for name, p in network.named_parameters():
            total[name] = total.get(name, 0) + p.detach().double() * len(train)
    for name, tensor in encoder(tmp_path / "run").items():
        assert torch.equal(tensor, (total[name] / weight).float()), name


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("more", [[], ["--strategy", "fedadam", "--strategy-option", "eta=0.001"]], ids=["", "fedadam"])
def test_two_jobs_give_the_same_bits_as_one(data: Path, federated: Path, tmp_path: Path, more: list[str]) -> None:
    reference = federated
    if more:
        reference = tmp_path / "one"
        assert tempt(arguments("federated", data, reference, "--save-scores", *more)) == 0
    assert tempt(arguments("federated", data, tmp_path / "two", "--save-scores", "--jobs", "2", *more)) == 0
    found, expected = (fingerprint(run) for run in (tmp_path / "two", reference))
    assert_same(without_ledger(found), without_ledger(expected))


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--strategy", "fedadam", "--strategy-option", "eta=0.001"],
        ["--strategy", "fedavgm", "--strategy-option", "server_momentum=0.9"],
        ["--strategy", "scaffold", "--fraction", "0.5"],
        ["--local-optimizer", "keep", "--fraction", "0.5"],
    ],
    ids=["fedavg", "fedadam", "fedavgm", "scaffold", "keep"],
)
def test_run_that_ends_after_any_round_and_is_resumed_changes_no_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    from server import rounds

    assert tempt(arguments("federated", data, tmp_path / "whole", *more, epochs=5)) == 0
    save = rounds._Rounds.save

    class Killed(BaseException):
        pass

    for last in (1, 3):
        out = tmp_path / f"killed-{last}"

        def killed_after(self: Any, path: Path, last: int = last) -> None:
            save(self, path)
            if self.progress.epoch == last:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(rounds._Rounds, "save", killed_after)
            with pytest.raises(Killed):
                tempt(arguments("federated", data, out, *more, epochs=5))
        assert tempt(arguments("federated", data, out, "--resume", *more, epochs=5)) == 0
        assert apart(tmp_path / "whole", out) == 0
        assert_same(without_ledger(fingerprint(out)), without_ledger(fingerprint(tmp_path / "whole")))


def test_a_hospital_that_cannot_work_ends_the_run_in_words(
    data: Path, federated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's own machine: a damaged file is told as in a centralized run, not as a rejected reply."""
    for jobs in ("1", "2"):
        out = tmp_path / f"run-{jobs}"
        shutil.copytree(federated, out)
        (out / "checkpoints/seed-42/tempt/8.safetensors").write_bytes(b"half")
        capsys.readouterr()
        assert tempt(arguments("federated", data, out, "--save-scores", "--resume", "--jobs", jobs)) == 2
        said = capsys.readouterr()
        assert "8.safetensors: damaged checkpoint" in said.err and "Traceback" not in said.err
        assert "PRAUC" not in said.out


def test_tuning_of_another_encoder_is_not_told_as_this_ones(data: Path, federated: Path, tmp_path: Path) -> None:
    from hospital_client.local_tuning import tune
    from hospital_client.partition import read_partition

    shared = encoder(federated)
    other = {name: tensor + 0.1 for name, tensor in shared.items()}
    cpu, partition = torch.device("cpu"), read_partition(data, 8)
    told = [
        tune(partition, tmp_path, tensors, ["tempt"], consortium.settings(), 42, cpu, save_scores=False)["tempt"]
        for tensors in (shared, other, other, shared)
    ]
    assert told[0]["basis"] == told[3]["basis"] != told[1]["basis"]
    assert told[1] == told[2], "what is done is not done again"
    assert told[0]["history"] != told[1]["history"]


def without_ledger(content: dict[str, Any]) -> dict[str, Any]:
    """A ledger tells of every answer, also of those that were given twice; kept state ends with the last answer."""
    return {name: value for name, value in content.items() if not name.startswith(("egress/", "kept/"))}


def test_resumed_when_done_works_nothing_again(data: Path, federated: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(federated, out)
    before = (out / "checkpoints/seed-42/pretraining.safetensors").stat().st_mtime_ns
    assert tempt(arguments("federated", data, out, "--save-scores", "--resume")) == 0
    assert (out / "checkpoints/seed-42/pretraining.safetensors").stat().st_mtime_ns == before
    assert_same(without_ledger(fingerprint(out)), without_ledger(fingerprint(federated)))


# ------------------------------------------------------------------------------------------------ strategies


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum", "scaffold"]
)
def test_every_strategy_ends_with_finite_tensors_and_a_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    needed = {"fedprox": "proximal_mu=0.1", "fedtrimmedavg": "beta=0.25"}  # of four updates, one at each end
    more = ["--strategy-option", needed[strategy]] if strategy in needed else []
    assert tempt(arguments("federated", data, tmp_path / "run", "--strategy", strategy, *more)) == 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in encoder(tmp_path / "run").values())
    about = read_json(tmp_path / "run" / "results.json")["federation"]["seeds"]["42"]
    assert about["rounds"] == 2
    assert {h: part["taken"] for h, part in about["hospitals"].items()} == {str(h): [1, 2] for h in consortium.SIZES}
    assert "Rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("strategy", "option", "words"),
    [
        ("fedtrimmedavg", "beta=0.2", "with beta=0.2 needs the updates of 5 hospitals, and 4 train in a round"),
        ("krum", "num_malicious_nodes=1", "with num_malicious_nodes=1 needs the updates of 5 hospitals, and 4 train"),
    ],
)
def test_a_strategy_that_could_not_keep_its_promise_was_a_mean_without_a_word(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str, option: str, words: str
) -> None:
    asked = arguments("federated", data, tmp_path / "run", "--strategy", strategy, "--strategy-option", option)
    assert words in mistake(capsys, asked)


def test_median_of_the_updates_is_numpys(data: Path) -> None:
    from server.flower_strategies import finish
    from shared_model.algorithms import chosen
    from shared_model.federated_algorithm import Told

    draw = np.random.default_rng(3)
    updates = [{"a": draw.normal(size=(3, 5)).astype(np.float32)} for _ in range(5)]
    median = chosen("fedmedian", {})
    state = median.algorithm.begin(updates[0])
    gathered = median.algorithm.gather(state)
    for update in updates:
        median.algorithm.accept(gathered, Told(3, {"arrays": update}, {}, 0.5, 7, 0.2))
    found = finish(median, state, gathered, 1)["now"]["a"]
    assert np.array_equal(found, np.median([update["a"] for update in updates], axis=0).astype(np.float32))


def test_scaffold_with_control_variates_of_zero_begins_as_fedavg(data: Path, tmp_path: Path) -> None:
    one = ["--rounds", "1"]
    assert tempt(arguments("federated", data, tmp_path / "s", "--strategy", "scaffold", *one)) == 0
    assert tempt(arguments("federated", data, tmp_path / "a", *one)) == 0
    assert apart(tmp_path / "s", tmp_path / "a") == 0
    assert tempt(arguments("federated", data, tmp_path / "s2", "--strategy", "scaffold")) == 0
    assert tempt(arguments("federated", data, tmp_path / "a2")) == 0
    assert told(tmp_path / "s2")[0] == told(tmp_path / "a2")[0]
    assert told(tmp_path / "s2")[1] != told(tmp_path / "a2")[1]


def test_changed_rows_alone_give_the_same_bits_with_fewer_bytes(data: Path, federated: Path, tmp_path: Path) -> None:
    assert tempt(arguments("federated", data, tmp_path / "run", "--changed-rows")) == 0
    assert apart(federated, tmp_path / "run") == 0
    assert received(tmp_path / "run") < received(federated)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_bfloat16_halves_what_travels_and_stays_near(data: Path, tmp_path: Path, strategy: str) -> None:
    for transport in ("float32", "bfloat16"):
        more = ["--strategy", strategy, "--transport", transport]
        assert tempt(arguments("federated", data, tmp_path / transport, *more)) == 0
    assert 0 < apart(tmp_path / "bfloat16", tmp_path / "float32") < 0.01
    assert received(tmp_path / "bfloat16") < 0.75 * received(tmp_path / "float32"), "the tensors here are tiny"


def received(run: Path) -> int:
    """What the server got, in bytes."""
    about = read_json(run / "results.json")["federation"]["seeds"]["42"]
    return sum(part["bytes_from_hospital"] for part in about["hospitals"].values())


def test_part_of_the_hospitals_train_and_all_score(data: Path, tmp_path: Path) -> None:
    more = ["--fraction", "0.5", "--rounds", "4"]
    assert tempt(arguments("federated", data, tmp_path / "run", *more)) == 0
    about = read_json(tmp_path / "run" / "results.json")["federation"]["seeds"]["42"]
    taken = [[h for h, part in about["hospitals"].items() if r in part["taken"]] for r in (1, 2, 3, 4)]
    assert [len(hospitals) for hospitals in taken] == [2, 2, 2, 2]
    assert len({tuple(hospitals) for hospitals in taken}) > 1


# ------------------------------------------------------------------------------------------------ the command


def test_rows_of_other_runs_stand_beside(
    data: Path, federated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in ("centralized", "local"):
        assert tempt(arguments(mode, data, tmp_path / mode)) == 0
    capsys.readouterr()
    more = ["--save-scores", "--resume", "--beside", f"{tmp_path / 'centralized'},{tmp_path / 'local'}"]
    assert tempt(arguments("federated", data, federated, *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["centralized:", "local:", "federated:"]
    assert sum(line.startswith("TEMPT  ") for line in lines) == 3
    assert max(len(line) for line in lines if not line.startswith("Everything")) <= 80


@pytest.mark.parametrize("mode", ["centralized", "federated"])
def test_resumption_did_not_mend_the_vocabulary_that_recommend_sends_it_for(
    mode: str, data: Path, tmp_path: Path
) -> None:
    run = arguments(mode, data, tmp_path / "run", epochs=1)
    assert tempt(run) == 0
    vocabulary = tmp_path / "run" / "vocabulary.json"
    sound = vocabulary.read_bytes()
    for damage in (sound.replace(b"D", b"E", 1), None):
        vocabulary.unlink()
        if damage is not None:
            vocabulary.write_bytes(damage)
        assert tempt([*run, "--resume"]) == 0
        assert vocabulary.read_bytes() == sound


def test_a_mistake_in_beside_deleted_the_older_run_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for run, seed in ((one, "42"), (other, "43")):
        assert tempt(arguments("centralized", data, run, "--models", "frequency", "--seeds", seed)) == 0
    before = consortium.tree(tmp_path)
    capsys.readouterr()
    for beside, words in ((other, "stands on other records or seeds"), (one, "would delete")):
        assert tempt(arguments("federated", data, one, "--force", "--beside", str(beside))) == 2
        assert words in capsys.readouterr().err and consortium.tree(tmp_path) == before
    assert tempt(arguments("federated", data, tmp_path / "new", "--beside", str(other))) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strategy", "fedavgg"], ["unknown strategy 'fedavgg'", "did you mean 'fedavg'"]),
        (["--strategy", "fedprox"], ["fedprox", "proximal_mu=0.01"]),
        (["--strategy", "fedavgm", "--strategy-option", "momentum=1"], ["option of fedavgm", "server_momentum"]),
        (["--strategy", "fedadam", "--strategy-option", "tau=0"], ["tau=0", "1e-12"]),
        (["--strategy", "fedadam", "--strategy-option", "beta_1=1"], ["beta_1=1", "[0, 1)"]),
        (["--strategy", "fedtrimmedavg", "--strategy-option", "beta=0.7"], ["beta=0.7", "[0, 0.5)"]),
        (["--strategy", "krum", "--strategy-option", "num_malicious_nodes=1.5"], ["num_malicious_nodes", "whole"]),
        (["--set", "tuning.selection=common"], ["tuning.selection=common", "hospital"]),
        (["--strategy", "fedmedian", "--strategy-option", "mu=1"], ["fedmedian", "no options"]),
        (
            ["--strategy", "fedprox", "--strategy-option", "proximal_mu"],
            ["--strategy-option proximal_mu", "NAME=VALUE"],
        ),
        (["--strategy", "fedprox", "--strategy-option", "proximal_mu=much"], ["proximal_mu", "number"]),
        (["--fraction", "0"], ["--fraction=0"]),
        (["--transport", "float16"], ["--transport=float16", "bfloat16"]),
        (["--local-epochs", "0"], ["--local-epochs"]),
        (["--local-optimizer", "lose"], ["--local-optimizer=lose", "reset"]),
        (["--engine", "raay"], ["unknown engine 'raay'"]),
        (["--ray-address", "auto"], ["--ray-address auto", "--engine ray"]),
        (["--engine", "ray", "--ray-address", "127.0.0.1:9"], ["--ray-address 127.0.0.1:9", "nobody answers"]),
        (["--models", "full-train"], ["full-train", "simulate centralized"]),
        (["--beside", "nowhere"], ["nowhere"]),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    assert tempt(arguments("federated", data, tmp_path / "run", *options)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []
