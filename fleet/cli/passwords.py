"""Passwords from a file, an environment variable or a prompt: never from the command line, which every user of the
machine can read.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from fleet.cli.errors import CliError, attempting

PASSWORD_SIZE_MAX = 4096


@dataclass(frozen=True, slots=True)
class PasswordSource:
    """What the options say. `purpose` is named in prompts and errors ("the input file"), `option` is their prefix."""

    purpose: str
    option: str
    file: str | None
    variable: str | None

    def given(self) -> bytes | None:
        """The password from the file or the variable; None when neither was named.

        Raises: CliError when it is missing or empty, click.UsageError when both were named.
        """
        if self.file is not None and self.variable is not None:
            raise click.UsageError(f"Give --{self.option}-file or --{self.option}-env, not both.")
        if self.file is not None:
            return self._from_file(self.file)
        if self.variable is not None:
            return self._from_environment(self.variable)
        return None

    def given_or_asked(self, *, confirm: bool = False) -> bytes:
        """The password given, or else asked for on the terminal.

        Raises: CliError when it is missing or empty and there is no terminal to ask on, click.UsageError.
        """
        password = self.given()
        if password is not None:
            return password
        if not sys.stdin.isatty():
            raise CliError(
                f"{'writing' if confirm else 'opening'} {self.purpose}",
                "it needs a password, and there is no terminal to ask on",
                f"Give --{self.option}-file FILE or --{self.option}-env VARIABLE",
            )
        text: str = click.prompt(f"Password for {self.purpose}", hide_input=True, confirmation_prompt=confirm, err=True)
        return text.encode()

    def _from_file(self, name: str) -> bytes:
        attempted = f"reading the password for {self.purpose} from '{name}'"
        with attempting(attempted), Path(name).open("rb") as file:
            text = file.read(PASSWORD_SIZE_MAX + 1)
        if len(text) > PASSWORD_SIZE_MAX:
            raise CliError(attempted, f"the file is longer than {PASSWORD_SIZE_MAX} bytes", "Check the path")
        text = text.partition(b"\n")[0].removesuffix(b"\r")
        if not text:
            raise CliError(attempted, "its first line is empty", "Put the password there")
        return text

    def _from_environment(self, name: str) -> bytes:
        value = os.fsencode(os.environ.get(name, ""))
        if not value:
            raise CliError(
                f"reading the password for {self.purpose} from the environment",
                f"the variable {name} is not set, or empty",
                f"Export {name}, or give --{self.option}-file FILE",
            )
        return value
