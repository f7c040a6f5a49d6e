"""Access of devices to a broker that has ended their TLS itself, and asks.

    admission = await admit_named(registry, "cam-1", "cam-1", asked, now)
    await must_be_allowed(registry, admission, Wish("mqtt.publish", "devices/cam-1/up/t"), asked.peer, now)

A broker that says which certificate it has verified is answered by `fleet.services.admission.admit`, as the gateway.
One that says the certificate's common name alone is answered here: the device must be in service, and one of its
certificates usable.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from msgspec import Struct

from fleet.domain.changes import AuditEntry
from fleet.domain.credential import USABLE, Credential, CredentialKind, must_be_usable
from fleet.domain.errors import FleetError, Refused, Unauthenticated, Unavailable
from fleet.domain.mqtt_overrides import model_of
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.topic_policy import policy_of
from fleet.services.admission import CONNECT, Admission, admitted_device, check_own, device_named
from fleet.services.identity import NOBODY, TenantOf, identified, peer_with
from fleet.services.refusals import audit_refusal_of_named, write_row

PUBLISH, SUBSCRIBE = "mqtt.publish", "mqtt.subscribe"
TRIED_MAX = 4  # usable certificates of a device, the newest first: it has two while it renews
SHOWN_MAX = 256  # characters of a topic in the audit


class Wish(Struct, frozen=True):
    """What a device asks of the broker."""

    action: str
    """PUBLISH or SUBSCRIBE."""
    topic: str
    """Topic, or topic filter with its `$share/GROUP/` prefix."""
    retain: bool = False
    qos: int = 0


async def admit_named(
    registry: Registry, name: str, client_id: str | None, peer: Peer, tenant_of: TenantOf, now: datetime
) -> Admission:
    """Admit the session of the device `name`, whose certificate the broker has verified; `client_id` None: not known
    yet. `peer` has the client's address alone. No certificate is marked as used: which one was is not known.

    Raises: Unauthenticated (`certificate-unknown`). Refused: `ambiguous-name`, `client-id-mismatch`, and what
    `identify` raises; each after its audit row is written. Unavailable.
    """
    try:
        facts = await _facts_of(registry, name, peer, tenant_of, now)
        device, model = admitted_device(facts)
        admission = Admission(device, facts.credential, policy_of(device, model), model_of(device, model).rules.mqtt)
        if client_id is not None:
            check_own(admission, client_id)
    except Unavailable:
        raise
    except FleetError as refusal:
        entry = AuditEntry(now, NOBODY, CONNECT, device_named(name), refusal.code, peer.address)
        await audit_refusal_of_named(registry, entry, name, refusal)
        raise
    return admission


async def is_admissible(registry: Registry, device_id: str, now: datetime) -> bool:
    """Whether the device could connect now, by one of its certificates. Raises: Unavailable."""
    for credential in _newest_usable(await registry.credentials(device_id)):
        facts = await registry.holder_facts(credential.fingerprint)
        if facts is not None and facts.may_connect:
            with suppress(Refused):
                must_be_usable(facts.credential, now)
                return True
    return False


def _newest_usable(known: Sequence[Credential]) -> list[Credential]:
    """A device's among those of a name, the newest first."""
    return [each for each in reversed(known) if each.kind is CredentialKind.DEVICE and each.state in USABLE]


async def _facts_of(registry: Registry, name: str, peer: Peer, tenant_of: TenantOf, now: datetime) -> HolderFacts:
    """Of the newest certificate by which the device could connect. Raises: as `admit_named`."""
    known = await registry.credentials(name)
    others = [each for each in known if each.kind is not CredentialKind.DEVICE]
    if any(_may_be_shown(each, now) for each in others):
        kinds = " and ".join(sorted({str(each.kind) for each in others}))
        message = f"A {kinds} has a certificate of the same name, and the broker does not say which it has verified."
        raise Refused("ambiguous-name", message)
    newest = [each for each in reversed(known) if each.kind is CredentialKind.DEVICE][:1]
    refused: FleetError = Unauthenticated("certificate-unknown", "No device of this name has a certificate.")
    for credential in _newest_usable(known)[:TRIED_MAX] or newest:
        shown = peer_with(peer, credential.der, tenant_of)
        try:
            return identified(registry, shown, await registry.holder_facts(credential.fingerprint), now)
        except FleetError as error:
            refused = error
    raise refused


def _may_be_shown(credential: Credential, now: datetime) -> bool:
    """Whether the broker, which knows the CA alone, lets in who shows this certificate."""
    return now < credential.not_after


async def must_be_allowed(registry: Registry, admission: Admission, wish: Wish, peer: Peer, now: datetime) -> None:
    """Require that the device's model allows `wish`.

    Raises: Refused (`topic-not-allowed`), after its audit row is written.
    """
    policy = admission.policy
    if "\0" in wish.topic:  # [MQTT-1.5.4-2]: no session of MQTT can ask for it
        refusal: str = "topic"
    elif wish.action == PUBLISH:
        refusal = policy.publish_refusal(wish.topic, qos=wish.qos, retain=wish.retain)
    else:  # a lower QoS cannot be granted here: the broker takes a word for an answer
        refusal = policy.subscribe_refusal(wish.topic) or policy.flags_refusal(qos=wish.qos, retain=False)
    if not refusal:
        return
    entry = denial(admission, wish.action, "refused", {"topic": wish.topic}, peer, now)
    await audit_denial(registry, entry)
    raise Refused("topic-not-allowed", f"The device's model does not allow this {wish.action.removeprefix('mqtt.')}.")


def denial(
    admission: Admission, action: str, outcome: str, detail: Mapping[str, str], peer: Peer, now: datetime
) -> AuditEntry:
    """That the admitted device was denied what `detail` says."""
    device = f"device {admission.device.id}"
    shown = {name: value[:SHOWN_MAX] for name, value in detail.items()}
    shown["serial"] = admission.credential.serial
    return AuditEntry(now, device, action, device, outcome, peer.address, shown)


async def audit_denial(registry: Registry, entry: AuditEntry) -> None:
    """At most one row a minute for repeated ones. It is answered all the same where none can be written."""
    with suppress(Unavailable):  # a later row counts it
        await write_row(registry, entry)
