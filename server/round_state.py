"""Where federated pretraining is between two exchanges: what the next round, a step back and a resumption need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from server.contributions import Contributions
from server.exchange import Hospital, SeedPlan
from server.flower_strategies import check_strategy
from server.participation import Participation, drawn
from server.step_back import LeftOut, Stand, arrays_of, names_of, state_of
from server.weights import bounded, counted, in_words
from shared_model import checkpoint
from shared_model.algorithms import chosen
from shared_model.errors import TemptError
from shared_model.federated_algorithm import NOW, Arrays, State, check_state
from shared_model.fitting import FitFiles
from shared_model.training import Progress, most_epochs, out_of_patience, progress_of

_MOST_AT_ONCE = 100
"""Hospitals of a round whose answers may be held at once: 1.2 GB of a model of the paper's size."""
_STATE, _BEST, _BEFORE = "state.", "best.", "before."  # how names in the checkpoint begin


class RoundState:
    """Where pretraining is: everything that the next round and a resumption need.

    Args:
        files: the pretraining's; beside them the server keeps what an algorithm keeps of each hospital.
    """

    def __init__(self, plan: SeedPlan, hospitals: Sequence[Hospital], initial: Arrays, files: FitFiles) -> None:
        self.plan, self.hospitals = plan, list(hospitals)
        federation = plan.federation
        self.chosen = chosen(federation.strategy, federation.options)
        check_strategy(self.chosen)
        self.initial, self.state = initial, self.checked(self.chosen.algorithm.begin(initial), initial)
        self.exchange = 0  # of the next round, of its algorithm's
        self.accepted: dict[int, list[int]] = {}  # a hospital's last exchanges whose answer made a state, by serial
        self.kept: dict[int, list[int]] = {}  # of these, those with something that the server keeps
        self.contributions = Contributions(files, federation.strategy)
        self.best: Arrays = self.current
        self.progress = Progress()
        self.parts = {h.hospital: Participation() for h in hospitals}
        self.open_row: dict[str, Any] | None = None  # of the last round, until its score has come
        self.before: Stand | None = None  # before the last exchange, while it can be taken back
        self.weights: dict[int, int] = {}  # of the answers that made it, by hospital
        self.left_out = LeftOut()
        self.ended = False
        self._agree()

    @property
    def current(self) -> Arrays:
        """The shared tensors."""
        return self.state[NOW]

    @property
    def serial(self) -> int:
        """The number of the next exchange over all rounds, from 1 on."""
        return self.progress.epoch * self.chosen.algorithm.exchanges + self.exchange + 1

    def checked(self, state: State, initial: Arrays) -> State:
        """The same state, if it is one.

        Raises:
            TemptError: its algorithm made what a checkpoint could not hold as it is.
        """
        try:
            check_state(state, initial)
        except (ValueError, AttributeError) as error:
            raise TemptError(f"strategy '{self.chosen.name}': {error}") from None
        return state

    def _agree(self) -> None:
        """What follows from who takes part."""
        federation = self.plan.federation
        self.counts = counted(self.hospitals, federation.most_records, self.plan.largest_share)
        self.bounded = bounded(self.hospitals, self.counts)
        self.records = sum(h.train for h in self.counts.values())
        self.validation = sum(h.validation for h in self.counts.values())
        epochs = most_epochs(self.plan.settings.pretraining, self.records)
        self.last = federation.rounds if federation.rounds is not None else -(-epochs // federation.local_epochs)
        expected = max(self.plan.expected, len(self.hospitals)) - sum(not h.train for h in self.hospitals)
        # Of the expected, not of those who happened to come: else fewer than the quorum could end a round
        self.drawn = max(1, round(federation.fraction * expected))
        least = self.chosen.algorithm.least(self.chosen.options)
        if self.records and self.drawn < least:
            raise TemptError(
                f"strategy '{self.chosen.name}' with {self.chosen.options_in_words} needs the updates of {least} "
                f"hospitals, and {self.drawn} train in a round; give other options, more hospitals or another strategy"
            )
        self.needed = max(federation.needed(self.drawn), least)
        if self.chosen.algorithm.holds_all and len(self.drawn_in(1)) > _MOST_AT_ONCE:
            raise TemptError(
                f"strategy '{self.chosen.name}' holds every update at once, at most {_MOST_AT_ONCE}, and "
                f"{len(self.drawn_in(1))} hospitals train in a round; use a smaller fraction or another strategy"
            )

    def drawn_in(self, number: int) -> list[int]:
        return drawn(self.hospitals, self.drawn, self.plan.seed, number)

    @property
    def selects(self) -> bool:
        """Whether there is a validation record to select the best round by."""
        return self.validation > 0

    def tell_bounds(self) -> None:
        """Tell the operator who counts for less than it says."""
        for line in in_words(self.bounded, self.plan.federation.most_records, self.plan.largest_share):
            self.plan.told.say(line)

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

    def stand(self) -> Stand:
        return Stand(self.state, self.progress.epoch, self.exchange, self.progress.step)

    def take_back(self, to: Stand) -> None:
        """Stand there again."""
        self.state, self.exchange = to.state, to.exchange
        self.progress.epoch, self.progress.step = to.epoch, to.step

    def made(self) -> dict[int, int]:
        """The hospitals whose answers made the last exchange, with their weights, if it can be taken back."""
        if self.before is None or (self.before.epoch < self.progress.epoch and self.open_row is None):
            return {}
        return self.weights

    def step_back(self, number: int) -> bool:
        """Go back to before the last exchange, without its heaviest answer; whether that can be done."""
        weights, before = self.made(), self.before
        why = f"its tensors made no numbers in round {number}"
        if before is None or not self.leave_out(before.epoch + 1, weights, why):
            return False
        for hospital in weights:
            if before.epoch < self.progress.epoch:
                self.parts[hospital].taken.remove(before.epoch + 1)
        self.take_back(before)
        for serials in (*self.accepted.values(), *self.kept.values()):
            serials[:] = [serial for serial in serials if serial < self.serial]
        self.before = self.open_row = None
        return True

    def leave_out(self, number: int, weights: Mapping[int, int], why: str) -> bool:
        """Leave the heaviest update out of a round that is done again; whether there is one, and a quorum without."""
        hospital = self.left_out.next_of(number, weights, self.drawn_in(number), self.needed)
        if hospital is None:
            return False
        self.left_out.add(number, hospital)
        share = weights[hospital] / sum(weights.values())
        reason = f"round {number}: {why}, and this update was the heaviest of it ({share:.0%} of the weight)"
        self.parts[hospital].rejected.append(reason)
        self.plan.told.say(f"hospital {hospital} is left out, and the round is done again: {reason}")
        return True

    def close_row(self, score: float | None) -> dict[str, Any] | None:
        """The last round's score has come: is it the best, and is that too long ago?"""
        row, progress = self.open_row, self.progress
        if row is None:
            return None
        better = progress.take(score, selects=self.selects)
        if progress.best_epoch == progress.epoch:
            self.best = self.current
        row = {key: row[key] for key in ("epoch", "step", "loss")} | {"score": score, "best": better} | row
        progress.history.append(row)
        self.open_row = None
        self.ended = self.selects and out_of_patience(progress, self.plan.settings.pretraining)
        return row

    def save(self, path: Path) -> None:
        tensors = self.stand().tensors(_STATE)
        if self.best is not self.current:
            tensors |= {f"{_BEST}{name}": torch.from_numpy(array) for name, array in self.best.items()}
        before_is_best = self.before is not None and self.before.state[NOW] is self.best  # as it mostly is
        if self.before is not None:
            others = {part: of for part, of in self.before.state.items() if part != NOW or not before_is_best}
            tensors |= replace(self.before, state=others).tensors(_BEFORE)
        about = {
            "experiment": self.plan.experiment,
            "hospitals": [asdict(replace(h, node=None)) for h in self.hospitals],
            "progress": vars(self.progress),
            "parts": {str(h): asdict(part) for h, part in self.parts.items()},
            "row": self.open_row,
            "ended": self.ended,
            "before": None if self.before is None else self.before.about() | {"is_best": before_is_best},
            "names": names_of(self.state),
            "names_before": {} if self.before is None else names_of(self.before.state),
            "accepted": {str(h): serials for h, serials in self.accepted.items()},
            "kept": {str(h): serials for h, serials in self.kept.items()},
            "weights": {str(h): weight for h, weight in self.weights.items()},
            "left_out": asdict(self.left_out),
            "exchange": self.exchange,
        }
        checkpoint.save(path, tensors, about, durable=False)
        if self.chosen.algorithm.server_keeps:
            self.contributions.prune(self.kept)

    def restore(self, path: Path) -> None:
        tensors, about = checkpoint.load(path)
        try:
            if about["experiment"] != self.plan.experiment:
                raise KeyError("its settings differ")
            self.progress = progress_of(about["progress"])
            self.state, self.exchange = state_of(tensors, about["names"], _STATE), int(about["exchange"])
            check_state(self.state, self.initial)
            there = any(name.startswith(_BEST) for name in tensors)
            self.best = arrays_of(tensors, _BEST, self.current) if there else self.current
            if (before := about["before"]) is not None:
                best = {NOW: self.best} if before.pop("is_best") else {}
                others = {part: names for part, names in about["names_before"].items() if part not in best}
                state = state_of(tensors, others, _BEFORE) | best
                check_state(state, self.initial)
                self.before = Stand({part: state[part] for part in about["names_before"]}, **before)
            self.accepted = {int(h): serials for h, serials in about["accepted"].items()}
            self.kept = {int(h): serials for h, serials in about["kept"].items()}
            self.weights = {int(h): weight for h, weight in about["weights"].items()}
            self.left_out = LeftOut(**about["left_out"])
            nodes = {h.hospital: h.node for h in self.hospitals}
            agreed = [Hospital(**content) for content in about["hospitals"]]
            self.hospitals = [replace(h, node=nodes.get(h.hospital)) for h in agreed]
            self.parts = {int(h): Participation(**part) for h, part in about["parts"].items()}
            self.open_row, self.ended = about["row"], about["ended"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TemptError(f"{path}: a checkpoint of another run ({error}); delete it to begin again") from None
        if self.chosen.algorithm.server_keeps:
            self.contributions.check(self.kept)
        self._agree()
