from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from fleet.domain.changes import AddModel
from fleet.domain.ports import Registry
from fleet.storage.sqlite import SqliteRegistry
from tests.storage.samples import MODEL, change


@asynccontextmanager
async def sqlite_engine(folder: Path) -> AsyncIterator[Registry]:
    registry = await SqliteRegistry.open(folder / "registry.db")
    try:
        yield registry
    finally:
        await registry.close()


Engine = Callable[[Path], AbstractAsyncContextManager[Registry]]
ENGINES: dict[str, Engine] = {"sqlite": sqlite_engine}
"""Whoever stands here keeps the whole contract, in test_contract.py."""


@pytest.fixture(params=ENGINES)
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    """Each engine in turn, with the model cam2 in it; that is audit row 1."""
    async with ENGINES[request.param](tmp_path) as opened:
        await opened.commit(change(AddModel(MODEL)))
        yield opened


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"
