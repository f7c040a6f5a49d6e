"""Topic filters that the broker holds for a device, known for as long as it may hold them.

A persistent session keeps its subscriptions over connections, and the broker pays for each in memory: a node for each
level of the filter. What counts is therefore not what one connection has asked for, but all that the device has
subscribed to since the broker last had no session of it, at whichever worker, and before our own restart: each device
with a persistent session has a file.
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fleet.domain.mqtt_rules import MqttRules, lowered
from fleet.domain.recent import Recent
from fleet.servers.gateway.limits.disk_errors import DiskErrors
from fleet.servers.gateway.limits.kept_clients import KeptClients, file_name
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits
from fleet.servers.gateway.limits.locked_file import locked, write_at
from fleet.wire.mqtt.topics import is_shared

LEAVING_MAX = 1_000  # filters of UNSUBSCRIBEs that await their UNSUBACK; any further stay counted
DEVICES_MAX = 100_000
FILTERS_EACH = 32
"""Filters of a persistent session that are read and written, in its file, for what one packet costs."""
KEPT_FILTERS = "kept-filters"
"""The directory, in that of a home's running servers."""
_OWNER_SIZE = 16


class FilterSet:
    """The filters of one client id, as one of its sessions knows them. Client ids of one device have equal shares.

    From UNSUBSCRIBE to UNSUBACK a filter is in the file alone: what is subscribed to behind it has room, since the
    broker keeps the order; but when the connection ends between the two, the broker may still hold it.
    """

    __slots__ = ("_bytes", "_count_max", "_file", "_filters", "_leaving", "_leaving_count", "_levels", "_limits",
                 "_outlives", "_shares")  # fmt: skip

    def __init__(
        self, limits: Limits = DEFAULT_LIMITS, file: "FilterFile | None" = None, *, outlives_connection: bool = True
    ) -> None:
        self._limits = limits
        self._count_max, self._shares = limits.filters_per_device_max, 1
        self._filters: dict[str, str] = {}  # each in one copy
        self._leaving: dict[int, tuple[str, ...]] = {}  # packet identifier of the UNSUBSCRIBE -> filters, if any
        self._leaving_count = 0
        self._bytes = self._levels = 0
        self._file = file
        self._outlives = outlives_connection
        if file is not None:
            with file.errors.logged("read"):
                self._keep(file.begin_session(create=outlives_connection))

    def __iter__(self) -> Iterator[str]:
        return iter(self._filters)

    @property
    def upkeep(self) -> int:
        """Packets that a change of it costs besides its own."""
        return len(self._filters) // FILTERS_EACH if self._file is not None and self._outlives else 0

    def set_rules(self, rules: MqttRules) -> None:
        """Apply the model's rules to what is added from now on."""
        self._shares = rules.sessions
        self._count_max = lowered(self._limits.filters_per_device_max, rules.subscriptions_max) // self._shares

    def add(self, filters: Iterable[str]) -> frozenset[str]:
        """Returns those for which there is no room."""
        fresh = dict.fromkeys(one for one in filters if one not in self._filters)
        if not fresh:
            return frozenset()
        if self._file is None or not self._outlives:
            return frozenset(one for one in fresh if not self._add(one))
        with self._file.errors.logged("written"):
            with self._file.opened(create=True) as content:
                leaving = self._all_leaving()
                self._keep(one for one in content.filters if one not in leaving)
                refused = frozenset(one for one in fresh if not self._add(one))
                try:
                    content.append(fresh.keys() - refused - set(content.filters))
                except OSError:
                    self._forget(fresh)
                    raise
            return refused
        return frozenset(fresh)  # what can't be counted can't be kept

    def leave(self, packet_id: int, filters: Iterable[str]) -> None:
        """An UNSUBSCRIBE is on its way to the broker."""
        held = tuple({one: self._filters[one] for one in filters if one in self._filters}.values())
        if held and self._leaving_count + len(held) <= LEAVING_MAX:
            self._leaving[packet_id] = (*self._leaving.get(packet_id, ()), *held)
            self._leaving_count += len(held)
            self._forget(held)

    def is_leaving(self, packet_id: int) -> bool:
        """Whether an UNSUBSCRIBE with this packet identifier, of a filter that is held, awaits its answer."""
        return packet_id in self._leaving

    def left(self, packet_id: int) -> None:
        """The broker has acknowledged it."""
        held = self._answered(packet_id)
        if held and self._file is not None:
            with self._file.errors.logged("written"):
                self._file.remove(frozenset(held) - self._filters.keys() - self._all_leaving())

    def stayed(self, packet_id: int) -> None:
        """The broker has refused it."""
        self._keep(self._answered(packet_id))

    def _answered(self, packet_id: int) -> tuple[str, ...]:
        held = self._leaving.pop(packet_id, ())
        self._leaving_count -= len(held)
        return held

    def clear(self) -> None:
        """The broker holds nothing any more."""
        self._filters.clear()
        self._leaving.clear()
        self._leaving_count = 0
        self._bytes = self._levels = 0
        if self._file is not None:
            with self._file.errors.logged("written"):
                self._file.clear(keep=self._outlives)

    def _all_leaving(self) -> frozenset[str]:
        return frozenset(one for held in self._leaving.values() for one in held)

    def _keep(self, filters: Iterable[str]) -> None:
        """The broker holds these, whether there is room or not."""
        for one in filters:
            if one not in self._filters:
                self._filters[one] = one
                self._bytes += len(one)
                self._levels += _levels(one)

    def _add(self, one: str) -> bool:
        size, levels, limits = self._bytes + len(one), self._levels + _levels(one), self._limits
        if (
            len(self._filters) >= self._count_max
            or size > limits.filter_bytes_per_device_max // self._shares
            or levels > limits.filter_levels_per_device_max // self._shares
        ):
            return False
        self._keep((one,))
        return True

    def _forget(self, filters: Iterable[str]) -> None:
        for one in filters:
            if self._filters.pop(one, None) is not None:
                self._bytes -= len(one)
                self._levels -= _levels(one)


