"""Durations on the command line: 90s, 15m, 1h, 30d, 2w, or several together, as in 1h30m."""

import re
from datetime import timedelta

from fleet.cli.options import Checked

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_PART = r"[0-9]{1,9}[wdhms]"


def _duration(maximum: timedelta = timedelta.max) -> Checked:
    """A timedelta, greater than zero and at most `maximum`."""

    def read(given: str) -> timedelta:
        text = given.strip().lower()
        if not re.fullmatch(f"({_PART})+", text):
            raise ValueError(f"{given[:40]!r} is not a duration; write 90s, 15m, 1h or 30d.")
        try:
            total = sum((timedelta(**{_UNITS[p[-1]]: int(p[:-1])}) for p in re.findall(_PART, text)), timedelta())
        except OverflowError:
            raise ValueError(f"{text[:40]!r} is too long.") from None
        if not total:
            raise ValueError("a duration must be greater than zero.")
        if total > maximum:
            raise ValueError(f"{text[:40]!r} is too long: at most {duration_text(maximum)}.")
        return total

    return Checked("duration", read)


def duration_text(value: timedelta) -> str:
    """`value` as it is written on the command line: "30d", "1h30m"; below a second, "0s"."""
    left = int(value.total_seconds())
    text = ""
    for letter, seconds in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        text += f"{count}{letter}" if count else ""
    return text or "0s"


DURATION = _duration()
CERTIFICATE_LIFETIME = _duration(timedelta(days=3650))
TOKEN_LIFETIME = _duration(timedelta(days=90))
