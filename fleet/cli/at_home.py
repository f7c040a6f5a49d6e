"""Commands that work on a home's own files refuse the options of remote ones, and say why."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fleet.cli.options import LocationOption

_Command = TypeVar("_Command", bound=Callable[..., object])

REMOTE = ("url", "cert", "key", "ca")


def at_home_only(why: str) -> Callable[[_Command], _Command]:
    """Give a command the options of remote ones, hidden: each is refused with a sentence that ends in `why`.

    It goes on top of the command's other options; one that it has already is left alone.
    """

    def refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        message = f"`{context.command_path}` works at the home itself and not over --url: {why}."
        raise click.UsageError(f"{message} Run it on the machine that has the home.", context)

    def with_refusals(command: _Command) -> _Command:
        has: list[Any] = getattr(command, "__click_params__", [])
        taken = {option for parameter in has for option in parameter.opts}
        for name in REMOTE:
            if f"--{name}" not in taken:
                option = click.option(f"--{name}", cls=LocationOption, hidden=True, expose_value=False, callback=refuse)
                command = option(command)
        return command

    return with_refusals
