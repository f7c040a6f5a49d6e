"""Opening a registry in PostgreSQL: migrations, and databases that are not fit for one."""

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from fleet.config.database_url import DatabaseUrl, parse_database_url
from fleet.domain.device import Model
from fleet.domain.errors import FleetError, Invalid, NotFound, Unavailable
from fleet.domain.writes import Insert
from fleet.storage.engines import status_of
from fleet.storage.postgres import migrations as postgres_schema
from fleet.storage.postgres.registry import PostgresRegistry
from fleet.storage.postgres.session import connect
from tests.postgres_server import PASSWORD, PostgresServer
from tests.storage.samples import ADD_DEVICE_BEFORE_BUDGETS, MODEL, change, device, row_before_budgets

UrlOf = Callable[[str], DatabaseUrl]


@pytest.fixture
def url_of(postgres_server: PostgresServer) -> UrlOf:
    return lambda database: parse_database_url(postgres_server.url(database))


async def refusal(url: DatabaseUrl, *, create: bool = True) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await (await PostgresRegistry.open(url, create=create)).close()
    assert caught.value.message.endswith(".")
    return caught.value


async def test_a_new_database_is_migrated_once_however_many_open_it(
    postgres_server: PostgresServer, url_of: UrlOf
) -> None:
    url = url_of(postgres_server.make_database())
    registries = await asyncio.gather(*(PostgresRegistry.open(url) for _ in range(4)))
    await asyncio.gather(*(r.commit(change(Insert(Model(f"m{n}")))) for n, r in enumerate(registries)))
    assert [m.name for m in await registries[0].models()] == ["m0", "m1", "m2", "m3"]
    for registry in registries:
        await registry.close()


NEWEST = len(postgres_schema.migrations())


async def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [number for number, _ in postgres_schema.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_later_migrations_are_applied_to_what_is_there(
    postgres_url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = await PostgresRegistry.open(postgres_url)
    await first.commit(change(Insert(Model("m"))))
    steps = [*postgres_schema.migrations(), (NEWEST + 1, "ALTER TABLE model ADD COLUMN color text; SELECT 1")]
    monkeypatch.setattr(postgres_schema, "migrations", lambda: steps)
    again = await asyncio.gather(*(PostgresRegistry.open(postgres_url, create=False) for _ in range(3)))
    assert [m.name for m in await again[0].models()] == ["m"]
    assert (await status_of(postgres_url)).schema == NEWEST + 1
    [said] = [each.getMessage() for each in caplog.records if "registry.upgraded" in each.getMessage()]
    assert said.endswith(f" schema_before={NEWEST} schema={NEWEST + 1}")
    for registry in (first, *again):
        await registry.close()


async def test_serials_that_a_fleet_has_twice_are_kept_when_they_become_comparable(
    postgres_server: PostgresServer, url_of: UrlOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(postgres_server.make_database())
    known = postgres_schema.migrations()
    monkeypatch.setattr(postgres_schema, "migrations", lambda: [each for each in known if each[0] < 16])
    before = await PostgresRegistry.open(url)
    pair = [replace(device(name), hardware_serial=serial) for name, serial in (("a", "SN 1"), ("b", "sn  1 "))]
    await before.commit(change(Insert(MODEL)))
    await before.close()
    session = await connect(url, "a node of the version before")
    for each in pair:
        await session.execute(ADD_DEVICE_BEFORE_BUDGETS, *row_before_budgets(each))
    await session.close()
    monkeypatch.setattr(postgres_schema, "migrations", lambda: known)
    registry = await PostgresRegistry.open(url)
    assert await registry.devices() == pair
    holders = await registry.serial_holders(((MODEL.name, "SN 1"),))
    assert {id_ for _, _, id_ in holders} == {"a", "b"}
    await registry.close()


async def test_a_migration_that_fails_leaves_the_old_schema(
    postgres_url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = postgres_schema.migrations()
    bad = (NEWEST + 1, "DROP TABLE device_tag; DROP TABLE nowhere")
    monkeypatch.setattr(postgres_schema, "migrations", lambda: [*good, bad])
    assert isinstance(await refusal(postgres_url), Unavailable)
    monkeypatch.setattr(postgres_schema, "migrations", lambda: good)
    registry = await PostgresRegistry.open(postgres_url)
    assert await registry.devices() == []
    await registry.close()


async def test_a_newer_schema_is_left_alone(
    postgres_server: PostgresServer, postgres_url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [*postgres_schema.migrations(), (NEWEST + 1, "SELECT 1")]
    with monkeypatch.context() as patch:
        patch.setattr(postgres_schema, "migrations", lambda: steps)
        await (await PostgresRegistry.open(postgres_url)).close()
    error = await refusal(postgres_url)
    assert error.code == "registry-newer"
    assert f"has schema {NEWEST + 1}; this program knows schemas up to {NEWEST}" in error.message
    found = await status_of(postgres_url)
    assert (found.schema, found.newest_schema) == (NEWEST + 1, NEWEST)


async def test_where_none_is_none_is_made_unless_it_is_asked_for(
    postgres_server: PostgresServer, url_of: UrlOf
) -> None:
    name = postgres_server.make_database()
    for _ in range(2):
        assert (await refusal(url_of(name), create=False)).code == "no-registry"
        with pytest.raises(NotFound):
            await status_of(url_of(name))
    assert postgres_server.run("SELECT to_regnamespace('fleet')::text", name) is None


async def test_databases_that_will_not_do(postgres_server: PostgresServer, url_of: UrlOf) -> None:
    assert (await refusal(url_of("nowhere"))).code == "no-database"
    postgres_server.run("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII'")
    assert (await refusal(url_of("ascii"))).code == "postgres-encoding"
    other = postgres_server.make_database()
    postgres_server.run("CREATE SCHEMA fleet CREATE TABLE model (name text)", other)
    assert (await refusal(url_of(other))).code == "not-a-registry"


async def test_who_may_not_make_tables_is_told(postgres_server: PostgresServer) -> None:
    name = postgres_server.make_database()
    postgres_server.run("CREATE ROLE guest LOGIN")
    url = parse_database_url(postgres_server.url(name).replace("//fleet@", "//guest@"))
    assert (await refusal(url)).code == "registry-permissions"
    postgres_server.run("CREATE SCHEMA fleet AUTHORIZATION guest", name)  # as a careful administrator does
    await (await PostgresRegistry.open(url)).close()


async def test_a_wrong_password_is_said_and_never_shown(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres_server.make_database()
    tcp = postgres_server.tcp_url(name)
    error = await refusal(parse_database_url(tcp.replace("fleet@", "fleet:sesame@")))
    assert error.code == "database-login"
    assert "sesame" not in error.message + error.advice
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    await (await PostgresRegistry.open(parse_database_url(tcp))).close()


async def test_a_server_that_is_not_there(postgres_server: PostgresServer) -> None:
    error = await refusal(parse_database_url("postgresql://fleet@127.0.0.1:1/fleet"))
    assert isinstance(error, Unavailable)
    assert "postgresql://fleet@127.0.0.1:1/fleet cannot be reached" in error.message
    assert not isinstance(error, Invalid)
