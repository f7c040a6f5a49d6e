"""PostgreSQL killed, restarted, gone, its sessions ended, its answers lost: what was answered is so."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fleet.config.database_url import DatabaseUrl, parse_database_url
from fleet.domain.audit_log import sound_leaves
from fleet.domain.changes import Event
from fleet.domain.errors import Unavailable
from fleet.domain.merkle import EMPTY
from fleet.domain.writes import Insert
from fleet.storage.postgres import listener
from fleet.storage.postgres import writer as postgres_commit
from fleet.storage.postgres.functions import SEQUENCE_LOCK
from fleet.storage.postgres.registry import PostgresRegistry
from fleet.storage.postgres.session import connect
from tests.postgres_server import PostgresServer, running_postgres
from tests.storage.postgres_proxy import Proxy
from tests.storage.samples import MODEL, change, device
from tests.storage.test_contract_logs import sealed
from tests.storage.test_postgres import until_waiting
from tests.waiting import PATIENCE_SECONDS

AT_ONCE = 8
PAUSE_SECONDS = 0.01
KILLS = 3


@pytest.fixture
def own_server(postgres_programs: Path) -> Iterator[PostgresServer]:
    """A cluster that this test may kill, with fsync on."""
    with running_postgres(postgres_programs, ()) as server:
        yield server


@pytest.fixture
async def registry(postgres_url: DatabaseUrl) -> AsyncIterator[PostgresRegistry]:
    opened = await PostgresRegistry.open(postgres_url, create=False)
    await opened.commit(change(Insert(MODEL)))
    yield opened
    await opened.close()


@pytest.fixture
async def stranger(postgres_url: DatabaseUrl) -> AsyncIterator[Any]:
    """A session with the same database that is none of ours."""
    session = await asyncpg.connect(postgres_url.dsn, server_settings={"search_path": "fleet"})
    yield session
    session.terminate()


class Load:
    """Devices that are added one after the other, and what each of them was answered."""

    def __init__(self, registry: PostgresRegistry) -> None:
        self._registry = registry
        self._numbers = itertools.count()
        self._progress = asyncio.Condition()
        self.outcomes: dict[str, str] = {}
        self._tasks = [asyncio.create_task(self._write()) for _ in range(AT_ONCE)]

    async def _write(self) -> None:
        while True:
            id_ = f"d{next(self._numbers)}"
            try:
                await self._registry.commit(change(Insert(device(id_)), events=(Event("test", id_),)))
            except Unavailable as error:
                self.outcomes[id_] = error.code
                await asyncio.sleep(PAUSE_SECONDS)  # a client that is refused does not spin
            else:
                self.outcomes[id_] = "ok"
            async with self._progress:
                self._progress.notify_all()

    def count(self, code: str) -> int:
        return list(self.outcomes.values()).count(code)

    async def more(self, code: str, count: int = 40) -> None:
        """Return when `count` more have been answered with `code`."""
        wanted = self.count(code) + count
        async with asyncio.timeout(PATIENCE_SECONDS), self._progress:
            await self._progress.wait_for(lambda: self.count(code) >= wanted)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def devices_of(registry: PostgresRegistry) -> set[str]:
    return {d.id for d in await registry.devices(limit=10_000)}


async def test_what_was_answered_is_so_after_kill_9(own_server: PostgresServer) -> None:
    url = parse_database_url(own_server.url(own_server.make_registry()))
    registry = await PostgresRegistry.open(url)
    await registry.commit(change(Insert(MODEL)))
    load = Load(registry)
    for _ in range(KILLS):
        await load.more("ok", 60)
        own_server.kill()
        await asyncio.to_thread(own_server.start)
        await load.more("ok", 60)
    await load.stop()
    await registry.close()  # what was under way when the load stopped is committed now

    again = await PostgresRegistry.open(url, create=False)
    present = await devices_of(again)
    for id_, code in load.outcomes.items():
        assert code == "registry-unsettled" or (id_ in present) == (code == "ok"), (id_, code)
    # A device, its audit row and its event: all three or none, numbered without gaps through all the deaths.
    leaves = list(sound_leaves(await again.audit(limit=10_000)))
    assert len(leaves) == await again.last_audit() == len(present) + 1
    assert await again.last_event() == len(present)
    await again.close()


async def test_while_it_is_gone_it_is_unavailable_and_then_it_goes_on(own_server: PostgresServer) -> None:
    url = parse_database_url(own_server.url(own_server.make_registry()))
    registry = await PostgresRegistry.open(url)
    await registry.commit(change(Insert(MODEL)))
    load = Load(registry)
    await load.more("ok")
    following = asyncio.ensure_future(anext(registry.follow(10**9)))
    await asyncio.to_thread(own_server.stop)
    await load.more("registry-unavailable")
    async with asyncio.timeout(PATIENCE_SECONDS):
        for call in (registry.device("d0"), registry.devices(), following):
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.code == "registry-unavailable"
    await asyncio.to_thread(own_server.start)
    await load.more("ok")
    await load.stop()
    await registry.close()

    again = await PostgresRegistry.open(url)
    present = await devices_of(again)
    for id_, code in load.outcomes.items():
        assert (id_ in present) == (code == "ok"), (id_, code)
    async with asyncio.timeout(PATIENCE_SECONDS):
        feed = again.follow(0)
        assert [(await anext(feed)).seq for _ in present] == list(range(1, len(present) + 1))
    await again.close()


async def end_sessions(session: Any, role: str) -> int:
    """How many sessions of ours were ended."""
    ended = await session.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = $1",
        f"fleet {role}",
    )
    return len(ended)


async def test_sessions_that_were_ended_are_not_missed(registry: PostgresRegistry, stranger: Any) -> None:
    feed = registry.follow(0)
    waiting = asyncio.ensure_future(anext(feed))
    sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fleet feed' AND state = 'idle'"
    async with asyncio.timeout(PATIENCE_SECONDS):
        for n in range(5):
            while not await stranger.fetchval(sql):
                pass
            for role in ("writer", "reader", "feed"):
                assert await end_sessions(stranger, role) >= 1
            await registry.commit(change(Insert(device(f"d{n}")), events=(Event("test", f"d{n}"),)))
            assert await registry.device(f"d{n}") is not None
            assert (await waiting).subject == f"d{n}"
            waiting = asyncio.ensure_future(anext(feed))
    waiting.cancel()


def end_between_statements(session: Any) -> None:
    """The server's last word has come, and the end of its line has not."""
    fields = b"SFATAL\x00VFATAL\x00C57P01\x00Mterminating connection due to administrator command\x00\x00"
    session._protocol.data_received(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)


