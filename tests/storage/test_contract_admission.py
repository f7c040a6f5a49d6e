"""What every registry promises of manifest, claims, makers' CAs and quotas, whatever engine it stands on."""

import asyncio
import hashlib
import os
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from fleet.domain.claim import Claim
from fleet.domain.credential import CredentialKind
from fleet.domain.device import DeviceFilter, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.manifest import ListedDevice, ManifestEntry, ManifestFacts
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.writes import (
    AddCredential,
    BindIdevid,
    CountTakeover,
    DropAnchor,
    ImportDevices,
    Insert,
    MoveDevice,
    QuarantineClaim,
    ReleaseClaim,
    RevokeClaim,
    SetStation,
    SpendClaim,
    SpendStation,
)
from tests.storage.samples import NOW, change, credential, device, station
from tests.storage.test_contract import refused

KEY = bytes(range(32))


def listed(id_: str, serial: str = "", key: bytes | None = None, model: str = "cam2") -> ListedDevice:
    entry = ManifestEntry(DeviceId(id_), model, serial, key, hashlib.sha256(id_.encode()).digest())
    return ListedDevice(replace(device(id_, model=model), hardware_serial=serial), entry)


def claim(name: str = "batch-1", quota: int = 2) -> Claim:
    return Claim(name, "cam2", quota, 0, NOW, NOW + timedelta(days=1))


def anchor(name: str = "acme") -> Anchor:
    der = os.urandom(40)
    return Anchor(name, ("cam2", "default"), hashlib.sha256(der).digest(), der, NOW)


class TestManifest:
    async def test_devices_and_entries_come_in_together(self, registry: Registry) -> None:
        first, second = listed("a", "S1", KEY), listed("b", "S2")
        tagged = replace(second.device, tags=(("lot", "L'7\n"),), groups=("pilot",))
        await registry.commit(change(ImportDevices((first, replace(second, device=tagged)))))
        assert await registry.device("a") == first.device
        assert await registry.device("b") == tagged
        assert await registry.devices(DeviceFilter(tags=(("lot", "L'7\n"),), group="pilot")) == [tagged]
        found = await registry.manifest_facts(["b", "zz"], [("cam2", "S1"), ("cam2", ""), ("other", "S2")], [])
        assert found == ManifestFacts((first.entry, second.entry), frozenset({"b"}))
        assert await registry.manifest_facts([], [], [KEY, bytes(32)]) == ManifestFacts((first.entry,), frozenset())

    async def test_all_or_none(self, registry: Registry) -> None:
        await registry.commit(change(Insert(Model("other")), ImportDevices((listed("a", "S1", KEY),))))
        await registry.commit(change(Insert(device("by-hand"))))
        for clash in (listed("a", "S9"), listed("c", "S1"), listed("d", "S4", KEY), listed("by-hand", "S5")):
            assert await refused(registry, ImportDevices((listed("new", "S7"), clash))) == "listed-already"
        assert await registry.device("new") is None
        assert (await registry.manifest_facts(["new"], [("cam2", "S7")], [])).entries == ()
        # A serial is its model's own; to have none is nobody's.
        await registry.commit(change(ImportDevices((listed("c", "S1", model="other"), listed("e", "", b"e" * 32)))))
        await registry.commit(change(ImportDevices((listed("f", "", b"f" * 32),))))

    async def test_whole_or_not_at_all_beside_one_that_fails(self, registry: Registry) -> None:
        """Both in one transaction of the registry's, which has to undo and do again."""
        await registry.commit(change(Insert(device("taken"))))
        for number in range(5):
            brought = listed(f"new-{number}", f"S{number}")
            tagged = replace(brought, device=replace(brought.device, tags=(("lot", f"L{number}"),)))
            outcomes = await asyncio.gather(
                registry.commit(change(ImportDevices((tagged,)))),
                registry.commit(change(Insert(device(f"beside-{number}")), Insert(device("taken")))),
                return_exceptions=True,
            )
            assert isinstance(outcomes[1], Conflict)
            assert outcomes[0] is None
            assert await registry.device(f"beside-{number}") is None
            assert await registry.devices(DeviceFilter(tags=(("lot", f"L{number}"),))) == [tagged.device]
            facts = await registry.manifest_facts([tagged.device.id], [], [])
            assert facts.entries == (tagged.entry,)

    async def test_a_serial_is_one_devices_of_its_model_however_it_came(self, registry: Registry) -> None:
        await registry.commit(change(Insert(Model("b"))))

        def added(id_: str, model: str = "cam2") -> Insert:
            return Insert(replace(device(id_), model=model, hardware_serial="SN1"))

        await registry.commit(change(added("a"), added("b1", "b")))
        assert await refused(registry, added("c")) == "serial-taken"
        assert await refused(registry, ImportDevices((listed("d", serial="SN1"),))) == "listed-already"
        assert await refused(registry, ImportDevices((listed("d", serial="SN2"), listed("e", serial="SN2")))) == (
            "listed-already"
        )
        assert await registry.serial_holders((("cam2", "SN1"), ("cam2", "SN9"), ("cam2", ""))) == [("cam2", "SN1", "a")]
        states = frozenset(DeviceState)
        await registry.commit(change(MoveDevice(DeviceId("a"), states, DeviceState.RETIRED)))
        await registry.commit(change(ImportDevices((listed("d", serial="SN1"),))))
        assert await refused(registry, added("c")) == "serial-taken"
        await registry.commit(change(MoveDevice(DeviceId("d"), states, DeviceState.REVOKED)))
        await registry.commit(change(ImportDevices((listed("e", serial="SN1"),))))
        facts = await registry.manifest_facts((), (("cam2", "SN1"),), ())
        assert [entry.device_id for entry in facts.entries] == ["d", "e"]
        assert await registry.serial_holders((("cam2", "SN1"),)) == [("cam2", "SN1", "e")]

    async def test_serials_are_compared_as_x520_does(self, registry: Registry) -> None:
        """Neither case nor spaces make a difference; what was written is kept."""
        await registry.commit(change(Insert(replace(device("a"), hardware_serial=" SN  1 b"))))
        for other in ("SN 1 b", "sn  1 B", " Sn   1 B  "):
            assert await refused(registry, Insert(replace(device("c"), hardware_serial=other))) == "serial-taken"
            assert await refused(registry, ImportDevices((listed("d", serial=other),))) == "listed-already"
            assert await registry.serial_holders((("cam2", other),)) == [("cam2", " SN  1 b", "a")]
        pair = listed("e", serial="X-1"), listed("f", serial=" x-1")
        assert await refused(registry, ImportDevices(pair)) == "listed-already"
        await registry.commit(change(Insert(replace(device("g"), hardware_serial="SN1b")), ImportDevices(pair[1:])))
        assert (await registry.manifest_facts((), (("cam2", "X-1 "),), ())).entries == (pair[1].entry,)
        found = await registry.device("a")
        assert found is not None
        assert found.hardware_serial == " SN  1 b"

    async def test_of_many_at_once_one_gets_the_serial(self, registry: Registry) -> None:
        writes = [Insert(replace(device(f"d{n}"), hardware_serial="SN1")) for n in range(8)]
        imports = [ImportDevices((listed(f"m{n}", serial="SN1"),)) for n in range(8)]
        outcomes = await asyncio.gather(
            *(registry.commit(change(each)) for pair in zip(writes, imports, strict=True) for each in pair),
            return_exceptions=True,
        )
        assert [type(each) for each in outcomes].count(Conflict) == 15

    async def test_no_model_no_device(self, registry: Registry) -> None:
        assert await refused(registry, ImportDevices((listed("a", "S1", model="nonesuch"),))) == "no-such-model"


