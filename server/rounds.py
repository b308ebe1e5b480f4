"""Federated pretraining over any Flower Grid (Algorithm 1, lines 1-7, federated).

A round is one exchange. Every hospital first scores the tensors that come in, which is the validation of the round
before; those that were drawn then train. So a federation sends one message more than it has rounds, and none for
validation alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.exchange import (
    Hospital,
    Plan,
    come_back,
    error_of,
    exchange,
    is_missing,
    least_of,
    lifetime,
    metrics_of,
    size_of,
    within,
)
from server.participation import Participation, drawn
from server.plain_message import array_record
from server.strategy import Aggregation, proximal_mu
from server.validation import Arrays, Rejected, control_of, number_of, update_of
from shared_model import checkpoint
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.files import private_directory
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.training import Progress, most_epochs, out_of_patience, progress_of

_LARGEST_LOSS = 1e9


class _Answer(NamedTuple):
    """What a hospital's reply to a round holds, once it is checked; no score where its policy has too few records."""

    score: float | None
    loss: float
    update: Arrays | None
    control: Arrays


OnRound = Callable[[dict[str, Any]], None]


def pretrain(
    grid: Grid, plan: Plan, hospitals: Sequence[Hospital], initial: Arrays, files: FitFiles, on_round: OnRound
) -> dict[str, Any]:
    """Rounds until patience or their number ends; the best round's tensors and the result are in `files` then.

    Args:
        hospitals: who is there. At a resumption those that were agreed on at the start count: one that is not there
            is missed, one that has come anew waits for the next run.
        initial: the shared tensors to begin with, by name.
        on_round: gets each round's history row, once the round is kept.

    Raises:
        TooFewHospitals: fewer updates of a round were taken than the quorum asks for, and waiting did not help.
        TemptError: the checkpoint is damaged, the disk is full, or the strategy left what is no number.
    """
    state = _Rounds(plan, hospitals, initial)
    if files.partial.exists():
        state.restore(files.partial)
    began = time.monotonic()
    private_directory(files.partial.parent)
    while state.go_on():
        row = state.round(grid)
        state.save(files.partial)
        if row is not None:
            on_round(row)
        state.tell()
        state.wait_for_more(grid)
    about = {"model": PRETRAINING, "seed": plan.seed, "hospital": 0, "best_epoch": state.progress.best_epoch}
    about["experiment"] = plan.experiment
    seconds = max(time.monotonic() - began, sum(row["seconds"] for row in state.progress.history))
    result: dict[str, Any] = about | {
        "seconds": {"fit": round(seconds, 3)},
        "rounds": state.progress.epoch,
        "hospitals": {str(h): asdict(part) for h, part in state.parts.items()},
        "history": state.progress.history,
    }
    if not state.selects:
        result["selected"] = "last round, for want of a validation record"
    tensors = {name: torch.from_numpy(array) for name, array in state.best.items()}
    files.keep_tensors(tensors, about, result)
    return result


def rounds_of(files: FitFiles) -> list[dict[str, Any]]:
    """The rows of the rounds that an unfinished pretraining has kept."""
    if not files.partial.exists():
        return []
    about = checkpoint.load(files.partial)[1]
    try:
        return progress_of(about["progress"]).history
    except (KeyError, ValueError):
        raise TemptError(f"{files.partial}: a checkpoint of another run; delete it to begin again") from None


