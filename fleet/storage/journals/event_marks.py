"""Which event was the newest at which time: events carry no time, and retention counts in days.

A small file of JSON lines, one a day, written whole each time.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path

from fleet.config.durable_files import write_file
from fleet.domain.errors import Invalid

EVERY = timedelta(hours=20)  # a daily run that is a little early still adds its mark
MARKS_MAX = 40_000  # a century of days


class EventMarks:
    """The marks in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def newest_before(self, moment: datetime) -> int:
        """The number of the newest event that is known to be older than `moment`, 0 when none is.

        Raises: Invalid (`event-marks-damaged`). OSError.
        """
        return max((seq for at, seq in self._read() if at <= moment), default=0)

    def add(self, at: datetime, seq: int) -> None:
        """Note that `seq` is the newest event at `at`, unless that day has a mark. Raises: as `newest_before`."""
        marks = self._read()
        if marks and at - marks[-1][0] < EVERY:
            return
        if marks and seq < marks[-1][1]:
            marks = []  # a restored registry counts on from its backup
        self._write([*marks, (at, seq)][-MARKS_MAX:])

    def _read(self) -> list[tuple[datetime, int]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        try:
            documents = [json.loads(line) for line in text.splitlines()]
            return [(datetime.fromisoformat(each["at"]), int(each["seq"])) for each in documents]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{self.path} is damaged."
            raise Invalid("event-marks-damaged", message, "Remove it; events are kept longer then.") from error

    def _write(self, marks: list[tuple[datetime, int]]) -> None:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        lines = (json.dumps({"at": at.isoformat(), "seq": seq}) + "\n" for at, seq in marks)
        write_file(self.path, "".join(lines).encode(), secret=True, force=True)
