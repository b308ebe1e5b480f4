"""FedYogi (Reddi et al., ICLR 2021): Yogi at the server, as Flower has it: unlike the paper's, moments begin at 0."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _server_optimizer

ALGORITHM = replace(_server_optimizer.ALGORITHM, finish="FedYogi", options=_server_optimizer.adaptive(0.01))
