"""`fleet device notify`, at the home and over the API of two workers, to a device; and presence at the broker."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.servers.gateway.broker.mosquitto import BACKEND, SOCKET, mosquitto_program
from fleet.wire.mqtt.codes import V5, V311
from tests.end_to_end.live_device import DEVICE, LiveDevice
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
TOPIC = f"devices/{DEVICE}/fleet/renew"


@pytest.fixture
async def served(home: Path, tmp_path: Path) -> AsyncIterator[Served]:
    settings = home / "fleet.toml"
    text = settings.read_text()
    assert 'presence_topic = "off"' in text
    settings.write_text(text.replace('presence_topic = "off"', 'presence_topic = "fleet/presence/{id}"'))
    serving = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", "2")).start()
    yield serving
    serving.stop()


async def test_the_command_reaches_a_device_and_backends_see_who_is_connected(served: Served, tmp_path: Path) -> None:
    home, (host, port) = served.home, served.address("mqtt")
    device = LiveDevice(served, tmp_path)
    backend = Paho("backend", V311, transport="unix")
    backend.client.username_pw_set(BACKEND)
    assert await backend.connect_unix(home / "run" / SOCKET) == 0
    await backend.subscribe("fleet/presence/#")
    assert json.loads(run_fleet(home, "device", "notify", DEVICE, "renew", "-o", "json"))["subscribed"] is False
    client = Paho(DEVICE, V5)
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(*device.pair())
    client.client.tls_set_context(context)
    assert await client.connect(host, port) == 0
    assert await client.subscribe(f"devices/{DEVICE}/fleet/#") == [1]

    topic, payload = await backend.message()
    told = json.loads(payload)
    assert (topic, told["kind"], told["client_id"]) == (f"fleet/presence/{DEVICE}", "device.connected", DEVICE)

    words = ("device", "notify", DEVICE, "renew", "--payload", '{"within": 60}', "-o", "json")
    assert json.loads(run_fleet(home, *words)) == {"device_id": DEVICE, "topic": TOPIC, "subscribed": True}
    assert await client.message() == (TOPIC, b'{"within": 60}')
    (tmp_path / "password").write_text("secret\n")
    terms = ("--role", "operator", "--password-file", str(tmp_path / "password"), "--out", str(tmp_path))
    run_fleet(home, "operator", "add", "bob", *terms)
    bob = ("--cert", str(tmp_path / "bob.pem"), "--key", str(tmp_path / "bob.key"))
    remote = ("--url", served.endpoints["http"], *bob, "--ca", str(served.ca_file))
    for _ in range(4):  # by either worker
        run_fleet(tmp_path / "no home", *words, *remote)
        assert await client.message() == (TOPIC, b'{"within": 60}')

    assert await client.publish(TOPIC, b"forged") == 0x87
    run_fleet(home, "policy", "test", DEVICE, "publish", TOPIC, expect=1)
    audit = json.loads(run_fleet(home, "audit", "list", "-o", "json"))
    rows = [row for row in audit if row["action"] == "device.notify"]
    assert [row["actor"] for row in rows].count("operator bob") == 4
    assert "within" not in json.dumps(rows)
    await asyncio.to_thread(served.stop)  # what its end is for backends is said before
    told = json.loads((await backend.message())[1])
    assert (told["kind"], told["reason"]) == ("device.disconnected", "shutting-down")
    assert client.messages.empty()
    for each in (client, backend):
        await each.close()
