"""Suspending, resuming, revoking, retiring: each move, what goes with it, and the moves that do not exist."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station
from fleet.domain.crl import CrlReason
from fleet.domain.device import NEXT, Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict, FleetError, Invalid, NotFound
from fleet.domain.writes import AddCredential, Insert, MoveDevice, Write
from fleet.services import inventory, revocation
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CAM_7 = DeviceId("cam-7")
ANY = frozenset(DeviceState)
Move = Callable[..., Awaitable[Device]]
MOVES: dict[Move, DeviceState] = {
    revocation.suspend: DeviceState.SUSPENDED,
    revocation.revoke: DeviceState.REVOKED,
    revocation.retire: DeviceState.RETIRED,
}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    """With the registered device cam-7, which has no certificate yet."""
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await inventory.add_model(opened, Model("cam2"), act=Act("operator", NOW))
    await inventory.add_device(opened, CAM_7, "cam2", act=Act("operator", NOW))
    yield opened
    await opened.close()


def credential(holder: str, n: int, kind: CredentialKind = CredentialKind.DEVICE) -> Credential:
    der = f"{holder} {n} {kind}".encode()
    digest = hashlib.sha256(der).digest()
    ending = NOW + timedelta(days=1)
    serial = f"{int.from_bytes(digest[:20]):x}"
    return Credential(digest, serial, kind, holder, digest, NOW, ending, CredentialState.ISSUED, NOW, der)


async def give(registry: SqliteRegistry, *credentials: Credential, state: DeviceState = DeviceState.ACTIVE) -> None:
    entry = AuditEntry(NOW, "test", "prepare", "", "ok")
    writes: tuple[Write, ...] = (*map(AddCredential, credentials), MoveDevice(CAM_7, ANY, state))
    await registry.commit(Change(entry, writes))


async def state(registry: SqliteRegistry) -> DeviceState:
    device = await registry.device(CAM_7)
    assert device is not None
    return device.state


async def events(registry: SqliteRegistry, after: int) -> list[tuple[str, str, str]]:
    count = await registry.last_event() - after
    feed = registry.follow(after)
    found: list[Event] = [await anext(feed) for _ in range(count)]
    return [(e.kind, e.subject, e.detail) for e in found]


async def audited(registry: SqliteRegistry) -> tuple[str, str, str, dict[str, str]]:
    (row,) = await registry.audit(after=await registry.last_audit() - 1)
    assert (row.entry.at, row.entry.actor) == (NOW, "operator")
    return row.entry.action, row.entry.subject, row.entry.outcome, row.entry.detail


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("start", DeviceState)
async def test_every_move_from_every_state(registry: SqliteRegistry, move: Move, start: DeviceState) -> None:
    await give(registry, credential(CAM_7, 1), state=start)
    to = MOVES[move]
    if to in NEXT[start]:
        assert (await move(registry, CAM_7, act=Act("operator", NOW))).state is to
        assert await state(registry) is to
        return
    before = await registry.last_audit()
    with pytest.raises(Conflict) as caught:
        await move(registry, CAM_7, act=Act("operator", NOW))
    assert caught.value.code == f"device-{start}"
    assert str(start) in caught.value.message
    assert (await state(registry), await registry.last_audit()) == (start, before)


async def test_suspend_and_resume_leave_the_certificates(registry: SqliteRegistry) -> None:
    await give(registry, credential(CAM_7, 1))
    before = await registry.last_event()
    await revocation.suspend(registry, CAM_7, act=Act("operator", NOW), reason="odd traffic")
    detail = {"reason": "odd traffic", "before": "state=active", "after": "state=suspended"}
    assert await audited(registry) == ("device.suspend", "device cam-7", "ok", detail)
    resumed = await revocation.resume(registry, CAM_7, act=Act("operator", NOW))
    detail = {"before": "state=suspended", "after": "state=active"}
    assert await audited(registry) == ("device.resume", "device cam-7", "ok", detail)
    assert resumed.state is await state(registry) is DeviceState.ACTIVE
    assert [c.state for c in await registry.credentials(CAM_7)] == [CredentialState.ISSUED]
    assert await events(registry, before) == [
        (EventKind.DEVICE_STATE, CAM_7, "suspended"),
        (EventKind.DEVICE_STATE, CAM_7, "active"),
    ]


async def test_a_device_that_never_enrolled_is_resumed_as_registered(registry: SqliteRegistry) -> None:
    await give(registry, credential(CAM_7, 1, CredentialKind.STATION), state=DeviceState.REGISTERED)
    await revocation.suspend(registry, CAM_7, act=Act("operator", NOW))
    await revocation.resume(registry, CAM_7, act=Act("operator", NOW))
    assert await state(registry) is DeviceState.REGISTERED


@pytest.mark.parametrize("start", [s for s in DeviceState if s is not DeviceState.SUSPENDED])
async def test_resume_answers_a_suspension_and_nothing_else(registry: SqliteRegistry, start: DeviceState) -> None:
    await give(registry, state=start)
    with pytest.raises(Conflict, match="not suspended"):
        await revocation.resume(registry, CAM_7, act=Act("operator", NOW))
    assert await state(registry) is start


@pytest.mark.parametrize("move", [revocation.revoke, revocation.retire])
async def test_what_is_out_for_good_takes_its_certificates_along(registry: SqliteRegistry, move: Move) -> None:
    own = [credential(CAM_7, n) for n in range(3)]
    namesake, other = credential(CAM_7, 9, CredentialKind.STATION), credential("cam-8", 1)
    await give(registry, *own, namesake, other)
    before = await registry.last_event()
    await move(registry, CAM_7, act=Act("operator", NOW), reason="lost")
    found = {c.fingerprint: c.state for c in await registry.credentials(CAM_7)}
    assert {found[c.fingerprint] for c in own} == {CredentialState.REVOKED}
    assert found[namesake.fingerprint] is CredentialState.ISSUED
    assert [c.state for c in await registry.credentials("cam-8")] == [CredentialState.ISSUED]
    assert await events(registry, before) == [
        (EventKind.DEVICE_STATE, CAM_7, str(MOVES[move])),
        (EventKind.CREDENTIAL_ENDED, CAM_7, ""),
    ]
    assert (await audited(registry))[3] == {
        "reason": "lost",
        "before": "state=active",
        "after": f"state={MOVES[move]}",
    }


@pytest.mark.parametrize("move", [revocation.revoke, revocation.retire])
async def test_that_a_key_was_compromised_is_added_once(registry: SqliteRegistry, move: Move) -> None:
    await give(registry, credential(CAM_7, 1), credential(CAM_7, 2))
    before = await move(registry, CAM_7, act=Act("operator", NOW))
    last = await registry.last_event()
    act, compromised = Act("operator", NOW), CrlReason.KEY_COMPROMISE
    with pytest.raises(Conflict):
        await revocation.revoke(registry, CAM_7, act=act, crl_reason=CrlReason.SUPERSEDED)
    assert await revocation.revoke(registry, CAM_7, act=act, reason="dumped", crl_reason=compromised) == before
    assert await registry.device(CAM_7) == before
    detail = {"reason": "dumped", "crl_reason": "keyCompromise"}
    assert await audited(registry) == ("device.revoke", "device cam-7", "ok", detail)
    assert await events(registry, last) == [(EventKind.CREDENTIAL_ENDED, CAM_7, "")]
    assert [each.revocation.reason for each in await registry.pending_revocations(9)] == [compromised] * 2
    with pytest.raises(Conflict):
        await revocation.revoke(registry, CAM_7, act=act, crl_reason=compromised)
    again = credential(CAM_7, 1)
    for holder in (CAM_7, "cam-8"):
        with pytest.raises(Conflict, match="revoked"):
            await give(registry, structs.replace(again, holder=holder, fingerprint=bytes(32), serial="ff"))


async def test_of_two_operators_at_once_one_is_told(registry: SqliteRegistry) -> None:
    await give(registry, credential(CAM_7, 1))
    outcomes = await asyncio.gather(
        *(revocation.revoke(registry, CAM_7, act=Act("operator", NOW)) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(o, Device) for o in outcomes) == 1
    assert sum(isinstance(o, Conflict) for o in outcomes) == 4


async def test_a_device_that_enrolls_meanwhile_is_revoked_all_the_same(registry: SqliteRegistry) -> None:
    """The move is from every state that may lead there: looking at it and moving it are two moments."""

    class Meanwhile(SqliteRegistry):
        async def commit(self, change: Change) -> None:
            await give(registry, credential(CAM_7, 1))
            await super().commit(change)

    slow = await Meanwhile.open(registry.path)
    await revocation.revoke(slow, CAM_7, act=Act("operator", NOW))
    await slow.close()
    assert await state(registry) is DeviceState.REVOKED
    assert [c.state for c in await registry.credentials(CAM_7)] == [CredentialState.REVOKED]


@pytest.mark.parametrize("move", [*MOVES, revocation.resume])
async def test_a_device_that_is_not_there(registry: SqliteRegistry, move: Move) -> None:
    with pytest.raises(NotFound) as caught:
        await move(registry, "cam-8", act=Act("operator", NOW))
    assert caught.value.code == "no-such-device"
    with pytest.raises(Invalid):
        await move(registry, "a/b", act=Act("operator", NOW))


@pytest.mark.parametrize("reason", ["a\nb", "x" * 201, "\x1b[2J"])
async def test_a_reason_is_one_plain_line(registry: SqliteRegistry, reason: str) -> None:
    for act in (revocation.suspend, revocation.revoke):
        with pytest.raises(FleetError) as caught:
            await act(registry, CAM_7, act=Act("operator", NOW), reason=reason)
        assert caught.value.code == "bad-reason"
    assert await state(registry) is DeviceState.REGISTERED


async def test_a_station(registry: SqliteRegistry) -> None:
    added = Insert(Station(CAM_7, ("cam2",), NOW))
    await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (added,)))
    own, device = credential(CAM_7, 1, CredentialKind.STATION), credential(CAM_7, 2)
    await give(registry, own, device)
    before = await registry.last_event()
    await revocation.revoke_station(registry, CAM_7, act=Act("operator", NOW), reason="sold")
    found = {c.fingerprint: c.state for c in await registry.credentials(CAM_7)}
    assert found == {own.fingerprint: CredentialState.REVOKED, device.fingerprint: CredentialState.ISSUED}
    assert await state(registry) is DeviceState.ACTIVE
    assert await events(registry, before) == [(EventKind.CREDENTIAL_ENDED, CAM_7, own.fingerprint.hex())]
    assert await audited(registry) == ("station.revoke", "station cam-7", "ok", {"reason": "sold"})
    act = Act("operator", NOW)
    with pytest.raises(Conflict):
        await revocation.revoke_station(registry, CAM_7, act=act)
    await revocation.revoke_station(registry, CAM_7, act=act, crl_reason=CrlReason.KEY_COMPROMISE)
    assert [(r.revocation.serial, r.revocation.reason) for r in await registry.pending_revocations(9)] == [
        (own.serial, 1)
    ]
    assert await events(registry, before + 1) == [(EventKind.CREDENTIAL_ENDED, CAM_7, own.fingerprint.hex())]
    with pytest.raises(Conflict):
        await revocation.revoke_station(registry, CAM_7, act=act, crl_reason=CrlReason.KEY_COMPROMISE)
    with pytest.raises(NotFound):
        await revocation.revoke_station(registry, "st9", act=Act("operator", NOW))


async def test_one_superseded_certificate_of_a_device_that_goes_on(registry: SqliteRegistry) -> None:
    old, used = credential(CAM_7, 1), credential(CAM_7, 2)
    await give(registry, old, used)
    before = await registry.last_event()
    act = Act("operator", NOW)
    await revocation.revoke_certificate(registry, old, act=act, reason="leaked", crl_reason=CrlReason.SUPERSEDED)
    found = {c.serial: c.state for c in await registry.credentials(CAM_7)}
    assert found == {old.serial: CredentialState.REVOKED, used.serial: CredentialState.ISSUED}
    assert await state(registry) is DeviceState.ACTIVE
    assert await events(registry, before) == [(EventKind.CREDENTIAL_ENDED, CAM_7, old.fingerprint.hex())]
    detail = {"reason": "leaked", "serial": old.serial, "crl_reason": "superseded"}
    assert await audited(registry) == ("certificate.revoke", "device cam-7", "ok", detail)
    waiting = [(r.revocation.serial, r.revocation.reason) for r in await registry.pending_revocations(9)]
    assert waiting == [(old.serial, CrlReason.SUPERSEDED)]
    [revoked] = [c for c in await registry.credentials(CAM_7) if c.serial == old.serial]
    for reason in (CrlReason.UNSPECIFIED, CrlReason.SUPERSEDED):
        with pytest.raises(Conflict) as caught:
            await revocation.revoke_certificate(registry, revoked, act=act, crl_reason=reason)
        assert caught.value.code == "certificate-revoked"
    await revocation.revoke_certificate(registry, revoked, act=act, crl_reason=CrlReason.KEY_COMPROMISE)
    with pytest.raises(Conflict):
        await revocation.revoke_certificate(registry, revoked, act=act, crl_reason=CrlReason.KEY_COMPROMISE)
    known = await registry.revocation(old.serial)
    assert known is not None
    assert known.reason == CrlReason.KEY_COMPROMISE


async def test_a_compromised_key_takes_its_other_certificates_with_it(registry: SqliteRegistry) -> None:
    first, other = credential(CAM_7, 1), credential(CAM_7, 3)
    successor = structs.replace(credential(CAM_7, 2), key_sha256=first.key_sha256)
    await give(registry, first, successor, other)
    await revocation.revoke_certificate(registry, first, act=Act("operator", NOW), crl_reason=CrlReason.KEY_COMPROMISE)
    found = {c.serial for c in await registry.credentials(CAM_7) if c.state is CredentialState.REVOKED}
    assert found == {first.serial, successor.serial}
    with pytest.raises(Conflict) as caught:  # the key enrolls no more
        await give(registry, structs.replace(credential(CAM_7, 4), key_sha256=first.key_sha256))
    assert caught.value.code == "key-taken"


@pytest.mark.parametrize("renewals", [1, revocation.LOOKS_MAX])
async def test_a_renewal_with_a_compromised_key_while_it_is_revoked(
    registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch, renewals: int
) -> None:
    first = credential(CAM_7, 1)
    await give(registry, first)
    before = await registry.last_event()
    look, given = registry.credentials, [first]

    async def renewed_behind_the_look(holder: str) -> list[Credential]:
        found = await look(holder)
        if len(given) <= renewals:
            given.append(structs.replace(credential(CAM_7, len(given) + 1), key_sha256=first.key_sha256))
            await give(registry, given[-1])
        return found

    monkeypatch.setattr(registry, "credentials", renewed_behind_the_look)
    act, why = Act("operator", NOW), CrlReason.KEY_COMPROMISE
    if renewals == revocation.LOOKS_MAX:
        with pytest.raises(Conflict) as caught:
            await revocation.revoke_certificate(registry, first, act=act, crl_reason=why)
        assert caught.value.code == "changed-meanwhile"
        return
    await revocation.revoke_certificate(registry, first, act=act, crl_reason=why)
    assert {c.state for c in await look(CAM_7)} == {CredentialState.REVOKED}
    assert await events(registry, before) == [
        (EventKind.CREDENTIAL_ENDED, CAM_7, each.fingerprint.hex()) for each in given
    ]
