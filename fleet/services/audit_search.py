"""Audit search: rows by their fields, or the row that recorded a certificate's issue.

Only the sequence is indexed. Rows are in commit order, which is close to the order of their times: a time is found by
bisection, then its neighborhood is scanned.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Protocol

from msgspec import Struct

from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.credential import Credential
from fleet.services.admission import FIRST_USE

PAGE_ROWS = 1_000
SEARCH_PAGE_ROWS = 10_000
OUT_OF_ORDER_MAX = timedelta(minutes=10)  # tolerance for clocks of several nodes and delayed commits
LOOKED_AT_MAX = 500_000  # rows in either direction, whatever their times


class RowFilter(Struct, frozen=True):
    """Fields to match; "" matches any value. A trailing `*` matches any suffix."""

    actor: str = ""
    action: str = ""
    subject: str = ""
    outcome: str = ""
    device: str = ""
    """Rows of this device, about it, or that name it in their detail, as those of its tokens and requests."""
    since: datetime | None = None
    """Written at this time or later."""
    until: datetime | None = None
    """Written before this time."""

    def means(self, entry: AuditEntry) -> bool:
        return (
            (self.since is None or entry.at >= self.since)
            and (self.until is None or entry.at < self.until)
            and _fits(self.actor, entry.actor)
            and _fits(self.action, entry.action)
            and _fits(self.subject, entry.subject)
            and _fits(self.outcome, entry.outcome)
            and (not self.device or _concerns(self.device, entry))
        )


def _fits(wanted: str, found: str) -> bool:
    return found.startswith(wanted[:-1]) if wanted.endswith("*") else wanted in ("", found)


def _concerns(device_id: str, entry: AuditEntry) -> bool:
    named = f"device {device_id}"
    return named in (entry.actor, entry.subject, entry.detail.get("scope")) or entry.detail.get("device") == device_id


class RowReader(Protocol):
    """Source of a search: a registry, or a remote one."""

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]: ...
    async def last_audit(self) -> int: ...


async def rows_of(reader: RowReader, where: RowFilter, after: int | None, limit: int) -> list[AuditRow]:
    """The first `limit` rows after row `after` that match `where`, in order; without `after`, the last `limit`."""
    if after is None:
        return await newest_rows(reader, where, limit)
    return await rows_after(reader, where, after, limit)


async def rows_after(reader: RowReader, where: RowFilter, after: int, limit: int) -> list[AuditRow]:
    """The first `limit` rows after row `after` that match `where`, in order."""
    found: list[AuditRow] = []
    page_rows = limit if where == RowFilter() else SEARCH_PAGE_ROWS
    while len(found) < limit:
        page = await reader.audit(after=after, limit=page_rows)
        if not page:
            break
        found += [row for row in page if where.means(row.entry)]
        after = page[-1].seq
        if where.until is not None and all(row.entry.at > where.until + OUT_OF_ORDER_MAX for row in page):
            break
    return found[:limit]


async def newest_rows(reader: RowReader, where: RowFilter, limit: int) -> list[AuditRow]:
    """The last `limit` rows that match `where`, in order."""
    found: list[AuditRow] = []
    page_rows = limit if where == RowFilter() else SEARCH_PAGE_ROWS
    newest = await reader.last_audit()
    if where.until is not None:
        newest = await _place_of(reader, where.until + OUT_OF_ORDER_MAX)
    async for page in _pages_back(reader, newest, page_rows):
        found = [row for row in page if where.means(row.entry)] + found
        if len(found) >= limit:
            break
        if where.since is not None and all(row.entry.at < where.since - OUT_OF_ORDER_MAX for row in page):
            break
    return found[-limit:]


async def _pages_back(reader: RowReader, upto: int, page_rows: int) -> AsyncIterator[list[AuditRow]]:
    """Rows from row `upto` back to the first one stored: page by page, each in order."""
    while upto > 0:
        after = max(0, upto - page_rows)
        page = await _between(reader, after, upto)
        if not page:
            return
        yield page
        upto = after


async def _between(reader: RowReader, after: int, upto: int) -> list[AuditRow]:
    """Stored rows after row `after` through row `upto`."""
    return [row for row in await reader.audit(after=after, limit=upto - after) if row.seq <= upto]


async def row_of_issue(reader: RowReader, credential: Credential) -> AuditRow | None:
    """The row that recorded the issue of `credential`; None if it is not stored, or not near its time."""
    start = await _place_of(reader, credential.issued_at)
    async for row in _around(reader, start, credential.issued_at):
        if _records(row.entry, credential):
            return row
    return None


def _records(entry: AuditEntry, credential: Credential) -> bool:
    """Its time is that of the issue. Rows of a repeated response and of the first use name the serial, too."""
    told_again = entry.action == FIRST_USE or "repeated" in entry.detail
    is_its = entry.detail.get("serial") == credential.serial and entry.at == credential.issued_at
    return is_its and entry.outcome == "ok" and not told_again


async def _place_of(reader: RowReader, at: datetime) -> int:
    """A row number after which rows are of `at` or later, as far as rows are ordered by time."""
    first = await reader.audit(limit=1)
    low, high = (first[0].seq - 1 if first else 0), await reader.last_audit()
    while low < high:
        middle = (low + high) // 2
        page = await reader.audit(after=middle, limit=1)
        if page and page[0].entry.at < at:
            low = middle + 1
        else:
            high = middle
    return low


async def _around(reader: RowReader, start: int, at: datetime) -> AsyncIterator[AuditRow]:
    """Rows after and before row `start`, in alternating pages, until they are too far from `at`."""
    behind, before = start, start
    looks_behind = looks_before = True
    while looks_behind or looks_before:
        if looks_behind:
            page = await reader.audit(after=behind, limit=PAGE_ROWS)
            for row in page:
                yield row
            behind += len(page)
            looks_behind = _goes_on(page, at) and behind - start < LOOKED_AT_MAX
        if looks_before:
            after = max(0, before - PAGE_ROWS)
            page = await _between(reader, after, before)
            for row in page:
                yield row
            before = after
            looks_before = _goes_on(page, at) and start - before < LOOKED_AT_MAX


def _goes_on(page: list[AuditRow], at: datetime) -> bool:
    return any(abs(row.entry.at - at) <= OUT_OF_ORDER_MAX for row in page)
