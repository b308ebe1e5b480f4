"""Federated pretraining over any Flower Grid (Algorithm 1, lines 1-7, federated).

A round is one exchange. Every hospital first scores the tensors that come in, which is the validation of the round
before; those that were drawn then train. So a federation sends one message more than it has rounds, and none for
validation alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.exchange import Hospital, Plan, array_record, exchange, metrics_of
from server.strategy import Aggregation, proximal_mu
from server.validation import Arrays, Rejected, control_of, number_of, update_of
from shared_model import checkpoint
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.training import Progress, most_epochs, out_of_patience


@dataclass
class Participation:
    """What became of a hospital's part: rounds whose update was taken, replies left out and why, replies missed."""

    taken: list[int] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    missed: int = 0
    bytes_to_hospital: int = 0
    bytes_from_hospital: int = 0


def drawn(hospitals: Sequence[Hospital], fraction: float, seed: int, number: int) -> list[int]:
    """The hospitals that train in a round: at least one, drawn by (seed, round, id), so that resuming draws alike."""
    count = max(1, round(fraction * len(hospitals)))
    ids = [h.hospital for h in hospitals if h.train]
    order = sorted(ids, key=lambda h: hashlib.sha256(f"{seed}:round:{number}:{h}".encode()).digest())
    return sorted(order[:count])


OnRound = Callable[[dict[str, Any]], None]


def pretrain(
    grid: Grid, plan: Plan, hospitals: Sequence[Hospital], initial: Arrays, files: FitFiles, on_round: OnRound
) -> dict[str, Any]:
    """Rounds until patience or their number ends; the best round's tensors and the result are in `files` then.

    Args:
        initial: the shared tensors to begin with, by name.
        on_round: gets each round's history row.

    Raises:
        TooFewHospitals: fewer updates of a round were taken than the quorum asks for.
        TemptError: the checkpoint is damaged, or the disk is full.
    """
    state = _Rounds(plan, hospitals, initial)
    if files.partial.exists():
        state.restore(files.partial)
    began = time.monotonic()
    while state.go_on():
        state.round(grid, on_round)
        files.partial.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        state.save(files.partial)
    about = {"model": PRETRAINING, "seed": plan.seed, "hospital": 0, "best_epoch": state.progress.best_epoch}
    seconds = max(time.monotonic() - began, sum(row["seconds"] for row in state.progress.history))
    result: dict[str, Any] = about | {
        "seconds": {"fit": round(seconds, 3)},
        "rounds": state.progress.epoch,
        "hospitals": {str(h): asdict(part) for h, part in state.parts.items()},
        "history": state.progress.history,
    }
    tensors = {name: torch.from_numpy(array) for name, array in state.best.items()}
    files.keep_tensors(tensors, about, result)
    return result


