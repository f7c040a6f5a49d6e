"""Errors of commands: one sentence on stderr that says what was attempted, what went wrong and what to do next.

    Error: reading 'device.p12': the password is wrong. Give the password that the file was written with.
    Error: suspending device 'cam-1': device cam-1 is revoked. (device-revoked)

At the end is the stable code of fleet/ERRORS.md, where the error has one.
Exit codes, everywhere: 0 done, 1 refused or failed (`CliError`), 2 wrong use (click's own `UsageError`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Self

import click

from fleet.config.streams import EXIT_FAILED, STDOUT_NAME, os_problem, printable
from fleet.domain.errors import FleetError
from fleet.wire.errors import WireError

# What to do next when the error itself does not tell: by what the operating system said.
_ADVICE_BY_OS_ERROR: tuple[tuple[type[OSError], str], ...] = (
    (FileNotFoundError, "Check the path."),
    (IsADirectoryError, "Name a file."),
    (NotADirectoryError, "Check the path."),
    (FileExistsError, "Name another file, or remove that one."),
    (PermissionError, "Check who owns it and who you are."),
    (ConnectionError, "Check that the server runs and that the address is right."),
)
_ADVICE_OTHERWISE = "Put that right and run the command again."


class CliError(click.ClickException):
    """A command was refused or failed: exit 1, and one line on stderr.

    The three parts are written without a full stop at the end; `next_step` is a sentence of its own and may be "".
    None of them ever holds a password, a token or a key.
    """

    exit_code = EXIT_FAILED

    def __init__(self, attempted: str, problem: str, next_step: str = "", code: str = "") -> None:
        self.attempted = attempted
        self.problem = problem
        self.next_step = next_step
        said = _uncapitalized(problem.strip().rstrip("."))
        sentence = f"{attempted}: {said}" + ("" if said.endswith("?") else ".")
        advice = f" {next_step.strip().rstrip('.')}." if next_step.strip() else ""
        super().__init__(printable(_with_code(sentence + advice, code)))

    @classmethod
    def of(cls, attempted: str, error: FleetError, next_step: str = "") -> Self:
        """`next_step` is the advice when the error has none of its own."""
        return cls(attempted, error.message, error.advice or next_step, error.code)

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {self.message}", file=file, err=file is None)


def explained(error: FleetError) -> str:
    """The error's message, advice and code, for a message that does not say what was attempted."""
    return _with_code(f"{error.message} {error.advice}".rstrip(), error.code)


def _with_code(text: str, code: str) -> str:
    return f"{text} ({code})" if code else text


@contextmanager
def attempting(attempted: str, next_step: str = "") -> Iterator[None]:
    """Turn what the layers below raise into a CliError about `attempted` ("reading 'a.pem'", "adding device d-1").

    A context manager and a decorator at once:

        with attempting(f"reading '{path}'"):
            bundle = read(path.read_bytes())

    `next_step` is the advice when the error has none of its own. CliError, click's own errors and BrokenPipeError pass
    untouched.

    Raises: CliError for FleetError, WireError and OSError.
    """
    try:
        yield
    except FleetError as error:
        raise CliError.of(attempted, error, next_step) from error
    except WireError as error:
        raise CliError(attempted, str(error), next_step) from error
    except BrokenPipeError:
        raise  # the reader has closed its pipe: the program ends silently
    except OSError as error:
        is_named = error.filename is None or str(error.filename) in attempted
        problem = os_problem(error) if is_named else f"{os_problem(error)} ({error.filename})"
        advice = next((text for kind, text in _ADVICE_BY_OS_ERROR if isinstance(error, kind)), _ADVICE_OTHERWISE)
        if problem.startswith(STDOUT_NAME):
            next_step = "Send the output to where it can be written"
        raise CliError(attempted, problem, next_step or advice) from error


def _uncapitalized(text: str) -> str:
    """The problem follows a colon; an abbreviation such as "DER" keeps its capitals."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
