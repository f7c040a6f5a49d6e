"""What has been done of the fleet's commands, kept over restarts: one that is replayed after a reboot is refused."""

import json
from collections import deque
from datetime import datetime
from pathlib import Path

from device_agent.store.atomic_files import read_capped, write_atomically

FILE_NAME = "commands.json"
IDS_KEPT = 64
_SIZE_MAX = 16 * 1024  # bytes


class DoneCommands:
    """The newest IDS_KEPT ids, and when the last renewal by command was begun, by the device's clock."""

    def __init__(self, home: Path) -> None:
        self._file = home / FILE_NAME
        ids, self.renewed_at = _read(self._file)
        self._ids = deque(ids, maxlen=IDS_KEPT)

    def __contains__(self, command_id: str) -> bool:
        return command_id in self._ids

    def add(self, command_id: str, renewed_at: datetime | None = None) -> None:
        """Raises: OSError if it is not stored; it is remembered all the same, while this process runs."""
        if command_id not in self._ids:
            self._ids.append(command_id)
        self.renewed_at = renewed_at or self.renewed_at
        at = self.renewed_at.isoformat() if self.renewed_at is not None else ""
        write_atomically(self._file, json.dumps({"ids": list(self._ids), "renewed_at": at}).encode())


def _read(file: Path) -> tuple[list[str], datetime | None]:
    try:
        tree = json.loads(read_capped(file, _SIZE_MAX))
        at = datetime.fromisoformat(tree["renewed_at"]) if tree["renewed_at"] else None
        return [str(each) for each in tree["ids"]], at if at is None or at.tzinfo is not None else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [], None
