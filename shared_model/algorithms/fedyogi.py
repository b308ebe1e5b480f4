"""FedYogi (Reddi et al., ICLR 2021): Yogi at the server."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _server_optimizer

ALGORITHM = replace(_server_optimizer.ALGORITHM, options=_server_optimizer.adaptive(0.01))
