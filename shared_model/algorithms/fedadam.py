"""FedAdam (Reddi et al., ICLR 2021): Adam at the server, as Flower has it.

It differs from Algorithm 2 of the paper: moments begin at 0 and are corrected for that, with a count from 2 on.
"""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _server_optimizer

ALGORITHM = replace(_server_optimizer.ALGORITHM, finish="FedAdam", options=_server_optimizer.adaptive(0.1))
