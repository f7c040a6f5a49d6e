"""Whose certificate it is, by live state: the question that every door asks first."""

from datetime import datetime

from fleet.domain.credential import USABLE
from fleet.domain.device import DeviceState
from fleet.domain.errors import Refused, Unauthenticated
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry

NOBODY = "nobody"
"""The actor of what a stranger did."""

_IN_SERVICE = frozenset({DeviceState.REGISTERED, DeviceState.ACTIVE})


async def shown_by(registry: Registry, peer: Peer) -> tuple[str, dict[str, str]]:
    """Whose certificate `peer` presented, good or not, in the audit's words: the actor, and the certificate's serial.

    Raises: Unavailable.
    """
    facts = await registry.holder_facts(peer.fingerprint) if peer.fingerprint else None
    if facts is None:
        return NOBODY, {}
    return f"{facts.credential.kind} {facts.credential.holder}", {"serial": facts.credential.serial}


async def identify(registry: Registry, peer: Peer, now: datetime) -> HolderFacts:
    """Who presented the certificate of `peer`, by its fingerprint. The holder is in service, the certificate usable.

    Raises: Unauthenticated: `no-certificate`, `certificate-unknown`. Refused: `certificate-expired`,
    `certificate-superseded`, `certificate-revoked`, `device-suspended` and the like.
    """
    if peer.fingerprint is None:
        raise Unauthenticated("no-certificate", "A client certificate is needed.")
    facts = await registry.holder_facts(peer.fingerprint)
    if facts is None or (facts.device is None and facts.station is None):
        # It may well chain to our CA: what we have no record of opens nothing.
        raise Unauthenticated("certificate-unknown", "The certificate presented is not known here.")
    credential = facts.credential
    if credential.state not in USABLE:
        raise Refused(f"certificate-{credential.state}", f"The certificate presented is {credential.state}.")
    if not credential.not_before <= now < credential.not_after:
        raise Refused("certificate-expired", "The certificate presented is not valid at this time.")
    if facts.device is not None and facts.device.state not in _IN_SERVICE:
        raise Refused(f"device-{facts.device.state}", f"Device {facts.device.id} is {facts.device.state}.")
    return facts
