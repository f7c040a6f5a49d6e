"""Durations on the command line: 90s, 15m, 1h, 30d, 2w, or several together, as in 1h30m."""

import re
from datetime import timedelta

import click

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_PART = r"[0-9]{1,9}[wdhms]"


class Duration(click.ParamType):  # type: ignore[type-arg]  # click 8.3 has no parameters here
    """A click parameter type that gives a timedelta, greater than zero and at most `maximum`."""

    name = "duration"

    def __init__(self, maximum: timedelta = timedelta.max) -> None:
        self._maximum = maximum

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        text = str(value).strip().lower()
        if not re.fullmatch(f"({_PART})+", text):
            self.fail(f"{str(value)[:40]!r} is not a duration; write 90s, 15m, 1h or 30d.", param, ctx)
        try:
            total = sum((timedelta(**{_UNITS[p[-1]]: int(p[:-1])}) for p in re.findall(_PART, text)), timedelta())
        except OverflowError:
            self.fail(f"{text[:40]!r} is too long.", param, ctx)
        if not total:
            self.fail("a duration must be greater than zero.", param, ctx)
        if total > self._maximum:
            self.fail(f"{text[:40]!r} is too long: at most {duration_text(self._maximum)}.", param, ctx)
        return total


DURATION = Duration()
CERTIFICATE_LIFETIME = Duration(timedelta(days=3650))
TOKEN_LIFETIME = Duration(timedelta(days=90))


def duration_text(value: timedelta) -> str:
    """`value` as it is written on the command line: "30d", "1h30m"; below a second, "0s"."""
    left = int(value.total_seconds())
    text = ""
    for letter, seconds in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        text += f"{count}{letter}" if count else ""
    return text or "0s"
