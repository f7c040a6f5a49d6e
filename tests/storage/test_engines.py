"""What is asked of every engine beside the registry's contract: opening, the audit as a whole, how it stands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.config.database_url import parse_database_url
from fleet.domain.errors import NotFound
from fleet.domain.writes import Insert
from fleet.storage.engines import RegistryLocation, open_engine, status_of
from tests.storage.samples import MODEL, change


def no_file(request: pytest.FixtureRequest) -> RegistryLocation:
    folder: Path = request.getfixturevalue("tmp_path")
    return folder / "registry.db"


def empty_database(request: pytest.FixtureRequest) -> RegistryLocation:
    server = request.getfixturevalue("postgres_server")
    return parse_database_url(server.url(server.make_database()))


PLACES: dict[str, Callable[[pytest.FixtureRequest], RegistryLocation]] = {
    "sqlite": no_file,
    "postgresql": empty_database,
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> RegistryLocation:
    """Where no registry is yet, for each engine."""
    return PLACES[request.param](request)


async def test_it_is_made_only_when_that_is_meant(place: RegistryLocation) -> None:
    with pytest.raises(NotFound) as caught:
        await open_engine(place, create=False)
    assert caught.value.code == "no-registry"
    with pytest.raises(NotFound) as asked:
        await status_of(place)
    for error in (caught.value, asked.value):
        assert error.__cause__ is not error  # whoever follows the causes would never end
        assert error.advice.startswith(("Give the --home of your fleet", "Name the database of your fleet"))
    await (await open_engine(place)).close()
    again = await open_engine(place, create=False)
    await again.close()
    await again.close()


async def test_status(place: RegistryLocation, request: pytest.FixtureRequest) -> None:
    registry = await open_engine(place)
    await registry.commit(change(Insert(MODEL)))
    found = await status_of(place)
    await registry.close()
    assert (found.where, found.schema) == (str(place), found.newest_schema)
    assert found.engine in request.node.name
    assert found.counts == {"devices": 0, "certificates": 0, "audit_rows": 1, "events": 0}
    assert found.size_bytes > 0
