"""MQTT admission: checks a certificate's fingerprint against the registry's state on every connection.

    admission = await admit(registry, peer, client_id, now)   # a device, by its own client id

The certificate identifies; the registry decides. Refusals are audited, and so is the first use of a certificate, which
also supersedes the device's earlier certificates.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self, TypeVar

from msgspec import structs

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.client_ids import broker_client_id, device_of, is_own
from fleet.domain.credential import Credential, CredentialState, usable_before
from fleet.domain.device import Device, Model, device_id, must_be_active
from fleet.domain.errors import Conflict, FleetError, Invalid, Refused, Unavailable
from fleet.domain.model_rules import DEFAULT_RULES
from fleet.domain.mqtt_overrides import model_of
from fleet.domain.mqtt_rules import ClientIdBinding, MqttRules
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.topic_policy import TopicPolicy, policy_of
from fleet.domain.writes import EndCredentials, FirstUse, MarkUsed, Write
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
    other_client_id: str = ""
    """Its client id at the broker, where that is not the device id."""

    @property
    def client_id(self) -> str:
        """Its client id at the broker."""
        return self.other_client_id or self.device.id

    def under(self, model: Model) -> Self:
        """What it is now that the device's model is `model`."""
        policy = structs.replace(policy_of(self.device, model), dots=self.policy.dots)
        return replace(self, policy=policy, rules=model_of(self.device, model).rules.mqtt)

    def without_dots(self) -> Self:
        """The same, at a broker that takes a dot in a topic for a slash."""
        return replace(self, policy=structs.replace(self.policy, dots=False))


@dataclass(frozen=True, slots=True)
class Will:
    """Will message of a session."""

    topic: str
    retain: bool
    response_topic: str | None = None
    """Where it asks for a response (MQTT 5.0)."""
    qos: int = 0


async def admit(
    registry: Registry,
    peer: Peer,
    client_id: str | None,
    now: datetime,
    *,
    will: Will | None = None,
    maps_client_id: bool = True,
) -> Admission:
    """Admit an MQTT session of `client_id`, as the device's model binds it, with `will` if any. None: it is assigned.

    `maps_client_id`: whether the broker gets the client id of the admission, in place of `client_id`. Where it does
    not, one of the device's own choice is refused: it may be another device's.

    Raises: Unauthenticated, Refused: what `identify` raises, and `not-a-device`, `client-id-mismatch`,
    `will-refused`, `will-retain`, `will-qos`, `will-response`, `certificate-ended`; each after its audit row is
    written. Unavailable: the registry failed, or a first use could not be recorded.
    """
    subject = device_named(client_id or "")

    def check(facts: HolderFacts) -> Admission:
        admission = _bound(facts, client_id, will)
        if not maps_client_id and client_id is not None:
            check_own(admission, client_id)
        return admission

    return await admitted(registry, peer, now, CONNECT, subject, check)


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
        await mark_first_use(registry, facts, peer, now)
    except Unavailable:
        raise
    except FleetError as refusal:
        await audit_refusal(registry, peer, now, action, subject, refusal)
        raise
    return made


def _bound(facts: HolderFacts, client_id: str | None, will: Will | None) -> Admission:
    """The admission of the certificate's device, if the client id matches it."""
    device, model = admitted_device(facts)
    policy = policy_of(device, model)
    rules = model_of(device, model).rules.mqtt
    found = device.id if client_id is None else broker_client_id(device.id, client_id, rules.client_id)
    if found is None:
        raise Refused("client-id-mismatch", CLIENT_IDS[rules.client_id].format(id=device.id))
    if will is not None and policy.refuses_always(will.topic) == "reserved":
        raise _refused(will, "will-refused", "The will's topic is reserved for what the fleet itself publishes.")
    if will is not None and (code := will_refusal(will, policy, rules)):
        raise _refused(will, code, f"Model {model.name} does not allow {WILL_REFUSALS[code]}.")
    return Admission(device, facts.credential, policy, rules, "" if found == device.id else found)


def _refused(will: Will, code: str, message: str) -> Refused:
    """With the topic that it is about, for the audit."""
    refused = Refused(code, message)
    topic = will.response_topic if code == "will-response" else will.topic
    refused.detail = {"topic": (topic or "")[:TOPIC_SHOWN_MAX]}
    return refused


