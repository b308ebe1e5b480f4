"""The bench compares like with like, and prints its rows. Nothing here depends on seconds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shared_model.adaptation import tempt
from shared_model.encoder import EncoderLayer
from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask
from shared_model.randomness import generator
from shared_model.recommendation import Context, RecommendationTask
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import EncoderSettings, Settings, TuningSettings
from sim import bench
from sim.plain_model import PlainEncoder, PlainPretraining, PlainTuning

SETTINGS = Settings(
    encoder=EncoderSettings(c=36, heads=3, layers=2, dropout=0, attention_dropout=0),
    tuning=TuningSettings(head_dropout=0),
)
BATCH = 13


def made_records(count: int, longest: int = 12) -> RecordSet:
    draws = torch.Generator().manual_seed(7)

    def sets(width: int, longest: int) -> CodeSets:
        lengths = torch.randint(1, longest, (count,), generator=draws).tolist()
        return CodeSets.of([torch.randperm(width, generator=draws)[:n].sort().values.tolist() for n in lengths])

    number = torch.arange(count)
    return RecordSet(number, number, number, sets(1161, 9), sets(1000, longest), sets(300, 40))


def losses_and_gradients(stage: str) -> tuple[bench.Pair, Tensor, Tensor]:
    """Both ways' loss of the same batch, with gradients left in the networks; sets of over 100 codes are among it."""
    pair = bench.pairs(made_records(17, 120), SETTINGS)[stage]
    index = torch.randperm(17, generator=torch.Generator().manual_seed(3))[:BATCH]
    ours = pair.task.loss(index, generator(torch.device("cpu"), 1, "masks", 0))
    (batch,) = pair.batches(index.tolist(), BATCH, generator(torch.device("cpu"), 1, "masks", 0))
    plain = pair.plain.loss(batch)
    ours.backward()
    plain.backward()
    return pair, ours.detach(), plain.detach()


def assert_close(ours: Tensor | None, plain: Tensor | None) -> None:
    assert ours is not None and plain is not None
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


def assert_same_gradients(ours: nn.Module, plain: nn.Module) -> None:
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, theirs[name].grad)


def test_plain_pretraining_with_the_same_masks_has_the_same_loss_and_gradients() -> None:
    pair, ours, plain = losses_and_gradients("pretraining")
    assert_close(ours, plain)
    assert isinstance(pair.task, PretrainingTask)
    assert isinstance(pair.plain, PlainPretraining)
    network, other = pair.task.module, pair.plain
    for name, head in other.heads.items():
        assert_same_gradients(network.get_submodule(name), head)
    assert other.encoder.embedding.weight.grad is not None
    assert_close(network.encoder.embedding.grad, other.encoder.embedding.weight.grad[:-1])
    for layer, torchs in zip(network.encoder.layers, other.encoder.layers, strict=True):
        assert isinstance(layer, EncoderLayer)
        assert isinstance(torchs, nn.TransformerEncoderLayer)
        attention = torchs.self_attn
        assert attention.in_proj_weight.grad is not None
        for part, gradient in zip(
            (layer.query, layer.key, layer.value), attention.in_proj_weight.grad.chunk(3), strict=True
        ):
            assert_close(part.weight.grad, gradient)
        assert_close(layer.output.weight.grad, attention.out_proj.weight.grad)
        assert_same_gradients(layer.feed_forward_in, torchs.linear1)
        assert_same_gradients(layer.feed_forward_out, torchs.linear2)
        assert_same_gradients(layer.attention_norm, torchs.norm1)
        assert_same_gradients(layer.feed_forward_norm, torchs.norm2)
        assert attention.in_proj_bias.grad is None and attention.out_proj.bias.grad is None
        assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()


def test_plain_tuning_of_the_same_batch_has_the_same_loss_and_gradients() -> None:
    pair, ours, plain = losses_and_gradients("tuning")
    assert_close(ours, plain)
    assert isinstance(pair.task, RecommendationTask)
    assert isinstance(pair.plain, PlainTuning)
    assert_same_gradients(pair.task.module, pair.plain)
    assert all(parameter.grad is None for parameter in pair.plain.encoder.parameters())


def test_plain_encoder_computes_every_position_of_every_layer() -> None:
    pair = bench.pairs(made_records(5), SETTINGS)["tuning"]
    assert isinstance(pair.plain, PlainTuning)
    (batch,) = pair.batches([0, 1, 2], 3, torch.Generator())
    assert batch.diagnoses.shape == batch.procedures.shape == (3, 101)
    shapes: list[torch.Size] = []
    for layer in pair.plain.encoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    pair.plain.loss(batch)
    assert shapes == [torch.Size((3, 103, 36))] * 4  # two modalities, two layers; [CLS], b prompts, 100 codes


