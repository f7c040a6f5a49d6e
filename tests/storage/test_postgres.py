"""The PostgreSQL engine where it is more than the contract: several nodes, locks, plans, closing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from fleet.config.database_url import DatabaseUrl
from fleet.domain.audit_log import sound_leaves
from fleet.domain.changes import Event
from fleet.domain.device import DeviceFilter, DeviceId, DeviceState, Place
from fleet.domain.errors import Conflict, FleetError, Invalid, Unavailable
from fleet.domain.writes import AddCredential, EndUnused, Insert, MoveDevice, RevokeCredentials, SpendToken, Write
from fleet.storage import queries
from fleet.storage.postgres import heads as postgres_heads
from fleet.storage.postgres import reads as postgres_reads
from fleet.storage.postgres import session as postgres_session
from fleet.storage.postgres import writer as postgres_commit
from fleet.storage.postgres.functions import ALL, SEQUENCE_LOCK
from fleet.storage.postgres.registry import COMMIT_BATCH_MAX, PostgresRegistry
from fleet.storage.queries import Query
from tests.storage.samples import MODEL, NOW, change, credential, device, token

DEADLINE_SECONDS = 120.0
PARAMETERS = "SELECT cardinality(parameter_types) FROM pg_prepared_statements"
Opener = Callable[[], Awaitable[PostgresRegistry]]


@pytest.fixture
async def nodes(postgres_url: DatabaseUrl) -> AsyncIterator[Opener]:
    """Opens one node after the other on one database; the model cam2 is in it once the first is open."""
    async with AsyncExitStack() as opened:

        async def open_() -> PostgresRegistry:
            registry = await PostgresRegistry.open(postgres_url, create=False)
            opened.push_async_callback(registry.close)
            if not await registry.models():
                await registry.commit(change(Insert(MODEL)))
            return registry

        yield open_


@pytest.fixture
async def registry(nodes: Opener) -> PostgresRegistry:
    return await nodes()


@pytest.fixture
async def stranger(postgres_url: DatabaseUrl) -> AsyncIterator[Any]:
    """A session with the same database that is none of ours."""
    session = await asyncpg.connect(postgres_url.dsn, server_settings={"search_path": "fleet"})
    yield session
    session.terminate()


async def until_waiting(session: Any) -> None:
    """Return when one of our sessions waits for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'fleet %'"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await session.fetchval(sql):
            pass


async def outcome_of(work: Awaitable[None]) -> str:
    try:
        await work
    except FleetError as error:
        return error.code
    return "ok"


