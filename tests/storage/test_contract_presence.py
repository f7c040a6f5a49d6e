"""What every registry promises of presence: the newest session of each client id, and no more of them than that."""

import asyncio
from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Event, Notice
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.domain.presence import (
    ENDED_ROWS_MAX,
    RUN_ENDED,
    RUN_KEPT,
    SILENT_AFTER,
    ClientSession,
    GatewayRun,
    SessionFilter,
    SessionState,
)
from fleet.domain.writes import Insert
from tests.storage.samples import MODEL, NOW, change, device

SECOND = timedelta(seconds=1)
RUN = GatewayRun("aa" * 8, "host:/home", 1, NOW)


def session(
    device_id: str, at: int = 0, ended: int | None = None, *, name: str = "", run: str = "aa" * 8
) -> ClientSession:
    """From `at` to `ended` seconds after NOW."""
    return ClientSession(
        device_id=device_id,
        client_id=f"{device_id}/{name}" if name else device_id,
        connected_at=NOW + at * SECOND,
        seen_at=NOW + (at if ended is None else ended) * SECOND,
        ended_at=None if ended is None else NOW + ended * SECOND,
        reason="" if ended is None else "client-gone",
        address="192.0.2.7",
        node="host:/home",
        run=run,
        mqtt="5.0",
        tls="TLSv1.3",
        tls_group="X25519MLKEM768",
    )


async def states(registry: Registry, now: datetime = NOW) -> dict[str, tuple[str, str]]:
    return {each.session.client_id: (each.state(now), each.reason) for each in await registry.sessions()}


CONNECTED, DISCONNECTED, UNKNOWN = (SessionState.CONNECTED, ""), SessionState.DISCONNECTED, (SessionState.UNKNOWN, "")


async def test_the_newest_session_of_a_client_id_is_kept(registry: Registry) -> None:
    await registry.begin_run(RUN)
    await registry.note_sessions([session("cam-2", 5), session("cam-1")], RUN)
    assert [each.session for each in await registry.sessions()] == [session("cam-1"), session("cam-2", 5)]
    await registry.note_sessions([session("cam-1", 0, 3)], RUN)
    await registry.note_sessions([session("cam-2", 1, 9)], RUN)  # taken over: its end was noted late
    assert await states(registry) == {"cam-1": (DISCONNECTED, "client-gone"), "cam-2": CONNECTED}
    await registry.note_sessions([session("cam-1", 4)], RUN)
    [found, _] = await registry.sessions()
    assert (found.session, found.ended_at) == (session("cam-1", 4), None)


async def test_an_open_session_replaces_what_a_faster_clock_has_left(registry: Registry) -> None:
    fast, slow = RUN, GatewayRun("bb" * 8, "other:/home", 1, NOW)
    await registry.begin_run(fast)
    await registry.begin_run(slow)
    await registry.note_sessions([session("cam-1", 50, 60), session("cam-2", 50)], fast)
    await registry.note_sessions([session("cam-1", 10, run=slow.run), session("cam-2", 10, run=slow.run)], slow)
    assert [each.session.run for each in await registry.sessions()] == [slow.run, fast.run]
    await registry.end_runs(fast.node)
    await registry.note_sessions([session("cam-2", 10, run=slow.run)], slow)
    assert [each.session.run for each in await registry.sessions()] == [slow.run, slow.run]


async def test_an_open_session_does_not_replace_its_own_end(registry: Registry) -> None:
    await registry.begin_run(RUN)
    await registry.note_sessions([session("cam-1", 0, 3)], RUN)
    await registry.note_sessions([session("cam-1")], RUN)  # of a round that saw it open
    assert await states(registry) == {"cam-1": (DISCONNECTED, "client-gone")}


async def test_sessions_end_with_their_run(registry: Registry) -> None:
    second = GatewayRun("bb" * 8, RUN.node, 2, NOW)
    await registry.begin_run(RUN)
    await registry.begin_run(second)
    await registry.note_sessions([session("cam-1", 7)], RUN)
    await registry.note_sessions([session("cam-2", run=second.run)], second)
    await registry.begin_run(GatewayRun("cc" * 8, RUN.node, 1, NOW))  # the worker was killed, and is there again
    lost, _ = await registry.sessions()
    assert (lost.state(NOW), lost.reason, lost.ended_at) == (DISCONNECTED, RUN_ENDED, NOW + 7 * SECOND)
    assert (await states(registry))["cam-2"] == CONNECTED
    await registry.end_runs(RUN.node, worker=3)
    await registry.end_runs("other:/home", worker=2)
    for ends in ({}, {"run": second.run}, {"worker": 2}):
        await registry.begin_run(second)
        assert (await states(registry))["cam-2"] == CONNECTED
        await registry.end_runs(RUN.node, **ends)
        assert (await states(registry))["cam-2"] == (DISCONNECTED, RUN_ENDED)


