"""Retention on several nodes: one archives, another takes over when it is gone."""

import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.config.database_url import parse_database_url
from fleet.config.settings import Settings
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event
from fleet.domain.device import Model
from fleet.domain.errors import Conflict, Refused
from fleet.home.creation import create_home
from fleet.home.layout import Home, revocation_journal
from fleet.home.node_name import node_name
from fleet.runtime.jobs.retention import RetentionRun, retain
from fleet.services.inventory import add_model
from fleet.services.retention import LEASE_TIME, Report
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine, open_engine
from tests.postgres_server import PostgresServer

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
KEEPING = Settings(events_days=5, audit_days=0, expired_credentials_days=0)


@pytest.fixture
async def homes(tmp_path: Path) -> tuple[Home, Home]:
    """One home and, as a second node has it, its copy."""
    first = await create_home(tmp_path / "node1", Settings(), NOW)
    return first, Home(Path(shutil.copytree(first.path, tmp_path / "node2")))


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    if request.param == "sqlite":
        yield tmp_path / "shared.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.make_database()
    yield parse_database_url(server.url(name))
    server.drop_database(name)


@pytest.fixture
async def nodes(where: object, homes: tuple[Home, Home]) -> AsyncIterator[list[tuple[Home, Engine]]]:
    """Two nodes, each with sessions of its own in one registry."""
    registries = [await open_engine(where) for _ in homes]  # type: ignore[arg-type]
    await add_model(registries[0], Model("cam2"), act=Act("operator", NOW))
    yield list(zip(homes, registries, strict=True))
    for registry in registries:
        await registry.close()


async def tell(registry: Engine, count: int, at: datetime) -> None:
    events = tuple(Event("model.changed", f"m{n}") for n in range(count))
    await registry.commit(Change(AuditEntry(at, "t", "t", "", "ok"), (), events))


async def run(node: tuple[Home, Engine], days: int, settings: Settings = KEEPING, *, force: bool = False) -> Report:
    return await retain(*node, settings, RetentionRun("retention", NOW + days * DAY, by_force=force))


async def archived(nodes: list[tuple[Home, Engine]]) -> list[int]:
    return [len(list(home.archive.glob("events-*.jsonl"))) for home, _ in nodes]


async def test_one_archives_and_the_other_takes_over_when_it_dies(nodes: list[tuple[Home, Engine]]) -> None:
    first, second = nodes
    assert node_name(first[0].path) != node_name(second[0].path)
    for day in range(9):
        await tell(first[1], 3, NOW + day * DAY)
        await run(first, day)
        with pytest.raises(Conflict, match="archives for this fleet") as caught:
            await run(second, day)
        assert caught.value.code == "retention-elsewhere"
        assert node_name(first[0].path) in caught.value.message
    assert await archived(nodes) == [4, 0]
    last = 8
    for day in (last + 1, last + 2):  # it died on day 8
        with pytest.raises(Conflict):
            await run(second, day)
    assert LEASE_TIME == 3 * DAY
    assert (await run(second, last + 3)).events  # it has marked every day how far the events were
    assert (await archived(nodes))[1] == 1
    with pytest.raises(Conflict, match="archives for this fleet"):
        await run(first, last + 3)  # back from the dead
    names = [path.stem for home, _ in nodes for path in sorted(home.archive.glob("events-*.jsonl"))]
    spans = [tuple(map(int, name.split("-")[1:])) for name in names]
    assert [start for start, _ in spans[1:]] == [end + 1 for _, end in spans[:-1]]  # none twice, none left out


async def test_by_force(nodes: list[tuple[Home, Engine]]) -> None:
    await run(nodes[0], 0)
    await run(nodes[1], 0, force=True)
    with pytest.raises(Conflict, match="archives for this fleet") as caught:
        await run(nodes[0], 0)
    assert "--take-over" in caught.value.advice


async def test_a_node_that_never_archives_keeps_nobody_from_it(nodes: list[tuple[Home, Engine]]) -> None:
    nothing = Settings(events_days=0, audit_days=0, expired_credentials_days=0)
    await run(nodes[0], 0, nothing)
    await run(nodes[1], 0)
    await run(nodes[0], 1, nothing)
    assert await nodes[0][1].lease("retention") == await nodes[1][1].lease("retention") is not None


async def test_a_look_takes_nothing(nodes: list[tuple[Home, Engine]]) -> None:
    home, registry = nodes[0]
    await retain(home, registry, KEEPING, RetentionRun("operator", NOW, is_dry=True))
    assert await registry.lease("retention") is None


async def test_the_node_that_archives_is_known_to_have_had_a_journal(nodes: list[tuple[Home, Engine]]) -> None:
    await tell(nodes[0][1], 1, NOW)
    await run(nodes[0], 0)
    for home, _ in nodes:
        home.registry.unlink()  # the registry is elsewhere
        shutil.rmtree(home.revocations.parent)
    first, second = nodes
    with pytest.raises(Refused) as caught:
        await catch_up(first[1], revocation_journal(first[0]))
    assert caught.value.code == "revocation-log-lost"
    assert await catch_up(second[1], revocation_journal(second[0]))  # a new node's home has none
