"""What every registry promises, whatever engine it stands on: the contract of fleet.domain.ports.Registry."""

import asyncio
from datetime import timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.audit_log import sound_leaves
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind, CredentialState, KeyUse
from fleet.domain.crl import CrlReason
from fleet.domain.device import DeviceFilter, DeviceId, DeviceState, Model, Place, StateChange
from fleet.domain.errors import Conflict, FleetError, Unavailable
from fleet.domain.ports import EnrollmentFacts, HolderFacts, Registry
from fleet.domain.writes import (
    AddCredential,
    EndUnused,
    FirstUse,
    Insert,
    MarkUsed,
    MoveDevice,
    RevokeCredentials,
    RevokeSome,
    RevokeToken,
    SetModel,
    SpendToken,
    StillUsable,
    Write,
)
from fleet.storage.engines import Engine
from tests.storage.samples import MODEL, NOW, change, credential, device, entry, station, token

DEADLINE_SECONDS = 120.0
CAM_7 = DeviceId("cam-7")
SERVING = frozenset({DeviceState.REGISTERED, DeviceState.ACTIVE})
STATION = CredentialKind.STATION
NO_KEY = bytes(32)


async def states(registry: Registry, holder: str) -> list[CredentialState]:
    return [c.state for c in await registry.credentials(holder)]


async def refused(registry: Registry, *writes: Write) -> str:
    """The code of the Conflict that `writes` meet, after looking that nothing of them is left."""
    before = await registry.last_audit(), await registry.last_event()
    with pytest.raises(Conflict) as caught:
        await registry.commit(change(*writes, events=(Event("test", "x"),)))
    assert (await registry.last_audit(), await registry.last_event()) == before
    assert caught.value.message.endswith(".")
    return caught.value.code


