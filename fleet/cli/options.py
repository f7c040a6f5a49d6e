"""Options that many commands share: where the fleet is, why something is done, and several ids at once.

    @group.command()
    @client_option
    @output_option
    def list_(client: Client, output: str) -> None:
        with attempting("listing the models"):
            print_rows(COLUMNS, client.items("/v1/models"), output)

`--home` and its like are taken in front of the subcommand as well: `fleet --home HOME device list`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fleet.cli.location import client_at
from fleet.cli.parameters import REASON, URL

_Command = TypeVar("_Command", bound=Callable[..., object])

_FILE = click.Path(path_type=Path, dir_okay=False)
_LOCATION: dict[str, tuple[click.ParamType[Any], str]] = {
    "home": (click.Path(path_type=Path), "The fleet's home folder, made by `fleet init`."),
    "url": (URL, "Or the admin API of a served fleet: https://HOST:PORT."),
    "cert": (_FILE, "Your operator certificate, for --url: PEM."),
    "key": (_FILE, "Its private key, unless it is beside it as NAME.key, or in the same file."),
    "ca": (_FILE, "The root CA that the server is verified with; without it, the system's."),
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


def location_options(command: _Command) -> _Command:
    """Give a command all of `--home`, `--url`, `--cert`, `--key` and `--ca`, each passed by its name."""
    for name in reversed(_LOCATION):
        command = _location_option(name)(command)
    return command


def _location_option(name: str, **more: Any) -> Callable[[_Command], _Command]:
    kind, text = _LOCATION[name]
    variable = f"FLEET_{name.upper()}"
    return click.option(
        f"--{name}", cls=LocationOption, type=kind, envvar=variable, show_envvar=True, help=text, **more
    )


def home_option(command: _Command) -> _Command:
    """Give a command `--home` alone, passed to it as `home`, a Path."""
    return _location_option("home", required=True)(command)


def client_option(command: Callable[..., object]) -> Callable[..., object]:
    """Give a command the options that say where its fleet is; it gets a Client as `client`."""

    @functools.wraps(command)
    def with_client(
        home: Path | None, url: str | None, cert: Path | None, key: Path | None, ca: Path | None, **given: Any
    ) -> object:
        with client_at(home, url, cert, key, ca) as client:
            return command(client=client, **given)

    return location_options(with_client)


reason_option = click.option("--reason", default="", type=REASON, help="Why, for the audit.")

limit_option = click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="Maximum number of rows; without it, all."
)
