"""A simulation is gone on with by the code that began it, and says which file differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from shared_model.files import read_json
from sim.cli import run as tempt
from tests.sim import consortium


@pytest.mark.parametrize("mode", ["centralized", "local", "federated"])
def test_a_run_was_gone_on_with_by_other_code(
    tmp_path: Path, data: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["simulate", mode, "--data", str(data), "--out", str(out), "--models", "finetune-freeze", "--jobs", "1"]
    command += ["--hospitals", "21,34", *consortium.assigned({"pretraining.epochs": "1", "tuning.epochs": "1"})]
    assert tempt(command) == 0
    config = read_json(out / "config.json")
    units = (consortium.ROOT / "sim" / "units.py").read_bytes()
    assert config["code"]["sim/units.py"] == hashlib.sha256(units).hexdigest()[:16]
    assert {name.partition("/")[0] for name in config["code"]} == {"sim", "server", "hospital_client", "shared_model"}
    assert tempt([*command, "--resume"]) == 0

    def refused(code: dict[str, Any] | None) -> str:
        kept = {name: value for name, value in config.items() if name != "code"}
        (out / "config.json").write_text(json.dumps(kept | ({} if code is None else {"code": code})))
        capsys.readouterr()
        assert tempt([*command, "--resume"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    code = config["code"]
    end = "go on with the code of then, or begin another run with another --out"
    began = f"error: {out}/config.json: the run was begun "
    assert refused(code | {"sim/units.py": "0"}) == f"{began}with other code: sim/units.py differs; {end}"
    fewer = {name: digest for name, digest in code.items() if name != "shared_model/training.py"}
    assert refused(fewer) == f"{began}with other code: shared_model/training.py is new; {end}"
    more = code | {"sim/gone.py": "0", "sim/workers.py": "0"}
    assert refused(more) == f"{began}with other code: sim/gone.py is gone (and 1 more); {end}"
    assert refused(None).startswith(f"{began}by an earlier version, which did not keep what its code was; go on with")
