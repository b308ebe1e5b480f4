"""What is to leave a hospital, and what of it stands on too few records to leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hospital_client.policy import Policy
from shared_model.metric_names import MEASURED

_OF_TEST = re.compile(rf".*\.(records|{'|'.join(MEASURED)})")
_OF_VALIDATION = re.compile(r"score-sum|.*\.best_epoch")
_NOT_OF_TRAINING = re.compile("hospital|num-examples|score-sum|least-.*")


@dataclass(frozen=True)
class Reply:
    """What is to leave the hospital.

    Attributes:
        arrays: by record of the message and name.
        parts: the training, validation and test records that it stands on; these numbers do not leave.
    """

    numbers: Mapping[str, int | float]
    arrays: Mapping[str, Mapping[str, NDArray[np.generic]]]
    texts: Mapping[str, str]
    codes: Mapping[str, list[str]] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)


def without_too_few(kind: str, reply: Reply, policy: Policy) -> Reply:
    """A reply without what stands on fewer records than the policy asks for.

    In the place of each such part's numbers the least number of records is told, `least-test` and the like: so the
    server knows that they are too few. A greeting tells all three, as nothing else of them leaves then.
    """
    least = {
        "train": policy.least_training_records,
        "validation": policy.least_validation_records,
        "test": policy.least_test_records,
    }
    if kind == "hello":
        return replace(reply, numbers={**reply.numbers, **{f"least-{part}": of for part, of in least.items()}})
    few = {part for part, records in reply.parts.items() if records < least[part]}
    of_few = [of for part, of in (("validation", _OF_VALIDATION), ("test", _OF_TEST)) if part in few]
    numbers = {n: value for n, value in reply.numbers.items() if not any(of.fullmatch(n) for of in of_few)}
    numbers |= {f"least-{part}": least[part] for part in sorted(few)}
    if "train" not in few:
        return replace(reply, numbers=numbers)
    numbers = {name: value for name, value in numbers.items() if _NOT_OF_TRAINING.fullmatch(name)}
    if "num-examples" in numbers:
        numbers["num-examples"] = 0
    return replace(reply, numbers=numbers, arrays={})
