"""CRLs of a home, published once: by a command or an act, beside a server that may be publishing."""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from msgspec.structs import replace

from fleet.ca.chain import has_signed
from fleet.ca.crl import make_entries
from fleet.ca.imported_crl import crls_of, number_of, revocations_of
from fleet.ca.key_identifiers import identifier_of
from fleet.config.settings import Settings
from fleet.domain.ca_role import ROOTS
from fleet.domain.crl import CrlEntry, CrlHead, CrlReason, PendingRevocation, Revocation
from fleet.domain.distribution import ca_name, plain_crl_path
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.home.authorities import Authorities, read_authorities
from fleet.home.home_cas import crl_authorities, home_cas, root_that_publishes
from fleet.home.layout import Home, settings_of
from fleet.home.node_name import node_name
from fleet.services.crl_publishing import LEASE_TIME, CrlPolicy, CrlPublisher
from fleet.services.crl_report import CrlReporter, lacking
from fleet.storage.journals.revoked_certificates import RevokedCertificates

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


def slow_crl(head: CrlHead, policy: CrlPolicy) -> str:
    """The sentence about a full CRL that `policy` calls slow."""
    seconds = head.made_in.total_seconds() if head.made_in is not None else 0.0
    return (
        f"Signing the full CRL with {head.entries} certificates takes {seconds:.1f} s, more than half of crl.max_delay "
        f"({policy.max_delay.total_seconds():g} s): set crl.shards and [publish] url in fleet.toml, so that a "
        "revocation is in the CRL of its shard at once."
    )


async def slow_crls(home: Home, registry: Registry) -> list[str]:
    """What is to be said of the CRLs of `home`: a sentence for each that is slow."""
    policy = crl_policy(settings_of(home))
    return [slow_crl(head, policy) for head in await registry.crl_heads() if policy.is_slow(head)]


async def lacking_crls(home: Home, registry: Registry, now: datetime) -> dict[bytes, int]:
    """CAs of `home` whose CRLs lack revocations for longer than they may: how many, by key identifier."""
    issuers = {identifier_of(ca.certificate) for ca in home_cas(home, read_authorities(home))}
    return await lacking(registry, crl_policy(settings_of(home)), issuers, now)


def crl_reporter(
    home: Home, registry: Registry, settings: Settings, authorities: Callable[[], Authorities]
) -> CrlReporter:
    """Reports on the CRLs of the CAs of `home`."""

    def issuers() -> set[bytes]:
        return {identifier_of(ca.certificate) for ca in home_cas(home, authorities())}

    return CrlReporter(registry, crl_policy(settings), issuers)


async def issue_crls(home: Home, registry: Registry, now: datetime, validity: timedelta | None) -> list[CrlHead]:
    """Sign every CRL of `home` once, beside a server that may be publishing; what was published.

    Raises: Unavailable (`crls-busy`): another node has been publishing all the time. FleetError, OSError.
    """
    policy = crl_policy(settings_of(home))
    if validity is not None:
        policy = replace(policy, validity=validity)
    publisher = publisher_of(home, registry, policy)
    cas = await asyncio.to_thread(crl_authorities, home)
    return await _in_turn(publisher, lambda at: publisher.publish_due(cas, at, at_once=True), now)


async def sign_last_crls(home: Home, registry: Registry, former: x509.Certificate, now: datetime) -> bool:
    """Sign the CRLs of a `former` issuing CA until its own end, after which none of its certificates is valid: its key
    is to be removed. False: it is not here.

    Raises: Unavailable (`crls-busy`). FleetError, OSError.
    """
    cas = [ca for ca in crl_authorities(home) if ca.key_identifier == identifier_of(former)]
    left = former.not_valid_after_utc - now
    if cas and left > timedelta():
        publisher = publisher_of(home, registry, replace(crl_policy(settings_of(home)), validity=left))
        await _in_turn(publisher, lambda at: publisher.publish_due(cas, at, at_once=True), now)
    return bool(cas)