class _Rounds:
    """Where pretraining is: everything that the next round and a resumption need."""

    def __init__(self, plan: Plan, hospitals: Sequence[Hospital], initial: Arrays) -> None:
        self.plan, self.hospitals = plan, hospitals
        self.current: Arrays = dict(initial)
        self.best: Arrays = self.current
        self.progress = Progress()
        self.parts = {h.hospital: Participation() for h in hospitals}
        self._open_row: dict[str, Any] | None = None  # of the last round, until its score has come
        self._ended = False
        federation = plan.federation
        self._aggregation = Aggregation(federation.strategy, federation.options)
        scaffold = federation.strategy == "scaffold"
        self._control: Arrays = {name: np.zeros_like(array) for name, array in initial.items()} if scaffold else {}
        self._records = sum(h.train for h in hospitals)
        self._selects = any(h.validation for h in hospitals)
        epochs = most_epochs(plan.settings.pretraining, self._records)
        self._last = federation.rounds if federation.rounds is not None else -(-epochs // federation.local_epochs)

    def go_on(self) -> bool:
        return not self._ended and self._records > 0

    def round(self, grid: Grid, on_round: OnRound) -> None:
        """One exchange: the score of the last round, then the next one's updates."""
        began = time.monotonic()
        plan, federation, number = self.plan, self.plan.federation, self.progress.epoch + 1
        asked = drawn(self.hospitals, federation.fraction, plan.seed, number) if number <= self._last else []
        scoring = self._selects and self._open_row is not None
        by_id = {h.hospital: h for h in self.hospitals}
        messages = {
            h: self._message(grid, by_id[h], number, h in asked, scoring) for h in by_id if h in asked or scoring
        }
        score = scored = loss = weight = 0.0
        taken: dict[int, float] = {}
        control = {name: array.astype(np.float64) for name, array in self._control.items()}
        for hospital, reply in exchange(grid, messages, federation.timeout):
            part, expected = self.parts[hospital], by_id[hospital]
            part.bytes_to_hospital += _size(messages[hospital].content)
            if reply is None or (reply.has_error() and reply.error.code < 100):
                part.missed += 1
                continue
            try:
                metrics = metrics_of(reply, expected)
                part.bytes_from_hospital += _size(reply.content)
                update, own_control = self._update_of(reply) if hospital in asked else (None, {})
                own_score = number_of(metrics, "score-sum", least=0) if scoring else 0.0
                own_loss = number_of(metrics, "loss") if update is not None else 0.0
            except Rejected as why:
                part.rejected.append(f"round {number}: {why}")
                continue
            score, scored = score + own_score, scored + (expected.validation if scoring else 0)
            if update is not None:
                self._aggregation.add(update, expected.train)
                loss, weight = loss + own_loss * expected.train, weight + expected.train
                taken[hospital] = own_loss
                for name, array in own_control.items():
                    control[name] += array.astype(np.float64) * (expected.train / self._records)
        self._close_row(score / scored if scored else None, on_round)
        if self._ended or not asked:
            self._ended = True
            return
        if len(taken) < federation.quorum * len(asked):
            raise TooFewHospitals(self._too_few(number, asked, taken))
        self.current = self._aggregation.finish(number, self.current)
        self._control = {name: array.astype(np.float32) for name, array in control.items()}
        for hospital in taken:
            self.parts[hospital].taken.append(number)
        self.progress.epoch = number
        batch = plan.settings.pretraining.batch_size
        self.progress.step += federation.local_epochs * -(-int(weight) // batch)
        self._open_row = {
            "epoch": number,
            "step": self.progress.step,
            "loss": loss / weight,
            "hospitals": len(taken),
            "seconds": round(time.monotonic() - began, 3),
        }
        if not self._selects:
            self._close_row(None, on_round)
            self._ended = number == self._last

    def _message(self, grid: Grid, hospital: Hospital, number: int, train: bool, score: bool) -> Message:
        federation, part = self.plan.federation, self.parts[hospital.hospital]
        config = self.plan.config(
            round=number,
            train=train,
            score=score,
            epochs=federation.local_epochs,
            alone=len(self.hospitals) == 1,
            taken=part.taken[-1] if part.taken else 0,
            **{
                "first-epoch": (number - 1) * federation.local_epochs + 1,
                "proximal-mu": proximal_mu(federation.strategy, federation.options),
                "keep-optimizer": federation.local_optimizer == "keep",
                "bfloat16": federation.encoding.bfloat16,
                "changed-rows": federation.encoding.changed_rows,
            },
        )
        content = RecordDict({"arrays": self._outgoing(), "config": config})
        if self._control and train:
            content["control"] = array_record(federation.encoding.encode(self._control))
        return grid.create_message(content, "train.pretrain", hospital.node, str(number), federation.timeout)

    def _outgoing(self) -> ArrayRecord:
        """The current tensors as a record, made once a round."""
        if getattr(self, "_sent_for", None) is not self.current:
            encoded = self.plan.federation.encoding.encode(self.current)
            self._sent, self._sent_for = array_record(encoded), self.current
        return self._sent

    def _update_of(self, reply: Message) -> tuple[Arrays, Arrays]:
        records = reply.content.array_records
        federation = self.plan.federation
        update = update_of(records.get("arrays"), self.current, federation.encoding, federation.largest_update)
        return update, control_of(records.get("control"), self._control, federation.encoding) if self._control else {}

    def _close_row(self, score: float | None, on_round: OnRound) -> None:
        """The last round's score has come: is it the best, and is that too long ago?"""
        row, progress = self._open_row, self.progress
        if row is None:
            return
        better = score is None or progress.best_score is None or score > progress.best_score
        if better:
            progress.best_epoch, progress.best_step, progress.best_score = progress.epoch, progress.step, score
            self.best = self.current
        row = {key: row[key] for key in ("epoch", "step", "loss")} | {"score": score, "best": better} | row
        progress.history.append(row)
        self._open_row = None
        self._ended = score is not None and out_of_patience(progress, self.plan.settings.pretraining)
        on_round(row)

    def _too_few(self, number: int, asked: Sequence[int], taken: Mapping[int, float]) -> str:
        without = [h for h in asked if h not in taken]
        why = next((self.parts[h].rejected[-1] for h in without if self.parts[h].rejected), "no reply")
        return (
            f"round {number}: the updates of {len(taken)} of {len(asked)} hospitals could be taken, the quorum is "
            f"{self.plan.federation.quorum:g}; hospital {without[0]}: {why}"
        )

    def save(self, path: Path) -> None:
        arrays: dict[str, NDArray[np.generic]] = {f"now.{name}": array for name, array in self.current.items()}
        if self.best is not self.current:
            arrays |= {f"best.{name}": array for name, array in self.best.items()}
        arrays |= {f"control.{name}": array for name, array in self._control.items()}
        arrays |= {f"server.{name}": array for name, array in self._aggregation.state().items()}
        about = {
            "progress": vars(self.progress),
            "parts": {str(h): asdict(part) for h, part in self.parts.items()},
            "row": self._open_row,
            "ended": self._ended,
        }
        checkpoint.save(path, {name: torch.from_numpy(a) for name, a in arrays.items()}, about, durable=False)

    def restore(self, path: Path) -> None:
        tensors, about = checkpoint.load(path)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            self.current = _part(arrays, "now.", self.current)
            there = any(name.startswith("best.") for name in arrays)
            self.best = _part(arrays, "best.", self.current) if there else self.current
            self._control = _part(arrays, "control.", self._control)
            self._aggregation.restore(
                {n.removeprefix("server."): a for n, a in arrays.items() if n.startswith("server.")}
            )
            self.progress = Progress(**about["progress"])
            self.parts = {h: Participation(**about["parts"][str(h)]) for h in self.parts}
            self._open_row, self._ended = about["row"], about["ended"]
        except (KeyError, TypeError) as error:
            raise TemptError(f"{path}: a checkpoint of another run ({error}); delete it to begin again") from None


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str, like: Arrays) -> Arrays:
    return {name: np.asarray(arrays[f"{prefix}{name}"], dtype=np.float32) for name in like}


def _size(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
