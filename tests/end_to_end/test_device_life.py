"""A device through its life at a real server: rotation, suspension, revocation, restarts on either side."""

import json
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from fleet.est_client.errors import EstRefused
from tests.end_to_end.live_device import LiveDevice, csr_for, mqtt_answer, renewal_with
from tests.serving import Served, run_fleet, same_ports
from tests.waiting import wait_until

NAMES = (f"cam-{number}" for number in count(7))


@pytest.fixture(scope="module")
def served(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For all tests, each with devices of its own; one ends it and starts it again."""
    folder = tmp_path_factory.mktemp("served")
    home = Path(shutil.copytree(pristine_home, folder / "a home", symlinks=True))
    serving = Served(home, folder / "ready.json", same_ports()).start()
    yield serving
    serving.stop()


@pytest.fixture
def device(served: Served, tmp_path: Path) -> Iterator[LiveDevice]:
    live = LiveDevice(served, tmp_path, next(NAMES))
    yield live
    live.stop()


def test_the_old_certificate_is_worth_nothing_once_the_new_one_has_been_used(
    served: Served, device: LiveDevice, tmp_path: Path
) -> None:
    device.run()
    old = tmp_path / "old"
    shutil.copytree(device.home / "current", old)
    device.call("renew")
    assert mqtt_answer(served, (old / "cert.pem", old / "key.pem"), device.name) == 5  # not authorized
    with pytest.raises(EstRefused):
        renewal_with(served, (old / "cert.pem", old / "key.pem")).simplereenroll(csr_for(device.name))
    states = [c["state"] for c in credentials(device)]
    assert states == ["superseded", "active"]
    assert '"running": true, "connected": true' in device.call("status", "-o", "json")


def credentials(device: LiveDevice) -> list[dict[str, str]]:
    shown = json.loads(run_fleet(device.served.home, "device", "show", device.name, "-o", "json"))
    found: list[dict[str, str]] = shown["certificates"]
    return found


def test_another_devices_certificate_renews_nobody_else(served: Served, device: LiveDevice, tmp_path: Path) -> None:
    other = LiveDevice(served, tmp_path, "meter-3")
    with pytest.raises(EstRefused):
        renewal_with(served, other.pair()).simplereenroll(csr_for(device.name))
    with pytest.raises(EstRefused):
        renewal_with(served, other.pair()).simpleenroll(csr_for(device.name))
    assert mqtt_answer(served, other.pair(), device.name) == 2  # identifier rejected
    assert len(credentials(device)) == 1


def test_a_suspended_device_is_cut_and_comes_back_when_resumed(served: Served, device: LiveDevice) -> None:
    agent = device.run()
    run_fleet(served.home, "device", "suspend", device.name, "--reason", "test")
    seen = len(agent.lines)
    agent.wait_for(
        lambda line: "cause=closed" in line and "has been suspended" in line,
        "what the gateway says as it ends the session",
    )
    agent.wait_for(lambda line: "cause=refused" in line, "that it is refused")
    refusal = json.loads(device.call("status", "-o", "json", expect=1))["last_refusal"]
    assert refusal["code"] == "device-suspended"
    device.call("renew", expect=1)
    shown = device.call("status", expect=1)
    assert "The server refuses this device: " in shown
    assert shown.count("is suspended") == 1  # not once more as the last error, and as the refusal
    found = json.loads(device.call("doctor", "-o", "json", expect=1))["findings"]
    assert ["fleet device resume" in each["advice"] for each in found if each["state"] == "failed"] == [True]
    run_fleet(served.home, "device", "resume", device.name)
    agent.wait_for(lambda line: " connected " in line, "that it is back", since=seen)
    assert device.call("status").count("enrolled")


def test_a_session_that_an_operator_ends_is_told_and_begun_again(served: Served, device: LiveDevice) -> None:
    agent = device.run()
    seen = len(agent.lines)
    run_fleet(served.home, "session", "kick", device.name)
    said = "Administrative action: An operator has ended the session. Connect again"
    agent.wait_for(lambda line: "cause=closed" in line and said in line, "why it is disconnected", since=seen)
    agent.wait_for(lambda line: " connected " in line, "that it is back", since=seen)
    shown = json.loads(device.call("status", "-o", "json"))
    assert shown["agent"]["server"] == "{}:{}".format(*served.address("mqtt"))


@pytest.mark.parametrize("act", ["revoke", "retire"])
def test_a_device_that_has_ended_stays_out_and_is_told_so(served: Served, device: LiveDevice, act: str) -> None:
    """Not that its certificate is revoked, which would let it ask for a token: it can never get one."""
    agent = device.run()
    run_fleet(served.home, "device", act, device.name, "--reason", "lost")
    agent.wait_for(lambda line: "cause=ended" in line and f"this device is {act}d" in line, "why")
    run_fleet(served.home, "device", "add", device.name, "--model", "default", expect=1)
    run_fleet(served.home, "device", "resume", device.name, expect=1)
    device.call("renew", expect=1)
    for command in ("status", "doctor"):
        said = device.call(command, expect=1)
        assert "new id" in said
        assert "enroll --again" not in said
    health = json.loads(device.call("status", "-o", "json", expect=1))
    assert (health["state"], health["last_refusal"]["code"]) == ("locked out", f"device-{act}d")
    assert mqtt_answer(served, device.pair(), device.name) == 5

    def last_refusal() -> dict[str, str]:
        shown = json.loads(run_fleet(served.home, "device", "show", device.name, "-o", "json"))
        return dict(shown.get("last_refusal", {}))

    wait_until(last_refusal, "that the last refusal is written")
    shown = last_refusal()
    assert (shown["action"], shown["address"]) == ("mqtt.connect", "127.0.0.1")
    assert shown["code"] == f"device-{act}d"
    assert "last refused: 20" in " ".join(run_fleet(served.home, "device", "show", device.name).split())


def test_both_sides_come_back_after_a_kill(served: Served, device: LiveDevice) -> None:
    agent = device.run()
    seen = len(agent.lines)
    served.kill()
    served.start()
    agent.wait_for(lambda line: " connected " in line, "that it is back", since=seen)
    device.call("send", "devices/{id}/up/t", "after the server's fall", "--wait")
    agent.process.kill()
    agent.stop()
    device.run()
    device.call("send", "devices/{id}/up/t", "after the agent's fall", "--wait")


def contains(word: str, line: str) -> bool:
    return word in line


def test_an_agent_killed_anywhere_in_a_rotation_comes_back(served: Served, device: LiveDevice) -> None:
    for word in ("renewing", "certificate-received", "renewed"):
        agent = device.run()
        seen = len(agent.lines)
        agent.process.send_signal(signal.SIGUSR1)  # renew now
        agent.wait_for(partial(contains, f" {word}"), word, since=seen)
        agent.process.kill()
        agent.stop()
    device.run()
    device.call("send", "devices/{id}/up/t", "still here", "--wait")
    assert [c["state"] for c in credentials(device)].count("active") == 1