def test_short_batches_are_padded_to_their_longest_set_and_give_the_same_loss() -> None:
    """Few would pad every set to 101; against that alone the bench measured 32 times the plain way."""
    records = made_records(17, 60)
    for stage, pair in bench.pairs(records, SETTINGS).items():
        losses, shapes = [], []
        for batches in (pair.batches, pair.short_batches):
            (batch,) = batches(list(range(5)), 5, torch.Generator().manual_seed(3))
            losses.append(pair.plain.loss(batch).detach())
            shapes.append((batch.diagnoses.shape, batch.procedures.shape))
        assert_close(losses[1], losses[0])
        longest = [int(of.lengths[:5].max()) + 1 for of in (records.diagnoses, records.procedures)]
        assert shapes == [((5, 101), (5, 101)), ((5, longest[0]), (5, longest[1]))], stage


def test_plain_network_drops_where_ours_does() -> None:
    encoder = EncoderSettings(c=12, dropout=0.3, attention_dropout=0.2)
    pair = bench.pairs(made_records(5), Settings(encoder=encoder, tuning=TuningSettings(head_dropout=0.6)))
    assert isinstance(pair["pretraining"].plain, PlainPretraining)
    plain: PlainEncoder = pair["pretraining"].plain.encoder
    for layer in plain.layers:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        rates = (layer.self_attn.dropout, layer.dropout1.p, layer.dropout.p, layer.dropout2.p)
        assert rates == (0.2, 0.3, 0.0, 0.3)
    assert isinstance(pair["tuning"].plain, PlainTuning)
    assert not pair["tuning"].plain.encoder.training
    assert pair["tuning"].plain.dropout.training
    assert pair["tuning"].plain.dropout.p == 0.6


def test_a_hospitals_tempt_is_what_the_bench_tunes() -> None:
    pair = bench.pairs(made_records(5), SETTINGS)["tuning"]
    context = Context(SETTINGS, bench.ROWS, bench.MEDICATIONS, 1, 1, torch.device("cpu"), epochs=1)
    network = PretrainingNetwork(SETTINGS.encoder, bench.ROWS, torch.Generator())
    fitted = tempt.fit(made_records(5), made_records(2), replace(context, part=network.encoder))
    assert {name for name, _ in pair.task.module.named_parameters()} == set(fitted.tensors)


def test_losses_that_differ_by_more_than_1e_5_are_not_the_same() -> None:
    assert bench.Losses(0.5, 0.500004).same
    assert not bench.Losses(0.5, 0.50001).same
    assert not bench.Losses(0.5, float("nan")).same


def test_made_up_records_have_table_2s_vocabularies() -> None:
    records = bench.made_up_records(160)
    assert 100 < len(records) <= 160
    assert len(records.hospitals) == 16
    for sets, width in ((records.diagnoses, 1161), (records.procedures, 1000), (records.medications, 300)):
        assert int(sets.lengths.min()) >= 1
        assert 0 <= int(sets.codes.min()) <= int(sets.codes.max()) < width


def test_quick_bench_prints_losses_and_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "made_up_records", made_records)
    assert bench.main(["--quick", "--json", str(tmp_path / "bench.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for stage in ("pretraining", "tuning"):
        assert any(
            re.fullmatch(rf"loss of {stage} without dropout: ours [\d.]+, plain [\d.]+: the same", line)
            for line in lines
        )
    rows = [line.split() for line in lines if re.fullmatch(r" +1( +[\d.]+){3} +[\d.]+ +\d+%( +[\d.]+){3}", line)]
    assert len(rows) == 1
    content = json.loads((tmp_path / "bench.json").read_text())
    (padded,) = [line.split()[2:] for line in lines if line.startswith(" to 101")]
    row = content["rows"][0]
    found = [row["padded_pretraining"], row["pretraining"] / row["padded_pretraining"]]
    found += [row["padded_tuning"], row["tuning"] / row["padded_tuning"]]
    assert padded == [f"{value:.1f}" for value in found]
    assert [row["threads"] for row in content["rows"]] == [1]
    row = content["rows"][0]
    assert row["share"] == pytest.approx(row["pretraining"] * 41e-3 / row["gflops"])
    assert rows[0][1] == f"{row['gflops']:.0f}"
    assert content["whole_run"] is None


def test_bench_of_losses_that_differ_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "made_up_records", made_records)
    monkeypatch.setattr(bench, "same_losses", lambda records, batch_size: {"tuning": bench.Losses(0.5, 0.6)})
    assert bench.main(["--quick"]) == 1
    assert "THEY DIFFER" in capsys.readouterr().out
