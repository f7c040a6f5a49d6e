"""The contract of a CrlStore: what is revoked is listed until it expires, whatever becomes of its credential."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.credential import CredentialKind
from fleet.domain.crl import Crl, CrlEntry, CrlHead, CrlReason, Revocation, Unlisted
from fleet.domain.distribution import bucket_of
from fleet.domain.errors import Conflict
from fleet.domain.lease import Lease
from fleet.domain.ports import Registry
from fleet.domain.writes import (
    AddCredential,
    DropCredentials,
    EndCredentials,
    HoldCredentials,
    Insert,
    MarkUsed,
    NewestForKeyIs,
    ReleaseCredentials,
    RevokeCredentials,
)
from tests.storage.samples import NOW, change, credential, device

CA = b"\x01" * 20
LEASE = Lease("crl", "node-1", NOW + timedelta(seconds=10))
EVER = range(1 << 16)


async def enrolled(registry: Registry, *serials: str) -> None:
    """cam-7 with certificates of these serial numbers."""
    await registry.commit(change(Insert(device("cam-7"))))
    for serial in serials:
        await registry.commit(change(AddCredential(credential("cam-7", serial=serial))))


async def make_entries(registry: Registry) -> list[Revocation]:
    """An entry, its reason and serial number in letters, for each revocation that has none; what they were."""
    found = [each.revocation for each in await registry.pending_revocations(100)]
    made = [CrlEntry(r, CA, bucket_of(int(r.serial, 16)), f"{r.reason} {r.serial}".encode()) for r in found]
    await registry.store_entries(made, LEASE, NOW)
    return found


async def publish(registry: Registry, number: int, base: int = 0) -> CrlHead:
    head = CrlHead("/crl/01.crl", CA, number, base, NOW, NOW + timedelta(days=1), 1)
    await registry.publish_crls([Crl(head, b"der %d" % number)], [CA], LEASE, NOW)
    return head


async def entries(registry: Registry) -> list[str]:
    return sorted(entry.decode() for entry in await registry.crl_entries(CA, EVER, NOW))


async def test_every_certificate_of_a_revoked_holder_is_listed(registry: Registry) -> None:
    await enrolled(registry, "a1", "a2", "a3")
    used = credential("cam-7", serial="a4")
    await registry.commit(change(AddCredential(used), MarkUsed(used.fingerprint)))  # the others are superseded
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW, CrlReason.KEY_COMPROMISE)))
    found = await make_entries(registry)
    assert {(each.serial, each.revoked_at, each.reason) for each in found} == {
        (serial, NOW, 1) for serial in ("a1", "a2", "a3", "a4")
    }
    assert await entries(registry) == ["1 a1", "1 a2", "1 a3", "1 a4"]
    assert await registry.revocation("a3") in found
    assert await registry.revocation("b1") is None
    assert await registry.revocation("no serial") is None


async def test_only_a_compromised_key_takes_the_place_of_another_reason(registry: Registry) -> None:
    await enrolled(registry, "a1")
    superseded, compromised = CrlReason.SUPERSEDED, CrlReason.KEY_COMPROMISE
    for reason, expected in ((superseded, 4), (CrlReason.UNSPECIFIED, 4), (compromised, 1), (superseded, 1)):
        later = NOW + timedelta(seconds=expected == 1)
        await registry.commit(change(RevokeCredentials("device", "cam-7", later, reason)))
        await make_entries(registry)
        assert await entries(registry) == [f"{expected} a1"]
    await publish(registry, 7)
    revoked = await registry.revocation("a1")
    assert revoked is not None
    assert revoked.revoked_at == NOW
    # A restore lists again what a journal has: it knows better only what is worse.
    for known, expected in ((4, 1), (1, 1)):
        await registry.add_revoked([(Revocation("a1", revoked.not_after, NOW, known), CA)])
        assert (await registry.revocation("a1")) == Revocation("a1", revoked.not_after, NOW, expected)
    assert await registry.pending_revocations(9) == []
    await enrolled_again(registry, "b1")
    await registry.add_revoked([(Revocation("b1", revoked.not_after, NOW, 1), CA)])
    assert [each.revocation.reason for each in await registry.pending_revocations(9)] == [1]


async def enrolled_again(registry: Registry, serial: str) -> None:
    """Another device, revoked as superseded, with an entry."""
    await registry.commit(change(Insert(device("cam-8"))))
    await registry.commit(change(AddCredential(credential("cam-8", serial=serial))))
    await registry.commit(change(RevokeCredentials("device", "cam-8", NOW, CrlReason.SUPERSEDED)))
    await make_entries(registry)


async def test_an_entry_without_a_number_is_found_until_it_is_published(registry: Registry) -> None:
    await enrolled(registry, "10001", "20002")
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW)))
    assert await registry.unpublished() == []
    assert await registry.unlisted() == [Unlisted(None, NOW, 2)]
    await make_entries(registry)
    assert await registry.unlisted() == [Unlisted(CA, NOW, 2)]
    assert sorted(await registry.unpublished()) == [(CA, 1), (CA, 2)]
    assert await registry.pending_revocations(9) == []
    head = await publish(registry, 7)
    assert await registry.unpublished() == []
    assert await registry.unlisted() == []
    assert await registry.last_crl_number(CA) == 7
    assert await registry.crl_heads() == [head]
    assert await registry.crl_head(head.path) == head
    assert await registry.crl(head.path) == Crl(head, b"der 7")
    assert await registry.crl("/crl/02.crl") is None
    assert [e.decode() for e in await registry.crl_entries(CA, range(1, 2), NOW)] == ["0 10001"]
    await publish(registry, 8)
    assert [(each.number, each.path) for each in await registry.crl_heads()] == [(8, head.path)]


async def test_a_certificate_on_hold_is_released_or_revoked_from_then_on(registry: Registry) -> None:
    await enrolled(registry, "a1")
    await registry.commit(change(HoldCredentials("device", "cam-7", NOW)))
    await make_entries(registry)
    await publish(registry, 1)
    assert await entries(registry) == ["6 a1"]
    await registry.commit(change(ReleaseCredentials("device", "cam-7")))
    [removed] = await make_entries(registry)
    assert (removed.serial, removed.reason) == ("a1", CrlReason.REMOVE_FROM_CRL)
    assert await entries(registry) == []
    assert await registry.changed_entries(CA, 1) == [b"8 a1"]
    await publish(registry, 2)
    later = NOW + timedelta(hours=1)
    await registry.commit(change(HoldCredentials("device", "cam-7", later)))
    await registry.commit(change(HoldCredentials("device", "cam-7", later + timedelta(hours=1))))
    await registry.commit(change(RevokeCredentials("device", "cam-7", later + timedelta(hours=2))))
    await registry.commit(change(ReleaseCredentials("device", "cam-7")))
    assert [(each.revoked_at, each.reason) for each in await make_entries(registry)] == [(later, 0)]
    assert await entries(registry) == ["0 a1"]
    assert await registry.changed_entries(CA, 2) == [b"0 a1"]
    assert await registry.changed_entries(CA, 3) == [b"0 a1"]  # it is in no CRL yet


async def test_a_revocation_that_changes_while_its_entry_is_made_stays_unlisted(registry: Registry) -> None:
    await enrolled(registry, "a1")
    await registry.commit(change(HoldCredentials("device", "cam-7", NOW)))
    [seen] = await registry.pending_revocations(9)
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW)))
    await registry.store_entries([CrlEntry(seen.revocation, CA, 1, b"old")], LEASE, NOW)
    [now] = await registry.pending_revocations(9)
    assert now.revocation.reason == CrlReason.UNSPECIFIED


async def test_only_the_holder_of_the_lease_writes(registry: Registry) -> None:
    await enrolled(registry, "a1")
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW)))
    await make_entries(registry)
    other = Lease("crl", "node-2", NOW + timedelta(seconds=10))
    head = CrlHead("/crl/01.crl", CA, 1, 0, NOW, NOW, 0)
    for work in (
        registry.store_entries([], other, NOW),
        registry.publish_crls([Crl(head, b"")], [CA], other, NOW),
        registry.drop_revoked(NOW + timedelta(days=99), CA, 9, other, NOW),
        registry.drop_crls([head.path], other, NOW),
    ):
        with pytest.raises(Conflict) as refused:
            await work
        assert refused.value.code == "lease-held"
    assert await registry.crl_heads() == []
    assert await registry.unpublished() != []
    await registry.publish_crls([Crl(head, b"")], [CA], other, NOW + timedelta(seconds=10))
    assert await registry.crl_heads() == [head]
    earlier = replace(head, path="/crl/01/0-of-4.crl", named_until=NOW)
    await registry.publish_crls([Crl(earlier, b"")], [], other, NOW)
    assert await registry.crl_heads() == [head, earlier]
    await registry.drop_crls([head.path, "/crl/02.crl"], other, NOW)
    assert await registry.crl_heads() == [earlier]
    await registry.take_over(replace(LEASE, owner="command"), NOW)
    with pytest.raises(Conflict):
        await registry.store_entries([], other, NOW)
    assert await registry.latest_end() == credential("cam-7", serial="a1").not_after


async def test_a_crl_never_takes_the_place_of_one_with_a_greater_number(registry: Registry) -> None:
    await publish(registry, 8)
    with pytest.raises(Conflict):
        await publish(registry, 7)
    found = await registry.crl("/crl/01.crl")
    assert found is not None
    assert (found.head.number, found.der) == (8, b"der 8")


async def test_retention_of_credentials_leaves_revocations(registry: Registry) -> None:
    await enrolled(registry)
    spent, fresh = credential("cam-7", serial="a1"), credential("cam-7", serial="a2")
    await registry.commit(change(AddCredential(spent), AddCredential(fresh)))
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW)))
    await registry.commit(change(DropCredentials((spent.fingerprint,), spent.not_after)))
    found = {each.revocation.serial: each.der for each in await registry.pending_revocations(9)}
    assert found == {"a1": None, "a2": fresh.der}


async def test_entries_leave_once_they_have_expired(registry: Registry) -> None:
    await enrolled(registry, "a1")
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW)))
    [revoked] = await make_entries(registry)
    await registry.drop_revoked(revoked.not_after, CA, 0, LEASE, NOW)
    assert await entries(registry) == ["0 a1"]
    await registry.drop_revoked(revoked.not_after + timedelta(seconds=1), CA, 0, LEASE, NOW)
    assert await entries(registry) == []


async def test_removals_leave_once_a_crl_has_them(registry: Registry) -> None:
    await enrolled(registry, "a1")
    await registry.commit(change(HoldCredentials("device", "cam-7", NOW), ReleaseCredentials("device", "cam-7")))
    await make_entries(registry)
    await publish(registry, 5)
    await registry.drop_revoked(NOW, CA, 4, LEASE, NOW)
    assert await registry.changed_entries(CA, 4) == [b"8 a1"]
    await registry.drop_revoked(NOW, CA, 5, LEASE, NOW)
    assert await registry.revocation("a1") is None


async def test_ended_certificates_are_listed_as_superseded_and_those_ended_before_are_not(registry: Registry) -> None:
    await enrolled(registry)
    first, second = credential("cam-7", serial="a1"), credential("cam-7", serial="a2")
    await registry.commit(change(AddCredential(first), AddCredential(second), MarkUsed(second.fingerprint)))
    await registry.commit(change(EndCredentials((first.fingerprint, second.fingerprint), NOW)))
    assert [(each.serial, each.reason) for each in await make_entries(registry)] == [("a2", CrlReason.SUPERSEDED)]


async def test_what_has_expired_by_then_and_others_of_the_name_are_not_listed(registry: Registry) -> None:
    await enrolled(registry)
    expired = credential("cam-7", serial="a1")
    station = credential("cam-7", serial="a2", kind=CredentialKind.STATION)
    await registry.commit(change(AddCredential(expired), AddCredential(station)))
    await registry.commit(change(RevokeCredentials("device", "cam-7", expired.not_after)))
    assert await registry.pending_revocations(9) == []
    await registry.commit(change(RevokeCredentials("station", "cam-7")))
    assert [(e.revocation.serial, e.revocation.revoked_at) for e in await registry.pending_revocations(9)] == [
        ("a2", NOW)
    ]


async def test_a_certificate_is_known_by_its_serial_number_with_what_ended_it(registry: Registry) -> None:
    await enrolled(registry, "a1")
    found = await registry.certificate_facts("a1")
    assert found is not None
    assert (found.kind, found.holder, found.revocation) == ("device", "cam-7", None)
    [held] = await registry.credentials("cam-7")
    assert found.der == held.der
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW, CrlReason.KEY_COMPROMISE)))
    found = await registry.certificate_facts("a1")
    assert found is not None
    assert found.revocation == await registry.revocation("a1")
    await make_entries(registry)
    long_after = NOW + timedelta(days=4000)
    await registry.commit(change(DropCredentials((held.fingerprint,), long_after)))
    found = await registry.certificate_facts("a1")
    assert found is not None, "a revocation is known when the certificate has been archived"
    assert (found.kind, found.der, found.issuer) == ("", None, CA)
    for unknown in ("a2", "", "0", "xyz", "f" * 41):
        assert await registry.certificate_facts(unknown) is None


async def test_what_is_listed_again_gets_its_reason_and_a_hold_is_of_unknown_certificates_alone(
    registry: Registry,
) -> None:
    await enrolled(registry, "a1", "a2", "a3", "a4")
    until = credential("cam-7").not_after
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW, CrlReason.UNSPECIFIED)))
    await registry.commit(change(Insert(device("cam-8"))))
    await registry.commit(change(AddCredential(credential("cam-8", serial="b1"))))
    await registry.commit(change(AddCredential(credential("cam-8", serial="b2"))))
    await registry.commit(change(HoldCredentials("device", "cam-8", NOW)))
    await registry.commit(change(ReleaseCredentials("device", "cam-8")))
    await make_entries(registry)
    earlier = NOW - timedelta(days=1)
    again = {"a1": 3, "a2": 0, "a3": 6, "b1": 4, "b2": 6, "c1": 6, "c2": 5}
    await registry.add_revoked([(Revocation(serial, until, earlier, r), CA) for serial, r in again.items()])
    found = {serial: await registry.revocation(serial) for serial in ("a1", "a2", "a3", "a4", "b1", "b2", "c1", "c2")}
    assert {serial: (r.reason, r.revoked_at) for serial, r in found.items() if r is not None} == {
        "a1": (3, earlier),
        "a2": (0, earlier),
        "a3": (0, NOW),
        "a4": (0, NOW),
        "b1": (4, earlier),
        "b2": (8, found["b2"].revoked_at if found["b2"] else NOW),
        "c1": (6, earlier),
        "c2": (5, earlier),
    }


async def test_what_crls_brought_is_read_page_by_page(registry: Registry) -> None:
    await enrolled(registry, "a1", "a2", "a3")
    await registry.commit(change(RevokeCredentials("device", "cam-7", NOW, CrlReason.KEY_COMPROMISE)))
    await make_entries(registry)
    assert await registry.listed_after(CA, 0, "", 9) == []
    await publish(registry, 7)
    await registry.add_revoked([(Revocation("a4", credential("cam-7").not_after, NOW, 1), CA)])
    await make_entries(registry)
    await publish(registry, 8)
    number, serial, pages = 0, "", []
    while page := await registry.listed_after(CA, number, serial, 2):
        number, serial = page[-1].number, page[-1].revocation.serial
        pages.append([(each.number, each.revocation.serial, each.revocation.reason, each.issuer) for each in page])
    assert pages == [[(7, "a1", 1, CA), (7, "a2", 1, CA)], [(7, "a3", 1, CA), (8, "a4", 1, CA)]]
    assert await registry.listed_after(b"\x02" * 20, 0, "", 9) == []
    of = {serial: bucket_of(int(serial, 16)) for serial in ("a1", "a2", "a3", "a4")}
    assert dict(await registry.buckets_after(CA, 6)) == {of["a1"]: 7, of["a2"]: 7, of["a3"]: 7, of["a4"]: 8}
    assert await registry.buckets_after(CA, 7) == [(of["a4"], 8)]


async def test_a_certificate_for_the_same_key_given_meanwhile_is_found(registry: Registry) -> None:
    first = credential("cam-7")
    other, second = credential("cam-7"), replace(credential("cam-7"), key_sha256=first.key_sha256)
    await registry.commit(change(Insert(device("cam-7")), AddCredential(first), AddCredential(other)))
    of_key = NewestForKeyIs("cam-7", first.kind, first.key_sha256, first.fingerprint)
    await registry.commit(change(of_key))
    await registry.commit(change(AddCredential(second)))
    with pytest.raises(Conflict) as caught:
        await registry.commit(change(of_key))
    assert caught.value.code == "changed-meanwhile"
    await registry.commit(change(replace(of_key, newest=second.fingerprint)))
