"""The audit over the API, page by page: to search, export, and verify it without trusting the server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any, TypeVar

from fleet.client.client import Client, bad_answer
from fleet.domain.audit_log import Sealed, TreeHead
from fleet.domain.audit_proof import head_of
from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.errors import Unavailable
from fleet.domain.merkle import Frontier
from fleet.domain.ports import AuditReader

PAGE_MAX = 1000
HASHES_MAX = 1024  # in one request: after one of them, the next is mostly asked for
HASHES_KEPT_MAX = 65_536
NEWEST = 2**53 - 1  # after every row that there will ever be

Json = Mapping[str, Any]
_Made = TypeVar("_Made")


@asynccontextmanager
async def audit_reader(client: Client) -> AsyncIterator[AuditReader]:
    """The audit of a fleet: the registry itself at a home, the API over HTTPS. Raises: FleetError."""
    if client.home is None:
        yield ApiAudit(client)
        return
    from fleet.home.layout import opened

    async with opened(client.home, client.warn) as (_, registry):  # millions of rows, without JSON between
        yield registry


class ApiAudit:
    """An AuditReader that asks the API. Nothing of its answers is verified here.

    Each call raises FleetError; Unavailable (`bad-answer`) when an answer holds something else than was asked for.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._hashes: dict[tuple[int, int], bytes] = {}

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows after row `after`, in order."""
        rows: list[AuditRow] = []
        after = max(0, after)
        while len(rows) < limit:
            page = await self._ask(f"/v1/audit?after={after}&limit={min(limit - len(rows), PAGE_MAX)}")
            new = _read(lambda value: [_row(each) for each in value["items"]], page)
            rows += new
            if not new or page.get("next") is None:
                break
            if new[-1].seq <= after:
                raise _stuck()
            after = new[-1].seq
        return rows

    async def last_audit(self) -> int:
        return _read(lambda value: int(value["last"]), await self._ask(f"/v1/audit?after={NEWEST}&limit=1"))

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        page = await self._ask(f"/v1/audit/heads?after={max(0, after)}&limit={min(limit, PAGE_MAX)}")
        heads = _read(lambda value: [head_of(each) for each in value["items"]], page)
        sizes = [after, *(head.size for head in heads)]
        if any(size >= following for size, following in pairwise(sizes)):
            raise _stuck()
        return heads

    async def last_sealed(self) -> Sealed | None:
        return _read(_sealed, await self._ask("/v1/audit/sealed"))

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """A page of them is requested at once and kept: they never change."""
        wanted = [(level, index) for index in range(first, first + count)]
        if not all(each in self._hashes for each in wanted):
            if len(self._hashes) > HASHES_KEPT_MAX:
                self._hashes.clear()
            at_once = HASHES_MAX if count == 1 else min(count, HASHES_MAX)
            answer = await self._ask(f"/v1/audit/hashes?level={level}&first={first}&count={at_once}")
            found = _read(lambda value: [bytes.fromhex(each) for each in value["hashes"]], answer)
            self._hashes.update({(level, first + n): each for n, each in enumerate(found)})
        hashes: list[bytes] = []
        for each in wanted:
            if each not in self._hashes:
                break
            hashes.append(self._hashes[each])
        return hashes

    async def _ask(self, path: str) -> Any:
        return await asyncio.to_thread(self._client.get, path)


def _read(make: Callable[[Any], _Made], value: Any) -> _Made:
    try:
        return make(value)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise bad_answer("its audit cannot be read") from None


def _stuck() -> Unavailable:
    return Unavailable("bad-answer", "The server lists the audit out of order, or twice.", "Check the address.")


def _row(value: Json) -> AuditRow:
    rest = (value[name] for name in ("actor", "action", "subject", "outcome", "address", "detail"))
    entry = AuditEntry(datetime.fromisoformat(value["at"]), *rest)
    return AuditRow(value["seq"], entry, bytes.fromhex(value["leaf"]))


def _sealed(value: Json) -> Sealed | None:
    if value["head"] is None:
        return None
    frontier = value["frontier"]
    return Sealed(head_of(value["head"]), Frontier.unpacked(frontier["size"], bytes.fromhex(frontier["hashes"])))
