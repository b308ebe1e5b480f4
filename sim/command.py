"""The whole `tempt` command: it reads options, calls the functions that do the work, and prints what they return."""

from __future__ import annotations

import importlib.metadata
import shlex
import signal
import sys
from typing import Annotated

import click
import typer
import typer.core

from hospital_client import cli as hospital
from server import cli as coordination
from shared_model import begun
from shared_model.errors import TemptError, of_the_system
from shared_model.lines import give_up, open_streams, say, tell
from sim import ending
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


def main(arguments: list[str]) -> int:
    """Run the command as a process; its exit status, once all is said."""
    open_streams()
    status = run(arguments)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            give_up(number)
    return status


def run(arguments: list[str]) -> int:
    """Run the command with these arguments; its exit status."""
    begun.begin_anew()
    try:
        return _status_of(arguments)
    except BaseException as error:
        number = ending.came() or _signal_of(error)
        if number is None:
            return _status_after(error)
        say(f"{ending.WORDS[number]}; {_kept(arguments)}")
        return 128 + number


def _status_of(arguments: list[str]) -> int:
    try:
        ending.works(True)
        try:
            status = app(arguments, standalone_mode=False, prog_name="tempt")
        except click.exceptions.NoArgsIsHelpError as error:
            tell(*error.format_message().split("\n"))
            return 2
        if status == 130:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    finally:
        ending.works(False)


def _signal_of(error: BaseException) -> signal.Signals | None:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return signal.SIGINT
    return signal.SIGTERM if isinstance(error, ending.Terminated) else None


def _status_after(error: BaseException) -> int:
    """Tell a mistake; anything else is a defect of ours, and raised again."""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "tempt"
        return _mistake(f"{' '.join(error.format_message().split())} (see `{path} --help`)")
    if isinstance(error, TemptError):
        return _mistake(" ".join(str(error).splitlines()), error.status)
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # click's answer to it
        return 141
    if isinstance(error, BrokenPipeError):
        give_up(1, 2)
        return 141
    if isinstance(error, MemoryError):
        return _mistake(f"the memory does not suffice ({error}); ask for less, or close other work")
    mistake = of_the_system(error) or no_working_folder() if isinstance(error, OSError) else None
    if mistake is None:
        raise error
    return _mistake(str(mistake))


def _kept(arguments: list[str]) -> str:
    """What a command that was ended leaves."""
    verb = " ".join(arguments[:2])
    if verb == "server register":
        return "the same command goes on"
    if not begun.is_begun():
        return "nothing was written"
    if verb.startswith("simulate "):
        again = [word for word in arguments if word not in ("--force", "--resume")]
        return f"what is finished is kept, go on with: {as_called()} {shlex.join([*again, '--resume'])}"
    if verb.endswith((" launch", " front")):
        return "what is finished is kept, the same command goes on"
    return "what it makes was written whole"


def _mistake(message: str, status: int = TemptError.status) -> int:
    say(f"error: {message}")
    return status
