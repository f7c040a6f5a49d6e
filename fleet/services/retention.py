"""Retention: moves old records from the registry to an archive, in small Changes.

    with Archive(home.archive).held() as archive:
        report = await Retention(registry, archive, marks, policy, Mode("retention")).run(noted=seen, now=now)

Never removed: a certificate that has not ended, the last certificate of a device in service, audit rows not covered by
a signed head, events not yet in the revocation journal.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.audit_log import Sealed
from fleet.domain.changes import AuditEntry, AuditRow, Change
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.device import OUT_OF_SERVICE
from fleet.domain.errors import Conflict
from fleet.domain.idempotency import ANSWER_KEPT
from fleet.domain.lease import RETENTION, Lease
from fleet.domain.ports import Registry
from fleet.domain.writes import DropAnswers, DropAudit, DropCredentials, DropEvents, DropRequests, TakeLease, Write
from fleet.services.archived_audit import BLOCK, head_line, proofs, row_line
from fleet.storage.journals.archive import Archive, Line
from fleet.storage.journals.event_marks import EventMarks

EVENTS_AT_ONCE = 5_000  # in one file, and deleted in one Change
BLOCKS_AT_ONCE = 16  # of audit: 4,096 rows
CREDENTIALS_AT_ONCE = 500
ACTION = "retention.drop"
LEASE_TIME = timedelta(days=3)  # a node that has missed two daily runs is presumed dead


class Policy(Struct, frozen=True):
    """Ages in days; 0: never."""

    events_days: int
    audit_days: int
    expired_credentials_days: int

    @property
    def is_none(self) -> bool:
        """Whether nothing is ever archived."""
        return not (self.events_days or self.audit_days or self.expired_credentials_days)


class Report(Struct, frozen=True):
    """Records archived and deleted, or due in a dry run."""

    events: int = 0
    audit: int = 0
    credentials: int = 0
    files: tuple[str, ...] = ()


class Mode(Struct, frozen=True):
    """How retention runs."""

    actor: str
    is_dry: bool = False
    lease: Lease | None = None
    """Fences every deletion."""


class Retention(Struct):
    """One run; the archive is locked meanwhile."""

    _registry: Registry
    _archive: Archive
    _marks: EventMarks
    _policy: Policy
    _mode: Mode
    _report: Report = Report()

    async def run(self, *, noted: int, now: datetime) -> Report:
        """Archive and delete what is due. `noted` is the newest event recorded in the revocation journal.

        Raises: Conflict, Unavailable: the registry changed or failed during the run; run it again. OSError.
        """
        self._report = Report()
        if not self._mode.is_dry:
            await self._settle_pending(now)
            self._marks.add(now, await self._registry.last_event())
        await self._events(noted, now)
        await self._audit(now)
        await self._credentials(now)
        if not self._mode.is_dry:
            await self._drop((DropAnswers(now - ANSWER_KEPT), DropRequests(now)), "answers and requests", now)
        return self._report

    async def _settle_pending(self, now: datetime) -> None:
        """Complete a run that crashed between archiving and deletion."""
        for name in self._archive.pending():
            lines = [line for line in self._archive.read_pending(name) if "head" not in line and "block" not in line]
            await self._drop_archived(name, lines, now)

    async def _archive_and_delete(self, name: str, lines: list[Line], now: datetime) -> None:
        if not self._mode.is_dry:
            name = await asyncio.to_thread(self._archive.put, name, lines)
            await self._drop_archived(name, [x for x in lines if "head" not in x and "block" not in x], now)
        self._report = replace(self._report, files=(*self._report.files, name))

    async def _drop_archived(self, name: str, lines: list[Line], now: datetime) -> None:
        """Delete the records of `lines` that are still in the registry, and finalize the file."""
        kind = name.partition("-")[0]
        writes: tuple[Write, ...] = ()
        if kind == "events" and await self._registry.first_event() <= lines[-1]["seq"]:
            writes = (DropEvents(lines[-1]["seq"]),)
        elif kind == "audit" and (await self._first_audit()) <= lines[-1]["seq"]:
            writes = (DropAudit(lines[-1]["seq"]),)
        elif kind == "credentials":
            held = [x for x in lines if await self._registry.credential(x["serial"]) is not None]
            fingerprints = tuple(bytes.fromhex(line["sha256"]) for line in held)
            writes = (DropCredentials(fingerprints, now),) if fingerprints else ()
        if writes:
            await self._drop(writes, name, now)
        await asyncio.to_thread(self._archive.settle, name)

    async def _drop(self, writes: tuple[Write, ...], what: str, now: datetime) -> None:
        if self._mode.lease is not None:  # a suspended node deletes nothing after another has taken over
            writes = (TakeLease(self._mode.lease, now), *writes)
        await self._registry.commit(Change(AuditEntry(now, self._mode.actor, ACTION, what, "ok"), writes))

    async def _first_audit(self) -> int:
        rows = await self._registry.audit(limit=1)
        return rows[0].seq if rows else 0

    async def _events(self, noted: int, now: datetime) -> None:
        if not self._policy.events_days:
            return
        known = self._marks.newest_before(now - timedelta(days=self._policy.events_days))
        upto = min(known, noted, await self._registry.last_event() - 1)  # the newest one always remains
        after = max(0, await self._registry.first_event() - 1)
        while after < upto:
            events = await self._registry.events(after=after, limit=min(EVENTS_AT_ONCE, upto - after))
            if not events:
                return
            lines: list[Line] = [
                {"seq": e.seq, "kind": e.kind, "subject": e.subject, "detail": e.detail} for e in events
            ]
            after = events[-1].seq
            self._report = replace(self._report, events=self._report.events + len(lines))
            await self._archive_and_delete(f"events-{events[0].seq:012}-{after:012}", lines, now)

    async def _audit(self, now: datetime) -> None:
        sealed = await self._registry.last_sealed()
        if not self._policy.audit_days or sealed is None:
            return
        oldest_kept = now - timedelta(days=self._policy.audit_days)
        after = max(0, await self._first_audit() - 1)
        while blocks := await self._old_blocks(after, sealed, oldest_kept):
            lines: list[Line] = [
                {"head": head_line(sealed.head)},
                *await proofs(self._registry, sealed.head, after // BLOCK, len(blocks) // BLOCK),
                *map(row_line, blocks),
            ]
            first, after = after + 1, blocks[-1].seq
            self._report = replace(self._report, audit=self._report.audit + len(blocks))
            await self._archive_and_delete(f"audit-{first:012}-{after:012}", lines, now)

    async def _old_blocks(self, after: int, sealed: Sealed, oldest_kept: datetime) -> list[AuditRow]:
        """Rows of the next few sealed blocks that are entirely older, without the newest block."""
        room = min(sealed.head.size, await self._registry.last_audit() - 1) - after
        rows = await self._registry.audit(after=after, limit=min(BLOCKS_AT_ONCE, room // BLOCK) * BLOCK)
        for end in range(BLOCK, len(rows) + 1, BLOCK):
            if max(row.entry.at for row in rows[end - BLOCK : end]) >= oldest_kept:
                return rows[: end - BLOCK]
        return rows[: len(rows) // BLOCK * BLOCK]

    async def _credentials(self, now: datetime) -> None:
        if not self._policy.expired_credentials_days:
            return
        before = now - timedelta(days=self._policy.expired_credentials_days)
        chunk: list[Credential] = []
        async for credential in self._expired(before):
            if not await self._is_last(credential):
                chunk.append(credential)
            if len(chunk) == CREDENTIALS_AT_ONCE:
                await self._archive_credentials(chunk, now)
                chunk = []
        if chunk:
            await self._archive_credentials(chunk, now)

    async def _expired(self, before: datetime) -> AsyncIterator[Credential]:
        after: tuple[datetime, bytes] | None = None
        while page := await self._registry.credentials_by_expiry(before, CREDENTIALS_AT_ONCE, after=after):
            for credential in page:
                yield credential
            after = (page[-1].not_after, page[-1].fingerprint)

    async def _is_last(self, credential: Credential) -> bool:
        """Whether it is the newest of a holder in service, which a renewal is checked against."""
        held = [c for c in await self._registry.credentials(credential.holder) if c.kind is credential.kind]
        if not held or held[-1].fingerprint != credential.fingerprint:
            return False
        if credential.kind is not CredentialKind.DEVICE:
            return True
        device = await self._registry.device(credential.holder)
        return device is not None and device.state not in OUT_OF_SERVICE

    async def _archive_credentials(self, chunk: list[Credential], now: datetime) -> None:
        lines: list[Line] = [credential_line(credential) for credential in chunk]
        first, last = (f"{c.not_after:%Y%m%dT%H%M%SZ}" for c in (chunk[0], chunk[-1]))
        self._report = replace(self._report, credentials=self._report.credentials + len(chunk))
        await self._archive_and_delete(f"credentials-{first}-{last}", lines, now)


def credential_line(c: Credential) -> Line:
    """A certificate as an archive record, with its DER."""
    return {
        "serial": c.serial,
        "sha256": c.fingerprint.hex(),
        "kind": c.kind.value,
        "holder": c.holder,
        "state": c.state.value,
        "key_sha256": c.key_sha256.hex(),
        "not_before": c.not_before.isoformat(),
        "not_after": c.not_after.isoformat(),
        "issued_at": c.issued_at.isoformat(),
        "grant": c.grant,
        "der": c.der.hex(),
    }


async def take_lease(registry: Registry, owner: str, *, actor: str, now: datetime, by_force: bool = False) -> Lease:
    """Acquire the retention lease for the node `owner`, for LEASE_TIME from `now`; renewed before each run.

    Raises: Conflict (`retention-elsewhere`): another node holds it. Unavailable.
    """
    lease = Lease(RETENTION, owner, now + LEASE_TIME)
    try:
        entry = AuditEntry(now, actor, "retention.claim", owner, "ok")
        await registry.commit(Change(entry, (TakeLease(lease, now, by_force),)))
    except Conflict as error:
        held = await registry.lease(RETENTION)
        if error.code != "lease-held" or held is None:
            raise
        raise Conflict(
            "retention-elsewhere",
            f"{held.owner} archives for this fleet, until {held.expires_at:%Y-%m-%d %H:%M} UTC at least.",
            "Run it there. If that node is gone permanently: fleet retention run --take-over",
        ) from error
    return lease
