"""Podman for the container test: installed where it is missing, with a base image that is made here.

No registry of images is reached: the base image is Debian's own packages. To type podman's commands oneself,
`eval "$(python -m tests.containers.podman FOLDER)"` sets the test's environment; FOLDER keeps its settings.
"""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BASE_IMAGE = "localhost/tempt-test-base:bookworm"
_PROGRAMS = ("podman", "runc", "debootstrap", "iptables")
_HELPERS = ("netavark", "aardvark-dns", "catatonit")
_HELPER_FOLDERS = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/bin")
# Without systemd podman can't ask it for cgroups; ulimits stay within what root may set in a restricted machine.
_WITHOUT_SYSTEMD = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
cgroupns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


class Unavailable(Exception):
    """Podman can't be installed here."""


@dataclass(frozen=True)
class Podman:
    """How podman is called.

    Attributes:
        environment: of podman and podman-compose.
        build_options: of `podman build`, with which pip finds inside a build what it finds outside.
    """

    environment: dict[str, str]
    build_options: tuple[str, ...]

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("podman", *arguments, environment=self.environment, check=check)


def run(
    *command: str | Path, environment: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or not check, f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done


def set_up(folder: Path) -> Podman:
    """Install what is missing, write settings into a folder, and make the base image if it is not there.

    Raises:
        Unavailable: podman can't be installed.
    """
    _install()
    environment = dict(os.environ)
    if not Path("/run/systemd/system").is_dir():
        (folder / "containers.conf").write_text(_WITHOUT_SYSTEMD)
        environment["CONTAINERS_CONF"] = str(folder / "containers.conf")
    podman = Podman(environment, tuple(_pip_options(folder)))
    if podman("image", "exists", BASE_IMAGE, check=False).returncode:
        _make_base_image(podman)
    return podman


def _install() -> None:
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    missing += [name for name in _HELPERS if not any((Path(of) / name).exists() for of in _HELPER_FOLDERS)]
    if os.geteuid() != 0:
        raise Unavailable("only root can install podman and make its base image")
    if missing and shutil.which("apt-get") is None:
        raise Unavailable(f"{', '.join(missing)} can't be installed: this machine has no apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]) if missing else ():
        done = run("apt-get", "--quiet", *arguments, environment=environment, check=False)
        if done.returncode:
            raise Unavailable(f"{', '.join(missing)} can't be installed: {' '.join(done.stderr.split())[-300:]}")


def _pip_options(folder: Path) -> list[str]:
    """Pip's settings as a file that a build mounts, with the folders and the certificates that they name."""
    settings: dict[str, str] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.removeprefix(":env:.").removeprefix("global.")] = str(ast.literal_eval(value))
    kept = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "default-timeout", "proxy")
    found = {name: value for name, value in settings.items() if name in kept}
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()))
    mounts = {str(folder / "pip.conf"): "/etc/pip.conf"}
    for place in " ".join(found.get(name, "") for name in kept[:3]).split():
        path = Path(place.removeprefix("file://"))
        if path.is_absolute() and path.is_dir():
            path = path.parent if place.startswith("file://") else path  # an index's links lead beside it
            mounts[str(path)] = str(path)
    if "cert" in found:
        mounts[found["cert"]] = found["cert"]
    return [option for source, target in mounts.items() for option in ("--volume", f"{source}:{target}:ro")]


def _make_base_image(podman: Podman) -> None:
    """Debian with Python, as the Dockerfile's own base is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        packages = "--include=python3,python3-venv,ca-certificates"
        root, archive = Path(scratch) / "root", Path(scratch) / "root.tar"
        run("debootstrap", "--variant=minbase", packages, "bookworm", root, *_mirror())
        (root / "usr/bin/python").symlink_to("python3")
        run("tar", "--directory", root, "--create", "--file", archive, ".")
        podman("import", archive, BASE_IMAGE)


def _mirror() -> list[str]:
    """Where this machine takes Debian's packages from, if it is a Debian."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    lines = sources.read_text().splitlines() if sources.is_file() else []
    return [line.split()[1] for line in lines if line.startswith("URIs:")][:1]


def main() -> None:
    """Print what to export, and the options of a build."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    podman = set_up(folder)
    if "CONTAINERS_CONF" in podman.environment:
        print(f"export CONTAINERS_CONF={shlex.quote(podman.environment['CONTAINERS_CONF'])}")
    options = shlex.join(("--network", "host", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", *podman.build_options))
    print(f"export BUILD_OPTIONS={shlex.quote(options)}")


if __name__ == "__main__":
    main()
