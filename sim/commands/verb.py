"""What holds for every verb of `tempt`: what is given is text that is not blank, and there is a folder to work in."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import typer.core

from shared_model.comma_lists import LARGEST
from shared_model.errors import TemptError


class Verb(typer.core.TyperCommand):
    """A command of `tempt`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises:
            TemptError: an option or argument is blank, which would mean the folder of now, or all, or none; or it is no
                UTF-8, which no file of ours could hold; or it is a number that 64 bits don't hold.
        """
        typed = list(args)
        rest = super().parse_args(ctx, args)  # --help ends here
        given, *_ = self.make_parser(ctx).parse_args(args=typed)
        for parameter in self.get_params(ctx):
            values = given.get(parameter.name or "")
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, str) and (why := _no_text(value)) is not None:
                    name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(ctx)
                    instead = "; give another" if parameter.required else "; give another, or leave it out"
                    raise TemptError(f"{name} {_shown(value)}: {why}{'' if ';' in why else instead}")
        for parameter in self.get_params(ctx):
            number = ctx.params.get(parameter.name or "")
            if isinstance(number, int) and not -LARGEST <= number <= LARGEST:
                raise TemptError(f"{parameter.opts[0]} {number}: expected at most {LARGEST}, as it is kept in 64 bits")
            if isinstance(number, float) and not math.isfinite(number):
                raise TemptError(f"{parameter.opts[0]} {number}: expected a finite number")
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Do the work.

        Raises:
            TemptError: the folder to work in was deleted.
        """
        if (mistake := no_working_folder()) is not None:
            raise mistake
        return super().invoke(ctx)


def no_working_folder() -> TemptError | None:
    """The error if the folder to work in is no more, where not even torch can be imported; None if it is there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return TemptError("the working folder was deleted; change into one that is there (cd)")
    return None


def _no_text(value: str) -> str | None:
    """What is wrong with a value, whatever it is for."""
    if not value.strip():
        return "is blank"
    if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
        try:
            value.encode(errors="surrogateescape").decode()
        except UnicodeError:
            return "has bytes that are no UTF-8"
        # files could be found, but neither written down nor printed
        return f"is UTF-8, which this locale ({sys.getfilesystemencoding()}) does not read; set LC_ALL=C.UTF-8"
    return None


def _shown(value: str) -> str:
    """What a terminal shows of it: UTF-8 as it is, other bytes escaped."""
    with suppress(UnicodeError):
        return value.encode(errors="surrogateescape").decode()
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def as_called() -> str:
    """This command as it can be typed again: `tempt` if the shell finds it by that name, else by its path."""
    called = Path(sys.argv[0])
    if called.name == "cli.py":
        return shlex.join([sys.executable, "-m", "sim.cli"])
    found = shutil.which("tempt")
    if called.name != "tempt" or not called.is_file() or (found is not None and called.samefile(found)):
        return "tempt"
    return shlex.quote(sys.argv[0])
