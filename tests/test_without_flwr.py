"""Whatever needs no federation runs where Flower can't be imported, and the command does not import it unasked."""

from __future__ import annotations

import subprocess
import sys

# The modules that speak Flower.
FEDERATED = {
    "hospital_client.app",
    "hospital_client.in_step",
    "hospital_client.leaving",
    "server.app",
    "server.exchange",
    "server.federation",
    "server.flower_strategies",
    "server.participation",
    "server.plain_message",
    "server.round_exchange",
    "server.round_state",
    "server.rounds",
    "server.run_options",
    "server.tuning",
    "server.validation",
    "server.vocabulary_agreement",
    "server.weights",
    "sim.bench_federation",
    "sim.code_recovery",
    "sim.engines",
    "sim.federated",
    "sim.inprocess_grid",
}

IMPORT_ALL = f"""
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flwr":
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
for top in ("shared_model", "hospital_client", "server", "sim"):
    package = importlib.import_module(top)
    for module in pkgutil.walk_packages(package.__path__, top + "."):
        if module.name not in {FEDERATED!r} and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""

IMPORT_COMMAND = """
import sys
import sim.cli
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "flwr"))
"""


def test_modules_when_flwr_cannot_be_imported_still_import() -> None:
    imported = _python(IMPORT_ALL).split()
    assert {"sim.cli", "sim.centralized", "shared_model.pretraining", "shared_model.adaptation.tempt"} <= set(imported)


def test_command_when_imported_leaves_flwr_alone() -> None:
    assert _python(IMPORT_COMMAND).split() == []


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
