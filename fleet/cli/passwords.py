"""Passwords from a file, an environment variable or a prompt: never from the command line, which every user of the
machine can read.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fleet.cli.errors import CliError, attempting
from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark

PASSWORD_SIZE_MAX = 4096

_Decorator = Callable[[Callable[..., object]], Callable[..., object]]


@dataclass(frozen=True, slots=True)
class PasswordSource:
    """What the options say. `option` is their prefix; `purpose` is named in prompts and errors ("the input file")."""

    option: str
    file: str | None
    variable: str | None

    def given(self, purpose: str) -> bytes | None:
        """The password from the file or the variable; None when neither was named.

        Raises: CliError when it is missing or empty, click.UsageError when both were named.
        """
        if self.file is not None and self.variable is not None:
            raise click.UsageError(f"Give --{self.option}-file or --{self.option}-env, not both.")
        if self.file is not None:
            return _first_line(purpose, Path(self.file))
        if self.variable is None:
            return None
        value = os.fsencode(os.environ.get(self.variable, ""))
        if not value:
            raise CliError(
                f"reading the password for {purpose} from the environment",
                f"the variable {self.variable} is not set, or empty",
                f"Export {self.variable}, or give --{self.option}-file FILE",
            )
        return value

    def given_or_asked(self, purpose: str, *, confirm: bool = False) -> bytes:
        """The password given, or else asked for on the terminal.

        Raises: CliError when it is missing or empty and there is no terminal to ask on, click.UsageError.
        """
        password = self.given(purpose)
        if password is not None:
            return password
        if not sys.stdin.isatty():
            raise CliError(
                f"{'writing' if confirm else 'opening'} {purpose}",
                "it needs a password, and there is no terminal to ask on",
                f"Give --{self.option}-file FILE or --{self.option}-env VARIABLE",
            )
        text: str = click.prompt(f"Password for {purpose}", hide_input=True, confirmation_prompt=confirm, err=True)
        return text.encode()


def password_options(by_file: str, by_variable: str, option: str = "password") -> _Decorator:
    """Give a command `--password-file` and `--password-env` with these help texts; it gets `password`, their source."""
    name = option.replace("-", "_")

    def with_options(command: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(command)
        def with_source(**given: Any) -> object:
            source = PasswordSource(option, given.pop(f"{name}_file"), given.pop(f"{name}_env"))
            return command(**{name: source}, **given)

        from_variable = click.option(f"--{option}-env", metavar="VARIABLE", help=by_variable)(with_source)
        return click.option(f"--{option}-file", metavar="FILE", help=by_file)(from_variable)

    return with_options


def _first_line(purpose: str, path: Path) -> bytes:
    attempted = f"reading the password for {purpose} from '{path}'"
    with attempting(attempted), path.open("rb") as file:
        text = file.read(PASSWORD_SIZE_MAX + 1)
    if len(text) > PASSWORD_SIZE_MAX:
        raise CliError(attempted, f"the file is longer than {PASSWORD_SIZE_MAX} bytes", "Check the path")
    try:
        text = without_mark(text).partition(b"\n")[0].removesuffix(b"\r")
    except Malformed as error:
        raise CliError(attempted, "the file is UTF-16 text", "Save it as UTF-8") from error
    if not text:
        raise CliError(attempted, "its first line is empty", "Put the password there")
    return text
