"""Options that many commands share: where the fleet is, why something is done, how many rows.

    @group.command()
    @client_option
    @output_option
    def status(client: Client, output: str) -> None:
        with attempting("asking for the status"):
            print_value(client.get("/v1/status"), output)

What a command does not need is not imported here: `fleet cert` starts fast, and on machines without fcntl.

`--home` and its like are taken in front of the subcommand as well: `fleet --home HOME device list`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fleet.cli.errors import CliError, explained
from fleet.client.client import Client, bad_answer
from fleet.domain.errors import FleetError, Invalid

_Command = TypeVar("_Command", bound=Callable[..., object])
_WARNED = "fleet.warned"


class Checked(click.ParamType[Any]):
    """A value that one of our readers judges: it raises ValueError or Invalid."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except Invalid as error:
            return self.fail(explained(error), param, ctx)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


def _url(text: str) -> str:
    from fleet.client.https import host_and_port

    host_and_port(text)
    return text


def _reason(text: str) -> str:
    from fleet.services.revocation import checked_reason

    return checked_reason(text)


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
REMOTE: dict[str, tuple[click.ParamType[Any], str]] = {
    "url": (Checked("URL", _url), "Or the admin API of a served fleet: https://HOST:PORT."),
    "cert": (FILE, "Your operator certificate, for --url: PEM."),
    "key": (FILE, "Its private key, unless it is beside it as NAME.key, or in the same file."),
    "ca": (FILE, "The root CA that the server is verified with; without it, the system's."),
}
LOCATION: dict[str, tuple[click.ParamType[Any], str]] = {
    "home": (click.Path(path_type=Path), "The fleet's home folder, made by `fleet init`."),
    **REMOTE,
}


class LocationOption(click.Option):
    """An option that may be given in front of the subcommand too. What is nearest to the command counts."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)
        if source is not ParameterSource.COMMANDLINE and self.name is not None:
            root = ctx.find_root()
            if root is not ctx and root.get_parameter_source(self.name) is ParameterSource.COMMANDLINE:
                return root.params[self.name], ParameterSource.COMMANDLINE
        return value, source


def location_options(command: _Command, names: Iterable[str] = LOCATION) -> _Command:
    """Give a command all of `--home`, `--url`, `--cert`, `--key` and `--ca`, or these, each passed by its name."""
    for name in reversed(tuple(names)):
        command = location_option(name)(command)
    return command


def location_option(name: str, **more: Any) -> Callable[[_Command], _Command]:
    """Give a command the one of LOCATION that is called `name`."""
    kind, text = LOCATION[name]
    variable = f"FLEET_{name.upper()}"
    return click.option(
        f"--{name}", cls=LocationOption, type=kind, envvar=variable, show_envvar=True, help=text, **more
    )


def home_option(why: str) -> Callable[[_Command], _Command]:
    """Give a command `--home` alone, passed to it as `home`, a Path; `why` it takes no `--url`."""

    def with_home(command: _Command) -> _Command:
        return at_home_only(why)(location_option("home", required=True)(command))

    return with_home


def at_home_only(why: str) -> Callable[[_Command], _Command]:
    """Give a command the options of remote ones, hidden: each is refused with a sentence that ends in `why`."""

    def refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is not None:
            message = f"`{context.command_path}` works at the home itself and not over --url: {why}."
            raise click.UsageError(f"{message} Run it on the machine that has the home.", context)

    def with_refusals(command: _Command) -> _Command:
        for name in REMOTE:
            hidden = click.option(f"--{name}", cls=LocationOption, hidden=True, expose_value=False, callback=refuse)
            command = hidden(command)
        return command

    return with_refusals


def client_at(
    home: Path | None, url: str | None = None, cert: Path | None = None, key: Path | None = None, ca: Path | None = None
) -> Client:
    """The client of the fleet that the options name; nothing is opened before a request. Raises: click.UsageError."""
    if home is not None and url is not None:
        # The command line counts before the environment.
        context = click.get_current_context()
        said = {name for name in ("home", "url") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if len(said) != 1:
            raise click.UsageError("Give --home (or FLEET_HOME) or --url (or FLEET_URL), and not both.")
        home, url = (home, None) if "home" in said else (None, url)
    if home is not None:
        from fleet.client.home import HomeTransport

        return Client(HomeTransport(home, warn_once), home, warn_once)
    if url is None:
        raise click.UsageError("Give --home (or FLEET_HOME), or --url (or FLEET_URL) with --cert.")
    if cert is None:
        raise click.UsageError("--url needs your certificate: --cert (or FLEET_CERT).")
    from fleet.client.https import HttpsTransport

    return Client(HttpsTransport(url, cert, key, ca))


def warn_once(refused: FleetError) -> None:
    """Say on standard error what a command that only reads goes on despite, once a command."""
    context = click.get_current_context().find_root()
    if refused.code not in context.meta.setdefault(_WARNED, set()):
        context.meta[_WARNED].add(refused.code)
        click.echo(f"Warning: {explained(refused)}", err=True)


def client_option(command: Callable[..., object]) -> Callable[..., object]:
    """Give a command the options that say where its fleet is; it gets a Client as `client`."""

    @functools.wraps(command)
    def with_client(**given: Any) -> object:
        with client_at(**{name: given.pop(name) for name in LOCATION}) as client, reading_answers(client):
            return command(client=client, **given)

    return location_options(with_client)


# What an answer raises in which something is missing or of another type than the API has.
_MISREAD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration, RecursionError)


@contextmanager
def reading_answers(client: Client) -> Iterator[None]:
    """Over --url, an answer that the block cannot read because of what is in it is a CliError (`bad-answer`)."""
    try:
        yield
    except _MISREAD as error:
        if _is_ours(client, error):
            raise
        attempted = f"running `{click.get_current_context().command_path}`"
        what = "something in an answer is missing, or of another type"
        raise CliError.of(attempted, bad_answer(what)) from error


def _is_ours(client: Client, error: Exception) -> bool:
    """Whether `error` is no answer's: a home's answers are our own, and over --url there may have been none yet."""
    is_about_arguments = isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed"
    is_about_files = isinstance(error, OSError)  # io.UnsupportedOperation is a ValueError, too
    return client.home is not None or not client.is_answered or is_about_arguments or is_about_files


reason_option = click.option("--reason", default="", type=Checked("TEXT", _reason), help="Why, for the audit.")

limit_option = click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="Maximum number of rows; without it, all."
)

out_option = click.option("--out", required=True, type=FOLDER, help="Folder for its files.")

days_option = click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Certificate lifetime."
)
