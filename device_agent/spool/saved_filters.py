"""The filters that the session at the server may have, in a file: those of programs that a restart of the agent has cut
off from it, and that may be gone by then."""

import contextlib
import json
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from device_agent.config.topics import filter_for
from device_agent.log.event_log import EventLog
from device_agent.store.atomic_files import read_capped
from fleet.est_client.errors import BadConfig

FILE_NAME = "subscriptions.json"
DAMAGED_NAME = "subscriptions.damaged.json"
_SIZE_MAX = 1024 * 1024  # bytes; 256 filters of 1 KiB, escaped

Keep = dict[int, float]
"""By user: seconds for which a filter outlives its programs."""


class SavedFilters:
    """What is in the file. It stands for a few UNSUBSCRIBEs: it is not synced, and without it they are not sent."""

    def __init__(self, home: Path, log: EventLog | None = None) -> None:
        self._file = home / FILE_NAME
        self.filters: dict[str, Keep] = {}
        try:
            self.filters = _filters(read_capped(self._file, _SIZE_MAX))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, BadConfig) as error:
            with contextlib.suppress(OSError):
                self._file.rename(home / DAMAGED_NAME)
            if log is not None:
                log.event("subscriptions-damaged", kept_as=DAMAGED_NAME, reason=error)

    def cover(self, topic_filter: str, keep: Mapping[int, float]) -> bool:
        """Whether the file has the filter, kept at least so long."""
        saved = self.filters.get(topic_filter)
        return saved is not None and all(saved.get(uid, -1.0) >= seconds for uid, seconds in keep.items())

    def store(self, filters: dict[str, Keep]) -> None:
        self.filters = filters
        fresh = self._file.with_name(f".{FILE_NAME}.new")
        tree = {name: {str(uid): seconds for uid, seconds in keep.items()} for name, keep in filters.items()}
        with contextlib.suppress(OSError):  # a full or read-only disk costs the memory of it, and nothing else
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                file.write(json.dumps(tree).encode())
            fresh.rename(self._file)


def _filters(text: bytes) -> dict[str, Keep]:
    """Raises: ValueError, TypeError, AttributeError, OverflowError, RecursionError, BadConfig if it is damaged."""
    tree = json.loads(text)
    # None of them has "{id}" in it, which stands for the device's id in what programs ask for.
    return {
        filter_for(name, ""): {int(uid): _seconds(seconds) for uid, seconds in keep.items()}
        for name, keep in tree.items()
    }


def _seconds(value: float) -> float:
    seconds = float(value)
    if not isfinite(seconds):
        raise ValueError("a time without end")
    return seconds
