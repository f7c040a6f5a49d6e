"""Rows are found by what they say, and a certificate's issue without walking through everything."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.audit_log import Sealed, TreeHead
from fleet.domain.changes import AuditEntry, AuditRow, Change
from fleet.domain.credential import Credential
from fleet.domain.writes import DropAudit
from fleet.services import audit_search
from fleet.services.audit_search import RowFilter, newest_rows, row_of_issue, rows_after
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.audit_stage import NOW, entry, fill, fill_and_seal
from tests.storage.samples import credential


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


class Counting:
    """A reader that counts the rows that it has handed out."""

    def __init__(self, registry: SqliteRegistry) -> None:
        self._registry = registry
        self.rows = 0

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        page = await self._registry.audit(after=after, limit=limit)
        self.rows += len(page)
        return page

    async def last_audit(self) -> int:
        return await self._registry.last_audit()

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        return await self._registry.audit_heads(after=after, limit=limit)

    async def last_sealed(self) -> Sealed | None:
        return await self._registry.last_sealed()

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        return await self._registry.audit_hashes(level, first, count)


class TestFilters:
    @pytest.mark.parametrize(
        ("where", "means"),
        [
            (RowFilter(), True),
            (RowFilter(actor="operator"), True),
            (RowFilter(actor="oper"), False),
            (RowFilter(actor="oper*"), True),
            (RowFilter(actor="*"), True),
            (RowFilter(action="test", subject="device cam-7", outcome="ok"), True),
            (RowFilter(action="test", subject="device cam-70"), False),
            (RowFilter(subject="device cam-7*"), True),
            (RowFilter(outcome="refused"), False),
            (RowFilter(device="cam-7"), True),
            (RowFilter(device="cam-70"), False),
            (RowFilter(device="cam-7", action="mqtt.*"), False),
        ],
    )
    def test_what_they_mean(self, where: RowFilter, means: bool) -> None:
        assert where.means(entry(7)) is means

    def test_a_device_is_found_as_actor_subject_and_in_what_names_it(self) -> None:
        where = RowFilter(device="cam-7")
        assert where.means(replace(entry(7), actor="device cam-7", subject="device other"))
        assert where.means(replace(entry(7), subject="token 3f2a", detail={"scope": "device cam-7"}))
        assert where.means(replace(entry(7), subject="request 77", detail={"device": "cam-7"}))
        assert not where.means(replace(entry(7), subject="token 3f2a", detail={"scope": "device cam-70"}))

    async def test_pages_are_walked_either_way(self, registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_search, "SEARCH_PAGE_ROWS", 7)
        await fill(registry, 50)
        tens = RowFilter(subject="device cam-1*")  # 1 and 10 to 19

        async def newest(where: RowFilter, limit: int) -> list[int]:
            return [row.seq for row in await newest_rows(registry, where, limit)]

        async def behind(where: RowFilter, after: int, limit: int) -> list[int]:
            return [row.seq for row in await rows_after(registry, where, after, limit)]

        assert await newest(RowFilter(), 3) == [48, 49, 50]
        assert await newest(tens, 3) == [17, 18, 19]
        assert await newest(tens, 99) == [1, *range(10, 20)]
        assert await newest(RowFilter(subject="nobody"), 9) == []
        assert await behind(RowFilter(), 48, 9) == [49, 50]
        assert await behind(tens, 0, 3) == [1, 10, 11]
        assert await behind(tens, 11, 99) == list(range(12, 20))
        assert await behind(tens, 50, 9) == []

    async def test_archived_rows_are_not_found_and_no_others_twice(self, registry: SqliteRegistry) -> None:
        await fill_and_seal(registry, (600,))
        await registry.commit(Change(entry(601), (DropAudit(512),)))
        assert [row.seq for row in await newest_rows(registry, RowFilter(), 999)] == list(range(513, 602))
        assert [row.seq for row in await newest_rows(registry, RowFilter(actor="operator"), 999)] == list(
            range(513, 602)
        )
        assert [row.seq for row in await rows_after(registry, RowFilter(), 0, 2)] == [513, 514]


def issued(seconds: float) -> Credential:
    return replace(credential("cam-7"), issued_at=NOW + timedelta(seconds=seconds))


def issue_of(c: Credential, **changes: object) -> AuditEntry:
    usual = AuditEntry(c.issued_at, "token 3f", "device.enroll", "device cam-7", "ok", detail={"serial": c.serial})
    return replace(usual, **changes)


class TestIssue:
    async def test_it_is_found_among_many_by_looking_at_few(self, registry: SqliteRegistry) -> None:
        """Rows are a second apart, row 2000 at 2000 s."""
        wanted = issued(2000.5)
        await fill(registry, 2000)
        await registry.commit(Change(issue_of(wanted)))
        await fill(registry, 6000)
        reader = Counting(registry)
        row = await row_of_issue(reader, wanted)
        assert row is not None
        assert row.seq == 2001
        assert reader.rows <= 1_000 + 20

    async def test_other_rows_that_name_the_serial_are_not_it(self, registry: SqliteRegistry) -> None:
        wanted = issued(3)
        again = issue_of(wanted, detail={"serial": wanted.serial, "repeated": "yes"})
        used = issue_of(wanted, action="credential.first-use")
        refused = issue_of(wanted, outcome="busy")
        later = issue_of(wanted, at=wanted.issued_at + timedelta(microseconds=1))
        for each in (again, used, refused, later):
            await registry.commit(Change(each))
        assert await row_of_issue(registry, wanted) is None
        await registry.commit(Change(issue_of(wanted)))
        row = await row_of_issue(registry, wanted)
        assert row is not None
        assert row.seq == 5

    @pytest.mark.parametrize("seconds", [-30, 0, 30])
    async def test_a_commit_that_waited_or_a_clock_that_differs(
        self, registry: SqliteRegistry, seconds: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit_search, "PAGE_ROWS", 10)
        wanted = issued(500 + seconds)
        await fill(registry, 500)
        await registry.commit(Change(issue_of(wanted)))
        await fill(registry, 1000)
        row = await row_of_issue(registry, wanted)
        assert row is not None
        assert row.seq == 501

    async def test_it_was_archived(self, registry: SqliteRegistry) -> None:
        wanted = issued(0)
        await registry.commit(Change(issue_of(wanted)))
        await fill_and_seal(registry, (600,))
        await registry.commit(Change(entry(601), (DropAudit(512),)))
        assert await row_of_issue(registry, wanted) is None

    async def test_the_search_ends(self, registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        assert await row_of_issue(registry, issued(1)) is None
        await fill(registry, 3000)
        monkeypatch.setattr(audit_search, "PAGE_ROWS", 10)
        reader = Counting(registry)
        assert await row_of_issue(reader, issued(1500.5)) is None
        assert reader.rows < 1_300  # ten minutes either way, a row a second
        monkeypatch.setattr(audit_search, "LOOKED_AT_MAX", 50)
        reader = Counting(registry)
        assert await row_of_issue(reader, issued(1500.5)) is None
        assert reader.rows < 150
