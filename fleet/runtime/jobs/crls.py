"""Job: publishes CRLs while a fleet is served. Every node runs it, and one of them at a time publishes."""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from fleet.ca.crl import make_entries
from fleet.ca.imported_crl import crls_of, number_of, revocations_of
from fleet.ca.key_identifiers import identifier_of
from fleet.config.clock import Clock
from fleet.config.logs import FailureLog, log_event
from fleet.config.settings import Settings
from fleet.domain.crl import CrlEntry, CrlHead, CrlReason, PendingRevocation, Revocation
from fleet.domain.distribution import ca_name, plain_crl_path
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.ports import Registry
from fleet.home.crl_authorities import crl_authorities, root_that_publishes
from fleet.home.layout import Home, settings_of
from fleet.runtime.jobs.retention import node_name
from fleet.services.crl_publishing import LEASE_TIME, LISTED_AT_ONCE, CrlPolicy, CrlPublisher
from fleet.storage.journals.revoked_certificates import Place, RevokedCertificates, place_of

logger = logging.getLogger("fleet.crl")

ROUNDS = 4
"""In `crl.max_delay`: a round that fails is done again in time."""
FAILURES_A_LINE = 60
WAIT_SECONDS = 0.5  # between two looks whether another node is done


def crl_policy(settings: Settings) -> CrlPolicy:
    """Which CRLs are published."""
    return CrlPolicy(
        settings.publish_url,
        settings.crl_shards,
        settings.crl_delta,
        timedelta(hours=settings.crl_hours),
        timedelta(seconds=settings.crl_max_delay),
    )


def noting(home: Home) -> Callable[[Sequence[PendingRevocation]], list[CrlEntry]]:
    """Makes entries, and notes them where a restore of an older registry leaves them."""
    journal = RevokedCertificates(home.revoked_certificates)

    def make(waiting: Sequence[PendingRevocation]) -> list[CrlEntry]:
        made = make_entries(waiting)
        journal.note(made)
        return made

    return make


@dataclass
class Following:
    """Notes what CRLs list, whichever node published them: a registry may go back before any of the nodes."""

    registry: Registry
    journal: RevokedCertificates
    _places: dict[bytes, Place] | None = None

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


async def issue_crls(home: Home, registry: Registry, now: datetime, validity: timedelta | None) -> list[CrlHead]:
    """Sign every CRL of `home` once, beside a server that may be publishing; what was published.

    Raises: Unavailable (`crls-busy`): another node has been publishing all the time. FleetError, OSError.
    """
    policy = crl_policy(settings_of(home))
    if validity is not None:
        policy = replace(policy, validity=validity)
    publisher = _single(home, registry, policy)
    cas = await asyncio.to_thread(crl_authorities, home)
    return await _in_turn(publisher, lambda at: publisher.publish_due(cas, at, at_once=True), now)


async def sign_root_crl(
    home: Home, registry: Registry, revoked: Sequence[x509.Certificate], days: int, now: datetime
) -> x509.CertificateRevocationList:
    """Revoke certificates that the fleet's root has signed, and publish its CRL, valid for `days`.

    Raises: Refused (`root-key-away`). Invalid (`bad-key`, `key-exposed`). Unavailable (`crls-busy`). OSError.
    """
    root, ca = root_that_publishes(home)
    entries = [Revocation(f"{c.serial_number:x}", c.not_valid_after_utc, now, CrlReason.UNSPECIFIED) for c in revoked]
    await registry.add_revoked([(each, ca.key_identifier) for each in entries])
    publisher = _single(home, registry, replace(crl_policy(settings_of(home)), validity=timedelta(days=days)))
    await _in_turn(publisher, lambda at: publisher.publish_due([ca], at, at_once=True), now)
    made = await root_crl(registry, root)
    if made is None:
        raise Unavailable("crls-busy", "Another node is publishing CRLs.", "Try again.")
    return made


async def import_root_crl(
    home: Home, registry: Registry, root: x509.Certificate, crl: x509.CertificateRevocationList, now: datetime
) -> bool:
    """Publish `crl`, which `root` has signed elsewhere; False: a newer one is published.

    Raises: Invalid (`bad-chain`). Unavailable (`crls-busy`).
    """
    before = await root_crl(registry, root)
    if before is not None and number_of(crl) < number_of(before):
        return False
    crls, revoked = crls_of(crl, root), list(revocations_of(crl, root))
    publisher = _single(home, registry, crl_policy(settings_of(home)))
    await _in_turn(publisher, lambda at: publisher.adopt(crls, revoked, at), now)
    return True


async def root_crl(registry: Registry, root: x509.Certificate) -> x509.CertificateRevocationList | None:
    """The published CRL of `root`, that without issuing distribution point."""
    found = await registry.crl(plain_crl_path(ca_name(identifier_of(root))))
    return x509.load_der_x509_crl(found.der) if found is not None else None


def _single(home: Home, registry: Registry, policy: CrlPolicy) -> CrlPublisher:
    """With a name of its own: two that publish for one home, or for homes of one path on hosts of one name, must not do
    so at the same time.
    """
    return CrlPublisher(registry, policy, f"{node_name(home)}#{secrets.token_hex(4)}", noting(home))


async def _in_turn(
    publisher: CrlPublisher, publish: Callable[[datetime], Awaitable[list[CrlHead]]], now: datetime
) -> list[CrlHead]:
    """What `publish` has published, when no other node does."""
    for waited in itertools.count(step=WAIT_SECONDS):
        at = now + timedelta(seconds=waited)
        if made := await publish(at):
            await publisher.release(at)
            return made
        if timedelta(seconds=waited) > LEASE_TIME:
            break
        await asyncio.sleep(WAIT_SECONDS)
    raise Unavailable("crls-busy", "Another node is publishing CRLs.", "Try again.")


async def publish_crls(home: Home, registry: Registry, settings: Settings, clock: Clock) -> None:
    """Publish what is due until cancelled. A failure is retried, and logged once in FAILURES_A_LINE times."""
    policy = crl_policy(settings)
    publisher = _single(home, registry, policy)
    try:
        await _publish_for_ever(home, publisher, registry, policy, clock)
    finally:
        with suppress(FleetError, OSError):
            await publisher.release(clock())


async def _publish_for_ever(
    home: Home, publisher: CrlPublisher, registry: Registry, policy: CrlPolicy, clock: Clock
) -> None:
    following = Following(registry, RevokedCertificates(home.revoked_certificates))
    is_trimmed = False
    failures = FailureLog(logger, "crl", FAILURES_A_LINE)
    while True:
        try:
            if not is_trimmed:
                await asyncio.to_thread(following.journal.trim, clock())
                is_trimmed = True
            await following.follow()
            cas = await asyncio.to_thread(crl_authorities, home)
            for head in await publisher.publish_due(cas, clock()):
                log_event(logger, logging.INFO, "crl", path=head.path, number=head.number, entries=head.entries)
            failures.succeeded()
        except (FleetError, OSError) as error:
            failures.failed(outcome="failed", reason=error)
        await asyncio.sleep(policy.max_delay.total_seconds() / ROUNDS)
