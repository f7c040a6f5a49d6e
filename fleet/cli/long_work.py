"""Work of minutes: Ctrl-C and SIGTERM are looked at between two steps of it, and its progress is shown."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def noting_interrupts() -> Iterator[list[int]]:
    """While the block runs, SIGINT and SIGTERM are appended to the list and end nothing."""
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: noted.append(received)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Progress:
    """A line on standard error, at most one in `every_seconds`."""

    def __init__(self, every_seconds: float = 2.0, *, at_once: bool = True) -> None:
        self._every_seconds = every_seconds
        self._shown = float("-inf") if at_once else time.monotonic()

    def show(self, text: str) -> None:
        if time.monotonic() - self._shown >= self._every_seconds:
            self._shown = time.monotonic()
            click.echo(text, err=True)
