"""What tests of whole runs have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim import consortium


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny consortium as a dataset directory."""
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", consortium.make_dataset())