async def test_sessions_that_are_ended_between_two_statements_are_not_missed(
    registry: PostgresRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0
    again = asyncio.Event()

    async def connect_and_lose(url: DatabaseUrl, role: str) -> Any:
        nonlocal opened
        session = await connect(url, role)
        opened += 1
        if opened == 1:
            end_between_statements(session)
        else:
            again.set()
        return session

    monkeypatch.setattr(listener, "connect", connect_and_lose)
    following = asyncio.ensure_future(anext(registry.follow(10**9)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await again.wait()
    end_between_statements(registry._writer._session)
    await registry.close()
    with pytest.raises(Unavailable):
        await following


async def test_a_commit_whose_session_is_ended_before_its_turn_happens_once(
    registry: PostgresRegistry, stranger: Any
) -> None:
    await stranger.execute(f"BEGIN; SELECT pg_advisory_xact_lock({SEQUENCE_LOCK})")
    commit = asyncio.create_task(registry.commit(change(Insert(device("a")), events=(Event("test", "a"),))))
    await until_waiting(stranger)
    assert await end_sessions(stranger, "writer") == 1
    await stranger.execute("COMMIT")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await commit
    assert await registry.last_audit() == 2
    assert [e.subject for e in await registry.events()] == ["a"]


Cut = Callable[[], Awaitable[Proxy]]


@pytest.fixture
async def proxied(
    postgres_server: PostgresServer, postgres_url: DatabaseUrl
) -> AsyncIterator[tuple[Proxy, PostgresRegistry]]:
    """A registry behind a line that can be cut; device "first" is in it."""
    database = postgres_url.dsn.partition("@/")[2].partition("?")[0]
    async with Proxy(postgres_server, database) as proxy:
        registry = await PostgresRegistry.open(proxy.url)
        await registry.commit(change(Insert(MODEL)))
        await registry.commit(change(Insert(device("first"))))
        yield proxy, registry
        await registry.close()


@pytest.mark.parametrize("arrives", [[True], [False], [False, True], [False, False]])
async def test_a_commit_whose_answer_is_lost_is_done_once(
    proxied: tuple[Proxy, PostgresRegistry], arrives: list[bool]
) -> None:
    proxy, registry = proxied
    proxy.cut_at_commit(*arrives)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await registry.commit(change(Insert(device("a")), events=(Event("test", "a"),)))
    assert proxy.cut == len(arrives)
    assert await devices_of(registry) == {"first", "a"}
    assert await registry.last_audit() == 3
    assert [e.subject for e in await registry.events()] == ["a"]


async def test_a_line_that_is_cut_at_every_commit_is_given_up(proxied: tuple[Proxy, PostgresRegistry]) -> None:
    proxy, registry = proxied
    proxy.cut_at_commit(*[False] * postgres_commit.TRIES_MAX)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unavailable) as caught:
            await registry.commit(change(Insert(device("a"))))
    assert caught.value.code == "registry-unavailable"
    assert await devices_of(registry) == {"first"}
    await registry.commit(change(Insert(device("b"))))


async def test_when_nobody_can_tell_it_says_so(
    proxied: tuple[Proxy, PostgresRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, registry = proxied
    monkeypatch.setattr(postgres_commit, "SETTLE_SECONDS_MAX", 0.05)
    proxy.refusing = True
    proxy.cut_at_commit(True)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unavailable) as caught:
            await registry.commit(change(Insert(device("a"))))
        assert caught.value.code == "registry-unsettled"
        proxy.refusing = False
        while (await asyncio.gather(registry.commit(change()), return_exceptions=True))[0] is not None:
            pass  # it is asked less and less often while it is gone
    assert await devices_of(registry) == {"first", "a"}


async def test_a_seal_that_nobody_can_ask_about_is_unavailable(proxied: tuple[Proxy, PostgresRegistry]) -> None:
    proxy, registry = proxied
    tree = EMPTY.appended(await registry.audit_hashes(0, 0, 2))
    proxy.refusing = True
    proxy.cut_at_commit(False)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unavailable) as caught:
            await registry.seal(sealed(tree), ())
    assert caught.value.code == "registry-unavailable"
    proxy.refusing = False
    await registry.seal(sealed(tree), ())


async def test_a_seal_whose_answer_is_lost_is_kept(proxied: tuple[Proxy, PostgresRegistry]) -> None:
    proxy, registry = proxied
    tree = EMPTY.appended(await registry.audit_hashes(0, 0, 2))
    proxy.cut_at_commit(True)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await registry.seal(sealed(tree), ())
    assert await registry.last_sealed() == sealed(tree)
    await registry.commit(change())
    longer = EMPTY.appended(await registry.audit_hashes(0, 0, 3))
    proxy.cut_at_commit(False)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unavailable):
            await registry.seal(sealed(longer), ())
    assert await registry.last_sealed() == sealed(tree)