@dataclass(frozen=True, slots=True)
class _Content:
    """An open, locked file: the owner, then each filter and a NUL, which no filter contains."""

    descriptor: int
    owner: bytes
    filters: tuple[str, ...]
    size: int
    """Without an incomplete filter at its end: the disk was full."""

    def append(self, filters: Iterable[str]) -> None:
        self._write_at(self.size, filters)

    def replace(self, filters: Iterable[str]) -> None:
        self._write_at(_OWNER_SIZE, filters)

    def _write_at(self, start: int, filters: Iterable[str]) -> None:
        write_at(self.descriptor, b"".join(one.encode() + b"\0" for one in filters), start)


class FilterFile:
    """The file of one device, as one of its sessions uses it. The methods raise OSError.

    Any session may add: before its SUBSCRIBE is forwarded. Only the one that connected last may remove: an earlier one
    may read the broker's answer only when another has subscribed again.
    """

    __slots__ = ("_is_ours", "_owner", "_path", "errors")

    def __init__(self, path: Path, errors: DiskErrors) -> None:
        self._is_ours = False  # it may be: most sessions are not persistent, and have none
        self._path = path
        self.errors = errors
        self._owner = secrets.token_bytes(_OWNER_SIZE)

    def begin_session(self, *, create: bool) -> tuple[str, ...]:
        """The filters so far. Call it before the broker gets CONNECT."""
        try:
            with self.opened(create=create) as content:
                os.pwrite(content.descriptor, self._owner, 0)
                return content.filters
        except FileNotFoundError:
            return ()

    def remove(self, filters: frozenset[str]) -> None:
        with suppress(FileNotFoundError), self.opened() as content:
            if content.owner == self._owner:
                content.replace(one for one in content.filters if one not in filters)

    def clear(self, *, keep: bool) -> None:
        """Remove all, and unless `keep` the file."""
        if not self._is_ours:
            return
        with suppress(FileNotFoundError), self.opened() as content:
            if content.owner == self._owner:
                if keep:
                    content.replace(())
                else:
                    self._path.unlink()

    @contextmanager
    def opened(self, *, create: bool = False) -> Iterator[_Content]:
        with locked(self._path, os.O_RDWR | (os.O_CREAT if create else 0)) as descriptor:
            self._is_ours = True
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            if len(data) < _OWNER_SIZE:
                data = self._owner
                os.pwrite(descriptor, data, 0)
            size = data.rfind(b"\0", _OWNER_SIZE) + 1 or _OWNER_SIZE
            filters = data[_OWNER_SIZE:size].decode(errors="replace").split("\0")[:-1]
            yield _Content(descriptor, data[:_OWNER_SIZE], tuple(filters), size)


class KeptFilters:
    """By client id at the broker, in files of `directory`, or without one in memory of this process alone.

    Of the latter, the one that connected longest ago is forgotten first: it then starts at nothing again.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, directory: Path | None = None) -> None:
        self._limits = limits
        self._directory = directory
        self._errors = DiskErrors("kept-filters")
        self._devices: Recent[str, FilterSet] = Recent(DEVICES_MAX)
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.clients = KeptClients(directory)

    def set_limits(self, limits: Limits) -> None:
        """For the sessions to come."""
        self._limits = limits

    def of_session(self, client_id: str, *, outlives_connection: bool) -> FilterSet:
        """Call it before the broker gets the session's CONNECT."""
        if self._directory is not None:
            file = FilterFile(self._directory / file_name(client_id), self._errors)
            return FilterSet(self._limits, file, outlives_connection=outlives_connection)
        found = self._devices.get(client_id) or FilterSet(self._limits)
        self._devices.put(client_id, found)
        return found

    def shared(self, client_id: str) -> tuple[str, ...]:
        """Those of shared subscriptions that the broker may hold, while the device has no session here."""
        if self._directory is None:
            return tuple(filter(is_shared, self._devices.get(client_id) or ()))
        with (
            self._errors.logged("read"),
            suppress(FileNotFoundError),
            FilterFile(self._directory / file_name(client_id), self._errors).opened() as content,
        ):
            return tuple(filter(is_shared, content.filters))
        return ()

    def removed(self, client_id: str, filters: Iterable[str]) -> None:
        """The broker has unsubscribed them, while the device has no session here."""
        kept = self.of_session(client_id, outlives_connection=False)
        kept.leave(1, filters)
        kept.left(1)

    def session_purged(self, device_id: str) -> None:
        """The broker's sessions of the device are purged."""
        for client_id in (device_id, *self.clients.of_device(device_id)):
            self._devices.pop(client_id, None)
            if self._directory is not None:
                with self._errors.logged("removed"):
                    (self._directory / file_name(client_id)).unlink(missing_ok=True)


def _levels(topic_filter: str) -> int:
    return topic_filter.count("/") + 1
