"""The service where systemd is process 1: installed, watched, restarted, reloaded, with its hooks, and uninstalled."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device_agent.fleet_parts import Broker, EstServer
from tests.device_agent.systemd.booted import Booted, why_not
from tests.packages.conftest import environment
from tests.waiting import wait_until

PROJECT = Path(__file__).parents[3]
SYSTEM_PYTHON = Path("/usr/bin/python3")  # the user of a service can't read an interpreter below /root
HOME = "/var/lib/device-agent"
AGENT = "/opt/device-agent/bin/device-agent"
HOOK = """
[[hook]]
name = "web"
run = ["touch", "/srv/web/reloaded"]
[[hook.copy]]
content = "pair"
to = "/srv/web/pair.pem"
"""
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why_not()), reason=f"systemd: {why_not()}")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed agent that any user can read."""
    if not SYSTEM_PYTHON.exists():
        pytest.skip(f"{SYSTEM_PYTHON}: not installed")
    folder = tmp_path_factory.mktemp("opt") / "device-agent"
    source = tmp_path_factory.mktemp("source") / "project"
    shutil.copytree(PROJECT, source, ignore=shutil.ignore_patterns(".*", "tests", "build", "*.egg-info"))
    environment(SYSTEM_PYTHON, folder, f"{source}[agent]")
    return folder


@pytest.fixture
def machine(tmp_path: Path, program: Path) -> Iterator[Booted]:
    machine = Booted(tmp_path, program)
    try:
        machine.boot()
        script = Path(program / "bin" / "device-agent").read_text().splitlines(keepends=True)
        machine.call("tee", AGENT, give="".join(["#!/opt/device-agent/bin/python\n", *script[1:]]))
        yield machine
    finally:
        machine.close()


def agent(machine: Booted, *words: str, expect: int | None = 0, give: str = "") -> str:
    return machine.call(AGENT, *words, "--home", HOME, expect=expect, give=give)


def wait_for_event(machine: Booted, event: str, count: int = 1) -> list[dict[str, str]]:
    """The journal's entries of that event, once there are as many."""

    def entries() -> list[dict[str, str]]:
        printed = machine.call("journalctl", "-q", "-o", "json", f"DEVICE_EVENT={event}", expect=None)
        return [json.loads(line) for line in printed.splitlines()]

    wait_until(lambda: len(entries()) >= count, event)
    return entries()


@pytest.fixture
def service(machine: Booted, est: EstServer, broker: Broker) -> Booted:
    """Where an enrolled device's agent is installed, runs and is connected."""
    machine.call("tee", "/root/ca.pem", give=est.authority.ca_file.read_text())
    where = ["--est", est.url, "--mqtt", f"localhost:{broker.port}", "--ca", "/root/ca.pem"]
    agent(machine, "init", "--device-id", "pi-1", *where)
    agent(machine, "enroll", give=est.token("pi-1"))
    agent(machine, "service", "install")
    wait_for_event(machine, "connected")
    return machine


def test_it_runs_as_its_own_user_and_comes_back_when_it_dies_or_is_stuck(service: Booted) -> None:
    agent(service, "service", "status")
    (connected,) = wait_for_event(service, "connected")
    assert connected["SYSLOG_IDENTIFIER"] == "device-agent"
    assert connected["_UID"] != "0"
    assert "connected" in service.call("systemctl", "show", "-p", "StatusText", "device-agent").lower()

    service.call("systemctl", "kill", "-s", "KILL", "device-agent")
    wait_for_event(service, "connected", 2)

    drop_in = "/etc/systemd/system/device-agent.service.d/watchdog.conf"
    service.call("install", "-D", "/dev/stdin", drop_in, give="[Service]\nWatchdogSec=4\n")
    service.call("systemctl", "daemon-reload")
    service.call("systemctl", "restart", "device-agent")
    wait_for_event(service, "connected", 3)
    service.call("systemctl", "kill", "-s", "STOP", "device-agent")
    wait_for_event(service, "connected", 4)


@pytest.mark.parametrize("owner", ["", 'owner = "root"\n'])
def test_hooks_reload_and_uninstall(service: Booted, owner: str) -> None:
    service.call("install", "-d", "-o", "device-agent", "/srv/web")
    settings = service.call("cat", f"{HOME}/agent.toml") + HOOK + owner
    service.call("install", "-D", "/dev/stdin", "/root/agent.toml", give=settings)
    agent(service, "service", "install", "--settings", "/root/agent.toml")

    agent(service, "renew")

    wait_until(lambda: "reloaded" in service.call("ls", "/srv/web"), "the hook has run")
    pair = service.call("cat", "/srv/web/pair.pem")
    assert "BEGIN CERTIFICATE" in pair
    assert "PRIVATE KEY" in pair
    assert service.call("stat", "-c", "%U %a", "/srv/web/pair.pem").split() == [
        "root" if owner else "device-agent",
        "600",
    ]

    service.call("systemctl", "reload", "device-agent")
    wait_for_event(service, "reloaded")
    agent(service, "service", "uninstall")
    assert service.call("systemctl", "is-active", "device-agent", expect=None).strip() == "inactive"
    assert agent(service, "status", expect=None)  # the home stays
