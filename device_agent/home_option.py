"""The option --home of `device-agent`: accepted before and after the command's name."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

HOME = click.Path(path_type=Path, file_okay=False)


def pass_home(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the device's home as its first argument. A missing one is an error when the command runs, so that
    `--help` needs none."""

    @click.option("--home", "home_after", type=HOME, metavar="DIR", help="The device's home.  [env: DEVICE_HOME]")
    @click.pass_context
    @functools.wraps(command)
    def with_home(context: click.Context, home_after: Path | None, *args: Any, **options: Any) -> None:
        home = home_after or context.find_root().params.get("home")
        if home is None:
            raise click.UsageError("Missing option '--home'. Pass the device's home, or set DEVICE_HOME.")
        context.invoke(command, home.absolute(), *args, **options)

    return with_home
