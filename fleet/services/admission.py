"""Who may connect: a certificate's fingerprint against the registry's live state, at every connection.

    admission = await admit(registry, peer, client_id, now)   # a device, to MQTT, under its own name

The certificate only names; the registry decides. A refusal to admit leaves an audit row, and so does the first use
of a certificate, which is also what ends those that were issued to the device before it.
"""

from dataclasses import dataclass
from datetime import datetime

from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.credential import USABLE, Credential, CredentialState
from fleet.domain.device import Device, DeviceState, device_id
from fleet.domain.errors import Conflict, FleetError, Invalid, Refused, Unavailable
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.topic_policy import TopicPolicy, policy_of
from fleet.domain.writes import MarkUsed
from fleet.services.identity import identify, shown_by
from fleet.services.refusals import refusals_of

CONNECT = "mqtt.connect"
FIRST_USE = "credential.first-use"


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave for one device to hold one session, until `credential.not_after` or until the feed says otherwise."""

    device: Device
    credential: Credential
    policy: TopicPolicy


@dataclass(frozen=True, slots=True)
class Will:
    """What is to be published when a session ends badly."""

    topic: str
    retain: bool


async def admit(
    registry: Registry, peer: Peer, client_id: str, now: datetime, *, will: Will | None = None
) -> Admission:
    """Leave to hold an MQTT session as `client_id`, which must be the device's own id, with `will` when it has one.

    Raises: Unauthenticated, Refused: what `identify` raises, and `not-a-device`, `client-id-mismatch`,
    `will-refused`, `will-retain`, `certificate-ended`; each after its audit row is written. Unavailable: the registry
    could not be asked, or a first use not be recorded.
    """
    try:
        facts = await identify(registry, peer, now)
        admission = _bound(facts, client_id, will)
        if facts.credential.state is CredentialState.ISSUED:
            await _mark_used(registry, facts.credential, peer, now)
    except Unavailable:
        raise
    except FleetError as refusal:
        await _audit_refusal(registry, peer, client_id, refusal, now)
        raise
    return admission


def _bound(facts: HolderFacts, client_id: str, will: Will | None) -> Admission:
    """What the certificate's own device may do, if that is who the client says it is."""
    if facts.device is None or facts.model is None:
        raise Refused("not-a-device", "Only a device's certificate opens an MQTT session.")
    if facts.device.state is not DeviceState.ACTIVE:
        raise Refused(f"device-{facts.device.state}", f"Device {facts.device.id} is {facts.device.state}.")
    if client_id != facts.device.id:
        raise Refused("client-id-mismatch", f"The client id must be the device id, {facts.device.id}.")
    policy = policy_of(facts.device, facts.model)
    if will is not None and not policy.may_publish(will.topic):
        raise Refused("will-refused", f"Model {facts.model.name} does not allow the will's topic.")
    if will is not None and will.retain and not policy.retain:
        raise Refused("will-retain", f"Model {facts.model.name} does not allow retained messages, so no such will.")
    return Admission(facts.device, facts.credential, policy)


async def _mark_used(registry: Registry, credential: Credential, peer: Peer, now: datetime) -> None:
    """First use: this certificate becomes ACTIVE, those issued before it end, and followers of the feed hear of it."""
    # The newest few of each state: however many certificates it has had, this costs the same.
    held = (await registry.enrollment_facts(device_id(credential.holder), None, credential.key_sha256)).credentials
    fingerprints = [c.fingerprint for c in held]  # oldest first
    older = [c for c in held[: fingerprints.index(credential.fingerprint)] if c.state in USABLE]
    change = Change(
        audit=AuditEntry(
            at=now,
            actor=f"device {credential.holder}",
            action=FIRST_USE,
            subject=f"device {credential.holder}",
            outcome="ok",
            address=peer.address,
            detail={"serial": credential.serial, "superseded": " ".join(c.serial for c in older)},
        ),
        writes=(MarkUsed(credential.fingerprint),),
        events=tuple(Event(EventKind.CREDENTIAL_ENDED, c.holder, c.fingerprint.hex()) for c in older),
    )
    try:
        await registry.commit(change)
    except Conflict as conflict:
        raise Refused(
            "certificate-ended", "The certificate presented has just been revoked or superseded."
        ) from conflict


async def _audit_refusal(registry: Registry, peer: Peer, client_id: str, refusal: FleetError, now: datetime) -> None:
    """The refusal stands whether or not its row could be written: Unavailable is not allowed to hide it."""
    try:
        actor, detail = await shown_by(registry, peer)
        subject = f"device {_named(client_id)}"
        entry = AuditEntry(now, actor, CONNECT, subject, refusal.code, peer.address, detail)
        row = refusals_of(registry).row(entry)  # a device that keeps knocking fills one row a minute
        if row is not None:
            await registry.commit(Change(row))
    except Unavailable as error:
        refusal.add_note(f"The audit row could not be written: {error.message}")


def _named(client_id: str) -> str:
    """`client_id` for the audit: a peer's choice, so only when it could be a device id."""
    try:
        return device_id(client_id)
    except Invalid:
        return "?"
