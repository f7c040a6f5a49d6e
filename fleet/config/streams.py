"""Standard streams, and how a program ends, for all programs alike.

    @click.group(cls=Program)
    def main() -> None: ...

    main()

Run as a program, and not by a test runner, the group first makes its streams safe:

- A closed stream (`>&-`, `<&-`) is replaced, so that no file that is opened later becomes standard output.
- Text that the terminal's encoding cannot carry is escaped.
- What cannot be written to standard output is an error, exit 1; a pipe that its reader has closed ends the program
  silently with 141, as SIGPIPE would. What cannot be written to standard error is dropped.
- Warnings of libraries are not shown, unless `-W` or PYTHONWARNINGS asks for them.
- NO_COLOR turns colors off, and so does TERM=dumb; `click.echo` does so wherever the output is not a terminal.
- Control characters in what is written to standard error are escaped: a server's text does not control the terminal.
  On standard output, tables use `printable` and JSON `json_text`.
- A file that is not found because the working directory has been deleted is an error about that, exit 1.

Exit codes: 0 done, 1 refused or failed, 2 wrong use.
"""

import errno
import importlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import click
from click.exceptions import NoSuchCommand

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE, what a shell reports for a program that it has ended

STDIN, STDOUT, STDERR = 0, 1, 2
_RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
STDOUT_NAME = "standard output"
WITHOUT_DIRECTORY = "the working directory has been deleted"


class Program(click.Group):
    """The group at the top of a program."""

    def __call__(self, *args: Any, **settings: Any) -> NoReturn:
        run(self)


class LazyProgram(Program):
    """A program whose commands are imported when they are called: none pays for the libraries of another."""

    commands_by_name: Mapping[str, tuple[str, str]] = {}
    """name: (module, its line in the program's --help; the command's own docstring says the rest)"""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_by_name:
            return None
        module, _ = self.commands_by_name[cmd_name]
        command = getattr(importlib.import_module(module), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.commands_by_name
        if args and args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise NoSuchCommand(args[0], possibilities=known, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.commands_by_name.items()])


def run(command: click.Command) -> NoReturn:
    """Run `command` as this process's program and exit."""
    try:
        _run(command, prepare())
    except KeyboardInterrupt:  # while it ended: within a command, click makes an Abort of it
        click.echo("Aborted!", err=True)
        sys.exit(EXIT_FAILED)


def _run(command: click.Command, output: "_Output") -> NoReturn:
    color = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    code = EXIT_FAILED
    try:
        result = command.main(standalone_mode=False, color=color)
        code = result if isinstance(result, int) else 0  # an int is what Context.exit was given
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else (0 if error.code is None else EXIT_FAILED)
        if isinstance(error.code, str):
            click.echo(error.code, err=True)
    except click.ClickException as error:
        if _is_for_want_of_directory(error):
            click.echo(f"Error: {WITHOUT_DIRECTORY}.", err=True)
        else:
            without_hidden(error).show()
            code = error.exit_code
    except click.Abort:
        click.echo("Aborted!", err=True)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        text = ascii(error.object[error.start : error.end][:40])
        click.echo(f"Error: {text} in an argument is not valid UTF-8.", err=True)
        code = EXIT_USAGE
    except OSError as error:
        code = _failed(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _failed(error)
    sys.exit(EXIT_PIPE_CLOSED if isinstance(output.problem, BrokenPipeError) else code)


def without_hidden(error: click.ClickException) -> click.ClickException:
    """`error`, without the suggestion of options that --help does not list."""
    if isinstance(error, click.NoSuchOption) and error.possibilities and error.ctx is not None:
        params = error.ctx.command.get_params(error.ctx)
        hidden = {name for each in params if getattr(each, "hidden", False) for name in each.opts}
        shown = [name for name in error.possibilities if name not in hidden]
        return click.NoSuchOption(error.option_name, error.message, shown, error.ctx)
    return error


def prepare() -> "_Output":
    """Make the standard streams safe to use, and libraries silent. What writes standard output."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the lowest free number is this one
            os.open(os.devnull, os.O_WRONLY if descriptor == STDERR else os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    output = _Output(STDOUT, "wb", closefd=False)
    sys.stdout = _text(output, sys.stdout)
    sys.stderr = _text(_Complaints(STDERR, "wb", closefd=False), sys.stderr, _PrintableText)
    return output


def printable(text: str, keep: str = "") -> str:
    """`text` with control and formatting characters (C0, C1, bidi overrides) escaped, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def text_of(value: object) -> str:
    """`value` on one line of a terminal, - for none; a time as 2026-01-31 23:59:59Z. Control characters are escaped."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case bytes():
            return value.hex()
        case Mapping():
            text = ", ".join(f"{key}={text_of(item)}" for key, item in value.items())
        case list() | tuple() | set() | frozenset():
            text = ", ".join(text_of(item) for item in value)
        case str() if _RFC3339_UTC.fullmatch(value):
            return f"{value[:10]} {value[11:19]}Z"
        case _:
            text = str(value)
    return printable(text) or "-"


def json_text(value: object, *, ascii_only: bool = False) -> str:
    """`value` as JSON on one line, with the same characters escaped as in `printable`. Raises: ValueError: NaN."""
    text = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def os_problem(error: OSError) -> str:
    """What went wrong, as the operating system says it, in lower case."""
    if isinstance(error, FileNotFoundError) and error.filename is None and _is_without_directory():
        return WITHOUT_DIRECTORY
    return (error.strerror or str(error) or type(error).__name__).lower()


def _failed(error: OSError) -> int:
    if not isinstance(error, BrokenPipeError):
        where = f" ({error.filename})" if error.filename is not None else ""
        click.echo(f"Error: {os_problem(error)}{where}.", err=True)
    return EXIT_FAILED


def _is_without_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  Path.cwd is the same call
    except FileNotFoundError:
        return True
    return False


def _is_for_want_of_directory(error: BaseException) -> bool:
    """Whether `error` comes from a path relative to a working directory that has been deleted."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # an exception may be its own cause
        seen.add(id(cause))
        if isinstance(cause, FileNotFoundError) and not os.path.isabs(str(cause.filename or "")):  # noqa: PTH117
            return _is_without_directory()
        cause = cause.__cause__ or cause.__context__
    return False


class _PrintableText(io.TextIOWrapper):
    """Text for people: control characters are escaped."""

    def write(self, text: str, /) -> int:
        return super().write(printable(text, keep="\n\t"))


def _text(raw: io.RawIOBase, before: Any, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    return kind(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=raw.isatty() or isinstance(raw, _Complaints),
        write_through=bool(getattr(before, "write_through", False)),
    )


class _Output(io.FileIO):
    """Standard output, named in its errors. After the first of them, what is still buffered is dropped."""

    problem: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.problem is not None:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            if isinstance(error, BrokenPipeError):
                raise
            problem = "it is closed" if error.errno == errno.EBADF else (error.strerror or "it cannot be written")
            raise OSError(error.errno, f"{STDOUT_NAME}: {problem}") from error


class _Complaints(io.FileIO):
    """Standard error: what cannot be said is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes
