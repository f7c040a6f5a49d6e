"""What every registry promises of distrusts: rules, and the devices whose newest certificate one covers."""

import hashlib
from datetime import timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.crl import CrlReason
from fleet.domain.device import Device, DeviceState, Model
from fleet.domain.distrust import KEY_MARKS, Distrust
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.domain.writes import AddCredential, DropDistrust, Insert, RevokeSome, Write
from tests.storage import samples
from tests.storage.samples import NOW, change, credential, station

HOUR = timedelta(hours=1)
CA = b"k" * 20
RULE = Distrust(
    "91ab0c2d77de",
    NOW,
    NOW,
    "cam2",
    CA,
    "Ed25519",
    NOW - HOUR,
    may_renew=False,
    spread=HOUR,
    matched=7,
    created_by="operator bob",
    reason="é",
)
ALL = Distrust("0" * 12, NOW + HOUR, NOW + HOUR)


def device(name: str, state: DeviceState = DeviceState.ACTIVE, model: str = "cam2") -> Device:
    return replace(samples.device(name, state, model), hardware_serial="")


async def test_rules_come_and_go(registry: Registry) -> None:
    later = replace(ALL, refuses=False)
    await registry.commit(change(Insert(later), Insert(RULE)))
    assert await registry.distrusts() == [RULE, later]
    for write, code in ((Insert(RULE), "distrust-exists"), (DropDistrust("f" * 12), "no-such-distrust")):
        with pytest.raises(Conflict) as caught:
            await registry.commit(change(write))
        assert caught.value.code == code
    await registry.commit(change(DropDistrust(RULE.id)))
    assert await registry.distrusts() == [later]


async def test_a_device_is_judged_by_those_in_force_at_the_moment(registry: Registry) -> None:
    held, at_station = credential("cam-1"), credential("line-1", kind=CredentialKind.STATION)
    writes = (Insert(device("cam-1")), Insert(station("line-1")))
    await registry.commit(change(*writes, AddCredential(held), AddCredential(at_station)))
    for rules in ((), (RULE,), (RULE, ALL)):
        facts = await registry.holder_facts(held.fingerprint)
        assert facts is not None
        assert facts.distrusts == tuple(sorted(rules, key=lambda rule: rule.id))
        assert facts.distrusted is (ALL in rules)
        if len(rules) < 2:
            await registry.commit(change(Insert((RULE, ALL)[len(rules)])))
    facts = await registry.holder_facts(at_station.fingerprint)
    assert facts is not None
    assert not facts.distrusted


async def given(
    registry: Registry, holder: str, hours: int, *parts: bytes, state: CredentialState = CredentialState.ISSUED
) -> Credential:
    """A certificate of `holder`, issued `hours` after NOW, that contains `parts`."""
    made = credential(holder, state)
    der = b"-".join((made.der, *parts, b"."))
    at = NOW + hours * HOUR
    made = replace(made, der=der, fingerprint=hashlib.sha256(der).digest(), issued_at=at, not_before=at)
    await registry.commit(change(AddCredential(made)))
    return made


async def test_who_is_under_a_rule_is_counted_by_the_newest_usable_certificate(registry: Registry) -> None:
    ca, ed, p256 = RULE.issuer_mark, RULE.key_mark, KEY_MARKS["EC-P256"]
    await registry.commit(change(Insert(Model("pump"))))
    names = ("a", "b", "c", "d", "e", "f", "g")
    devices = [Insert(device(f"cam-{name}")) for name in names]
    await registry.commit(change(*devices, Insert(device("pump-1", model="pump"))))
    await registry.commit(change(Insert(device("cam-out", DeviceState.SUSPENDED))))
    await given(registry, "cam-a", -1, ca, ed)
    await given(registry, "cam-b", -1, ca, p256)
    await given(registry, "cam-c", -1, ed)
    await given(registry, "cam-d", 0, ca, ed)
    await given(registry, "cam-e", -2, ca, ed)
    await given(registry, "cam-f", -1, ca, ed)
    await given(registry, "cam-f", 1, ca, ed)
    await given(registry, "cam-g", -1, ca, ed, state=CredentialState.REVOKED)
    await given(registry, "pump-1", -1, ca, ed)
    await given(registry, "cam-out", -1, ca, ed)
    assert await registry.distrusted(RULE, 9) == ["cam-a"]
    assert await registry.count_distrusted(RULE) == [("cam2", 1)]
    wider = replace(RULE, model="", issued_from=None, key_type="")
    assert await registry.distrusted(wider, 9) == ["cam-a", "cam-b", "cam-e", "pump-1"]
    assert await registry.distrusted(wider, 2) == ["cam-a", "cam-b"]
    assert await registry.count_distrusted(wider) == [("cam2", 3), ("pump", 1)]
    everything = replace(ALL, issued_before=NOW + 2 * HOUR)
    assert await registry.count_distrusted(everything) == [("cam2", 6), ("pump", 1)]
    under = await registry.distrusted_certificates(RULE, NOW, 9)
    assert [each.holder for each in under] == ["cam-a", "cam-f", "cam-out"]  # whatever else they hold
    assert await registry.count_distrusted_certificates(RULE, NOW) == 3
    assert len(await registry.distrusted_certificates(wider, NOW, 2)) == 2
    assert await registry.count_distrusted_certificates(RULE, under[0].not_after) == 0
    await registry.commit(change(RevokeSome(tuple(each.fingerprint for each in under), NOW, CrlReason.KEY_COMPROMISE)))
    assert await registry.count_distrusted_certificates(RULE, NOW) == 0
    for each in under:
        listed = await registry.revocation(each.serial)
        assert listed is not None
        assert listed.reason == CrlReason.KEY_COMPROMISE
    assert [each.state.value for each in await registry.credentials("cam-f")] == ["revoked", "issued"]
    for holder in ("cam-a", "cam-b"):
        for held in await registry.credentials(holder):
            assert wider.covers("cam2", held)


async def test_until_when_a_device_has_a_certificate_that_it_may_use(registry: Registry) -> None:
    ends = {"cam-1": 2, "cam-2": 3, "cam-3": 4, "cam-4": 5}
    writes: list[Write] = [Insert(device(name)) for name in (*ends, "cam-5")]
    held = {name: replace(credential(name), not_after=NOW + hours * HOUR) for name, hours in ends.items()}
    older = replace(credential("cam-1"), not_after=NOW + HOUR, issued_at=NOW - HOUR)
    later = replace(credential("cam-3", CredentialState.REVOKED), not_after=NOW + 9 * HOUR)
    at_station = credential("cam-5", kind=CredentialKind.STATION)
    writes += [AddCredential(each) for each in (older, later, at_station, *held.values())]
    await registry.commit(change(*writes))
    names = (*ends, "cam-5", "nobody")
    assert await registry.usable_until(names, (), NOW) == {name: each.not_after for name, each in held.items()}
    assert await registry.usable_until(("cam-2",), (), NOW) == {"cam-2": held["cam-2"].not_after}
    assert await registry.usable_until((), (), NOW) == {}
    assert set(await registry.usable_until(names, (), NOW + 3 * HOUR)) == {"cam-3", "cam-4"}
    asks = replace(ALL, refuses=False)
    assert set(await registry.usable_until(names, (asks,), NOW)) == set(ends)
    recent = replace(ALL, issued_from=NOW)
    assert await registry.usable_until(names, (asks, recent), NOW) == {"cam-1": older.not_after}
    others = replace(ALL, model="pump")
    assert set(await registry.usable_until(names, (others,), NOW)) == set(ends)
    assert await registry.usable_until(names, (ALL,), NOW) == {}
