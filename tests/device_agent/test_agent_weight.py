"""The long-lived process stays small: what it loads, and what it weighs."""

import ast
import inspect
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device_agent.fleet_parts import Device, Subscriber
from tests.tiers import Tier

RSS_MAX_KB = 28 * 1024
RSS_WITH_SPOOL_MAX_KB = 31 * 1024
START_MAX_SECONDS = 0.5
IDLE_WAKINGS_MAX = 30
IDLE_SECONDS = 60  # the keep-alive's default: one PINGREQ is in it
GROUP_LIMIT = 64 * 1024 * 1024
PEAKS = ("memory.peak", "memory.max_usage_in_bytes")
KILLS = ("memory.events", "memory.oom_control")
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
    "email",
    "http",
    "msgspec",
    "OpenSSL",
    "pydantic",
    "serial",
    "shutil",
    "sqlite3",
    "tempfile",
    "uvloop",
)


# Of fleet, the modules that need the standard library alone.
LIGHT = {"fleet"} | {f"fleet.est_client{name}" for name in ("", ".arguments", ".errors", ".tls", ".validity")}
LIGHT |= {"fleet.config", "fleet.config.small_files", "fleet.est_client.server_checks"}
LIGHT |= {
    f"fleet.wire{name}" for name in ("", ".der", ".errors", ".identifiers", ".key_types", ".text", ".topic_filters")
}


def test_the_run_path_loads_nothing_heavy() -> None:
    code = "import device_agent.run, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if name.partition(".")[0] == "fleet"} <= LIGHT
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "paho" in loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_what_is_left_out_of_paho_is_used_for_proxies_alone() -> None:
    from device_agent.link.light_paho import paho

    for function in ast.walk(ast.parse(inspect.getsource(paho))):
        if isinstance(function, ast.FunctionDef) and "urllib.request" in ast.unparse(function):
            assert function.name == "_get_proxy"
            assert ast.unparse(function.body[0]) == "if socks is None:\n    return None"


