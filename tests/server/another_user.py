"""What another user of the machine can do to a network, for tests that run as root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

NOBODY = 65534
_BECOME_NOBODY = f"""
import os
def become_nobody():
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""
_COMMAND_LINES = """
become_nobody()
for number in filter(str.isdigit, os.listdir("/proc")):
    for name in ("cmdline", "environ"):
        try:
            print(open(f"/proc/{number}/{name}", "rb").read().replace(b"\\0", b" ").decode(errors="replace"))
        except OSError:
            pass
"""
_ACQUIRE_TASK = """
import encodings.idna, ssl, sys, urllib.error, urllib.request
context = ssl._create_unverified_context()
become_nobody()
for address in sys.argv[1:]:
    asked = urllib.request.Request(f"{address}/v1/runtime/acquire-task", b"", {"Content-Type": "application/protobuf"})
    try:
        print(urllib.request.urlopen(asked, context=context, timeout=30).status)
    except urllib.error.HTTPError as error:
        print(error.code)
    except urllib.error.URLError as error:
        print("closed" if isinstance(error.reason, ConnectionRefusedError) else error)
"""
# once with an address where nobody is, so that all of Flower is imported: nobody may not be able to read this Python
_FLWR = """
import sys
from pathlib import Path
from flwr.cli.app import app
home, address, *sys.argv = sys.argv[1:]
for where in ("127.0.0.1:9", address):
    text = f'[superlink]\\ndefault = "a"\\n[superlink.a]\\naddress = "{where}"\\nroot-certificates = "{home}/ca.pem"\\n'
    Path(home, "config.toml").write_text(text)
    if where == address:
        become_nobody()
        print("as nobody", flush=True)
    try:
        app()
    except SystemExit:
        pass
"""


def _run(program: str, *arguments: str, home: Path | None = None) -> str:
    """What a program prints that calls `become_nobody`, without the tests' environment."""
    environment = {"PATH": os.defpath, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BECOME_NOBODY + program, *arguments],
        cwd="/",
        env=environment | {"FLWR_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def assert_shut(root: Path, ca: Path, app: Path, home: Path) -> None:
    """Another user sees a network's processes and reaches their ports, and can't make anything of either.

    Args:
        root: the network's folder.
        app: one that the network's own operator may run.
        home: a new folder that another user can be given.
    """
    if os.geteuid() != 0:
        return  # only root has processes of other users
    lines = [line for line in _run(_COMMAND_LINES).splitlines() if str(root) in line]
    (link,) = {found[1] for line in lines if (found := re.search(r"flower-superlink .*--port (\d+)", line))}
    nodes = {found[1] for line in lines if (found := re.search(r"flower-supernode .*--port (\d+)", line))}
    addresses = [f"https://127.0.0.1:{link}", *(f"http://127.0.0.1:{port}" for port in nodes)]
    assert nodes
    told = _run(_ACQUIRE_TASK, *addresses)
    # a SuperNode that no server lets in comes and goes, and may have closed its port since
    assert "401" in told and set(told.split()) <= {"401", "closed"} and len(told.split()) == len(addresses), told

    home.mkdir()
    shutil.copy(ca, home / "ca.pem")
    shutil.copytree(app, home / "app")
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    command = ["flwr", "run", str(home / "app"), "a", "--format", "json"]
    told = _run(_FLWR, str(home), f"127.0.0.1:{link}", *command, home=home).partition("as nobody\n")[2]
    assert '"success": false' in told and "login" in told, told

    secrets = [path.read_text() for name in ("*.secret", "operator.token") for path in root.rglob(name)]
    assert len(secrets) >= 2 + len(nodes)
    assert [line for line in lines if "--token " in line or any(secret in line for secret in secrets)] == []
