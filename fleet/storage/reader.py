"""The reads of an audit log over SQL, the same on every engine; an engine provides `_read`."""

from abc import ABC, abstractmethod
from typing import Any, TypeVar

from fleet.domain.audit_log import Sealed, TreeHead
from fleet.domain.changes import AuditRow
from fleet.storage import queries
from fleet.storage.mapping import serial_octets
from fleet.storage.queries import Query, bounded

T = TypeVar("T")


class SqlAuditReader(ABC):
    """A domain.ports.AuditReader over SQL. No listing returns more than queries.LIST_MAX rows at once."""

    @abstractmethod
    async def _read(self, query: Query[T], *parameters: Any) -> list[T]:
        """The rows of `query` as values, from one snapshot that is not older than this call."""

    async def _scan(self, query: Query[T], *parameters: Any) -> list[T]:
        """As `_read`, for queries that may take long: an engine may run them apart from the others."""
        return await self._read(query, *parameters)

    async def _one(self, query: Query[T], *parameters: Any) -> T | None:
        found = await self._read(query, *parameters)
        return found[0] if found else None

    async def _by_serial(self, query: Query[T], serial: str) -> T | None:
        try:
            octets = serial_octets(serial)
        except ValueError:
            return None  # no certificate has such a serial
        return await self._one(query, octets)

    async def _number(self, query: Query[int], *parameters: Any) -> int:
        [number] = await self._read(query, *parameters)
        return number

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        return await self._scan(queries.AUDIT, after, bounded(limit))

    async def last_audit(self) -> int:
        return await self._number(queries.LAST_AUDIT)

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        return await self._scan(queries.HEADS, after, bounded(limit))

    async def last_sealed(self) -> Sealed | None:
        return await self._one(queries.LAST_SEALED)

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        if level == 0:
            found = await self._scan(queries.LEAVES, first, bounded(count))
        else:
            found = await self._scan(queries.NODES, level, first, bounded(count))
        return queries.unbroken(found, first)