def memory_kb(pid: int, name: str = "Rss") -> int:
    """Resident memory (Rss), or its share of what several processes map (Pss)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_it_stays_small_through_messages_and_rotations(device: Device, subscriber: Subscriber) -> None:
    agent = device.run("--publish", "w/{id}")
    seen = agent.wait_for("connected")
    for _ in range(3):
        agent.say("x" * 200 + "\n" + "y\n" * 1000)
        agent.process.send_signal(10)
        seen = agent.wait_for("renewed", seen)
    subscriber.wait_until(lambda messages: sum(device.device_id in topic for topic, _ in messages) == 3003)
    assert memory_kb(agent.process.pid) <= RSS_MAX_KB
    assert agent.stop() == 0


@pytest.mark.parametrize("spool", [pytest.param("false", marks=pytest.mark.long), "true"])
def test_memory_with_and_without_the_spool(
    device: Device, subscriber: Subscriber, spool: str, tier: Tier, capsys: pytest.CaptureFixture[str]
) -> None:
    device.set("enabled", spool)
    agent = device.run("--publish", f"w/{spool}/{{id}}")
    agent.wait_for("connected")
    first = memory_kb(agent.process.pid), memory_kb(agent.process.pid, "Pss")
    rounds = tier.times(1, all=5)
    for _ in range(rounds):
        agent.say("x" * 200 + "\n" + "y\n" * 500)
    subscriber.wait_until(lambda messages: sum(f"w/{spool}/" in topic for topic, _ in messages) == 501 * rounds)
    last = memory_kb(agent.process.pid), memory_kb(agent.process.pid, "Pss")
    with capsys.disabled():
        for when, (rss, pss) in (("connected", first), (f"after {501 * rounds} messages", last)):
            print(f"\nspool {spool}, {when}: RSS {rss / 1024:.1f} MiB, PSS {pss / 1024:.1f} MiB")
    assert last[0] <= (RSS_WITH_SPOOL_MAX_KB if spool == "true" else RSS_MAX_KB)
    assert agent.stop() == 0


def schedule(pid: int) -> tuple[float, float]:
    """Seconds that its threads have run, and that they have waited for a processor: (run, waited).

    /proc/PID/stat counts hundredths of a second, this nanoseconds. (0.0, 0.0) where the kernel does not count.
    """
    files = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    run, waited, _ = zip(
        (0, 0, 0), *([int(field) for field in file.read_text().split()] for file in files), strict=True
    )
    return sum(run) / 1e9, sum(waited) / 1e9


@pytest.mark.long
def test_the_time_from_its_start_until_it_is_online(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    walls, alone = [], []
    for _ in range(5):
        began = time.monotonic()
        agent = device.run()
        agent.wait_for(" connected ")
        walls.append(time.monotonic() - began)
        alone.append(walls[-1] - schedule(agent.process.pid)[1])  # not what other programs take from it
        assert agent.stop() == 0
    with capsys.disabled():
        print(f"\nstart to connected, median of 5: {statistics.median(walls):.2f} s", end=", ")
        print(f"without waiting for a processor {statistics.median(alone):.2f} s")
    assert min(alone) <= START_MAX_SECONDS


def wakings(pid: int) -> int:
    """How often its threads have waited for something."""
    states = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(state.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for state in states)


@pytest.mark.long
@pytest.mark.parametrize("spool", ["false", "true"])
def test_idle_it_hardly_wakes(device: Device, spool: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What that costs depends on what else runs here: it is printed."""
    device.set("enabled", spool)
    agent = device.run()
    agent.wait_for("connected")
    before, used, began = wakings(agent.process.pid), schedule(agent.process.pid)[0], time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(IDLE_SECONDS)
    woken = wakings(agent.process.pid) - before
    share = (schedule(agent.process.pid)[0] - used) / (time.monotonic() - began)
    with capsys.disabled():
        print(f"\nspool {spool}, idle for {IDLE_SECONDS} s: woken {woken} times, {share:.4%} of a processor")
    assert woken <= IDLE_WAKINGS_MAX
    assert agent.stop() == 0


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group, of either version, that may use 64 MiB, and no swap beyond."""
    root = Path("/sys/fs/cgroup")
    unified = root / "cgroup.subtree_control"
    is_unified = unified.exists() and "memory" in unified.read_text().split()
    group = (root if is_unified else root / "memory") / f"agent-weight-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if is_unified else "memory.limit_in_bytes")).write_text(str(GROUP_LIMIT))
    except OSError as error:
        pytest.skip(f"cgroup: no group of ours with a memory limit: {error}")
    yield group
    group.rmdir()


@pytest.mark.long
@pytest.mark.parametrize("spool", ["false", "true"])
def test_it_lives_and_renews_in_64_mib(
    device: Device, subscriber: Subscriber, spool: str, memory_group: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The children that renew, which load `cryptography`, are in it."""
    device.set("enabled", spool)
    enter = ("sh", "-c", f'echo $$ >"{memory_group}/cgroup.procs" && exec "$@"', "sh")
    agent = device.run("--publish", f"w/64/{spool}/{{id}}", through=enter)
    seen = agent.wait_for("connected")
    agent.say("y\n" * 1000)
    for _ in range(2):
        agent.process.send_signal(10)
        seen = agent.wait_for("renewed", seen)
    subscriber.wait_until(lambda messages: sum(f"w/64/{spool}/" in topic for topic, _ in messages) == 1000)
    peak = next(memory_group / name for name in PEAKS if (memory_group / name).exists())
    with capsys.disabled():
        most = int(peak.read_text()) / 1024**2
        print(f"\nspool {spool}, in a group of 64 MiB, through two renewals: at most {most:.1f} MiB")
    assert agent.stop() == 0
    events = next(memory_group / name for name in KILLS if (memory_group / name).exists()).read_text().split()
    assert events[events.index("oom_kill") + 1] == "0"
