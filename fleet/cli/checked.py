"""Option values that the settings' own readers look at."""

from collections.abc import Callable
from typing import Any

import click


class Checked(click.ParamType[Any]):
    """An option's value as one of the settings' own readers sees it."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)
