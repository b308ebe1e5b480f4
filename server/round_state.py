"""Where federated pretraining is between two exchanges: what the next round, a step back and a resumption need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from server.control_variates import ControlVariates
from server.exchange import Hospital, Plan
from server.participation import Participation, drawn
from server.step_back import LeftOut, Moved, part_of
from server.strategy import Aggregation
from server.validation import Arrays
from server.weights import bounded, counted, in_words
from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.fitting import FitFiles
from shared_model.training import Progress, most_epochs, out_of_patience, progress_of


class RoundState:
    """Where pretraining is: everything that the next round and a resumption need.

    Args:
        files: the pretraining's; SCAFFOLD keeps beside them what hospitals contributed.
    """

    def __init__(
        self, plan: Plan, hospitals: Sequence[Hospital], initial: Arrays, files: FitFiles | None = None
    ) -> None:
        self.plan, self.hospitals = plan, list(hospitals)
        self.current: Arrays = dict(initial)
        self.best: Arrays = self.current
        self.progress = Progress()
        self.parts = {h.hospital: Participation() for h in hospitals}
        self.open_row: dict[str, Any] | None = None  # of the last round, until its score has come
        self.before: Moved | None = None  # the last round, while it can be taken back
        self.left_out = LeftOut()
        self.ended = False
        federation = plan.federation
        self.aggregation = Aggregation(federation.strategy, federation.options)
        scaffold = federation.strategy == "scaffold"
        self.controls = ControlVariates(initial if scaffold else {}, files)
        self._agree()

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
        self.aggregation.check_number(len(self.drawn_in(1)))

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

    def moved(self) -> Moved:
        return Moved(self.current, self.controls.c, self.aggregation.state(), self.progress.step)

    def take_back(self, to: Moved) -> None:
        """Be where an aggregation began."""
        federation = self.plan.federation
        self.current, self.controls.c, self.progress.step = to.current, dict(to.control), to.step
        self.aggregation = Aggregation(federation.strategy, federation.options)
        self.aggregation.restore(to.moments)

    def made_of(self, number: int) -> dict[int, int]:
        """The hospitals whose updates made a round that can be taken back, with their weights."""
        if self.before is None or self.open_row is None:
            return {}
        return {h: self.counts[h].train for h, part in self.parts.items() if part.taken[-1:] == [number]}

    def step_back(self, number: int) -> bool:
        """Go back to the tensors before the last round's, without its heaviest update; whether that can be done."""
        last = number - 1
        weights, before = self.made_of(last), self.before
        if before is None or not self.leave_out(last, weights, f"its tensors made no numbers in round {number}"):
            return False
        self.take_back(before)
        for hospital in weights:
            self.parts[hospital].taken.remove(last)
        self.progress.epoch = last - 1
        self.before = self.open_row = None
        return True

    def leave_out(self, number: int, weights: Mapping[int, int], why: str) -> bool:
        """Leave the heaviest update out of a round that is done again; whether there is one, and a quorum without."""
        needed = self.plan.federation.needed(self.drawn)
        hospital = self.left_out.next_of(number, weights, self.drawn_in(number), needed)
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
        if self.selects:
            better = score is not None and (progress.best_score is None or score > progress.best_score)
        else:
            better = True
        if better or progress.best_score is None:
            progress.best_epoch, progress.best_step, progress.best_score = progress.epoch, progress.step, score
            self.best = self.current
        row = {key: row[key] for key in ("epoch", "step", "loss")} | {"score": score, "best": better} | row
        progress.history.append(row)
        self.open_row = None
        self.ended = self.selects and out_of_patience(progress, self.plan.settings.pretraining)
        return row

    def save(self, path: Path) -> None:
        tensors = self.moved().tensors()
        if self.best is not self.current:
            tensors |= {f"best.{name}": torch.from_numpy(array) for name, array in self.best.items()}
        before_is_best = self.before is not None and self.before.current is self.best  # as it mostly is
        if self.before is not None:
            moved = replace(self.before, current={}) if before_is_best else self.before
            tensors |= moved.tensors("before.")
        about = {
            "experiment": self.plan.experiment,
            "hospitals": [asdict(replace(h, node=None)) for h in self.hospitals],
            "progress": vars(self.progress),
            "parts": {str(h): asdict(part) for h, part in self.parts.items()},
            "row": self.open_row,
            "ended": self.ended,
            "before": None if self.before is None else {"step": self.before.step, "is_best": before_is_best},
            "left_out": asdict(self.left_out),
        }
        checkpoint.save(path, tensors, about, durable=False)
        self.controls.prune({h: part.taken for h, part in self.parts.items()})

    def restore(self, path: Path) -> None:
        tensors, about = checkpoint.load(path)
        like = self.moved()
        try:
            if about["experiment"] != self.plan.experiment:
                raise KeyError("its settings differ")
            self.progress = progress_of(about["progress"])
            self.take_back(Moved.of(tensors, self.progress.step, like))
            there = any(name.startswith("best.") for name in tensors)
            self.best = part_of(tensors, "best.", self.current) if there else self.current
            if (before := about.get("before")) is not None:
                if before["is_best"]:
                    like = replace(like, current={})
                self.before = Moved.of(tensors, int(before["step"]), like, "before.")
                if before["is_best"]:
                    self.before = replace(self.before, current=self.best)
            self.left_out = LeftOut(**about.get("left_out", {}))
            nodes = {h.hospital: h.node for h in self.hospitals}
            agreed = [Hospital(**content) for content in about["hospitals"]]
            self.hospitals = [replace(h, node=nodes.get(h.hospital)) for h in agreed]
            self.parts = {int(h): Participation(**part) for h, part in about["parts"].items()}
            self.open_row, self.ended = about["row"], about["ended"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TemptError(f"{path}: a checkpoint of another run ({error}); delete it to begin again") from None
        self.controls.check({h: part.taken for h, part in self.parts.items()})
        self._agree()
