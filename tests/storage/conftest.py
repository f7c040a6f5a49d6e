from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from fleet.config.database_url import DatabaseUrl, parse_database_url
from fleet.domain.ports import Registry
from fleet.domain.writes import Insert
from fleet.storage.postgres.registry import PostgresRegistry
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.postgres_server import PostgresServer
from tests.storage.samples import MODEL, change


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """A database that holds the newest schema and nothing else."""
    return postgres_server.make_registry()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[DatabaseUrl]:
    """An empty registry of this test's own."""
    name = postgres_server.make_database(postgres_template)
    yield parse_database_url(postgres_server.url(name))
    postgres_server.drop_database(name)


@asynccontextmanager
async def sqlite_engine(request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    folder: Path = request.getfixturevalue("tmp_path")
    registry = await SqliteRegistry.open(folder / "registry.db")
    try:
        yield registry
    finally:
        await registry.close()


@asynccontextmanager
async def postgres_engine(request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    registry = await PostgresRegistry.open(request.getfixturevalue("postgres_url"))
    try:
        yield registry
    finally:
        await registry.close()


Engine = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Registry]]
ENGINES: dict[str, Engine] = {"sqlite": sqlite_engine, "postgres": postgres_engine}
"""Every engine here runs the whole contract suite, test_contract*.py."""


@pytest.fixture(params=ENGINES)
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    """Each engine in turn, with the model cam2 in it; that is audit row 1."""
    async with ENGINES[request.param](request) as opened:
        await opened.commit(change(Insert(MODEL)))
        yield opened


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"
