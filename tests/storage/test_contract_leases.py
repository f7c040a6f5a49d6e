"""What every registry promises of leases: one owner at a time, whatever engine it stands on."""

import asyncio
from datetime import timedelta

import pytest

from fleet.domain.credential import Station
from fleet.domain.errors import Conflict
from fleet.domain.lease import Lease
from fleet.domain.ports import Registry
from fleet.domain.writes import Insert, TakeLease
from tests.storage.samples import NOW, change

HOUR = timedelta(hours=1)


def take(owner: str, hours: int = 0, *, name: str = "retention", by_force: bool = False) -> TakeLease:
    """For three hours, `hours` after NOW."""
    return TakeLease(Lease(name, owner, NOW + (hours + 3) * HOUR), NOW + hours * HOUR, by_force)


async def holder(registry: Registry, name: str = "retention") -> str:
    lease = await registry.lease(name)
    return lease.owner if lease else ""


async def test_it_is_taken_renewed_and_given_up(registry: Registry) -> None:
    assert await registry.lease("retention") is None
    await registry.commit(change(take("a")))
    assert await registry.lease("retention") == Lease("retention", "a", NOW + 3 * HOUR)
    await registry.commit(change(take("a", 2)))
    for hours in (2, 3, 4):  # until 5, since it was renewed
        with pytest.raises(Conflict) as caught:
            await registry.commit(change(take("b", hours)))
        assert caught.value.code == "lease-held"
    assert await registry.lease("retention") == Lease("retention", "a", NOW + 5 * HOUR)
    await registry.commit(change(take("b", 5)))  # its owner died
    assert await holder(registry) == "b"
    with pytest.raises(Conflict):
        await registry.commit(change(take("a", 6)))
    await registry.commit(change(take("é", 6, name="another")))
    assert (await holder(registry), await holder(registry, "another")) == ("b", "é")


async def test_one_that_only_a_fast_clock_can_have_taken_has_no_owner(registry: Registry) -> None:
    await registry.commit(change(take("fast", 4)))  # until 7
    with pytest.raises(Conflict):
        await registry.commit(change(take("b", 1)))  # a lease taken at 4 at the latest: clocks differ
    await registry.commit(change(take("b")))  # a lease of three hours never ends in seven
    assert await registry.lease("retention") == Lease("retention", "b", NOW + 3 * HOUR)


async def test_by_force(registry: Registry) -> None:
    await registry.commit(change(take("a")))
    await registry.commit(change(take("b", by_force=True)))
    assert await holder(registry) == "b"


async def test_it_fences_what_stands_beside_it(registry: Registry) -> None:
    await registry.commit(change(take("a")))
    await registry.commit(change(take("b", 4)))
    rows = await registry.last_audit()
    with pytest.raises(Conflict):  # woke up late, and its own clock stood still
        await registry.commit(change(take("a", 1), Insert(Station("s", (), NOW))))
    assert await registry.station("s") is None
    assert await registry.last_audit() == rows
    await registry.commit(change(take("b", 5), Insert(Station("s", (), NOW))))
    assert await registry.station("s") is not None


async def test_of_many_at_once_one_has_it(registry: Registry) -> None:
    outcomes = await asyncio.gather(
        *(registry.commit(change(take(f"node-{n}"))) for n in range(20)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict] * 19
    winner = next(n for n, outcome in enumerate(outcomes) if outcome is None)
    assert await holder(registry) == f"node-{winner}"