class TestReads:
    async def test_every_value_comes_back_as_it_went_in(self, registry: Registry) -> None:
        cam, cert, tok, st = device("cam-7"), credential("cam-7"), token("t1", 3), station("st1")
        await registry.commit(change(Insert(cam), AddCredential(cert), Insert(tok), Insert(st)))
        assert await registry.model("cam2") == MODEL
        assert await registry.device("cam-7") == cam
        assert await registry.credentials("cam-7") == [cert]
        assert await registry.token("t1") == tok
        assert await registry.station("st1") == st

    async def test_what_is_not_there_is_none(self, registry: Registry) -> None:
        assert await registry.model("x") is None
        assert await registry.device("x") is None
        assert await registry.token("x") is None
        assert await registry.station("x") is None
        assert await registry.holder_facts(bytes(32)) is None
        assert await registry.credentials("x") == []
        assert await registry.enrollment_facts("x", "x", NO_KEY) == EnrollmentFacts(None, None, (), None)

    async def test_lists_are_in_their_order(self, registry: Registry) -> None:
        await registry.commit(change(Insert(Model("b")), Insert(station("s2")), Insert(station("s1"))))
        for number, name in enumerate(("t1", "t3", "t2")):
            await registry.commit(change(Insert(token(name, minutes=number // 2))))
        assert [m.name for m in await registry.models()] == ["b", "cam2"]
        assert [s.name for s in await registry.stations()] == ["s1", "s2"]
        # Newest first; of one time, the later commit first.
        assert [t.id for t in await registry.tokens()] == ["t2", "t3", "t1"]

    async def test_credentials_come_oldest_first_within_one_microsecond_too(self, registry: Registry) -> None:
        made = [credential("cam-7") for _ in range(20)]
        for one in made:
            await registry.commit(change(AddCredential(one)))
        assert await registry.credentials("cam-7") == made

    async def test_devices_are_paged_and_filtered(self, registry: Registry) -> None:
        await registry.commit(change(Insert(Model("b"))))
        for n in range(9):
            state = DeviceState.ACTIVE if n % 2 else DeviceState.REGISTERED
            await registry.commit(change(Insert(device(f"d{n}", state, "b" if n > 4 else "cam2"))))

        async def found(
            model: str | None = None, state: DeviceState | None = None, after: str = "", limit: int = 99
        ) -> str:
            where = DeviceFilter(model=model, state=state)
            listed = await registry.devices(where, after=Place(after), limit=limit)
            return " ".join(d.id for d in listed)

        assert await found() == "d0 d1 d2 d3 d4 d5 d6 d7 d8"
        assert await found(limit=2) == "d0 d1"
        assert await found(after="d1", limit=2) == "d2 d3"
        assert await found(after="d8") == ""
        assert await found(model="b") == "d5 d6 d7 d8"
        assert await found(state=DeviceState.ACTIVE) == "d1 d3 d5 d7"
        assert await found(model="b", state=DeviceState.ACTIVE, after="d5") == "d7"
        assert await found(limit=0) == ""

    async def test_enrollment_facts(self, registry: Registry) -> None:
        cam, cert, tok = device("cam-7"), credential("cam-7"), token("t1")
        namesake = credential("cam-7", kind=STATION)  # a station of the device's name is somebody else
        writes = (Insert(cam), AddCredential(cert), AddCredential(namesake), Insert(tok))
        await registry.commit(change(*writes))
        assert await registry.enrollment_facts("cam-7", "t1", NO_KEY) == EnrollmentFacts(cam, MODEL, (cert,), tok)
        assert await registry.enrollment_facts("cam-7", None, NO_KEY) == EnrollmentFacts(cam, MODEL, (cert,), None)
        # The device is unknown: the model is the token's.
        assert await registry.enrollment_facts("cam-8", "t1", NO_KEY) == EnrollmentFacts(None, MODEL, (), tok)
        assert await registry.enrollment_facts("cam-8", None, NO_KEY) == EnrollmentFacts(None, None, (), None)

    async def test_enrollment_facts_with_the_holder_of_a_certificate(self, registry: Registry) -> None:
        one, own = replace(station("s1"), models=(MODEL.name,)), credential("s1", kind=STATION)
        several, others = station("s2"), credential("s2", kind=STATION)
        writes = (Insert(Model("b")), Insert(one), AddCredential(own), Insert(several), AddCredential(others))
        await registry.commit(change(*writes, Insert(device("cam-7", model="b"))))
        found = await registry.enrollment_facts("cam-8", None, NO_KEY, certificate=own.fingerprint)
        assert found == EnrollmentFacts(None, MODEL, (), None, holder=await registry.holder_facts(own.fingerprint))
        found = await registry.enrollment_facts("cam-7", None, NO_KEY, certificate=own.fingerprint)
        assert (found.model, found.holder and found.holder.station) == (Model("b"), one)  # the device's goes before
        found = await registry.enrollment_facts("cam-8", None, NO_KEY, certificate=others.fingerprint)
        assert (found.model, found.holder and found.holder.station) == (None, several)
        found = await registry.enrollment_facts("cam-8", None, NO_KEY, certificate=bytes(32))
        assert found == EnrollmentFacts(None, None, (), None)

    async def test_enrollment_facts_asked_for_at_once_are_each_their_own(self, registry: Registry) -> None:
        one, own = replace(station("s1"), models=(MODEL.name,)), credential("s1", kind=STATION)
        cam, held, others = device("cam-7"), credential("cam-7"), credential("cam-9")
        await registry.commit(change(Insert(one), Insert(cam), *map(AddCredential, (own, held, others))))

        async def found() -> list[EnrollmentFacts]:
            asked = (
                ("cam-7", NO_KEY, own),
                ("new", NO_KEY, own),
                ("cam-8", others.key_sha256, own),
                ("new", NO_KEY, held),
            )
            reads = (registry.enrollment_facts(id_, None, key, certificate=c.fingerprint) for id_, key, c in asked)
            return await asyncio.gather(*reads)

        by_station = HolderFacts(own, station=one)
        use = KeyUse(others.kind, others.holder, others.state)
        assert await found() == [
            EnrollmentFacts(cam, MODEL, (held,), None, holder=by_station),
            EnrollmentFacts(None, MODEL, (), None, holder=by_station),
            EnrollmentFacts(None, MODEL, (), None, (use,), by_station),
            EnrollmentFacts(None, None, (), None, holder=HolderFacts(held, cam, MODEL)),
        ]
        await registry.commit(change(RevokeSome((own.fingerprint,), NOW, CrlReason.SUPERSEDED)))
        ended = [each.holder and each.holder.credential.state for each in await found()]
        assert ended == [*[CredentialState.REVOKED] * 3, held.state]

    async def test_enrollment_facts_hold_the_newest_of_each_state_and_few(self, registry: Registry) -> None:
        made = [credential("cam-7", state) for _ in range(40) for state in CredentialState]
        await registry.commit(change(*map(AddCredential, made)))
        held = (await registry.enrollment_facts("cam-7", None, NO_KEY)).credentials
        assert list(held) == [c for c in made[-16 * 4 :] if c.state is not CredentialState.SUPERSEDED]

    async def test_enrollment_facts_hold_what_is_asked_for_however_many_came_later(self, registry: Registry) -> None:
        presented, of_key = credential("cam-7"), credential("cam-7")
        earned = replace(credential("cam-7"), grant="certificate 1")
        others = replace(credential("cam-8"), grant="certificate 1"), credential("cam-7")
        later = [credential("cam-7") for _ in range(18)]
        await registry.commit(change(*map(AddCredential, (others[1], of_key, presented, earned, others[0], *later))))

        async def held(key: bytes = NO_KEY, presented: bytes | None = None, earned_by: str | None = None) -> list[int]:
            facts = await registry.enrollment_facts("cam-7", None, key, presented=presented, earned_by=earned_by)
            return [[of_key, presented_, earned, *later].index(c) for c in facts.credentials]

        presented_, newest = presented, list(range(5, 21))
        assert await held() == newest
        assert await held(presented=presented.fingerprint) == [1, *newest]
        assert await held(presented=later[-1].fingerprint) == newest
        assert await held(key=of_key.key_sha256) == [0, *newest]
        assert await held(key=later[-1].key_sha256) == newest
        assert await held(earned_by="certificate 1") == [2, *newest]
        assert await held(of_key.key_sha256, presented.fingerprint, "certificate 1") == [0, 1, 2, *newest]

    async def test_enrollment_facts_tell_whose_the_key_is(self, registry: Registry) -> None:
        own, again = credential("cam-8"), credential("cam-8", CredentialState.REVOKED)
        again = replace(again, key_sha256=own.key_sha256)
        await registry.commit(change(AddCredential(own), AddCredential(again), AddCredential(credential("cam-7"))))
        found = await registry.enrollment_facts("cam-7", None, own.key_sha256)
        assert set(found.key_uses) == {KeyUse(c.kind, c.holder, c.state) for c in (own, again)}

    async def test_holder_facts(self, registry: Registry) -> None:
        cam, st = device("cam-7"), station("cam-7")
        of_device, of_station = credential("cam-7"), credential("cam-7", kind=STATION)
        orphan = credential("gone")
        await registry.commit(change(Insert(cam), Insert(st)))
        await registry.commit(change(*map(AddCredential, (of_device, of_station, orphan))))
        assert await registry.holder_facts(of_device.fingerprint) == HolderFacts(of_device, cam, MODEL, None)
        assert await registry.holder_facts(of_station.fingerprint) == HolderFacts(of_station, None, None, st)
        assert await registry.holder_facts(orphan.fingerprint) == HolderFacts(orphan, None, None, None)

    async def test_a_read_sees_every_commit_that_has_returned(self, registry: Registry) -> None:
        for n in range(50):
            await registry.commit(change(Insert(device(f"d{n}"))))
            assert await registry.device(f"d{n}") is not None
            assert (await registry.enrollment_facts(f"d{n}", None, NO_KEY)).device is not None
            assert len(await registry.devices()) == n + 1


class TestWrites:
    async def test_names_are_taken_once(self, registry: Registry) -> None:
        cert = credential("cam-7")
        adds: tuple[Write, ...] = (
            Insert(device("cam-7")),
            AddCredential(cert),
            Insert(token("t1")),
            Insert(station("s1")),
        )
        await registry.commit(change(*adds))
        assert await refused(registry, Insert(MODEL)) == "model-exists"
        assert [await refused(registry, add) for add in adds] == [
            "device-exists",
            "credential-exists",
            "token-exists",
            "station-exists",
        ]

    async def test_fingerprint_and_serial_are_each_unique(self, registry: Registry) -> None:
        cert = credential("cam-7")
        await registry.commit(change(AddCredential(cert)))
        same_serial = credential("cam-8", serial=cert.serial)
        same_fingerprint = replace(credential("cam-8"), fingerprint=cert.fingerprint)
        assert await refused(registry, AddCredential(same_serial)) == "credential-exists"
        assert await refused(registry, AddCredential(same_fingerprint)) == "credential-exists"

    async def test_a_key_is_one_holders_and_never_comes_back(self, registry: Registry) -> None:
        cert = credential("cam-7")
        await registry.commit(change(AddCredential(cert)))

        def same_key(holder: str, kind: CredentialKind = CredentialKind.DEVICE) -> AddCredential:
            return AddCredential(replace(credential(holder, kind=kind), key_sha256=cert.key_sha256))

        assert await refused(registry, same_key("cam-8")) == "key-taken"
        assert await refused(registry, same_key("cam-7", STATION)) == "key-taken"
        await registry.commit(change(same_key("cam-7")))
        await registry.commit(change(RevokeCredentials("device", "cam-7")))
        assert await refused(registry, same_key("cam-7")) == "key-taken"

    async def test_end_unused(self, registry: Registry) -> None:
        used = credential("cam-7", CredentialState.ACTIVE)
        first, second = (replace(credential("cam-7"), grant="certificate 1") for _ in range(2))
        others = credential("cam-7"), replace(credential("cam-8"), grant="certificate 1")
        await registry.commit(
            change(*map(AddCredential, (replace(used, grant="certificate 1"), first, second, *others)))
        )
        for newest in (None, first.fingerprint, others[0].fingerprint):
            write = EndUnused("device", "cam-7", "certificate 1", newest)
            assert await refused(registry, write) == "answered-already"
        await registry.commit(change(EndUnused("device", "cam-7", "certificate 1", second.fingerprint)))
        found = {c.fingerprint: c.state for c in await registry.credentials("cam-7")}
        assert found[used.fingerprint] is CredentialState.ACTIVE
        assert found[first.fingerprint] is found[second.fingerprint] is CredentialState.SUPERSEDED
        assert found[others[0].fingerprint] is CredentialState.ISSUED
        assert await states(registry, "cam-8") == [CredentialState.ISSUED]
        await registry.commit(change(EndUnused("device", "cam-7", "certificate 1", None)))

    async def test_set_model(self, registry: Registry) -> None:
        new = Model("cam2", timedelta(hours=1), ("Ed25519",), (), ("a/+/b",), retain=True)
        await registry.commit(change(SetModel(new)))
        assert await registry.model("cam2") == replace(new, revision=2)
        assert await refused(registry, SetModel(new)) == "changed-meanwhile"
        await registry.commit(change(SetModel(replace(new, revision=2))))
        assert await refused(registry, SetModel(Model("x"))) == "no-such-model"

    async def test_a_device_of_an_unknown_model_is_refused(self, registry: Registry) -> None:
        await refused(registry, Insert(device("cam-7", model="x")))

    async def test_move_device_only_from_where_it_may(self, registry: Registry) -> None:
        await registry.commit(change(Insert(device("cam-7"))))
        await registry.commit(change(MoveDevice(CAM_7, SERVING, DeviceState.ACTIVE)))
        await registry.commit(change(MoveDevice(CAM_7, frozenset(DeviceState), DeviceState.REVOKED)))
        for allowed in (SERVING, frozenset({DeviceState.SUSPENDED}), frozenset[DeviceState]()):
            assert await refused(registry, MoveDevice(CAM_7, allowed, DeviceState.ACTIVE)) == "device-moved"
        assert await refused(registry, MoveDevice(DeviceId("x"), SERVING, DeviceState.ACTIVE)) == "device-moved"
        stale = MoveDevice(CAM_7, frozenset(DeviceState), DeviceState.RETIRED, revision=2)
        assert await refused(registry, stale) == "changed-meanwhile"
        await registry.commit(change(replace(stale, revision=3)))
        found = await registry.device("cam-7")
        assert found is not None
        assert found.state is DeviceState.RETIRED
        assert found.revision == 4

    async def test_a_move_may_bring_an_expiry_and_keeps_it_otherwise(self, registry: Registry) -> None:
        await registry.commit(change(Insert(device("cam-7"))))
        await registry.commit(change(MoveDevice(CAM_7, SERVING, DeviceState.ACTIVE, expires_at=NOW)))
        await registry.commit(change(MoveDevice(CAM_7, SERVING, DeviceState.ACTIVE)))
        found = await registry.device("cam-7")
        assert found is not None
        assert found.expires_at == NOW

    async def test_a_budget_is_spent_once_from_what_was_read(self, registry: Registry) -> None:
        await registry.commit(change(Insert(device("cam-7"))))
        spend = MoveDevice(CAM_7, SERVING, DeviceState.ACTIVE, expires_at=NOW, budget=(None, NOW))
        await registry.commit(change(spend))
        assert await refused(registry, spend) == "device-moved"
        later = NOW + timedelta(hours=1)
        await registry.commit(change(replace(spend, budget=(NOW, later))))
        await registry.commit(change(MoveDevice(CAM_7, SERVING, DeviceState.ACTIVE)))
        out_of_service = replace(spend, allowed=frozenset({DeviceState.SUSPENDED}), budget=(later, NOW))
        assert await refused(registry, out_of_service) == "device-moved"
        found = await registry.device("cam-7")
        assert found is not None
        assert (found.budget_full_at, found.expires_at) == (later, NOW)

    async def test_the_newest_move_out_of_service_is_kept(self, registry: Registry) -> None:
        await registry.commit(change(Insert(device("cam-7"))))
        assert await registry.state_change("cam-7") is None
        every = frozenset(DeviceState)
        for state, reason in ((DeviceState.SUSPENDED, "odd 'traffic'"), (DeviceState.REVOKED, "")):
            noted = StateChange(CAM_7, state, NOW, "operator bob", reason)
            await registry.commit(change(MoveDevice(CAM_7, every, state, noted=noted)))
            assert await registry.state_change("cam-7") == noted
            assert await registry.state_change("cam-8") is None
        later = StateChange(CAM_7, DeviceState.RETIRED, NOW, "operator eve", "late")
        assert await refused(registry, MoveDevice(CAM_7, every, later.state, revision=1, noted=later)) is not None
        await registry.commit(change(MoveDevice(CAM_7, every, DeviceState.RETIRED)))
        assert await registry.state_change("cam-7") == noted

    async def test_first_use_supersedes_what_was_issued_before(self, registry: Registry) -> None:
        old, used, newer = (credential("cam-7") for _ in range(3))
        others = credential("cam-8"), credential("cam-7", kind=STATION)
        await registry.commit(change(*map(AddCredential, (*others, old, used, newer))))
        await registry.commit(change(MarkUsed(used.fingerprint)))
        found = {c.fingerprint: c.state for c in await registry.credentials("cam-7")}
        assert found[old.fingerprint] is CredentialState.SUPERSEDED
        assert found[used.fingerprint] is CredentialState.ACTIVE
        assert found[newer.fingerprint] is CredentialState.ISSUED
        assert found[others[1].fingerprint] is CredentialState.ISSUED
        assert await states(registry, "cam-8") == [CredentialState.ISSUED]

    async def test_of_two_first_uses_at_once_one_is_the_first(self, registry: Registry) -> None:
        used = credential("cam-7")
        await registry.commit(change(AddCredential(used)))
        both = (FirstUse(used.fingerprint), MarkUsed(used.fingerprint))
        rows = await registry.last_audit()
        outcomes = await asyncio.gather(*(registry.commit(change(*both)) for _ in range(4)), return_exceptions=True)
        codes = [each.code for each in outcomes if isinstance(each, Conflict)]
        assert (outcomes.count(None), codes) == (1, ["used-already"] * 3)
        assert await states(registry, "cam-7") == [CredentialState.ACTIVE]
        assert await registry.last_audit() == rows + 1
        ended = credential("cam-7", CredentialState.REVOKED)
        await registry.commit(change(AddCredential(ended)))
        assert await refused(registry, FirstUse(ended.fingerprint), MarkUsed(ended.fingerprint)) == "credential-ended"

    async def test_first_use_twice_is_once(self, registry: Registry) -> None:
        used = credential("cam-7")
        await registry.commit(change(AddCredential(used)))
        for _ in range(2):
            await registry.commit(change(MarkUsed(used.fingerprint)))
        assert await states(registry, "cam-7") == [CredentialState.ACTIVE]

    @pytest.mark.parametrize("state", [CredentialState.SUPERSEDED, CredentialState.REVOKED])
    async def test_what_has_ended_is_not_used_again(self, registry: Registry, state: CredentialState) -> None:
        ended = credential("cam-7", state)
        await registry.commit(change(AddCredential(ended)))
        for write in (MarkUsed, StillUsable):
            assert await refused(registry, write(ended.fingerprint)) == "credential-ended"
            assert await refused(registry, write(bytes(32))) == "credential-ended"

    @pytest.mark.parametrize("state", [CredentialState.ISSUED, CredentialState.ACTIVE])
    async def test_what_is_still_usable_stays_as_it_is(self, registry: Registry, state: CredentialState) -> None:
        older, usable = credential("cam-7"), credential("cam-7", state)
        await registry.commit(change(AddCredential(older), AddCredential(usable)))
        await registry.commit(change(StillUsable(usable.fingerprint)))
        assert await states(registry, "cam-7") == [CredentialState.ISSUED, state]

    async def test_what_ends_within_a_batch_is_not_used_after_it(self, registry: Registry) -> None:
        ended, other = credential("s1", CredentialState.ACTIVE, kind=STATION), credential("s2", kind=STATION)
        await registry.commit(change(AddCredential(ended), AddCredential(other)))

        def by(used: Credential, id_: str) -> Change:
            return change(Insert(device(id_)), StillUsable(used.fingerprint), AddCredential(credential(id_)))

        revoke = change(RevokeSome((ended.fingerprint,), NOW, CrlReason.SUPERSEDED))
        changes = (by(ended, "d1"), by(ended, "d2"), revoke, by(ended, "d3"), by(other, "d4"))
        outcomes = await asyncio.gather(*map(registry.commit, changes), return_exceptions=True)
        assert [isinstance(each, Conflict) and each.code for each in outcomes] == [
            *[False] * 3,
            "credential-ended",
            False,
        ]
        assert [each.id for each in await registry.devices()] == ["d1", "d2", "d4"]

    async def test_first_use_leaves_what_was_revoked_revoked(self, registry: Registry) -> None:
        revoked, used = credential("cam-7", CredentialState.REVOKED), credential("cam-7")
        await registry.commit(change(AddCredential(revoked), AddCredential(used)))
        await registry.commit(change(MarkUsed(used.fingerprint)))
        assert await states(registry, "cam-7") == [CredentialState.REVOKED, CredentialState.ACTIVE]

    async def test_revoke_credentials_takes_all_of_one_holder(self, registry: Registry) -> None:
        made = [credential("cam-7", state) for state in CredentialState]
        others = [credential("cam-8"), credential("cam-7", kind=STATION)]
        await registry.commit(change(*map(AddCredential, made + others)))
        await registry.commit(change(RevokeCredentials("device", "cam-7")))
        found = await registry.credentials("cam-7")
        assert {c.state for c in found if c.kind is CredentialKind.DEVICE} == {CredentialState.REVOKED}
        assert [c.state for c in found if c.kind is STATION] == [CredentialState.ISSUED]
        assert await states(registry, "cam-8") == [CredentialState.ISSUED]
        await registry.commit(change(RevokeCredentials("device", "cam-7")))  # nothing left to do is no Conflict

    async def test_what_a_maker_has_left(self, registry: Registry) -> None:
        mine = [replace(token(f"t{n}", 2), made_by="operator bob") for n in range(4)]
        await registry.commit(change(*map(Insert, mine), Insert(token("t9")), Insert(token("t8", minutes=120))))
        await registry.commit(change(SpendToken("t0"), SpendToken("t1"), SpendToken("t1"), RevokeToken("t2", NOW)))
        assert [t.id for t in await registry.open_tokens("operator bob", NOW)] == ["t0", "t3"]
        assert [t.id for t in await registry.open_tokens("operator bob", NOW, 1)] == ["t0"]
        assert await registry.open_tokens("operator", NOW) == []
        assert await registry.count_open_tokens(NOW) == {"operator bob": 2, "": 2}
        assert await registry.count_open_tokens(NOW + timedelta(hours=2)) == {"": 1}

    async def test_a_token_is_spent_and_revoked(self, registry: Registry) -> None:
        await registry.commit(change(Insert(token("t1", 2)), Insert(token("t2", 2))))
        for _ in range(2):
            await registry.commit(change(SpendToken("t1")))
        await registry.commit(change(RevokeToken("t2", NOW)))
        assert await refused(registry, SpendToken("t1")) == "token-spent"
        assert await refused(registry, SpendToken("t2")) == "token-spent"
        assert await refused(registry, SpendToken("x")) == "token-spent"
        assert await refused(registry, RevokeToken("t2", NOW)) == "token-gone"
        assert await refused(registry, RevokeToken("x", NOW)) == "token-gone"
        spent, revoked = await registry.token("t1"), await registry.token("t2")
        assert spent is not None
        assert revoked is not None
        assert (spent.uses, spent.revoked_at, revoked.uses, revoked.revoked_at) == (2, None, 0, NOW)


class TestOneChangeIsWholeOrNothing:
    async def test_a_failing_write_undoes_the_ones_before_it(self, registry: Registry) -> None:
        await registry.commit(change(Insert(token("t1", 5)), Insert(device("cam-1"))))
        fails = (
            SpendToken("t1"),
            Insert(device("cam-7")),
            AddCredential(credential("cam-7")),
            MoveDevice(CAM_7, SERVING, DeviceState.ACTIVE),
            Insert(device("cam-1")),
        )
        assert await refused(registry, *fails) == "device-exists"
        left = await registry.token("t1")
        assert left is not None
        assert left.uses == 0
        assert await registry.device("cam-7") is None
        assert await registry.credentials("cam-7") == []

    async def test_a_refusal_is_an_audit_row_and_nothing_else(self, registry: Registry) -> None:
        await registry.commit(Change(entry("mqtt.connect")))
        (row,) = await registry.audit(after=1)
        assert row.entry == entry("mqtt.connect")

    async def test_good_and_bad_in_one_batch(self, registry: Registry) -> None:
        await registry.commit(change(Insert(device("taken"))))

        async def add(n: int) -> str:
            bad = n % 3 == 0
            writes = (Insert(device(f"d{n}")), Insert(device("taken"))) if bad else (Insert(device(f"d{n}")),)
            try:
                await registry.commit(change(*writes, action=f"add {n}", events=(Event("test", f"d{n}"),)))
            except Conflict:
                return "conflict"
            return "ok"

        outcomes = await asyncio.gather(*(add(n) for n in range(60)))
        assert outcomes == ["ok" if n % 3 else "conflict" for n in range(60)]
        good = {f"d{n}" for n in range(60) if n % 3}
        assert {d.id for d in await registry.devices()} == good | {"taken"}
        rows = await registry.audit()
        list(sound_leaves(rows))
        assert [r.seq for r in rows] == list(range(1, 43))
        assert await registry.last_event() == 40

    async def test_a_token_is_never_spent_more_often_than_it_may_be(self, registry: Registry) -> None:
        await registry.commit(change(Insert(token("t1", 7))))

        async def spend(n: int) -> bool:
            try:
                await registry.commit(change(SpendToken("t1"), Insert(device(f"d{n}"))))
            except Conflict:
                return False
            return True

        assert sum(await asyncio.gather(*(spend(n) for n in range(40)))) == 7
        assert len(await registry.devices()) == 7

    async def test_one_of_two_gets_the_name(self, registry: Registry) -> None:
        outcomes = await asyncio.gather(
            *(registry.commit(change(Insert(device("cam-7")))) for _ in range(20)), return_exceptions=True
        )
        assert outcomes.count(None) == 1
        assert all(o is None or isinstance(o, Conflict) for o in outcomes)

    async def test_a_value_that_cannot_be_stored_fails_its_own_change_alone(self, registry: Registry) -> None:
        lone_surrogate = replace(device("cam-7"), hardware_serial="\ud800")
        outcomes = await asyncio.gather(
            registry.commit(change(Insert(device("a")))),
            registry.commit(change(Insert(lone_surrogate))),
            registry.commit(change(Insert(device("b")))),
            return_exceptions=True,
        )
        assert outcomes[0] is None
        assert outcomes[2] is None
        assert isinstance(outcomes[1], (ValueError, FleetError))
        assert [d.id for d in await registry.devices()] == ["a", "b"]
        list(sound_leaves(await registry.audit()))

    async def test_a_cancelled_caller_harms_nobody(self, registry: Registry) -> None:
        tasks = [asyncio.create_task(registry.commit(change(Insert(device(f"d{n}"))))) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert outcomes[1::2] == [None] * 10
        assert {f"d{n}" for n in range(1, 20, 2)} <= {d.id for d in await registry.devices()}
        list(sound_leaves(await registry.audit()))


class TestAudit:
    async def test_entries_come_back_and_fit_their_leaves(self, registry: Registry) -> None:
        for n in range(5):
            await registry.commit(Change(entry(f"action {n}")))
        rows = await registry.audit()
        assert [r.seq for r in rows] == [1, 2, 3, 4, 5, 6]
        assert [r.entry for r in rows[1:]] == [entry(f"action {n}") for n in range(5)]
        assert list(sound_leaves(rows)) == [r.leaf for r in rows]
        assert await registry.last_audit() == 6

    async def test_it_is_paged(self, registry: Registry) -> None:
        for n in range(5):
            await registry.commit(Change(entry(f"action {n}")))
        assert [r.seq for r in await registry.audit(after=2, limit=3)] == [3, 4, 5]
        assert await registry.audit(after=6) == []
        assert len(list(sound_leaves(await registry.audit(after=2), 2))) == 4


class TestFeed:
    async def test_what_was_before_and_what_comes(self, registry: Registry) -> None:
        async def commit(*names: str) -> None:
            await registry.commit(change(events=tuple(Event(EventKind.DEVICE_STATE, n, "active") for n in names)))

        await commit("a", "b")
        feed = registry.follow(1)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await anext(feed) == Event(EventKind.DEVICE_STATE, "b", "active", 2)
            waiting = asyncio.ensure_future(anext(feed))
            await asyncio.sleep(0)
            await commit("c")
            assert await waiting == Event(EventKind.DEVICE_STATE, "c", "active", 3)
        assert await registry.last_event() == 3

    async def test_nothing_is_missed_and_nothing_twice(self, registry: Registry) -> None:
        total = 300
        start = await registry.last_event()

        async def follow() -> list[int]:
            seen: list[int] = []
            async for event in registry.follow(start):
                seen.append(event.seq)
                if len(seen) == total:
                    break
            return seen

        async def write(worker: int) -> None:
            for n in range(total // 10):
                await registry.commit(change(events=(Event("test", f"{worker}-{n}"),)))

        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(follow(), follow(), *(write(w) for w in range(10)))
        assert results[0] == results[1] == list(range(start + 1, start + total + 1))

    async def test_it_can_be_cancelled_while_it_waits(self, registry: Registry) -> None:
        async def follow() -> None:
            async for _ in registry.follow(await registry.last_event()):
                pass

        task = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await registry.commit(change(events=(Event("test", "a"),)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await registry.commit(change(events=(Event("test", "b"),)))

    async def test_a_conflict_leaves_no_event(self, registry: Registry) -> None:
        assert await refused(registry, Insert(MODEL)) == "model-exists"
        await registry.commit(change(events=(Event("test", "after"),)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await anext(registry.follow(0))).subject == "after"


class TestClosed:
    async def test_everything_is_unavailable(self, registry: Engine) -> None:
        waiting = asyncio.ensure_future(anext(registry.follow(await registry.last_event())))
        await asyncio.sleep(0)
        await registry.close()
        await registry.close()
        for call in (registry.commit(change()), registry.device("a"), registry.devices(), anext(registry.follow(0))):
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.code == "registry-closed"
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(Unavailable):
                await waiting
