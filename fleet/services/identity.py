"""Whose certificate it is, by live state: the question that every door asks first."""

from datetime import datetime, timedelta

from fleet.domain.access import Operator
from fleet.domain.credential import USABLE, Credential
from fleet.domain.device import Device, DeviceState
from fleet.domain.errors import Refused, Unauthenticated
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.services.claims import misused

NOBODY = "nobody"
"""The actor of what a stranger did."""

NO_GRACE = timedelta(0)

_IN_SERVICE = frozenset({DeviceState.REGISTERED, DeviceState.ACTIVE})


async def shown_by(registry: Registry, peer: Peer) -> tuple[str, dict[str, str]]:
    """Whose certificate `peer` presented, good or not, in the audit's words: the actor, and the certificate's serial.

    Raises: Unavailable.
    """
    facts = await registry.holder_facts(peer.fingerprint) if peer.fingerprint else None
    if facts is None:
        return NOBODY, {}
    return f"{facts.credential.kind} {facts.credential.holder}", {"serial": facts.credential.serial}


async def identify(registry: Registry, peer: Peer, now: datetime, *, opens_to_claims: bool = False) -> HolderFacts:
    """Which device or station presented the certificate of `peer`, by its fingerprint. The holder is in service, the
    certificate usable. An operator's certificate is as good as unknown. One door `opens_to_claims`: a claim that is
    shown at any other is in quarantine when this raises.

    Raises: Unauthenticated: `no-certificate`, `certificate-unknown`. Refused: `certificate-expired`,
    `certificate-superseded`, `certificate-revoked`, `other-tenant`, `claim-only-enrolls`, `device-suspended` and the
    like.
    """
    facts = await _recorded(registry, peer)
    if facts.claim is not None and not opens_to_claims:
        await misused(registry, facts.claim, "claim-only-enrolls", peer, now)
        raise Refused("claim-only-enrolls", "A claim certificate enrolls new devices, and opens nothing else.")
    if facts.device is None and facts.station is None and facts.claim is None:
        raise _unknown()
    _must_be_usable(facts.credential, now)
    _must_be_of_its_tenant(facts, peer)
    if facts.device is not None:
        _must_be_in_service(facts.device)
    return facts


async def identify_for_renewal(registry: Registry, peer: Peer, now: datetime) -> HolderFacts:
    """As `identify`, for the one operation that a model may allow for a while after its devices' certificates have
    ended.

    Raises: as `identify`.
    """
    facts = await _recorded(registry, peer)
    if facts.device is None or facts.model is None:
        return await identify(registry, peer, now)
    _must_be_usable(facts.credential, now, grace=facts.model.rules.renewal.grace)
    _must_be_of_its_tenant(facts, peer)
    _must_be_in_service(facts.device)
    return facts


async def identify_operator(registry: Registry, peer: Peer, now: datetime) -> tuple[Operator, Credential]:
    """Which operator presented the certificate of `peer`, by its fingerprint. Any other holder is as good as unknown.

    That the chain ended at the operators' CA is for the door to see: only it knows whom it believes.

    Raises: Unauthenticated: `no-certificate`, `certificate-unknown`. Refused: `certificate-expired`,
    `certificate-revoked` and the like.
    """
    facts = await _recorded(registry, peer)
    if facts.claim is not None:
        await misused(registry, facts.claim, "claim-only-enrolls", peer, now)
    if facts.operator is None:
        raise _unknown()
    _must_be_usable(facts.credential, now)
    return facts.operator, facts.credential


async def _recorded(registry: Registry, peer: Peer) -> HolderFacts:
    if peer.fingerprint is None:
        raise Unauthenticated("no-certificate", "A client certificate is needed.")
    facts = await registry.holder_facts(peer.fingerprint)
    if facts is None:
        raise _unknown()
    return facts


def _unknown() -> Unauthenticated:
    # It may well chain to our CA: what we have no record of opens nothing.
    return Unauthenticated("certificate-unknown", "The certificate presented is not known here.")


def _must_be_in_service(device: Device) -> None:
    if device.state not in _IN_SERVICE:
        raise Refused(f"device-{device.state}", f"Device {device.id} is {device.state}.")


def _must_be_of_its_tenant(facts: HolderFacts, peer: Peer) -> None:
    """What is recorded was signed by whom it says. This holds when the record is wrong: a tenant's CA speaks for its
    own models' devices, and never for a station.
    """
    believed = facts.model.rules.signers if facts.model is not None else ("",)
    if peer.tenant not in believed:
        raise Refused("other-tenant", "The certificate presented was signed by the CA of another tenant.")


def _must_be_usable(credential: Credential, now: datetime, grace: timedelta = NO_GRACE) -> None:
    if credential.state not in USABLE:
        raise Refused(f"certificate-{credential.state}", f"The certificate presented is {credential.state}.")
    if not credential.not_before <= now < credential.not_after + grace:
        raise Refused("certificate-expired", "The certificate presented is not valid at this time.")
