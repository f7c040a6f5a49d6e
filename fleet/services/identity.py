"""Identification of a TLS peer by its certificate's fingerprint, against the registry's live state."""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta

from msgspec.structs import replace

from fleet.domain.access import Operator
from fleet.domain.credential import Credential, must_be_usable
from fleet.domain.device import must_be_in_service, must_not_be_ended
from fleet.domain.distrust import must_be_trusted
from fleet.domain.errors import Refused, Unauthenticated
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.services.claims import misused

NOBODY = "nobody"
"""Audit actor of an unauthenticated client."""

NO_GRACE = timedelta(0)

TenantOf = Callable[[bytes], str | None]
"""DER of a certificate -> tenant of our issuing CA that signed it, "" for the fleet's own; None: none did."""


def peer_with(peer: Peer, der: bytes, tenant_of: TenantOf) -> Peer:
    """`peer`, of which a program that has ended its TLS says that it has shown the certificate `der`."""
    return replace(peer, certificate_der=der, fingerprint=hashlib.sha256(der).digest(), tenant=tenant_of(der))


async def audit_actor_of(registry: Registry, peer: Peer) -> tuple[str, dict[str, str]]:
    """Audit actor and detail for the certificate that `peer` presented, valid or not. Raises: Unavailable."""
    facts = await registry.holder_facts(peer.fingerprint) if peer.fingerprint else None
    if facts is None:
        return NOBODY, {}
    return f"{facts.credential.kind} {facts.credential.holder}", {"serial": facts.credential.serial}


async def identify(
    registry: Registry,
    peer: Peer,
    now: datetime,
    *,
    opens_to_claims: bool = False,
    renews: bool = False,
    in_grace: bool = False,
) -> HolderFacts:
    """The device or station that holds the certificate of `peer`. The holder is in service, the certificate usable.
    Operators are not identified here. Claim certificates are accepted with `opens_to_claims` only; elsewhere,
    presenting one puts the claim into quarantine. With `renews`, a certificate is accepted that is distrusted for all
    but its renewal; with `in_grace`, a device's that has expired within its model's grace period.

    Raises: Unauthenticated: `no-certificate`, `certificate-unknown`. Refused: `certificate-expired`,
    `certificate-superseded`, `certificate-revoked`, `certificate-distrusted`, `other-tenant`, `claim-only-enrolls`,
    `device-suspended` and the like.
    """
    facts = await _recorded(registry, peer)
    if facts.claim is not None and not opens_to_claims:
        await misused(registry, facts.claim, "claim-only-enrolls", peer, now)
        raise Refused("claim-only-enrolls", "A claim certificate is accepted for enrolling new devices only.")
    _must_be_accepted(registry, peer, facts, now, renews=renews, in_grace=in_grace)
    return facts


def identified(registry: Registry, peer: Peer, facts: HolderFacts | None, now: datetime) -> HolderFacts:
    """As `identify` with `opens_to_claims`, by the `facts` read of the certificate of `peer`. Raises: as that."""
    if facts is None:
        raise _unknown()
    _must_be_accepted(registry, peer, facts, now)
    return facts


def _must_be_accepted(
    registry: Registry, peer: Peer, facts: HolderFacts, now: datetime, *, renews: bool = False, in_grace: bool = False
) -> None:
    if facts.device is None and facts.station is None and facts.claim is None:
        raise _unknown()
    if facts.device is not None:
        must_not_be_ended(facts.device)  # its certificates have ended with it, and another would not help
    model = facts.model if in_grace and facts.device is not None else None
    must_be_usable(facts.credential, now, model.rules.renewal.grace if model is not None else NO_GRACE)
    _must_be_of_its_tenant(facts, peer)
    if facts.device is not None:
        must_be_in_service(facts.device)
    registry.revoked.must_be_usable(facts)
    if facts.device is not None:
        rules = registry.revoked.distrusts(facts.distrusts)
        must_be_trusted(rules, facts.device.model, facts.credential, renews=renews)


async def identify_operator(registry: Registry, peer: Peer, now: datetime) -> tuple[Operator, Credential]:
    """The operator that holds the certificate of `peer`. Other holders are not identified here.

    The caller must have verified that the chain ends at the operators' CA.

    Raises: Unauthenticated: `no-certificate`, `certificate-unknown`. Refused: `certificate-expired`,
    `certificate-revoked` and the like.
    """
    facts = await _recorded(registry, peer)
    if facts.claim is not None:
        await misused(registry, facts.claim, "claim-only-enrolls", peer, now)
    if facts.operator is None:
        raise _unknown()
    must_be_usable(facts.credential, now)
    registry.revoked.must_be_usable(facts)
    return facts.operator, facts.credential


async def _recorded(registry: Registry, peer: Peer) -> HolderFacts:
    if peer.fingerprint is None:
        raise Unauthenticated("no-certificate", "A client certificate is needed.")
    facts = await registry.holder_facts(peer.fingerprint)
    if facts is None:
        raise _unknown()
    return facts


def _unknown() -> Unauthenticated:
    # It may well chain to our CA: a certificate without a record authenticates nobody.
    return Unauthenticated("certificate-unknown", "The certificate presented is not known here.")


def _must_be_of_its_tenant(facts: HolderFacts, peer: Peer) -> None:
    """A recorded certificate was signed by the CA of its model's tenant; this check holds even if the record is wrong.
    A tenant's CA certifies devices of its own models and never a station.
    """
    accepted = facts.model.rules.signers if facts.model is not None else ("",)
    if peer.tenant not in accepted:
        raise Refused("other-tenant", "The certificate presented was signed by the CA of another tenant.")
