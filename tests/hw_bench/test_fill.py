"""The same fleet in either engine: row for row."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.config.database_url import parse_database_url
from fleet.domain.changes import AuditRow
from fleet.domain.credential import Credential
from fleet.domain.device import EVERY_DEVICE, FIRST_PLACE, Device, DeviceFilter, place_of
from fleet.storage.engines import RegistryLocation, open_engine
from hw_bench.drivers.fill import FilledFleet, Sizes, fill
from hw_bench.drivers.fill_postgres import fill_postgres
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.usefixtures("forked_programs")
COUNT = 1100  # two of the group pilot
FLEET = FilledFleet(COUNT, bytes(range(200)), datetime(2026, 11, 1, tzinfo=UTC))
Contents = tuple[list[Device], list[Credential], list[AuditRow], list[Device]]


async def contents(place: RegistryLocation) -> Contents:
    """All devices with their tags, their certificates, the audit, and those found by group."""
    registry = await open_engine(place, create=False)
    try:
        devices: list[Device] = []
        after = FIRST_PLACE
        while page := await registry.devices(after=after, limit=500):
            devices += page
            after = place_of(page[-1], EVERY_DEVICE)
        credentials = [one for device in devices for one in await registry.credentials(device.id)]
        pilots = await registry.devices(DeviceFilter(group="pilot"), after=FIRST_PLACE, limit=500)
        return devices, credentials, await registry.audit(limit=2 * COUNT), pilots
    finally:
        await registry.close()


async def make(place: RegistryLocation) -> None:
    await (await open_engine(place)).close()


def test_postgres_holds_what_sqlite_holds(postgres_server: PostgresServer, tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    url = parse_database_url(postgres_server.url(postgres_server.make_registry()))
    asyncio.run(make(file))
    said: list[int] = []
    sizes: list[Sizes] = [fill(file, FLEET, said.append), asyncio.run(fill_postgres(url, FLEET, said.append))]
    assert said == [COUNT, COUNT]
    in_file, in_server = asyncio.run(contents(file)), asyncio.run(contents(url))
    assert in_server == in_file
    assert [len(part) for part in in_server] == [COUNT, COUNT, COUNT, 2]
    for size in sizes:
        assert size.devices > COUNT * len(FLEET.der)
        assert 0 < size.audit < size.devices
