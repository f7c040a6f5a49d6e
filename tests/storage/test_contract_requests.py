"""What every registry promises of requests that wait for an operator, whatever engine it stands on."""

import asyncio
import hashlib
from collections import Counter
from datetime import timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.approval import ApprovalRequest, RequestFilter, RequestState, WaitingLimits, request_id
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict
from fleet.domain.manifest import ListedDevice, ManifestEntry
from fleet.domain.ports import Registry
from fleet.domain.writes import (
    AddRequest,
    CollectRequest,
    DecideRequest,
    DropRequests,
    ImportDevices,
    Insert,
    TouchRequest,
)
from tests.storage.samples import NOW, change
from tests.storage.test_contract import refused

LIMITS = WaitingLimits(requests_max=5, per_model_max=4, per_address_max=3)
DAY = timedelta(days=1)
APPROVED, DENIED = RequestState.APPROVED, RequestState.DENIED


def waiting(
    device: str = "cam-7", key: str = "k1", model: str = "cam2", network: str = "192.0.2.1", days: int = 7
) -> ApprovalRequest:
    key_sha256 = hashlib.sha256(key.encode()).digest()
    return ApprovalRequest(
        id=request_id(device, key_sha256),
        device_id=DeviceId(device),
        model=model,
        key_sha256=key_sha256,
        key_type="EC-P256",
        facts="CN=cam-7, O=Köln ö",
        address="192.0.2.1",
        network=network,
        first_seen=NOW,
        last_seen=NOW,
        expires_at=NOW + days * DAY,
    )


def decide(r: ApprovalRequest, to: RequestState, revision: int | None = None, hours: int = 1) -> DecideRequest:
    at = NOW + timedelta(hours=hours)
    return DecideRequest(r.id, to, "operator ann", at, "seen it", at + 7 * DAY, revision)


async def state_of(registry: Registry, request: ApprovalRequest) -> str:
    found = await registry.request(request.id)
    return found.state if found is not None else "none"


async def add(registry: Registry, *requests: ApprovalRequest) -> None:
    for request in requests:
        await registry.commit(change(AddRequest(request, LIMITS)))


async def test_it_comes_back_as_it_was_and_counts_who_asks(registry: Registry) -> None:
    asked = waiting()
    await add(registry, asked)
    assert await registry.request(asked.id) == asked
    assert await registry.request("0" * 16) is None
    later = NOW + timedelta(minutes=5)
    await registry.commit(change(TouchRequest(asked.id, 3, later, "192.0.2.9")))
    assert await registry.request(asked.id) == replace(asked, asked=4, last_seen=later, address="192.0.2.9")
    assert await refused(registry, AddRequest(asked, LIMITS)) == "request-not-added"
    await registry.commit(change(TouchRequest("0" * 16, 1, later, "")))  # of one that has gone


async def test_no_more_wait_than_there_is_room_for(registry: Registry) -> None:
    await registry.commit(change(Insert(Model("b"))))
    await add(registry, *(waiting(f"d{n}") for n in range(3)))
    assert await refused(registry, AddRequest(waiting("d3"), LIMITS)) == "request-not-added"  # one network
    await add(registry, waiting("d3", network="n2"))
    assert await refused(registry, AddRequest(waiting("d4", network="n2"), LIMITS)) == "request-not-added"  # one model
    await add(registry, waiting("d4", model="b", network="n2"))
    assert await refused(registry, AddRequest(waiting("d5", model="b", network="n3"), LIMITS)) == "request-not-added"
    assert await registry.count_pending(NOW, "cam2", "n2") == (5, 4, 2)
    assert await registry.count_pending(NOW + 7 * DAY, "cam2", "n2") == (0, 0, 0)
    await registry.commit(change(decide(waiting("d4"), DENIED)))  # whoever was decided makes room
    await add(registry, waiting("d5", model="b", network="n3"))


def from_block(device: str, block: int, address: int = 1, minutes: int = 0, model: str = "cam2") -> ApprovalRequest:
    """Of an IPv4 /24, first seen `minutes` after NOW."""
    at = NOW + timedelta(minutes=minutes)
    asked = waiting(device, key=device, model=model, network=f"10.0.{block}.{address}")
    return replace(asked, block=f"10.0.{block}.0/24", first_seen=at, last_seen=at)


async def in_queue(registry: Registry) -> set[str]:
    return {r.device_id for r in await registry.requests(now=NOW)}