class TestClaims:
    async def test_a_claim_comes_back(self, registry: Registry) -> None:
        await registry.commit(change(Insert(claim()), Insert(claim("a"))))
        assert await registry.claim("batch-1") == claim()
        assert await registry.claims() == [claim("a"), claim()]
        assert await registry.claim("x") is None
        assert await refused(registry, Insert(claim())) == "claim-exists"

    async def test_its_certificate_leads_to_it(self, registry: Registry) -> None:
        held = credential("batch-1", kind=CredentialKind.CLAIM)
        await registry.commit(change(Insert(claim()), AddCredential(held)))
        assert await registry.holder_facts(held.fingerprint) == HolderFacts(held, None, None, None, claim=claim())

    async def test_it_is_spent_to_its_quota(self, registry: Registry) -> None:
        await registry.commit(change(Insert(claim(quota=2))))
        await registry.commit(change(SpendClaim("batch-1")))
        await registry.commit(change(SpendClaim("batch-1")))
        assert await refused(registry, SpendClaim("batch-1")) == "claim-spent"
        assert await registry.claim("batch-1") == replace(claim(quota=2), uses=2)
        assert await refused(registry, SpendClaim("x")) == "claim-spent"

    async def test_a_use_is_not_kept_when_its_change_fails(self, registry: Registry) -> None:
        await registry.commit(change(Insert(claim()), Insert(device("a"))))
        assert await refused(registry, SpendClaim("batch-1"), Insert(device("a"))) == "device-exists"
        assert await registry.claim("batch-1") == claim()

    async def test_quarantine_holds_until_it_is_released(self, registry: Registry) -> None:
        await registry.commit(change(Insert(claim()), CountTakeover("batch-1", 1)))
        assert await refused(registry, CountTakeover("batch-1", 1)) == "changed-meanwhile"
        await registry.commit(change(QuarantineClaim("batch-1", NOW, "shown at a door")))
        held = replace(claim(), takeovers=1, quarantined_at=NOW, quarantine_reason="shown at a door")
        assert await registry.claim("batch-1") == held
        assert await refused(registry, SpendClaim("batch-1")) == "claim-spent"
        assert await refused(registry, QuarantineClaim("batch-1", NOW, "again")) == "claim-not-open"
        assert await refused(registry, CountTakeover("batch-1", 2)) == "changed-meanwhile"
        await registry.commit(change(ReleaseClaim("batch-1")))
        assert await registry.claim("batch-1") == claim()
        assert await refused(registry, ReleaseClaim("batch-1")) == "claim-not-quarantined"
        await registry.commit(change(SpendClaim("batch-1")))

    async def test_revoked_is_for_good(self, registry: Registry) -> None:
        await registry.commit(change(Insert(claim()), QuarantineClaim("batch-1", NOW, "x")))
        await registry.commit(change(RevokeClaim("batch-1", NOW)))
        assert await refused(registry, RevokeClaim("batch-1", NOW)) == "claim-gone"
        assert await refused(registry, ReleaseClaim("batch-1")) == "claim-not-quarantined"
        assert await refused(registry, SpendClaim("batch-1")) == "claim-spent"


