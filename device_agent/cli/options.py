"""What the commands share: --home, accepted before and after the name, --output, and usage errors."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from device_agent.child_process import module_command
from fleet.est_client.errors import BadConfig

ARGUMENTS = "device_agent.arguments"
"""Key of the context's meta: the program's arguments."""
HANDED_FILE = "DEVICE_AGENT_TOKEN_DESCRIPTOR"
"""The environment variable with the number of a descriptor: the token's file, which root has opened."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def home_option(name: str = "home", envvar: str | None = None) -> Callable[[_Command], _Command]:
    """`--home DIR`, passed as `name`. Of the whole program alone it reads the environment, so that a given one wins."""
    return click.option(
        "--home",
        name,
        type=click.Path(path_type=Path, file_okay=False),
        envvar=envvar,
        metavar="DIR",
        help="The device's home: settings, key, certificate.  [env: DEVICE_HOME]",
    )


def output_option(command: _Command) -> _Command:
    """`-o text|json`, passed as `output`."""
    return click.option(
        "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output format."
    )(command)


def pass_home(command: Callable[..., None], *, as_root: bool = False) -> Callable[..., None]:
    """Give `command` the device's home as its first argument. A missing one is an error when the command runs, so that
    `--help` needs none. On another user's home, root's command runs as that user, unless `as_root`."""

    @home_option("home_after")
    @click.pass_context
    @functools.wraps(command)
    def with_home(context: click.Context, home_after: Path | None, *args: Any, **options: Any) -> None:
        home = home_after or _given_before(context)
        if home is None:
            raise click.UsageError("Missing option '--home'. Pass the device's home, or set DEVICE_HOME.")
        if not as_root:
            _run_as_owner(context, home.absolute(), options)
        context.invoke(command, home.absolute(), *args, **options)

    return with_home


def pass_home_to_root(command: Callable[..., None]) -> Callable[..., None]:
    """`pass_home` for a command that root runs as root on a home of any user. It trusts nothing that is there."""
    return pass_home(command, as_root=True)


def _run_as_owner(context: click.Context, home: Path, options: Mapping[str, Any]) -> None:
    """Where we are root, and the home is another user's: the command runs as that user, and this program ends with it.

    Raises: AgentError, OSError.
    """
    if os.geteuid() != 0:
        return
    from device_agent.cli.owner import other_owner, run_as

    owner = other_owner(home)
    if owner is None:
        return
    environment = owner.environment(os.environ, *filter(None, [options.get("token_env")]))
    environment["DEVICE_HOME"] = str(home)
    handed = []
    if (file := options.get("token_file")) is not None:
        handed.append(file.fileno())
        environment[HANDED_FILE] = str(file.fileno())
    raise SystemExit(run_as(owner, [*module_command("device_agent"), *context.meta[ARGUMENTS]], environment, handed))


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """An invalid argument is a usage error: exit 2."""
    try:
        yield
    except BadConfig as error:
        raise click.UsageError(f"{error.message} {error.advice}".rstrip()) from error


def _given_before(context: click.Context) -> Path | None:
    """The option of the nearest group that has been given it: the program, or a group within."""
    group = context.parent
    while group is not None:
        if (home := group.params.get("home")) is not None:
            return Path(home)
        group = group.parent
    return None