async def test_the_block_that_has_most_gives_way(registry: Registry) -> None:
    """Its oldest that was not seen since, of its network that has most; and what is left is as even as it can be."""
    await add(registry, *(from_block(f"a{n}", 1, 1 + n // 2, minutes=n) for n in range(3)), from_block("b0", 2))

    async def come(request: ApprovalRequest) -> None:
        await registry.commit(change(AddRequest(request, LIMITS, makes_room=True)))

    await registry.commit(change(TouchRequest(from_block("a0", 1).id, 1, NOW + timedelta(minutes=9), "10.0.1.1")))
    await come(from_block("c0", 3, minutes=10))
    assert await in_queue(registry) == {"a0", "a2", "b0", "c0"}
    # One each, but for a: who has one already takes nobody's place.
    assert await refused(registry, AddRequest(from_block("b1", 2), LIMITS, makes_room=True)) == "request-not-added"
    await come(from_block("d0", 4, minutes=10))
    assert await in_queue(registry) == {"a0", "b0", "c0", "d0"}
    assert await refused(registry, AddRequest(from_block("e0", 5), LIMITS, makes_room=True)) == "request-not-added"
    # Nobody has two, but b0 has not asked for more than an hour.
    await come(from_block("e0", 5, minutes=61))
    assert await in_queue(registry) == {"a0", "c0", "d0", "e0"}
    # Beside its model's limit there is the one of all.
    await registry.commit(change(Insert(Model("b"))))
    await come(from_block("f0", 6, minutes=61, model="b"))
    assert await refused(registry, AddRequest(from_block("f1", 6, 2, model="b"), LIMITS, makes_room=True)) == (
        "request-not-added"
    )


async def test_many_blocks_of_one_region_are_weighed_together(registry: Registry) -> None:
    """However many /48s a provider's /32 has; within one region blocks are compared, and within a block networks."""

    def of(device: str, region: str, block: str, network: str = "") -> AddRequest:
        asked = waiting(device, key=device, network=network or f"{region} {block}")
        request = replace(asked, block=f"{region} {block}", region=region)
        return AddRequest(request, LIMITS, makes_room=True)

    async def shares() -> dict[str, int]:
        return Counter(device[0] for device in await in_queue(registry))

    for n in range(4):
        await registry.commit(change(of(f"a{n}", "a", f"{n}")))
    await registry.commit(change(of("b0", "b", "0")))
    assert await shares() == {"a": 3, "b": 1}
    assert await refused(registry, of("a4", "a", "4")) == "request-not-added"  # each block of its region has one
    await registry.commit(change(of("b1", "b", "0", "other")))
    assert await shares() == {"a": 2, "b": 2}
    # Two each: b's block 0 has as many as region a, and gives way to another block of its own region alone.
    assert await refused(registry, of("b2", "b", "0", "third")) == "request-not-added"
    await registry.commit(change(of("b2", "b", "1")))
    assert await shares() == {"a": 2, "b": 2}
    assert "b2" in await in_queue(registry)
    # A node of the version before writes no region.
    await registry.commit(change(of("old", "", "x")))
    assert "old" in await in_queue(registry)


async def test_a_key_that_the_manifest_lists_is_never_crowded_out(registry: Registry) -> None:
    mine = from_block("a0", 1)
    device = Device(DeviceId("a0"), "cam2", DeviceState.REGISTERED, NOW)
    entry = ManifestEntry(DeviceId("a0"), "cam2", "", mine.key_sha256, bytes(32))
    await registry.commit(change(ImportDevices((ListedDevice(device, entry),))))
    await add(registry, *(from_block(f"a{n}", 1, 1 + n // 2, minutes=n) for n in range(1, 5)))
    await registry.commit(change(AddRequest(mine, LIMITS, is_announced=True)))
    for number in range(2):
        late = from_block(f"z{number}", 8 + number, minutes=120)
        await registry.commit(change(AddRequest(late, LIMITS, makes_room=True)))
    assert await in_queue(registry) == {"a0", "a3", "a4", "z0", "z1"}
    assert await registry.count_pending(NOW, "cam2", "10.0.1.1") == (5, 4, 0)


async def test_who_asks_again_is_kept_longer(registry: Registry) -> None:
    await add(registry, waiting(days=1))
    await registry.commit(change(TouchRequest(waiting().id, 1, NOW, "", NOW + 2 * DAY)))
    assert await state_of(registry, waiting()) == "pending"
    found = await registry.request(waiting().id)
    assert found is not None
    assert found.expires_at == NOW + 2 * DAY
    await registry.commit(change(TouchRequest(waiting().id, 1, NOW, "", NOW + DAY)))
    await registry.commit(change(decide(waiting(), DENIED)))
    await registry.commit(change(TouchRequest(waiting().id, 1, NOW, "", NOW + 99 * DAY)))
    found = await registry.request(waiting().id)
    assert found is not None
    assert found.expires_at == decide(waiting(), DENIED).expires_at


async def test_of_many_at_once_no_more_than_there_is_room_for(registry: Registry) -> None:
    outcomes = await asyncio.gather(
        *(registry.commit(change(AddRequest(waiting(f"d{n}"), LIMITS))) for n in range(20)), return_exceptions=True
    )
    assert [type(each) for each in outcomes].count(Conflict) == 17
    assert (await registry.count_pending(NOW))[0] == 3


async def test_the_expired_make_room_and_may_come_again(registry: Registry) -> None:
    old = waiting(days=1)
    await add(registry, old, waiting("d2"))
    again = replace(old, first_seen=NOW + DAY, last_seen=NOW + DAY, expires_at=NOW + 8 * DAY)
    await add(registry, again)
    assert await registry.request(old.id) == again
    await registry.commit(change(DropRequests(NOW + 7 * DAY)))
    assert [r.id for r in await registry.requests(now=NOW)] == [again.id]


async def test_listing_by_page_and_filter(registry: Registry) -> None:
    await registry.commit(change(Insert(Model("b"))))
    asked = [waiting("d1"), waiting("d1", "k2", network="n2"), waiting("d2", model="b"), waiting("d3", days=1)]
    await add(registry, *asked)
    await registry.commit(change(decide(asked[2], DENIED)))
    ids = sorted(r.id for r in asked)
    found = await registry.requests(now=NOW, limit=3)
    assert [r.id for r in found] == ids[:3]
    assert [r.id for r in await registry.requests(now=NOW, after=found[-1].id)] == ids[3:]

    async def listed(where: RequestFilter, days: int = 0) -> set[str]:
        return {r.id for r in await registry.requests(where, now=NOW + days * DAY)}

    assert await listed(RequestFilter(state=DENIED)) == {asked[2].id}
    assert await listed(RequestFilter(model="b", state=RequestState.PENDING)) == set()
    assert await listed(RequestFilter(device_id="d1")) == {asked[0].id, asked[1].id}
    assert await listed(RequestFilter(), days=1) == {r.id for r in asked[:3]}


async def test_yes_once_for_one_key_and_no_to_the_others(registry: Registry) -> None:
    mine, other, elsewhere = waiting(), waiting(key="k2"), waiting("d2")
    await add(registry, mine, other, elsewhere)
    await registry.commit(change(decide(mine, APPROVED, revision=1)))
    found = await registry.request(mine.id)
    at = NOW + timedelta(hours=1)
    assert found == replace(
        mine,
        state=APPROVED,
        decided_by="operator ann",
        decided_at=at,
        reason="seen it",
        expires_at=at + 7 * DAY,
        revision=2,
    )
    denied = await registry.request(other.id)
    assert denied is not None
    assert (denied.state, denied.reason) == (DENIED, f"request {mine.id} was approved")
    assert await state_of(registry, elsewhere) == "pending"
    await registry.commit(change(CollectRequest(mine.id)))
    assert await state_of(registry, mine) == "issued"
    assert await refused(registry, CollectRequest(mine.id)) == "request-moved"
    assert await refused(registry, decide(mine, DENIED)) == "request-moved"
    assert await refused(registry, decide(other, APPROVED)) == "request-moved"


async def test_a_yes_may_be_taken_back_before_it_is_used(registry: Registry) -> None:
    mine, other = waiting(), waiting(key="k2")
    await add(registry, mine)
    await registry.commit(change(decide(mine, APPROVED)))
    await add(registry, other)
    assert await refused(registry, decide(other, APPROVED)) == "other-request-approved"
    await registry.commit(change(decide(mine, DENIED)))
    assert await refused(registry, CollectRequest(mine.id)) == "request-moved"
    await registry.commit(change(decide(other, APPROVED)))


@pytest.mark.parametrize(
    ("revision", "hours", "code"),
    [(2, 1, "changed-meanwhile"), (None, 7 * 24, "request-moved"), (1, 7 * 24, "request-moved")],
)
async def test_no_word_about_another_state_or_one_that_has_expired(
    registry: Registry, revision: int | None, hours: int, code: str
) -> None:
    await add(registry, waiting())
    assert await refused(registry, decide(waiting(), APPROVED, revision, hours)) == code
    assert await refused(registry, replace(decide(waiting(), APPROVED), request_id="0" * 16)) == "request-moved"
    assert await state_of(registry, waiting()) == "pending"


async def test_of_two_who_say_yes_to_two_keys_at_once_one_is_heard(registry: Registry) -> None:
    asked = [waiting(), waiting(key="k2")]
    await add(registry, *asked)
    outcomes = await asyncio.gather(
        *(registry.commit(change(decide(each, APPROVED))) for each in asked), return_exceptions=True
    )
    assert [type(each) for each in outcomes if each] == [Conflict]
    assert sorted([await state_of(registry, each) for each in asked]) == ["approved", "denied"]
