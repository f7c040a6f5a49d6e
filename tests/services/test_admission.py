"""Admission: a certificate by its fingerprint, a device by its state, a session under the device's own name."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, AuditRow, Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import FleetError, Refused, Unauthenticated, Unavailable
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttRules
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts
from fleet.domain.writes import AddCredential, Insert, MoveDevice, RevokeCredentials, SetModel, Write
from fleet.services import revocation
from fleet.services.admission import CONNECT, FIRST_USE, Will, admit
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MODEL = Model("cam2")
CAM = DeviceId("cam-7")


def certificate(
    holder: str = CAM, state: CredentialState = CredentialState.ACTIVE, kind: CredentialKind = CredentialKind.DEVICE
) -> Credential:
    der = os.urandom(24)
    return Credential(
        fingerprint=hashlib.sha256(der).digest(),
        serial=f"{int.from_bytes(os.urandom(8)):x}",
        kind=kind,
        holder=holder,
        key_sha256=os.urandom(32),
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=1),
        state=state,
        issued_at=NOW,
        grant="certificate 5d",
        der=der,
    )


def shows(held: Credential) -> Peer:
    return Peer("192.0.2.9", held.der, (held.der,), held.fingerprint)


async def write(registry: SqliteRegistry, *writes: Write) -> None:
    await registry.commit(Change(AuditEntry(NOW, "operator", "test", "test", "ok"), writes))


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await write(opened, Insert(MODEL), Insert(Device(CAM, MODEL.name, DeviceState.ACTIVE, NOW)))
    yield opened
    await opened.close()


async def holding(registry: SqliteRegistry, held: Credential) -> Credential:
    await write(registry, AddCredential(held))
    return held


async def last_row(registry: SqliteRegistry) -> AuditRow:
    return (await registry.audit())[-1]


async def refusal(registry: SqliteRegistry, peer: Peer, client_id: str = CAM, now: datetime = NOW) -> FleetError:
    """The refusal, after checking that its audit row is there."""
    with pytest.raises((Refused, Unauthenticated)) as caught:
        await admit(registry, peer, client_id, now)
    entry = (await last_row(registry)).entry
    assert (entry.action, entry.outcome, entry.address, entry.at) == (CONNECT, caught.value.code, peer.address, now)
    return caught.value


async def test_a_device_in_good_order_is_admitted(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate())
    before = await last_row(registry)
    admission = await admit(registry, shows(held), CAM, NOW)
    assert admission.device.id == CAM
    assert admission.credential == held
    assert admission.policy.publish == ("devices/cam-7/up/#",)
    assert await last_row(registry) == before  # what is in use already needs no row


async def test_no_certificate(registry: SqliteRegistry) -> None:
    assert (await refusal(registry, Peer("192.0.2.9"))).code == "no-certificate"


async def test_a_certificate_that_was_never_issued_here(registry: SqliteRegistry) -> None:
    error = await refusal(registry, shows(certificate()))
    assert isinstance(error, Unauthenticated)
    assert (await last_row(registry)).entry.actor == "nobody"


@pytest.mark.parametrize("state", [CredentialState.SUPERSEDED, CredentialState.REVOKED])
async def test_a_certificate_that_has_ended(registry: SqliteRegistry, state: CredentialState) -> None:
    held = await holding(registry, certificate(state=state))
    assert (await refusal(registry, shows(held))).code == f"certificate-{state}"
    entry = (await last_row(registry)).entry
    assert (entry.actor, entry.detail) == ("device cam-7", {"serial": held.serial})


@pytest.mark.parametrize("offset", [timedelta(days=-2), timedelta(days=1), timedelta(days=400)])
async def test_a_certificate_outside_its_validity(registry: SqliteRegistry, offset: timedelta) -> None:
    held = await holding(registry, certificate())
    assert (await refusal(registry, shows(held), now=NOW + offset)).code == "certificate-expired"


@pytest.mark.parametrize("state", [DeviceState.SUSPENDED, DeviceState.REVOKED, DeviceState.RETIRED])
async def test_a_device_out_of_service(registry: SqliteRegistry, state: DeviceState) -> None:
    held = await holding(registry, certificate())
    await write(registry, MoveDevice(CAM, frozenset({DeviceState.ACTIVE}), state))
    assert (await refusal(registry, shows(held))).code == f"device-{state}"


async def test_a_device_that_is_only_registered(registry: SqliteRegistry) -> None:
    await write(registry, Insert(Device(DeviceId("new"), MODEL.name, DeviceState.REGISTERED, NOW)))
    held = await holding(registry, certificate("new"))
    assert (await refusal(registry, shows(held), "new")).code == "device-registered"


@pytest.mark.parametrize("client_id", ["cam-8", "CAM-7", "", "cam-7 ", "#", "+", "cam-7/x", "x" * 5000, "a\nb"])
async def test_another_client_id(registry: SqliteRegistry, client_id: str) -> None:
    held = await holding(registry, certificate())
    assert (await refusal(registry, shows(held), client_id)).code == "client-id-mismatch"
    named = {"cam-8": "device cam-8", "CAM-7": "device CAM-7", "cam-7/x": "device cam-7"}  # what is no id is not shown
    assert (await last_row(registry)).entry.subject == named.get(client_id, "device ?")


async def test_a_client_id_that_is_assigned(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate())
    assert (await admit(registry, shows(held), None, NOW)).device.id == CAM
    await revocation.suspend(registry, CAM, act=Act("operator", NOW))
    with pytest.raises(Refused) as caught:
        await admit(registry, shows(held), None, NOW)
    assert caught.value.code == "device-suspended"
    assert (await last_row(registry)).entry.subject == "device ?"


async def test_a_station_is_no_device(registry: SqliteRegistry) -> None:
    await write(registry, Insert(Station("st1", (MODEL.name,), NOW)))
    held = await holding(registry, certificate("st1", kind=CredentialKind.STATION))
    assert (await refusal(registry, shows(held), "st1")).code == "not-a-device"


async def test_a_will_must_be_allowed(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate())
    await admit(registry, shows(held), CAM, NOW, will=Will("devices/cam-7/up/gone", retain=False))
    with pytest.raises(Refused) as caught:
        await admit(registry, shows(held), CAM, NOW, will=Will("devices/cam-8/up/gone", retain=False))
    assert caught.value.code == "will-refused"
    row = (await last_row(registry)).entry
    assert (row.outcome, row.detail["topic"]) == ("will-refused", "devices/cam-8/up/gone")


async def test_a_will_has_no_higher_qos_than_its_model_allows(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate())
    await write(registry, SetModel(replace(MODEL, rules=ModelRules(mqtt=MqttRules(qos_max=1)))))
    await admit(registry, shows(held), CAM, NOW, will=Will("devices/cam-7/up/gone", False, qos=1))
    with pytest.raises(Refused) as caught:
        await admit(registry, shows(held), CAM, NOW, will=Will("devices/cam-7/up/gone", False, qos=2))
    assert caught.value.code == "will-qos"


async def test_a_will_may_ask_for_a_response_where_its_device_may_subscribe(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate())
    will = Will("devices/cam-7/up/gone", False, "devices/cam-7/down/r")
    await admit(registry, shows(held), CAM, NOW, will=will)
    elsewhere = Will(will.topic, will.retain, "devices/cam-8/down/r")
    with pytest.raises(Refused) as caught:
        await admit(registry, shows(held), CAM, NOW, will=elsewhere)
    assert caught.value.code == "will-response"
    assert (await last_row(registry)).entry.outcome == "will-response"
    unchecked = replace(MODEL, rules=ModelRules(mqtt=MqttRules(check_response_topic=False)))
    await write(registry, SetModel(unchecked))
    assert (await admit(registry, shows(held), CAM, NOW, will=elsewhere)).rules == unchecked.rules.mqtt


async def test_a_will_that_may_not_be_retained_uses_up_nothing(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate(state=CredentialState.ISSUED))
    with pytest.raises(Refused) as caught:
        await admit(registry, shows(held), CAM, NOW, will=Will("devices/cam-7/up/gone", retain=True))
    assert caught.value.code == "will-retain"
    assert (await last_row(registry)).entry.outcome == "will-retain"
    assert [c.state for c in await registry.credentials(CAM)] == [CredentialState.ISSUED]


async def test_a_will_may_be_retained_where_the_model_allows_it(registry: SqliteRegistry) -> None:
    model = Model("logger", retain=True)
    await write(registry, Insert(model), Insert(Device(DeviceId("log-1"), "logger", DeviceState.ACTIVE, NOW)))
    held = await holding(registry, certificate("log-1"))
    admission = await admit(registry, shows(held), "log-1", NOW, will=Will("devices/log-1/up/gone", retain=True))
    assert admission.policy.retain


async def test_first_use_ends_what_was_issued_before(registry: SqliteRegistry) -> None:
    used = await holding(registry, certificate())
    never_used = await holding(registry, certificate(state=CredentialState.ISSUED))
    gone = await holding(registry, certificate(state=CredentialState.REVOKED))
    fresh = await holding(registry, certificate(state=CredentialState.ISSUED))
    later = await holding(registry, certificate(state=CredentialState.ISSUED))
    seq = await registry.last_event()

    await admit(registry, shows(fresh), CAM, NOW)

    states = {c.fingerprint: c.state for c in await registry.credentials(CAM)}
    assert states == {
        used.fingerprint: CredentialState.SUPERSEDED,
        never_used.fingerprint: CredentialState.SUPERSEDED,
        gone.fingerprint: CredentialState.REVOKED,
        fresh.fingerprint: CredentialState.ACTIVE,
        later.fingerprint: CredentialState.ISSUED,
    }
    entry = (await last_row(registry)).entry
    assert (entry.action, entry.outcome, entry.address) == (FIRST_USE, "ok", "192.0.2.9")
    assert entry.detail == {"serial": fresh.serial, "superseded": f"{used.serial} {never_used.serial}"}
    heard: list[Event] = []
    async for event in registry.follow(seq):
        heard.append(replace(event, seq=0))
        if len(heard) == 2:
            break
    assert heard == [Event(EventKind.CREDENTIAL_ENDED, CAM, c.fingerprint.hex()) for c in (used, never_used)]
    assert await registry.last_event() == seq + 2
    assert (await refusal(registry, shows(used))).code == "certificate-superseded"


async def test_of_several_connections_at_once_one_is_the_first_use(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate(state=CredentialState.ISSUED))
    await asyncio.gather(*(admit(registry, shows(held), CAM, NOW) for _ in range(5)))
    rows = [row for row in await registry.audit() if row.entry.action == FIRST_USE]
    assert len(rows) == 1


async def test_the_first_use_of_a_certificate_that_many_were_issued_after(registry: SqliteRegistry) -> None:
    held = [await holding(registry, certificate(state=CredentialState.ISSUED)) for _ in range(18)]
    seq = await registry.last_event()
    admission = await admit(registry, shows(held[0]), CAM, NOW)
    assert admission.credential.fingerprint == held[0].fingerprint
    assert (await last_row(registry)).entry.detail == {"serial": held[0].serial, "superseded": ""}
    assert await registry.last_event() == seq  # none of the others has ended
    states = [c.state for c in await registry.credentials(CAM)]
    assert states == [CredentialState.ACTIVE] + [CredentialState.ISSUED] * 17


def earned(right: str, state: CredentialState = CredentialState.ISSUED) -> Credential:
    return replace(certificate(state=state), grant=right)


def device_token(name: str, *, takes_over: bool, device: DeviceId | None = CAM) -> Token:
    model, end = None if device else MODEL.name, NOW + timedelta(hours=1)
    return Token(name, bytes(32), device, model, 1, 1, NOW, end, takes_over=takes_over)


async def test_first_use_ends_later_ones_whose_right_is_for_new_devices_only(registry: SqliteRegistry) -> None:
    await write(
        registry,
        Insert(device_token("factory", takes_over=False)),
        Insert(device_token("operator", takes_over=True)),
        Insert(device_token("model", takes_over=True, device=None)),
    )
    used = await holding(registry, earned("station line-1"))
    rights = ["station line-1", "token factory", "claim batch", "request r1", "manifest cam-7", "token model"]
    ended = [await holding(registry, earned(right)) for right in rights]
    again = await holding(registry, replace(earned("station line-1"), key_sha256=used.key_sha256))
    kept = [await holding(registry, earned(right)) for right in ("token operator", "certificate 5d", "idevid acme 1")]
    seq = await registry.last_event()

    await admit(registry, shows(used), CAM, NOW)

    for each in ended:
        assert (await refusal(registry, shows(each))).code == "certificate-superseded"
    states = {c.fingerprint: c.state for c in await registry.credentials(CAM)}
    assert {states[c.fingerprint] for c in (again, *kept)} == {CredentialState.ISSUED}
    assert await registry.last_event() == seq + len(ended)
    for each in (again, *kept):
        await admit(registry, shows(each), CAM, NOW)


@pytest.mark.parametrize(
    ("right", "code"),
    [
        ("station line-1", "certificate-ended"),
        ("manifest cam-7", "certificate-ended"),
        ("a-new-path x", "certificate-ended"),
        ("", "certificate-ended"),
        ("token unknown", ""),
        ("idevid acme 1", ""),
        ("certificate 5d", ""),
    ],
)
async def test_what_was_issued_while_another_came_into_use_supersedes_it_by_right_only(
    registry: SqliteRegistry, right: str, code: str
) -> None:
    in_use = await holding(registry, certificate())
    late = await holding(registry, earned(right))
    if not code:
        await admit(registry, shows(late), CAM, NOW)
        return
    assert (await refusal(registry, shows(late))).code == code
    await admit(registry, shows(in_use), CAM, NOW)


class Raced:
    """A registry in which something happens right after the question whose certificate it is."""

    def __init__(self, registry: SqliteRegistry, error: FleetError | None = None) -> None:
        self._registry = registry
        self._error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self._registry, name)

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        facts = await self._registry.holder_facts(fingerprint)
        if facts is not None and facts.credential.state is CredentialState.ISSUED:
            await write(self._registry, RevokeCredentials(CredentialKind.DEVICE, CAM))
        return facts

    async def commit(self, change: Change) -> None:
        if self._error is not None:
            raise self._error
        await self._registry.commit(change)


async def test_a_revocation_that_comes_between(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate(state=CredentialState.ISSUED))
    with pytest.raises(Refused) as caught:
        await admit(Raced(registry), shows(held), CAM, NOW)  # type: ignore[arg-type]
    assert caught.value.code == "certificate-ended"
    assert (await last_row(registry)).entry.outcome == "certificate-ended"


async def test_a_refusal_stands_when_its_row_cannot_be_written(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate(state=CredentialState.REVOKED))
    full = Raced(registry, Unavailable("disk-full", "The disk is full."))
    with pytest.raises(Refused) as caught:
        await admit(full, shows(held), CAM, NOW)  # type: ignore[arg-type]
    assert caught.value.code == "certificate-revoked"
    assert "disk" in str(caught.value.__notes__)


async def test_nobody_is_admitted_when_a_first_use_cannot_be_written(registry: SqliteRegistry) -> None:
    await holding(registry, certificate())
    held = await holding(registry, replace(certificate(), state=CredentialState.ISSUED))

    class Full(Raced):
        async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
            return await self._registry.holder_facts(fingerprint)

    with pytest.raises(Unavailable):
        await admit(Full(registry, Unavailable("disk-full", "Full.")), shows(held), CAM, NOW)  # type: ignore[arg-type]


async def test_suspended_and_resumed(registry: SqliteRegistry) -> None:
    held = await holding(registry, certificate())
    await revocation.suspend(registry, CAM, act=Act("operator", NOW))
    assert (await refusal(registry, shows(held))).code == "device-suspended"
    await revocation.resume(registry, CAM, act=Act("operator", NOW))
    assert (await admit(registry, shows(held), CAM, NOW)).device.state is DeviceState.ACTIVE
