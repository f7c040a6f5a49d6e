"""Why a device may publish or subscribe, over the API."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fleet.domain.access import Role
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


def path(device: str, topic: str, action: str = "publish", **more: str) -> str:
    return f"/v1/devices/{device}/policy-test?" + urlencode({"action": action, "topic": topic, **more})


async def refusal(client: Client, target: str) -> tuple[int, str]:
    status, told = await client.ask("GET", target)
    return status, told["code"]


async def test_what_is_asked_of_the_gateway(api: AdminHarness) -> None:
    viewer = await api.operator("bob", Role.VIEWER)
    found = await viewer.get(path("cam-1", "devices/cam-1/up/a", qos="1"))
    assert found == {
        "device_id": "cam-1",
        "model": "cam",
        "action": "publish",
        "topic": "devices/cam-1/up/a",
        "allowed": True,
        "code": "ok",
        "message": "The device may publish here.",
        "rule": "devices/{id}/up/#",
        "expanded": "devices/cam-1/up/#",
        "source": "model",
        "override": "",
        "granted_qos": None,
        "advice": "",
    }
    assert (await viewer.get(path("cam-1", "#", "subscribe")))["code"] == "topic"
    assert (await viewer.get(path("cam-1", "devices/cam-1/up/a", retain="true")))["code"] == "retain"
    assert (await viewer.get(path("cam-1", "devices/cam-1/up/a", size="16777217")))["code"] == "too-large"
    assert (await viewer.get(path("cam-2", "devices/cam-2/up/a")))["code"] == "device-registered"

    for topic, action in (("a/+", "publish"), ("#/a", "subscribe"), ("$share//a", "subscribe"), ("a\x01", "subscribe")):
        assert await refusal(viewer, path("cam-1", topic, action)) == (400, "bad-topic")
    assert (await refusal(viewer, path("cam-1", "a", "read")))[0] == 400
    assert (await refusal(viewer, path("cam-1", "a", qos="3")))[0] == 400
    assert await refusal(viewer, path("cam-9", "a")) == (404, "no-such-device")
    held = await api.operator("held", Role.ADMIN, ("pump",))
    assert await refusal(held, path("cam-1", "a")) == (404, "no-such-device")
    assert (await held.get(path("pump-1", "a")))["code"] == "device-registered"
