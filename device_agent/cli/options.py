"""What the commands share: --home, accepted before and after the name, --output, and usage errors."""

import contextlib
import functools
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from device_agent.errors import AgentError
from fleet.est_client.errors import BadConfig

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
    `--help` needs none. Root becomes the home's owner first, unless `as_root`."""

    @home_option("home_after")
    @click.pass_context
    @functools.wraps(command)
    def with_home(context: click.Context, home_after: Path | None, *args: Any, **options: Any) -> None:
        home = home_after or _given_before(context)
        if home is None:
            raise click.UsageError("Missing option '--home'. Pass the device's home, or set DEVICE_HOME.")
        if not as_root:
            become_owner(home.absolute())
        context.invoke(command, home.absolute(), *args, **options)

    return with_home


def pass_home_to_root(command: Callable[..., None]) -> Callable[..., None]:
    """`pass_home` for a command that root runs as root on a home of any user. It trusts nothing that is there."""
    return pass_home(command, as_root=True)


def become_owner(home: Path) -> None:
    """As root on a home of another user, be that user from here on: what the home holds is that user's word, and what a
    command writes there is to be that user's.

    Raises: AgentError.
    """
    if os.geteuid() != 0 or not home.exists():
        return
    owners = [found for found in (home.lstat(), home.stat()) if found.st_uid != 0]
    if not owners:
        return
    uid, gid, groups = owners[0].st_uid, owners[0].st_gid or owners[0].st_uid, []
    with contextlib.suppress(KeyError):
        account = pwd.getpwuid(uid)
        gid, groups = account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid)
    try:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        raise AgentError(
            f"{home} belongs to user {uid}, and root cannot become that user here: {error.strerror}.",
            "Run the command as that user.",
        ) from error


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
