"""A federation's options as Flower's run configuration has them: flat names, no lists."""

from __future__ import annotations

RUN_CONFIG: dict[str, str | int | float | bool] = {
    "data": "",
    "vocabulary": "",
    "minimum-count": 5,
    "min-records": 400,
    "top-medications": 300,
    "top-procedures": 1000,
    "out": "runs/flower",
    "hospitals": 1,
    "models": "finetune-freeze,finetune,tempt",
    "seeds": "42",
    "preset": "paper",
    "set": "",
    "strategy": "fedavg",
    "strategy-options": "",
    "rounds": 0,
    "local-epochs": 1,
    "local-optimizer": "reset",
    "fraction": 1.0,
    "quorum": 0.5,
    "timeout": 3600.0,
    "largest-update": 10.0,
    "most-records": 0,
    "transport": "float32",
    "changed-rows": False,
    "save-scores": False,
    "device": "cpu",
    "status-file": "",
}
"""Every option with its default, as `[tool.flwr.app.config]` of pyproject.toml has them."""
