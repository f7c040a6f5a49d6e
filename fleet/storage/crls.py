"""Revoked certificates and published CRLs over SQL: the reads and the statements of a domain.crl_store.CrlStore."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from fleet.domain.crl import CertificateFacts, Crl, CrlEntry, CrlHead, Noted, PendingRevocation, Revocation, Unlisted
from fleet.domain.lease import Lease
from fleet.storage.mapping import LEASE, SERIAL, Row, Table, micros, moment, serial_octets, table_of
from fleet.storage.queries import Query, first_cell, whole
from fleet.storage.reader import SqlAuditReader
from fleet.storage.statement import Statement
from fleet.storage.statements import RESTATED, TAKE_LEASE

T = TypeVar("T")

REVOKED = table_of("revoked", Revocation, serial=SERIAL)
HEAD = table_of("crl", CrlHead)


def _behind(table: Table[Any], make: Callable[..., T]) -> Callable[[Row], T]:
    """What `make` makes of the value in the first columns of a row, those of `table`, and of its other cells."""
    end = len(table.columns)
    return lambda row: make(table.of(tuple(row[:end])), *row[end:])


def _certificate_facts(row: Row) -> CertificateFacts | None:
    *revoked, issuer, kind, holder, der, not_after, is_usable = row
    revocation = REVOKED.of(tuple(revoked)) if revoked[0] is not None else None
    if revocation is None and der is None:
        return None
    until = moment(not_after) if not_after is not None else None
    return CertificateFacts(kind or "", holder or "", der, issuer, revocation, until, bool(is_usable))


REVOCATION = Query(REVOKED.select("WHERE serial = $1"), REVOKED.of)
CERTIFICATE = Query(
    f"""
    SELECT {REVOKED.listed("r")}, r.issuer, c.kind, c.holder, c.der, c.not_after, c.state IN ('issued', 'active')
    FROM (SELECT 1 AS one) AS here
    LEFT JOIN revoked r ON r.serial = $1 LEFT JOIN credential c ON c.serial = $1""",
    _certificate_facts,
)
_PENDING = f"SELECT {REVOKED.listed('r')}, r.issuer, c.der FROM revoked r LEFT JOIN credential c ON c.serial = r.serial"
PENDING = Query(  # two reads, each from an index
    f"""
    {_PENDING} WHERE r.number IS NULL AND r.entry IS NULL
    UNION ALL {_PENDING} WHERE r.stale = 1 AND r.entry IS NOT NULL LIMIT $1""",
    _behind(REVOKED, PendingRevocation),
)
UNPUBLISHED = Query(
    "SELECT issuer, bucket FROM revoked WHERE number IS NULL AND entry IS NOT NULL AND length(issuer) > 0",
    whole,
)
UNLISTED = Query(
    """
    SELECT issuer, min(revoked_at), count(*) FROM revoked
    WHERE number IS NULL AND (entry IS NULL OR length(issuer) > 0) GROUP BY issuer""",
    lambda row: Unlisted(row[0], moment(row[1]), row[2]),
)
ENTRIES = Query(
    """
    SELECT entry FROM revoked
    WHERE issuer = $1 AND bucket BETWEEN $2 AND $3 AND not_after >= $4 AND reason <> 8 AND entry IS NOT NULL""",
    first_cell,
)
CHANGED = Query(
    """
    SELECT entry FROM revoked
    WHERE issuer = $1 AND entry IS NOT NULL AND number > $2 AND (reason <> 8 OR stale = 0)
    UNION ALL SELECT entry FROM revoked
    WHERE issuer = $1 AND entry IS NOT NULL AND number IS NULL AND (reason <> 8 OR stale = 0)""",
    first_cell,
)
LISTED_AFTER = Query(
    f"""
    SELECT {REVOKED.listed()}, issuer, number FROM revoked
    WHERE issuer = $1 AND number >= $2 AND (number > $2 OR serial > $3) ORDER BY number, serial LIMIT $4""",
    _behind(REVOKED, Noted),
)
BUCKETS_AFTER = Query(
    """
    SELECT bucket, max(number) FROM revoked
    WHERE issuer = $1 AND number > $2 AND entry IS NOT NULL GROUP BY bucket ORDER BY bucket""",
    whole,
)
LAST_NUMBER = Query("SELECT coalesce(max(number), 0) FROM revoked WHERE issuer = $1", first_cell)
LATEST_END = Query("SELECT coalesce(max(not_after), 0) FROM credential", first_cell)
HEADS = Query(HEAD.select("ORDER BY path"), HEAD.of)
ONE_HEAD = Query(HEAD.select("WHERE path BETWEEN $1 AND $1"), HEAD.of)  # from the index of heads, not by the key
CRL = Query(f"SELECT {HEAD.listed()}, der FROM crl WHERE path = $1", _behind(HEAD, Crl))

ADD = Statement(
    f"""
    INSERT INTO revoked ({REVOKED.listed()}, issuer) SELECT {REVOKED.marks()}, $5::bytea
    WHERE $4::bigint <> 6 OR NOT EXISTS (SELECT 1 FROM credential WHERE serial = $1::bytea)
    ON CONFLICT (serial) DO UPDATE SET reason = excluded.reason, revoked_at = excluded.revoked_at,{RESTATED}
    WHERE excluded.reason <> 6 AND revoked.reason IN (0, 6, 8) AND revoked.reason <> excluded.reason
        OR excluded.reason = 1 AND revoked.reason <> 1
        OR excluded.reason = revoked.reason AND excluded.revoked_at < revoked.revoked_at"""
)
STORE_ENTRY = Statement("""
    UPDATE revoked SET issuer = $4::bytea, bucket = $5::bigint, entry = $6::bytea, number = NULL, stale = 0
    WHERE serial = $1::bytea AND revoked_at = $2::bigint AND reason = $3::bigint AND (entry IS NULL OR stale = 1)""")
PUBLISH = Statement(
    f"""
    INSERT INTO crl ({HEAD.listed()}, der) VALUES ({HEAD.marks()}, $10::bytea)
    ON CONFLICT (path) DO UPDATE SET issuer = excluded.issuer, number = excluded.number, base = excluded.base,
        this_update = excluded.this_update, next_update = excluded.next_update, entries = excluded.entries,
        named_until = excluded.named_until, made_in = excluded.made_in, der = excluded.der
    WHERE crl.number <= excluded.number""",
    "lease-held",
    "A CRL {0} with a greater number than {2} has been published.",
)
NUMBER_ENTRIES = Statement(
    "UPDATE revoked SET number = $2::bigint WHERE issuer = $1::bytea AND number IS NULL AND entry IS NOT NULL"
)
DROP_CRL = Statement("DELETE FROM crl WHERE path = $1::text")
DROP_EXPIRED = Statement("DELETE FROM revoked WHERE issuer = $1::bytea AND not_after < $2::bigint")
DROP_RELEASED = Statement(
    "DELETE FROM revoked WHERE issuer = $1::bytea AND reason = 8 AND stale = 0 AND number <= $2::bigint"
)

Step = tuple[Statement, Sequence[Row]]
"""A statement and the parameters of each of its executions."""


def _fenced(lease: Lease, now: datetime, *steps: Step, by_force: bool = False) -> tuple[Step, ...]:
    return (TAKE_LEASE, [(*LEASE.row(lease), micros(now), int(by_force))]), *steps


def _entry_row(entry: CrlEntry) -> Row:
    serial, _, revoked_at, reason = REVOKED.row(entry.revocation)
    return serial, revoked_at, reason, entry.issuer, entry.bucket, entry.entry


class SqlCrlStore(SqlAuditReader):
    """Base of every engine's domain.crl_store.CrlStore."""

    @abstractmethod
    async def _run_steps(self, steps: Sequence[Step]) -> None:
        """Execute all of them in one transaction. Raises: Conflict: a statement with a code found no row."""

    async def revocation(self, serial: str) -> Revocation | None:
        return await self._by_serial(REVOCATION, serial)

    async def certificate_facts(self, serial: str) -> CertificateFacts | None:
        return await self._by_serial(CERTIFICATE, serial)

    async def pending_revocations(self, limit: int) -> list[PendingRevocation]:
        return await self._scan(PENDING, limit)

    async def unpublished(self) -> list[tuple[bytes, int]]:
        return list(dict.fromkeys(await self._scan(UNPUBLISHED)))

    async def unlisted(self) -> list[Unlisted]:
        return await self._scan(UNLISTED)

    async def crl_entries(self, issuer: bytes, buckets: range, since: datetime) -> list[bytes]:
        return await self._scan(ENTRIES, issuer, buckets.start, buckets.stop - 1, micros(since))

    async def changed_entries(self, issuer: bytes, base: int) -> list[bytes]:
        return await self._scan(CHANGED, issuer, base)

    async def buckets_after(self, issuer: bytes, number: int) -> list[tuple[int, int]]:
        return await self._scan(BUCKETS_AFTER, issuer, number)

    async def last_crl_number(self, issuer: bytes) -> int:
        return await self._number(LAST_NUMBER, issuer)

    async def latest_end(self) -> datetime:
        return moment(await self._number(LATEST_END))

    async def crl_heads(self) -> list[CrlHead]:
        return await self._scan(HEADS)

    async def crl_head(self, path: str) -> CrlHead | None:
        return await self._one(ONE_HEAD, path)

    async def crl(self, path: str) -> Crl | None:
        return next(iter(await self._scan(CRL, path)), None)

    async def add_revoked(self, revoked: Sequence[tuple[Revocation, bytes]]) -> None:
        await self._run_steps([(ADD, [(*REVOKED.row(each), issuer) for each, issuer in revoked])])

    async def listed_after(self, issuer: bytes, number: int, serial: str, limit: int) -> list[Noted]:
        return await self._scan(LISTED_AFTER, issuer, number, serial_octets(serial) if serial else b"", limit)

    async def store_entries(self, entries: Sequence[CrlEntry], lease: Lease, now: datetime) -> None:
        await self._run_steps(_fenced(lease, now, (STORE_ENTRY, list(map(_entry_row, entries)))))

    async def take_over(self, lease: Lease, now: datetime) -> None:
        await self._run_steps(_fenced(lease, now, by_force=True))

    async def publish_crls(self, crls: Sequence[Crl], whole: Sequence[bytes], lease: Lease, now: datetime) -> None:
        store = (PUBLISH, [(*HEAD.row(crl.head), crl.der) for crl in crls])
        numbers = (NUMBER_ENTRIES, [(issuer, crls[0].head.number) for issuer in whole])
        await self._run_steps(_fenced(lease, now, store, numbers))

    async def drop_crls(self, paths: Sequence[str], lease: Lease, now: datetime) -> None:
        await self._run_steps(_fenced(lease, now, (DROP_CRL, [(path,) for path in paths])))

    async def drop_revoked(self, expired: datetime, issuer: bytes, released: int, lease: Lease, now: datetime) -> None:
        steps: tuple[Step, ...] = (DROP_EXPIRED, [(issuer, micros(expired))]), (DROP_RELEASED, [(issuer, released)])
        await self._run_steps(_fenced(lease, now, *steps))
