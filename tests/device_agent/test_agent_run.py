"""`device-agent run` against a real broker and a real EST server, as processes."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Broker, Device, EstServer, Subscriber

pytestmark = pytest.mark.usefixtures("forked_programs")


def backdate(device: Device) -> None:
    """Forget when the certificate came here: its age is counted from its own first day."""
    for file in device.home.glob("slot-*/meta.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"obtained_at": None}))


def ours(subscriber: Subscriber, device: Device) -> list[bytes]:
    return [payload for topic, payload in subscriber.messages if device.device_id in topic]


def test_lines_are_published_and_sigterm_drains(device: Device, subscriber: Subscriber) -> None:
    agent = device.run("--publish", "devices/{id}/up")
    agent.say("one\ntwo words\n")
    agent.wait_for("connected")
    subscriber.wait_until(lambda _: len(ours(subscriber, device)) == 2)
    assert agent.stop() == 0
    assert subscriber.messages[-2:] == [
        (f"devices/{device.device_id}/up", b"one"),
        (f"devices/{device.device_id}/up", b"two words"),
    ]
    assert "delivered=2 undelivered=0" in agent.lines[-1]


def test_lines_may_name_their_topic_and_bad_ones_are_left_out(device: Device, subscriber: Subscriber) -> None:
    agent = device.run("--stdin", "--exit-at-eof")
    agent.say("a/{id} x y\nno/#/wildcards z\nb/{id}\n")
    agent.end_input()
    assert agent.wait() == 0
    name = device.device_id
    assert [each for each in subscriber.wait_for(2) if name in each[0]] == [(f"a/{name}", b"x y"), (f"b/{name}", b"")]
    assert any("line-refused" in line for line in agent.lines)


@pytest.mark.parametrize("spool", ["false", pytest.param("true", marks=pytest.mark.long)])
def test_a_rotation_loses_and_doubles_nothing(device: Device, subscriber: Subscriber, spool: str) -> None:
    device.set("enabled", spool)
    agent = device.run("--publish", "n/{id}", "--exit-at-eof")
    before = device.status()["serial"]
    agent.wait_for("connected")
    total, step = 4000, 200
    seen = 0
    for first in range(0, total, step):
        agent.say("".join(f"{number}\n" for number in range(first, first + step)))
        if first in (step * 3, step * 9):
            agent.process.send_signal(signal.SIGUSR1)
            seen = agent.wait_for("renewed", seen)
    agent.end_input()
    assert agent.wait() == 0
    subscriber.wait_until(lambda _: len(ours(subscriber, device)) >= total)
    assert ours(subscriber, device) == [b"%d" % number for number in range(total)]
    assert device.status()["serial"] != before


def test_renew_talks_to_the_running_agent(device: Device) -> None:
    agent = device.run()
    agent.wait_for("connected")
    before = device.status()
    device.call("renew")
    after = device.status()
    assert after["serial"] != before["serial"]
    assert after["connected"]
    assert after["healthy"]
    assert after["agent"]["renewals"] == 1
    assert sorted(after["slots"].values()) == ["current", "empty"]
    assert agent.stop() == 0


def test_it_renews_by_itself_when_it_is_time(new_device: Callable[[], Device], est: EstServer) -> None:
    device = new_device()
    est.shift = timedelta(minutes=-50)
    device.enrolled(certificate_lifetime=timedelta(hours=1))
    backdate(device)
    est.shift = timedelta(0)
    before = device.status()["serial"]
    agent = device.run()
    agent.wait_for("renewed")
    assert device.status()["serial"] != before


def test_a_short_lived_certificate_is_not_renewed_as_it_arrives(new_device: Callable[[], Device]) -> None:
    device = new_device().enrolled(certificate_lifetime=timedelta(minutes=1))  # dated back by more than its life
    agent = device.run()
    agent.wait_for("connected")
    device.call("renew")
    assert device.status()["agent"]["renewing"] is False
    assert sum("renewing" in line for line in agent.lines) == 1


def test_without_est_a_renewal_fails_and_harms_nothing(device: Device, est: EstServer) -> None:
    agent = device.run()
    agent.wait_for("connected")
    before = device.status()
    est.shut()
    failed = device.call("renew", expect=1)
    assert "cannot be reached" in failed.stderr
    after = device.status()
    assert after["serial"] == before["serial"]
    assert after["connected"]
    assert "cannot be reached" in after["last_error"]
    est.open()
    device.call("renew")
    assert device.status()["serial"] != before["serial"]


def test_renew_without_an_agent_proves_the_new_certificate_itself(device: Device) -> None:
    before = device.status()["serial"]
    device.call("renew")
    assert device.status()["serial"] != before


def test_renew_without_agent_and_broker_keeps_both(device: Device, broker: Broker) -> None:
    before = device.status()["serial"]
    broker.stop()
    try:
        failed = device.call("renew", expect=1)
        assert "could not be proven" in failed.stderr
        kept = device.status()
        assert kept["serial"] == before
        assert sorted(kept["slots"].values()) == ["candidate", "current"]
    finally:
        broker.start()
    device.run().wait_for("renewed")
    assert device.status()["serial"] != before


def test_a_suspended_device_keeps_its_identity(device: Device, est: EstServer) -> None:
    est.suspend(device.device_id)
    before = device.status()
    failed = device.call("renew", expect=1)
    assert "suspended" in failed.stderr
    assert device.status()["serial"] == before["serial"]


def test_it_connects_again_when_the_broker_comes_back(device: Device, broker: Broker) -> None:
    agent = device.run("--publish", "back/{id}", "--exit-at-eof")
    seen = agent.wait_for("connected")
    broker.stop()
    seen = agent.wait_for("connect-failed", agent.wait_for("disconnected", seen))
    agent.say("kept\n")
    agent.end_input()
    broker.start()
    agent.wait_for("connected", seen)
    assert agent.wait() == 0
    assert "delivered=1 undelivered=0" in agent.lines[-1]


def test_one_agent_for_a_home(device: Device) -> None:
    first = device.run()
    first.wait_for("connected")
    second = device.run()
    assert second.wait() == 1
    assert "already running in this home" in second.lines[-1]
    assert first.process.poll() is None


def test_a_killed_agent_leaves_no_trace_that_matters(device: Device) -> None:
    agent = device.run()
    agent.wait_for("connected")
    agent.kill()
    assert (device.home / "agent.sock").exists()
    assert device.status()["running"] is False
    device.run().wait_for("connected")


def test_send_is_accepted_or_acknowledged(device: Device, subscriber: Subscriber) -> None:
    agent = device.run()
    agent.wait_for("connected")
    device.call("send", "s/{id}", "21.5", "--wait")
    device.call("send", "s/{id}", give="by standard input")
    device.call("send", "s/{id}", "--qos", "0", "--wait", give="at most once")
    subscriber.wait_until(lambda _: len(ours(subscriber, device)) == 3)
    assert "not a topic" in device.call("send", "s/#", "x", expect=2).stderr
    agent.stop()
    assert "No agent" in device.call("send", "s/{id}", "x", expect=1).stderr


def test_send_waits_in_vain_and_says_so(device: Device, broker: Broker) -> None:
    device.set("messages_max", "2")
    broker.stop()
    try:
        agent = device.run()
        agent.wait_for("connect-failed")
        device.call("send", "s/{id}", "1")
        late = device.call("send", "s/{id}", "2", "--wait", "--timeout", "0.3", expect=1).stderr
        assert "The message is not delivered yet: " in late
        assert device.status()["last_error"].rstrip(".") in late
        assert "stays queued" in late
        assert "full" in device.call("send", "s/{id}", "3", expect=1).stderr
        assert agent.stop() == 1  # two accepted messages were not delivered
        assert "undelivered=2" in agent.lines[-1]
    finally:
        broker.start()


def test_a_long_home_path_has_a_socket_too(est: EstServer, broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / ("a folder with a long name " * 4) / ("and another one " * 5)
    folder.mkdir(parents=True)
    device = Device(folder / "home", est, broker.port, "long-path").enrolled()
    agent = device.run()
    try:
        device.call("status", "--wait-connected", str(DEADLINE_SECONDS))
        device.call("send", "long/{id}", "x", "--wait")
    finally:
        agent.kill()


def test_the_home_is_private(device: Device) -> None:
    agent = device.run()
    agent.wait_for("connected")
    modes = {}
    for path in device.home.rglob("*"):
        with suppress(FileNotFoundError):  # the agent runs: what it writes, it renames
            modes[path.relative_to(device.home).as_posix()] = path.lstat().st_mode & 0o777
    assert modes.pop("current") is not None  # a link has no mode of its own
    assert {mode for name, mode in modes.items() if "." in name} == {0o600}
    assert {mode for name, mode in modes.items() if "." not in name} == {0o700}
    assert device.home.stat().st_mode & 0o777 == 0o700


def test_nothing_secret_is_logged_or_shown(new_device: Callable[[], Device], est: EstServer) -> None:
    device = new_device().init()
    token = est.token(device.device_id)
    shown = device.call("enroll", give=token)
    agent = device.run()
    agent.wait_for("connected")
    command = (
        Path(f"/proc/{agent.process.pid}/cmdline").read_bytes()
        + Path(f"/proc/{agent.process.pid}/environ").read_bytes()
    )
    everything = shown.stdout + shown.stderr + "".join(agent.lines) + command.decode("utf-8", "replace")
    assert token.partition(".")[2] not in everything
    assert os.fspath(device.home) in everything
