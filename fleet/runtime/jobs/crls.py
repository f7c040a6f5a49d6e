"""Job: publishes CRLs while a fleet is served. Every node runs it, and one of them at a time publishes."""

import asyncio
import itertools
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime

from msgspec import Struct, field

from fleet.config.clock import Clock
from fleet.config.logs import FailureLog, log_event
from fleet.config.settings import Settings
from fleet.domain.crl import CrlHead
from fleet.domain.distribution import ca_name, full_crl_path
from fleet.domain.errors import FleetError
from fleet.domain.ports import Registry
from fleet.home.crl_issuing import crl_policy, lacking_crls, publisher_of, slow_crl
from fleet.home.home_cas import crl_authorities
from fleet.home.layout import Home
from fleet.services.crl_publishing import LISTED_AT_ONCE, CrlPolicy, CrlPublisher
from fleet.services.restore_revocations import list_again
from fleet.services.revocation_journal import usable_though_listed
from fleet.storage.journals.revoked_certificates import Place, RevokedCertificates, place_of

logger = logging.getLogger("fleet.crl")

ROUNDS = 4
"""In `crl.max_delay`: a round that fails is done again in time."""
FAILURES_A_LINE = 60


class SlowCrls(Struct):
    """Logs each CRL that has become slow."""

    policy: CrlPolicy
    _noted: set[str] = field(default_factory=set)

    def note(self, head: CrlHead) -> None:
        if head.made_in is None:
            return
        if not self.policy.is_slow(head):
            self._noted.discard(head.path)
        elif head.path not in self._noted:
            self._noted.add(head.path)
            log_event(logger, logging.WARNING, "crl.slow", path=head.path, advice=slow_crl(head, self.policy))


class LateCrls(Struct):
    """Logs each CA whose CRL has come to lack revocations for longer than it may."""

    _noted: set[bytes] = field(default_factory=set)

    def note(self, lacking: Mapping[bytes, int], signing: Collection[bytes]) -> None:
        """`signing`: CAs whose key is here."""
        self._noted &= lacking.keys()
        for issuer in lacking.keys() - self._noted:
            self._noted.add(issuer)
            why = "it was not signed in time" if issuer in signing else "the key of its CA is not in this home"
            fields = {"path": full_crl_path(ca_name(issuer)), "waiting": lacking[issuer], "reason": why}
            log_event(logger, logging.ERROR, "crl", outcome="failed", **fields)


class Following(Struct):
    """Notes what CRLs list, whichever node published them: a registry may go back before any of the nodes."""

    registry: Registry
    journal: RevokedCertificates
    _places: dict[bytes, Place] | None = None

    async def list_again(self, now: datetime) -> bool:
        """Where CRLs that are noted here are newer than all of `registry`, it has been set back or restored: what they
        listed is to be listed again. Whether it is. Raises: Unavailable. OSError.
        """
        newest: dict[bytes, int] = {}
        for head in await self.registry.crl_heads():
            newest[head.issuer] = max(head.number, newest.get(head.issuer, 0))
        places = await asyncio.to_thread(self.journal.places)
        if all(place.number <= newest.get(place.issuer, 0) for place in places.values()):
            return False
        await list_again(self.registry, await asyncio.to_thread(self.journal.read, now))
        usable = await usable_though_listed(self.registry, self.journal, now)
        why = "the registry is older than CRLs that this node has noted: it has been set back, or restored"
        log_event(logger, logging.WARNING, "crl", outcome="listed-again", usable=len(usable), reason=why)
        return True

    async def follow(self) -> None:
        """Note what has been published since. Raises: Unavailable. OSError."""
        if self._places is None:
            self._places = await asyncio.to_thread(self.journal.places)
        for issuer in sorted({head.issuer for head in await self.registry.crl_heads()}):
            place = self._places.get(issuer, Place(issuer, 0, ""))
            if await self.registry.last_crl_number(issuer) <= place.number:
                continue
            while found := await self.registry.listed_after(issuer, place.number, place.serial, LISTED_AT_ONCE):
                await asyncio.to_thread(self.journal.follow, found)
                place = self._places[issuer] = place_of(found[-1])


async def publish_crls(home: Home, registry: Registry, settings: Settings, clock: Clock) -> None:
    """Publish what is due until cancelled. A failure is retried, and logged once in FAILURES_A_LINE times."""
    policy = crl_policy(settings)
    publisher = publisher_of(home, registry, policy)
    try:
        await _publish_for_ever(home, publisher, registry, policy, clock)
    finally:
        with suppress(FleetError, OSError):
            await publisher.release(clock())


async def _publish_for_ever(
    home: Home, publisher: CrlPublisher, registry: Registry, policy: CrlPolicy, clock: Clock
) -> None:
    following = Following(registry, RevokedCertificates(home.revoked_certificates))
    is_trimmed = goes_on_from_older = False
    failures = FailureLog(logger, "crl", FAILURES_A_LINE)
    slow, late = SlowCrls(policy), LateCrls()
    for round_ in itertools.count():
        try:
            if not is_trimmed:
                await asyncio.to_thread(following.journal.trim, clock())
                goes_on_from_older = await following.list_again(clock())
                is_trimmed = True
            await following.follow()
            cas = await asyncio.to_thread(crl_authorities, home)
            made = await publisher.publish_due(cas, clock(), at_once=goes_on_from_older)
            goes_on_from_older = goes_on_from_older and not made
            for head in made:
                log_event(logger, logging.INFO, "crl", path=head.path, number=head.number, entries=head.entries)
                slow.note(head)
            if round_ % ROUNDS == 0:
                late.note(await lacking_crls(home, registry, clock()), [ca.key_identifier for ca in cas])
            failures.succeeded()
        except (FleetError, OSError) as error:
            failures.failed(outcome="failed", reason=error)
        await asyncio.sleep(policy.max_delay.total_seconds() / ROUNDS)
