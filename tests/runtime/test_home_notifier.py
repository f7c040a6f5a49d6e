"""A command at a home speaks to the broker that its server has, whatever fleet.toml says."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.config.addresses import parse_broker
from fleet.config.clock import utc_now
from fleet.config.settings import Settings
from fleet.domain.errors import Unavailable
from fleet.home.creation import create_home
from fleet.home.layout import Home, settings_of
from fleet.runtime.home_notifier import home_notifier
from fleet.runtime.host import run_host
from fleet.runtime.upstream_in_force import NAME, UpstreamInForce, upstream_in_force


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", Settings(), datetime.now(UTC))


async def problem(home: Home) -> str:
    notifier, close = home_notifier(home)
    with pytest.raises(Unavailable) as caught:
        await notifier.publisher.publish("devices/cam-7/fleet/renew", b"")
    await close()
    assert caught.value.code == "broker-unreachable"
    return f"{caught.value.message} {caught.value.advice}"


async def test_the_broker_is_that_of_the_option_while_the_server_runs(home: Home, tmp_path: Path) -> None:
    reached = asyncio.Event()

    def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    nobody = f"No `fleet serve` runs at {home.path}. Start it, or use --url."
    assert await problem(home) == nobody
    socket = tmp_path / "external.sock"
    settings = replace(settings_of(home), upstream=parse_broker(f"unix:{socket}"))
    async with await asyncio.start_unix_server(on_connection, socket), run_host(home, settings, clock=utc_now):
        assert upstream_in_force(home) == UpstreamInForce(f"unix:{socket}", speaks_v5=True, is_ours=False)
        assert "it closed the connection" in await problem(home)
        assert reached.is_set()
        assert home_notifier(home)[0].node == ""
    assert await problem(home) == nobody


def test_a_cut_record_is_none(home: Home) -> None:
    told = b'{"address":"mqtts://broker.example:8883","speaks_v5":true,"is_ours":false}'
    for end in range(len(told) + 1):
        (home.run / NAME).write_bytes(told[:end])
        assert (upstream_in_force(home) is not None) is (end == len(told))
    (home.run / NAME).write_bytes(b"\xff" * 10_000)
    assert upstream_in_force(home) is None
