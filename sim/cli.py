"""The `tempt` command: it reads options, calls the functions that do the work, and prints what they return."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import signal
import sys
from types import FrameType
from typing import Annotated

# On a shared machine busy-waiting threads take the cores from each other: 30 records/s became 870 without it. It must
# be said before torch is imported, so every import of it stands inside a function.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import click
import typer
import typer.core

from hospital_client import cli as hospital
from server import cli as coordination
from shared_model.errors import TemptError, of_the_system
from shared_model.lines import give_up, open_streams, say, tell
from sim.commands import data, recommend, simulate
from sim.commands.verb import Verb, as_called, no_working_folder

typer.core.HAS_RICH = False  # else plain help shows its default values behind a backslash

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn to recommend medications from many hospitals whose records stay in the house (TEMPT).",
)


def _version(asked: bool) -> None:
    if asked:
        tell(f"tempt {importlib.metadata.version('tempt')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Learn to recommend medications from many hospitals whose records stay in the house (TEMPT)."""


app.command("synth")(data.synth)
app.command("prepare")(data.prepare)
app.add_typer(simulate.app, name="simulate")
app.add_typer(hospital.app, name="hospital")
app.add_typer(coordination.app, name="server")
app.command("recommend")(recommend.recommend)
for _group in (app, simulate.app, hospital.app, coordination.app):
    for _command in _group.registered_commands:
        _command.cls = Verb


class _Terminated(BaseException):
    """SIGTERM came."""


def main() -> None:
    """Run the command and end the process with its exit status (see the README's list)."""
    signal.signal(signal.SIGTERM, _terminate)
    open_streams()
    status = run(sys.argv[1:])
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            give_up(number)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run the command with these arguments; its exit status."""
    try:
        return _status_of(arguments)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "tempt"
        return _mistake(f"{' '.join(error.format_message().split())} (see `{path} --help`)")
    except TemptError as error:
        return _mistake(" ".join(str(error).splitlines()), error.status)
    except (KeyboardInterrupt, click.Abort):
        _last_words(f"interrupted{_kept(arguments)}")
        return 130
    except _Terminated:
        _last_words(f"ended by SIGTERM{_kept(arguments)}")
        return 143
    except SystemExit as error:  # click's answer to a closed pipe
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return 141
    except BrokenPipeError:
        give_up(1, 2)
        return 141
    except MemoryError as error:
        return _mistake(f"the memory does not suffice ({error}); ask for less, or close other work")
    except OSError as error:
        mistake = of_the_system(error) or no_working_folder()
        if mistake is None:
            raise
        return _mistake(str(mistake))


def _status_of(arguments: list[str]) -> int:
    try:
        status = app(arguments, standalone_mode=False, prog_name="tempt")
    except click.exceptions.NoArgsIsHelpError as error:
        tell(*error.format_message().split("\n"))
        return 2
    if status == 130:  # typer's answer to Ctrl-C
        raise KeyboardInterrupt
    sys.stdout.flush()
    return status if isinstance(status, int) else 0


def _kept(arguments: list[str]) -> str:
    """What a command that was ended leaves."""
    if arguments[:1] == ["simulate"]:
        again = [word for word in arguments if word not in ("--force", "--resume")]
        return f"; what is finished is kept, go on with: {as_called()} {shlex.join([*again, '--resume'])}"
    if arguments[1:2] in (["launch"], ["front"]):
        return "; what is finished is kept, the same command goes on"
    return "; nothing was written"


def _mistake(message: str, status: int = TemptError.status) -> int:
    _last_words(f"error: {message}")
    return status


def _last_words(line: str) -> None:
    """Say it if somebody listens: the exit status is the same if nobody does."""
    try:
        say(line)
    except OSError:
        give_up(2)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    main()
