"""Admission of a CONNECT: which reason CONNACK carries for a refusal, and what the broker's CONNECT looks like."""

from dataclasses import replace
from datetime import datetime

import pytest

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import Device, DeviceId, DeviceState
from fleet.domain.errors import FleetError, Refused, Unauthenticated, Unavailable
from fleet.domain.peer import Peer
from fleet.domain.revoked_cache import RevokedCache
from fleet.domain.topic_policy import policy_of
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.session import admission as admission_module
from fleet.servers.gateway.session.admission import admit_client, broker_connect
from fleet.services.admission import Admission
from fleet.services.admission import Will as ShownWill
from fleet.wire.mqtt.codes import V5, V311
from fleet.wire.mqtt.connect import Connect, Will
from fleet.wire.mqtt.properties import Properties, Property
from tests.servers.gateway_fixtures import MODEL, credential, now, peer_of

DEVICE = Device(DeviceId("cam-1"), MODEL.name, DeviceState.ACTIVE, now())
CERTIFICATE = credential("cam-1")
ADMISSION = Admission(DEVICE, CERTIFICATE, policy_of(DEVICE, MODEL))
PEER = peer_of(CERTIFICATE)
NOW = now()


class Admitting:
    """The service below: answers as it is bidden, and keeps what it was asked."""

    def __init__(self, answer: Admission | FleetError) -> None:
        self.answer = answer
        self.asked: list[tuple[object, ...]] = []

    async def __call__(
        self, registry: object, peer: Peer, client_id: str, at: datetime, *, will: ShownWill | None
    ) -> Admission:
        self.asked.append((registry, peer, client_id, at, will))
        if isinstance(self.answer, FleetError):
            raise self.answer
        return self.answer


async def admitted(monkeypatch: pytest.MonkeyPatch, service: Admitting, connect: Connect) -> Admission:
    monkeypatch.setattr(admission_module, "admit", service)
    return await admit_client("registry", PEER, connect, NOW)  # type: ignore[arg-type]


async def refusal_of(monkeypatch: pytest.MonkeyPatch, answer: Admission | FleetError) -> CloseReason:
    with pytest.raises(CloseSession) as caught:
        await admitted(monkeypatch, Admitting(answer), Connect(V5, "cam-1"))
    return caught.value.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused("client-id-mismatch", ""), 0x85),
        (Refused("device-suspended", ""), 0x8A),
        (Refused("device-revoked", ""), 0x8A),
        (Refused("device-retired", ""), 0x8A),
        (Unauthenticated("certificate-revoked", ""), 0x8A),
        (Refused("will-retain", ""), 0x9A),
        (Refused("will-refused", ""), 0x87),
        (Unauthenticated("certificate-unknown", ""), 0x87),
        (Unavailable("database-down", ""), 0x88),
        (Unavailable("device-revoked", ""), 0x88),
    ],
)
async def test_the_reason_of_a_refusal(monkeypatch: pytest.MonkeyPatch, error: FleetError, reason: int) -> None:
    found = await refusal_of(monkeypatch, error)
    assert (found.event, found.code, found.connack, found.disconnect) == ("mqtt.connect", error.code, reason, None)


async def test_what_the_registry_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Admitting(ADMISSION)
    for will in (None, Will("t", b"x"), Will("t", b"x", retain=True)):
        assert await admitted(monkeypatch, service, Connect(V5, "cam-9", will=will)) is ADMISSION
    wills = [None, ShownWill("t", retain=False), ShownWill("t", retain=True)]
    assert service.asked == [("registry", PEER, "cam-9", NOW, will) for will in wills]


def cached(*events: Event, entries_max: int = 100_000) -> RevokedCache:
    cache = RevokedCache(entries_max)
    for event in events:
        cache.on_event(event)
    return cache


def test_the_revoked_cache() -> None:
    fingerprint = CERTIFICATE.fingerprint.hex()
    refusals = {
        state: cached(Event(EventKind.DEVICE_STATE, "cam-1", state)).refusal_code(ADMISSION) for state in DeviceState
    }
    assert {state for state, code in refusals.items() if code} == {DeviceState.REVOKED, DeviceState.RETIRED}
    for event in (
        Event(EventKind.DEVICE_STATE, "cam-2", DeviceState.REVOKED),
        Event(EventKind.CREDENTIAL_ENDED, "cam-1", ""),  # all that were issued until now
        Event(EventKind.CREDENTIAL_ENDED, "cam-1", credential("cam-1").fingerprint.hex()),
        Event(EventKind.MODEL_CHANGED, "cam-1", fingerprint),
        Event(EventKind.MODEL_CHANGED, "cam-1", "revoked"),
    ):
        assert cached(event).refusal_code(ADMISSION) == ""
    mine = Event(EventKind.CREDENTIAL_ENDED, "cam-1", fingerprint)
    others = [Event(EventKind.CREDENTIAL_ENDED, "x", credential("x").fingerprint.hex()) for _ in range(2)]
    assert cached(mine, others[0], entries_max=2).refusal_code(ADMISSION) == "certificate-revoked"
    assert cached(mine, *others, entries_max=2).refusal_code(ADMISSION) == ""
    assert RevokedCache()._devices.entries_max == 100_000


DELAY, KIND = (Property.WILL_DELAY_INTERVAL, 30), (Property.CONTENT_TYPE, "a")


@pytest.mark.parametrize(
    ("version", "expiry", "delays_will", "kept"),
    [
        (V5, 60, True, (DELAY, KIND)),
        (V5, 60, False, (KIND,)),
        (V5, 0, True, (KIND,)),
        (V311, 60, True, (KIND,)),
    ],
    ids=["delayed", "no-room", "session-ends-with-the-connection", "3.1.1"],
)
def test_the_connect_for_the_broker(version: int, expiry: int, delays_will: bool, kept: Properties) -> None:
    will = Will("t", b"x", 1, True, (DELAY, KIND))
    expires = (Property.SESSION_EXPIRY_INTERVAL, expiry)
    asked = Connect(
        version, "claimed", False, 33, will, "root", b"secret", ((Property.TOPIC_ALIAS_MAXIMUM, 9), expires)
    )
    forwarded = broker_connect(asked, ADMISSION, "cam", delays_will=delays_will)
    assert forwarded.will == Will("t", b"x", 1, True, kept)
    assert replace(forwarded, will=None) == Connect(version, "cam-1", False, 33, None, "cam", None, (expires,))
    assert broker_connect(replace(asked, will=None), ADMISSION, "cam", delays_will=delays_will).will is None
