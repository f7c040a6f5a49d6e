"""A connected device: alive until it is revoked, and nobody else's session with it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.home.layout import open_registry
from fleet.services.revocation import revoke
from hw_bench.certificates import Identity
from hw_bench.drivers.session import DeviceSession
from hw_bench.peers.home import FleetHome, Served, enroll_devices, make_home, serve
from hw_bench.processes import BenchError
from hw_bench.scenarios import revocation
from hw_bench.scenarios.contract import new_environment
from tests.hw_bench.needs import NEEDS_MOSQUITTO

pytestmark = [NEEDS_MOSQUITTO, pytest.mark.usefixtures("forked_programs")]
TLS = "TLSv1.3"
END_SECONDS_MAX = 120.0


@pytest.fixture(scope="module")
def served_devices() -> Iterator[tuple[Served, list[Identity]]]:
    """A served home, and four devices of it."""
    with new_environment() as environment:
        home = make_home(environment)
        with serve(home, environment) as served:
            yield served, enroll_devices(home, served, environment, 4)


async def revoke_device(home: FleetHome, name: str) -> None:
    registry = await open_registry(home.files)
    try:
        await revoke(registry, name, act=Act("operator", datetime.now(UTC)))
    finally:
        await registry.close()


def test_a_revocation_ends_one_session_and_no_other(served_devices: tuple[Served, list[Identity]]) -> None:
    served, (lost, kept, *_) = served_devices
    ending, staying = (DeviceSession(device, served.mqtt, TLS) for device in (lost, kept))
    assert ending.silent
    assert not ending.wait_for_end(0.0)
    asyncio.run(revoke_device(served.home, lost.name))
    assert ending.wait_for_end(END_SECONDS_MAX)
    assert not ending.silent
    assert staying.silent
    with pytest.raises(ConnectionError, match=f"{lost.name} was refused"):
        DeviceSession(lost, served.mqtt, TLS)
    for session in (ending, staying):
        session.close()


def test_a_session_that_ended_by_itself_proves_nothing(served_devices: tuple[Served, list[Identity]]) -> None:
    served, (_, _, third, _) = served_devices
    session = DeviceSession(third, served.mqtt, TLS)
    asyncio.run(revoke_device(served.home, third.name))
    assert session.wait_for_end(END_SECONDS_MAX)
    with pytest.raises(BenchError, match="had ended before the device was revoked"):
        asyncio.run(revocation.revoke_all(served.home, [session]))
    session.close()


def test_a_session_that_outlives_its_device_is_found(
    served_devices: tuple[Served, list[Identity]], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, (_, kept, _, fourth) = served_devices
    monkeypatch.setattr(revocation, "END_SECONDS_MAX", 0.1)
    session = DeviceSession(kept, served.mqtt, TLS)
    session.name = fourth.name  # the one is revoked, the other watched
    with pytest.raises(BenchError, match=f"The session of {fourth.name} was still open"):
        asyncio.run(revocation.revoke_all(served.home, [session]))
    session.close()


def test_a_stranger_is_not_let_in(served_devices: tuple[Served, list[Identity]], tmp_path: Path) -> None:
    served, (_, kept, *_) = served_devices
    with pytest.raises(ConnectionError, match="stranger was refused"):
        DeviceSession(replace(kept, name="stranger"), served.mqtt, TLS)
