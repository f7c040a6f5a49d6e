"""The number of failed connection attempts in a row, kept over restarts: a device that reboots in a loop is no storm.

A start counts as a failure until a connection has been stable, or the agent was stopped while connected. A permanent
refusal is kept with the number: the wait then grows to hours. The file affects a delay only: it is neither durable nor
needed, and is written a dozen times in an outage of any length.
"""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from device_agent.store.atomic_files import read_capped

FILE_NAME = "attempts.txt"
COUNTED_MAX = 20  # 2 ** 20 times the shortest base delay is above any cap
_OF_SIZE = 16  # hex digits of a fingerprint
_SIZE_MAX = 32  # bytes
_ENDED = " ended"
_TEXT = re.compile(rb"([0-9]{1,3}) ([0-9a-f]{16})( ended)?\n")


class Attempts:
    """`failures` is the exponent of the backoff. `of`: fingerprint of the certificate that it belongs to."""

    def __init__(self, home: Path) -> None:
        self._file = home / FILE_NAME
        self.failures, self._of, self.ended = _read(self._file)
        self._stored = self.failures, self.ended

    def begin(self, fingerprints: Collection[str]) -> int:
        """The failures before this start, which the file counts as one more; 0 if they were of other certificates."""
        if not any(each.startswith(self._of) for each in fingerprints if self._of):
            self.failures, self.ended = 0, False
            self._of = min(fingerprints, default="")[:_OF_SIZE]
        self._store(min(self.failures + 1, COUNTED_MAX))
        return self.failures

    def failed(self, *, ended: bool = False) -> None:
        """One more; `ended`: the server has refused permanently."""
        self.ended = ended
        self.failures = min(self.failures + 1, COUNTED_MAX)
        self._store(self.failures)

    def succeeded(self) -> None:
        """None any more."""
        self.failures, self.ended = 0, False
        self._store(0)

    def go_on(self) -> None:
        """A refusal permanently may be over."""
        if self.ended:
            self.succeeded()

    def _store(self, failures: int) -> None:
        if (failures, self.ended) == self._stored:
            return
        self._stored = failures, self.ended
        fresh = self._file.with_name(f".{FILE_NAME}.new")
        with contextlib.suppress(OSError):  # a full or read-only disk costs the memory of it, and nothing else
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                file.write(f"{failures} {self._of}{_ENDED * self.ended}\n".encode())
            fresh.rename(self._file)


def _read(file: Path) -> tuple[int, str, bool]:
    try:
        text = read_capped(file, _SIZE_MAX)
    except OSError:
        return 0, "", False
    found = _TEXT.fullmatch(text)
    return (min(int(found[1]), COUNTED_MAX), found[2].decode(), found[3] is not None) if found else (0, "", False)
