"""Flower's SuperLink and SuperExec kept to the operator: `python -m server.guarded_flower flower-superlink ...`.

The SuperLink takes a call of its control side from the operator alone; SuperExec hands no token on by a command line.
"""

from __future__ import annotations

import hmac
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from server import operator_login
from shared_model import hidden_token

if TYPE_CHECKING:
    from flwr.supercore.auth.typing import AccountInfo

_Metadata = Sequence[tuple[str, str | bytes]]


class OperatorAlone:
    """Flower's place for a login (`ControlAuthnPlugin`), with one account: who sends the operator's token has it."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def validate_tokens_in_metadata(self, metadata: _Metadata) -> tuple[bool, AccountInfo | None]:
        from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
        from flwr.supercore.auth.typing import AccountInfo

        sent = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        if not hmac.compare_digest(sent.encode() if isinstance(sent, str) else sent, self._token):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)

    def get_login_details(self) -> None:
        return None  # `flwr login` gives nobody a token, and so do the next two

    def get_auth_tokens(self, device_code: str) -> None:
        return None

    def refresh_tokens(self, metadata: _Metadata) -> tuple[_Metadata, None]:
        return [], None


def main() -> None:
    """Run the SuperLink, named by the first argument, with the arguments after it."""
    sys.argv = sys.argv[1:]
    _superlink()


def _superlink() -> None:
    # modules, where the packages' names are functions of theirs
    cli: Any = importlib.import_module("flwr.superlink.cli.flower_superlink")
    cli.load_control_authn_plugin = lambda: OperatorAlone(operator_login.token_of(os.environ))
    cli.flower_superlink()


def superexec() -> None:
    """Run SuperExec with the command line's arguments."""
    cli: Any = importlib.import_module("flwr.supercore.cli.flower_superexec")
    executor: Any = importlib.import_module("flwr.supercore.superexec.executor.subprocess_executor")
    executor.subprocess = SimpleNamespace(Popen=hidden_token.popen, DEVNULL=subprocess.DEVNULL)
    cli.flower_superexec()


if __name__ == "__main__":
    main()
