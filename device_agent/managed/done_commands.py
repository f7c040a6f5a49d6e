"""What has been done of the fleet's commands, kept over restarts: one that is replayed after a reboot is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path

from device_agent.store.atomic_files import read_capped, write_atomically

FILE_NAME = "commands.json"
IDS_KEPT = 64
_SIZE_MAX = 16 * 1024  # bytes


class DoneCommands:
    """The IDS_KEPT ids of the latest times, the latest time of those that are no longer kept, and when the last renewal
    by command was begun, by the device's clock.

    What is not kept by its id is refused by its time, however many commands follow it.
    """

    def __init__(self, home: Path) -> None:
        self._file = home / FILE_NAME
        self._ids, self.forgotten_until, self.renewed_at = _read(self._file)

    def __contains__(self, command_id: str) -> bool:
        return command_id in self._ids

    def is_older(self, at: datetime) -> bool:
        """Whether a command given `at` that time may be one whose id is no longer kept."""
        return self.forgotten_until is not None and at <= self.forgotten_until

    def add(self, command_id: str, at: datetime, renewed_at: datetime | None = None) -> None:
        """Raises: OSError if it is not stored; it is remembered all the same, while this process runs."""
        self._ids[command_id] = at
        while len(self._ids) > IDS_KEPT:
            first = min(self._ids, key=self._ids.__getitem__)
            self.forgotten_until = max(self._ids.pop(first), self.forgotten_until or datetime.min.replace(tzinfo=UTC))
        self.renewed_at = renewed_at or self.renewed_at
        tree = {
            "ids": {each: given.isoformat() for each, given in self._ids.items()},
            "forgotten_until": _shown(self.forgotten_until),
            "renewed_at": _shown(self.renewed_at),
        }
        write_atomically(self._file, json.dumps(tree).encode())


def _shown(at: datetime | None) -> str:
    return at.isoformat() if at is not None else ""


def _time(text: str) -> datetime:
    """Raises: ValueError if it has no time zone."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(text)
    return at


def _read(file: Path) -> tuple[dict[str, datetime], datetime | None, datetime | None]:
    try:
        tree = json.loads(read_capped(file, _SIZE_MAX))
        until, renewed_at = (_time(tree[key]) if tree[key] else None for key in ("forgotten_until", "renewed_at"))
        return {each: _time(given) for each, given in tree["ids"].items()}, until, renewed_at
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, None, None
