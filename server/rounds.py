"""Federated pretraining over any Flower Grid (Algorithm 1, lines 1-7, federated).

A round is one exchange, or as many as its algorithm has. In the first every hospital scores the tensors that come in,
which is the validation of the round before; those that were drawn then do what the algorithm asks for. So a federation
sends one message more than it has exchanges, and none for validation alone.

If most hospitals can do nothing with the tensors that came in, these are bad. Then a step is taken back, to the tensors
before them, and their round is done again without its heaviest update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid

from server.exchange import Hospital, SeedPlan, come_back
from server.flower_strategies import finish
from server.round_exchange import Came, exchange_of
from server.round_state import RoundState
from shared_model import checkpoint
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.federated_algorithm import Arrays, State
from shared_model.files import private_directory
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.training import progress_of

OnRound = Callable[[dict[str, Any]], None]
_SERIALS = 3  # of a hospital that are known: a step back takes one away, and a resumption may be of the one before


def pretrain(
    grid: Grid, plan: SeedPlan, hospitals: Sequence[Hospital], initial: Arrays, files: FitFiles, on_round: OnRound
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
    state = _Rounds(plan, hospitals, initial, files)
    if files.partial.exists():
        state.restore(files.partial)
    state.tell_bounds()
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
    if state.bounded:
        result["bounded"] = state.bounded
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


class _Rounds(RoundState):
    """How pretraining goes on from where it is."""

    _below: tuple[TooFewHospitals, int] | None = None  # the last exchange left its round so; hospitals needed
    _seconds = 0.0  # that the round has taken so far
    _wait_until: float | None = None  # for hospitals to come back, since this round was first below

    def go_on(self) -> bool:
        return not self.ended and self.records > 0

    def round(self, grid: Grid) -> dict[str, Any] | None:
        """One exchange: the score of the last round, then the next one's updates; the row of a round that is scored."""
        began = time.monotonic()
        plan, federation, number = self.plan, self.plan.federation, self.progress.epoch + 1
        out = self.left_out.of_round(number)
        asked = [h for h in self.drawn_in(number) if h not in out] if number <= self.last else []
        self._below = None
        came = exchange_of(self, grid, number, asked)
        for hospital, reason in came.why_not.items():
            plan.told.say(f"{came.doing}: hospital {hospital} is left out: {reason}")
        why_below, needed = None, self.needed
        enough = came.scored >= federation.needed(self.validation - came.unscored)
        if asked and len(came.taken) < needed:
            who = next((f"hospital {h}: {why}" for h, why in came.why_not.items() if h in asked), "no others take part")
            whose = ""
            if came.blames_the_tensors and self.before is not None:
                whose = self.left_out.in_words(self.before.epoch + 1, self.made())
            why_below = TooFewHospitals(
                f"round {number}: the updates of {len(came.taken)} of {self.drawn} hospitals could be taken, "
                f"{self._quorum()}; {who}{whose}"
            )
        fails = len(came.taken) < needed <= len(came.taken) + len(came.bad.intersection(asked)) if asked else not enough
        if fails and came.blames_the_tensors and self.step_back(number):
            self._wait_until = None
            return None
        can_wait = federation.timeout is not None and len(came.taken) + len(came.missing.intersection(asked)) >= needed
        if why_below is not None and can_wait:
            self._below = why_below, needed
            return None  # the last round is scored anew, too
        row = self.close_row(came.score / came.scored if came.scored and enough else None)
        if self.ended or not asked:
            self.ended = True
            return row
        if why_below is not None:
            raise why_below
        self._wait_until = None
        is_done, self._seconds = self._move(number, came), self._seconds + time.monotonic() - began
        if is_done:
            self.open_row = {
                "epoch": number,
                "step": self.progress.step,
                "loss": came.loss / came.weight,
                "hospitals": len(came.taken),
                "seconds": round(self._seconds, 3),
            }
            self._seconds = 0.0
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
        out = self.left_out.of_round(self.progress.epoch + 1)
        nodes = {h.node for h in self.hospitals if h.train and h.hospital not in out}
        if not come_back(grid, nodes, needed, self._wait_until):
            raise why

    def _quorum(self) -> str:
        """How many a round needs, and why."""
        federation, least = self.plan.federation, self.chosen.algorithm.least(self.chosen.options)
        if self.needed > federation.needed(self.drawn):
            return f"{self.chosen.name} needs {least} ({self.chosen.options_in_words})"
        return f"the quorum is {federation.quorum:g}"

    def _move(self, number: int, came: Came) -> bool:
        """The next state is made of the answers; whether the round is done with that.

        If it is no number because of one answer, this exchange is to be done again without the heaviest.

        Raises:
            TemptError: the strategy left what is no number, and not because of one answer.
        """
        federation, begun, serial = self.plan.federation, self.stand(), self.serial
        state = self.checked(self._finish(number, came.gathered), self.initial)
        for name, array in ((name, array) for part in state.values() for name, array in part.items()):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                what = f"{federation.strategy} left NaN or infinity in tensor {name}"
                if self.leave_out(number, came.taken, what):
                    return False
                raise TemptError(
                    f"round {number}: {what}; choose other options ({self.chosen.options_in_words} now)"
                    f"{self.left_out.in_words(number, came.taken)}"
                )
        self.before, self.state, self.weights = begun, state, dict(came.taken)
        for known, hospitals in ((self.accepted, came.taken), (self.kept, came.kept)):
            for hospital in hospitals:
                known[hospital] = [*known.get(hospital, []), serial][-_SERIALS:]
        self.exchange = (self.exchange + 1) % self.chosen.algorithm.exchanges
        if self.exchange:
            return False
        for hospital in came.taken:
            self.parts[hospital].taken.append(number)
        self.progress.epoch = number
        steps = -(-came.weight // self.plan.settings.pretraining.batch_size)
        self.progress.step += federation.local_epochs * steps
        return True

    def _finish(self, number: int, gathered: Any) -> State:
        algorithm, options = self.chosen.algorithm, self.chosen.options
        if isinstance(algorithm.finish, str):
            return finish(self.chosen, self.state, gathered, number)
        return algorithm.finish(self.state, gathered, options, number, self.exchange)
