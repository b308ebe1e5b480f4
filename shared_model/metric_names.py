"""What is measured of a model's answers (Section 4.1.4), as results, tables, messages and ledgers name it."""

from __future__ import annotations

METRICS = {"prauc": "PRAUC", "jaccard": "Jaccard", "f1": "F1"}
"""The metrics, each with its heading."""
OF_SCORES = frozenset({"prauc"})
"""Those of them that a system without scores does not have."""
MEASURED = (*METRICS, "medications")
"""What a hospital's test records give: the metrics, and how many medications were recommended."""
