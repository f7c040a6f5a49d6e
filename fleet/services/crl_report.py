"""How the published CRLs of a home are: how old, until when, how long they take, and whether any is late.

reporter = CrlReporter(registry, policy, issuers)
report = await reporter.at(now)            # reads the registry once in `policy.max_delay`
"""

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import Struct

from fleet.domain.backdating import BACKDATED_STATUS
from fleet.domain.crl import CrlHead
from fleet.domain.crl_store import CrlStore
from fleet.services.crl_publishing import FULL_SHARE, CrlPolicy

LATE_SHARE = 4
"""A CRL is late when less than this part of its validity is left: it is signed again after half of it."""
LATE_MAX = timedelta(days=7)
"""Of one with a long validity, as an offline root's has: late for so long at most."""

Reason = Literal["crl-late", "crl-slow"]


class CrlReport(Struct, frozen=True):
    """Of the CRLs of the CAs that a home has."""

    published: int
    oldest_seconds: float
    """Since the oldest was signed."""
    next_update_seconds: float
    """Until the first nextUpdate; negative: that CRL has ended."""
    made_in_seconds: float
    """What reading and signing the slowest full CRL took."""
    unlisted: int
    """Revocations that no CRL has yet."""
    unlisted_seconds: float
    """Since the oldest of these."""
    late: int
    """CRLs that were to be signed again long ago."""
    slow: int
    """Full CRLs that take more than half of `crl.max_delay`, where there are no shards."""
    overdue: int
    """Of `unlisted`, those under a CA of which one waits longer than it may."""
    named: tuple[str, ...] = ()
    """Paths of the CRLs that `late` and `overdue` are about."""

    @property
    def reasons(self) -> list[Reason]:
        """Why an operator is needed."""
        found: dict[Reason, int] = {"crl-late": self.late + self.overdue, "crl-slow": self.slow}
        return [reason for reason, count in found.items() if count]


def is_late(head: CrlHead, now: datetime) -> bool:
    """Whether the CRL ends soon, or has ended."""
    return head.next_update - now < min((head.next_update - head.this_update) / LATE_SHARE, LATE_MAX)


async def crl_report(store: CrlStore, policy: CrlPolicy, issuers: Collection[bytes], now: datetime) -> CrlReport:
    """Of the CAs with the key identifiers `issuers`. Raises: Unavailable."""
    heads = [head for head in await store.crl_heads() if head.issuer in issuers]
    # Of a CA that has none, the key is away: nobody waits for its CRLs.
    publishing = {head.issuer for head in heads}
    waiting = [each for each in await store.unlisted() if each.issuer is None or each.issuer in publishing]
    made_in = max((head.made_in or timedelta() for head in heads), default=timedelta())
    waited = now - min((each.since for each in waiting), default=now)
    # A full CRL rests after it was made; a round that fails is done again.
    waits_at_most = 2 * policy.max_delay + made_in * FULL_SHARE
    overdue = [each for each in waiting if publishing and now - each.since > waits_at_most]
    lacking = {each.issuer for each in overdue}
    signed_for = [now - head.this_update - BACKDATED_STATUS for head in heads]
    return CrlReport(
        len(heads),
        max((each.total_seconds() for each in signed_for if each > timedelta()), default=0.0),
        min(((head.next_update - now).total_seconds() for head in heads), default=0.0),
        made_in.total_seconds(),
        sum(each.count for each in waiting),
        waited.total_seconds(),
        sum(is_late(head, now) for head in heads),
        sum(map(policy.is_slow, heads)),
        sum(each.count for each in overdue),
        tuple(sorted(head.path for head in heads if is_late(head, now) or head.issuer in lacking)),
    )


async def lacking(store: CrlStore, policy: CrlPolicy, issuers: Collection[bytes], now: datetime) -> dict[bytes, int]:
    """Of `issuers`, those whose CRLs lack revocations for longer than they may: how many. Raises: Unavailable."""
    found = {issuer: await crl_report(store, policy, (issuer,), now) for issuer in await _with_unlisted(store, issuers)}
    return {issuer: report.overdue for issuer, report in found.items() if report.overdue}


async def _with_unlisted(store: CrlStore, issuers: Collection[bytes]) -> set[bytes]:
    return {each.issuer for each in await store.unlisted() if each.issuer is not None and each.issuer in issuers}


class CrlReporter(Struct):
    """Reports as often as it is asked, and reads once in a while: health checks come every second."""

    _store: CrlStore
    _policy: CrlPolicy
    _issuers: Callable[[], Collection[bytes]]
    _read_at: datetime = datetime.min.replace(tzinfo=UTC)
    _report: CrlReport | None = None

    async def at(self, now: datetime) -> CrlReport:
        """Raises: Unavailable. FleetError, OSError: the CAs of the home cannot be read."""
        if self._report is not None and self._read_at <= now < self._read_at + self._policy.max_delay:
            return self._report
        self._report = await crl_report(self._store, self._policy, self._issuers(), now)
        self._read_at = now
        return self._report