async def revoke_ca(home: Home, registry: Registry, gone: x509.Certificate, now: datetime) -> bool:
    """List the issuing CA `gone` in the CRL of the root that has signed it: a copy of its key would sign certificates
    and CRLs that relying parties accept. False: that root's key is not here, and no CRL of it that is known lists it.

    Raises: Unavailable (`crls-busy`). FleetError, OSError.
    """
    facts = await registry.certificate_facts(f"{gone.serial_number:x}")
    if facts is not None and facts.revocation is not None:
        return True
    roots = home_cas(home, read_authorities(home), ROOTS)
    signers = {identifier_of(root.certificate) for root in roots if has_signed(root.certificate, gone)}
    cas = [ca for ca in crl_authorities(home) if ca.key_identifier in signers]
    if cas:
        await registry.add_revoked([(_revocation(gone, now), ca.key_identifier) for ca in cas])
        publisher = publisher_of(home, registry, crl_policy(settings_of(home)))
        await _in_turn(publisher, lambda at: publisher.publish_due(cas, at, at_once=True), now)
    return bool(cas)


def _revocation(ca: x509.Certificate, now: datetime) -> Revocation:
    return Revocation(f"{ca.serial_number:x}", ca.not_valid_after_utc, now, CrlReason.UNSPECIFIED)


async def sign_root_crl(
    home: Home, registry: Registry, revoked: Sequence[x509.Certificate], days: int, now: datetime
) -> x509.CertificateRevocationList:
    """Revoke certificates that a root of the fleet has signed, and publish its CRL, valid for `days`.

    Raises: Refused (`root-key-away`). Invalid (`bad-key`, `key-exposed`, `bad-ca-certificate`). Unavailable
    (`crls-busy`). OSError.
    """
    root, ca = root_that_publishes(home, revoked)
    await registry.add_revoked([(_revocation(each, now), ca.key_identifier) for each in revoked])
    publisher = publisher_of(home, registry, replace(crl_policy(settings_of(home)), validity=timedelta(days=days)))
    await _in_turn(publisher, lambda at: publisher.publish_due([ca], at, at_once=True), now)
    made = await root_crl(registry, root)
    if made is None:
        raise _busy()
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
    publisher = publisher_of(home, registry, crl_policy(settings_of(home)))
    await _in_turn(publisher, lambda at: publisher.adopt(crls, revoked, at), now)
    return True


async def root_crl(registry: Registry, root: x509.Certificate) -> x509.CertificateRevocationList | None:
    """The published CRL of `root`, that without issuing distribution point."""
    found = await registry.crl(plain_crl_path(ca_name(identifier_of(root))))
    return x509.load_der_x509_crl(found.der) if found is not None else None


def publisher_of(home: Home, registry: Registry, policy: CrlPolicy) -> CrlPublisher:
    """With a name of its own: two that publish for one home, or for homes of one path on hosts of one name, must not do
    so at the same time.
    """
    return CrlPublisher(registry, policy, f"{node_name(home.path)}#{secrets.token_hex(4)}", noting(home))


async def _in_turn(
    publisher: CrlPublisher, publish: Callable[[datetime], Awaitable[list[CrlHead]]], now: datetime
) -> list[CrlHead]:
    """What `publish` has published, in place of a server that has been publishing: it goes on afterwards."""
    for waited in itertools.count(step=WAIT_SECONDS):
        at = now + timedelta(seconds=waited)
        if made := await publish(at):
            await publisher.release(at)
            return made
        if timedelta(seconds=waited) > LEASE_TIME:
            break
        if waited:
            await asyncio.sleep(WAIT_SECONDS)  # another command has taken over
        await publisher.take_over(at)
    raise _busy()


def _busy() -> Unavailable:
    return Unavailable("crls-busy", "Another node is publishing CRLs.", "Try again.")
