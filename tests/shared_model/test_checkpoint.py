"""A checkpoint comes back as it was, or not at all: damage anywhere in the file is one line of error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from shared_model import checkpoint
from shared_model.errors import TemptError

TENSORS = {
    "prompts": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "rate": torch.tensor([0.1, 0.2], dtype=torch.float64),
    "hospital": torch.tensor([3, 8, 2**40]),
    "seen": torch.tensor([True, False, True]),
    "step": torch.tensor(5.0),
    "none": torch.zeros(0, 4),
}
ABOUT = {"model": "tempt", "seed": 42, "best_epoch": 3, "score": 0.1 + 0.2, "note": "ü", "history": [{"loss": 0.5}]}


def test_checkpoint_when_loaded_is_what_was_saved(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one.safetensors", TENSORS, ABOUT)
    tensors, about = checkpoint.load(tmp_path / "one.safetensors")
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_checkpoint_of_transposed_and_learnt_tensors_keeps_their_values(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    checkpoint.save(tmp_path / "one", {"turned": weight.T, "weight": weight}, {})
    tensors, _ = checkpoint.load(tmp_path / "one")
    assert tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not tensors["weight"].requires_grad


def test_checkpoint_of_tensors_of_any_type_and_of_shared_memory_keeps_their_values(tmp_path: Path) -> None:
    """Tied weights are one tensor of two names; NumPy, which digests are made with, has no bfloat16."""
    tied = torch.arange(6.0).reshape(3, 2)
    tensors = {"in": tied, "out": tied, "part": tied[1:], "half": tied.bfloat16(), "phase": tied.to(torch.complex64)}
    checkpoint.save(tmp_path / "one", tensors, {})
    found, _ = checkpoint.load(tmp_path / "one")
    assert all(found[name].dtype == of.dtype and torch.equal(found[name], of) for name, of in tensors.items())


def test_checkpoint_of_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one", TENSORS, ABOUT)
    checkpoint.save(tmp_path / "two", dict(reversed(TENSORS.items())), ABOUT, durable=False)
    checkpoint.save(tmp_path / "other", TENSORS, ABOUT | {"seed": 43})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


def test_checkpoint_with_any_byte_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    checkpoint.save(path, {"w": torch.tensor([1.5, -2.0]), "n": torch.tensor([7])}, {"seed": 42})
    content = path.read_bytes()
    accepted = []
    for place in range(len(content)):
        for change in (0x01, 0x20, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
            try:
                checkpoint.load(path)
                accepted.append((place, change))
            except TemptError as error:
                assert str(path) in str(error)
                assert len(str(error).splitlines()) == 1
    assert accepted == []


def test_checkpoint_cut_anywhere_or_with_more_behind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    checkpoint.save(path, {"w": torch.tensor([1.5, -2.0])}, {"seed": 42})
    content = path.read_bytes()
    for damaged in [content[:length] for length in range(len(content))] + [content + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(TemptError, match="damaged checkpoint") as caught:
            checkpoint.load(path)
        assert len(str(caught.value).splitlines()) == 1


def test_checkpoint_that_is_missing_or_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemptError, match=r"absent: no such checkpoint"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(TemptError, match=str(tmp_path)):
        checkpoint.load(tmp_path)


def test_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "one"
    checkpoint.save(path, TENSORS, ABOUT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(path, TENSORS, {"loss": float("nan")})
    assert path.read_bytes() == before
    assert [of.name for of in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": torch.zeros(3, 2)}, ["weight", r"[3, 2]", r"[2, 3]"]),
        ({"weight": None}, ["weight", "Missing"]),
        ({"other": torch.zeros(1)}, ["other", "Unexpected"]),
    ],
)
def test_load_module_with_wrong_tensors_names_each(change: dict[str, torch.Tensor | None], named: list[str]) -> None:
    module = nn.Linear(3, 2)
    tensors = {name: t for name, t in (dict(module.state_dict()) | change).items() if t is not None}
    with pytest.raises(TemptError) as caught:
        checkpoint.load_module(module, tensors, Path("run/one.safetensors"))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in ["run/one.safetensors", *named])


def test_load_module_gives_the_tensors() -> None:
    module = nn.Linear(3, 2)
    given = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([8.0, 9.0])}
    checkpoint.load_module(module, given, Path("one"))
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in given.items())