class TestMakers:
    async def test_anchors_come_and_go(self, registry: Registry) -> None:
        first, second = anchor("b"), anchor("a")
        await registry.commit(change(Insert(first), Insert(second)))
        assert await registry.anchors() == [second, first]
        assert await refused(registry, Insert(anchor("a"))) == "anchor-exists"
        assert await refused(registry, Insert(replace(first, name="c"))) == "anchor-exists"
        await registry.commit(change(DropAnchor("a")))
        assert await registry.anchors() == [first]
        assert await refused(registry, DropAnchor("a")) == "no-such-anchor"

    async def test_one_certificate_one_device(self, registry: Registry) -> None:
        await registry.commit(change(Insert(anchor())))
        mine = IdevidBinding(KEY, DeviceId("a"), bytes(32), "acme", NOW)
        await registry.commit(change(BindIdevid(mine)))
        await registry.commit(change(BindIdevid(replace(mine, bound_at=NOW + timedelta(days=1)))))  # the same again
        assert await registry.idevid_bindings(KEY, "zz") == [mine]
        assert await registry.idevid_bindings(bytes(32), "a") == [mine]
        assert await registry.idevid_bindings(bytes(32), "zz") == []
        assert await refused(registry, BindIdevid(replace(mine, device_id=DeviceId("b")))) == "idevid-taken"
        assert await refused(registry, BindIdevid(replace(mine, key_sha256=b"k" * 32))) == "idevid-taken"

    async def test_not_by_an_anchor_that_has_gone(self, registry: Registry) -> None:
        mine = IdevidBinding(KEY, DeviceId("a"), bytes(32), "acme", NOW)
        assert await refused(registry, BindIdevid(mine)) == "idevid-taken"
        await registry.commit(change(Insert(anchor())))
        await registry.commit(change(BindIdevid(mine)))
        await registry.commit(change(DropAnchor("acme")))
        assert await registry.idevid_bindings(KEY, "a") == [mine]
        assert await refused(registry, BindIdevid(mine)) == "idevid-taken"


class TestStationQuota:
    async def test_it_is_counted_by_the_day(self, registry: Registry) -> None:
        await registry.commit(change(Insert(replace(station("line-1"), quota=2))))
        for _ in range(2):
            await registry.commit(change(SpendStation("line-1", 20_000)))
        assert await refused(registry, SpendStation("line-1", 20_000)) == "station-spent"
        assert await registry.station("line-1") == replace(station("line-1"), quota=2, day=20_000, used=2)
        await registry.commit(change(SpendStation("line-1", 20_001)))
        assert await registry.station("line-1") == replace(station("line-1"), quota=2, day=20_001, used=1)

    async def test_a_clock_that_is_still_in_the_day_before_counts_in_the_later_one(self, registry: Registry) -> None:
        """On another node, or set back: two that disagree at midnight are no way round the quota."""
        await registry.commit(change(Insert(replace(station("line-1"), quota=2))))
        for day in (20_001, 20_000):
            await registry.commit(change(SpendStation("line-1", day)))
        for day in (20_000, 20_001, 20_000):
            assert await refused(registry, SpendStation("line-1", day)) == "station-spent"
        held = await registry.station("line-1")
        assert held == replace(station("line-1"), quota=2, day=20_001, used=2)
        start = datetime(1970, 1, 1, tzinfo=UTC)
        used = [held.used_on(start + timedelta(days=day)) for day in range(19_999, 20_003)]
        assert used == [0, 2, 2, 0]
        await registry.commit(change(SpendStation("line-1", 19_999)))  # a clock that was far ahead and is right again

    async def test_it_can_be_changed(self, registry: Registry) -> None:
        await registry.commit(change(Insert(station("line-1"))))
        await registry.commit(change(SpendStation("line-1", 1), SpendStation("line-1", 1)))  # without a quota
        await registry.commit(change(SetStation("line-1", 2)))
        assert await refused(registry, SpendStation("line-1", 1)) == "station-spent"
        await registry.commit(change(SetStation("line-1", 0), SpendStation("line-1", 1)))
        assert await refused(registry, SetStation("x", 1)) == "no-such-station"
        assert await refused(registry, SpendStation("x", 1)) == "station-spent"