class _Rounds:
    """Where pretraining is: everything that the next round and a resumption need."""

    def __init__(self, plan: Plan, hospitals: Sequence[Hospital], initial: Arrays) -> None:
        self.plan, self.hospitals = plan, list(hospitals)
        self.current: Arrays = dict(initial)
        self.best: Arrays = self.current
        self.progress = Progress()
        self.parts = {h.hospital: Participation() for h in hospitals}
        self._below: tuple[TooFewHospitals, int] | None = None  # the last exchange left its round so; hospitals needed
        self._wait_until: float | None = None  # for hospitals to come back, since this round was first below
        self._open_row: dict[str, Any] | None = None  # of the last round, until its score has come
        self._ended = False
        federation = plan.federation
        self._aggregation = Aggregation(federation.strategy, federation.options)
        scaffold = federation.strategy == "scaffold"
        self._control: Arrays = {name: np.zeros_like(array) for name, array in initial.items()} if scaffold else {}
        self._agree()

    def _agree(self) -> None:
        """What follows from who takes part."""
        federation = self.plan.federation
        self._records = sum(h.train for h in self.hospitals)
        self._validation = sum(h.validation for h in self.hospitals)
        epochs = most_epochs(self.plan.settings.pretraining, self._records)
        self._last = federation.rounds if federation.rounds is not None else -(-epochs // federation.local_epochs)
        expected = max(self.plan.expected, len(self.hospitals)) - sum(not h.train for h in self.hospitals)
        # Of the expected, not of those who happened to come: else fewer than the quorum could end a round
        self._drawn = max(1, round(federation.fraction * expected))
        self._aggregation.check_number(len(drawn(self.hospitals, self._drawn, self.plan.seed, 1)))

    @property
    def selects(self) -> bool:
        """Whether there is a validation record to select the best round by."""
        return self._validation > 0

    def go_on(self) -> bool:
        return not self._ended and self._records > 0

    def round(self, grid: Grid) -> dict[str, Any] | None:
        """One exchange: the score of the last round, then the next one's updates; the row of a round that is scored."""
        began = time.monotonic()
        plan, federation, number = self.plan, self.plan.federation, self.progress.epoch + 1
        asked = drawn(self.hospitals, self._drawn, plan.seed, number) if number <= self._last else []
        self._below, missing = None, set[int]()
        scoring = self.selects and self._open_row is not None
        by_id = {h.hospital: h for h in self.hospitals if h.hospital in asked or (scoring and h.validation)}
        messages = self._messages(grid, list(by_id.values()), number, asked, scoring)
        score = loss = 0.0
        scored = unscored = weight = 0
        taken: list[int] = []
        why_not: dict[int, str] = {h: "it is not there" for h in by_id if h not in messages}
        control = {name: array.astype(np.float64) for name, array in self._control.items()}
        for hospital in why_not:
            self.parts[hospital].missed += 1
            missing.add(hospital)
        doing = f"round {number}" if asked else "the last round's score"
        plan.told.say(f"{doing}: waiting {within(federation.timeout)} for the replies of {len(messages)} hospitals")
        for hospital, reply in exchange(grid, messages, federation.timeout):
            part, expected = self.parts[hospital], by_id[hospital]
            part.bytes_to_hospital += size_of(messages[hospital].content)
            if reply is None or is_missing(reply):
                part.missed += 1
                why_not[hospital] = "no reply" if reply is None else error_of(reply)
                missing.add(hospital)
                continue
            try:
                answer = self._checked(reply, expected, trains=hospital in asked, scores=scoring)
            except Rejected as why:
                part.rejected.append(f"{doing}: {why}")
                why_not[hospital] = str(why)
                continue
            part.bytes_from_hospital += size_of(reply.content)
            if scoring and answer.score is not None:
                score, scored = score + answer.score, scored + expected.validation
            elif scoring:
                unscored += expected.validation
            if answer.update is not None:
                self._aggregation.add(answer.update, expected.train)
                loss, weight = loss + answer.loss * expected.train, weight + expected.train
                taken.append(hospital)
                for name, array in answer.control.items():
                    # SCAFFOLD: c moves by the hospitals' share of all records
                    control[name] += array.astype(np.float64) * (expected.train / self._records)
        for hospital, reason in why_not.items():
            plan.told.say(f"{doing}: hospital {hospital} is left out: {reason}")
        why_below, needed = None, federation.needed(self._drawn)
        if asked and len(taken) < needed:
            who = next((f"hospital {h}: {why}" for h, why in why_not.items() if h in asked), "no others take part")
            why_below = TooFewHospitals(
                f"round {number}: the updates of {len(taken)} of {self._drawn} hospitals could be taken, the quorum is "
                f"{federation.quorum:g}; {who}"
            )
            self._aggregation.forget()
            if federation.timeout is not None and len(taken) + len(missing.intersection(asked)) >= needed:
                self._below = why_below, needed
                return None  # the last round is scored anew, too
        enough = scored >= federation.needed(self._validation - unscored)
        row = self._close_row(score / scored if scored and enough else None)
        if self._ended or not asked:
            self._ended = True
            return row
        if why_below is not None:
            raise why_below
        self._wait_until = None
        self._move(number, taken, control)
        self.progress.step += federation.local_epochs * -(-weight // plan.settings.pretraining.batch_size)
        self._open_row = {
            "epoch": number,
            "step": self.progress.step,
            "loss": loss / weight,
            "hospitals": len(taken),
            "seconds": round(time.monotonic() - began, 3),
        }
        if not self.selects:
            row = self._close_row(None)
            self._ended = number == self._last
        return row

    def wait_for_more(self, grid: Grid) -> None:
        """After a round below its quorum: wait until so many hospitals are there that it is worth another try.

        Raises:
            TooFewHospitals: they were not, within as many seconds as an exchange has.
        """
        limit, now = self.plan.federation.timeout, time.monotonic()
        if self._below is None or limit is None:
            return
        why, needed = self._below
        if self._wait_until is None:
            self._wait_until = now + limit
        self.plan.told.say(f"{why}; waiting up to {max(0.0, self._wait_until - now):.0f} s for others to come back")
        nodes = {h.node for h in self.hospitals if h.train}
        if not come_back(grid, nodes, needed, self._wait_until):
            raise why

    def tell(self) -> None:
        """Tell the operator each hospital's part."""
        rows = {}
        for h in self.hospitals:
            part = self.parts[h.hospital]
            rows[h.hospital] = {
                "node": h.node,
                "records": h.train,
                "last_round": part.taken[-1] if part.taken else 0,
                "missed": part.missed,
                "rejected": part.rejected,
            }
        self.plan.told.hospitals(rows)

    def _messages(
        self, grid: Grid, hospitals: Sequence[Hospital], number: int, asked: Sequence[int], scoring: bool
    ) -> dict[int, Message]:
        """A round's messages; they share the tensors that go out."""
        federation, lives = self.plan.federation, lifetime(self.plan.federation.timeout)
        arrays = array_record(federation.encoding.encode(self.current))
        control = array_record(federation.encoding.encode(self._control)) if self._control else None
        found = {}
        for h in hospitals:
            if h.node is None:
                continue
            part, train = self.parts[h.hospital], h.hospital in asked
            config = self.plan.config(
                round=number,
                train=train,
                score=scoring and h.validation > 0,
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
            content: dict[str, Any] = {"arrays": arrays, "config": config}
            if control is not None and train:
                content["control"] = control
            message = RecordDict(content)
            found[h.hospital] = grid.create_message(message, "train.pretrain", h.node, str(number), lives)
        return found

    def _checked(self, reply: Message, expected: Hospital, *, trains: bool, scores: bool) -> _Answer:
        """What a reply holds, if all of it is as it should be."""
        federation, records = self.plan.federation, reply.content.array_records if reply.has_content() else {}
        metrics = metrics_of(reply, expected)
        if expected.train and (least := least_of(metrics, "train")):
            raise Rejected(f"has fewer than {least} training records, too few by its policy")
        if number_of(metrics, "num-examples") != expected.train:
            raise Rejected(
                f"tells {metrics['num-examples']} training records, expected {expected.train} as at the start"
            )
        score: float | None = 0.0
        if scores and expected.validation and least_of(metrics, "validation"):
            score = None
        elif scores and expected.validation:
            score = number_of(metrics, "score-sum", least=0, most=expected.validation * (1 + 1e-6))
        if not trains:
            return _Answer(score, 0.0, None, {})
        loss = number_of(metrics, "loss", least=0, most=_LARGEST_LOSS)
        encoding, largest = federation.encoding, federation.largest_update
        update = update_of(records.get("arrays"), self.current, encoding, largest)
        control: Arrays = {}
        if self._control:
            control = control_of(records.get("control"), self.current, encoding, largest)
        return _Answer(score, loss, update, control)

    def _move(self, number: int, taken: Sequence[int], control: Mapping[str, NDArray[np.float64]]) -> None:
        """The next shared tensors are made of the updates."""
        self.current = self._aggregation.finish(number, self.current)
        for name, array in self.current.items():
            if not np.isfinite(array).all():
                options = ", ".join(f"{option}={value:g}" for option, value in self.plan.federation.options.items())
                raise TemptError(
                    f"round {number}: {self.plan.federation.strategy} left NaN or infinity in tensor {name}; "
                    f"choose other options ({options or 'the defaults'} now)"
                )
        self._control = {name: array.astype(np.float32) for name, array in control.items()}
        for hospital in taken:
            self.parts[hospital].taken.append(number)
        self.progress.epoch = number

    def _close_row(self, score: float | None) -> dict[str, Any] | None:
        """The last round's score has come: is it the best, and is that too long ago?"""
        row, progress = self._open_row, self.progress
        if row is None:
            return None
        if self.selects:
            better = score is not None and (progress.best_score is None or score > progress.best_score)
        else:
            better = True
        if better or progress.best_score is None:
            progress.best_epoch, progress.best_step, progress.best_score = progress.epoch, progress.step, score
            self.best = self.current
        row = {key: row[key] for key in ("epoch", "step", "loss")} | {"score": score, "best": better} | row
        progress.history.append(row)
        self._open_row = None
        self._ended = self.selects and out_of_patience(progress, self.plan.settings.pretraining)
        return row

    def save(self, path: Path) -> None:
        arrays: dict[str, NDArray[np.generic]] = {f"now.{name}": array for name, array in self.current.items()}
        if self.best is not self.current:
            arrays |= {f"best.{name}": array for name, array in self.best.items()}
        arrays |= {f"control.{name}": array for name, array in self._control.items()}
        arrays |= {f"server.{name}": array for name, array in self._aggregation.state().items()}
        about = {
            "experiment": self.plan.experiment,
            "hospitals": [asdict(replace(h, node=None)) for h in self.hospitals],
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
            if about["experiment"] != self.plan.experiment:
                raise KeyError("its settings differ")
            self.current = _part(arrays, "now.", self.current)
            there = any(name.startswith("best.") for name in arrays)
            self.best = _part(arrays, "best.", self.current) if there else self.current
            self._control = _part(arrays, "control.", self._control)
            self._aggregation.restore(
                {n.removeprefix("server."): a for n, a in arrays.items() if n.startswith("server.")}
            )
            nodes = {h.hospital: h.node for h in self.hospitals}
            agreed = [Hospital(**content) for content in about["hospitals"]]
            self.hospitals = [replace(h, node=nodes.get(h.hospital)) for h in agreed]
            self.progress = progress_of(about["progress"])
            self.parts = {int(h): Participation(**part) for h, part in about["parts"].items()}
            self._open_row, self._ended = about["row"], about["ended"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TemptError(f"{path}: a checkpoint of another run ({error}); delete it to begin again") from None
        self._agree()


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str, like: Arrays) -> Arrays:
    return {name: np.asarray(arrays[f"{prefix}{name}"], dtype=np.float32) for name in like}
