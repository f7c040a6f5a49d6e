"""SIGHUP: what changes while a session lives, and that it lives."""

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.mqtt.codes import V5, V311, Reason
from tests.end_to_end.serve_fixtures import server_serial
from tests.end_to_end.workers_fixtures import TWO, Devices, by_both
from tests.servers.makers import new_maker
from tests.serving import Served, run_fleet
from tests.waiting import until

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")

RELOADED = "reload outcome=ok"


@pytest.fixture
async def devices(home: Path, tmp_path: Path) -> AsyncIterator[Devices]:
    served = Served(home, tmp_path / "ready.json", TWO)
    await asyncio.to_thread(served.start)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, served.stop)
        yield await asyncio.to_thread(Devices, served, tmp_path, stack)


async def test_a_session_lives_while_certificate_anchors_policy_and_limits_change(
    devices: Devices, tmp_path: Path
) -> None:
    served, file = devices.served, devices.served.home / "fleet.toml"
    clients = [(await devices.connect(devices.enroll(f"cam-{version}"), version))[0] for version in (V311, V5)]
    text, serial = file.read_text(), server_serial(served)

    changed = re.sub(r"(?m)^hosts = \[", 'hosts = ["fleet.test", ', text)
    changed = re.sub(r"(?m)^filters_per_packet_max = .*", "filters_per_packet_max = 1", changed)
    changed = re.sub(r"(?m)^half_open_max = .*", "half_open_max = 9000", changed)
    file.write_text(re.sub(r"(?m)^hours = .*", "hours = 48", changed))
    (tmp_path / "maker.pem").write_bytes(new_maker().pem)
    async with by_both(served, RELOADED):
        run_fleet(served.home, "anchor", "add", "acme", str(tmp_path / "maker.pem"), "--model", "default")
    async with by_both(served, "mqtt.model model=default code=applied"):
        run_fleet(served.home, "model", "set", "default", "--publish", "devices/{id}/up/#", "--publish", "news/{id}")
    async with by_both(served, RELOADED):
        served.process.send_signal(signal.SIGHUP)
    await until(lambda: server_serial(served) != serial)
    for name in ("fleet.hosts", "mqtt.filters_per_packet_max", "limits.half_open_max"):
        assert f"event=settings outcome=reloaded changed={name}\n" in served.log
    assert "event=settings outcome=restart-needed changed=crl.hours reason=" in served.log
    backend = await devices.backend("news/+")
    for client, name in zip(clients, ("cam-4", "cam-5"), strict=True):
        await client.publish(f"news/{name}")  # which the policy did not allow before
        assert await backend.message() == (f"news/{name}", b"")
        own = f"devices/{name}/down"
        assert await client.subscribe(f"{own}/a", f"{own}/b") == [1, 1]  # as it was when it connected
    late, _ = await devices.connect(devices.enroll("late"), V5)
    late.client.subscribe([("devices/late/down/a", 1), ("devices/late/down/b", 1)])
    assert await late.got(late.disconnected) == Reason.QUOTA_EXCEEDED

    file.write_text(changed + "\n[nothing]\n")
    served.process.send_signal(signal.SIGHUP)
    await until(lambda: "event=settings outcome=failed kept=old" in served.log)
    for client, name in zip(clients, ("cam-4", "cam-5"), strict=True):
        await client.publish(f"news/{name}")
        assert client.disconnected.empty()
    assert "event=mqtt.session device=cam" not in served.log