async def test_of_a_node_that_is_not_heard_from_nothing_is_known(registry: Registry) -> None:
    await registry.begin_run(RUN)
    await registry.note_sessions([session("cam-1"), session("cam-2", 0, 1)], RUN)
    late = NOW + SILENT_AFTER + SECOND
    assert await states(registry, late) == {"cam-1": UNKNOWN, "cam-2": (DISCONNECTED, "client-gone")}
    await registry.note_sessions((), GatewayRun(RUN.run, RUN.node, 1, late))
    assert (await states(registry, late))["cam-1"] == CONNECTED
    await registry.begin_run(GatewayRun("bb" * 8, "other:/home", 1, late + RUN_KEPT + SECOND))
    assert (await states(registry, late))["cam-1"] == (DISCONNECTED, RUN_ENDED)  # it was never started again


async def test_names_that_a_device_chooses_are_no_end_of_rows(registry: Registry) -> None:
    await registry.begin_run(RUN)
    await registry.note_sessions([session("cam-1", name="open"), session("cam-1")], RUN)
    for first in range(0, 60, 20):
        ends = [session("cam-1", n, n + 1, name=f"n{n:02}") for n in range(first, first + 20)]
        await registry.note_sessions(ends, RUN)
    kept = [each.session.client_id for each in await registry.sessions()]
    newest = [f"cam-1/n{n:02}" for n in range(60 - ENDED_ROWS_MAX, 60)]
    assert kept == ["cam-1", *newest, "cam-1/open"]


async def test_sessions_that_were_lost_count_as_ended(registry: Registry) -> None:
    for n in range(ENDED_ROWS_MAX + 4):  # killed each time
        run = GatewayRun(f"{n:016}", RUN.node, 1, NOW)
        await registry.begin_run(run)
        await registry.note_sessions([session("cam-1", n, name=f"n{n:02}", run=run.run)], run)
    kept = [each.session.client_id for each in await registry.sessions()]
    assert kept == [f"cam-1/n{n:02}" for n in range(3, ENDED_ROWS_MAX + 4)]  # those, and the one that is open


async def test_listing(registry: Registry) -> None:
    await registry.commit(change(Insert(replace(MODEL, name="pump"))))
    for name, model in (("a", "cam2"), ("b", "pump"), ("c", "cam2")):
        await registry.commit(change(Insert(device(name, model=model))))
    await registry.begin_run(RUN)
    noted = [session("a"), session("a", name="x"), session("b", 0, 1), session("c"), session("é", run="none")]
    await registry.note_sessions(noted, RUN)

    async def ids(after: tuple[str, str] = ("", ""), limit: int = 1000, **where: str | bool) -> list[str]:
        found = await registry.sessions(SessionFilter(**where), after=after, limit=limit)  # type: ignore[arg-type]
        return [each.session.client_id for each in found]

    assert await ids() == ["a", "a/x", "b", "c", "é"]
    assert await ids(limit=2) == ["a", "a/x"]
    assert await ids(after=("a", "a")) == ["a/x", "b", "c", "é"]
    assert await ids(after=("a", "a/x"), limit=1) == ["b"]
    assert await ids(device_id="a") == ["a", "a/x"]
    assert await ids(model="cam2") == ["a", "a/x", "c"]
    assert await ids(model="cam2", device_id="b") == []
    assert await ids(is_open=True) == ["a", "a/x", "c"]
    assert await ids(is_open=False) == ["b", "é"]
    assert await ids(node="host:/home", is_open=True, model="cam2", device_id="c") == ["c"]
    assert await ids(node="other") == []


async def test_what_is_told_is_in_the_feed_and_not_in_the_audit(registry: Registry) -> None:
    before, rows = await registry.last_event(), await registry.last_audit()
    first, second, third = (Event("k", f"s-{n}", "d") for n in range(3))
    told = (
        registry.tell(Notice((first, second))),
        registry.commit(change(Insert(device("a")))),
        registry.tell(Notice((third,))),
        registry.tell(Notice(())),
    )
    with pytest.raises(Conflict):  # one of a batch fails: each is written by itself
        await asyncio.gather(*told, registry.commit(change(Insert(MODEL))))
    await asyncio.gather(registry.tell(Notice((first,))), return_exceptions=False)
    events = await registry.events(after=before)
    assert [event.seq for event in events] == list(range(before + 1, before + 1 + len(events)))
    assert [event.subject for event in events if event.kind == "k"] == ["s-0", "s-1", "s-2", "s-0"]
    assert await registry.last_audit() == rows + 1
    followed = registry.follow(before)
    assert [(await anext(followed)).seq for _ in events] == [event.seq for event in events]
    await followed.aclose()
