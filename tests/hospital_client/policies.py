"""Policies of hospitals for tests, whose hospitals have few records."""

from __future__ import annotations

from pathlib import Path

FEW_RECORDS = "".join(f"least_{part}_records = 1\n" for part in ("training", "validation", "test"))


def write_policy(folder: Path, text: str = FEW_RECORDS) -> Path:
    """A hospital's folder with a policy; by default one under which a single record's scores leave it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "policy.toml").write_text(text, encoding="utf-8")
    return folder
