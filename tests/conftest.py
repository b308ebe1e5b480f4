"""What every test shares: the real demo's place, one thread, hypothesis without deadlines.

Nothing of the packages is imported at the top: their shapes are checked only in modules imported after pytest's start.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# The number of threads is part of a result's bits, and busy waiting ruins a shared machine.
torch.set_num_threads(1)

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def eicu_demo() -> Path:
    """The folder of the real eICU demo: `TEMPT_EICU_DEMO`, else `shared/data/eicu-demo` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "eicu-demo"
    demo = Path(os.environ.get("TEMPT_EICU_DEMO") or beside)
    if not demo.is_dir():
        pytest.skip(f"the eICU demo is not at {demo}; TEMPT_EICU_DEMO names its folder")
    return demo
