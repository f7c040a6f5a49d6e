"""MQTT admission: checks a certificate's fingerprint against the registry's state on every connection.

    admission = await admit(registry, peer, client_id, now)   # a device, by its own client id

The certificate identifies; the registry decides. Refusals are audited, and so is the first use of a certificate, which
also supersedes the device's earlier certificates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.credential import Credential, CredentialState, usable_before
from fleet.domain.device import Device, DeviceState, Model, device_id
from fleet.domain.errors import Conflict, FleetError, Invalid, Refused, Unavailable
from fleet.domain.model_rules import DEFAULT_RULES, MqttRules
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.topic_policy import TopicPolicy, policy_of
from fleet.domain.writes import EndCredentials, MarkUsed, Write
from fleet.services.first_use import ended_by_first_use
from fleet.services.identity import identify
from fleet.services.refusals import audit_refusal

CONNECT = "mqtt.connect"
FIRST_USE = "credential.first-use"

Admitted = TypeVar("Admitted")
"""What a check makes of a holder."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Admission of one session, valid until `credential.not_after` or a revoking event."""

    device: Device
    credential: Credential
    policy: TopicPolicy
    rules: MqttRules = DEFAULT_RULES.mqtt


@dataclass(frozen=True, slots=True)
class Will:
    """Will message of a session."""

    topic: str
    retain: bool
    response_topic: str | None = None
    """Where it asks for a response (MQTT 5.0)."""


async def admit(
    registry: Registry, peer: Peer, client_id: str | None, now: datetime, *, will: Will | None = None
) -> Admission:
    """Admit an MQTT session of `client_id`, which must be the device's id, with `will` if any. None: it is assigned.

    Raises: Unauthenticated, Refused: what `identify` raises, and `not-a-device`, `client-id-mismatch`,
    `will-refused`, `will-retain`, `will-response`, `certificate-ended`; each after its audit row is
    written. Unavailable: the registry failed, or a first use could not be recorded.
    """
    subject = device_named(client_id or "")
    return await admitted(registry, peer, now, CONNECT, subject, lambda facts: _bound(facts, client_id, will))


async def admitted(
    registry: Registry, peer: Peer, now: datetime, action: str, subject: str, check: Callable[[HolderFacts], Admitted]
) -> Admitted:
    """What `check` makes of the holder of the peer's certificate, whose first use is recorded.

    Raises: what `identify`, `check` and `mark_first_use` raise; all but Unavailable after the refusal of `action` by
    `subject` is audited.
    """
    try:
        facts = await identify(registry, peer, now)
        made = check(facts)
        await mark_first_use(registry, facts.credential, peer, now)
    except Unavailable:
        raise
    except FleetError as refusal:
        await audit_refusal(registry, peer, now, action, subject, refusal)
        raise
    return made


def _bound(facts: HolderFacts, client_id: str | None, will: Will | None) -> Admission:
    """The admission of the certificate's device, if the client id matches it."""
    device, model = admitted_device(facts)
    if client_id is not None and client_id != device.id:
        raise Refused("client-id-mismatch", f"The client id must be the device id, {device.id}.")
    policy = policy_of(device, model)
    rules = model.rules.mqtt
    if code := will_refusal(will, policy, rules):
        raise Refused(code, f"Model {model.name} does not allow {WILL_REFUSALS[code]}.")
    return Admission(device, facts.credential, policy, rules)


def admitted_device(facts: HolderFacts) -> tuple[Device, Model]:
    """The active device that holds the certificate, with its model. Raises: Refused."""
    if facts.device is None or facts.model is None:
        raise Refused("not-a-device", "Only a device's certificate is accepted here.")
    if facts.device.state is not DeviceState.ACTIVE:
        raise Refused(f"device-{facts.device.state}", f"Device {facts.device.id} is {facts.device.state}.")
    return facts.device, facts.model


WILL_REFUSALS = {
    "will-refused": "the will's topic",
    "will-retain": "retained messages, so no such will",
    "will-response": "a response on the will's Response Topic",
}


def will_refusal(will: Will | None, policy: TopicPolicy, rules: MqttRules) -> str:
    """Why `will` is not allowed, as a key of WILL_REFUSALS; "" if it is."""
    if will is None:
        return ""
    if not policy.may_publish(will.topic):
        return "will-refused"
    if will.retain and not policy.retain:
        return "will-retain"
    # The responder would publish there with its own rights, not with the device's.
    response = will.response_topic
    if response is not None and rules.check_response_topic and not policy.may_receive(response):
        return "will-response"
    return ""


async def mark_first_use(registry: Registry, credential: Credential, peer: Peer, now: datetime) -> None:
    """At its first use the certificate becomes ACTIVE, earlier ones SUPERSEDED, and later ones that may not supersede
    it, with an event.

    Raises: Refused (`certificate-ended`). Unavailable.
    """
    if credential.state is not CredentialState.ISSUED:
        return
    # The newest few of each state, and this one: the cost does not grow with the number of certificates.
    fingerprint = credential.fingerprint
    facts = await registry.enrollment_facts(credential.holder, None, credential.key_sha256, presented=fingerprint)
    newer = await ended_by_first_use(registry, credential, facts.credentials)
    ended = (*usable_before(facts.credentials, fingerprint), *newer)
    device, superseded = f"device {credential.holder}", " ".join(c.serial for c in ended)
    act = Act(device, now, peer.address)
    entry = made_by(act, FIRST_USE, device, serial=credential.serial, superseded=superseded)
    events = tuple(Event(EventKind.CREDENTIAL_ENDED, c.holder, c.fingerprint.hex()) for c in ended)
    writes: tuple[Write, ...] = (MarkUsed(fingerprint),)
    if newer:
        writes += (EndCredentials(tuple(c.fingerprint for c in newer), now),)
    try:
        await registry.commit(Change(entry, writes, events))
    except Conflict as conflict:
        raise Refused(
            "certificate-ended", "The certificate presented has just been revoked or superseded."
        ) from conflict


def device_named(client_id: str) -> str:
    """The audit's subject for `client_id`, which the peer chose: "device ?" unless it is a valid device id."""
    try:
        return f"device {device_id(client_id)}"
    except Invalid:
        return "device ?"
