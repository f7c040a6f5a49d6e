"""The long-lived process stays small: what it loads, and what it weighs."""

import subprocess
import sys
from pathlib import Path

from tests.device_agent.fleet_parts import Device, Subscriber

RSS_MAX_KB = 32 * 1024
# Kept for short-lived processes, for servers and for other programs.
HEAVY = (
    "aiohttp",
    "aiosqlite",
    "asyncpg",
    "asyncio",
    "cbor2",
    "click",
    "cobs",
    "cryptography",
    "msgspec",
    "OpenSSL",
    "pydantic",
    "serial",
    "sqlite3",
    "uvloop",
)


# Of fleet, the modules that need the standard library alone.
LIGHT = {"fleet"} | {f"fleet.est_client{name}" for name in ("", ".arguments", ".errors", ".tls", ".validity")}
LIGHT |= {f"fleet.wire{name}" for name in ("", ".der", ".errors", ".key_types", ".text")}


def test_the_run_path_loads_nothing_heavy() -> None:
    code = "import device_agent.run, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if name.partition(".")[0] == "fleet"} <= LIGHT
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "paho" in loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def rss_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_it_stays_small_through_messages_and_rotations(device: Device, subscriber: Subscriber) -> None:
    agent = device.run("--publish", "w/{id}")
    seen = agent.wait_for("connected")
    for _ in range(3):
        agent.say("x" * 200 + "\n" + "y\n" * 1000)
        agent.process.send_signal(10)
        seen = agent.wait_for("renewed", seen)
    subscriber.wait_until(lambda messages: sum(device.device_id in topic for topic, _ in messages) == 3003)
    assert rss_kb(agent.process.pid) <= RSS_MAX_KB
    assert agent.stop() == 0
