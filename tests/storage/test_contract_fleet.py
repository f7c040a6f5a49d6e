"""What every registry promises of tags, filters, expiry, operators and idempotency, whatever engine it stands on."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.access import Operator, Role
from fleet.domain.credential import Credential, CredentialKind, CredentialState, KeyUse
from fleet.domain.device import EVERY_DEVICE, Device, DeviceFilter, DeviceId, DeviceState, Model, Place, place_of
from fleet.domain.errors import Conflict
from fleet.domain.idempotency import Answer
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.writes import (
    AddCredential,
    DropAnswers,
    DropCredentials,
    EndCredentials,
    Insert,
    MoveDevice,
    TagDevice,
)
from tests.storage.samples import NOW, change, credential, device
from tests.storage.test_contract import refused

CAM_7 = DeviceId("cam-7")
DAY = timedelta(days=1)


async def pages(registry: Registry, where: DeviceFilter, limit: int = 2) -> str:
    """Every id that `where` means, read page by page; the count must agree."""
    found: list[Device] = []
    after = Place()
    while page := await registry.devices(where, after=after, limit=limit):
        found += page
        after = place_of(page[-1], where)
    assert await registry.count_devices(where) == len(found)
    return " ".join(d.id for d in found)


class TestTags:
    async def test_they_come_back_and_are_changed_whole(self, registry: Registry) -> None:
        tagged = replace(device("cam-7"), tags=(("lot", "L7"), ("site", "Köln ö\n")), groups=("canary", "pilot"))
        await registry.commit(change(Insert(tagged)))
        assert await registry.device("cam-7") == tagged
        await registry.commit(change(TagDevice(CAM_7, (("lot", "L8"),), (), revision=1)))
        assert await registry.device("cam-7") == replace(tagged, tags=(("lot", "L8"),), groups=(), revision=2)
        assert await pages(registry, DeviceFilter(tags=(("lot", "L7"),))) == ""
        assert await pages(registry, DeviceFilter(tags=(("lot", "L8"),))) == "cam-7"
        assert await pages(registry, DeviceFilter(group="pilot")) == ""

    async def test_not_over_somebody_elses_change(self, registry: Registry) -> None:
        await registry.commit(change(Insert(device("cam-7"))))
        await registry.commit(change(TagDevice(CAM_7, (("lot", "L7"),), (), revision=1)))
        assert await refused(registry, TagDevice(CAM_7, (), (), revision=1)) == "changed-meanwhile"
        assert await refused(registry, TagDevice(DeviceId("x"), (), (), revision=1)) == "no-such-device"
        assert await pages(registry, DeviceFilter(tags=(("lot", "L7"),))) == "cam-7"


class TestEnding:
    async def test_the_usable_ones_named_and_no_others(self, registry: Registry) -> None:
        states = (CredentialState.ISSUED, CredentialState.ACTIVE, CredentialState.REVOKED)
        named, other = [credential("cam-7", state) for state in states], credential("cam-7")
        await registry.commit(change(*map(AddCredential, (*named, other))))
        await registry.commit(change(EndCredentials((bytes(32), *(c.fingerprint for c in named)))))
        found = [c.state for c in await registry.credentials("cam-7")]
        assert found == [CredentialState.SUPERSEDED] * 2 + [CredentialState.REVOKED, CredentialState.ISSUED]


class TestFilters:
    @pytest.fixture
    async def filled(self, registry: Registry) -> Registry:
        """Ten devices in no order; the even ones of lot L0, every third in the group pilot."""
        await registry.commit(change(Insert(Model("b"))))
        for n in (3, 0, 9, 1, 8, 2, 7, 4, 6, 5):
            one = replace(
                device(f"d{n}", DeviceState.SUSPENDED if n > 7 else DeviceState.ACTIVE, "b" if n > 4 else "cam2"),
                tags=(("lot", f"L{n % 2}"), ("site", "x")),
                groups=("pilot",) if n % 3 == 0 else (),
                expires_at=None if n == 5 else NOW + DAY * (10 - n),
            )
            await registry.commit(change(Insert(one)))
        return registry

    @pytest.mark.parametrize(
        ("where", "ids"),
        [
            (EVERY_DEVICE, "d0 d1 d2 d3 d4 d5 d6 d7 d8 d9"),
            (DeviceFilter(model="b"), "d5 d6 d7 d8 d9"),
            (DeviceFilter(state=DeviceState.SUSPENDED), "d8 d9"),
            (DeviceFilter(tags=(("lot", "L0"),)), "d0 d2 d4 d6 d8"),
            (DeviceFilter(tags=(("lot", "L0"), ("site", "x")), model="b"), "d6 d8"),
            (DeviceFilter(tags=(("lot", "L0"), ("site", "y"))), ""),
            (DeviceFilter(group="pilot"), "d0 d3 d6 d9"),
            (DeviceFilter(group="pilot", tags=(("lot", "L1"),), state=DeviceState.ACTIVE), "d3"),
            (DeviceFilter(expires_before=NOW + DAY * 4), "d9 d8 d7"),
            (DeviceFilter(expires_before=NOW + DAY * 99), "d9 d8 d7 d6 d4 d3 d2 d1 d0"),
            (DeviceFilter(expires_before=NOW + DAY * 99, group="pilot", model="cam2"), "d3 d0"),
            (DeviceFilter(expires_before=NOW), ""),
        ],
    )
    async def test_each_finds_its_own_in_order(self, filled: Registry, where: DeviceFilter, ids: str) -> None:
        assert await pages(filled, where) == ids
        assert await pages(filled, where, limit=99) == ids

    async def test_who_is_out_for_good_does_not_expire(self, filled: Registry) -> None:
        move = MoveDevice(DeviceId("d9"), frozenset({DeviceState.SUSPENDED}), DeviceState.REVOKED)
        await filled.commit(change(move))
        assert await pages(filled, DeviceFilter(expires_before=NOW + DAY * 4)) == "d8 d7"

    async def test_devices_of_one_instant_are_paged_by_id(self, registry: Registry) -> None:
        for n in range(5):
            await registry.commit(change(Insert(replace(device(f"d{n}"), expires_at=NOW))))
        assert await pages(registry, DeviceFilter(expires_before=NOW + DAY)) == "d0 d1 d2 d3 d4"

    async def test_ids_are_ordered_by_their_octets(self, registry: Registry) -> None:
        ids = ("b", "a", "B", "a-", "a.b", "a_b", "aB", "10", "9")
        for n, id_ in enumerate(ids):  # ids differ by letter case alone; hardware serials may not
            await registry.commit(change(Insert(replace(device(id_), hardware_serial=f"SN {n}"))))
        assert await pages(registry, EVERY_DEVICE) == " ".join(sorted(ids))

    async def test_forecast_by_week(self, registry: Registry) -> None:
        monday = datetime(2026, 3, 2, tzinfo=UTC)
        for n, at in enumerate(
            (monday, monday + 7 * DAY - timedelta(microseconds=1), monday + 7 * DAY, monday + 30 * DAY)
        ):
            await registry.commit(change(Insert(replace(device(f"d{n}"), expires_at=at))))
        await registry.commit(change(Insert(device("none"))))
        gone = replace(device("gone", DeviceState.RETIRED), expires_at=monday)
        await registry.commit(change(Insert(gone)))
        assert await registry.expiries(monday + 20 * DAY) == [(monday, 2), (monday + 7 * DAY, 1)]
        assert await registry.expiries(monday) == []


class TestRenewals:
    async def test_who_has_renewed_since(self, registry: Registry) -> None:
        old, new = NOW - 2 * DAY, NOW
        held = {
            "d0": ((old, CredentialState.ACTIVE),),
            "d1": ((old, CredentialState.SUPERSEDED), (new, CredentialState.ACTIVE)),
            "d2": ((old, CredentialState.ACTIVE), (new, CredentialState.ISSUED)),
            "d3": ((new, CredentialState.REVOKED),),
            "d4": (),
        }
        for name, times in held.items():
            await registry.commit(change(Insert(device(name))))
            for at, state in times:
                await registry.commit(change(AddCredential(replace(credential(name, state), issued_at=at))))
        await registry.commit(change(Insert(device("gone", DeviceState.SUSPENDED))))
        await registry.commit(change(AddCredential(replace(credential("gone"), issued_at=old))))
        model = device("d0").model
        assert await registry.count_renewals(model, NOW - DAY) == (3, 2)
        assert await registry.count_renewals(model, NOW) == (3, 2)
        assert await registry.count_renewals(model, old) == (3, 3)
        assert await registry.count_renewals("nonesuch", NOW) == (0, 0)


def place(last: Credential) -> tuple[datetime, bytes]:
    return last.not_after, last.fingerprint


class TestCredentials:
    async def test_by_serial(self, registry: Registry) -> None:
        made = credential("cam-7", serial="abc")
        await registry.commit(change(AddCredential(made)))
        assert await registry.credential("abc") == made
        for serial in ("abd", "", "xyz", "a" * 99, "-1"):
            assert await registry.credential(serial) is None

    async def test_by_expiry_from_any_position_whether_expired_or_not(self, registry: Registry) -> None:
        made = [replace(credential("cam-7"), not_after=NOW + DAY * n) for n in range(3)]
        await registry.commit(change(*map(AddCredential, made)))
        assert await registry.credentials_by_expiry(NOW + 9 * DAY, after=(NOW, b"\xff" * 32)) == made[1:]
        assert await registry.credentials_by_expiry(NOW + 9 * DAY, after=(NOW, b"")) == made
        assert await registry.credentials_by_expiry(NOW + 2 * DAY, after=(NOW, made[0].fingerprint)) == [made[1]]

    async def test_pages_of_what_has_expired_at_one_moment(self, registry: Registry) -> None:
        made = [replace(credential("cam-7"), not_after=NOW + DAY * (n // 4)) for n in range(8)]
        await registry.commit(change(*map(AddCredential, made)))
        found: list[Credential] = []
        while page := await registry.credentials_by_expiry(NOW + 9 * DAY, 3, after=place(found[-1]) if found else None):
            found += page
        assert found == sorted(made, key=lambda c: (c.not_after, c.fingerprint))

    async def test_what_has_expired_is_forgotten_and_revoked_keys_stay_barred(self, registry: Registry) -> None:
        def made(holder: str, state: CredentialState, ends: timedelta) -> Credential:
            return replace(credential(holder, state), not_after=NOW + ends)

        old = made("cam-7", CredentialState.SUPERSEDED, 2 * DAY)
        older = made("cam-7", CredentialState.REVOKED, DAY)
        living = made("cam-8", CredentialState.REVOKED, 9 * DAY)
        for one in (old, older, living):
            await registry.commit(change(AddCredential(one)))
        assert await registry.credentials_by_expiry(NOW + 3 * DAY) == [older, old]
        assert await registry.credentials_by_expiry(NOW + 3 * DAY, limit=1) == [older]
        assert await registry.credentials_by_expiry(NOW + DAY) == []
        assert await registry.credentials_by_expiry(NOW + 3 * DAY, after=place(older)) == [old]
        assert await registry.credentials_by_expiry(NOW + 3 * DAY, after=place(old)) == []
        now = NOW + 3 * DAY
        drop = DropCredentials((older.fingerprint, living.fingerprint), now)
        assert await refused(registry, drop) == "credential-kept"
        await registry.commit(change(DropCredentials((older.fingerprint, old.fingerprint), now)))
        assert await registry.credentials("cam-7") == []
        again = replace(credential("cam-7"), key_sha256=older.key_sha256)
        assert await refused(registry, AddCredential(again)) == "key-taken"
        facts = await registry.enrollment_facts("cam-7", None, older.key_sha256)
        assert facts.key_uses == (KeyUse(CredentialKind.DEVICE, "cam-7", CredentialState.REVOKED),)
        await registry.commit(change(AddCredential(replace(credential("cam-9"), key_sha256=old.key_sha256))))


class TestOperators:
    async def test_they_come_back_and_their_certificates_name_them(self, registry: Registry) -> None:
        ann = Operator("ann", Role.VIEWER, NOW)
        bob = Operator("bob", Role.FACTORY, NOW, ("cam2", "b"))
        for one in (bob, ann):
            await registry.commit(change(Insert(one)))
        assert await registry.operators() == [ann, bob]
        assert await registry.operator("bob") == bob
        assert await registry.operator("x") is None
        assert await refused(registry, Insert(ann)) == "operator-exists"
        held = credential("bob", kind=CredentialKind.OPERATOR)
        await registry.commit(change(AddCredential(held)))
        assert await registry.holder_facts(held.fingerprint) == HolderFacts(held, None, None, None, bob)


class TestAnswers:
    async def test_a_key_is_used_once_by_each(self, registry: Registry) -> None:
        answer = Answer("operator ann", "k1", bytes(range(32)), 201, '{"id": "ö"}', NOW)
        await registry.commit(change(Insert(answer)))
        assert await registry.answer("operator ann", "k1") == answer
        assert await registry.answer("operator bob", "k1") is None
        with pytest.raises(Conflict, match="idempotency key"):
            await registry.commit(change(Insert(replace(answer, status=200))))
        await registry.commit(change(Insert(replace(answer, actor="operator bob", at=NOW + DAY))))
        await registry.commit(change(DropAnswers(NOW + DAY)))
        assert await registry.answer("operator ann", "k1") is None
        assert await registry.answer("operator bob", "k1") is not None
