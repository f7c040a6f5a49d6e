"""Commands that work at a home itself and nowhere else say so, and why, when they are asked to work from afar."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., object])

AFAR = ("url", "cert", "key", "ca")


def at_home_only(why: str) -> Callable[[_Command], _Command]:
    """Give a command the options for working from afar, hidden: each refuses with a sentence that ends in `why`.

    It goes on top of the command's other options; one that it has already is left to it.
    """

    def refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        message = f"`{context.command_path}` works at the home itself and not over --url: {why}."
        raise click.UsageError(f"{message} Run it on the machine that has the home.", context)

    def with_refusals(command: _Command) -> _Command:
        has: list[Any] = getattr(command, "__click_params__", [])
        taken = {option for parameter in has for option in parameter.opts}
        for name in AFAR:
            if f"--{name}" not in taken:
                command = click.option(f"--{name}", hidden=True, expose_value=False, callback=refuse)(command)
        return command

    return with_refusals
