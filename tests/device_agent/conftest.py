"""One CA, one EST server and one broker for the session; a device's home, in a path with a space, for each test."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.device_agent.fleet_parts import (
    Authority,
    Broker,
    Device,
    EstServer,
    Subscriber,
    device_id_for,
    have_mosquitto,
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read, at a path that they may pass through.

    Below `tmp_path` they may not for long: any other pytest that starts makes the folder of all of them private again.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "a ca")


@pytest.fixture(scope="session")
def shared_est(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EstServer]:
    server = EstServer(authority, tmp_path_factory.mktemp("est") / "registry.db")
    yield server
    server.close()


@pytest.fixture
def est(shared_est: EstServer) -> Iterator[EstServer]:
    yield shared_est
    shared_est.shift -= shared_est.shift
    shared_est.shut()
    shared_est.open()


@pytest.fixture(scope="session")
def shared_broker(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if not have_mosquitto():
        pytest.skip("mosquitto is not installed")
    broker = Broker(authority, tmp_path_factory.mktemp("broker"))
    yield broker
    broker.stop()


@pytest.fixture
def broker(shared_broker: Broker) -> Broker:
    return shared_broker


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.plain_port)
    yield subscriber
    subscriber.close()


@pytest.fixture
def new_device(
    est: EstServer, broker: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], Device]]:
    """A maker of devices that are not initialized yet, each with an id of its own."""
    devices: list[Device] = []

    def make() -> Device:
        name = device_id_for(f"{len(devices)}-{request.node.name}")
        devices.append(Device(tmp_path / f"home of {len(devices)}", est, broker.port, name))
        return devices[-1]

    yield make
    for device in devices:
        device.close()


@pytest.fixture
def device(new_device: Callable[[], Device]) -> Device:
    """Enrolled, and not running."""
    return new_device().enrolled()
