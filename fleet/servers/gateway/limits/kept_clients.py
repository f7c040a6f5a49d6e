"""Client ids, other than its own, under which a device has sessions, or the broker may keep one for it.

They are counted against what the device's model allows, over connections, workers and restarts, and those that the
broker may keep are what is purged when the device is revoked. Each device that has any has a file; one that has none
never touches it. The filters of a client id whose session has ended go with it.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fleet.domain.client_ids import device_of
from fleet.domain.recent import Recent
from fleet.servers.gateway.limits.disk_errors import DiskErrors
from fleet.servers.gateway.limits.locked_file import locked, write_at
from fleet.servers.gateway.limits.processes import runs, this_process

DEVICES_MAX = 100_000
LATE_SECONDS = 5.0  # mosquitto looks once a second, while it is not busy, which sessions have expired
FILE_SIZE_MAX = 16_384  # sixteen client ids of 200 bytes, and what has expired


class _Session(NamedTuple):
    ends_at: float
    """When the broker keeps it no longer, in seconds since 1970; 0: not without its connection."""
    process: str = ""
    """The mark of the one at which it is open; "": at none."""


_Kept = dict[str, _Session]
"""By client id at the broker."""


class KeptClients:
    """In files of `directory`, which exists, or without one in memory of this process alone. `clock` as `time.time`."""

    def __init__(self, directory: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self._errors = DiskErrors("kept-clients")
        self._devices: Recent[str, _Kept] = Recent(DEVICES_MAX)

    def begins(self, client_id: str, open_ids: Iterable[str], sessions_max: int, *, outlives: bool) -> bool:
        """A session of `client_id` is about to begin, while the device has sessions of `open_ids` here. False: the
        device has as many as `sessions_max`, its own one, which always may begin, included.

        `outlives`: whether it may outlive its connection.
        """
        device_id = device_of(client_id)
        if client_id == device_id:
            return True
        others = {*open_ids} - {client_id, device_id}
        with self._errors.logged("written"), self._opened(device_id, create=True) as kept:
            others |= kept.keys() - {client_id}
            if has_room := len(others) < sessions_max - 1:
                kept[client_id] = _Session(math.inf if outlives else 0.0, this_process())
            return has_room
        # What can't be remembered can't be purged.
        return not outlives and len(others) < sessions_max - 1

    def ended(self, client_id: str, seconds: float) -> None:
        """Its connection has ended, and the broker keeps the session for `seconds` at most."""
        device_id = device_of(client_id)
        if client_id == device_id:
            return
        with self._errors.logged("written"), self._opened(device_id, create=seconds > 0) as kept:
            before = kept.get(client_id)
            if before is not None and before.process not in ("", this_process()):
                return  # it has been taken over there
            kept.pop(client_id, None)
            if seconds > 0:
                kept[client_id] = _Session(self._clock() + seconds + LATE_SECONDS)

    def of_device(self, device_id: str) -> tuple[str, ...]:
        """Those under which the broker may keep a session now."""
        with self._errors.logged("read"), self._opened(device_id, create=False) as kept:
            return tuple(client_id for client_id, session in kept.items() if session.ends_at)
        return ()

    def is_kept_alone(self, client_id: str) -> bool:
        """Whether the broker may keep its session, while no process has it open."""
        with self._errors.logged("read"), self._opened(device_of(client_id), create=False) as kept:
            return client_id in kept and not kept[client_id].process
        return False

    def purged(self, device_id: str) -> None:
        """The broker keeps none of its sessions any more."""
        self._devices.pop(device_id, None)
        if self._directory is not None:
            with self._errors.logged("removed"):
                self._path(self._directory, device_id).unlink(missing_ok=True)

    @staticmethod
    def _path(directory: Path, device_id: str) -> Path:
        return directory / file_name(f"{device_id}/")

    @contextmanager
    def _opened(self, device_id: str, *, create: bool) -> Iterator[_Kept]:
        """What has not expired; what the block changes is kept. Raises: OSError."""
        if self._directory is None:
            kept = self._alive(self._devices.get(device_id) or {})
            yield kept
            if kept:
                self._devices.put(device_id, kept)
            else:
                self._devices.pop(device_id, None)
            return
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(locked(self._path(self._directory, device_id), flags))
            except FileNotFoundError:
                if create:
                    raise  # the directory has been removed
                yield {}
                return
            before = _read(os.pread(descriptor, FILE_SIZE_MAX, 0))
            kept = self._alive(before)
            yield kept
            if kept != before:
                lines = (f"{name} {ends_at} {process}\n" for name, (ends_at, process) in kept.items())
                write_at(descriptor, "".join(lines).encode(), 0)
            for client_id in before.keys() - kept.keys():
                (self._directory / file_name(client_id)).unlink(missing_ok=True)

    def _alive(self, kept: _Kept) -> _Kept:
        now = self._clock()
        return {
            client_id: session
            for client_id, session in kept.items()
            if session.ends_at > now or (session.process and _is_open(session.process))
        }


def file_name(client_id: str) -> str:
    """Of the file of its filters, in the same directory."""
    return client_id.replace("/", ",")  # a comma is in no device id


def _is_open(process: str) -> bool:
    return process == this_process() or runs(process)


def _read(data: bytes) -> _Kept:
    """A line that is cut off is none: the disk was full."""
    kept: _Kept = {}
    for line in data.decode(errors="replace").split("\n")[:-1]:
        client_id, _, rest = line.partition(" ")
        ends_at, _, process = rest.partition(" ")
        with suppress(ValueError):
            kept[client_id] = _Session(float(ends_at), process)
    return kept