def check_own(admission: Admission, client_id: str) -> None:
    """Require that a broker which gets `client_id` as it is has no other device's. Raises: Refused."""
    device_id, rules = admission.device.id, admission.rules
    if not is_own(device_id, client_id, rules.client_id):
        shown = ClientIdBinding.PREFIX if rules.other_client_ids else ClientIdBinding.EXACT
        raise Refused("client-id-mismatch", CLIENT_IDS[shown].format(id=device_id))


def admitted_device(facts: HolderFacts) -> tuple[Device, Model]:
    """The active device that holds the certificate, with its model. Raises: Refused."""
    if facts.device is None or facts.model is None:
        raise Refused("not-a-device", "Only a device's certificate is accepted here.")
    must_be_active(facts.device)
    return facts.device, facts.model


TOPIC_SHOWN_MAX = 80  # characters of a will's topic in the audit, as of a PUBLISH's

CLIENT_IDS = {
    ClientIdBinding.EXACT: "The client id must be the device id, {id}.",
    ClientIdBinding.PREFIX: "The client id must be the device id, or {id}/NAME: letters, digits, dots, colons, dashes.",
    ClientIdBinding.ANY: "The client id must be printable, and not longer than 256 characters.",
}

WILL_REFUSALS = {
    "will-refused": "the will's topic",
    "will-retain": "retained messages, so no such will",
    "will-qos": "messages of the will's QoS",
    "will-response": "a response on the will's Response Topic",
}


def will_refusal(will: Will | None, policy: TopicPolicy, rules: MqttRules) -> str:
    """Why `will` is not allowed, as a key of WILL_REFUSALS; "" if it is."""
    if will is None:
        return ""
    if refusal := policy.publish_refusal(will.topic, qos=will.qos, retain=will.retain):
        return "will-refused" if refusal == "topic" else f"will-{refusal}"
    response = will.response_topic
    if response is not None and rules.check_response_topic and not policy.may_ask_for_response(response):
        return "will-response"
    return ""


async def mark_first_use(registry: Registry, holder: HolderFacts, peer: Peer, now: datetime) -> None:
    """At its first use the certificate becomes ACTIVE, earlier ones SUPERSEDED, and later ones that may not supersede
    it, with an event. Where a device may have several sessions, another before it tells gateways to leave them a while.
    Of several first uses at once, one is recorded.

    Raises: Refused (`certificate-ended`). Unavailable.
    """
    credential, device, model = holder.credential, holder.device, holder.model
    if credential.state is not CredentialState.ISSUED:
        return
    # The newest few of each state, and this one: the cost does not grow with the number of certificates.
    fingerprint = credential.fingerprint
    facts = await registry.enrollment_facts(credential.holder, None, credential.key_sha256, presented=fingerprint)
    newer = await ended_by_first_use(registry, credential, facts.credentials)
    ended = (*usable_before(facts.credentials, fingerprint), *newer)
    subject, superseded = f"device {credential.holder}", " ".join(c.serial for c in ended)
    act = Act(subject, now, peer.address)
    entry = made_by(act, FIRST_USE, subject, serial=credential.serial, superseded=superseded)
    has_others = device is not None and model is not None and model_of(device, model).rules.mqtt.other_client_ids
    kinds = (EventKind.CREDENTIAL_SUPERSEDED,) if has_others else ()
    events = tuple(
        Event(kind, c.holder, c.fingerprint.hex()) for c in ended for kind in (*kinds, EventKind.CREDENTIAL_ENDED)
    )
    writes: tuple[Write, ...] = (FirstUse(fingerprint), MarkUsed(fingerprint))
    if newer:
        writes += (EndCredentials(tuple(c.fingerprint for c in newer), now),)
    try:
        await registry.commit(Change(entry, writes, events))
    except Conflict as conflict:
        if conflict.code == "used-already":
            return
        raise Refused(
            "certificate-ended", "The certificate presented has just been revoked or superseded."
        ) from conflict


def device_named(client_id: str) -> str:
    """The audit's subject for `client_id`, which the peer chose: "device ?" unless it names a valid device id."""
    try:
        return f"device {device_id(device_of(client_id))}"
    except Invalid:
        return "device ?"
