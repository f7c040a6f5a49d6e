"""Limits and descriptions of the members of a record, as the API publishes and checks them."""

import re
from collections.abc import Collection
from datetime import timedelta

from msgspec import Meta


def pattern(text: str, description: str | None = None) -> Meta:
    """A text that matches `text`, which ends in \\Z."""
    return Meta(pattern=text, description=description)


def at_most(size_max: int, description: str) -> Meta:
    """Of so many characters, or items of a list."""
    return Meta(max_length=size_max, description=description)


def between(least: int, most: int, description: str | None = None) -> Meta:
    """A number from `least` to `most`."""
    return Meta(ge=least, le=most, description=description)


def seconds(least: timedelta, most: timedelta, description: str | None = None) -> Meta:
    """A duration, which JSON has as a whole number of seconds."""
    return between(int(least.total_seconds()), int(most.total_seconds()), description)


def choice(names: Collection[str]) -> Meta:
    """One of `names`."""
    return Meta(pattern=rf"^({'|'.join(map(re.escape, names))})\Z", extra_json_schema={"enum": list(names)})


def about(description: str) -> Meta:
    return Meta(description=description)