class TestSeveralNodes:
    async def test_commits_at_once_are_numbered_without_gaps_and_all_are_heard(self, nodes: Opener) -> None:
        first, second = await nodes(), await nodes()
        total = 200
        start = await first.last_event()

        async def write(node: PostgresRegistry, name: str) -> None:
            for n in range(total // 10):
                added = change(Insert(device(f"{name}-{n}")), events=(Event("test", f"{name}-{n}"),))
                await node.commit(added)

        async def follow(node: PostgresRegistry) -> list[Event]:
            seen: list[Event] = []
            async for event in node.follow(start):
                seen.append(event)
                if len(seen) == total:
                    break
            return seen

        async with asyncio.timeout(DEADLINE_SECONDS):
            heard = asyncio.gather(follow(first), follow(second))
            writing = (write(node, f"{name}{n}") for n in range(5) for node, name in ((first, "a"), (second, "b")))
            await asyncio.gather(*writing)
            assert (seen := await heard)[0] == seen[1]
        assert [event.seq for event in seen[0]] == list(range(start + 1, start + total + 1))
        assert len({event.subject for event in seen[0]}) == total
        rows = await second.audit()
        assert len(list(sound_leaves(rows))) == total + 1

    async def test_a_key_is_one_holders_whichever_node_is_asked(self, nodes: Opener) -> None:
        first, second = await nodes(), await nodes()
        for n in range(20):
            made = credential(f"a{n}")
            rival = replace(credential(f"b{n}"), key_sha256=made.key_sha256)
            commits = (first.commit(change(AddCredential(made))), second.commit(change(AddCredential(rival))))
            assert sorted(await asyncio.gather(*map(outcome_of, commits))) == ["key-taken", "ok"]

    async def test_a_request_is_answered_once_whichever_node_is_asked(self, nodes: Opener) -> None:
        first, second = await nodes(), await nodes()
        for n in range(20):
            commits = []
            for node in (first, second):
                made = replace(credential(f"d{n}"), grant="token t1")
                commits.append(node.commit(change(EndUnused("device", f"d{n}", "token t1", None), AddCredential(made))))
            assert sorted(await asyncio.gather(*map(outcome_of, commits))) == ["answered-already", "ok"]

    async def test_no_certificate_slips_past_a_revocation(self, nodes: Opener) -> None:
        first, second = await nodes(), await nodes()
        for n in range(20):
            name = f"d{n}"
            await first.commit(change(Insert(device(name, DeviceState.ACTIVE))))
            active = frozenset({DeviceState.ACTIVE})
            revoke: tuple[Write, ...] = (
                MoveDevice(DeviceId(name), active, DeviceState.REVOKED),
                RevokeCredentials("device", name),
            )
            issue: tuple[Write, ...] = (
                MoveDevice(DeviceId(name), active, DeviceState.ACTIVE),
                AddCredential(credential(name)),
            )
            await asyncio.gather(
                first.commit(change(*revoke)), outcome_of(second.commit(change(*issue))), return_exceptions=True
            )
            assert {c.state.value for c in await first.credentials(name)} <= {"revoked"}

    async def test_a_token_is_spent_no_more_often_than_it_may_be(self, nodes: Opener) -> None:
        first, second = await nodes(), await nodes()
        await first.commit(change(Insert(token("t1", 7))))
        commits = [node.commit(change(SpendToken("t1"))) for node in (first, second) for _ in range(20)]
        assert sorted(await asyncio.gather(*map(outcome_of, commits))) == ["ok"] * 7 + ["token-spent"] * 33


class TestLocks:
    async def test_reads_do_not_wait_for_a_commit_that_does(self, registry: PostgresRegistry, stranger: Any) -> None:
        await stranger.execute(f"BEGIN; SELECT pg_advisory_xact_lock({SEQUENCE_LOCK})")
        waiting = asyncio.create_task(registry.commit(change(Insert(device("a")))))
        await until_waiting(stranger)
        assert await registry.device("a") is None
        assert await registry.models() == [MODEL]
        await stranger.execute("COMMIT")
        async with asyncio.timeout(DEADLINE_SECONDS):
            await waiting
        assert await registry.device("a") is not None

    async def test_who_keeps_a_lock_makes_it_unavailable(
        self, nodes: Opener, stranger: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(postgres_session._SETTINGS, "lock_timeout", "20ms")
        registry = await nodes()
        await stranger.execute(f"BEGIN; SELECT pg_advisory_xact_lock({SEQUENCE_LOCK})")
        with pytest.raises(Unavailable) as caught:
            await registry.commit(change(Insert(device("a"))))
        assert caught.value.code == "registry-busy"
        await stranger.execute("COMMIT")
        assert await registry.devices() == []
        await registry.commit(change(Insert(device("a"))))

    async def test_a_deadlock_is_resolved_change_by_change(self, registry: PostgresRegistry, stranger: Any) -> None:
        await registry.commit(change(Insert(token("t1", 9)), Insert(token("t2", 9))))
        await stranger.execute("SET deadlock_timeout = '1h'")  # ours is the one that is chosen
        await stranger.execute("BEGIN; UPDATE token SET uses = uses + 1 WHERE id = 't2'")
        commits = asyncio.gather(*(registry.commit(change(SpendToken(name))) for name in ("t1", "t2")))
        await until_waiting(stranger)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await stranger.execute("UPDATE token SET uses = uses + 1 WHERE id = 't1'")
            await stranger.execute("COMMIT")
            assert await commits == [None, None]
        assert [t.uses for t in await registry.tokens()] == [2, 2]


class TestWhatCannotBeStored:
    async def test_a_nul_fails_its_own_change_alone(self, registry: PostgresRegistry) -> None:
        bad = replace(device("b"), hardware_serial="\0")
        commits = [registry.commit(change(Insert(one))) for one in (device("a"), bad, device("c"))]
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert isinstance(outcomes[1], Invalid)
        assert [d.id for d in await registry.devices()] == ["a", "c"]

    async def test_asked_for_such_a_name_it_says_so(self, registry: PostgresRegistry) -> None:
        for name in ("\0", "\ud800"):
            with pytest.raises(Invalid) as caught:
                await registry.device(name)
            assert caught.value.code == "bad-value"

    async def test_a_broken_rule_is_a_conflict_of_its_own_change(self, registry: PostgresRegistry) -> None:
        orphan = device("b", model="nowhere")
        commits = [registry.commit(change(Insert(one))) for one in (device("a"), orphan, device("c"))]
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert isinstance(outcomes[1], Conflict)
        assert outcomes[1].code == "against-the-rules"
        assert [d.id for d in await registry.devices()] == ["a", "c"]


async def test_a_commit_is_on_disk_whatever_the_database_is_set_to(postgres_url: DatabaseUrl, stranger: Any) -> None:
    name = await stranger.fetchval("SELECT current_database()")
    for setting, used in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        await stranger.execute(f"ALTER DATABASE {name} SET synchronous_commit = {setting}")
        registry = await PostgresRegistry.open(postgres_url)
        session = await registry._writer.open()
        assert await session.fetchval("SHOW synchronous_commit") == used
        await registry.close()


async def test_many_at_once_share_transactions(registry: PostgresRegistry, stranger: Any) -> None:
    before = await stranger.fetchval("SELECT pg_current_xact_id()::text::bigint")
    total = COMMIT_BATCH_MAX * 2 + 1
    await asyncio.gather(*(registry.commit(change(Insert(device(f"d{n}")))) for n in range(total)))
    taken = await stranger.fetchval("SELECT pg_current_xact_id()::text::bigint") - before  # the server's, whoever's
    assert taken < total / 10
    assert await registry.last_audit() == total + 1


async def test_close_commits_what_was_handed_over(nodes: Opener, postgres_url: DatabaseUrl) -> None:
    registry = await nodes()
    tasks = [asyncio.create_task(registry.commit(change(Insert(device(f"d{n}"))))) for n in range(50)]
    await asyncio.sleep(0)
    await registry.close()
    assert await asyncio.gather(*tasks) == [None] * 50
    assert len(await (await nodes()).devices()) == 50


async def test_a_close_leaves_nothing_behind(registry: PostgresRegistry, stranger: Any) -> None:
    waiting = asyncio.ensure_future(anext(registry.follow(await registry.last_event())))
    await asyncio.sleep(0)
    await registry.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(Unavailable):
            await waiting
        # No session, no mark.
        while await stranger.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'fleet %'"):
            pass
    assert await stranger.fetchval("SELECT count(*) FROM writer") == 0


async def test_no_hot_statement_walks_a_table(registry: PostgresRegistry) -> None:
    listings = {"MODELS", "STATIONS", "OPERATORS", "TOKENS", "CLAIMS", "ANCHORS", "DISTRUSTS"}  # whole, on purpose
    statements = {
        name: text
        for module in (postgres_commit, postgres_heads)
        for name, text in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str) and " " in text.strip()
        if name not in {"FUNCTIONS", "FORGET_MARKS", "MARKS_KEPT", "SEAL_LOCK"}
    }
    statements |= {name: statement.sql for name, statement in ALL.items()}
    statements |= {
        name: query.sql
        for module in (queries, postgres_reads)
        for name, query in vars(module).items()
        if isinstance(query, Query) and name not in listings
    }
    filters = (
        DeviceFilter(model="b"),
        DeviceFilter(state=DeviceState.SUSPENDED),
        DeviceFilter(tags=(("lot", "1"), ("site", "x"))),
        DeviceFilter(expires_before=NOW),
    )
    statements |= {f"devices {where}": queries.list_devices(where, Place(), 5)[0].sql for where in filters}
    assert len(statements) > 80
    session = await registry._writer.open()
    await session.execute("SET plan_cache_mode = force_generic_plan")
    for name, text in statements.items():
        await session.execute(f"PREPARE one AS {text}")
        count = await session.fetchval(f"{PARAMETERS} WHERE name = 'one'")
        marks = f"({', '.join(['NULL'] * count)})" if count else ""
        plan = " ".join(row[0] for row in await session.fetch(f"EXPLAIN EXECUTE one{marks}"))
        assert "Seq Scan" not in plan, (name, plan)
        await session.execute("DEALLOCATE one")
